//! What a read may return (`docs/replication.md` §8 *Reads*, rule 7).
//!
//! Of a block, the version is the newest in the lane's stream that is acknowledged; if none there is, what a replica has, as whatever left the stream is on
//! everybody who is fed. If that is a record of the stream that is not acknowledged yet, the read waits. So it does where a command failed and neither
//! its write nor a newer one over it is acknowledged.
//!
//! A read pins the stream (`Ring::pin`) before it asks a replica, and is put together after the replica's blocks are in hand. So all of it is of one
//! moment, and no record shows in part.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use super::order::Entry as Record;
use super::ring::Ring;
use crate::replication::held::{Held, What};
use crate::replication::planted::{self, Bug};
use crate::replication::seam::{Entry, Kind};

/// Which records of a stream are about which blocks.
#[derive(Debug)]
pub struct Overlay {
    lanes: Box<[Lane]>,
}

#[derive(Debug, Default)]
struct Lane {
    /// The newest write (or poison) of a block.
    newest: BTreeMap<u64, u64>,
    /// Tombstones: there are few, and they may be long.
    erased: BTreeSet<u64>,
}

/// Where a block of a read comes from.
#[derive(Clone, Debug)]
pub enum Part {
    /// From the replica that was asked.
    Replica,
    /// It is zeroes.
    Zero,
    /// From a record: its block number `index`.
    Record {
        /// The record, with data.
        held: Rc<Held>,
        /// Which of its blocks.
        index: usize,
    },
    /// It is damaged.
    Damaged,
}

/// What a read can do now.
#[derive(Clone, Debug)]
pub enum Ready {
    /// Something must be acknowledged first.
    Wait,
    /// The replica that was asked is behind a record that came without data: another has it.
    Elsewhere,
    /// It can be answered, with these blocks.
    Parts(Vec<Part>),
}

enum View<'a> {
    /// This record, acknowledged.
    Record(&'a Record),
    /// Whatever replicas have.
    Base,
    /// Hosts were told that a write failed: until it is decided nothing is shown.
    Undecided,
}

impl Overlay {
    /// Nothing is in the streams.
    pub fn new(lanes: u8) -> Self {
        Self {
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
        }
    }

    /// A record was put into its stream.
    pub fn put(&mut self, position: u64, held: &Held) {
        let lane = &mut self.lanes[usize::from(held.lane)];
        match held.what {
            What::Write { .. } | What::Poison { .. } => {
                lane.newest
                    .extend(held.blocks().map(|block| (block, position)));
            }
            What::Tombstone { .. } => {
                lane.erased.insert(position);
            }
            What::Snapshot(_) => {}
        }
    }

    /// It was let go.
    pub fn gone(&mut self, position: u64, held: &Held) {
        let lane = &mut self.lanes[usize::from(held.lane)];
        match held.what {
            What::Write { .. } | What::Poison { .. } => {
                for block in held.blocks() {
                    if lane.newest.get(&block) == Some(&position) {
                        lane.newest.remove(&block);
                    }
                }
            }
            What::Tombstone { .. } => {
                lane.erased.remove(&position);
            }
            What::Snapshot(_) => {}
        }
    }

    /// The newest record about a block.
    fn newest(&self, ring: &Ring, lane: u8, block: u64) -> u64 {
        let of = &self.lanes[usize::from(lane)];
        let written = of.newest.get(&block).copied().unwrap_or(0);
        let later = of.erased.range(written + 1..).rev();
        let covers = |p: &&u64| {
            let entry = ring.stream(lane).get(**p);
            entry.is_some_and(|e| e.held.blocks().contains(&block))
        };
        later.into_iter().find(covers).map_or(written, |&p| p)
    }

    fn view<'a>(&self, ring: &'a Ring, lane: u8, block: u64) -> View<'a> {
        let stream = ring.stream(lane);
        let mut at = self.newest(ring, lane, block);
        while let Some(entry) = stream.get(at) {
            // Writes that are not acknowledged are few: those behind the newest are looked for one by one.
            if entry.held.blocks().contains(&block) {
                if entry.acked || planted::is(Bug::UnacknowledgedShown) {
                    return View::Record(entry);
                }
                if entry.failed {
                    return View::Undecided;
                }
            }
            at -= 1;
        }
        View::Base
    }

    /// Whether a replica has to be asked for a read of these blocks.
    pub fn needs_replica(&self, ring: &Ring, lane: u8, blocks: Range<u64>) -> bool {
        blocks.into_iter().any(|block| {
            match self.view(ring, lane, block) {
                View::Record(entry) => matches!(entry.held.what, What::Write { data: None, .. }),
                View::Base => true,
                // It may have to be asked later; not while nothing can be shown.
                View::Undecided => true,
            }
        })
    }

    /// Puts a read together, with the entries that a replica gave for its blocks, if one was asked.
    pub fn assemble(
        &self,
        ring: &Ring,
        lane: u8,
        blocks: Range<u64>,
        replica: Option<&[Entry]>,
    ) -> Ready {
        let mut parts = Vec::with_capacity((blocks.end - blocks.start) as usize);
        let first = blocks.start;
        for block in blocks {
            let there = replica.and_then(|r| r.get((block - first) as usize));
            let part = match self.view(ring, lane, block) {
                View::Undecided => return Ready::Wait,
                View::Record(entry) => match &entry.held.what {
                    What::Tombstone { .. } | What::Snapshot(_) => Part::Zero,
                    What::Poison { .. } => Part::Damaged,
                    What::Write { data: Some(_), .. } => Part::Record {
                        held: Rc::clone(&entry.held),
                        index: (block - entry.held.blocks().start) as usize,
                    },
                    What::Write { data: None, .. } => match there {
                        Some(e) if e.stamp >= entry.held.stamp_of(block) => {
                            match shown(ring, lane, e) {
                                Some(part) => part,
                                None => return Ready::Wait,
                            }
                        }
                        _ => return Ready::Elsewhere,
                    },
                },
                View::Base => match there.map(|e| shown(ring, lane, e)) {
                    Some(Some(part)) => part,
                    Some(None) => return Ready::Wait,
                    None => return Ready::Elsewhere,
                },
            };
            parts.push(part);
        }
        Ready::Parts(parts)
    }
}

/// A replica's block, unless it is of a record that is not acknowledged.
fn shown(ring: &Ring, lane: u8, entry: &Entry) -> Option<Part> {
    let of = ring.stream(lane).of_stamp(entry.stamp);
    if entry.kind != Kind::Absent
        && of.is_some_and(|(_, record)| !record.acked)
        && !planted::is(Bug::UnacknowledgedShown)
    {
        return None;
    }
    Some(match entry.kind {
        Kind::Data => Part::Replica,
        Kind::Absent | Kind::Erased => Part::Zero,
        Kind::Poison => Part::Damaged,
    })
}
