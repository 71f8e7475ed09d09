//! Replicated volumes: where their operations go (`docs/replication.md` §8). Such a volume has a handle on every reactor like any other, and all of its
//! lanes are owned by the reactor that coordinates it, while one does.

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::{Buffer, BufferPool};

use super::coordinator::driver::Driver;
use super::coordinator::links::Links;
use super::coordinator::message::Failed;
use super::coordinator::set::Request;
use super::forward::dispatch::There;
use super::forward::send::{Coordinator as To, Forwarder};
use super::lane::Lane;
use super::op::Given;
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

/// Who serves a replicated volume on this reactor: a coordinator here, or one elsewhere that commands of hosts are forwarded to.
#[derive(Default)]
pub(super) struct Served {
    here: RefCell<Option<Coordinating>>,
    /// To the one elsewhere, and commands that have their stamps from it.
    pub there: There,
}

impl Served {
    /// The way to a lane's blocks.
    pub fn backing(&self, lane: Lane) -> Result<Backing, VolumeError> {
        let by = self.here.borrow().clone();
        let by = by.ok_or(VolumeError::Elsewhere)?;
        Ok(Backing::Replicated(by, lane.index() as u8))
    }

    /// Flushes the whole volume.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        let by = self.here.borrow().clone();
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
            served.there.lead(None);
            served.here.replace(Some(by));
        }
    }

    /// Commands of hosts that begin go to this coordinator on another node from now on, or to none; not while one here serves the volume.
    pub fn forward_to(&self, to: Option<Rc<Forwarder>>) {
        if let Some(served) = self.0.served.as_ref().filter(|s| !s.is_here()) {
            served.there.lead(to);
        }
    }

    /// Where they go.
    pub fn forwards_to(&self) -> Option<To> {
        self.0.served.as_ref().and_then(|s| s.there.to())
    }

    /// Who served the volume in this epoch has ended.
    pub fn served_no_more(&self, epoch: u32) {
        if let Some(served) = &self.0.served {
            let mut by = served.here.borrow_mut();
            if by.as_ref().is_some_and(|by| by.driver.epoch() == epoch) {
                *by = None;
            }
        }
    }
}

impl Served {
    /// Whether a coordinator here serves the volume.
    pub fn is_here(&self) -> bool {
        self.here.borrow().is_some()
    }
}

/// What hosts are told.
pub(super) fn told(failed: Failed) -> VolumeError {
    match failed {
        Failed::Stalled | Failed::Void => VolumeError::Stalled,
        Failed::Ended => VolumeError::Elsewhere,
        Failed::Full => VolumeError::CapacityExceeded,
        // The latter two are of snapshots, which hosts do not take.
        Failed::Busy | Failed::NeverTaken | Failed::NotHeld | Failed::TooMany => VolumeError::Busy,
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
        (fua, given): (bool, Given),
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
        let how = (fua, given.map(NonZeroU64::get));
        let written = self.driver.write_given(lane, first, kept, count, how);
        written.await.map_err(told)
    }

    pub(super) async fn erase(
        &self,
        lane: u8,
        blocks: Range<u64>,
        given: Given,
    ) -> Result<(), VolumeError> {
        let given = given.map(NonZeroU64::get);
        let erased = Box::pin(self.driver.erase_given(lane, blocks, given));
        erased.await.map_err(told)
    }
}
