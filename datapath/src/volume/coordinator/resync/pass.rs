//! What a pass compares a replica with, and as long as what it lasts: the lanes as they are, or as of a snapshot.

use std::rc::Rc;

use super::copy::{copying, says_nothing};
use super::{Inner, Machine, Members, Peers, SetStore, Subscription};
use crate::replication::held::What;
use crate::replication::wire::resync::Tree;
use crate::store::types::{SnapshotId, Stamp};
use crate::volume::coordinator::driver::Copying;
use crate::volume::coordinator::members::Place;
use crate::volume::coordinator::state::Preparation;

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) enum Pass {
    /// The lanes as they are, from s0 on.
    Live(Subscription),
    /// As of a snapshot. Nothing comes by the stream yet, so all that is there may be replaced: everything is at or below the last stamp that was given.
    Snapshot {
        /// Which.
        id: SnapshotId,
        /// What the replica lacks.
        of: Preparation,
        /// The last stamps when this began.
        last: Vec<Stamp>,
    },
}

impl Pass {
    /// Of a snapshot that a replica lacks.
    pub fn new_snapshot<P: Peers, K: SetStore>(
        of: &Rc<Inner<P, K>>,
        preparation: &Preparation,
        id: SnapshotId,
    ) -> Self {
        Self::Snapshot {
            id,
            of: preparation.clone(),
            last: of.machine.borrow().last_stamps(),
        }
    }

    /// Whether what it began with is still so.
    pub fn lasts(&self, machine: &Machine, place: Place) -> bool {
        match self {
            Self::Live(of) => machine.subscription(place).as_ref() == Some(of),
            Self::Snapshot { of, .. } => machine.preparing(place).as_ref() == Some(of),
        }
    }

    /// By lane: what is at or below it is replaced.
    pub fn s0(&self) -> &[Stamp] {
        match self {
            Self::Live(of) => &of.s0,
            Self::Snapshot { last, .. } => last,
        }
    }

    /// What it is compared with.
    pub fn tree(&self, lane: u8) -> Tree {
        let snapshot = match self {
            Self::Live(_) => None,
            Self::Snapshot { id, .. } => Some(*id),
        };
        Tree { lane, snapshot }
    }

    /// Who has all of it.
    pub fn sources(&self, machine: &Machine) -> Members {
        match self {
            Self::Live(of) => machine.sources(of),
            Self::Snapshot { .. } => machine.readable(),
        }
    }

    /// Records that keep the lanes as they are.
    pub fn snapshots(&self, id: SnapshotId) -> Vec<Copying> {
        let lanes = (0_u8..).zip(self.s0());
        let each = lanes.map(|(lane, s0)| {
            let stamp = says_nothing(lane, *s0);
            copying((lane, 0), *s0, stamp, What::Snapshot(id), None)
        });
        each.collect()
    }
}
