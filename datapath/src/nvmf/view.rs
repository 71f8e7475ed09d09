//! A reactor's own picture of a subsystem: what it serves I/O from.
//!
//! Home publishes a [`ViewSpec`]; each reactor puts its own volume handles and counters to it. Connections hold the [`ViewCell`] and look
//! at its present view once per batch.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use keelblock_api::stats::VolumeStats;

use super::seam::{AnaState, IoCounters, NamespaceView, ReservationView, ViewSpec};
use crate::volume::Volume;

/// Where a reactor finds its handles of volumes.
pub trait Volumes {
    /// This reactor's handle of a volume. `None`: there is no such volume here.
    fn open(&self, id: &[u8; 16]) -> Option<Volume>;

    /// Makes what `write_now` of volumes wrote in this pass fit to be acknowledged; called right before answers are sent. False: it is not.
    fn commit(&self) -> bool;

    /// What all reactors counted for a volume since start.
    fn counters(&self, id: &[u8; 16]) -> IoCounters;
}

/// A namespace with handles.
pub struct Namespace {
    /// Namespace id.
    pub nsid: u32,
    /// log2 of the LBA size.
    pub lba_shift: u8,
    /// Size in LBAs.
    pub blocks: u64,
    /// Access through this node.
    pub ana: AnaState,
    /// Its commands go to a coordinator on another node.
    pub forwards: bool,
    /// What reservations allow.
    pub reservation: ReservationView,
    /// Our handle of the volume.
    pub volume: Volume,
    /// Where it stands in its view.
    pub index: usize,
    /// Our counters of it.
    pub stats: Option<VolumeStats>,
}

/// A published view with handles.
pub struct View {
    /// Of the publication.
    pub generation: u64,
    /// Ascending by NSID.
    pub namespaces: Vec<Namespace>,
    /// Commands of some go to another node.
    pub forwards: bool,
}

impl View {
    /// A view that serves nothing.
    pub fn empty() -> Self {
        Self {
            generation: 0,
            namespaces: Vec::new(),
            forwards: false,
        }
    }

    /// Puts handles to a publication. A namespace whose volume is not here is left out, and logged: its commands get Invalid Namespace.
    pub fn new(spec: &ViewSpec, volumes: &dyn Volumes) -> Self {
        let open = |ns: &NamespaceView| {
            let Some(volume) = volumes.open(&ns.volume) else {
                tracing::error!(nqn = %spec.nqn, nsid = ns.nsid, "the volume of a namespace is not open on this reactor");
                return None;
            };
            Some(Namespace {
                nsid: ns.nsid,
                lba_shift: ns.lba_shift,
                blocks: ns.blocks,
                ana: ns.ana,
                reservation: ns.reservation.clone(),
                forwards: ns.ana == AnaState::NonOptimized && volume.replicated(),
                stats: volume.stats().cloned(),
                volume,
                index: 0,
            })
        };
        let mut namespaces: Vec<Namespace> = spec.namespaces.iter().filter_map(open).collect();
        namespaces
            .iter_mut()
            .enumerate()
            .for_each(|(i, ns)| ns.index = i);
        Self {
            generation: spec.generation,
            forwards: namespaces.iter().any(|ns| ns.forwards),
            namespaces,
        }
    }

    /// A namespace by id.
    #[inline]
    pub fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        match &self.namespaces[..] {
            [only] => (only.nsid == nsid).then_some(only),
            all => all
                .binary_search_by_key(&nsid, |ns| ns.nsid)
                .ok()
                .map(|at| &all[at]),
        }
    }
}

/// A namespace that outlives a change of the view: what operations hold.
pub struct NamespaceRef {
    view: Rc<View>,
    index: usize,
}

impl NamespaceRef {
    /// Of a namespace of a view.
    pub fn new(view: &Rc<View>, ns: &Namespace) -> Self {
        Self {
            view: view.clone(),
            index: ns.index,
        }
    }
}

impl std::ops::Deref for NamespaceRef {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.view.namespaces[self.index]
    }
}

/// Where the present view of a subsystem is found on this reactor.
pub struct ViewCell {
    now: RefCell<Rc<View>>,
    /// I/O queues of the subsystem on this reactor.
    pub queues: Cell<u64>,
}

impl ViewCell {
    /// A cell with an empty view.
    pub fn new() -> Self {
        Self {
            now: RefCell::new(Rc::new(View::empty())),
            queues: Cell::new(0),
        }
    }

    /// The present view.
    #[inline]
    pub fn get(&self) -> Rc<View> {
        self.now.borrow().clone()
    }

    /// Takes a newer view.
    pub fn set(&self, view: View) {
        let view = Rc::new(view);
        let before = self.now.replace(view.clone());
        self.count(&before, false);
        self.count(&view, true);
    }

    /// An I/O queue began or ended.
    pub fn queue(&self, begun: bool) {
        self.count(&self.get(), false);
        self.queues.set(if begun {
            self.queues.get() + 1
        } else {
            self.queues.get() - 1
        });
        self.count(&self.get(), true);
    }

    /// Adds all queues to the connection gauges of the volumes, or takes them away.
    fn count(&self, view: &View, add: bool) {
        for stats in view.namespaces.iter().filter_map(|ns| ns.stats.as_ref()) {
            for _ in 0..self.queues.get() {
                if add {
                    stats.connected()
                } else {
                    stats.disconnected()
                }
            }
        }
    }
}
