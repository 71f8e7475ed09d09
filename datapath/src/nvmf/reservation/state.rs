//! The reservation table of one namespace and what each command does to it.
//!
//! Invariants (`check`): registrants ascend by host identifier, at most `MAX_REGISTRANTS`; a reservation of one host names a
//! registrant as holder; a reservation of all registrants names none and there is at least one registrant.

/// Registrants of one namespace, at most. Bounds the stored bytes, the report and the copies in views.
pub const MAX_REGISTRANTS: usize = 128;

/// A host's 128-bit identifier (HOSTID of its Connect).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostId(pub [u8; 16]);

impl std::fmt::Debug for HostId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Reservation type (RTYPE).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Only the holder writes, everyone reads.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 2,
    /// Registrants write, everyone reads.
    WriteExclusiveRegistrants = 3,
    /// Registrants read and write.
    ExclusiveAccessRegistrants = 4,
    /// As 3, every registrant is a holder.
    WriteExclusiveAll = 5,
    /// As 4, every registrant is a holder.
    ExclusiveAccessAll = 6,
}

impl Kind {
    /// The type with this RTYPE, if there is one.
    pub fn from_rtype(rtype: u8) -> Option<Kind> {
        Some(match rtype {
            1 => Kind::WriteExclusive,
            2 => Kind::ExclusiveAccess,
            3 => Kind::WriteExclusiveRegistrants,
            4 => Kind::ExclusiveAccessRegistrants,
            5 => Kind::WriteExclusiveAll,
            6 => Kind::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Every registrant holds it.
    pub fn all_registrants(self) -> bool {
        matches!(self, Kind::WriteExclusiveAll | Kind::ExclusiveAccessAll)
    }

    /// Registrants other than the holder have rights by it, so its end concerns them.
    pub fn concerns_registrants(self) -> bool {
        !matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
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

/// A reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its type.
    pub kind: Kind,
    /// The one holder; none where all registrants hold it.
    pub holder: Option<HostId>,
}

/// The table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// GEN of Reservation Report.
    pub generation: u32,
    /// Persist through power loss.
    pub ptpl: bool,
    /// The reservation, if there is one.
    pub held: Option<Held>,
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
    Register { new_key: u64, ptpl: PtplChange },
    /// RREGA 1.
    Unregister { key: Option<u64>, ptpl: PtplChange },
    /// RREGA 2.
    Replace { key: Option<u64>, new_key: u64, ptpl: PtplChange },
    /// RACQA 0.
    Acquire { key: u64, kind: Kind },
    /// RACQA 1, and 2 with `abort`.
    Preempt { key: u64, victim: u64, kind: Kind, abort: bool },
    /// RRELA 0; the type is compared with the one held, so it stays as given.
    Release { key: u64, rtype: u8 },
    /// RRELA 1.
    Clear { key: u64 },
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
    /// The reservation under which the host had rights ended.
    ReservationReleased = 2,
    /// The host's reservation, or all of them, was taken away.
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
        let mut out = Outcome { next: self.clone(), ..Outcome::default() };
        match op {
            Op::Register { new_key, ptpl } => out.next.register(host, new_key, ptpl)?,
            Op::Replace { key, new_key, ptpl } => out.next.replace(host, key, new_key, ptpl)?,
            Op::Unregister { key, ptpl } => {
                out.next.expect_key(host, key)?;
                out.next.generation = out.next.generation.wrapping_add(1);
                out.next.change_ptpl(ptpl);
                out.next.remove(&[host]);
                out.tell_released(self, host);
            }
            Op::Acquire { key, kind } => out.next.acquire(host, key, kind)?,
            Op::Preempt { key, victim, kind, abort } => out.preempt(self, host, key, victim, kind, abort)?,
            Op::Release { key, rtype } => {
                out.next.release(host, key, rtype)?;
                out.tell_released(self, host);
            }
            Op::Clear { key } => {
                self.expect_key(host, Some(key))?;
                out.next = State { generation: self.generation.wrapping_add(1), ptpl: self.ptpl, ..State::default() };
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
        self.held.is_some_and(|h| match h.holder {
            Some(holder) => holder == host,
            None => self.registrant(host).is_some(),
        })
    }

    /// Our own mistakes, caught.
    pub fn check(&self) {
        assert!(self.registrants.len() <= MAX_REGISTRANTS);
        assert!(self.registrants.windows(2).all(|w| w[0].host < w[1].host));
        if let Some(held) = self.held {
            assert!(held.kind.all_registrants() == held.holder.is_none());
            assert!(!self.registrants.is_empty());
            assert!(held.holder.is_none_or(|h| self.registrant(h).is_some()));
        }
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

    fn change_ptpl(&mut self, change: PtplChange) {
        match change {
            PtplChange::Keep => {}
            PtplChange::Clear => self.ptpl = false,
            PtplChange::Set => self.ptpl = true,
        }
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
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn replace(&mut self, host: HostId, key: Option<u64>, new_key: u64, ptpl: PtplChange) -> Result<(), Refusal> {
        if new_key == 0 {
            return Err(Refusal::InvalidField);
        }
        match self.position(host) {
            Ok(i) => {
                self.expect_key(host, key)?;
                self.registrants[i].key = new_key;
            }
            Err(_) if key.is_none() => return self.register(host, new_key, ptpl),
            Err(_) => return Err(Refusal::Conflict),
        }
        self.change_ptpl(ptpl);
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn acquire(&mut self, host: HostId, key: u64, kind: Kind) -> Result<(), Refusal> {
        self.expect_key(host, Some(key))?;
        match self.held {
            None => self.held = Some(Held::of(kind, host)),
            Some(held) if self.holds(host) && held.kind == kind => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(())
    }

    fn release(&mut self, host: HostId, key: u64, rtype: u8) -> Result<(), Refusal> {
        self.expect_key(host, Some(key))?;
        let Some(held) = self.held else { return Ok(()) };
        if !self.holds(host) {
            return Ok(());
        }
        if held.kind as u8 != rtype {
            return Err(Refusal::InvalidField);
        }
        self.held = None;
        Ok(())
    }

    /// Removes registrations, and the reservation with its last holder.
    fn remove(&mut self, hosts: &[HostId]) {
        self.registrants.retain(|r| !hosts.contains(&r.host));
        let orphan = self.held.is_some_and(|h| match h.holder {
            Some(holder) => hosts.contains(&holder),
            None => self.registrants.is_empty(),
        });
        if orphan {
            self.held = None;
        }
    }
}

impl Held {
    fn of(kind: Kind, host: HostId) -> Held {
        Held { kind, holder: (!kind.all_registrants()).then_some(host) }
    }
}

impl Outcome {
    /// 8.1.24.6. Who is unregistered depends on the reservation that is there and on the victim's key.
    fn preempt(
        &mut self,
        before: &State,
        host: HostId,
        key: u64,
        victim: u64,
        kind: Kind,
        abort: bool,
    ) -> Result<(), Refusal> {
        before.expect_key(host, Some(key))?;
        let holder_key = before.held.and_then(|h| h.holder).and_then(|h| before.registrant(h)).map(|r| r.key);
        let takes_all = victim == 0 && before.held.is_some_and(|h| h.kind.all_registrants());
        let takes = takes_all || holder_key == Some(victim);
        if victim == 0 && !takes_all {
            return Err(Refusal::InvalidField);
        }
        let hit = |r: &&Registrant| takes_all || r.key == victim;
        // A host that takes the reservation keeps its registration, even when it preempts itself.
        let removed: Vec<HostId> =
            before.registrants.iter().filter(hit).map(|r| r.host).filter(|h| !(takes && *h == host)).collect();
        if removed.is_empty() && !takes {
            return Err(Refusal::Conflict);
        }
        self.next.generation = self.next.generation.wrapping_add(1);
        self.next.remove(&removed);
        if takes {
            self.next.held = Some(Held::of(kind, host));
        }
        self.tell_preempted(before, host, &removed);
        if abort {
            self.drain = removed.into_iter().filter(|h| *h != host).collect();
        }
        Ok(())
    }

    fn tell_preempted(&mut self, before: &State, by: HostId, removed: &[HostId]) {
        for &host in removed.iter().filter(|h| **h != by) {
            self.notices.push(Notice { host, kind: NoticeKind::RegistrationPreempted });
            if before.holds(host) && before.held != self.next.held {
                self.notices.push(Notice { host, kind: NoticeKind::ReservationPreempted });
            }
        }
        let rights_changed = before.held.is_some_and(|h| h.kind.concerns_registrants())
            && before.held.map(|h| h.kind) != self.next.held.map(|h| h.kind);
        if rights_changed {
            let rest: Vec<HostId> = self.next.registrants.iter().map(|r| r.host).filter(|h| *h != by).collect();
            self.notices.extend(rest.into_iter().map(|host| Notice { host, kind: NoticeKind::ReservationReleased }));
        }
    }

    /// The reservation that was there is gone: those who had rights by it are told.
    fn tell_released(&mut self, before: &State, by: HostId) {
        let ended = before.held.is_some_and(|h| h.kind.concerns_registrants()) && self.next.held.is_none();
        if ended {
            self.tell_others(before, by, NoticeKind::ReservationReleased);
        }
    }

    fn tell_others(&mut self, before: &State, by: HostId, kind: NoticeKind) {
        let others = before.registrants.iter().map(|r| r.host).filter(|h| *h != by);
        self.notices.extend(others.map(|host| Notice { host, kind }));
    }
}
