//! Waiting until what is seen or told is as it is to be.

use std::time::Duration;

use super::Coordination;
use crate::error::OpError;
use crate::node::Node;

/// How long it is waited until what is seen is what the KVDB has. Longer, and reading all of it is quicker; of a KVDB that others change, too, not every revision comes.
const CATCH_UP: Duration = Duration::from_millis(250);

impl Node {
    /// Whether what is seen is at least what the KVDB has now, so that it can be shown instead: one small read, however much there is. False: it has to be read from there.
    ///
    /// # Errors
    /// The KVDB does not answer.
    pub(crate) async fn sees_now(&self) -> Result<bool, OpError> {
        let revision = self.registry.revision().await?;
        let shows = |c: &Coordination| c.seen().shows(revision).then_some(());
        Ok(self.coordination.until(CATCH_UP, shows).await.is_some())
    }
}

impl Coordination {
    /// What `look` finds, as soon as it finds something; `None`: it did not in time.
    pub(crate) async fn until<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> Option<T> {
        let mut changes = self.changes();
        let wait = async {
            loop {
                if let Some(found) = look(self) {
                    return found;
                }
                // The sender is ours.
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(limit, wait).await.ok()
    }
}
