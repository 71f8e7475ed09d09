//! Connect, and the end of queues and controllers (NVMe Base 2.1, 6.3 and 3.3.1). Controllers are dynamic only.

use super::Subsystem;
use crate::nvmf::controller::{Controller, Role, status};
use crate::nvmf::seam::{
    ADMIN_SQSIZE_MAX, CATTR_DISABLE_SQ_FLOW, ConnectError, ConnectRequest, Effect, Grant, MQES,
    Nanos, QueueScope, StatusField, TargetEvent,
};
use keelblock_nvme::fabrics::{CNTLID_DYNAMIC, at};

impl Subsystem {
    /// An admin queue: makes a controller.
    pub fn connect_admin(
        &mut self,
        req: &ConnectRequest,
        now: Nanos,
    ) -> Result<Grant, ConnectError> {
        if !self.allows(&req.hostnqn) {
            return Err(refused(status::CONNECT_INVALID_HOST));
        }
        if req.qid != 0 {
            return Err(in_command(at::QID));
        }
        if req.cntlid != CNTLID_DYNAMIC {
            return Err(in_data(at::CNTLID));
        }
        if req.sqsize == 0 || req.sqsize > ADMIN_SQSIZE_MAX {
            return Err(in_command(at::SQSIZE));
        }
        let cntlid = self.free_cntlid().ok_or(refused(status::CONNECT_BUSY))?;
        self.controllers
            .insert(cntlid, Controller::new(cntlid, self.role, req, now));
        self.event(TargetEvent::HostConnected {
            nqn: self.config.nqn.clone(),
            host_nqn: req.hostnqn.clone(),
            peer: req.peer,
        });
        Ok(grant(cntlid, req))
    }

    /// An I/O queue of a controller that there is, by the host that made it.
    pub fn connect_io(&mut self, req: &ConnectRequest, now: Nanos) -> Result<Grant, ConnectError> {
        if self.role == Role::Discovery || req.qid == 0 {
            return Err(in_command(at::QID));
        }
        let c = self
            .controllers
            .get_mut(&req.cntlid)
            .filter(|c| !c.closing)
            .ok_or(in_data(at::CNTLID))?;
        if c.host_nqn != req.hostnqn {
            return Err(in_data(at::HOSTNQN));
        }
        if c.host_id != req.hostid {
            return Err(in_data(at::HOSTID));
        }
        c.keep_alive.touch(now);
        if !c.properties.takes_io_queues() {
            return Err(refused(status::COMMAND_SEQUENCE));
        }
        if req.qid > c.features.queues() {
            return Err(in_command(at::QID));
        }
        if req.sqsize == 0 || req.sqsize > MQES {
            return Err(in_command(at::SQSIZE));
        }
        if !c.io_queues.insert(req.qid) {
            return Err(refused(status::COMMAND_SEQUENCE));
        }
        Ok(grant(req.cntlid, req))
    }

    /// A queue's connection ended, whoever ended it. The admin queue takes the controller with it.
    pub fn queue_gone(&mut self, cntlid: u16, qid: u16, _now: Nanos) {
        let Some(c) = self.controllers.get_mut(&cntlid) else {
            return;
        };
        if qid == 0 {
            c.admin_queue = false;
            self.close(cntlid);
        } else if c.io_queues.remove(&qid) && c.io_queues.is_empty() && !c.closing {
            let action = c.properties.io_queues_gone();
            self.carry_out(cntlid, action);
        }
        if self.controllers[&cntlid].ended() {
            self.controllers.remove(&cntlid);
        }
    }

    /// Unexport: every controller ends.
    pub fn remove(&mut self, _now: Nanos) {
        let ids: Vec<u16> = self.controllers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close(id));
    }

    /// Ends a controller: it is gone once each of its queues has been reported so.
    pub(super) fn close(&mut self, cntlid: u16) {
        let c = self.controller(cntlid);
        if std::mem::replace(&mut c.closing, true) {
            return;
        }
        let event = TargetEvent::HostDisconnected {
            nqn: self.config.nqn.clone(),
            host_nqn: self.controllers[&cntlid].host_nqn.clone(),
            peer: self.controllers[&cntlid].peer,
        };
        self.event(event);
        self.effects.push_back(Effect::CloseQueues {
            cntlid,
            scope: QueueScope::All,
        });
    }

    pub(super) fn allows(&self, host: &str) -> bool {
        self.config
            .allowed_hosts
            .as_ref()
            .is_none_or(|hosts| hosts.iter().any(|h| h == host))
    }

    /// The next free identifier of the range, in turn, so that one is not given out again soon.
    fn free_cntlid(&mut self) -> Option<u16> {
        let (min, max) = (self.config.cntlid_min, self.config.cntlid_max);
        let start = if (min..=max).contains(&self.next_cntlid) {
            self.next_cntlid
        } else {
            min
        };
        let free = (start..=max)
            .chain(min..start)
            .find(|id| !self.controllers.contains_key(id))?;
        self.next_cntlid = free.checked_add(1).unwrap_or(min);
        Some(free)
    }
}

fn grant(cntlid: u16, req: &ConnectRequest) -> Grant {
    Grant {
        cntlid,
        sq_entries: u32::from(req.sqsize) + 1,
        sq_flow_control: req.cattr & CATTR_DISABLE_SQ_FLOW == 0,
    }
}

fn refused(status: StatusField) -> ConnectError {
    ConnectError {
        status,
        ipo: 0,
        in_data: false,
    }
}

fn in_command(offset: usize) -> ConnectError {
    ConnectError {
        status: status::CONNECT_INVALID_PARAMETERS,
        ipo: offset as u16,
        in_data: false,
    }
}

fn in_data(offset: usize) -> ConnectError {
    ConnectError {
        status: status::CONNECT_INVALID_PARAMETERS,
        ipo: offset as u16,
        in_data: true,
    }
}
