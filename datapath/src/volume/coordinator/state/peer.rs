//! What a coordinator knows of a replica: its session, what it grants, what it listed.

use std::rc::Rc;

use super::super::members::{Members, Place};
use super::super::message::{Action, Message, State};
use super::{Machine, Phase};
use crate::reactor::Nanos;
use crate::replication::held::Held;
use crate::replication::seam::Id;
use crate::replication::wire::ack::{AckHead, LaneAck};
use crate::store::types::{SnapshotId, Stamp};

/// What a replica listed.
#[derive(Debug)]
pub(super) struct Lists {
    pub state: State,
    pub records: Vec<Rc<Held>>,
    /// Lanes of which more is to come.
    pub open: u32,
    /// Snapshots that it has, of those that were named.
    pub having: Option<Vec<SnapshotId>>,
}

/// A replica.
#[derive(Debug)]
pub(super) struct Peer {
    pub id: Id,
    pub connected: bool,
    /// It goes, or has gone, by the record.
    pub gone: bool,
    /// Since when it is not, if it was.
    pub lost: Option<Nanos>,
    /// It follows, on the session that there is.
    pub opened: bool,
    /// It is no member, and is fed.
    pub subscriber: bool,
    pub boot: Option<Id>,
    /// Where its subscription began, by lane.
    pub s0: Option<Vec<Stamp>>,
    /// Where the streams were then.
    pub s0_at: Vec<u64>,
    /// Counts its channels that were opened: what was copied by an older one is not known to be there.
    pub openings: u64,
    /// It was asked last by this number which snapshots it has.
    pub asked: u64,
    /// Those that it has, where it follows and is not fed yet.
    pub having: Option<Vec<SnapshotId>>,
    /// Those that it lacks: they are to be copied first.
    pub missing: Option<Vec<SnapshotId>>,
    /// What it promised with, until the takeover has used it.
    pub lists: Option<Lists>,
    /// Highest version of a set that it keeps.
    pub kept: u64,
    /// Highest version that it is level for.
    pub level: u64,
    /// Blocks that it has room for, if it has said so in this session; and blocks that were meant for it since.
    pub space: Option<u64>,
    pub blocks: u64,
    /// The last flush that it was sent, and that it has done.
    pub flush: (u64, u64),
    /// It was told all that is settled.
    pub told: bool,
}

impl Peer {
    pub fn new(id: Id) -> Self {
        Self {
            id,
            connected: false,
            gone: false,
            lost: None,
            opened: false,
            subscriber: false,
            boot: None,
            s0: None,
            s0_at: Vec::new(),
            openings: 0,
            asked: 0,
            having: None,
            missing: None,
            lists: None,
            kept: 0,
            level: 0,
            space: None,
            blocks: 0,
            flush: (0, 0),
            told: false,
        }
    }

    /// What an Ack says beside positions; records and bytes are granted to the session.
    pub fn grant(&mut self, head: &AckHead) {
        self.space = Some(head.space);
        self.flush.1 = self.flush.1.max(head.flushed);
    }

    /// Whether there is room for so many blocks more, as far as it has said.
    pub fn has_space(&self, blocks: u64) -> bool {
        self.space
            .is_none_or(|s| self.blocks.saturating_add(blocks) <= s)
    }

    /// Its session is another, or gone.
    fn reset(&mut self) {
        self.opened = false;
        self.asked = 0;
        self.having = None;
        self.missing = None;
        self.lists = None;
        self.space = None;
        self.blocks = 0;
        self.flush = (0, 0);
        self.told = false;
    }
}

impl Machine {
    pub(super) fn connected(&mut self, place: Place, out: &mut Vec<Action>) {
        let (version, attempt) = (self.record.version, self.record.attempt);
        let member = self.asked_set().members.has(place);
        let promise = match &self.phase {
            Phase::Promising(_) => member,
            _ => false,
        };
        let fed = self.ring.fed().has(place);
        let Some(peer) = self.peer(place).filter(|p| !p.gone) else {
            return;
        };
        peer.reset();
        peer.connected = true;
        peer.lost = None;
        if promise || (peer.subscriber && !fed) {
            let message = Message::Promise { version, attempt };
            out.push(Action::Send(place, message));
        } else if fed {
            self.open(place, out);
        }
    }

    pub(super) fn open(&mut self, place: Place, out: &mut Vec<Action>) {
        let open = Message::Open {
            version: self.record.version,
            subscribe: self.peers[place.index()].subscriber,
            lease_ms: self.config.lease.as_millis() as u32,
        };
        out.push(Action::Send(place, open));
    }

    pub(super) fn feed_message(&self, place: Place) -> Message {
        let peer = &self.peers[place.index()];
        let s0 = peer.s0.as_ref().filter(|_| peer.subscriber);
        let lanes = self.ring.lanes().map(|lane| {
            let after = self.ring.fed_to(place, lane);
            (lane, after, s0.map(|s| s[usize::from(lane)]))
        });
        Message::Feed {
            lanes: lanes.collect(),
        }
    }

    pub(super) fn lost(&mut self, place: Place, now: Nanos) {
        let Some(peer) = self.peer(place) else {
            return;
        };
        peer.reset();
        peer.connected = false;
        peer.lost = Some(now);
        if let Phase::Completing(t) = &mut self.phase {
            t.lost(place);
        }
    }

    /// It follows from here on, and is fed from where it is.
    pub(super) fn member_opened(
        &mut self,
        place: Place,
        state: &State,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let fed = self.ring.fed().has(place);
        let comes = self.peers[place.index()].subscriber && matches!(self.phase, Phase::Serving);
        if !fed && !comes {
            return;
        }
        let lanes = usize::from(self.config.lanes);
        let gone = state.lanes.len() != lanes || state.lanes.iter().any(|l| l.lost);
        if gone {
            self.no_member(place, now, out);
            return;
        }
        if !fed {
            let peer = &mut self.peers[place.index()];
            peer.opened = true;
            peer.openings += 1;
            peer.boot = Some(state.boot);
            // It is fed when it has all snapshots.
            return self.name_snapshots(place, out);
        }
        let same = self.peers[place.index()].boot == Some(state.boot);
        let at: Vec<LaneAck> = state.lanes.iter().map(|l| l.at).collect();
        if self.ring.reopen(place, &at, same).is_err() {
            out.push(Action::Cut(place));
            return;
        }
        let unsent = self.ring.unsent_blocks(place);
        self.name_snapshots(place, out);
        out.push(Action::Send(place, self.feed_message(place)));
        let peer = &mut self.peers[place.index()];
        peer.opened = true;
        peer.openings += 1;
        peer.boot = Some(state.boot);
        peer.blocks = unsent;
        self.slow.again(place, same, now);
        let serves = matches!(self.phase, Phase::Beginning | Phase::Serving);
        if serves && self.peers[place.index()].kept < self.record.version {
            let set = self.set_message();
            out.push(Action::Send(place, set));
        }
        self.recheck(now, out);
    }

    /// It is not the replica that the set names (rule 9): nothing that it said counts.
    pub(super) fn no_member(&mut self, place: Place, now: Nanos, out: &mut Vec<Action>) {
        if self.sets.everyone().has(place) {
            self.sets.gap(Members::one(place));
        }
        self.ring.leave(place);
        self.leases.forget(place);
        self.peers[place.index()].subscriber = false;
        self.give_up_join(place, now, out);
        if let Phase::Completing(t) = &mut self.phase {
            t.part = t.part.without(place);
        }
    }
}
