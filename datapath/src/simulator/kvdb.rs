//! The KVDB of a simulated cluster: one record of a volume, changed by compare-and-swap. Requests and answers take their time, arrive long after, or get lost.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::reactor::Handle;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::Id;
use crate::store::types::SnapshotId;
use crate::volume::coordinator::driver::SetStore;
use crate::volume::coordinator::set::{Outcome, Request, VolumeRecord};
use crate::volume::coordinator::state::Named;

/// Above it is the generation of an epoch (`docs/replication.md` §2).
const GENERATION_SHIFT: u32 = 24;

/// Where a snapshot's record is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is to be taken, in this epoch and in no other.
    Creating(u32),
    /// It exists.
    Ready,
    /// It is to be deleted.
    Deleting,
}

/// The database.
pub struct Kvdb {
    handle: Handle,
    record: RefCell<VolumeRecord>,
    /// Records of snapshots, the oldest first.
    pub snapshots: RefCell<Vec<(SnapshotId, Phase)>>,
    /// It cannot be reached, by anybody.
    pub away: Cell<bool>,
    /// Nor by the process that has this incarnation.
    pub cut: Cell<Option<Id>>,
    /// Its answers get lost.
    pub mute: Cell<bool>,
    /// Requests and answers get lost, and some come very late.
    pub lossy: Cell<bool>,
    /// It was restored, and no takeover has ended since.
    pub unverified: Cell<bool>,
}

/// A time that a request or an answer takes; `None`: it is lost.
fn way(kvdb: &Kvdb, of: Id) -> Option<Duration> {
    let random = kvdb.handle.random();
    if kvdb.away.get() || kvdb.cut.get() == Some(of) || kvdb.lossy.get() && random.is_multiple_of(8)
    {
        return None;
    }
    let late = kvdb.lossy.get() && random % 16 == 1;
    let most = if late { 3_000_000 } else { 3_000 };
    Some(Duration::from_micros(100 + (random >> 8) % most))
}

impl Kvdb {
    /// With this record; it lives on a node of its own.
    pub fn new(handle: &Handle, record: VolumeRecord) -> Rc<Self> {
        Rc::new(Self {
            handle: handle.clone(),
            record: RefCell::new(record),
            snapshots: RefCell::default(),
            away: Cell::new(false),
            cut: Cell::new(None),
            mute: Cell::new(false),
            lossy: Cell::new(false),
            unverified: Cell::new(false),
        })
    }

    /// The record now.
    pub fn record(&self) -> VolumeRecord {
        self.record.borrow().clone()
    }

    /// K1: this process holds the volume from now on.
    pub fn attach(&self, incarnation: Id) -> VolumeRecord {
        let mut record = self.record.borrow_mut();
        record.version += 1;
        // The first byte of an incarnation says which node it is of.
        let again = planted::is(Bug::SameEpochAgain) && record.incarnation[0] == incarnation[0];
        if record.epoch == 0 || !again {
            record.epoch += 1;
        }
        record.incarnation = incarnation;
        record.attempt = [self.handle.random() as u8; 16];
        record.serving = false;
        record.clone()
    }

    /// The record is what it was; its generation is higher than any that there was.
    pub fn restore(&self, backup: &VolumeRecord) {
        let mut record = self.record.borrow_mut();
        let generation = (record.epoch >> GENERATION_SHIFT) + 1;
        *record = VolumeRecord {
            epoch: generation << GENERATION_SHIFT,
            incarnation: [0; 16],
            attempt: [0; 16],
            serving: false,
            ..backup.clone()
        };
        self.unverified.set(true);
    }

    /// What whoever holds an epoch is told of snapshots: it reads them after K1.
    pub fn named(&self, epoch: u32) -> Vec<Named> {
        let all = self.snapshots.borrow();
        let named = all.iter().filter_map(|(id, phase)| match phase {
            Phase::Ready => Some((*id, true)),
            Phase::Creating(of) if *of < epoch => Some((*id, false)),
            _ => None,
        });
        named.map(|(id, ready)| Named { id, ready }).collect()
    }

    /// Changes a snapshot's record, or takes it away.
    pub fn set_snapshot(&self, id: SnapshotId, phase: Option<Phase>) {
        let mut all = self.snapshots.borrow_mut();
        match (all.iter_mut().find(|s| s.0 == id), phase) {
            (Some(found), Some(phase)) => found.1 = phase,
            (None, Some(phase)) => all.push((id, phase)),
            (_, None) => all.retain(|s| s.0 != id),
        }
    }

    fn swap(&self, request: Request) -> Outcome {
        let mut record = self.record.borrow_mut();
        let takeover = request.record.serving && !record.serving;
        if takeover && planted::is(Bug::SwapNotDone) {
            return Outcome::Done;
        }
        // Revisions are compared, and those of a backup are others.
        let same = record.version == request.expected && record.epoch == request.record.epoch;
        if !same && !planted::is(Bug::BlindSwap) {
            return Outcome::Conflict(record.clone());
        }
        if same {
            assert_eq!(
                record.after(&request.change).as_ref(),
                Ok(&request.record),
                "the record is what the change makes of it"
            );
        }
        let members = request.record.members().count();
        assert!(
            members >= usize::from(request.record.minimum),
            "{members} members are fewer than the minimum"
        );
        *record = request.record;
        if takeover {
            self.unverified.set(false);
        }
        Outcome::Done
    }
}

/// A coordinator's way to it. What is under way goes on when the coordinator dies.
pub struct Way {
    /// The database.
    pub kvdb: Rc<Kvdb>,
    /// Of this process.
    pub of: Id,
    /// Who is told outcomes, and of which change: by the version that it expected, as in the contract with control.
    pub tell: Rc<dyn Fn(u64, Outcome)>,
}

impl SetStore for Way {
    fn submit(&self, request: Request) {
        let (kvdb, tell, of) = (self.kvdb.clone(), self.tell.clone(), self.of);
        self.kvdb.handle.clone().spawn("swap", async move {
            let Some(there) = way(&kvdb, of) else { return };
            kvdb.handle.sleep(there).await;
            let expected = request.expected;
            let outcome = kvdb.swap(request);
            if kvdb.mute.get() {
                return;
            }
            let Some(back) = way(&kvdb, of) else { return };
            kvdb.handle.sleep(back).await;
            tell(expected, outcome);
        });
    }
}
