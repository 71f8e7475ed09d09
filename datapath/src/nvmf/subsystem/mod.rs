//! A subsystem as its home reactor owns it: what is exported, the controllers, the reservations of its namespaces.
//!
//! It is a state machine without I/O. The transport calls it and carries out the effects that each call leaves (`seam.rs` has the
//! contract). `connect.rs` makes controllers and ends them, `export.rs` takes changes of the export, `view.rs` publishes what
//! reactors need and holds back what must not be seen before they have it, `reservations.rs` runs reservation commands through the
//! ledgers, `timers.rs` expires. Admin commands are in `admin/`.

mod connect;
mod export;
mod reservations;
mod timers;
mod view;

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod reservation_tests;
#[cfg(test)]
pub(in crate::nvmf) mod rig;
#[cfg(test)]
mod tests;

use crate::nvmf::controller::events::EventKind;
use crate::nvmf::controller::{Controller, Role};
use crate::nvmf::discovery::DiscoveryLog;
use crate::nvmf::reservation::Ledger;
use crate::nvmf::seam::{
    CommandRef, ControllerInfo, DISCOVERY_NQN, DiscoveryEntry, Effect, ErrorReport, ExportConfig,
    ExportError, IoCounters, NamespaceConfig, Nanos, NodeIdentity, Reply, TargetEvent, ViewSpec,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use view::Held;

/// Identify NN and MNAN: the largest namespace identifier.
pub const MAX_NSID: u32 = 1024;
/// The largest controller identifier; the ones above are reserved.
pub const MAX_CNTLID: u16 = 0xffef;

/// See the module.
#[derive(Debug)]
pub struct Subsystem {
    role: Role,
    config: ExportConfig,
    pub(in crate::nvmf) node: NodeIdentity,
    pub(in crate::nvmf) started: Nanos,
    pub(in crate::nvmf) controllers: BTreeMap<u16, Controller>,
    /// Where the search for a free controller identifier goes on.
    next_cntlid: u16,
    /// One per namespace.
    pub(in crate::nvmf) ledgers: BTreeMap<u32, Ledger>,
    /// Changes of the ANA log page.
    pub(in crate::nvmf) ana_changes: u64,
    pub(in crate::nvmf) discovery_log: DiscoveryLog,
    pub(in crate::nvmf) counters: IoCounters,
    view: Arc<ViewSpec>,
    /// The newest generation that every reactor serves by, and the ones after it that were acknowledged out of order.
    in_force: u64,
    acknowledged: BTreeSet<u64>,
    /// What waits for reactors to have a view, in order of generation.
    held: VecDeque<(u64, Held)>,
    pub(in crate::nvmf) effects: VecDeque<Effect>,
}

impl Subsystem {
    /// A subsystem with namespaces. Its first view is published at once.
    pub fn new(config: ExportConfig, node: &NodeIdentity, now: Nanos) -> Result<Self, ExportError> {
        export::check(&config)?;
        let mut s = Self::with_role(Role::Io, config, node, now);
        for n in &s.config.namespaces {
            s.ledgers.insert(n.nsid, export::restore(n)?);
        }
        s.publish(BTreeMap::new());
        Ok(s)
    }

    /// The discovery subsystem.
    pub fn discovery(node: &NodeIdentity, now: Nanos) -> Self {
        let config = ExportConfig {
            nqn: DISCOVERY_NQN.into(),
            serial: "discovery".into(),
            namespaces: Vec::new(),
            allowed_hosts: None,
            ana_state: Default::default(),
            cntlid_min: 1,
            cntlid_max: MAX_CNTLID,
        };
        Self::with_role(Role::Discovery, config, node, now)
    }

    fn with_role(role: Role, config: ExportConfig, node: &NodeIdentity, now: Nanos) -> Self {
        let view = Arc::new(ViewSpec {
            nqn: config.nqn.clone(),
            generation: 0,
            namespaces: Vec::new(),
        });
        Subsystem {
            role,
            next_cntlid: config.cntlid_min,
            config,
            node: node.clone(),
            started: now,
            controllers: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            ana_changes: 1,
            discovery_log: DiscoveryLog::default(),
            counters: IoCounters::default(),
            view,
            in_force: 0,
            acknowledged: BTreeSet::new(),
            held: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// What is exported.
    pub fn config(&self) -> &ExportConfig {
        &self.config
    }

    /// The controllers, ascending; those that are ending are left out.
    pub fn controllers(&self) -> Vec<ControllerInfo> {
        let info = |c: &Controller| ControllerInfo {
            cntlid: c.cntlid,
            host_nqn: c.host_nqn.clone(),
            host_id: c.host_id,
            peer: c.peer,
            io_queues: c.io_queues.len() as u32,
        };
        self.controllers
            .values()
            .filter(|c| !c.closing)
            .map(info)
            .collect()
    }

    /// The view in force, or on its way to be.
    pub fn view(&self) -> Arc<ViewSpec> {
        self.view.clone()
    }

    /// Replaces the discovery log; hosts that listen are told of a change.
    pub fn set_discovery_log(&mut self, entries: Vec<DiscoveryEntry>, _now: Nanos) {
        if self.discovery_log.set(entries) {
            self.raise_everywhere(EventKind::DiscoveryLog);
        }
    }

    /// What the subsystem's volumes did since start.
    pub fn set_counters(&mut self, counters: IoCounters) {
        self.counters = counters;
    }

    /// Commands arrived on an I/O queue.
    pub fn activity(&mut self, cntlid: u16, now: Nanos) {
        if let Some(c) = self.controllers.get_mut(&cntlid) {
            c.keep_alive.touch(now);
        }
    }

    /// An I/O command failed on one of the controller's queues.
    pub fn log_error(&mut self, error: ErrorReport, _now: Nanos) {
        if let Some(c) = self.controllers.get_mut(&error.cmd.cntlid) {
            c.errors
                .push(error.cmd, error.status, error.nsid, error.lba);
        }
    }

    /// The flush that a shutdown asked for is done.
    pub fn flushed(&mut self, cntlid: u16, _now: Nanos) {
        if let Some(c) = self.controllers.get_mut(&cntlid) {
            c.properties.flushed();
        }
    }

    /// The next thing to do; `None` when all is done.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(in crate::nvmf) fn namespace(&self, nsid: u32) -> Option<&NamespaceConfig> {
        self.config.namespaces.iter().find(|n| n.nsid == nsid)
    }

    /// A controller that the caller has just found.
    pub(in crate::nvmf) fn controller(&mut self, cntlid: u16) -> &mut Controller {
        self.controllers.get_mut(&cntlid).expect("looked up before")
    }

    pub(in crate::nvmf) fn complete(&mut self, cmd: CommandRef, reply: Reply) {
        self.effects.push_back(Effect::Complete(cmd, reply));
    }

    /// Tells the host of a controller.
    pub(in crate::nvmf) fn raise(&mut self, cntlid: u16, kind: EventKind) {
        let delivery = self
            .controllers
            .get_mut(&cntlid)
            .and_then(|c| c.events.raise(kind));
        if let Some((cmd, dw0)) = delivery {
            self.complete(
                cmd,
                Reply {
                    dw0,
                    ..Reply::default()
                },
            );
        }
    }

    fn raise_everywhere(&mut self, kind: EventKind) {
        let ids: Vec<u16> = self.controllers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.raise(id, kind));
    }

    fn event(&mut self, event: TargetEvent) {
        self.effects.push_back(Effect::Event(event));
    }
}
