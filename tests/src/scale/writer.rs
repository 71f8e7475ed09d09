//! A host that writes at random places of a large volume, many commands at a time, and remembers what it wrote.

use crate::workload::{self, Target, fill};
use keelblock_nvme::initiator::{Controller, IoQueue, Namespace, Payload};
use keelblock_nvme::{Sqe, opcode};
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const DEPTH: u16 = 64;
/// Blocks of a slice: a command stays inside one.
const SLICE_BLOCKS: u64 = 4096;
/// Without a completion for so long, the target hangs.
const STUCK: Duration = Duration::from_secs(60);
/// How long a volume may take to be served again.
const COME_BACK: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Debug)]
pub struct Writer {
    target: Target,
    controller: Controller,
    queue: IoQueue,
    namespace: Namespace,
    /// The version that a block was written with last.
    pub written: BTreeMap<u64, u64>,
    version: u64,
}

fn open(target: &Target) -> Result<(Controller, IoQueue, Namespace), String> {
    let deadline = Instant::now() + COME_BACK;
    loop {
        match workload::open(target, DEPTH) {
            Ok(opened) => return Ok(opened),
            Err(e) if Instant::now() > deadline => {
                return Err(format!("the volume is not served: {e}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl Writer {
    /// Connects.
    ///
    /// # Errors
    /// It cannot.
    pub fn connect(target: Target) -> Result<Self, String> {
        let (controller, queue, namespace) = open(&target)?;
        Ok(Self {
            target,
            controller,
            queue,
            namespace,
            written: BTreeMap::new(),
            version: 0,
        })
    }

    /// Connects again, after a stop or a kill.
    ///
    /// # Errors
    /// It cannot.
    pub fn reconnect(&mut self, target: Target) -> Result<(), String> {
        self.target = target;
        (self.controller, self.queue, self.namespace) = open(&self.target)?;
        Ok(())
    }

    /// A random place for so many blocks, below a bound.
    pub fn anywhere(&self, random: &mut SmallRng, blocks: u64, below: u64) -> u64 {
        let slots = below.min(self.namespace.blocks) / blocks;
        random.random_range(0..slots) * blocks
    }

    /// Blocks of the volume.
    pub fn blocks(&self) -> u64 {
        self.namespace.blocks
    }

    /// Writes so many blocks at each place, which nobody else writes to, and waits for all of it.
    ///
    /// # Errors
    /// A command failed.
    pub fn write(
        &mut self,
        places: impl IntoIterator<Item = u64>,
        blocks: u64,
    ) -> Result<(), String> {
        assert!(SLICE_BLOCKS.is_multiple_of(blocks));
        let mut places = places.into_iter().peekable();
        let (mut done, mut last, mut buffers) = (Vec::new(), Instant::now(), Vec::new());
        self.version += 1;
        let bytes = blocks as usize * BLOCK;
        loop {
            let pair = self.queue.pair();
            while pair.free() > 0
                && let Some(first) = places.next()
            {
                let mut data = buffers.pop().unwrap_or_else(|| vec![0; bytes]);
                for (n, into) in data.chunks_exact_mut(BLOCK).enumerate() {
                    let block = first + n as u64;
                    fill(into, block, self.version);
                    self.written.insert(block, self.version);
                }
                let sqe = Sqe::io(opcode::io::WRITE, self.namespace.nsid, first, blocks as u32);
                let sent = pair.submit(0, sqe, Payload::Send(data));
                sent.expect("there is room for one");
            }
            pair.poll(&mut done).map_err(|e| e.to_string())?;
            for completion in done.drain(..) {
                last = Instant::now();
                let status = completion.status();
                if !status.is_success() {
                    return Err(format!("a write failed: {status}"));
                }
                buffers.push(completion.buffer);
            }
            if pair.in_flight() == 0 && places.peek().is_none() {
                return self.controller.service().map_err(|e| e.to_string());
            }
            if last.elapsed() > STUCK {
                return Err("nothing completes any more".into());
            }
            // A poll at once costs less than a wait that ends at once.
            if pair.free() == 0 || places.peek().is_none() {
                pair.wait(Instant::now() + Duration::from_millis(100))
                    .or_else(|e| match e {
                        keelblock_nvme::initiator::Error::Timeout { .. } => Ok(()),
                        e => Err(e.to_string()),
                    })?;
            }
            self.controller.service().map_err(|e| e.to_string())?;
        }
    }

    /// Flushes.
    ///
    /// # Errors
    /// It failed.
    pub fn flush(&mut self) -> Result<(), String> {
        self.queue.flush(&self.namespace).map_err(|e| e.to_string())
    }

    /// Reads some of what was written, and compares.
    ///
    /// # Errors
    /// A read failed, or shows something else.
    pub fn verify_some(&mut self, random: &mut SmallRng, some: usize) -> Result<(), String> {
        let all: Vec<u64> = self.written.keys().copied().collect();
        for _ in 0..some.min(all.len()) {
            let block = all[random.random_range(0..all.len())];
            let wanted = self.written[&block];
            self.verify(block, wanted)?;
        }
        Ok(())
    }

    /// Compares a block with a version, 0 for zeroes.
    ///
    /// # Errors
    /// A read failed, or shows something else.
    pub fn verify(&mut self, block: u64, version: u64) -> Result<(), String> {
        let read = self.queue.read(&self.namespace, block, 1);
        let found = read.map_err(|e| format!("block {block}: {e}"))?;
        let mut wanted = [0; BLOCK];
        if version > 0 {
            fill(&mut wanted, block, version);
        }
        if found != wanted {
            return Err(format!("block {block} does not show version {version}"));
        }
        Ok(())
    }
}
