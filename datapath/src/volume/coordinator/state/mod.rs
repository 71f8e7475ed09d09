//! The states of a coordinator (`docs/replication.md` §7): one [`Machine::apply`] for what happens, one [`Machine::pump`] for what goes out.
//!
//! `apply` notes an event, and says what follows at once: commands that are done, changes of the record, an end. `pump` is called once per pass, after
//! the events of the pass, and when [`Machine::deadline`] has come: it looks at what has lasted too long, stamps what waited, and sends batches,
//! flushes and heartbeats. Neither does I/O nor reads a clock.
//!
//! [`takeover`] is §10, [`serving`] §8, [`change`] K3 to K6, [`peer`] what is known of a replica, [`reading`] what reads ask, [`reserving`] what forwarded commands do, [`resync`] what a resync does, [`snapshots`] §12.

mod adopt;
mod change;
mod peer;
mod reading;
mod reserving;
mod resync;
mod serving;
mod snapshots;
mod takeover;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

pub use reading::Reading;
pub use resync::Subscription;
pub use serving::block_of_volume;
pub use snapshots::{Named, Preparation};

use super::flush::Flushes;
use super::lease::Leases;
use super::members::{Members, Place};
use super::message::{Action, End, Event, Failed, Message, Said};
use super::order::Orderer;
use super::quorum::{Set, Sets};
use super::read::Overlay;
use super::reserve::Reservations;
use super::ring::{Limits, Ring};
use super::set::VolumeRecord;
use super::settled::Settled;
use super::slow::{Patience, Slow};
use crate::cipher::Cipher;
use crate::reactor::Nanos;
use crate::replication::seam::Id;
use crate::replication::wire::refused::Reason;
use crate::store::types::{BLOCKS_MAX, Stamp};
use adopt::Asked;
use change::Transition;
use peer::Peer;
use serving::Queued;
use snapshots::Snapshots;
use takeover::Takeover;

/// Heartbeats in a lease time.
const BEATS: u32 = 5;
/// How long what is stamped may take to settle when the volume is handed over.
const HAND_OVER: Duration = Duration::from_millis(100);

/// What a volume says of itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// Lanes.
    pub lanes: u8,
    /// T of §9.
    pub lease: Duration,
    /// VWC = 1: a write is confirmed when it is written, else when it is stable.
    pub volatile: bool,
    /// A read waits for a heartbeat that was sent after it arrived (§9).
    pub confirmed_reads: bool,
    /// How long commands wait for a quorum before they fail.
    pub command_limit: Duration,
    /// What records may take.
    pub limits: Limits,
    /// With slow members.
    pub patience: Patience,
    /// Snapshots that the volume's records name.
    pub snapshots: Vec<Named>,
    /// Blocks of each lane: so far replicas are compared.
    pub lane_blocks: u64,
    /// Hosts' commands that take longer than this are slow: while more than one in a hundred is, a resync copies less at a time (§11).
    pub foreground: Duration,
    /// Blocks are encrypted by this (§16).
    pub cipher: Option<Rc<dyn Cipher>>,
    /// The set of the record means nothing, since the KVDB was restored (rule 10).
    pub unverified: bool,
}

impl Config {
    /// With defaults, for so many lanes.
    pub fn new(lanes: u8) -> Self {
        Self {
            lanes,
            lease: Duration::from_secs(3),
            volatile: true,
            confirmed_reads: false,
            command_limit: Duration::from_secs(10),
            limits: Limits::default(),
            patience: Patience::default(),
            snapshots: Vec::new(),
            lane_blocks: BLOCKS_MAX,
            foreground: Duration::from_millis(10),
            cipher: None,
            unverified: false,
        }
    }
}

/// The states of §7. *In doubt*, *stalled* and *waiting* follow from what else is known.
#[derive(Debug)]
enum Phase {
    Promising(Takeover),
    Completing(Takeover),
    /// K2 was sent.
    Swapping,
    /// K2 is done; members must keep its set, and give leases.
    Beginning,
    Serving,
    Ended(End),
}

/// A state of §7, as others are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Collects promises.
    Promising,
    /// Too few were heard, or can take part.
    Waiting,
    /// Members have too many unsettled records to list, so a resync must come first (rule 16).
    Degraded,
    /// Brings those who take part to the same state.
    Completing,
    /// K2 was sent, or is done and no lease runs yet.
    Swapping,
    /// Serves.
    Serving,
    /// Serves, by two sets.
    InDoubt,
    /// Too few members are reachable.
    Stalled,
    /// Has ended.
    Ended(End),
}

/// What is known of a replica.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaStatus {
    /// Its id.
    pub id: Id,
    /// There is a session, and it follows.
    pub follows: bool,
    /// What of the streams is not known to be there; `None`: it is not fed.
    pub behind: Option<Limits>,
}

/// A coordinator of one epoch of one volume.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    record: VolumeRecord,
    /// Whom a takeover asks.
    asked: Asked,
    phase: Phase,
    peers: Vec<Peer>,
    sets: Sets,
    orderer: Orderer,
    reservations: Reservations,
    ring: Ring,
    overlay: Overlay,
    settled: Settled,
    leases: Leases,
    slow: Slow,
    flushes: Flushes,
    transition: Option<Transition>,
    /// Writes that have no stamp yet.
    queue: VecDeque<Queued>,
    /// Per lane: everything up to here is acknowledged; the highest that is.
    acked: Box<[(u64, u64)]>,
    /// Those that exist, and the one that is being taken.
    snapshots: Snapshots,
    /// Nothing is acknowledged before this, or before a change was sent: it is being levelled.
    hold: Option<Nanos>,
    /// Writes that wait for stable media though others do not.
    fua: usize,
    /// A read waits for a heartbeat that is not sent yet.
    confirm: bool,
    /// Told to others.
    stalled: bool,
    detaching: Option<Nanos>,
}

impl Machine {
    /// A coordinator that was given this record by K1. It asks for promises as sessions come.
    pub fn new(config: Config, record: VolumeRecord, now: Nanos) -> Self {
        let lanes = config.lanes;
        let none = vec![Stamp { epoch: 0, seq: 0 }; usize::from(lanes)];
        let peers: Vec<Peer> = record.replicas.iter().map(|r| Peer::new(r.0)).collect();
        let mut machine = Self {
            phase: Phase::Promising(Takeover::new(now)),
            asked: Asked::new(config.unverified),
            peers,
            sets: Sets::new(Set {
                members: Members::NONE,
                minimum: record.minimum,
            }),
            orderer: Orderer::new(record.epoch, lanes),
            reservations: Reservations::new(lanes),
            ring: Ring::new(lanes, config.limits),
            overlay: Overlay::new(lanes),
            settled: Settled::new(&none),
            leases: Leases::new(config.lease),
            slow: Slow::new(config.patience),
            flushes: Flushes::default(),
            transition: None,
            queue: VecDeque::new(),
            acked: vec![(0, 0); usize::from(lanes)].into(),
            snapshots: Snapshots::default(),
            hold: None,
            fua: 0,
            confirm: false,
            stalled: false,
            detaching: None,
            config,
            record,
        };
        machine.sets = Sets::new(machine.asked_set());
        machine
    }

    /// Its epoch.
    pub fn epoch(&self) -> u32 {
        self.record.epoch
    }

    /// The record as it is known.
    pub fn record(&self) -> &VolumeRecord {
        &self.record
    }

    /// The place of a replica.
    pub fn place(&self, id: &Id) -> Option<Place> {
        self.peers
            .iter()
            .position(|p| p.id == *id)
            .and_then(Place::new)
    }

    /// The replica at a place.
    pub fn replica(&self, place: Place) -> Option<Id> {
        self.peers.get(place.index()).map(|p| p.id)
    }

    /// What is known of each replica, in the record's order.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        let status = |id: &Id| {
            let place = self.place(id)?;
            Some(ReplicaStatus {
                id: *id,
                follows: self.peers[place.index()].opened,
                behind: self.ring.behind(place),
            })
        };
        let all = self.record.replicas.iter();
        all.filter_map(|(id, _)| status(id)).collect()
    }

    /// Its sets.
    pub fn sets(&self) -> &Sets {
        &self.sets
    }

    /// Its streams.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// What is settled.
    pub fn settled(&self) -> &Settled {
        &self.settled
    }

    /// Where it is.
    pub fn standing(&self) -> Standing {
        match &self.phase {
            Phase::Promising(t) if t.degraded => Standing::Degraded,
            Phase::Promising(_) if self.heard_enough().is_none() => Standing::Waiting,
            Phase::Promising(_) => Standing::Promising,
            Phase::Completing(_) => Standing::Completing,
            Phase::Swapping | Phase::Beginning => Standing::Swapping,
            Phase::Serving if self.stalled => Standing::Stalled,
            Phase::Serving if self.sets.asked().is_some() => Standing::InDoubt,
            Phase::Serving => Standing::Serving,
            Phase::Ended(end) => Standing::Ended(*end),
        }
    }

    /// Something happened.
    pub fn apply(&mut self, event: Event, now: Nanos) -> Vec<Action> {
        let mut out = Vec::new();
        if matches!(self.phase, Phase::Ended(_)) {
            if let Event::Write { token, .. }
            | Event::Flush(token)
            | Event::Snapshot(token, _)
            | Event::DeleteSnapshot(token, _) = event
            {
                out.push(Action::Done(token, Err(Failed::Ended)));
            }
            return out;
        }
        match event {
            Event::Tick => self.tick(now, &mut out),
            Event::Connected(place) => self.connected(place, &mut out),
            Event::Lost(place) => self.lost(place, now),
            Event::Said(place, said) => self.said(place, said, now, &mut out),
            Event::Outcome(outcome) => self.outcome(&outcome, now, &mut out),
            Event::Write {
                token,
                lane,
                what,
                fua,
                given,
            } => self.write(
                Queued {
                    token,
                    lane,
                    what,
                    fua,
                    given,
                    since: now,
                },
                &mut out,
            ),
            Event::Flush(token) => self.flush(token, now, &mut out),
            Event::Snapshot(token, id) => self.want_snapshot(token, id, now, &mut out),
            Event::HoldSnapshot(token, id, limit) => {
                self.hold_snapshot(token, (id, limit), now, &mut out);
            }
            Event::ReleaseSnapshot(token, id) => {
                self.release_snapshot(token, id, now, &mut out);
            }
            Event::DeleteSnapshot(token, id) => self.drop_snapshot(token, id, &mut out),
            Event::Prepared(place) => self.name_snapshots(place, &mut out),
            Event::Subscribe(place) => self.subscribe(place, &mut out),
            Event::Change(wish) => self.wish(wish, now, &mut out),
            Event::Detach => {
                self.detaching.get_or_insert(now);
                self.reservations.void_all();
                for queued in self.queue.drain(..) {
                    out.push(Action::Done(queued.token, Err(Failed::Ended)));
                }
                if !matches!(self.phase, Phase::Serving) {
                    self.end(End::Detached, &mut out);
                }
            }
        }
        out
    }

    /// Sends what there is to send, within what sessions may take now. Once per pass, and at the deadline.
    pub fn pump(&mut self, now: Nanos, credit: &dyn Fn(Place) -> Limits) -> Vec<Action> {
        let mut out = Vec::new();
        self.tick(now, &mut out);
        match self.phase {
            Phase::Ended(_) => return out,
            Phase::Promising(_) => {}
            Phase::Completing(_) => self.complete(now, &mut out),
            Phase::Swapping | Phase::Beginning => {}
            Phase::Serving => {
                self.step_snapshot(now, &mut out);
                self.stamp_queued(now, &mut out);
            }
        }
        if !matches!(self.phase, Phase::Ended(_)) {
            self.feed(credit, &mut out);
            self.send_flushes(now, &mut out);
            self.beat(now, &mut out);
        }
        out
    }

    /// Looks at what has lasted too long.
    fn tick(&mut self, now: Nanos, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Ended(_) => return,
            Phase::Promising(_) => self.try_complete(now, out),
            Phase::Completing(_) => self.drop_lost(now),
            Phase::Swapping => {}
            Phase::Beginning => self.try_serve(now, out),
            Phase::Serving => {
                if self.reservations.expire(now) {
                    // Settled waited for them, perhaps.
                    self.confirmed(now, out);
                }
                self.look_at_members(now);
                self.tell_stalled(out);
                self.hand_over(now, out);
            }
        }
        if !matches!(self.phase, Phase::Ended(_)) {
            self.expire(now, out);
            self.step_transition(now, out);
        }
    }

    /// When to call [`Machine::pump`] at the latest, if nothing happens.
    pub fn deadline(&self, now: Nanos) -> Option<Nanos> {
        let mut next: Option<Nanos> = None;
        let mut soonest = |at: Option<Nanos>| {
            if let Some(at) = at {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
        };
        match &self.phase {
            Phase::Ended(_) => return None,
            Phase::Promising(t) => soonest(t.deadline()),
            Phase::Completing(_) => soonest(Some(now + self.config.patience.slow / 8)),
            Phase::Swapping => {}
            Phase::Beginning | Phase::Serving => {
                soonest(Some(self.beat_due(now)));
                soonest(self.slow.deadline(self.sets.now().members, self.opened()));
                soonest(self.flush_deadline());
                soonest(self.detaching.map(|d| d + HAND_OVER));
                soonest(self.reservations.deadline());
                soonest(self.snapshots.hold_deadline());
            }
        }
        soonest(self.transition_deadline());
        soonest(self.command_deadline());
        // Something is overdue that nothing can be done about now: looked at again soon, not at once.
        next.map(|n| n.max(now + Duration::from_millis(1)))
    }

    fn set_of(&self, record: &VolumeRecord) -> Set {
        Set {
            members: record.members().filter_map(|id| self.place(&id)).collect(),
            minimum: record.minimum,
        }
    }

    fn peer(&mut self, place: Place) -> Option<&mut Peer> {
        self.peers.get_mut(place.index())
    }

    /// Who has a session that was opened.
    fn opened(&self) -> Members {
        let all = self.peers.iter().enumerate();
        all.filter(|(_, p)| p.opened)
            .filter_map(|(n, _)| Place::new(n))
            .collect()
    }

    fn said(&mut self, place: Place, said: Said, now: Nanos, out: &mut Vec<Action>) {
        let Some(peer) = self.peers.get(place.index()) else {
            return;
        };
        if !peer.connected {
            // Of a session that is gone.
            return;
        }
        self.slow.heard(place, now);
        match said {
            Said::Refused { reason, epoch } => self.refused(place, reason, epoch, now, out),
            Said::Promised(state) => self.promised(place, state, out),
            Said::Listed {
                lane,
                records,
                last,
            } => self.listed(place, lane, &records, last, now, out),
            Said::Fetched { lane, stamp, held } => self.fetched(place, lane, stamp, held),
            Said::Opened(state) => self.member_opened(place, &state, now, out),
            Said::Ack { head, lanes, early } => {
                self.acked_by(place, head, &lanes, &early, now, out);
            }
            Said::Heard { number, asked } => {
                match asked {
                    true => self.leases.forget(place),
                    false => self.leases.heard(place, number),
                }
                if matches!(self.phase, Phase::Beginning) {
                    self.try_serve(now, out);
                }
            }
            Said::Having { number, ids } => self.having(place, number, ids, now, out),
            Said::Damaged { lane, .. } if lane >= self.config.lanes => {
                out.push(Action::Cut(place));
            }
            Said::Damaged { lane, block } => {
                // Of one that is copied to it is not known yet what it is to have.
                if self.readable().has(place) {
                    out.push(Action::Repair(place, lane, block));
                }
            }
            Said::Kept { version, level } => {
                if let Some(peer) = self.peer(place) {
                    let kept = if level {
                        &mut peer.level
                    } else {
                        &mut peer.kept
                    };
                    *kept = version.max(*kept);
                }
                self.step_transition(now, out);
                if matches!(self.phase, Phase::Beginning) {
                    self.try_serve(now, out);
                }
            }
        }
    }

    fn refused(
        &mut self,
        place: Place,
        reason: Reason,
        epoch: u32,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        match reason {
            _ if epoch > self.record.epoch => self.end(End::Epoch(epoch), out),
            // The epoch is another process's, or another attempt's (rule 2).
            Reason::Incarnation if epoch == self.record.epoch => self.end(End::Conflict, out),
            Reason::Lost | Reason::Unknown => {
                self.no_member(place, now, out);
                out.push(Action::Cut(place));
            }
            // A later channel may do, if it was started again meanwhile.
            Reason::Failed => {
                self.slow.failed(place, now);
                out.push(Action::Cut(place));
            }
            // It is busy: a later channel may do, and else it counts as slow.
            _ => out.push(Action::Cut(place)),
        }
    }

    /// Nothing is served in this epoch any more.
    fn end(&mut self, end: End, out: &mut Vec<Action>) {
        for lane in self.ring.lanes() {
            let tokens = self.ring.stream(lane).iter().filter_map(|(_, e)| e.token);
            out.extend(tokens.map(|t| Action::Done(t, Err(Failed::Ended))));
        }
        let queued = self.queue.drain(..).map(|q| q.token);
        let waiting = queued
            .chain(self.flushes.drain())
            .chain(self.snapshots.drain());
        out.extend(waiting.map(|t| Action::Done(t, Err(Failed::Ended))));
        if end == End::Detached {
            // Said by whoever has ended: no read of this epoch is answered any more.
            self.release_leases(out);
        }
        for place in self.opened().iter() {
            out.push(Action::Send(place, Message::Close));
        }
        self.ring = Ring::new(self.config.lanes, self.config.limits);
        self.reservations.void_all();
        self.overlay = Overlay::new(self.config.lanes);
        self.transition = None;
        self.phase = Phase::Ended(end);
        out.push(Action::Ended(end));
    }
}
