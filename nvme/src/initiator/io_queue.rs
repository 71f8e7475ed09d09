//! An I/O queue with blocking helpers; the polled interface beneath is [`IoQueue::pair`].

use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::queue::QueuePair;
use super::slot::{Completion, Payload};
use crate::identify::NamespaceData;
use crate::{DEAC, FUA, Fuse, Sqe, opcode};

/// The most bytes per command where the controller sets no limit.
const TRANSFER_BYTES_MAX: usize = 1 << 20;
/// Blocks per command: what NLB holds.
const BLOCKS_MAX: usize = 1 << 16;
/// Ranges of one Dataset Management command.
const RANGES_MAX: usize = 256;

/// A namespace as a host knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Identifier.
    pub nsid: u32,
    /// Bytes per block.
    pub block_bytes: u32,
    /// Size in blocks.
    pub blocks: u64,
}

impl Namespace {
    /// From Identify Namespace; an inactive namespace, or one with blocks below 512 bytes, is an error.
    pub fn new(nsid: u32, data: &NamespaceData) -> Result<Self> {
        let ns = Self {
            nsid,
            block_bytes: data.block_bytes(),
            blocks: data.blocks(),
        };
        if ns.blocks == 0 || ns.block_bytes < 512 {
            return Err(Error::Unsuitable("the namespace is not active"));
        }
        Ok(ns)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_bytes.into())
    }
}

/// An I/O queue pair.
#[derive(Debug)]
pub struct IoQueue {
    pair: QueuePair,
    max_transfer: usize,
    limit: Duration,
    others: Vec<Completion>,
}

impl IoQueue {
    pub(super) fn new(pair: QueuePair, max_transfer: Option<usize>, limit: Duration) -> Self {
        let max_transfer = max_transfer
            .unwrap_or(TRANSFER_BYTES_MAX)
            .min(TRANSFER_BYTES_MAX);
        Self {
            pair,
            max_transfer,
            limit,
            others: Vec::new(),
        }
    }

    /// The queue pair itself, to submit and poll. Do not mix with blocking helpers while commands are in flight.
    pub fn pair(&mut self) -> &mut QueuePair {
        &mut self.pair
    }

    /// The queue pair alone.
    pub fn into_pair(self) -> QueuePair {
        self.pair
    }

    /// Bytes that one command may move.
    pub fn max_transfer_bytes(&self) -> usize {
        self.max_transfer
    }

    /// Sends one command and waits for its completion, whatever its status.
    pub fn command(
        &mut self,
        what: &'static str,
        sqe: Sqe,
        payload: Payload,
    ) -> Result<Completion> {
        let done = self
            .pair
            .call(what, sqe, payload, self.limit, &mut self.others)?;
        if !self.others.is_empty() {
            self.others.clear();
            return Err(Error::Unsuitable(
                "a blocking call while polled commands are in flight",
            ));
        }
        Ok(done)
    }

    fn ok(&mut self, what: &'static str, sqe: Sqe, payload: Payload) -> Result<Completion> {
        self.command(what, sqe, payload)?.ok(what)
    }

    /// Blocks per command of this namespace.
    fn blocks_per_command(&self, ns: &Namespace) -> usize {
        (self.max_transfer / ns.block_bytes as usize).clamp(1, BLOCKS_MAX)
    }

    /// Reads `blocks` blocks at `slba`, in several commands if need be.
    pub fn read(&mut self, ns: &Namespace, slba: u64, blocks: usize) -> Result<Vec<u8>> {
        let block_bytes = ns.block_bytes as usize;
        let mut all = Vec::with_capacity(blocks * block_bytes);
        let step = self.blocks_per_command(ns);
        for first in (0..blocks).step_by(step) {
            let n = step.min(blocks - first);
            let sqe = Sqe::io(
                opcode::io::READ,
                ns.nsid,
                slba.saturating_add(first as u64),
                n as u32,
            );
            let buffer = self
                .ok("Read", sqe, Payload::Receive(vec![0; n * block_bytes]))?
                .full("Read")?;
            all.extend_from_slice(&buffer);
        }
        Ok(all)
    }

    /// Writes `data`, whole blocks, at `slba`, in several commands if need be.
    pub fn write(&mut self, ns: &Namespace, slba: u64, data: &[u8]) -> Result<()> {
        self.send("Write", opcode::io::WRITE, 0, ns, slba, data)
    }

    /// As [`Self::write`] with Force Unit Access.
    pub fn write_fua(&mut self, ns: &Namespace, slba: u64, data: &[u8]) -> Result<()> {
        self.send("Write", opcode::io::WRITE, FUA, ns, slba, data)
    }

    /// Compares `data` with what is at `slba`; a difference is [`Error::Refused`] with status Compare Failure.
    pub fn compare(&mut self, ns: &Namespace, slba: u64, data: &[u8]) -> Result<()> {
        self.send("Compare", opcode::io::COMPARE, 0, ns, slba, data)
    }

    fn send(
        &mut self,
        what: &'static str,
        op: u8,
        flags: u32,
        ns: &Namespace,
        slba: u64,
        data: &[u8],
    ) -> Result<()> {
        let block_bytes = ns.block_bytes as usize;
        if data.is_empty() || !data.len().is_multiple_of(block_bytes) {
            return Err(Error::Unsuitable("data must be whole blocks"));
        }
        let mut at = slba;
        for piece in data.chunks(self.blocks_per_command(ns) * block_bytes) {
            let blocks = (piece.len() / block_bytes) as u32;
            let sqe = Sqe::io(op, ns.nsid, at, blocks);
            let sqe = sqe.with_cdw(12, sqe.cdw(12) | flags);
            self.ok(what, sqe, Payload::Send(piece.to_vec()))?;
            at = at.saturating_add(blocks.into());
        }
        Ok(())
    }

    /// Fused compare and write: writes `new` if `expect` is what is there, both at most one command long.
    pub fn compare_and_write(
        &mut self,
        ns: &Namespace,
        slba: u64,
        expect: &[u8],
        new: &[u8],
    ) -> Result<()> {
        let blocks = (new.len() / ns.block_bytes as usize) as u32;
        if blocks == 0 || expect.len() != new.len() || new.len() > self.max_transfer {
            return Err(Error::Unsuitable(
                "compare and write takes two buffers of the same whole blocks",
            ));
        }
        let entry = |op, fuse| {
            let mut sqe = Sqe::io(op, ns.nsid, slba, blocks);
            sqe.set_fuse(fuse);
            sqe
        };
        let first = Payload::Send(expect.to_vec());
        if self.pair.free() < 2
            || self
                .pair
                .submit(0, entry(opcode::io::COMPARE, Fuse::First), first)
                .is_err()
        {
            return Err(Error::Unsuitable("a fused pair needs two free commands"));
        }
        let write = entry(opcode::io::WRITE, Fuse::Second);
        let second = self.pair.call(
            "Compare and Write",
            write,
            Payload::Send(new.to_vec()),
            self.limit,
            &mut self.others,
        )?;
        let deadline = Instant::now() + self.limit;
        while self.others.is_empty() {
            if Instant::now() >= deadline {
                return Err(Error::Timeout {
                    what: "Compare and Write",
                    limit: self.limit,
                });
            }
            self.pair.wait(deadline)?;
            self.pair.poll(&mut self.others)?;
        }
        // The compare's status is the cause when both failed.
        let first = self.others.pop().ok_or(Error::Closed)?;
        self.others.clear();
        first.ok("Compare")?;
        second.ok("Write").map(drop)
    }

    /// Makes all completed writes of the namespace durable.
    pub fn flush(&mut self, ns: &Namespace) -> Result<()> {
        self.ok("Flush", Sqe::new(opcode::io::FLUSH, ns.nsid), Payload::None)
            .map(drop)
    }

    /// Makes blocks read as zeroes; with `deallocate` the controller may free them.
    pub fn write_zeroes(
        &mut self,
        ns: &Namespace,
        slba: u64,
        blocks: u32,
        deallocate: bool,
    ) -> Result<()> {
        let sqe = self.range(opcode::io::WRITE_ZEROES, ns, slba, blocks)?;
        let sqe = if deallocate {
            sqe.with_cdw(12, sqe.cdw(12) | DEAC)
        } else {
            sqe
        };
        self.ok("Write Zeroes", sqe, Payload::None).map(drop)
    }

    /// Lets the controller check blocks without moving them.
    pub fn verify(&mut self, ns: &Namespace, slba: u64, blocks: u32) -> Result<()> {
        let sqe = self.range(opcode::io::VERIFY, ns, slba, blocks)?;
        self.ok("Verify", sqe, Payload::None).map(drop)
    }

    fn range(&self, op: u8, ns: &Namespace, slba: u64, blocks: u32) -> Result<Sqe> {
        if blocks == 0 || blocks as usize > BLOCKS_MAX {
            return Err(Error::Unsuitable("1 to 65536 blocks in one command"));
        }
        Ok(Sqe::io(op, ns.nsid, slba, blocks))
    }

    /// Frees ranges of (first block, number of blocks), at most 256.
    pub fn deallocate(&mut self, ns: &Namespace, ranges: &[(u64, u32)]) -> Result<()> {
        if ranges.is_empty() || ranges.len() > RANGES_MAX {
            return Err(Error::Unsuitable(
                "1 to 256 ranges in one Dataset Management command",
            ));
        }
        let mut data = Vec::with_capacity(ranges.len() * 16);
        for &(slba, blocks) in ranges {
            data.extend_from_slice(&0u32.to_le_bytes()); // context attributes
            data.extend_from_slice(&blocks.to_le_bytes());
            data.extend_from_slice(&slba.to_le_bytes());
        }
        const DEALLOCATE: u32 = 1 << 2;
        let sqe = Sqe::new(opcode::io::DATASET_MANAGEMENT, ns.nsid);
        let sqe = sqe
            .with_cdw(10, ranges.len() as u32 - 1)
            .with_cdw(11, DEALLOCATE);
        self.ok("Dataset Management", sqe, Payload::Send(data))
            .map(drop)
    }
}
