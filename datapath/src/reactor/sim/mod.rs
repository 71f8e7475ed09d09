//! The simulated reactor: many reactors in one thread, on a virtual clock, with disks and a network that fail on purpose.
//!
//! Behind a [`Handle`] everything is as on a real reactor; what happens, and in which order, comes from one seed. The same seed gives
//! the same run, to the last event: [`Sim::trace_hash`] says so. Nothing here reads a clock, a thread-local or a random hash state
//! (RULES S12); maps are ordered.
//!
//! A *node* is a process: some reactors, and the disks that they use. It can be killed (the kernel lives on: what was written stays, sockets
//! are closed) or lose power (unflushed writes are lost in any subset of sectors, sockets vanish without a word).

pub mod disk;
mod media;
pub mod net;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keelblock_hugepages::BufferPool;

use super::executor::{Executor, OPS_MAX};
use super::handle::{Core, Driver, Handle};
use super::stats::ReactorStats;
use super::timer::Timers;
use super::wake::Wakes;
use super::{Nanos, ReactorId};
pub use disk::{DiskFaults, DiskImage, SimDiskState, Undecided};
pub use net::NetFaults;

/// A passing of virtual time that a task spends on its own work in a pass, so that time never stands still.
const PASS_NS: u64 = 200;
/// DMA buffers of a simulated reactor.
const BUFFER_BYTES: usize = 16 << 20;

/// Number of a simulated process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A disk operation completes.
    Disk(u64),
    /// Something arrives at a socket.
    Net(u64),
}

/// One reactor: whose, and its state.
struct Member {
    node: NodeId,
    core: Rc<Core>,
}

/// Everything that simulated reactors share. One thread, so no locks.
pub(crate) struct World {
    now: Cell<u64>,
    random: Cell<u64>,
    trace: Cell<u64>,
    /// A disk stopped the world.
    halted: Cell<bool>,
    next_event: Cell<u64>,
    next_node: Cell<u32>,
    events: RefCell<BinaryHeap<Reverse<(u64, u64, Event)>>>,
    members: RefCell<Vec<Member>>,
    /// Of nodes whose clock is not the world's.
    drifts: RefCell<BTreeMap<NodeId, i32>>,
    disks: RefCell<BTreeMap<PathBuf, disk::Shelf>>,
    disk_ops: RefCell<disk::Ops>,
    net: RefCell<net::Net>,
}

/// A reactor's part of the world.
pub(crate) struct SimDriver {
    pub(crate) world: Rc<World>,
    pub(crate) node: NodeId,
    /// By how much its clock is fast, in millionths.
    drift: Cell<i32>,
}

/// A million and a drift.
fn rate(drift: i32) -> u128 {
    (1_000_000 + i64::from(drift)).unsigned_abs().into()
}

impl SimDriver {
    /// The clock of this node.
    pub(crate) fn now(&self) -> Nanos {
        let world = u128::from(self.world.now.get());
        Nanos((world * rate(self.drift.get()) / 1_000_000) as u64)
    }

    /// The first moment of the world at which the clock of this node is there.
    fn when(&self, clock: Nanos) -> Nanos {
        let rate = rate(self.drift.get());
        Nanos((u128::from(clock.0) * 1_000_000).div_ceil(rate) as u64)
    }
}

impl World {
    pub(crate) fn now(&self) -> Nanos {
        Nanos(self.now.get())
    }

    /// SplitMix64, as the reactors' own.
    pub(crate) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&self, n: u64) -> u64 {
        self.random() % n.max(1)
    }

    /// A time between two, rarely much longer: queues fill, tails are long.
    pub(crate) fn delay(&self, from: Duration, to: Duration) -> u64 {
        let (from, to) = (from.as_nanos() as u64, to.as_nanos() as u64);
        let usual = from + self.below(to.saturating_sub(from) + 1);
        if self.below(64) == 0 {
            usual * 20
        } else {
            usual
        }
    }

    /// Lets something happen later.
    pub(crate) fn after(&self, ns: u64, event: Event) {
        let sequence = self.next_event.get();
        self.next_event.set(sequence + 1);
        self.events
            .borrow_mut()
            .push(Reverse((self.now.get() + ns, sequence, event)));
    }

    /// A number for something new.
    pub(crate) fn fresh(&self) -> u64 {
        let id = self.next_event.get();
        self.next_event.set(id + 1);
        id
    }

    /// Folds what happened into the trace.
    pub(crate) fn trace(&self, what: u64, a: u64, b: u64) {
        let mut hash = self.trace.get();
        for word in [self.now.get(), what, a, b] {
            hash = (hash.rotate_left(23) ^ word).wrapping_mul(0x2127_599b_f432_5c37);
        }
        self.trace.set(hash);
    }

    fn happen(&self, event: Event) {
        match event {
            Event::Disk(id) => self.disk_done(id),
            Event::Net(id) => self.net_arrives(id),
        }
    }
}

/// A simulation. Dropping it ends all its reactors.
pub struct Sim {
    world: Rc<World>,
}

impl Sim {
    /// A world without anything in it.
    pub fn new(seed: u64) -> Self {
        let world = World {
            now: Cell::new(1_000_000_000),
            random: Cell::new(seed),
            trace: Cell::new(0),
            halted: Cell::new(false),
            next_event: Cell::new(0),
            next_node: Cell::new(0),
            events: RefCell::default(),
            members: RefCell::default(),
            drifts: RefCell::default(),
            disks: RefCell::default(),
            disk_ops: RefCell::default(),
            net: RefCell::default(),
        };
        Sim {
            world: Rc::new(world),
        }
    }

    /// Starts a process with `reactors` reactors.
    pub fn start_node(&self, reactors: u16) -> (NodeId, Vec<Handle>) {
        let node = NodeId(self.world.next_node.get());
        self.world.next_node.set(node.0 + 1);
        (node, self.restart_node(node, reactors))
    }

    /// Lets the clock of a node run fast by so many millionths from now on, or slow. A node that runs sees its clock jump.
    pub fn drift(&self, node: NodeId, millionths: i32) {
        self.world.drifts.borrow_mut().insert(node, millionths);
        for member in self
            .world
            .members
            .borrow()
            .iter()
            .filter(|m| m.node == node)
        {
            member.core.sim().drift.set(millionths);
            member.core.now.set(member.core.sim().now());
        }
    }

    /// Starts a process again under its old number, after [`Sim::kill`] or [`Sim::power_cut`].
    pub fn restart_node(&self, node: NodeId, reactors: u16) -> Vec<Handle> {
        assert!(
            self.world.members.borrow().iter().all(|m| m.node != node),
            "the node runs already"
        );
        (0..reactors)
            .map(|id| {
                let core = Core::simulated(&self.world, node, ReactorId(id), reactors);
                self.world.members.borrow_mut().push(Member {
                    node,
                    core: core.clone(),
                });
                Handle { core }
            })
            .collect()
    }

    /// Ends a process at once. Its writes reached the kernel or not as a whole operation; its peers see their connections closed.
    pub fn kill(&self, node: NodeId) {
        self.end(node);
        self.world.disk_ops_end(node);
        self.world.net_killed(node);
        self.world.trace(1, u64::from(node.0), 0);
    }

    /// Ends a process by taking its machine's power: on `disks`, sectors written since the last flush are each lost or kept. Its peers
    /// learn of it when they send and the node is up again.
    pub fn power_cut(&self, node: NodeId, disks: &[&str]) {
        // First, so that the end of its tasks does not close its connections.
        self.world.net_vanished(node);
        self.end(node);
        for name in disks {
            self.world.disk_power_cut(name.as_ref());
        }
        self.world.trace(2, u64::from(node.0), disks.len() as u64);
    }

    /// The first half of [`Sim::power_cut`]: what a disk kept is not decided yet.
    pub fn power_off(&self, node: NodeId, disk: &str) -> Undecided {
        self.world.net_vanished(node);
        self.end(node);
        let undecided = self.world.disk_power_off(disk.as_ref());
        undecided.unwrap_or_else(|| panic!("there is no disk {disk}"))
    }

    /// The other half: decides by `seed` what the disk kept. Can be done again with the same, which then begins from there once more; disks for which the
    /// same number is returned hold the same.
    pub fn power_left(&self, disk: &str, undecided: &Undecided, seed: u64) -> u64 {
        let left = self.world.disk_power_left(disk.as_ref(), undecided, seed);
        self.world.trace(5, left, 0);
        left
    }

    fn end(&self, node: NodeId) {
        self.world.halted.set(false);
        for shelf in self.world.disks.borrow().values() {
            shelf.state.borrow_mut().go_on();
        }
        let (ended, rest): (Vec<_>, Vec<_>) = self
            .world
            .members
            .take()
            .into_iter()
            .partition(|m| m.node == node);
        self.world.members.replace(rest);
        for member in ended {
            member.core.executor.clear(&member.core.stats);
        }
    }

    /// Makes an empty disk.
    pub fn add_disk(&self, name: &str, bytes: u64) {
        self.world
            .disks
            .borrow_mut()
            .insert(name.into(), disk::Shelf::new(bytes));
    }

    /// Reaches into a disk, to make it fail or to look at it.
    pub fn disk<R>(&self, name: &str, f: impl FnOnce(&mut SimDiskState) -> R) -> R {
        let shelf = self.world.disks.borrow().get(Path::new(name)).cloned();
        let shelf = shelf.unwrap_or_else(|| panic!("there is no disk {name}"));
        f(&mut shelf.state.borrow_mut())
    }

    /// [`SimDiskState::halt_after`] of a disk, for those who are in the simulation themselves.
    pub fn halter(&self, name: &str) -> Rc<dyn Fn(u64)> {
        let shelf = self.world.disks.borrow().get(Path::new(name)).cloned();
        let shelf = shelf.unwrap_or_else(|| panic!("there is no disk {name}"));
        Rc::new(move |events| shelf.state.borrow_mut().halt_after(events))
    }

    /// Reaches into the network, to make it fail.
    pub fn network<R>(&self, f: impl FnOnce(&mut NetFaults) -> R) -> R {
        let result = f(&mut self.world.net.borrow_mut().faults);
        self.world.net_released();
        result
    }

    /// Breaks every connection between two nodes, as a reset does: both sides are told.
    pub fn reset_connections(&self, a: NodeId, b: NodeId) {
        self.world.net_reset(a, b);
    }

    /// Virtual time.
    pub fn now(&self) -> Nanos {
        self.world.now()
    }

    /// A number that two runs share only if the same happened in both, at the same times.
    pub fn trace_hash(&self) -> u64 {
        self.world.trace.get()
    }

    /// The world, to see whether something of a process keeps it when the simulation is dropped.
    #[cfg(test)]
    pub(crate) fn world(&self) -> std::rc::Weak<World> {
        Rc::downgrade(&self.world)
    }

    /// A random number of the simulation's own.
    pub fn random(&self) -> u64 {
        self.world.random()
    }

    /// Runs until `future`, as a task of `on`, is done; `None` if it is not within `limit` of virtual time, or nothing can happen any more.
    pub fn run<T: 'static>(
        &self,
        on: &Handle,
        limit: Duration,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let put = result.clone();
        on.spawn("simulation", async move {
            let value = future.await;
            *put.borrow_mut() = Some(value);
        });
        let deadline = self.now() + limit;
        while result.borrow().is_none() && self.now() < deadline && self.step(deadline) {}
        result.take()
    }

    /// Lets virtual time pass.
    pub fn run_for(&self, d: Duration) {
        let deadline = self.now() + d;
        while self.now() < deadline && self.step(deadline) {}
        self.world.now.set(self.world.now.get().max(deadline.0));
    }

    /// A reactor with work.
    fn choose(&self) -> Option<Rc<Core>> {
        let world = &self.world;
        let members = world.members.borrow();
        let ready = || {
            let cores = members.iter().map(|m| &m.core);
            cores.filter(|c| c.has_work())
        };
        let count = ready().count();
        let chosen = if count == 0 {
            0
        } else {
            world.below(count as u64)
        };
        ready().nth(chosen as usize).cloned()
    }

    /// One pass of one reactor, chosen at random among those with work, or one event; false if nothing is left before `deadline`.
    fn step(&self, deadline: Nanos) -> bool {
        let world = &self.world;
        if world.halted.get() {
            return false;
        }
        if let Some(chosen) = self.choose() {
            chosen.simulated_pass(world);
            world
                .now
                .set(world.now.get() + PASS_NS + world.below(PASS_NS));
            return true;
        }
        let event = world.events.borrow().peek().map(|Reverse((at, ..))| *at);
        let timer = world
            .members
            .borrow()
            .iter()
            .filter_map(|m| {
                let next = m.core.timers.borrow().next()?;
                Some(m.core.sim().when(next).0)
            })
            .min();
        let Some(next) = event
            .into_iter()
            .chain(timer)
            .min()
            .filter(|next| *next <= deadline.0)
        else {
            return false;
        };
        world.now.set(world.now.get().max(next));
        if event == Some(next) {
            let popped = world.events.borrow_mut().pop();
            if let Some(Reverse((_, _, event))) = popped {
                world.happen(event);
            }
        }
        true
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks hold their reactors, which hold the world.
        loop {
            let first = self.world.members.borrow().first().map(|m| m.node);
            let Some(node) = first else { break };
            self.end(node);
        }
        self.world.disk_ops.take();
    }
}

impl Core {
    fn simulated(world: &Rc<World>, node: NodeId, id: ReactorId, reactors: u16) -> Rc<Core> {
        let buffers = BufferPool::new(BUFFER_BYTES, || {})
            .expect("a simulation has address space for its buffers");
        let drift = world.drifts.borrow().get(&node).copied();
        let driver = SimDriver {
            world: world.clone(),
            node,
            drift: Cell::new(drift.unwrap_or(0)),
        };
        Rc::new(Core {
            id,
            reactors,
            executor: Executor::new(Wakes::new(None, OPS_MAX), None),
            timers: RefCell::new(Timers::with_capacity(64)),
            now: Cell::new(driver.now()),
            random: Cell::new(world.random()),
            buffers,
            stats: Arc::new(ReactorStats::default()),
            driver: Driver::Sim(driver),
            progress: Cell::new(false),
        })
    }

    fn has_work(&self) -> bool {
        let now = self.sim().now();
        let due = self.timers.borrow().next().is_some_and(|next| next <= now);
        (due || self.executor.wakes().ready_len() > 0) && !self.executor.wakes().stopping()
    }

    fn simulated_pass(&self, world: &World) {
        let now = self.sim().now();
        self.now.set(now);
        let fired = self.timers.borrow_mut().fire(now);
        self.executor.wakes().reap();
        let ran = self.executor.run(&self.stats);
        self.stats.passes.add(1);
        world.trace(3, u64::from(self.id.0), (fired as u64) << 32 | ran as u64);
    }
}
