//! The control process' side: it checks the page once and copies out of it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use keelblock_hugepages::SharedView;

use super::layout::*;
use super::{Histogram, LATENCY_BUCKETS, StatsError};

/// Attempts to copy a slot while it is being changed. A change takes microseconds and is rare.
const COPY_ATTEMPTS: usize = 8;

/// A data path's page, read-only. It stays readable after the data path's death; a new data path has a new page.
#[derive(Debug)]
pub struct StatsReader {
    view: SharedView,
    shape: Shape,
}

/// A copy of one reactor's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReactorSnapshot {
    /// Number of the reactor.
    pub id: u32,
    words: [u64; REACTOR_WORDS],
}

impl ReactorSnapshot {
    /// One counter.
    pub fn get(&self, field: ReactorField) -> u64 {
        self.words[field as usize]
    }

    /// The core it is pinned to.
    pub fn cpu(&self) -> Option<u32> {
        u32::try_from(self.get(ReactorField::Cpu).checked_sub(1)?).ok()
    }
}

/// A copy of one volume's counters, summed over reactors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeSnapshot {
    /// The volume.
    pub volume_id: [u8; 16],
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Commands of other kinds completed.
    pub others: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Commands that ended with an error status.
    pub errors: u64,
    /// I/O queues connected now.
    pub connections: u64,
    /// Nanoseconds that reads took, summed.
    pub read_ns: u64,
    /// Nanoseconds that writes took, summed.
    pub write_ns: u64,
    /// Deallocates and write-zeroes completed.
    pub discards: u64,
    /// Bytes of them.
    pub discard_bytes: u64,
    /// Nanoseconds that they took, summed.
    pub discard_ns: u64,
    /// Latency of reads.
    pub read_latency: Histogram,
    /// Latency of writes.
    pub write_latency: Histogram,
}

impl StatsReader {
    /// Maps a page that was handed over, and checks its header.
    ///
    /// # Errors
    /// [`StatsError::Region`] if it cannot be mapped; otherwise what is wrong with it.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, StatsError> {
        let view = SharedView::from_fd(fd)?;
        if view.load64(MAGIC_AT) != Some(MAGIC) {
            return Err(StatsError::Magic);
        }
        let found = read32(&view, VERSION_AT);
        if found != VERSION {
            return Err(StatsError::Version { found });
        }
        let (reactors, volumes) = (read32(&view, REACTORS_AT), read32(&view, SLOTS_AT));
        let shape = Shape::new(reactors, volumes).ok_or(StatsError::Shape { reactors, volumes })?;
        let (expected, found) = (shape.bytes() as u64, view.len() as u64);
        if expected != found || read64(&view, BYTES_AT) != expected {
            return Err(StatsError::Length { expected, found });
        }
        Ok(StatsReader { view, shape })
    }

    /// What tells the data path from its predecessors and successors.
    pub fn incarnation(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // The offset is inside every page, which `from_fd` has checked; so it is with all reads below.
        let _inside = self.view.read(INCARNATION_AT, &mut bytes);
        bytes
    }

    /// Process id of the data path.
    pub fn pid(&self) -> u32 {
        read32(&self.view, PID_AT)
    }

    /// Start of the data path, ms since the Unix epoch.
    pub fn started_unix_ms(&self) -> u64 {
        read64(&self.view, STARTED_AT)
    }

    /// Number of reactors.
    pub fn reactor_count(&self) -> u32 {
        self.shape.reactors
    }

    /// Counters of all reactors.
    pub fn reactors(&self) -> Vec<ReactorSnapshot> {
        let copy = |id| ReactorSnapshot {
            id,
            words: self.words(self.shape.reactor_at(id)),
        };
        (0..self.shape.reactors).map(copy).collect()
    }

    /// Counters of a volume that has a slot.
    pub fn volume(&self, volume_id: [u8; 16]) -> Option<VolumeSnapshot> {
        // The slot's own words are read first, so that only the volume's blocks are copied.
        (0..self.shape.slots)
            .filter(|slot| {
                self.slot_words(*slot)
                    .is_some_and(|w| id_of(&w) == volume_id)
            })
            .find_map(|slot| self.slot(slot).filter(|v| v.volume_id == volume_id))
    }

    /// Counters of all volumes that have a slot, with its number.
    pub fn volumes(&self) -> impl Iterator<Item = (u32, VolumeSnapshot)> + '_ {
        (0..self.shape.slots).filter_map(|slot| Some((slot, self.slot(slot)?)))
    }

    /// Counters of the volume in a slot; `None` if it is free, changing all the time, or does not exist.
    pub fn slot(&self, slot: u32) -> Option<VolumeSnapshot> {
        if slot >= self.shape.slots {
            return None;
        }
        for _ in 0..COPY_ATTEMPTS {
            let Some(before) = self.slot_words(slot) else {
                continue;
            };
            if before[slot::IN_USE] == 0 {
                return None;
            }
            let snapshot = self.copy(slot, &before);
            // The copy's loads come before the second look at the sequence.
            fence(Ordering::Acquire);
            let sequence = self.view.load64(self.shape.slot_at(slot));
            if sequence == Some(before[slot::SEQUENCE]) {
                return Some(snapshot);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// A slot's own words, unless it is being changed.
    fn slot_words(&self, slot: u32) -> Option<[u64; SLOT_WORDS]> {
        let at = self.shape.slot_at(slot);
        let sequence = self.view.load64(at)?;
        let words: [u64; SLOT_WORDS] = self.words(at);
        (sequence % 2 == 0 && words[slot::SEQUENCE] == sequence).then_some(words)
    }

    fn copy(&self, slot: u32, words: &[u64; SLOT_WORDS]) -> VolumeSnapshot {
        let mut sum = VolumeSnapshot {
            volume_id: id_of(words),
            ..VolumeSnapshot::default()
        };
        let used = words[slot::REACTORS];
        for reactor in (0..self.shape.reactors).filter(|r| used & (1 << r) != 0) {
            sum.add(&self.words(self.shape.block_at(slot, reactor)));
        }
        sum
    }

    fn words<const N: usize>(&self, offset: usize) -> [u64; N] {
        // A block's worth at most; words are copied one by one, never torn.
        let mut bytes = [0; BLOCK_WORDS * 8];
        let _inside = self.view.read(offset, &mut bytes[..N * 8]);
        let words = bytes.as_chunks::<8>().0;
        std::array::from_fn(|i| u64::from_ne_bytes(words[i]))
    }
}

impl VolumeSnapshot {
    fn add(&mut self, words: &[u64; BLOCK_WORDS]) {
        for (sum, word) in [
            (&mut self.reads, block::READS),
            (&mut self.writes, block::WRITES),
            (&mut self.others, block::OTHERS),
            (&mut self.read_bytes, block::READ_BYTES),
            (&mut self.write_bytes, block::WRITE_BYTES),
            (&mut self.errors, block::ERRORS),
            (&mut self.connections, block::CONNECTIONS),
            (&mut self.read_ns, block::READ_NS),
            (&mut self.write_ns, block::WRITE_NS),
            (&mut self.discards, block::DISCARDS),
            (&mut self.discard_bytes, block::DISCARD_BYTES),
            (&mut self.discard_ns, block::DISCARD_NS),
        ] {
            *sum = sum.wrapping_add(words[word]);
        }
        self.read_latency
            .add_counts(&words[block::READ_LATENCY..][..LATENCY_BUCKETS]);
        self.write_latency
            .add_counts(&words[block::WRITE_LATENCY..][..LATENCY_BUCKETS]);
    }
}

fn id_of(slot: &[u64; SLOT_WORDS]) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&slot[slot::ID].to_ne_bytes());
    id[8..].copy_from_slice(&slot[slot::ID + 1].to_ne_bytes());
    id
}

fn read32(view: &SharedView, at: usize) -> u32 {
    let mut bytes = [0; 4];
    let _inside = view.read(at, &mut bytes);
    u32::from_ne_bytes(bytes)
}

fn read64(view: &SharedView, at: usize) -> u64 {
    let mut bytes = [0; 8];
    let _inside = view.read(at, &mut bytes);
    u64::from_ne_bytes(bytes)
}
