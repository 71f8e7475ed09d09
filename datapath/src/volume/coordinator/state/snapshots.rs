//! Snapshots (`docs/replication.md` §12, rule 12): one record in each lane's stream, all put in at one moment; a snapshot exists when every member has it.
//!
//! What is stamped behind a snapshot is acknowledged when all before it is, whatever its lane: so the snapshot is what all lanes showed at one moment, the one
//! at which the last of what came before was acknowledged.
//!
//! Which snapshots there are is said to every replica whenever it follows anew; what is not named is deleted there. A replica that is to be copied to
//! says which of them it has, and gets the others, as copies, before it is fed. One that is being copied to when a snapshot is taken begins anew: its lanes are not
//! what they are at others yet.

use std::rc::Rc;
use std::time::Duration;

use super::super::flush::Token;
use super::super::members::{Members, Place};
use super::super::message::{Action, Failed, Message};
use super::super::order::{Entry, stamps_of};
use super::adopt::Asked;
use super::{End, Machine, Phase};
use crate::reactor::Nanos;
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::replication::wire::snapshots::SNAPSHOTS_MAX;
use crate::store::types::{SnapshotId, Stamp};

/// A snapshot that the volume's records name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its id.
    pub id: SnapshotId,
    /// It exists. If not, an earlier epoch was to take it: it exists if all who take part have it.
    pub ready: bool,
}

/// A replica that follows and is not fed: it lacks snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preparation {
    /// Which it lacks, in the order in which they are to be copied.
    pub missing: Vec<SnapshotId>,
    /// By which channel.
    opening: u64,
}

/// The one that is being taken.
#[derive(Debug)]
struct Pending {
    id: SnapshotId,
    tokens: Vec<(Token, Nanos)>,
    /// Where its records are, by lane.
    at: Vec<u64>,
}

/// One that is for several volumes at one moment (§22): what came behind it is not acknowledged before all of them have put theirs in.
#[derive(Debug)]
struct Hold {
    id: SnapshotId,
    /// Where its records are, by lane.
    at: Vec<u64>,
    until: Nanos,
}

/// One that waits for its turn.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    token: Token,
    id: SnapshotId,
    since: Nanos,
    /// It is for several volumes, and is held for so long at most: the token's command is over when it is.
    hold: Option<Duration>,
}

/// Those of a coordinator.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// They exist; the oldest first.
    there: Vec<SnapshotId>,
    /// Named by the record, and not there: never to be taken.
    void: Vec<SnapshotId>,
    pending: Option<Pending>,
    /// One that waits for its turn.
    wanted: Option<Wanted>,
    /// Where the last one's records are, while something before them is not acknowledged.
    barrier: Option<Vec<u64>>,
    /// The one that is for several volumes, as long as it is held.
    hold: Option<Hold>,
    /// The last one that was held until it was released.
    released: Option<SnapshotId>,
    asked: u64,
}

impl Snapshots {
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether a record waits for what came before a snapshot.
    pub fn holds(&self, lane: u8, position: u64) -> bool {
        let behind = |at: &Vec<u64>| position > at[usize::from(lane)];
        let hold = self.hold.as_ref();
        let hold = hold.filter(|_| !planted::is(Bug::GroupNotHeld));
        self.barrier.as_ref().is_some_and(behind) || hold.is_some_and(|h| behind(&h.at))
    }

    /// When what is held is held no more.
    pub fn hold_deadline(&self) -> Option<Nanos> {
        self.hold.as_ref().map(|h| h.until)
    }

    /// When the oldest command came.
    pub fn oldest(&self) -> Option<Nanos> {
        let taking = self
            .pending
            .iter()
            .flat_map(|p| p.tokens.iter().map(|t| t.1));
        taking.chain(self.wanted.iter().map(|w| w.since)).min()
    }

    /// All commands.
    pub fn drain(&mut self) -> impl Iterator<Item = Token> + use<> {
        let pending = self.pending.take().into_iter();
        let tokens: Vec<Token> = pending.flat_map(|p| p.tokens).map(|t| t.0).collect();
        tokens
            .into_iter()
            .chain(self.wanted.take().map(|w| w.token))
    }
}

impl Machine {
    /// Snapshots that exist, the oldest first.
    pub fn snapshots(&self) -> &[SnapshotId] {
        &self.snapshots.there
    }

    pub(super) fn want_snapshot(
        &mut self,
        token: Token,
        id: SnapshotId,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let failed = match &mut self.snapshots {
            _ if self.detaching.is_some() => Failed::Ended,
            s if s.there.contains(&id) => return out.push(Action::Done(token, Ok(()))),
            s if s.void.contains(&id) => Failed::NeverTaken,
            _ if !matches!(self.phase, Phase::Serving) => Failed::Stalled,
            s if s.pending.as_ref().is_some_and(|p| p.id == id) => {
                return s
                    .pending
                    .iter_mut()
                    .for_each(|p| p.tokens.push((token, now)));
            }
            s if s.wanted.is_some() => Failed::Busy,
            s if s.there.len() + 2 > SNAPSHOTS_MAX => Failed::TooMany,
            s => {
                s.wanted = Some(Wanted {
                    token,
                    id,
                    since: now,
                    hold: None,
                });
                return;
            }
        };
        out.push(Action::Done(token, Err(failed)));
    }

    /// Puts a snapshot in, and holds what comes behind it: done when that is so. Asked again it is, as long as it is held.
    pub(super) fn hold_snapshot(
        &mut self,
        token: Token,
        (id, limit): (SnapshotId, Duration),
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let failed = match &mut self.snapshots {
            _ if self.detaching.is_some() => Failed::Ended,
            s if s.hold.as_ref().is_some_and(|h| h.id == id) => {
                return out.push(Action::Done(token, Ok(())));
            }
            // It was put in, and is held no more.
            s if s.there.contains(&id) || s.pending.as_ref().is_some_and(|p| p.id == id) => {
                Failed::NotHeld
            }
            s if s.void.contains(&id) => Failed::NeverTaken,
            _ if !matches!(self.phase, Phase::Serving) => Failed::Stalled,
            s if s.wanted.is_some() => Failed::Busy,
            s if s.there.len() + 2 > SNAPSHOTS_MAX => Failed::TooMany,
            s => {
                s.wanted = Some(Wanted {
                    token,
                    id,
                    since: now,
                    hold: Some(limit),
                });
                return;
            }
        };
        out.push(Action::Done(token, Err(failed)));
    }

    /// What came behind a snapshot is acknowledged from now on; fails if it was not held until this moment.
    pub(super) fn release_snapshot(
        &mut self,
        token: Token,
        id: SnapshotId,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        self.expire_hold(now, out);
        let held = self.snapshots.hold.take_if(|h| h.id == id).is_some();
        if held {
            self.snapshots.released = Some(id);
        }
        let was = self.snapshots.released == Some(id) || planted::is(Bug::GroupExpiredCounts);
        let was = was && !matches!(self.phase, Phase::Ended(_));
        let outcome = if was { Ok(()) } else { Err(Failed::NotHeld) };
        out.push(Action::Done(token, outcome));
        if held {
            self.recheck(now, out);
        }
    }

    /// Nobody said in time that the others have theirs.
    fn expire_hold(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let over = |h: &mut Hold| now >= h.until;
        if self.snapshots.hold.take_if(over).is_some() {
            self.recheck(now, out);
        }
    }

    pub(super) fn drop_snapshot(&mut self, token: Token, id: SnapshotId, out: &mut Vec<Action>) {
        let taken = self.snapshots.pending.as_ref().is_some_and(|p| p.id == id);
        let wanted = self.snapshots.wanted.is_some_and(|w| w.id == id);
        let failed = match () {
            () if !matches!(self.phase, Phase::Serving) => Some(Failed::Stalled),
            () if taken || wanted => Some(Failed::Busy),
            () => None,
        };
        if let Some(failed) = failed {
            return out.push(Action::Done(token, Err(failed)));
        }
        self.snapshots.there.retain(|s| *s != id);
        self.snapshots.released.take_if(|r| *r == id);
        for place in self.opened().iter() {
            self.name_snapshots(place, out);
        }
        out.push(Action::Done(token, Ok(())));
    }

    /// Commands that have waited for too long fail. What was put into the streams stays, and may exist later.
    pub(super) fn expire_snapshots(&mut self, limit: Duration, now: Nanos, out: &mut Vec<Action>) {
        let mut over = Vec::new();
        if let Some(wanted) = self.snapshots.wanted.take_if(|w| now >= w.since + limit) {
            over.push(wanted.token);
        }
        if let Some(pending) = &mut self.snapshots.pending {
            pending.tokens.retain(|(token, since)| {
                let waits = now < *since + limit;
                over.extend((!waits).then_some(*token));
                waits
            });
        }
        let failed = over.into_iter();
        out.extend(failed.map(|t| Action::Done(t, Err(Failed::Stalled))));
    }

    /// Begins the one that is wanted, and sees whether the one that was begun exists.
    pub(super) fn step_snapshot(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        self.pass_barrier(now, out);
        self.expire_hold(now, out);
        // Nobody may read afterwards what was there before.
        let lacking = self.snapshots.barrier.is_some() || !self.lack_snapshot().is_empty();
        if let Some(pending) = self.snapshots.pending.take_if(|_| !lacking) {
            self.snapshots.there.push(pending.id);
            let done = pending.tokens.into_iter();
            out.extend(done.map(|(t, _)| Action::Done(t, Ok(()))));
            for place in self.opened().iter() {
                self.step_subscriber(place, now, out);
            }
        }
        if planted::is(Bug::SnapshotNoBarrier) && self.next_is_due(now) {
            self.put_snapshot(1, now, out);
        }
        self.begin_snapshot(now, out);
    }

    /// Of lanes that get their records one after the other: as if somebody asked for each.
    fn next_is_due(&self, now: Nanos) -> bool {
        let pending = self.snapshots.pending.iter();
        let begun = pending.flat_map(|p| p.tokens.iter().map(|t| (t.1, p.at.len() as u32)));
        let due = |(since, lanes): (Nanos, u32)| now >= since + Duration::from_millis(20) * lanes;
        begun.into_iter().all(due)
    }

    fn begin_snapshot(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let lanes = usize::from(self.config.lanes);
        let s = &self.snapshots;
        // One that joins has all that was copied to it, or not: that is known when it has joined.
        let waits = s.pending.is_some() || s.barrier.is_some() || s.hold.is_some();
        let waits = waits || self.joins().is_some();
        if s.wanted.is_none() || waits || self.detaching.is_some() || !self.ring.room_for(lanes) {
            return;
        }
        let Some(wanted) = self.snapshots.wanted.take() else {
            return;
        };
        let id = wanted.id;
        let copied_to = self.ring.fed().minus(self.sets.everyone());
        if !planted::is(Bug::SnapshotWhileCopied) {
            for place in copied_to.iter() {
                self.begins_anew(place, out);
            }
        }
        // What they would put in later would be below it.
        self.reservations.void_all();
        let tokens = match wanted.hold {
            Some(_) => Vec::new(),
            None => vec![(wanted.token, wanted.since)],
        };
        self.snapshots.pending = Some(Pending {
            id,
            tokens,
            at: Vec::new(),
        });
        let most = if planted::is(Bug::SnapshotNoBarrier) {
            1
        } else {
            lanes
        };
        self.put_snapshot(most, now, out);
        let Some(limit) = wanted.hold else { return };
        let at = self.snapshots.pending.as_ref().map(|p| p.at.clone());
        let held = match at.filter(|at| at.len() == lanes) {
            Some(at) => {
                let until = now + limit;
                self.snapshots.hold = Some(Hold { id, at, until });
                Ok(())
            }
            // It ended at it.
            None => Err(Failed::Ended),
        };
        out.push(Action::Done(wanted.token, held));
    }

    /// Puts its record into the next lanes.
    fn put_snapshot(&mut self, most: usize, now: Nanos, out: &mut Vec<Action>) {
        let lanes = self.config.lanes;
        for _ in 0..most {
            let Some(pending) = &mut self.snapshots.pending else {
                return;
            };
            let lane = pending.at.len() as u8;
            if lane >= lanes {
                return;
            }
            let what = What::Snapshot(pending.id);
            let Ok(stamp) = self.orderer.stamp(lane, stamps_of(&what)) else {
                return self.end(End::Again, out);
            };
            let held = Rc::new(Held {
                lane,
                stamp,
                key: 0,
                what,
            });
            let entry = Entry::new(held, now, !self.config.volatile);
            pending.at.push(self.ring.put(entry));
            if pending.at.len() == usize::from(lanes) && !planted::is(Bug::SnapshotNoBarrier) {
                self.snapshots.barrier = Some(pending.at.clone());
            }
        }
    }

    /// When all before a snapshot is acknowledged, what came behind it may be.
    fn pass_barrier(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let acked = |(at, acked): (&u64, &(u64, u64))| acked.0 >= *at;
        let passed = |b: &mut Vec<u64>| b.iter().zip(&self.acked).all(acked);
        if self.snapshots.barrier.take_if(passed).is_some() {
            self.recheck(now, out);
        }
    }

    /// Who of the members lacks the snapshot that is being taken.
    pub(super) fn lack_snapshot(&self) -> Members {
        let Some(pending) = &self.snapshots.pending else {
            return Members::NONE;
        };
        let has = |place: &Place| {
            let all = pending.at.len() == usize::from(self.config.lanes);
            let mut lanes = (0..).zip(&pending.at);
            all && lanes.all(|(lane, at)| {
                let position = self.ring.position(*place, lane);
                position.is_some_and(|(_, stable)| stable >= *at)
            })
        };
        let everyone = self.sets.everyone();
        let have: Members = everyone.iter().filter(has).collect();
        if planted::is(Bug::SnapshotNamedEarly) && self.sets.reached(have) {
            return Members::NONE;
        }
        everyone.minus(have)
    }

    /// It is not fed any more, and may ask again by another channel.
    fn begins_anew(&mut self, place: Place, out: &mut Vec<Action>) {
        if self.opened().has(place) {
            out.push(Action::Send(place, Message::Close));
        }
        self.ring.leave(place);
        self.leases.forget(place);
        let peer = &mut self.peers[place.index()];
        peer.opened = false;
        peer.subscriber = false;
    }

    /// Tells a replica which snapshots there are.
    pub(super) fn name_snapshots(&mut self, place: Place, out: &mut Vec<Action>) {
        let ids = match self.phase {
            Phase::Promising(_) => self.config.snapshots.iter().map(|n| n.id).collect(),
            _ => {
                let pending = self.snapshots.pending.iter().map(|p| p.id);
                let there = self.snapshots.there.iter().copied();
                there.chain(pending).collect()
            }
        };
        let fed = self.ring.fed().has(place);
        self.snapshots.asked += 1;
        let number = self.snapshots.asked;
        let Some(peer) = self.peer(place) else { return };
        peer.asked = number;
        peer.having = None;
        peer.missing = None;
        // The stream brings the rest of one that is being taken to whoever is fed.
        let whole = peer.subscriber && !fed;
        out.push(Action::Send(
            place,
            Message::Snapshots { number, whole, ids },
        ));
    }

    pub(super) fn having(
        &mut self,
        place: Place,
        number: u64,
        ids: Vec<SnapshotId>,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let peer = &mut self.peers[place.index()];
        if peer.asked != number {
            return;
        }
        match self.phase {
            Phase::Promising(_) => {
                let mut named = self.config.snapshots.iter();
                // Of those who may be no members it is looked at later.
                let known = !matches!(self.asked, Asked::All | Asked::Unknown);
                let lacks = named.find(|n| known && n.ready && !ids.contains(&n.id));
                if let Some(lacks) = lacks {
                    // Whoever lacks what every member has is none.
                    tracing::error!(?place, snapshot = %lacks.id, "a member lacks a snapshot, and does not count");
                    peer.lists = None;
                } else if let Some(lists) = &mut peer.lists {
                    lists.having = Some(ids);
                    self.try_complete(now, out);
                }
            }
            Phase::Serving => {
                peer.having = Some(ids);
                self.step_subscriber(place, now, out);
            }
            _ => {}
        }
    }

    /// Which snapshots exist: those that all who take part have.
    pub(super) fn find_snapshots(&mut self, part: Members) {
        let has = |place: Place, id: &SnapshotId| {
            let lists = self.peers[place.index()].lists.as_ref();
            lists.is_some_and(|l| l.having.iter().flatten().any(|h| h == id))
        };
        let exists = |n: &&Named| {
            let mut all = part.iter().map(|p| has(p, &n.id));
            n.ready
                || match planted::is(Bug::SnapshotVoidKept) {
                    true => all.any(|has| has),
                    false => all.all(|has| has),
                }
        };
        let named = self.config.snapshots.iter();
        let (there, void): (Vec<&Named>, Vec<&Named>) = named.partition(exists);
        self.snapshots.there = there.into_iter().map(|n| n.id).collect();
        self.snapshots.void = void.into_iter().map(|n| n.id).collect();
    }

    /// Feeds a replica that follows, if it has all snapshots; else it is said which it lacks. While one is being taken that is not known.
    fn step_subscriber(&mut self, place: Place, now: Nanos, out: &mut Vec<Action>) {
        let fed = self.ring.fed().has(place);
        let peer = &self.peers[place.index()];
        if !peer.opened || !peer.subscriber || fed || self.snapshots.pending.is_some() {
            return;
        }
        let Some(having) = &peer.having else { return };
        let there = self.snapshots.there.iter();
        let missing: Vec<SnapshotId> = there.filter(|s| !having.contains(s)).copied().collect();
        if missing.is_empty() || planted::is(Bug::SnapshotsNotCopied) {
            return self.feed_from_here(place, now, out);
        }
        self.peers[place.index()].missing = Some(missing);
    }

    /// It has all snapshots: from this moment on it is fed, and s0 is where the lanes are.
    pub(super) fn feed_from_here(&mut self, place: Place, now: Nanos, out: &mut Vec<Action>) {
        // What is below s0 and not in a stream would come to it neither by the stream nor by a copy.
        self.reservations.void_all();
        let s0 = self.last_stamps();
        let at = self.ring.lanes().map(|l| self.ring.stream(l).end());
        let at = at.collect();
        self.ring.subscribe(place);
        let peer = &mut self.peers[place.index()];
        peer.s0_at = at;
        peer.s0 = Some(s0);
        peer.level = 0;
        peer.blocks = 0;
        self.slow.forget(place, now);
        out.push(Action::Send(place, self.feed_message(place)));
    }

    /// The last stamp that was given, by lane.
    pub fn last_stamps(&self) -> Vec<Stamp> {
        self.ring.lanes().map(|l| self.orderer.last(l)).collect()
    }

    /// What a replica that follows lacks before it can be fed.
    pub fn preparing(&self, place: Place) -> Option<Preparation> {
        let peer = self.peers.get(place.index())?;
        let follows = peer.opened && peer.subscriber && !self.ring.fed().has(place);
        let missing = peer.missing.clone().filter(|_| follows)?;
        Some(Preparation {
            missing,
            opening: peer.openings,
        })
    }
}
