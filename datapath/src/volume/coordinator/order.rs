//! What orders a lane: stamps, and the stream of its records with their positions (`docs/replication.md` §2).
//!
//! Giving a stamp and putting a record into the stream are two steps, since a record with a reserved stamp (§14) is put in later than its stamp was
//! given. All others are put in at once, so their stamps rise along the stream.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::members::Members;
use super::settled::before;
use crate::reactor::Nanos;
use crate::replication::held::{Held, What};
use crate::store::types::Stamp;

/// Bits of a seq that count within its lane.
const COUNTER_BITS: u32 = 56;
const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;

/// A lane has no counters left in this epoch. Nobody lives that long, but a stamp is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lane {lane} has used all stamps of its epoch")]
pub struct UsedUp {
    /// The lane.
    pub lane: u8,
}

/// Gives the stamps of an epoch.
#[derive(Debug)]
pub struct Orderer {
    epoch: u32,
    /// Last counter that was given, by lane.
    last: Box<[u64]>,
}

impl Orderer {
    /// Nothing is given yet.
    pub fn new(epoch: u32, lanes: u8) -> Self {
        Self {
            epoch,
            last: vec![0; usize::from(lanes)].into(),
        }
    }

    /// The first of so many stamps, which follow each other.
    ///
    /// # Errors
    /// [`UsedUp`].
    pub fn stamp(&mut self, lane: u8, count: u64) -> Result<Stamp, UsedUp> {
        let last = &mut self.last[usize::from(lane)];
        let next = last.checked_add(count).filter(|&n| n <= COUNTER_MAX);
        let next = next.ok_or(UsedUp { lane })?;
        let first = *last + 1;
        *last = next;
        Ok(seq(self.epoch, lane, first))
    }

    /// The last stamp that was given, (epoch, 0) if none was: s0 of a subscription.
    pub fn last(&self, lane: u8) -> Stamp {
        match self.last[usize::from(lane)] {
            0 => Stamp {
                epoch: self.epoch,
                seq: 0,
            },
            n => seq(self.epoch, lane, n),
        }
    }
}

fn seq(epoch: u32, lane: u8, counter: u64) -> Stamp {
    Stamp {
        epoch,
        seq: u64::from(lane) << COUNTER_BITS | counter,
    }
}

/// How many stamps a record uses.
pub fn stamps_of(what: &What) -> u64 {
    match what {
        What::Write { crcs, .. } | What::Poison { crcs, .. } => (crcs.len() / 4) as u64,
        What::Tombstone { .. } | What::Snapshot(_) => 1,
    }
}

/// A record in its lane's stream.
#[derive(Debug)]
pub struct Entry {
    /// The record.
    pub held: Rc<Held>,
    /// When its command arrived.
    pub since: Nanos,
    /// The command that waits for it.
    pub token: Option<u64>,
    /// It counts as confirmed only where it is stable.
    pub stable_only: bool,
    /// A host was told that it is done, or a takeover completed it.
    pub acked: bool,
    /// Its command failed, and so hosts do not expect it (rule 7).
    pub failed: bool,
    /// Who wrote it before one in front of it.
    pub early: Members,
    /// Who listed it: it is sent to them without data.
    pub listed: Members,
    /// Who has it damaged: it is sent to them as a repair.
    pub damaged: Members,
    /// It comes from a takeover.
    pub rolled: bool,
    /// The highest stamp in the stream up to it.
    high: Stamp,
}

impl Entry {
    /// A new record.
    pub fn new(held: Rc<Held>, since: Nanos, stable_only: bool) -> Self {
        Self {
            high: held.last(),
            held,
            since,
            token: None,
            stable_only,
            acked: false,
            failed: false,
            early: Members::NONE,
            listed: Members::NONE,
            damaged: Members::NONE,
            rolled: false,
        }
    }

    /// Bytes of data that it keeps in memory.
    pub fn data_bytes(&self) -> u64 {
        match &self.held.what {
            What::Write { data: Some(_), .. } => {
                let blocks = self.held.blocks();
                (blocks.end - blocks.start) * crate::store::types::BLOCK_BYTES as u64
            }
            _ => 0,
        }
    }
}

/// The records of a lane that are not yet known stable wherever they must be, with their positions from 1 on.
#[derive(Debug, Default)]
pub struct Stream {
    /// Everything up to this position was let go.
    released: u64,
    /// The highest stamp of what was.
    released_high: Option<Stamp>,
    entries: VecDeque<Entry>,
    /// Positions of those that have a higher stamp in front of them (§14), by their last stamps.
    late: BTreeMap<Stamp, u64>,
}

impl Stream {
    /// Puts a record at the end; its position.
    pub fn put(&mut self, mut entry: Entry) -> u64 {
        let last = self.entries.back().map(|e| e.high).or(self.released_high);
        let own = entry.held.last();
        let late = last.is_some_and(|high| high > own);
        entry.high = last.map_or(own, |high| high.max(own));
        self.entries.push_back(entry);
        if late {
            self.late.insert(own, self.end());
        }
        self.end()
    }

    /// Position of the last record, 0 if there was none.
    pub fn end(&self) -> u64 {
        self.released + self.entries.len() as u64
    }

    /// Everything up to here was let go.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// The record at a position, if it is kept.
    pub fn get(&self, position: u64) -> Option<&Entry> {
        let at = position.checked_sub(self.released + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// The same, to change.
    pub fn get_mut(&mut self, position: u64) -> Option<&mut Entry> {
        let at = position.checked_sub(self.released + 1)?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    /// All that are kept, with their positions.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        let entries = self.entries.iter().enumerate();
        entries.map(|(n, e)| (self.released + 1 + n as u64, e))
    }

    /// The record that uses a stamp for a block, if it is kept.
    pub fn of_stamp(&self, stamp: Stamp) -> Option<(u64, &Entry)> {
        let late = self.late.range(stamp..).next();
        let late = late.and_then(|(_, &p)| Some((p, self.get(p)?)));
        if let Some(late) = late.filter(|(_, e)| e.held.stamp <= stamp) {
            return Some(late);
        }
        let at = self.entries.partition_point(|e| e.high < stamp);
        let entry = self.entries.get(at)?;
        let uses = entry.held.stamp <= stamp && stamp <= entry.held.last();
        uses.then_some((self.released + 1 + at as u64, entry))
    }

    /// The highest stamp of which everything at or below it is at this position or in front of it, as far as the stream has it; the position is kept, or
    /// was let go last.
    pub fn all_below(&self, position: u64) -> Option<Stamp> {
        let high = match position == self.released {
            true => self.released_high?,
            false => self.get(position)?.high,
        };
        let behind = self.late.iter().find(|(_, p)| **p > position);
        let first = behind.and_then(|(_, &p)| Some(self.get(p)?.held.stamp));
        Some(match first {
            Some(first) if first <= high => before(first),
            _ => high,
        })
    }

    /// Lets go of the first record, if its position is at most `to` and it is acknowledged: else its command would wait for ever, and reads would show it.
    pub fn release_one(&mut self, to: u64) -> Option<Entry> {
        if self.released >= to || !self.entries.front()?.acked {
            return None;
        }
        let entry = self.entries.pop_front()?;
        self.released += 1;
        self.released_high = Some(entry.high);
        if !self.late.is_empty() {
            self.late.remove(&entry.held.last());
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::types::{LaneBlock, SnapshotId};
    use proptest::prelude::*;

    fn erased(stamp: Stamp, first: u64) -> Entry {
        let what = What::Tombstone {
            first: LaneBlock(first),
            blocks: 1,
        };
        let held = Held {
            lane: 0,
            stamp,
            key: 0,
            what,
        };
        Entry::new(Rc::new(held), Nanos(0), false)
    }

    #[test]
    fn a_lane_is_in_the_top_byte_and_the_counter_begins_at_one() {
        let mut order = Orderer::new(7, 16);
        assert_eq!(order.last(3), Stamp { epoch: 7, seq: 0 });
        let seq = |n| Stamp {
            epoch: 7,
            seq: 3u64 << 56 | n,
        };
        assert_eq!(order.stamp(3, 256), Ok(seq(1)));
        assert_eq!(order.last(3), seq(256));
        assert_eq!(order.stamp(3, 1), Ok(seq(257)));
        assert_eq!(order.last(4), Stamp { epoch: 7, seq: 0 });
    }

    #[test]
    fn counters_end_before_they_reach_the_next_lane() {
        let mut order = Orderer::new(7, 2);
        order.last[0] = COUNTER_MAX - 2;
        assert_eq!(order.stamp(0, 3), Err(UsedUp { lane: 0 }));
        assert!(order.stamp(0, 2).is_ok());
        assert_eq!(order.stamp(0, 1), Err(UsedUp { lane: 0 }));
    }

    #[test]
    fn a_write_uses_a_stamp_for_each_block_and_others_one() {
        let poison = What::Poison {
            first: LaneBlock(9),
            crcs: [0; 12].into(),
            tags: Box::default(),
        };
        let many = What::Tombstone {
            first: LaneBlock(9),
            blocks: 1000,
        };
        let snapshot = What::Snapshot(SnapshotId([1; 16]));
        assert_eq!([poison, many, snapshot].map(|w| stamps_of(&w)), [3, 1, 1]);
    }

    proptest! {
        #[test]
        fn stamps_rise_and_none_is_given_twice(counts in prop::collection::vec((0u8..4, 1u64..257), 1..100)) {
            let mut order = Orderer::new(1, 4);
            let mut used = std::collections::BTreeSet::new();
            for (lane, count) in counts {
                let before = order.last(lane);
                let first = order.stamp(lane, count).unwrap();
                prop_assert!(first > before);
                for n in 0..count {
                    let fresh = used.insert(Stamp { seq: first.seq + n, ..first });
                    prop_assert!(fresh);
                }
                prop_assert_eq!((first.seq + count - 1) >> 56, u64::from(lane));
            }
        }

        /// Records with stamps of their own, put in any order: each is found by its stamp, and what is said to be below a position is.
        #[test]
        fn late_records_are_known(order in Just((1u64..40).collect::<Vec<_>>()).prop_shuffle(), release in 0u64..40) {
            let mut stream = Stream::default();
            let stamp = |seq| Stamp { epoch: 1, seq };
            for n in &order {
                let mut entry = erased(stamp(n * 2), *n);
                entry.acked = true;
                stream.put(entry);
            }
            while stream.release_one(release).is_some() {}
            for (at, n) in (1u64..).zip(&order) {
                let found = stream.of_stamp(stamp(n * 2)).map(|f| f.0);
                prop_assert_eq!(found, (at > release).then_some(at));
                prop_assert!(stream.of_stamp(stamp(n * 2 + 1)).is_none());
                if at >= release.max(1) {
                    let below = stream.all_below(at).unwrap();
                    let (front, behind) = order.split_at(at as usize);
                    prop_assert!(behind.iter().all(|n| stamp(n * 2) > below));
                    let high = front.iter().max().unwrap() * 2;
                    let least = behind.iter().min().map_or(u64::MAX, |n| n * 2 - 1);
                    prop_assert_eq!(below, stamp(high.min(least)));
                }
            }
        }

        #[test]
        fn a_stream_knows_its_records_by_position_and_stamp(puts in 1u64..60, release in 0u64..70) {
            let mut stream = Stream::default();
            for n in 1..=puts {
                let stamp = Stamp { epoch: 1, seq: n * 2 };
                let mut entry = erased(stamp, n);
                entry.acked = true;
                prop_assert_eq!(stream.put(entry), n);
            }
            while stream.release_one(release).is_some() {}
            let released = release.min(puts);
            prop_assert_eq!((stream.released(), stream.end()), (released, puts));
            for n in 0..=puts + 1 {
                let kept = (released + 1..=puts).contains(&n);
                prop_assert_eq!(stream.get(n).is_some(), kept);
                let found = stream.of_stamp(Stamp { epoch: 1, seq: n * 2 });
                prop_assert_eq!(found.map(|f| f.0), kept.then_some(n));
                let between = stream.of_stamp(Stamp { epoch: 1, seq: n * 2 + 1 });
                prop_assert!(between.is_none());
            }
        }
    }
}
