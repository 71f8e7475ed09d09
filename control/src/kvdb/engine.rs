//! The writing thread: takes requests from a bounded queue, applies as many as are waiting to one transaction of the file,
//! commits it (synced), and only then answers them and tells watchers the new revision. That is a group commit: the cost
//! of a sync is shared by all who waited for it, and nobody hears of a change that a power cut could undo.
use super::error::StoreError;
use super::lease::Leases;
use super::recent::Recent;
use super::store::Store;
use super::txn::Writer;
use keelblock_api::etcd::etcdserverpb::*;
use redb::Durability;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait; those beyond wait for a place.
const QUEUE: usize = 1024;
/// Requests in one commit.
const BATCH_MAX: usize = 128;
/// Revisions kept when the store compacts itself, so that a watcher that was away for a while can go on where it was.
pub const HISTORY_REVISIONS: u64 = 10_000;

/// A request that changes the store.
#[derive(Debug)]
pub enum Change {
    /// Sets a key.
    Put(PutRequest),
    /// Deletes keys.
    DeleteRange(DeleteRangeRequest),
    /// Compares and does.
    Txn(TxnRequest),
    /// Forgets what is older than the revision.
    Compact(i64),
    /// Makes a lease: id and seconds.
    Grant(i64, i64),
    /// Ends a lease at its owner's wish.
    Revoke(i64),
    /// Ends a lease whose time is over, unless it was renewed meanwhile.
    Expire(i64),
}

/// What a change came to.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Change::Put`].
    Put(PutResponse),
    /// Of [`Change::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// Of [`Change::Txn`].
    Txn(TxnResponse),
    /// Of the others.
    Done,
}

type Answer = Result<(Outcome, u64), StoreError>;

struct Job {
    change: Change,
    answer: oneshot::Sender<Answer>,
}

/// The door to the writing thread. The thread ends when the last door is gone.
#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
    revision: watch::Receiver<u64>,
    recent: Arc<Recent>,
}

impl Engine {
    /// Starts the writing thread.
    pub fn start(
        store: Arc<Store>,
        leases: Arc<Leases>,
    ) -> Result<(Self, JoinHandle<()>), StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let current = store.snapshot()?.revisions.current;
        let (publish, revision) = watch::channel(current);
        let recent = Arc::new(Recent::new(current));
        let newest = recent.clone();
        let thread = std::thread::Builder::new().name("kvdb-writer".into());
        let thread = thread.spawn(move || write_loop(&store, &leases, &newest, queue, &publish));
        Ok((
            Self {
                jobs,
                revision,
                recent,
            },
            thread.map_err(|e| StoreError::Storage(e.to_string()))?,
        ))
    }

    /// Does a change; what it came to, and the store's revision then. Durable when this returns.
    pub async fn change(&self, change: Change) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.jobs
            .send(Job { change, answer })
            .await
            .map_err(|_| StoreError::Stopped)?;
        answered.await.map_err(|_| StoreError::Stopped)?
    }

    /// The newest changes, all that were before [`Self::revision`] says so among them.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// The newest durable revision, and how to wait for the next.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }
}

fn write_loop(
    store: &Store,
    leases: &Leases,
    recent: &Recent,
    mut queue: mpsc::Receiver<Job>,
    publish: &watch::Sender<u64>,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        match commit(store, leases, recent, &batch) {
            Ok((answers, revision)) => {
                publish.send_if_modified(|r| std::mem::replace(r, revision) != revision);
                for (job, answer) in batch.drain(..).zip(answers) {
                    settle_lease(leases, &job.change, &answer);
                    // A client that no longer waits is no error.
                    let _ = job.answer.send(answer);
                }
            }
            Err(error) => {
                tracing::error!(%error, requests = batch.len(), "kvdb: commit failed");
                for job in batch.drain(..) {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Applies a batch and syncs it. An error of the file fails the whole batch; a refused request only itself.
fn commit(
    store: &Store,
    leases: &Leases,
    recent: &Recent,
    batch: &[Job],
) -> Result<(Vec<Answer>, u64), StoreError> {
    let mut txn = store.db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    let mut answers = Vec::with_capacity(batch.len());
    let (at, dirty, events) = {
        let mut writer = Writer::new(&txn)?;
        for job in batch {
            match apply(&mut writer, leases, &job.change) {
                Ok(outcome) => answers.push(Ok((outcome, writer.revisions.current))),
                Err(error @ (StoreError::Storage(_) | StoreError::Damaged { .. })) => {
                    return Err(error);
                }
                Err(refused) => answers.push(Err(refused)),
            }
        }
        compact_history(&mut writer)?;
        (writer.revisions, writer.dirty, writer.events)
    };
    if dirty {
        txn.commit()?;
        // Not before: nobody is to hear of what a power cut could undo.
        recent.append(events, at.current, at.compacted);
    }
    Ok((answers, at.current))
}

fn apply(writer: &mut Writer<'_>, leases: &Leases, change: &Change) -> Result<Outcome, StoreError> {
    match change {
        Change::Put(request) => writer.put(request).map(Outcome::Put),
        Change::DeleteRange(request) => writer.delete_range(request).map(Outcome::DeleteRange),
        Change::Txn(request) => writer.txn(request).map(Outcome::Txn),
        Change::Compact(revision) => writer.compact(*revision).map(|()| Outcome::Done),
        Change::Grant(id, ttl) => writer.lease_grant(*id, *ttl).map(|()| Outcome::Done),
        Change::Revoke(id) => writer.lease_revoke(*id).map(|()| Outcome::Done),
        Change::Expire(id) if leases.begin_end(*id, Instant::now()) => {
            writer.lease_revoke(*id).map(|()| Outcome::Done)
        }
        Change::Expire(_) => Err(StoreError::LeaseNotFound),
    }
}

/// Keeps history between one and two times [`HISTORY_REVISIONS`], so that it costs a sweep only now and then.
fn compact_history(writer: &mut Writer<'_>) -> Result<(), StoreError> {
    let at = writer.revisions;
    if at.current.saturating_sub(at.compacted) > 2 * HISTORY_REVISIONS {
        writer.compact((at.current - HISTORY_REVISIONS) as i64)?;
    }
    Ok(())
}

/// The deadline of a lease follows what the file says, after the commit.
fn settle_lease(leases: &Leases, change: &Change, answer: &Answer) {
    match (change, answer) {
        (Change::Grant(id, ttl), Ok(_)) => leases.granted(*id, *ttl, Instant::now()),
        (Change::Revoke(id) | Change::Expire(id), Ok(_)) => leases.ended(*id),
        _ => {}
    }
}
