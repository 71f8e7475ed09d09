//! Nodes with a replica each, one volume over them, and coordinators of it that come and go: sessions, replicas and coordinators as they are in a process,
//! on simulated reactors; drives that lose what they may lose.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::drives::{Drive, Opened};
use super::faults::FAST;
use super::kvdb::{Kvdb, Way};
use super::ledger::Ledger;
use crate::reactor::sim::NodeId;
use crate::reactor::{Handle, mesh};
use crate::replication::replica::door::{Out, Replicas};
use crate::replication::replica::memory::Disk;
use crate::replication::replica::service::{Identity, Replica};
use crate::replication::seam::{Entry, Id, Kind, ReplicaStore};
use crate::replication::session::rig::{Rig, address, name};
use crate::replication::session::{Acceptor, Trunks};
use crate::store::types::BLOCK_BYTES;
use crate::volume::coordinator::driver::Driver;
use crate::volume::coordinator::links::{Links, Route};
use crate::volume::coordinator::members::Place;
use crate::volume::coordinator::message::Event;
use crate::volume::coordinator::set::{ReplicaState, VolumeRecord};
use crate::volume::coordinator::state::{Config, Standing};

/// Lanes of the volume.
pub const LANES: u8 = 2;
/// T: short, so that much happens in a run.
const LEASE: Duration = Duration::from_millis(400);
/// Blocks of a healthy store are read within this.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Clocks are fast or slow by so many millionths at most (`docs/replication.md` §1).
const DRIFT_MAX: u32 = 1000;
/// The volume.
const VOLUME: Id = [9; 16];

/// A coordinator.
pub type Coordinator = Driver<Links, Way>;
/// Where a coordinator's events go to; nowhere, once its process has ended.
type Target = Rc<RefCell<Option<Coordinator>>>;

/// A process of a node.
struct Process {
    trunks: Rc<Trunks>,
    replicas: Rc<Replicas<Opened>>,
    coordinators: Vec<Target>,
    served: Rc<RefCell<Option<Served>>>,
}

/// What a process has when its store is open.
struct Served {
    replica: Replica<Opened, Out>,
    store: Opened,
    acceptor: Acceptor,
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
    /// The real store is on them.
    pub real: bool,
    /// Clocks of nodes run at different rates, as far apart as they may.
    pub drift: bool,
    /// The volume is encrypted.
    pub sealed: bool,
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
    drives: Vec<Drive>,
    processes: Vec<Option<Process>>,
    /// A node that never fails: hosts and the database.
    outside: (NodeId, Handle),
}

/// The drive of a node, with an empty replica on it.
fn drive(rig: &Rig, node: usize, shape: Shape) -> Drive {
    if !shape.real {
        let disk = Disk::new(LANES, 1 << 20);
        disk.borrow_mut().sealed = shape.sealed;
        return Drive::Memory(disk);
    }
    let (name, of) = (format!("d{node}"), (VOLUME, replica(node), LANES));
    Drive::format(
        &rig.sim,
        &rig.handle(node, 0),
        name,
        of,
        (shape.lossy, shape.sealed),
    )
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
            ledger: shape.sealed.then(|| Rc::new(Ledger::new(seed))),
            drives: (0..shape.nodes)
                .map(|node| drive(&rig, node, shape))
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

    fn identity(node: usize) -> Identity {
        Identity {
            volume: VOLUME,
            replica: replica(node),
        }
    }

    /// Starts what a process has: its replica, behind an acceptor.
    fn serve(&mut self, node: usize) {
        let handle = self.rig.handle(node, 0);
        // Some drives are slow, each time others.
        let slow = [200, 200, 5_000, 60_000][self.rig.sim.random() as usize % 4];
        let slow = Duration::from_micros(slow);
        let drive = self.drives[node].clone();
        drive.set_slow(&self.rig.sim, slow);
        let replicas = Rc::new(Replicas::default());
        let served = Rc::new(RefCell::new(None));
        let own = self.rig.identity(node, 0);
        let (here, own_too, volatile) = (handle.clone(), own.clone(), self.shape.lossy);
        let (shared, told) = (replicas.clone(), served.clone());
        handle.spawn("open", async move {
            let store = drive.open(&here, VOLUME, volatile).await;
            store.set_slow(slow);
            let identity = Self::identity(node);
            let replica = Replica::start(&here, store.clone(), identity, true, LEASE);
            shared.add(identity, replica.clone());
            // Whoever asks before its store is open finds nobody: else it would hear that the replica is not here.
            let end = mesh(1).remove(0);
            let acceptor = Acceptor::start(&here, own_too, end, address(node), shared);
            let acceptor = acceptor.expect("the address is free");
            told.replace(Some(Served {
                replica,
                store,
                acceptor,
            }));
        });
        let trunks = Rc::new(Trunks::new(&handle, own));
        self.processes[node] = Some(Process {
            trunks,
            replicas,
            coordinators: Vec::new(),
            served,
        });
    }

    /// The process of a node ends, or its machine loses power.
    pub fn end(&mut self, node: usize, power: bool) {
        let Some(process) = self.processes[node].take() else {
            return;
        };
        let drive = self.drives[node].clone();
        match power {
            true => self.rig.cut_power(node, drive.name().as_slice()),
            false => self.rig.end(node),
        }
        // Nothing of it runs any more: whoever knows whom lets go.
        process.replicas.remove(Self::identity(node));
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
        if let Drive::Memory(disk) = drive {
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
        config.lane_blocks = 1 << 20;
        config.command_limit = Duration::from_secs(4);
        if let Some(ledger) = &self.ledger {
            config.cipher = Some(ledger.clone());
        }
        let kvdb = self.kvdb.clone();
        let way = Way {
            kvdb,
            of: incarnation,
            tell,
        };
        let driver = Driver::start(&handle, config, record, links, way);
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

    /// Nodes whose replicas the record names.
    pub fn member_nodes(&self) -> Vec<usize> {
        let record = self.kvdb.record();
        record.members().map(|id| usize::from(id[0] - 1)).collect()
    }

    /// The place of a node's replica with a coordinator.
    pub fn place(&self, coordinator: &Coordinator, node: usize) -> Option<Place> {
        coordinator.place(&replica(node))
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
                Some(Some(served)) => format!("{n}: {:?}", served.replica),
                Some(None) => format!("{n}: opening"),
                None => format!("{n}: down"),
            }
        });
        each.collect::<Vec<_>>().join("\n")
    }

    /// The first blocks of a lane as a node's store has them; nothing, if it is not open. What is erased is as good as absent.
    pub fn entries(&self, node: usize, lane: u8, blocks: u64) -> Option<Vec<Entry>> {
        let process = self.processes[node].as_ref()?;
        let store = process.served.borrow().as_ref()?.store.clone();
        let handle = self.rig.handle(node, 0);
        let on = handle.clone();
        let read = self.rig.sim.run(&handle, READ_WITHIN, async move {
            let bytes = blocks as usize * BLOCK_BYTES;
            let buffer = on.buffers().take(bytes).await;
            store.read(lane, 0..blocks, buffer).await.1
        });
        let mut entries = read?.ok()?;
        for entry in &mut entries {
            if entry.kind == Kind::Erased {
                *entry = Entry::ABSENT;
            }
        }
        Some(entries)
    }

    /// A node's store, if it is in memory.
    pub fn disk(&self, node: usize) -> Option<Rc<RefCell<Disk>>> {
        match &self.drives[node] {
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
            self.drives[node].check(&self.rig.sim);
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
