//! What a replica's lane holds above settled: whole records, with the blocks that newer ones superseded (`docs/store-format.md` §16).
//!
//! A record is on its lane's list from its admission until a journal block, or a superblock, that says *settled* is written. Blocks of
//! listed records are *kept*: what supersedes one parks it, and it is given back (S1 still to come) when its record leaves the list. So a
//! crash finds the blocks of each record that it finds above settled.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::super::VolumeId;
use super::super::journal::{Given, Record, without};
use super::super::superblock::ReplicaState;
use super::super::types::{CatalogueHandle, PhysicalBlock, Stamp};
use super::lane::LaneState;
use super::{Inner, StoreError};
use crate::reactor::Nanos;

/// Most records of a lane's list.
pub const RECORDS_MAX: usize = 65_536;
/// Ranges that a lane which is copied to remembers as erased.
const ERASED_MAX: usize = 65_536;
/// What is settled goes to the journal once in this time.
const TELL_AFTER: Duration = Duration::from_millis(100);

/// A record on a list.
#[derive(Debug)]
pub struct Listed {
    /// As it is in the journal.
    pub record: Record,
    /// The highest stamp that it uses.
    pub last: Stamp,
    /// Its blocks.
    pub blocks: Range<u64>,
    /// Bytes of it in the journal.
    pub bytes: u64,
    /// It could not be written.
    pub failed: Cell<bool>,
}

impl Listed {
    /// For a write, damaged blocks or a tombstone.
    ///
    /// # Panics
    /// If it is another record.
    pub fn new(record: Record) -> Self {
        let (stamp, first, blocks, used) = match &record {
            Record::Write(w) => {
                let blocks = w.crcs.len() as u64;
                (w.stamp, w.first.0, blocks, blocks)
            }
            Record::Tombstone(t) => (t.stamp, t.first.0, t.blocks, 1),
            _ => unreachable!("only records of blocks are listed"),
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        Self {
            record,
            last: Stamp {
                epoch: stamp.epoch,
                seq: stamp.seq + used - 1,
            },
            blocks: first..first + blocks,
            bytes: bytes.len() as u64,
            failed: Cell::new(false),
        }
    }

    /// Of its first block.
    pub fn stamp(&self) -> Stamp {
        match &self.record {
            Record::Write(w) => w.stamp,
            Record::Tombstone(t) => t.stamp,
            _ => unreachable!("only records of blocks are listed"),
        }
    }

    /// The blocks of the drive that it has.
    pub fn places(&self) -> impl Iterator<Item = PhysicalBlock> {
        let runs = match &self.record {
            Record::Write(w) => w.runs.as_slice(),
            _ => &[],
        };
        let blocks = runs
            .iter()
            .flat_map(|r| r.first.0..r.first.0 + u64::from(r.blocks));
        blocks.map(PhysicalBlock)
    }

    /// When it was admitted, the list had nothing with a higher stamp.
    pub fn was_newest(&self) -> bool {
        let given = match &self.record {
            Record::Write(w) => w.given,
            Record::Tombstone(t) => t.given,
            _ => unreachable!("only records of blocks are listed"),
        };
        given == Given::Newest
    }

    fn is_tombstone(&self) -> bool {
        matches!(self.record, Record::Tombstone(_))
    }
}

/// A replica's lane, beside what any lane is.
#[derive(Debug)]
pub struct ReplicaLane {
    /// By their first stamps.
    list: RefCell<BTreeMap<Stamp, Rc<Listed>>>,
    /// Stamps of records that are being applied.
    pub entering: RefCell<BTreeSet<Stamp>>,
    settled: Cell<Stamp>,
    /// What the journal, or the lane's record, says of it; in the journal it may wait for its block still.
    said: Cell<Stamp>,
    /// When it was said to the journal last.
    told: Cell<Option<Nanos>>,
    /// While it is copied to: what was erased and is settled, with the highest stamp of it. Copies that were read before do not bring it back.
    erased: RefCell<BTreeMap<u64, (u64, Stamp)>>,
    /// While it is copied to: no copy that comes has anything above it, so of what is erased at or below it nothing is remembered.
    copied_from: Cell<Stamp>,
}

impl ReplicaLane {
    /// An empty list.
    pub fn new(settled: Stamp) -> Self {
        Self {
            list: RefCell::default(),
            entering: RefCell::default(),
            settled: Cell::new(settled),
            said: Cell::new(settled),
            told: Cell::new(None),
            erased: RefCell::default(),
            copied_from: Cell::new(Stamp { epoch: 0, seq: 0 }),
        }
    }

    /// Everything up to it is stable on all members, as far as was told.
    pub fn settled(&self) -> Stamp {
        self.settled.get()
    }

    /// Opening: the journal says more.
    pub fn raise_settled(&self, stamp: Stamp) {
        self.settled.set(self.settled.get().max(stamp));
        self.said.set(self.said.get().max(stamp));
    }

    /// A record of the list.
    pub fn get(&self, stamp: Stamp) -> Option<Rc<Listed>> {
        self.list.borrow().get(&stamp).cloned()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.list.borrow().len()
    }

    /// Records above settled, in the order of their stamps.
    pub fn above_settled(&self) -> Vec<Rc<Listed>> {
        let settled = self.settled.get();
        let list = self.list.borrow();
        let above = list
            .values()
            .filter(|r| r.last > settled && !r.failed.get());
        above.cloned().collect()
    }

    /// How a record of these blocks comes, and which of them it replaces if not all.
    pub fn comes(&self, stamp: Stamp, blocks: &Range<u64>) -> (Given, Option<Vec<Range<u64>>>) {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::OlderStampReplaces) {
            return (Given::Newest, None);
        }
        match self.replaces(stamp, blocks) {
            None => (Given::Newest, None),
            parts => (Given::ByStamp, parts),
        }
    }

    /// Listed records over these blocks, with stamps above this one, that are being applied.
    pub fn entering_above(&self, stamp: Stamp, blocks: &Range<u64>) -> Vec<Stamp> {
        let entering = self.entering.borrow();
        let list = self.list.borrow();
        let above = entering.range((Excluded(stamp), Unbounded));
        let over = above.filter(|s| {
            let record = list.get(s);
            record.is_some_and(|r| r.blocks.start < blocks.end && blocks.start < r.blocks.end)
        });
        over.copied().collect()
    }

    /// The parts of these blocks that no record with a stamp above this one is over; `None`: there is no such record.
    fn replaces(&self, stamp: Stamp, blocks: &Range<u64>) -> Option<Vec<Range<u64>>> {
        let list = self.list.borrow();
        let mut above = list.range((Excluded(stamp), Unbounded)).peekable();
        above.peek()?;
        Some(without(
            blocks.clone(),
            above.map(|(_, r)| r.blocks.clone()),
        ))
    }

    /// Erasures that touch these blocks and are not settled, or are remembered: where, and under which stamps. While it is copied to those that are settled
    /// stay listed until they are remembered: `copied`.
    pub fn erasures(&self, blocks: &Range<u64>, copied: bool) -> Vec<(Range<u64>, Stamp)> {
        let touches = |r: &Range<u64>| r.start < blocks.end && blocks.start < r.end;
        let settled = self.settled.get();
        let list = self.list.borrow();
        let listed = list.values().filter(|r| {
            let kept = copied || r.last > settled;
            r.is_tombstone() && kept && touches(&r.blocks) && !r.failed.get()
        });
        let mut all: Vec<_> = listed.map(|r| (r.blocks.clone(), r.stamp())).collect();
        let erased = self.erased.borrow();
        let remembered = erased.range(..blocks.end).rev();
        let remembered = remembered.map(|(&start, &(end, stamp))| (start..end, stamp));
        all.extend(remembered.take_while(|(r, _)| touches(r)));
        all
    }

    /// The parts of these blocks that no listed record with a stamp above this one is over.
    pub fn below(&self, stamp: Stamp, blocks: &Range<u64>) -> Vec<Range<u64>> {
        let parts = self.replaces(stamp, blocks);
        parts.unwrap_or_else(|| Vec::from([blocks.clone()]))
    }

    /// Remembers an erasure that is settled while the lane is copied to; of those before, none has a higher stamp.
    fn keep_erased(&self, blocks: &Range<u64>, stamp: Stamp) {
        let mut erased = self.erased.borrow_mut();
        while let Some((&start, &(end, older))) = erased.range(..blocks.end).next_back()
            && end > blocks.start
        {
            erased.remove(&start);
            if start < blocks.start {
                erased.insert(start, (blocks.start, older));
            }
            if end > blocks.end {
                erased.insert(blocks.end, (end, older));
            }
        }
        erased.insert(blocks.start, (blocks.end, stamp));
    }

    /// Whether it remembers as many erasures as it may.
    fn remembers_enough(&self, times: usize) -> bool {
        self.erased.borrow().len() + self.list.borrow().len() >= times * ERASED_MAX
    }
}

/// Blocks of listed records, of all lanes of a drive, and what is told of them.
#[derive(Debug, Default)]
pub struct Kept {
    /// Whether it is superseded.
    blocks: RefCell<BTreeMap<PhysicalBlock, bool>>,
    /// Bytes of the records, and of those that the checkpoint under way copies.
    bytes: Cell<u64>,
    copying: Cell<u64>,
    /// What is settled of a lane when so many records of the journal are written.
    told: RefCell<VecDeque<(u64, Rc<LaneState>, Stamp)>>,
}

impl Kept {
    /// Blocks that were superseded; those that are kept are taken out.
    pub fn park(&self, freed: &mut Vec<PhysicalBlock>) {
        let mut blocks = self.blocks.borrow_mut();
        if blocks.is_empty() {
            return;
        }
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::SupersededNotKept) {
            for block in freed {
                blocks.remove(block);
            }
            return;
        }
        freed.retain(|block| match blocks.get_mut(block) {
            Some(parked) => {
                *parked = true;
                false
            }
            None => true,
        });
    }

    /// Opening: a block of a listed record is in use by nothing else.
    pub fn parked(&self, block: PhysicalBlock) {
        self.blocks.borrow_mut().insert(block, true);
    }
}

/// What a checkpoint found of a replica's lane when it froze.
#[derive(Debug)]
pub struct FrozenReplica {
    lane: Rc<LaneState>,
    settled: Stamp,
    list: Vec<Rc<Listed>>,
}

impl FrozenReplica {
    /// Its lane.
    pub fn handle(&self) -> CatalogueHandle {
        self.lane.handle
    }

    /// What was settled.
    pub fn settled(&self) -> Stamp {
        self.settled
    }

    /// Whether anything is above that.
    pub fn is_settled(&self) -> bool {
        self.list.is_empty()
    }
}

impl Inner {
    /// Puts a record on its lane's list; its blocks are kept.
    pub(super) fn list(&self, replica: &ReplicaLane, listed: &Rc<Listed>) {
        let mut blocks = self.kept.blocks.borrow_mut();
        for place in listed.places() {
            blocks.insert(place, false);
        }
        drop(blocks);
        replica
            .list
            .borrow_mut()
            .insert(listed.stamp(), listed.clone());
        self.kept.bytes.set(self.kept.bytes.get() + listed.bytes);
        self.keep_room();
    }

    fn keep_room(&self) {
        let bytes = self.kept.bytes.get() + self.kept.copying.get();
        self.journal.keep_room(bytes);
    }

    /// Whether the lists have room for a record of so many bytes; of one that is `rolled` forward by a takeover, as much again: what other replicas list and this
    /// one lacks must not find the lists full of what waits for this very takeover.
    pub(super) fn can_list(&self, replica: &ReplicaLane, bytes: u64, rolled: bool) -> bool {
        let times = if rolled { 2 } else { 1 };
        replica.len() < times * RECORDS_MAX
            && !replica.remembers_enough(times)
            && self.kept.bytes.get() + bytes <= times as u64 * self.journal.unsettled_max()
    }

    /// Whether a volume's replica is being copied to.
    pub(super) fn is_resyncing(&self, volume: VolumeId) -> bool {
        let superblock = self.superblock.borrow();
        let at = superblock
            .replicas
            .binary_search_by_key(&volume, |r| r.volume);
        at.is_ok_and(|at| {
            let state = superblock.replicas[at].state;
            matches!(state, ReplicaState::Resyncing | ReplicaState::Level)
        })
    }

    /// The lane is copied to from this moment on: what it has at or below `s0` is replaced by copies.
    pub(super) fn copied_from(&self, lane: &Rc<LaneState>, s0: Stamp) {
        let Some(replica) = &lane.replica else { return };
        replica.copied_from.set(s0);
        let mut erased = replica.erased.borrow_mut();
        erased.retain(|_, (_, stamp)| *stamp > s0);
        drop(erased);
        self.settle(lane, s0);
    }

    /// Everything up to `stamp` is stable on all members of the lane's set.
    pub(super) fn settle(&self, lane: &Rc<LaneState>, stamp: Stamp) {
        let Some(replica) = &lane.replica else { return };
        if stamp <= replica.settled.get() {
            return;
        }
        replica.settled.set(stamp);
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::SettledNotWritten) {
            let mut freed = Vec::new();
            self.unlist(lane, stamp, &mut freed);
            self.reclaim.superseded(&mut freed);
            return;
        }
        let now = self.handle.now();
        let due = replica.told.get().is_none_or(|at| at + TELL_AFTER <= now);
        if due && self.journal_has_room(1) && !self.closed.get() {
            self.say_settled(lane, replica);
        }
    }

    /// Puts what is settled of a lane into the journal, where there is room for it.
    fn say_settled(&self, lane: &Rc<LaneState>, replica: &ReplicaLane) {
        let stamp = replica.settled.get();
        replica.told.set(Some(self.handle.now()));
        replica.said.set(stamp);
        self.journal.append_settled(lane.handle, stamp);
        let mut told = self.kept.told.borrow_mut();
        told.push_back((self.journal.records(), lane.clone(), stamp));
    }

    /// Writes to the journal what is settled of these lanes, as far as it does not say so yet: a flush that is issued afterwards makes it durable.
    pub(super) async fn write_settled(
        self: &Rc<Self>,
        lanes: impl Iterator<Item = &Rc<LaneState>>,
    ) -> Result<(), StoreError> {
        for lane in lanes {
            let Some(replica) = &lane.replica else {
                continue;
            };
            #[cfg(planted)]
            if super::super::planted::is(super::super::planted::Bug::SettledNotWritten) {
                continue;
            }
            // Looked at again after each wait: a checkpoint, which makes the room, says it too.
            while replica.said.get() < replica.settled.get() && !lane.void.get() {
                if self.closed.get() {
                    return Err(StoreError::Closed);
                }
                if self.journal_has_room(1) {
                    self.say_settled(lane, replica);
                    break;
                }
                if self.failed() {
                    return Err(self.failure());
                }
                self.ask_for_checkpoint();
                self.room.notified().await;
            }
        }
        if self.kept.told.borrow().is_empty() {
            return Ok(());
        }
        let ticket = self.writer.meta_tickets.issue();
        self.commit_records(ticket.number());
        ticket.wait().await
    }

    /// Records of the journal are written: of those that say what is settled, the lists lose what they no longer need.
    pub(super) fn look_at_settled(&self) {
        if self.kept.told.borrow().is_empty() || self.journal.failed().is_some() {
            return;
        }
        let done = self.journal.records_done();
        let mut freed = Vec::new();
        loop {
            let first = {
                let mut told = self.kept.told.borrow_mut();
                match told.front() {
                    Some((records, ..)) if *records <= done => told.pop_front(),
                    _ => break,
                }
            };
            let (_, lane, stamp) = first.expect("looked at");
            self.unlist(&lane, stamp, &mut freed);
        }
        // A flush that is issued from now on makes durable that they are settled.
        self.let_go_of(&mut freed);
    }

    /// Blocks that were superseded before, and are needed no longer: whatever superseded them may be younger than the last flush.
    pub(super) fn let_go_of(&self, freed: &mut Vec<PhysicalBlock>) {
        self.reclaim.superseded(freed);
        if !self.volatile {
            self.reclaim_flushed();
        }
    }

    /// Takes what is settled off a lane's list. What was superseded of it goes to `freed`.
    fn unlist(&self, lane: &LaneState, upto: Stamp, freed: &mut Vec<PhysicalBlock>) {
        let Some(replica) = &lane.replica else { return };
        let resyncing = self.is_resyncing(lane.volume);
        if !resyncing {
            replica.erased.borrow_mut().clear();
        }
        let mut list = replica.list.borrow_mut();
        while let Some((&stamp, listed)) = list.first_key_value()
            && listed.last <= upto
            && !replica.entering.borrow().contains(&stamp)
        {
            let remembered = listed.is_tombstone() && stamp > replica.copied_from.get();
            if resyncing && remembered {
                replica.keep_erased(&listed.blocks, stamp);
            }
            let listed = listed.clone();
            list.remove(&stamp);
            self.let_go(&listed, freed);
        }
        drop(list);
        self.keep_room();
    }

    fn let_go(&self, listed: &Listed, freed: &mut Vec<PhysicalBlock>) {
        self.kept.bytes.set(self.kept.bytes.get() - listed.bytes);
        let mut blocks = self.kept.blocks.borrow_mut();
        for place in listed.places() {
            if blocks.remove(&place) == Some(true) {
                freed.push(place);
            }
        }
    }

    /// Lanes that are gone, durably: nothing of them is listed any more.
    pub(super) fn forget_unsettled(&self, lanes: &[Rc<LaneState>]) {
        let mut freed = Vec::new();
        for lane in lanes {
            let Some(replica) = &lane.replica else {
                continue;
            };
            let list = std::mem::take(&mut *replica.list.borrow_mut());
            for listed in list.values() {
                self.let_go(listed, &mut freed);
            }
        }
        self.keep_room();
        self.let_go_of(&mut freed);
    }

    /// A checkpoint froze: what of replicas' lanes is above settled, and will be copied.
    pub(super) fn freeze_replicas(&self) -> Vec<FrozenReplica> {
        let lanes = self.lanes.borrow();
        let of_replicas = lanes.values().filter(|l| !l.void.get());
        let frozen = of_replicas.filter_map(|lane| {
            let replica = lane.replica.as_ref()?;
            Some(FrozenReplica {
                lane: lane.clone(),
                settled: replica.settled.get(),
                list: replica.above_settled(),
            })
        });
        let frozen: Vec<FrozenReplica> = frozen.collect();
        let bytes = frozen.iter().flat_map(|f| &f.list).map(|l| l.bytes).sum();
        self.kept.copying.set(bytes);
        self.keep_room();
        frozen
    }

    /// Copies what is above settled to the journal, behind the cut: replay will begin there. All of it is durable.
    pub(super) async fn copy_unsettled(
        self: &Rc<Self>,
        frozen: &[FrozenReplica],
    ) -> Result<(), StoreError> {
        let mut some = false;
        for listed in frozen.iter().flat_map(|f| &f.list) {
            #[cfg(planted)]
            if super::super::planted::is(super::super::planted::Bug::UnsettledNotCopied) {
                continue;
            }
            if !listed.failed.get() {
                self.journal.append_copy(&listed.record);
                some = true;
            }
        }
        if some {
            let ticket = self.writer.meta_tickets.issue();
            self.commit_records(ticket.number());
            ticket.wait().await?;
        }
        self.kept.copying.set(0);
        self.keep_room();
        // Their room is everybody's again.
        self.room.notify_all();
        Ok(())
    }

    /// A superblock says what is settled. The answer is what nobody needs any more.
    pub(super) fn settled_committed(&self, frozen: &[FrozenReplica]) -> Vec<PhysicalBlock> {
        let mut freed = Vec::new();
        for f in frozen {
            if let Some(replica) = &f.lane.replica {
                replica.said.set(replica.said.get().max(f.settled));
            }
            self.unlist(&f.lane, f.settled, &mut freed);
        }
        freed
    }
}
