//! A host that keeps random commands in flight until its connection is lost, and one that reads everything.

use super::model::{Model, Unit};
use crate::workload::{self, Target, fill};
use keelblock_nvme::initiator::{Completion, Controller, Error, IoQueue, Namespace, Payload};
use keelblock_nvme::{DEAC, FUA, Sqe, opcode};
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Commands in flight at most.
const DEPTH: u16 = 32;
/// Blocks of a command at most: what is atomic inside a slice.
const BLOCKS_MAX: u64 = 256;
/// Blocks of a discard or write-zeroes at most.
const ERASE_BLOCKS_MAX: u64 = 1024;
/// Without any completion for so long, the target hangs.
const STUCK: Duration = Duration::from_secs(30);
/// How long a lost target may take to come back.
const COME_BACK: Duration = Duration::from_secs(60);
/// How often a wait ends to look whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

/// A connection.
#[derive(Debug)]
pub struct Host {
    controller: Controller,
    queue: IoQueue,
    namespace: Namespace,
}

enum Op {
    Change(Range<Unit>),
    Read(Range<u64>, Vec<Unit>),
    Flush,
}

/// How a load ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Commands that were acknowledged.
    pub acknowledged: u64,
    /// Of these, with FUA, and flushes.
    pub durable: u64,
    /// Commands that were in flight when the connection was lost.
    pub in_flight: u64,
}

impl Host {
    /// Connects, as soon as the volume is served.
    ///
    /// # Errors
    /// It is not.
    pub fn connect(target: &Target) -> Result<Host, String> {
        let deadline = Instant::now() + COME_BACK;
        loop {
            match workload::open(target, DEPTH) {
                Ok((controller, queue, namespace)) => {
                    return Ok(Host {
                        controller,
                        queue,
                        namespace,
                    });
                }
                Err(e) if Instant::now() > deadline => {
                    return Err(format!("the target did not come back: {e}"));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// What each block shows.
    ///
    /// # Errors
    /// A read failed, or there are bytes that nobody wrote.
    pub fn read_all(&mut self) -> Result<Vec<Unit>, String> {
        let mut all = Vec::new();
        let blocks = self.namespace.blocks;
        for first in (0..blocks).step_by(BLOCKS_MAX as usize) {
            let count = BLOCKS_MAX.min(blocks - first) as usize;
            let read = self.queue.read(&self.namespace, first, count);
            let bytes = read.map_err(|e| format!("blocks {first}+{count}: {e}"))?;
            let units = bytes.chunks_exact(BLOCK).enumerate();
            let units = units.map(|(n, bytes)| identify(first + n as u64, bytes));
            all.extend(units.collect::<Result<Vec<Unit>, String>>()?);
        }
        Ok(all)
    }

    /// Keeps commands in flight until the connection is lost, or told to stop; then none is left in flight.
    ///
    /// # Errors
    /// A command failed though the connection is there, a read shows something else than it should, or nothing completes any more.
    pub fn load(
        &mut self,
        model: &Mutex<Model>,
        random: &mut SmallRng,
        stop: &AtomicBool,
    ) -> Result<Load, String> {
        let mut state = Loading {
            model,
            ops: BTreeMap::new(),
            reads: BTreeMap::new(),
            next: 0,
            done: Load::default(),
        };
        let depth = random.random_range(1..=usize::from(DEPTH));
        let (mut done, mut last) = (Vec::new(), Instant::now());
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            while !stopping && self.queue.pair().in_flight() < depth {
                if !state.submit(&mut self.queue, &self.namespace, random) {
                    break;
                }
            }
            if stopping && self.queue.pair().in_flight() == 0 {
                return Ok(state.done);
            }
            let polled = self.queue.pair().poll(&mut done);
            // What came before the end of the connection was acknowledged.
            for completion in done.drain(..) {
                last = Instant::now();
                state.complete(completion)?;
            }
            let waited = polled
                .and_then(|_| self.queue.pair().wait(Instant::now() + LOOK))
                .and_then(|()| self.controller.service());
            match waited {
                Ok(()) | Err(Error::Timeout { .. }) => {}
                Err(e) if e.is_transport() => {
                    state.done.in_flight = state.ops.len() as u64;
                    return Ok(state.done);
                }
                Err(e) => return Err(e.to_string()),
            }
            if last.elapsed() > STUCK {
                return Err(format!("nothing completes, {} in flight", state.ops.len()));
            }
        }
    }
}

struct Loading<'a> {
    model: &'a Mutex<Model>,
    ops: BTreeMap<u64, Op>,
    reads: BTreeMap<u64, Range<u64>>,
    next: u64,
    done: Load,
}

impl Loading<'_> {
    /// Blocks that no command in flight touches.
    fn pick(&self, model: &Model, random: &mut SmallRng, most: u64) -> Option<Range<u64>> {
        for _ in 0..20 {
            let most = if random.random_bool(0.5) { 8 } else { most };
            let len = random.random_range(1..=most);
            let first = random.random_range(0..=model.blocks() - len);
            let blocks = first..first + len;
            let read = |r: &Range<u64>| r.start < blocks.end && blocks.start < r.end;
            if model.is_quiet(&blocks) && !self.reads.values().any(read) {
                return Some(blocks);
            }
        }
        None
    }

    /// Sends one more command; false if there is no room for one.
    fn submit(
        &mut self,
        queue: &mut IoQueue,
        namespace: &Namespace,
        random: &mut SmallRng,
    ) -> bool {
        let mut model = self.model.lock().expect("nobody panics with it");
        let kind = random.random_range(0..100);
        let nsid = namespace.nsid;
        let io = |op, blocks: &Range<u64>| {
            Sqe::io(op, nsid, blocks.start, (blocks.end - blocks.start) as u32)
        };
        let most = if kind < 85 {
            BLOCKS_MAX
        } else {
            ERASE_BLOCKS_MAX
        };
        let Some(blocks) = self.pick(&model, random, most) else {
            return false;
        };
        let (op, sqe, payload) = match kind {
            0..3 => (Op::Flush, Sqe::new(opcode::io::FLUSH, nsid), Payload::None),
            3..15 => {
                let bytes = (blocks.end - blocks.start) as usize * BLOCK;
                self.reads.insert(self.next, blocks.clone());
                let sqe = io(opcode::io::READ, &blocks);
                let shown = model.shown(blocks.clone());
                (
                    Op::Read(blocks, shown),
                    sqe,
                    Payload::Receive(vec![0; bytes]),
                )
            }
            15..85 => {
                let units = model.issue(blocks.clone(), false);
                let mut bytes = vec![0; (blocks.end - blocks.start) as usize * BLOCK];
                for (block, into) in blocks.clone().zip(bytes.chunks_exact_mut(BLOCK)) {
                    fill(into, block, model.unit_of(&units, block));
                }
                let sqe = io(opcode::io::WRITE, &blocks);
                let fua = if kind < 25 { FUA } else { 0 };
                let sqe = sqe.with_cdw(12, sqe.cdw(12) | fua);
                (Op::Change(units), sqe, Payload::Send(bytes))
            }
            85..93 => {
                let units = model.issue(blocks.clone(), true);
                let sqe = io(opcode::io::WRITE_ZEROES, &blocks);
                let deallocate = if kind < 89 { DEAC } else { 0 };
                let sqe = sqe.with_cdw(12, sqe.cdw(12) | deallocate);
                (Op::Change(units), sqe, Payload::None)
            }
            _ => {
                let units = model.issue(blocks.clone(), true);
                let mut range = [0; 16];
                range[4..8].copy_from_slice(&((blocks.end - blocks.start) as u32).to_le_bytes());
                range[8..].copy_from_slice(&blocks.start.to_le_bytes());
                let deallocate = 1 << 2;
                let sqe = Sqe::new(opcode::io::DATASET_MANAGEMENT, nsid).with_cdw(11, deallocate);
                (Op::Change(units), sqe, Payload::Send(range.to_vec()))
            }
        };
        self.done.durable +=
            u64::from(matches!(op, Op::Flush) || sqe.opcode() == opcode::io::WRITE && sqe.fua());
        let sent = queue.pair().submit(self.next, sqe, payload);
        sent.expect("fewer are in flight than there may be");
        self.ops.insert(self.next, op);
        self.next += 1;
        true
    }

    fn complete(&mut self, completion: Completion) -> Result<(), String> {
        let op = self.ops.remove(&completion.tag);
        let op = op.ok_or("a completion of a command that was not sent")?;
        self.reads.remove(&completion.tag);
        let (status, buffer) = (completion.status(), completion.buffer);
        if !status.is_success() {
            return Err(format!("a command failed: {status}"));
        }
        self.done.acknowledged += 1;
        match op {
            Op::Flush => {}
            Op::Change(units) => {
                let mut model = self.model.lock().expect("nobody panics with it");
                model.acknowledged(units);
            }
            Op::Read(blocks, wanted) => {
                let found = blocks.zip(buffer.chunks_exact(BLOCK));
                for ((block, bytes), wanted) in found.zip(wanted) {
                    let found = identify(block, bytes)?;
                    if found != wanted {
                        return Err(format!("a read: block {block} shows {found}, not {wanted}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The unit that a block's bytes are of; 0 for zeroes.
fn identify(block: u64, bytes: &[u8]) -> Result<Unit, String> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(0);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let (number, unit) = (word(0), word(8));
    let mut wanted = [0; BLOCK];
    fill(&mut wanted, block, unit);
    if number != block || unit == 0 || bytes != wanted {
        return Err(format!(
            "block {block} holds block {number} of unit {unit}, or is damaged"
        ));
    }
    Ok(unit)
}
