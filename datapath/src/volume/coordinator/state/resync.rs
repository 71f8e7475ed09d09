//! What a resync asks the coordinator (`docs/replication.md` §11): who is to be brought back, since when it is fed, who can be copied from, and whether
//! what was copied is stable.

use super::super::members::{Members, Place};
use super::super::message::{Action, Message};
use super::super::set::ReplicaState;
use super::{Machine, Phase};
use crate::replication::planted::{self, Bug};
use crate::store::types::Stamp;

/// A subscription, on one channel of the replica: another one begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// By lane.
    pub s0: Vec<Stamp>,
    /// Where the lanes' streams were.
    at: Vec<u64>,
    /// Which channel.
    opening: u64,
}

impl Machine {
    /// Replicas that are to be members, are none, and can be reached.
    pub fn outside(&self) -> Members {
        if !matches!(self.phase, Phase::Serving) || self.detaching.is_some() {
            return Members::NONE;
        }
        let wanted = |s: &ReplicaState| matches!(s, ReplicaState::Empty | ReplicaState::Behind);
        let all = self.record.replicas.iter().filter(|(_, s)| wanted(s));
        let places = all.filter_map(|(id, _)| self.place(id));
        let there = places.filter(|p| self.peers[p.index()].connected);
        there.collect::<Members>().minus(self.sets.everyone())
    }

    /// The subscription of a replica that is fed and follows.
    pub fn subscription(&self, place: Place) -> Option<Subscription> {
        let peer = self.peers.get(place.index())?;
        let fed = peer.opened && peer.subscriber && self.ring.fed().has(place);
        fed.then(|| Subscription {
            s0: peer.s0.clone().unwrap_or_default(),
            at: peer.s0_at.clone(),
            opening: peer.openings,
        })
    }

    /// Members that have everything up to s0 written, so that it can be copied from them (rule 5).
    pub fn sources(&self, of: &Subscription) -> Members {
        let has = |place: &Place| {
            let mut lanes = self.ring.lanes().zip(&of.at);
            lanes.all(|(lane, at)| {
                let position = self.ring.position(*place, lane);
                position.is_some_and(|(written, _)| written >= *at)
            })
        };
        let any = planted::is(Bug::SourceBehind);
        let there = self.readable().iter();
        there.filter(|p| any || has(p)).collect()
    }

    /// Whether everything up to s0 is settled, and the stream is caught up with within half of a ring: it may become level.
    pub fn may_join(&self, place: Place, of: &Subscription) -> bool {
        let mut lanes = self.ring.lanes().zip(&of.s0);
        lanes.all(|(lane, s0)| self.settled.of(lane) >= *s0) && !self.ring.half_behind(place)
    }

    /// Whether it is a member, by all sets that count.
    pub fn is_member(&self, place: Place) -> bool {
        self.sets.asked().is_none() && self.sets.now().members.has(place)
    }

    /// Has a replica make stable what was copied to it; the number of that flush, or none while another one is under way.
    pub fn flush_copies(&mut self, place: Place, out: &mut Vec<Action>) -> Option<u64> {
        let peer = &mut self.peers[place.index()];
        if !peer.opened || peer.flush.1 < peer.flush.0 {
            return None;
        }
        let number = self.flushes.next_number();
        peer.flush.0 = number;
        out.push(Action::Send(place, Message::Flush { number }));
        Some(number)
    }

    /// The last flush that a replica has done.
    pub fn flushed(&self, place: Place) -> u64 {
        self.peers.get(place.index()).map_or(0, |p| p.flush.1)
    }
}
