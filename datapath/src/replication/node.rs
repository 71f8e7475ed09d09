//! Replication on one reactor of a process: its sessions in and out, and the replicas that it serves (`docs/replication.md` §4).
//!
//! It begins when the process is told which cluster and node it is; before, nobody is listened to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use super::replica::door::{Out, Replicas};
use super::replica::service::Replica;
use super::session::{
    Acceptor, BadKey, Burden, Credentials, Identity, Mail, PUBLIC_KEY_BYTES, Peer, Trunk, Trunks,
};
use super::wire::hello::PeerId;
use crate::reactor::{Endpoint, Handle, NetError, ReactorId};
use crate::store::engine;

/// A replica of this node that is served.
pub type Served = Replica<engine::Replica, Out>;

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Its key is none.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The address cannot be listened on.
    #[error("replication cannot listen on {at}: {why}")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// What the system says.
        why: NetError,
    },
    /// It began, or could not in the last moment.
    #[error(
        "replication could not begin, and does so once in the life of a process: restart this one"
    )]
    Spent,
}

struct Running {
    identity: Rc<Identity>,
    acceptor: Acceptor,
    trunks: Trunks,
}

struct Inner {
    handle: Handle,
    /// Until it begins.
    mail: RefCell<Option<Endpoint<Mail>>>,
    replicas: Rc<Replicas<engine::Replica>>,
    running: RefCell<Option<Running>>,
}

/// See the module's text. Cheap to clone.
#[derive(Clone)]
pub struct Node(Rc<Inner>);

impl Node {
    /// On this reactor. `mail` joins the reactors of the process.
    pub fn new(handle: &Handle, mail: Endpoint<Mail>) -> Self {
        Self(Rc::new(Inner {
            handle: handle.clone(),
            mail: RefCell::new(Some(mail)),
            replicas: Rc::default(),
            running: RefCell::default(),
        }))
    }

    /// Listens (the main reactor does, at `at`) and may connect from now on; what peers open is for the replicas of this reactor. Where it listens.
    ///
    /// # Errors
    /// [`BeginError`]. It can be tried again after all but [`BeginError::Spent`].
    pub fn begin(
        &self,
        credentials: &Credentials,
        at: SocketAddr,
    ) -> Result<SocketAddr, BeginError> {
        let Inner { handle, .. } = &*self.0;
        let identity = Rc::new(Identity::new(credentials, handle.id())?);
        if handle.id() == ReactorId(0) {
            // Tried first: the acceptor takes the mesh's end, and does not give it back.
            let tried = handle.listen(at);
            drop(tried.map_err(|why| BeginError::Listen { at, why })?);
        }
        let mail = self.0.mail.borrow_mut().take();
        let mail = mail.ok_or(BeginError::Spent)?;
        let service = self.0.replicas.clone();
        let acceptor = Acceptor::start(handle, identity.clone(), mail, at, service);
        let acceptor = acceptor.map_err(|why| BeginError::Listen { at, why })?;
        let address = acceptor.address();
        let trunks = Trunks::new(handle, identity.clone());
        self.0.running.replace(Some(Running {
            identity,
            acceptor,
            trunks,
        }));
        Ok(address)
    }

    /// The cluster's nodes, this one included. Does nothing before it has begun.
    pub fn set_peers(&self, peers: BTreeMap<PeerId, Peer>) {
        if let Some(running) = &*self.0.running.borrow() {
            running.identity.set_peers(peers);
        }
    }

    /// How other nodes are, as gossip has it. Does nothing before it has begun.
    pub fn set_burdens(&self, burdens: BTreeMap<PeerId, Burden>) {
        if let Some(running) = &*self.0.running.borrow() {
            running.trunks.set_burdens(burdens);
        }
    }

    /// What others check this node's signatures with.
    pub fn public_key(&self) -> Option<[u8; PUBLIC_KEY_BYTES]> {
        let running = self.0.running.borrow();
        running.as_ref().map(|r| r.identity.public_key())
    }

    /// This node's id.
    pub fn id(&self) -> Option<PeerId> {
        self.0.running.borrow().as_ref().map(|r| r.identity.node)
    }

    /// The sessions to a node. `None`: it has not begun.
    pub fn trunk(&self, to: PeerId) -> Option<Rc<Trunk>> {
        self.0.running.borrow().as_ref().map(|r| r.trunks.to(to))
    }

    /// The replicas that this reactor serves.
    pub fn replicas(&self) -> &Replicas<engine::Replica> {
        &self.0.replicas
    }

    /// Ends all sessions.
    pub fn stop(&self) {
        if let Some(running) = self.0.running.take() {
            running.acceptor.stop();
            running.trunks.stop();
        }
    }
}
