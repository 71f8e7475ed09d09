//! Replicas on simulated drives: records with stamps of their own come in order, again, late, and by copies; the world stops between any two operations of
//! the drive; and what is found must be what was applied, no less than what was flushed, each record whole.
//!
//! A block's bytes follow from its stamp, so that what it shows says which record it is of. What is found after a crash is compared exactly: the
//! lists of what is not settled say which records are there, and then there is one thing that each block can be.

mod back;
mod model;
pub mod steps;
mod summaries;
mod work;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rand::{Rng, SeedableRng};

use super::super::engine::{Replica, Store};
use super::super::types::Stamp;
use super::life::{Counts, Life, open};
use super::work::volume_id;
use crate::replication::seam::{KeptSet, ReplicaStore};
use model::{Lane, Model, State};
use work::Ctx;

const VOLUME: u8 = 77;
const ID: [u8; 16] = [9; 16];

fn opened(store: &Store) -> Replica {
    Replica::open(std::slice::from_ref(store), volume_id(VOLUME)).expect("it is complete")
}

struct Run {
    life: Life,
    model: Rc<RefCell<Model>>,
}

impl Run {
    fn ctx(&mut self, store: &Store, ops: i64) -> Ctx {
        Ctx {
            handle: self.life.handle.clone(),
            store: store.clone(),
            replica: opened(store),
            model: self.model.clone(),
            left: Rc::new(Cell::new(ops)),
            pause_us: [0, 0, 50, 2000, 100_000][self.life.random.random_range(0..5)],
        }
    }

    /// A replica that is copied to says so before, and no more afterwards.
    fn resync(&mut self, store: &Store, begins: bool) -> bool {
        let was = std::mem::replace(&mut self.model.borrow_mut().resyncing, begins);
        let ctx = self.ctx(store, 1);
        let mut random = rand::rngs::StdRng::seed_from_u64(self.life.random.random());
        let promised = self.life.drive("a promise", async move {
            if was || begins {
                ctx.promise(&mut random).await;
            }
        });
        promised.is_some()
    }

    /// Workers, to their end or until the drive stops the world.
    fn work(&mut self, store: &Store, copies: bool) -> bool {
        let ops = self.life.random.random_range(1..300);
        let workers = [1, 2, 4, 8][self.life.random.random_range(0..4)];
        let ctx = self.ctx(store, ops);
        let running = Rc::new(Cell::new(workers));
        // Everything above s0 comes by the stream, and nothing else does.
        let s0 = {
            let model = &mut *self.model.borrow_mut();
            let epoch = model.epoch;
            let lane = &mut model.lanes[0];
            let s0 = Stamp {
                epoch,
                seq: lane.next - 1,
            };
            if copies {
                lane.kill_up_to(s0);
            }
            s0
        };
        for n in 0..workers {
            let (ctx, seed, running) = (ctx.clone(), self.life.random.random(), running.clone());
            self.life.handle.spawn("work", async move {
                if n == 0 && copies && s0.seq > 0 {
                    ctx.copier(seed, s0).await;
                } else {
                    ctx.worker(seed).await;
                }
                running.set(running.get() - 1);
            });
        }
        let handle = self.life.handle.clone();
        let done = self.life.drive("work", async move {
            while running.get() > 0 {
                handle.sleep(Duration::from_micros(100)).await;
            }
        });
        done.is_some()
    }

    /// Only what the copies left last can be beneath: all of them are done, and flushed.
    fn copies_are_done(&self) {
        for lane in &mut self.model.borrow_mut().lanes {
            for bases in lane.bases.values_mut() {
                let last = *bases.last().expect("one at least");
                *bases = vec![last];
            }
        }
    }

    fn crash(&mut self) -> Store {
        let killed = self.life.crash();
        if self.life.random.random_range(0..4) == 0 {
            self.life.check("after a crash", false);
        }
        let (store, killed) = self.life.reopen(killed);
        let ctx = self.ctx(&store, 1);
        self.life.drive("verifying", async move {
            ctx.come_back(killed).await;
            ctx.verify().await;
        });
        store.check();
        store
    }
}

/// One run.
pub fn run(seed: u64) -> Counts {
    let mut life = Life::new(seed);
    let lanes: u8 = life.random.random_range(1..3);
    let window = [8, 40, 40, 200][life.random.random_range(0..4)];
    // Not drawn: runs of other seeds stay what they were.
    let sealed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0;
    let lane = Lane {
        next: 1,
        sealed,
        ..Lane::default()
    };
    let model = Model {
        lanes: vec![lane; usize::from(lanes)],
        epoch: 5,
        window,
        promise: (None, None),
        set: (KeptSet::default(), None),
        resyncing: false,
        full: 0,
    };
    let handle = life.handle.clone();
    let store = life.drive("formatting", async move {
        let store = open(handle, true).await.expect("it opens");
        let all: Vec<u8> = (0..lanes).collect();
        let drives = [(store.clone(), all)];
        let made = Replica::create(&drives, volume_id(VOLUME), ID, lanes, (1 << 40, sealed)).await;
        made.expect("there is room");
        store
    });
    let mut store = store.expect("nothing halts");
    let model = Rc::new(RefCell::new(model));
    let mut run = Run { life, model };
    for _ in 0..run.life.random.random_range(3..12) {
        let events = match run.life.random.random_range(0..4) {
            0 => run.life.random.random_range(1..40),
            1 | 2 => run.life.random.random_range(1..500),
            _ => u64::MAX / 2,
        };
        let copies = run.life.random.random_range(0..3) == 0;
        run.life.halt_after(events);
        let done = run.resync(&store, copies) && run.work(&store, copies);
        if done && !run.life.halted() {
            run.life.sim.disk("d", |d| d.go_on());
            let ctx = run.ctx(&store, 1);
            if copies {
                let flushing = ctx.clone();
                run.life
                    .drive("flushing", async move { flushing.flush().await });
                run.copies_are_done();
            }
            run.life
                .drive("verifying", async move { ctx.verify().await });
            store.check();
            if run.life.random.random_range(0..3) == 0 {
                let closing = store.clone();
                let closed = run
                    .life
                    .drive("closing", async move { closing.close().await });
                closed.expect("nothing halts").expect("it closes");
                for lane in &mut run.model.borrow_mut().lanes {
                    for rec in lane.all.values_mut().filter(|r| r.state == State::Written) {
                        rec.state = State::Stable;
                    }
                }
                run.life.check("after closing", true);
            }
        }
        drop(store);
        if run.life.random.random_range(0..2) == 0 {
            let model = &mut *run.model.borrow_mut();
            model.epoch += 1;
            for lane in &mut model.lanes {
                lane.next = 1;
            }
        }
        store = run.crash();
    }
    // Not drawn: runs of other seeds stay what they were.
    let back = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 & 1 == 0;
    if back {
        store = run.set_back(store);
    }
    run.empty(store, !back);
    run.life.counts.full = run.model.borrow().full;
    let records = run
        .model
        .borrow()
        .lanes
        .iter()
        .map(|l| l.all.len() as u64)
        .sum();
    run.life.counts.writes = records;
    run.life.counts
}

impl Run {
    /// Perhaps settles everything, and deletes the replica: nothing is left of it.
    fn empty(&mut self, store: Store, may_settle: bool) {
        let ctx = self.ctx(&store, 1);
        let settle = self.life.random.random_bool(0.5) && may_settle;
        let emptied = self.life.drive("emptying", async move {
            ctx.flush().await;
            for lane in (0..ctx.model.borrow().lanes.len()).filter(|_| settle) {
                let to = ctx.model.borrow().lanes[lane].may_settle();
                ctx.replica.settle(lane as u8, to);
            }
            ctx.replica.clone().delete().await.expect("it is deleted");
            let mut turns = 0;
            while !ctx.store.settled() || ctx.store.space().used > 0 {
                ctx.store.checkpoint().await.expect("a checkpoint");
                ctx.store.flush().await.expect("a flush");
                ctx.handle.sleep(Duration::from_millis(10)).await;
                turns += 1;
                assert!(
                    turns < 2000,
                    "space does not come back: {:?}, {:?}",
                    ctx.store.space(),
                    ctx.store
                );
            }
            ctx.store.check();
            ctx.store.close().await.expect("it closes");
        });
        emptied.expect("nothing halts");
        let report = self.life.check("of an emptied drive", true);
        assert_eq!(
            (report.used, report.pages, report.data),
            (0, 0, 0),
            "{}",
            report.text()
        );
    }
}

#[test]
fn replicas() {
    let default = if cfg!(debug_assertions) { 150 } else { 1500 };
    let mut crashes = super::setting("KEEL_CRASHES").unwrap_or(default);
    let seed = super::setting("KEEL_SEED")
        .inspect(|_| crashes = super::setting("KEEL_CRASHES").unwrap_or(1));
    let seed = seed.unwrap_or_else(super::fresh_seed);
    println!("from seed {seed}");
    super::log_if_asked();
    match super::run_many(crashes, seed, run) {
        Ok(total) => println!("{total:?}"),
        Err((seed, total)) => {
            panic!("seed {seed} fails (KEEL_SEED={seed} repeats it), after {total:?}")
        }
    }
}
