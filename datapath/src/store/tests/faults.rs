//! A bit rots, a write lands elsewhere, a block cannot be read: an error or the right bytes, never others; and what was flushed is never silently
//! the older version (S2), whether the damage is met at once, after a close, or after a crash.

use std::time::Duration;

use rand::Rng;

use super::life::{Counts, LONG, Life, open};
use super::oracle::{Id, Must};
use super::work::{BALLAST, Ctx, volume_id};
use super::{fresh_seed, log_if_asked, run_many, setting};
use crate::reactor::sim::DiskFaults;

/// Before it lie superblocks, group table and journal, on drives as small as these.
const FIRST_GROUP: u64 = 1024;

/// Everything that can be read is what it may be.
async fn read_all(ctx: Ctx, must: Must) {
    let volumes: Vec<u8> = ctx.model.borrow().volumes.keys().copied().collect();
    let lanes_each = ctx.model.borrow().lanes_each;
    for v in volumes {
        for lane in 0..lanes_each {
            let shown = ctx.shown_all(v, lane).await;
            let model = ctx.model.borrow();
            let history = &model.volumes[&v][lane as usize].history;
            let known = shown.iter().filter_map(|(b, id)| Some((*b, (*id)?)));
            for (block, id) in known.collect::<Vec<(u64, Id)>>() {
                let may = model
                    .changes
                    .candidates(block, &history[&block], id, must, u64::MAX);
                if let Err(e) = may {
                    panic!("damage shows as other bytes: volume {v} lane {lane}: {e}");
                }
            }
        }
    }
}

/// One run: work, damage, and looking at everything in several ways.
pub fn run(seed: u64) -> Counts {
    let mut life = Life::new(seed ^ 0xfa17);
    let mut store = life.first();
    let blocks = life.sim.disk("d", |d| d.bytes()) / 4096;
    life.work_quietly(&store);
    let kind = life.random.random_range(0..3);
    if kind == 0 {
        life.sim.disk("d", |d| d.faults.misdirect = 1);
        life.work_damaged(&store);
        life.sim.disk("d", |d| d.faults = DiskFaults::default());
    } else {
        let ctx = life.ctx(&store, 1);
        let checkpoint = life.random.random_bool(0.5);
        let flushed = life.sim.run(&life.handle, LONG, async move {
            if checkpoint {
                let _ = ctx.store.checkpoint().await;
            }
            ctx.flush().await;
            // The block with the watermark follows.
            ctx.handle.sleep(Duration::from_secs(3)).await;
        });
        flushed.expect("it flushes");
        // Half the time pages are damaged, and none of them is in memory any more.
        let pages = checkpoint && life.random.random_bool(0.5);
        if pages {
            drop(store);
            let killed = life.crash();
            drop(life.come_back(killed));
            // Verifying read everything: once more, without it.
            let killed = life.crash();
            store = life.reopen(killed).0;
        }
        // Twice the same truth is what the format keeps: one damage anywhere, or many where each thing is by itself.
        let many = [1, 1, 3, 30][life.random.random_range(0..4)];
        for _ in 0..many {
            let mut at = life.random.random_range(0..blocks);
            for _ in 0..3000 {
                let mut bytes = [0; 4096];
                life.sim.disk("d", |d| d.peek(at * 4096, &mut bytes));
                let superblock = at < 256 && life.random.random_range(0..20) > 0;
                let shared = many > 1 && at < FIRST_GROUP;
                if pages && bytes[..4] != *b"KPG1" {
                    at = life.random.random_range(FIRST_GROUP..blocks);
                    continue;
                }
                if bytes != [0; 4096] && !superblock && !shared {
                    break;
                }
                at = life
                    .random
                    .random_range(if many > 1 { FIRST_GROUP } else { 0 }..blocks);
            }
            let (offset, bit) = (
                life.random.random_range(0..4096),
                life.random.random_range(0..8),
            );
            if setting("KEEL_SEED").is_some() {
                println!("damage of kind {kind}, block {at}, of {blocks}");
            }
            life.sim.disk("d", |d| {
                if kind == 1 {
                    d.rot(at * 4096 + offset, bit);
                } else {
                    d.faults.unreadable.push(at * 4096..at * 4096 + 4096);
                }
            });
        }
    }
    let mut ctx = life.ctx(&store, 1);
    ctx.faults = true;
    let read = life
        .sim
        .run(&life.handle, LONG, read_all(ctx, Must::AckedBy(u64::MAX)));
    read.expect("reading ends");
    // A sector that cannot be read can be read again once it was written; this disk does not know that.
    if kind != 2 && life.random.random_bool(0.5) {
        life.work_damaged(&store);
        if kind == 1 {
            // Rot costs what it is in, and not the drive.
            let ctx = life.ctx(&store, 1);
            let done = life.sim.run(&life.handle, LONG, async move {
                ctx.store.checkpoint().await.map(|()| ctx.store.counters())
            });
            match done.expect("it ends") {
                Ok(counters) => life.counts.lost_pages += counters.lost_pages,
                Err(e) => panic!("a checkpoint does not come past rot: {e}"),
            }
            assert!(!store.failed());
            store.check();
        }
    }
    let crashed = kind != 0 && life.random.random_bool(0.7);
    if !crashed {
        let closing = store.clone();
        let closed = life
            .sim
            .run(&life.handle, LONG, async move { closing.close().await });
        // A drive that cannot be closed may have lost what it was told: a failed or misdirected write.
        if closed.is_none_or(|closed| closed.is_err()) && kind == 0 {
            return life.counts;
        }
    }
    drop(store);
    let killed = life.crash();
    let opened = life
        .sim
        .run(&life.handle, LONG, open(life.handle.clone(), false));
    // It may not open; then it says why, and nothing wrong is served.
    if let Ok(store) = opened.expect("opening ends") {
        let mut ctx = life.ctx(&store, 1);
        ctx.faults = true;
        let must = match killed {
            true => Must::AckedBy(u64::MAX),
            false => Must::DurableBy(u64::MAX),
        };
        let all_there = store
            .lanes()
            .iter()
            .filter(|l| l.volume != volume_id(BALLAST))
            .count()
            == life.lanes();
        assert!(all_there, "lanes are gone, silently");
        let read = life.sim.run(&life.handle, LONG, read_all(ctx, must));
        read.expect("reading ends");
    }
    life.counts
}

#[test]
fn damage() {
    let mut count = setting("KEEL_CRASHES").unwrap_or(100);
    let seed = setting("KEEL_SEED").inspect(|_| count = setting("KEEL_CRASHES").unwrap_or(1));
    let seed = seed.unwrap_or_else(fresh_seed);
    println!("from seed {seed}");
    log_if_asked();
    match run_many(count, seed, run) {
        Ok(total) => println!("{total:?}"),
        Err((seed, _)) => panic!("seed {seed} fails (KEEL_SEED={seed} repeats it)"),
    }
}
