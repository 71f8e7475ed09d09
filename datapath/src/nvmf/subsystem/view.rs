//! The view that reactors serve I/O by, and what is held back until all of them have it: a host that is told of a new size must not meet
//! the old one, and one that holds a reservation must not be overtaken by a write that it forbids.

use super::Subsystem;
use crate::nvmf::controller::events::EventKind;
use crate::nvmf::reservation::Notice;
use crate::nvmf::seam::{Effect, HostId, NamespaceView, Nanos, ViewSpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What happens when a view is in force.
#[derive(Debug)]
pub(super) enum Held {
    /// Hosts are told that these namespaces changed, and that access did.
    Changed { namespaces: Vec<u32>, access: bool },
    /// The change of a reservation completes.
    Reservation { nsid: u32, notices: Vec<Notice> },
}

impl Subsystem {
    /// Makes a view of what is now, and publishes it. `drain`: per namespace, hosts whose commands must be over before.
    pub(super) fn publish(&mut self, mut drain: BTreeMap<u32, Vec<HostId>>) {
        let namespaces = self.config.namespaces.iter().map(|n| NamespaceView {
            nsid: n.nsid,
            volume: n.volume,
            lba_shift: n.lba_shift,
            blocks: n.blocks,
            ana: self.config.ana_state,
            reservation: self.ledgers[&n.nsid].state().view(),
            drain: drain.remove(&n.nsid).unwrap_or_default(),
        });
        self.view = Arc::new(ViewSpec {
            nqn: self.config.nqn.clone(),
            generation: self.view.generation + 1,
            namespaces: namespaces.collect(),
        });
        self.effects.push_back(Effect::Publish(self.view.clone()));
    }

    /// Does `what` when the latest view is in force.
    pub(super) fn hold(&mut self, what: Held) {
        self.held.push_back((self.view.generation, what));
    }

    /// Every reactor acknowledged the view of this generation. One that drains may be acknowledged after the one that follows it; what
    /// is held is done in order all the same.
    pub fn published(&mut self, generation: u64, now: Nanos) {
        if generation > self.in_force {
            self.acknowledged.insert(generation);
        }
        while self.acknowledged.remove(&(self.in_force + 1)) {
            self.in_force += 1;
        }
        self.release(now);
    }

    fn release(&mut self, now: Nanos) {
        while self.held.front().is_some_and(|(g, _)| *g <= self.in_force) {
            let (_, held) = self.held.pop_front().expect("looked at");
            match held {
                Held::Changed { namespaces, access } => self.tell_changed(&namespaces, access),
                Held::Reservation { nsid, notices } => {
                    self.reservation_in_force(nsid, &notices, now)
                }
            }
        }
    }

    fn tell_changed(&mut self, namespaces: &[u32], access: bool) {
        if !namespaces.is_empty() {
            for c in self.controllers.values_mut() {
                namespaces.iter().for_each(|n| c.changed.add(*n));
            }
            self.raise_everywhere(EventKind::NamespaceAttributes);
        }
        if access {
            self.raise_everywhere(EventKind::AnaChange);
        }
    }
}
