//! Wrapping all data keys again by the present cluster key. Each volume's record is changed by itself, so it can be interrupted anywhere and begun again:
//! what is wrapped by the present key is left as it is.

use super::SecretRecord;
use crate::error::OpError;
use crate::node::Node;
use uuid::Uuid;

/// What came of it.
#[derive(Debug, Default)]
pub struct Rotated {
    /// Id of the present cluster key.
    pub key_id: String,
    /// Volumes whose keys were wrapped again.
    pub changed: u32,
    /// Volumes whose keys were wrapped by it already.
    pub unchanged: u32,
    /// Volumes whose keys stay as they are, each with the reason.
    pub failed: Vec<(Uuid, String)>,
}

impl Node {
    /// See the module's text.
    ///
    /// # Errors
    /// [`OpError`] of the KVDB, or without a cluster key; what was done is done.
    pub async fn rotate_cluster_key(&self) -> Result<Rotated, OpError> {
        let keys = self.cluster_keys().await?;
        let mut rotated = Rotated {
            key_id: keys.present().id.clone(),
            ..Rotated::default()
        };
        let prefix = self.registry.keys().secrets();
        let all = self.registry.list::<SecretRecord>(&prefix).await?;
        for id in all.into_iter().map(|found| found.record.volume_id) {
            let mut changed = false;
            let missing = || OpError::no_volume(id.to_string());
            let key = self.registry.keys().secret(id);
            let change = self
                .registry
                .change(&key, missing, |record: &mut SecretRecord| {
                    let again = record.wrap_again(&keys);
                    changed = again.map_err(|e| OpError::State(e.to_string()))?;
                    Ok(changed)
                });
            match change.await {
                Ok(_) if changed => rotated.changed += 1,
                Ok(_) => rotated.unchanged += 1,
                // It was deleted meanwhile.
                Err(OpError::NotFound { .. }) => {}
                Err(OpError::State(why)) => rotated.failed.push((id, why)),
                Err(error) => return Err(error),
            }
        }
        tracing::info!(
            key = rotated.key_id,
            changed = rotated.changed,
            unchanged = rotated.unchanged,
            failed = rotated.failed.len(),
            "keys of encrypted volumes were wrapped again"
        );
        Ok(rotated)
    }
}
