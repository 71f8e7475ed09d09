//! Snapshots of volumes that are coordinated here (`docs/replication.md` §12).

use std::rc::Rc;
use std::time::Duration;

use super::super::{CommandError, Commander};
use super::serving::Serving;
use crate::store::VolumeId;
use crate::store::types::SnapshotId;
use crate::volume::coordinator::message::Failed;

/// Hosts wait no longer than this for other volumes.
const HOLD_MOST: Duration = Duration::from_secs(2);

impl Commander {
    pub(super) fn served(&self, volume: VolumeId, epoch: u32) -> Result<Rc<Serving>, CommandError> {
        let replication = self.replication()?;
        let serving = replication.coordinators.borrow().get(&volume).cloned();
        let served = serving.filter(|s| !s.ended() && s.by.driver.epoch() == epoch);
        served.ok_or(CommandError::NotServed { volume, epoch })
    }

    /// Takes a snapshot that is to be taken in `of_epoch` and in no other. False: it does not exist, and never will.
    pub async fn take_snapshot(
        &self,
        (volume, id): (VolumeId, SnapshotId),
        (epoch, of_epoch): (u32, u32),
    ) -> Result<bool, CommandError> {
        let serving = self.served(volume, epoch)?;
        let driver = &serving.by.driver;
        // What an earlier epoch began with exists if all who took part in the takeover have it; then that is known.
        driver
            .serving()
            .await
            .map_err(|why| failed(volume, epoch, why))?;
        if driver.snapshots().contains(&id) {
            return Ok(true);
        }
        if of_epoch != epoch {
            return Ok(false);
        }
        match driver.snapshot(id).await {
            Ok(()) => Ok(true),
            Err(Failed::NeverTaken) => Ok(false),
            Err(why) => Err(failed(volume, epoch, why)),
        }
    }

    /// Puts a snapshot in that is one of several volumes' at one moment, and holds what comes behind it (§22). False: it is not held, and is to be none.
    pub async fn hold_snapshot(
        &self,
        (volume, id): (VolumeId, SnapshotId),
        (epoch, of_epoch): (u32, u32),
        hold: Duration,
    ) -> Result<bool, CommandError> {
        let serving = self.served(volume, epoch)?;
        if of_epoch != epoch {
            return Ok(false);
        }
        if hold > HOLD_MOST {
            let why = format!("{} ms: at most {}", hold.as_millis(), HOLD_MOST.as_millis());
            return Err(CommandError::field("hold_ms", why));
        }
        held(
            volume,
            epoch,
            serving.by.driver.hold_snapshot(id, hold).await,
        )
    }

    /// Ends that. False: it was not held until now.
    pub async fn release_snapshot(
        &self,
        (volume, id): (VolumeId, SnapshotId),
        epoch: u32,
    ) -> Result<bool, CommandError> {
        let serving = self.served(volume, epoch)?;
        held(volume, epoch, serving.by.driver.release_snapshot(id).await)
    }

    /// Deletes a snapshot; an unknown one is deleted already.
    pub async fn drop_snapshot(
        &self,
        (volume, id): (VolumeId, SnapshotId),
        epoch: u32,
    ) -> Result<(), CommandError> {
        let serving = self.served(volume, epoch)?;
        let deleted = serving.by.driver.delete_snapshot(id).await;
        deleted.map_err(|why| failed(volume, epoch, why))
    }
}

fn held(volume: VolumeId, epoch: u32, outcome: Result<(), Failed>) -> Result<bool, CommandError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Failed::NotHeld | Failed::NeverTaken) => Ok(false),
        Err(why) => Err(failed(volume, epoch, why)),
    }
}

fn failed(volume: VolumeId, epoch: u32, why: Failed) -> CommandError {
    match why {
        Failed::Ended => CommandError::NotServed { volume, epoch },
        why => CommandError::Snapshot { volume, why },
    }
}
