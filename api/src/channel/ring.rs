//! One direction of a connection: a byte ring in the shared region (`docs/channel.md`, "Region").
//!
//! Each side keeps its own index in private memory. The peer's is copied once per call and checked against ours before it is used, so
//! whatever is in the region, no offset computed here leaves the ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keelblock_hugepages::SharedRegion;

use super::doorbell::{may_sleep, publish};

const CONTROL_BYTES: usize = 4096;
const RING_CONTROL_BYTES: usize = 512;

pub(super) const HEAD: usize = 0;
pub(super) const CLOSED: usize = 8;
pub(super) const TAIL: usize = 128;
pub(super) const DATA_AWAITED: usize = 256;
pub(super) const ROOM_AWAITED: usize = 384;

const _: () = assert!(ROOM_AWAITED + 8 <= RING_CONTROL_BYTES);
const _: () = assert!(2 * RING_CONTROL_BYTES <= CONTROL_BYTES);

/// Smallest and largest ring that a peer may ask us to use.
pub(super) const RING_BYTES_RANGE: std::ops::RangeInclusive<usize> = 4096..=16 << 20;

/// The peer's index is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel's peer published an impossible ring index")]
pub(super) struct Corrupt;

/// Which of the two rings of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToServer,
    ToClient,
}

/// Size of the region of two rings.
pub(super) fn region_bytes(ring_bytes: usize) -> usize {
    CONTROL_BYTES + 2 * ring_bytes
}

/// Where one ring is.
#[derive(Debug, Clone)]
struct Ring {
    region: Arc<SharedRegion>,
    control: usize,
    data: usize,
    bytes: usize,
}

impl Ring {
    /// The ring, if the region has the size for rings of this many bytes.
    fn new(region: Arc<SharedRegion>, bytes: usize, direction: Direction) -> Option<Ring> {
        let possible = RING_BYTES_RANGE.contains(&bytes) && bytes.is_power_of_two();
        if !possible || region.len() != region_bytes(bytes) {
            return None;
        }
        let number = match direction {
            Direction::ToServer => 0,
            Direction::ToClient => 1,
        };
        let (control, data) = (number * RING_CONTROL_BYTES, CONTROL_BYTES + number * bytes);
        Some(Ring {
            region,
            control,
            data,
            bytes,
        })
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        let word = self.region.word64(self.control + word);
        word.expect("control words are inside a region whose size was checked")
    }

    /// Bytes between two indices, if they can be those of a ring.
    fn filled(&self, head: u64, tail: u64) -> Result<usize, Corrupt> {
        let filled = head.wrapping_sub(tail);
        if filled > self.bytes as u64 {
            return Err(Corrupt);
        }
        Ok(filled as usize)
    }

    /// The one or two pieces of `len` bytes from index `at`: (offset in the region, length).
    fn pieces(&self, at: u64, len: usize) -> [(usize, usize); 2] {
        let start = (at % self.bytes as u64) as usize;
        let first = len.min(self.bytes - start);
        [(self.data + start, first), (self.data, len - first)]
    }
}

/// What a wrong peer would do: overwrites a control word of a ring.
#[cfg(test)]
pub(super) fn scribble(region: &SharedRegion, direction: Direction, word: usize, value: u64) {
    let number = usize::from(direction == Direction::ToClient);
    region
        .word64(number * RING_CONTROL_BYTES + word)
        .unwrap()
        .store(value, Ordering::SeqCst);
}

/// The end that puts bytes in.
#[derive(Debug)]
pub(super) struct Sender {
    ring: Ring,
    head: u64,
}

impl Sender {
    pub fn new(region: Arc<SharedRegion>, bytes: usize, direction: Direction) -> Option<Sender> {
        Some(Sender {
            ring: Ring::new(region, bytes, direction)?,
            head: 0,
        })
    }

    fn room(&self) -> Result<usize, Corrupt> {
        let tail = self.ring.word(TAIL).load(Ordering::Acquire);
        Ok(self.ring.bytes - self.ring.filled(self.head, tail)?)
    }

    /// Copies in as much of `from` as there is room for, without telling the peer.
    ///
    /// # Errors
    /// [`Corrupt`] if the peer's index is impossible.
    pub fn put(&mut self, from: &[u8]) -> Result<usize, Corrupt> {
        let len = from.len().min(self.room()?);
        let [(at, first), (rest_at, rest)] = self.ring.pieces(self.head, len);
        let inside = self.ring.region.write(at, &from[..first])
            && self.ring.region.write(rest_at, &from[first..first + rest]);
        assert!(inside, "pieces of a ring are inside its region");
        self.head += len as u64;
        Ok(len)
    }

    /// Tells the peer what was put; true if its bell must be rung.
    #[must_use]
    pub fn publish(&self) -> bool {
        publish(
            self.ring.word(HEAD),
            self.head,
            self.ring.word(DATA_AWAITED),
        )
    }

    /// Tells the peer that no more will come; true if its bell must be rung.
    #[must_use]
    pub fn close(&self) -> bool {
        publish(self.ring.word(CLOSED), 1, self.ring.word(DATA_AWAITED))
    }

    /// True if there is no room, and the peer has been told to ring when there is.
    pub fn may_sleep(&self) -> bool {
        may_sleep(self.ring.word(ROOM_AWAITED), || self.room() != Ok(0))
    }
}

/// The end that takes bytes out.
#[derive(Debug)]
pub(super) struct Receiver {
    ring: Ring,
    tail: u64,
}

impl Receiver {
    pub fn new(region: Arc<SharedRegion>, bytes: usize, direction: Direction) -> Option<Receiver> {
        Some(Receiver {
            ring: Ring::new(region, bytes, direction)?,
            tail: 0,
        })
    }

    fn filled(&self) -> Result<usize, Corrupt> {
        let head = self.ring.word(HEAD).load(Ordering::Acquire);
        self.ring.filled(head, self.tail)
    }

    /// Copies out what there is, up to the length of `into`, without telling the peer.
    ///
    /// # Errors
    /// [`Corrupt`] if the peer's index is impossible.
    pub fn take(&mut self, into: &mut [u8]) -> Result<usize, Corrupt> {
        let len = into.len().min(self.filled()?);
        let [(at, first), (rest_at, rest)] = self.ring.pieces(self.tail, len);
        let inside = self.ring.region.read(at, &mut into[..first])
            && self
                .ring
                .region
                .read(rest_at, &mut into[first..first + rest]);
        assert!(inside, "pieces of a ring are inside its region");
        self.tail += len as u64;
        Ok(len)
    }

    /// Gives the room of what was taken back to the peer; true if its bell must be rung.
    #[must_use]
    pub fn publish(&self) -> bool {
        publish(
            self.ring.word(TAIL),
            self.tail,
            self.ring.word(ROOM_AWAITED),
        )
    }

    /// Whether the peer has said that no more will come. Look for bytes again after this said so: they were put before.
    pub fn closed(&self) -> bool {
        self.ring.word(CLOSED).load(Ordering::Acquire) != 0
    }

    /// True if there is nothing to take, and the peer has been told to ring when there is.
    pub fn may_sleep(&self) -> bool {
        may_sleep(self.ring.word(DATA_AWAITED), || {
            self.filled() != Ok(0) || self.closed()
        })
    }
}
