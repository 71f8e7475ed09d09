//! Verified I/O by our own initiator: random reads and writes of a region, each byte that is read compared with what was
//! written last. A thread of its own, until it is stopped or something is wrong.
use keelblock_nvme::initiator::{Backoff, ConnectOptions, Controller, Error, IoQueue, Namespace};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Blocks of the region: few, so that each is overwritten and read many times.
const REGION_BLOCKS: u64 = 2048;
/// Blocks of one command at most.
const COMMAND_BLOCKS_MAX: u64 = 32;
/// Commands that the queue can hold; one is in flight.
const QUEUE_DEPTH: u16 = 15;
/// How long a lost target may take to come back, for a workload that outlives it.
const COME_BACK: Duration = Duration::from_secs(60);

/// Where the workload runs.
#[derive(Clone, Debug)]
pub struct Target {
    /// NVMe/TCP address.
    pub address: SocketAddr,
    /// The subsystem.
    pub nqn: String,
    /// The namespace.
    pub nsid: u32,
}

/// What happens when the connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenLost {
    /// That is an error.
    Fail,
    /// Connect again and go on: the command that failed may or may not have been done.
    Reconnect,
    /// The connection must stay; a command that gets a path error is sent again until it is done, as a host with other paths would by one of those.
    Again,
}

/// Status code type of path errors (NVMe Base 2.1, 4.2.3.4).
const PATH_RELATED: u16 = 3;

/// A running workload.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<u64, String>>>,
}

impl Workload {
    /// Starts it. `seed` decides everything that is random.
    ///
    /// # Panics
    /// If it cannot connect.
    pub fn start(target: Target, seed: u64, when_lost: WhenLost) -> Workload {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let mut host = Host::connect(target, seed, when_lost).expect("the workload connects");
        let (stopped, count) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                host.step().map_err(|e| {
                    format!(
                        "after {} commands, seed {seed}: {e}",
                        count.load(Ordering::Relaxed)
                    )
                })?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            host.verify_all()?;
            Ok(count.load(Ordering::Relaxed))
        });
        Workload {
            stop,
            done,
            thread: Some(thread),
        }
    }

    /// Commands completed so far.
    pub fn commands(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until `more` further commands are done: proof that I/O goes on.
    ///
    /// # Panics
    /// If the workload ends, or that takes too long.
    pub fn wait_for_progress(&mut self, more: u64) {
        let (from, deadline) = (self.commands(), Instant::now() + crate::cluster::PATIENCE);
        while self.commands() < from + more {
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                panic!("the workload ended: {:?}", self.join());
            }
            assert!(
                Instant::now() < deadline,
                "the workload is stuck after {} commands",
                self.commands()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it, verifies the whole region once more, and gives the number of commands.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn finish(mut self) -> Result<u64, String> {
        self.join()
    }

    fn join(&mut self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .unwrap_or_else(|_| Err("the workload panicked".into())),
            None => Ok(self.commands()),
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

/// What a block may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// The version that is there for sure, if no doubt is.
    version: u64,
    /// A later one whose write failed: it may be there or not.
    doubtful: Option<u64>,
}

struct Host {
    target: Target,
    when_lost: WhenLost,
    controller: Controller,
    queue: IoQueue,
    namespace: Namespace,
    blocks: Vec<Block>,
    next_version: u64,
    rng: SmallRng,
}

/// A command, and the same again where a path does not work, if that is asked for.
fn again<T>(
    when_lost: WhenLost,
    mut command: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let deadline = Instant::now() + COME_BACK;
    loop {
        let done = command();
        let path = |e: &Error| e.status().is_some_and(|s| s.code() >> 8 == PATH_RELATED);
        match &done {
            Err(e) if when_lost == WhenLost::Again && path(e) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            _ => return done,
        }
    }
}

impl Host {
    fn connect(target: Target, seed: u64, when_lost: WhenLost) -> Result<Host, Error> {
        let (controller, queue, namespace) = open(&target, QUEUE_DEPTH)?;
        let unknown = Block {
            version: 0,
            doubtful: None,
        };
        let count = REGION_BLOCKS.min(namespace.blocks) as usize;
        let rng = SmallRng::seed_from_u64(seed);
        let mut host = Host {
            target,
            when_lost,
            controller,
            queue,
            namespace,
            blocks: vec![unknown; count],
            next_version: 1,
            rng,
        };
        // What was there before is nobody's business: the region starts out written.
        for first in (0..count as u64).step_by(COMMAND_BLOCKS_MAX as usize) {
            host.write(first, COMMAND_BLOCKS_MAX.min(count as u64 - first))?;
        }
        Ok(host)
    }

    /// One random command.
    fn step(&mut self) -> Result<(), String> {
        let blocks = self.blocks.len() as u64;
        let count = self.rng.random_range(1..=COMMAND_BLOCKS_MAX.min(blocks));
        let first = self.rng.random_range(0..=blocks - count);
        let outcome = if self.rng.random_bool(0.5) {
            self.write(first, count).map_err(Trouble::from)
        } else {
            self.read(first, count)
        };
        match outcome.and_then(|()| self.controller.service().map_err(Trouble::from)) {
            Ok(()) => Ok(()),
            Err(Trouble::Io(error))
                if self.when_lost == WhenLost::Reconnect && error.is_transport() =>
            {
                self.come_back()
            }
            Err(Trouble::Io(error)) => Err(format!("blocks {first}+{count}: {error}")),
            Err(Trouble::Wrong(what)) => Err(what),
        }
    }

    fn write(&mut self, first: u64, count: u64) -> Result<(), Error> {
        let size = self.namespace.block_bytes as usize;
        let version = self.next_version;
        self.next_version += 1;
        let mut data = vec![0; count as usize * size];
        for (i, block) in data.chunks_mut(size).enumerate() {
            fill(block, first + i as u64, version);
        }
        let range = first as usize..(first + count) as usize;
        for block in &mut self.blocks[range.clone()] {
            block.doubtful = Some(version);
        }
        let (queue, namespace) = (&mut self.queue, &self.namespace);
        again(self.when_lost, || queue.write(namespace, first, &data))?;
        self.blocks[range].fill(Block {
            version,
            doubtful: None,
        });
        Ok(())
    }

    fn read(&mut self, first: u64, count: u64) -> Result<(), Trouble> {
        let size = self.namespace.block_bytes as usize;
        let (queue, namespace) = (&mut self.queue, &self.namespace);
        let data = again(self.when_lost, || {
            queue.read(namespace, first, count as usize)
        })?;
        for (i, found) in data.chunks(size).enumerate() {
            let block = first + i as u64;
            let known = &mut self.blocks[block as usize];
            let candidates = [Some(known.version), known.doubtful];
            let mut wanted = vec![0; size];
            let matched = candidates.into_iter().flatten().find(|version| {
                fill(&mut wanted, block, *version);
                wanted == found
            });
            // What was read once stays so (invariant 4 of the design).
            let Some(version) = matched else {
                return Err(Trouble::Wrong(mismatch(block, *known, found)));
            };
            *known = Block {
                version,
                doubtful: None,
            };
        }
        Ok(())
    }

    fn verify_all(&mut self) -> Result<(), String> {
        let count = self.blocks.len() as u64;
        for first in (0..count).step_by(COMMAND_BLOCKS_MAX as usize) {
            self.read(first, COMMAND_BLOCKS_MAX.min(count - first))
                .map_err(|trouble| match trouble {
                    Trouble::Io(e) => format!("last verification: {e}"),
                    Trouble::Wrong(what) => format!("last verification: {what}"),
                })?;
        }
        Ok(())
    }

    fn come_back(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + COME_BACK;
        loop {
            match open(&self.target, QUEUE_DEPTH) {
                Ok((controller, queue, namespace)) => {
                    (self.controller, self.queue, self.namespace) = (controller, queue, namespace);
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("the target did not come back: {error}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// Writes every block of a volume, so that what it lies on has all its memory.
///
/// # Errors
/// What went wrong.
pub fn fill_volume(target: &Target) -> Result<(), String> {
    let (controller, mut queue, namespace) =
        open(target, QUEUE_DEPTH).map_err(|e| e.to_string())?;
    let step = queue.max_transfer_bytes() as u64 / u64::from(namespace.block_bytes);
    for first in (0..namespace.blocks).step_by(step as usize) {
        let count = step.min(namespace.blocks - first) as usize;
        let data = vec![0xa5; count * namespace.block_bytes as usize];
        queue
            .write(&namespace, first, &data)
            .map_err(|e| e.to_string())?;
    }
    controller.shutdown().map_err(|e| e.to_string())
}

/// Longest wait for a path that is inaccessible when a host connects.
const OPENS_LIMIT: Duration = Duration::from_secs(5);

/// Does it again while the path is inaccessible, as hosts wait for another ANA state: who serves a volume is known a moment before its path opens.
fn when_open<T>(mut work: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + OPENS_LIMIT;
    loop {
        match work() {
            Err(e) if e.contains(INACCESSIBLE) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

/// What such a command ends with.
const INACCESSIBLE: &str = "Asymmetric Access Inaccessible";

/// Writes every block of a volume's region and gives the version of each: what [`verify_region`] wants later.
///
/// # Errors
/// What went wrong.
pub fn write_region(target: &Target, seed: u64) -> Result<Vec<u64>, String> {
    when_open(|| write_region_once(target, seed))
}

fn write_region_once(target: &Target, seed: u64) -> Result<Vec<u64>, String> {
    let mut host =
        Host::connect(target.clone(), seed, WhenLost::Fail).map_err(|e| e.to_string())?;
    for _ in 0..REGION_BLOCKS / COMMAND_BLOCKS_MAX {
        host.step()?;
    }
    host.verify_all()?;
    host.queue
        .flush(&host.namespace)
        .map_err(|e| e.to_string())?;
    host.controller.shutdown().map_err(|e| e.to_string())?;
    Ok(host.blocks.iter().map(|b| b.version).collect())
}

/// Verifies what [`write_region`] wrote.
///
/// # Errors
/// What went wrong, or the first block that is not as it was.
pub fn verify_region(target: &Target, versions: &[u64]) -> Result<(), String> {
    when_open(|| verify_region_once(target, versions))
}

fn verify_region_once(target: &Target, versions: &[u64]) -> Result<(), String> {
    let (controller, mut queue, namespace) =
        open(target, QUEUE_DEPTH).map_err(|e| e.to_string())?;
    let mut wanted = vec![0; namespace.block_bytes as usize];
    for (number, version) in versions.iter().enumerate() {
        let found = queue
            .read(&namespace, number as u64, 1)
            .map_err(|e| e.to_string())?;
        fill(&mut wanted, number as u64, *version);
        if found != wanted {
            return Err(mismatch(
                number as u64,
                Block {
                    version: *version,
                    doubtful: None,
                },
                &found,
            ));
        }
    }
    controller.shutdown().map_err(|e| e.to_string())
}

/// What ends a step.
enum Trouble {
    Io(Error),
    Wrong(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Io(error)
    }
}

/// Connects, with room for so many commands in flight.
pub(crate) fn open(target: &Target, depth: u16) -> Result<(Controller, IoQueue, Namespace), Error> {
    let options = ConnectOptions {
        hostid: *b"keelblock-test-1",
        timeout: Duration::from_secs(20),
        ..Default::default()
    };
    let host = "nqn.2014-08.org.nvmexpress:uuid:6b65656c-0000-4000-8000-74657374696e";
    let once = Backoff {
        attempts: 3,
        ..Backoff::default()
    };
    let controller =
        Controller::connect_retrying(target.address, &target.nqn, host, &options, &once)?;
    queue_of(controller, target.nsid, depth)
}

/// One queue for commands of a controller that is connected, and a namespace of it.
///
/// # Errors
/// As the initiator.
pub fn queue_of(
    mut controller: Controller,
    nsid: u32,
    depth: u16,
) -> Result<(Controller, IoQueue, Namespace), Error> {
    let namespace = Namespace::new(nsid, &controller.namespace(nsid)?)?;
    controller.set_io_queues(1)?;
    let queue = controller.io_queue(1, depth)?;
    Ok((controller, queue, namespace))
}

/// A block's content: its number and version, then a stream that both decide.
pub(crate) fn fill(block: &mut [u8], number: u64, version: u64) {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.rotate_left(32);
    for word in block.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
    block[..8].copy_from_slice(&number.to_le_bytes());
    block[8..16].copy_from_slice(&version.to_le_bytes());
}

fn mismatch(block: u64, known: Block, found: &[u8]) -> String {
    let word = |at: usize| u64::from_le_bytes(found[at..at + 8].try_into().expect("8 bytes"));
    let zero = found.iter().all(|b| *b == 0);
    format!(
        "block {block} should be version {} or {:?}, and holds {}",
        known.version,
        known.doubtful,
        if zero {
            "zeroes".into()
        } else {
            format!("block {} version {}, or damaged", word(0), word(8))
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_differ_by_block_and_version() {
        let (mut a, mut b, mut c) = ([0; 512], [0; 512], [0; 512]);
        fill(&mut a, 1, 1);
        fill(&mut b, 1, 2);
        fill(&mut c, 2, 1);
        assert!(a[16..] != b[16..] && a[16..] != c[16..] && b[16..] != c[16..]);
    }
}
