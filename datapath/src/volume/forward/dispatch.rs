//! From a reactor of the target to the forwarder of its volume, which is on the reactor that would coordinate it: a job there for each phase.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::send::{Coordinator, Forwarder, Forwarding, Reserved};
use super::{Command, PATH_ERROR, Status, pad, padded};
use crate::replication::wire::frame::DATA_BYTES_MAX;
use crate::volume::{Hub, Volume};

/// Commands that wait for hosts' data, with their stamps: as many as hosts may have under way.
const TICKETS_MAX: usize = 16_384;

/// The forwarder of a volume, and the commands that have their stamps.
#[derive(Default)]
pub struct There {
    forwarding: Rc<Forwarding>,
    reserved: RefCell<BTreeMap<u64, Reserved>>,
    last: Cell<u64>,
}

impl There {
    /// Where commands go.
    pub fn to(&self) -> Option<Coordinator> {
        self.forwarding.to()
    }

    /// Commands that begin go there, or nowhere.
    pub fn lead(&self, to: Option<Rc<Forwarder>>) {
        self.forwarding.lead(to);
    }
}

/// A command that has its stamps. Dropped, it gives them back.
#[derive(Debug)]
pub struct Ticket {
    volume: Volume,
    number: u64,
    confirmed: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.confirmed {
            return;
        }
        let (id, number) = (self.volume.id(), self.number);
        let Some(hub) = self.volume.0.hub.upgrade().map(Hub) else {
            return;
        };
        let owner = self.volume.0.table[0].owner.get();
        hub.handle().clone().spawn("forward: void", async move {
            let void = hub.run_on(owner, move |hub| async move {
                let volume = hub.volume(id);
                let served = volume.as_ref().and_then(|v| v.0.served.as_ref());
                let gone = served.and_then(|s| s.there.reserved.borrow_mut().remove(&number));
                drop(gone);
            });
            void.await;
        });
    }
}

impl Volume {
    /// Reserves stamps for a command of a host, which is to be confirmed when it is known that the host still holds it.
    ///
    /// # Errors
    /// What it completes with.
    pub async fn reserve_elsewhere(&self, command: Command) -> Result<Ticket, Status> {
        let number = self.elsewhere(move |volume, _| async move {
            let served = volume.0.served.as_ref().ok_or(PATH_ERROR)?;
            let there = &served.there;
            if served.is_here() || there.reserved.borrow().len() >= TICKETS_MAX {
                return Err(PATH_ERROR);
            }
            let reserved = there.forwarding.reserve(command).await?;
            there.last.set(there.last.get() + 1);
            let number = there.last.get();
            there.reserved.borrow_mut().insert(number, reserved);
            Ok(number)
        });
        Ok(Ticket {
            number: number.await?,
            volume: self.clone(),
            confirmed: false,
        })
    }

    /// Has a command done that has its stamps. `data`: what it writes; of a fused pair what it compares goes first.
    ///
    /// # Errors
    /// What it completes with. After [`PATH_ERROR`] it may be done, or not.
    pub async fn confirm_elsewhere(
        &self,
        mut ticket: Ticket,
        bytes: u64,
        data: (Option<Buffer>, Option<Buffer>),
    ) -> Result<(), Status> {
        ticket.confirmed = true;
        let number = ticket.number;
        let done = self.elsewhere(move |volume, hub| async move {
            let served = volume.0.served.as_ref().ok_or(PATH_ERROR)?;
            let there = &served.there;
            let reserved = there.reserved.borrow_mut().remove(&number);
            let reserved = reserved.ok_or(PATH_ERROR)?;
            let data = match data {
                (Some(compare), Some(write)) => Some(together(&hub, compare, write, bytes).await?),
                (one, other) => one.or(other).map(|mut one| {
                    pad(&mut one, bytes);
                    one
                }),
            };
            there.forwarding.confirm(reserved, data.map(Rc::new)).await
        });
        done.await
    }

    /// Has a command done that needs no stamp. What it read is at the beginning of the buffer.
    ///
    /// # Errors
    /// What it completes with.
    pub async fn ask_elsewhere(
        &self,
        command: Command,
        data: Option<Buffer>,
    ) -> Result<Option<Buffer>, Status> {
        let done = self.elsewhere(move |volume, _| async move {
            let served = volume.0.served.as_ref().ok_or(PATH_ERROR)?;
            if served.is_here() {
                // The path is another by now: hosts are being told.
                return Err(PATH_ERROR);
            }
            let data = data.map(|mut data| {
                pad(&mut data, command.bytes);
                Rc::new(data)
            });
            served.there.forwarding.ask(command, data).await
        });
        done.await
    }

    /// Runs `work` where the forwarder is.
    async fn elsewhere<T, F, Fut>(&self, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(Volume, Hub) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Status>> + 'static,
    {
        let hub = self.0.hub.upgrade().map(Hub).ok_or(PATH_ERROR)?;
        let (id, owner) = (self.id(), self.0.table[0].owner.get());
        let done = hub.run_on(owner, move |hub| async move {
            let volume = hub.volume(id).ok_or(PATH_ERROR)?;
            work(volume, hub).await
        });
        done.await
    }
}

/// What is compared and what is written, one behind the other.
async fn together(hub: &Hub, compare: Buffer, write: Buffer, bytes: u64) -> Result<Buffer, Status> {
    let each = bytes as usize;
    if padded(2 * bytes) > DATA_BYTES_MAX {
        return Err(PATH_ERROR);
    }
    let mut both = hub.handle().buffers().take(padded(2 * bytes)).await;
    both[..each].copy_from_slice(&compare[..each]);
    both[each..2 * each].copy_from_slice(&write[..each]);
    pad(&mut both, 2 * bytes);
    Ok(both)
}
