//! Errands: a volume that is attached nowhere is coordinated for a while, for its snapshots (`docs/replication.md` §12) or replicas (§21) only. Hosts see nothing of it: it is exported
//! nowhere, and is shown as detached.

use std::time::Duration;

use keelblock_api::datapath::{Coordinator, Peer};
use tokio::time::Instant;

use super::Now;
use super::told::serves;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::node::Node;
use crate::records::Phase;

/// Without anything to do it ends this long after it began to serve: whoever began it asks at once.
const IDLE: Duration = Duration::from_secs(2);
/// What it does for replicas may stand still for this long.
const STILL: Duration = Duration::from_secs(60);
/// And this long after it began if it does not get to serve.
const LONGEST: Duration = Duration::from_secs(60);

impl Now {
    /// It is coordinated for its snapshots only.
    pub(super) fn is_errand(&self) -> bool {
        self.attachment.as_ref().is_some_and(|a| a.record.errand)
    }

    /// Snapshots wait for whoever coordinates it. (Replicas do, too, as long as that gets on: [`Node::mends`].)
    fn has_work(&self) -> bool {
        let mut all = self.snapshots.iter().map(|s| &s.record);
        all.any(|s| s.phase != Phase::Ready || s.for_clone.is_some())
    }
}

/// How far what an errand is for is, and since when.
#[derive(Debug, Default)]
pub(super) struct Advance(Option<(u64, u64, Instant)>);

impl Advance {
    /// Nothing was looked at.
    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// For how long nothing has changed: neither the record nor what was compared and copied.
    fn stands_still(&mut self, now: &Now, coordinator: &Coordinator, at: Instant) -> Duration {
        let version = now.set.as_ref().map_or(0, |s| s.record.version);
        let done = |p: &Peer| p.resync_done_bytes + p.resync_copied_bytes;
        let bytes = coordinator.peers.iter().map(done).sum();
        match self.0 {
            Some((v, b, since)) if (v, b) == (version, bytes) => at - since,
            _ => {
                self.0 = Some((version, bytes, at));
                Duration::ZERO
            }
        }
    }
}

impl Node {
    /// Replicas of it are changed or brought back, and that gets on.
    fn mends(&self, now: &Now, coordinator: Option<&Coordinator>, advance: &mut Advance) -> bool {
        let Some(coordinator) = coordinator.filter(|c| serves(c)) else {
            return false;
        };
        let has_work = {
            let seen = self.coordination.seen();
            let usable = |node: &str| {
                let life = seen.alive().get(node);
                life.is_some_and(|l| !l.says.incarnation.is_empty())
            };
            now.has_replica_work(usable)
        };
        has_work && advance.stands_still(now, coordinator, Instant::now()) < STILL
    }

    /// Ends an errand that has nothing left to do; how long it is waited for more. `None`: it is none.
    pub(super) async fn end_errand(
        &self,
        now: &Now,
        coordinator: Option<&Coordinator>,
        advance: &mut Advance,
    ) -> Result<Option<Duration>, OpError> {
        let Some(attachment) = now.attachment.as_ref().filter(|a| a.record.errand) else {
            return Ok(None);
        };
        let serves = coordinator.is_some_and(serves);
        let idle = now.set_since.filter(|_| serves).map(|at| at.elapsed());
        let age = now.attached_since.map(|at| at.elapsed());
        let over = idle.is_some_and(|t| t >= IDLE) || age.is_some_and(|t| t >= LONGEST);
        if now.has_work() || !over || self.mends(now, coordinator, advance) {
            return Ok(Some(IDLE));
        }
        let key = self.registry.keys().attachment(now.id);
        let guards = vec![Guard::at(&key, attachment.revision)];
        // Somebody may have attached it meanwhile; that is seen.
        let writes = vec![Write::delete(&key)];
        self.registry.kv().commit(guards, writes).await?;
        Ok(Some(IDLE))
    }
}
