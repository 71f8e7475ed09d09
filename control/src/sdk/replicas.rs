//! Replicas of a volume, in the words of the SDK and of `Admin.LocateVolume`.
use super::{Services, answer};
use crate::coordination::Seen;
use crate::error::OpError;
use crate::node::{HaWish, REPLICAS_MAX, level};
use crate::records::{AttachmentRecord, TaskRecord, TaskReplica, TaskState};
use crate::replication::record::{Phase, ReplicaState, ReplicationRecord};
use keelblock_api::admin::admin_client::AdminClient;
use keelblock_api::admin::{
    LocateVolumeReply, LocateVolumeRequest, ReplicaStatus, ReplicaTask, UpdateReplicasRequest,
    update_replicas_request,
};
use keelblock_api::datapath::{Coordinator, CoordinatorState, Peer};
use keelblock_api::openstorage::{ReplicaSet, RuntimeStateMap, VolumeStatus};
use std::collections::HashMap;
use std::time::Duration;
use tonic::transport::Endpoint;
use tonic::{Response, Status};
use uuid::Uuid;

/// How long another node may take to say how its coordinator is.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Bytes of a block.
const BLOCK_BYTES: u64 = 4096;

/// Nodes and pools that hold a volume.
pub fn replica_set(set: &ReplicationRecord) -> ReplicaSet {
    ReplicaSet {
        nodes: set.replicas.iter().map(|r| r.node_id.clone()).collect(),
        pool_uuids: set.replicas.iter().map(|r| r.pool_id.to_string()).collect(),
        id: 0,
    }
}

/// A change of replicas, as it is asked for; the volume first.
pub fn wish(request: UpdateReplicasRequest) -> Result<(String, HaWish), OpError> {
    use update_replicas_request::Change;
    let node = Some(request.node).filter(|n| !n.is_empty());
    let small = |field: &'static str, n: u32| {
        u8::try_from(n)
            .ok()
            .filter(|n| (1..=REPLICAS_MAX).contains(n))
            .ok_or_else(|| OpError::invalid(field, format!("must be 1 to {REPLICAS_MAX}, not {n}")))
    };
    let wish = match request.change {
        None => {
            return Err(OpError::Missing {
                field: "change",
                hint: "replicas, move_from, minimum or resync",
            });
        }
        Some(Change::Replicas(n)) => HaWish::Replicas(small("replicas", n)?, node),
        Some(Change::MoveFrom(from)) => HaWish::Move(from, node),
        Some(Change::Minimum(0)) => HaWish::Minimum(None),
        Some(Change::Minimum(n)) => HaWish::Minimum(Some(small("minimum", n)?)),
        Some(Change::Resync(named)) => HaWish::Resync(named),
    };
    Ok((request.volume, wish))
}

/// A task, as it is told.
pub fn task(task: &TaskRecord) -> ReplicaTask {
    let node = |r: &Option<TaskReplica>| r.as_ref().map(|r| r.node_id.clone()).unwrap_or_default();
    ReplicaTask {
        task_id: task.task_id.to_string(),
        kind: task.kind.name().into(),
        state: task.state.name().into(),
        step: task.step.name().into(),
        replicas_before: task.wanted_before.into(),
        replicas: task.wanted.into(),
        new_node: node(&task.new),
        old_node: node(&task.old),
        done_bytes: task.done_bytes,
        total_bytes: task.total_bytes,
        copied_bytes: task.copied_bytes,
        error: task.error.clone(),
        created_unix_ms: task.created_unix_ms,
        updated_unix_ms: task.updated_unix_ms,
        automatic: task.automatic,
        more_nodes: task.more.iter().map(|r| r.node_id.clone()).collect(),
    }
}

/// What operators know such systems by: set now and next, quorums, whether it is clean.
pub fn runtime_state(set: &ReplicationRecord, task: Option<&TaskRecord>) -> RuntimeStateMap {
    let pairs = runtime_pairs(set, task).map(|(key, value)| (key.to_owned(), value));
    RuntimeStateMap {
        runtime_state: pairs.into(),
    }
}

/// The same by name, none of them empty.
pub fn runtime_pairs(
    set: &ReplicationRecord,
    task: Option<&TaskRecord>,
) -> [(&'static str, String); 11] {
    let task = task.filter(|t| !t.state.is_over());
    let nodes = |members: bool| {
        let of = set
            .replicas
            .iter()
            .filter(|r| !members || r.state == ReplicaState::Member);
        let nodes: Vec<&str> = of.map(|r| r.node_id.as_str()).collect();
        format!("[{}]", nodes.join(" "))
    };
    let state = match task.is_none() && set.members.len() >= usize::from(set.wanted) {
        true => "clean",
        false => "resync",
    };
    let next = {
        let stays = |r: &&crate::replication::record::Replica| {
            r.state != ReplicaState::Leaving && task.is_none_or(|t| !ends(t, r.replica_id))
        };
        let stay = set.replicas.iter().filter(stays);
        let mut nodes: Vec<&str> = stay.map(|r| r.node_id.as_str()).collect();
        let new = task.filter(|t| t.state == TaskState::Running);
        let new = new.into_iter().flat_map(TaskRecord::coming);
        nodes.extend(
            new.filter(|new| set.replica(new.replica_id).is_none())
                .map(|new| new.node_id.as_str()),
        );
        format!("[{}]", nodes.join(" "))
    };
    let blocks = |bytes: u64| (bytes / BLOCK_BYTES).to_string();
    let left = task.map_or(0, |t| t.total_bytes.saturating_sub(t.done_bytes));
    [
        ("RuntimeState", state.to_owned()),
        ("ReplicaSetCurr", nodes(false)),
        ("ReplicaSetNext", next),
        ("ReadSet", nodes(true)),
        ("WriteSet", nodes(true)),
        ("ReadQuorum", set.read_quorum().to_string()),
        ("WriteQuorum", set.write_quorum.to_string()),
        ("Minimum", set.minimum.to_string()),
        ("Epoch", set.epoch.to_string()),
        ("ResyncBlocks", blocks(left)),
        (
            "FullResyncBlocks",
            blocks(task.map_or(0, |t| t.total_bytes)),
        ),
    ]
}

/// Whether a replica is gone when a task is over.
fn ends(task: &TaskRecord, id: Uuid) -> bool {
    match task.state {
        TaskState::Undoing => task.coming().any(|r| r.replica_id == id),
        _ => task.old.as_ref().is_some_and(|r| r.replica_id == id),
    }
}

/// UP takes I/O; DEGRADED does with fewer copies than it should have, DOWN does not: nobody serves it, or, detached, nobody could.
pub fn status(
    set: &ReplicationRecord,
    level: u8,
    attachment: Option<&AttachmentRecord>,
    lives: impl Fn(&str) -> bool,
) -> VolumeStatus {
    let members = set
        .replicas
        .iter()
        .filter(|r| r.state == ReplicaState::Member);
    let reached = members.filter(|r| lives(&r.node_id)).count();
    let holder = set.holder.as_ref().map(|h| h.node_id.as_str());
    let works = match attachment {
        Some(a) => {
            set.phase == Phase::Serving
                && holder == Some(a.node_id.as_str())
                && lives(&a.node_id)
                && reached >= usize::from(set.minimum)
        }
        None => reached >= set.read_quorum().max(set.minimum.into()),
    };
    match works {
        false => VolumeStatus::Down,
        true if reached < usize::from(level) => VolumeStatus::Degraded,
        true => VolumeStatus::Up,
    }
}

fn state_name(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Empty => "empty",
        ReplicaState::Member => "member",
        ReplicaState::Behind => "behind",
        ReplicaState::Leaving => "leaving",
    }
}

/// What a coordinator does, in a word.
fn coordinator_name(state: CoordinatorState) -> &'static str {
    match state {
        CoordinatorState::CoordinatorTakingOver => "taking-over",
        CoordinatorState::CoordinatorWaiting => "waiting",
        CoordinatorState::CoordinatorServing => "serving",
        CoordinatorState::CoordinatorStalled => "stalled",
        CoordinatorState::CoordinatorEnded | CoordinatorState::Unspecified => "ended",
    }
}

impl Services {
    /// Where a volume is coordinated, and how its replicas are.
    pub(super) async fn locate_volume(
        &self,
        request: LocateVolumeRequest,
    ) -> Result<Response<LocateVolumeReply>, Status> {
        answer(self.locate(request).await)
    }

    async fn locate(&self, request: LocateVolumeRequest) -> Result<LocateVolumeReply, OpError> {
        let node = self.node();
        let record = node.registry.volume(&request.volume).await?.record;
        let id = record.volume_id;
        // Of a volume that is attached nowhere somebody may coordinate it for a while.
        let attachment = node.registry.any_attachment(id).await?.map(|a| a.record);
        let by = attachment.as_ref().map(|a| a.node_id.clone());
        let by = by.unwrap_or_default();
        let attached = attachment.filter(|a| !a.errand).map(|a| a.node_id);
        let attached = attached.unwrap_or_default();
        let mut reply = LocateVolumeReply {
            volume_id: id.to_string(),
            name: record.name.clone(),
            attached_on: attached.clone(),
            ..Default::default()
        };
        let Some(set) = node.replication(id).await?.map(|s| s.record) else {
            reply.ha_level = 1;
            reply.minimum = 1;
            reply.replicas = vec![ReplicaStatus {
                node_id: record.node_id.clone(),
                pool_id: record.pool_id.to_string(),
                state: "member".into(),
                node_alive: self.lives(&record.node_id),
                error: record.error.clone(),
                ..Default::default()
            }];
            return Ok(reply);
        };
        // Only the coordinator's own node knows how far its replicas are.
        let elsewhere = !by.is_empty() && by != node.node_id();
        if elsewhere
            && !request.here
            && let Some(there) = self.ask(&by, &request.volume).await
        {
            return Ok(there);
        }
        let errors: HashMap<Uuid, String> = {
            let now = node.coordination.seen().volume(id);
            let replicas = now.map(|n| n.replicas).unwrap_or_default();
            replicas
                .into_iter()
                .map(|(id, r)| (id, r.record.error))
                .collect()
        };
        let key = node.registry.keys().task(id);
        let last = node.registry.get::<TaskRecord>(&key).await?;
        let last = last.map(|t| t.record);
        reply.task = last.as_ref().map(task);
        if let (Some(task), Some(last)) = (&mut reply.task, &last)
            && by.is_empty()
            && !last.state.is_over()
        {
            task.error =
                "the volume is attached nowhere: a node coordinates it for this as soon as one can"
                    .into();
        }
        let coordinator = node.coordination.told().coordinator(id).cloned();
        let coordinator = coordinator.filter(|c| c.epoch == set.epoch.number());
        self.describe(&mut reply, &set, coordinator.as_ref(), &errors);
        reply.ha_level = level(set.wanted, last.as_ref()).into();
        reply.trouble = match record.error.is_empty() {
            true => node.coordination.trouble(id).unwrap_or_default(),
            false => record.error,
        };
        Ok(reply)
    }

    fn describe(
        &self,
        reply: &mut LocateVolumeReply,
        set: &ReplicationRecord,
        coordinator: Option<&Coordinator>,
        errors: &HashMap<Uuid, String>,
    ) {
        reply.minimum = set.minimum.into();
        reply.epoch = set.epoch.to_string();
        let holder = set
            .holder
            .as_ref()
            .filter(|_| !reply.attached_on.is_empty());
        reply.coordinator = holder.map(|h| h.node_id.clone()).unwrap_or_default();
        reply.state = match (coordinator, set.phase) {
            _ if reply.attached_on.is_empty() => "detached",
            (Some(c), _) => coordinator_name(c.state()),
            (None, _) if !self.lives(&reply.coordinator) => "away",
            (None, Phase::Serving) => "serving",
            (None, Phase::Taking) => "taking-over",
        }
        .into();
        let peer = |id: Uuid| -> Option<&Peer> {
            let id = id.to_string();
            coordinator?.peers.iter().find(|p| p.replica_id == id)
        };
        let replica = |r: &crate::replication::record::Replica| {
            let peer = peer(r.replica_id);
            ReplicaStatus {
                replica_id: r.replica_id.to_string(),
                node_id: r.node_id.clone(),
                pool_id: r.pool_id.to_string(),
                state: state_name(r.state).into(),
                node_alive: self.lives(&r.node_id),
                connected: peer.map(|p| p.connected),
                behind_records: peer.map(|p| p.behind_records),
                resync_done_bytes: peer.map_or(0, |p| p.resync_done_bytes),
                resync_total_bytes: peer.map_or(0, |p| p.resync_total_bytes),
                resync_copied_bytes: peer.map_or(0, |p| p.resync_copied_bytes),
                error: errors.get(&r.replica_id).cloned().unwrap_or_default(),
            }
        };
        reply.replicas = set.replicas.iter().map(replica).collect();
    }

    fn lives(&self, node_id: &str) -> bool {
        let seen = self.node().coordination.seen();
        Seen::alive(&seen).contains_key(node_id)
    }

    /// The same of another node; `None`: it does not answer.
    async fn ask(&self, node_id: &str, volume: &str) -> Option<LocateVolumeReply> {
        let address = {
            let seen = self.node().coordination.seen();
            let mut nodes = seen.nodes();
            nodes.find(|n| n.node_id == node_id)?.sdk_address.clone()
        };
        let ask = async {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
            let channel = endpoint.connect().await.ok()?;
            let channel = self.node().as_node(channel).await;
            let request = LocateVolumeRequest {
                volume: volume.into(),
                here: true,
            };
            let reply = AdminClient::new(channel).locate_volume(request).await;
            Some(reply.ok()?.into_inner())
        };
        tokio::time::timeout(ASK_LIMIT, ask).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_volume_is_up_while_a_takeover_could_succeed() {
        let replica = |n: u128| (Uuid::from_u128(n), format!("n{n}"), Uuid::nil());
        let set = ReplicationRecord::new(0, [1, 2, 3].map(replica), 2, 3).unwrap();
        let alive = |nodes: &'static [&'static str]| move |node: &str| nodes.contains(&node);
        let of = |nodes| status(&set, 3, None, alive(nodes));
        assert_eq!(of(&["n1", "n2", "n3"]), VolumeStatus::Up);
        assert_eq!(of(&["n1", "n3"]), VolumeStatus::Degraded);
        assert_eq!(of(&["n2"]), VolumeStatus::Down);
        let state = runtime_state(&set, None).runtime_state;
        assert_eq!(state["RuntimeState"], "clean");
        assert_eq!(state["WriteSet"], "[n1 n2 n3]");
        assert_eq!(
            (state["ReadQuorum"].as_str(), state["WriteQuorum"].as_str()),
            ("2", "2")
        );
    }
}
