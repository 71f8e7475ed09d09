//! Backup and restore of the KVDB (`docs/kvdb.md`, Backup): `file` is the format, `restore` puts it back, `decide` is a person's word on which
//! replicas of a volume count after that.

mod decide;
mod file;
mod looked;
mod restore;

pub use decide::Decided;
pub use file::{Backup, BackupError};
pub(crate) use looked::say_what_is_here;
pub use looked::{LookedRecord, Stray};
pub use restore::{RestoreRecord, Restored};

use crate::error::OpError;
use crate::node::Node;
use crate::records::{Phase, PoolRecord, VolumeRecord, unix_ms};

impl Node {
    /// Everything of the cluster as it is at one revision, but what is somebody's only while he lives.
    ///
    /// # Errors
    /// [`OpError::Unavailable`] of a KVDB that does not answer, and while a restore is under way; [`OpError::Busy`] while something is half done that would be
    /// done again.
    pub async fn backup_kvdb(&self) -> Result<Backup, OpError> {
        self.no_restore().await?;
        let root = self.registry.keys().root().to_owned();
        let listed = self.registry.kv().list(&root).await?;
        let entries = listed.kvs.into_iter().filter(|kv| kv.lease == 0);
        let entries = entries.map(|kv| (kv.key[root.len()..].to_vec(), kv.value));
        let backup = Backup {
            cluster_id: self.cluster_id().into(),
            revision: listed.revision.cast_unsigned(),
            taken_unix_ms: unix_ms(),
            entries: entries.collect(),
        };
        match half_done(&backup)? {
            None => Ok(backup),
            Some(what) => Err(OpError::Busy(format!(
                "{what}: try again when that has ended"
            ))),
        }
    }
}

/// What would be done again when the backup is put back, over data that are there by then: a volume made or set back, a drive formatted.
fn half_done(backup: &Backup) -> Result<Option<String>, OpError> {
    for (key, value) in &backup.entries {
        let unreadable = |why: serde_json::Error| {
            let key = String::from_utf8_lossy(key);
            OpError::State(format!(
                "the record {key} cannot be read: {why}; was it written by a later version?"
            ))
        };
        if key.starts_with(b"volumes/") {
            let volume: VolumeRecord = serde_json::from_slice(value).map_err(unreadable)?;
            if volume.phase == Phase::Creating {
                return Ok(Some(format!("volume {} is being made", volume.name)));
            }
            if volume.restoring.is_some() {
                return Ok(Some(format!("volume {} is being set back", volume.name)));
            }
        }
        if key.starts_with(b"pools/") {
            let pool: PoolRecord = serde_json::from_slice(value).map_err(unreadable)?;
            if let Some(drive) = pool.drives.iter().find(|d| d.fresh) {
                return Ok(Some(format!("drive {} is being added", drive.path)));
            }
        }
    }
    Ok(None)
}
