//! Between the words of the contract and those of a coordinator.

use keelblock_api::datapath as proto;
use proto::answer_set_change_request::Outcome as Told;
use proto::set_change::Change as Asked;
use uuid::Uuid;

use super::super::CommandError;
use super::super::convert::volume_id;
use super::forwarding::Forward;
use super::serving::ServedKeys;
use crate::cipher::{KEY_BYTES, Secret};
use crate::replication::seam::Id;
use crate::replication::wire::hello::PeerId;
use crate::replication::wire::snapshots::SNAPSHOTS_MAX;
use crate::store::VolumeId;
use crate::store::types::SnapshotId;
use crate::volume::coordinator::message::End;
use crate::volume::coordinator::set::{Change, Outcome, ReplicaState, Request, VolumeRecord};
use crate::volume::coordinator::state::{Named, Standing};

/// A UUID's bytes.
pub fn uuid_bytes(field: &'static str, text: &str) -> Result<Id, CommandError> {
    let uuid = Uuid::parse_str(text);
    let uuid = uuid.map_err(|e| CommandError::field(field, format!("{text:?} is no UUID: {e}")))?;
    Ok(uuid.into_bytes())
}

fn id_text(id: Id) -> String {
    Uuid::from_bytes(id).to_string()
}

fn sixteen(field: &'static str, bytes: &[u8]) -> Result<Id, CommandError> {
    let found = bytes.try_into();
    found.map_err(|_| CommandError::field(field, format!("{} bytes: 16 are needed", bytes.len())))
}

/// A record, with which a coordinator works.
pub fn record_of(record: &proto::SetRecord) -> Result<VolumeRecord, CommandError> {
    let mut replicas = Vec::with_capacity(record.replicas.len());
    for replica in &record.replicas {
        let id = uuid_bytes("record.replicas.replica_id", &replica.replica_id)?;
        let state = match replica.role() {
            proto::ReplicaRole::ReplicaEmpty => ReplicaState::Empty,
            proto::ReplicaRole::ReplicaMember => ReplicaState::Member,
            proto::ReplicaRole::ReplicaBehind => ReplicaState::Behind,
            proto::ReplicaRole::ReplicaLeaving => ReplicaState::Leaving,
            proto::ReplicaRole::Unspecified => {
                return Err(CommandError::field(
                    "record.replicas.role",
                    "it is not given",
                ));
            }
        };
        replicas.push((id, state));
    }
    let minimum = u8::try_from(record.minimum).ok().filter(|m| *m > 0);
    let minimum = minimum.ok_or_else(|| {
        let why = format!("{} cannot be a minimum", record.minimum);
        CommandError::field("record.minimum", why)
    })?;
    Ok(VolumeRecord {
        version: record.version,
        epoch: record.epoch,
        incarnation: sixteen("record.incarnation", &record.incarnation)?,
        attempt: sixteen("record.attempt", &record.attempt)?,
        serving: record.serving,
        minimum,
        replicas,
    })
}

/// A node, as sessions have it.
pub fn peer_of(field: &'static str, node: &str) -> Result<PeerId, CommandError> {
    PeerId::new(node).ok_or_else(|| {
        let why = format!("{node:?} is no name of a node");
        CommandError::field(field, why)
    })
}

/// Who coordinates a volume on another node.
pub fn forward_of(forward: &proto::ForwardTo) -> Result<Forward, CommandError> {
    Ok(Forward {
        node: peer_of("forward.node_id", &forward.node_id)?,
        epoch: forward.epoch,
        incarnation: sixteen("forward.incarnation", &forward.incarnation)?,
    })
}

/// Where the replicas of a record are, in its order.
pub fn route_of(record: &proto::SetRecord) -> Result<Vec<(Id, PeerId)>, CommandError> {
    let route = |replica: &proto::SetReplica| {
        let id = uuid_bytes("record.replicas.replica_id", &replica.replica_id)?;
        Ok((id, peer_of("record.replicas.node_id", &replica.node_id)?))
    };
    record.replicas.iter().map(route).collect()
}

/// A record as the contract has it; `nodes` says where replicas are.
pub fn record_to(record: &VolumeRecord, nodes: &[(Id, PeerId)]) -> proto::SetRecord {
    let replicas = record.replicas.iter().map(|(id, state)| proto::SetReplica {
        replica_id: id_text(*id),
        node_id: node_of(*id, nodes),
        role: match state {
            ReplicaState::Empty => proto::ReplicaRole::ReplicaEmpty,
            ReplicaState::Member => proto::ReplicaRole::ReplicaMember,
            ReplicaState::Behind => proto::ReplicaRole::ReplicaBehind,
            ReplicaState::Leaving => proto::ReplicaRole::ReplicaLeaving,
        }
        .into(),
    });
    proto::SetRecord {
        version: record.version,
        epoch: record.epoch,
        incarnation: record.incarnation.to_vec(),
        attempt: record.attempt.to_vec(),
        serving: record.serving,
        minimum: u32::from(record.minimum),
        replicas: replicas.collect(),
    }
}

/// The node of a replica; empty if it is not known.
pub fn node_of(id: Id, nodes: &[(Id, PeerId)]) -> String {
    let found = nodes.iter().find(|(of, _)| *of == id);
    found.map_or_else(String::new, |(_, node)| node.as_str().to_owned())
}

/// What a coordinator asks for. `added`: where the replica is that it was told to add; `None`: that is another one, so nothing can be asked for.
pub fn change_to(
    volume: VolumeId,
    request: &Request,
    added: Option<&proto::NewReplica>,
) -> Option<proto::SetChange> {
    let ids = |ids: &[Id]| proto::ReplicaIds {
        replica_ids: ids.iter().copied().map(id_text).collect(),
    };
    let change = match &request.change {
        Change::Serve(members) => Asked::Serve(ids(members)),
        Change::Exclude(who) => Asked::Exclude(ids(who)),
        Change::Join(id) => Asked::Admit(id_text(*id)),
        Change::Leave(id) => Asked::Leave(id_text(*id)),
        Change::Remove(id) => Asked::Remove(id_text(*id)),
        Change::Minimum(minimum) => Asked::Minimum(u32::from(*minimum)),
        Change::Add(id) => {
            let id = id_text(*id);
            Asked::Add(added.filter(|new| new.replica_id == id)?.clone())
        }
    };
    let record = &request.record;
    Some(proto::SetChange {
        volume_id: volume.to_string(),
        expected_version: request.expected,
        epoch: record.epoch,
        incarnation: record.incarnation.to_vec(),
        attempt: record.attempt.to_vec(),
        change: Some(change),
    })
}

/// The snapshots that the KVDB names.
pub fn named_of(all: &[proto::NamedSnapshot]) -> Result<Vec<Named>, CommandError> {
    let named = |n: &proto::NamedSnapshot| {
        Ok(Named {
            id: SnapshotId(uuid_bytes("snapshots.snapshot_id", &n.snapshot_id)?),
            ready: n.ready,
        })
    };
    if all.len() > SNAPSHOTS_MAX {
        let why = format!("{}: {SNAPSHOTS_MAX} are the most", all.len());
        return Err(CommandError::field("snapshots", why));
    }
    all.iter().map(named).collect()
}

/// The keys of an encrypted volume.
pub fn keys_of(keys: proto::DataKeys) -> Result<ServedKeys, CommandError> {
    let mut all = Vec::with_capacity(keys.keys.len());
    for mut key in keys.keys {
        let id = sixteen("keys.id", &key.id)?;
        let secret = Secret::take(std::mem::take(&mut key.secret));
        let why = || CommandError::field("keys.secret", format!("it has not {KEY_BYTES} bytes"));
        all.push((key.index, id, secret.ok_or_else(why)?));
    }
    Ok(ServedKeys {
        current: keys.current,
        all,
    })
}

/// What came of a change: of which volume, epoch and version, and what.
pub fn answer_of(
    request: &proto::AnswerSetChangeRequest,
) -> Result<(VolumeId, u32, u64, Outcome), CommandError> {
    let outcome = match &request.outcome {
        Some(Told::Done(_)) => Outcome::Done,
        Some(Told::Conflict(record)) => Outcome::Conflict(record_of(record)?),
        Some(Told::Unknown(_)) => Outcome::Unknown,
        Some(Told::Refused(_)) => Outcome::Refused,
        None => return Err(CommandError::field("outcome", "it is not given")),
    };
    let volume = volume_id(&request.volume_id)?;
    Ok((volume, request.epoch, request.expected_version, outcome))
}

/// What a standing is called, why it ended, and what a person is to look at.
pub fn state_to(standing: Standing) -> (proto::CoordinatorState, proto::EndReason, String) {
    use proto::{CoordinatorState as State, EndReason as Why};
    let state = |state| (state, Why::Unspecified, String::new());
    match standing {
        Standing::Promising | Standing::Completing | Standing::Swapping => {
            state(State::CoordinatorTakingOver)
        }
        Standing::Waiting | Standing::Degraded => state(State::CoordinatorWaiting),
        Standing::Serving | Standing::InDoubt => state(State::CoordinatorServing),
        Standing::Stalled => state(State::CoordinatorStalled),
        Standing::Ended(end) => {
            let (why, alarm) = match end {
                End::Epoch(_) | End::Conflict => (Why::EndSuperseded, ""),
                End::Detached => (Why::EndDetached, ""),
                End::Again => (Why::EndAgain, ""),
                End::Alarm(what) => (Why::EndAlarm, what),
            };
            (State::CoordinatorEnded, why, alarm.to_owned())
        }
    }
}
