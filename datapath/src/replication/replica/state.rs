//! What a replica has promised, to whom it gave a lease, and what it takes from whom (`docs/replication.md` §6 and §9). No I/O, no clock: events in,
//! actions out.
//!
//! - It never takes a frame of an epoch below one that it was asked to promise, from the moment on at which it was asked.
//! - It says that it promised only when the promise is durable; and before it is kept, all that was admitted has run out and is stable, and the lease of
//!   the older epoch's holder is over.
//! - An epoch belongs to one process. Its incarnation is compared wherever the epoch is.
//!
//! There is one promise being kept at a time. What is asked meanwhile waits, and the highest epoch wins.

use std::time::Duration;

use super::events::{Action, Ask, Event, Key, Phase, Refusal, Sender, sender};
use super::lease::Lease;
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{Id, Promise, Standing};

/// Why a promise is being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Promise,
    Subscribe,
    Standing(Key),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Operations run out.
    Draining,
    /// The lease runs out.
    Leased,
    /// It can be kept, as soon as nothing else is being kept.
    Ready,
    /// It is being kept.
    Keeping,
    /// A drive failed before it was drained, or while it was kept; asked again, it is tried again.
    Failed { drained: bool },
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    ask: Ask,
    by: Option<Key>,
    stage: Stage,
}

/// A replica's state.
#[derive(Debug)]
pub struct State {
    incomplete: bool,
    kept: Option<Promise>,
    /// Of the kept promise, if it was made since the start.
    attempt: Option<Id>,
    asked: Option<Asked>,
    keeping: Option<(Promise, Purpose)>,
    /// Channels of this epoch that subscribe while something is being kept; one each at most.
    subscribing: Vec<Key>,
    /// What it is to be besides.
    standing: Option<(Key, Standing, u64)>,
    /// What was promised before the kept promise.
    former: Option<Promise>,
    opened: bool,
    lease: Lease,
    /// When a heartbeat of the holder came last.
    heard: Option<Nanos>,
}

impl State {
    /// Of a replica that was just opened at `now`, with what it kept. `longest`: no lease that it gives is longer.
    pub fn new(kept: Option<Promise>, complete: bool, longest: Duration, now: Nanos) -> Self {
        Self {
            incomplete: !complete,
            kept,
            attempt: None,
            asked: None,
            keeping: None,
            subscribing: Vec::new(),
            standing: None,
            former: kept,
            opened: false,
            heard: None,
            // Without a promise there was no holder of a lease.
            lease: Lease::after_restart(longest, kept.map(|_| now)),
        }
    }

    /// Its row in the table.
    pub fn phase(&self) -> Phase {
        if self.incomplete {
            return Phase::Incomplete;
        }
        if let Some(asked) = &self.asked {
            return Phase::Promising(asked.ask.sender);
        }
        match self.kept {
            None => Phase::Fresh,
            Some(p) if !self.opened => Phase::Promised(sender(&p)),
            Some(p) if p.state == Standing::Resyncing => Phase::Resyncing(sender(&p)),
            Some(p) => Phase::Following(sender(&p)),
        }
    }

    /// The promise that is durable.
    pub fn kept(&self) -> Option<Promise> {
        self.kept
    }

    /// The highest epoch that it promised or was asked for; nothing lower is taken. 0: none.
    pub fn epoch(&self) -> u32 {
        let asked = self.asked.as_ref().map(|a| a.ask.sender.epoch);
        let kept = self.kept.map(|p| p.epoch);
        asked.max(kept).unwrap_or(0)
    }

    /// Whether it is copied to.
    pub fn resyncing(&self) -> bool {
        self.kept.is_some_and(|p| p.state == Standing::Resyncing)
    }

    /// Whether it is no member that anybody told so: then a record that is settled elsewhere may be missing here, as settled waits for members only. That is so
    /// for one that noted that it is level, too: until it is named, more may be settled than has come to it.
    pub fn outside(&self) -> bool {
        self.kept.is_some_and(|p| p.state != Standing::Promised)
    }

    /// What it had promised before it was asked for what it promised last; of a restarted one, the same.
    pub fn former(&self) -> Option<Promise> {
        self.former
    }

    /// Whether a higher epoch was asked for, and is not promised yet.
    pub fn is_promising(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether a frame of this sender is taken: asked at admission, and again before an answer is sent (rule 1).
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, from: Sender) -> Result<(), Refusal> {
        if self.incomplete {
            return Err(Refusal::Incomplete);
        }
        if from.epoch < self.epoch() {
            return Err(Refusal::Lower);
        }
        match self.kept {
            Some(p) if p.epoch == from.epoch && same_process(p.incarnation, from.incarnation) => {
                Ok(())
            }
            Some(p) if p.epoch == from.epoch => Err(Refusal::Incarnation),
            _ => Err(Refusal::NotPromised),
        }
    }

    /// The same, for what is only taken after an Open.
    ///
    /// # Errors
    /// Why not.
    pub fn admits_opened(&self, from: Sender) -> Result<(), Refusal> {
        self.admits(from)?;
        if self.opened {
            Ok(())
        } else {
            Err(Refusal::NotOpen)
        }
    }

    /// A heartbeat of the holder. `Ok(true)`: the lease runs from `now`; `Ok(false)`: a higher epoch was asked for, or it was released.
    ///
    /// After a release apply [`Event::Time`]: a promise may wait no longer.
    ///
    /// # Errors
    /// It is not the holder, or opened nothing.
    pub fn heartbeat(&mut self, from: Sender, release: bool, now: Nanos) -> Result<bool, Refusal> {
        let holder = self.kept.filter(|p| sender(p) == from);
        if holder.is_some() && release {
            self.lease.release();
        }
        if self.asked.is_some() && holder.is_some() && !self.incomplete {
            return Ok(false);
        }
        self.admits_opened(from)?;
        self.heard = Some(now);
        if !release {
            self.lease.renew(now);
        }
        Ok(!release)
    }

    /// When a heartbeat of the coordinator that it follows came last.
    pub fn heard(&self) -> Option<Nanos> {
        self.heard
    }

    /// Until when a promise of a higher epoch waits, if it were asked for by somebody else.
    pub fn leased_until(&self) -> Option<Nanos> {
        self.lease.until()
    }

    /// The one way in which it changes, but for leases.
    pub fn apply(&mut self, event: Event, now: Nanos) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Promise(by, ask) => self.promise(by, ask, now, &mut out),
            Event::Drained(done) => self.drained(done, now, &mut out),
            Event::Time => self.look_at_lease(now, &mut out),
            Event::Kept(done) => {
                self.was_kept(done, &mut out);
                self.look_at_lease(now, &mut out);
                self.next(&mut out);
            }
            Event::Open {
                by,
                sender,
                subscribe,
                lease,
            } => self.open(by, sender, (subscribe, lease), &mut out),
            Event::Stand {
                by,
                standing,
                version,
            } => {
                self.standing = Some((by, standing, version));
                self.next(&mut out);
            }
            Event::Gone(key) => {
                if let Some(asked) = &mut self.asked
                    && asked.by == Some(key)
                {
                    asked.by = None;
                }
                self.subscribing.retain(|k| *k != key);
                self.standing.take_if(|(by, ..)| *by == key);
            }
            Event::Lost => {
                self.incomplete = true;
                if let Some(by) = self.asked.take().and_then(|a| a.by) {
                    out.push(Action::Refuse(by, Refusal::Incomplete, self.epoch()));
                }
            }
        }
        out
    }

    fn promise(&mut self, by: Key, ask: Ask, now: Nanos, out: &mut Vec<Action>) {
        if self.incomplete {
            return out.push(Action::Refuse(by, Refusal::Incomplete, self.epoch()));
        }
        let highest = self.epoch();
        let refuse = |why| Action::Refuse(by, why, highest);
        if ask.sender.epoch < highest || ask.sender.epoch == 0 {
            return out.push(refuse(Refusal::Lower));
        }
        if let Some(asked) = &mut self.asked
            && asked.ask.sender.epoch == ask.sender.epoch
        {
            if asked.ask.sender != ask.sender || asked.ask.attempt != ask.attempt {
                return out.push(refuse(Refusal::Incarnation));
            }
            // The last who asks is answered: an older channel is of a session that was cut.
            asked.by = Some(by);
            return self.try_again(now, out);
        }
        if let Some(kept) = &self.kept
            && kept.epoch == ask.sender.epoch
        {
            let other = self.attempt.is_some_and(|a| a != ask.attempt);
            let other = other || !same_process(kept.incarnation, ask.sender.incarnation);
            if other && !planted::is(Bug::SameEpochAgain) {
                return out.push(refuse(Refusal::Incarnation));
            }
            self.attempt = Some(ask.attempt);
            return out.push(Action::AnswerPromise(by));
        }
        let before = self.asked.take();
        if let Some(older) = before.and_then(|a| a.by) {
            out.push(Action::Refuse(older, Refusal::Lower, ask.sender.epoch));
        }
        out.push(Action::Fence);
        // Since the first that was asked for nothing was admitted, so what ran out then is all that there was.
        let stage = match before.map(|a| a.stage) {
            None | Some(Stage::Failed { drained: false }) => {
                out.push(Action::Drain);
                Stage::Draining
            }
            Some(Stage::Draining) => Stage::Draining,
            Some(_) => Stage::Leased,
        };
        self.asked = Some(Asked {
            ask,
            by: Some(by),
            stage,
        });
        self.look_at_lease(now, out);
    }

    /// Asked again for what is on its way: only what failed is begun again.
    fn try_again(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(asked) = &mut self.asked else { return };
        if let Stage::Failed { drained } = asked.stage {
            if drained {
                asked.stage = Stage::Leased;
                self.look_at_lease(now, out);
            } else {
                asked.stage = Stage::Draining;
                out.push(Action::Drain);
            }
        }
    }

    fn drained(&mut self, done: Result<(), ()>, now: Nanos, out: &mut Vec<Action>) {
        let Some(asked) = &mut self.asked else { return };
        if asked.stage != Stage::Draining {
            return;
        }
        if done.is_err() {
            asked.stage = Stage::Failed { drained: false };
            return self.failed(out);
        }
        asked.stage = Stage::Leased;
        self.look_at_lease(now, out);
    }

    fn failed(&mut self, out: &mut Vec<Action>) {
        let epoch = self.epoch();
        if let Some(by) = self.asked.as_mut().and_then(|a| a.by.take()) {
            out.push(Action::Refuse(by, Refusal::Failed, epoch));
        }
    }

    fn look_at_lease(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(asked) = &mut self.asked else { return };
        if asked.stage != Stage::Leased {
            return;
        }
        // A process that asks for a higher epoch has ended its lower one itself.
        let own = self.kept.map(|p| p.incarnation) == Some(asked.ask.sender.incarnation);
        match self.lease.until().filter(|until| *until > now && !own) {
            Some(until) => out.push(Action::WaitUntil(until)),
            None => {
                asked.stage = Stage::Ready;
                self.next(out);
            }
        }
    }

    /// What waits for a promise to be kept, and may go on: changes of its standing first, as they are the kept epoch's.
    fn next(&mut self, out: &mut Vec<Action>) {
        self.subscribe(out);
        self.stand(out);
        self.keep_next(out);
    }

    fn keep_next(&mut self, out: &mut Vec<Action>) {
        let Some(asked) = &mut self.asked else { return };
        if asked.stage != Stage::Ready || self.keeping.is_some() {
            return;
        }
        asked.stage = Stage::Keeping;
        let ask = asked.ask;
        let mut promise = Promise {
            epoch: ask.sender.epoch,
            incarnation: ask.sender.incarnation,
            version: ask.version,
            state: Standing::Promised,
        };
        // What it is besides a promise outlives it.
        if let Some(kept) = self.kept.filter(|p| p.state != Standing::Promised) {
            (promise.state, promise.version) = (kept.state, kept.version);
        }
        self.keep(promise, Purpose::Promise, out);
    }

    fn keep(&mut self, promise: Promise, purpose: Purpose, out: &mut Vec<Action>) {
        assert!(self.keeping.is_none(), "one promise is kept at a time");
        self.keeping = Some((promise, purpose));
        out.push(Action::Keep(promise));
    }

    fn was_kept(&mut self, done: Result<(), ()>, out: &mut Vec<Action>) {
        let Some((promise, purpose)) = self.keeping.take() else {
            return;
        };
        let epoch = self.epoch();
        if done.is_err() {
            // The old one or the new one is durable. Nothing was said; what was asked for is fenced as before.
            return match purpose {
                Purpose::Promise => self.keep_failed(promise.epoch, out),
                Purpose::Standing(by) => out.push(Action::Refuse(by, Refusal::Failed, epoch)),
                Purpose::Subscribe => {
                    let all = self.subscribing.drain(..);
                    out.extend(all.map(|by| Action::Refuse(by, Refusal::Failed, epoch)));
                }
            };
        }
        let former = self.kept.replace(promise);
        match purpose {
            Purpose::Promise => {
                self.former = former;
                self.promised(promise, out);
            }
            Purpose::Subscribe => {}
            Purpose::Standing(by) if self.admits(sender(&promise)).is_ok() => {
                out.push(Action::AnswerStanding(by));
            }
            // Fenced meanwhile: that channel is ended when the higher epoch is promised.
            Purpose::Standing(_) => {}
        }
    }

    /// Marks it as being copied to, and answers who subscribed.
    fn subscribe(&mut self, out: &mut Vec<Action>) {
        let Some(kept) = self.kept else { return };
        if self.keeping.is_some() || self.subscribing.is_empty() {
            return;
        }
        if self.admits(sender(&kept)).is_err() {
            // Fenced meanwhile: these channels are ended when the higher epoch is promised.
            return self.subscribing.clear();
        }
        if kept.state == Standing::Resyncing {
            self.opened = true;
            for by in self.subscribing.drain(..) {
                out.extend([Action::Subscribed(by), Action::AnswerOpen(by)]);
            }
            return;
        }
        let promise = Promise {
            state: Standing::Resyncing,
            ..kept
        };
        self.keep(promise, Purpose::Subscribe, out);
    }

    fn keep_failed(&mut self, epoch: u32, out: &mut Vec<Action>) {
        let Some(asked) = &mut self.asked else { return };
        if asked.ask.sender.epoch == epoch {
            asked.stage = Stage::Failed { drained: true };
            self.failed(out);
        }
    }

    /// A promise is durable. If a higher one was asked for meanwhile, it is answered by that one's refusal.
    fn promised(&mut self, promise: Promise, out: &mut Vec<Action>) {
        self.opened = false;
        self.attempt = None;
        self.lease.holder_changed();
        out.extend([Action::EndLower, Action::NewStreams]);
        self.subscribing.clear();
        self.standing = None;
        let same = |a: &mut Asked| a.ask.sender == sender(&promise);
        if let Some(asked) = self.asked.take_if(same) {
            self.attempt = Some(asked.ask.attempt);
            out.extend(asked.by.map(Action::AnswerPromise));
        }
    }

    fn open(
        &mut self,
        by: Key,
        from: Sender,
        (subscribe, lease): (bool, Duration),
        out: &mut Vec<Action>,
    ) {
        let epoch = self.epoch();
        if let Err(why) = self.admits(from) {
            return out.push(Action::Refuse(by, why, epoch));
        }
        if !self.lease.set_time(lease) {
            return out.push(Action::Refuse(by, Refusal::Lease, epoch));
        }
        if subscribe {
            self.subscribing.retain(|k| *k != by);
            self.subscribing.push(by);
            return self.next(out);
        }
        self.opened = true;
        out.push(Action::AnswerOpen(by));
    }

    fn stand(&mut self, out: &mut Vec<Action>) {
        let (Some(kept), None) = (self.kept, &self.keeping) else {
            return;
        };
        let Some((by, state, version)) = self.standing.take() else {
            return;
        };
        if self.admits(sender(&kept)).is_err() {
            // Fenced meanwhile: that channel is ended when the higher epoch is promised.
            return;
        }
        let is_so = kept.state == state && (state != Standing::Level || kept.version == version);
        if is_so {
            return out.push(Action::AnswerStanding(by));
        }
        if (kept.state, state) == (Standing::Promised, Standing::Level) {
            return out.push(Action::Refuse(by, Refusal::NotResyncing, self.epoch()));
        }
        let promise = Promise {
            state,
            version,
            ..kept
        };
        self.keep(promise, Purpose::Standing(by), out);
    }
}

/// Rule 2: an epoch belongs to one process.
fn same_process(a: Id, b: Id) -> bool {
    a == b || planted::is(Bug::SameEpochAgain)
}
