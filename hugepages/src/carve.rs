//! Carving a region into buffers: chunks of 1 MiB, each cut into buffers of one size class while any of it is in use.
//!
//! A wholly free chunk belongs to no class, so memory moves between classes by itself. Within a class the lowest free buffer of the most
//! recently touched chunk is used first, which keeps few pages warm and resident.

use crate::pool::{BUFFER_BYTES_MAX, BUFFER_BYTES_MIN};

/// Number of size classes: 4 KiB to 1 MiB in powers of two.
pub(crate) const CLASSES: usize = 9;
/// Bytes of a chunk: one buffer of the largest class.
pub(crate) const CHUNK_BYTES: usize = BUFFER_BYTES_MAX;
const UNITS: usize = CHUNK_BYTES / BUFFER_BYTES_MIN;
const NONE: u32 = u32::MAX;

/// The class whose buffers hold `len` bytes, if any does.
pub(crate) fn class_of(len: usize) -> Option<u8> {
    if len > BUFFER_BYTES_MAX {
        return None;
    }
    let units = len.div_ceil(BUFFER_BYTES_MIN).max(1).next_power_of_two();
    Some(units.trailing_zeros() as u8)
}

/// Bytes of a buffer of `class`.
pub(crate) fn class_bytes(class: u8) -> usize {
    BUFFER_BYTES_MIN << class
}

/// One chunk: free buffers as bits, and its place in its class's list of chunks that have some.
#[derive(Debug, Clone)]
struct Chunk {
    free: [u64; UNITS / 64],
    free_count: u16,
    class: u8,
    prev: u32,
    next: u32,
}

/// Which buffer: chunk number, and number within the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) chunk: u32,
    pub(crate) unit: u32,
}

/// The state of all chunks; knows no addresses.
#[derive(Debug)]
pub(crate) struct Carver {
    chunks: Vec<Chunk>,
    /// Wholly free chunks, last returned first.
    empty: Vec<u32>,
    /// Per class, first chunk with a free buffer.
    partial: [u32; CLASSES],
}

impl Carver {
    pub(crate) fn new(chunks: usize) -> Self {
        let blank = Chunk {
            free: [0; UNITS / 64],
            free_count: 0,
            class: 0,
            prev: NONE,
            next: NONE,
        };
        Carver {
            chunks: vec![blank; chunks],
            empty: (0..chunks as u32).rev().collect(),
            partial: [NONE; CLASSES],
        }
    }

    /// Takes a buffer of `class`; `None` if no chunk has one and none is wholly free.
    pub(crate) fn take(&mut self, class: u8) -> Option<Place> {
        let index = match self.partial[class as usize] {
            NONE => self.open(class)?,
            index => index,
        };
        let chunk = &mut self.chunks[index as usize];
        let word = chunk
            .free
            .iter()
            .position(|w| *w != 0)
            .expect("a listed chunk has a free buffer");
        let bit = chunk.free[word].trailing_zeros();
        chunk.free[word] &= !(1 << bit);
        chunk.free_count -= 1;
        if chunk.free_count == 0 {
            self.unlink(index);
        }
        Some(Place {
            chunk: index,
            unit: word as u32 * 64 + bit,
        })
    }

    /// Gives a buffer back. Panics if it was free: a buffer has one owner.
    pub(crate) fn give(&mut self, class: u8, place: Place) {
        let units = UNITS >> class;
        let chunk = &mut self.chunks[place.chunk as usize];
        let (word, bit) = (place.unit as usize / 64, place.unit % 64);
        assert!(
            chunk.class == class,
            "a buffer goes back to the class it came from"
        );
        assert!(
            (place.unit as usize) < units,
            "a buffer goes back to its chunk"
        );
        assert!(
            chunk.free[word] & (1 << bit) == 0,
            "a buffer goes back once"
        );
        chunk.free[word] |= 1 << bit;
        chunk.free_count += 1;
        let count = chunk.free_count as usize;
        if count == 1 {
            self.link(place.chunk);
        }
        if count == units {
            self.unlink(place.chunk);
            self.empty.push(place.chunk);
        }
    }

    /// Bytes that are in buffers handed out.
    #[cfg(test)]
    pub(crate) fn check(&self) -> usize {
        let mut listed = 0;
        for class in 0..CLASSES {
            let (mut at, mut prev) = (self.partial[class], NONE);
            while at != NONE {
                let chunk = &self.chunks[at as usize];
                assert_eq!((chunk.class as usize, chunk.prev), (class, prev));
                assert!(chunk.free_count > 0 && (chunk.free_count as usize) < UNITS >> class);
                (prev, at) = (at, chunk.next);
                listed += 1;
            }
        }
        let mut used = 0;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let bits: u32 = chunk.free.iter().map(|w| w.count_ones()).sum();
            assert_eq!(bits, u32::from(chunk.free_count));
            if !self.empty.contains(&(i as u32)) {
                used += CHUNK_BYTES - bits as usize * class_bytes(chunk.class);
                listed += usize::from(bits == 0);
            }
        }
        assert_eq!(
            listed + self.empty.len(),
            self.chunks.len(),
            "a chunk is empty, listed, or fully used"
        );
        used
    }

    /// Cuts a wholly free chunk into buffers of `class`.
    fn open(&mut self, class: u8) -> Option<u32> {
        let index = self.empty.pop()?;
        let units = UNITS >> class;
        let chunk = &mut self.chunks[index as usize];
        for (i, word) in chunk.free.iter_mut().enumerate() {
            let left = units.saturating_sub(i * 64).min(64);
            *word = if left == 64 {
                u64::MAX
            } else {
                (1 << left) - 1
            };
        }
        chunk.free_count = units as u16;
        chunk.class = class;
        self.link(index);
        Some(index)
    }

    fn link(&mut self, index: u32) {
        let class = self.chunks[index as usize].class as usize;
        let next = std::mem::replace(&mut self.partial[class], index);
        if next != NONE {
            self.chunks[next as usize].prev = index;
        }
        let chunk = &mut self.chunks[index as usize];
        (chunk.prev, chunk.next) = (NONE, next);
    }

    fn unlink(&mut self, index: u32) {
        let Chunk {
            prev, next, class, ..
        } = self.chunks[index as usize];
        match prev {
            NONE => self.partial[class as usize] = next,
            prev => self.chunks[prev as usize].next = next,
        }
        if next != NONE {
            self.chunks[next as usize].prev = prev;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_hold_what_they_say() {
        for (len, bytes) in [
            (0, 4096),
            (1, 4096),
            (4096, 4096),
            (4097, 8192),
            (131_072, 131_072),
            (1 << 20, 1 << 20),
        ] {
            assert_eq!(class_of(len).map(class_bytes), Some(bytes), "{len}");
        }
        assert_eq!(class_of((1 << 20) + 1), None);
        assert_eq!(class_of(usize::MAX), None);
    }

    proptest! {
        #[test]
        fn buffers_never_overlap_and_all_come_back(steps in prop::collection::vec((0u8..9, any::<bool>(), any::<prop::sample::Index>()), 1..600)) {
            let mut carver = Carver::new(4);
            let mut held: Vec<(u8, Place)> = Vec::new();
            for (class, take, which) in steps {
                if take {
                    match carver.take(class) {
                        Some(place) => held.push((class, place)),
                        None => prop_assert!(held.len() >= 4, "refused although some chunk is free"),
                    }
                } else if !held.is_empty() {
                    let (class, place) = held.swap_remove(which.index(held.len()));
                    carver.give(class, place);
                }
                prop_assert_eq!(carver.check(), held.iter().map(|h| class_bytes(h.0)).sum::<usize>());
            }
            let mut spans: Vec<_> = held.iter().map(|(c, p)| (p.chunk as usize * CHUNK_BYTES + p.unit as usize * class_bytes(*c), class_bytes(*c))).collect();
            spans.sort_unstable();
            for pair in spans.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            for (class, place) in held {
                carver.give(class, place);
            }
            prop_assert_eq!(carver.check(), 0);
            for _ in 0..4 {
                prop_assert!(carver.take(8).is_some());
            }
        }
    }
}
