//! A checkpoint: the delta becomes the map, and the journal's tail moves (`docs/store-format.md` §10).
//!
//! The order of the steps is what makes a crash harmless: nothing that the present superblock reaches is overwritten before the next one
//! is on stable media, and nothing that the next one reaches is missing when it is.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::super::map::{
    ChildEntry, GivenUp, MapError, MergeContext, RecordKind, Root, give_up, merge, write_catalogue,
};
use super::super::superblock;
use super::super::types::{
    BLOCK_BYTES, CatalogueHandle, CheckpointNumber, Generation, LaneSequence, PhysicalBlock, Stamp,
};
use super::catalogue::Catalogue;
use super::lane::{LaneState, SharedLayer};
use super::unsettled::FrozenReplica;
use super::{Inner, StoreError};
use crate::reactor::Notify;

/// Layers of one lane from which on a checkpoint begins.
const LAYERS_MAX: usize = 8;
/// Leaves that deletions walk in one checkpoint.
const WALK_LEAVES: u32 = 4096;
/// Between checkpoints that are only for deletions.
const WALK_PAUSE: Duration = Duration::from_millis(20);

/// The checkpointer's part of a store.
#[derive(Debug, Default)]
pub struct Checkpointer {
    begun: Cell<u64>,
    done: Cell<u64>,
    wanted: Cell<u64>,
    ask: Notify,
    finished: Notify,
    /// A deletion is not walked to its end.
    deleting: Cell<bool>,
    /// A checkpoint failed: what is in memory does not fit the drive any more, so nothing is written.
    pub failed: Cell<Option<StoreError>>,
    /// Checkpoints since the drive was opened.
    pub count: Cell<u64>,
}

/// What a checkpoint merges of a lane.
struct FrozenLane {
    lane: Rc<LaneState>,
    layers: Vec<SharedLayer>,
    sequence: LaneSequence,
    stamp: Stamp,
    entries: usize,
    root: Root,
}

impl Inner {
    /// A checkpoint that begins after this call is done when it returns.
    pub(super) async fn checkpoint(&self) -> Result<(), StoreError> {
        let number = self.ask_for_checkpoint();
        while self.checkpointer.done.get() < number {
            if let Some(e) = self.checkpointer.failed.get() {
                return Err(e);
            }
            if self.stopped.get() {
                return Err(StoreError::Closed);
            }
            self.checkpointer.finished.notified().await;
        }
        Ok(())
    }

    /// Asks for a checkpoint; the answer is its number.
    pub(super) fn ask_for_checkpoint(&self) -> u64 {
        let c = &self.checkpointer;
        let number = c.begun.get() + 1;
        c.wanted.set(c.wanted.get().max(number));
        c.ask.notify();
        number
    }

    /// Wakes whoever waits for a checkpoint: it will not come.
    pub(super) fn wake_checkpointers(&self) {
        self.checkpointer.finished.notify_all();
        self.checkpointer.ask.notify();
    }

    /// Something was deleted: checkpoints go on until it is walked.
    pub(super) fn ask_to_delete(&self) {
        self.checkpointer.deleting.set(true);
        self.checkpointer.ask.notify();
    }

    /// Asks for a checkpoint if the delta, the journal or a lane says so.
    pub(super) fn look_at_limits(&self) {
        let c = &self.checkpointer;
        if c.wanted.get() > c.begun.get() {
            return;
        }
        let much = self.delta_new() >= self.delta_enough() || self.scatter.enough();
        if much || self.journal.wants_checkpoint() || self.deepest.get() >= LAYERS_MAX {
            self.ask_for_checkpoint();
        }
    }

    /// Entries that came since the last freeze.
    fn delta_new(&self) -> u64 {
        let entries = self.delta_entries.get();
        entries.saturating_sub(self.delta_frozen.get()) as u64
    }

    /// How many of them a checkpoint is worth. Nobody should wait for it: what came while the last one ran, and half as much again, must find
    /// room besides. Beyond that, the more it merges at once the fewer pages are written for each.
    fn delta_enough(&self) -> u64 {
        // In memory it takes no time to speak of.
        if self.in_memory() {
            return self.delta_max / 4 * 3;
        }
        let meanwhile = self.delta_meanwhile.get() as u64 * 3 / 2;
        let most = self.delta_max / 8 * 7;
        self.delta_max
            .saturating_sub(meanwhile)
            .clamp(self.delta_max / 2, most)
    }

    /// Does checkpoints as they are asked for.
    pub(super) async fn run_checkpointer(self: Rc<Self>) {
        while !self.stopped.get() {
            let c = &self.checkpointer;
            if c.failed.get().is_some() {
                c.ask.notified().await;
                continue;
            }
            if c.wanted.get() <= c.begun.get() {
                if !c.deleting.get() {
                    c.ask.notified().await;
                    continue;
                }
                let _ = self.handle.timeout(WALK_PAUSE, c.ask.notified()).await;
                if self.stopped.get() {
                    return;
                }
            }
            let number = c.begun.get() + 1;
            c.begun.set(number);
            match self.checkpoint_once().await {
                Ok(()) => {
                    c.done.set(number);
                    c.count.set(c.count.get() + 1);
                }
                Err(e) => {
                    tracing::error!(drive = %self.superblock.borrow().drive, "a checkpoint failed, and the drive takes no more writes: {e}");
                    c.failed.set(Some(e));
                    self.room.notify_all();
                }
            }
            c.finished.notify_all();
            self.room.notify_all();
        }
    }

    async fn checkpoint_once(self: &Rc<Self>) -> Result<(), StoreError> {
        let number = CheckpointNumber(self.superblock.borrow().checkpoint.0 + 1);
        // 1: from here on, records go to new layers and to journal blocks from `cut` on.
        let cut = self.journal.next_sequence();
        self.delta_frozen.set(self.delta_entries.get());
        let mut frozen = self.freeze();
        let replicas = self.freeze_replicas();
        self.scatter.freeze();
        let mut catalogue = {
            let mut present = self.catalogue.borrow_mut();
            let copy = present.for_checkpoint();
            present.take_dirty();
            copy
        };
        self.journal.froze(number);
        self.wait_for_frozen(&frozen).await;
        // 2: what is copied must be durable then. Data needs no flush of its own: that of step 5 is as good before the superblock.
        if !replicas.iter().all(FrozenReplica::is_settled) {
            self.flush().await?;
            self.copy_unsettled(&replicas).await?;
        }
        self.pages.begin(number);
        // 3
        for lane in &mut frozen {
            self.merge_lane(lane, &mut catalogue).await?;
        }
        for replica in &replicas {
            let settled = replica.settled();
            if catalogue
                .get(replica.handle())
                .is_some_and(|r| r.settled != settled)
            {
                catalogue.change(replica.handle(), |r| r.settled = settled);
            }
        }
        let removed = self.walk_deletions(&mut catalogue).await?;
        // 4
        self.pages.at_work_for.set(CatalogueHandle(0));
        let (root, depth) = self.write_catalogue(&mut catalogue).await?;
        self.pages.settle().await?;
        self.write_space(number).await?;
        // 5: pages before the superblock that refers to them.
        #[cfg(planted)]
        let skip = super::super::planted::is(super::super::planted::Bug::CheckpointWithoutFlush);
        #[cfg(not(planted))]
        let skip = false;
        if !skip {
            self.flush().await?;
        }
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::TailMovesEarly) {
            self.journal.set_tail(cut);
        }
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::ReuseBeforeCommit) {
            let freed = self.space.borrow_mut().take_freed();
            self.reclaim.committed(freed);
            self.reclaim_ready();
        }
        // What is not settled must be found again: then the journal is not empty.
        let clean = self.closing.get() && replicas.iter().all(FrozenReplica::is_settled);
        self.commit_superblock(number, (cut, clean), root, depth, &catalogue)
            .await?;
        // 6: no await from here on: readers see the old state or the new one.
        self.tell_lost(&self.pages.lost());
        let settled = self.settled_committed(&replicas);
        self.adopt(frozen, catalogue, &removed, settled);
        self.journal.set_tail(cut);
        // Records may wait for the room that this made.
        self.journal.appended.notify();
        Ok(())
    }

    /// Cuts every lane that has something new.
    fn freeze(&self) -> Vec<FrozenLane> {
        let mut frozen = Vec::new();
        for lane in self.lanes.borrow().values() {
            let (empty, generation) = {
                let newest = lane.newest();
                let newest = newest.borrow();
                (newest.is_empty(), newest.generation)
            };
            if !empty {
                lane.cut(generation);
            }
            let layers = lane.frozen();
            if layers.is_empty() {
                continue;
            }
            frozen.push(FrozenLane {
                root: lane.root.get(),
                sequence: lane.sequence(),
                stamp: lane.stamp(),
                entries: 0,
                lane: lane.clone(),
                layers,
            });
        }
        frozen
    }

    /// Records that had a sequence at the freeze are complete.
    async fn wait_for_frozen(&self, frozen: &[FrozenLane]) {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::FreezeLosesInFlight) {
            return;
        }
        for layer in frozen.iter().flat_map(|f| &f.layers) {
            while layer.borrow().in_flight > 0 {
                self.completed.notified().await;
            }
        }
    }

    /// Merges a lane's layers, the oldest first, and gives snapshots between them their roots.
    async fn merge_lane(
        &self,
        frozen: &mut FrozenLane,
        catalogue: &mut Catalogue,
    ) -> Result<(), StoreError> {
        let handle = frozen.lane.handle;
        self.pages.at_work_for.set(handle);
        let lost_before = self.pages.lost_count();
        for (n, layer) in frozen.layers.iter().enumerate() {
            let rest = &frozen.layers[n..];
            let owner = rest.iter().find_map(|l| l.borrow().closes);
            let owner = owner.unwrap_or(handle);
            let (generation, closes, entries) = {
                let layer = layer.borrow();
                (layer.generation, layer.closes, layer.len())
            };
            let view = &*catalogue;
            let own = move |last_leaf| view.bound(owner, last_leaf);
            let context = MergeContext {
                handle,
                generation,
                own: &own,
            };
            frozen.root = merge(&self.pages, &frozen.root, layer, &context).await?;
            frozen.entries += entries;
            let lossy = self.pages.lost_count() > lost_before;
            if let Some(snapshot) = closes {
                set_root(catalogue, snapshot, &frozen.root);
                catalogue.change(snapshot, |r| r.lossy |= lossy);
            }
        }
        set_root(catalogue, handle, &frozen.root);
        let lossy = self.pages.lost_count() > lost_before;
        let (sequence, stamp) = (frozen.sequence, frozen.stamp);
        catalogue.change(handle, |r| {
            r.sequence = sequence;
            r.epoch = r.epoch.max(stamp.epoch);
            r.lossy |= lossy;
        });
        Ok(())
    }

    /// A step of every deletion; the answer is what is gone.
    async fn walk_deletions(
        &self,
        catalogue: &mut Catalogue,
    ) -> Result<Vec<CatalogueHandle>, StoreError> {
        let mut left = WALK_LEAVES;
        let mut removed = Vec::new();
        let mut more = false;
        let going: Vec<CatalogueHandle> = catalogue.going().map(|(h, _)| h).collect();
        for handle in going {
            if self.is_pinned(catalogue, handle) {
                continue;
            }
            let Some(record) = catalogue.get(handle).cloned() else {
                continue;
            };
            let children = catalogue.children(handle);
            let mut record = record;
            if record.kind == RecordKind::Hidden && children.len() <= 1 {
                record.kind = RecordKind::Deleting;
                record.walked = 0;
                catalogue.change(handle, |r| {
                    r.kind = RecordKind::Deleting;
                    r.walked = 0;
                });
            }
            if record.kind != RecordKind::Deleting {
                continue;
            }
            let parent = catalogue.get(record.parent);
            // Two that are neighbours are walked one after the other: what one passes on, the other must not have passed already.
            let begun = record.walked > 0;
            let child_begun = children.iter().any(|c| {
                let child = catalogue.get(*c);
                child.is_some_and(|c| c.kind == RecordKind::Deleting && c.walked > 0)
            });
            let parent_goes = parent.is_some_and(|p| p.kind == RecordKind::Deleting);
            let waits = child_begun || !begun && parent_goes;
            if waits || left == 0 || children.len() > 1 {
                more |= children.len() <= 1;
                continue;
            }
            self.pages.at_work_for.set(handle);
            let own = parent.map_or(Generation(0), |p| p.generation);
            let child = children.first().and_then(|c| catalogue.get(*c));
            let child = child.map(|c| c.root());
            let step: GivenUp = give_up(
                &self.pages,
                &record.root(),
                own,
                child.as_ref(),
                record.walked,
                left,
            )
            .await?;
            left = left.saturating_sub(step.leaves);
            match step.next {
                Some(next) => {
                    more = true;
                    catalogue.change(handle, |r| r.walked = next);
                }
                None => {
                    catalogue.remove(handle);
                    removed.push(handle);
                    // What waited for this one goes on in the next checkpoint.
                    more = true;
                }
            }
        }
        self.checkpointer.deleting.set(more);
        Ok(removed)
    }

    /// Whether a deletion waits until a move has ended: of a snapshot that is moved, and of what waits for it.
    fn is_pinned(&self, catalogue: &Catalogue, handle: CatalogueHandle) -> bool {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::PinsIgnored) {
            return false;
        }
        let pinned = self.pinned.borrow();
        let mut at = handle;
        while !pinned.contains(&at) {
            let parent = catalogue.get(at).map(|r| r.parent);
            let waits_for = parent.and_then(|p| Some((p, catalogue.get(p)?)));
            match waits_for {
                Some((parent, record)) if record.kind == RecordKind::Deleting => at = parent,
                _ => return false,
            }
        }
        true
    }

    async fn write_catalogue(
        &self,
        catalogue: &mut Catalogue,
    ) -> Result<(ChildEntry, u32), StoreError> {
        let dirty = catalogue.take_dirty();
        let all = |leaf| catalogue.leaf(leaf);
        let (root, depth) = {
            let superblock = self.superblock.borrow();
            let root = ChildEntry::decode(&superblock.catalogue_root);
            (root.unwrap_or(ChildEntry::NONE), superblock.catalogue_depth)
        };
        Ok(write_catalogue(&self.pages, &root, depth, &dirty, &all).await?)
    }

    /// Bitmaps and table pages that changed, into their other copies.
    async fn write_space(&self, number: CheckpointNumber) -> Result<(), StoreError> {
        self.load_needed_groups().await?;
        let groups = self.space.borrow_mut().begin_write();
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        for group in groups {
            let place = self
                .space
                .borrow_mut()
                .bitmap_to_write(group, &mut bytes[..]);
            self.pages.write_raw(place, &bytes).await?;
        }
        let pages = self.space.borrow().table_pages_to_write();
        for page in pages {
            let place = self
                .space
                .borrow_mut()
                .table_page_to_write(page, number, &mut bytes[..]);
            self.pages.write_raw(place, &bytes).await?;
        }
        Ok(())
    }

    /// Groups that something was freed in, and that are not in memory.
    async fn load_needed_groups(&self) -> Result<(), StoreError> {
        loop {
            let needed = self.space.borrow().unloaded_needed();
            if needed.is_empty() {
                return Ok(());
            }
            for group in needed {
                self.load_group(group).await?;
            }
        }
    }

    async fn commit_superblock(
        &self,
        number: CheckpointNumber,
        (cut, clean): (u64, bool),
        root: ChildEntry,
        depth: u32,
        catalogue: &Catalogue,
    ) -> Result<(), StoreError> {
        // Before the superblock is looked at: promises are committed too.
        let mut buffer = self.superblock_buffer.take().await;
        let mut next = self.superblock.borrow().clone();
        next.checkpoint = number;
        next.journal_first = cut;
        next.journal_generation = next.mount_generation;
        root.encode(&mut next.catalogue_root);
        next.catalogue_depth = depth;
        next.next_handle = CatalogueHandle(catalogue.next_handle());
        next.next_generation = Generation(catalogue.next_generation());
        next.free_blocks = self.space.borrow().free_after();
        next.table = self.space.borrow().table_entries();
        next.clean = clean;
        next.pages = self.pages.count_after(next.pages);
        next.lost_pages += self.pages.lost_count() as u64;
        let (back, done) = superblock::commit(&self.device, &mut next, buffer.lend()).await;
        buffer.back(back);
        if let Err(e) = done {
            self.superblock.borrow_mut().sequence = next.sequence;
            return Err(e.into());
        }
        self.committed_layout.set(next.layout);
        let mut present = self.superblock.borrow_mut();
        // What was changed meanwhile is for the next one.
        next.members = present.members;
        next.state = present.state;
        next.layout = present.layout;
        *present = next;
        Ok(())
    }

    /// The new state is the present one.
    fn adopt(
        &self,
        frozen: Vec<FrozenLane>,
        catalogue: Catalogue,
        removed: &[CatalogueHandle],
        mut settled: Vec<PhysicalBlock>,
    ) {
        let mut freed = {
            let mut space = self.space.borrow_mut();
            space.committed();
            space.take_freed()
        };
        self.kept.park(&mut freed);
        self.let_go_of(&mut settled);
        self.reclaim.committed(freed);
        self.reclaim_ready();
        let mut present = self.catalogue.borrow_mut();
        // What changed since the freeze (puts, children of what was removed) stays; what a checkpoint says is taken over. Leaves that
        // are still the same have nothing new.
        let before = present.for_checkpoint();
        for (handle, record) in catalogue.changed_since(&before) {
            present.take_over(handle, record);
        }
        let mut lanes = self.lanes.borrow_mut();
        for &handle in removed {
            present.remove(handle);
            lanes.remove(&handle);
        }
        for f in frozen {
            for layer in &f.layers {
                if let Some(snapshot) = layer.borrow().closes {
                    self.unmerged.borrow_mut().remove(&snapshot);
                }
            }
            self.delta_grew(-(f.entries as isize));
            f.lane.merged(f.layers.len(), f.root);
        }
        self.delta_frozen.set(0);
        self.delta_meanwhile.set(self.delta_entries.get());
        self.scatter.merged();
        let deepest = lanes.values().map(|l| l.depth()).max();
        self.deepest.set(deepest.unwrap_or(1));
    }
}

fn set_root(catalogue: &mut Catalogue, handle: CatalogueHandle, root: &Root) {
    catalogue.change(handle, |r| r.set_root(root));
}

impl From<MapError> for StoreError {
    fn from(e: MapError) -> Self {
        match e {
            MapError::NoSpace => Self::Full,
            MapError::Io(e) => Self::Io(e),
            MapError::Lost => Self::Lost,
            MapError::Checksum { at, .. }
            | MapError::Page { at, .. }
            | MapError::Contradiction { at } => Self::Page { at },
            MapError::Depth { .. } => Self::Page {
                at: super::super::types::PhysicalBlock(0),
            },
        }
    }
}
