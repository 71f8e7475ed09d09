//! The offline check: everything that a drive holds, from the superblock down, read-only (`docs/store-format.md`, all of it).
//!
//! [`check()`] reads through a [`BlockReader`], so it works on a file, a block device, and on a simulated disk at the moment of a crash. It
//! takes the newest superblock, walks the group table, the catalogue and every lane's and snapshot's map, marks each block that it reaches, and
//! compares the marks with the bitmaps: bits that are set and lead nowhere are *leaks*, blocks that are reached without a bit, or from two
//! places, are worse. A journal that an opening would replay is read as an opening reads it; blocks that only its records refer to are no leaks.
//! What is found goes to a [`Report`]. [`dump`] shows single structures.

pub mod dump;
mod forest;
mod journal;
mod marks;
mod reader;
mod report;
mod space;
mod tree;

use super::map::CatalogueRecord;
use super::superblock::{COPIES, COPY_BYTES, CopyError, Superblock};
use super::types::{BLOCK_BYTES, CatalogueHandle, PhysicalBlock};
use marks::Marks;
pub use reader::{BlockReader, FileReader};
pub use report::{Problem, Report};
use std::collections::BTreeMap;

/// What to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Read all data, and compare checksums.
    pub data: bool,
}

/// Checks a drive.
pub fn check(reader: &dyn BlockReader, options: CheckOptions) -> Report {
    let mut report = Report::default();
    let found = superblocks(reader, &mut report);
    let Some(superblock) = found else {
        return report;
    };
    report.take(&superblock);
    let needed = superblock.layout.blocks();
    if reader.blocks() < needed {
        let what = format!(
            "the drive has {} blocks where it had {needed}",
            reader.blocks()
        );
        report.problem("size", what);
    }
    let marks = Marks::new(superblock.layout);
    let mut checker = Checker {
        reader,
        options,
        superblock,
        report,
        marks,
        catalogue: BTreeMap::new(),
        complete: true,
    };
    checker.catalogue();
    checker.forest();
    checker.journal();
    checker.space();
    checker.pages();
    checker.report
}

/// A check that is under way.
struct Checker<'a> {
    reader: &'a dyn BlockReader,
    options: CheckOptions,
    superblock: Superblock,
    report: Report,
    marks: Marks,
    catalogue: BTreeMap<CatalogueHandle, CatalogueRecord>,
    /// False: a page could not be read, so what it leads to is not known.
    complete: bool,
}

impl Checker<'_> {
    /// A block, or a problem.
    fn read(&mut self, at: PhysicalBlock, what: &str) -> Option<Box<[u8; BLOCK_BYTES]>> {
        let mut into = Box::new([0; BLOCK_BYTES]);
        match self.reader.read(at.0, &mut into) {
            Ok(()) => Some(into),
            Err(e) => {
                self.report
                    .problem("unreadable", format!("{what}, block {}: {e}", at.0));
                None
            }
        }
    }
}

/// A superblock copy's bytes.
fn copy_bytes(reader: &dyn BlockReader, copy: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; COPY_BYTES];
    let first = (copy * COPY_BYTES / BLOCK_BYTES) as u64;
    for (block, part) in (first..).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        reader.read(block, part.try_into().expect("a block"))?;
    }
    Ok(bytes)
}

/// Reads all copies: the present superblock, as an opening would find it.
fn superblocks(reader: &dyn BlockReader, report: &mut Report) -> Option<Superblock> {
    let mut best: Option<Superblock> = None;
    let mut ours = false;
    for copy in 0..COPIES {
        let state = match copy_bytes(reader, copy).map(|bytes| Superblock::decode(&bytes)) {
            Err(e) => {
                report.problem("unreadable", format!("superblock copy {copy}: {e}"));
                "unreadable".to_owned()
            }
            Ok(Err(e)) => {
                ours |= e.ours();
                if e != CopyError::Blank {
                    // An unfinished commit leaves such a copy; the next but one writes it anew.
                    report.note(format!("superblock copy {copy}: {e}"));
                }
                e.to_string()
            }
            Ok(Ok(found)) => {
                ours = true;
                if !Superblock::pair(found.sequence).contains(&copy) {
                    let what = format!(
                        "copy {copy} has sequence {}, of the other pair",
                        found.sequence
                    );
                    report.problem("superblock", what);
                }
                let state = format!("sequence {}", found.sequence);
                match &best {
                    Some(b) if b.sequence == found.sequence && *b != found => {
                        let what = format!("two copies of sequence {} differ", b.sequence);
                        report.problem("superblock", what);
                    }
                    Some(b) if b.sequence >= found.sequence => {}
                    _ => best = Some(found),
                }
                state
            }
        };
        report.copies.push(state);
    }
    if best.is_none() {
        let what = if ours {
            "no copy is valid: the drive cannot be opened"
        } else {
            "there is no store on the drive"
        };
        report.problem("superblock", what.to_owned());
    }
    best
}
