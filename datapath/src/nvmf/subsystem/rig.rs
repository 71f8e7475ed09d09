//! A subsystem under test, driven as the transport drives it: connects, commands, effects, views.

use super::*;
use crate::nvmf::seam::{AnaState, ConnectRequest, Grant, HostId, Outcome, StatusField};
use keelblock_nvme::Sqe;
use keelblock_nvme::opcode::{admin, fabrics};
use keelblock_nvme::property::offset::{CC, CSTS};
use keelblock_nvme::sgl::Sgl;

pub(in crate::nvmf) const MS: Nanos = 1_000_000;
pub(in crate::nvmf) const ENABLE: u32 = 6 << 16 | 4 << 20 | 1;
pub(in crate::nvmf) const HOST_A: HostId = [0xaa; 16];
pub(in crate::nvmf) const HOST_B: HostId = [0xbb; 16];

/// A subsystem, and what it asked for so far.
pub(in crate::nvmf) struct Rig {
    pub sub: Subsystem,
    pub now: Nanos,
    cid: u16,
    /// Acknowledge every view at once, as reactors do.
    pub publish: bool,
    /// Confirm every commit at once, as control does.
    pub commit: bool,
    pub done: Vec<(CommandRef, Reply)>,
    pub seen: Vec<String>,
    pub commits: Vec<(u32, u64, Vec<u8>)>,
}

pub(in crate::nvmf) fn node() -> NodeIdentity {
    let address = "127.0.0.1:4420".parse().expect("an address");
    NodeIdentity {
        firmware: "0.1.0".into(),
        model: "Keelblock".into(),
        address,
    }
}

pub(in crate::nvmf) fn namespace(nsid: u32, lba_shift: u8) -> NamespaceConfig {
    NamespaceConfig {
        nsid,
        volume: [nsid as u8; 16],
        lba_shift,
        blocks: 1 << (30 - lba_shift),
        nguid: [0x11; 16],
        uuid: [0x22; 16],
        reservation: Vec::new(),
        volatile_cache: false,
    }
}

pub(in crate::nvmf) fn export() -> ExportConfig {
    ExportConfig {
        nqn: "nqn.2024-01.io.keelblock:test".into(),
        serial: "KB01".into(),
        namespaces: vec![namespace(1, 12)],
        allowed_hosts: None,
        ana_state: AnaState::Optimized,
        cntlid_min: 10,
        cntlid_max: 12,
    }
}

impl Rig {
    pub fn of(sub: Subsystem) -> Self {
        let mut rig = Rig {
            sub,
            now: 0,
            cid: 0,
            publish: true,
            commit: true,
            done: Vec::new(),
            seen: Vec::new(),
            commits: Vec::new(),
        };
        rig.drain();
        rig
    }

    pub fn new() -> Self {
        Self::of(Subsystem::new(export(), &node(), 0).expect("a good export"))
    }

    /// Carries out effects until there are none.
    pub fn drain(&mut self) {
        while let Some(effect) = self.sub.next_effect() {
            match effect {
                Effect::Complete(cmd, reply) => self.done.push((cmd, reply)),
                Effect::Publish(view) => {
                    self.seen.push(format!("publish {}", view.generation));
                    if self.publish {
                        self.sub.published(view.generation, self.now);
                    }
                }
                Effect::CloseQueues { cntlid, scope } => {
                    self.seen.push(format!("close {cntlid} {scope:?}"))
                }
                Effect::Flush { cntlid } => self.seen.push(format!("flush {cntlid}")),
                Effect::Event(TargetEvent::ReservationChanged {
                    nsid,
                    generation,
                    state,
                    ..
                }) => {
                    self.commits.push((nsid, generation, state));
                    if self.commit {
                        self.sub.commit_reservation(nsid, generation, self.now);
                    }
                }
                Effect::Event(TargetEvent::HostConnected { host_nqn, .. }) => {
                    self.seen.push(format!("+{host_nqn}"))
                }
                Effect::Event(TargetEvent::HostDisconnected { host_nqn, .. }) => {
                    self.seen.push(format!("-{host_nqn}"))
                }
            }
        }
    }

    pub fn take_seen(&mut self) -> Vec<String> {
        std::mem::take(&mut self.seen)
    }

    pub fn request(&self, host: HostId, cntlid: u16, qid: u16) -> ConnectRequest {
        ConnectRequest {
            subnqn: self.sub.config().nqn.to_string(),
            hostnqn: format!("nqn.host.{:02x}", host[0]),
            hostid: host,
            cntlid,
            qid,
            sqsize: 31,
            kato_ms: 0,
            cattr: 0,
            peer: "127.0.0.1:50000".parse().expect("an address"),
            local: "127.0.0.1:4420".parse().expect("an address"),
        }
    }

    /// An admin queue, not enabled.
    pub fn connect(&mut self, host: HostId) -> u16 {
        let req = self.request(host, 0xffff, 0);
        let Grant { cntlid, .. } = self.sub.connect_admin(&req, self.now).expect("let in");
        self.drain();
        cntlid
    }

    /// An enabled controller.
    pub fn controller(&mut self, host: HostId) -> u16 {
        let cntlid = self.connect(host);
        assert_eq!(self.set_cc(cntlid, ENABLE), Reply::default());
        cntlid
    }

    pub fn io(&mut self, host: HostId, cntlid: u16, qid: u16) {
        let req = self.request(host, cntlid, qid);
        self.sub.connect_io(&req, self.now).expect("let in");
        self.drain();
    }

    pub fn next_command(&mut self, cntlid: u16, qid: u16) -> CommandRef {
        self.cid += 1;
        CommandRef {
            reactor: 0,
            connection: u64::from(cntlid) << 16 | u64::from(qid),
            cntlid,
            qid,
            cid: self.cid,
        }
    }

    /// An admin command; `None` while it is pending.
    pub fn try_admin(&mut self, cntlid: u16, sqe: Sqe) -> Option<Reply> {
        let cmd = self.next_command(cntlid, 0);
        let outcome = self.sub.admin(cmd, &sqe.0, &[], self.now);
        self.settle(cmd, outcome)
    }

    pub fn admin(&mut self, cntlid: u16, sqe: Sqe) -> Reply {
        self.try_admin(cntlid, sqe).expect("answered at once")
    }

    pub fn reservation(&mut self, cntlid: u16, sqe: Sqe, data: &[u8]) -> Option<Reply> {
        let cmd = self.next_command(cntlid, 1);
        let outcome = self.sub.reservation(cmd, &sqe.0, data, self.now);
        self.settle(cmd, outcome)
    }

    fn settle(&mut self, cmd: CommandRef, outcome: Outcome) -> Option<Reply> {
        self.drain();
        match outcome {
            Outcome::Done(reply) => Some(reply),
            Outcome::Pending => self.completion(cmd),
        }
    }

    pub fn completion(&mut self, cmd: CommandRef) -> Option<Reply> {
        let at = self.done.iter().position(|(c, _)| *c == cmd)?;
        Some(self.done.remove(at).1)
    }

    pub fn set_cc(&mut self, cntlid: u16, cc: u32) -> Reply {
        let sqe = Sqe::fabrics(fabrics::PROPERTY_SET)
            .with_cdw(11, CC)
            .with_cdw(12, cc);
        self.admin(cntlid, sqe)
    }

    pub fn csts(&mut self, cntlid: u16) -> u32 {
        self.admin(
            cntlid,
            Sqe::fabrics(fabrics::PROPERTY_GET).with_cdw(11, CSTS),
        )
        .dw0
    }

    pub fn log(&mut self, cntlid: u16, lid: u8, bytes: u32) -> Vec<u8> {
        let reply = self.admin(cntlid, get_log(lid, bytes));
        assert_eq!(reply.status, StatusField::SUCCESS);
        reply.data
    }

    /// An Asynchronous Event Request that waits.
    pub fn aer(&mut self, cntlid: u16) -> CommandRef {
        let cmd = self.next_command(cntlid, 0);
        let sqe = Sqe::new(admin::ASYNC_EVENT_REQUEST, 0);
        assert!(matches!(
            self.sub.admin(cmd, &sqe.0, &[], self.now),
            Outcome::Pending
        ));
        self.drain();
        cmd
    }
}

pub(in crate::nvmf) fn get_log(lid: u8, bytes: u32) -> Sqe {
    let numd = bytes / 4 - 1;
    let mut sqe = Sqe::new(admin::GET_LOG_PAGE, 0)
        .with_cdw(10, u32::from(lid) | numd << 16)
        .with_cdw(11, numd >> 16);
    sqe.set_sgl(Sgl::Transport { length: bytes });
    sqe
}
