//! A replica, and coordinators one after the other, with cuts, crashes and power cuts at any time. Whatever comes when:
//! what was acknowledged is on the next promise's list, or settled; nothing that was not stamped is; nothing lower is confirmed behind a fence (the rig
//! looks); blocks are those of the highest stamps; a snapshot has what was before it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::prelude::*;

use super::rig::{Node, Peer, filling, open_body, snapshot, stamp, tombstone, write};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;
use crate::replication::held::Held;
use crate::replication::replica::memory::Disk;
use crate::replication::seam::Kind as BlockKind;
use crate::replication::wire::ack::Ack;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::heart::{Beat, Flush, encode_heartbeat};
use crate::replication::wire::list::{ListAsk, Listed};
use crate::replication::wire::open::Opened;
use crate::replication::wire::promise::Promised;
use crate::replication::wire::record::flag;
use crate::store::types::Stamp;

const LANES: u8 = 2;
const BLOCKS: u64 = 24;
const ZERO: Stamp = Stamp { epoch: 0, seq: 0 };

#[derive(Clone, Copy, Debug)]
enum What {
    Write(u64, u64),
    Erase(u64, u64),
    Snapshot(u8),
}

#[derive(Clone, Debug)]
struct Record {
    what: What,
    /// It was acknowledged, and no power was cut since.
    acked: bool,
    /// It was acknowledged as stable, or listed.
    stable: bool,
}

impl Record {
    fn held(&self, handle: &Handle, lane: u8, of: Stamp) -> Held {
        match self.what {
            What::Write(first, n) => write(handle, lane, of, first, n),
            What::Erase(first, n) => tombstone(lane, of, first, n),
            What::Snapshot(id) => snapshot(lane, of, id),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Stream {
    /// In the order of positions, from 1 on.
    records: Vec<(Stamp, u8)>,
    sent: usize,
    written: u64,
    stable: u64,
}

/// Who coordinates: it lives elsewhere, and outlives the replica's crashes.
#[derive(Clone, Debug)]
struct Coordinator {
    epoch: u32,
    process: u8,
    lanes: Vec<Stream>,
    counter: u64,
    flushes: u64,
}

/// What was stamped and is neither abandoned nor forgotten.
struct World {
    random: StdRng,
    lanes: Vec<BTreeMap<Stamp, Record>>,
    settled: Vec<Stamp>,
    coordinator: Option<Coordinator>,
    epoch: u32,
    snapshots: u8,
    takeovers: u32,
    acks: u32,
    reads: u32,
}

type Shared = Rc<RefCell<World>>;

fn below(world: &Shared, n: u64) -> u64 {
    world.borrow_mut().random.random_range(0..n)
}

/// The newest record over each block.
fn fold(records: &BTreeMap<Stamp, Record>, end: Stamp) -> BTreeMap<u64, (Stamp, bool)> {
    let mut blocks = BTreeMap::new();
    for (of, record) in records.range(..end) {
        match record.what {
            What::Write(first, n) => {
                for i in 0..n {
                    let seq = of.seq + i;
                    blocks.insert(first + i, (Stamp { seq, ..*of }, true));
                }
            }
            What::Erase(first, n) => {
                blocks.extend((first..first + n).map(|b| (b, (*of, false))));
            }
            What::Snapshot(_) => {}
        }
    }
    blocks
}

const END: Stamp = Stamp {
    epoch: u32::MAX,
    seq: u64::MAX,
};

/// One coordinator after the other, so many times or until the process ends.
async fn drive(node: Rc<Node>, world: Shared, rounds: u32) {
    let mut old: Option<Peer> = None;
    for _ in 0..rounds {
        let peer = if world.borrow().coordinator.is_some() && below(&world, 3) > 0 {
            // Another session of the same process begins when what the one before admitted has completed.
            if let Some(old) = old.take() {
                old.cut();
                while old.admitted() > 0 {
                    node.handle.sleep(Duration::from_micros(10)).await;
                }
            }
            open_again(&node, &world).await
        } else {
            // The old channel may stay: what it still sends is fenced.
            if let Some(old) = &old
                && below(&world, 2) == 0
            {
                old.cut();
            }
            take_over(&node, &world).await
        };
        let Some(peer) = peer else { continue };
        serve(&node, &world, &peer).await;
        old = Some(peer);
    }
}

async fn open_again(node: &Node, world: &Shared) -> Option<Peer> {
    let (epoch, process) = {
        let world = world.borrow();
        let c = world.coordinator.as_ref()?;
        (c.epoch, c.process)
    };
    let peer = node.open(epoch, process, false);
    let opened = peer.wait(Kind::Opened).await;
    let opened = Opened::decode(&opened.body).unwrap();
    feed(
        world,
        &peer,
        opened.lanes.iter().map(|l| (l.written, l.stable)),
    );
    Some(peer)
}

/// Says where streams go on: from what the replica has, or from settled.
fn feed(world: &Shared, peer: &Peer, here: impl Iterator<Item = (u64, u64)>) {
    let mut world = world.borrow_mut();
    let settled = world.settled.clone();
    let c = world.coordinator.as_mut().unwrap();
    let mut after = Vec::new();
    for ((stream, (written, stable)), settled) in c.lanes.iter_mut().zip(here).zip(settled) {
        let below = stream.records.iter().take_while(|(s, _)| *s <= settled);
        let from = (below.count() as u64).max(written);
        stream.sent = from as usize;
        (stream.written, stream.stable) = (from, stable.max(stream.stable.min(from)));
        after.push((from, ZERO));
    }
    peer.feed(&after).unwrap();
}

async fn take_over(node: &Node, world: &Shared) -> Option<Peer> {
    let (epoch, process) = {
        let mut world = world.borrow_mut();
        world.epoch += world.random.random_range(1..3);
        (world.epoch, world.random.random_range(1..4))
    };
    world.borrow_mut().coordinator = None;
    let mut peer = node.promise(epoch, process);
    if below(world, 4) == 0 {
        // It is asked again, by another session.
        node.handle
            .sleep(Duration::from_micros(below(world, 300)))
            .await;
        peer.cut();
        peer = node.promise(epoch, process);
    }
    let promised = peer.wait(Kind::Promised).await;
    let promised = Promised::decode(&promised.body).unwrap();
    let mut streams = Vec::new();
    for state in promised.lanes.iter() {
        let lane = usize::from(state.lane);
        let listed = list(&peer, state.lane).await;
        let mut world = world.borrow_mut();
        let mut stream = Stream::default();
        for of in &listed {
            let record = world.lanes[lane].get_mut(of);
            record
                .unwrap_or_else(|| panic!("{of:?} was abandoned, or never stamped"))
                .stable = true;
        }
        let kept: BTreeMap<_, _> = std::mem::take(&mut world.lanes[lane])
            .into_iter()
            .filter(|(of, record)| {
                // A snapshot is on no list: which are there is asked for by their names.
                let snapshot = matches!(record.what, What::Snapshot(_));
                let there = snapshot || listed.contains(of) || *of <= state.settled;
                let said = record.stable || record.acked;
                assert!(
                    there || !said,
                    "{of:?} was acknowledged: {record:?}, settled {:?}",
                    state.settled
                );
                there
            })
            .collect();
        world.lanes[lane] = kept;
        world.settled[lane] = state.settled;
        for of in listed {
            let listed = if world.random.random_bool(0.7) {
                flag::LISTED
            } else {
                0
            };
            stream.records.push((of, flag::ROLLED | listed));
        }
        streams.push(stream);
    }
    world.borrow_mut().takeovers += 1;
    world.borrow_mut().coordinator = Some(Coordinator {
        epoch,
        process,
        lanes: streams,
        counter: 0,
        flushes: 0,
    });
    peer.frame(Kind::Open, &open_body(process, LANES, false))
        .unwrap();
    let opened = peer.wait(Kind::Opened).await;
    let opened = Opened::decode(&opened.body).unwrap();
    feed(
        world,
        &peer,
        opened.lanes.iter().map(|l| (l.written, l.stable)),
    );
    Some(peer)
}

async fn list(peer: &Peer, lane: u8) -> Vec<Stamp> {
    let mut all = Vec::new();
    loop {
        let after = all.last().copied().unwrap_or(ZERO);
        let mut body = Vec::new();
        ListAsk {
            lane,
            after,
            leaf: 0,
        }
        .put(&mut body);
        peer.frame(Kind::List, &body).unwrap();
        let sent = peer.wait(Kind::Listed).await;
        let part = Listed::decode(&sent.body).unwrap();
        all.extend(part.records().map(|r| r.head.stamp));
        if part.last {
            return all;
        }
    }
}

/// Stamps a few records.
fn stamp_some(world: &Shared) {
    let mut world = world.borrow_mut();
    for _ in 0..world.random.random_range(1..6) {
        let lane = world.random.random_range(0..LANES);
        let first = world.random.random_range(0..BLOCKS - 4);
        let blocks = world.random.random_range(1..5);
        let what = match world.random.random_range(0..30) {
            0 if world.snapshots < 200 => {
                world.snapshots += 1;
                What::Snapshot(world.snapshots)
            }
            1..=5 => What::Erase(first, blocks),
            _ => What::Write(first, blocks),
        };
        let c = world.coordinator.as_mut().unwrap();
        let of = stamp(c.epoch, lane, c.counter + 1);
        c.counter += blocks;
        c.lanes[usize::from(lane)].records.push((of, 0));
        let record = Record {
            what,
            acked: false,
            stable: false,
        };
        world.lanes[usize::from(lane)].insert(of, record);
    }
}

/// Sends some of what was not sent, with what is settled.
fn send(node: &Node, world: &Shared, peer: &Peer) {
    let mut w = world.borrow_mut();
    let settled: Vec<_> = (0..LANES).zip(w.settled.clone()).collect();
    let most = w.random.random_range(1..12);
    let mut c = w.coordinator.take().unwrap();
    let mut helds = Vec::new();
    for (lane, stream) in (0..LANES).zip(&mut c.lanes) {
        while stream.sent < stream.records.len() && helds.len() < most {
            let (of, flags) = stream.records[stream.sent];
            stream.sent += 1;
            let record = &w.lanes[usize::from(lane)][&of];
            let held = record.held(&node.handle, lane, of);
            helds.push((held, stream.sent as u64, flags));
        }
    }
    w.coordinator = Some(c);
    drop(w);
    let records: Vec<_> = helds.iter().map(|(h, p, f)| (h, *p, *f)).collect();
    peer.batch(&settled, &records).unwrap();
}

/// What came from the replica. False: the channel was refused.
fn look(world: &Shared, peer: &Peer) -> bool {
    for sent in peer.take() {
        match sent.kind {
            Kind::Ack => acknowledged(world, &Ack::decode(&sent.body).unwrap()),
            Kind::Refused => return false,
            _ => {}
        }
    }
    true
}

fn acknowledged(world: &Shared, ack: &Ack<'_>) {
    let mut w = world.borrow_mut();
    w.acks += 1;
    let mut c = w.coordinator.take().unwrap();
    for l in ack.lanes() {
        let lane = usize::from(l.lane);
        let stream = &mut c.lanes[lane];
        assert!(l.written >= stream.written, "positions never fall");
        assert!(
            l.written <= stream.sent as u64,
            "nothing is written that was not sent"
        );
        (stream.written, stream.stable) = (l.written, l.stable.max(stream.stable));
        for (n, (of, _)) in stream.records.iter().enumerate().take(l.written as usize) {
            if let Some(record) = w.lanes[lane].get_mut(of) {
                record.acked = true;
                record.stable |= (n as u64) < l.stable;
            }
        }
    }
    for e in ack.early() {
        let lane = usize::from(e.lane);
        let (of, _) = c.lanes[lane].records[e.position as usize - 1];
        if let Some(record) = w.lanes[lane].get_mut(&of) {
            record.acked = true;
        }
    }
    w.coordinator = Some(c);
}

fn settle(world: &Shared) {
    let mut w = world.borrow_mut();
    let c = w.coordinator.clone().unwrap();
    for (lane, stream) in c.lanes.iter().enumerate() {
        if let Some(at) = (stream.stable as usize).checked_sub(1) {
            // The highest stamp that the record uses.
            let (of, _) = stream.records[at];
            let blocks = match w.lanes[lane].get(&of).map(|r| r.what) {
                Some(What::Write(_, n)) => n,
                _ => 1,
            };
            let last = Stamp {
                seq: of.seq + blocks - 1,
                ..of
            };
            w.settled[lane] = w.settled[lane].max(last);
        }
    }
}

async fn serve(node: &Node, world: &Shared, peer: &Peer) {
    let steps = below(world, 60);
    for _ in 0..steps {
        match below(world, 12) {
            0..=3 => {
                stamp_some(world);
                send(node, world, peer);
            }
            4 | 5 => send(node, world, peer),
            6 => {
                let number = {
                    let mut w = world.borrow_mut();
                    let c = w.coordinator.as_mut().unwrap();
                    c.flushes += 1;
                    c.flushes
                };
                let mut body = Vec::new();
                Flush { number }.put(&mut body);
                peer.frame(Kind::Flush, &body).unwrap();
            }
            7 => {
                let mut body = Vec::new();
                let release = below(world, 2) == 0;
                let beat = Beat {
                    release,
                    ..Beat::default()
                };
                encode_heartbeat(&mut body, &beat, &[]);
                peer.frame(Kind::Heartbeat, &body).unwrap();
            }
            8 => settle(world),
            9 if below(world, 10) == 0 => {
                // Its pool is full for a while.
                peer.wire.rules.disk.borrow_mut().space = below(world, 20);
            }
            _ => {
                let us = below(world, 1000);
                node.handle.sleep(Duration::from_micros(us)).await;
            }
        }
        if !look(world, peer) {
            peer.wire.rules.disk.borrow_mut().space = 1 << 30;
            return;
        }
    }
    peer.wire.rules.disk.borrow_mut().space = 1 << 30;
    if below(world, 3) == 0 {
        quiesce(node, world, peer).await;
    }
}

/// Everything is sent and written: then each block is that of its highest stamp.
async fn quiesce(node: &Node, world: &Shared, peer: &Peer) {
    loop {
        if !look(world, peer) {
            return;
        }
        let (sent, written) = {
            let w = world.borrow();
            let c = w.coordinator.as_ref().unwrap();
            let all = |s: &Stream| s.records.len() as u64;
            (
                c.lanes.iter().all(|s| s.sent as u64 == all(s)),
                c.lanes.iter().all(|s| s.written == all(s)),
            )
        };
        if written {
            break;
        }
        if !sent {
            send(node, world, peer);
        }
        node.handle.sleep(Duration::from_micros(100)).await;
    }
    let mut w = world.borrow_mut();
    w.reads += 1;
    let disk = peer.wire.rules.disk.borrow();
    for lane in 0..LANES {
        let expected = fold(&w.lanes[usize::from(lane)], END);
        let here = disk.lane(lane);
        for block in 0..BLOCKS {
            let there = here.blocks.get(&block);
            match (expected.get(&block), there) {
                (Some((of, true)), Some(v)) => {
                    assert_eq!((v.entry.kind, v.entry.stamp), (BlockKind::Data, *of));
                    assert_eq!(v.bytes(), filling(*of), "block {block} of lane {lane}");
                }
                (Some((of, false)), Some(v)) => {
                    assert_eq!((v.entry.kind, v.entry.stamp), (BlockKind::Erased, *of));
                }
                (None | Some((_, false)), None) => {}
                other => panic!("block {block} of lane {lane}: {other:?}"),
            }
        }
        for (of, record) in &w.lanes[usize::from(lane)] {
            if let (What::Snapshot(n), true) = (record.what, record.acked) {
                assert!(
                    here.snapshots.keys().any(|id| id.0 == [n; 16]),
                    "{of:?} was acknowledged"
                );
            }
        }
        for (id, has) in &here.snapshots {
            let of = |r: &Record| matches!(r.what, What::Snapshot(n) if [n; 16] == id.0);
            let found = w.lanes[usize::from(lane)].iter().find(|(_, r)| of(r));
            let (at, _) = found.expect("a snapshot that was stamped");
            let before = fold(&w.lanes[usize::from(lane)], *at);
            for (block, (of, data)) in &before {
                let there = has.get(block).map(|v| v.entry.stamp);
                assert!(
                    there == Some(*of) || !data && there.is_none(),
                    "{id} has block {block}"
                );
            }
            assert!(
                has.keys().all(|b| before.contains_key(b)),
                "{id} has too much"
            );
        }
    }
}

fn run(seed: u64) -> (u32, u32, u32) {
    let sim = Sim::new(seed);
    let mut random = StdRng::seed_from_u64(seed);
    let (node_id, mut handles) = sim.start_node(1);
    let volatile = random.random_bool(0.7);
    let slow = Duration::from_micros(random.random_range(1..400));
    let disk = Disk::new(LANES, 1 << 30);
    let world = Rc::new(RefCell::new(World {
        random: StdRng::seed_from_u64(seed ^ 1),
        lanes: vec![BTreeMap::new(); usize::from(LANES)],
        settled: vec![ZERO; usize::from(LANES)],
        coordinator: None,
        epoch: 0,
        snapshots: 0,
        takeovers: 0,
        acks: 0,
        reads: 0,
    }));
    for _ in 0..4 {
        let (handle, on, in_it) = (handles[0].clone(), disk.clone(), world.clone());
        // Short ones end amid the first takeover.
        let limit = Duration::from_micros(1 << random.random_range(8..25));
        let rounds = random.random_range(1..25);
        sim.run(&handles[0], limit, async move {
            let node = Node::start(&handle, &on, volatile, slow);
            drive(Rc::new(node), in_it, rounds).await;
        });
        sim.kill(node_id);
        let mut disk = disk.borrow_mut();
        disk.space = 1 << 30;
        if random.random_bool(0.5) {
            disk.kill(|| random.random());
        } else {
            disk.power_cut(|| random.random());
            for record in world
                .borrow_mut()
                .lanes
                .iter_mut()
                .flat_map(|l| l.values_mut())
            {
                record.acked = record.stable;
            }
        }
        handles = sim.restart_node(node_id, 1);
    }
    let w = world.borrow();
    (w.takeovers, w.acks, w.reads)
}

#[test]
fn coordinators_come_and_go() {
    let asked = std::env::var("KEEL_SEED").ok().and_then(|s| s.parse().ok());
    let runs = std::env::var("KEEL_RUNS").ok().and_then(|s| s.parse().ok());
    let first = asked.unwrap_or_else(|| StdRng::from_os_rng().random::<u32>().into());
    let runs = runs.unwrap_or(if asked.is_some() { 1 } else { 30 });
    let mut total = (0, 0, 0);
    for seed in first..first + runs {
        println!("seed {seed} (KEEL_SEED={seed} repeats it)");
        let (takeovers, acks, reads) = run(seed);
        total = (total.0 + takeovers, total.1 + acks, total.2 + reads);
    }
    println!("{total:?} takeovers, acks, comparisons");
    assert!(
        runs < 10 || total.0 > 20 && total.1 > 100 && total.2 > 5,
        "{total:?}"
    );
}
