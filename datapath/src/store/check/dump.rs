//! Single structures of a drive as text, one line for each thing.

use super::super::VolumeId;
use super::super::group::{decode_table_page, groups_of_page};
use super::super::journal::RecordRef;
use super::super::map::interior::{self, FANOUT};
use super::super::map::{ChildEntry, LeafShape, PageHeader, RecordKind};
use super::super::superblock::Superblock;
use super::super::types::{BLOCK_BYTES, PhysicalBlock};
use super::{BlockReader, CheckOptions, Checker, Marks, Report, journal, superblocks};

/// What to show.
#[derive(Clone, Debug)]
pub enum What {
    /// All copies, and what the present one says.
    Superblock,
    /// The group table.
    Groups,
    /// Every record.
    Catalogue,
    /// Every record that replay would look at.
    Journal,
    /// Pages and entries of a live lane.
    Map {
        /// Of this volume.
        volume: VolumeId,
        /// Its lane.
        lane: u8,
    },
    /// A block's bytes, and what page it is.
    Block(u64),
}

/// Shows a structure.
///
/// # Errors
/// Why there is none.
pub fn dump(reader: &dyn BlockReader, what: &What) -> Result<String, String> {
    if let What::Block(at) = what {
        return block(reader, *at);
    }
    let mut report = Report::default();
    let Some(superblock) = superblocks(reader, &mut report) else {
        return Err(format!("no valid superblock: {}", report.copies.join("; ")));
    };
    match what {
        What::Superblock => Ok(show_superblock(&report, &superblock)),
        What::Groups => groups(reader, &superblock),
        What::Journal => show_journal(reader, &superblock),
        What::Catalogue => {
            let checker = read_catalogue(reader, report, superblock);
            let lines = checker.catalogue.iter().map(|(h, r)| {
                format!(
                    "{} {:?} volume {} lane {}/{} snapshot {} parent {} generation {} incarnation {} root block {} depth {} used {} sequence {} walked {} size {}",
                    h.0, r.kind, r.volume, r.lane, r.lanes, r.snapshot, r.parent.0, r.generation.0, r.incarnation, r.map.block.0, r.depth, r.map.used, r.sequence.0, r.walked, r.size_bytes
                )
            });
            Ok(lines.collect::<Vec<_>>().join("\n"))
        }
        What::Map { volume, lane } => {
            let checker = read_catalogue(reader, report, superblock);
            let found = checker.catalogue.iter().find(|(_, r)| {
                r.kind == RecordKind::Live && r.volume == *volume && r.lane == *lane
            });
            let (handle, record) = found.ok_or("there is no such lane on the drive")?;
            let mut lines = vec![format!("record {}, depth {}", handle.0, record.depth)];
            let shape = LeafShape::of(record.sealed);
            if let Some(root) = record.map.present() {
                map(reader, shape, record.depth, 0, &root, &mut lines)?;
            }
            Ok(lines.join("\n"))
        }
        What::Block(_) => unreachable!("shown before"),
    }
}

fn read(reader: &dyn BlockReader, at: PhysicalBlock) -> Result<[u8; BLOCK_BYTES], String> {
    let mut bytes = [0; BLOCK_BYTES];
    let read = reader.read(at.0, &mut bytes);
    read.map_err(|e| format!("block {}: {e}", at.0))?;
    Ok(bytes)
}

fn read_catalogue<'a>(
    reader: &'a dyn BlockReader,
    report: Report,
    superblock: Superblock,
) -> Checker<'a> {
    let marks = Marks::new(superblock.layout);
    let mut checker = Checker {
        reader,
        options: CheckOptions::default(),
        superblock,
        report,
        marks,
        catalogue: std::collections::BTreeMap::new(),
        complete: true,
    };
    checker.catalogue();
    checker
}

fn show_superblock(report: &Report, s: &Superblock) -> String {
    let mut lines: Vec<String> = report
        .copies
        .iter()
        .enumerate()
        .map(|(n, state)| format!("copy {n}: {state}"))
        .collect();
    let l = &s.layout;
    lines.extend([
        format!("drive {} of pool {}, {}", s.drive, s.pool, s.drive_id),
        format!("sequence {}, checkpoint {}", s.sequence, s.checkpoint.0),
        format!(
            "mount generation {}, journal generation {}",
            s.mount_generation.0, s.journal_generation.0
        ),
        format!(
            "clean {}, state {:?}, members {}",
            s.clean, s.state, s.members
        ),
        format!(
            "{} blocks, {} groups from block {}, {} free",
            l.blocks(),
            l.groups(),
            l.groups_start().0,
            s.free_blocks
        ),
        format!(
            "group table of {} pages, journal of {} blocks from block {}",
            l.table_pages(),
            l.journal_blocks(),
            l.journal_start().0
        ),
        format!("journal: replay needs {} and later", s.journal_first),
        format!(
            "catalogue: depth {}, root {:?}",
            s.catalogue_depth,
            ChildEntry::decode(&s.catalogue_root)
        ),
        format!(
            "next handle {}, next generation {}",
            s.next_handle.0, s.next_generation.0
        ),
    ]);
    lines.join("\n")
}

fn groups(reader: &dyn BlockReader, s: &Superblock) -> Result<String, String> {
    let mut lines = Vec::new();
    for (page, entry) in (0..).zip(&s.table) {
        if !entry.in_use {
            continue;
        }
        let bytes = read(reader, s.layout.table_page(page, entry.copy))?;
        let entries =
            decode_table_page(&bytes, page, s.drive_id, &s.layout).map_err(|e| e.to_string())?;
        for (group, e) in groups_of_page(&s.layout, page).zip(entries) {
            lines.push(match e.in_use {
                true => format!(
                    "group {group}: {} free, bitmap in copy {}, checksum {:?}",
                    e.free, e.copy, e.crc
                ),
                false => format!("group {group}: never used"),
            });
        }
    }
    Ok(lines.join("\n"))
}

fn show_journal(reader: &dyn BlockReader, s: &Superblock) -> Result<String, String> {
    let scan = journal::scan(reader, s)?;
    let mut lines = vec![format!(
        "blocks {} to before {}, durable up to {}",
        scan.first, scan.end, scan.watermark
    )];
    for (block, record) in scan.records.iter_with_blocks() {
        let again = if record.again() { ", again" } else { "" };
        lines.push(match record {
            RecordRef::Write(w) => {
                let runs: Vec<String> = w.runs().map(|r| format!("{}+{}", r.first.0, r.blocks)).collect();
                format!(
                    "{block}: write of {}, lane sequence {}, generation {}, blocks {}+{} at {}{again}",
                    w.handle.0,
                    w.lane_sequence.0,
                    w.generation.0,
                    w.first.0,
                    w.blocks(),
                    runs.join(" ")
                )
            }
            RecordRef::Tombstone(t) => format!(
                "{block}: tombstone of {}, lane sequence {}, generation {}, blocks {}+{}{again}",
                t.handle.0, t.lane_sequence.0, t.generation.0, t.first.0, t.blocks
            ),
            RecordRef::Snapshot(t) => format!(
                "{block}: snapshot of {}, lane sequence {}, closes generation {}, record {}, id {}",
                t.handle.0, t.lane_sequence.0, t.closes.0, t.snapshot.0, t.id
            ),
            RecordRef::Settled(s) => format!("{block}: of {} is settled {:?}", s.handle.0, s.stamp),
            RecordRef::Put(p) => format!("{block}: put of {}, kind {}, at checkpoint {}", p.handle.0, p.record[0], p.checkpoint.0),
        });
    }
    Ok(lines.join("\n"))
}

fn map(
    reader: &dyn BlockReader,
    shape: LeafShape,
    level: u8,
    index: u64,
    entry: &ChildEntry,
    lines: &mut Vec<String>,
) -> Result<(), String> {
    lines.push(format!(
        "level {level} page {index}: block {}, generation {}, {} in use beneath",
        entry.block.0, entry.generation.0, entry.used
    ));
    let page = read(reader, entry.block)?;
    if level > 0 {
        for n in 0..FANOUT {
            if let Some(below) = interior::child(&page, n).present() {
                map(reader, shape, level - 1, index * FANOUT + n, &below, lines)?;
            }
        }
        return Ok(());
    }
    for slot in 0..shape.slots(index) {
        let e = shape.entry(&page, slot);
        if let Some(at) = e.block() {
            let block = shape.block_of(index, slot).0;
            lines.push(format!(
                "  {block}: block {}, generation {}, stamp {}.{}, checksum {:?}",
                at.0, e.generation.0, e.stamp.epoch, e.stamp.seq, e.crc
            ));
        }
    }
    Ok(())
}

fn block(reader: &dyn BlockReader, at: u64) -> Result<String, String> {
    let bytes = read(reader, PhysicalBlock(at))?;
    let mut lines = Vec::new();
    if let Ok(header) = PageHeader::decode(&bytes) {
        lines.push(format!("{header:?}"));
    }
    for (n, row) in bytes.chunks(32).enumerate() {
        if row.iter().any(|b| *b != 0) {
            let hex: Vec<String> = row
                .chunks(4)
                .map(|c| c.iter().map(|b| format!("{b:02x}")).collect())
                .collect();
            lines.push(format!("{:4}  {}", n * 32, hex.join(" ")));
        }
    }
    Ok(lines.join("\n"))
}
