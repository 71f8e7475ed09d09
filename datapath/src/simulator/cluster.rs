//! Nodes with a replica each, one volume over them, and coordinators of it that come and go: sessions, replicas and coordinators as they are in a process,
//! on simulated reactors; stores in memory that lose what they may lose.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::kvdb::{Kvdb, Way};
use crate::reactor::Handle;
use crate::reactor::sim::NodeId;
use crate::replication::replica::door::{Out, Replicas};
use crate::replication::replica::memory::{Disk, Memory};
use crate::replication::replica::service::{Identity, Replica};
use crate::replication::seam::Id;
use crate::replication::session::rig::{Rig, name};
use crate::replication::session::{Acceptor, Trunks};
use crate::volume::coordinator::driver::Driver;
use crate::volume::coordinator::links::{Links, Route};
use crate::volume::coordinator::message::Event;
use crate::volume::coordinator::set::{ReplicaState, VolumeRecord};
use crate::volume::coordinator::state::{Config, Standing};

/// Lanes of the volume.
pub const LANES: u8 = 2;
/// T: short, so that much happens in a run.
const LEASE: Duration = Duration::from_millis(400);
/// The volume.
const VOLUME: Id = [9; 16];

/// A coordinator.
pub type Coordinator = Driver<Links, Way>;
/// Where a coordinator's events go to; nowhere, once its process has ended.
type Target = Rc<RefCell<Option<Coordinator>>>;

/// A process of a node.
struct Process {
    trunks: Rc<Trunks>,
    replica: Replica<Memory, Out>,
    coordinators: Vec<Target>,
    acceptors: Vec<Acceptor>,
}

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes, each with a replica.
    pub nodes: usize,
    /// The volume's minimum.
    pub minimum: u8,
    /// VWC: a write is confirmed when it is written; then no power is cut.
    pub volatile: bool,
    /// Drives lose what is not flushed with their power.
    pub lossy: bool,
}

/// A cluster.
pub struct Cluster {
    /// Its network and its clock.
    pub rig: Rig,
    /// The database.
    pub kvdb: Rc<Kvdb>,
    /// What it is like.
    pub shape: Shape,
    disks: Vec<Rc<RefCell<Disk>>>,
    processes: Vec<Option<Process>>,
    /// A node that never fails: hosts and the database.
    outside: (NodeId, Handle),
}

/// A replica's id.
fn replica(node: usize) -> Id {
    [node as u8 + 1; 16]
}

impl Cluster {
    /// All nodes run, nobody coordinates.
    pub fn new(seed: u64, shape: Shape) -> Self {
        let rig = Rig::new(seed, shape.nodes, 1);
        let (id, handles) = rig.sim.start_node(1);
        let replicas = (0..shape.nodes).map(|n| (replica(n), ReplicaState::Member));
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
            disks: (0..shape.nodes)
                .map(|_| Disk::new(LANES, 1 << 20))
                .collect(),
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

    /// A replica's disk.
    pub fn disk(&self, node: usize) -> Rc<RefCell<Disk>> {
        self.disks[node].clone()
    }

    /// Starts what a process has: its replica, behind an acceptor.
    fn serve(&mut self, node: usize) {
        let handle = self.rig.handle(node, 0);
        let store = Memory::open(&handle, &self.disks[node], self.shape.lossy);
        // Some drives are slow, each time others.
        let slow = [200, 200, 5_000, 60_000][self.rig.sim.random() as usize % 4];
        store.set_slow(Duration::from_micros(slow));
        let identity = Identity {
            volume: VOLUME,
            replica: replica(node),
        };
        let taken = Replica::start(&handle, store, identity, true, LEASE);
        let replicas = Rc::new(Replicas::default());
        replicas.add(identity, taken.clone());
        let acceptors = self.rig.accept(node, |_| replicas.clone());
        let trunks = Rc::new(Trunks::new(&handle, self.rig.identity(node, 0)));
        self.processes[node] = Some(Process {
            trunks,
            replica: taken,
            coordinators: Vec::new(),
            acceptors,
        });
    }

    /// The process of a node ends, or its machine loses power.
    pub fn end(&mut self, node: usize, power: bool) {
        let Some(process) = self.processes[node].take() else {
            return;
        };
        self.rig.end(node, power);
        for target in &process.coordinators {
            // Nothing of it runs any more: whoever knows whom lets go.
            if let Some(driver) = target.take() {
                driver.peers().stop();
            }
        }
        process.trunks.stop();
        process.acceptors.iter().for_each(Acceptor::stop);
        let sim = &self.rig.sim;
        let mut disk = self.disks[node].borrow_mut();
        match power {
            true => disk.power_cut(|| sim.random()),
            false => disk.kill(|| sim.random()),
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
            let of = usize::from(id[0] - 1);
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
        config.command_limit = Duration::from_secs(4);
        let kvdb = self.kvdb.clone();
        let driver = Driver::start(&handle, config, record, links, Way { kvdb, tell });
        target.replace(Some(driver.clone()));
        driver.peers().connect();
        process.coordinators.push(target);
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

    /// What each replica is, for messages.
    pub fn describe(&self) -> String {
        let each = self.processes.iter().enumerate().map(|(n, p)| match p {
            Some(p) => format!("{n}: {:?}", p.replica),
            None => format!("{n}: down"),
        });
        each.collect::<Vec<_>>().join("\n")
    }

    /// Everything is well again: nodes run, nothing is cut, the database is there.
    pub fn heal(&mut self) {
        self.kvdb.away.set(false);
        self.kvdb.lossy.set(false);
        self.rig.sim.network(|net| {
            net.heal();
            net.latency = (Duration::from_micros(5), Duration::from_micros(50));
        });
        (0..self.shape.nodes).for_each(|node| self.begin(node));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.shape.nodes).for_each(|node| self.end(node, false));
    }
}
