//! What the data path was told about replicated volumes, and what it reports. It is of one connection: after another everything is asked and told anew.

use std::collections::{HashMap, HashSet};

use keelblock_api::datapath::{Coordinator, CoordinatorState, ForwardTo, Replica};
use tokio::time::Instant;
use uuid::Uuid;

use crate::kvdb::client::Revision;
use crate::records::PathState;
use crate::replication::record::Token;

/// The path that hosts have to a volume here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PathTold {
    /// It is open, with this size.
    pub open: Option<u64>,
    /// It is exported, by this revision of the volume's record, in this state.
    pub export: Option<(Revision, PathState)>,
    /// Commands of hosts go there.
    pub forward: Option<ForwardTo>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Told {
    /// Of the data path; `None`: it cannot be used, or has no replication.
    pub incarnation: Option<Token>,
    paths: HashMap<Uuid, PathTold>,
    coordinators: HashMap<Uuid, Coordinator>,
    replicas: HashMap<Uuid, Replica>,
    looked: Option<Instant>,
}

/// A coordinator that has not ended.
pub fn runs(coordinator: &Coordinator) -> bool {
    coordinator.state() != CoordinatorState::CoordinatorEnded
}

/// A coordinator whose volume hosts can use, or wait for.
pub fn serves(coordinator: &Coordinator) -> bool {
    matches!(
        coordinator.state(),
        CoordinatorState::CoordinatorServing | CoordinatorState::CoordinatorStalled
    )
}

impl Told {
    /// What a new connection lists. What was reported since it began is newer.
    pub fn list_coordinators(&mut self, coordinators: Vec<Coordinator>) {
        for coordinator in coordinators {
            if let Ok(id) = Uuid::try_parse(&coordinator.volume_id) {
                self.coordinators.entry(id).or_insert(coordinator);
            }
        }
    }

    /// A coordinator says how it is; its volume. A report of an earlier epoch changes nothing.
    pub fn report(&mut self, coordinator: Coordinator) -> Option<Uuid> {
        let id = Uuid::try_parse(&coordinator.volume_id).ok()?;
        let known = self.coordinators.get(&id).map_or(0, |c| c.epoch);
        if coordinator.epoch >= known {
            self.coordinators.insert(id, coordinator);
        }
        Some(id)
    }

    /// The coordinator of a volume here, ended or not.
    pub fn coordinator(&self, id: Uuid) -> Option<&Coordinator> {
        self.coordinators.get(&id)
    }

    /// It coordinates no more.
    pub fn stopped(&mut self, id: Uuid) {
        self.coordinators.remove(&id);
    }

    /// The path as it was told; `None`: not yet by this connection, so that there may be one.
    pub fn path(&self, id: Uuid) -> Option<PathTold> {
        self.paths.get(&id).cloned()
    }

    /// The path was told so.
    pub fn set_path(&mut self, id: Uuid, path: PathTold) {
        self.paths.insert(id, path);
    }

    /// What it was told is not known any more.
    pub fn doubt(&mut self, id: Uuid) {
        self.paths.remove(&id);
    }

    /// Nothing of a volume is here.
    pub fn forget(&mut self, id: Uuid) {
        self.paths.remove(&id);
        self.coordinators.remove(&id);
    }

    /// Replicas as the data path lists them.
    pub fn list(&mut self, replicas: Vec<Replica>) {
        let by_id = |r: Replica| Uuid::try_parse(&r.replica_id).ok().map(|id| (id, r));
        self.replicas = replicas.into_iter().filter_map(by_id).collect();
        self.looked = Some(Instant::now());
    }

    /// When they were listed.
    pub fn looked(&self) -> Option<Instant> {
        self.looked
    }

    /// A replica of this node was made.
    pub fn made(&mut self, id: Uuid, replica: Replica) {
        self.replicas.insert(id, replica);
    }

    /// A replica of this node was deleted.
    pub fn deleted(&mut self, id: Uuid) {
        self.replicas.remove(&id);
    }

    /// A replica of this node.
    pub fn replica(&self, id: Uuid) -> Option<&Replica> {
        self.replicas.get(&id)
    }

    /// Replicas of a volume that are here.
    pub fn replicas_of(&self, volume: Uuid) -> Vec<Uuid> {
        let volume = volume.to_string();
        let here = self.replicas.iter().filter(|(_, r)| r.volume_id == volume);
        here.map(|(id, _)| *id).collect()
    }

    /// All replicas that are here, with their volumes.
    pub fn all_replicas(&self) -> Vec<(Uuid, Uuid)> {
        let all = self.replicas.iter();
        let with_volume =
            all.filter_map(|(id, r)| Some((Uuid::try_parse(&r.volume_id).ok()?, *id)));
        with_volume.collect()
    }

    /// Volumes that the data path has something of.
    pub fn volume_ids(&self) -> HashSet<Uuid> {
        let replicas = self.replicas.values();
        let replicas = replicas.filter_map(|r| Uuid::try_parse(&r.volume_id).ok());
        let all = self.coordinators.keys().chain(self.paths.keys()).copied();
        all.chain(replicas).collect()
    }
}
