//! The reader of a connection: bytes in, PDUs apart, commands run.
//!
//! One receive brings as much as there is, up to the reactor's buffer. Whole capsules are run where they lie: in-capsule data is written
//! straight from there. The data of an H2CData PDU that is still on its way is received straight into the transfer's buffer. What is left
//! of a PDU that was cut waits in `carry`, so an idle connection holds next to no memory.

use std::io::IoSliceMut;
use std::rc::Rc;

use keelblock_nvme::Sqe;
use keelblock_nvme::digest::digest;
use keelblock_nvme::pdu::{DIGEST_LEN, H2CData, PduError, PduType, at};
use keelblock_nvme::sgl::Sgl;

use super::pdu::{self, CAPSULE_HLEN, Incoming, Layout, SQE_AT, data_intact};
use super::queue::SubmitError;
use super::{Connection, Hold, Role};
use crate::nvmf::limits::FLUSH_BYTES;
use crate::nvmf::seam::{ACTIVITY_INTERVAL_NS, IN_CAPSULE_BYTES, StatusField};
use crate::nvmf::{admin_queue, io, status, term};
use crate::reactor::NetError;

/// From here on the rest of a PDU's data is received into its buffer directly.
const DIRECT_BYTES: usize = 4096;
/// A carry that grew beyond this is given back when it is empty.
const CARRY_KEPT: usize = 16 << 10;

/// In-capsule data, as far as the transport has looked at it.
#[derive(Clone, Copy)]
pub struct Capsule<'a> {
    /// The data; empty: none.
    pub data: &'a [u8],
    /// Its digest did not match.
    pub damaged: bool,
}

/// What became of a capsule.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It has been answered, begun, or waits for data.
    Yes,
    /// Not yet: it comes again when a buffer of this size is spare.
    NeedsBuffer(usize),
}

/// Data of an H2CData PDU that is being received.
struct Body {
    slot: u16,
    /// Where this PDU's data begins in the buffer.
    start: usize,
    /// Data bytes to come.
    left: usize,
    /// Digest bytes to come.
    digest_left: usize,
    digest: [u8; DIGEST_LEN],
}

/// Commands that are looked at before their turn.
const AHEAD: u32 = 4;

/// How far in the received bytes capsules were looked at, so that what they will look at is on its way to the caches when their turn comes.
#[derive(Default)]
struct Ahead {
    at: usize,
    /// How many capsules that are still to be served.
    capsules: u32,
}

impl Ahead {
    /// Shows `see` the next commands; a PDU begins at `now`. Nothing here is checked: a lie costs its sender some cache lines.
    #[inline]
    fn look(&mut self, bytes: &[u8], now: usize, see: impl Fn(&Sqe)) {
        if self.at <= now {
            (self.at, self.capsules) = (now, 0);
        } else {
            self.capsules = self.capsules.saturating_sub(1);
        }
        while self.capsules < AHEAD
            && let Some(pdu) = bytes.get(self.at..self.at + CAPSULE_HLEN)
        {
            if pdu[at::TYPE] == PduType::CapsuleCmd as u8 {
                see(&Sqe(pdu[SQE_AT..]
                    .try_into()
                    .expect("a capsule has an entry")));
            }
            let plen = pdu[at::PLEN..][..4].try_into().expect("four bytes");
            self.at += (u32::from_le_bytes(plen) as usize).max(CAPSULE_HLEN);
            self.capsules += 1;
        }
    }
}

enum End {
    /// The host is gone, or we closed.
    Closed,
    /// The host broke the protocol; with the bytes of the offending PDU.
    Fatal(PduError, Vec<u8>),
}

impl From<NetError> for End {
    fn from(_: NetError) -> Self {
        End::Closed
    }
}

struct Reader {
    conn: Rc<Connection>,
    carry: Vec<u8>,
    body: Option<Body>,
    /// The capsule at the front has been counted by the queue already.
    submitted: bool,
    hold: Option<Hold>,
    /// Nothing was left in the socket when it was last looked at.
    emptied: bool,
}

/// Serves a connection until it ends. `rest`: what was received behind the Connect command.
pub async fn read(conn: Rc<Connection>, rest: Vec<u8>) {
    let mut reader = Reader {
        conn: conn.clone(),
        carry: rest,
        body: None,
        submitted: false,
        hold: None,
        emptied: true,
    };
    match reader.run().await {
        End::Closed => conn.close(),
        End::Fatal(fatal, offender) => {
            tracing::debug!(peer = %conn.socket.peer(), nqn = %conn.nqn, %fatal, "connection terminated");
            term::terminate(&conn, fatal, &offender).await;
        }
    }
}

impl Reader {
    async fn run(&mut self) -> End {
        if !self.carry.is_empty()
            && let Err(end) = self.again()
        {
            return end;
        }
        loop {
            if self.conn.is_closed() {
                return End::Closed;
            }
            if let Err(end) = match self.hold {
                Some(hold) => self.held(hold).await,
                None => self.receive().await,
            } {
                return end;
            }
        }
    }

    /// Waits for bytes, takes them in, and sends the answers. One receive per pass of the reactor, so nobody is kept waiting by a
    /// connection that has much to say.
    async fn receive(&mut self) -> Result<(), End> {
        self.conn.socket.readable().await;
        if self.emptied {
            self.conn.came.set(self.conn.node.handle.now());
        }
        let mut buf = self.conn.node.take_receive_buffer();
        let took = self.pump(&mut buf);
        self.conn.node.give_receive_buffer(buf);
        match took {
            Ok(true) => {
                self.flush()?;
                self.report();
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(end) => {
                // what was answered before goes out first, and no view stays
                let _ = self.conn.flush();
                Err(end)
            }
        }
    }

    /// One receive. `Ok(false)`: there was nothing.
    fn pump(&mut self, buf: &mut [u8]) -> Result<bool, End> {
        let have = self.carry.len();
        buf[..have].copy_from_slice(&self.carry);
        let mut direct = 0;
        let got = match &mut self.body {
            Some(body) if body.left >= DIRECT_BYTES => {
                direct = body.left;
                let mut transfers = self.conn.transfers.borrow_mut();
                let transfer = transfers.get(body.slot);
                let from = transfer.got;
                let into = &mut transfer.buffer[from..from + direct];
                self.conn
                    .socket
                    .try_recv(&mut [IoSliceMut::new(into), IoSliceMut::new(&mut buf[have..])])?
            }
            _ => self
                .conn
                .socket
                .try_recv(&mut [IoSliceMut::new(&mut buf[have..])])?,
        };
        let Some(got) = got else {
            self.emptied = true;
            return Ok(false);
        };
        if got == 0 {
            return Err(End::Closed);
        }
        self.emptied = got < direct + buf.len() - have;
        self.conn.batch.begin(&self.conn.node.handle);
        self.carry.clear();
        let direct = direct.min(got);
        if direct > 0 {
            self.body_advance(direct);
        }
        let bytes = &buf[..have + got - direct];
        self.feed_all(bytes)?;
        Ok(true)
    }

    /// Takes the carried bytes again.
    fn again(&mut self) -> Result<(), End> {
        let bytes = std::mem::take(&mut self.carry);
        self.conn.batch.begin(&self.conn.node.handle);
        let fed = self.feed_all(&bytes);
        let flushed = self.flush();
        fed.and(flushed)
    }

    /// Takes in what it can, and carries the rest.
    fn feed_all(&mut self, bytes: &[u8]) -> Result<(), End> {
        let mut at = 0;
        match self.feed(bytes, &mut at) {
            Ok(()) => {
                self.carry.extend_from_slice(&bytes[at..]);
                if self.carry.is_empty() && self.carry.capacity() > CARRY_KEPT {
                    self.carry = Vec::new();
                }
                Ok(())
            }
            Err(fatal) => Err(match fatal {
                Some(fatal) => End::Fatal(fatal, bytes[at..].iter().take(128).copied().collect()),
                None => End::Closed,
            }),
        }
    }

    /// `Err(None)`: the host asked for the end.
    fn feed(&mut self, bytes: &[u8], at: &mut usize) -> Result<(), Option<PduError>> {
        let mut ahead = Ahead::default();
        loop {
            if let Role::Io(cell) = &self.conn.role
                && self.body.is_none()
            {
                ahead.look(bytes, *at, |sqe| io::expect(cell, sqe));
            }
            if self.body.is_some() {
                *at += self.feed_body(&bytes[*at..]);
                if self.body.is_some() {
                    return Ok(());
                }
            }
            let pdu = &bytes[*at..];
            match pdu::incoming(pdu, self.conn.params)? {
                None => return Ok(()),
                Some(Incoming::Term) => return Err(None),
                Some(Incoming::Capsule(layout)) => {
                    if pdu.len() < layout.plen || !self.capsule(&pdu[..layout.plen], layout)? {
                        return Ok(());
                    }
                    *at += layout.plen;
                }
                Some(Incoming::Data(layout, header)) => {
                    if pdu.len() < layout.pdo {
                        return Ok(());
                    }
                    self.begin_body(layout, header)?;
                    *at += layout.pdo;
                }
            }
            if self.conn.is_closed() {
                return Err(None);
            }
            if self.conn.out.borrow().unsent() >= FLUSH_BYTES {
                self.flush().map_err(|_| None)?;
            }
        }
    }

    /// Runs a capsule. `Ok(false)`: not now.
    fn capsule(&mut self, pdu: &[u8], layout: Layout) -> Result<bool, Option<PduError>> {
        if let Some(hold) = self.conn.hold() {
            self.hold = Some(hold);
            return Ok(false);
        }
        let sqe = &Sqe(pdu[SQE_AT..CAPSULE_HLEN]
            .try_into()
            .expect("a capsule has an entry"));
        if layout.len > IN_CAPSULE_BYTES {
            return Err(Some(PduError::field(
                at::PLEN,
                "in-capsule data above IOCCSZ",
            )));
        }
        let data = &pdu[layout.pdo..layout.pdo + layout.len];
        let damaged = !data_intact(pdu, layout, self.conn.params);
        if !self.submitted {
            let cid = sqe.cid();
            self.conn.node.handle.stats().commands.add(1);
            let submitted = self.conn.queue.borrow_mut().submit(cid);
            match submitted {
                Ok(()) => {}
                Err(SubmitError::CidConflict) => {
                    self.conn.put_status(cid, status::CID_CONFLICT);
                    return Ok(true);
                }
                Err(SubmitError::Overrun) => {
                    return Err(Some(PduError::sequence(
                        "more commands than the queue has entries",
                    )));
                }
            }
        }
        let capsule = Capsule { data, damaged };
        let taken = match capsule_error(sqe, capsule) {
            Some(refused) => {
                self.conn.put_status(sqe.cid(), refused);
                Taken::Yes
            }
            None => match &self.conn.role {
                Role::Io(cell) => io::command(&self.conn, cell, sqe, capsule),
                Role::Admin(home) => {
                    admin_queue::command(&self.conn, home, sqe, capsule);
                    Taken::Yes
                }
            },
        };
        self.submitted = taken != Taken::Yes;
        if let Taken::NeedsBuffer(len) = taken {
            self.hold = Some(Hold::Buffer(len));
            return Ok(false);
        }
        Ok(true)
    }

    fn begin_body(&mut self, layout: Layout, header: H2CData) -> Result<(), PduError> {
        let mut transfers = self.conn.transfers.borrow_mut();
        let (slot, transfer) = transfers.accept(header)?;
        self.body = Some(Body {
            slot,
            start: transfer.got,
            left: layout.len,
            digest_left: if self.conn.params.digests.data {
                DIGEST_LEN
            } else {
                0
            },
            digest: [0; DIGEST_LEN],
        });
        Ok(())
    }

    /// Takes data and digest of the body from `bytes`; ends the body when both are there. Returns the bytes taken.
    fn feed_body(&mut self, bytes: &[u8]) -> usize {
        let body = self.body.as_mut().expect("a body");
        let data = bytes.len().min(body.left);
        if data > 0 {
            let mut transfers = self.conn.transfers.borrow_mut();
            let transfer = transfers.get(body.slot);
            let from = transfer.got;
            transfer.buffer[from..from + data].copy_from_slice(&bytes[..data]);
        }
        self.body_advance(data);
        let body = self.body.as_mut().expect("a body");
        let mut taken = data;
        if body.left == 0 && body.digest_left > 0 {
            let n = (bytes.len() - taken).min(body.digest_left);
            let at = DIGEST_LEN - body.digest_left;
            body.digest[at..at + n].copy_from_slice(&bytes[taken..taken + n]);
            body.digest_left -= n;
            taken += n;
        }
        if body.left == 0 && body.digest_left == 0 {
            self.end_body();
        }
        taken
    }

    fn body_advance(&mut self, n: usize) {
        let body = self.body.as_mut().expect("a body");
        body.left -= n;
        self.conn.transfers.borrow_mut().get(body.slot).got += n;
    }

    /// A PDU of data is complete; the last one runs the command.
    fn end_body(&mut self) {
        let body = self.body.take().expect("a body");
        let mut transfers = self.conn.transfers.borrow_mut();
        let transfer = transfers.get(body.slot);
        if self.conn.params.digests.data {
            let data = &transfer.buffer[body.start..transfer.got];
            transfer.damaged |= digest(data).to_le_bytes() != body.digest;
        }
        let complete = transfer.got == transfer.len;
        let done = complete.then(|| transfers.end(body.slot));
        let live = transfers.live() > 0;
        drop(transfers);
        if done.is_some() {
            self.conn
                .owing_since
                .set(live.then(|| self.conn.node.handle.now()));
        }
        if let Some(transfer) = done {
            self.conn.node.transfer_ended(transfer.len);
            match &self.conn.role {
                Role::Io(cell) => io::data_arrived(&self.conn, cell, transfer),
                Role::Admin(home) => admin_queue::data_arrived(&self.conn, home, transfer),
            }
        }
    }

    /// Sends the batch's answers; what the socket does not take is left to the writer.
    fn flush(&mut self) -> Result<(), End> {
        if !self.conn.flush()? {
            self.conn.to_send.notify();
        }
        if let Role::Io(cell) = &self.conn.role {
            self.conn.batch.record(&self.conn.node.handle, &cell.get());
        }
        Ok(())
    }

    /// Waits until commands may be taken again, then takes the carried ones.
    async fn held(&mut self, hold: Hold) -> Result<(), End> {
        // What comes meanwhile waits as long as what is held.
        self.emptied = false;
        match hold {
            Hold::Outbox => {
                while self.conn.hold() == Some(Hold::Outbox) && !self.conn.is_closed() {
                    self.conn.resume.notified().await;
                }
            }
            Hold::Operations => {
                while self.conn.hold() == Some(Hold::Operations) && !self.conn.is_closed() {
                    self.conn.node.wait_for_operations(&self.conn);
                    self.conn.resume.notified().await;
                }
            }
            Hold::Buffer(len) => {
                let buffer = self.conn.node.take_buffer(len).await;
                self.conn.spare.replace(Some(buffer));
            }
        }
        self.hold = None;
        self.again()?;
        self.conn.node.handle.yield_now().await;
        Ok(())
    }

    /// Tells home now and then that the host is alive.
    fn report(&self) {
        let conn = &self.conn;
        let now = conn.node.handle.now();
        if matches!(conn.role, Role::Io(_)) && now.0 - conn.reported.get().0 >= ACTIVITY_INTERVAL_NS
        {
            conn.reported.set(now);
            conn.node.report_activity(conn);
        }
    }
}

/// What is wrong with the data of a capsule, whatever the command.
#[inline]
fn capsule_error(sqe: &Sqe, capsule: Capsule<'_>) -> Option<StatusField> {
    match sqe.sgl() {
        Sgl::InCapsule { offset, .. } if offset != 0 => Some(status::SGL_OFFSET),
        Sgl::InCapsule { length, .. } if length as usize != capsule.data.len() => {
            Some(status::SGL_LENGTH)
        }
        Sgl::InCapsule { .. } => capsule.damaged.then_some(status::TRANSPORT),
        _ if !capsule.data.is_empty() => Some(status::SGL_TYPE),
        _ => None,
    }
}
