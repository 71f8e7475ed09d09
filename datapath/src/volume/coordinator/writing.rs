//! What hosts change through a coordinator, and the stamps that commands of hosts on other nodes reserve (`docs/replication.md` §§8 and 14).

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::driver::{Driver, Peers, SetStore};
use super::message::{Event, Failed};
use super::reserve::Part;
use crate::replication::held::{Held, What};
use crate::store::types::{LaneBlock, Stamp};

impl<P: Peers, K: SetStore> Driver<P, K> {
    /// Reserves the stamps of a command of a host on another node; the first of them. The command's number is the caller's, and no other has it (§14).
    ///
    /// # Errors
    /// [`Failed`]: nothing is reserved.
    pub fn reserve(
        &self,
        command: u64,
        parts: Vec<Part>,
        age: std::time::Duration,
    ) -> Result<Stamp, Failed> {
        let until = self.0.handle.now() + age;
        let reserved = self.0.machine.borrow_mut().reserve(command, parts, until)?;
        // It may have to be voided in time.
        self.0.work.notify();
        Ok(reserved)
    }

    /// A command that stamps were reserved for is over.
    pub fn unreserve(&self, command: u64) {
        let now = self.0.handle.now();
        let actions = self.0.machine.borrow_mut().unreserve(command, now);
        self.0.act(actions);
        self.0.work.notify();
    }

    /// Writes the first `blocks` blocks of a buffer. Done when it is acknowledged (§8); with `fua` then it is on stable media.
    ///
    /// # Errors
    /// [`Failed`]. After [`Failed::Stalled`] it may be done later, or not.
    pub async fn write(
        &self,
        lane: u8,
        first: LaneBlock,
        data: Buffer,
        blocks: usize,
        fua: bool,
    ) -> Result<(), Failed> {
        self.write_given(lane, first, data, blocks, (fua, None))
            .await
    }

    /// The same, as (a part of) a command that stamps may be reserved for.
    ///
    /// # Errors
    /// As for a write; [`Failed::Void`].
    pub async fn write_given(
        &self,
        lane: u8,
        first: LaneBlock,
        data: Buffer,
        blocks: usize,
        (fua, given): (bool, Option<u64>),
    ) -> Result<(), Failed> {
        // Its stamp is given later.
        let none = Stamp { epoch: 0, seq: 0 };
        let data = Rc::new(data);
        let held = match self.0.cipher {
            Some(_) => Held::to_seal(lane, none, first, blocks, data),
            None => Held::write(lane, none, first, blocks, data),
        };
        self.modify(lane, held.what, (fua, given)).await
    }

    /// Erases blocks: they read as zeroes.
    ///
    /// # Errors
    /// As for a write.
    pub async fn erase(&self, lane: u8, blocks: Range<u64>) -> Result<(), Failed> {
        self.erase_given(lane, blocks, None).await
    }

    /// The same, as (a part of) a command that stamps may be reserved for.
    ///
    /// # Errors
    /// As for a write; [`Failed::Void`].
    pub async fn erase_given(
        &self,
        lane: u8,
        blocks: Range<u64>,
        given: Option<u64>,
    ) -> Result<(), Failed> {
        let what = What::Tombstone {
            first: LaneBlock(blocks.start),
            blocks: blocks.end - blocks.start,
        };
        self.modify(lane, what, (false, given)).await
    }

    async fn modify(
        &self,
        lane: u8,
        what: What,
        (fua, given): (bool, Option<u64>),
    ) -> Result<(), Failed> {
        let command = self.0.command();
        let began = self.0.handle.now();
        self.0.event(Event::Write {
            token: command.token,
            lane,
            what,
            fua,
            given,
        });
        let done = command.done().await;
        self.0.resyncs.pace.took(self.0.handle.now().since(began));
        done
    }
}
