//! What a coordinator asks its control process for: one transition of K2 to K6, from the version that it knows.

use std::time::Duration;

use uuid::Uuid;

use super::record::{Replica, ReplicationRecord};
use super::swap::{self, Kvdb, Outcome, Swap, SwapError};
use super::transition::{self, Coordinator, Refusal};

/// A transition of the epoch's holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// K2.
    Serve {
        /// Who took part.
        members: Vec<Uuid>,
        /// Replicas that an unverified record does not know.
        found: Vec<Replica>,
    },
    /// K3.
    Exclude(Vec<Uuid>),
    /// K4.
    Admit(Uuid),
    /// K5: there is another replica.
    Add {
        /// Its id.
        replica_id: Uuid,
        /// Its node.
        node_id: String,
        /// Its pool.
        pool_id: Uuid,
    },
    /// K5: it is to be deleted.
    Leave(Uuid),
    /// K5: it is deleted.
    Remove(Uuid),
    /// K6.
    Minimum(u8),
}

impl Change {
    /// What becomes of a record by it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn apply(
        &self,
        record: &ReplicationRecord,
        by: Coordinator,
    ) -> Result<ReplicationRecord, Refusal> {
        match self {
            Self::Serve { members, found } => transition::serve(record, by, members, found),
            Self::Exclude(those) => transition::exclude(record, by, those),
            Self::Admit(one) => transition::admit(record, by, *one),
            Self::Add {
                replica_id,
                node_id,
                pool_id,
            } => transition::add(record, by, *replica_id, node_id, *pool_id),
            Self::Leave(one) => transition::leave(record, by, *one),
            Self::Remove(one) => transition::remove(record, by, *one),
            Self::Minimum(minimum) => transition::set_minimum(record, by, *minimum),
        }
    }
}

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChangeError {
    /// The record is as the coordinator knows it, and does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something is wrong with the KVDB or the record.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Malformed(String),
}

/// Makes a change of the record of that key, if its version is still `version`. Asked again with the same, it does not do it twice. A conflict of
/// the coordinator's own epoch may be what came of its change and of a later one (K8): nobody else changes the set, so the set in it counts.
///
/// # Errors
/// [`ChangeError`]: it was not made, and will not be.
pub async fn submit(
    kv: &impl Kvdb,
    key: &str,
    (by, version): (Coordinator, u64),
    change: &Change,
    patience: Duration,
) -> Result<Outcome, ChangeError> {
    let found = match swap::read(kv, key).await {
        Ok(Some(found)) if found.record.version == version => found,
        Ok(other) => return Ok(Outcome::Conflict(other)),
        // What was asked before may still be on its way.
        Err(SwapError::Kvdb(error)) if error.is_transient() => return Ok(Outcome::Unknown(error)),
        Err(error) => return Err(error.into()),
    };
    let to = change.apply(&found.record, by)?;
    let swap = Swap {
        key,
        from: found.revision,
        to: &to,
    };
    Ok(swap::until_known(kv, swap, patience).await?)
}
