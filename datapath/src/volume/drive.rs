//! A drive's home: the one reactor that has its device and its store (`docs/architecture.md`, ownership).

use std::sync::Arc;
use std::time::Duration;

use super::Hub;
use crate::device::{Device, DeviceError, DeviceSource, Latch};
use crate::store::Name;
use crate::store::engine::{Damage, Exactly, OpenError, Store, StoreConfig, StoreError};
use crate::store::pool::DriveFacts;

/// How long a closed drive's tasks may take to end, and how often that is looked at.
const RELEASE_STEPS: usize = 200;
const RELEASE_STEP: Duration = Duration::from_millis(1);

/// Where it goes that something on a drive is damaged. Called on the drive's home; it must not block.
pub type FaultReport = Arc<dyn Fn(&Damage) + Send + Sync>;

/// What it takes to open a drive.
#[derive(Clone)]
pub struct DriveOpening {
    /// Where its bytes are.
    pub source: DeviceSource,
    /// Told when it fails.
    pub latch: Latch,
    /// Told of what is damaged on it.
    pub faults: FaultReport,
    /// Its name.
    pub drive: Name,
    /// Its pool's name.
    pub pool: Name,
    /// Whether to make an empty store on it if it is blank.
    pub format: bool,
    /// What its store may use.
    pub config: StoreConfig,
}

/// Why a drive cannot be opened. The message is for the person who wants it open.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// Its device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What is on it.
    #[error("drive {drive}: {why}")]
    Store {
        /// Which.
        drive: Name,
        /// What is wrong.
        why: OpenError,
    },
    /// It is another drive than was expected there.
    #[error(
        "drive {drive} of pool {pool} was expected, but found drive {found_drive} of pool {found_pool}"
    )]
    Another {
        /// Expected.
        drive: Name,
        /// Expected.
        pool: Name,
        /// Found.
        found_drive: Name,
        /// Found.
        found_pool: Name,
    },
}

/// A drive at home.
pub(super) struct HomeDrive {
    pub store: Store,
    source: DeviceSource,
    pub faults: FaultReport,
}

impl Hub {
    /// Opens a drive's device and its store here, which is its home.
    pub(super) async fn open_drive(
        &self,
        number: u32,
        opening: DriveOpening,
    ) -> Result<DriveFacts, DriveError> {
        let DriveOpening {
            source,
            latch,
            faults,
            drive,
            pool,
            format,
            config,
        } = opening;
        let handle = self.handle();
        let device = Device::open(handle, &source, &latch)?;
        let of_store = |why| DriveError::Store {
            drive: drive.clone(),
            why,
        };
        let store = match Store::open(handle, &device, &config).await {
            Err(OpenError::Blank) if format => {
                let made = Store::format(handle, &device, &drive, &pool).await;
                made.map_err(of_store)?;
                Store::open(handle, &device, &config).await
            }
            opened => opened,
        };
        let store = store.map_err(of_store)?;
        let identity = store.identity();
        if identity.drive != drive || identity.pool != pool {
            // It stays as it is; that it could not be marked clean again only costs its next opening some time.
            if let Err(error) = store.close().await {
                tracing::warn!(%drive, %error, "a drive that is not ours could not be closed");
            }
            return Err(DriveError::Another {
                drive,
                pool,
                found_drive: identity.drive,
                found_pool: identity.pool,
            });
        }
        let lost = faults.clone();
        store.report_damage(Box::new(move |damage| lost(damage)));
        let home = HomeDrive {
            store,
            source,
            faults,
        };
        self.0.add_drive(number, home);
        Ok(self.drive_facts(number).expect("it has just been opened"))
    }

    /// What a drive whose home is here says now; of used blocks, what the last checkpoint said.
    pub fn drive_facts(&self, number: u32) -> Option<DriveFacts> {
        let store = self.store(number)?;
        Some(DriveFacts {
            identity: store.identity(),
            state: store.state(),
            size_bytes: store.device().size_bytes(),
            volatile_cache: store.device().volatile_cache(),
            space: store.space(),
            counters: store.counters(),
            failed: store.failed(),
            lanes: store.lanes(),
            snapshots: store.snapshots(),
        })
    }

    /// The same, with used blocks of what is meant exactly as they are now: that may take reading pages of the map.
    pub async fn drive_facts_exactly(&self, number: u32, meant: Exactly) -> Option<DriveFacts> {
        let store = self.store(number)?;
        let (lanes, snapshots) = store.lanes_and_snapshots(meant).await;
        let facts = self.drive_facts(number)?;
        Some(DriveFacts {
            lanes,
            snapshots,
            ..facts
        })
    }

    /// Closes a drive whose home is here: what is under way ends, and it is marked clean. Unknown succeeds.
    ///
    /// # Errors
    /// [`StoreError`]: it is closed all the same, and its next opening takes it for one after a crash.
    pub async fn close_drive(&self, number: u32) -> Result<(), StoreError> {
        match self.0.take_drive(number) {
            Some(drive) => drive.store.close().await,
            None => Ok(()),
        }
    }

    /// The same, and waits until nothing holds the drive any more, so that it can be opened again. Its volumes were closed before.
    ///
    /// # Errors
    /// As [`Hub::close_drive`].
    pub async fn release_drive(&self, number: u32) -> Result<(), StoreError> {
        let Some(HomeDrive { store, source, .. }) = self.0.take_drive(number) else {
            return Ok(());
        };
        let closed = store.close().await;
        drop(store);
        // Its tasks are ending.
        for _ in 0..RELEASE_STEPS {
            if source.is_last() {
                return closed;
            }
            self.handle().sleep(RELEASE_STEP).await;
        }
        tracing::warn!("drive {source} was closed, and something still holds it");
        closed
    }
}
