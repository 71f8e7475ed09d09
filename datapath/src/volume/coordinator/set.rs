//! The record of a volume in the KVDB, and its changes K2 to K6 (`docs/replication.md` §3).
//!
//! A change is sent with the version that it replaces. Its outcome may be lost, and it may be applied long after it was sent; so while nothing is known
//! the same change is sent again: it is applied once, as its version fits once, and what finds the record as it asked for is done.

use super::quorum::write_quorum;
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::Id;

/// Most members of a set, and most replicas that stay: each keeps the ids of no more than four others.
pub const MEMBERS_MAX: usize = 5;
/// Most replicas of a record, with those that come and go.
pub const REPLICAS_MAX: usize = 8;

/// What a replica is to its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// It never was a member.
    Empty,
    /// It is one.
    Member,
    /// It was one.
    Behind,
    /// It is going.
    Leaving,
}

/// The record, as far as a coordinator uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// One more with each change.
    pub version: u64,
    /// Of whoever holds it.
    pub epoch: u32,
    /// Of the holder's process.
    pub incarnation: Id,
    /// Of the holder's attach.
    pub attempt: Id,
    /// A takeover ended; else the epoch was raised and nothing is served yet.
    pub serving: bool,
    /// Nothing is served by fewer.
    pub minimum: u8,
    /// All that exist.
    pub replicas: Vec<(Id, ReplicaState)>,
}

impl VolumeRecord {
    /// The in-sync set.
    pub fn members(&self) -> impl Iterator<Item = Id> + '_ {
        let members = self.replicas.iter();
        members.filter(|r| r.1 == ReplicaState::Member).map(|r| r.0)
    }

    /// How many must have a write.
    pub fn write_quorum(&self) -> u32 {
        write_quorum(self.members().count() as u32, self.minimum)
    }

    /// The holder is the same.
    fn held_as(&self, other: &Self) -> bool {
        let holder = |r: &Self| (r.epoch, r.incarnation, r.attempt);
        holder(self) == holder(other)
    }

    fn same_set(&self, other: &Self) -> bool {
        let set = |r: &Self| {
            let mut members: Vec<Id> = r.members().collect();
            members.sort_unstable();
            (members, r.minimum, r.serving)
        };
        set(self) == set(other)
    }
}

/// A change by the epoch's coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// K2: a takeover ends, with these members.
    Serve(Vec<Id>),
    /// K3: these leave the set.
    Exclude(Vec<Id>),
    /// K4: a replica that is level joins.
    Join(Id),
    /// K5: a replica is added.
    Add(Id),
    /// K5: one is to go; a member leaves the set by it.
    Leave(Id),
    /// K5: one that was going is gone.
    Remove(Id),
    /// K6: the minimum.
    Minimum(u8),
}

/// Why a change cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It is for another phase of the volume.
    #[error("the volume is not in the phase for this change")]
    Phase,
    /// Fewer would be left than the minimum.
    #[error("{left} replicas would be left, and the minimum is {minimum}")]
    BelowMinimum {
        /// So many.
        left: usize,
        /// And so many must be.
        minimum: u8,
    },
    /// The replica is not what it must be.
    #[error("the replica is not in the state for this change")]
    State,
    /// There are enough replicas.
    #[error("the volume has as many replicas as it can have")]
    TooMany,
    /// Another change is under way.
    #[error("another change of the set is under way")]
    Busy,
}

impl VolumeRecord {
    /// The record after a change.
    ///
    /// # Errors
    /// [`NotNow`]: it breaks a rule of the table in §3.
    pub fn after(&self, change: &Change) -> Result<Self, NotNow> {
        let mut next = self.clone();
        next.version += 1;
        if self.serving == matches!(change, Change::Serve(_)) {
            return Err(NotNow::Phase);
        }
        match change {
            Change::Serve(members) => {
                next.serving = true;
                // Who was a member and did not take part returns by resync.
                next.demote(|id| !members.contains(id));
                for id in members {
                    next.promote(id, |_| true)?;
                }
            }
            Change::Exclude(who) => {
                for id in who {
                    if !self.members().any(|m| m == *id) {
                        return Err(NotNow::State);
                    }
                }
                next.demote(|id| who.contains(id));
            }
            Change::Join(id) => next.promote(id, |s| s != ReplicaState::Member)?,
            Change::Add(id) => {
                let stay = next.replicas.iter();
                let stay = stay.filter(|r| r.1 != ReplicaState::Leaving).count();
                if stay >= MEMBERS_MAX || next.replicas.len() >= REPLICAS_MAX {
                    return Err(NotNow::TooMany);
                }
                if next.replicas.iter().any(|r| r.0 == *id) {
                    return Err(NotNow::State);
                }
                next.replicas.push((*id, ReplicaState::Empty));
            }
            Change::Leave(id) => {
                let replica = next.replica(id)?;
                if replica.1 == ReplicaState::Leaving {
                    return Err(NotNow::State);
                }
                replica.1 = ReplicaState::Leaving;
            }
            Change::Remove(id) => {
                if next.replica(id)?.1 != ReplicaState::Leaving {
                    return Err(NotNow::State);
                }
                next.replicas.retain(|r| r.0 != *id);
            }
            Change::Minimum(minimum) => next.minimum = (*minimum).max(1),
        }
        let left = next.members().count();
        let below = left < usize::from(next.minimum) && !planted::is(Bug::BelowMinimum);
        if below || left == 0 {
            return Err(NotNow::BelowMinimum {
                left,
                minimum: next.minimum,
            });
        }
        if left > MEMBERS_MAX {
            return Err(NotNow::TooMany);
        }
        Ok(next)
    }

    fn replica(&mut self, id: &Id) -> Result<&mut (Id, ReplicaState), NotNow> {
        let found = self.replicas.iter_mut().find(|r| r.0 == *id);
        found.ok_or(NotNow::State)
    }

    fn promote(&mut self, id: &Id, may: impl Fn(ReplicaState) -> bool) -> Result<(), NotNow> {
        let replica = self.replica(id)?;
        if replica.1 == ReplicaState::Leaving || !may(replica.1) {
            return Err(NotNow::State);
        }
        replica.1 = ReplicaState::Member;
        Ok(())
    }

    fn demote(&mut self, who: impl Fn(&Id) -> bool) {
        let members = self.replicas.iter_mut();
        for r in members.filter(|r| r.1 == ReplicaState::Member && who(&r.0)) {
            r.1 = ReplicaState::Behind;
        }
    }
}

/// A change on its way to the KVDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of the record that it replaces.
    pub expected: u64,
    /// What it changes there.
    pub change: Change,
    /// The record that it puts there.
    pub record: VolumeRecord,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not: the record is this one.
    Conflict(VolumeRecord),
    /// Nobody knows; it may be done, or be done later.
    Unknown,
    /// The record does not allow it, and is as it was; it never will be done.
    Refused,
}

/// What that means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The record is as asked.
    Done,
    /// It never will be: the record is this one, of the same holder and with the same set.
    Withdrawn(VolumeRecord),
    /// It never will be: the record is as it was.
    Refused,
    /// Still nobody knows.
    Again,
    /// The epoch is another's.
    Ended,
    /// The record of this epoch is one that this coordinator never asked for.
    Alarm,
}

/// How long to wait for an outcome before the change is sent again.
pub const AGAIN_MS: u64 = 500;

/// The change that is under way.
#[derive(Debug)]
pub struct Pending {
    /// What was sent.
    pub request: Request,
    /// When it was sent last.
    pub sent: Nanos,
    before: VolumeRecord,
}

impl Pending {
    /// It is sent now.
    pub fn new(before: &VolumeRecord, change: Change, record: VolumeRecord, now: Nanos) -> Self {
        Self {
            request: Request {
                expected: before.version,
                change,
                record,
            },
            sent: now,
            before: before.clone(),
        }
    }

    /// What an outcome means.
    pub fn judge(&self, outcome: &Outcome) -> Verdict {
        let asked = &self.request.record;
        match outcome {
            Outcome::Done => Verdict::Done,
            Outcome::Unknown => Verdict::Again,
            Outcome::Refused => Verdict::Refused,
            Outcome::Conflict(there) if !there.held_as(asked) => Verdict::Ended,
            Outcome::Conflict(there) if there == asked => Verdict::Done,
            // Not there yet: it may still arrive.
            Outcome::Conflict(there) if there.version <= self.request.expected => Verdict::Again,
            // Something beside the set was changed (what is wanted): the version that was expected never returns.
            Outcome::Conflict(there) if there.same_set(&self.before) => {
                Verdict::Withdrawn(there.clone())
            }
            Outcome::Conflict(there) if there.same_set(asked) => Verdict::Done,
            Outcome::Conflict(_) => Verdict::Alarm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> Id {
        [n; 16]
    }

    fn record(serving: bool) -> VolumeRecord {
        use ReplicaState::{Behind, Leaving, Member};
        VolumeRecord {
            version: 7,
            epoch: 3,
            incarnation: id(100),
            attempt: id(101),
            serving,
            minimum: 2,
            replicas: vec![
                (id(1), Member),
                (id(2), Member),
                (id(3), Member),
                (id(4), Behind),
                (id(5), Leaving),
            ],
        }
    }

    fn members(record: &VolumeRecord) -> Vec<u8> {
        record.members().map(|m| m[0]).collect()
    }

    #[test]
    fn a_takeover_ends_with_those_who_took_part() {
        let taking = record(false);
        let next = taking.after(&Change::Serve(vec![id(1), id(3)])).unwrap();
        assert_eq!((members(&next), next.version), (vec![1, 3], 8));
        assert_eq!(next.replicas[1], (id(2), ReplicaState::Behind));
        let few = taking.after(&Change::Serve(vec![id(1)]));
        assert_eq!(
            few,
            Err(NotNow::BelowMinimum {
                left: 1,
                minimum: 2
            })
        );
        assert_eq!(
            record(true).after(&Change::Serve(vec![id(1), id(2)])),
            Err(NotNow::Phase)
        );
    }

    #[test]
    fn the_table_of_changes() {
        let serving = record(true);
        let after = |change| serving.after(&change);
        assert_eq!(
            members(&after(Change::Exclude(vec![id(2)])).unwrap()),
            [1, 3]
        );
        let two = after(Change::Exclude(vec![id(2), id(3)]));
        assert!(matches!(two, Err(NotNow::BelowMinimum { left: 1, .. })));
        assert_eq!(after(Change::Exclude(vec![id(4)])), Err(NotNow::State));
        assert_eq!(members(&after(Change::Join(id(4))).unwrap()), [1, 2, 3, 4]);
        assert_eq!(after(Change::Join(id(5))), Err(NotNow::State));
        assert_eq!(after(Change::Join(id(2))), Err(NotNow::State));
        let left = after(Change::Leave(id(2))).unwrap();
        assert_eq!(members(&left), [1, 3]);
        assert_eq!(left.replicas[1].1, ReplicaState::Leaving);
        let two = left.after(&Change::Leave(id(3)));
        assert!(matches!(two, Err(NotNow::BelowMinimum { left: 1, .. })));
        assert_eq!(after(Change::Leave(id(5))), Err(NotNow::State), "again");
        assert_eq!(after(Change::Remove(id(4))), Err(NotNow::State));
        assert_eq!(after(Change::Remove(id(5))).unwrap().replicas.len(), 4);
        assert_eq!(after(Change::Add(id(1))), Err(NotNow::State));
        let more = after(Change::Add(id(9))).unwrap();
        assert_eq!(more.replicas.len(), 6);
        assert_eq!(more.after(&Change::Add(id(10))), Err(NotNow::TooMany));
        assert_eq!(after(Change::Minimum(3)).unwrap().write_quorum(), 3);
        let more = after(Change::Minimum(4));
        assert!(matches!(more, Err(NotNow::BelowMinimum { left: 3, .. })));
        assert_eq!(
            record(false).after(&Change::Join(id(4))),
            Err(NotNow::Phase)
        );
    }

    fn pending() -> Pending {
        let before = record(true);
        let change = Change::Exclude(vec![id(2)]);
        let asked = before.after(&change).unwrap();
        Pending::new(&before, change, asked, Nanos(0))
    }

    #[test]
    fn outcomes() {
        let p = pending();
        let conflict = |there: VolumeRecord| p.judge(&Outcome::Conflict(there));
        assert_eq!(p.judge(&Outcome::Done), Verdict::Done);
        assert_eq!(p.judge(&Outcome::Unknown), Verdict::Again);
        assert_eq!(p.judge(&Outcome::Refused), Verdict::Refused);
        assert_eq!(conflict(p.request.record.clone()), Verdict::Done);
        assert_eq!(
            conflict(record(true)),
            Verdict::Again,
            "it may still arrive"
        );
        let mut other = record(true);
        other.epoch += 1;
        assert_eq!(conflict(other), Verdict::Ended);
        let mut attempt = record(true);
        attempt.attempt = id(9);
        assert_eq!(conflict(attempt), Verdict::Ended);
        let mut moved = record(true);
        moved.version += 1;
        assert_eq!(conflict(moved.clone()), Verdict::Withdrawn(moved));
        let mut strange = record(true);
        strange.version += 1;
        strange.replicas[0].1 = ReplicaState::Behind;
        assert_eq!(conflict(strange), Verdict::Alarm);
    }

    proptest! {
        /// Whatever is asked, a set is never below its minimum and versions rise by one.
        #[test]
        fn no_set_is_below_its_minimum(changes in prop::collection::vec((0u8..6, 1u8..8), 0..40)) {
            let mut at = record(true);
            for (kind, n) in changes {
                let change = match kind {
                    0 => Change::Exclude(vec![id(n)]),
                    1 => Change::Join(id(n)),
                    2 => Change::Add(id(n)),
                    3 => Change::Leave(id(n)),
                    4 => Change::Remove(id(n)),
                    _ => Change::Minimum(n),
                };
                let Ok(next) = at.after(&change) else { continue };
                prop_assert_eq!(next.version, at.version + 1);
                prop_assert!(next.members().count() >= usize::from(next.minimum));
                prop_assert!(next.members().count() as u32 >= next.write_quorum());
                at = next;
            }
        }
    }
}
