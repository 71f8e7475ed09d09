//! Connect: how a queue pair becomes one of a controller (NVMe Base 2.1, 6.3).

use std::net::SocketAddr;

use super::error::{Error, Result};
use super::options::ConnectOptions;
use super::queue::QueuePair;
use super::slot::Payload;
use crate::fabrics::{CATTR_DISABLE_SQ_FLOW, ConnectCommand, ConnectData};
use crate::nqn::check_nqn;

/// A host, a subsystem, and where the subsystem is reached.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) addr: SocketAddr,
    pub(super) subnqn: String,
    pub(super) hostnqn: String,
    pub(super) options: ConnectOptions,
}

/// Bits of Connect's dword 0: the controller asks for authentication (in band, or by secure channel concatenation).
const AUTHREQ: u32 = 3 << 17;

impl Path {
    pub(super) fn new(
        addr: SocketAddr,
        subnqn: &str,
        hostnqn: &str,
        options: &ConnectOptions,
    ) -> Result<Self> {
        check_nqn(subnqn)?;
        check_nqn(hostnqn)?;
        Ok(Self {
            addr,
            subnqn: subnqn.to_owned(),
            hostnqn: hostnqn.to_owned(),
            options: options.clone(),
        })
    }

    /// Opens queue `qid` of controller `cntlid`, with room for `depth` commands in flight: the queue has one entry more, since a full
    /// queue looks like an empty one. Returns the queue and the controller's identifier.
    pub(super) fn open_queue(&self, qid: u16, depth: u16, cntlid: u16) -> Result<(QueuePair, u16)> {
        let limit = self.options.timeout;
        let mut queue = QueuePair::open(self.addr, depth, self.options.digests, limit)?;
        let kato_ms = if qid == 0 {
            self.options
                .keep_alive
                .as_millis()
                .try_into()
                .unwrap_or(u32::MAX)
        } else {
            0
        };
        let cattr = if self.options.sq_flow_control {
            0
        } else {
            CATTR_DISABLE_SQ_FLOW
        };
        let sqe = ConnectCommand {
            recfmt: 0,
            qid,
            sqsize: depth,
            cattr,
            kato_ms,
        }
        .encode();
        let data = ConnectData {
            hostid: self.options.hostid,
            cntlid,
            subnqn: self.subnqn.clone(),
            hostnqn: self.hostnqn.clone(),
        };
        let payload = Payload::Send(data.encode()?.to_vec());
        let done = queue
            .call("Connect", sqe, payload, limit, &mut Vec::new())?
            .ok("Connect")?;
        if done.cqe.dw0() & AUTHREQ != 0 {
            return Err(Error::AuthenticationRequired);
        }
        Ok((queue, done.cqe.dw0() as u16))
    }
}
