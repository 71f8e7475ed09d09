//! One controller: an association with one host, from its admin queue's Connect to that queue's end.
//!
//! `properties.rs` is its state machine, `keep_alive.rs` its timer, `events.rs` its asynchronous events, `errors.rs` and `changed.rs` the
//! logs that are its own. Commands reach it through `admin/`; its queues are known here by number only. A controller that ends is
//! *closing* until the transport has reported the end of each of its queues; it takes no command and no queue meanwhile, and its
//! identifier is not given out again before.

pub mod changed;
pub mod errors;
pub mod events;
pub mod keep_alive;
pub mod properties;
pub mod status;

use crate::nvmf::admin::features::Features;
use crate::nvmf::reservation::NoticeLog;
use crate::nvmf::seam::{ConnectRequest, HostId, Nanos};
use changed::ChangedNamespaces;
use errors::ErrorLog;
use events::{EventKind, Events};
use keep_alive::KeepAlive;
use properties::Properties;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// What a controller is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Serves namespaces.
    Io,
    /// Serves the discovery log.
    Discovery,
}

impl Role {
    /// OAES, and what Asynchronous Event Configuration is until the host changes it: everything that can happen.
    pub fn events(self) -> u32 {
        match self {
            Role::Io => {
                EventKind::NamespaceAttributes.config_bit() | EventKind::AnaChange.config_bit()
            }
            Role::Discovery => EventKind::DiscoveryLog.config_bit(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Controller {
    /// Its identifier.
    pub cntlid: u16,
    /// What it is for.
    pub role: Role,
    /// Its host.
    pub host_nqn: String,
    /// Its host's identifier.
    pub host_id: HostId,
    /// Where the admin queue comes from.
    pub peer: SocketAddr,
    /// Our end of it.
    pub local: SocketAddr,
    /// The admin queue's connection is there.
    pub admin_queue: bool,
    /// I/O queues that are connected, or whose end has not been reported.
    pub io_queues: BTreeSet<u16>,
    /// It ends when its queues have.
    pub closing: bool,
    /// Its properties.
    pub properties: Properties,
    /// Its timer.
    pub keep_alive: KeepAlive,
    /// Its features.
    pub features: Features,
    /// Its events.
    pub events: Events,
    /// Log page 01h.
    pub errors: ErrorLog,
    /// Log page 04h.
    pub changed: ChangedNamespaces,
    /// Log page 80h.
    pub notices: NoticeLog,
}

impl Controller {
    /// As an admin queue's Connect makes it.
    pub fn new(cntlid: u16, role: Role, req: &ConnectRequest, now: Nanos) -> Self {
        Controller {
            cntlid,
            role,
            host_nqn: req.hostnqn.clone(),
            host_id: req.hostid,
            peer: req.peer,
            local: req.local,
            admin_queue: true,
            io_queues: BTreeSet::new(),
            closing: false,
            properties: Properties::new(role == Role::Discovery),
            keep_alive: KeepAlive::new(req.kato_ms, role == Role::Discovery, now),
            features: Features::default(),
            events: Events::new(role.events()),
            errors: ErrorLog::default(),
            changed: ChangedNamespaces::default(),
            notices: NoticeLog::default(),
        }
    }

    /// Controller reset: what the host set and was not told yet goes back to the beginning. The timer stays as it is.
    pub fn reset(&mut self) {
        self.features = Features::default();
        self.events = Events::new(self.role.events());
        self.changed.clear();
        self.notices.clear();
    }

    /// No queue is left.
    pub fn ended(&self) -> bool {
        !self.admin_queue && self.io_queues.is_empty()
    }
}
