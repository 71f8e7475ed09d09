//! Snapshots of two volumes at one moment (`docs/replication.md` §22): two clusters, one volume each, with faults of their own; hosts that write to one and, once that is
//! acknowledged, to the other; and nodes that do for their volume what the records of a group say.
//!
//! The clusters go on in turns, a slice of time each. Everything that passes between them does so between slices, so what a host sends after an answer
//! came is sent after it; that their clocks differ is no more than that one of them stood still.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::changes::all_joined;
use super::cluster::{Cluster, Coordinator, LANES, Shape};
use super::faults::{Dice, Faults, serving};
use super::kvdb::Phase;
use super::run::{BLOCKS, Counts, pattern, value_of};
use crate::replication::planted::{self, Bug};
use crate::replication::wire::resync::Tree;
use crate::store::types::{BLOCK_BYTES, LaneBlock, SnapshotId};
use crate::volume::coordinator::message::Failed;
use crate::volume::coordinator::state::Standing;

/// One seed in so many has it.
const SHARE: u64 = 4;
/// A turn of a cluster.
const SLICE: Duration = Duration::from_micros(100);
/// Rounds of faults.
const STEPS: usize = 40;
/// Hosts, each with a block of its own in both volumes.
const HOSTS: usize = (LANES as u64 * BLOCKS) as usize;
/// How long a host waits for an answer before it sends the same again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long control waits for a data path.
const CALL_LIMIT: Duration = Duration::from_millis(1_500);
/// How long what came behind a barrier is held at most.
const HOLD: Duration = Duration::from_millis(300);
/// Rounds after which a group that is not ready never is.
const LIMIT: u64 = 20_000;
/// Groups that are asked for in a run, at most.
const MOST: u8 = 40;
/// Everything is in order again within this.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// Apart from the dice of everything else.
const OTHER: u64 = 0x6772_6f75_7067_7270;

type Answer = Rc<RefCell<Option<Result<(), Failed>>>>;

/// How far the record of a volume's snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Wanted,
    Held,
    Taken,
}

/// The records of a group.
#[derive(Clone, Copy, Debug)]
struct Group {
    id: SnapshotId,
    /// In which epoch each is to be taken, and how far it is.
    of: [(u32, Step); 2],
    since: u64,
    /// When each node sees the records first.
    seen: [u64; 2],
}

/// What a data path is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Hold,
    Release,
    Take,
}

/// What a control process is about to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Is(Step),
    Void,
}

/// A volume, its nodes, and the control process of whichever serves it.
struct Side {
    cluster: Cluster,
    faults: Faults,
    dice: Dice,
    /// Of the record's epoch, when it was looked for last.
    door: Option<Coordinator>,
    asked: Option<(Call, Answer)>,
    /// It was released: its existence is waited for.
    released: bool,
    writes: Option<(u64, Change)>,
}

/// A host, and what it waits for.
#[derive(Default)]
struct Host {
    value: u64,
    /// The volume that is written to.
    at: usize,
    waits: Option<Answer>,
}

struct World {
    seed: u64,
    dice: Dice,
    sides: [Side; 2],
    hosts: Vec<Host>,
    now: u64,
    made: u8,
    group: Option<Group>,
    ready: Vec<SnapshotId>,
}

/// Runs a seed, if it has two volumes.
///
/// # Panics
/// If a group is of no one moment, or of one volume only.
pub fn run(seed: u64) -> Counts {
    let mut dice = Dice::new(seed ^ OTHER);
    let mut counts = Counts::default();
    if !dice.once_in(SHARE) {
        return counts;
    }
    let sides = [0, 1].map(|n| side(seed.wrapping_mul(2) + n, &mut dice));
    let hosts = (0..HOSTS).map(|_| Host::default());
    let mut world = World {
        seed,
        sides,
        hosts: hosts.collect(),
        now: 0,
        made: 0,
        group: None,
        ready: Vec::new(),
        dice,
    };
    for step in 0..STEPS {
        let rounds = [100, 500, 3_000][world.dice.below(3) as usize];
        for _ in 0..1 + world.dice.below(rounds) {
            world.round(true);
        }
        for side in &mut world.sides {
            side.faults
                .step(&mut side.cluster, &mut side.dice, &mut counts, step);
        }
    }
    world.finish();
    counts.groups = world.ready.len() as u64;
    counts
}

fn side(seed: u64, dice: &mut Dice) -> Side {
    let shape = Shape {
        nodes: 2 + dice.below(2) as usize,
        spares: 0,
        minimum: 1,
        volatile: dice.once_in(2),
        lossy: dice.once_in(2),
        real: false,
        drift: dice.once_in(2),
        sealed: false,
        list_max: 0,
    };
    let mut own = Dice::new(seed ^ OTHER);
    let mut cluster = Cluster::new(seed, shape);
    cluster.attach(0);
    Side {
        cluster,
        faults: Faults::new(&mut own),
        dice: own,
        door: None,
        asked: None,
        released: false,
        writes: None,
    }
}

impl Side {
    /// Has a data path do something; a lost answer is none.
    fn ask(&mut self, call: Call, id: SnapshotId) {
        let Some(door) = self.door.clone() else {
            return;
        };
        let handle = self.cluster.outside();
        let answer = Answer::default();
        let (on, told) = (handle.clone(), answer.clone());
        handle.spawn("group", async move {
            let asked = async {
                match call {
                    Call::Hold => door.hold_snapshot(id, HOLD).await,
                    Call::Release => door.release_snapshot(id).await,
                    Call::Take => door.snapshot(id).await,
                }
            };
            let said = on.timeout(CALL_LIMIT, asked).await;
            let lost = on.random().is_multiple_of(16);
            let said = said.ok().filter(|_| !lost);
            told.replace(Some(said.unwrap_or(Err(Failed::Stalled))));
        });
        self.asked = Some((call, answer));
    }

    /// What was answered, if it was.
    fn answered(&mut self) -> Option<(Call, Result<(), Failed>)> {
        let (call, answer) = self.asked.as_ref()?;
        let said = (*call, answer.borrow_mut().take()?);
        self.asked = None;
        Some(said)
    }

    fn epoch(&self) -> u32 {
        self.cluster.kvdb.record().epoch
    }
}

impl World {
    /// A slice of each, and what hosts and control processes do then.
    fn round(&mut self, more: bool) {
        self.now += 1;
        for v in 0..2 {
            let side = &mut self.sides[v];
            side.cluster.rig.sim.run_for(SLICE);
            if self.now.is_multiple_of(8) {
                let epoch = side.epoch();
                let found = serving(&mut side.cluster).map(|(_, door)| door);
                side.door = found.filter(|door| door.epoch() == epoch);
            }
            self.control(v);
        }
        if self.group.is_none() && more && self.dice.once_in(64) && self.made < MOST {
            self.begin();
        }
        for n in 0..HOSTS {
            self.host(n, more);
        }
    }

    /// Somebody asks for snapshots.
    fn begin(&mut self) {
        if self.sides.iter().any(|s| s.door.is_none()) {
            return;
        }
        self.made += 1;
        let each = |n: usize| (self.sides[n].epoch(), Step::Wanted);
        // One of them may be later than the other one holds.
        let dice = &mut self.dice;
        let most = if dice.once_in(6) { 6_000 } else { 100 };
        let seen = [0, 1].map(|_| self.now + dice.below(most));
        self.group = Some(Group {
            id: SnapshotId([self.made; 16]),
            of: [each(0), each(1)],
            since: self.now,
            seen,
        });
    }

    /// What whoever serves a volume does for it.
    fn control(&mut self, v: usize) {
        if let Some((due, change)) = self.sides[v].writes {
            if due <= self.now {
                self.sides[v].writes = None;
                self.write(v, change);
            }
            return;
        }
        let said = self.sides[v].answered();
        let Some(group) = self.group.filter(|g| g.seen[v] <= self.now) else {
            return;
        };
        if let Some((call, said)) = said {
            return self.heard(v, call, said);
        }
        if self.sides[v].asked.is_some() {
            return;
        }
        let (epoch, step) = group.of[v];
        let all = |least| group.of.iter().all(|o| o.1 >= least);
        let late = self.now > group.since + LIMIT;
        let other = self.sides[v].epoch() != epoch && !planted::is(Bug::GroupEpochIgnored);
        let side = &mut self.sides[v];
        match step {
            _ if late || other => self.later(v, Change::Void),
            Step::Wanted => side.ask(Call::Hold, group.id),
            Step::Held if side.released => side.ask(Call::Take, group.id),
            Step::Held if all(Step::Held) => side.ask(Call::Release, group.id),
            Step::Taken if all(Step::Taken) => self.all_ready(),
            Step::Held | Step::Taken => {}
        }
    }

    fn heard(&mut self, v: usize, call: Call, said: Result<(), Failed>) {
        match (call, said) {
            (Call::Hold, Ok(())) => self.later(v, Change::Is(Step::Held)),
            (Call::Release, Ok(())) => self.sides[v].released = true,
            (Call::Take, Ok(())) => self.later(v, Change::Is(Step::Taken)),
            (_, Err(Failed::NotHeld | Failed::NeverTaken)) => self.later(v, Change::Void),
            // It is asked again, of whoever serves then.
            (_, Err(_)) => {}
        }
    }

    /// Changes of the KVDB take their time, and now and then longer than anybody holds.
    fn later(&mut self, v: usize, change: Change) {
        let most = if self.dice.once_in(24) { 6_000 } else { 60 };
        let due = self.now + 1 + self.dice.below(most);
        self.sides[v].writes = Some((due, change));
    }

    fn write(&mut self, v: usize, change: Change) {
        let Some(group) = &mut self.group else { return };
        match change {
            Change::Is(step) => group.of[v].1 = step,
            Change::Void => self.over(),
        }
    }

    /// One transaction, which compares all epochs.
    fn all_ready(&mut self) {
        let Some(group) = self.group else { return };
        let same = |(side, of): (&Side, &(u32, Step))| side.epoch() == of.0;
        let same = self.sides.iter().zip(&group.of).all(same);
        if same || planted::is(Bug::GroupEpochIgnored) {
            for side in &self.sides {
                side.cluster.kvdb.set_snapshot(group.id, Some(Phase::Ready));
            }
            self.ready.push(group.id);
        }
        self.over();
    }

    /// It is decided: what is not ready goes, where it is.
    fn over(&mut self) {
        let Some(group) = self.group.take() else {
            return;
        };
        let void = !self.ready.contains(&group.id);
        for side in &mut self.sides {
            (side.asked, side.writes, side.released) = (None, None, false);
            if let Some(door) = side.door.clone().filter(|_| void) {
                let handle = side.cluster.outside();
                let on = handle.clone();
                handle.spawn("group: void", async move {
                    // If it is busy, or not served, the next epoch is not told of it.
                    let _ = on.timeout(CALL_LIMIT, door.delete_snapshot(group.id)).await;
                });
            }
        }
    }

    /// A host's next write: of a value to one volume and, when that is acknowledged, to the other one, and so on.
    fn host(&mut self, n: usize, more: bool) {
        let host = &mut self.hosts[n];
        if let Some(waits) = &host.waits {
            let Some(said) = waits.borrow_mut().take() else {
                return;
            };
            host.waits = None;
            if said.is_ok() {
                host.at = 1 - host.at;
                host.value += u64::from(host.at == 0);
            }
        }
        // Rests between them, else nothing is ever still.
        if !more || self.dice.below(6) > 0 {
            return;
        }
        let side = &self.sides[host.at];
        let Some(door) = side.door.clone() else {
            return;
        };
        let answer = Answer::default();
        host.waits = Some(answer.clone());
        let (lane, block) = place(n);
        let value = host.value + 1;
        let handle = side.cluster.outside();
        let on = handle.clone();
        handle.spawn("group: host", async move {
            let written = on.timeout(PATIENCE, async {
                let mut buffer = on.buffers().take(BLOCK_BYTES).await;
                pattern(value, &mut buffer[..BLOCK_BYTES]);
                door.write(lane, LaneBlock(block), buffer, 1, false).await
            });
            let written = written.await.unwrap_or(Err(Failed::Stalled));
            answer.replace(Some(written));
        });
    }

    /// All is well again: each group is there in both volumes, on all members, and of one moment, or nowhere.
    fn finish(&mut self) {
        let seed = self.seed;
        for side in &mut self.sides {
            side.cluster.heal();
        }
        let deadline = self.now + (HEALED_WITHIN.as_micros() / SLICE.as_micros()) as u64;
        while self.hosts.iter().any(|h| h.waits.is_some()) || self.group.is_some() {
            assert!(self.now < deadline, "seed {seed}: {:?}", self.group);
            self.round(false);
        }
        for side in &mut self.sides {
            let cluster = &mut side.cluster;
            let last = cluster.attach(0).expect("all nodes run");
            side.door = None;
            let serves = |_: &Cluster| last.standing() == Standing::Serving;
            until(seed, cluster, "it serves", serves);
            until(seed, cluster, "all are members", all_joined);
            let mut ready: Vec<_> = self.ready.iter().map(|id| (*id, LANES)).collect();
            ready.sort_unstable();
            let same = |cluster: &Cluster| {
                let mut members = cluster.member_nodes().into_iter();
                members.all(|node| cluster.snapshots(node).is_some_and(|s| s == ready))
            };
            until(
                seed,
                cluster,
                "members have the groups that are ready",
                same,
            );
        }
        for id in &self.ready {
            let [first, second] = [0, 1].map(|v| shown(&self.sides[v].cluster, seed, *id));
            for (n, (a, b)) in first.iter().zip(&second).enumerate() {
                assert!(
                    b <= a && *a <= b + 1,
                    "seed {seed}: {id}: host {n} wrote {a} to one volume and {b} to the other one, and had each acknowledged before the next"
                );
            }
        }
    }
}

/// The lane and block of a host.
fn place(host: usize) -> (u8, u64) {
    let lanes = usize::from(LANES);
    ((host % lanes) as u8, (host / lanes) as u64)
}

/// What a volume's snapshot shows of each host.
fn shown(cluster: &Cluster, seed: u64, id: SnapshotId) -> Vec<u64> {
    let members = cluster.member_nodes();
    let lane = |lane| {
        let tree = Tree {
            lane,
            snapshot: Some(id),
        };
        let mut all = members.iter().map(|m| cluster.blocks(*m, tree, BLOCKS));
        let first = all.next().flatten();
        let first = first.unwrap_or_else(|| panic!("seed {seed}: {id} is not read"));
        for other in all {
            let same = other.is_some_and(|o| o.0 == first.0);
            assert!(same, "seed {seed}: {id} of members differ");
        }
        let blocks = first.1.chunks_exact(BLOCK_BYTES).map(value_of);
        blocks
            .map(|v| v.expect("a block of one write"))
            .collect::<Vec<u64>>()
    };
    let lanes: Vec<Vec<u64>> = (0..LANES).map(lane).collect();
    let host = |n| {
        let (lane, block) = place(n);
        lanes[usize::from(lane)][block as usize]
    };
    (0..HOSTS).map(host).collect()
}

fn until(seed: u64, cluster: &mut Cluster, what: &str, is: impl Fn(&Cluster) -> bool) {
    let deadline = cluster.rig.sim.now() + HEALED_WITHIN;
    while !is(cluster) {
        assert!(
            cluster.rig.sim.now() < deadline,
            "seed {seed}: two volumes: not within {HEALED_WITHIN:?}: {what}; record {:?}\n{}",
            cluster.kvdb.record(),
            cluster.describe()
        );
        cluster.rig.sim.run_for(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, otherwise: u64) -> u64 {
        std::env::var(name).map_or(otherwise, |n| n.parse().expect("a number"))
    }

    /// Of two volumes alone (`KEEL_SEED`, `KEEL_SEEDS`).
    #[test]
    fn snapshots_of_two_volumes_come_to_be_and_are_of_one_moment() {
        let first = variable("KEEL_SEED", 1);
        let mut sum = Counts::default();
        for seed in first..first + variable("KEEL_SEEDS", 8) {
            sum.add(&run(seed));
        }
        println!("{} groups", sum.groups);
        assert!(sum.groups > 0, "none came to be");
    }
}
