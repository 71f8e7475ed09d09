//! The loopback limit: the bytes of NVMe/TCP exchanges with none of the protocol.
//!
//! A read is a 72-byte request answered by 24 bytes of header and a block; a write is 72 bytes and a block answered by 24. One
//! connection over 127.0.0.1, the server on one core, the client on another, both polling. The server finds (or fills) a block
//! at a random place of a store larger than the caches, and answers everything that one receive brought with one gathered
//! send. What is left between this figure and a target's own is the protocol and the target.
//!
//! With `initiator` the same server talks just enough NVMe/TCP for our own queue pair to be the client. What that loses against the
//! plain figure is what the load generator costs; it is the highest rate that the generator could find at any target.

mod client;
mod server;

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde::Serialize;

use crate::pin::PinError;
use server::{Server, serve};

/// A command capsule: the common header and the submission queue entry.
const REQUEST_HEADER_BYTES: usize = 72;
/// The header of a data PDU, or a response capsule.
const REPLY_HEADER_BYTES: usize = 24;
/// Larger than any last-level cache that one core can count on.
const STORE_BYTES: usize = 256 << 20;
/// What one receive may bring: as much as the socket buffers of the loopback usually hold.
const RECEIVE_BYTES: usize = 512 << 10;
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
    /// How long to count; longer if nothing was exchanged by then.
    pub duration: Duration,
    /// Core of the server.
    pub server_core: usize,
    /// Core of the client.
    pub client_core: usize,
    /// The client is our initiator and the bytes are NVMe/TCP.
    pub initiator: bool,
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
    /// Whether the client was our initiator.
    pub initiator: bool,
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
        "depth (to 65535) and block size must be at least 1, and depth × block at most {STORE_BYTES} bytes"
    )]
    Options,
    /// The initiator failed.
    #[error(transparent)]
    Initiator(#[from] keelblock_nvme::initiator::Error),
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
    if options.depth == 0
        || options.depth > 65_535
        || options.block_bytes == 0
        || in_flight.is_none_or(|b| b > STORE_BYTES)
    {
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
        let counted = if options.initiator {
            client::initiate(&client, options)
        } else {
            client::drive(&client, options)
        };
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
            initiator: options.initiator,
            exchanges,
            iops,
            mb_per_s: iops * options.block_bytes as f64 / 1e6,
            mean_us: options.depth as f64 / iops * 1e6,
            server_calls_per_io: calls as f64 / answered.max(1) as f64,
        })
    })
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

#[cfg(test)]
mod tests {
    use super::server::Reply;
    use super::*;
    use crate::pin::usable_cores;

    fn options(write: bool, block_bytes: usize) -> LimitOptions {
        let duration = Duration::from_millis(50);
        let core = usable_cores()[0];
        LimitOptions {
            depth: 8,
            write,
            block_bytes,
            duration,
            server_core: core,
            client_core: core,
            initiator: false,
        }
    }

    #[test]
    fn both_directions_make_progress_on_one_core() {
        for (write, initiator) in [(false, false), (true, false), (false, true), (true, true)] {
            let report = limit(LimitOptions {
                initiator,
                ..options(write, 4096)
            })
            .unwrap();
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
        for &Reply { place, .. } in &server.replies {
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
