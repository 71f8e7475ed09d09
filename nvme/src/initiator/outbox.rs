//! What waits to be sent: headers and digests staged in one buffer, data by reference to the commands that hold it.
//!
//! Headers that follow each other become one part, so a batch of reads leaves as a single run of bytes, and a batch of writes as
//! headers and data by turns; either way in one `sendmsg`. Positions count bytes of the stream since the connection was made:
//! what was queued up to position `p` has left when [`Outbox::sent`] has reached it.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::error::Result;
use super::socket::Socket;

/// Parts of one gathered send. The kernel takes 1024; a batch of 128 writes has 256.
const PARTS_PER_SEND: usize = 256;
/// Parts of a send of few commands.
const PARTS_FEW: usize = 6;
/// Staged bytes of one command at most: a capsule's header and an H2CData's, each padded to 128 bytes, and data digests.
const STAGED_PER_COMMAND: usize = 2 * (128 + 4);
/// Parts of one command at most: header, data, digest; for its capsule and for one H2CData.
const PARTS_PER_COMMAND: usize = 6;

/// A run of bytes to send.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// `len` staged bytes.
    Staged { len: usize },
    /// Bytes of the data of command `cid`.
    Data { cid: u16, from: usize, len: usize },
}

impl Part {
    fn len(&self) -> usize {
        match *self {
            Part::Staged { len } | Part::Data { len, .. } => len,
        }
    }
}

/// The send side of a queue pair.
#[derive(Debug)]
pub(super) struct Outbox {
    staged: Vec<u8>,
    /// Where the first unsent part's staged bytes start.
    head: usize,
    parts: VecDeque<Part>,
    /// Bytes of the first part that have left.
    first_sent: usize,
    queued: u64,
    sent: u64,
}

impl Outbox {
    /// An outbox for `depth` commands at once.
    pub(super) fn new(depth: usize) -> Self {
        Self {
            staged: Vec::with_capacity(2 * depth * STAGED_PER_COMMAND),
            head: 0,
            parts: VecDeque::with_capacity(depth * PARTS_PER_COMMAND),
            first_sent: 0,
            queued: 0,
            sent: 0,
        }
    }

    /// Position in the stream after all that was queued.
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// Position in the stream after all that has left.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Queues a copy of `header`, zeroes up to `padded_len`.
    pub(super) fn header(&mut self, header: &[u8], digest: Option<u32>, padded_len: usize) {
        self.make_room();
        let start = self.staged.len();
        self.staged.extend_from_slice(header);
        if let Some(digest) = digest {
            self.staged.extend_from_slice(&digest.to_le_bytes());
        }
        let len = padded_len.max(self.staged.len() - start);
        self.staged.resize(start + len, 0);
        self.queued += len as u64;
        match self.parts.back_mut() {
            Some(Part::Staged { len: last }) => *last += len,
            _ => self.parts.push_back(Part::Staged { len }),
        }
    }

    /// Queues `len` bytes of the data of command `cid`.
    pub(super) fn data(&mut self, cid: u16, from: usize, len: usize) {
        self.queued += len as u64;
        self.parts.push_back(Part::Data { cid, from, len });
    }

    /// Moves what is unsent to the front when the buffer's end comes near; what has left makes the room.
    fn make_room(&mut self) {
        if self.parts.is_empty() {
            self.staged.clear();
            self.head = 0;
        } else if self.staged.capacity() - self.staged.len() < STAGED_PER_COMMAND {
            self.staged.drain(..self.head);
            self.head = 0;
        }
    }

    /// Sends until all has left or the socket is full. `data_of` gives the data of a command.
    pub(super) fn flush<'a>(
        &mut self,
        socket: &mut Socket,
        data_of: impl Fn(u16) -> &'a [u8],
    ) -> Result<()> {
        while !self.parts.is_empty() {
            // Clearing a long array would be felt at depth 1.
            let (n, offered) = if self.parts.len() <= PARTS_FEW {
                self.send::<PARTS_FEW>(socket, &data_of)?
            } else {
                self.send::<PARTS_PER_SEND>(socket, &data_of)?
            };
            self.advance(n);
            if n < offered {
                break;
            }
        }
        Ok(())
    }

    /// Sends up to `N` parts with one call; returns how many bytes left, and how many were offered.
    fn send<'a, const N: usize>(
        &self,
        socket: &mut Socket,
        data_of: &impl Fn(u16) -> &'a [u8],
    ) -> Result<(usize, usize)> {
        let mut slices = [IoSlice::new(&[]); N];
        let (mut used, mut at, mut skip, mut offered) = (0, self.head, self.first_sent, 0);
        for part in self.parts.iter().take(N) {
            let bytes: &[u8] = match *part {
                Part::Staged { len } => {
                    at += len;
                    &self.staged[at - len..at]
                }
                Part::Data { cid, from, len } => &data_of(cid)[from..from + len],
            };
            slices[used] = IoSlice::new(&bytes[skip..]);
            offered += bytes.len() - skip;
            (used, skip) = (used + 1, 0);
        }
        Ok((socket.send(&slices[..used])?, offered))
    }

    fn advance(&mut self, n: usize) {
        self.sent += n as u64;
        let mut left = self.first_sent + n;
        while let Some(part) = self.parts.front() {
            if left < part.len() {
                break;
            }
            left -= part.len();
            if let Part::Staged { len } = *part {
                self.head += len;
            }
            self.parts.pop_front();
        }
        self.first_sent = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that waits, in order.
    fn unsent(outbox: &Outbox, data: &[u8]) -> Vec<u8> {
        let (mut all, mut at) = (Vec::new(), outbox.head);
        for part in &outbox.parts {
            match *part {
                Part::Staged { len } => {
                    all.extend_from_slice(&outbox.staged[at..at + len]);
                    at += len;
                }
                Part::Data { from, len, .. } => all.extend_from_slice(&data[from..from + len]),
            }
        }
        all.drain(..outbox.first_sent);
        all
    }

    #[test]
    fn order_padding_and_positions_survive_partial_sends_and_compaction() {
        let data = [0xdd; 64];
        let mut outbox = Outbox::new(2);
        let capacity = outbox.staged.capacity();
        let mut expected = Vec::new();
        for round in 0..200u8 {
            outbox.header(&[round; 72], Some(0x0403_0201), 128);
            expected.extend([round; 72]);
            expected.extend([1, 2, 3, 4]);
            expected.resize(expected.len() + 52, 0);
            outbox.data(0, 8, usize::from(round % 50));
            expected.extend(&data[8..8 + usize::from(round % 50)]);
            outbox.header(&[], Some(7), 0);
            expected.extend([7, 0, 0, 0]);
            assert_eq!(unsent(&outbox, &data), expected);
            let leave = expected
                .len()
                .min(usize::from(round) * 3 % 170)
                .max(expected.len().saturating_sub(200));
            outbox.advance(leave);
            expected.drain(..leave);
            assert_eq!(outbox.queued() - outbox.sent(), expected.len() as u64);
            assert_eq!(
                outbox.staged.capacity(),
                capacity,
                "round {round}: no allocation after the start"
            );
        }
    }

    #[test]
    fn headers_in_a_row_are_one_part() {
        let mut outbox = Outbox::new(4);
        (0..4).for_each(|_| outbox.header(&[1; 72], None, 0));
        assert_eq!((outbox.parts.len(), outbox.queued()), (1, 288));
    }
}
