//! What the fake data path knows of replicated volumes. Its replicas are on its drives; takeovers succeed as soon as the record says so.
use keelblock_api::datapath::answer_set_change_request::Outcome;
use keelblock_api::datapath::*;
use std::collections::{BTreeMap, BTreeSet};
use tonic::Status;
use uuid::Uuid;

/// All of it.
#[derive(Default)]
pub struct Replication {
    /// As it was told last.
    pub nodes: Vec<ClusterNode>,
    /// How busy others are, as it was told.
    pub loads: Vec<PeerLoad>,
    /// By id.
    pub replicas: BTreeMap<String, Replica>,
    /// Open ones.
    pub paths: BTreeMap<String, OpenPathRequest>,
    /// By volume.
    pub coordinators: BTreeMap<String, Coordinator>,
    /// What it answered was heard.
    pub answers: Vec<AnswerSetChangeRequest>,
    /// A replica that is added stays empty: it cannot be copied to.
    pub stays_empty: bool,
    /// Whoever serves a volume brings replicas that are behind back at once.
    pub brings_back: bool,
    /// Drives are so full that they do not note the size of a replica.
    pub no_room: bool,
    /// Of all replicas.
    pub heard_ms: Option<u32>,
    /// Takeovers do not get to their end.
    pub stuck: bool,
    /// Changes of replicas that coordinators asked for, by volume.
    asked: BTreeMap<String, set_change::Change>,
    /// Epochs that it was given, one after the other.
    pub served: Vec<u32>,
    /// In the last of them all replicas were to be heard.
    pub unverified: bool,
    /// Replicas that were deleted, and whether their snapshots were kept.
    pub removed: Vec<(String, bool)>,
    /// Snapshots that exist, as coordinators here know.
    pub snapshots: Vec<String>,
    /// Those that are held.
    pub holds: BTreeSet<String>,
    /// How often one was released.
    pub releases: usize,
    /// Those that the last coordinator was told.
    pub named: Vec<NamedSnapshot>,
    /// What replicas were made of.
    pub sources: Vec<SnapshotOf>,
}

impl Replication {
    /// The process ends: its drives stay.
    pub fn end(&mut self) {
        self.nodes.clear();
        self.paths.clear();
        self.coordinators.clear();
    }

    pub fn make(&mut self, r: CreateReplicaRequest) -> Result<Replica, Status> {
        let other = |o: &Replica| o.volume_id == r.volume_id && o.replica_id != r.replica_id;
        if self.replicas.values().any(other) {
            return Err(Status::already_exists(
                "another replica of that volume is here",
            ));
        }
        if !self.replicas.contains_key(&r.replica_id) {
            self.sources.extend(r.source.clone());
        }
        let replica = Replica {
            volume_id: r.volume_id,
            replica_id: r.replica_id.clone(),
            pool_id: r.pool_id,
            size_bytes: r.size_bytes,
            lanes: r.lanes,
            ..Default::default()
        };
        Ok(self.replicas.entry(r.replica_id).or_insert(replica).clone())
    }

    pub fn resize(&mut self, r: &ResizeReplicaRequest) -> Result<Replica, Status> {
        let replica = self.replicas.get_mut(&r.replica_id);
        let replica = replica.ok_or_else(|| Status::not_found("no such replica"))?;
        if self.no_room {
            return Err(Status::resource_exhausted("no room on the drives"));
        }
        replica.size_bytes = r.size_bytes;
        Ok(replica.clone())
    }

    /// Deletes a replica, or, if there is none of the volume, what was kept.
    pub fn remove(&mut self, r: DeleteReplicaRequest) {
        let there = self.replicas.remove(&r.replica_id).is_some();
        let other = self.replicas.values().any(|o| o.volume_id == r.volume_id);
        if there || !other && !r.keep_snapshots {
            self.removed.push((r.replica_id, r.keep_snapshots));
        }
    }

    pub fn list(&self) -> ListReplicasReply {
        let heard = |r: &Replica| Replica {
            heard_ms: self.heard_ms,
            ..r.clone()
        };
        let replicas = self.replicas.values().map(heard).collect();
        ListReplicasReply { replicas }
    }

    /// Takes over, and asks for K2.
    pub fn serve(
        &mut self,
        request: ServeRequest,
        process: Uuid,
    ) -> Result<(Coordinator, Option<SetChange>), Status> {
        let record = request.record.unwrap_or_default();
        if record.incarnation != process.into_bytes() {
            return Err(Status::invalid_argument("the epoch is another process'"));
        }
        if self.served.contains(&record.epoch) {
            return Err(Status::failed_precondition("that epoch was served before"));
        }
        self.served.push(record.epoch);
        self.unverified = request.unverified;
        let ready = request.snapshots.iter().filter(|s| s.ready);
        self.snapshots = ready.map(|s| s.snapshot_id.clone()).collect();
        self.named = request.snapshots;
        let id = request.volume_id.clone();
        let path = OpenPathRequest {
            volume_id: id.clone(),
            size_bytes: request.size_bytes,
            lanes: request.lanes,
            volatile_cache: request.volatile_cache,
            forward: None,
        };
        self.paths.insert(id.clone(), path);
        let members = record.replicas.iter();
        let members = members.filter(|r| r.role() == ReplicaRole::ReplicaMember);
        let replica_ids = members.map(|r| r.replica_id.clone()).collect();
        let asks = asking(
            &id,
            &record,
            set_change::Change::Serve(ReplicaIds { replica_ids }),
        );
        let coordinator = Coordinator {
            volume_id: id.clone(),
            epoch: record.epoch,
            state: CoordinatorState::CoordinatorTakingOver.into(),
            record: Some(record),
            ..Default::default()
        };
        self.coordinators.insert(id, coordinator.clone());
        Ok((coordinator, (!self.stuck).then_some(asks)))
    }

    /// A coordinator is to change its replicas: what it asks for, and how it is.
    pub fn change(&mut self, request: ChangeReplicasRequest) -> Result<Asks, Status> {
        use change_replicas_request::Change as Wanted;
        let id = request.volume_id;
        let served = self.coordinators.get(&id);
        let served = served.filter(|c| c.epoch == request.epoch);
        let coordinator = served.ok_or_else(|| Status::not_found("not served"))?;
        let record = coordinator.record.clone().unwrap_or_default();
        if self.asked.contains_key(&id) {
            return Err(Status::failed_precondition("another change is under way"));
        }
        let change = match request.change.unwrap() {
            Wanted::Add(new) => set_change::Change::Add(new),
            Wanted::Leave(one) => set_change::Change::Leave(one),
            Wanted::Remove(one) => set_change::Change::Remove(one),
            Wanted::Minimum(n) => set_change::Change::Minimum(n),
            Wanted::Exclude(one) => set_change::Change::Exclude(ReplicaIds {
                replica_ids: vec![one],
            }),
        };
        self.asked.insert(id.clone(), change.clone());
        Ok((coordinator.clone(), Some(asking(&id, &record, change))))
    }

    /// A replica that stayed empty has been copied to: what the coordinator of its volume asks for.
    pub fn copied(&mut self, id: &str, replica: &str) -> Option<SetChange> {
        let record = self.coordinators.get(id)?.record.clone()?;
        let admit = set_change::Change::Admit(replica.into());
        self.asked.insert(id.into(), admit.clone());
        Some(asking(id, &record, admit))
    }

    /// Grows what is served in an epoch.
    pub fn grow(&mut self, r: &GrowServedRequest) -> Result<Coordinator, Status> {
        let served = self.coordinators.get(&r.volume_id);
        let served = served.filter(|c| c.epoch == r.epoch).cloned();
        let served = served.ok_or_else(|| Status::not_found("not served"))?;
        let path = self.paths.get_mut(&r.volume_id);
        let path = path.ok_or_else(|| Status::internal("served without a path"))?;
        if r.size_bytes < path.size_bytes {
            return Err(Status::invalid_argument("smaller than it is"));
        }
        path.size_bytes = r.size_bytes;
        Ok(served)
    }

    /// Takes a snapshot, in the epoch for which it is.
    pub fn take(&mut self, r: &TakeSnapshotRequest) -> Result<TakeSnapshotReply, Status> {
        let served = self.coordinators.get(&r.volume_id);
        served
            .filter(|c| c.epoch == r.epoch)
            .ok_or_else(|| Status::not_found("not served"))?;
        if r.of_epoch == r.epoch && !self.snapshots.contains(&r.snapshot_id) {
            self.snapshots.push(r.snapshot_id.clone());
        }
        let exists = self.snapshots.contains(&r.snapshot_id);
        Ok(TakeSnapshotReply { exists })
    }

    /// Puts a snapshot in, and holds.
    pub fn hold(&mut self, r: &HoldSnapshotRequest) -> Result<HoldSnapshotReply, Status> {
        let served = self.coordinators.get(&r.volume_id);
        served
            .filter(|c| c.epoch == r.epoch)
            .ok_or_else(|| Status::not_found("not served"))?;
        let held = r.of_epoch == r.epoch && !self.snapshots.contains(&r.snapshot_id);
        if held {
            self.holds.insert(r.snapshot_id.clone());
            self.snapshots.push(r.snapshot_id.clone());
        }
        let held = held || self.holds.contains(&r.snapshot_id);
        Ok(HoldSnapshotReply { held })
    }

    /// Whether it was held until now.
    pub fn release(&mut self, r: &ReleaseSnapshotRequest) -> Result<HoldSnapshotReply, Status> {
        let served = self.coordinators.get(&r.volume_id);
        served
            .filter(|c| c.epoch == r.epoch)
            .ok_or_else(|| Status::not_found("not served"))?;
        self.releases += 1;
        let held = self.holds.contains(&r.snapshot_id);
        Ok(HoldSnapshotReply { held })
    }

    /// The outcome of a change; how the coordinator is after it, and what it asks for next: a replica that was added or excluded is a copy at once.
    pub fn answer(&mut self, answer: AnswerSetChangeRequest) -> Option<Asks> {
        self.answers.push(answer.clone());
        let id = &answer.volume_id;
        let coordinator = self.coordinators.get_mut(id)?;
        let asked = self.asked.remove(id);
        let mut next = None;
        match answer.outcome {
            Some(Outcome::Done(_)) => {
                coordinator.set_state(CoordinatorState::CoordinatorServing);
                let record = coordinator.record.get_or_insert_default();
                record.version = answer.expected_version + 1;
                let outside = match asked {
                    Some(set_change::Change::Add(new)) => Some(new.replica_id),
                    Some(set_change::Change::Exclude(mut those)) => those.replica_ids.pop(),
                    None if self.brings_back => {
                        let mut all = record.replicas.iter();
                        let behind = all.find(|r| {
                            matches!(
                                r.role(),
                                ReplicaRole::ReplicaBehind | ReplicaRole::ReplicaEmpty
                            )
                        });
                        behind.map(|r| r.replica_id.clone())
                    }
                    _ => None,
                };
                if let Some(one) = outside.filter(|_| !self.stays_empty) {
                    let admit = set_change::Change::Admit(one);
                    next = Some(asking(id, record, admit.clone()));
                    self.asked.insert(id.clone(), admit);
                }
            }
            Some(Outcome::Conflict(found)) if found.epoch == coordinator.epoch => {
                coordinator.record = Some(found);
                return None;
            }
            Some(Outcome::Conflict(found)) if found.epoch != coordinator.epoch => {
                coordinator.set_state(CoordinatorState::CoordinatorEnded);
                coordinator.set_end(EndReason::EndSuperseded);
            }
            _ => return None,
        }
        Some((coordinator.clone(), next))
    }
}

/// How a coordinator is, and what it asks for.
pub type Asks = (Coordinator, Option<SetChange>);

fn asking(volume_id: &str, record: &SetRecord, change: set_change::Change) -> SetChange {
    SetChange {
        volume_id: volume_id.into(),
        expected_version: record.version,
        epoch: record.epoch,
        incarnation: record.incarnation.clone(),
        attempt: record.attempt.clone(),
        change: Some(change),
    }
}
