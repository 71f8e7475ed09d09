//! An association with a controller: its admin queue pair, keep-alive and events.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::connect::Path;
use super::error::{Error, Result};
use super::io_queue::IoQueue;
use super::options::{Backoff, ConnectOptions};
use super::queue::QueuePair;
use super::slot::{Completion, Payload};
use crate::fabrics::{CNTLID_DYNAMIC, PropertyCommand};
use crate::identify::{ControllerData, IDENTIFY_LEN, NamespaceData, cns};
use crate::nqn::DISCOVERY_NQN;
use crate::property::{Cap, cc, csts, offset};
use crate::{Sqe, opcode};

/// Admin commands in flight at most: one blocking call, a Keep Alive, and events.
const ADMIN_DEPTH: u16 = 31;
/// Asynchronous Event Requests in flight: Linux keeps one, which is what every controller takes.
const EVENT_REQUESTS: usize = 1;
/// How long to sleep between two looks at a property.
const PROPERTY_INTERVAL: Duration = Duration::from_millis(2);

/// Tags of commands that nobody waits for.
const TAG_KEEP_ALIVE: u64 = 1;
const TAG_EVENT: u64 = 2;

/// An asynchronous event: dword 0 of its completion (NVMe Base 2.1, 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent(pub u32);

impl AsyncEvent {
    /// Event type: 0 error, 1 SMART, 2 notice.
    pub fn kind(self) -> u8 {
        self.0 as u8 & 7
    }
    /// Event information; of notices: 0 namespace attributes changed, 3 ANA change, F0h discovery log change.
    pub fn information(self) -> u8 {
        (self.0 >> 8) as u8
    }
    /// The log page that reading clears the event.
    pub fn log_page(self) -> u8 {
        (self.0 >> 16) as u8
    }
}

/// A connected, enabled controller.
pub struct Controller {
    path: Path,
    admin: QueuePair,
    cntlid: u16,
    cap: Cap,
    /// Controller Configuration while enabled.
    cc: u32,
    identify: ControllerData,
    others: Vec<Completion>,
    events: Vec<AsyncEvent>,
    event_requests: usize,
    /// When a Keep Alive was last sent, and whether it is unanswered.
    keep_alive_sent: Instant,
    keep_alive_pending: bool,
}

impl Controller {
    /// Connects to a controller of `subnqn` at `addr` as `hostnqn`, enables it, waits until it is ready and identifies it.
    pub fn connect(
        addr: SocketAddr,
        subnqn: &str,
        hostnqn: &str,
        options: &ConnectOptions,
    ) -> Result<Self> {
        let path = Path::new(addr, subnqn, hostnqn, options)?;
        Self::on(path)
    }

    /// As [`Self::connect`], trying again while that may help.
    pub fn connect_retrying(
        addr: SocketAddr,
        subnqn: &str,
        hostnqn: &str,
        options: &ConnectOptions,
        backoff: &Backoff,
    ) -> Result<Self> {
        backoff.retry(|| Self::connect(addr, subnqn, hostnqn, options))
    }

    /// Replaces a lost association by a new one over the same path. I/O queues must be opened anew.
    pub fn reconnect(&mut self, backoff: &Backoff) -> Result<()> {
        let path = self.path.clone();
        *self = backoff.retry(|| Self::on(path.clone()))?;
        Ok(())
    }

    fn on(path: Path) -> Result<Self> {
        let (admin, cntlid) = path.open_queue(0, ADMIN_DEPTH, CNTLID_DYNAMIC)?;
        let mut controller = Self {
            path,
            admin,
            cntlid,
            cap: Cap(0),
            cc: cc::EN | cc::ENTRY_SIZES,
            identify: ControllerData(Box::new([0; IDENTIFY_LEN])),
            others: Vec::with_capacity(ADMIN_DEPTH.into()),
            events: Vec::new(),
            event_requests: 0,
            keep_alive_sent: Instant::now(),
            keep_alive_pending: false,
        };
        controller.cap = Cap(controller.property(offset::CAP, true)?);
        if controller.cap.io_command_sets() {
            controller.cc |= cc::CSS_ALL;
        }
        controller.enable()?;
        controller.identify = ControllerData(controller.identify(cns::CONTROLLER, 0, 0)?);
        Ok(controller)
    }

    fn enable(&mut self) -> Result<()> {
        self.set_property(offset::CC, self.cc.into())?;
        let limit = Duration::from_millis(self.cap.ready_timeout_ms().into())
            .max(self.path.options.timeout);
        self.wait_status(csts::RDY, csts::RDY, limit)
    }

    /// Waits until CSTS under `mask` is `value`.
    fn wait_status(&mut self, mask: u32, value: u32, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let csts = self.property(offset::CSTS, false)? as u32;
            if csts & mask == value && csts & csts::CFS == 0 {
                return Ok(());
            }
            if csts & csts::CFS != 0 || Instant::now() >= deadline {
                return Err(Error::NotReady { csts });
            }
            std::thread::sleep(PROPERTY_INTERVAL);
        }
    }

    /// The controller's identifier.
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// Controller Capabilities.
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// Identify Controller, as read when the association was made.
    pub fn data(&self) -> &ControllerData {
        &self.identify
    }

    /// Whether this is a discovery controller, which has no I/O queues.
    pub fn is_discovery(&self) -> bool {
        self.path.subnqn == DISCOVERY_NQN
    }

    /// Sends one admin command and waits for its completion, whatever its status. The command identifier and SGL1 are set here.
    pub fn admin(&mut self, what: &'static str, sqe: Sqe, payload: Payload) -> Result<Completion> {
        let done = self.admin.call(
            what,
            sqe,
            payload,
            self.path.options.timeout,
            &mut self.others,
        )?;
        self.sort();
        Ok(done)
    }

    fn admin_ok(&mut self, what: &'static str, sqe: Sqe, payload: Payload) -> Result<Completion> {
        self.admin(what, sqe, payload)?.ok(what)
    }

    fn receive(&mut self, what: &'static str, sqe: Sqe, len: usize) -> Result<Vec<u8>> {
        self.admin_ok(what, sqe, Payload::Receive(vec![0; len]))?
            .full(what)
    }

    /// Property Get, of 8 bytes or 4.
    pub fn property(&mut self, at: u32, wide: bool) -> Result<u64> {
        let done = self.admin_ok(
            "Property Get",
            PropertyCommand::get(at, wide),
            Payload::None,
        )?;
        Ok(if wide {
            done.cqe.dw01()
        } else {
            done.cqe.dw0().into()
        })
    }

    /// Property Set, of 4 bytes, which is what all writable properties have.
    pub fn set_property(&mut self, at: u32, value: u64) -> Result<()> {
        self.admin_ok(
            "Property Set",
            PropertyCommand::set(at, false, value),
            Payload::None,
        )
        .map(drop)
    }

    /// Identify: 4096 bytes.
    pub fn identify(&mut self, cns: u8, nsid: u32, csi: u8) -> Result<Box<[u8; IDENTIFY_LEN]>> {
        let sqe = Sqe::new(opcode::admin::IDENTIFY, nsid)
            .with_cdw(10, cns.into())
            .with_cdw(11, u32::from(csi) << 24);
        let data = self.receive("Identify", sqe, IDENTIFY_LEN)?;
        data.into_boxed_slice()
            .try_into()
            .map_err(|_| Error::Unsuitable("Identify of another length"))
    }

    /// Identify Namespace.
    pub fn namespace(&mut self, nsid: u32) -> Result<NamespaceData> {
        Ok(NamespaceData(self.identify(cns::NAMESPACE, nsid, 0)?))
    }

    /// Identifiers of the active namespaces, the first 1024.
    pub fn active_namespaces(&mut self) -> Result<Vec<u32>> {
        let list = self.identify(cns::ACTIVE_NAMESPACES, 0, 0)?;
        let ids = list
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b));
        Ok(ids.take_while(|&id| id != 0).collect())
    }

    /// Get Log Page: `len` bytes (a multiple of 4) from `from`.
    pub fn log_page(&mut self, lid: u8, nsid: u32, from: u64, len: usize) -> Result<Vec<u8>> {
        if len == 0 || !len.is_multiple_of(4) {
            return Err(Error::Unsuitable("a log page is read in dwords"));
        }
        let dwords = (len / 4 - 1) as u32;
        let sqe = Sqe::new(opcode::admin::GET_LOG_PAGE, nsid)
            .with_cdw(10, u32::from(lid) | dwords << 16)
            .with_cdw(11, dwords >> 16)
            .with_cdw(12, from as u32)
            .with_cdw(13, (from >> 32) as u32);
        self.receive("Get Log Page", sqe, len)
    }

    /// Get Features: dword 0.
    pub fn feature(&mut self, fid: u8, nsid: u32) -> Result<u32> {
        let sqe = Sqe::new(opcode::admin::GET_FEATURES, nsid).with_cdw(10, fid.into());
        Ok(self.admin_ok("Get Features", sqe, Payload::None)?.cqe.dw0())
    }

    /// Set Features: dword 0.
    pub fn set_feature(&mut self, fid: u8, nsid: u32, value: u32) -> Result<u32> {
        let sqe = Sqe::new(opcode::admin::SET_FEATURES, nsid)
            .with_cdw(10, fid.into())
            .with_cdw(11, value);
        Ok(self.admin_ok("Set Features", sqe, Payload::None)?.cqe.dw0())
    }

    /// Asks for `count` I/O queue pairs; returns how many may be opened.
    pub fn set_io_queues(&mut self, count: u16) -> Result<u16> {
        const NUMBER_OF_QUEUES: u8 = 0x07;
        let n = u32::from(count.max(1) - 1);
        let granted = self.set_feature(NUMBER_OF_QUEUES, 0, n << 16 | n)?;
        Ok(((granted & 0xffff).min(granted >> 16) as u16)
            .saturating_add(1)
            .min(count))
    }

    /// Opens I/O queue `qid` (from 1) with room for `depth` commands in flight, less if the controller's queues are shorter.
    pub fn io_queue(&mut self, qid: u16, depth: u16) -> Result<IoQueue> {
        if qid == 0 || depth == 0 {
            return Err(Error::Unsuitable(
                "an I/O queue needs a queue identifier and a depth of at least 1",
            ));
        }
        let (mut queue, _) =
            self.path
                .open_queue(qid, depth.min(self.cap.mqes()).max(1), self.cntlid)?;
        queue.set_in_capsule_bytes(self.identify.in_capsule_bytes());
        Ok(IoQueue::new(
            queue,
            self.identify.max_transfer_bytes(),
            self.path.options.timeout,
        ))
    }

    /// What has to be done from time to time, at least four times per keep-alive timeout; never blocks. Sends Keep Alive when it is due
    /// and collects events. An unanswered Keep Alive is a [`Error::Timeout`].
    pub fn service(&mut self) -> Result<()> {
        self.admin.poll(&mut self.others)?;
        self.sort();
        let timeout = self.path.options.keep_alive;
        if timeout.is_zero() {
            return Ok(());
        }
        let since = self.keep_alive_sent.elapsed();
        if self.keep_alive_pending && since >= timeout {
            return Err(Error::Timeout {
                what: "Keep Alive",
                limit: timeout,
            });
        }
        if !self.keep_alive_pending && since >= timeout / 3 {
            let sqe = Sqe::new(opcode::admin::KEEP_ALIVE, 0);
            self.keep_alive_pending = self
                .admin
                .submit(TAG_KEEP_ALIVE, sqe, Payload::None)
                .is_ok();
            self.keep_alive_sent = Instant::now();
            self.admin.poll(&mut self.others)?;
        }
        Ok(())
    }

    /// Keeps an Asynchronous Event Request with the controller from now on; [`Self::take_events`] returns what comes.
    pub fn watch_events(&mut self) -> Result<()> {
        while self.event_requests < EVENT_REQUESTS {
            let sqe = Sqe::new(opcode::admin::ASYNC_EVENT_REQUEST, 0);
            if self.admin.submit(TAG_EVENT, sqe, Payload::None).is_err() {
                break;
            }
            self.event_requests += 1;
        }
        self.admin.poll(&mut self.others)?;
        self.sort();
        Ok(())
    }

    /// The events that came since the last call. Asks for the next ones.
    pub fn take_events(&mut self) -> Result<Vec<AsyncEvent>> {
        self.service()?;
        let events = std::mem::take(&mut self.events);
        if !events.is_empty() {
            self.watch_events()?;
        }
        Ok(events)
    }

    /// Sorts out completions that nobody waited for.
    fn sort(&mut self) {
        for done in self.others.drain(..) {
            match done.tag {
                TAG_KEEP_ALIVE => self.keep_alive_pending = false,
                TAG_EVENT => {
                    self.event_requests -= 1;
                    if done.status().is_success() {
                        self.events.push(AsyncEvent(done.cqe.dw0()));
                    }
                }
                _ => {}
            }
        }
    }

    /// Shuts the controller down normally and ends the association.
    pub fn shutdown(mut self) -> Result<()> {
        let limit = self.path.options.timeout;
        self.set_property(offset::CC, u64::from(self.cc | cc::SHN_NORMAL))?;
        self.wait_status(csts::SHST_MASK, csts::SHST_COMPLETE, limit)
    }

    /// Resets the controller: disables it, which ends its I/O queues, and enables it again.
    pub fn reset(&mut self) -> Result<()> {
        self.set_property(offset::CC, u64::from(self.cc & !cc::EN))?;
        self.wait_status(csts::RDY, 0, self.path.options.timeout)?;
        self.enable()
    }
}

impl Completion {
    /// The buffer, if the controller filled all of it.
    pub fn full(self, what: &'static str) -> Result<Vec<u8>> {
        if self.received == self.buffer.len() {
            return Ok(self.buffer);
        }
        Err(Error::ShortTransfer {
            what,
            want: self.buffer.len(),
            got: self.received,
        })
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("Controller");
        f.field("path", &self.path)
            .field("cntlid", &self.cntlid)
            .finish_non_exhaustive()
    }
}
