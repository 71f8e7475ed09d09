//! A run by a seed: hosts at work, faults, healing, and what must hold then.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::anywhere::anywhere;
use super::changes::{Changes, all_joined};
use super::cluster::{Cluster, Coordinator, LANES, Shape};
use super::faults::{Dice, Faults};
use super::forward::Path;
use super::groups;
use super::history::{Did, History, Seen};
use super::late::Late;
use super::promised::Promised;
use super::restored::Restored;
use super::rot::Rot;
use super::snapshots::Snapshots;
use crate::reactor::Handle;
use crate::replication::seam::Kind;
use crate::store::types::{BLOCK_BYTES, LaneBlock};
use crate::volume::coordinator::state::Standing;

/// Blocks of a lane that hosts use.
pub(super) const BLOCKS: u64 = 6;
/// Most blocks of an operation.
pub(super) const BLOCKS_AT_ONCE: u64 = 4;
/// One run in so many has the real store.
const REAL_SHARE: u64 = 4;
/// One run in so many has an encrypted volume.
const SEALED_SHARE: u64 = 3;
/// What tells the dice for that from a run's others.
const SEALED_STREAM: u64 = 0x5ea1_ed00_0000_0000;
/// One run in so many has hosts that go to nodes which forward.
const FORWARD_SHARE: u64 = 2;
const FORWARD_STREAM: u64 = 0xf0f0_0000_0000_0000;
/// One run in so many has short lists of what is not settled: of so many records at least, and fewer than so many more.
const SHORT_SHARE: u64 = 3;
const SHORT: (u64, u64) = (6, 40);
const SHORT_STREAM: u64 = 0x5047_0000_0000_0000;
/// Hosts, each with one operation at a time.
const HOSTS: usize = 5;
/// How long a host waits for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Within this everything is in order again after healing (bound of liveness): leases, waits after restarts, swaps that are sent again.
const HEALED_WITHIN: Duration = Duration::from_secs(60);

/// Room of the lists of a run.
fn short_lists(seed: u64) -> usize {
    let mut dice = Dice::new(seed ^ SHORT_STREAM);
    match dice.once_in(SHORT_SHARE) {
        true => (SHORT.0 + dice.below(SHORT.1)) as usize,
        false => 0,
    }
}

/// What hosts share.
pub(super) struct Hosts {
    pub history: RefCell<History>,
    moment: Cell<u64>,
    pub(super) values: Cell<u64>,
    /// Coordinators that may be asked, the newest last.
    pub(super) doors: RefCell<Vec<Coordinator>>,
    /// Nodes that forward, in runs that have them.
    pub(super) paths: RefCell<Vec<Path>>,
    /// Whether there are some, and hosts try again elsewhere.
    forwards: bool,
    stop: Cell<bool>,
    running: Cell<usize>,
    pub(super) counts: RefCell<Counts>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes and erasures that were acknowledged.
    pub acknowledged: u64,
    /// That were not.
    pub unknown: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
    /// Ends of processes, and losses of power.
    pub deaths: u64,
    /// Cuts of the network.
    pub cuts: u64,
    /// Takeovers that were begun.
    pub attaches: u64,
    /// Members that were to leave.
    pub exclusions: u64,
    /// Blocks that were encrypted.
    pub sealed: u64,
    /// Replicas that were to be added, and to be taken away.
    pub additions: u64,
    /// The latter.
    pub departures: u64,
    /// Commands that were answered by way of a node that forwards.
    pub forwarded: u64,
    /// Writes and erasures that were sent again by another way.
    pub retried: u64,
    /// Snapshots that came to be, and that were there at the end.
    pub snapshots: u64,
    /// The latter.
    pub kept: u64,
    /// Blocks that rotted, and were repaired or overwritten within moments.
    pub repaired: u64,
    /// Snapshots of two volumes that came to be.
    pub groups: u64,
}

impl Counts {
    /// Adds what was done elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.flushes += other.flushes;
        self.deaths += other.deaths;
        self.cuts += other.cuts;
        self.attaches += other.attaches;
        self.exclusions += other.exclusions;
        self.sealed += other.sealed;
        self.additions += other.additions;
        self.departures += other.departures;
        self.forwarded += other.forwarded;
        self.retried += other.retried;
        self.snapshots += other.snapshots;
        self.kept += other.kept;
        self.repaired += other.repaired;
        self.groups += other.groups;
    }
}

impl Hosts {
    pub fn moment(&self) -> u64 {
        self.moment.set(self.moment.get() + 1);
        self.moment.get()
    }

    pub fn note(&self, lane: u8, block: u64, seen: Seen) {
        let block = number(lane, block);
        self.history.borrow_mut().add(block, seen);
    }
}

/// The number of a lane's block in the history.
pub(super) fn number(lane: u8, block: u64) -> u64 {
    u64::from(lane) * 1000 + block
}

/// A block's content for a value.
pub(super) fn pattern(value: u64, block: &mut [u8]) {
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The value of a block; a block of two values is no block that anybody wrote.
pub(super) fn value_of(block: &[u8]) -> Option<u64> {
    let first: [u8; 8] = block[..8].try_into().expect("8 bytes");
    let whole = block.chunks_exact(8).all(|word| word == first);
    whole.then(|| u64::from_le_bytes(first))
}

async fn host(handle: Handle, hosts: Rc<Hosts>) {
    while !hosts.stop.get() {
        let random = handle.random();
        let door = {
            let doors = hosts.doors.borrow();
            // Mostly by the newest; now and then by one that may have ended.
            let old = random.is_multiple_of(3);
            let n = if old {
                (random >> 8) as usize % doors.len().max(1)
            } else {
                doors.len().wrapping_sub(1)
            };
            doors.get(n).cloned()
        };
        // Bursts, and rests between them: what is at stake is what is under way when something fails.
        let most = match handle.random() % 16 {
            0 => 300_000,
            1..=5 => 2_000,
            _ => 300,
        };
        let pause = Duration::from_micros(handle.random() % most);
        if hosts.forwards {
            anywhere(&handle, &hosts).await;
            handle.sleep(pause).await;
            continue;
        }
        let Some(door) = door else {
            handle.sleep(pause).await;
            continue;
        };
        let random = handle.random();
        let lane = (random % u64::from(LANES)) as u8;
        let first = (random >> 8) % BLOCKS;
        let blocks = 1 + (random >> 16) % BLOCKS_AT_ONCE.min(BLOCKS - first);
        let range = first..first + blocks;
        match (random >> 24) % 20 {
            0..=8 => write(&handle, &hosts, &door, lane, range, random >> 32 & 7 == 0).await,
            9 => erase(&handle, &hosts, &door, lane, range).await,
            10 => {
                let flushed = handle.timeout(PATIENCE, door.flush()).await;
                hosts.counts.borrow_mut().flushes += u64::from(flushed == Ok(Ok(())));
            }
            _ => read(&handle, &hosts, &door, lane, range).await,
        }
        handle.sleep(pause).await;
    }
    hosts.running.set(hosts.running.get() - 1);
}

async fn write(
    handle: &Handle,
    hosts: &Hosts,
    door: &Coordinator,
    lane: u8,
    range: std::ops::Range<u64>,
    fua: bool,
) {
    let blocks = (range.end - range.start) as usize;
    // What waits for a buffer holds a coordinator, and a dead one's buffers may all be there: so not for ever.
    let take = handle.buffers().take(blocks * BLOCK_BYTES);
    let Ok(mut buffer) = handle.timeout(PATIENCE, take).await else {
        return;
    };
    hosts.values.set(hosts.values.get() + 1);
    let value = hosts.values.get();
    pattern(value, &mut buffer[..blocks * BLOCK_BYTES]);
    let from = hosts.moment();
    let first = LaneBlock(range.start);
    let written = handle
        .timeout(PATIENCE, door.write(lane, first, buffer, blocks, fua))
        .await;
    done(hosts, lane, range, value, from, written == Ok(Ok(())));
}

async fn erase(
    handle: &Handle,
    hosts: &Hosts,
    door: &Coordinator,
    lane: u8,
    range: std::ops::Range<u64>,
) {
    let from = hosts.moment();
    let erased = handle
        .timeout(PATIENCE, door.erase(lane, range.clone()))
        .await;
    done(hosts, lane, range, 0, from, erased == Ok(Ok(())));
}

pub(super) fn done(
    hosts: &Hosts,
    lane: u8,
    range: std::ops::Range<u64>,
    value: u64,
    from: u64,
    acknowledged: bool,
) {
    let to = acknowledged.then(|| hosts.moment());
    let mut counts = hosts.counts.borrow_mut();
    match acknowledged {
        true => counts.acknowledged += 1,
        false => counts.unknown += 1,
    }
    let did = Did::Wrote(value);
    range.for_each(|block| hosts.note(lane, block, Seen { did, from, to }));
}

async fn read(
    handle: &Handle,
    hosts: &Hosts,
    door: &Coordinator,
    lane: u8,
    range: std::ops::Range<u64>,
) {
    let blocks = (range.end - range.start) as usize;
    let take = handle.buffers().take(blocks * BLOCK_BYTES);
    let Ok(buffer) = handle.timeout(PATIENCE, take).await else {
        return;
    };
    let from = hosts.moment();
    let answer = handle
        .timeout(PATIENCE, door.read(lane, range.clone(), buffer))
        .await;
    let Ok((buffer, Ok(()))) = answer else { return };
    saw(hosts, lane, range, from, &buffer);
}

pub(super) fn saw(hosts: &Hosts, lane: u8, range: std::ops::Range<u64>, from: u64, buffer: &[u8]) {
    let to = Some(hosts.moment());
    hosts.counts.borrow_mut().reads += 1;
    for (block, bytes) in range.zip(buffer.chunks_exact(BLOCK_BYTES)) {
        let value = value_of(bytes)
            .unwrap_or_else(|| panic!("block {block} of lane {lane} is of two writes"));
        let did = Did::Read(value);
        hosts.note(lane, block, Seen { did, from, to });
    }
}

/// A host writes a block at one coordinator, then reads it at another.
pub(super) fn write_then_read(
    handle: &Handle,
    hosts: &Rc<Hosts>,
    (to, from): (Coordinator, Coordinator),
    lane: u8,
    block: u64,
) {
    hosts.running.set(hosts.running.get() + 1);
    let (on, hosts) = (handle.clone(), hosts.clone());
    handle.spawn("host: two ways", async move {
        let range = block..block + 1;
        write(&on, &hosts, &to, lane, range.clone(), false).await;
        read(&on, &hosts, &from, lane, range).await;
        hosts.running.set(hosts.running.get() - 1);
    });
}

/// Runs a seed to its end.
///
/// # Panics
/// If something does not hold; the message names the seed.
pub fn run(seed: u64, steps: usize) -> Counts {
    let mut dice = Dice::new(seed);
    // Of its own, so that runs of other seeds stay what they were.
    let mut sealed = Dice::new(seed ^ SEALED_STREAM);
    let nodes = 1 + dice.below(3) as usize * 2;
    let nodes = if nodes == 1 { 2 } else { nodes };
    let mut changes = Changes::new(seed);
    let mut snapshots = Snapshots::new(seed);
    let mut rot = Rot::new(seed);
    let mut restored = Restored::new(seed, &changes);
    let spares = usize::from(changes.there);
    let shape = Shape {
        nodes: nodes + spares,
        spares,
        minimum: if dice.once_in(2) {
            1
        } else {
            (nodes as u8).div_ceil(2)
        },
        volatile: dice.once_in(2),
        lossy: dice.once_in(2),
        real: dice.once_in(REAL_SHARE),
        drift: dice.once_in(2),
        sealed: sealed.once_in(SEALED_SHARE),
        list_max: short_lists(seed),
    };
    let mut late = Late::new(seed);
    let mut promised = Promised::new(seed, &shape);
    let mut cluster = Cluster::new(seed, shape);
    let forwards = Dice::new(seed ^ FORWARD_STREAM).once_in(FORWARD_SHARE);
    let hosts = Rc::new(Hosts {
        history: RefCell::default(),
        moment: Cell::new(0),
        values: Cell::new(0),
        doors: RefCell::default(),
        paths: RefCell::default(),
        forwards,
        stop: Cell::new(false),
        running: Cell::new(HOSTS),
        counts: RefCell::default(),
    });
    let outside = cluster.outside();
    for _ in 0..HOSTS {
        outside.spawn("host", host(outside.clone(), hosts.clone()));
    }
    let mut faults = Faults::new(&mut dice);
    let mut wrong = Counts::default();
    cluster.attach(0);
    for step in 0..steps {
        let pause = [2, 20, 200, 1500][dice.below(4) as usize];
        let pause = Duration::from_millis(1 + dice.below(pause));
        cluster.rig.sim.run_for(pause);
        faults.step(&mut cluster, &mut dice, &mut wrong, step);
        changes.step(&mut cluster, &mut wrong);
        snapshots.step(&mut cluster, &hosts);
        rot.step(&mut cluster, &mut wrong);
        restored.step(&mut cluster, faults.rest());
        if faults.rest() {
            late.step(&mut cluster, &hosts, &mut wrong);
            promised.step(&mut cluster, &mut wrong);
        }
        let all = cluster.coordinators();
        hosts
            .doors
            .replace(all.into_iter().map(|(_, driver)| driver).collect());
        hosts.doors.borrow_mut().sort_by_key(Coordinator::epoch);
        if forwards {
            cluster.follow_coordinator();
            hosts.paths.replace(cluster.paths());
        }
    }
    settle(seed, &mut cluster, &hosts, (&mut changes, &mut snapshots));
    snapshots.count(&mut wrong);
    wrong.sealed += cluster.ledger.as_ref().map_or(0, |l| l.len() as u64);
    let world = cluster.rig.sim.world();
    drop((cluster, outside));
    hosts.doors.take();
    hosts.paths.take();
    assert!(
        world.upgrade().is_none(),
        "seed {seed}: something of a process outlives it"
    );
    let mut counts = hosts.counts.take();
    counts.add(&wrong);
    counts.add(&groups::run(seed));
    counts
}

/// After everything is well again: a coordinator serves, hosts get their answers, members are alike, and one copy explains what was seen.
fn settle(
    seed: u64,
    cluster: &mut Cluster,
    hosts: &Rc<Hosts>,
    (changes, snapshots): (&mut Changes, &mut Snapshots),
) {
    cluster.heal();
    hosts.stop.set(true);
    let sim_until =
        |cluster: &mut Cluster, what: &str, is: &mut dyn FnMut(&mut Cluster) -> bool| {
            let deadline = cluster.rig.sim.now() + HEALED_WITHIN;
            while !is(cluster) {
                assert!(
                    cluster.rig.sim.now() < deadline,
                    "seed {seed}: not within {HEALED_WITHIN:?}: {what}; record {:?}\n{}",
                    cluster.kvdb.record(),
                    cluster.describe()
                );
                cluster.rig.sim.run_for(Duration::from_millis(20));
            }
        };
    sim_until(cluster, "hosts end", &mut |_| hosts.running.get() == 0);
    let mut last = cluster.attach(0).expect("all nodes run");
    while changes.there {
        // No older coordinator changes the record any more; what it says may have this very process begin anew.
        cluster.rig.sim.run_for(Duration::from_secs(1));
        changes.finish(cluster);
        let mut all = cluster.coordinators().into_iter();
        if all.any(|(_, c)| c.epoch() == last.epoch()) {
            break;
        }
        last = cluster.attach(0).expect("all nodes run");
    }
    sim_until(cluster, "the last coordinator serves", &mut |_| {
        last.standing() == Standing::Serving
    });
    hosts.running.set(1);
    let (handle, shared, door) = (cluster.outside(), hosts.clone(), last.clone());
    handle.clone().spawn("last reads", async move {
        for lane in 0..LANES {
            for block in 0..BLOCKS {
                read(&handle, &shared, &door, lane, block..block + 1).await;
            }
        }
        assert_eq!(door.flush().await, Ok(()));
        shared.running.set(0);
    });
    let before = hosts.counts.borrow().reads;
    sim_until(cluster, "the last reads", &mut |_| hosts.running.get() == 0);
    let answered = hosts.counts.borrow().reads - before;
    assert_eq!(
        answered,
        u64::from(LANES) * BLOCKS,
        "seed {seed}: all blocks are read"
    );
    sim_until(cluster, "everything is settled", &mut |_| {
        last.kept().records == 0
    });
    // Whoever was away comes back.
    sim_until(cluster, "all replicas are members", &mut |cluster| {
        changes.finish(cluster);
        all_joined(cluster) && last.standing() == Standing::Serving
    });
    // Invariant 5.
    let members = cluster.member_nodes();
    for lane in 0..LANES {
        let first = cluster.entries(members[0], lane, BLOCKS);
        let all = first.iter().flatten().filter(|e| e.kind == Kind::Data);
        for entry in all {
            let sealed = entry.seal.key != 0;
            assert_eq!(sealed, cluster.shape.sealed, "seed {seed}: {entry:?}");
        }
        for member in &members[1..] {
            assert_eq!(
                first,
                cluster.entries(*member, lane, BLOCKS),
                "seed {seed}: lane {lane} of members {} and {member} differ",
                members[0]
            );
        }
    }
    // Rule 12.
    sim_until(
        cluster,
        "snapshots are what their records say",
        &mut |cluster| snapshots.finish(cluster, hosts, &last),
    );
    snapshots.check(seed, cluster, hosts);
    if let Err(wrong) = hosts.history.borrow().check() {
        panic!("seed {seed}: {wrong}");
    }
    cluster.check_drives();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, otherwise: u64) -> u64 {
        std::env::var(name).map_or(otherwise, |n| n.parse().expect("a number"))
    }

    /// `KEEL_SEED` is the first seed, `KEEL_SEEDS` how many, `KEEL_STEPS` faults in each.
    #[test]
    fn seeds() {
        let first = variable("KEEL_SEED", 1);
        let steps = variable("KEEL_STEPS", 60) as usize;
        let mut sum = Counts::default();
        for seed in first..first + variable("KEEL_SEEDS", 3) {
            sum.add(&run(seed, steps));
        }
        println!("{sum:?}");
        assert!(
            sum.acknowledged > 0 && sum.reads > 0 && sum.deaths > 0,
            "{sum:?}"
        );
    }

    /// `KEEL_BUG` is planted, and must be found within `KEEL_SEEDS` seeds from `KEEL_SEED` on; `cargo xtask simulate --planted` runs it for each.
    #[cfg(planted)]
    #[test]
    fn planted() {
        use crate::replication::planted::{ALL, plant};
        let Ok(name) = std::env::var("KEEL_BUG") else {
            return;
        };
        let bug = ALL.into_iter().find(|b| format!("{b:?}") == name);
        plant(bug.unwrap_or_else(|| panic!("no bug {name}: there are {ALL:?}")));
        let first = variable("KEEL_SEED", 1);
        let steps = variable("KEEL_STEPS", 60) as usize;
        std::panic::set_hook(Box::new(|_| {}));
        for seed in first..first + variable("KEEL_SEEDS", 200) {
            let ran = std::panic::catch_unwind(|| run(seed, steps));
            if let Err(why) = ran {
                let says = why
                    .downcast_ref::<String>()
                    .map_or("a panic", |s| s.lines().next().unwrap_or_default());
                println!("FOUND {name}: seed {seed}: {says}");
                return;
            }
        }
        let _ = std::panic::take_hook();
        panic!("{name} is not found");
    }
}
