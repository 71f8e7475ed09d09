//! What was said for the whole cluster.

use crate::error::OpError;
use crate::node::Node;
use crate::records::{OptionsRecord, REPLACE_AFTER_S_MIN, Versioned};

/// A month: longer is never.
const REPLACE_AFTER_S_MAX: u64 = 30 * 86_400;

impl Node {
    /// The options of the cluster.
    pub(crate) async fn options(&self) -> Result<OptionsRecord, OpError> {
        let found: Option<Versioned<OptionsRecord>> =
            self.registry.get(&self.registry.keys().options()).await?;
        Ok(found.map(|f| f.record).unwrap_or_default())
    }

    /// Says after how many seconds replicas of a node that is away are replaced; 0: nothing is replaced by itself.
    ///
    /// # Errors
    /// Neither 0 nor 60 to a month.
    pub(crate) async fn set_replace_after(&self, seconds: u64) -> Result<OptionsRecord, OpError> {
        let range = REPLACE_AFTER_S_MIN..=REPLACE_AFTER_S_MAX;
        if seconds != 0 && !range.contains(&seconds) {
            let why = format!(
                "{seconds}: must be {REPLACE_AFTER_S_MIN} to {REPLACE_AFTER_S_MAX}, or 0 for never"
            );
            return Err(OpError::invalid("replace_after_s", why));
        }
        let record = OptionsRecord {
            replace_after_s: seconds,
        };
        // It is the only option, so nothing that somebody else says at the same time is lost.
        let key = self.registry.keys().options();
        self.registry.put(&key, &record).await?;
        tracing::info!(replace_after_s = seconds, "options of the cluster changed");
        Ok(record)
    }
}
