//! The clients: one that only counts bytes, and our initiator.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{Payload, QueuePair};
use keelblock_nvme::pdu::Digests;
use keelblock_nvme::{Sqe, opcode};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{LimitError, LimitOptions, RECEIVE_BYTES, SILENCE_MAX, exchange_bytes, receive};
use crate::pin::pin_to;

/// The client: keeps `depth` requests outstanding, counts whole replies.
pub(super) fn drive(
    socket: &TcpStream,
    options: LimitOptions,
) -> Result<(u64, Duration), LimitError> {
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
        if now - start >= options.duration && done > 0 {
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

/// Our initiator: keeps `depth` commands in flight.
pub(super) fn initiate(
    socket: &TcpStream,
    options: LimitOptions,
) -> Result<(u64, Duration), LimitError> {
    pin_to(options.client_core)?;
    let depth = options.depth as u16;
    let mut pair = QueuePair::over(socket.try_clone()?, depth, Digests::default(), SILENCE_MAX)?;
    pair.set_in_capsule_bytes(options.block_bytes);
    let op = if options.write {
        opcode::io::WRITE
    } else {
        opcode::io::READ
    };
    let submit = |pair: &mut QueuePair, buffer: Vec<u8>| {
        let payload = if options.write {
            Payload::Send(buffer)
        } else {
            Payload::Receive(buffer)
        };
        // The server looks only at the opcode and the identifier.
        let submitted = pair.submit(0, Sqe::io(op, 1, 0, 1), payload);
        assert!(
            submitted.is_ok(),
            "no more commands than the queue pair is deep"
        );
    };
    (0..depth).for_each(|_| submit(&mut pair, vec![0x33; options.block_bytes]));
    let mut completions = Vec::with_capacity(options.depth);
    let (start, mut done) = (Instant::now(), 0);
    let mut heard = start;
    loop {
        let now = Instant::now();
        if now - start >= options.duration && done > 0 {
            return Ok((done, now - start));
        }
        let n = pair.poll(&mut completions)?;
        if n > 0 {
            heard = now;
        } else if now - heard > SILENCE_MAX {
            return Err(LimitError::Silent);
        }
        done += n as u64;
        completions
            .drain(..)
            .for_each(|c| submit(&mut pair, c.buffer));
    }
}
