//! The loopback limit: the bytes of NVMe/TCP exchanges with none of the protocol.
//!
//! A read is a 72-byte request answered by 24 bytes of header and a block; a write is 72 bytes and a block answered by 24. One
//! connection over 127.0.0.1, the server on one core, the client on another, both polling. The server finds (or fills) a block
//! at a random place of a store larger than the caches, and answers everything that one receive brought with one gathered
//! send. What is left between this figure and a target's own is the protocol and the target.

use std::io::IoSlice;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use serde::Serialize;

use crate::pin::{PinError, pin_to};

/// A command capsule: the common header and the submission queue entry.
const REQUEST_HEADER_BYTES: usize = 72;
/// The header of a data PDU, or a response capsule.
const REPLY_HEADER_BYTES: usize = 24;
/// Larger than any last-level cache that one core can count on.
const STORE_BYTES: usize = 256 << 20;
/// What one receive may bring: as much as the socket buffers of the loopback usually hold.
const RECEIVE_BYTES: usize = 512 << 10;
/// Parts of one gathered send; the kernel refuses more than 1024.
const PARTS_MAX: usize = 512;
/// Bound for setting up, and for a peer that fell silent.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What to exchange.
#[derive(Clone, Copy, Debug)]
pub struct LimitOptions {
    /// Exchanges outstanding at any time.
    pub depth: usize,
    /// Blocks go to the server instead of coming from it.
    pub write: bool,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// How long to count.
    pub duration: Duration,
    /// Core of the server.
    pub server_core: usize,
    /// Core of the client.
    pub client_core: usize,
}

/// What was reached.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LimitReport {
    /// Exchanges outstanding.
    pub depth: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Direction: writes, or reads.
    pub write: bool,
    /// Exchanges completed while counting.
    pub exchanges: u64,
    /// Exchanges per second.
    pub iops: f64,
    /// Blocks' bytes per second, in units of 10^6.
    pub mb_per_s: f64,
    /// Mean time between an exchange's start and its end, by Little's law.
    pub mean_us: f64,
    /// System calls of the server per exchange.
    pub server_calls_per_io: f64,
}

/// Why the limit could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// A core that does not exist, or is not ours.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The loopback connection failed.
    #[error("loopback socket: {0}")]
    Socket(#[from] std::io::Error),
    /// A count that makes no exchange.
    #[error(
        "depth and block size must be at least 1, and depth × block at most {STORE_BYTES} bytes"
    )]
    Options,
    /// No bytes came for too long.
    #[error("the other side of the loopback fell silent for {SILENCE_MAX:?}")]
    Silent,
    /// The server thread panicked.
    #[error("the server thread ended early")]
    Server,
}

/// Measures with one connection.
pub fn limit(options: LimitOptions) -> Result<LimitReport, LimitError> {
    let in_flight = options.depth.checked_mul(options.block_bytes);
    if options.depth == 0 || options.block_bytes == 0 || in_flight.is_none_or(|b| b > STORE_BYTES) {
        return Err(LimitError::Options);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // Both ends live until both sides are done: closing one with bytes unread would reset the other.
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (socket, _) = listener.accept()?;
    let stop = AtomicBool::new(false);
    let ready = Server::new(options); // filling its store takes longer than a short run
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&socket, ready, &stop));
        let counted = drive(&client, options);
        stop.store(true, Ordering::Relaxed);
        let served = server.join().map_err(|_| LimitError::Server)?;
        // The server's error first: it is the cause of a reset that the client sees.
        let (calls, answered) = served?;
        let (exchanges, elapsed) = counted?;
        let iops = exchanges as f64 / elapsed.as_secs_f64();
        Ok(LimitReport {
            depth: options.depth,
            block_bytes: options.block_bytes,
            write: options.write,
            exchanges,
            iops,
            mb_per_s: iops * options.block_bytes as f64 / 1e6,
            mean_us: options.depth as f64 / iops * 1e6,
            server_calls_per_io: calls as f64 / answered.max(1) as f64,
        })
    })
}

/// The client: keeps `depth` requests outstanding, counts whole replies.
fn drive(socket: &TcpStream, options: LimitOptions) -> Result<(u64, Duration), LimitError> {
    pin_to(options.client_core)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    let (request_bytes, reply_bytes) = exchange_bytes(options);
    let requests = vec![0x33; request_bytes * options.depth];
    let mut buffer = vec![0; RECEIVE_BYTES.max(reply_bytes)];
    let (mut to_send, mut received, mut done) = (request_bytes * options.depth, 0, 0u64);
    let start = Instant::now();
    let mut heard = start;
    loop {
        let now = Instant::now();
        if now - start >= options.duration {
            return Ok((done, now - start));
        }
        while to_send > 0 {
            // Only the count matters to the server, so any window of the requests will do.
            let n = match rustix::net::send(
                socket,
                &requests[..to_send.min(requests.len())],
                SendFlags::NOSIGNAL,
            ) {
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(e) => return Err(LimitError::Socket(e.into())),
            };
            to_send -= n;
        }
        let n = receive(socket, &mut buffer)?;
        if n > 0 {
            heard = now;
        } else if now - heard > SILENCE_MAX {
            return Err(LimitError::Silent);
        }
        received += n;
        done += (received / reply_bytes) as u64;
        to_send += received / reply_bytes * request_bytes;
        received %= reply_bytes;
    }
}

/// Bytes of one request and of one reply.
fn exchange_bytes(options: LimitOptions) -> (usize, usize) {
    if options.write {
        (
            REQUEST_HEADER_BYTES + options.block_bytes,
            REPLY_HEADER_BYTES,
        )
    } else {
        (
            REQUEST_HEADER_BYTES,
            REPLY_HEADER_BYTES + options.block_bytes,
        )
    }
}

/// What arrived, 0 if nothing has; a closed connection is an error.
fn receive(socket: &TcpStream, buffer: &mut [u8]) -> Result<usize, LimitError> {
    match recv(socket, buffer, RecvFlags::empty()) {
        Ok((_, 0)) => Err(LimitError::Silent),
        Ok((_, n)) => Ok(n),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(e) => Err(LimitError::Socket(e.into())),
    }
}

/// The server thread: returns its system calls and the requests that it answered.
fn serve(
    socket: &TcpStream,
    mut server: Server,
    stop: &AtomicBool,
) -> Result<(u64, u64), LimitError> {
    pin_to(server.options.server_core)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    let mut buffer = vec![0; RECEIVE_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let n = receive(socket, &mut buffer)?;
        server.calls += 1;
        server.take(&buffer[..n]);
        server.send(socket).map_err(std::io::Error::from)?;
    }
    Ok((server.calls, server.answered))
}

/// One connection's state: requests half received, replies half sent.
struct Server {
    options: LimitOptions,
    store: Vec<u8>,
    random: SmallRng,
    /// Bytes of the current request that have come, and where its block goes.
    have: usize,
    place: usize,
    /// Places of blocks whose replies wait to be sent, and how much of the first is gone.
    replies: std::collections::VecDeque<usize>,
    sent_of_first: usize,
    calls: u64,
    answered: u64,
}

impl Server {
    fn new(options: LimitOptions) -> Self {
        let replies = std::collections::VecDeque::with_capacity(options.depth);
        // Not zero: untouched memory would all be the one zero page.
        let store = vec![5; STORE_BYTES];
        Server {
            options,
            store,
            random: SmallRng::seed_from_u64(1),
            have: 0,
            place: 0,
            replies,
            sent_of_first: 0,
            calls: 0,
            answered: 0,
        }
    }

    /// Walks over received bytes, copying those of written blocks to their places.
    fn take(&mut self, mut bytes: &[u8]) {
        let (request_bytes, _) = exchange_bytes(self.options);
        while !bytes.is_empty() {
            if self.have == 0 {
                let places = STORE_BYTES / self.options.block_bytes;
                self.place = self.random.random_range(0..places) * self.options.block_bytes;
            }
            let n = bytes.len().min(request_bytes - self.have);
            let block_from = REQUEST_HEADER_BYTES.saturating_sub(self.have).min(n);
            let at = self.place + (self.have + block_from).saturating_sub(REQUEST_HEADER_BYTES);
            self.store[at..at + n - block_from].copy_from_slice(&bytes[block_from..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == request_bytes {
                self.have = 0;
                self.answered += 1;
                self.replies.push_back(self.place);
            }
        }
    }

    /// Sends replies until there are none or the socket is full.
    fn send(&mut self, socket: &TcpStream) -> Result<(), Errno> {
        const HEADER: [u8; REPLY_HEADER_BYTES] = [1; REPLY_HEADER_BYTES];
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
            for &place in self.replies.iter().take(PARTS_MAX / 2) {
                parts[used] = IoSlice::new(&HEADER[skip.min(REPLY_HEADER_BYTES)..]);
                let from = skip.saturating_sub(REPLY_HEADER_BYTES);
                parts[used + 1] = IoSlice::new(&self.store[place + from..place + block_bytes]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(write: bool, block_bytes: usize) -> LimitOptions {
        let duration = Duration::from_millis(50);
        LimitOptions {
            depth: 8,
            write,
            block_bytes,
            duration,
            server_core: 0,
            client_core: 0,
        }
    }

    #[test]
    fn both_directions_make_progress_on_one_core() {
        for write in [false, true] {
            let report = limit(options(write, 4096)).unwrap();
            assert!(report.exchanges > 0);
            assert!(report.server_calls_per_io > 0.0);
        }
    }

    #[test]
    fn written_blocks_land_whole_however_the_bytes_are_cut() {
        let mut server = Server::new(options(true, 16));
        let mut request = vec![0xEE; REQUEST_HEADER_BYTES];
        request.extend(100..116u8);
        let stream = request.repeat(3);
        for piece in stream.chunks(7) {
            server.take(piece);
        }
        assert_eq!(
            (server.answered, server.have, server.replies.len()),
            (3, 0, 3)
        );
        for &place in &server.replies {
            assert_eq!(
                server.store[place..place + 16],
                (100..116u8).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn no_exchange_is_an_error() {
        assert!(matches!(
            limit(LimitOptions {
                depth: 0,
                ..options(true, 1)
            }),
            Err(LimitError::Options)
        ));
        assert!(matches!(
            limit(options(true, 1 << 30)),
            Err(LimitError::Options)
        ));
    }
}
