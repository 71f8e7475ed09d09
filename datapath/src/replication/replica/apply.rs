//! Records go to the store, as many beside each other as their blocks allow, and what becomes of them.

use std::rc::Rc;
use std::time::Duration;

use super::admit::{Copying, How, Job};
use super::channel::Chan;
use super::events::Event;
use super::order::Ticket;
use super::service::Inner;
use super::{APPLYING_MAX, Outgoing};
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{ReplicaError, ReplicaStore, Unsettled};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::refused::Reason;
use crate::replication::wire::resync::{Copied, NotCopied};

/// So long the pump waits when the reactor has no room for another operation.
const ROOM_AFTER: Duration = Duration::from_micros(50);
/// And so long when a list has none: what is settled makes some. Its channel is granted nothing meanwhile, as what waits is not done.
const LIST_AFTER: Duration = Duration::from_millis(2);
/// For so long at most: what waits has a part of what its session may have under way, and others use that too.
const LIST_LIMIT: Duration = Duration::from_secs(1);

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// Begins whatever may begin.
    pub(super) fn pump(self: &Rc<Self>) {
        // What completes at once comes here again: this one goes on with it.
        if self.pumping.replace(true) {
            return;
        }
        self.begin_ready();
        self.pumping.set(false);
    }

    fn begin_ready(self: &Rc<Self>) {
        let lanes = self.lanes.borrow().len();
        let epoch = self.state.borrow().epoch();
        let mut waits = false;
        for lane in 0..lanes {
            while self.running.get() < APPLYING_MAX {
                let next = self.lanes.borrow_mut()[lane].order.pop();
                let Some((ticket, job)) = next else { break };
                let rolled = job.record.stamp.epoch < epoch;
                let room = job.how != How::Apply
                    || planted::is(Bug::FullListRefuses)
                    || self.store.has_room(&job.record, rolled);
                if !room {
                    let now = self.handle.now();
                    let mut lanes = self.lanes.borrow_mut();
                    let since = *lanes[lane].full_since.get_or_insert(now);
                    if job.permit.has_ended() || now >= since + LIST_LIMIT {
                        drop(lanes);
                        self.finished(lane, ticket, job, Err(ReplicaError::Full));
                    } else {
                        lanes[lane].order.put_back(ticket, job);
                        waits = true;
                    }
                    break;
                }
                self.lanes.borrow_mut()[lane].full_since = None;
                if !self.start(lane, ticket, job) {
                    return;
                }
            }
        }
        if waits {
            self.pump_after(LIST_AFTER);
        }
    }

    fn pump_after(self: &Rc<Self>, time: Duration) {
        if !self.pump_armed.replace(true) {
            self.begin("replica: room", |this| async move {
                this.handle.sleep(time).await;
                this.pump_armed.set(false);
                this.pump();
            });
        }
    }

    /// False: the reactor has no room now.
    fn start(self: &Rc<Self>, lane: usize, ticket: Ticket, job: Job<O>) -> bool {
        if job.how == How::Settled {
            self.finished(lane, ticket, job, Ok(()));
            return true;
        }
        self.running.set(self.running.get() + 1);
        self.lanes.borrow_mut()[lane].running += 1;
        // The job stays outside until the operation has begun: one that finds no room is lost.
        let slot = Rc::new(std::cell::RefCell::new(Some(job)));
        let (this, inside) = (self.clone(), slot.clone());
        let begun = self.handle.start("replica: record", async move {
            let Some(job) = inside.take() else { return };
            let done = this.bring(&job).await;
            this.lanes.borrow_mut()[lane].running -= 1;
            this.finished(lane, ticket, job, done);
            this.one_done();
            this.pump();
        });
        if begun.is_ok() {
            return true;
        }
        self.lanes.borrow_mut()[lane].running -= 1;
        self.one_done();
        if let Some(job) = slot.take() {
            self.lanes.borrow_mut()[lane].order.put_back(ticket, job);
        }
        self.pump_after(ROOM_AFTER);
        false
    }

    async fn bring(&self, job: &Job<O>) -> Result<(), ReplicaError> {
        match job.how {
            How::Apply => self.store.apply(&job.record).await,
            How::Alone => {
                // So nothing before it can be missing once it is there (rule 12).
                if !planted::is(Bug::SnapshotNotFlushed) {
                    self.store.flush().await?;
                }
                self.store.apply(&job.record).await?;
                // Nor can anything behind it be there without it, and be in it when it is sent again.
                match planted::is(Bug::SnapshotNotFlushed) {
                    true => Ok(()),
                    false => self.store.flush().await,
                }
            }
            How::Listed => self.confirm(&job.record).await,
            How::Settled => Ok(()),
        }
    }

    /// A listed record is here, and stable: the list was made after a flush.
    async fn confirm(&self, record: &Held) -> Result<(), ReplicaError> {
        let list = self.listed(record.lane).await?;
        match find(&list, record) {
            Some(found) if found.same(record) => Ok(()),
            _ => Err(ReplicaError::Drive(format!(
                "record {:?} was listed, and is not here",
                record.stamp
            ))),
        }
    }

    fn finished(
        self: &Rc<Self>,
        lane: usize,
        ticket: Ticket,
        job: Job<O>,
        done: Result<(), ReplicaError>,
    ) {
        let written = done.is_ok();
        {
            let mut lanes = self.lanes.borrow_mut();
            let of = &mut lanes[lane];
            of.order.done(ticket);
            let current = job.streams == self.streams.get();
            if written && current && !of.broken && of.stream.complete(job.position) {
                of.moved = true;
                if !self.store.volatile() {
                    let mark = of.stream.mark();
                    of.stream.flushed(mark);
                }
            }
        }
        if written && self.store.volatile() {
            self.flushes.wrote(&self.handle);
        }
        drop(job);
        if let Err(error) = done {
            self.failed(lane, &error);
        }
        self.mend(lane);
        self.flushes.look();
        self.ack.notify();
    }

    /// A record of a lane was not applied: its stream cannot go on before it is sent again.
    fn failed(self: &Rc<Self>, lane: usize, error: &ReplicaError) {
        if matches!(error, ReplicaError::Incomplete(_)) {
            return self.lost();
        }
        let (dropped, by) = {
            let mut lanes = self.lanes.borrow_mut();
            let of = &mut lanes[lane];
            of.broken = true;
            (of.order.clear(), of.by)
        };
        drop(dropped);
        if let Some(chan) = by.and_then(|by| self.chan(by)) {
            self.refuse(&chan, why(error));
        }
    }

    /// It is never this replica again.
    pub(super) fn lost(self: &Rc<Self>) {
        self.event(Event::Lost);
        for chan in self.all_channels() {
            self.refuse(&chan, Reason::Lost);
        }
    }

    /// A broken lane of which everything has run out begins again behind what is written.
    fn mend(&self, lane: usize) {
        let mut lanes = self.lanes.borrow_mut();
        let of = &mut lanes[lane];
        if of.broken && of.running == 0 {
            of.broken = false;
            of.stream.rewind();
            self.idle.notify_all();
        }
    }

    async fn copy_one(&self, copying: &Copying<O>) -> Result<(), ReplicaError> {
        let Some(s0) = copying.s0 else {
            return self.store.repair(&copying.record).await;
        };
        if !matches!(copying.record.what, What::Snapshot(_)) {
            return self.store.copy(&copying.record, s0).await;
        }
        // What was copied is in it, after a power cut too; and nothing that is copied later.
        self.store.flush().await?;
        self.store.copy(&copying.record, s0).await?;
        self.store.flush().await
    }

    /// Applies a copy, and says so.
    pub(super) fn copy(self: &Rc<Self>, chan: &Rc<Chan<O>>, request: u64, copies: Vec<Copying<O>>) {
        chan.copies.set(chan.copies.get() + 1);
        self.running.set(self.running.get() + 1);
        let chan = chan.clone();
        self.begin("replica: copy", |this| async move {
            let _busy = chan.busy();
            let mut result = Ok(());
            for copying in copies {
                if result.is_ok() && this.admits(&chan) {
                    result = this.copy_one(&copying).await;
                }
            }
            chan.copies.set(chan.copies.get() - 1);
            this.one_done();
            this.pump();
            if this.store.volatile() {
                this.flushes.wrote(&this.handle);
            }
            if let Err(ReplicaError::Incomplete(_)) = result {
                this.lost();
            }
            // Looked at again: what was left out for a higher epoch is not said to be done (rule 1).
            if this.admits(&chan) {
                let result = result.map_err(|e| match e {
                    ReplicaError::Full => NotCopied::Full,
                    _ => NotCopied::Failed,
                });
                let mut body = Vec::new();
                Copied { request, result }.put(&mut body);
                chan.send(Kind::Copied, &body, &[]).await;
            }
            this.ack.notify();
        });
    }
}

/// The record of this stamp in a list.
pub(super) fn find<'a>(list: &'a Unsettled, record: &Held) -> Option<&'a Rc<Held>> {
    let at = list
        .records
        .binary_search_by_key(&record.stamp, |r| r.stamp);
    at.ok().map(|at| &list.records[at])
}

/// As a refusal says it.
pub(super) fn why(error: &ReplicaError) -> Reason {
    match error {
        ReplicaError::Full => Reason::Full,
        ReplicaError::Incomplete(_) => Reason::Lost,
        _ => Reason::Failed,
    }
}
