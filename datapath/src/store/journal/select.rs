//! Which of the records that were found count (`docs/store-format.md` §11, step 4).
//!
//! - At or below its lane's sequence: the map has it. Skipped.
//! - At or below the watermark, or a copy of what was durable: believed. If its data is damaged, reads say so (S2).
//! - Above the watermark: its data may be torn or lost, so it is read. If any block does not match, the write is dropped, whole. The newest
//!   come first, because a block that a later write or tombstone of the same lane and generation covers is not tested: its space may have
//!   been reused, which happens only after a FLUSH that made the later one stable. A dropped record covers nothing.
//!
//! Records of replicas, whose stamps were given, differ in two ways. What is settled was stable, and is believed. What is not settled is tested
//! wholly, as none of its blocks is used again before: it is to be given to others. And those that the map has are looked at too: they are *listed*.
//!
//! In a lane, originals lie in the journal in lane order; copies do not. One whose original was found is left out; the others are older
//! than all originals that were found, and come first. So each lane's records come in lane order, and a snapshot stands where it was taken.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::super::types::{CatalogueHandle, Crc, Generation, LaneSequence, PhysicalBlock, Stamp};
use super::decode::{RecordRef, WriteRef};
use super::order::without;
use super::record::Given;
use super::records::Records;

/// Blocks that are tested at once, at least as long as there are so many.
pub const TEST_BLOCKS: usize = 256;

/// Ranges of blocks of lanes, by generation.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<(CatalogueHandle, Generation), BTreeMap<u64, u64>>);

impl Ranges {
    fn add(&mut self, of: (CatalogueHandle, Generation), mut start: u64, mut end: u64) {
        let ranges = self.0.entry(of).or_default();
        while let Some((&s, &e)) = ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            ranges.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        ranges.insert(start, end);
    }

    fn has(&self, of: (CatalogueHandle, Generation), block: u64) -> bool {
        let before = self.0.get(&of).and_then(|r| r.range(..=block).next_back());
        before.is_some_and(|(_, &end)| block < end)
    }

    /// Whether any of these blocks is there.
    fn touches(&self, of: (CatalogueHandle, Generation), start: u64, end: u64) -> bool {
        let before = self.0.get(&of).and_then(|r| r.range(..end).next_back());
        before.is_some_and(|(_, &e)| start < e)
    }
}

/// Writes that are tested together: none of them covers a block of another.
#[derive(Debug, Default)]
struct Wave {
    /// Index of a write, and how many of the blocks are its.
    writes: Vec<(u32, usize)>,
    blocks: Vec<(PhysicalBlock, Crc)>,
    ranges: Ranges,
}

struct Selection {
    records: Records,
    /// What became of each record.
    dropped: Vec<bool>,
    covered: Ranges,
    /// Writes of replicas that are not settled: all of their blocks are tested.
    wholly: BTreeSet<u32>,
    /// Of those that came late: the blocks that they replaced.
    replaced: BTreeMap<u32, Vec<Range<u64>>>,
    /// Records of replicas.
    replicas: BTreeSet<u32>,
    wave: Wave,
}

/// What the journal has.
#[derive(Debug)]
pub struct Selected {
    /// What the maps do not have, each lane's in lane order.
    pub records: Records,
    /// Records of replicas that the maps have, likewise: all of them are older.
    pub listed: Records,
}

/// The highest stamp of each lane that the journal says is settled.
pub fn settled(records: &Records) -> BTreeMap<CatalogueHandle, Stamp> {
    let mut settled = BTreeMap::new();
    for record in records.iter() {
        if let RecordRef::Settled(s) = record {
            let highest = settled.entry(s.handle).or_insert(s.stamp);
            *highest = s.stamp.max(*highest);
        }
    }
    settled
}

/// A record of a replica: where it came, its stamps, and its blocks.
struct Stamped {
    n: u32,
    given: Given,
    handle: CatalogueHandle,
    sequence: LaneSequence,
    stamp: Stamp,
    last: Stamp,
    blocks: Range<u64>,
}

impl Stamped {
    fn of(n: u32, record: &RecordRef<'_>) -> Option<Self> {
        let (given, sequence, stamp, blocks) = match record {
            RecordRef::Write(w) => {
                let first = w.first.0;
                let blocks = first..first + w.blocks() as u64;
                (w.given, w.lane_sequence, w.stamp, blocks)
            }
            RecordRef::Tombstone(t) => {
                let blocks = t.first.0..t.first.0 + t.blocks;
                (t.given, t.lane_sequence, t.stamp, blocks)
            }
            RecordRef::Snapshot(_) | RecordRef::Put(_) | RecordRef::Settled(_) => return None,
        };
        let used = match record {
            RecordRef::Write(_) => blocks.end - blocks.start - 1,
            _ => 0,
        };
        (given != Given::No).then(|| Self {
            n,
            given,
            handle: record.handle(),
            sequence,
            stamp,
            last: Stamp {
                epoch: stamp.epoch,
                seq: stamp.seq + used,
            },
            blocks,
        })
    }
}

impl Stamped {
    /// The blocks that one which came late replaced, of all that were there.
    fn replaced(&self, all: &[Self]) -> Vec<Range<u64>> {
        let before = all.iter().filter(|o| {
            o.handle == self.handle && o.stamp > self.stamp && o.sequence < self.sequence
        });
        without(self.blocks.clone(), before.map(|o| o.blocks.clone()))
    }
}

impl Selected {
    /// Of each of `records` that came late, by its number: the blocks that it replaces.
    pub fn replaced(&self) -> BTreeMap<usize, Vec<Range<u64>>> {
        let of = |(n, record)| Stamped::of(n as u32, &record);
        let mut all: Vec<Stamped> = self.records.iter().enumerate().filter_map(of).collect();
        let late: Vec<usize> = (0..all.len())
            .filter(|n| all[*n].given == Given::ByStamp)
            .collect();
        if late.is_empty() {
            return BTreeMap::new();
        }
        all.extend(self.listed.iter().enumerate().filter_map(of));
        let replaced = late
            .into_iter()
            .map(|n| (all[n].n as usize, all[n].replaced(&all)));
        replaced.collect()
    }
}

fn key(write: &WriteRef<'_>) -> (CatalogueHandle, Generation) {
    (write.handle, write.generation)
}

impl Selection {
    fn write(&self, n: u32) -> WriteRef<'_> {
        match self.records.get(n as usize).1 {
            RecordRef::Write(write) => write,
            _ => unreachable!("only writes are tested"),
        }
    }

    /// Puts a write among those that are tested next. False: one of them must be decided before.
    fn enter(&mut self, n: u32) -> bool {
        let write = self.write(n);
        let (key, start) = (key(&write), write.first.0);
        let end = start + write.blocks() as u64;
        if self.wave.ranges.touches(key, start, end) {
            return false;
        }
        let wholly = self.wholly.contains(&n);
        let entries: Vec<_> = write
            .entries()
            .filter(|(block, ..)| wholly || !self.covered.has(key, block.0))
            .map(|(_, place, _, crc)| (place, crc))
            .collect();
        self.wave.ranges.add(key, start, end);
        self.wave.writes.push((n, entries.len()));
        self.wave.blocks.extend(entries);
        true
    }

    /// A record is there: what it replaced is not tested.
    fn cover(&mut self, n: u32, key: (CatalogueHandle, Generation), blocks: Range<u64>) {
        match self.replaced.get(&n) {
            Some(replaced) => {
                for part in replaced {
                    self.covered.add(key, part.start, part.end);
                }
            }
            None => self.covered.add(key, blocks.start, blocks.end),
        }
    }

    /// Finds out what the records of replicas ask for.
    fn look_at_replicas(&mut self, settled: &impl Fn(CatalogueHandle) -> Stamp) {
        let all = self.records.iter().enumerate();
        let stamped: Vec<Stamped> = all
            .filter_map(|(n, record)| Stamped::of(n as u32, &record))
            .collect();
        for record in &stamped {
            if record.last > settled(record.handle) {
                self.wholly.insert(record.n);
            }
            if record.given == Given::ByStamp {
                self.replaced.insert(record.n, record.replaced(&stamped));
            }
        }
        self.replicas = stamped.iter().map(|s| s.n).collect();
    }

    async fn decide<E>(
        &mut self,
        test: &mut impl AsyncFnMut(&[(PhysicalBlock, Crc)]) -> Result<Vec<bool>, E>,
    ) -> Result<(), E> {
        let wave = std::mem::take(&mut self.wave);
        let mut matches = if wave.blocks.is_empty() {
            Vec::new()
        } else {
            test(&wave.blocks).await?
        };
        assert!(
            matches.len() == wave.blocks.len(),
            "an answer for each block"
        );
        #[cfg(planted)]
        if crate::store::planted::is(crate::store::planted::Bug::TornNotTested) {
            matches.fill(true);
        }
        let mut matches = matches.drain(..);
        for (n, blocks) in wave.writes {
            let found: Vec<bool> = matches.by_ref().take(blocks).collect();
            #[cfg(planted)]
            self.apply_half(n, &found);
            if found.iter().all(|&m| m) {
                let write = self.write(n);
                let (key, start) = (key(&write), write.first.0);
                let end = start + write.blocks() as u64;
                self.cover(n, key, start..end);
            } else {
                self.dropped[n as usize] = true;
            }
        }
        Ok(())
    }

    /// The bug: the blocks of a torn write that match become records of their own.
    #[cfg(planted)]
    fn apply_half(&mut self, n: u32, found: &[bool]) {
        use crate::store::group::Run;
        use crate::store::types::{LaneBlock, Stamp};

        let half = crate::store::planted::is(crate::store::planted::Bug::HalfRecordApplied);
        if !half || !found.contains(&false) {
            return;
        }
        let write = self.write(n);
        let key = key(&write);
        let mut found = found.iter();
        let entries: Vec<(LaneBlock, PhysicalBlock, Stamp, Crc)> = write
            .entries()
            .filter(|(b, ..)| self.covered.has(key, b.0) || found.next() == Some(&true))
            .collect();
        let whole = write.to_write();
        let block = self.records.get(n as usize).0;
        for (first, place, stamp, crc) in entries {
            let mut bytes = Vec::new();
            let runs = vec![Run {
                first: place,
                blocks: 1,
            }];
            let one = super::record::Write {
                first,
                stamp,
                runs,
                crcs: vec![crc],
                tags: None,
                ..whole.clone()
            };
            super::record::Record::Write(one).encode(&mut bytes);
            let pushed = self.records.push(block, &bytes);
            pushed.expect("a record that was encoded here");
            self.dropped.push(false);
        }
    }
}

fn believed(block: u64, watermark: u64, again: bool) -> bool {
    #[cfg(planted)]
    if crate::store::planted::is(crate::store::planted::Bug::RotIsTorn) {
        return false;
    }
    block <= watermark || again
}

/// The records that count, each lane's in lane order. `done` is what of a lane the map has, and `settled` what is settled of it; `test` says of each block whether the drive has
/// there what the checksum says.
///
/// # Errors
/// Those of `test`.
pub async fn select<E>(
    records: Records,
    watermark: u64,
    done: impl Fn(CatalogueHandle) -> LaneSequence,
    settled: impl Fn(CatalogueHandle) -> Stamp,
    mut test: impl AsyncFnMut(&[(PhysicalBlock, Crc)]) -> Result<Vec<bool>, E>,
) -> Result<Selected, E> {
    let skipped = |record: &RecordRef<'_>| {
        let sequence = record.lane_sequence();
        sequence.is_some_and(|s| s <= done(record.handle()))
    };
    let mut selection = Selection {
        dropped: vec![false; records.len()],
        records,
        covered: Ranges::default(),
        wholly: BTreeSet::new(),
        replaced: BTreeMap::new(),
        replicas: BTreeSet::new(),
        wave: Wave::default(),
    };
    selection.look_at_replicas(&settled);
    for n in (0..selection.records.len() as u32).rev() {
        let (block, record) = selection.records.get(n as usize);
        let settled = selection.replicas.contains(&n) && !selection.wholly.contains(&n);
        if skipped(&record) || settled || believed(block, watermark, record.again()) {
            continue;
        }
        match record {
            RecordRef::Write(_) => {
                if !selection.enter(n) {
                    selection.decide(&mut test).await?;
                    let entered = selection.enter(n);
                    assert!(entered, "nothing is undecided");
                }
                if selection.wave.blocks.len() >= TEST_BLOCKS {
                    selection.decide(&mut test).await?;
                }
            }
            RecordRef::Tombstone(t) => {
                let key = (t.handle, t.generation);
                selection.cover(n, key, t.first.0..t.first.0 + t.blocks);
            }
            RecordRef::Snapshot(_) | RecordRef::Put(_) | RecordRef::Settled(_) => {}
        }
    }
    selection.decide(&mut test).await?;
    let Selection {
        mut records,
        dropped,
        replicas,
        ..
    } = selection;
    let counts =
        |n: usize, record: &RecordRef<'_>| !dropped[n] && !matches!(record, RecordRef::Settled(_));
    let listed = in_lane_order(&records, |n, record| {
        replicas.contains(&(n as u32)) && skipped(record)
    });
    let listed = records.copies(&listed);
    let chosen = in_lane_order(&records, |n, record| counts(n, record) && !skipped(record));
    records.choose(&chosen);
    Ok(Selected { records, listed })
}

/// Those that count: copies without an original, by lane sequence, then originals in journal order.
fn in_lane_order(records: &Records, counts: impl Fn(usize, &RecordRef<'_>) -> bool) -> Vec<u32> {
    let name = |record: &RecordRef<'_>| (record.lane_sequence(), record.handle());
    let mut copies = BTreeMap::new();
    let mut originals = Vec::new();
    for (n, record) in records.iter().enumerate() {
        if !counts(n, &record) {
            continue;
        }
        if record.again() {
            copies.insert(name(&record), n as u32);
        } else {
            originals.push(n as u32);
        }
    }
    if !copies.is_empty() {
        for &n in &originals {
            copies.remove(&name(&records.get(n as usize).1));
        }
    }
    copies.into_values().chain(originals).collect()
}
