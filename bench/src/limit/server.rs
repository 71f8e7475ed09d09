//! The server: finds or fills blocks, and answers with as few calls as it can.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keelblock_nvme::pdu::{C2HData, CapsuleCmd, CapsuleResp, Digests, ICResp};
use keelblock_nvme::{Cqe, Status};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::{
    LimitError, LimitOptions, RECEIVE_BYTES, REPLY_HEADER_BYTES, REQUEST_HEADER_BYTES, SILENCE_MAX,
    STORE_BYTES, exchange_bytes, receive,
};
use crate::pin::pin_to;

/// Parts of one gathered send; the kernel refuses more than 1024.
const PARTS_MAX: usize = 512;
/// What the server says about H2CData, which no write here needs.
const MAXH2CDATA: u32 = 128 << 10;

/// The server thread: returns its system calls and the requests that it answered.
pub(super) fn serve(
    socket: &TcpStream,
    mut server: Server,
    stop: &AtomicBool,
) -> Result<(u64, u64), LimitError> {
    pin_to(server.options.server_core)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    if server.options.initiator {
        initialize(socket)?;
    }
    let mut buffer = vec![0; RECEIVE_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let n = receive(socket, &mut buffer)?;
        server.calls += 1;
        server.take(&buffer[..n]);
        server.send(socket).map_err(std::io::Error::from)?;
    }
    Ok((server.calls, server.answered))
}

/// Takes ICReq and answers it.
fn initialize(socket: &TcpStream) -> Result<(), LimitError> {
    let answer = ICResp {
        maxh2cdata: MAXH2CDATA,
        ..ICResp::default()
    }
    .encode();
    let mut request = [0; 128];
    let (mut have, start) = (0, Instant::now());
    while have < request.len() {
        if start.elapsed() > SILENCE_MAX {
            return Err(LimitError::Silent);
        }
        have += receive(socket, &mut request[have..])?;
    }
    // An empty socket buffer takes 128 bytes whole.
    rustix::net::send(socket, &answer, SendFlags::NOSIGNAL).map_err(std::io::Error::from)?;
    Ok(())
}

/// A reply that waits to be sent.
pub(super) struct Reply {
    header: [u8; REPLY_HEADER_BYTES],
    /// Of a read: where its block lies.
    pub(super) place: usize,
}

/// One connection's state: requests half received, replies half sent.
pub(super) struct Server {
    options: LimitOptions,
    pub(super) store: Vec<u8>,
    random: SmallRng,
    /// Bytes of the current request that have come, and where its block goes.
    pub(super) have: usize,
    place: usize,
    /// The header of the current request, as far as it has come.
    request: [u8; REQUEST_HEADER_BYTES],
    /// Replies that wait to be sent, and how much of the first is gone.
    pub(super) replies: VecDeque<Reply>,
    sent_of_first: usize,
    calls: u64,
    pub(super) answered: u64,
}

impl Server {
    pub(super) fn new(options: LimitOptions) -> Self {
        let replies = VecDeque::with_capacity(options.depth);
        // Not zero: untouched memory would all be the one zero page.
        let store = vec![5; STORE_BYTES];
        Server {
            options,
            store,
            random: SmallRng::seed_from_u64(1),
            have: 0,
            place: 0,
            request: [0; REQUEST_HEADER_BYTES],
            replies,
            sent_of_first: 0,
            calls: 0,
            answered: 0,
        }
    }

    /// Walks over received bytes, copying those of written blocks to their places.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        let (request_bytes, _) = exchange_bytes(self.options);
        while !bytes.is_empty() {
            if self.have == 0 {
                let places = STORE_BYTES / self.options.block_bytes;
                self.place = self.random.random_range(0..places) * self.options.block_bytes;
            }
            let n = bytes.len().min(request_bytes - self.have);
            let block_from = REQUEST_HEADER_BYTES.saturating_sub(self.have).min(n);
            let at = self.place + (self.have + block_from).saturating_sub(REQUEST_HEADER_BYTES);
            let header = self.have.min(REQUEST_HEADER_BYTES);
            self.request[header..header + block_from].copy_from_slice(&bytes[..block_from]);
            self.store[at..at + n - block_from].copy_from_slice(&bytes[block_from..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == request_bytes {
                self.have = 0;
                self.answered += 1;
                let header = if self.options.initiator {
                    self.answer()
                } else {
                    [1; REPLY_HEADER_BYTES]
                };
                self.replies.push_back(Reply {
                    header,
                    place: self.place,
                });
            }
        }
    }

    /// The header that answers the current request: data with the SUCCESS flag, or a response.
    fn answer(&self) -> [u8; REPLY_HEADER_BYTES] {
        let cccid = CapsuleCmd::sqe(&self.request).cid();
        if self.options.write {
            return CapsuleResp::encode(
                &Cqe::new(cccid, 0, Status::SUCCESS, 0, 0),
                Digests::default(),
            );
        }
        let length = self.options.block_bytes as u32;
        C2HData {
            cccid,
            offset: 0,
            length,
            last: true,
            success: true,
        }
        .encode(Digests::default(), 4)
    }

    /// Sends replies until there are none or the socket is full.
    fn send(&mut self, socket: &TcpStream) -> Result<(), Errno> {
        let block_bytes = if self.options.write {
            0
        } else {
            self.options.block_bytes
        };
        let reply_bytes = REPLY_HEADER_BYTES + block_bytes;
        while !self.replies.is_empty() {
            let mut parts = [IoSlice::new(&[]); PARTS_MAX];
            let mut used = 0;
            let mut skip = self.sent_of_first;
            for Reply { header, place } in self.replies.iter().take(PARTS_MAX / 2) {
                parts[used] = IoSlice::new(&header[skip.min(REPLY_HEADER_BYTES)..]);
                let from = skip.saturating_sub(REPLY_HEADER_BYTES);
                parts[used + 1] = IoSlice::new(&self.store[*place + from..*place + block_bytes]);
                used += if block_bytes > 0 { 2 } else { 1 };
                skip = 0;
            }
            self.calls += 1;
            let none = &mut SendAncillaryBuffer::default();
            let sent = match sendmsg(socket, &parts[..used], none, SendFlags::NOSIGNAL) {
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(e) => return Err(e),
            };
            let sent = self.sent_of_first + sent;
            self.replies.drain(..sent / reply_bytes);
            self.sent_of_first = sent % reply_bytes;
        }
        Ok(())
    }
}
