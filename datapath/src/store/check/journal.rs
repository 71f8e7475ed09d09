//! The journal, read as an opening reads it: which records count, and which blocks only they refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::super::journal::{RecordRef, Records, Scan, Scanner, Selected, select, settled};
use super::super::map::{CatalogueRecord, RecordKind};
use super::super::types::{
    BLOCK_BYTES, CatalogueHandle, Crc, Generation, LaneSequence, PhysicalBlock, Stamp,
};
use super::{BlockReader, Checker};

/// What the records leave of a lane's layer, by block.
type Layer = BTreeMap<u64, (PhysicalBlock, Crc)>;

/// Scans the journal of a drive that was not closed.
pub(super) fn scan(
    reader: &dyn BlockReader,
    superblock: &super::Superblock,
) -> Result<Scan, String> {
    let layout = superblock.layout;
    let mut scanner = Scanner::new(
        layout.journal_blocks(),
        superblock.drive_id,
        superblock.journal_generation,
        superblock.journal_first,
    );
    while let Some(places) = scanner.next_read(1) {
        let mut bytes = [0; BLOCK_BYTES];
        let at = layout.journal_start().0 + u64::from(places.start);
        if reader.read(at, &mut bytes).is_err() {
            // As a hole.
            bytes.fill(0);
        }
        scanner.feed(places, &bytes).map_err(|e| e.to_string())?;
    }
    Ok(scanner.finish())
}

impl Checker<'_> {
    /// Marks what only the journal refers to.
    pub(super) fn journal(&mut self) {
        if self.superblock.clean {
            return;
        }
        let scan = match scan(self.reader, &self.superblock) {
            Ok(scan) => scan,
            Err(e) => {
                self.complete = false;
                self.report.problem("journal", e);
                return;
            }
        };
        let selected = self.counting(scan);
        self.report.journal_records = selected.records.len() as u64;
        let live = self.live(&selected.records);
        let mut held = BTreeSet::new();
        for ((handle, _), layer) in layers(&selected, &live) {
            for (block, (at, crc)) in layer {
                let what = || format!("lane block {block} of record {}, in the journal", handle.0);
                // Bitmaps do not say so: no bit is expected, and none may be there.
                if self.marks.has(at) || !held.insert(at) {
                    let what = format!("block {} is of {}, and of something else", at.0, what());
                    self.report.problem("shared", what);
                    continue;
                }
                self.report.journal_data += 1;
                self.data(at, crc, what);
            }
        }
    }

    /// Those that an opening would apply.
    fn counting(&self, scan: Scan) -> Selected {
        let sequence = |handle: CatalogueHandle| {
            let record = self.catalogue.get(&handle);
            record.map_or(LaneSequence(0), |r| r.sequence)
        };
        let told = settled(&scan.records);
        let settled = |handle: CatalogueHandle| {
            let none = Stamp { epoch: 0, seq: 0 };
            let record = self.catalogue.get(&handle).map_or(none, |r| r.settled);
            told.get(&handle).map_or(record, |told| record.max(*told))
        };
        let reader = self.reader;
        let test = async |blocks: &[(PhysicalBlock, Crc)]| {
            let matches = blocks.iter().map(|(at, crc)| {
                let mut bytes = [0; BLOCK_BYTES];
                reader.read(at.0, &mut bytes).is_ok() && Crc::of(&bytes) == *crc
            });
            Ok::<_, std::convert::Infallible>(matches.collect())
        };
        let selected = select(scan.records, scan.watermark, sequence, settled, test);
        let Ok(selected) = at_once(selected);
        selected
    }

    /// Lanes that take records: those of the catalogue, and those that the journal makes.
    fn live(&self, records: &Records) -> BTreeSet<CatalogueHandle> {
        let of_catalogue = self
            .catalogue
            .iter()
            .filter(|(_, r)| r.kind == RecordKind::Live);
        let mut live: BTreeSet<_> = of_catalogue.map(|(h, _)| *h).collect();
        for record in records.iter() {
            if let RecordRef::Put(put) = record
                && put.checkpoint >= self.superblock.checkpoint
                && let Ok(Some(record)) = CatalogueRecord::decode_put(&put.record)
                && record.kind == RecordKind::Live
            {
                live.insert(put.handle);
            }
        }
        live
    }
}

/// What is left of the records, layer by layer.
fn layers(
    selected: &Selected,
    live: &BTreeSet<CatalogueHandle>,
) -> BTreeMap<(CatalogueHandle, Generation), Layer> {
    let mut layers: BTreeMap<(CatalogueHandle, Generation), Layer> = BTreeMap::new();
    let replaced = selected.replaced();
    for (n, record) in selected.records.iter().enumerate() {
        if !live.contains(&record.handle()) {
            continue;
        }
        let counts = |block: u64| match replaced.get(&n) {
            Some(parts) => parts.iter().any(|p| p.contains(&block)),
            None => true,
        };
        match record {
            RecordRef::Write(write) => {
                let layer = layers.entry((write.handle, write.generation)).or_default();
                if write.is_poison() {
                    let blocks = write.first.0..write.first.0 + write.blocks() as u64;
                    layer.retain(|block, _| !(blocks.contains(block) && counts(*block)));
                }
                let entries = write.entries().filter(|(block, ..)| counts(block.0));
                layer.extend(entries.map(|(block, at, _, crc)| (block.0, (at, crc))));
            }
            RecordRef::Tombstone(t) => {
                let blocks = t.first.0..t.first.0 + t.blocks;
                let layer = layers.entry((t.handle, t.generation)).or_default();
                layer.retain(|block, _| !(blocks.contains(block) && counts(*block)));
            }
            RecordRef::Snapshot(_) | RecordRef::Put(_) | RecordRef::Settled(_) => {}
        }
    }
    layers
}

/// Runs a future that never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}
