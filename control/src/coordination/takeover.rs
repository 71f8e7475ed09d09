//! Taking a volume whose node is dead.

use std::time::Duration;

use tokio::time::Instant;

use super::Now;
use super::failover::{Verdict, View};
use crate::error::OpError;
use crate::kvdb::client::Committed;
use crate::membership::unfit;
use crate::node::Node;
use crate::records::{AttachmentRecord, encode, unix_ms};

/// What replicas heard is as of this, when it decides.
const FRESH: Duration = Duration::from_millis(200);

impl Node {
    /// Looks whether this node is to coordinate a volume that is attached elsewhere, and takes it if so. When to look again.
    pub(super) async fn follow_up(&self, now: &Now) -> Result<Option<Duration>, OpError> {
        let volume = now.volume.as_ref().map(|v| &v.record);
        if volume.is_none_or(|v| !v.error.is_empty()) {
            return Ok(None);
        }
        match self.judge(now) {
            Verdict::Fine => return Ok(None),
            Verdict::Look(wait) => return Ok(Some(wait)),
            Verdict::Take(_) => {}
        }
        self.look_at_replicas(FRESH).await?;
        match self.judge(now) {
            Verdict::Fine => Ok(None),
            Verdict::Look(wait) => Ok(Some(wait)),
            Verdict::Take(why) => self.take(now, why).await,
        }
    }

    fn judge(&self, now: &Now) -> Verdict {
        let at = Instant::now();
        let heard = {
            let told = self.coordination.told();
            let mine = now.replicas_on(self.node_id()).next();
            let replica = mine.and_then(|r| told.replica(r.replica_id));
            let since = told.looked().map(|looked| at - looked);
            let ago = replica.and_then(|r| r.heard_ms);
            ago.zip(since)
                .map(|(ms, since)| Duration::from_millis(ms.into()) + since)
        };
        let seen = self.coordination.seen();
        let attached = now.attachment.as_ref().map(|a| a.record.node_id.as_str());
        View {
            now,
            alive: seen.alive(),
            last: &|node| seen.member(node).and_then(unfit).is_some(),
            gone: attached.and_then(|node| seen.gone_since(node)),
            heard,
            me: self.node_id(),
            at,
        }
        .verdict()
    }

    /// Attaches the volume to this node. Who is second reads where it is now.
    async fn take(&self, now: &Now, why: &str) -> Result<Option<Duration>, OpError> {
        let Some(attachment) = &now.attachment else {
            return Ok(None);
        };
        let from = &attachment.record.node_id;
        let record = AttachmentRecord {
            node_id: self.node_id().into(),
            attached_unix_ms: unix_ms(),
            moved_from: None,
            ..attachment.record.clone()
        };
        let key = self.registry.keys().attachment(now.id);
        let taken = self
            .registry
            .kv()
            .compare_and_swap(&key, attachment.revision, encode(&record));
        if taken.await? != Committed::No {
            tracing::warn!(volume = %now.id, from, why, "volume taken over by this node");
        }
        // The watch says what comes of it.
        Ok(None)
    }
}
