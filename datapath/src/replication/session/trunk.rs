//! Links that are shared: there is one for each (reactor, peer), and every volume that has a replica there speaks over it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use super::channel::{Channel, Handler};
use super::down::Down;
use super::identity::Identity;
use super::link::{Link, Owner};
use super::state::Info;
use crate::reactor::Handle;
use crate::replication::wire::hello::PeerId;

/// Somebody who speaks over a trunk. That a session has ended, the handlers of its channels are told.
pub trait Rider {
    /// A session is up: channels can be opened.
    fn up(&self);
}

/// How a peer is, as control heard by gossip: only for choosing whom to ask. The better one is less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Burden {
    /// It may be away.
    pub doubtful: bool,
    /// How busy it is.
    pub load_percent: u8,
}

/// The link to a peer.
pub struct Trunk {
    /// `None` once it was stopped.
    link: RefCell<Option<Link>>,
    riders: RefCell<Vec<Weak<dyn Rider>>>,
    burden: Cell<Burden>,
}

impl Trunk {
    /// Tells a rider of sessions from now on, as long as it lives; at once, if one is up.
    pub fn ride(&self, rider: &Rc<dyn Rider>) {
        {
            let mut riders = self.riders.borrow_mut();
            riders.retain(|r| r.strong_count() > 0);
            riders.push(Rc::downgrade(rider));
        }
        let link = self.link.borrow().clone();
        if link.is_some_and(|l| l.session().is_some()) {
            rider.up();
        }
    }

    /// How the peer is.
    pub fn burden(&self) -> Burden {
        self.burden.get()
    }

    /// Opens a channel of the session that is up, if one is.
    pub fn open_channel(&self, handler: Rc<dyn Handler>) -> Option<Channel> {
        let link = self.link.borrow().clone();
        link?.open_channel(handler)
    }
}

impl Owner for Trunk {
    fn up(&self, _: &Info) {
        let riders: Vec<_> = {
            let riders = self.riders.borrow();
            riders.iter().filter_map(Weak::upgrade).collect()
        };
        riders.iter().for_each(|r| r.up());
    }

    fn down(&self, why: &Down) {
        tracing::info!(%why, "replication session down");
    }
}

/// The trunks of a reactor.
pub struct Trunks {
    handle: Handle,
    identity: Rc<Identity>,
    all: RefCell<BTreeMap<PeerId, Rc<Trunk>>>,
    burdens: RefCell<BTreeMap<PeerId, Burden>>,
}

impl Trunks {
    /// None yet.
    pub fn new(handle: &Handle, identity: Rc<Identity>) -> Self {
        Self {
            handle: handle.clone(),
            identity,
            all: RefCell::default(),
            burdens: RefCell::default(),
        }
    }

    /// The one to a peer; the first who asks has it connect.
    pub fn to(&self, peer: PeerId) -> Rc<Trunk> {
        if let Some(trunk) = self.all.borrow().get(&peer) {
            return trunk.clone();
        }
        let trunk = Rc::new(Trunk {
            link: RefCell::default(),
            riders: RefCell::default(),
            burden: Cell::new(self.burden(&peer)),
        });
        self.all.borrow_mut().insert(peer, trunk.clone());
        let link = Link::start(&self.handle, self.identity.clone(), peer, trunk.clone());
        trunk.link.replace(Some(link));
        trunk
    }

    fn burden(&self, peer: &PeerId) -> Burden {
        self.burdens.borrow().get(peer).copied().unwrap_or_default()
    }

    /// How peers are; of others nothing is known any more.
    pub fn set_burdens(&self, burdens: BTreeMap<PeerId, Burden>) {
        self.burdens.replace(burdens);
        for (peer, trunk) in &*self.all.borrow() {
            trunk.burden.set(self.burden(peer));
        }
    }

    /// Ends all sessions, and makes no more.
    pub fn stop(&self) {
        let all = std::mem::take(&mut *self.all.borrow_mut());
        // The link knows its owner, so it must be let go of.
        let links = all.values().filter_map(|t| t.link.take());
        links.for_each(|link| link.stop());
    }
}
