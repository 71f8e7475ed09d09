//! A map, from its root down, page by page.

use super::super::map::interior::{self, leaves_of_page};
use super::super::map::{ChildEntry, EntryKind, LeafShape, Page, PageId, PageKind, check_page};
use super::super::types::{CatalogueHandle, Crc, PhysicalBlock};
use super::Checker;
use super::marks::{Marked, print};

/// Whose pages are walked.
#[derive(Clone, Copy)]
pub(super) struct Tree {
    /// Of the record; 0: the catalogue itself.
    pub handle: CatalogueHandle,
    /// The oldest ancestor: within a family, blocks may be shared.
    pub family: CatalogueHandle,
    pub shape: LeafShape,
    /// Leaves below it were given up.
    pub walked: u64,
}

/// A place in a tree.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub level: u8,
    pub index: u64,
    /// Its entry is a root, which says less.
    pub root: bool,
}

impl Checker<'_> {
    /// Reads a page and everything about it that needs no other one.
    pub(super) fn page(
        &mut self,
        tree: &Tree,
        at: At,
        entry: &ChildEntry,
        kind: PageKind,
    ) -> Option<Box<Page>> {
        let place = format!(
            "{:?} page {} of level {}, of record {}, block {}",
            kind, at.index, at.level, tree.handle.0, entry.block.0
        );
        let found = self.read(entry.block, &place);
        let page = found.filter(|page| {
            let right = Crc::of(&page[..]) == entry.crc;
            if !right {
                self.report
                    .problem("page", format!("{place}: the checksum does not match"));
            }
            right
        });
        let Some(page) = page else {
            self.complete = false;
            return None;
        };
        let what = PageId {
            kind,
            level: at.level,
            index: at.index,
        };
        let header = match check_page(&page, &self.superblock.drive_id, what) {
            Ok(header) => header,
            Err(e) => {
                self.complete = false;
                self.report.problem("page", format!("{place}: {e}"));
                return None;
            }
        };
        if header.generation != entry.generation {
            let what = format!(
                "{place}: generation {} where {} is said",
                header.generation.0, entry.generation.0
            );
            self.report.problem("page", what);
        }
        if header.checkpoint > self.superblock.checkpoint {
            let what = format!(
                "{place}: of checkpoint {}, which was never committed",
                header.checkpoint.0
            );
            self.report.problem("page", what);
        }
        Some(page)
    }

    /// Walks a page and what is beneath it.
    pub(super) fn walk(&mut self, tree: &Tree, at: At, entry: &ChildEntry) {
        let (_, last) = leaves_of_page(at.level, at.index);
        if last < tree.walked {
            return;
        }
        let words = [
            1,
            at.level.into(),
            at.index,
            tree.family.0.into(),
            entry.crc.0.into(),
        ];
        if !self.mark(entry.block, print(&words), || {
            format!(
                "page {} of level {} of record {}",
                at.index, at.level, tree.handle.0
            )
        }) {
            return;
        }
        self.report.pages += 1;
        let kind = if at.level == 0 {
            tree.shape.kind()
        } else {
            PageKind::Interior
        };
        let Some(page) = self.page(tree, at, entry, kind) else {
            return;
        };
        let beneath = if at.level == 0 {
            tree.shape.beneath(&page, at.index)
        } else {
            interior::beneath(&page)
        };
        let said = (entry.used, entry.highest, entry.summary);
        let found = (beneath.used, beneath.highest, beneath.summary);
        if entry.used != beneath.used || !at.root && said != found {
            let what = format!(
                "page {} of level {} of record {}: {found:?} beneath, its entry says {said:?}",
                at.index, at.level, tree.handle.0
            );
            self.report.problem("entry", what);
        }
        if at.level == 0 {
            self.leaf(tree, at.index, entry, &page);
            return;
        }
        for n in 0..interior::FANOUT {
            let Some(below) = interior::child(&page, n).present() else {
                continue;
            };
            if below.is_lost() {
                self.report.lost += 1;
                continue;
            }
            let index = at.index * interior::FANOUT + n;
            if below.generation > entry.generation {
                let what = format!(
                    "page {index} of level {} of record {} is newer than the page above",
                    at.level - 1,
                    tree.handle.0
                );
                self.report.problem("entry", what);
            }
            let at = At {
                level: at.level - 1,
                index,
                root: false,
            };
            self.walk(tree, at, &below);
        }
    }

    fn leaf(&mut self, tree: &Tree, leaf: u64, above: &ChildEntry, page: &Page) {
        for slot in 0..tree.shape.slots(leaf) {
            let entry = tree.shape.entry(page, slot);
            let lane_block = tree.shape.block_of(leaf, slot);
            self.report.poisoned += u64::from(entry.kind == EntryKind::Poison);
            if entry.kind != EntryKind::Absent && entry.generation > above.generation {
                let what = format!(
                    "lane block {} of record {} is newer than its leaf",
                    lane_block.0, tree.handle.0
                );
                self.report.problem("entry", what);
            }
            let Some(block) = entry.block() else { continue };
            let words = [
                2,
                lane_block.0,
                tree.family.0.into(),
                entry.crc.0.into(),
                entry.stamp.epoch.into(),
                entry.stamp.seq,
                entry.generation.0.into(),
            ];
            let what = || format!("lane block {} of record {}", lane_block.0, tree.handle.0);
            if self.mark(block, print(&words), what) {
                self.report.data += 1;
                self.data(block, entry.crc, what);
            }
        }
    }

    /// Marks a block; false if it was reached before.
    pub(super) fn mark(
        &mut self,
        at: PhysicalBlock,
        print: u32,
        what: impl Fn() -> String,
    ) -> bool {
        match self.marks.mark(at, print) {
            Marked::First => true,
            Marked::Again => false,
            Marked::Otherwise => {
                let what = format!("block {} is of {}, and of something else", at.0, what());
                self.report.problem("shared", what);
                false
            }
            Marked::Outside => {
                let what = format!("block {} of {} is in no group", at.0, what());
                self.report.problem("entry", what);
                false
            }
        }
    }

    /// Compares a data block, if that was asked for.
    pub(super) fn data(&mut self, at: PhysicalBlock, crc: Crc, what: impl Fn() -> String) {
        if !self.options.data {
            return;
        }
        self.report.data_read += 1;
        let Some(bytes) = self.read(at, "data") else {
            return;
        };
        let found = Crc::of(&bytes[..]);
        if found != crc {
            let what = format!(
                "{}, block {}: checksum {found:?} where {crc:?} was written",
                what(),
                at.0
            );
            self.report.problem("data", what);
        }
    }
}
