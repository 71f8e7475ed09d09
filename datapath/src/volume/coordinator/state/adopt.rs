//! A takeover of a volume whose record means nothing, since the KVDB was restored (`docs/replication.md` §13, rule 10): every replica of the record promises, and the
//! newest set that one of them kept is the one whose members take part.
//!
//! Why that is the newest that counts: a set is kept by W of its members before it is used, and each is the one before with one more or some fewer. So if the members of
//! one were all heard, and none of them keeps a later one, there is no later one that was used.

use super::super::members::{Members, Place};
use super::super::quorum::{Set, Sets};
use super::super::set::ReplicaState;
use super::Machine;
use super::peer::Lists;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{KeptSet, Standing};

/// What is known of the set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    /// It is the record's.
    Record,
    /// All replicas are heard first.
    All,
    /// It is one that replicas kept: its members, and its version.
    Kept(Members, u64),
    /// All were heard, and the newest set names somebody whom the record does not know: nobody is enough.
    Unknown,
}

impl Asked {
    pub fn new(unverified: bool) -> Self {
        match unverified && !planted::is(Bug::RestoreBelieved) {
            true => Self::All,
            false => Self::Record,
        }
    }
}

impl Machine {
    /// Who is asked for promises; of those that are heard.
    pub(super) fn asked_set(&self) -> Set {
        let of_record = self.set_of(&self.record);
        let members = match self.asked {
            Asked::Record => of_record.members,
            Asked::All | Asked::Unknown => self.all_places(),
            Asked::Kept(members, _) => members,
        };
        Set {
            members,
            ..of_record
        }
    }

    fn all_places(&self) -> Members {
        let all = self.record.replicas.iter();
        let stay = all.filter(|r| r.1 != ReplicaState::Leaving);
        stay.filter_map(|(id, _)| self.place(id)).collect()
    }

    /// How many of them must be heard. The minimum may have been lower, and W with it, when the last write was acknowledged.
    pub(super) fn must_hear(&self) -> u32 {
        let set = self.asked_set();
        match self.asked {
            Asked::Record => set.read_quorum(),
            Asked::All => set.members.count(),
            Asked::Unknown => u32::MAX,
            Asked::Kept(..) => Set { minimum: 1, ..set }.read_quorum(),
        }
    }

    /// Whether one that is copied to, or was, is the member that the set names.
    pub(super) fn is_whole(&self, lists: &Lists) -> bool {
        let version = match self.asked {
            Asked::Record => self.record.version,
            // It is not known yet what it is to be whole for.
            Asked::All | Asked::Unknown => return true,
            Asked::Kept(_, version) => version,
        };
        match lists.state.standing {
            Standing::Promised => true,
            Standing::Resyncing => false,
            // It was level when the K4 was sent that this version is of.
            Standing::Level => version >= lists.state.level,
        }
    }

    /// Whether it has every snapshot that exists.
    fn has_snapshots(&self, lists: &Lists) -> bool {
        let having = lists.having.as_deref().unwrap_or_default();
        let mut ready = self.config.snapshots.iter().filter(|n| n.ready);
        ready.all(|n| having.contains(&n.id))
    }

    /// Once all are heard: the newest set is the one that counts. False: they are not, or somebody is named that the record does not know.
    pub(super) fn adopt(&mut self, heard: Members) -> bool {
        if !matches!(self.asked, Asked::All) {
            return true;
        }
        if !self.all_places().within(heard) {
            return false;
        }
        let all = self.peers.iter().filter_map(|p| p.lists.as_ref());
        let newest = all
            .map(|l| &l.state.kept)
            .max_by_key(|k| (k.epoch, k.version));
        let newest: KeptSet = newest.cloned().unwrap_or_default();
        let (members, version) = if newest.members.is_empty() {
            // It never was served: all members are equally empty.
            (self.set_of(&self.record).members, self.record.version)
        } else {
            let places = newest.members.iter().map(|id| self.place(id));
            let Some(places) = places.collect::<Option<Members>>() else {
                tracing::error!(
                    epoch = newest.epoch,
                    version = newest.version,
                    "the newest set that a replica kept names one that the restored record does not know: a person decides"
                );
                self.asked = Asked::Unknown;
                return false;
            };
            (places, newest.version)
        };
        tracing::warn!(
            epoch = newest.epoch,
            version,
            ?members,
            "the KVDB was restored: the newest set that replicas kept is adopted"
        );
        self.asked = Asked::Kept(members, version);
        for n in 0..self.peers.len() {
            let lists = self.peers[n].lists.take();
            let member = Place::new(n).is_some_and(|place| members.has(place));
            self.peers[n].lists =
                lists.filter(|l| member && self.is_whole(l) && self.has_snapshots(l));
        }
        self.sets = Sets::new(self.asked_set());
        true
    }
}
