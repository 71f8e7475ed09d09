//! Volumes that another node coordinates, and what other nodes forward to coordinators here.

use std::any::Any;
use std::rc::Rc;

use super::super::{CommandError, Commander};
use super::Replication;
use crate::nvmf::Target;
use crate::nvmf::status;
use crate::replication::seam::Id;
use crate::replication::wire::hello::PeerId;
use crate::store::VolumeId;
use crate::volume::forward::here::{Access, Here};
use crate::volume::forward::send::{Coordinator as To, Forwarder};
use crate::volume::forward::{Command, Operation, Status};
use crate::volume::{Coordinator, VolumeError};

/// A coordinator on another node.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// The node.
    pub node: PeerId,
    /// Its epoch.
    pub epoch: u32,
    /// Its data-path process.
    pub incarnation: Id,
}

/// The target, as commands from other nodes are checked against it.
struct ByTarget(Target);

impl Access for ByTarget {
    fn refusal(&self, volume: &[u8; 16], command: &Command) -> Option<Status> {
        let write = command.fused || command.operation.modifies();
        match self.0.allows(volume, &command.host, write) {
            // A flush harms nobody, and a controller that shuts down asks for one.
            Some((_, allowed)) if allowed || command.operation == Operation::Flush => None,
            Some(_) => Some(status::RESERVATION_CONFLICT.0),
            // Not exported yet: who may is not known.
            None => Some(status::PATH_ERROR.0),
        }
    }

    fn begin(&self, volume: &[u8; 16], command: &Command) -> Box<dyn Any> {
        let of = self.0.allows(volume, &command.host, false);
        Box::new(of.map(|(nqn, _)| self.0.foreign().begin(&nqn, command.host)))
    }

    fn status(&self, error: VolumeError) -> Status {
        status::of_volume(error).0
    }
}

impl Commander {
    /// Commands of hosts on a volume go there from now on, or nowhere; those that have begun go on as they began.
    pub(super) fn lead(
        &self,
        volume: VolumeId,
        forward: Option<Forward>,
    ) -> Result<(), CommandError> {
        let replication = self.replication()?;
        let Some(open) = self.registry.volume(volume) else {
            return Ok(());
        };
        let to = forward.map(|f| {
            let to = To {
                volume: volume.0,
                epoch: f.epoch,
                incarnation: f.incarnation,
            };
            (f.node, to)
        });
        if open.forwards_to() == to.map(|t| t.1) {
            return Ok(());
        }
        let Some((node, to)) = to else {
            open.forward_to(None);
            return Ok(());
        };
        if replication.node.id() == Some(node) {
            let why = "it is this node: what it coordinates itself is served here".to_owned();
            return Err(CommandError::field("forward.node_id", why));
        }
        let trunk = replication.node.trunk(node);
        let trunk = trunk.ok_or(CommandError::NoReplication)?;
        open.forward_to(Some(Forwarder::start(&self.handle, trunk, to)));
        Ok(())
    }

    /// Takes what other nodes forward to a coordinator here.
    pub(super) fn take_forwarded(
        &self,
        replication: &Replication,
        volume: VolumeId,
        driver: &Coordinator,
    ) {
        let Some(open) = self.registry.volume(volume) else {
            return;
        };
        let here = Here {
            handle: self.handle.clone(),
            volume: open,
            driver: driver.clone(),
            access: Rc::new(ByTarget(self.target.clone())),
        };
        let of = (driver.epoch(), replication.with.incarnation);
        replication.doors.serve(volume.0, of, Rc::new(here));
    }

    /// A coordinator here has ended.
    pub(super) fn take_no_more(&self, volume: VolumeId, epoch: u32) {
        if let Ok(replication) = self.replication() {
            replication.doors.end(&volume.0, epoch);
        }
    }
}
