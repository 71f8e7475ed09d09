//! Replicated volumes: where their operations go (`docs/replication.md` §8). Such a volume has a handle on every reactor like any other, and all of its
//! lanes are owned by the reactor that coordinates it, while one does.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::{Buffer, BufferPool};

use super::coordinator::driver::Driver;
use super::coordinator::links::Links;
use super::coordinator::message::Failed;
use super::coordinator::set::Request;
use super::lane::Lane;
use super::serve::Backing;
use super::{Volume, VolumeError};
use crate::device::BLOCK_BYTES;
use crate::store::types::LaneBlock;

/// A coordinator of a process: its replicas are behind sessions, and what it asks of the KVDB is handed to somebody.
pub type Coordinator = Driver<Links, Box<dyn Fn(Request)>>;

/// A coordinator at work, and the buffers in which its streams keep data until it is settled. They are not the reactor's own: those receive what replicas
/// here are sent, and must not be waited for by what waits for these.
#[derive(Clone)]
pub struct Coordinating {
    /// It.
    pub driver: Coordinator,
    /// The buffers.
    pub buffers: Rc<BufferPool>,
}

/// Who serves a replicated volume on this reactor.
#[derive(Default)]
pub(super) struct Served(RefCell<Option<Coordinating>>);

impl Served {
    /// The way to a lane's blocks.
    pub fn backing(&self, lane: Lane) -> Result<Backing, VolumeError> {
        let by = self.0.borrow().clone();
        let by = by.ok_or(VolumeError::Elsewhere)?;
        Ok(Backing::Replicated(by, lane.index() as u8))
    }

    /// Flushes the whole volume.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        let by = self.0.borrow().clone();
        let by = by.ok_or(VolumeError::Elsewhere)?;
        Box::pin(by.driver.flush()).await.map_err(told)
    }
}

impl Volume {
    /// Whether the volume is replicated.
    pub fn replicated(&self) -> bool {
        self.0.served.is_some()
    }

    /// How many lanes it has.
    pub fn lanes(&self) -> usize {
        self.0.lanes.count()
    }

    /// From now on this coordinator serves the volume. On the reactor that owns its lanes; does nothing to one that is not replicated.
    pub fn serve_by(&self, by: Coordinating) {
        if let Some(served) = &self.0.served {
            served.0.replace(Some(by));
        }
    }

    /// Who served the volume in this epoch has ended.
    pub fn served_no_more(&self, epoch: u32) {
        if let Some(served) = &self.0.served {
            let mut by = served.0.borrow_mut();
            if by.as_ref().is_some_and(|by| by.driver.epoch() == epoch) {
                *by = None;
            }
        }
    }
}

/// What hosts are told.
fn told(failed: Failed) -> VolumeError {
    match failed {
        Failed::Stalled => VolumeError::Stalled,
        Failed::Ended => VolumeError::Elsewhere,
        Failed::Full => VolumeError::CapacityExceeded,
        Failed::Busy => VolumeError::Busy,
        Failed::Damaged => VolumeError::Damaged,
        Failed::NotOpened => VolumeError::NotOpened,
    }
}

impl Coordinating {
    pub(super) async fn read(
        &self,
        lane: u8,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<(), VolumeError>) {
        let (into, read) = self.driver.read(lane, blocks, into).await;
        (into, read.map_err(told))
    }

    /// Data are copied: the streams keep them until every member has them, and the caller's buffer is wanted for other things.
    pub(super) async fn write(
        &self,
        lane: u8,
        blocks: Range<u64>,
        from: &[u8],
        fua: bool,
    ) -> Result<(), VolumeError> {
        let count = (blocks.end - blocks.start) as usize;
        let bytes = count * BLOCK_BYTES as usize;
        let mut kept = match self.buffers.try_take(bytes) {
            Some(buffer) => buffer,
            None => {
                let taken = self.driver.within(self.buffers.take(bytes)).await;
                taken.map_err(told)?
            }
        };
        kept[..bytes].copy_from_slice(&from[..bytes]);
        let first = LaneBlock(blocks.start);
        let written = self.driver.write(lane, first, kept, count, fua);
        written.await.map_err(told)
    }

    pub(super) async fn erase(&self, lane: u8, blocks: Range<u64>) -> Result<(), VolumeError> {
        Box::pin(self.driver.erase(lane, blocks))
            .await
            .map_err(told)
    }
}
