//! What a move of lanes between drives needs of the volumes: the homes of drives, and lanes that come to rest and change their owner
//! (`docs/store-format.md` §13).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Hub, Registry};
use crate::store::VolumeId;
use crate::store::engine::{Store, StoreError};
use crate::store::mover::AtDrive;

/// A drive's home, from reactor 0.
#[derive(Clone)]
pub struct DriveHome {
    registry: Registry,
    drive: u32,
}

impl Registry {
    /// The home of a drive.
    pub fn home(&self, drive: u32) -> DriveHome {
        DriveHome {
            registry: self.clone(),
            drive,
        }
    }

    /// Runs `work` while no operation is under way on these lanes, on any reactor; `None`: they did not come to rest `within` that time, and
    /// nothing was done.
    pub async fn hold_lanes<T>(
        &self,
        lanes: &[(VolumeId, u8)],
        within: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let lanes = lanes.iter().map(|&(volume, lane)| (volume, Some(lane)));
        self.at_barrier(lanes.collect(), within, work).await
    }

    /// These lanes are on another drive from now on, on every reactor; they are held ([`Registry::hold_lanes`]).
    pub async fn move_lanes(&self, lanes: &[(VolumeId, u8)], drive: u32) {
        self.note_moved(lanes, drive);
        let lanes: Arc<[(VolumeId, u8)]> = lanes.into();
        let switch = move |hub: Hub| async move { hub.move_lanes(&lanes, drive) };
        self.hub().run_on_all(switch).await;
    }
}

impl AtDrive for DriveHome {
    async fn run<T, F, Fut>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + 'static,
    {
        let drive = self.drive;
        let done = self.registry.on_drive(drive, move |hub| async move {
            match hub.store(drive) {
                Some(store) => work(store).await,
                None => Err(StoreError::Closed),
            }
        });
        done.await
    }
}
