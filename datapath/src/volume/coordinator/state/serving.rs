//! Writes, acknowledgements, settled, flushes, heartbeats (`docs/replication.md` §8, §9).

use std::rc::Rc;
use std::time::Duration;

use super::super::flush::Token;
use super::super::members::{Members, Place};
use super::super::message::{Action, End, Failed, Message, SettledLanes, Wish};
use super::super::order::{Entry, stamps_of};
use super::super::ring::Limits;
use super::{BEATS, HAND_OVER, Machine, Phase};
use crate::cipher::{self, Cipher, TAG_BYTES};
use crate::reactor::Nanos;
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::replication::wire::ack::{AckHead, Early, LaneAck};
use crate::replication::wire::batch::HERE;
use crate::store::types::{BLOCK_BYTES, Crc, SLICE_BLOCKS, Stamp};

/// Writes that may wait for room, or for the end of an exclusion. A reactor has 4,096 operations at most.
pub const QUEUE_MAX: usize = 4096;
/// Flushes that may wait.
pub const FLUSHES_MAX: usize = 4096;
/// What is not stable for longer is flushed, though no host asks: so settled comes to the end of each stream.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// A write without a stamp.
#[derive(Debug)]
pub(super) struct Queued {
    pub token: Token,
    pub lane: u8,
    pub what: What,
    pub fua: bool,
    /// The command that its stamps were reserved for.
    pub given: Option<u64>,
    pub since: Nanos,
}

/// The number in the volume of a lane's block.
pub fn block_of_volume(lanes: u8, lane: u8, block: u64) -> u64 {
    let (slice, within) = (block / SLICE_BLOCKS, block % SLICE_BLOCKS);
    (slice * u64::from(lanes) + u64::from(lane)) * SLICE_BLOCKS + within
}

/// Encrypts a record that was just stamped; its checksums are those of what it is then.
fn seal(cipher: &dyn Cipher, lanes: u8, held: &mut Held) {
    let (lane, stamp) = (held.lane, held.stamp);
    let What::Write {
        first,
        crcs,
        tags,
        data: Some(data),
    } = &mut held.what
    else {
        return;
    };
    let data = Rc::get_mut(data).expect("nobody else has it before it is in a stream");
    let blocks = crcs.as_chunks_mut::<4>().0;
    let mut all = Vec::with_capacity(blocks.len() * TAG_BYTES);
    let each = blocks.iter_mut().zip(data.chunks_exact_mut(BLOCK_BYTES));
    for (n, (crc, block)) in (0..).zip(each) {
        let at = cipher::Place {
            stamp: Stamp {
                seq: stamp.seq + n,
                ..stamp
            },
            block: block_of_volume(lanes, lane, first.0 + n),
        };
        let sealed = cipher.seal(at, block);
        all.extend(sealed.tag);
        held.key = sealed.key;
        *crc = Crc::of(block).0.to_le_bytes();
    }
    *tags = all.into();
}

impl Machine {
    pub(super) fn write(&mut self, queued: Queued, out: &mut Vec<Action>) {
        // What comes while nothing is served yet waits for it.
        if self.detaching.is_some() {
            out.push(Action::Done(queued.token, Err(Failed::Ended)));
        } else if self.queue.len() >= QUEUE_MAX {
            out.push(Action::Done(queued.token, Err(Failed::Busy)));
        } else {
            self.queue.push_back(queued);
        }
    }

    /// Stamps what waits, in the order of its arrival, as far as there is room.
    pub(super) fn stamp_queued(&mut self, now: Nanos, out: &mut Vec<Action>) {
        while let Some(first) = self.queue.front() {
            let blocks = first.what.written_blocks();
            if !self.ring.room(blocks * BLOCK_BYTES as u64) {
                self.make_room(now, out);
                if !self.ring.room(blocks * BLOCK_BYTES as u64) {
                    return;
                }
            }
            let Some(queued) = self.queue.pop_front() else {
                return;
            };
            let counted = self.sets.counted().and(self.opened());
            let fits = counted
                .iter()
                .all(|p| self.peers[p.index()].has_space(blocks));
            if !fits && blocks > 0 {
                // Before a stamp exists: a write that one replica cannot take is nowhere.
                out.push(Action::Done(queued.token, Err(Failed::Full)));
                continue;
            }
            self.stamp(queued, out);
        }
    }

    fn stamp(&mut self, queued: Queued, out: &mut Vec<Action>) {
        let Queued {
            token,
            lane,
            what,
            fua,
            given,
            since,
        } = queued;
        let blocks = what.written_blocks();
        let stamp = match given {
            Some(command) if !planted::is(Bug::NotReserved) => {
                let (count, of) = (stamps_of(&what), what.blocks());
                let Some(stamp) = self.reservations.take((command, lane), count, &of) else {
                    return out.push(Action::Done(token, Err(Failed::Void)));
                };
                stamp
            }
            _ => match self.orderer.stamp(lane, stamps_of(&what)) {
                Ok(stamp) => stamp,
                Err(_) => {
                    // A new epoch has new ones.
                    out.push(Action::Done(token, Err(Failed::Stalled)));
                    return self.end(End::Again, out);
                }
            },
        };
        self.reservations.overtaken(lane, stamp, &what.blocks());
        let mut held = Held {
            lane,
            stamp,
            key: 0,
            what,
        };
        if let Some(cipher) = &self.config.cipher {
            seal(cipher.as_ref(), self.config.lanes, &mut held);
        }
        let held = Rc::new(held);
        let mut entry = Entry::new(Rc::clone(&held), since, fua || !self.config.volatile);
        entry.token = Some(token);
        self.fua += usize::from(fua && self.config.volatile);
        let position = self.ring.put(entry);
        self.overlay.put(position, &held);
        for place in self.ring.fed().iter() {
            self.peers[place.index()].blocks += blocks;
        }
    }

    /// The ring is full. Members that fill it are gapped if they cannot be excluded; who is only copied to begins again.
    fn make_room(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let full: Members = self
            .ring
            .fed()
            .iter()
            .filter(|p| self.ring.full(*p))
            .collect();
        for place in full.minus(self.sets.everyone()).iter() {
            self.peers[place.index()].subscriber = false;
            self.ring.leave(place);
            // What it was level for is behind it: it must not join by that.
            if !self.give_up_join(place, now, out) {
                out.push(Action::NotMet(Wish::Join(place)));
            }
        }
        let members = full.and(self.sets.everyone());
        if !members.is_empty() && self.cannot_change(now) {
            let rest = self.sets.counted().minus(members);
            if self.sets.reached(rest.and(self.opened())) {
                self.sets.gap(members);
                for place in members.iter() {
                    self.ring.leave(place);
                    self.leases.forget(place);
                }
                tracing::warn!(
                    ?members,
                    "members are gapped: the ring is full, and the KVDB is away"
                );
            }
        }
        self.release();
    }

    pub(super) fn acked_by(
        &mut self,
        place: Place,
        head: AckHead,
        lanes: &[LaneAck],
        early: &[Early],
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let peer = &mut self.peers[place.index()];
        if !peer.opened {
            return;
        }
        peer.grant(&head);
        for ack in lanes {
            match self.ring.ack(place, *ack) {
                Ok(range) => {
                    for position in range {
                        self.try_ack(ack.lane, position, out);
                    }
                }
                Err(_) => return out.push(Action::Cut(place)),
            }
        }
        for e in early {
            match self.ring.early(place, e.lane, e.position) {
                Ok(()) => self.try_ack(e.lane, e.position, out),
                Err(_) => return out.push(Action::Cut(place)),
            }
        }
        self.confirmed(now, out);
    }

    /// Looks at everything again: who counts has changed.
    pub(super) fn recheck(&mut self, now: Nanos, out: &mut Vec<Action>) {
        for lane in self.ring.lanes() {
            for position in self.ring.stream(lane).released() + 1..=self.ring.stream(lane).end() {
                self.try_ack(lane, position, out);
            }
        }
        self.confirmed(now, out);
    }

    /// What follows when somebody has more than before.
    pub(super) fn confirmed(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Serving) {
            // A takeover may have more to complete than the ring has room for.
            return self.release();
        }
        let done = self.flushes.done(&self.ring, &self.sets);
        out.extend(done.into_iter().map(|t| Action::Done(t, Ok(()))));
        let bound = |lane| self.reservations.bound(lane);
        let rose = self.settled.raise(&self.ring, self.settling(), bound);
        for lane in self.ring.lanes() {
            if let Some(held) = self.settled.held(lane) {
                self.reservations.wanted(lane, held, now);
            }
        }
        if rose {
            for peer in &mut self.peers {
                peer.told = false;
            }
        }
        self.step_transition(now, out);
        self.step_snapshot(now, out);
        self.release();
    }

    fn try_ack(&mut self, lane: u8, position: u64, out: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Serving) || self.hold.is_some() {
            return;
        }
        if self.snapshots.holds(lane, position) {
            return;
        }
        let who = self.ring.confirmed(lane, position);
        let reached = self.sets.reached(who);
        let Some(entry) = self.ring.entry_mut(lane, position) else {
            return;
        };
        if entry.acked || !reached {
            return;
        }
        entry.acked = true;
        let token = entry.token.take();
        if self.config.volatile && entry.stable_only {
            self.fua -= 1;
        }
        let acked = &mut self.acked[usize::from(lane)];
        acked.1 = acked.1.max(position);
        while let Some(next) = self.ring.stream(lane).get(acked.0 + 1)
            && next.acked
        {
            acked.0 += 1;
        }
        out.extend(token.map(|t| Action::Done(t, Ok(()))));
    }

    pub(super) fn release(&mut self) {
        let overlay = &mut self.overlay;
        self.ring
            .release(|_, position, entry| overlay.gone(position, &entry.held));
    }

    /// Commands that have waited for too long fail. Their writes stay, and are decided some time (rule 7).
    pub(super) fn expire(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let limit = self.config.command_limit;
        let over = |since: Nanos| now >= since + limit;
        while self.queue.front().is_some_and(|q| over(q.since)) {
            let queued = self.queue.pop_front();
            out.extend(queued.map(|q| Action::Done(q.token, Err(Failed::Stalled))));
        }
        for lane in self.ring.lanes() {
            let (acked, end) = (
                self.acked[usize::from(lane)].0,
                self.ring.stream(lane).end(),
            );
            for position in acked + 1..=end {
                let Some(entry) = self.ring.entry_mut(lane, position) else {
                    continue;
                };
                if !over(entry.since) {
                    break;
                }
                if let Some(token) = entry.token.take() {
                    entry.failed = true;
                    out.push(Action::Done(token, Err(Failed::Stalled)));
                }
            }
        }
        self.expire_snapshots(limit, now, out);
        while let Some(oldest) = self.flushes.oldest()
            && over(oldest)
        {
            let gone = self.flushes.expired(oldest);
            out.extend(
                gone.into_iter()
                    .map(|t| Action::Done(t, Err(Failed::Stalled))),
            );
        }
    }

    /// The oldest write of a lane that waits, if there is one.
    pub(super) fn oldest_waiting(&self, lane: u8) -> Option<(u64, &Entry)> {
        let position = self.acked[usize::from(lane)].0 + 1;
        let entry = self.ring.stream(lane).get(position)?;
        Some((position, entry))
    }

    pub(super) fn command_deadline(&self) -> Option<Nanos> {
        let waiting = self.ring.lanes().filter_map(|l| {
            // Of one that failed nothing is told any more.
            let (_, entry) = self.oldest_waiting(l)?;
            Some(entry.since)
        });
        let all = waiting
            .chain(self.queue.front().map(|q| q.since))
            .chain(self.flushes.oldest())
            .chain(self.snapshots.oldest());
        all.min().map(|s| s + self.config.command_limit)
    }

    pub(super) fn tell_stalled(&mut self, out: &mut Vec<Action>) {
        let stalled = !self.sets.reached(self.opened());
        if stalled != self.stalled {
            self.stalled = stalled;
            out.push(Action::Stalled(stalled));
        }
    }

    pub(super) fn flush(&mut self, token: Token, now: Nanos, out: &mut Vec<Action>) {
        if self.flushes.len() >= FLUSHES_MAX {
            return out.push(Action::Done(token, Err(Failed::Busy)));
        }
        let to = self.acked.iter().map(|a| a.1).collect();
        self.flushes.add(token, to, now);
        self.confirmed(now, out);
    }

    pub(super) fn flush_deadline(&self) -> Option<Nanos> {
        let first = |l| self.ring.stream(l).iter().next().map(|(_, e)| e.since);
        let oldest = self.ring.lanes().filter_map(first).min();
        oldest.map(|s| s + FLUSH_AFTER)
    }

    /// Whether members should make stable what they have.
    fn wants_flush(&self, now: Nanos) -> bool {
        matches!(self.phase, Phase::Completing(_))
            || !self.flushes.is_empty()
            || self.snapshots.is_pending()
            || self.fua > 0
            || self
                .transition
                .as_ref()
                .is_some_and(super::change::Transition::levels)
            || self.detaching.is_some()
            || self.ring.quarter()
            || self.flush_deadline().is_some_and(|d| now >= d)
    }

    /// One Flush at a time to each. What it was sent before is stable when it says so, and then perhaps the next one goes.
    pub(super) fn send_flushes(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !self.wants_flush(now) {
            return;
        }
        for place in self.ring.fed().iter() {
            let end = |l| self.ring.stream(l).end();
            let stable = |l| self.ring.position(place, l).map_or(0, |p| p.1);
            let behind = self.ring.lanes().any(|l| stable(l) < end(l));
            let peer = &mut self.peers[place.index()];
            if !behind || !peer.opened || peer.flush.1 < peer.flush.0 {
                continue;
            }
            let number = self.flushes.next_number();
            peer.flush.0 = number;
            out.push(Action::Send(place, Message::Flush { number }));
        }
    }

    /// Sends everybody what it lacks, within its credits.
    pub(super) fn feed(&mut self, credit: &dyn Fn(Place) -> Limits, out: &mut Vec<Action>) {
        for place in self.ring.fed().and(self.opened()).iter() {
            let mut left = credit(place);
            loop {
                let records = self.ring.take(place, left);
                if records.is_empty() {
                    break;
                }
                let bytes = records.iter().map(|o| {
                    let listed = o.flags & crate::replication::wire::record::flag::LISTED != 0;
                    if listed {
                        0
                    } else {
                        o.held.what.written_blocks()
                    }
                });
                let more = Limits {
                    records: records.len(),
                    bytes: bytes.sum::<u64>() * BLOCK_BYTES as u64,
                };
                left.records -= more.records;
                left.bytes -= more.bytes;
                let told = std::mem::replace(&mut self.peers[place.index()].told, true);
                let settled = match told {
                    true => Vec::new(),
                    false => self.settled_for(place),
                };
                out.push(Action::Send(place, Message::Batch { settled, records }));
            }
        }
    }

    pub(super) fn beat_due(&self, now: Nanos) -> Nanos {
        let every = self.config.lease / BEATS;
        self.leases.last_sent().map_or(now, |l| l + every)
    }

    /// A heartbeat, if it is time for one.
    pub(super) fn beat(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let serves = matches!(self.phase, Phase::Beginning | Phase::Serving);
        if serves && (self.confirm || now >= self.beat_due(now)) {
            self.heartbeat(now, out);
        }
    }

    pub(super) fn heartbeat(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.confirm = false;
        let number = self.leases.send(now);
        self.say_beat(number, false, out);
    }

    pub(super) fn release_leases(&mut self, out: &mut Vec<Action>) {
        let number = self.leases.next();
        self.say_beat(number, true, out);
    }

    fn say_beat(&mut self, number: u64, release: bool, out: &mut Vec<Action>) {
        for place in self.opened().iter() {
            let heartbeat = Message::Heartbeat {
                number,
                version: self.record.version,
                release,
                settled: self.settled_for(place),
            };
            out.push(Action::Send(place, heartbeat));
            self.peers[place.index()].told = true;
        }
    }

    /// What is settled, and for one that is copied to what of that is stable there: only that may leave its lists (§11, 3).
    fn settled_for(&self, place: Place) -> SettledLanes {
        let mut all = self.settled.all();
        let peer = &self.peers[place.index()];
        let Some(s0) = peer.s0.as_ref().filter(|_| peer.subscriber) else {
            return all;
        };
        for lane in self.ring.lanes() {
            let stable = self.ring.position(place, lane).map(|at| at.1);
            let here = stable.and_then(|to| self.ring.stream(lane).all_below(to));
            let here = match planted::is(Bug::HereIsSettled) {
                true => Some(self.settled.of(lane)),
                false => here.map(|here| here.min(self.settled.of(lane))),
            };
            if let Some(here) = here.filter(|here| *here > s0[usize::from(lane)]) {
                all.push((lane | HERE, here));
            }
        }
        all
    }

    /// A volume that goes elsewhere: what is stamped may settle for a moment, then this ends.
    pub(super) fn hand_over(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(since) = self.detaching else {
            return;
        };
        let waits = self.ring.lanes().any(|l| {
            let waiting = self.oldest_waiting(l);
            waiting.is_some_and(|(_, e)| e.token.is_some())
        });
        let settled = self.ring.kept().records == 0;
        if (settled && !waits) || now >= since + HAND_OVER {
            self.end(End::Detached, out);
        }
    }
}
