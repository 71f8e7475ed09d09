//! What is looked at before anything of a Batch or Copy is applied: stamps, lanes, flags, checksums of the data, what was granted.
//!
//! Nothing of a frame is applied if anything of it is wrong.

use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::channel::{Busy, Chan};
use super::events::Sender;
use super::positions::Place;
use super::service::Inner;
use super::{Breach, COPIES_MAX, Outgoing};
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{ReplicaStore, Unsettled};
use crate::replication::wire::WireError;
use crate::replication::wire::batch::{Batch, HERE};
use crate::replication::wire::record::{Content, Head, Record, flag};
use crate::replication::wire::refused::Reason;
use crate::replication::wire::resync::Copy;
use crate::store::types::{BLOCK_BYTES, Crc, Stamp};

/// Bits of a seq that are the lane's counter.
const COUNTER_BITS: u32 = 56;

/// What is done with a record of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is applied.
    Apply,
    /// It is applied alone, when everything before it is written and flushed, and is flushed before anything behind it is applied.
    Alone,
    /// It is here, as the list said; it is only confirmed.
    Listed,
    /// It is settled, so it was here: it is only confirmed (rule 6).
    Settled,
}

/// What is given back when something that came has completed.
pub struct Permit<O: Outgoing> {
    busy: Busy<O>,
    bytes: u64,
    /// Blocks of a record of a stream.
    blocks: u64,
    _admitted: Rc<O::Admitted>,
}

impl<O: Outgoing> std::fmt::Debug for Permit<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit")
            .field("bytes", &self.bytes)
            .finish()
    }
}

impl<O: Outgoing> Permit<O> {
    /// Whether the channel that it came by is gone.
    pub fn has_ended(&self) -> bool {
        self.busy.0.ended.get()
    }

    fn new(chan: &Rc<Chan<O>>, (bytes, blocks): (u64, u64), admitted: &Rc<O::Admitted>) -> Self {
        Self {
            busy: chan.busy(),
            bytes,
            blocks,
            _admitted: admitted.clone(),
        }
    }
}

impl<O: Outgoing> Drop for Permit<O> {
    fn drop(&mut self) {
        let chan = &self.busy.0;
        chan.out.done(1, self.bytes);
        chan.taken.set(chan.taken.get() + self.blocks);
        // What is granted by that goes out with the next Ack.
        chan.ack_due.set(true);
    }
}

/// A record of a stream on its way.
#[derive(Debug)]
pub struct Job<O: Outgoing> {
    /// The record.
    pub record: Rc<Held>,
    /// Its position.
    pub position: u64,
    /// What is done with it.
    pub how: How,
    /// Of which epoch's streams.
    pub streams: u64,
    /// Given back when it is done, or dropped.
    pub permit: Permit<O>,
}

/// A record of a Copy.
#[derive(Debug)]
pub(super) struct Copying<O: Outgoing> {
    pub record: Rc<Held>,
    /// `None`: a repair.
    pub s0: Option<Stamp>,
    pub _permit: Permit<O>,
}

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// A batch of an admitted channel.
    pub(super) fn admit_batch(
        self: &Rc<Self>,
        chan: &Rc<Chan<O>>,
        batch: &Batch<'_>,
        data: Vec<Buffer>,
        admitted: O::Admitted,
    ) -> Result<(), Breach> {
        if !chan.fed.get() {
            return Err(Breach::Sequence("a batch before Feed"));
        }
        let opened = self.state.borrow().admits_opened(chan.sender).is_ok();
        let opened = opened || planted::is(Bug::FenceSkipped);
        let records = self.look(batch, data, |r| check(r, chan.sender, opened))?;
        self.came(chan, &records)?;
        self.settle(batch.settled())?;
        let admitted = Rc::new(admitted);
        let outside = self.state.borrow().outside();
        for (head, record) in records {
            let came = (bytes(&record), record.what.written_blocks());
            let permit = Permit::new(chan, came, &admitted);
            let mut lanes = self.lanes.borrow_mut();
            let lane = &mut lanes[usize::from(head.lane)];
            if lane.by != Some(chan.key) {
                lane.by = Some(chan.key);
                lane.stream.say_again();
                lane.moved = true;
            }
            // One of it failed, and the rest runs out: this channel may open again then.
            if lane.broken {
                drop(lanes);
                // Whoever failed it said why; a drive need not have.
                self.refuse(chan, Reason::Busy);
                break;
            }
            match lane.stream.admit(head.position) {
                Place::New => {}
                Place::Again => {
                    // It is told again where this lane is.
                    lane.moved = true;
                    continue;
                }
                Place::Gap => return Err(Breach::Sequence("a gap in a stream")),
            }
            let settled = !outside && record.last() <= self.store.settled(head.lane);
            let how = match record.what {
                _ if settled => How::Settled,
                What::Snapshot(_) => How::Alone,
                _ if head.flags & flag::LISTED != 0 => How::Listed,
                _ => How::Apply,
            };
            let blocks = record.blocks();
            let job = Job {
                record,
                position: head.position,
                how,
                streams: self.streams.get(),
                permit,
            };
            if how == How::Alone && planted::is(Bug::SnapshotOvertakes) {
                lane.order.push(job, blocks);
            } else if how == How::Alone {
                lane.order.push_alone(job);
            } else {
                lane.order.push(job, blocks);
            }
        }
        self.pump();
        self.ack.notify();
        Ok(())
    }

    /// A copy of an admitted channel.
    pub(super) fn admit_copy(
        self: &Rc<Self>,
        chan: &Rc<Chan<O>>,
        copy: &Copy<'_>,
        data: Vec<Buffer>,
        admitted: O::Admitted,
    ) -> Result<(), Breach> {
        let (resyncing, opened) = {
            let state = self.state.borrow();
            let opened = state.admits_opened(chan.sender).is_ok();
            (state.resyncing(), opened)
        };
        if !opened {
            return Err(Breach::Sequence("a copy before Open"));
        }
        if chan.copies.get() >= COPIES_MAX {
            return Err(Breach::Sequence("more copies than may be under way"));
        }
        let records = self.look(&copy.batch, data, |r| {
            if r.head.flags & flag::REPAIR == 0 && !resyncing {
                return Err(Breach::Sequence("a copy to one that is not resyncing"));
            }
            if r.head.stamp.epoch > chan.sender.epoch {
                return Err(Breach::Sequence("a copy of a later epoch"));
            }
            check_lane(r)
        })?;
        self.came(chan, &records)?;
        let admitted = Rc::new(admitted);
        let copies = records.into_iter().map(|(head, record)| Copying {
            // Copies are beside what the coordinator counts.
            _permit: Permit::new(chan, (bytes(&record), 0), &admitted),
            s0: (head.flags & flag::REPAIR == 0).then_some(Stamp {
                epoch: chan.sender.epoch,
                seq: head.position,
            }),
            record,
        });
        self.copy(chan, copy.request, copies.collect());
        Ok(())
    }

    fn came(&self, chan: &Chan<O>, records: &[(Head, Rc<Held>)]) -> Result<(), Breach> {
        let sum = records.iter().map(|(_, r)| bytes(r)).sum();
        if chan.out.came(records.len() as u64, sum) {
            return Ok(());
        }
        Err(Breach::Sequence("more than was granted"))
    }

    /// Looks at all records of a frame, and gives each its data.
    fn look(
        &self,
        batch: &Batch<'_>,
        data: Vec<Buffer>,
        check: impl Fn(&Record<'_>) -> Result<(), Breach>,
    ) -> Result<Vec<(Head, Rc<Held>)>, Breach> {
        let lanes = self.store.lanes();
        let mut data = data.into_iter();
        let mut out = Vec::new();
        for record in batch.records() {
            if record.head.lane >= lanes {
                return Err(Breach::Sequence("a lane that is not there"));
            }
            check(&record)?;
            let own = match record.data_blocks() {
                0 => None,
                n => Some(checked(&record, n, data.next())?),
            };
            out.push((record.head, Rc::new(Held::of(&record, own))));
        }
        match data.next() {
            None => Ok(out),
            Some(_) => Err(Breach::Sequence("more data than the records have")),
        }
    }

    /// What is settled. Until it is a member the store is not told: what is erased has to stay known while it is copied to (§11, 5), and what the members have
    /// settled may not have come here (§11, 6).
    pub(super) fn settle(&self, settled: impl Iterator<Item = (u8, Stamp)>) -> Result<(), Breach> {
        let outside = self.state.borrow().outside();
        let outside = outside && !planted::is(Bug::ReclaimedInResync);
        for (lane, stamp) in settled {
            if lane & HERE != 0 {
                // Of one that is a member by now it is settled anyway.
                if outside {
                    self.store.settle_here(lane & !HERE, stamp);
                }
                continue;
            }
            let mut lanes = self.lanes.borrow_mut();
            let Some(of) = lanes.get_mut(usize::from(lane)) else {
                return Err(Breach::Sequence("a lane that is not there"));
            };
            of.settled = of.settled.max(Some(stamp));
            // The list of a takeover that is over.
            let over = |l: &mut Rc<Unsettled>| l.records.last().is_none_or(|r| r.last() <= stamp);
            of.listed.take_if(over);
            drop(lanes);
            if !outside {
                self.store.settle(lane, stamp);
            }
        }
        Ok(())
    }
}

/// The data of a record, if they are what its checksums say.
fn checked(record: &Record<'_>, blocks: usize, data: Option<Buffer>) -> Result<Rc<Buffer>, Breach> {
    let data = data.filter(|d| d.len() >= blocks * BLOCK_BYTES);
    let data = data.ok_or(Breach::Sequence("fewer data than the records have"))?;
    let Content::Write(of) = &record.content else {
        return Err(Breach::Sequence("data of a record that has none"));
    };
    for (block, expected) in data.chunks_exact(BLOCK_BYTES).zip(of.crcs()) {
        let actual = Crc::of(block);
        if actual != expected {
            return Err(Breach::Wire(WireError::Checksum {
                what: "block of a record",
                expected: expected.0,
                actual: actual.0,
            }));
        }
    }
    Ok(Rc::new(data))
}

/// Whether such a record may be in a stream of this sender now.
fn check(record: &Record<'_>, from: Sender, opened: bool) -> Result<(), Breach> {
    let head = &record.head;
    let rolled = head.flags & flag::ROLLED != 0;
    if head.flags & flag::REPAIR != 0 {
        return Err(Breach::Sequence("a repair in a batch"));
    }
    if head.flags & flag::LISTED != 0 && !rolled {
        return Err(Breach::Sequence(
            "a listed record that is not rolled forward",
        ));
    }
    if !(rolled || opened) {
        return Err(Breach::Sequence("a record before Open"));
    }
    let epoch = head.stamp.epoch;
    if rolled && epoch >= from.epoch || !rolled && epoch != from.epoch {
        return Err(Breach::Sequence("a record of another epoch"));
    }
    if head.position == 0 {
        return Err(Breach::Sequence("a record without a position"));
    }
    check_lane(record)
}

/// The lane is in the stamp, too.
fn check_lane(record: &Record<'_>) -> Result<(), Breach> {
    let head = &record.head;
    let blocks = match &record.content {
        Content::Write(b) | Content::Poison(b) => b.len() as u64,
        Content::Tombstone { .. } | Content::Snapshot(_) => 1,
    };
    let of = |seq: u64| seq >> COUNTER_BITS == u64::from(head.lane);
    let last = head.stamp.seq.checked_add(blocks - 1);
    if of(head.stamp.seq) && last.is_some_and(of) {
        return Ok(());
    }
    Err(Breach::Sequence("a stamp of another lane"))
}

/// Bytes of data that came with it.
fn bytes(record: &Held) -> u64 {
    match &record.what {
        What::Write {
            crcs,
            data: Some(_),
            ..
        } => (crcs.len() / 4 * BLOCK_BYTES) as u64,
        _ => 0,
    }
}
