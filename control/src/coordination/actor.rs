//! What is done about one volume: by one task, one step after the other, until everything is as the KVDB says.
//!
//! | the KVDB says | this node | then |
//! | --- | --- | --- |
//! | a replica is here, not made | has nothing of it, or an unfinished one | it is made, and said so |
//! | a replica is here, made | does not have it | it is lost: said so, never made again |
//! | attached here | does not coordinate in the record's epoch | K1, serve |
//! | attached here | coordinates | exported, optimized when it serves |
//! | attached elsewhere | has a replica | path open and exported: non-optimized, forwarding, while another node serves by the record, else inaccessible; taken over if that node is dead |
//! | attached elsewhere, or nowhere | coordinates | it stops |
//! | attached nowhere, or no replica here | has a path | unexported, closed |
//! | set back to a snapshot | has a member, not made of that | it is deleted but for its snapshots, and made of that one |
//! | kept for its snapshots | has replicas, or snapshots that no record names | they are deleted, but for snapshots that records name |
//! | a replica leaves, or the volume is being deleted | has it | deleted; the last one to be deleted takes the records with it |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keelblock_api::datapath::ForwardTo;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::Now;
use super::errands::Advance;
use crate::error::OpError;
use crate::node::Node;
use crate::records::Phase;
use crate::replication::record::{Replica, ReplicaState};

/// How soon what failed is tried again: at first, and doubled up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Of one that tries: nothing is missed, so this is only for what nobody thought of.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// How an actor is told that there may be something to do.
#[derive(Debug, Default)]
pub(super) struct Poked {
    notify: Notify,
    count: AtomicU64,
}

impl Poked {
    /// Once more.
    pub(super) fn poke(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.notify.notify_one();
    }

    /// How often so far.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Attempts to coordinate that came to nothing, one after the other.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    count: u32,
    last: Option<Instant>,
    /// Of an errand.
    pub(super) advance: Advance,
}

impl Attempts {
    /// How long the next one has to wait from now.
    pub(super) fn wait(&self) -> Duration {
        let Some(last) = self.last.filter(|_| self.count > 0) else {
            return Duration::ZERO;
        };
        (last + doubled(self.count)).saturating_duration_since(Instant::now())
    }

    /// One is made.
    pub(super) fn begin(&mut self) {
        self.count += 1;
        self.last = Some(Instant::now());
    }

    /// There is nothing to remember of any.
    fn none(&self) -> bool {
        self.count == 0 && self.advance.is_none()
    }

    /// It serves: what fails after this fails for another reason.
    pub(super) fn well(&mut self) {
        self.count = 0;
    }
}

fn doubled(times: u32) -> Duration {
    let (first, longest) = AGAIN;
    longest.min(first * 2u32.saturating_pow(times.saturating_sub(1).min(16)))
}

/// Looks after a volume until there is nothing to do about it, or nothing of it is left; the pokes that it had had before it looked for the last time: one that came later
/// begins it again. There may be thousands of volumes, and a task that only waits is tens of KiB.
pub(super) async fn act(node: Arc<Node>, id: Uuid, poked: Arc<Poked>) -> u64 {
    let mut attempts = Attempts::default();
    let mut failures = 0;
    loop {
        let heard = poked.count();
        let looked = node.look_after(id, &mut attempts).await;
        let wait = match looked {
            Ok(None) if node.coordination.seen().volume(id).is_none() => {
                node.coordination.set_trouble(id, None);
                return heard;
            }
            Ok(None) if attempts.none() => {
                node.coordination.stir();
                return heard;
            }
            Ok(wait) => {
                failures = 0;
                wait.unwrap_or(LONG)
            }
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    tracing::warn!(volume = %id, %error, "a replicated volume is not as it is to be; tried again");
                }
                node.coordination.set_trouble(id, Some(error.to_string()));
                doubled(failures)
            }
        };
        node.coordination.stir();
        tokio::select! {
            () = poked.notify.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Now {
    /// Replicas that a node is to have.
    pub(super) fn replicas_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Replica> {
        let set = self.set.iter().flat_map(|s| &s.record.replicas);
        set.filter(move |r| r.node_id == node)
    }

    /// Its phase; that of a volume without a record is that it goes.
    pub(super) fn phase(&self) -> Phase {
        self.volume
            .as_ref()
            .map_or(Phase::Deleting, |v| v.record.phase)
    }

    /// The coordinator on another node that serves it, by the record.
    pub(super) fn forward_to(&self, me: &str) -> Option<ForwardTo> {
        // One that ended with an alarm is still named.
        let error = self
            .volume
            .as_ref()
            .is_none_or(|v| !v.record.error.is_empty());
        let record = &self.set.as_ref().filter(|_| !error)?.record;
        let holder = record.holder.as_ref()?;
        let serves = record.phase == crate::replication::record::Phase::Serving;
        (serves && holder.node_id != me).then(|| ForwardTo {
            node_id: holder.node_id.clone(),
            epoch: record.epoch.number(),
            incarnation: holder.incarnation.0.to_vec(),
        })
    }

    /// The node that it is attached to, if it is.
    pub(super) fn attached_to(&self) -> Option<&str> {
        let attachment = self.attachment.as_ref();
        attachment
            .filter(|_| self.phase() == Phase::Ready)
            .map(|a| a.record.node_id.as_str())
    }
}

impl Node {
    /// One look: what is missing is done. When to look again without being poked.
    async fn look_after(
        self: &Arc<Self>,
        id: Uuid,
        attempts: &mut Attempts,
    ) -> Result<Option<Duration>, OpError> {
        if self.coordination.told().incarnation.is_none() {
            // Poked when it is there.
            return Ok(None);
        }
        let Some(now) = self.coordination.seen().volume(id) else {
            // What the data path has nothing of may be the export of a volume with one replica, which is no business of this.
            let ours = self.coordination.told().volume_ids().contains(&id);
            if ours && self.coordination.seen().complete {
                self.nothing_here(id).await?;
                self.coordination.told().forget(id);
            }
            return Ok(None);
        };
        if now.phase() == Phase::Kept {
            self.nothing_here(id).await?;
            self.keep_snapshots(&now).await?;
            return Ok(None);
        }
        self.make_replicas(&now).await?;
        let me = self.node_id();
        let stays = |r: &Replica| r.state != ReplicaState::Leaving;
        let wait = match now.attached_to() {
            Some(node) if node == me => self.coordinate_here(&now, attempts).await?,
            Some(_) if now.replicas_on(me).any(stays) => {
                match now.is_errand() {
                    true => self.nothing_here(id).await?,
                    false => self.path_here(&now).await?,
                }
                self.follow_up(&now).await?
            }
            _ => {
                self.nothing_here(id).await?;
                self.sweep_clones(&now).await?;
                None
            }
        };
        self.drop_replicas(&now).await?;
        Ok(wait)
    }
}
