//! One node of the cluster does what is for one to do: whoever has a key under a lease.

use std::future::Future;
use std::time::Duration;

use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, LeaseGuard, Write};
use crate::node::Node;

/// Life of the lease of who does it.
const LEADER_TTL_S: i64 = 10;
/// How often it is looked whether somebody does.
const LOOK: Duration = Duration::from_secs(5);

impl Node {
    /// Does `work` whenever this node has the key and as long as it has it, for ever. `what` is for the log.
    pub(crate) async fn while_leading<F: Future<Output = ()>>(
        &self,
        key: &str,
        what: &'static str,
        work: impl Fn() -> F,
    ) {
        loop {
            match self.lead(key).await {
                Ok(Some(mut lease)) => {
                    tokio::select! {
                        () = work() => {}
                        () = lease.lost() => {
                            tracing::warn!(what, "another node may do this now: the lease is gone");
                        }
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(what, %error, "cannot see who does this"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Becomes the one, unless another is.
    pub(crate) async fn lead(&self, key: &str) -> Result<Option<LeaseGuard>, OpError> {
        let kv = self.registry.kv();
        if kv.get(key).await?.is_some() {
            return Ok(None);
        }
        let lease = kv.hold_lease(LEADER_TTL_S).await?;
        let value = self.node_id().as_bytes().to_vec();
        let write = Write::Put(key.as_bytes().to_vec(), value, lease.id());
        match kv.commit(vec![Guard::absent(key)], vec![write]).await? {
            Committed::Yes(_) => Ok(Some(lease)),
            Committed::No => Ok(None),
        }
    }
}
