//! Records of replicas: their stamps come with them (`docs/store-format.md` §16).
//!
//! Everything above settled is on the lane's list, so the list says which blocks a record replaces that comes when the lane has higher stamps:
//! no leaf is read for it. A record at or below settled was applied before, and is left alone.

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::super::journal::{Given, Record, Tags, Tombstone, Write, WriteFields};
use super::super::map::LeafShape;
use super::super::types::{BLOCK_BYTES, Crc, LaneBlock, Stamp};
use super::lane::{Admitted, LaneState};
use super::layer::Entry;
use super::unsettled::{Listed, ReplicaLane};
use super::writer::{Data, WRITE_BLOCKS_MAX};
use super::{Inner, StoreError};
use crate::cipher::{Seal, TAG_BYTES};
use crate::device::IoError;
use crate::replication::held::{Held, What};

/// Bytes of the largest record without what it has for each block.
const RECORD_BYTES: u64 = 52;
const BYTES_OF_BLOCK: u64 = 12;

/// Whose stamps a write has.
#[derive(Clone, Copy, Debug, Default)]
pub enum Stamps {
    /// The lane's next ones.
    #[default]
    Own,
    /// A record's of a replica.
    Given(Stamp),
    /// A copy's: what it replaces is decided.
    Copied(Stamp),
}

/// A record of a replica, to be kept.
pub fn owned(fields: &WriteFields<'_>, given: Given) -> Record {
    Record::Write(Write {
        handle: fields.handle,
        lane_sequence: fields.lane_sequence,
        generation: fields.generation,
        stamp: fields.stamp,
        first: fields.first,
        runs: fields.runs.to_vec(),
        crcs: fields.crcs.to_vec(),
        tags: fields.tags.cloned(),
        given,
        again: false,
    })
}

/// What a record without data does.
#[derive(Clone, Debug)]
pub enum Mark {
    /// Its blocks are erased.
    Erase,
    /// They are damaged; of each, what its checksum was, and its tag, if they were sealed.
    Poison(Vec<Crc>, Option<Tags>),
}

/// A record that is being applied: another one of its stamp waits.
struct Entering<'a> {
    of: &'a Inner,
    replica: &'a ReplicaLane,
    stamp: Stamp,
}

impl Entering<'_> {
    /// A record that came late may have lost to some that are not there yet: until they are, its blocks show something older than both. One that was
    /// the newest when it was admitted lost to nothing.
    async fn wait_for_higher(&self, blocks: &Range<u64>) {
        let listed = self.replica.get(self.stamp);
        if listed.is_some_and(|listed| listed.was_newest()) {
            return;
        }
        for higher in self.replica.entering_above(self.stamp, blocks) {
            while self.replica.entering.borrow().contains(&higher) {
                self.of.completed.notified().await;
            }
        }
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.replica.entering.borrow_mut().remove(&self.stamp);
        self.of.completed.notify_all();
    }
}

/// Bytes of a record of so many blocks with checksums, on a list.
fn listed_bytes(lane: &LaneState, blocks: u64) -> u64 {
    let each = match lane.shape() {
        LeafShape::Plain => BYTES_OF_BLOCK,
        LeafShape::Sealed => BYTES_OF_BLOCK + TAG_BYTES as u64,
    };
    RECORD_BYTES + each * blocks
}

impl Inner {
    fn replica_of<'a>(&self, lane: &'a LaneState) -> Result<&'a ReplicaLane, StoreError> {
        if self.closed.get() {
            return Err(StoreError::Closed);
        }
        match &lane.replica {
            Some(replica) if !lane.void.get() => Ok(replica),
            _ => Err(StoreError::Unknown),
        }
    }

    /// Waits for its turn; `None`: it is there already.
    async fn enter<'a>(
        &'a self,
        lane: &'a LaneState,
        (stamp, last): (Stamp, Stamp),
        same: impl Fn(&Listed) -> bool,
    ) -> Result<Option<Entering<'a>>, StoreError> {
        let replica = self.replica_of(lane)?;
        loop {
            if last <= replica.settled() {
                return Ok(None);
            }
            if replica.entering.borrow().contains(&stamp) {
                self.completed.notified().await;
                continue;
            }
            return match replica.get(stamp) {
                Some(listed) if listed.failed.get() => Err(self.failure()),
                Some(listed) if same(&listed) => Ok(None),
                Some(_) => Err(StoreError::Exists),
                None => {
                    replica.entering.borrow_mut().insert(stamp);
                    Ok(Some(Entering {
                        of: self,
                        replica,
                        stamp,
                    }))
                }
            };
        }
    }

    pub(super) fn failure(&self) -> StoreError {
        let failed = self.checkpointer.failed.get();
        failed.unwrap_or(StoreError::Io(IoError::Failed))
    }

    /// Whether a record of these blocks can be put on the list, or needs not, as it is there or settled.
    pub(super) fn may_list(&self, lane: &LaneState, record: &Held, rolled: bool) -> bool {
        let Ok(replica) = self.replica_of(lane) else {
            // It is refused for that.
            return true;
        };
        let (stamp, last) = (record.stamp, record.last());
        let blocks = match &record.what {
            What::Write { crcs, .. } | What::Poison { crcs, .. } => crcs.len() as u64 / 4,
            _ => 0,
        };
        // Almost always there is room: that is looked at first.
        self.can_list(replica, listed_bytes(lane, blocks), rolled)
            || last <= replica.settled()
            || replica.get(stamp).is_some()
    }

    fn list_has_room(&self, lane: &LaneState, blocks: u64) -> Result<(), StoreError> {
        // Whoever brings it asked whether it may come now; the bound of those that are rolled forward is everybody's.
        match self.can_list(self.replica_of(lane)?, listed_bytes(lane, blocks), true) {
            true => Ok(()),
            false => Err(StoreError::Full),
        }
    }

    /// Applies a write of a replica; `crcs` are those of the record, and were compared with the data.
    pub(super) async fn apply_write(
        &self,
        lane: &Rc<LaneState>,
        stamp: Stamp,
        first: LaneBlock,
        (crcs, tags): (Vec<Crc>, Option<Tags>),
        data: Rc<Buffer>,
    ) -> Result<(), StoreError> {
        let count = crcs.len() as u64;
        assert!((1..=WRITE_BLOCKS_MAX).contains(&count), "blocks of a write");
        let last = Stamp {
            epoch: stamp.epoch,
            seq: stamp.seq + count - 1,
        };
        let same = |listed: &Listed| match &listed.record {
            Record::Write(w) => w.first == first && w.crcs == crcs && !w.runs.is_empty(),
            _ => false,
        };
        let Some(entering) = self.enter(lane, (stamp, last), same).await? else {
            return Ok(());
        };
        self.list_has_room(lane, count)?;
        let ticket = self.writer.tickets.issue();
        let blocks = first.0..first.0 + count;
        let stamps = (Stamps::Given(stamp), crcs, tags);
        let data = Data::Shared(data);
        self.submit(lane, &blocks, data, ticket.number(), stamps);
        ticket.wait().await.1?;
        entering.wait_for_higher(&blocks).await;
        Ok(())
    }

    /// Erases blocks, or marks them as damaged, under a stamp that is given.
    pub(super) async fn apply_mark(
        self: &Rc<Self>,
        lane: &Rc<LaneState>,
        stamp: Stamp,
        blocks: Range<u64>,
        mark: Mark,
    ) -> Result<(), StoreError> {
        let used = match &mark {
            Mark::Erase => 1,
            Mark::Poison(crcs, _) => crcs.len() as u64,
        };
        let last = Stamp {
            epoch: stamp.epoch,
            seq: stamp.seq + used - 1,
        };
        let same = |listed: &Listed| match (&listed.record, &mark) {
            (Record::Write(w), Mark::Poison(crcs, _)) => {
                w.first.0 == blocks.start && w.crcs == *crcs && w.runs.is_empty()
            }
            (Record::Tombstone(_), Mark::Erase) => listed.blocks == blocks,
            _ => false,
        };
        let Some(entering) = self.enter(lane, (stamp, last), same).await? else {
            return Ok(());
        };
        self.list_has_room(lane, used)?;
        self.room_for_mark(used).await?;
        self.replica_of(lane)?;
        let (given, parts) = entering.replica.comes(stamp, &blocks);
        let parts = parts.unwrap_or_else(|| Vec::from([blocks.clone()]));
        self.mark(lane, stamp, blocks.clone(), &mark, (given, &parts))
            .await?;
        entering.wait_for_higher(&blocks).await;
        Ok(())
    }

    pub(super) async fn room_for_mark(&self, blocks: u64) -> Result<(), StoreError> {
        while !self.has_room(blocks.max(8)) {
            if self.failed() {
                return Err(self.failure());
            }
            self.ask_for_checkpoint();
            self.room.notified().await;
        }
        Ok(())
    }

    /// Journals and applies an erasure or damage under a stamp that is given. No await before it is admitted.
    pub(super) async fn mark(
        self: &Rc<Self>,
        lane: &Rc<LaneState>,
        stamp: Stamp,
        blocks: Range<u64>,
        mark: &Mark,
        how: (Given, &[Range<u64>]),
    ) -> Result<(), StoreError> {
        let admitted = lane.admit_as(stamp);
        self.mark_as(lane, admitted, blocks, mark, how).await
    }

    /// Journals and applies an erasure or damage that is admitted: in the parts of its blocks that it is for.
    pub(super) async fn mark_as(
        self: &Rc<Self>,
        lane: &Rc<LaneState>,
        admitted: Admitted,
        blocks: Range<u64>,
        mark: &Mark,
        (given, parts): (Given, &[Range<u64>]),
    ) -> Result<(), StoreError> {
        let stamp = admitted.stamp;
        self.scatter
            .erased((lane.handle, lane.shape()), admitted.generation, &blocks);
        let first = LaneBlock(blocks.start);
        let record = match mark {
            Mark::Erase => Record::Tombstone(Tombstone {
                handle: lane.handle,
                lane_sequence: admitted.sequence,
                generation: admitted.generation,
                stamp,
                first,
                blocks: blocks.end - blocks.start,
                given,
                again: false,
            }),
            Mark::Poison(crcs, tags) => Record::Write(Write {
                handle: lane.handle,
                lane_sequence: admitted.sequence,
                generation: admitted.generation,
                stamp,
                first,
                runs: Vec::new(),
                crcs: crcs.clone(),
                tags: tags.clone(),
                given,
                again: false,
            }),
        };
        #[cfg(planted)]
        let journaled = lane.replica.is_some()
            || !super::super::planted::is(super::super::planted::Bug::TombstoneNotJournaled);
        #[cfg(not(planted))]
        let journaled = true;
        if journaled {
            self.journal.append_record(&record);
        }
        let listed = match &lane.replica {
            Some(replica) if given != Given::No => {
                let listed = Rc::new(Listed::new(record));
                self.list(replica, &listed);
                Some(listed)
            }
            _ => None,
        };
        let ticket = self.writer.meta_tickets.issue();
        // Counted in flight until it is applied, so a freeze waits for it.
        self.commit_records(ticket.number());
        let result = ticket.wait().await;
        let mut freed = Vec::new();
        {
            let mut layer = admitted.layer.borrow_mut();
            let before = layer.len();
            layer.in_flight -= 1;
            for part in parts.iter().filter(|_| result.is_ok()) {
                let Mark::Poison(crcs, tags) = mark else {
                    layer.erase(part.clone(), admitted.sequence.0, &mut freed);
                    continue;
                };
                for block in part.clone() {
                    let n = block - blocks.start;
                    let of_block = Stamp {
                        epoch: stamp.epoch,
                        seq: stamp.seq + n,
                    };
                    let crc = crcs[n as usize];
                    let entry = Entry::poison(of_block, crc, admitted.sequence.0);
                    let seal = tags.as_ref().map_or(Seal::NONE, |t| t.seal(n as usize));
                    layer.insert_sealed(LaneBlock(block), (entry, seal), &mut freed);
                }
            }
            self.delta_grew(layer.len() as isize - before as isize);
        }
        if let (Some(listed), Err(_)) = (&listed, result) {
            listed.failed.set(true);
        }
        self.kept.park(&mut freed);
        self.reclaim.superseded(&mut freed);
        if !self.volatile {
            self.reclaim_flushed();
        }
        self.completed.notify_all();
        self.look_at_limits();
        result
    }

    /// The data of a listed write, from its own blocks: newer writes may be over them.
    pub(super) async fn fetch_listed(
        &self,
        lane: &LaneState,
        write: &Write,
        mut into: Buffer,
    ) -> (Buffer, Result<(), StoreError>) {
        let _reader = self.reclaim.read();
        let mut n = 0;
        for run in &write.runs {
            for at in run.first.0..run.first.0 + u64::from(run.blocks) {
                let mut buffer = self.read_buffers.take().await;
                let place = at * BLOCK_BYTES as u64;
                let (back, read) = self.device.read(place, buffer.lend(), BLOCK_BYTES).await;
                buffer.back(back);
                if let Err(e) = read {
                    return (into, Err(StoreError::Io(e)));
                }
                let bytes = &buffer[..BLOCK_BYTES];
                let (actual, expected) = (Crc::of(bytes), write.crcs[n]);
                if actual != expected {
                    let block = LaneBlock(write.first.0 + n as u64);
                    let at = super::super::types::PhysicalBlock(at);
                    let e = self.mismatch(lane, block, at, expected, actual);
                    return (into, Err(e));
                }
                into[n * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(bytes);
                n += 1;
            }
        }
        (into, Ok(()))
    }
}
