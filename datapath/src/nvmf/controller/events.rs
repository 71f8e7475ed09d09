//! Asynchronous events of one controller (NVMe Base 2.1, 5.1.2).
//!
//! An event that is enabled is *pending* until an Asynchronous Event Request takes it; then its kind is *masked* until the host has read
//! the log page that belongs to it. Two events of a kind while pending or masked are one: the log page tells what happened.

use crate::nvmf::seam::CommandRef;
use std::collections::VecDeque;

/// Requests that may be outstanding; Identify's AERL is this less one.
pub const MAX_REQUESTS: usize = 4;

/// What can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A namespace came, went or changed; log page 04h says which.
    NamespaceAttributes,
    /// The asymmetric access log page 0Ch changed.
    AnaChange,
    /// The discovery log page 70h changed.
    DiscoveryLog,
    /// Log page 80h has a reservation notification.
    ReservationLog,
}

const KINDS: [EventKind; 4] = [
    EventKind::NamespaceAttributes,
    EventKind::AnaChange,
    EventKind::DiscoveryLog,
    EventKind::ReservationLog,
];

impl EventKind {
    /// Dword 0 of the completion: event type, information, log page.
    pub fn dword0(self) -> u32 {
        let (kind, information) = match self {
            EventKind::NamespaceAttributes => (2, 0x00),
            EventKind::AnaChange => (2, 0x03),
            EventKind::DiscoveryLog => (2, 0xf0),
            EventKind::ReservationLog => (6, 0x00),
        };
        kind | information << 8 | u32::from(self.log_page()) << 16
    }

    /// The log page whose reading unmasks it.
    pub fn log_page(self) -> u8 {
        match self {
            EventKind::NamespaceAttributes => 0x04,
            EventKind::AnaChange => 0x0c,
            EventKind::DiscoveryLog => 0x70,
            EventKind::ReservationLog => 0x80,
        }
    }

    /// Its bit in OAES and in Asynchronous Event Configuration; reservation notifications have masks of their own.
    pub fn config_bit(self) -> u32 {
        match self {
            EventKind::NamespaceAttributes => 1 << 8,
            EventKind::AnaChange => 1 << 11,
            EventKind::DiscoveryLog => 1 << 31,
            EventKind::ReservationLog => 0,
        }
    }
}

/// An event that goes out: complete this command with this dword 0.
pub type Delivery = (CommandRef, u32);

/// See the module.
#[derive(Debug)]
pub struct Events {
    requests: VecDeque<CommandRef>,
    /// Asynchronous Event Configuration.
    config: u32,
    pending: [bool; KINDS.len()],
    masked: [bool; KINDS.len()],
}

impl Events {
    /// With `config` as Asynchronous Event Configuration.
    pub fn new(config: u32) -> Self {
        Events {
            requests: VecDeque::with_capacity(MAX_REQUESTS),
            config,
            pending: Default::default(),
            masked: Default::default(),
        }
    }

    /// Asynchronous Event Configuration.
    pub fn config(&self) -> u32 {
        self.config
    }

    /// Sets it; what is no longer enabled is forgotten.
    pub fn configure(&mut self, config: u32) {
        self.config = config;
        for kind in KINDS.iter().filter(|k| !Self::enabled(config, **k)) {
            self.pending[*kind as usize] = false;
        }
    }

    /// An Asynchronous Event Request. `Err`: there are `MAX_REQUESTS` already.
    pub fn request(&mut self, cmd: CommandRef) -> Result<Option<Delivery>, ()> {
        if self.requests.len() == MAX_REQUESTS {
            return Err(());
        }
        self.requests.push_back(cmd);
        Ok(self.deliver())
    }

    /// Something happened.
    pub fn raise(&mut self, kind: EventKind) -> Option<Delivery> {
        if !Self::enabled(self.config, kind) {
            return None;
        }
        self.pending[kind as usize] = true;
        self.deliver()
    }

    /// The host read the log page of `kind` and did not ask to retain the event.
    pub fn log_read(&mut self, kind: EventKind) {
        self.pending[kind as usize] = false;
        self.masked[kind as usize] = false;
    }

    /// Takes back the request with this command identifier.
    pub fn abort(&mut self, cid: u16) -> Option<CommandRef> {
        let at = self.requests.iter().position(|c| c.cid == cid)?;
        self.requests.remove(at)
    }

    /// Takes back every request (reset).
    pub fn take_requests(&mut self) -> impl Iterator<Item = CommandRef> + '_ {
        self.requests.drain(..)
    }

    fn enabled(config: u32, kind: EventKind) -> bool {
        kind.config_bit() == 0 || config & kind.config_bit() != 0
    }

    fn deliver(&mut self) -> Option<Delivery> {
        let kind = KINDS
            .into_iter()
            .find(|k| self.pending[*k as usize] && !self.masked[*k as usize])?;
        let cmd = self.requests.pop_front()?;
        self.pending[kind as usize] = false;
        self.masked[kind as usize] = true;
        Some((cmd, kind.dword0()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmd(cid: u16) -> CommandRef {
        CommandRef {
            reactor: 0,
            connection: 1,
            cntlid: 1,
            qid: 0,
            cid,
        }
    }

    fn all() -> Events {
        Events::new(u32::MAX)
    }

    #[test]
    fn dwords() {
        assert_eq!(EventKind::NamespaceAttributes.dword0(), 0x0004_0002);
        assert_eq!(EventKind::AnaChange.dword0(), 0x000c_0302);
        assert_eq!(EventKind::DiscoveryLog.dword0(), 0x0070_f002);
        assert_eq!(EventKind::ReservationLog.dword0(), 0x0080_0006);
    }

    #[test]
    fn events_wait_for_requests_and_requests_for_events() {
        let mut e = all();
        assert_eq!(e.raise(EventKind::AnaChange), None);
        assert_eq!(
            e.request(cmd(1)),
            Ok(Some((cmd(1), EventKind::AnaChange.dword0())))
        );
        assert_eq!(e.request(cmd(2)), Ok(None));
        assert_eq!(
            e.raise(EventKind::NamespaceAttributes),
            Some((cmd(2), 0x0004_0002))
        );
    }

    #[test]
    fn a_kind_is_masked_until_its_log_is_read() {
        let mut e = all();
        (1..4).for_each(|i| assert_eq!(e.request(cmd(i)), Ok(None)));
        assert!(e.raise(EventKind::AnaChange).is_some());
        assert_eq!(e.raise(EventKind::AnaChange), None);
        assert_eq!(
            e.raise(EventKind::DiscoveryLog),
            Some((cmd(2), 0x0070_f002)),
            "another kind goes out"
        );
        e.log_read(EventKind::AnaChange);
        assert_eq!(
            e.request(cmd(4)),
            Ok(None),
            "what the log already told is not told again"
        );
        assert_eq!(e.raise(EventKind::AnaChange), Some((cmd(3), 0x000c_0302)));
    }

    #[test]
    fn what_is_not_enabled_is_not_kept() {
        let mut e = Events::new(1 << 8);
        assert_eq!(e.request(cmd(1)), Ok(None));
        assert_eq!(e.raise(EventKind::AnaChange), None);
        e.configure(1 << 11);
        assert_eq!(e.request(cmd(2)), Ok(None));
        assert!(
            e.raise(EventKind::ReservationLog).is_some(),
            "has masks of its own"
        );
    }

    #[test]
    fn the_limit_and_abort() {
        let mut e = all();
        (0..MAX_REQUESTS as u16).for_each(|i| assert_eq!(e.request(cmd(i)), Ok(None)));
        assert_eq!(e.request(cmd(9)), Err(()));
        assert_eq!(e.abort(2), Some(cmd(2)));
        assert_eq!(e.abort(2), None);
        assert_eq!(
            e.take_requests().map(|c| c.cid).collect::<Vec<_>>(),
            [0, 1, 3]
        );
    }
}
