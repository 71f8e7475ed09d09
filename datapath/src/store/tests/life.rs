//! One run: a drive from its formatting through several crashes to its emptying.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::Name;
use super::super::check::{BlockReader, CheckOptions, Report, check};
use super::super::engine::{CacheBudget, OpenError, Store, StoreConfig};
use super::oracle::Changes;
use super::work::{Admin, BALLAST, Ctx, Mix, Model, volume_id};
use crate::device::{Device, DeviceSource, Latch};
use crate::reactor::Handle;
use crate::reactor::sim::{NodeId, Sim};

/// Virtual time that nothing needs.
pub const LONG: Duration = Duration::from_secs(600);
const DRIVE: &str = "d";
/// Of how many things that a drive may have kept when the power went each is looked at.
const WAYS: [u32; 4] = [1, 3, 6, 10];

/// What runs did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub runs: u64,
    /// All crash points.
    pub crashes: u64,
    /// Of these, power cuts.
    pub cuts: u64,
    /// Of these power cuts, other things that the drive may have kept at the moment of the one before.
    pub again: u64,
    /// Crash points within an opening.
    pub in_opening: u64,
    pub checks: u64,
    pub writes: u64,
    pub full: u64,
    /// Pages of maps that were given up, in runs with damage.
    pub lost_pages: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.again += other.again;
        self.in_opening += other.in_opening;
        self.checks += other.checks;
        self.writes += other.writes;
        self.full += other.full;
        self.lost_pages += other.lost_pages;
    }
}

/// The drive as it is now, from outside.
pub struct Peek<'a>(pub &'a Sim);

impl BlockReader for Peek<'_> {
    fn blocks(&self) -> u64 {
        self.0.disk(DRIVE, |d| d.bytes()) / 4096
    }

    fn read(&self, block: u64, into: &mut [u8; 4096]) -> io::Result<()> {
        self.0.disk(DRIVE, |d| d.peek(block * 4096, into));
        Ok(())
    }
}

/// A simulated node with a drive, and what should be on it.
pub struct Life {
    pub sim: Sim,
    pub node: NodeId,
    pub handle: Handle,
    pub random: StdRng,
    pub model: Rc<RefCell<Model>>,
    pub counts: Counts,
    pub mix: Mix,
    /// A nearly full drive whose few blocks are written over and over: what is freed is used again within a few writes, mostly before the next flush.
    pub hot: bool,
    /// To show when it hangs.
    pub store: Option<Store>,
}

pub async fn open(handle: Handle, format: bool) -> Result<Store, OpenError> {
    let source = DeviceSource::Sim { name: DRIVE.into() };
    let device = Device::open(&handle, &source, &Latch::new(|_| {})).expect("the drive is there");
    if format {
        let (d, p) = (
            Name::new("d").expect("a name"),
            Name::new("p").expect("a name"),
        );
        Store::format(&handle, &device, &d, &p).await?;
    }
    let config = StoreConfig {
        cache: CacheBudget::new(256 << 10),
    };
    Store::open(&handle, &device, &config).await
}

impl Life {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let sim = Sim::new(random.random());
        let hot = random.random_range(0..8) == 0;
        let mib = match hot {
            true => 16,
            false => [16, 16, 17, 24, 32, 64, 160][random.random_range(0..7)],
        };
        sim.add_disk(DRIVE, mib << 20);
        let volatile = random.random_range(0..4) > 0;
        sim.disk(DRIVE, |d| d.volatile_cache = volatile);
        let (node, handles) = sim.start_node(1);
        let size = match hot {
            true => [60, 120, 200, 250][random.random_range(0..4)],
            false => [4, 16, 16, 40, 40, 40, 160, 160, 600][random.random_range(0..9)],
        };
        let mut windows = Vec::from([std::ops::Range {
            start: 0,
            end: size,
        }]);
        if !hot && random.random_bool(0.5) {
            windows.push(4090..4090 + size.min(30));
            windows.push((1 << 20)..(1 << 20) + size.min(20));
        }
        if !hot && mib <= 32 && random.random_range(0..60) == 0 {
            // More than the drive has room for.
            windows.push(10_000..10_000 + (mib << 8));
        }
        let model = Model {
            changes: Changes::new(volatile),
            lanes_each: match hot {
                true => 1,
                false => [1, 1, 2, 3][random.random_range(0..4)],
            },
            windows,
            volumes: BTreeMap::new(),
            gated: None,
            snaps: BTreeMap::new(),
            admin: None,
            next_name: 1,
            full: 0,
            errors: 0,
        };
        Self {
            mix: match hot {
                true => Mix::hot(&mut random),
                false => Mix::random(&mut random),
            },
            hot,
            store: None,
            sim,
            node,
            handle: handles[0].clone(),
            random,
            model: Rc::new(RefCell::new(model)),
            counts: Counts {
                runs: 1,
                ..Counts::default()
            },
        }
    }

    pub fn ctx(&self, store: &Store, ops: i64) -> Ctx {
        Ctx {
            handle: self.handle.clone(),
            store: store.clone(),
            model: self.model.clone(),
            left: Rc::new(Cell::new(ops)),
            mix: self.mix,
            faults: false,
            aim: None,
            unique: true,
        }
    }

    /// Does something to its end; `None` if the drive stopped the world.
    pub fn drive<T: 'static>(
        &self,
        what: &str,
        work: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = self.sim.run(&self.handle, LONG, work);
        if result.is_none() && !self.halted() {
            panic!(
                "{what} does not end: {:?}, {:#?}",
                self.model.borrow().state(),
                self.store
            );
        }
        result
    }

    pub fn halted(&self) -> bool {
        self.sim.disk(DRIVE, |d| d.halted())
    }

    pub fn halt_after(&self, events: u64) {
        self.sim.disk(DRIVE, |d| d.halt_after(events));
    }

    /// The process ends, with or without the machine; true if the power stayed on.
    pub fn crash(&mut self) -> bool {
        let killed = self.random.random_range(0..4) == 0;
        self.store = None;
        if killed {
            self.sim.kill(self.node);
        } else {
            self.sim.power_cut(self.node, &[DRIVE]);
            self.counts.cuts += 1;
        }
        self.counts.crashes += 1;
        self.handle = self.sim.restart_node(self.node, 1).remove(0);
        killed
    }

    pub fn check(&mut self, when: &str, data: bool) -> Report {
        self.counts.checks += 1;
        let report = check(&Peek(&self.sim), CheckOptions { data });
        assert!(
            report.is_clean(),
            "the offline check {when}:\n{}",
            report.text()
        );
        report
    }

    /// Opens, with crashes while it does so; and whether the power stayed on all the time.
    pub fn reopen(&mut self, mut killed: bool) -> (Store, bool) {
        loop {
            if self.random.random_bool(0.5) {
                let most = [60, 60, 200][self.random.random_range(0..3)];
                let events = self.random.random_range(1..most);
                self.halt_after(events);
            }
            let opened = self.drive("opening", open(self.handle.clone(), false));
            self.sim.disk(DRIVE, |d| {
                if !d.halted() {
                    d.go_on()
                }
            });
            match opened {
                Some(Ok(store)) if !self.halted() => return (store, killed),
                Some(Err(e)) => panic!("the drive does not open: {e}"),
                _ => {
                    self.counts.in_opening += 1;
                    killed &= self.crash();
                    if self.random.random_range(0..4) == 0 {
                        self.check("after a crash in an opening", false);
                    }
                }
            }
        }
    }

    /// Works until the world stops, or all is done.
    fn work(&mut self, store: Store) -> bool {
        let ops = self.random.random_range(1..400);
        let workers =
            [1, 1, 2, 4, 8, 32][self.random.random_range(0..if self.hot { 5 } else { 6 })];
        // A snapshot closes a generation: what is written over then is freed by a checkpoint.
        let first = usize::from(self.hot);
        let mut ctx = self.ctx(&store, ops);
        if self.random.random_bool(0.5) {
            ctx.aim = Some(self.sim.halter(DRIVE));
        }
        self.store = Some(store.clone());
        let admin_pause = [500, 5000, 200_000][self.random.random_range(0..3)];
        let running = Rc::new(Cell::new(workers + 1 - first));
        let left = ctx.left.clone();
        for n in first..=workers {
            let (ctx, seed, running) = (ctx.clone(), self.random.random(), running.clone());
            self.handle.spawn("work", async move {
                if n == 0 {
                    ctx.admin(seed, admin_pause).await;
                } else {
                    ctx.worker(seed).await;
                }
                running.set(running.get() - 1);
            });
        }
        let done = self.sim.run(&self.handle, LONG, async move {
            while running.get() > 0 {
                ctx.handle.sleep(Duration::from_micros(100)).await;
            }
            if ctx.mix.pause_us > 0 {
                ctx.handle
                    .sleep(Duration::from_millis(ctx.mix.pause_us))
                    .await;
            }
        });
        if done.is_none() && !self.halted() {
            panic!(
                "the workload does not end: {}, {} left, {store:#?}",
                self.model.borrow().state(),
                left.get()
            );
        }
        done.is_some()
    }

    /// Opens after a crash, and compares.
    pub fn come_back(&mut self, killed: bool) -> Store {
        let (store, killed) = self.reopen(killed);
        let mut ctx = self.ctx(&store, 1);
        ctx.unique = self.random.random_range(0..4) == 0;
        self.drive("verifying", async move { ctx.verify(killed).await });
        store.check();
        store
    }

    /// The process is killed, or the power cut; then the drive is opened, and all compared. After a power cut several times from the same moment, each
    /// time with something else that the drive may have kept; the last one is gone on with.
    pub fn crash_and_compare(&mut self) -> Store {
        self.store = None;
        if self.random.random_range(0..4) == 0 {
            self.sim.kill(self.node);
            return self.up_again(true);
        }
        let undecided = self.sim.power_off(self.node, DRIVE);
        let before = self.model.borrow().clone();
        let mut seen = BTreeSet::new();
        let mut distinct = Vec::new();
        for _ in 0..WAYS[self.random.random_range(0..WAYS.len())] {
            let seed = self.random.random();
            if seen.insert(self.sim.power_left(DRIVE, &undecided, seed)) {
                distinct.push(seed);
            }
        }
        self.counts.again += distinct.len() as u64 - 1;
        let mut up = None;
        for seed in distinct {
            if let Some(store) = up.take() {
                drop(store);
                self.sim.kill(self.node);
            }
            self.sim.power_left(DRIVE, &undecided, seed);
            self.model = Rc::new(RefCell::new(before.clone()));
            self.counts.cuts += 1;
            up = Some(self.up_again(false));
        }
        up.expect("the first is always distinct")
    }

    /// After the end of the process.
    fn up_again(&mut self, killed: bool) -> Store {
        self.counts.crashes += 1;
        self.handle = self.sim.restart_node(self.node, 1).remove(0);
        if self.random.random_range(0..4) == 0 {
            self.check("after a crash", false);
        }
        self.come_back(killed)
    }

    /// How many lanes there should be.
    pub fn lanes(&self) -> usize {
        let model = self.model.borrow();
        model.volumes.len() * usize::from(model.lanes_each)
    }

    /// Workers only, to their end.
    pub fn work_quietly(&mut self, store: &Store) {
        let ops = self.random.random_range(20..300);
        let ctx = self.ctx(store, ops);
        self.workers(ctx, true);
    }

    /// The same on a damaged drive: things fail, and nothing hangs.
    pub fn work_damaged(&mut self, store: &Store) {
        let ops = self.random.random_range(1..60);
        let mut ctx = self.ctx(store, ops);
        ctx.faults = true;
        self.workers(ctx, false);
    }

    fn workers(&mut self, ctx: Ctx, sound: bool) {
        self.store = Some(ctx.store.clone());
        let workers = self.random.random_range(1..6);
        let running = Rc::new(Cell::new(workers));
        for _ in 0..workers {
            let (ctx, seed, running) = (ctx.clone(), self.random.random(), running.clone());
            self.handle.spawn("work", async move {
                ctx.worker(seed).await;
                running.set(running.get() - 1);
            });
        }
        let handle = self.handle.clone();
        let done = self.sim.run(&self.handle, LONG, async move {
            while running.get() > 0 {
                handle.sleep(Duration::from_micros(100)).await;
            }
        });
        assert!(
            done.is_some(),
            "work on a {} drive does not end: {}, {:#?}",
            if sound { "sound" } else { "damaged" },
            self.model.borrow().state(),
            self.store,
        );
    }

    pub fn first(&mut self) -> Store {
        let opened = self.drive("formatting", open(self.handle.clone(), true));
        let store = opened.expect("nothing halts").expect("it opens");
        let ctx = self.ctx(&store, 1);
        // Blocks are used again soon only where few are left.
        let small = self.sim.disk(DRIVE, |d| d.bytes()) < 24 << 20;
        let some = small && self.random.random_range(0..3) == 0;
        let window = self.model.borrow().windows[0].end;
        let ballast = match self.hot {
            true => Some((32, window)),
            false => some.then_some((256, 300)),
        };
        let create = async move {
            if let Some((piece, left)) = ballast {
                ctx.ballast(piece, left).await;
            }
            ctx.perform(Admin::Create(251)).await;
        };
        self.drive("creating", create);
        store
    }

    /// Closes cleanly, checks, and opens again.
    fn close(&mut self, store: Store) -> Store {
        let closing = store.clone();
        let closed = self.drive("closing", async move { closing.close().await });
        closed.expect("nothing halts").expect("it closes");
        drop(store);
        self.store = None;
        let report = self.check("after closing", true);
        assert!(report.clean, "closed, and not marked so");
        self.sim.power_cut(self.node, &[DRIVE]);
        self.handle = self.sim.restart_node(self.node, 1).remove(0);
        self.come_back(false)
    }

    /// Deletes everything: what is left is empty.
    fn empty(&mut self, store: Store) {
        let ctx = self.ctx(&store, 1);
        let emptied = self.drive("emptying", async move {
            let (volumes, snaps): (Vec<u8>, Vec<(u8, u8)>) = {
                let model = ctx.model.borrow();
                (
                    model.volumes.keys().copied().collect(),
                    model.snaps.keys().copied().collect(),
                )
            };
            for (v, s) in snaps {
                ctx.perform(Admin::DeleteSnapshot(v, s)).await;
            }
            for v in volumes {
                ctx.perform(Admin::DeleteVolume(v)).await;
            }
            let ballast = ctx.store.delete_lanes(volume_id(BALLAST)).await;
            ballast.expect("deleting works");
            let mut turns = 0;
            while !ctx.store.settled() || ctx.store.space().used > 0 {
                ctx.store.checkpoint().await.expect("a checkpoint");
                ctx.flush().await;
                ctx.handle.sleep(Duration::from_millis(10)).await;
                turns += 1;
                assert!(
                    turns < 2000,
                    "space does not come back: {:?}",
                    ctx.store.space()
                );
            }
            let space = ctx.store.space();
            assert_eq!(
                space.total,
                space.fixed + space.used + space.free,
                "{space:?}"
            );
            ctx.store.check();
            ctx.store.close().await.expect("it closes");
        });
        emptied.expect("nothing halts");
        let report = self.check("of an emptied drive", true);
        assert_eq!(
            (report.used, report.pages, report.data),
            (0, 0, 0),
            "{}",
            report.text()
        );
    }
}

/// One run.
pub fn run(seed: u64) -> Counts {
    let mut life = Life::new(seed);
    let mut store = life.first();
    for _ in 0..life.random.random_range(3..12) {
        let events = match life.random.random_range(0..4) {
            0 => life.random.random_range(1..40),
            1 | 2 => life.random.random_range(1..600),
            _ if life.hot => life.random.random_range(1..150),
            _ => u64::MAX / 2,
        };
        life.halt_after(events);
        let done = life.work(store.clone());
        if done && life.random.random_range(0..3) == 0 {
            life.sim.disk(DRIVE, |d| d.go_on());
            store.check();
            let ctx = life.ctx(&store, 1);
            life.drive("accounts", async move { ctx.verify_all_used().await });
            store = life.close(store);
            continue;
        }
        drop(store);
        store = life.crash_and_compare();
    }
    if life.random.random_range(0..2) == 0 {
        life.empty(store);
    }
    life.counts.writes = life.model.borrow().changes.all.len() as u64;
    life.counts.full = life.model.borrow().full;
    life.counts
}
