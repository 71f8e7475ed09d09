//! Hosts that go to nodes which do not coordinate (`docs/replication.md` §14, rule 8), and that try again elsewhere what they have no answer to.
//!
//! The target is left out: a host's command comes to a forwarder's task at any time, after a stall perhaps; when that has stamps it asks the host, as an R2T does,
//! and confirms if the host still holds the command. A host that has given up sends the same write by another way, and other hosts' writes follow; the first
//! one may still be on its way.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::cluster::{Cluster, Coordinator, VOLUME};
use crate::reactor::{Handle, Notify};
use crate::replication::planted::{self, Bug};
use crate::replication::session::rig::name;
use crate::store::types::{BLOCK_BYTES, LaneBlock, Stamp};
use crate::volume::coordinator::reserve::Part;
use crate::volume::forward::send::{Coordinator as ForwardTo, Forwarder, Forwarding};
use crate::volume::forward::{Command, Ended, Hosted, Operation, PATH_ERROR, Phase, Status};

/// Lanes alternate by so many bytes.
const SLICE_BYTES: u64 = 1 << 24;

/// The way of hosts to a node that forwards.
#[derive(Clone)]
pub struct Path {
    /// Its reactor.
    pub handle: Handle,
    /// Where it forwards to.
    pub forwarding: Rc<Forwarding>,
    /// Its process has not ended.
    pub alive: Rc<Cell<bool>>,
}

/// What a host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// These values are written.
    Write {
        /// In all blocks.
        value: u64,
        /// They are to be stable.
        fua: bool,
    },
    /// Blocks are erased.
    Erase,
    /// Blocks are read.
    Read,
    /// All lanes are flushed.
    Flush,
}

/// A command that a host has sent.
#[derive(Default)]
struct Sent {
    /// The host holds it no more.
    gone: Cell<bool>,
    answer: RefCell<Option<Result<Option<Buffer>, Status>>>,
    answered: Notify,
}

/// What it is in frames.
fn command(what: What, lane: u8, blocks: &Range<u64>) -> Command {
    let bytes = (blocks.end - blocks.start) * BLOCK_BYTES as u64;
    let first = u64::from(lane) * SLICE_BYTES + blocks.start * BLOCK_BYTES as u64;
    let (operation, fua) = match what {
        What::Write { fua, .. } => (Operation::Write, fua),
        What::Erase => (Operation::WriteZeroes, false),
        What::Read => (Operation::Read, false),
        What::Flush => (Operation::Flush, false),
    };
    let flush = what == What::Flush;
    Command {
        host: [7; 16],
        request: 0,
        phase: Phase::Read,
        operation,
        fused: false,
        fua,
        nsid: 1,
        first: if flush { 0 } else { first },
        bytes: if flush { 0 } else { bytes },
        age_ms: 1,
    }
}

/// How long a message takes, or a forwarder to look at it.
fn some_time(handle: &Handle) -> Duration {
    let most = match handle.random() % 24 {
        0 => 3_000_000,
        1..=3 => 60_000,
        _ => 300,
    };
    Duration::from_micros(handle.random() % most)
}

/// A forwarder's task for a command.
async fn forward(path: Path, sent: Rc<Sent>, what: What, command: Command) {
    let Path {
        handle, forwarding, ..
    } = path;
    handle.sleep(some_time(&handle)).await;
    let done = match what {
        What::Read | What::Flush => forwarding.ask(command, None).await,
        What::Write { .. } | What::Erase => {
            let reserved = match forwarding.reserve(command).await {
                Ok(reserved) => reserved,
                Err(status) => return answer(&handle, &sent, Err(status)).await,
            };
            // The R2T, and what the host answers it with.
            handle.sleep(some_time(&handle)).await;
            if sent.gone.get() && !planted::is(Bug::NotConfirmed) {
                return;
            }
            handle.sleep(some_time(&handle)).await;
            let data = match what {
                What::Write { value, .. } => {
                    let bytes = command.bytes as usize;
                    let mut buffer = handle.buffers().take(bytes).await;
                    super::run::pattern(value, &mut buffer[..bytes]);
                    Some(Rc::new(buffer))
                }
                _ => None,
            };
            forwarding.confirm(reserved, data).await.map(|()| None)
        }
    };
    answer(&handle, &sent, done).await;
}

async fn answer(handle: &Handle, sent: &Sent, done: Result<Option<Buffer>, Status>) {
    handle.sleep(some_time(handle)).await;
    sent.answer.replace(Some(done));
    sent.answered.notify_all();
}

impl Path {
    /// A host sends a command and waits for its answer for so long. `None`: it has none, and holds the command no more.
    pub async fn ask(
        &self,
        host: &Handle,
        what: What,
        (lane, blocks): (u8, &Range<u64>),
        patience: Duration,
    ) -> Option<Result<Option<Buffer>, Status>> {
        if !self.alive.get() {
            return None;
        }
        let sent = Rc::new(Sent::default());
        let task = forward(
            self.clone(),
            sent.clone(),
            what,
            command(what, lane, blocks),
        );
        self.handle.spawn("forwarder", task);
        let until = host.now() + patience;
        loop {
            if let Some(answer) = sent.answer.take() {
                return Some(answer);
            }
            let left = until.since(host.now());
            if left.is_zero() {
                sent.gone.set(true);
                return None;
            }
            let _ = host.timeout(left, sent.answered.notified()).await;
        }
    }
}

/// A coordinator, as other nodes' commands find it.
pub struct SimulatedHere {
    /// Its reactor.
    pub handle: Handle,
    /// It.
    pub driver: Coordinator,
}

fn place(command: &Command) -> (u8, Range<u64>) {
    let lane = (command.first / SLICE_BYTES) as u8;
    let first = command.first % SLICE_BYTES / BLOCK_BYTES as u64;
    (lane, first..first + command.bytes / BLOCK_BYTES as u64)
}

impl Hosted for SimulatedHere {
    fn reserve(&self, key: u64, command: &Command) -> Result<Stamp, Status> {
        let (lane, blocks) = place(command);
        let part = Part {
            lane,
            stamps: blocks.end - blocks.start,
            blocks,
        };
        let age = Duration::from_millis(command.age_ms.into());
        let reserved = self.driver.reserve(key, vec![part], age);
        reserved.map_err(|_| PATH_ERROR)
    }

    fn unreserve(&self, key: u64) {
        self.driver.unreserve(key);
    }

    fn run(&self, key: u64, command: Command, data: Option<Buffer>) -> Ended {
        let (driver, handle) = (self.driver.clone(), self.handle.clone());
        Box::pin(async move {
            let (lane, blocks) = place(&command);
            let count = (blocks.end - blocks.start) as usize;
            let done = match (command.operation, data) {
                (Operation::Read, _) => {
                    let into = handle.buffers().take(count * BLOCK_BYTES).await;
                    let (read, done) = driver.read(lane, blocks, into).await;
                    return match done {
                        Ok(()) => (0, Some(Rc::new(read))),
                        Err(_) => (PATH_ERROR, None),
                    };
                }
                (Operation::Write, Some(data)) => {
                    let how = (command.fua, Some(key));
                    let first = LaneBlock(blocks.start);
                    driver.write_given(lane, first, data, count, how).await
                }
                (Operation::WriteZeroes, _) => driver.erase_given(lane, blocks, Some(key)).await,
                _ => driver.flush().await,
            };
            (done.map_or(PATH_ERROR, |()| 0), None)
        })
    }
}

impl Cluster {
    /// Nodes that run lead to whom the record names, unless that is themselves, or nowhere.
    pub fn follow_coordinator(&self) {
        let record = self.kvdb.record();
        // The first byte of an incarnation says which node it is of.
        let by = usize::from(record.incarnation[0]);
        let to = ForwardTo {
            volume: VOLUME,
            epoch: record.epoch,
            incarnation: record.incarnation,
        };
        for (node, process) in self.processes.iter().enumerate() {
            let Some(process) = process else { continue };
            if !record.serving || by == node {
                process.forwarding.lead(None);
            } else if process.forwarding.to() != Some(to) {
                let trunk = process.trunks.to(name(by));
                let forwarder = Forwarder::start(&self.rig.handle(node, 0), trunk, to);
                process.forwarding.lead(Some(forwarder));
            }
        }
    }

    /// Ways of hosts to nodes that forward.
    pub fn paths(&self) -> Vec<Path> {
        let all = self.processes.iter().enumerate();
        let all = all.filter_map(|(node, p)| {
            let process = p.as_ref()?;
            process.forwarding.to()?;
            Some(Path {
                handle: self.rig.handle(node, 0),
                forwarding: process.forwarding.clone(),
                alive: process.alive.clone(),
            })
        });
        all.collect()
    }
}
