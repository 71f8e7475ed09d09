//! A run: connect, fill (if asked for), warm up, count, read everything back (with `--verify`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{ConnectOptions, Controller, Error, Namespace};
use keelblock_nvme::pdu::Digests;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::lane::{Lane, Shared};
use crate::ledger::{Ledger, TooManyExtents};
use crate::pin::{PinError, pin_to};
use crate::report::{Report, Tally, Verified};
use crate::workload::{Io, Pattern, Workload};

/// How long a target may answer nothing while I/Os are in flight.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How often the admin queue is looked at.
const SERVICE_INTERVAL: Duration = Duration::from_millis(250);
/// Keep-alive timeout: a loaded machine may keep us off the core for a while.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What to do to whom.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Address and port.
    pub target: SocketAddr,
    /// Subsystem.
    pub nqn: String,
    /// Who we say we are.
    pub hostnqn: String,
    /// Namespace.
    pub nsid: u32,
    /// Pattern.
    pub pattern: Pattern,
    /// Percentage of reads in mixed patterns.
    pub mix: u8,
    /// Bytes per I/O.
    pub io_bytes: usize,
    /// Commands in flight per queue.
    pub depth: u16,
    /// Queues, all polled by one thread.
    pub queues: u16,
    /// How long to count.
    pub duration: Duration,
    /// How long to run before counting.
    pub warmup: Duration,
    /// I/Os per second to start, over all queues. Latencies then count from when an I/O was due, not from when there was room for it.
    pub rate: Option<f64>,
    /// Write the whole range once before anything else.
    pub fill: bool,
    /// Write stamped blocks (implies filling) and check all that is read.
    pub verify: bool,
    /// Core to pin to.
    pub cpu: Option<usize>,
    /// Digests to ask for.
    pub digests: Digests,
    /// Submission queue flow control.
    pub sq_flow_control: bool,
    /// Bytes from the start of the namespace to use; all if not given.
    pub range_bytes: Option<u64>,
    /// Seed of the workload.
    pub seed: u64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Pinning failed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The target, or the way to it.
    #[error(transparent)]
    Nvme(#[from] Error),
    /// The ledger would be too large.
    #[error(transparent)]
    Ledger(#[from] TooManyExtents),
    /// An I/O size that the namespace or the controller does not take.
    #[error(
        "--bs {io_bytes} must be a multiple of the namespace's {block_bytes}-byte blocks and at most {max} bytes"
    )]
    IoSize {
        /// Asked for.
        io_bytes: usize,
        /// Block size.
        block_bytes: u32,
        /// Largest transfer.
        max: usize,
    },
    /// Less range than one I/O.
    #[error("the range of {range} bytes does not hold one I/O")]
    Range {
        /// Bytes to use.
        range: u64,
    },
    /// The controller gives fewer queues.
    #[error("the controller grants {granted} I/O queues, not {asked}")]
    Queues {
        /// Granted.
        granted: u16,
        /// Asked for.
        asked: u16,
    },
    /// I/Os in flight that nothing came back of.
    #[error("the target answered nothing for {SILENCE_MAX:?} with {in_flight} I/Os in flight")]
    Silent {
        /// How many.
        in_flight: usize,
    },
}

/// Runs a load.
pub fn run(options: &RunOptions) -> Result<Report, RunError> {
    if let Some(core) = options.cpu {
        pin_to(core)?;
    }
    let mut load = Load::connect(options)?;
    let extents = load.extents;
    if options.verify {
        load.sweep((0..extents).map(|extent| Io {
            extent,
            write: true,
        }))?;
    }
    let mut workload = Workload::new(options.pattern, options.mix, extents, options.seed);
    let counted = load.timed(&mut workload, options)?;
    let [reads, writes] = load.take_tallies();
    if options.verify {
        load.sweep((0..extents).map(|extent| Io {
            extent,
            write: false,
        }))?;
    }
    let report = load.report(options, &counted, &reads, &writes);
    load.controller.shutdown()?;
    Ok(report)
}

/// The part of a run that counts.
#[derive(Clone, Copy, Default)]
struct Counted {
    elapsed: Duration,
    /// Time of the passes that found nothing.
    idle: Duration,
    calls: u64,
}

/// A connected target under load.
struct Load {
    controller: Controller,
    lanes: Vec<Lane>,
    shared: Shared,
    extents: u64,
    serviced: Instant,
    heard: Instant,
}

impl Load {
    fn connect(options: &RunOptions) -> Result<Self, RunError> {
        let mut rng = SmallRng::seed_from_u64(options.seed ^ 0x5eed);
        let connect = ConnectOptions {
            digests: options.digests,
            sq_flow_control: options.sq_flow_control,
            keep_alive: KEEP_ALIVE,
            ..ConnectOptions::default()
        };
        let mut controller =
            Controller::connect(options.target, &options.nqn, &options.hostnqn, &connect)?;
        let granted = controller.set_io_queues(options.queues)?;
        if granted < options.queues {
            return Err(RunError::Queues {
                granted,
                asked: options.queues,
            });
        }
        let namespace = Namespace::new(options.nsid, &controller.namespace(options.nsid)?)?;
        let mut lanes = Vec::with_capacity(options.queues.into());
        for qid in 1..=options.queues {
            let queue = controller.io_queue(qid, options.depth)?;
            let (io_bytes, block_bytes, max) = (
                options.io_bytes,
                namespace.block_bytes,
                queue.max_transfer_bytes(),
            );
            if io_bytes == 0 || io_bytes > max || !io_bytes.is_multiple_of(block_bytes as usize) {
                return Err(RunError::IoSize {
                    io_bytes,
                    block_bytes,
                    max,
                });
            }
            lanes.push(Lane::new(queue.into_pair(), io_bytes, &mut rng));
        }
        let range = options
            .range_bytes
            .unwrap_or(u64::MAX)
            .min(namespace.bytes());
        let extents = range / options.io_bytes as u64;
        if extents == 0 {
            return Err(RunError::Range { range });
        }
        let per_extent = options.io_bytes as u64 / u64::from(namespace.block_bytes);
        // Not from the seed alone: two runs must not take each other's blocks for their own.
        let run = SmallRng::from_os_rng().next_u64();
        let ledger = match options.verify {
            true => Some(Ledger::new(
                extents,
                per_extent,
                namespace.block_bytes as usize,
                run,
            )?),
            false => None,
        };
        let shared = Shared {
            namespace,
            io_bytes: options.io_bytes,
            ledger,
            verified: Verified::default(),
            reads: Tally::default(),
            writes: Tally::default(),
            first_error: None,
        };
        let now = Instant::now();
        Ok(Self {
            controller,
            lanes,
            shared,
            extents,
            serviced: now,
            heard: now,
        })
    }

    /// Does every I/O of `ios` once, and waits for all.
    fn sweep(&mut self, mut ios: impl Iterator<Item = Io>) -> Result<(), RunError> {
        self.heard = Instant::now();
        let mut exhausted = false;
        while !exhausted || !self.lanes.iter().all(Lane::is_idle) {
            let now = Instant::now();
            for lane in &mut self.lanes {
                while !exhausted && lane.has_room() {
                    exhausted = !lane.issue(|| ios.next(), now, &mut self.shared);
                }
            }
            self.pass(now)?;
        }
        Ok(())
    }

    /// Warms up, counts, and lets what is in flight end.
    fn timed(
        &mut self,
        workload: &mut Workload,
        options: &RunOptions,
    ) -> Result<Counted, RunError> {
        let start = Instant::now();
        let count_from = start + options.warmup;
        let end = count_from + options.duration;
        let mut pace = options.rate.map(|rate| Pace {
            due: start,
            interval: Duration::from_secs_f64(1.0 / rate),
        });
        let mut from = None;
        let mut counted = Counted::default();
        let (mut before, mut found) = (start, 1);
        self.heard = start;
        loop {
            let now = Instant::now();
            if found == 0 {
                counted.idle += now - before;
            }
            before = now;
            if from.is_none() && now >= count_from {
                self.shared.reads.reset();
                self.shared.writes.reset();
                counted = Counted {
                    calls: self.calls(),
                    ..Counted::default()
                };
                from = Some(now);
            }
            if now >= end {
                counted.elapsed = now - from.unwrap_or(now);
                counted.calls = self.calls() - counted.calls;
                break;
            }
            for lane in &mut self.lanes {
                while lane.has_room() {
                    let since = match &mut pace {
                        None => now,
                        Some(pace) if pace.due <= now => pace.take(),
                        Some(_) => break,
                    };
                    if !lane.issue(|| Some(workload.next_io()), since, &mut self.shared) {
                        break;
                    }
                }
            }
            found = self.pass(now)?;
        }
        // What still completes was not counted in time.
        let tallies = self.take_tallies();
        self.sweep(std::iter::empty())?;
        [self.shared.reads, self.shared.writes] = tallies;
        Ok(counted)
    }

    /// Polls every lane once, the admin queue now and then; returns how many I/Os completed.
    fn pass(&mut self, now: Instant) -> Result<usize, RunError> {
        let mut found = 0;
        for lane in &mut self.lanes {
            found += lane.poll(&mut self.shared)?;
        }
        if found > 0 {
            self.heard = now;
        }
        if now - self.serviced >= SERVICE_INTERVAL {
            self.serviced = now;
            self.controller.service()?;
            let in_flight = self.lanes.iter().map(|l| l.pair.in_flight()).sum();
            if in_flight == 0 {
                self.heard = now;
            } else if now.saturating_duration_since(self.heard) > SILENCE_MAX {
                return Err(RunError::Silent { in_flight });
            }
        }
        Ok(found)
    }

    fn calls(&self) -> u64 {
        self.lanes.iter().map(|l| l.pair.calls()).sum()
    }

    fn take_tallies(&mut self) -> [Tally; 2] {
        [
            std::mem::take(&mut self.shared.reads),
            std::mem::take(&mut self.shared.writes),
        ]
    }

    fn report(
        &self,
        options: &RunOptions,
        counted: &Counted,
        reads: &Tally,
        writes: &Tally,
    ) -> Report {
        let Counted {
            elapsed,
            idle,
            calls,
        } = *counted;
        let figures = |t: &Tally| t.figures(elapsed, options.io_bytes);
        let total = figures(&reads.with(writes));
        let digests = self.lanes[0].pair.negotiated().digests;
        Report {
            target: options.target.to_string(),
            nqn: options.nqn.clone(),
            nsid: options.nsid,
            rw: options.pattern,
            read_percent: options.pattern.read_percent(options.mix),
            block_bytes: options.io_bytes,
            depth: self.lanes[0].depth,
            depth_asked: options.depth.into(),
            queues: self.lanes.len(),
            cpu: options.cpu,
            seconds: elapsed.as_secs_f64(),
            warmup_seconds: options.warmup.as_secs_f64(),
            rate_iops: options.rate,
            hdgst: digests.header,
            ddgst: digests.data,
            sq_flow_control: options.sq_flow_control,
            range_bytes: self.extents * options.io_bytes as u64,
            seed: options.seed,
            idle_share: idle.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            calls_per_io: calls as f64 / total.ios.max(1) as f64,
            total,
            read: figures(reads),
            write: figures(writes),
            first_error: self.shared.first_error.clone(),
            verify: options.verify.then(|| self.shared.verified.clone()),
        }
    }
}

/// When the next I/O is due under a rate limit.
struct Pace {
    due: Instant,
    interval: Duration,
}

impl Pace {
    fn take(&mut self) -> Instant {
        let due = self.due;
        self.due += self.interval;
        due
    }
}
