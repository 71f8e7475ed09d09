//! A host with a path to each node, as multipath gives it one disk: it tries another path where one fails, and the same write until it is acknowledged.

use keelblock_nvme::Status;
use keelblock_nvme::initiator::{ConnectOptions, Controller, Error, IoQueue, Namespace};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::workload::{Target, queue_of};

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Blocks of each host.
pub const BLOCKS: u64 = 256;
/// A command that no path takes for so long has failed.
const LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for an answer on one path: what is cut off says nothing.
const ANSWER: Duration = Duration::from_secs(2);
/// Pause before the next path is tried.
const AGAIN: Duration = Duration::from_millis(10);

/// What hosts and those who watch them share.
#[derive(Debug, Default)]
pub struct Shared {
    /// They are to end.
    pub stop: AtomicBool,
    /// Commands that were done.
    pub writes: AtomicU64,
    /// Reads that were compared.
    pub reads: AtomicU64,
    /// The longest time that a command took since somebody looked, in microseconds.
    pub longest_us: AtomicU64,
    /// A pool is full, or was not long ago: commands may fail for want of room, and are given again.
    pub full: AtomicBool,
    /// What went wrong, in words.
    pub wrong: Mutex<Option<String>>,
}

impl Shared {
    /// Says what went wrong, and ends everything; what was said first stays.
    pub fn say(&self, why: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(|e| e.into_inner());
        wrong.get_or_insert(why);
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One host: blocks of its own, one command at a time.
pub struct Host<'a> {
    shared: &'a Shared,
    paths: &'a [Target],
    /// The path that served last.
    at: usize,
    open: Option<(Controller, IoQueue, Namespace)>,
    first: u64,
    held: Vec<u64>,
    random: SmallRng,
}

impl<'a> Host<'a> {
    /// Host number `n` of a run.
    pub fn new(shared: &'a Shared, paths: &'a [Target], n: u64, seed: u64) -> Self {
        Self {
            shared,
            paths,
            at: n as usize % paths.len(),
            open: None,
            first: n * BLOCKS,
            held: vec![0; BLOCKS as usize],
            random: SmallRng::seed_from_u64(seed ^ n),
        }
    }

    /// Writes and reads until it is told to end, then compares all of its blocks.
    pub fn run(mut self) {
        let mut value = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let block = self.random.random_range(0..BLOCKS);
            let done = if self.random.random_bool(0.7) {
                value += 1;
                self.write(block, value)
            } else {
                self.compare(block)
            };
            if let Err(why) = done {
                return self.shared.say(why);
            }
        }
        for block in 0..BLOCKS {
            if let Err(why) = self.compare(block) {
                return self.shared.say(why);
            }
        }
    }

    fn write(&mut self, block: u64, value: u64) -> Result<(), String> {
        let place = self.first + block;
        let bytes = pattern(place, value);
        self.insist(&format!("write of block {place}"), |queue, ns| {
            queue.write(ns, place, &bytes)
        })?;
        self.held[block as usize] = value;
        self.shared.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn compare(&mut self, block: u64) -> Result<(), String> {
        let place = self.first + block;
        let found = self.insist(&format!("read of block {place}"), |queue, ns| {
            queue.read(ns, place, 1)
        })?;
        let value = self.held[block as usize];
        let expected = match value {
            0 => vec![0; BLOCK],
            value => pattern(place, value),
        };
        if found != expected {
            let found = u64::from_le_bytes(found[8..16].try_into().expect("8 bytes"));
            return Err(format!(
                "block {place} was acknowledged with value {value}, and has {found}"
            ));
        }
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Does it by whatever path there is.
    fn insist<T>(
        &mut self,
        what: &str,
        act: impl Fn(&mut IoQueue, &Namespace) -> Result<T, Error>,
    ) -> Result<T, String> {
        let began = Instant::now();
        loop {
            let done = match &mut self.open {
                Some((_, queue, ns)) => act(queue, ns),
                None => match connect(&self.paths[self.at]) {
                    Ok(open) => {
                        self.open = Some(open);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            let error = match done {
                Ok(found) => {
                    let took = began.elapsed().as_micros() as u64;
                    self.shared.longest_us.fetch_max(took, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(error) => error,
            };
            // A status of a command that is no path's trouble stays what it is wherever it is asked. A node that has just begun knows no subsystem yet.
            let no_room = error
                .status()
                .is_some_and(|s| s.is(Status::CAPACITY_EXCEEDED));
            if no_room && self.shared.full.load(Ordering::Relaxed) && began.elapsed() < LIMIT {
                std::thread::sleep(AGAIN);
                continue;
            }
            let fatal = self.open.is_some() && error.status().is_some_and(|s| s.is_dnr());
            if fatal || began.elapsed() > LIMIT {
                let seconds = began.elapsed().as_secs();
                return Err(format!("{what} fails after {seconds} s: {error}"));
            }
            self.open = None;
            self.at = (self.at + 1) % self.paths.len();
            std::thread::sleep(AGAIN);
        }
    }
}

/// Connects with one queue for commands.
///
/// # Errors
/// As the initiator.
pub fn connect(target: &Target) -> Result<(Controller, IoQueue, Namespace), Error> {
    let host = "nqn.2014-08.org.nvmexpress:uuid:0cc1d0b8-0000-4000-8000-000000000002";
    let options = ConnectOptions {
        timeout: ANSWER,
        ..ConnectOptions::default()
    };
    let controller = Controller::connect(target.address, &target.nqn, host, &options)?;
    queue_of(controller, target.nsid, 31)
}

fn pattern(place: u64, value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        bytes.extend(place.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}
