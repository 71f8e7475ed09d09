//! The replicas of a node, behind its sessions: which one a channel is for, and its frames both ways.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::channel::{Channel as ReplicaChannel, layout};
use super::service::{Identity, Replica};
use super::{Breach, NotSent, Outgoing};
use crate::replication::seam::ReplicaStore;
use crate::replication::session::{
    self, Admitted, Amount, Broken, Channel, Ended, Frame, Handler, Service,
};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::open::{Open, Target};
use crate::replication::wire::promise::Promise;
use crate::replication::wire::refused::{Reason, Refused};

/// The way out of a replica's channel: a session's.
#[derive(Debug)]
pub struct Out(Channel);

impl Outgoing for Out {
    type Admitted = Admitted;

    fn send(
        &self,
        kind: Kind,
        epoch: u32,
        body: &[u8],
        data: &[(Rc<Buffer>, Range<usize>)],
    ) -> Result<(), NotSent> {
        if kind == Kind::Close {
            self.0.close(epoch);
            return Ok(());
        }
        let sent = self.0.send(
            kind,
            epoch,
            |out| out.extend_from_slice(body),
            data.iter().cloned(),
        );
        sent.map_err(|e| match e {
            session::NotSent::Full => NotSent::Full,
            session::NotSent::Ended => NotSent::Ended,
        })
    }

    async fn room(&self) {
        self.0.room().await;
    }

    fn came(&self, records: u64, bytes: u64) -> bool {
        self.0.grants().come(Amount::new(records, bytes)).is_ok()
    }

    fn done(&self, records: u64, bytes: u64) {
        self.0.grants().done(Amount::new(records, bytes));
    }

    fn granted(&self) -> (u64, u64) {
        let granted = self.0.grants().granted();
        (granted.records, granted.bytes)
    }
}

impl From<Breach> for Broken {
    fn from(breach: Breach) -> Self {
        match breach {
            Breach::Wire(error) => Self::Wire(error),
            Breach::Sequence(what) => Self::Sequence(what),
        }
    }
}

/// A replica's end of a channel.
struct Taker<S: ReplicaStore>(ReplicaChannel<S, Out>);

impl<S: ReplicaStore> Handler for Taker<S> {
    fn layout(
        &self,
        kind: Kind,
        body: &[u8],
        data: usize,
        pieces: &mut Vec<usize>,
    ) -> Result<(), Broken> {
        Ok(layout(kind, body, data, pieces)?)
    }

    fn frame(&self, frame: Frame<'_>, admitted: Admitted) -> Result<(), Broken> {
        let Frame {
            kind,
            epoch,
            body,
            data,
            bytes,
        } = frame;
        let data = (std::mem::take(data), bytes);
        Ok(self.0.frame(kind, epoch, body, data, admitted)?)
    }

    fn ended(&self, _: &Ended) {
        self.0.ended();
    }
}

/// Takes channels of nodes that forward commands to the coordinator here (`docs/replication.md` §14).
pub trait Coordinators {
    /// As [`Service::open`], for an Open with flag 2.
    ///
    /// # Errors
    /// The session ends.
    fn open(
        &self,
        channel: &Channel,
        epoch: u32,
        open: &Open,
    ) -> Result<Option<Rc<dyn Handler>>, Broken>;
}

/// The replicas that a reactor serves, and who takes what is forwarded to its coordinators.
pub struct Replicas<S: ReplicaStore> {
    all: RefCell<BTreeMap<Key, Replica<S, Out>>>,
    coordinators: RefCell<Option<Rc<dyn Coordinators>>>,
}

type Key = ([u8; 16], [u8; 16]);

impl<S: ReplicaStore> Default for Replicas<S> {
    fn default() -> Self {
        Self {
            all: RefCell::default(),
            coordinators: RefCell::default(),
        }
    }
}

impl<S: ReplicaStore> std::fmt::Debug for Replicas<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.borrow().values()).finish()
    }
}

impl<S: ReplicaStore> Replicas<S> {
    /// Who takes what is forwarded here; `None`: nobody does.
    pub fn forward_to(&self, coordinators: Option<Rc<dyn Coordinators>>) {
        self.coordinators.replace(coordinators);
    }

    /// Serves one more.
    pub fn add(&self, identity: Identity, replica: Replica<S, Out>) {
        let key = (identity.volume, identity.replica);
        self.all.borrow_mut().insert(key, replica);
    }

    /// Serves one no more; it is to be stopped.
    pub fn remove(&self, identity: Identity) -> Option<Replica<S, Out>> {
        let key = (identity.volume, identity.replica);
        self.all.borrow_mut().remove(&key)
    }
}

impl<S: ReplicaStore> Service for Replicas<S> {
    fn open(
        &self,
        channel: &Channel,
        kind: Kind,
        epoch: u32,
        body: &[u8],
    ) -> Result<Option<Rc<dyn Handler>>, Broken> {
        let refuse = |reason| {
            let refused = Refused { reason, epoch: 0 };
            // Without room for it the peer is told nothing, and asks again.
            let _ = channel.send(Kind::Refused, epoch, |out| refused.put(out), []);
            Ok(None)
        };
        let key = match kind {
            Kind::Promise => {
                let promise = Promise::decode(body)?;
                (promise.volume, promise.replica)
            }
            _ => {
                let open = Open::decode(body)?;
                match open.to {
                    Target::Replica { id, .. } => (open.volume, id),
                    Target::Coordinator => {
                        let coordinators = self.coordinators.borrow().clone();
                        return match coordinators {
                            Some(coordinators) => coordinators.open(channel, epoch, &open),
                            None => refuse(Reason::NotServed),
                        };
                    }
                }
            }
        };
        let found = self.all.borrow().get(&key).cloned();
        let Some(replica) = found else {
            return refuse(Reason::Unknown);
        };
        let opened = replica.open(Out(channel.clone()), kind, epoch, body)?;
        Ok(opened.map(|channel| Rc::new(Taker(channel)) as Rc<dyn Handler>))
    }
}
