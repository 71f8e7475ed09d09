//! Waiting until what is seen or told is as it is to be.

use std::time::Duration;

use super::Coordination;

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
