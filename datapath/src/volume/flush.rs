//! Flush: everything that completed before, on every drive that holds a lane, is on stable media.

use super::hub::Shared;
use super::lane::LANES_MAX;
use super::mail::{Request, Slot};
use super::op::{Buffers, Op};
use super::{ByteRange, Volume, VolumeError};

/// A flush is of no range; the message wants one.
const NO_RANGE: ByteRange = ByteRange { start: 0, end: 1 };

impl Volume {
    /// Brings every write that completed before, on any reactor, to stable media.
    ///
    /// # Errors
    /// [`VolumeError::DriveFailed`].
    pub async fn flush(&self) -> Result<(), VolumeError> {
        let Some(hub) = self.0.hub.upgrade().filter(|_| !self.0.closed.get()) else {
            return Err(VolumeError::Closed);
        };
        if self.0.served.is_some() {
            return self.flush_replicated(&hub).await;
        }
        // All drives at once: those of others are asked before this reactor's own are waited for.
        let mut elsewhere: [Option<Slot<'_>>; LANES_MAX] = std::array::from_fn(|_| None);
        // Data of a lane that moves meanwhile is on stable media of its new drive before anybody writes there.
        let (drives, count) = self.drives();
        let drives = &drives[..count];
        for (slot, &drive) in elsewhere.iter_mut().zip(drives) {
            let home = hub.home_of(drive);
            if home != hub.here() {
                let begun = hub.begin_request();
                let request = Request {
                    from: hub.here(),
                    slot: begun.number(),
                    volume: self.0.number,
                    op: Op::Flush { drive },
                    at: NO_RANGE,
                    buffers: Buffers::none(),
                };
                *slot = Some(hub.request(home, request, begun).await);
            }
        }
        let mut result = Ok(());
        for &drive in drives {
            if hub.home_of(drive) == hub.here() {
                result = result.and(self.flush_here(&hub, drive).await);
            }
        }
        for slot in elsewhere.into_iter().flatten() {
            result = result.and(slot.reply().await.1);
        }
        result
    }

    /// Flushes where the volume is coordinated.
    async fn flush_replicated(&self, hub: &Shared) -> Result<(), VolumeError> {
        let lane = &self.0.table[0];
        let (owner, drive) = (lane.owner.get(), lane.drive.get());
        if owner == hub.here() {
            return self.flush_here(hub, drive).await;
        }
        let (number, op) = (self.0.number, Op::Flush { drive });
        let done = hub.forward(owner, number, op, NO_RANGE, Buffers::none());
        done.await.1
    }

    /// Flushes a drive whose home is here.
    pub(super) async fn flush_here(&self, hub: &Shared, drive: u32) -> Result<(), VolumeError> {
        if let Some(served) = &self.0.served {
            return served.flush().await;
        }
        let of_drive = |lane: &super::Lane| self.0.table[lane.index()].drive.get() == drive;
        let Some(store) = hub.store(drive) else {
            // All of it has moved, and the drive was taken out: what was there is stable elsewhere.
            return match self.0.lanes.all().any(|lane| of_drive(&lane)) {
                true => Err(VolumeError::Closed),
                false => Ok(()),
            };
        };
        match store.flush().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let lane = self.0.lanes.all().find(of_drive);
                Err(lane.map_or(VolumeError::Closed, |lane| self.failed(hub, lane, 0, e)))
            }
        }
    }
}
