//! Promises, step by step (`docs/replication.md` §6): what was admitted runs out and is flushed, the lease is waited for, the promise is kept, the list is
//! made, and only then it is said. [`State`](super::state::State) says which step is next.

use std::rc::Rc;

use super::Outgoing;
use super::apply::why;
use super::channel::Chan;
use super::events::Event;
use super::service::Inner;
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{Promise, ReplicaError, ReplicaStore, Standing};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::open::{LaneState, encode_opened};
use crate::replication::wire::promise::{PromisedHead, encode_promised};

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// Everything that was admitted runs out; then all of it is stable.
    pub(super) async fn drain(self: Rc<Self>) {
        if !planted::is(Bug::DrainSkipped) {
            self.quiet().await;
        }
        let done = match planted::is(Bug::PromiseNotFlushed) {
            true => Ok(()),
            false => self.store.flush().await,
        };
        if let Err(ReplicaError::Incomplete(_)) = done {
            return self.lost();
        }
        self.event(Event::Drained(done.map_err(|_| ())));
    }

    pub(super) async fn keep(self: Rc<Self>, promise: Promise) {
        let done = match planted::is(Bug::PromiseNotKept) {
            true => Ok(()),
            false => self.store.keep_promise(promise).await,
        };
        if let Err(ReplicaError::Incomplete(_)) = done {
            return self.lost();
        }
        self.event(Event::Kept(done.map_err(|_| ())));
    }

    /// One task waits; if the lease is another one by then, it waits again.
    pub(super) fn wait_for_lease(self: &Rc<Self>, until: Nanos) {
        if self.lease_armed.replace(true) {
            return;
        }
        self.begin("replica: lease", |this| async move {
            this.handle.sleep_until(until).await;
            this.lease_armed.set(false);
            this.event(Event::Time);
        });
    }

    /// The promise is durable: what is above settled is listed, and it is said.
    pub(super) async fn answer_promise(self: Rc<Self>, chan: Rc<Chan<O>>) {
        let _busy = chan.busy();
        let degraded = match self.list().await {
            Ok(degraded) => degraded,
            Err(ReplicaError::Incomplete(_)) => return self.lost(),
            Err(error) => return self.refuse(&chan, why(&error)),
        };
        if !self.admits(&chan) {
            return;
        }
        let (kept, former) = {
            let state = self.state.borrow();
            (state.kept(), state.former())
        };
        let standing = kept.map_or(Standing::Promised, |p| p.state);
        let set = self.store.set();
        let head = PromisedHead {
            standing,
            level: match kept {
                Some(p) if p.state == Standing::Level => p.version,
                _ => 0,
            },
            degraded,
            former: former.map_or((0, [0; 16]), |p| (p.epoch, p.incarnation)),
            boot: self.store.boot(),
            set: (set.epoch, set.version),
        };
        let mut body = Vec::new();
        encode_promised(&mut body, &head, &set.members, &self.lane_states());
        if chan.send(Kind::Promised, &body, &[]).await {
            self.grant(&chan);
        }
    }

    /// Makes what is written stable, and lists what is above settled; whether a list has degraded.
    async fn list(&self) -> Result<bool, ReplicaError> {
        if !planted::is(Bug::PromiseNotFlushed) {
            self.store.flush().await?;
        }
        let mut degraded = false;
        for number in 0..self.store.lanes() {
            let mut list = self.store.unsettled(number).await?;
            if planted::is(Bug::ListEmpty) {
                list.records.clear();
            }
            let list = Rc::new(list);
            degraded |= list.leaves.is_some();
            self.lanes.borrow_mut()[usize::from(number)].listed = Some(list);
        }
        Ok(degraded)
    }

    pub(super) async fn answer_open(self: Rc<Self>, chan: Rc<Chan<O>>) {
        let _busy = chan.busy();
        // Where a record failed the stream begins again behind what is written, once that is known.
        while self.lanes.borrow().iter().any(|l| l.broken) {
            self.idle.notified().await;
        }
        if !self.admits(&chan) {
            return;
        }
        let mut body = Vec::new();
        encode_opened(&mut body, self.store.boot(), &self.lane_states());
        if chan.send(Kind::Opened, &body, &[]).await {
            self.grant(&chan);
        }
    }

    /// The first Ack says what may be sent.
    fn grant(&self, chan: &Chan<O>) {
        chan.ack_due.set(true);
        self.ack.notify();
    }

    fn lane_states(&self) -> Vec<LaneState> {
        let resyncing = self.state.borrow().resyncing();
        let lanes = self.lanes.borrow();
        let states = (0_u8..).zip(lanes.iter()).map(|(number, lane)| LaneState {
            lane: number,
            settled: self.store.settled(number),
            written: lane.stream.written(),
            stable: lane.stream.stable(),
            lost: false,
            resyncing,
        });
        states.collect()
    }
}
