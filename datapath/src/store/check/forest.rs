//! The catalogue, and the maps that its records have.

use std::collections::BTreeMap;

use super::super::map::interior::{self, DEPTH_MAX};
use super::super::map::{
    CATALOGUE_LEAF_RECORDS, CatalogueRecord, ChildEntry, LeafShape, PageKind, RecordKind, catalogue,
};
use super::super::types::CatalogueHandle;
use super::Checker;
use super::marks::print;
use super::tree::{At, Tree};

impl Checker<'_> {
    /// Reads all records.
    pub(super) fn catalogue(&mut self) {
        let Some(root) = ChildEntry::decode(&self.superblock.catalogue_root) else {
            self.complete = false;
            self.report
                .problem("catalogue", "its root is no child entry".to_owned());
            return;
        };
        let depth = u8::try_from(self.superblock.catalogue_depth).ok();
        let Some(depth) = depth.filter(|d| *d <= DEPTH_MAX) else {
            self.complete = false;
            let what = format!("depth {}", self.superblock.catalogue_depth);
            self.report.problem("catalogue", what);
            return;
        };
        if let Some(root) = root.present() {
            let at = At {
                level: depth,
                index: 0,
                root: true,
            };
            self.catalogue_page(at, &root);
        }
        self.records();
    }

    fn catalogue_page(&mut self, at: At, entry: &ChildEntry) {
        let tree = Tree {
            handle: CatalogueHandle(0),
            family: CatalogueHandle(0),
            shape: LeafShape::Plain,
            walked: 0,
        };
        let words = [3, at.level.into(), at.index, entry.crc.0.into()];
        if !self.mark(entry.block, print(&words), || {
            format!("catalogue page {} of level {}", at.index, at.level)
        }) {
            let what = format!(
                "catalogue page {} of level {} is reached twice",
                at.index, at.level
            );
            self.report.problem("catalogue", what);
            return;
        }
        self.report.pages += 1;
        let kind = if at.level == 0 {
            PageKind::CatalogueLeaf
        } else {
            PageKind::Interior
        };
        let Some(page) = self.page(&tree, at, entry, kind) else {
            return;
        };
        if at.level > 0 {
            for n in 0..interior::FANOUT {
                if let Some(below) = interior::child(&page, n).present() {
                    let at = At {
                        level: at.level - 1,
                        index: at.index * interior::FANOUT + n,
                        root: false,
                    };
                    self.catalogue_page(at, &below);
                }
            }
            return;
        }
        for n in 0..CATALOGUE_LEAF_RECORDS {
            if let Some(record) = catalogue::record(&page, n) {
                let handle = at.index * CATALOGUE_LEAF_RECORDS as u64 + n as u64;
                self.catalogue
                    .insert(CatalogueHandle(handle as u32), record);
            }
        }
    }

    /// What records must be beside each other.
    fn records(&mut self) {
        let mut wrong = Vec::new();
        let mut names = BTreeMap::new();
        for (handle, record) in &self.catalogue {
            let mut bad = |what: String| wrong.push(format!("record {}: {what}", handle.0));
            if *handle >= self.superblock.next_handle {
                bad(format!("handle {} was not given out yet", handle.0));
            }
            if record.generation >= self.superblock.next_generation {
                bad(format!(
                    "generation {} was not given out yet",
                    record.generation.0
                ));
            }
            if record.parent.0 != 0 {
                match self.catalogue.get(&record.parent) {
                    None => bad(format!("its parent {} does not exist", record.parent.0)),
                    Some(p) if p.kind == RecordKind::Live => {
                        bad("its parent is a live lane".to_owned())
                    }
                    Some(p) if p.generation >= record.generation => {
                        bad("it is no newer than its parent".to_owned())
                    }
                    Some(p) if p.sealed != record.sealed => {
                        bad("its parent has other leaves".to_owned())
                    }
                    Some(_) => {}
                }
            }
            let slot = match record.kind {
                RecordKind::Live => 0,
                RecordKind::Snapshot => 1,
                RecordKind::Hidden => 2,
                RecordKind::Deleting | RecordKind::Arriving => 3,
            };
            self.report.roots[slot] += 1;
            if matches!(record.kind, RecordKind::Live | RecordKind::Snapshot)
                && names
                    .insert((record.volume, record.lane, record.snapshot), *handle)
                    .is_some()
            {
                bad(format!(
                    "a second record of lane {} of volume {}",
                    record.lane, record.volume
                ));
            }
        }
        for what in wrong {
            self.report.problem("catalogue", what);
        }
    }

    /// The oldest ancestor of a record.
    fn family(&self, handle: CatalogueHandle) -> CatalogueHandle {
        let mut at = handle;
        // Parents are older, so there is no circle; damage may make one.
        for _ in 0..self.catalogue.len() {
            match self.catalogue.get(&at).map(|r| r.parent) {
                Some(parent) if parent.0 != 0 => at = parent,
                _ => break,
            }
        }
        at
    }

    /// Walks every map.
    pub(super) fn forest(&mut self) {
        let mut records: Vec<(CatalogueHandle, CatalogueRecord)> = self
            .catalogue
            .iter()
            .map(|(h, r)| (*h, r.clone()))
            .collect();
        // What is given up in part last: of a page that others have too, all is walked.
        records.sort_by_key(|(handle, record)| (record.walked, *handle));
        for (handle, record) in records {
            let Some(root) = record.map.present() else {
                continue;
            };
            let tree = Tree {
                handle,
                family: self.family(handle),
                shape: LeafShape::of(record.sealed),
                walked: record.walked,
            };
            let at = At {
                level: record.depth,
                index: 0,
                root: true,
            };
            self.walk(&tree, at, &root);
        }
    }
}
