//! Logging live records again (`docs/store-format.md` §9): a journal that is half full takes old records along in the room that its blocks
//! have left, so that the tail moves without further writes.
//!
//! The records of the blocks between tail and end are kept as they were written, up to a bound. With single writes, which is when this matters,
//! that is 52 bytes for each block of 4096; a journal that has so many more is dense already, and a checkpoint moves its tail. Only what is durable is logged again, oldest first; when the copies of
//! all records of a block are durable, the tail is at that block. Snapshots and puts take effect by their place in the journal, so they are
//! not logged again: at one of them, only a checkpoint moves the tail.

use std::collections::VecDeque;

use super::pack::Packer;
use super::record::{BYTES, KIND_SETTLED, KIND_TOMBSTONE, KIND_WRITE};

/// A block with records. Places in the bytes are counted from the first record that ever was.
#[derive(Debug)]
struct LiveBlock {
    sequence: u64,
    end: u64,
}

/// All records that begin below `tail` have copies, the last of them in block `copies_in`.
#[derive(Debug)]
struct Copied {
    tail: u64,
    copies_in: u64,
}

/// Most bytes that are kept: single writes of a full delta, 52 bytes each, and as much as a checkpoint takes to move the tail.
pub const LIVE_BYTES_MAX: usize = 32 << 20;

/// See the module's text.
pub struct LiveRecords {
    bytes_max: usize,
    /// The last block whose records, and those of all blocks before it, were too many to keep.
    not_kept: Option<u64>,
    bytes: VecDeque<u8>,
    /// Place of the first of the bytes.
    base: u64,
    /// Place of the record that is copied next.
    cursor: u64,
    blocks: VecDeque<LiveBlock>,
    /// Of these, how many are copied.
    blocks_copied: usize,
    copied: VecDeque<Copied>,
}

impl std::fmt::Debug for LiveRecords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveRecords")
            .field("bytes", &self.bytes.len())
            .field("blocks", &self.blocks.len())
            .field("not_kept", &self.not_kept)
            .finish_non_exhaustive()
    }
}

impl LiveRecords {
    /// None yet, and never more than so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            not_kept: None,
            bytes: VecDeque::new(),
            base: 0,
            cursor: 0,
            blocks: VecDeque::new(),
            blocks_copied: 0,
            copied: VecDeque::new(),
        }
    }

    /// A record that ends in this block, which is the newest, was sealed.
    pub fn add(&mut self, sequence: u64, record: &[u8]) {
        if self.bytes.len() + record.len() > self.bytes_max {
            self.base += self.bytes.len() as u64;
            self.cursor = self.base;
            self.bytes.clear();
            self.blocks.clear();
            self.blocks_copied = 0;
            self.not_kept = Some(sequence);
        }
        if self.not_kept == Some(sequence) {
            return;
        }
        self.bytes.extend(record);
        let end = self.base + self.bytes.len() as u64;
        match self.blocks.back_mut() {
            Some(block) if block.sequence == sequence => block.end = end,
            _ => self.blocks.push_back(LiveBlock { sequence, end }),
        }
    }

    /// Fills the room that the open block has left with copies of records at or below the watermark. It will be block `open`.
    pub fn log_again(&mut self, packer: &mut Packer, watermark: u64, open: u64) {
        if self.not_kept.is_some() {
            return;
        }
        while let Some(block) = self.blocks.get(self.blocks_copied)
            && block.sequence <= watermark
        {
            let (sequence, end) = (block.sequence, block.end);
            while self.cursor < end {
                let at = (self.cursor - self.base) as usize;
                let len = u16::from_le_bytes([self.bytes[at + BYTES], self.bytes[at + BYTES + 1]]);
                let len = usize::from(len);
                let movable = matches!(self.bytes[at], KIND_WRITE | KIND_TOMBSTONE | KIND_SETTLED);
                if !movable || len > packer.room_in_open_block() {
                    return;
                }
                let (older, newer) = self.bytes.as_slices();
                let split = older.len();
                let first = &older[at.min(split)..(at + len).min(split)];
                let second = &newer[at.max(split) - split..(at + len).max(split) - split];
                packer.append_again(first, second);
                self.cursor += len as u64;
            }
            self.blocks_copied += 1;
            self.copied.push_back(Copied {
                // Not the block behind it: the next record may begin in this one.
                tail: sequence,
                copies_in: open,
            });
        }
    }

    /// Blocks up to the watermark are durable; the answer is where that brings the tail.
    pub fn durable(&mut self, watermark: u64) -> Option<u64> {
        let mut tail = None;
        while let Some(copied) = self.copied.front()
            && copied.copies_in <= watermark
        {
            tail = Some(copied.tail);
            self.copied.pop_front();
        }
        tail
    }

    /// Where the tail could be if blocks up to this one were durable.
    pub fn tail_after(&self, block: u64) -> Option<u64> {
        let mut copied = self.copied.iter().rev();
        copied.find(|c| c.copies_in <= block).map(|c| c.tail)
    }

    /// Replay needs nothing below `tail`: what is kept of it is dropped.
    pub fn drop_below(&mut self, tail: u64) {
        let mut end = self.base;
        while let Some(block) = self.blocks.front()
            && block.sequence < tail
        {
            end = block.end;
            self.blocks.pop_front();
            self.blocks_copied = self.blocks_copied.saturating_sub(1);
        }
        if self.not_kept.is_some_and(|sequence| sequence < tail) {
            self.not_kept = None;
        }
        self.bytes.drain(..(end - self.base) as usize);
        self.base = end;
        self.cursor = self.cursor.max(end);
        while self.copied.front().is_some_and(|c| c.tail <= tail) {
            self.copied.pop_front();
        }
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}
