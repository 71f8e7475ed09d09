//! Snapshots, as control has them taken and deleted: records that name them, a coordinator that is asked, and asked again by the next epoch.
//!
//! Whenever a record calls one ready, each member has it. At the end each replica has those that records call ready, and no others; all have the same blocks in each; and these are what all lanes showed at one moment
//! between the request and the answer. Drawn from dice of its own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::cluster::{Cluster, Coordinator, LANES};
use super::faults::{Dice, serving};
use super::history::{Did, Moment, Seen};
use super::kvdb::{Kvdb, Phase};
use super::run::{BLOCKS, Counts, Hosts, number, value_of};
use crate::replication::wire::resync::Tree;
use crate::store::types::{BLOCK_BYTES, SnapshotId};
use crate::volume::coordinator::message::Failed;

/// One run in so many has none.
const WITHOUT: u64 = 3;
/// One step in so many begins something.
const EVERY: u64 = 4;
/// Most there are.
const MOST: usize = 6;
/// While one in so many is taken, a member loses power, and comes back at once.
const POWER: u64 = 5;
/// So long after it was asked for at most, in microseconds.
const POWER_WITHIN: u64 = 3_000;
/// Longer than a command's limit.
const PATIENCE: Duration = Duration::from_secs(6);
/// Apart from the dice of everything else.
const OTHER: u64 = 0x736e_6170_7368_6f74;

/// When each was asked for, and when it was known to exist.
type Asked = Rc<RefCell<BTreeMap<[u8; 16], (Moment, Option<Moment>)>>>;

/// The snapshots of a run.
pub struct Snapshots {
    seed: u64,
    dice: Dice,
    there: bool,
    made: u8,
    asked: Asked,
    /// A question is under way.
    busy: Rc<Cell<bool>>,
    kept: u64,
}

impl Snapshots {
    /// Of a run.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ OTHER);
        Self {
            seed,
            there: !dice.once_in(WITHOUT),
            dice,
            made: 0,
            asked: Rc::default(),
            busy: Rc::default(),
            kept: 0,
        }
    }

    /// Adds what came of it.
    pub fn count(&self, counts: &mut Counts) {
        let asked = self.asked.borrow();
        counts.snapshots += asked.values().filter(|a| a.1.is_some()).count() as u64;
        counts.kept += self.kept;
    }

    /// Perhaps something new, or what was left undone by an earlier epoch.
    ///
    /// # Panics
    /// If a member lacks what a record calls ready.
    pub fn step(&mut self, cluster: &mut Cluster, hosts: &Rc<Hosts>) {
        self.members_have_what_is_ready(cluster);
        if !self.there || self.busy.get() || !self.dice.once_in(EVERY) {
            return;
        }
        let Some((at, driver)) = serving(cluster) else {
            return;
        };
        let epoch = cluster.kvdb.record().epoch;
        if driver.epoch() != epoch || self.go_on(cluster, hosts, &driver) {
            return;
        }
        let ready: Vec<SnapshotId> = {
            let all = cluster.kvdb.snapshots.borrow();
            all.iter().map(|s| s.0).collect()
        };
        let n = ready.len();
        if n > 0 && (n >= MOST || self.dice.once_in(3)) {
            let id = ready[self.dice.below(n as u64) as usize];
            cluster.kvdb.set_snapshot(id, Some(Phase::Deleting));
            return self.delete(cluster, &driver, id);
        }
        self.made += 1;
        let id = SnapshotId([self.made; 16]);
        let from = hosts.moment();
        self.asked.borrow_mut().insert(id.0, (from, None));
        cluster.kvdb.set_snapshot(id, Some(Phase::Creating(epoch)));
        self.take(cluster, hosts, &driver, id);
        // Only where what was acknowledged is stable.
        if !cluster.shape.volatile && self.dice.once_in(POWER) {
            let after = Duration::from_micros(self.dice.below(POWER_WITHIN));
            cluster.rig.sim.run_for(after);
            let others: Vec<usize> = {
                let members = cluster.member_nodes().into_iter();
                members.filter(|node| *node != at).collect()
            };
            if !others.is_empty() {
                let node = others[self.dice.below(others.len() as u64) as usize];
                cluster.end(node, true);
                cluster.begin(node);
            }
        }
    }

    /// Rule 12: a snapshot is named when all have it, and who becomes a member later has it, too.
    fn members_have_what_is_ready(&self, cluster: &Cluster) {
        // Until it is verified the record does not say who is one.
        if cluster.kvdb.unverified.get() {
            return;
        }
        let seed = self.seed;
        let all = cluster.kvdb.snapshots.borrow();
        let ready = || all.iter().filter(|s| s.1 == Phase::Ready).map(|s| s.0);
        for node in cluster.member_nodes() {
            let Some(there) = cluster.snapshots(node) else {
                continue;
            };
            let lacks = ready().find(|id| !there.contains(&(*id, LANES)));
            assert_eq!(
                lacks, None,
                "seed {seed}: a snapshot that is ready is not on node {node}, a member: {there:?}"
            );
        }
    }

    /// Goes on with what a record says that is not done. True: there was something.
    fn go_on(&self, cluster: &Cluster, hosts: &Rc<Hosts>, driver: &Coordinator) -> bool {
        let undone = {
            let all = cluster.kvdb.snapshots.borrow();
            all.iter().copied().find(|s| s.1 != Phase::Ready)
        };
        match undone {
            None => return false,
            Some((id, Phase::Deleting)) => self.delete(cluster, driver, id),
            Some((id, _)) => self.take(cluster, hosts, driver, id),
        }
        true
    }

    fn take(&self, cluster: &Cluster, hosts: &Rc<Hosts>, driver: &Coordinator, id: SnapshotId) {
        let (handle, driver, hosts) = (cluster.outside(), driver.clone(), hosts.clone());
        let (kvdb, asked) = (cluster.kvdb.clone(), self.asked.clone());
        let busy = self.busy.clone();
        busy.set(true);
        let with = handle.clone();
        handle.spawn("snapshot", async move {
            let taken = with.timeout(PATIENCE, driver.snapshot(id)).await;
            let answered = hosts.moment();
            // Answers take their time.
            let late = Duration::from_micros(100 + with.random() % 5_000);
            with.sleep(late).await;
            note(
                &kvdb,
                &asked,
                &driver,
                (id, answered),
                taken.unwrap_or(Err(Failed::Stalled)),
            );
            busy.set(false);
        });
    }

    fn delete(&self, cluster: &Cluster, driver: &Coordinator, id: SnapshotId) {
        let (handle, driver) = (cluster.outside(), driver.clone());
        let (kvdb, busy) = (cluster.kvdb.clone(), self.busy.clone());
        busy.set(true);
        let with = handle.clone();
        handle.spawn("snapshot: delete", async move {
            let deleted = with.timeout(PATIENCE, driver.delete_snapshot(id)).await;
            if deleted == Ok(Ok(())) {
                kvdb.set_snapshot(id, None);
            }
            busy.set(false);
        });
    }

    /// Whether all that was begun is done, and each replica has what is ready and no more.
    pub fn finish(&self, cluster: &Cluster, hosts: &Rc<Hosts>, driver: &Coordinator) -> bool {
        if self.busy.get() || self.go_on(cluster, hosts, driver) {
            return false;
        }
        let mut ready: Vec<(SnapshotId, u8)> = {
            let all = cluster.kvdb.snapshots.borrow();
            all.iter().map(|s| (s.0, LANES)).collect()
        };
        ready.sort_unstable();
        let mut members = cluster.member_nodes().into_iter();
        members.all(|node| cluster.snapshots(node).is_some_and(|s| s == ready))
    }

    /// Looks at each that is there.
    ///
    /// # Panics
    /// If replicas differ, or it is of no one moment. What it shows goes into the history, as if it had been read.
    pub fn check(&mut self, seed: u64, cluster: &Cluster, hosts: &Hosts) {
        let members = cluster.member_nodes();
        let ready: Vec<SnapshotId> = {
            let all = cluster.kvdb.snapshots.borrow();
            all.iter().map(|s| s.0).collect()
        };
        for id in ready {
            let (from, to) = self.asked.borrow()[&id.0];
            let within = (from, to.unwrap_or_else(|| hosts.moment()));
            let mut values = BTreeMap::new();
            for lane in 0..LANES {
                let tree = Tree {
                    lane,
                    snapshot: Some(id),
                };
                let first = cluster.blocks(members[0], tree, BLOCKS);
                let (entries, bytes) =
                    first.unwrap_or_else(|| panic!("seed {seed}: {id} of lane {lane} is not read"));
                for member in &members[1..] {
                    let there = cluster.blocks(*member, tree, BLOCKS).map(|b| b.0);
                    assert_eq!(
                        Some(&entries),
                        there.as_ref(),
                        "seed {seed}: {id} of lane {lane} of members {} and {member} differ",
                        members[0]
                    );
                }
                for (block, bytes) in (0..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
                    let value = value_of(bytes).expect("a block of one write");
                    values.insert(number(lane, block), value);
                    let did = Did::Read(value);
                    let (from, to) = (within.0, Some(within.1));
                    hosts.note(lane, block, Seen { did, from, to });
                }
            }
            if let Err((late, gone)) = hosts.history.borrow().at_once(within, &values) {
                panic!(
                    "seed {seed}: {id} is of no one moment of {within:?}: something is from {late}, and something was over at {gone}"
                );
            }
            self.kept += 1;
        }
    }
}

/// What control makes of an answer.
fn note(
    kvdb: &Kvdb,
    asked: &Asked,
    driver: &Coordinator,
    (id, answered): (SnapshotId, Moment),
    taken: Result<(), Failed>,
) {
    // Compared with the record: whoever has a later epoch has read what was named, and decides.
    if kvdb.record().epoch != driver.epoch() {
        return;
    }
    match taken {
        Ok(()) => {
            kvdb.set_snapshot(id, Some(Phase::Ready));
            if let Some(asked) = asked.borrow_mut().get_mut(&id.0) {
                asked.1 = asked.1.or(Some(answered));
            }
        }
        Err(Failed::NeverTaken) => kvdb.set_snapshot(id, None),
        // It is asked again, of this epoch or the next one.
        Err(_) => {}
    }
}
