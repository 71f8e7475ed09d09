//! What a takeover completes (`docs/replication.md` §10, 3 to 5; rules 14 and 15).
//!
//! The lists of those who take part are put together by stamp. Everything above the highest settled stamp that one of them knows is completed on all of
//! them, whole and under its own stamp, lowest stamps first. What is not on a list is absent there, and only there.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::members::{Members, Place};
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::store::types::Stamp;

/// Two records of one stamp: invariant 3 is broken. The volume is not served, and a person looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two records of lane {lane} have stamp {stamp:?}")]
pub struct TwoOfOne {
    /// The lane.
    pub lane: u8,
    /// The stamp that both use.
    pub stamp: Stamp,
}

/// A record that somebody listed.
#[derive(Debug)]
struct Listed {
    held: Rc<Held>,
    whole: Members,
    damaged: Members,
}

/// Lists, put together.
#[derive(Debug)]
pub struct Union {
    settled: Vec<Stamp>,
    lanes: Vec<BTreeMap<Stamp, Listed>>,
}

/// A record to complete.
#[derive(Clone, Debug)]
pub struct Item {
    /// As it was listed, without data unless the list had them.
    pub held: Rc<Held>,
    /// Who has it.
    pub whole: Members,
    /// Who has it damaged, where others have it whole: they get it as a repair.
    pub damaged: Members,
}

impl Item {
    /// Who lacks it, of those who take part.
    pub fn lacking(&self, all: Members) -> Members {
        all.minus(self.whole)
    }
}

/// What there is to do.
#[derive(Debug)]
pub struct Plan {
    /// Per lane the settled stamp to begin with.
    pub settled: Vec<Stamp>,
    /// Per lane, lowest stamps first.
    pub lanes: Vec<Vec<Item>>,
}

impl Union {
    /// Of a volume with so many lanes.
    pub fn new(lanes: u8) -> Self {
        let none = Stamp { epoch: 0, seq: 0 };
        Self {
            settled: vec![none; usize::from(lanes)],
            lanes: (0..lanes).map(|_| BTreeMap::new()).collect(),
        }
    }

    /// Somebody knows a lane to be settled up to here.
    pub fn settled(&mut self, lane: u8, stamp: Stamp) {
        let settled = &mut self.settled[usize::from(lane)];
        *settled = (*settled).max(stamp);
    }

    /// Somebody has a record.
    ///
    /// # Errors
    /// [`TwoOfOne`].
    pub fn add(&mut self, place: Place, held: &Rc<Held>) -> Result<(), TwoOfOne> {
        let lane = &mut self.lanes[usize::from(held.lane)];
        let clash = |stamp| TwoOfOne {
            lane: held.lane,
            stamp,
        };
        // A write uses a stamp for each block, so neighbours may clash too.
        if let Some((_, before)) = lane.range(..held.stamp).next_back()
            && before.held.last() >= held.stamp
        {
            return Err(clash(held.stamp));
        }
        if let Some((&stamp, _)) = lane.range(held.stamp..).find(|(s, _)| **s > held.stamp)
            && held.last() >= stamp
        {
            return Err(clash(stamp));
        }
        let damaged = matches!(held.what, What::Poison { .. });
        let listed = lane.entry(held.stamp).or_insert_with(|| Listed {
            held: Rc::clone(held),
            whole: Members::NONE,
            damaged: Members::NONE,
        });
        if !listed.held.same(held) {
            return Err(clash(held.stamp));
        }
        match damaged {
            true => listed.damaged = listed.damaged.with(place),
            false => {
                listed.whole = listed.whole.with(place);
                // One that is whole says more than poison, and one with data more than one without.
                let has_data = |h: &Held| matches!(h.what, What::Write { data: Some(_), .. });
                if !has_data(&listed.held) {
                    listed.held = Rc::clone(held);
                }
            }
        }
        Ok(())
    }

    /// What is to be done so that all of `part` are level. Snapshots are no part of it: they exist, or are deleted.
    pub fn plan(&self, part: Members) -> Plan {
        let lanes = self.lanes.iter().zip(&self.settled).map(|(lane, settled)| {
            let above = lane.values().filter(|l| l.held.stamp > *settled);
            let kept = above.filter(|l| !matches!(l.held.what, What::Snapshot(_)));
            let items = kept.map(|l| {
                let whole = l.whole.and(part);
                // Damaged wherever it is listed: it stays, as that, and all get to be alike.
                let poison = whole.is_empty();
                Item {
                    held: Rc::clone(&l.held),
                    whole: if poison { l.damaged.and(part) } else { whole },
                    damaged: if poison {
                        Members::NONE
                    } else {
                        l.damaged.and(part)
                    },
                }
            });
            let all = |i: &Item| part.within(i.whole) || !planted::is(Bug::ListedByAll);
            items.filter(|i| !i.whole.is_empty() && all(i)).collect()
        });
        Plan {
            settled: self.settled.clone(),
            lanes: lanes.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::types::{LaneBlock, SnapshotId};
    use proptest::prelude::*;

    fn place(n: usize) -> Place {
        Place::new(n).unwrap()
    }

    fn members(places: &[usize]) -> Members {
        places.iter().map(|&n| place(n)).collect()
    }

    fn stamp(epoch: u32, seq: u64) -> Stamp {
        Stamp { epoch, seq }
    }

    /// A write without data, of blocks with these checksums.
    fn write(stamp: Stamp, crcs: &[u8]) -> Rc<Held> {
        let what = What::Write {
            first: LaneBlock(4),
            crcs: crcs.iter().flat_map(|&c| [c; 4]).collect(),
            tags: Box::default(),
            data: None,
        };
        Rc::new(Held {
            lane: 0,
            stamp,
            key: 0,
            what,
        })
    }

    fn poison(stamp: Stamp, crcs: &[u8]) -> Rc<Held> {
        let what = What::Poison {
            first: LaneBlock(4),
            crcs: crcs.iter().flat_map(|&c| [c; 4]).collect(),
            tags: Box::default(),
        };
        Rc::new(Held {
            lane: 0,
            stamp,
            key: 0,
            what,
        })
    }

    fn snapshot(lane: u8, n: u8) -> Rc<Held> {
        Rc::new(Held {
            lane,
            stamp: stamp(1, 50),
            key: 0,
            what: What::Snapshot(SnapshotId([n; 16])),
        })
    }

    #[test]
    fn whole_records_in_the_order_of_their_stamps() {
        let mut union = Union::new(1);
        union.add(place(0), &write(stamp(2, 1), &[3])).unwrap();
        union.add(place(1), &write(stamp(1, 9), &[1, 2])).unwrap();
        union.add(place(0), &write(stamp(1, 9), &[1, 2])).unwrap();
        let plan = union.plan(members(&[0, 1]));
        let order: Vec<_> = plan.lanes[0]
            .iter()
            .map(|i| (i.held.stamp, i.whole))
            .collect();
        assert_eq!(
            order,
            [
                (stamp(1, 9), members(&[0, 1])),
                (stamp(2, 1), members(&[0]))
            ]
        );
        assert_eq!(plan.lanes[0][1].lacking(members(&[0, 1])), members(&[1]));
    }

    #[test]
    fn the_highest_settled_stamp_counts() {
        let mut union = Union::new(1);
        union.add(place(0), &write(stamp(1, 3), &[1])).unwrap();
        union.add(place(0), &write(stamp(1, 4), &[2])).unwrap();
        union.settled(0, stamp(1, 2));
        union.settled(0, stamp(1, 3));
        union.settled(0, stamp(1, 1));
        let plan = union.plan(members(&[0, 1]));
        assert_eq!(plan.settled, [stamp(1, 3)]);
        assert_eq!(plan.lanes[0].len(), 1);
        assert_eq!(plan.lanes[0][0].held.stamp, stamp(1, 4));
    }

    #[test]
    fn two_values_of_one_stamp_are_an_alarm() {
        let clash = |a: Rc<Held>, b: Rc<Held>| {
            let mut union = Union::new(1);
            union.add(place(0), &a).unwrap();
            union.add(place(1), &b).is_err()
        };
        assert!(clash(write(stamp(1, 3), &[1]), write(stamp(1, 3), &[2])));
        assert!(clash(write(stamp(1, 3), &[1]), write(stamp(1, 3), &[1, 1])));
        assert!(clash(write(stamp(1, 3), &[1, 1]), write(stamp(1, 4), &[1])));
        assert!(clash(write(stamp(1, 4), &[1]), write(stamp(1, 3), &[1, 1])));
        assert!(!clash(write(stamp(1, 4), &[1]), write(stamp(2, 4), &[2])));
        assert!(!clash(write(stamp(1, 4), &[1]), poison(stamp(1, 4), &[1])));
        assert!(clash(write(stamp(1, 4), &[1]), poison(stamp(1, 4), &[2])));
    }

    #[test]
    fn poison_is_replaced_by_what_is_whole() {
        for whole_first in [true, false] {
            let mut union = Union::new(1);
            let (good, bad) = (write(stamp(1, 3), &[1]), poison(stamp(1, 3), &[1]));
            match whole_first {
                true => union.add(place(0), &good).unwrap(),
                false => union.add(place(1), &bad).unwrap(),
            }
            union.add(place(0), &good).unwrap();
            union.add(place(1), &bad).unwrap();
            let plan = union.plan(members(&[0, 1, 2]));
            let item = &plan.lanes[0][0];
            assert!(matches!(item.held.what, What::Write { .. }));
            assert_eq!((item.whole, item.damaged), (members(&[0]), members(&[1])));
            assert_eq!(item.lacking(members(&[0, 1, 2])), members(&[1, 2]));
        }
    }

    #[test]
    fn poison_everywhere_stays() {
        let mut union = Union::new(1);
        union.add(place(1), &poison(stamp(1, 3), &[1])).unwrap();
        let plan = union.plan(members(&[0, 1]));
        let item = &plan.lanes[0][0];
        assert!(matches!(item.held.what, What::Poison { .. }));
        assert_eq!(item.lacking(members(&[0, 1])), members(&[0]));
        assert!(item.damaged.is_empty());
    }

    #[test]
    fn what_only_those_have_who_left_is_not_completed() {
        let mut union = Union::new(1);
        union.add(place(2), &write(stamp(1, 3), &[1])).unwrap();
        assert!(union.plan(members(&[0, 1])).lanes[0].is_empty());
    }

    #[test]
    fn snapshots_are_not_completed() {
        let both = members(&[0, 1]);
        let mut union = Union::new(2);
        for (lane, n) in [(0, 0), (0, 1), (1, 1)] {
            union.add(place(n), &snapshot(lane, 2)).unwrap();
        }
        assert!(union.plan(both).lanes.iter().all(Vec::is_empty));
    }

    proptest! {
        /// Every record above the highest settled stamp that one of those who take part lists is completed on all, once, in order.
        #[test]
        fn nothing_is_left_out(lists in prop::collection::vec(prop::collection::btree_set(1u64..40, 0..20), 1..5), settled in prop::collection::vec(0u64..40, 1..5), part in 1u16..32) {
            let part: Members = (0..lists.len()).filter(|n| part >> n & 1 == 1).filter_map(Place::new).collect();
            prop_assume!(!part.is_empty());
            let mut union = Union::new(1);
            for (n, list) in lists.iter().enumerate() {
                for &seq in list {
                    union.add(place(n), &write(stamp(1, seq), &[seq as u8])).unwrap();
                }
            }
            for &s in &settled {
                union.settled(0, stamp(1, s));
            }
            let highest = settled.iter().max().copied().unwrap_or(0);
            let mut expect = std::collections::BTreeMap::<u64, Members>::new();
            for p in part.iter() {
                for &seq in lists[p.index()].iter().filter(|s| **s > highest) {
                    let has = expect.entry(seq).or_default();
                    *has = has.with(p);
                }
            }
            let plan = union.plan(part);
            let found: Vec<_> = plan.lanes[0].iter().map(|i| (i.held.stamp.seq, i.whole)).collect();
            prop_assert_eq!(found, expect.into_iter().collect::<Vec<_>>());
        }
    }
}
