//! Offsets of the stats page (`docs/stats-page.md`).

use super::histogram::LATENCY_BUCKETS;

/// Most reactors that a page has blocks for: a slot has one bit for each.
pub const REACTORS_MAX: u32 = 64;
/// Most volume slots in a page.
pub const VOLUME_SLOTS_MAX: u32 = 4096;

pub(super) const VERSION: u32 = 1;
/// `KEELSTAT` in memory order.
pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"KEELSTAT");

const PAGE: usize = 4096;
const WORD: usize = 8;

pub(super) const MAGIC_AT: usize = 0;
pub(super) const VERSION_AT: usize = 8;
pub(super) const REACTORS_AT: usize = 12;
pub(super) const INCARNATION_AT: usize = 16;
pub(super) const PID_AT: usize = 32;
pub(super) const SLOTS_AT: usize = 36;
pub(super) const STARTED_AT: usize = 40;
pub(super) const BYTES_AT: usize = 48;

pub(super) const REACTOR_WORDS: usize = 32;
pub(super) const SLOT_WORDS: usize = 8;
pub(super) const BLOCK_WORDS: usize = 512;

/// Words of a slot.
pub(super) mod slot {
    pub const SEQUENCE: usize = 0;
    pub const IN_USE: usize = 1;
    pub const ID: usize = 2;
    pub const REACTORS: usize = 4;
}

/// Words of a counter block.
pub(super) mod block {
    use super::LATENCY_BUCKETS;

    pub const READS: usize = 0;
    pub const WRITES: usize = 1;
    pub const OTHERS: usize = 2;
    pub const READ_BYTES: usize = 3;
    pub const WRITE_BYTES: usize = 4;
    pub const ERRORS: usize = 5;
    pub const CONNECTIONS: usize = 6;
    pub const READ_NS: usize = 7;
    pub const WRITE_NS: usize = 8;
    pub const DISCARDS: usize = 9;
    pub const DISCARD_BYTES: usize = 10;
    pub const DISCARD_NS: usize = 11;
    pub const COUNTERS: usize = 16;
    pub const READ_LATENCY: usize = COUNTERS;
    pub const WRITE_LATENCY: usize = READ_LATENCY + LATENCY_BUCKETS;
    pub const END: usize = WRITE_LATENCY + LATENCY_BUCKETS;
}

const _: () = assert!(block::END <= BLOCK_WORDS);
const _: () = assert!(BLOCK_WORDS * WORD == PAGE);
// Two cache lines per writer at least: neighbouring lines are fetched in pairs.
const _: () = assert!((REACTOR_WORDS * WORD).is_multiple_of(128));
const _: () = assert!(ReactorField::COUNT <= REACTOR_WORDS);

/// What a reactor counts; the number is the word in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ReactorField {
    /// Core it is pinned to, plus one; 0 = not pinned (set).
    Cpu = 0,
    /// Nanoseconds spent working.
    BusyNs = 1,
    /// Nanoseconds spent spinning without work.
    IdleNs = 2,
    /// Nanoseconds spent asleep.
    AsleepNs = 3,
    /// Passes of the loop.
    Passes = 4,
    /// Wake-ups from sleep.
    Wakeups = 5,
    /// Connections now (gauge).
    Connections = 6,
    /// Commands completed.
    Commands = 7,
    /// Tasks that held the core for longer than the watchdog allows.
    Stalls = 8,
    /// Operations in the reactor's io_uring now (gauge).
    RingDepth = 9,
    /// CPU time of the thread in nanoseconds (set).
    CpuNs = 10,
    /// Bytes of DMA buffers in use (gauge).
    BuffersInUse = 11,
    /// Polling: 0 adaptive, 1 always (set).
    PollAlways = 12,
    /// Longest time that a task held the core, in nanoseconds (set).
    StallNsMax = 13,
    /// System calls made.
    Syscalls = 14,
}

impl ReactorField {
    const COUNT: usize = 15;
}

/// Where everything is in a page of a given shape. All offsets are inside a region of [`Shape::bytes`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub reactors: u32,
    pub slots: u32,
}

impl Shape {
    /// The shape, if the layout has room for it.
    pub fn new(reactors: u32, slots: u32) -> Option<Shape> {
        let fits =
            (1..=REACTORS_MAX).contains(&reactors) && (1..=VOLUME_SLOTS_MAX).contains(&slots);
        fits.then_some(Shape { reactors, slots })
    }

    pub fn reactor_at(self, reactor: u32) -> usize {
        PAGE + reactor as usize * REACTOR_WORDS * WORD
    }

    pub fn slot_at(self, slot: u32) -> usize {
        let reactors = (self.reactors as usize * REACTOR_WORDS * WORD).next_multiple_of(PAGE);
        PAGE + reactors + slot as usize * SLOT_WORDS * WORD
    }

    pub fn block_at(self, slot: u32, reactor: u32) -> usize {
        let blocks =
            self.slot_at(0) + (self.slots as usize * SLOT_WORDS * WORD).next_multiple_of(PAGE);
        let index = slot as usize * self.reactors as usize + reactor as usize;
        blocks + index * BLOCK_WORDS * WORD
    }

    /// Size of the page, holes included.
    pub fn bytes(self) -> usize {
        self.block_at(self.slots, 0)
    }
}

// The largest shape must be a region: REGION_BYTES_MAX is 1 GiB.
const _: () = assert!(
    VOLUME_SLOTS_MAX as usize * REACTORS_MAX as usize * PAGE
        <= keelblock_hugepages::shared::REGION_BYTES_MAX
);
