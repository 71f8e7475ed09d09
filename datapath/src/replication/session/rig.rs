//! Nodes with links on the simulated network, for tests of sessions and of those who use them.
//!
//! ```text
//! let mut rig = Rig::new(seed, 2, 1);           // two nodes of one reactor each
//! rig.accept(1, |_| service);                   // node 1 listens
//! let events = Rc::<Events>::default();
//! let link = rig.link((0, 0), 1, events.clone()); // from reactor 0 of node 0
//! rig.sim.run(&rig.handle(0, 0), limit, async move { … });
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::{
    Acceptor, Credentials, Down, Identity, Info, Link, NoSession, Owner, Peer, PrivateKey, Service,
};
use crate::reactor::sim::{NodeId, Sim};
use crate::reactor::{Handle, Nanos, ReactorId, mesh};
use crate::replication::wire::hello::PeerId;

/// What a link told its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Up(Info),
    Down(Down),
    NotConnected(NoSession),
}

/// An owner that remembers.
#[derive(Default)]
pub(crate) struct Events(pub(crate) RefCell<Vec<Event>>);

impl Events {
    pub(crate) fn all(&self) -> Vec<Event> {
        self.0.borrow().clone()
    }

    pub(crate) fn last(&self) -> Option<Event> {
        self.0.borrow().last().cloned()
    }

    pub(crate) fn ups(&self) -> usize {
        let all = self.0.borrow();
        all.iter().filter(|e| matches!(e, Event::Up(_))).count()
    }
}

impl Owner for Events {
    fn up(&self, info: &Info) {
        self.0.borrow_mut().push(Event::Up(*info));
    }

    fn down(&self, why: &Down) {
        self.0.borrow_mut().push(Event::Down(why.clone()));
    }

    fn not_connected(&self, why: &NoSession) {
        self.0.borrow_mut().push(Event::NotConnected(why.clone()));
    }
}

/// A process of a node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) handles: Vec<Handle>,
    pub(crate) identities: Vec<Rc<Identity>>,
    life: u8,
}

/// A simulated cluster.
pub(crate) struct Rig {
    pub(crate) sim: Sim,
    pub(crate) nodes: Vec<Node>,
    reactors: u16,
}

/// The name of a node.
pub(crate) fn name(node: usize) -> PeerId {
    PeerId::new(&format!("n{node}")).expect("a letter and a number")
}

/// What a node's process is started with.
pub(crate) fn credentials(node: usize, life: u8) -> Credentials {
    let cluster = PeerId::new("rig").expect("letters");
    let seed = PrivateKey::Seed([node as u8 + 1; 32]);
    let incarnation = {
        let mut incarnation = [life; 16];
        incarnation[0] = node as u8;
        incarnation
    };
    let mut credentials =
        Credentials::new((cluster, name(node)), incarnation, seed, [life + 1; 32]);
    credentials.wall = (1_700_000_000_000, Nanos(0));
    credentials
}

/// A node as others know it.
pub(crate) fn peer(node: usize, address: SocketAddr) -> Peer {
    let identity = Identity::new(&credentials(node, 0), ReactorId(0));
    let key = identity.expect("a seed is a key").public_key();
    Peer { key, address }
}

/// Where a node of a rig listens.
pub(crate) fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 9022))
}

impl Rig {
    /// That many nodes with so many reactors each; all know each other.
    pub(crate) fn new(seed: u64, nodes: usize, reactors: u16) -> Self {
        let sim = Sim::new(seed);
        let known: BTreeMap<_, _> = (0..nodes).map(|n| (name(n), peer(n, address(n)))).collect();
        let start = |n| {
            let (id, handles) = sim.start_node(reactors);
            Node::new(n, id, handles, 0, &known)
        };
        let nodes = (0..nodes).map(start).collect();
        Self {
            sim,
            nodes,
            reactors,
        }
    }

    pub(crate) fn handle(&self, node: usize, reactor: usize) -> Handle {
        self.nodes[node].handles[reactor].clone()
    }

    pub(crate) fn identity(&self, node: usize, reactor: usize) -> Rc<Identity> {
        self.nodes[node].identities[reactor].clone()
    }

    /// Starts the acceptors of a node, with a service for each reactor.
    pub(crate) fn accept(
        &self,
        node: usize,
        service: impl Fn(&Handle) -> Rc<dyn Service>,
    ) -> Vec<Acceptor> {
        let ends = mesh(usize::from(self.reactors)).into_iter();
        let Node {
            handles,
            identities,
            ..
        } = &self.nodes[node];
        let each = handles.iter().zip(identities).zip(ends);
        each.map(|((handle, identity), end)| {
            let service = service(handle);
            Acceptor::start(handle, identity.clone(), end, address(node), service)
                .expect("the address is free")
        })
        .collect()
    }

    /// Starts a link from a reactor of a node to another node.
    pub(crate) fn link(&self, from: (usize, usize), to: usize, owner: Rc<dyn Owner>) -> Link {
        let (handle, identity) = (self.handle(from.0, from.1), self.identity(from.0, from.1));
        Link::start(&handle, identity, name(to), owner)
    }

    /// Runs until this is so; panics if it is not within the limit of virtual time.
    pub(crate) fn until(&self, limit: Duration, what: &str, is: impl Fn() -> bool) {
        let deadline = self.sim.now() + limit;
        while !is() {
            assert!(self.sim.now() < deadline, "not within {limit:?}: {what}");
            self.sim.run_for(Duration::from_millis(1));
        }
    }

    /// Ends the process of a node and starts another, without acceptors and links.
    pub(crate) fn restart(&mut self, node: usize) {
        self.end(node);
        self.begin(node);
    }

    /// Ends the process of a node.
    pub(crate) fn end(&mut self, node: usize) {
        self.nodes[node].handles.clear();
        self.sim.kill(self.nodes[node].id);
    }

    /// Takes the power of a node with these disks.
    pub(crate) fn cut_power(&mut self, node: usize, disks: &[&str]) {
        self.nodes[node].handles.clear();
        self.sim.power_cut(self.nodes[node].id, disks);
    }

    /// Starts the process of a node that has ended.
    pub(crate) fn begin(&mut self, node: usize) {
        let (id, life) = (self.nodes[node].id, self.nodes[node].life + 1);
        let handles = self.sim.restart_node(id, self.reactors);
        let known: BTreeMap<_, _> = (0..self.nodes.len())
            .map(|n| (name(n), peer(n, address(n))))
            .collect();
        self.nodes[node] = Node::new(node, id, handles, life, &known);
    }
}

impl Node {
    fn new(
        node: usize,
        id: NodeId,
        handles: Vec<Handle>,
        life: u8,
        known: &BTreeMap<PeerId, Peer>,
    ) -> Self {
        let identity = |handle: &Handle| {
            let identity = Identity::new(&credentials(node, life), handle.id());
            let identity = identity.expect("a seed is a key");
            identity.set_peers(known.clone());
            Rc::new(identity)
        };
        let identities = handles.iter().map(identity).collect();
        Self {
            id,
            handles,
            identities,
            life,
        }
    }
}
