//! Space: groups come into memory when they are needed, a drive that is nearly full still takes overwrites and erasures (S6), and erasing.

use std::ops::Range;
use std::rc::Rc;

use super::super::group::Run;
use super::super::journal::Given;
use super::super::map::leaf::SEALED_ENTRIES;
use super::super::superblock::GroupId;
use super::super::types::PhysicalBlock;
use super::lane::LaneState;
use super::stamped::Mark;
use super::writer::WRITE_BLOCKS_MAX;
use super::{Inner, Space, StoreError};

/// Entries of the largest delta (S4).
const DELTA_MAX: u64 = 500_000;
/// And of a smaller drive in memory whose journal has room for them: its checkpoints cost little, and what is looked up stays in the caches.
const DELTA_IN_MEMORY: u64 = 250_000;
/// No drive has less.
const DELTA_MIN: u64 = 1024;
/// Live records that a block of the journal holds densely.
const RECORDS_OF_BLOCK: u64 = 60;
/// Most runs of a record: their number is a byte.
pub const RUNS_MAX: usize = 255;
/// How often somebody who found no space looks again after a checkpoint.
const TRIES: u32 = 4;

/// Entries that the delta of a drive may have: bounded by memory, by the journal that must hold their records, and by the drive.
pub fn delta_max(blocks: u64, journal_blocks: u32, in_memory: bool) -> u64 {
    let usual = match in_memory {
        true => (blocks / 2048).clamp(DELTA_IN_MEMORY, DELTA_MAX),
        false => DELTA_MAX,
    };
    let journal = u64::from(journal_blocks) * RECORDS_OF_BLOCK / 2;
    usual.min(journal).min(blocks / 16).max(DELTA_MIN)
}

/// Blocks that new data may not use: what a full delta holds twice until its checkpoint, and that checkpoint's pages.
pub fn reserve(blocks: u64, delta_max: u64) -> u64 {
    // In the worst case each entry is in a leaf of its own, of the smaller kind; above 64 of them there is one page.
    let leaves = delta_max.min(blocks / SEALED_ENTRIES as u64 + 1);
    let pages = leaves + leaves / 32 + 64;
    (delta_max + pages).min(blocks / 8)
}

impl Inner {
    /// Loads the bitmap of a group.
    pub(super) async fn load_group(&self, group: GroupId) -> Result<(), StoreError> {
        Ok(self.pages.load_group(group).await?)
    }

    /// Keeps groups with free space in memory, so that allocation does not wait.
    pub(super) async fn run_loader(self: Rc<Self>) {
        while !self.stopped.get() {
            let wanted = self.space.borrow_mut().wants();
            match wanted {
                Some(group) => {
                    if let Err(e) = self.load_group(group).await {
                        tracing::error!(
                            group = group.0,
                            "a bitmap of the drive contradicts the group table, or cannot be read: {e}"
                        );
                        self.checkpointer.failed.set(Some(e));
                        return;
                    }
                    self.room.notify_all();
                }
                None => self.low_on_groups.notified().await,
            }
        }
    }

    /// Space for a write, out of a run for all that are queued. False: there is none, and nothing was taken.
    pub(super) fn place(
        &self,
        blocks: u64,
        wanted: u64,
        spare: &mut Vec<Run>,
        runs: &mut Vec<Run>,
    ) -> bool {
        let mut left = blocks;
        while left > 0 {
            if spare.is_empty() {
                let ask = wanted.max(left).min(4 * WRITE_BLOCKS_MAX) as u32;
                let mut space = self.space.borrow_mut();
                let run = space.allocate(ask).or_else(|_| space.allocate(left as u32));
                let Ok(run) = run else {
                    drop(space);
                    self.give_back(std::mem::take(runs));
                    return false;
                };
                spare.push(run);
            }
            let run = spare.last_mut().expect("not empty");
            let take = u64::from(run.blocks).min(left);
            runs.push(Run {
                first: run.first,
                blocks: take as u32,
            });
            run.first.0 += take;
            run.blocks -= take as u32;
            if run.blocks == 0 {
                spare.pop();
            }
            left -= take;
        }
        if runs.len() > RUNS_MAX {
            self.give_back(std::mem::take(runs));
            return false;
        }
        true
    }

    pub(super) fn give_back(&self, runs: impl IntoIterator<Item = Run>) {
        let mut space = self.space.borrow_mut();
        for run in runs {
            for n in 0..u64::from(run.blocks) {
                space.release(PhysicalBlock(run.first.0 + n));
            }
        }
    }

    /// Space for a write that found none the usual way: from the reserve, if it overwrites; after what is given back anyway has come back, if not.
    pub(super) async fn space_in_need(
        self: &Rc<Self>,
        lane: &LaneState,
        blocks: Range<u64>,
    ) -> Result<Vec<Run>, StoreError> {
        let count = (blocks.end - blocks.start) as u32;
        self.find_space(count, Some((lane, blocks))).await
    }

    /// Space for blocks that come from another drive: never of the reserve.
    pub(super) async fn space_to_arrive(&self, count: u32) -> Result<Vec<Run>, StoreError> {
        let mut runs = Vec::new();
        if self.take_runs(count, false, &mut runs) {
            return Ok(runs);
        }
        self.find_space(count, None).await
    }

    /// `over` is what is overwritten by it, if anything is.
    async fn find_space(
        &self,
        count: u32,
        over: Option<(&LaneState, Range<u64>)>,
    ) -> Result<Vec<Run>, StoreError> {
        for _ in 0..TRIES {
            // Perhaps the groups in memory were full, and not the drive.
            loop {
                let wanted = self.space.borrow_mut().wants();
                let Some(group) = wanted else { break };
                self.load_group(group).await?;
            }
            let mut runs = Vec::new();
            if self.take_runs(count, false, &mut runs) {
                return Ok(runs);
            }
            // Looked at after the wait, and nothing waits until it is taken: others may be here too, and the checkpoint needs the other half.
            if let Some((lane, blocks)) = &over
                && self.all_own(lane, blocks.clone()).await?
                && self.reserve_has(count)
                && self.take_runs(count, true, &mut runs)
            {
                return Ok(runs);
            }
            let comes_back = self.reclaim.waiting() > 0
                || self.delta_entries.get() > 0
                || self.space.borrow().held() > 0
                || !self.settled();
            if !comes_back {
                break;
            }
            self.checkpoint().await?;
            self.flush().await?;
            self.reclaim_ready();
        }
        Err(StoreError::Full)
    }

    /// Whether so many blocks leave half of the reserve.
    fn reserve_has(&self, count: u32) -> bool {
        let space = self.space.borrow();
        space.free() > space.reserve() / 2 + u64::from(count)
    }

    /// Whether no deletion is under way.
    pub(super) fn settled(&self) -> bool {
        self.catalogue.borrow().settled()
    }

    /// All of it or nothing, in few enough runs for one record; `runs` is empty before. False: there is not so much.
    pub(super) fn take_runs(&self, count: u32, reserved: bool, runs: &mut Vec<Run>) -> bool {
        let mut left = count;
        {
            let mut space = self.space.borrow_mut();
            while left > 0 && runs.len() < RUNS_MAX {
                let run = if reserved {
                    space.allocate_reserved(left)
                } else {
                    space.allocate(left)
                };
                let Ok(run) = run else { break };
                left -= run.blocks;
                runs.push(run);
            }
        }
        if left > 0 {
            self.give_back(runs.drain(..));
        }
        left == 0
    }

    /// An erasure: a record and an entry of the delta, however many blocks it covers (S5).
    pub(super) async fn erase(
        self: &Rc<Self>,
        lane: &Rc<LaneState>,
        blocks: Range<u64>,
    ) -> Result<(), StoreError> {
        if blocks.is_empty() {
            return Ok(());
        }
        self.room_for_mark(1).await?;
        if lane.void.get() {
            return Err(StoreError::Unknown);
        }
        let whole = std::slice::from_ref(&blocks);
        let how = (Given::No, whole);
        let admitted = lane.admit(1);
        self.mark_as(lane, admitted, blocks.clone(), &Mark::Erase, how)
            .await
    }

    /// Blocks of the drive now.
    pub(super) fn space_now(&self) -> Space {
        let layout = self.superblock.borrow().layout;
        let space = self.space.borrow();
        Space {
            total: layout.blocks(),
            fixed: layout.fixed_blocks(),
            used: layout.usable_blocks() - space.free(),
            pages: self.superblock.borrow().pages,
            free: space.free(),
            reserve: space.reserve(),
        }
    }

    pub(super) async fn grow(self: &Rc<Self>) -> Result<(), StoreError> {
        let bytes = self.device.size_bytes();
        let grown = self.superblock.borrow().layout.grown(bytes);
        let layout = grown.map_err(|_| StoreError::Io(crate::device::IoError::OutOfRange))?;
        if layout == self.superblock.borrow().layout {
            return Ok(());
        }
        // The group that gets longer must be in memory.
        let last = GroupId(self.superblock.borrow().layout.groups() - 1);
        if !self.space.borrow().is_loaded(last) {
            self.load_group(last).await?;
        }
        let grown = self.space.borrow_mut().grow(layout);
        assert!(grown.is_ok(), "the last group is in memory");
        self.superblock.borrow_mut().layout = layout;
        self.low_on_groups.notify();
        self.checkpoint().await
    }

    /// Ends the store's tasks; nothing is written any more.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.closed.set(true);
        self.cache.close();
        self.wake_flushers();
        self.wake_checkpointers();
        self.low_on_groups.notify();
        self.writer.queued.notify();
        self.journal.appended.notify();
        self.room.notify_all();
    }

    /// See [`super::Store::check`].
    pub(super) fn check(&self) {
        self.space.borrow().check();
        let lanes = self.lanes.borrow();
        let entries: usize = lanes.values().map(|l| l.entries()).sum();
        assert_eq!(entries, self.delta_entries.get(), "entries of the delta");
        let mut seen = std::collections::BTreeSet::new();
        for lane in lanes.values() {
            lane.each_layer(|layer| {
                for block in layer.blocks() {
                    assert!(
                        seen.insert(block),
                        "two entries of the delta have {block:?}"
                    );
                }
            });
        }
    }
}
