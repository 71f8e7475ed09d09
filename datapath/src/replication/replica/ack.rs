//! What a coordinator is told of its streams: at most one Ack for each channel and pass.

use std::rc::Rc;

use super::channel::Chan;
use super::service::Inner;
use super::{NotSent, Outgoing};
use crate::replication::seam::ReplicaStore;
use crate::replication::wire::ack::{self, AckHead, EARLY_MAX, Early, LaneAck};
use crate::replication::wire::frame::Kind;

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// The task that acknowledges: woken by everything that completes in a pass, it runs once after them.
    pub(super) async fn run_acks(self: Rc<Self>) {
        let mut body = Vec::new();
        while !self.stopped.get() {
            self.ack.notified().await;
            for chan in self.all_channels() {
                self.say_heard(&chan);
                self.say_ack(&chan, &mut body);
            }
        }
    }

    fn say_ack(self: &Rc<Self>, chan: &Rc<Chan<O>>, body: &mut Vec<u8>) {
        // Looked at again: since it was admitted, a higher epoch may have been asked for (rule 1).
        if chan.acks_wait.get() || !self.admits(chan) {
            return;
        }
        let (lanes, early, more) = self.positions(chan);
        let nothing = lanes.is_empty() && early.is_empty() && !chan.ack_due.get();
        if nothing {
            return self.close_if_done(chan);
        }
        let (records, bytes) = chan.out.granted();
        let head = AckHead {
            flushed: chan.flushed.get(),
            records,
            bytes,
            space: self.space_of(chan),
        };
        body.clear();
        ack::encode(body, &head, &lanes, &early);
        match chan.out.send(Kind::Ack, chan.sender.epoch, body, &[]) {
            Ok(()) => {
                chan.ack_due.set(false);
                chan.space_said.set(head.space);
                for lane in lanes {
                    self.lanes.borrow_mut()[usize::from(lane.lane)].moved = false;
                }
                if more {
                    self.ack.notify();
                }
                self.close_if_done(chan);
            }
            Err(NotSent::Full) => {
                // Nothing was said: all of it is said when there is room.
                for lane in self.lanes.borrow_mut().iter_mut() {
                    if lane.by == Some(chan.key) {
                        lane.moved = true;
                        lane.stream.say_again();
                    }
                }
                self.when_room(chan);
            }
            Err(NotSent::Ended) => self.gone(chan),
        }
    }

    /// Blocks that it grants, counted from the channel's beginning as the coordinator counts what it sends: what has completed, and what there is room for
    /// now. What is under way may have taken its room already, so there is rather less.
    pub(super) fn space_of(&self, chan: &Chan<O>) -> u64 {
        chan.taken.get().saturating_add(self.store.space())
    }

    /// Where the lanes of a channel are, as far as it is news; and whether there are more early ones than an Ack takes.
    fn positions(&self, chan: &Chan<O>) -> (Vec<LaneAck>, Vec<Early>, bool) {
        let (mut acks, mut early, mut more) = (Vec::new(), Vec::new(), false);
        for (number, lane) in (0_u8..).zip(self.lanes.borrow_mut().iter_mut()) {
            if lane.by != Some(chan.key) {
                continue;
            }
            if lane.moved {
                acks.push(LaneAck {
                    lane: number,
                    written: lane.stream.written(),
                    stable: lane.stream.stable(),
                });
            }
            let room = EARLY_MAX - early.len();
            let said = lane.stream.take_unsaid(room);
            early.extend(said.map(|position| Early {
                lane: number,
                position,
            }));
            more |= lane.stream.has_unsaid();
        }
        (acks, early, more)
    }

    /// A heartbeat's answer.
    pub(super) fn say_heard(self: &Rc<Self>, chan: &Rc<Chan<O>>) {
        let Some(heard) = chan.heard.take() else {
            return;
        };
        let mut body = Vec::new();
        heard.put(&mut body);
        let sent = chan.out.send(Kind::Heard, chan.sender.epoch, &body, &[]);
        if sent == Err(NotSent::Full) {
            chan.heard.set(Some(heard));
            self.when_room(chan);
        }
    }

    fn when_room(self: &Rc<Self>, chan: &Rc<Chan<O>>) {
        if chan.acks_wait.replace(true) {
            return;
        }
        let chan = chan.clone();
        self.begin("replica: room to send", |this| async move {
            chan.out.room().await;
            chan.acks_wait.set(false);
            this.ack.notify();
        });
    }

    /// The peer closed it, and all that was admitted has been answered.
    fn close_if_done(self: &Rc<Self>, chan: &Rc<Chan<O>>) {
        let busy = chan.under_way.get() > 0 || self.flushes.has(chan.key);
        if !chan.closing.get() || busy || chan.heard.get().is_some() {
            return;
        }
        match chan.out.send(Kind::Close, chan.sender.epoch, &[], &[]) {
            Err(NotSent::Full) => self.when_room(chan),
            Ok(()) | Err(NotSent::Ended) => self.gone(chan),
        }
    }
}
