//! The data path's side: it makes the page and counts in it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use keelblock_hugepages::SharedRegion;

use super::StatsError;
use super::histogram::bucket_of_ns;
use super::layout::*;

/// The page of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StatsPage(Arc<Page>);

#[derive(Debug)]
struct Page {
    region: SharedRegion,
    shape: Shape,
    incarnation: [u8; 16],
    /// Which slots are handed out. Kept outside the region, so that what it says is nobody else's to change.
    claimed: Box<[AtomicBool]>,
}

impl StatsPage {
    /// Makes the page for `reactors` reactors (1 to [`REACTORS_MAX`]) and up to `volumes` exported volumes (1 to
    /// [`VOLUME_SLOTS_MAX`]). Memory is taken as volumes are used, not before.
    ///
    /// # Errors
    /// [`StatsError::Shape`] for other numbers; [`StatsError::Region`] if the memory cannot be had.
    pub fn create(
        reactors: u32,
        volumes: u32,
        incarnation: [u8; 16],
        started_unix_ms: u64,
    ) -> Result<Self, StatsError> {
        let shape = Shape::new(reactors, volumes).ok_or(StatsError::Shape { reactors, volumes })?;
        let region = SharedRegion::create_read_only_for_others("keelblock-stats", shape.bytes())?;
        let page = Page {
            region,
            shape,
            incarnation,
            claimed: (0..volumes).map(|_| AtomicBool::new(false)).collect(),
        };
        page.write_header(started_unix_ms);
        Ok(StatsPage(Arc::new(page)))
    }

    /// What tells this process from its predecessors.
    pub fn incarnation(&self) -> [u8; 16] {
        self.0.incarnation
    }

    /// The block of one reactor, or `None` if there is no such reactor. Only that reactor's thread may count in it.
    pub fn reactor(&self, reactor: u32) -> Option<ReactorStats> {
        (reactor < self.0.shape.reactors).then(|| ReactorStats {
            offset: self.0.shape.reactor_at(reactor),
            page: self.0.clone(),
        })
    }

    /// Claims a slot for a volume, all counters zero. `None` when all slots are in use: the volume works, uncounted.
    pub fn volume(&self, volume_id: [u8; 16]) -> Option<VolumeSlot> {
        let free = |claimed: &AtomicBool| {
            claimed
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        };
        let slot = self.0.claimed.iter().position(free)? as u32;
        self.0.begin_slot(slot, volume_id);
        Some(VolumeSlot(Arc::new(Claim {
            slot,
            page: self.0.clone(),
        })))
    }
}

impl AsFd for StatsPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.region.as_fd()
    }
}

impl Page {
    fn write_header(&self, started_unix_ms: u64) {
        let set32 = |at: usize, value: u32| self.region.write(at, &value.to_ne_bytes());
        let set64 = |at: usize, value: u64| self.region.write(at, &value.to_ne_bytes());
        let written = set32(VERSION_AT, VERSION)
            && set32(REACTORS_AT, self.shape.reactors)
            && self.region.write(INCARNATION_AT, &self.incarnation)
            && set32(PID_AT, std::process::id())
            && set32(SLOTS_AT, self.shape.slots)
            && set64(STARTED_AT, started_unix_ms)
            && set64(BYTES_AT, self.shape.bytes() as u64);
        assert!(written, "the header is inside the page");
        self.words::<1>(MAGIC_AT)[0].store(MAGIC, Ordering::Release);
    }

    /// Words at an offset that the shape computed: always inside, since the region was made with the shape's size.
    #[inline]
    fn words<const N: usize>(&self, offset: usize) -> &[AtomicU64; N] {
        let words = self.region.words64(offset, N).and_then(|w| w.first_chunk());
        words.expect("offsets of the shape are inside the page")
    }

    fn slot(&self, slot: u32) -> &[AtomicU64; SLOT_WORDS] {
        self.words(self.shape.slot_at(slot))
    }

    fn begin_slot(&self, slot: u32, volume_id: [u8; 16]) {
        let words = self.slot(slot);
        change(words, || {
            let used = words[slot::REACTORS].load(Ordering::Relaxed);
            for reactor in (0..self.shape.reactors).filter(|r| used & (1 << r) != 0) {
                for word in self.words::<BLOCK_WORDS>(self.shape.block_at(slot, reactor)) {
                    word.store(0, Ordering::Relaxed);
                }
            }
            words[slot::REACTORS].store(0, Ordering::Relaxed);
            for (word, bytes) in words[slot::ID..].iter().zip(volume_id.as_chunks::<8>().0) {
                word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
            words[slot::IN_USE].store(1, Ordering::Relaxed);
        });
    }
}

/// Makes a change that a reader sees whole or not at all. Only the claimant of a slot changes it.
fn change(slot: &[AtomicU64; SLOT_WORDS], change: impl FnOnce()) {
    let sequence = slot[slot::SEQUENCE].load(Ordering::Relaxed);
    slot[slot::SEQUENCE].store(sequence.wrapping_add(1), Ordering::Relaxed);
    // No store of the change becomes visible before the odd sequence.
    fence(Ordering::Release);
    change();
    slot[slot::SEQUENCE].store(sequence.wrapping_add(2), Ordering::Release);
}

/// A volume's place in the page; it is let go of when this, its clones and their [`VolumeStats`] are dropped.
#[derive(Debug, Clone)]
pub struct VolumeSlot(Arc<Claim>);

#[derive(Debug)]
struct Claim {
    slot: u32,
    page: Arc<Page>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let words = self.page.slot(self.slot);
        change(words, || words[slot::IN_USE].store(0, Ordering::Relaxed));
        self.page.claimed[self.slot as usize].store(false, Ordering::Release);
    }
}

impl VolumeSlot {
    /// Index of the slot, as commands call it.
    pub fn index(&self) -> u32 {
        self.0.slot
    }

    /// The block that one reactor counts in, or `None` if there is no such reactor. Only that reactor's thread may count in it.
    pub fn reactor(&self, reactor: u32) -> Option<VolumeStats> {
        let Claim { slot, page } = &*self.0;
        if reactor >= page.shape.reactors {
            return None;
        }
        // From now on readers look into the block, which makes it take memory.
        page.slot(*slot)[slot::REACTORS].fetch_or(1 << reactor, Ordering::Release);
        Some(VolumeStats {
            offset: page.shape.block_at(*slot, reactor),
            claim: self.0.clone(),
        })
    }
}

/// Counters of one reactor.
#[derive(Debug, Clone)]
pub struct ReactorStats {
    page: Arc<Page>,
    offset: usize,
}

impl ReactorStats {
    /// Adds to a counter.
    #[inline]
    pub fn add(&self, field: ReactorField, n: u64) {
        add(&self.words()[field as usize], n);
    }

    /// Takes from a gauge.
    #[inline]
    pub fn sub(&self, field: ReactorField, n: u64) {
        add(&self.words()[field as usize], n.wrapping_neg());
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, field: ReactorField, value: u64) {
        self.words()[field as usize].store(value, Ordering::Relaxed);
    }

    /// What a counter says now.
    pub fn get(&self, field: ReactorField) -> u64 {
        self.words()[field as usize].load(Ordering::Relaxed)
    }

    #[inline]
    fn words(&self) -> &[AtomicU64; REACTOR_WORDS] {
        self.page.words(self.offset)
    }
}

/// Counters of one volume on one reactor.
#[derive(Debug, Clone)]
pub struct VolumeStats {
    claim: Arc<Claim>,
    offset: usize,
}

impl VolumeStats {
    /// A read of `bytes` completed after `ns` nanoseconds.
    #[inline]
    pub fn read_done(&self, bytes: u64, ns: u64) {
        let words = self.words();
        add(&words[block::READS], 1);
        add(&words[block::READ_BYTES], bytes);
        add(&words[block::READ_NS], ns);
        add(&words[block::READ_LATENCY + bucket_of_ns(ns)], 1);
    }

    /// `count` reads of `bytes` in all completed, each after `ns` nanoseconds.
    #[inline]
    pub fn reads_done(&self, count: u64, bytes: u64, ns: u64) {
        let words = self.words();
        add(&words[block::READS], count);
        add(&words[block::READ_BYTES], bytes);
        add(&words[block::READ_NS], count * ns);
        add(&words[block::READ_LATENCY + bucket_of_ns(ns)], count);
    }

    /// `count` writes of `bytes` in all completed, each after `ns` nanoseconds.
    #[inline]
    pub fn writes_done(&self, count: u64, bytes: u64, ns: u64) {
        let words = self.words();
        add(&words[block::WRITES], count);
        add(&words[block::WRITE_BYTES], bytes);
        add(&words[block::WRITE_NS], count * ns);
        add(&words[block::WRITE_LATENCY + bucket_of_ns(ns)], count);
    }

    /// A write of `bytes` completed after `ns` nanoseconds.
    #[inline]
    pub fn write_done(&self, bytes: u64, ns: u64) {
        let words = self.words();
        add(&words[block::WRITES], 1);
        add(&words[block::WRITE_BYTES], bytes);
        add(&words[block::WRITE_NS], ns);
        add(&words[block::WRITE_LATENCY + bucket_of_ns(ns)], 1);
    }

    /// A deallocate or write-zeroes of `bytes` completed after `ns` nanoseconds.
    #[inline]
    pub fn discard_done(&self, bytes: u64, ns: u64) {
        let words = self.words();
        add(&words[block::DISCARDS], 1);
        add(&words[block::DISCARD_BYTES], bytes);
        add(&words[block::DISCARD_NS], ns);
    }

    /// A command of another kind completed.
    #[inline]
    pub fn other_done(&self) {
        add(&self.words()[block::OTHERS], 1);
    }

    /// A command ended with an error status. It is counted here and nowhere else.
    #[inline]
    pub fn failed(&self) {
        add(&self.words()[block::ERRORS], 1);
    }

    /// An I/O queue was connected on this reactor.
    pub fn connected(&self) {
        add(&self.words()[block::CONNECTIONS], 1);
    }

    /// An I/O queue of this reactor ended.
    pub fn disconnected(&self) {
        add(&self.words()[block::CONNECTIONS], 1u64.wrapping_neg());
    }

    #[inline]
    fn words(&self) -> &[AtomicU64; BLOCK_WORDS] {
        self.claim.page.words(self.offset)
    }
}

/// One writer per word, so a load and a store do; no locked instruction.
#[inline]
fn add(word: &AtomicU64, n: u64) {
    word.store(
        word.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}
