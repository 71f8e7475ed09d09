//! Sets as replicas keep them (rule 10), and what a replica is by them: one after the other, each durable before it is answered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::apply::why;
use super::channel::{Busy, Chan};
use super::events::Event;
use super::service::Inner;
use super::snapshots::Named;
use super::{Breach, Outgoing, SETS_MAX};
use crate::reactor::Notify;
use crate::replication::seam::{Id, KeptSet, ReplicaError, ReplicaStore, Standing};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::promise::{Kept, Purpose, Set};
use crate::replication::wire::refused::Reason;

/// What waits in the queue.
pub(super) enum Task<O: Outgoing> {
    /// A set is to be kept.
    Set(Waiting<O>),
    /// Snapshots were named.
    Snapshots(Named<O>),
}

impl<O: Outgoing> Task<O> {
    fn chan(&self) -> &Rc<Chan<O>> {
        match self {
            Self::Set(set) => &set.busy.0,
            Self::Snapshots(named) => &named.busy.0,
        }
    }
}

pub(super) struct Waiting<O: Outgoing> {
    version: u64,
    purpose: Purpose,
    members: Vec<Id>,
    busy: Busy<O>,
    _admitted: O::Admitted,
}

/// Sets that wait to be kept.
pub(super) struct Sets<O: Outgoing> {
    waiting: RefCell<VecDeque<Task<O>>>,
    changed: Notify,
}

impl<O: Outgoing> Default for Sets<O> {
    fn default() -> Self {
        Self {
            waiting: RefCell::default(),
            changed: Notify::new(),
        }
    }
}

impl<O: Outgoing> Sets<O> {
    pub fn wake(&self) {
        self.changed.notify();
    }
}

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// A Set of an admitted channel.
    pub(super) fn admit_set(
        self: &Rc<Self>,
        chan: &Rc<Chan<O>>,
        set: &Set<'_>,
        admitted: O::Admitted,
    ) -> Result<(), Breach> {
        self.put_task(Task::Set(Waiting {
            version: set.version,
            purpose: set.purpose,
            members: set.members.iter().collect(),
            busy: chan.busy(),
            _admitted: admitted,
        }))
    }

    pub(super) fn put_task(&self, task: Task<O>) -> Result<(), Breach> {
        let mut waiting = self.sets.waiting.borrow_mut();
        let of_it = waiting.iter().filter(|w| w.chan().key == task.chan().key);
        if of_it.count() >= SETS_MAX {
            return Err(Breach::Sequence("more sets than may wait"));
        }
        waiting.push_back(task);
        drop(waiting);
        self.sets.wake();
        Ok(())
    }

    /// The task that keeps them.
    pub(super) async fn run_sets(self: Rc<Self>) {
        while !self.stopped.get() {
            let next = self.sets.waiting.borrow_mut().pop_front();
            let set = match next {
                None => {
                    self.sets.changed.notified().await;
                    continue;
                }
                Some(Task::Snapshots(named)) => {
                    self.keep_snapshots(named).await;
                    continue;
                }
                Some(Task::Set(set)) => set,
            };
            let chan = set.busy.0.clone();
            if !self.admits(&chan) {
                continue;
            }
            let Some(standing) = self.keep_set(&chan, &set).await else {
                continue;
            };
            if !self.admits(&chan) {
                continue;
            }
            chan.set.set(Some((set.version, set.purpose)));
            self.event(Event::Stand {
                by: chan.key,
                standing,
                version: set.version,
            });
            // Answered, or its channel is gone.
            while chan.set.get().is_some() && !chan.ended.get() && !self.stopped.get() {
                self.sets.changed.notified().await;
            }
        }
    }

    /// Keeps a set if it is newer; what the replica is by it. `None`: it was refused.
    async fn keep_set(self: &Rc<Self>, chan: &Rc<Chan<O>>, set: &Waiting<O>) -> Option<Standing> {
        if set.purpose == Purpose::Level {
            return self.may_be_level(chan);
        }
        let new = KeptSet {
            epoch: chan.sender.epoch,
            version: set.version,
            members: set.members.clone(),
        };
        let kept = self.store.set();
        let (new_order, kept_order) = ((new.epoch, new.version), (kept.epoch, kept.version));
        if new_order < kept_order || new_order == kept_order && !same_members(&new, &kept) {
            // A newer one is kept, or another one of this version: whoever sends this is behind.
            self.refuse(chan, Reason::Busy);
            return None;
        }
        let others = new.members.iter().filter(|m| **m != self.identity.replica);
        if others.count() > KeptSet::OTHERS_MAX {
            // A store has no room for it, and no coordinator that is in order sends it.
            self.refuse(chan, Reason::Full);
            return None;
        }
        if new_order > kept_order {
            self.running.set(self.running.get() + 1);
            let done = self.store.keep_set(&new).await;
            self.one_done();
            match done {
                Ok(()) => {}
                Err(ReplicaError::Incomplete(_)) => {
                    self.lost();
                    return None;
                }
                Err(error) => {
                    self.refuse(chan, why(&error));
                    return None;
                }
            }
        }
        let named = new.members.contains(&self.identity.replica);
        Some(if named {
            Standing::Promised
        } else {
            Standing::Resyncing
        })
    }

    /// A replica that was copied to is level only where everything up to s0 is settled: else a member may lack a record that this one has by copies only,
    /// and lists nowhere.
    fn may_be_level(self: &Rc<Self>, chan: &Rc<Chan<O>>) -> Option<Standing> {
        let level = {
            let lanes = self.lanes.borrow();
            let mut lanes = lanes.iter();
            lanes.all(|l| l.s0.is_some() && l.settled >= l.s0)
        };
        if !level {
            self.refuse(chan, Reason::Busy);
            return None;
        }
        Some(Standing::Level)
    }

    /// What it is by the set is durable. What was settled while it was copied to is told to the store now, and kept with a flush: so that nothing that it had
    /// from an abandoned epoch is on a list of it ever again. One that is level, and no member yet, tells no more than s0: what is settled above it may not
    /// have come here, and what the store takes for settled it takes for there.
    pub(super) async fn answer_standing(self: Rc<Self>, chan: Rc<Chan<O>>) {
        let Some((version, purpose)) = chan.set.get() else {
            return;
        };
        if !self.state.borrow().resyncing() && self.tell_settled() {
            self.running.set(self.running.get() + 1);
            let done = self.store.flush().await;
            self.one_done();
            if let Err(error) = done {
                return match error {
                    ReplicaError::Incomplete(_) => self.lost(),
                    error => self.refuse(&chan, why(&error)),
                };
            }
        }
        if self.admits(&chan) {
            let mut body = Vec::new();
            Kept { version, purpose }.put(&mut body);
            chan.send(Kind::Kept, &body, &[]).await;
        }
        chan.set.set(None);
        self.sets.wake();
    }

    /// True: something was news, or may not be durable yet: s0 was told when the stream began.
    fn tell_settled(&self) -> bool {
        let lanes = self.lanes.borrow();
        let outside = self.state.borrow().outside();
        let mut news = outside;
        for (number, lane) in (0_u8..).zip(lanes.iter()) {
            let here = if outside { lane.s0 } else { lane.settled };
            if let Some(settled) = here.filter(|s| *s > self.store.settled(number)) {
                self.store.settle(number, settled);
                news = true;
            }
        }
        news
    }
}

/// A store may keep them in another order.
fn same_members(a: &KeptSet, b: &KeptSet) -> bool {
    a.members.len() == b.members.len() && a.members.iter().all(|m| b.members.contains(m))
}
