//! Keys of encrypted volumes. Each volume has data keys of its own; the KVDB has them *wrapped* by a cluster key (`wrap`), which is in no database: every node
//! has it from a file, its environment or a command (`source`). A data key leaves this process only to its data path, when a volume is served.
//!
//! What gives the cluster key may give several, the newest first: so it can be changed while volumes are used. It is added everywhere, the wrapped keys are
//! wrapped again (`rotate`), and then the old one is taken away.

mod rotate;
mod source;
mod wrap;

pub use rotate::Rotated;
pub use source::{ClusterKeys, Source};
pub use wrap::{SecretRecord, WrapError};
pub(crate) use wrap::{hex, unhex};

use crate::error::OpError;
use crate::node::Node;
use crate::records::VolumeRecord;
use keelblock_api::datapath::DataKeys;

/// What to do about a node without the cluster key.
const HINT: &str = "start keelblock-control with --cluster-key-file, --cluster-key-env or --cluster-key-command, the same key on all nodes";

impl Node {
    /// The cluster's keys, read anew.
    ///
    /// # Errors
    /// [`OpError::State`], that says what is wrong with where they come from; also if this node has none.
    pub async fn cluster_keys(&self) -> Result<ClusterKeys, OpError> {
        let keys = self.key_source().read().await;
        keys.map_err(|e| OpError::State(format!("node {}: {e}; {HINT}", self.node_id())))
    }

    /// The data keys of a volume, as its coordinator needs them; `None`: it is not encrypted.
    ///
    /// # Errors
    /// [`OpError::State`]: this node cannot have them.
    pub(crate) async fn data_keys(
        &self,
        volume: &VolumeRecord,
    ) -> Result<Option<DataKeys>, OpError> {
        if !volume.encrypted {
            return Ok(None);
        }
        let refused = |why: String| {
            OpError::State(format!(
                "volume {} is encrypted, and cannot be opened here: {why}",
                volume.name
            ))
        };
        let key = self.registry.keys().secret(volume.volume_id);
        let record = self.registry.get::<SecretRecord>(&key).await?;
        let record = record.ok_or_else(|| refused("its keys were deleted".into()))?;
        let keys = self.cluster_keys().await;
        let keys = keys.map_err(|e| refused(e.to_string()))?;
        let opened = record.record.unwrap(&keys);
        opened.map(Some).map_err(|e| {
            let why = format!("{e} (node {}); {HINT}", self.node_id());
            refused(why)
        })
    }
}
