//! What comes in: bytes, frames, calls of handlers.
//!
//! Header and body lie in the receive buffer; data are received from the socket into buffers of the reactor's pool, but for what came in one receive with
//! the header. Bytes of the buffer: `start..end` are there, a frame begins at `start`; while its data are being received, everything behind its body has been
//! moved to where it belongs.

use std::io::IoSliceMut;
use std::rc::Rc;

use keelblock_hugepages::{BUFFER_BYTES_MAX, Buffer};

use super::beat;
use super::channel::{Admitted, Broken, Channel, ChannelNo, Ended, State};
use super::down::Down;
use super::limits::{CHANNELS_MAX, RECEIVE_BYTES, SCATTER};
use super::state::{Session, new_state};
use crate::replication::wire::WireError;
use crate::replication::wire::frame::{HEADER_BYTES, Header, Kind};
use crate::replication::wire::hello::Side;

/// Whom a frame is for.
enum For {
    /// The session itself.
    Session,
    /// A channel.
    Channel(Rc<State>),
    /// A channel that begins with it.
    New,
    /// A channel that has ended here while it was on its way.
    Nobody,
}

/// Where the reader is.
enum At {
    /// Before a frame.
    Head,
    /// In the data of a frame.
    Data(Header, Rc<State>),
    /// In data that nobody wants; so many bytes are left.
    Skip(usize),
}

pub(super) struct Reader {
    session: Rc<Session>,
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    at: At,
    /// Of the last frame.
    number: u32,
    /// Lengths of the pieces of the data at hand, and the buffers for them.
    pieces: Vec<usize>,
    data: Vec<Buffer>,
    /// The piece that is being received, and how many bytes of it are there.
    piece: usize,
    filled: usize,
}

impl Reader {
    pub(super) fn new(session: Rc<Session>) -> Self {
        Self {
            session,
            buf: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            at: At::Head,
            number: 0,
            pieces: Vec::new(),
            data: Vec::new(),
            piece: 0,
            filled: 0,
        }
    }

    /// Reads until the session ends, and says why.
    pub(super) async fn run(mut self) -> Down {
        loop {
            let fed = self.feed().await;
            // What was answered before a breach goes out.
            let flushed = self.session.flush();
            if let Err(why) = fed.and(flushed) {
                return why;
            }
            if self
                .session
                .unless_ended(self.session.socket.readable())
                .await
                .is_none()
            {
                return self.session.why();
            }
            if let Err(why) = self.receive() {
                return why;
            }
        }
    }

    /// One receive, of what there is.
    fn receive(&mut self) -> Result<(), Down> {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let socket = &self.session.socket;
        let tail = &mut self.buf[self.end..];
        let got = match self.at {
            At::Data(..) => {
                let mut parts: [_; SCATTER] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
                let lengths = &self.pieces[self.piece..];
                let pieces = lengths.iter().zip(&mut self.data[self.piece..]);
                let (mut n, mut skip) = (0, self.filled);
                for (&len, buffer) in pieces.take(SCATTER - 1) {
                    parts[n] = IoSliceMut::new(&mut buffer[skip..len]);
                    (n, skip) = (n + 1, 0);
                }
                // What follows the data may come with them, if all of them can.
                if n == lengths.len() {
                    parts[n] = IoSliceMut::new(tail);
                    n += 1;
                }
                socket.try_recv(&mut parts[..n])?
            }
            _ => socket.try_recv(&mut [IoSliceMut::new(tail)])?,
        };
        let mut got = match got {
            None => return Ok(()),
            Some(0) => return Err(Down::Closed),
            Some(got) => got,
        };
        self.session.heard.set(self.session.heard.get() + 1);
        if matches!(self.at, At::Data(..)) {
            while self.piece < self.pieces.len() && got > 0 {
                got -= self.advance(got);
            }
        }
        self.end += got;
        Ok(())
    }

    /// At most `n` bytes of the piece at hand have come; returns how many of them are of it.
    fn advance(&mut self, n: usize) -> usize {
        let took = n.min(self.pieces[self.piece] - self.filled);
        self.filled += took;
        if self.filled == self.pieces[self.piece] {
            (self.piece, self.filled) = (self.piece + 1, 0);
        }
        took
    }

    /// Takes in all that is there.
    async fn feed(&mut self) -> Result<(), Down> {
        loop {
            if self.session.is_ended() {
                return Err(self.session.why());
            }
            match std::mem::replace(&mut self.at, At::Head) {
                At::Head => {
                    let Some(header) = self.header()? else {
                        return Ok(());
                    };
                    self.begin(header).await?;
                }
                At::Data(header, state) => {
                    self.copy_data(&header);
                    if self.piece < self.pieces.len() {
                        self.at = At::Data(header, state);
                        return Ok(());
                    }
                    self.deliver(&header, &state)?;
                    self.consume(&header);
                }
                At::Skip(left) => {
                    let skipped = left.min(self.end - self.start);
                    self.start += skipped;
                    if skipped < left {
                        self.at = At::Skip(left - skipped);
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The header of the frame at `start`, if it and its body are there and right.
    fn header(&mut self) -> Result<Option<Header>, Down> {
        let there = &self.buf[self.start..self.end];
        let Some((head, rest)) = there.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        // Lengths are within their bounds, so a lie in them costs a wait for bytes that fit into the buffer.
        let header = Header::decode(head)?;
        let Some(body) = rest.get(..header.body as usize) else {
            return Ok(None);
        };
        header.check(head, body)?;
        let expected = self.number.wrapping_add(1);
        if header.number != expected {
            let got = header.number;
            return Err(Down::Number { expected, got });
        }
        self.number = expected;
        Ok(Some(header))
    }

    fn body(&self, header: &Header) -> &[u8] {
        let from = self.start + HEADER_BYTES;
        &self.buf[from..from + header.body as usize]
    }

    /// Steps over the header and body at `start`.
    fn consume(&mut self, header: &Header) {
        self.start += HEADER_BYTES + header.body as usize;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// A frame whose header and body are there.
    async fn begin(&mut self, header: Header) -> Result<(), Down> {
        let whose = self.whose(&header)?;
        if header.data == 0 {
            match whose {
                For::Session => beat::came(&self.session, header.kind, self.body(&header))?,
                For::Channel(state) => self.deliver(&header, &state)?,
                For::New => self.open(&header)?,
                For::Nobody => {}
            }
            self.consume(&header);
            return Ok(());
        }
        let For::Channel(state) = whose else {
            self.consume(&header);
            self.at = At::Skip(header.data as usize);
            return Ok(());
        };
        self.lay_out(&header, &state)?;
        self.take_buffers().await?;
        self.at = At::Data(header, state);
        Ok(())
    }

    /// Whom it is for, if it may be at all.
    fn whose(&self, header: &Header) -> Result<For, Down> {
        let kind = header.kind;
        let from = match self.session.side {
            Side::Initiator => Side::Acceptor,
            Side::Acceptor => Side::Initiator,
        };
        if !kind.may_come_from(from) {
            return Err(Down::Direction { kind });
        }
        if header.data > 0 && !kind.may_have_data() {
            let bytes = header.data;
            return Err(Down::Data { kind, bytes });
        }
        let channel = ChannelNo(header.channel);
        let unknown = Down::Channel { kind, channel };
        if channel.0 == 0 {
            return match kind {
                Kind::Heartbeat | Kind::Heard => Ok(For::Session),
                _ => Err(unknown),
            };
        }
        let table = self.session.table.borrow();
        if let Some(state) = table.open.get(&channel.0) {
            return match state.shut_by_peer.get() {
                false => Ok(For::Channel(state.clone())),
                true => Err(unknown),
            };
        }
        if channel.0 <= table.last {
            return Ok(For::Nobody);
        }
        match (self.session.side, kind) {
            (Side::Acceptor, Kind::Open | Kind::Promise) => Ok(For::New),
            _ => Err(unknown),
        }
    }

    /// Asks the handler into which buffers the data go.
    fn lay_out(&mut self, header: &Header, state: &State) -> Result<(), Down> {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        let bytes = header.data as usize;
        let handler = state.handler.borrow().clone();
        let asked = match &handler {
            Some(handler) => handler.layout(header.kind, self.body(header), bytes, &mut pieces),
            None => {
                pieces.push(bytes);
                Ok(())
            }
        };
        asked.map_err(|error| broken(header, error))?;
        let fit = |&len: &usize| (1..=BUFFER_BYTES_MAX).contains(&len);
        if !pieces.iter().all(fit) || pieces.iter().sum::<usize>() != bytes {
            let wrong = WireError::Value {
                what: "length of the data of these records",
                value: bytes as u64,
            };
            return Err(broken(header, wrong.into()));
        }
        self.pieces = pieces;
        (self.piece, self.filled) = (0, 0);
        Ok(())
    }

    /// Buffers for all pieces. Waits for the pool if it must; beats bound that.
    async fn take_buffers(&mut self) -> Result<(), Down> {
        self.data.clear();
        let pool = self.session.handle.buffers();
        for &len in &self.pieces {
            if let Some(buffer) = pool.try_take(len) {
                self.data.push(buffer);
                continue;
            }
            // Those who hold buffers may wait for what we have to say.
            self.session.flush()?;
            self.session.starved.set(true);
            let taken = self.session.unless_ended(pool.take(len)).await;
            self.session.starved.set(false);
            match taken {
                Some(buffer) => self.data.push(buffer),
                None => return Err(self.session.why()),
            }
        }
        Ok(())
    }

    /// Moves data that came with the header to where they belong.
    fn copy_data(&mut self, header: &Header) {
        let data = self.start + HEADER_BYTES + header.body as usize;
        let mut from = data;
        while self.piece < self.pieces.len() && from < self.end {
            let (at, filled) = (self.piece, self.filled);
            let n = self.advance(self.end - from);
            self.data[at][filled..filled + n].copy_from_slice(&self.buf[from..from + n]);
            from += n;
        }
        self.buf.copy_within(from..self.end, data);
        self.end -= from - data;
    }

    /// Gives a frame to the handler of its channel.
    fn deliver(&mut self, header: &Header, state: &Rc<State>) -> Result<(), Down> {
        if self.session.is_ended() {
            return Err(self.session.why());
        }
        // It may have ended while the data came.
        if state.gone.get() {
            self.data.clear();
            return Ok(());
        }
        let kind = header.kind;
        if kind == Kind::Close {
            if header.body > 0 {
                let (what, extra) = ("close", header.body as usize);
                return Err(broken(header, WireError::Trailing { what, extra }.into()));
            }
            state.shut_by_peer.set(true);
            self.session.look_closed(state);
            return Ok(());
        }
        let handler = state.handler.borrow().clone();
        let Some(handler) = handler else {
            return Ok(());
        };
        let admitted = Admitted::new(&self.session.gate, state);
        let from = self.start + HEADER_BYTES;
        let frame = super::channel::Frame {
            kind,
            epoch: header.epoch,
            body: &self.buf[from..from + header.body as usize],
            data: &mut self.data,
            bytes: header.data as usize,
        };
        let taken = handler.frame(frame, admitted);
        self.data.clear();
        taken.map_err(|error| broken(header, error))?;
        if kind == Kind::Refused {
            self.session.leave(state, Ended::Refused);
        }
        Ok(())
    }

    /// A channel begins.
    fn open(&mut self, header: &Header) -> Result<(), Down> {
        let session = self.session.clone();
        let state = new_state(&session, header.channel, None);
        {
            let mut table = session.table.borrow_mut();
            if table.open.len() >= CHANNELS_MAX {
                return Err(Down::Channels);
            }
            table.last = header.channel;
            table.open.insert(header.channel, state.clone());
        }
        let channel = Channel {
            session: session.clone(),
            state: state.clone(),
        };
        let Some(service) = session.service.clone() else {
            return Ok(());
        };
        let opened = service.open(&channel, header.kind, header.epoch, self.body(header));
        match opened.map_err(|error| broken(header, error))? {
            Some(handler) => {
                state.handler.replace(Some(handler));
                self.deliver(header, &state)
            }
            None => {
                session.leave(&state, Ended::Refused);
                Ok(())
            }
        }
    }
}

fn broken(header: &Header, error: Broken) -> Down {
    Down::Frame {
        kind: header.kind,
        channel: ChannelNo(header.channel),
        error,
    }
}
