//! Errands: a volume that is attached nowhere is coordinated for a while, for its snapshots or a change of its replicas only (`docs/replication.md` §12). Hosts see nothing of it: it is exported
//! nowhere, and is shown as detached.

use std::time::Duration;

use keelblock_api::datapath::Coordinator;

use super::Now;
use super::told::serves;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::node::Node;
use crate::records::Phase;

/// Without anything to do it ends this long after it began to serve: whoever began it asks at once.
const IDLE: Duration = Duration::from_secs(2);
/// And this long after it began if it does not get to serve.
const LONGEST: Duration = Duration::from_secs(60);

impl Now {
    /// It is coordinated for its snapshots only.
    pub(super) fn is_errand(&self) -> bool {
        self.attachment.as_ref().is_some_and(|a| a.record.errand)
    }

    /// Snapshots, or a change of its replicas, wait for whoever coordinates it.
    fn has_work(&self) -> bool {
        let changes = self
            .task
            .as_ref()
            .is_some_and(|t| !t.record.state.is_over());
        let mut all = self.snapshots.iter().map(|s| &s.record);
        changes || all.any(|s| s.phase != Phase::Ready || s.for_clone.is_some())
    }
}

impl Node {
    /// Ends an errand that has nothing left to do; how long it is waited for more. `None`: it is none.
    pub(super) async fn end_errand(
        &self,
        now: &Now,
        coordinator: Option<&Coordinator>,
    ) -> Result<Option<Duration>, OpError> {
        let Some(attachment) = now.attachment.as_ref().filter(|a| a.record.errand) else {
            return Ok(None);
        };
        let serves = coordinator.is_some_and(serves);
        let idle = now.set_since.filter(|_| serves).map(|at| at.elapsed());
        let age = now.attached_since.map(|at| at.elapsed());
        let over = idle.is_some_and(|t| t >= IDLE) || age.is_some_and(|t| t >= LONGEST);
        if now.has_work() || !over {
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
