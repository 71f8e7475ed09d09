//! Resync (`docs/replication.md` §11): replicas of the record that are no members come back while the volume is served, one after the other.
//!
//! [`run`] does it for a coordinator as long as it serves: a replica is fed from s0 on, compared with a member that has everything up to s0 (`compare`), what
//! differs is copied (`copy`, as fast as `pace` allows), and it joins by K4. One pass over all summaries is enough: what differs at or below s0 can
//! only be changed by a copy, and everything above comes by the stream. A pass counts for one channel of the replica: what was copied before it went away may
//! be gone, so another channel begins another pass, which finds the rest.
//!
//! Before it is fed it is given the snapshots that it lacks, one after the other (§11, 4): its lanes become what they were at each of them. What a `pass` compares is
//! either, or what there is now.
//!
//! [`repair`] gives a member what it has damaged.

mod compare;
mod copy;
mod pace;
mod pass;
pub mod progress;
pub mod repair;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

pub use pace::Pace;
pub use progress::Progress;

use super::driver::{Inner, NotCopied, NotRead, Peers, SetStore};
use super::members::{Members, Place};
use super::message::{Event, Wish};
use super::state::{Machine, Subscription};
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};
use crate::store::types::SnapshotId;
use compare::Compare;
use pass::Pass;

/// What is waited for is looked at again after this.
const LOOK: Duration = Duration::from_millis(5);
/// A replica without work is looked for again after this.
const LOOK_AROUND: Duration = Duration::from_millis(200);
/// How long a replica may take to promise and open: another coordinator's lease may have to run out before.
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(10);
/// How long members may take to have everything up to s0, and to settle it.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// How long a flush, or K4, may take.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// So often snapshots are copied before it is fed: others may be taken meanwhile.
const PREPARATIONS: usize = 64;
/// So often K4 is asked for: another change may be under way.
const JOINS: usize = 8;
/// After a failure a replica is left alone for this, doubled up to the second.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(5);

/// Why a replica did not come back this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It did not promise, or open, or members do not settle.
    #[error("it took too long to {0}")]
    Late(&'static str),
    /// Its channel ended, or its place in the ring overflowed.
    #[error("it went away, or could not keep up with the stream")]
    Gone,
    /// No member could be read.
    #[error("no member could be read: {0}")]
    Source(NotRead),
    /// It could not be compared.
    #[error("it could not be compared: {0}")]
    Target(NotRead),
    /// It could not be copied to.
    #[error("it could not be copied to: {0}")]
    Copy(#[from] NotCopied),
    /// The coordinator does not serve any more.
    #[error("the volume is served elsewhere")]
    Ended,
}

/// What a coordinator knows of its resyncs.
#[derive(Debug)]
pub struct Resyncs {
    /// Of hosts' commands, and so of copies.
    pub pace: Pace,
    /// Of the replica that is being brought back.
    pub progress: Progress,
    /// A wish to join that was not met.
    pub not_met: Cell<bool>,
}

impl Resyncs {
    /// None yet.
    pub fn new(foreground: Duration) -> Self {
        Self {
            pace: Pace::new(foreground),
            progress: Progress::default(),
            not_met: Cell::new(false),
        }
    }
}

/// Brings back whoever is outside, while the coordinator has not ended.
pub(super) async fn run<P: Peers, K: SetStore>(of: Rc<Inner<P, K>>) {
    let mut later: BTreeMap<Place, (Nanos, Duration)> = BTreeMap::new();
    while !of.ended.get() {
        let now = of.handle.now();
        let outside = of.machine.borrow().outside();
        let due = |p: &Place| later.get(p).is_none_or(|(at, _)| *at <= now);
        let Some(place) = outside.iter().find(due) else {
            of.handle.sleep(LOOK_AROUND).await;
            continue;
        };
        let came = Resync { of: &of, place }.run().await;
        of.resyncs.progress.end();
        of.stands.notify_all();
        match came {
            Ok(()) => drop(later.remove(&place)),
            Err(why) => {
                tracing::info!(?place, %why, "a replica is not back yet");
                let wait = later.get(&place).map_or(AGAIN, |(_, wait)| *wait * 2);
                let wait = wait.min(AGAIN_MOST);
                later.insert(place, (of.handle.now() + wait, wait));
            }
        }
    }
}

struct Resync<'a, P: Peers, K: SetStore> {
    of: &'a Rc<Inner<P, K>>,
    place: Place,
}

impl<P: Peers, K: SetStore> Resync<'_, P, K> {
    async fn run(&self) -> Result<(), Why> {
        let (of, place) = (self.of, self.place);
        of.event(Event::Subscribe(place));
        let subscription = self.subscription().await?;
        let moved = of.peers.moved(place);
        let id = of.machine.borrow().replica(place);
        of.resyncs.progress.begin(id, of.total_bytes());
        of.stands.notify_all();
        if !planted::is(Bug::JoinsBehind) {
            self.pass(&Pass::Live(subscription.clone())).await?;
        }
        self.flush(&subscription).await?;
        self.join(&subscription).await?;
        let progress = &of.resyncs.progress;
        tracing::info!(
            ?place,
            copied_bytes = progress.copied(),
            moved_bytes = of.peers.moved(place) - moved,
            "a replica is back"
        );
        Ok(())
    }

    /// Waits until it is fed; before, it is given the snapshots that it lacks.
    async fn subscription(&self) -> Result<Subscription, Why> {
        let place = self.place;
        for _ in 0..PREPARATIONS {
            let look = |m: &Machine| {
                let fed = m.subscription(place).map(Ok);
                fed.or_else(|| m.preparing(place).map(Err))
            };
            let preparation = match self.until(SUBSCRIBE_LIMIT, "open", look).await? {
                Ok(subscription) => return Ok(subscription),
                Err(preparation) => preparation,
            };
            let id = self.of.machine.borrow().replica(place);
            self.of.resyncs.progress.begin(id, self.of.total_bytes());
            self.of.stands.notify_all();
            for id in &preparation.missing {
                self.snapshot(&Pass::new_snapshot(self.of, &preparation, *id), *id)
                    .await?;
            }
            // Others may have been taken meanwhile.
            self.of.event(Event::Prepared(place));
        }
        Err(Why::Late("be given all snapshots"))
    }

    /// Makes its lanes what they were at a snapshot, and has it keep them so.
    async fn snapshot(&self, pass: &Pass, id: SnapshotId) -> Result<(), Why> {
        self.pass(pass).await?;
        let copies = pass.snapshots(id);
        self.of.peers.copy(self.place, &copies).await?;
        tracing::info!(place = ?self.place, snapshot = %id, "a replica was given a snapshot");
        Ok(())
    }

    /// Compares everything, and copies what differs; another member goes on where one cannot be read.
    async fn pass(&self, pass: &Pass) -> Result<(), Why> {
        let mut compare = Compare::new(self.of, self.place, pass.clone());
        let mut failed = Members::NONE;
        loop {
            let source = self.source(pass, failed).await?;
            match compare.go(source).await {
                Err(Why::Source(_)) => failed = failed.with(source),
                done => return done,
            }
        }
    }

    /// A member that has everything up to s0, the nearest first.
    async fn source(&self, of: &Pass, but: Members) -> Result<Place, Why> {
        let near = self.of.peers.near();
        let choose = |m: &Machine| {
            let sources = of.sources(m).minus(but);
            near.filter(|n| sources.has(*n))
                .or_else(|| sources.iter().next())
        };
        if but.is_empty() {
            return self
                .while_(
                    |m| of.lasts(m, self.place),
                    SETTLE_LIMIT,
                    "write s0",
                    choose,
                )
                .await;
        }
        // Whoever is left is asked at once.
        let left = choose(&self.of.machine.borrow());
        left.ok_or(Why::Source(NotRead::Damaged))
    }

    /// What was copied is made stable.
    async fn flush(&self, of: &Subscription) -> Result<(), Why> {
        let place = self.place;
        let number = loop {
            let mut out = Vec::new();
            let number = self.of.machine.borrow_mut().flush_copies(place, &mut out);
            self.of.act(out);
            if let Some(number) = number {
                break number;
            }
            let idle = |m: &Machine| (m.subscription(place).as_ref() == Some(of)).then_some(());
            self.still(of, JOIN_LIMIT, "flush", idle).await?;
            self.of.handle.sleep(LOOK).await;
        };
        let done = |m: &Machine| (m.flushed(place) >= number).then_some(());
        self.still(of, JOIN_LIMIT, "flush", done).await
    }

    async fn join(&self, of: &Subscription) -> Result<(), Why> {
        let place = self.place;
        for _ in 0..JOINS {
            let may = |m: &Machine| m.may_join(place, of).then_some(());
            self.still(of, SETTLE_LIMIT, "settle", may).await?;
            self.of.resyncs.not_met.set(false);
            self.of.event(Event::Change(Wish::Join(place)));
            let met = |m: &Machine| {
                let not = self.of.resyncs.not_met.get();
                m.is_member(place).then_some(true).or(not.then_some(false))
            };
            if self.until(JOIN_LIMIT, "join", met).await? {
                return Ok(());
            }
            self.of.handle.sleep(LOOK * 20).await;
        }
        Err(Why::Late("join"))
    }

    /// Waits for something while the subscription lasts.
    async fn still<T>(
        &self,
        of: &Subscription,
        limit: Duration,
        what: &'static str,
        look: impl Fn(&Machine) -> Option<T>,
    ) -> Result<T, Why> {
        let lasts = |m: &Machine| m.subscription(self.place).as_ref() == Some(of);
        self.while_(lasts, limit, what, look).await
    }

    async fn while_<T>(
        &self,
        lasts: impl Fn(&Machine) -> bool,
        limit: Duration,
        what: &'static str,
        look: impl Fn(&Machine) -> Option<T>,
    ) -> Result<T, Why> {
        let found = self.until(limit, what, |m| match lasts(m) {
            true => look(m).map(Ok),
            false => Some(Err(Why::Gone)),
        });
        found.await?
    }

    async fn until<T>(
        &self,
        limit: Duration,
        what: &'static str,
        look: impl Fn(&Machine) -> Option<T>,
    ) -> Result<T, Why> {
        let until = self.of.handle.now() + limit;
        loop {
            if self.of.ended.get() {
                return Err(Why::Ended);
            }
            let found = look(&self.of.machine.borrow());
            if let Some(found) = found {
                return Ok(found);
            }
            if self.of.handle.now() >= until {
                return Err(Why::Late(what));
            }
            self.of.handle.sleep(LOOK).await;
        }
    }
}
