//! A queue pair: commands in, completions out, over one connection, without blocking and without allocating.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::inbox::{Event, Inbox};
use super::outbox::Outbox;
use super::slot::{Completion, Payload, Slots, Transfer};
use super::socket::{Negotiated, Socket};
use crate::digest::digest;
use crate::pdu::{
    CapsuleCmd, DataLayout, Digests, H2CData, PduError, PduType, R2T, Sender, TERM_DATA_MAX,
    TermReq,
};
use crate::sgl::Sgl;
use crate::{Cqe, Sqe, Status};

/// In-capsule data that every controller takes on the admin queue and with fabrics commands (NVMe/TCP 1.1, 3.3.2.2).
pub const FABRICS_CAPSULE_BYTES: usize = 8192;

/// A queue pair, before Connect good for nothing but Connect.
#[derive(Debug)]
pub struct QueuePair {
    socket: Socket,
    negotiated: Negotiated,
    slots: Slots,
    outbox: Outbox,
    inbox: Inbox,
    /// Commands with more of an R2T to answer once what is queued has left, or answered before it has.
    lingering: Vec<u16>,
    in_capsule_bytes: usize,
    failed: bool,
}

impl QueuePair {
    /// Connects and negotiates. At most `depth` commands (1 to 65535) can be in flight.
    pub fn open(addr: SocketAddr, depth: u16, digests: Digests, limit: Duration) -> Result<Self> {
        Self::negotiate(Socket::connect(addr, limit)?, depth, digests, limit)
    }

    /// As [`Self::open`], over a connection that there is already.
    pub fn over(stream: TcpStream, depth: u16, digests: Digests, limit: Duration) -> Result<Self> {
        Self::negotiate(Socket::over(stream)?, depth, digests, limit)
    }

    fn negotiate(
        mut socket: Socket,
        depth: u16,
        digests: Digests,
        limit: Duration,
    ) -> Result<Self> {
        if depth == 0 {
            return Err(Error::Unsuitable(
                "a queue pair needs a depth of at least 1",
            ));
        }
        let negotiated = socket.negotiate(digests, limit)?;
        Ok(Self {
            socket,
            negotiated,
            slots: Slots::new(depth),
            outbox: Outbox::new(depth.into()),
            inbox: Inbox::new(negotiated),
            lingering: Vec::with_capacity(depth.into()),
            in_capsule_bytes: FABRICS_CAPSULE_BYTES,
            failed: false,
        })
    }

    /// Sets how many bytes of data a capsule may carry, as Identify Controller's IOCCSZ says for I/O queues.
    pub fn set_in_capsule_bytes(&mut self, bytes: usize) {
        self.in_capsule_bytes = bytes;
    }

    /// What was agreed on with the controller.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// How many more commands can be submitted now.
    pub fn free(&self) -> usize {
        self.slots.free()
    }

    /// How many commands are in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.all.len() - self.slots.free()
    }

    /// System calls made so far.
    pub fn calls(&self) -> u64 {
        self.socket.calls
    }

    /// Queues a command; [`Self::poll`] sends it. The command identifier and SGL1 are set here. When `depth` commands are in flight the
    /// payload comes back as the error. A payload of 4 GiB or more is the caller's mistake, and a panic.
    pub fn submit(
        &mut self,
        tag: u64,
        mut sqe: Sqe,
        payload: Payload,
    ) -> std::result::Result<u16, Payload> {
        let Some(cid) = self.slots.take() else {
            return Err(payload);
        };
        let len = u32::try_from(payload.len()).expect("SGL lengths have 32 bits");
        let in_capsule = matches!(payload, Payload::Send(_))
            && payload.len() <= self.in_capsule_bytes
            && len > 0;
        sqe.set_cid(cid);
        sqe.set_sgl(if in_capsule {
            Sgl::InCapsule {
                offset: 0,
                length: len,
            }
        } else {
            Sgl::Transport { length: len }
        });
        let carried = if in_capsule { len } else { 0 };
        let Negotiated {
            digests,
            send_align,
            ..
        } = self.negotiated;
        let header = CapsuleCmd::encode(&sqe, carried, digests, send_align);
        let slot = &mut self.slots.all[usize::from(cid)];
        (slot.busy, slot.tag, slot.payload) = (true, tag, payload);
        self.queue_pdu(PduType::CapsuleCmd, &header, cid, 0, carried);
        Ok(cid)
    }

    /// Queues a header and `len` bytes at `from` of the command's data, with what digests were negotiated.
    fn queue_pdu(&mut self, kind: PduType, header: &[u8], cid: u16, from: usize, len: u32) {
        let Negotiated {
            digests,
            send_align,
            ..
        } = self.negotiated;
        let header_digest = digests.header.then(|| digest(header));
        let padded = if len > 0 {
            DataLayout::new(kind, len, digests, send_align).pdo.into()
        } else {
            0
        };
        self.outbox.header(header, header_digest, padded);
        let slot = &mut self.slots.all[usize::from(cid)];
        if len > 0 {
            self.outbox.data(cid, from, len as usize);
            if digests.data {
                let data = &slot.to_send()[from..from + len as usize];
                self.outbox.header(&[], Some(digest(data)), 0);
            }
        }
        slot.stream_end = self.outbox.queued();
    }

    /// Sends what is queued, receives what has come (with one call), and appends what completed to `done`. Returns how many did. An error
    /// ends the connection: whatever is in flight will not complete.
    pub fn poll(&mut self, done: &mut Vec<Completion>) -> Result<usize> {
        if self.failed {
            return Err(Error::Closed);
        }
        let before = done.len();
        match self.pump(done) {
            Ok(()) => Ok(done.len() - before),
            Err(error) => {
                self.failed = true;
                if let Error::Protocol(why) = &error {
                    self.terminate(why);
                }
                Err(error)
            }
        }
    }

    fn pump(&mut self, done: &mut Vec<Completion>) -> Result<()> {
        self.flush(done)?;
        self.inbox.fill(&mut self.socket, &mut self.slots)?;
        while let Some(event) = self.inbox.next(&mut self.slots)? {
            match event {
                Event::Response(cqe) => self.respond(cqe, done)?,
                Event::Ready(r2t) => self.start_transfer(r2t)?,
            }
        }
        self.flush(done)
    }

    fn flush(&mut self, done: &mut Vec<Completion>) -> Result<()> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        loop {
            let slots = &self.slots.all;
            self.outbox
                .flush(&mut self.socket, |cid| slots[usize::from(cid)].to_send())?;
            if self.lingering.is_empty() || !self.continue_lingering(done) {
                return Ok(());
            }
        }
    }

    /// Looks at the commands that waited for bytes to leave; true if that queued more.
    fn continue_lingering(&mut self, done: &mut Vec<Completion>) -> bool {
        let queued = self.outbox.queued();
        let mut i = 0;
        while let Some(&cid) = self.lingering.get(i) {
            let slot = &mut self.slots.all[usize::from(cid)];
            if slot.stream_end > self.outbox.sent() {
                i += 1;
                continue;
            }
            if let Some(cqe) = slot.ended.take() {
                done.push(self.slots.complete(cid, cqe));
                self.lingering.swap_remove(i);
            } else if slot.transfer.is_some() {
                self.queue_h2c(cid);
                i += 1;
            } else {
                self.lingering.swap_remove(i);
            }
        }
        self.outbox.queued() != queued
    }

    fn respond(&mut self, cqe: Cqe, done: &mut Vec<Completion>) -> Result<()> {
        let sent = self.outbox.sent();
        let cid = cqe.cid();
        let Some(slot) = self.slots.in_flight(cid) else {
            return Err(
                PduError::field(8 + 12, "a completion of a command that is not in flight").into(),
            );
        };
        if slot.stream_end <= sent {
            let lingers = slot.transfer.is_some();
            done.push(self.slots.complete(cid, cqe));
            if lingers {
                self.lingering.retain(|&c| c != cid);
            }
            return Ok(());
        }
        // The controller gave up on data that is still leaving: the buffer must stay until it has.
        slot.ended = Some(cqe);
        slot.transfer = None;
        if !self.lingering.contains(&cid) {
            self.lingering.push(cid);
        }
        Ok(())
    }

    fn start_transfer(&mut self, r2t: R2T) -> Result<()> {
        let sent = self.outbox.sent();
        let Some(slot) = self
            .slots
            .in_flight(r2t.cccid)
            .filter(|s| s.admits(&r2t, sent))
        else {
            return Err(
                PduError::out_of_range("an R2T for data that no command in flight has").into(),
            );
        };
        slot.transfer = Some(Transfer {
            ttag: r2t.ttag,
            offset: r2t.offset as usize,
            remaining: r2t.length as usize,
        });
        self.lingering.push(r2t.cccid);
        self.queue_h2c(r2t.cccid);
        Ok(())
    }

    /// Queues the next H2CData of a transfer: one at a time per command, which bounds the outbox.
    fn queue_h2c(&mut self, cid: u16) {
        let slot = &mut self.slots.all[usize::from(cid)];
        let Some(Transfer {
            ttag,
            offset,
            remaining,
        }) = slot.transfer
        else {
            return;
        };
        let length = remaining.min(self.negotiated.max_h2c_bytes as usize);
        let last = length == remaining;
        slot.transfer = (!last).then_some(Transfer {
            ttag,
            offset: offset + length,
            remaining: remaining - length,
        });
        let pdu = H2CData {
            cccid: cid,
            ttag,
            offset: offset as u32,
            length: length as u32,
            last,
        };
        let header = pdu.encode(self.negotiated.digests, self.negotiated.send_align);
        self.queue_pdu(PduType::H2CData, &header, cid, offset, length as u32);
    }

    /// Tells the controller why, if the socket takes it at once.
    fn terminate(&mut self, why: &PduError) {
        let mut pdu = [0; 24 + TERM_DATA_MAX];
        let len = TermReq::encode(Sender::Host, why, self.inbox.last_header(), &mut pdu);
        let _ = self.socket.send(&[std::io::IoSlice::new(&pdu[..len])]);
    }

    /// Sleeps until the socket can make progress or `deadline` has passed.
    pub fn wait(&self, deadline: Instant) -> Result<()> {
        self.socket.wait(!self.outbox.is_empty(), deadline)
    }

    /// Submits one command and sleeps until its completion; those of other commands are appended to `others`. A timeout ends the
    /// connection.
    pub fn call(
        &mut self,
        what: &'static str,
        sqe: Sqe,
        payload: Payload,
        limit: Duration,
        others: &mut Vec<Completion>,
    ) -> Result<Completion> {
        let Ok(cid) = self.submit(0, sqe, payload) else {
            return Err(Error::Unsuitable("a blocking call while the queue is full"));
        };
        let deadline = Instant::now() + limit;
        let mut looked_at = others.len();
        loop {
            self.poll(others)?;
            if let Some(at) = others[looked_at..].iter().position(|c| c.cqe.cid() == cid) {
                return Ok(others.swap_remove(looked_at + at));
            }
            looked_at = others.len();
            if Instant::now() >= deadline {
                self.failed = true;
                return Err(Error::Timeout { what, limit });
            }
            self.wait(deadline)?;
        }
    }
}

impl Completion {
    /// Turns a status other than success into an error.
    pub fn ok(self, what: &'static str) -> Result<Self> {
        let status = self.cqe.status();
        if status.is_success() {
            Ok(self)
        } else {
            Err(Error::Refused {
                what,
                status,
                dw0: self.cqe.dw0(),
            })
        }
    }

    /// The status.
    pub fn status(&self) -> Status {
        self.cqe.status()
    }
}
