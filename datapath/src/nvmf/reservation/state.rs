//! The reservation table of one namespace and what each command does to it.
//!
//! Invariants (`check`): registrants ascend by host identifier, at most `MAX_REGISTRANTS`; a reservation of one host names a
//! registrant as holder; a reservation of all registrants names none, and there is at least one registrant.

use crate::nvmf::seam::{HostId, ReservationType, ReservationView};

/// Registrants of one namespace, at most. Bounds the stored bytes, the report and the copies in views.
pub const MAX_REGISTRANTS: usize = 128;

impl ReservationType {
    /// The type with this RTYPE; zero is none, and what is not defined is refused.
    pub fn from_rtype(rtype: u8) -> Option<Self> {
        Some(match rtype {
            0 => Self::None,
            1 => Self::WriteExclusive,
            2 => Self::ExclusiveAccess,
            3 => Self::WriteExclusiveRegistrants,
            4 => Self::ExclusiveAccessRegistrants,
            5 => Self::WriteExclusiveAll,
            6 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Every registrant holds it.
    pub fn all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    /// Registrants other than the holder have rights by it, so its end concerns them.
    pub fn concerns_registrants(self) -> bool {
        self as u8 >= Self::WriteExclusiveRegistrants as u8
    }
}

/// A registered host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registrant {
    /// Who.
    pub host: HostId,
    /// Its reservation key, never zero.
    pub key: u64,
}

/// The table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// GEN of Reservation Report.
    pub generation: u32,
    /// Persist through power loss.
    pub ptpl: bool,
    /// The reservation that is held.
    pub kind: ReservationType,
    /// Its one holder; none where there is no reservation or all registrants hold it.
    pub holder: Option<HostId>,
    /// Ascending by host.
    pub registrants: Vec<Registrant>,
}

/// CPTPL of Reservation Register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PtplChange {
    /// Leave it.
    Keep,
    /// Clear it.
    Clear,
    /// Set it.
    Set,
}

/// What a host asks for. `key` is the current key it gives; `None` where IEKEY says to ignore it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// RREGA 0.
    Register {
        /// NRKEY.
        new_key: u64,
        /// CPTPL.
        ptpl: PtplChange,
    },
    /// RREGA 1.
    Unregister {
        /// CRKEY.
        key: Option<u64>,
        /// CPTPL.
        ptpl: PtplChange,
    },
    /// RREGA 2.
    Replace {
        /// CRKEY.
        key: Option<u64>,
        /// NRKEY.
        new_key: u64,
        /// CPTPL.
        ptpl: PtplChange,
    },
    /// RACQA 0.
    Acquire {
        /// CRKEY.
        key: u64,
        /// RTYPE, never none.
        kind: ReservationType,
    },
    /// RACQA 1, and 2 with `abort`.
    Preempt {
        /// CRKEY.
        key: u64,
        /// PRKEY.
        victim: u64,
        /// RTYPE, never none.
        kind: ReservationType,
        /// The victims' commands must end first.
        abort: bool,
    },
    /// RRELA 0; the type is compared with the one held, so it stays as given.
    Release {
        /// CRKEY.
        key: u64,
        /// RTYPE.
        rtype: u8,
    },
    /// RRELA 1.
    Clear {
        /// CRKEY.
        key: u64,
    },
    /// Set Features 83h.
    Persist(bool),
}

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Not a registrant, a wrong key, or somebody else holds it.
    #[error("reservation conflict")]
    Conflict,
    /// The command makes no sense in this state.
    #[error("invalid field")]
    InvalidField,
    /// `MAX_REGISTRANTS` are there.
    #[error("no room for another registrant")]
    Full,
}

/// Notification types of log page 80h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NoticeKind {
    /// The host's registration was removed by another host.
    RegistrationPreempted = 1,
    /// The reservation by which the host had rights ended.
    ReservationReleased = 2,
    /// The host's reservation, or every registration, was taken away.
    ReservationPreempted = 3,
}

/// To tell all controllers of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notice {
    /// Whom.
    pub host: HostId,
    /// What.
    pub kind: NoticeKind,
}

/// What an accepted command leads to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// The table afterwards.
    pub next: State,
    /// Who is told, once it is in force.
    pub notices: Vec<Notice>,
    /// Hosts whose commands must have left the namespace before the command completes (preempt and abort).
    pub drain: Vec<HostId>,
}

impl State {
    /// What `op` by `host` leads to. Nothing changes here.
    pub fn apply(&self, host: HostId, op: Op) -> Result<Outcome, Refusal> {
        let mut out = Outcome {
            next: self.clone(),
            ..Outcome::default()
        };
        match op {
            Op::Register { new_key, ptpl } => out.next.register(host, new_key, ptpl)?,
            Op::Replace { key, new_key, ptpl } => out.next.replace(host, key, new_key, ptpl)?,
            Op::Unregister { key, ptpl } => {
                self.expect_key(host, key)?;
                out.next.bump();
                out.next.change_ptpl(ptpl);
                out.next.remove(&[host]);
                out.tell_released(self, host);
            }
            Op::Acquire { key, kind } => out.next.acquire(host, key, kind)?,
            Op::Preempt {
                key,
                victim,
                kind,
                abort,
            } => {
                self.expect_key(host, Some(key))?;
                out.preempt(self, host, victim, kind)?;
                if abort {
                    out.drain = out.removed(self).filter(|h| *h != host).collect();
                }
            }
            Op::Release { key, rtype } => {
                out.next.release(host, key, rtype)?;
                out.tell_released(self, host);
            }
            Op::Clear { key } => {
                self.expect_key(host, Some(key))?;
                out.next = State {
                    generation: self.generation,
                    ptpl: self.ptpl,
                    ..State::default()
                };
                out.next.bump();
                out.tell_others(self, host, NoticeKind::ReservationPreempted);
            }
            Op::Persist(on) => out.next.ptpl = on,
        }
        out.next.check();
        Ok(out)
    }

    /// The registration of `host`.
    pub fn registrant(&self, host: HostId) -> Option<Registrant> {
        self.position(host).ok().map(|i| self.registrants[i])
    }

    /// `host` holds the reservation.
    pub fn holds(&self, host: HostId) -> bool {
        match self.holder {
            Some(holder) => holder == host,
            None => self.kind.all_registrants() && self.registrant(host).is_some(),
        }
    }

    /// What the I/O path needs to decide.
    pub fn view(&self) -> ReservationView {
        let registrants = match self.kind {
            ReservationType::None => Vec::new(),
            _ => self.registrants.iter().map(|r| r.host).collect(),
        };
        ReservationView {
            kind: self.kind,
            holder: self.holder,
            registrants,
        }
    }

    /// What is stored of it: all, or nothing but the counter without PTPL.
    pub fn persistent(&self) -> State {
        match self.ptpl {
            true => self.clone(),
            false => State::default(),
        }
    }

    /// Our own mistakes, caught.
    pub fn check(&self) {
        assert!(self.registrants.len() <= MAX_REGISTRANTS);
        assert!(self.registrants.windows(2).all(|w| w[0].host < w[1].host));
        let one_holder = self.kind != ReservationType::None && !self.kind.all_registrants();
        assert!(one_holder == self.holder.is_some());
        assert!(self.holder.is_none_or(|h| self.registrant(h).is_some()));
        assert!(self.kind == ReservationType::None || !self.registrants.is_empty());
    }

    fn position(&self, host: HostId) -> Result<usize, usize> {
        self.registrants.binary_search_by_key(&host, |r| r.host)
    }

    fn expect_key(&self, host: HostId, key: Option<u64>) -> Result<(), Refusal> {
        match self.registrant(host) {
            Some(r) if key.is_none_or(|k| k == r.key) => Ok(()),
            _ => Err(Refusal::Conflict),
        }
    }

    pub(super) fn bump(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn change_ptpl(&mut self, change: PtplChange) {
        match change {
            PtplChange::Keep => {}
            PtplChange::Clear => self.ptpl = false,
            PtplChange::Set => self.ptpl = true,
        }
    }

    pub(super) fn hold(&mut self, kind: ReservationType, host: HostId) {
        self.kind = kind;
        self.holder = (!kind.all_registrants()).then_some(host);
    }

    fn let_go(&mut self) {
        self.kind = ReservationType::None;
        self.holder = None;
    }

    fn register(&mut self, host: HostId, key: u64, ptpl: PtplChange) -> Result<(), Refusal> {
        if key == 0 {
            return Err(Refusal::InvalidField);
        }
        match self.position(host) {
            Ok(i) if self.registrants[i].key != key => return Err(Refusal::Conflict),
            Ok(_) => {}
            Err(_) if self.registrants.len() == MAX_REGISTRANTS => return Err(Refusal::Full),
            Err(i) => self.registrants.insert(i, Registrant { host, key }),
        }
        self.change_ptpl(ptpl);
        self.bump();
        Ok(())
    }

    fn replace(
        &mut self,
        host: HostId,
        key: Option<u64>,
        new_key: u64,
        ptpl: PtplChange,
    ) -> Result<(), Refusal> {
        let Ok(i) = self.position(host) else {
            return if key.is_none() {
                self.register(host, new_key, ptpl)
            } else {
                Err(Refusal::Conflict)
            };
        };
        self.expect_key(host, key)?;
        if new_key == 0 {
            return Err(Refusal::InvalidField);
        }
        self.registrants[i].key = new_key;
        self.change_ptpl(ptpl);
        self.bump();
        Ok(())
    }

    fn acquire(&mut self, host: HostId, key: u64, kind: ReservationType) -> Result<(), Refusal> {
        self.expect_key(host, Some(key))?;
        if self.kind == ReservationType::None {
            self.hold(kind, host);
            return Ok(());
        }
        if self.holds(host) && self.kind == kind {
            Ok(())
        } else {
            Err(Refusal::Conflict)
        }
    }

    /// A release by a host that holds nothing succeeds and does nothing.
    fn release(&mut self, host: HostId, key: u64, rtype: u8) -> Result<(), Refusal> {
        self.expect_key(host, Some(key))?;
        if !self.holds(host) {
            return Ok(());
        }
        if self.kind as u8 != rtype {
            return Err(Refusal::InvalidField);
        }
        self.let_go();
        Ok(())
    }

    /// Removes registrations, and the reservation with its last holder.
    pub(super) fn remove(&mut self, hosts: &[HostId]) {
        self.registrants.retain(|r| !hosts.contains(&r.host));
        let orphan = self.holder.is_some_and(|h| hosts.contains(&h)) || self.registrants.is_empty();
        if orphan {
            self.let_go();
        }
    }
}
