//! K1: an epoch for a process of a node that is to coordinate a volume.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::record::{Epoch, Holder, ReplicationRecord, Token};
use super::swap::{self, Kvdb, Outcome, Swap, SwapError};
use super::transition::{self, Coordinator, Refusal};
use crate::kvdb::KvError;
use crate::kvdb::client::{Guard, Revision};
use crate::records::{ClusterRecord, Keys, Versioned};

/// How long it tries. Who asks has deadlines of its own, above it.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const WAIT: Duration = Duration::from_millis(100);

/// Who is to coordinate.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its node.
    pub node_id: String,
    /// Of its data path.
    pub incarnation: Token,
}

/// An epoch that was given.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The record, with which it is to serve.
    pub record: Versioned<ReplicationRecord>,
    /// To whom.
    pub coordinator: Coordinator,
    /// The KVDB was restored since its set was known to be right (rule 10): all replicas are to be heard.
    pub unverified: bool,
}

/// Why no epoch was given.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AttachError {
    /// The volume has no record of replicas.
    #[error("volume {0} has no record of its replicas in the KVDB")]
    NoRecord(Uuid),
    /// The cluster has no record.
    #[error("the KVDB has no record of the cluster")]
    NoCluster,
    /// The record does not allow it.
    #[error("volume {volume} cannot be attached: {refusal}")]
    Refused {
        /// The volume.
        volume: Uuid,
        /// Why.
        refusal: Refusal,
    },
    /// Another process was given an epoch at the same time.
    #[error("volume {volume} was attached on node {node_id} at the same time")]
    Beaten {
        /// The volume.
        volume: Uuid,
        /// Where it is now.
        node_id: String,
    },
    /// Others changed the record all the time.
    #[error("volume {0} was changed by others at the same time, again and again: try again")]
    Contended(Uuid),
    /// The KVDB was restored since its set was known to be right (rule 10), and something is in the way of hearing all replicas.
    #[error(
        "which replicas of volume {volume} have everything is not known since the KVDB was restored, and {why}; or say so with `keelctl volume decide-replicas`, then attach it"
    )]
    Unverified {
        /// The volume.
        volume: Uuid,
        /// What is in the way, and the way out.
        why: String,
    },
    /// The KVDB did not answer in time. Epochs may have been raised, for nobody.
    #[error("whether volume {volume} got an epoch is not known: {reason}; try again")]
    Unknown {
        /// The volume.
        volume: Uuid,
        /// What was seen.
        reason: KvError,
    },
    /// Something is wrong with the KVDB or its records.
    #[error(transparent)]
    Swap(#[from] SwapError),
}

/// Gives the next epoch of a volume to a process. An attempt whose outcome is not known is given up for another, above it: so nobody ever
/// serves an epoch of which he does not know that it is his (rule 2).
///
/// # Errors
/// [`AttachError`].
pub async fn attach(
    kv: &impl Kvdb,
    keys: &Keys,
    volume: Uuid,
    process: &Process,
    patience: Duration,
) -> Result<Taken, AttachError> {
    let key = keys.replication(volume);
    let end = Instant::now() + patience;
    let mut epoch = None;
    loop {
        let why = match attempt(kv, keys, &key, (volume, process), &mut epoch).await {
            Ok(Ok(taken)) => return Ok(taken),
            Ok(Err(Lost::Beaten)) => AttachError::Contended(volume),
            Ok(Err(Lost::Unknown(reason))) => AttachError::Unknown { volume, reason },
            Err(AttachError::Swap(SwapError::Kvdb(reason))) if reason.is_transient() => {
                AttachError::Unknown { volume, reason }
            }
            Err(error) => return Err(error),
        };
        if Instant::now() + WAIT > end {
            return Err(why);
        }
        tokio::time::sleep(WAIT).await;
    }
}

/// Why an attempt is to be followed by another.
enum Lost {
    Beaten,
    Unknown(KvError),
}

async fn attempt(
    kv: &impl Kvdb,
    keys: &Keys,
    key: &str,
    (volume, process): (Uuid, &Process),
    first: &mut Option<Epoch>,
) -> Result<Result<Taken, Lost>, AttachError> {
    let (generation, cluster) = generation(kv, keys).await?;
    let found = swap::read(kv, key).await?;
    let found = found.ok_or(AttachError::NoRecord(volume))?;
    let unverified = found.record.unverified(generation);
    let before = *first.get_or_insert(found.record.epoch);
    if let Some(other) = other(&found.record, before, process) {
        let node_id = other.node_id.clone();
        return Err(AttachError::Beaten { volume, node_id });
    }
    let holder = Holder {
        node_id: process.node_id.clone(),
        incarnation: process.incarnation,
        attempt: Token::random(),
    };
    let attempt = holder.attempt;
    let to = transition::take(&found.record, generation, holder)
        .map_err(|refusal| AttachError::Refused { volume, refusal })?;
    let swap = Swap {
        key,
        from: found.revision,
        to: &to,
    };
    // A KVDB that was restored meanwhile has raised the cluster's generation: then this epoch is too low.
    // While that goes on, what is read may be put back yet.
    let also = [
        Guard::at(keys.cluster(), cluster),
        Guard::absent(keys.restore()),
    ];
    match swap::once(kv, swap, &also).await? {
        Outcome::Done(record) => {
            let coordinator = Coordinator {
                epoch: record.record.epoch,
                incarnation: process.incarnation,
                attempt,
            };
            Ok(Ok(Taken {
                record,
                coordinator,
                unverified,
            }))
        }
        Outcome::Conflict(_) => Ok(Err(Lost::Beaten)),
        Outcome::Unknown(reason) => Ok(Err(Lost::Unknown(reason))),
    }
}

/// Who took an epoch since this began, if that was somebody else: two who raise it in turns would get nowhere.
fn other<'a>(
    record: &'a ReplicationRecord,
    before: Epoch,
    process: &Process,
) -> Option<&'a Holder> {
    let holder = record.holder.as_ref().filter(|_| record.epoch != before);
    holder.filter(|h| h.incarnation != process.incarnation)
}

/// The cluster's generation, and where it was read.
async fn generation(kv: &impl Kvdb, keys: &Keys) -> Result<(u8, Revision), AttachError> {
    let key = keys.cluster();
    let found = kv.get(&key).await.map_err(SwapError::Kvdb)?;
    let found = found.ok_or(AttachError::NoCluster)?;
    let cluster = serde_json::from_slice::<ClusterRecord>(&found.value);
    let cluster = cluster.map_err(|error| SwapError::Unreadable {
        key,
        why: error.to_string(),
    })?;
    Ok((cluster.generation, found.mod_revision))
}
