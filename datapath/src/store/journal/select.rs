//! Which of the records that were found count (`docs/store-format.md` §11, step 4).
//!
//! - At or below its lane's sequence: the map has it. Skipped.
//! - At or below the watermark, or a copy of what was durable: believed. If its data is damaged, reads say so (S2).
//! - Above the watermark: its data may be torn or lost, so it is read. If any block does not match, the write is dropped, whole. The newest
//!   come first, because a block that a later write or tombstone of the same lane and generation covers is not tested: its space may have
//!   been reused, which happens only after a FLUSH that made the later one stable. A dropped record covers nothing.
//!
//! In a lane, originals lie in the journal in lane order; copies do not. One whose original was found is left out; the others are older
//! than all originals that were found, and come first. So each lane's records come in lane order, and a snapshot stands where it was taken.

use std::collections::BTreeMap;

use super::super::types::{CatalogueHandle, Crc, Generation, LaneSequence, PhysicalBlock};
use super::decode::{RecordRef, WriteRef};
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
    wave: Wave,
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
        let entries: Vec<_> = write
            .entries()
            .filter(|(block, ..)| !self.covered.has(key, block.0))
            .map(|(_, place, _, crc)| (place, crc))
            .collect();
        self.wave.ranges.add(key, start, end);
        self.wave.writes.push((n, entries.len()));
        self.wave.blocks.extend(entries);
        true
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
                self.covered.add(key, start, end);
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

/// The records that count, each lane's in lane order. `done` is what of a lane the map has; `test` says of each block whether the drive has
/// there what the checksum says.
///
/// # Errors
/// Those of `test`.
pub async fn select<E>(
    records: Records,
    watermark: u64,
    done: impl Fn(CatalogueHandle) -> LaneSequence,
    mut test: impl AsyncFnMut(&[(PhysicalBlock, Crc)]) -> Result<Vec<bool>, E>,
) -> Result<Records, E> {
    let skipped = |record: &RecordRef<'_>| {
        let sequence = record.lane_sequence();
        sequence.is_some_and(|s| s <= done(record.handle()))
    };
    let mut selection = Selection {
        dropped: vec![false; records.len()],
        records,
        covered: Ranges::default(),
        wave: Wave::default(),
    };
    for n in (0..selection.records.len() as u32).rev() {
        let (block, record) = selection.records.get(n as usize);
        if skipped(&record) || believed(block, watermark, record.again()) {
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
                selection.covered.add(key, t.first.0, t.first.0 + t.blocks);
            }
            RecordRef::Snapshot(_) | RecordRef::Put(_) => {}
        }
    }
    selection.decide(&mut test).await?;
    let Selection {
        mut records,
        dropped,
        ..
    } = selection;
    let chosen = in_lane_order(&records, |n, record| !dropped[n] && !skipped(record));
    records.choose(&chosen);
    Ok(records)
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
