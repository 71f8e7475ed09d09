//! Promises, the union of lists, and its completion, up to K2 and the first leases (`docs/replication.md` §10).

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::super::members::{Members, Place};
use super::super::message::{Action, End, Message, State};
use super::super::order::Entry;
use super::super::set::Change;
use super::super::settled::Settled;
use super::super::union::{Item, Union};
use super::change::Transition;
use super::peer::Lists;
use super::{Machine, Phase};
use crate::reactor::Nanos;
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::store::types::{BLOCK_BYTES, Crc, Stamp};

/// How long more members than must be are waited for, so that nobody is left out for nothing.
const MORE: Duration = Duration::from_millis(100);

/// What of a lane is not in its stream yet.
#[derive(Debug, Default)]
struct Rest {
    items: VecDeque<Item>,
    /// The first one's data were asked for here.
    fetching: Option<Place>,
    /// Who could not give them.
    tried: Members,
}

/// A takeover that is under way.
#[derive(Debug)]
pub(super) struct Takeover {
    /// When enough were heard.
    enough: Option<Nanos>,
    pub degraded: bool,
    /// P.
    pub part: Members,
    rest: Vec<Rest>,
    began: Nanos,
}

impl Takeover {
    pub fn new(now: Nanos) -> Self {
        Self {
            enough: None,
            degraded: false,
            part: Members::NONE,
            rest: Vec::new(),
            began: now,
        }
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.enough.filter(|_| !self.degraded).map(|e| e + MORE)
    }

    /// Nothing comes any more of what was asked there.
    pub fn lost(&mut self, place: Place) {
        for rest in &mut self.rest {
            rest.fetching = rest.fetching.filter(|f| *f != place);
        }
    }

    fn put_all(&self) -> bool {
        self.rest.iter().all(|r| r.items.is_empty())
    }
}

impl Machine {
    pub(super) fn promised(&mut self, place: Place, state: State, out: &mut Vec<Action>) {
        let lanes = self.config.lanes;
        let subscriber = self.peers[place.index()].subscriber;
        if subscriber && matches!(self.phase, Phase::Serving) {
            return self.subscribed(place, &state, out);
        }
        let whole = state.lanes.len() == usize::from(lanes) && state.lanes.iter().all(|l| !l.lost);
        let member = self.asked_set().members.has(place);
        let boot = state.boot;
        let lists = Lists {
            state,
            records: Vec::new(),
            open: (1 << lanes) - 1,
            having: None,
        };
        let whole = whole && self.is_whole(&lists);
        // Who lost a lane, or is being copied to, is not the member that the set names (rule 9).
        if !matches!(self.phase, Phase::Promising(_)) || !member || !whole {
            return;
        }
        self.name_snapshots(place, out);
        for (lane, at) in lists.state.lanes.iter().enumerate() {
            let list = Message::List {
                lane: lane as u8,
                after: at.settled,
            };
            out.push(Action::Send(place, list));
        }
        let peer = &mut self.peers[place.index()];
        peer.boot = Some(boot);
        peer.lists = Some(lists);
    }

    pub(super) fn listed(
        &mut self,
        place: Place,
        lane: u8,
        records: &[Rc<Held>],
        last: bool,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let Some(lists) = &mut self.peers[place.index()].lists else {
            return;
        };
        let asked = lists.open >> lane & 1 == 1;
        // An answer without an end and without a record would be asked for again for ever.
        let more = records.last().map(|r| r.stamp);
        if !asked || records.iter().any(|r| r.lane != lane) || !last && more.is_none() {
            out.push(Action::Cut(place));
            return;
        }
        lists.records.extend(records.iter().map(Rc::clone));
        match more.filter(|_| !last) {
            Some(after) => out.push(Action::Send(place, Message::List { lane, after })),
            None => lists.open &= !(1 << lane),
        }
        if lists.open == 0 {
            self.try_complete(now, out);
        }
    }

    /// Who has promised and listed all.
    fn heard(&self) -> Members {
        let set = self.asked_set().members;
        set.iter()
            .filter(|p| {
                let lists = self.peers[p.index()].lists.as_ref();
                lists.is_some_and(|l| l.open == 0 && l.having.is_some())
            })
            .collect()
    }

    /// P, if it is enough for a takeover.
    pub(super) fn heard_enough(&self) -> Option<Members> {
        let heard = self.heard();
        self.enough(heard).then_some(heard)
    }

    fn enough(&self, part: Members) -> bool {
        let minimum = u32::from(self.record.minimum);
        part.count() >= self.must_hear() && part.count() >= minimum
    }

    pub(super) fn try_complete(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let heard = self.heard();
        let part = match self.adopt(heard) {
            true => self.heard_enough(),
            false => None,
        };
        let set = self.asked_set().members;
        let Phase::Promising(takeover) = &mut self.phase else {
            return;
        };
        let Some(part) = part else {
            takeover.enough = None;
            return;
        };
        let since = *takeover.enough.get_or_insert(now);
        if part != set && now < since + MORE {
            return;
        }
        let lists = part
            .iter()
            .filter_map(|p| self.peers[p.index()].lists.as_ref());
        takeover.degraded = lists.into_iter().any(|l| l.state.leaves);
        if takeover.degraded {
            return;
        }
        self.find_snapshots(part);
        let mut union = Union::new(self.config.lanes);
        for place in part.iter() {
            let Some(lists) = self.peers[place.index()].lists.take() else {
                continue;
            };
            for (lane, at) in lists.state.lanes.iter().enumerate() {
                union.settled(lane as u8, at.settled);
            }
            for held in &lists.records {
                if let Err(two) = union.add(place, held) {
                    tracing::error!(lane = two.lane, stamp = ?two.stamp, "two records of one stamp");
                    return self.end(End::Alarm("two records of one stamp"), out);
                }
            }
        }
        let plan = union.plan(part);
        self.settled = Settled::new(&plan.settled);
        let rest = plan.lanes.into_iter().map(|items| Rest {
            items: items.into(),
            ..Rest::default()
        });
        let takeover = Takeover {
            part,
            rest: rest.collect(),
            ..Takeover::new(now)
        };
        self.phase = Phase::Completing(takeover);
        for place in part.iter() {
            self.ring.subscribe(place);
            self.open(place, out);
        }
    }

    /// Whoever is away for long is left out, if the others are enough.
    pub(super) fn drop_lost(&mut self, now: Nanos) {
        let Phase::Completing(takeover) = &self.phase else {
            return;
        };
        let patience = self.config.patience.slow;
        let mut part = takeover.part;
        for place in takeover.part.iter() {
            let lost = self.peers[place.index()].lost;
            if lost.is_some_and(|l| now >= l + patience) && self.enough(part.without(place)) {
                part = part.without(place);
                self.ring.leave(place);
            }
        }
        if let Phase::Completing(takeover) = &mut self.phase {
            takeover.part = part;
        }
    }

    /// Puts into the streams what can be, asks for what is missing, and sends K2 when all who take part are level.
    pub(super) fn complete(&mut self, now: Nanos, out: &mut Vec<Action>) {
        // Out of its place while the machine changes.
        let phase = std::mem::replace(&mut self.phase, Phase::Swapping);
        let Phase::Completing(mut takeover) = phase else {
            self.phase = phase;
            return;
        };
        if !self.enough(takeover.part) {
            return self.end(End::Again, out);
        }
        for lane in 0..takeover.rest.len() {
            let rest = &mut takeover.rest[lane];
            while let Some(item) = rest.items.front_mut() {
                let has = item.whole.and(takeover.part);
                if has.is_empty() {
                    // Only those had it who left, so it was never acknowledged: the others are a read quorum.
                    rest.items.pop_front();
                    rest.tried = Members::NONE;
                    continue;
                }
                let bare = matches!(item.held.what, What::Write { data: None, .. });
                if bare && !item.lacking(takeover.part).is_empty() {
                    let untried = has.minus(rest.tried);
                    if untried.is_empty() {
                        item.held = Rc::new(damaged(&item.held));
                        continue;
                    }
                    let from = untried.and(self.opened()).iter().next();
                    if let (None, Some(from)) = (rest.fetching, from) {
                        rest.fetching = Some(from);
                        let stamp = item.held.stamp;
                        let lane = lane as u8;
                        out.push(Action::Send(from, Message::Fetch { lane, stamp }));
                    }
                    break;
                }
                let mut entry = Entry::new(Rc::clone(&item.held), now, true);
                if !self.ring.room(entry.data_bytes()) {
                    break;
                }
                entry.listed = item.whole;
                entry.damaged = item.damaged;
                entry.rolled = true;
                entry.acked = true;
                let position = self.ring.put(entry);
                self.overlay.put(position, &item.held);
                rest.items.pop_front();
                rest.tried = Members::NONE;
            }
        }
        let stable = |p| self.all_stable(p) || planted::is(Bug::TakeoverNotStable);
        let level = takeover.put_all() && takeover.part.iter().all(stable);
        let part = takeover.part;
        let began = takeover.began;
        self.phase = Phase::Completing(takeover);
        if !level {
            return;
        }
        let members = part.iter().map(|p| self.peers[p.index()].id).collect();
        match self.record.after(&Change::Serve(members)) {
            Ok(record) => {
                tracing::info!(epoch = self.record.epoch, took = ?now.since(began), "takeover completed");
                self.phase = Phase::Swapping;
                self.transition = Some(Transition::serve(&self.record, record, now, out));
            }
            // It was enough when this began.
            Err(_) => self.end(End::Again, out),
        }
    }

    /// Whether somebody follows, and has all streams stable to their end.
    fn all_stable(&self, place: Place) -> bool {
        let end = |lane| self.ring.stream(lane).end();
        let stable = |lane| self.ring.position(place, lane).map_or(0, |p| p.1);
        self.peers[place.index()].opened && self.ring.lanes().all(|l| stable(l) >= end(l))
    }

    pub(super) fn fetched(&mut self, place: Place, lane: u8, stamp: Stamp, held: Option<Rc<Held>>) {
        let Phase::Completing(takeover) = &mut self.phase else {
            return;
        };
        let Some(rest) = takeover.rest.get_mut(usize::from(lane)) else {
            return;
        };
        let Some(item) = rest.items.front_mut() else {
            return;
        };
        if rest.fetching != Some(place) || item.held.stamp != stamp {
            return;
        }
        rest.fetching = None;
        match held.filter(|h| h.same(&item.held) && intact(h)) {
            Some(held) => item.held = held,
            None => rest.tried = rest.tried.with(place),
        }
    }

    /// K2 is known to be done: from here on heartbeats give leases.
    pub(super) fn begin(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.phase = Phase::Beginning;
        self.leases.begin();
        for place in self.ring.fed().iter() {
            self.slow.forget(place, now);
        }
        self.tell_set(out);
        self.heartbeat(now, out);
    }

    /// The set is durable where it must be (rule 10), and leases run: it serves.
    pub(super) fn try_serve(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let version = self.record.version;
        let kept = self.who_keeps(version);
        let leased = self.leases.running(now);
        if !self.sets.reached(kept) || !self.sets.reached(leased) {
            return;
        }
        for lane in self.ring.lanes() {
            let end = self.ring.stream(lane).end();
            self.acked[usize::from(lane)] = (end, end);
        }
        self.phase = Phase::Serving;
        if self.settling().is_some() {
            // Nothing of an older epoch can come any more, and what there was is stable on all.
            self.settled.begin(self.record.epoch);
        }
        out.push(Action::Serving);
        self.confirmed(now, out);
    }
}

/// A record that nobody can give any more: its blocks are damaged under their stamps, never older (invariant 1).
fn damaged(held: &Held) -> Held {
    let what = match &held.what {
        What::Write {
            first, crcs, tags, ..
        } => What::Poison {
            first: *first,
            crcs: crcs.clone(),
            tags: tags.clone(),
        },
        // Only writes have data that can be missing.
        other => unreachable!("{other:?} has no data"),
    };
    Held {
        lane: held.lane,
        stamp: held.stamp,
        key: held.key,
        what,
    }
}

/// Whether the data are those of the checksums.
fn intact(held: &Held) -> bool {
    let What::Write {
        crcs,
        data: Some(data),
        ..
    } = &held.what
    else {
        return false;
    };
    let sums = crcs.chunks_exact(4);
    data.len() >= sums.len() * BLOCK_BYTES
        && sums
            .zip(data.chunks_exact(BLOCK_BYTES))
            .all(|(sum, block)| sum == Crc::of(block).0.to_le_bytes())
}
