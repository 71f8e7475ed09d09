//! Changes of the set by the coordinator that serves: K3 to K6, and the outcome of K2 (`docs/replication.md` §3, §8 *Slow*, §11 step 6, rule 3).
//!
//! Before K3, K4 and K6 are sent the members that the new set relies on are *levelled*: what is acknowledged is stable on them. Since writes go on, for the last
//! part of it acknowledgements are held for a moment; stamping goes on.

use std::time::Duration;

use super::super::members::{Members, PLACES_MAX, Place};
use super::super::message::{Action, End, Message, State, Wish};
use super::super::quorum::Sets;
use super::super::set::{
    AGAIN_MS, Change, NotNow, Outcome, Pending, ReplicaState, Verdict, VolumeRecord,
};
use super::super::slow::Seen;
use super::peer::Peer;
use super::{Machine, Phase};
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::Id;
use crate::store::types::Stamp;

/// Acknowledgements are held for so long at most, and then not for [`REST`].
const HOLD: Duration = Duration::from_millis(100);
const REST: Duration = Duration::from_millis(400);
/// A change that cannot be sent for so long is given up, and may be tried again.
const GIVE_UP: Duration = Duration::from_secs(4);
const AGAIN: Duration = Duration::from_millis(AGAIN_MS);

#[derive(Debug)]
enum Step {
    /// A replica that joins notes that it is level for this version.
    Note(Place, u64),
    /// These become level.
    Level(Members),
    /// The KVDB has it, or not.
    Sent(Pending),
    /// It is done; members must keep the new set before it is used (rule 10).
    Keep,
}

/// A change that is under way.
#[derive(Debug)]
pub(super) struct Transition {
    change: Change,
    wish: Option<Wish>,
    step: Step,
    since: Nanos,
    /// No acknowledgement is held before this.
    rest: Nanos,
}

impl Transition {
    /// K2.
    pub fn serve(
        before: &VolumeRecord,
        record: VolumeRecord,
        now: Nanos,
        out: &mut Vec<Action>,
    ) -> Self {
        let change = Change::Serve(record.members().collect());
        let pending = Pending::new(before, change.clone(), record, now);
        out.push(Action::Submit(pending.request.clone()));
        Self {
            change,
            wish: None,
            step: Step::Sent(pending),
            since: now,
            rest: now,
        }
    }

    /// Whether members should flush for it.
    pub fn levels(&self) -> bool {
        matches!(self.step, Step::Level(_))
    }
}

impl Machine {
    /// What a wish comes to now.
    fn plan(&self, wish: &Wish) -> Result<(Change, Step), NotNow> {
        if !matches!(self.phase, Phase::Serving) {
            return Err(NotNow::Phase);
        }
        if self.transition.is_some() {
            return Err(NotNow::Busy);
        }
        let id = |place: Place| {
            let peer = self.peers.get(place.index());
            peer.map(|p| p.id).ok_or(NotNow::State)
        };
        let members = self.sets.now().members;
        let (change, step) = match wish {
            Wish::Join(place) => {
                // A member could lack a record up to s0 that this one has by copies only, and lists nowhere.
                let settled = self.s0(*place).is_some_and(|s0| {
                    let mut lanes = self.ring.lanes().zip(s0);
                    lanes.all(|(lane, s0)| self.settled.of(lane) >= *s0)
                });
                let fed = self.ring.fed().has(*place) && self.opened().has(*place);
                if !settled || !fed || members.has(*place) {
                    return Err(NotNow::State);
                }
                let step = Step::Note(*place, self.record.version + 1);
                (Change::Join(id(*place)?), step)
            }
            Wish::Exclude(place) => {
                let change = Change::Exclude(vec![id(*place)?]);
                (change, Step::Level(members.without(*place)))
            }
            Wish::Add(id) => (Change::Add(*id), Step::Level(Members::NONE)),
            Wish::Leave(id) => {
                // As for K3, if it is a member.
                let stay = match self.place(id).filter(|p| members.has(*p)) {
                    Some(place) => members.without(place),
                    None => Members::NONE,
                };
                (Change::Leave(*id), Step::Level(stay))
            }
            Wish::Remove(id) => (Change::Remove(*id), Step::Level(Members::NONE)),
            // W may rise, and with it fewer are asked in a takeover: what is acknowledged must be on all.
            Wish::Minimum(m) => (Change::Minimum(*m), Step::Level(members)),
        };
        self.record.after(&change)?;
        Ok((change, step))
    }

    /// Whether a wish can be begun with now.
    ///
    /// # Errors
    /// [`NotNow`].
    pub fn may(&self, wish: &Wish) -> Result<(), NotNow> {
        self.plan(wish).map(drop)
    }

    pub(super) fn wish(&mut self, wish: Wish, now: Nanos, out: &mut Vec<Action>) {
        let Ok((change, step)) = self.plan(&wish) else {
            return out.push(Action::NotMet(wish));
        };
        if matches!(wish, Wish::Add(_)) && self.peers.len() >= PLACES_MAX {
            // A place never gets another replica in an epoch; the next one begins with those that there are.
            tracing::info!("this epoch has seen as many replicas as it can: another begins");
            out.push(Action::NotMet(wish));
            return self.end(End::Again, out);
        }
        if let Step::Note(place, version) = step {
            if !self.peers[place.index()].told {
                self.heartbeat(now, out);
            }
            let mut members: Vec<Id> = self.record.members().collect();
            members.push(self.peers[place.index()].id);
            let level = Message::Set {
                version,
                members,
                level: true,
            };
            out.push(Action::Send(place, level));
        }
        self.transition = Some(Transition {
            change,
            wish: Some(wish),
            step,
            since: now,
            rest: now,
        });
        self.step_transition(now, out);
    }

    pub(super) fn set_message(&self) -> Message {
        Message::Set {
            version: self.record.version,
            members: self.record.members().collect(),
            level: false,
        }
    }

    /// Everybody who shall keep the set is told what it is.
    pub(super) fn tell_set(&self, out: &mut Vec<Action>) {
        let message = self.set_message();
        for place in self.opened().and(self.ring.fed()).iter() {
            out.push(Action::Send(place, message.clone()));
        }
    }

    /// Who keeps the set of this version, or a later one.
    pub(super) fn who_keeps(&self, version: u64) -> Members {
        let all = self.peers.iter().enumerate();
        all.filter(|(_, p)| p.kept >= version)
            .filter_map(|(n, _)| Place::new(n))
            .collect()
    }

    /// Who must have something stable before it is settled; `None` while one is gapped.
    pub(super) fn settling(&self) -> Option<Members> {
        let everyone = self.sets.everyone();
        self.sets
            .gapped()
            .and(everyone)
            .is_empty()
            .then_some(everyone)
    }

    /// Goes on with the change that is under way, as far as it goes.
    pub(super) fn step_transition(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(transition) = &mut self.transition else {
            return;
        };
        match &mut transition.step {
            Step::Note(place, version) => {
                let (place, version) = (*place, *version);
                let kept = self.peers[place.index()].level >= version;
                let there = self.peers[place.index()].opened && self.ring.fed().has(place);
                match () {
                    () if kept && there => {
                        transition.step = Step::Level(Members::one(place));
                        self.level(now, out);
                    }
                    () if !there || now >= transition.since + GIVE_UP => self.give_up(now, out),
                    () => {}
                }
            }
            Step::Level(_) => self.level(now, out),
            Step::Sent(pending) => {
                if now >= pending.sent + AGAIN {
                    pending.sent = now;
                    out.push(Action::Submit(pending.request.clone()));
                }
            }
            Step::Keep => self.use_set(now, out),
        }
    }

    /// Sends the change if those who must be are level.
    fn level(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(Transition {
            step: Step::Level(who),
            since,
            rest,
            ..
        }) = &self.transition
        else {
            return;
        };
        let (who, since, rest) = (*who, *since, *rest);
        let mut written = true;
        let mut stable = true;
        if !who.is_empty() {
            for lane in self.ring.lanes() {
                // What is settled was stable on the old set: who joins must have it too.
                let acked = self.acked[usize::from(lane)].1;
                let needs = acked.max(self.settled.position(lane));
                let at = self.ring.at_all(who, lane).unwrap_or((0, 0));
                written &= at.0 >= needs;
                stable &= at.1 >= needs;
            }
            // Of who is not fed nothing is known, whatever was needed.
            stable &= who.within(self.ring.fed());
        }
        if stable || planted::is(Bug::NotLevelled) {
            return self.send_change(now, out);
        }
        if now >= since + GIVE_UP {
            return self.give_up(now, out);
        }
        match self.hold {
            Some(until) if now >= until => {
                self.hold = None;
                if let Some(t) = &mut self.transition {
                    t.rest = now + REST;
                }
                self.recheck(now, out);
            }
            None if written && now >= rest => self.hold = Some(now + HOLD),
            _ => {}
        }
    }

    fn send_change(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(transition) = &mut self.transition else {
            return;
        };
        let Ok(record) = self.record.after(&transition.change) else {
            // The record changed since it was asked for.
            return self.give_up(now, out);
        };
        let pending = Pending::new(&self.record, transition.change.clone(), record, now);
        let asked = pending.request.record.clone();
        out.push(Action::Submit(pending.request.clone()));
        transition.step = Step::Sent(pending);
        transition.since = now;
        // From here on both sets must agree; only then are held writes looked at.
        self.sets.ask(self.set_of(&asked));
        self.hold = None;
        self.recheck(now, out);
    }

    fn give_up(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let gone = self.transition.take();
        out.extend(gone.and_then(|t| t.wish).map(Action::NotMet));
        if self.hold.take().is_some() {
            self.recheck(now, out);
        }
    }

    /// Gives up a K4 of this replica that was not sent. False: there was none.
    pub(super) fn give_up_join(&mut self, place: Place, now: Nanos, out: &mut Vec<Action>) -> bool {
        let joins = self.transition.as_ref().is_some_and(|t| {
            t.wish == Some(Wish::Join(place)) && matches!(t.step, Step::Note(..) | Step::Level(_))
        });
        if joins {
            self.give_up(now, out);
        }
        joins
    }

    pub(super) fn outcome(&mut self, outcome: &Outcome, now: Nanos, out: &mut Vec<Action>) {
        let Some(transition) = &mut self.transition else {
            return;
        };
        let Step::Sent(pending) = &mut transition.step else {
            return;
        };
        let record = pending.request.record.clone();
        let k2 = matches!(transition.change, Change::Serve(_));
        match pending.judge(outcome) {
            // It was sent, and is sent again when its time has come.
            Verdict::Again => {}
            Verdict::Done => {
                self.record = match outcome {
                    Outcome::Conflict(there) => there.clone(),
                    _ => record,
                };
                transition.step = Step::Keep;
                self.adopt_replicas(out);
                if k2 {
                    self.transition = None;
                    let set = self.set_of(&self.record);
                    // Whoever lost a lane since is in the set, and does not count.
                    let gapped = set.members.minus(self.ring.fed());
                    self.sets = Sets::new(set);
                    self.sets.gap(gapped);
                    self.let_go(now, out);
                    self.begin(now, out);
                } else {
                    self.tell_set(out);
                    self.use_set(now, out);
                }
            }
            Verdict::Withdrawn(there) => {
                let change = transition.change.clone();
                let before = std::mem::replace(&mut self.record, there);
                self.adopt_replicas(out);
                if k2 {
                    // Nothing else ends a takeover: again, on the record as it is.
                    match self.record.after(&change) {
                        Ok(record) => {
                            let again = Transition::serve(&self.record, record, now, out);
                            self.transition = Some(again);
                        }
                        Err(_) => self.end(End::Again, out),
                    }
                    return;
                }
                tracing::info!(
                    from = before.version,
                    to = self.record.version,
                    "a change of the set was overtaken"
                );
                self.sets.withdraw();
                self.give_up(now, out);
                self.let_go(now, out);
                self.recheck(now, out);
            }
            // The next epoch finds out what the record allows.
            Verdict::Refused if k2 => self.end(End::Again, out),
            Verdict::Refused => {
                tracing::error!(change = ?transition.change, "a change of the set was refused");
                self.sets.withdraw();
                self.give_up(now, out);
                self.recheck(now, out);
            }
            Verdict::Ended => {
                let end = match outcome {
                    Outcome::Conflict(there) if there.epoch > self.record.epoch => {
                        End::Epoch(there.epoch)
                    }
                    _ => End::Conflict,
                };
                self.end(end, out);
            }
            Verdict::Alarm => self.end(End::Alarm("the record is not as it was asked for"), out),
        }
    }

    /// Replicas that were added get places.
    fn adopt_replicas(&mut self, out: &mut Vec<Action>) {
        for (id, _) in &self.record.replicas {
            let known = self.peers.iter().any(|p| p.id == *id);
            if let Some(place) = Place::new(self.peers.len()).filter(|_| !known) {
                self.peers.push(Peer::new(*id));
                out.push(Action::Added(place));
            }
        }
    }

    /// Nothing is said any more to replicas that go, or have gone, when the set without them is used.
    fn let_go(&mut self, now: Nanos, out: &mut Vec<Action>) {
        for place in (0..self.peers.len()).filter_map(Place::new) {
            let id = self.peers[place.index()].id;
            let state = self.record.replicas.iter().find(|r| r.0 == id);
            let stays = state.is_some_and(|r| r.1 != ReplicaState::Leaving);
            if stays || self.peers[place.index()].gone || self.sets.everyone().has(place) {
                continue;
            }
            self.ring.leave(place);
            self.lost(place, now);
            let peer = &mut self.peers[place.index()];
            peer.gone = true;
            peer.subscriber = false;
            out.push(Action::Gone(place));
        }
    }

    /// A change is used once its set is durable on a write quorum of it.
    fn use_set(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(asked) = self.sets.asked() else {
            return;
        };
        let kept = self.who_keeps(self.record.version);
        if !asked.reached(kept) {
            return;
        }
        let old = self.sets.now().members;
        self.sets.done();
        self.transition = None;
        for place in old.minus(asked.members).iter() {
            if self.opened().has(place) {
                out.push(Action::Send(place, Message::Close));
            }
            self.ring.leave(place);
            self.leases.forget(place);
            self.peers[place.index()].opened = false;
        }
        if !old.within(asked.members) {
            for place in old.and(asked.members).iter() {
                self.slow.relieved(place, now);
            }
        }
        for place in asked.members.minus(old).iter() {
            self.peers[place.index()].subscriber = false;
            self.slow.forget(place, now);
        }
        self.let_go(now, out);
        out.push(Action::SetChanged);
        self.recheck(now, out);
    }

    /// Whether a change was sent and nothing came of it for a while: the KVDB is away.
    pub(super) fn cannot_change(&self, now: Nanos) -> bool {
        self.transition
            .as_ref()
            .is_some_and(|t| matches!(t.step, Step::Sent(_)) && now >= t.since + AGAIN)
    }

    pub(super) fn transition_deadline(&self) -> Option<Nanos> {
        let t = self.transition.as_ref()?;
        match &t.step {
            Step::Level(_) => Some(self.hold.unwrap_or(t.rest).max(t.since)),
            Step::Sent(pending) => Some(pending.sent + AGAIN),
            Step::Note(..) | Step::Keep => Some(t.since + GIVE_UP),
        }
    }

    /// Excludes whoever is slow, if that is allowed and may help.
    pub(super) fn look_at_members(&mut self, now: Nanos) {
        let set = self.sets.now();
        let opened = self.opened();
        let holds_up = self.who_holds_up();
        let ahead = self
            .sets
            .counted()
            .and(opened)
            .iter()
            .filter(|p| !self.ring.half_behind(*p))
            .collect();
        let others = self.sets.reached(ahead);
        let mut bad = Vec::new();
        for place in set.members.iter() {
            let gapped = self.sets.gapped().has(place);
            let seen = Seen {
                connected: opened.has(place),
                half: others && self.ring.half_behind(place),
                full: others && self.ring.full(place) || gapped,
                holds_up: holds_up.has(place),
                waits_at: self.ring.waits_at(place),
            };
            if self.slow.look(place, seen, now) {
                bad.push(place);
            }
        }
        if bad.is_empty() || self.transition.is_some() || self.detaching.is_some() {
            return;
        }
        // Never below the minimum (rule 17): those who are there stay longest.
        bad.sort_by_key(|p| opened.has(*p));
        let spare = set
            .members
            .count()
            .saturating_sub(match planted::is(Bug::BelowMinimum) {
                true => 1,
                false => u32::from(set.minimum).max(1),
            });
        bad.truncate(spare as usize);
        let gone: Members = bad.into_iter().collect();
        let stay = set.members.minus(gone);
        if gone.is_empty() || !stay.within(opened) {
            return;
        }
        let ids: Vec<Id> = gone.iter().map(|p| self.peers[p.index()].id).collect();
        let change = Change::Exclude(ids);
        if self.record.after(&change).is_err() {
            return;
        }
        tracing::warn!(?gone, "members are slow or gone, and are excluded");
        self.transition = Some(Transition {
            change,
            wish: None,
            step: Step::Level(stay),
            since: now,
            rest: now,
        });
    }

    /// Who counts and has not confirmed a lane's oldest write, where it waits for somebody.
    fn who_holds_up(&self) -> Members {
        let lanes = self.ring.lanes().filter_map(|lane| {
            let (position, _) = self.oldest_waiting(lane)?;
            let has = self.ring.confirmed(lane, position);
            let waits = !self.sets.reached(has);
            waits.then(|| self.sets.counted().minus(has))
        });
        lanes
            .fold(Members::NONE, Members::or)
            .or(self.lack_snapshot().and(self.sets.counted()))
    }

    /// A replica that was copied to is about to join.
    pub(super) fn joins(&self) -> Option<Place> {
        match self.transition.as_ref()?.wish {
            Some(Wish::Join(place)) => Some(place),
            _ => None,
        }
    }

    /// A replica that is no member is to be fed.
    pub(super) fn subscribe(&mut self, place: Place, out: &mut Vec<Action>) {
        let member = self.sets.everyone().has(place);
        let fed = self.ring.fed().has(place);
        let (version, attempt) = (self.record.version, self.record.attempt);
        let serving = matches!(self.phase, Phase::Serving);
        match self.peer(place).filter(|_| serving && !member && !fed) {
            // Asked on this session already.
            Some(peer) if peer.subscriber && peer.connected => {}
            Some(peer) => {
                peer.subscriber = true;
                if peer.connected {
                    let promise = Message::Promise { version, attempt };
                    out.push(Action::Send(place, promise));
                }
            }
            None => out.push(Action::NotMet(Wish::Join(place))),
        }
    }

    /// It has promised, and is to follow; what it is fed begins when it has all snapshots.
    pub(super) fn subscribed(&mut self, place: Place, state: &State, out: &mut Vec<Action>) {
        let lost = state.lanes.len() != usize::from(self.config.lanes)
            || state.lanes.iter().any(|l| l.lost);
        if lost || self.ring.fed().has(place) {
            return;
        }
        self.peers[place.index()].boot = Some(state.boot);
        out.push(Action::Send(place, self.set_message()));
        self.open(place, out);
    }

    /// s0 of a subscription, by lane (§11 step 2).
    pub fn s0(&self, place: Place) -> Option<&[Stamp]> {
        self.peers.get(place.index())?.s0.as_deref()
    }
}
