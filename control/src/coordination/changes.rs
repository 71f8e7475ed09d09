//! What coordinators ask for (K2 to K6): done as the record allows, and answered. Each by itself, as writes may be held up meanwhile.

use std::sync::Arc;
use std::time::Duration;

use keelblock_api::datapath::answer_set_change_request::Outcome as Answer;
use keelblock_api::datapath::set_change::Change as Wish;
use keelblock_api::datapath::{
    AnswerSetChangeRequest, ReplicaIds, ReplicaRole, SetChange, SetDone, SetRecord, SetRefused,
    SetReplica, SetUnknown,
};
use uuid::Uuid;

use crate::error::OpError;
use crate::node::Node;
use crate::replication::change::{Change, ChangeError, submit};
use crate::replication::record::{Epoch, Phase, ReplicaState, ReplicationRecord, Token};
use crate::replication::swap::{self, Outcome};
use crate::replication::transition::{Coordinator, Refusal};

/// How long it is tried to find out what became of a change. The coordinator asks again.
const PATIENCE: Duration = Duration::from_secs(3);

impl Node {
    /// Makes a change that a coordinator of this node's data path asks for, beside everything else. The same that is under way already is not made twice.
    pub(crate) fn set_change(self: &Arc<Self>, change: SetChange) {
        let Ok(id) = Uuid::try_parse(&change.volume_id) else {
            tracing::error!(
                volume = change.volume_id,
                "a change of a volume whose id is none"
            );
            return;
        };
        let asked = (id, change.epoch, change.expected_version);
        if !self.coordination.asked().insert(asked) {
            return;
        }
        let node = self.clone();
        tokio::spawn(async move {
            let outcome = node.make_change(id, &change).await;
            // What comes from now on is another asking.
            node.coordination.asked().remove(&asked);
            if let Err(error) = node.answer_change(&change, outcome).await {
                tracing::warn!(volume = %id, %error, "the outcome of a change cannot be told; it will be asked for again");
            }
        });
    }

    async fn make_change(&self, id: Uuid, change: &SetChange) -> Answer {
        match self.try_change(id, change).await {
            Ok(Outcome::Done(done)) => {
                tracing::info!(volume = %id, version = done.record.version, members = done.record.members.len(), "set changed");
                if let Some(Wish::Exclude(those)) = &change.change
                    && let Ok(those) = ids(those)
                    && let Err(error) = self.excluded(id, &those).await
                {
                    tracing::warn!(volume = %id, %error, "that a replica is compared anew cannot be written down: it will be once more");
                }
                Answer::Done(SetDone {})
            }
            Ok(Outcome::Conflict(found)) => {
                Answer::Conflict(conflict(found.as_ref().map(|f| &f.record)))
            }
            Ok(Outcome::Unknown(error)) => {
                tracing::warn!(volume = %id, %error, "what became of a change is not known");
                Answer::Unknown(SetUnknown {})
            }
            Err(ChangeError::Refused(refusal)) if !ended(&refusal) => {
                tracing::warn!(volume = %id, epoch = change.epoch, version = change.expected_version, %refusal, "a coordinator asks for what the record does not allow");
                Answer::Refused(SetRefused {})
            }
            Err(error) => {
                // It never will be made: as a conflict with the record as it is.
                tracing::error!(volume = %id, epoch = change.epoch, version = change.expected_version, %error, "a coordinator asks for what cannot be");
                let key = self.registry.keys().replication(id);
                match swap::read(self.registry.kv(), &key).await {
                    Ok(found) => Answer::Conflict(conflict(found.as_ref().map(|f| &f.record))),
                    Err(_) => Answer::Unknown(SetUnknown {}),
                }
            }
        }
    }

    async fn try_change(&self, id: Uuid, change: &SetChange) -> Result<Outcome, ChangeError> {
        let malformed = |error: OpError| ChangeError::Malformed(error.to_string());
        let by = Coordinator {
            epoch: Epoch::from_number(change.epoch),
            incarnation: token(&change.incarnation).map_err(malformed)?,
            attempt: token(&change.attempt).map_err(malformed)?,
        };
        let wish = wish(change).map_err(malformed)?;
        let key = self.registry.keys().replication(id);
        let asked = (by, change.expected_version);
        submit(self.registry.kv(), &key, asked, &wish, PATIENCE).await
    }

    async fn answer_change(&self, change: &SetChange, outcome: Answer) -> Result<(), OpError> {
        let answer = AnswerSetChangeRequest {
            volume_id: change.volume_id.clone(),
            epoch: change.epoch,
            expected_version: change.expected_version,
            outcome: Some(outcome),
        };
        let told =
            self.link
                .call_within(PATIENCE, "answer a change of a set", |mut c| async move {
                    c.answer_set_change(answer).await
                });
        told.await.map(drop)
    }
}

/// Whether a coordinator that is refused so has ended: it is told by the record as it is.
fn ended(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Epoch { .. } | Refusal::Holder(_))
}

/// No process, and no attempt of one: tokens are random.
const NOBODY: [u8; 16] = [0; 16];

fn token(bytes: &[u8]) -> Result<Token, OpError> {
    let bytes = bytes.try_into();
    bytes
        .map(Token)
        .map_err(|_| OpError::Internal("a token that has not 16 bytes".into()))
}

fn id(text: &str) -> Result<Uuid, OpError> {
    Uuid::try_parse(text).map_err(|_| OpError::Internal(format!("{text:?} is no id")))
}

fn ids(list: &ReplicaIds) -> Result<Vec<Uuid>, OpError> {
    list.replica_ids.iter().map(|text| id(text)).collect()
}

fn wish(change: &SetChange) -> Result<Change, OpError> {
    let wish = change.change.as_ref();
    let wish = wish.ok_or_else(|| OpError::Internal("a change of nothing".into()))?;
    Ok(match wish {
        Wish::Serve(members) => Change::Serve {
            members: ids(members)?,
            found: Vec::new(),
        },
        Wish::Exclude(those) => Change::Exclude(ids(those)?),
        Wish::Admit(one) => Change::Admit(id(one)?),
        Wish::Add(new) => Change::Add {
            replica_id: id(&new.replica_id)?,
            node_id: new.node_id.clone(),
            pool_id: id(&new.pool_id)?,
        },
        Wish::Leave(one) => Change::Leave(id(one)?),
        Wish::Remove(one) => Change::Remove(id(one)?),
        Wish::Minimum(minimum) => {
            let minimum = u8::try_from(*minimum);
            Change::Minimum(minimum.map_err(|_| OpError::Internal("a minimum above 255".into()))?)
        }
    })
}

/// The record as it is; none: one of nobody, by which whoever asks has ended.
fn conflict(record: Option<&ReplicationRecord>) -> SetRecord {
    let nobody = || SetRecord {
        incarnation: NOBODY.into(),
        attempt: NOBODY.into(),
        minimum: 1,
        ..SetRecord::default()
    };
    record.map_or_else(nobody, set_record)
}

/// A record, as coordinators know it.
pub fn set_record(record: &ReplicationRecord) -> SetRecord {
    let holder = record.holder.as_ref();
    let role = |state| match state {
        ReplicaState::Empty => ReplicaRole::ReplicaEmpty,
        ReplicaState::Member => ReplicaRole::ReplicaMember,
        ReplicaState::Behind => ReplicaRole::ReplicaBehind,
        ReplicaState::Leaving => ReplicaRole::ReplicaLeaving,
    };
    SetRecord {
        version: record.version,
        epoch: record.epoch.number(),
        incarnation: holder.map_or(NOBODY, |h| h.incarnation.0).to_vec(),
        attempt: holder.map_or(NOBODY, |h| h.attempt.0).to_vec(),
        serving: record.phase == Phase::Serving,
        minimum: record.minimum.into(),
        replicas: record
            .replicas
            .iter()
            .map(|r| SetReplica {
                replica_id: r.replica_id.to_string(),
                node_id: r.node_id.clone(),
                role: role(r.state).into(),
            })
            .collect(),
    }
}
