//! Writing a record where it still is as it was read. The reply may be lost, and what was sent may be applied long after: then the outcome is
//! *unknown*, and sending the very same again finds it out. Whichever of them is applied first, the others find another revision.

use std::time::Duration;

use keelblock_api::etcd::mvccpb::KeyValue;
use tokio::time::Instant;

use super::record::ReplicationRecord;
use crate::kvdb::client::{Committed, Guard, Revision, Write};
use crate::kvdb::{Client, KvError};
use crate::records::{Versioned, encode};

/// How long it waits before it sends again: at first, and doubled up to the second.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What swaps need of a KVDB.
pub trait Kvdb: Sync {
    /// A key, if it exists.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<KeyValue>, KvError>> + Send;

    /// Does all of `writes` if all of `guards` hold.
    fn commit(
        &self,
        guards: Vec<Guard>,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<Committed, KvError>> + Send;
}

impl Kvdb for Client {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, KvError> {
        Client::get(self, key).await
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Committed, KvError> {
        Client::commit(self, guards, writes).await
    }
}

/// A change that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Swap<'a> {
    /// The record's key.
    pub key: &'a str,
    /// Where it was read.
    pub from: Revision,
    /// What it is to be.
    pub to: &'a ReplicationRecord,
}

/// What became of a swap.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The record is as it was to be.
    Done(Versioned<ReplicationRecord>),
    /// Another change was first. The record as it is; `None`: there is none any more.
    Conflict(Option<Versioned<ReplicationRecord>>),
    /// It may be done, may not be, and may be done later.
    Unknown(KvError),
}

/// Why a swap has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SwapError {
    /// The KVDB refused it, and will again.
    #[error(transparent)]
    Kvdb(KvError),
    /// What is there is no record.
    #[error("the record {key} in the KVDB cannot be read: {why}")]
    Unreadable {
        /// Where.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads the record of that key.
///
/// # Errors
/// [`SwapError`]; of a KVDB that does not answer too.
pub async fn read(
    kv: &impl Kvdb,
    key: &str,
) -> Result<Option<Versioned<ReplicationRecord>>, SwapError> {
    let Some(found) = kv.get(key).await.map_err(SwapError::Kvdb)? else {
        return Ok(None);
    };
    let record = serde_json::from_slice(&found.value);
    let record = record.map_err(|error| SwapError::Unreadable {
        key: key.to_owned(),
        why: error.to_string(),
    })?;
    Ok(Some(Versioned {
        record,
        revision: found.mod_revision,
    }))
}

/// Sends a swap once. `also` must hold besides; if it does not, that is a conflict with the record as it was.
///
/// # Errors
/// [`SwapError`]: it was not done.
pub async fn once(kv: &impl Kvdb, swap: Swap<'_>, also: &[Guard]) -> Result<Outcome, SwapError> {
    let mut guards = vec![Guard::at(swap.key, swap.from)];
    guards.extend_from_slice(also);
    let write = Write::put(swap.key, encode(swap.to));
    let revision = match kv.commit(guards, vec![write]).await {
        Ok(Committed::Yes(revision)) => revision,
        Ok(Committed::No) => return beaten(kv, swap).await,
        Err(error) if error.is_transient() => return Ok(Outcome::Unknown(error)),
        Err(error) => return Err(SwapError::Kvdb(error)),
    };
    let record = swap.to.clone();
    Ok(Outcome::Done(Versioned { record, revision }))
}

/// It was not done now. If the record is what it was to be, an earlier sending was.
async fn beaten(kv: &impl Kvdb, swap: Swap<'_>) -> Result<Outcome, SwapError> {
    match read(kv, swap.key).await {
        Ok(Some(found)) if found.record == *swap.to => Ok(Outcome::Done(found)),
        Ok(found) => Ok(Outcome::Conflict(found)),
        Err(SwapError::Kvdb(error)) if error.is_transient() => Ok(Outcome::Unknown(error)),
        Err(error) => Err(error),
    }
}

/// Sends a swap until its outcome is known, for so long. If it still is unknown then, the same may be called again with the same swap.
///
/// # Errors
/// [`SwapError`]: it was not done, by any of them.
pub async fn until_known(
    kv: &impl Kvdb,
    swap: Swap<'_>,
    patience: Duration,
) -> Result<Outcome, SwapError> {
    let (mut wait, longest) = WAIT;
    let end = Instant::now() + patience;
    loop {
        let outcome = once(kv, swap, &[]).await?;
        let again = Instant::now() + wait;
        if !matches!(outcome, Outcome::Unknown(_)) || again > end {
            return Ok(outcome);
        }
        tokio::time::sleep_until(again).await;
        wait = longest.min(wait * 2);
    }
}
