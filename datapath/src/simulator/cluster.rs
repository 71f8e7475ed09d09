//! Nodes with a replica each, one volume over them, and coordinators of it that come and go: sessions, replicas and coordinators as they are in a process,
//! on simulated reactors; drives that lose what they may lose.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::drives::{Drive, Opened};
use super::faults::FAST;
use super::forward::SimulatedHere;
use super::kvdb::{Kvdb, Way};
use super::ledger::Ledger;
use crate::reactor::sim::NodeId;
use crate::reactor::{Handle, mesh};
use crate::replication::replica::door::{Out, Replicas};
use crate::replication::replica::memory::{Disk, Memory};
use crate::replication::replica::service::{Identity, Replica};
use crate::replication::seam::Id;
use crate::replication::session::rig::{Rig, address, name};
use crate::replication::session::{Acceptor, Trunks};
use crate::volume::coordinator::driver::Driver;
use crate::volume::coordinator::links::{Links, Route};
use crate::volume::coordinator::members::Place;
use crate::volume::coordinator::message::{Event, Wish};
use crate::volume::coordinator::set::{ReplicaState, VolumeRecord};
use crate::volume::coordinator::state::{Config, Standing};
use crate::volume::forward::send::Forwarding;
use crate::volume::forward::serve::Doors;

/// Lanes of the volume.
pub const LANES: u8 = 2;
/// T: short, so that much happens in a run.
const LEASE: Duration = Duration::from_millis(400);
/// Clocks are fast or slow by so many millionths at most (`docs/replication.md` §1).
const DRIFT_MAX: u32 = 1000;
/// The volume.
pub(super) const VOLUME: Id = [9; 16];

/// A coordinator.
pub type Coordinator = Driver<Links, Way>;
/// Where a coordinator's events go to; nowhere, once its process has ended.
type Target = Rc<RefCell<Option<Coordinator>>>;

/// A process of a node.
pub(super) struct Process {
    pub(super) trunks: Rc<Trunks>,
    replicas: Rc<Replicas<Opened>>,
    coordinators: Vec<Target>,
    served: Rc<RefCell<Option<Served>>>,
    /// What other nodes forward here.
    doors: Rc<Doors>,
    pub(super) forwarding: Rc<Forwarding>,
    pub(super) alive: Rc<Cell<bool>>,
}

/// What a process has when its store is open.
struct Served {
    /// Of a node that has a replica.
    here: Option<(Replica<Opened, Out>, Opened)>,
    acceptor: Acceptor,
}

/// A replica of a node, and what it is on.
#[derive(Clone)]
struct Kept {
    id: Id,
    drive: Drive,
}

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// The last ones of them that have no replica at first.
    pub spares: usize,
    /// The volume's minimum.
    pub minimum: u8,
    /// VWC: a write is confirmed when it is written; then no power is cut.
    pub volatile: bool,
    /// Drives lose what is not flushed with their power.
    pub lossy: bool,
    /// The real store is on them.
    pub real: bool,
    /// Clocks of nodes run at different rates, as far apart as they may.
    pub drift: bool,
    /// The volume is encrypted.
    pub sealed: bool,
    /// Records that a lane's list has room for where stores are in memory; 0: for any number.
    pub list_max: usize,
}

/// A cluster.
pub struct Cluster {
    /// Its network and its clock.
    pub rig: Rig,
    /// The database.
    pub kvdb: Rc<Kvdb>,
    /// What it is like.
    pub shape: Shape,
    /// What was sealed, if the volume is encrypted.
    pub ledger: Option<Rc<Ledger>>,
    kept: Vec<Option<Kept>>,
    /// Replicas that were made since.
    made: u8,
    pub(super) processes: Vec<Option<Process>>,
    /// A node that never fails: hosts and the database.
    outside: (NodeId, Handle),
}

/// The drive of a node, with an empty replica on it.
fn kept(rig: &Rig, node: usize, id: Id, shape: Shape) -> Kept {
    let drive = if shape.real {
        let name = match id == replica(node) {
            true => format!("d{node}"),
            false => format!("d{node}.{}", id[1]),
        };
        let of = (VOLUME, id, LANES);
        let how = (shape.lossy, shape.sealed);
        Drive::format(&rig.sim, &rig.handle(node, 0), name, of, how)
    } else {
        let disk = Disk::new(LANES, 1 << 20);
        disk.borrow_mut().sealed = shape.sealed;
        disk.borrow_mut().list_max = shape.list_max;
        Drive::Memory(disk)
    };
    Kept { id, drive }
}

/// The node of a replica.
fn node_of(id: &Id) -> usize {
    usize::from(id[0] - 1)
}

/// A replica's id.
fn replica(node: usize) -> Id {
    [node as u8 + 1; 16]
}

impl Cluster {
    /// All nodes run, nobody coordinates.
    pub fn new(seed: u64, shape: Shape) -> Self {
        let rig = Rig::new(seed, shape.nodes, 1);
        if shape.drift {
            for node in &rig.nodes {
                let slow_or_fast = rig.sim.random() % (2 * u64::from(DRIFT_MAX) + 1);
                rig.sim
                    .drift(node.id, slow_or_fast as i32 - DRIFT_MAX as i32);
            }
        }
        let (id, handles) = rig.sim.start_node(1);
        let first = shape.nodes - shape.spares;
        let replicas = (0..first).map(|n| (replica(n), ReplicaState::Member));
        let record = VolumeRecord {
            version: 1,
            epoch: 0,
            incarnation: [0; 16],
            attempt: [0; 16],
            serving: false,
            minimum: shape.minimum,
            replicas: replicas.collect(),
        };
        let mut cluster = Self {
            kvdb: Kvdb::new(&handles[0], record),
            ledger: shape.sealed.then(|| Rc::new(Ledger::new(seed))),
            kept: (0..shape.nodes)
                .map(|node| (node < first).then(|| kept(&rig, node, replica(node), shape)))
                .collect(),
            made: 0,
            processes: (0..shape.nodes).map(|_| None).collect(),
            outside: (id, handles[0].clone()),
            rig,
            shape,
        };
        (0..shape.nodes).for_each(|node| cluster.serve(node));
        cluster
    }

    /// Where hosts are.
    pub fn outside(&self) -> Handle {
        self.outside.1.clone()
    }

    /// A node's number in the network.
    pub fn number(&self, node: usize) -> NodeId {
        self.rig.nodes[node].id
    }

    /// Whether its process runs.
    pub fn runs(&self, node: usize) -> bool {
        self.processes[node].is_some()
    }

    fn identity(replica: Id) -> Identity {
        Identity {
            volume: VOLUME,
            replica,
        }
    }

    /// Starts what a process has: its replica, behind an acceptor.
    fn serve(&mut self, node: usize) {
        let handle = self.rig.handle(node, 0);
        // Some drives are slow, each time others.
        let slow = [200, 200, 5_000, 60_000][self.rig.sim.random() as usize % 4];
        let slow = Duration::from_micros(slow);
        let kept = self.kept[node].clone();
        if let Some(kept) = &kept {
            kept.drive.set_slow(&self.rig.sim, slow);
        }
        let replicas = Rc::new(Replicas::default());
        let served = Rc::new(RefCell::new(None));
        let own = self.rig.identity(node, 0);
        let (here, own_too, volatile) = (handle.clone(), own.clone(), self.shape.lossy);
        let (shared, told) = (replicas.clone(), served.clone());
        handle.spawn("open", async move {
            let opened = match kept {
                Some(Kept { id, drive }) => {
                    let store = drive.open(&here, VOLUME, volatile).await;
                    store.set_slow(slow);
                    let identity = Self::identity(id);
                    let replica = Replica::start(&here, store.clone(), identity, true, LEASE);
                    shared.add(identity, replica.clone());
                    Some((replica, store))
                }
                None => None,
            };
            // Whoever asks before its store is open finds nobody: else it would hear that the replica is not here.
            let end = mesh(1).remove(0);
            let acceptor = Acceptor::start(&here, own_too, end, address(node), shared);
            let acceptor = acceptor.expect("the address is free");
            told.replace(Some(Served {
                here: opened,
                acceptor,
            }));
        });
        let trunks = Rc::new(Trunks::new(&handle, own));
        let doors = Rc::new(Doors::new(&handle));
        replicas.forward_to(Some(doors.clone()));
        self.processes[node] = Some(Process {
            trunks,
            replicas,
            coordinators: Vec::new(),
            served,
            doors,
            forwarding: Rc::default(),
            alive: Rc::new(Cell::new(true)),
        });
    }

    /// The process of a node ends, or its machine loses power.
    pub fn end(&mut self, node: usize, power: bool) {
        let Some(process) = self.processes[node].take() else {
            return;
        };
        let kept = self.kept[node].clone();
        let drive = kept.as_ref().and_then(|k| k.drive.name());
        match power {
            true => self.rig.cut_power(node, drive.as_slice()),
            false => self.rig.end(node),
        }
        // Nothing of it runs any more: whoever knows whom lets go.
        process.alive.set(false);
        process.replicas.forward_to(None);
        process.forwarding.lead(None);
        if let Some(kept) = &kept {
            process.replicas.remove(Self::identity(kept.id));
        }
        for target in &process.coordinators {
            if let Some(driver) = target.take() {
                driver.peers().stop();
            }
        }
        process.trunks.stop();
        if let Some(served) = process.served.take() {
            served.acceptor.stop();
        }
        let sim = &self.rig.sim;
        if let Some(Drive::Memory(disk)) = kept.map(|k| k.drive) {
            let mut disk = disk.borrow_mut();
            match power {
                true => disk.power_cut(|| sim.random()),
                false => disk.kill(|| sim.random()),
            }
        }
    }

    /// It comes back.
    pub fn begin(&mut self, node: usize) {
        if self.processes[node].is_none() {
            self.rig.begin(node);
            self.serve(node);
        }
    }

    /// A node coordinates the volume from now on: K1, then a takeover begins.
    pub fn attach(&mut self, node: usize) -> Option<Coordinator> {
        let handle = self.processes[node]
            .as_ref()
            .map(|_| self.rig.handle(node, 0))?;
        let incarnation = self.rig.identity(node, 0).incarnation;
        let record = self.kvdb.attach(incarnation);
        let process = self.processes[node].as_mut()?;
        let target: Target = Rc::default();
        let told = target.clone();
        let tell: Rc<dyn Fn(Event)> = Rc::new(move |event| {
            let driver = told.borrow().clone();
            if let Some(driver) = driver {
                driver.event(event);
            }
        });
        let routes = record.replicas.iter().map(|(id, _)| {
            let of = node_of(id);
            Route {
                replica: *id,
                trunk: process.trunks.to(name(of)),
                near: of == node,
            }
        });
        let ends = (VOLUME, incarnation, record.epoch, LANES);
        let links = Links::new(&handle, ends, routes.collect::<Vec<_>>(), tell.clone());
        let mut config = Config::new(LANES);
        config.volatile = self.shape.volatile;
        config.lease = LEASE;
        config.lane_blocks = 1 << 20;
        config.command_limit = Duration::from_secs(4);
        config.snapshots = self.kvdb.named(record.epoch);
        config.unverified = self.kvdb.unverified.get();
        if let Some(ledger) = &self.ledger {
            config.cipher = Some(ledger.clone());
        }
        let kvdb = self.kvdb.clone();
        let to = target.clone();
        let answered = Rc::new(move |expected, outcome| {
            let driver = to.borrow().clone();
            // Late answers to an earlier change are nobody's.
            if let Some(driver) = driver.filter(|d| d.record().version == expected) {
                driver.event(Event::Outcome(outcome));
            }
        });
        let way = Way {
            kvdb,
            of: incarnation,
            tell: answered,
        };
        let driver = Driver::start(&handle, config, record, links, way);
        target.replace(Some(driver.clone()));
        driver.peers().connect();
        process.coordinators.push(target);
        let here = SimulatedHere {
            handle,
            driver: driver.clone(),
        };
        let of = (driver.epoch(), incarnation);
        process.doors.serve(VOLUME, of, Rc::new(here));
        process.forwarding.lead(None);
        Some(driver)
    }

    /// Coordinators whose process runs, of any epoch, with their nodes; those that have ended are let go.
    pub fn coordinators(&mut self) -> Vec<(usize, Coordinator)> {
        let mut all = Vec::new();
        for (node, process) in self.processes.iter_mut().enumerate() {
            let Some(process) = process else { continue };
            process.coordinators.retain(|target| {
                let driver = target.borrow().clone();
                let Some(driver) = driver else { return false };
                if matches!(driver.standing(), Standing::Ended(_)) {
                    driver.peers().stop();
                    process.doors.end(&VOLUME, driver.epoch());
                    target.take();
                    return false;
                }
                all.push((node, driver));
                true
            });
        }
        all
    }

    /// Nothing passes between a node and the others.
    pub fn isolate(&self, node: usize) {
        let others = (0..self.shape.nodes).filter(|n| *n != node);
        let others: Vec<NodeId> = others.map(|n| self.number(n)).collect();
        let one = self.number(node);
        self.rig
            .sim
            .network(|net| others.iter().for_each(|o| net.partition(one, *o)));
    }

    /// Nodes whose replicas the record names.
    pub fn member_nodes(&self) -> Vec<usize> {
        let record = self.kvdb.record();
        record.members().map(|id| node_of(&id)).collect()
    }

    /// The place of a node's replica with a coordinator.
    pub fn place(&self, coordinator: &Coordinator, node: usize) -> Option<Place> {
        let record = self.kvdb.record();
        let id = record.members().find(|id| node_of(id) == node)?;
        coordinator.place(&id)
    }

    /// Nodes that have no replica by the record, nor keep one.
    pub fn spare_nodes(&self) -> Vec<usize> {
        let record = self.kvdb.record();
        let has = |node: &usize| record.replicas.iter().any(|r| node_of(&r.0) == *node);
        let all = 0..self.shape.nodes;
        all.filter(|n| !has(n) && self.kept[*n].is_none()).collect()
    }

    /// Has a coordinator add a replica on a node, which makes it when the record names it.
    pub fn add_replica(&mut self, coordinator: &Coordinator, node: usize) {
        let of = self.processes.iter().position(|p| {
            let mut all = p.iter().flat_map(|p| &p.coordinators);
            all.any(|t| {
                t.borrow()
                    .as_ref()
                    .is_some_and(|c| c.epoch() == coordinator.epoch())
            })
        });
        let Some(process) = of.and_then(|of| self.processes[of].as_ref()) else {
            return;
        };
        self.made += 1;
        let mut id = replica(node);
        // The first ones have their node's number in all bytes, and there are few nodes.
        id[1] = 100 + self.made;
        if coordinator.may(&Wish::Add(id)).is_err() {
            return;
        }
        coordinator.peers().offer(Route {
            replica: id,
            trunk: process.trunks.to(name(node)),
            near: of == Some(node),
        });
        coordinator.event(Event::Change(Wish::Add(id)));
    }

    /// Nodes that run make what the record names, and delete what leaves or is not named.
    pub fn follow_record(&mut self) {
        let record = self.kvdb.record();
        for node in 0..self.shape.nodes {
            // One that is still opening is looked at later.
            let runs = self.processes[node].as_ref();
            if runs.is_none_or(|p| p.served.borrow().is_none()) {
                continue;
            }
            let state = |id: &Id| record.replicas.iter().find(|r| r.0 == *id).map(|r| r.1);
            if let Some(kept) = &self.kept[node]
                && matches!(state(&kept.id), None | Some(ReplicaState::Leaving))
            {
                self.delete_replica(node);
            }
            let wanted = record
                .replicas
                .iter()
                .find(|(id, state)| node_of(id) == node && !matches!(state, ReplicaState::Leaving));
            if let Some((id, state)) = wanted.filter(|_| self.kept[node].is_none()) {
                assert_eq!(
                    *state,
                    ReplicaState::Empty,
                    "what was never made is no member"
                );
                self.make_replica(node, *id);
            }
        }
    }

    fn delete_replica(&mut self, node: usize) {
        if self.shape.real {
            self.end(node, false);
            self.kept[node] = None;
            return self.begin(node);
        }
        let Some(kept) = self.kept[node].take() else {
            return;
        };
        let process = self.processes[node].as_ref().expect("it runs");
        process.replicas.remove(Self::identity(kept.id));
        let here = process
            .served
            .borrow_mut()
            .as_mut()
            .and_then(|s| s.here.take());
        if let Some((replica, _)) = here {
            let stop = async move { replica.stop().await };
            self.rig.handle(node, 0).spawn("replica: deleted", stop);
        }
    }

    fn make_replica(&mut self, node: usize, id: Id) {
        if self.shape.real {
            self.end(node, false);
            self.rig.begin(node);
            self.kept[node] = Some(kept(&self.rig, node, id, self.shape));
            return self.serve(node);
        }
        let kept = kept(&self.rig, node, id, self.shape);
        let Drive::Memory(disk) = &kept.drive else {
            return;
        };
        let handle = self.rig.handle(node, 0);
        let store = Opened::Memory(Memory::open(&handle, disk, self.shape.lossy));
        let identity = Self::identity(id);
        let replica = Replica::start(&handle, store.clone(), identity, true, LEASE);
        let process = self.processes[node].as_ref().expect("it runs");
        process.replicas.add(identity, replica.clone());
        if let Some(served) = process.served.borrow_mut().as_mut() {
            served.here = Some((replica, store));
        }
        self.kept[node] = Some(kept);
    }

    /// A replica that leaves and that its node has deleted.
    pub fn deleted(&self) -> Option<Id> {
        let record = self.kvdb.record();
        let gone = |id: &Id| {
            let kept = self.kept[node_of(id)].as_ref();
            kept.is_none_or(|k| k.id != *id)
        };
        let mut leaving = record.replicas.iter();
        let found = leaving.find(|(id, state)| *state == ReplicaState::Leaving && gone(id));
        found.map(|r| r.0)
    }

    /// The KVDB cannot be reached from a node.
    pub fn cut_kvdb(&self, node: usize) {
        let incarnation = self.rig.identity(node, 0).incarnation;
        self.kvdb.cut.set(Some(incarnation));
    }

    /// What each replica is, for messages.
    pub fn describe(&self) -> String {
        let each = self.processes.iter().enumerate().map(|(n, p)| {
            let served = p.as_ref().map(|p| p.served.borrow());
            match served.as_deref() {
                Some(Some(Served {
                    here: Some((replica, _)),
                    ..
                })) => format!("{n}: {replica:?}"),
                Some(Some(_)) => format!("{n}: no replica"),
                Some(None) => format!("{n}: opening"),
                None => format!("{n}: down"),
            }
        });
        each.collect::<Vec<_>>().join("\n")
    }

    pub(super) fn store(&self, node: usize) -> Option<Opened> {
        let process = self.processes[node].as_ref()?;
        Some(process.served.borrow().as_ref()?.here.as_ref()?.1.clone())
    }

    pub(super) fn replica(&self, node: usize) -> Option<Replica<Opened, Out>> {
        let process = self.processes[node].as_ref()?;
        Some(process.served.borrow().as_ref()?.here.as_ref()?.0.clone())
    }

    /// A node's store, if it is in memory.
    pub fn disk(&self, node: usize) -> Option<Rc<RefCell<Disk>>> {
        match &self.kept[node].as_ref()?.drive {
            Drive::Memory(disk) => Some(disk.clone()),
            Drive::Real(_) => None,
        }
    }

    /// Ends all processes, and looks at what is on drives.
    ///
    /// # Panics
    /// If it contradicts itself.
    pub fn check_drives(&mut self) {
        for node in 0..self.shape.nodes {
            self.end(node, self.rig.sim.random() & 1 == 0);
            if let Some(kept) = &self.kept[node] {
                kept.drive.check(&self.rig.sim);
            }
        }
    }

    /// Everything is well again: nodes run, nothing is cut, the database is there.
    pub fn heal(&mut self) {
        self.kvdb.away.set(false);
        self.kvdb.cut.set(None);
        self.kvdb.lossy.set(false);
        self.kvdb.mute.set(false);
        self.rig.sim.network(|net| {
            net.heal();
            net.latency = FAST;
        });
        (0..self.shape.nodes).for_each(|node| self.begin(node));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.shape.nodes).for_each(|node| self.end(node, false));
    }
}
