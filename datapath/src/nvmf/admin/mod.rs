//! Admin and fabrics commands of a controller: dispatch here, then `identify*.rs`, `log_page.rs` with `effects.rs`, `features.rs`. Every
//! command restarts the keep-alive timer, also one that is refused; every one that is refused leaves an entry in the error log.

mod effects;
pub mod features;
mod identify;
mod identify_controller;
mod identify_namespace;
mod log_page;
pub mod page;

#[cfg(test)]
mod identify_tests;
#[cfg(test)]
mod tests;

use crate::nvmf::controller::properties::Action;
use crate::nvmf::controller::{Role, status};
use crate::nvmf::reservation::{Op, Request};
use crate::nvmf::seam::{
    CommandRef, Effect, Nanos, Outcome, QueueScope, Reply, SqeBytes, StatusField,
};
use crate::nvmf::subsystem::Subsystem;
use features::{Scope, fid};
use keelblock_nvme::opcode::{FABRICS, admin, fabrics};
use keelblock_nvme::{Fuse, Sqe};

/// CDW10 bit 31 of Set Features: save.
const SAVE: u32 = 1 << 31;
/// CDW10 bits 10:8 of Get Features: which value; 0 is the current one, the others need saveable features.
const SELECT: u32 = 7 << 8;
/// CDW11 bit 0 of the Host Identifier feature: 128 bits.
const EXHID: u32 = 1;
const NSID_ALL: u32 = u32::MAX;
/// The largest data structure that a feature has.
const FEATURE_BYTES: usize = 4096;
/// Dword 0 of Abort: the command was not aborted.
const NOT_ABORTED: u32 = 1;

/// What a command that is not refused leads to.
type Answer = Result<Outcome, StatusField>;

impl Subsystem {
    /// A command of an admin queue; see `seam`. `_data` is not looked at: no supported command but Connect brings any.
    pub fn admin(&mut self, cmd: CommandRef, sqe: &SqeBytes, _data: &[u8], now: Nanos) -> Outcome {
        let Some(c) = self.controllers.get_mut(&cmd.cntlid).filter(|c| !c.closing) else {
            return Outcome::Done(Reply::status(status::ABORTED_SQ_DELETION));
        };
        c.keep_alive.touch(now);
        let sqe = Sqe(*sqe);
        self.dispatch(cmd, &sqe, now).unwrap_or_else(|refused| {
            self.controller(cmd.cntlid)
                .errors
                .push(cmd, refused, sqe.nsid(), 0);
            Outcome::Done(Reply::status(refused))
        })
    }

    fn dispatch(&mut self, cmd: CommandRef, sqe: &Sqe, now: Nanos) -> Answer {
        if sqe.fuse() != Fuse::Normal {
            return Err(status::INVALID_FIELD);
        }
        if sqe.opcode() == FABRICS {
            return self.fabrics(cmd.cntlid, sqe);
        }
        let c = self.controller(cmd.cntlid);
        if !c.properties.ready() {
            return Err(status::COMMAND_SEQUENCE);
        }
        let role = c.role;
        match sqe.opcode() {
            admin::IDENTIFY => self
                .identify(&self.controllers[&cmd.cntlid], sqe)
                .map(with_data),
            admin::GET_LOG_PAGE => self.get_log_page(cmd.cntlid, sqe, now).map(with_data),
            admin::GET_FEATURES => self.get_feature(cmd.cntlid, sqe),
            admin::SET_FEATURES => self.set_feature(cmd, sqe, now),
            admin::ASYNC_EVENT_REQUEST => self.async_event_request(cmd),
            admin::KEEP_ALIVE => Ok(done()),
            admin::ABORT if role == Role::Io => Ok(self.abort(cmd.cntlid, sqe)),
            _ => Err(status::INVALID_OPCODE),
        }
    }

    fn fabrics(&mut self, cntlid: u16, sqe: &Sqe) -> Answer {
        let bytes = match sqe.cdw(10) & 7 {
            0 => 4,
            1 => 8,
            _ => return Err(status::INVALID_FIELD),
        };
        let offset = sqe.cdw(11);
        let c = self.controller(cntlid);
        match sqe.fctype() {
            fabrics::PROPERTY_GET => {
                let v = c
                    .properties
                    .get(offset, bytes)
                    .map_err(|_| status::NO_PROPERTY)?;
                Ok(Outcome::Done(Reply {
                    dw0: v as u32,
                    dw1: (v >> 32) as u32,
                    ..Reply::default()
                }))
            }
            fabrics::PROPERTY_SET => {
                let value = u64::from(sqe.cdw(12)) | u64::from(sqe.cdw(13)) << 32;
                let io_queues = !c.io_queues.is_empty();
                let action = c
                    .properties
                    .set(offset, bytes, value, io_queues)
                    .map_err(|_| status::INVALID_FIELD)?;
                self.carry_out(cntlid, action);
                Ok(done())
            }
            // The queue is connected already.
            fabrics::CONNECT => Err(status::COMMAND_SEQUENCE),
            _ => Err(status::INVALID_FIELD),
        }
    }

    /// Does what a change of state asks for.
    pub(in crate::nvmf) fn carry_out(&mut self, cntlid: u16, action: Action) {
        match action {
            Action::None => {}
            Action::Reset => {
                let requests: Vec<CommandRef> =
                    self.controller(cntlid).events.take_requests().collect();
                for cmd in requests {
                    self.complete(cmd, Reply::status(status::ABORTED_SQ_DELETION));
                }
                self.controller(cntlid).reset();
                self.effects.push_back(Effect::CloseQueues {
                    cntlid,
                    scope: QueueScope::Io,
                });
            }
            Action::EndQueues => self.effects.push_back(Effect::CloseQueues {
                cntlid,
                scope: QueueScope::Io,
            }),
            Action::Flush => self.effects.push_back(Effect::Flush { cntlid }),
        }
    }

    fn async_event_request(&mut self, cmd: CommandRef) -> Answer {
        match self.controller(cmd.cntlid).events.request(cmd) {
            Err(()) => Err(status::AER_LIMIT),
            Ok(None) => Ok(Outcome::Pending),
            // The request that is answered may be an older one.
            Ok(Some((waiting, dw0))) => {
                self.complete(
                    waiting,
                    Reply {
                        dw0,
                        ..Reply::default()
                    },
                );
                Ok(Outcome::Pending)
            }
        }
    }

    /// Only Asynchronous Event Requests wait long enough to be aborted.
    fn abort(&mut self, cntlid: u16, sqe: &Sqe) -> Outcome {
        let (sqid, cid) = (sqe.cdw(10) as u16, (sqe.cdw(10) >> 16) as u16);
        let found = if sqid == 0 {
            self.controller(cntlid).events.abort(cid)
        } else {
            None
        };
        match found {
            Some(cmd) => {
                self.complete(cmd, Reply::status(status::ABORT_REQUESTED));
                done()
            }
            None => Outcome::Done(Reply {
                dw0: NOT_ABORTED,
                ..Reply::default()
            }),
        }
    }

    fn get_feature(&mut self, cntlid: u16, sqe: &Sqe) -> Answer {
        let (id, nsid, dword11) = (sqe.cdw(10) as u8, sqe.nsid(), sqe.cdw(11));
        let scope = self.feature_scope(cntlid, id)?;
        if sqe.cdw(10) & SELECT != 0 {
            return Err(status::INVALID_FIELD);
        }
        if scope == Scope::Namespace {
            self.active(nsid)?;
        }
        let c = &self.controllers[&cntlid];
        let dw0 = match id {
            fid::ASYNC_EVENTS => c.events.config(),
            fid::KEEP_ALIVE => c.keep_alive.kato_ms(),
            fid::RESERVATION_PERSISTENCE => self.ledgers[&nsid].state().ptpl.into(),
            fid::HOST_IDENTIFIER => return host_identifier(c.host_id, sqe),
            _ => c.features.get(id, nsid, dword11)?,
        };
        // These features have no data structure. A host that brings a buffer all the same gets it zeroed, rather than
        // left as it was: some count the bytes that come.
        let data = vec![0; (sqe.sgl().length() as usize).min(FEATURE_BYTES)];
        Ok(Outcome::Done(Reply {
            dw0,
            data,
            ..Reply::default()
        }))
    }

    fn set_feature(&mut self, cmd: CommandRef, sqe: &Sqe, now: Nanos) -> Answer {
        let (id, nsid, dword11) = (sqe.cdw(10) as u8, sqe.nsid(), sqe.cdw(11));
        let scope = self.feature_scope(cmd.cntlid, id)?;
        if sqe.cdw(10) & SAVE != 0 {
            return Err(status::FEATURE_NOT_SAVEABLE);
        }
        let namespaces = match (scope, nsid) {
            (Scope::Namespace, NSID_ALL) => {
                self.config().namespaces.iter().map(|n| n.nsid).collect()
            }
            (Scope::Namespace, _) => vec![self.active(nsid)?.nsid],
            (Scope::Controller, 0 | NSID_ALL) => Vec::new(),
            (Scope::Controller, _) => return Err(status::FEATURE_NOT_NAMESPACE),
        };
        let c = self.controller(cmd.cntlid);
        let dw0 = match id {
            fid::ASYNC_EVENTS if dword11 & !(c.role.events() | SMART_EVENTS) != 0 => {
                return Err(status::INVALID_FIELD);
            }
            fid::ASYNC_EVENTS => {
                c.events.configure(dword11);
                0
            }
            fid::KEEP_ALIVE => {
                c.keep_alive.set(dword11, now);
                0
            }
            // A fabric host's identifier is the one of its Connect.
            fid::HOST_IDENTIFIER => return Err(status::COMMAND_SEQUENCE),
            fid::RESERVATION_PERSISTENCE => return self.set_persistence(cmd, nsid, dword11, now),
            _ => c
                .features
                .set(id, dword11, &namespaces, !c.io_queues.is_empty())?,
        };
        Ok(Outcome::Done(Reply {
            dw0,
            ..Reply::default()
        }))
    }

    /// One namespace at a time: each has its own commit to wait for.
    fn set_persistence(&mut self, cmd: CommandRef, nsid: u32, dword11: u32, now: Nanos) -> Answer {
        self.active(nsid)?;
        let host = self.controller(cmd.cntlid).host_id;
        self.change_reservation(
            nsid,
            Request {
                cmd,
                host,
                op: Op::Persist(dword11 & 1 != 0),
            },
            now,
        );
        Ok(Outcome::Pending)
    }

    fn feature_scope(&self, cntlid: u16, id: u8) -> Result<Scope, StatusField> {
        let cache = identify_controller::volatile_cache(self.config());
        features::scope(self.controllers[&cntlid].role, id, cache).ok_or(status::INVALID_FIELD)
    }
}

/// Critical warnings, bits 4:0 of Asynchronous Event Configuration: may be enabled, and never happen.
const SMART_EVENTS: u32 = 0x1f;

fn host_identifier(host: [u8; 16], sqe: &Sqe) -> Answer {
    if sqe.cdw(11) & EXHID == 0 {
        return Err(status::INVALID_FIELD);
    }
    if (sqe.sgl().length() as usize) < host.len() {
        return Err(status::SGL_LENGTH);
    }
    Ok(with_data(host.to_vec()))
}

fn done() -> Outcome {
    Outcome::Done(Reply::default())
}

fn with_data(data: Vec<u8>) -> Outcome {
    Outcome::Done(Reply {
        data,
        ..Reply::default()
    })
}
