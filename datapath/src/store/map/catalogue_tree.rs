//! The catalogue's tree (`docs/store-format.md` §8). Its owner has all records in memory; leaves in which one changed are written anew,
//! and what they replace is freed: nothing else refers to it. Used, stamp and summary of its child entries are zero.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::types::{CatalogueHandle, Generation};
use super::author::Author;
use super::catalogue::{CATALOGUE_LEAF_RECORDS, CatalogueRecord, record, set_record};
use super::interior::{
    self, Beneath, ChildEntry, DEPTH_MAX, FANOUT, child, leaves_of_level, leaves_of_page, set_child,
};
use super::merge::Step;
use super::page::{Page, PageId, PageKind, blank};
use super::{MapError, Pages};

/// All records of a leaf.
pub type CatalogueLeaf = Vec<(CatalogueHandle, CatalogueRecord)>;

fn page_id(level: u8, index: u64) -> PageId {
    PageId {
        kind: if level == 0 {
            PageKind::CatalogueLeaf
        } else {
            PageKind::Interior
        },
        level,
        index,
    }
}

/// A depth as the superblock has it.
fn checked_depth(depth: u32) -> Result<u8, MapError> {
    let fits = u8::try_from(depth).ok().filter(|d| *d <= DEPTH_MAX);
    fits.ok_or(MapError::Depth { depth })
}

/// Writes leaves of the catalogue, each with all its records (none: the leaf goes); the answer is the new root and depth. `all` has the records
/// of any leaf, the changed ones too: what is beneath an interior page that is damaged is written anew.
///
/// # Errors
/// [`MapError`]. Then some of the work is done: the checkpoint must be given up.
pub async fn write_catalogue<P: Pages>(
    pages: &P,
    root: &ChildEntry,
    depth: u32,
    changed: &BTreeMap<u64, CatalogueLeaf>,
    all: &dyn Fn(u64) -> CatalogueLeaf,
) -> Result<(ChildEntry, u32), MapError> {
    let root_depth = checked_depth(depth)?;
    let mut depth = root_depth;
    let last = changed.iter().rfind(|(_, records)| !records.is_empty());
    let last = last.map_or(0, |(leaf, _)| *leaf);
    while last >= leaves_of_level(depth) {
        depth += 1;
    }
    let writer = Writer {
        author: Author {
            pages,
            handle: CatalogueHandle(0),
            generation: Generation(0),
        },
        root: *root,
        root_depth,
        changed,
        all,
    };
    let old = if depth == root_depth {
        *root
    } else {
        ChildEntry::NONE
    };
    let new = writer.page(depth, 0, old, false).await?;
    let depth = if new.is_none() { 0 } else { u32::from(depth) };
    Ok((new, depth))
}

struct Writer<'a, P> {
    author: Author<'a, P>,
    root: ChildEntry,
    root_depth: u8,
    changed: &'a BTreeMap<u64, CatalogueLeaf>,
    all: &'a dyn Fn(u64) -> CatalogueLeaf,
}

impl<P: Pages> Writer<'_, P> {
    /// A page with its changes; `anew`: with all records beneath, whatever was there.
    fn page(&self, level: u8, index: u64, old: ChildEntry, anew: bool) -> Step<'_, ChildEntry> {
        Box::pin(async move {
            let above_root = level > self.root_depth && index == 0 && !self.root.is_none();
            let (first, last) = leaves_of_page(level, index);
            let untouched = self.changed.range(first..=last).next().is_none();
            if untouched && !above_root && !anew {
                return Ok(old);
            }
            let (page, beneath) = if level == 0 {
                self.leaf(index, anew)
            } else {
                let page = self.interior(level, index, &old, above_root, anew).await?;
                let beneath = interior::beneath(&page);
                (page, beneath)
            };
            if !old.is_none() {
                self.author.pages.free_page(old.block);
            }
            if beneath.entries == 0 {
                return Ok(ChildEntry::NONE);
            }
            self.author
                .write(page_id(level, index), page, beneath)
                .await
        })
    }

    fn leaf(&self, leaf: u64, anew: bool) -> (Rc<Page>, Beneath) {
        let mut page = blank();
        let mut beneath = Beneath::NOTHING;
        let whole = if anew { (self.all)(leaf) } else { Vec::new() };
        let changed = self.changed.get(&leaf).filter(|_| !anew);
        for (handle, record) in changed.unwrap_or(&whole) {
            let records = CATALOGUE_LEAF_RECORDS as u64;
            let handle = u64::from(handle.0);
            assert_eq!(handle / records, leaf, "a record of another leaf");
            assert_ne!(handle, 0, "handle 0 is never used");
            let n = (handle % records) as usize;
            set_record(Rc::make_mut(&mut page), n, record);
            beneath.entries += 1;
        }
        (page, beneath)
    }

    async fn interior(
        &self,
        level: u8,
        index: u64,
        old: &ChildEntry,
        above_root: bool,
        mut anew: bool,
    ) -> Result<Rc<Page>, MapError> {
        let mut page = blank();
        if !old.is_none() {
            let what = page_id(level, index);
            match self.author.pages.read(old.block, old.crc, what).await {
                Ok(there) => page = there,
                Err(e) => {
                    self.author.pages.give_up_page(what, e)?;
                    anew = true;
                }
            }
        } else if above_root && level - 1 == self.root_depth {
            set_child(Rc::make_mut(&mut page), 0, &self.root);
        }
        for n in 0..FANOUT {
            let before = child(&page, n);
            let index = index * FANOUT + n;
            let after = self.page(level - 1, index, before, anew).await?;
            if after != before {
                set_child(Rc::make_mut(&mut page), n, &after);
            }
        }
        self.author.pages.breathe().await;
        Ok(page)
    }
}

/// Reads every record of the catalogue, in no order that means something.
///
/// # Errors
/// [`MapError`].
pub async fn read_catalogue<P: Pages>(
    pages: &P,
    root: &ChildEntry,
    depth: u32,
    mut each: impl FnMut(CatalogueHandle, CatalogueRecord),
) -> Result<(), MapError> {
    let depth = checked_depth(depth)?;
    // Pages of one level at a time, in parts: at most 64 for each level are waiting.
    let mut waiting = Vec::new();
    if !root.is_none() {
        waiting.push((depth, vec![(root.block, root.crc, page_id(depth, 0))]));
    }
    while let Some((level, wanted)) = waiting.pop() {
        let read = pages.read_many(&wanted).await?;
        for ((_, _, what), page) in wanted.iter().zip(&read) {
            if level == 0 {
                read_leaf(what.index, page, &mut each);
                continue;
            }
            let below = (0..FANOUT).filter_map(|n| {
                let child = child(page, n).present()?;
                let what = page_id(level - 1, what.index * FANOUT + n);
                Some((child.block, child.crc, what))
            });
            waiting.push((level - 1, below.collect()));
        }
        pages.breathe().await;
    }
    Ok(())
}

fn read_leaf(leaf: u64, page: &Page, each: &mut impl FnMut(CatalogueHandle, CatalogueRecord)) {
    for n in 0..CATALOGUE_LEAF_RECORDS {
        let handle = leaf * CATALOGUE_LEAF_RECORDS as u64 + n as u64;
        if let (Some(record), Ok(handle)) = (record(page, n), u32::try_from(handle)) {
            each(CatalogueHandle(handle), record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakePages, run};
    use super::*;

    fn records(handles: &[u32], size_bytes: u64) -> CatalogueLeaf {
        let record = CatalogueRecord {
            generation: Generation(1),
            size_bytes,
            ..CatalogueRecord::EMPTY
        };
        let records = handles
            .iter()
            .map(|h| (CatalogueHandle(*h), record.clone()));
        records.collect()
    }

    fn read(pages: &FakePages, root: &ChildEntry, depth: u32) -> Vec<(u32, u64)> {
        let mut found = Vec::new();
        let each = |h: CatalogueHandle, r: CatalogueRecord| found.push((h.0, r.size_bytes));
        run(read_catalogue(pages, root, depth, each)).expect("read");
        found.sort_unstable();
        found
    }

    #[test]
    fn leaves_come_change_and_go() {
        let pages = FakePages::default();
        let steps: [(u64, &[u32], u64, u32); 6] = [
            (0, &[1, 30], 7, 0),
            (1, &[31], 8, 1),
            (0, &[1], 9, 1),
            (138_547_332, &[u32::MAX], 10, 5),
            (0, &[], 0, 5),
            (1, &[], 0, 5),
        ];
        let (mut root, mut depth) = (ChildEntry::NONE, 0);
        let mut model = BTreeMap::new();
        for (leaf, handles, size, expected) in steps {
            let changed = BTreeMap::from([(leaf, records(handles, size))]);
            let written = write_catalogue(&pages, &root, depth, &changed, &|_| Vec::new());
            (root, depth) = run(written).expect("room");
            assert_eq!(depth, expected);
            model.insert(leaf, handles.iter().map(|h| (*h, size)).collect());
            let all: Vec<(u32, u64)> = model.values().flat_map(Vec::clone).collect();
            assert_eq!(read(&pages, &root, depth), all);
        }
        assert_eq!(pages.used.borrow().len(), 6);
        let changed = BTreeMap::from([(138_547_332, Vec::new())]);
        let written = write_catalogue(&pages, &root, depth, &changed, &|_| Vec::new());
        let gone = run(written).expect("room");
        assert_eq!(gone, (ChildEntry::NONE, 0));
        assert!(pages.used.borrow().is_empty());
    }

    #[test]
    fn many_records_are_one_leaf_each_31() {
        let pages = FakePages::default();
        let mut changed: BTreeMap<u64, CatalogueLeaf> = BTreeMap::new();
        for handle in 1..=5000 {
            let leaf = changed.entry(u64::from(handle) / 31).or_default();
            leaf.extend(records(&[handle], u64::from(handle)));
        }
        let none = |_| CatalogueLeaf::new();
        let written = write_catalogue(&pages, &ChildEntry::NONE, 0, &changed, &none);
        let (root, depth) = run(written).expect("room");
        assert_eq!(depth, 2);
        assert_eq!(pages.writes.get(), 162 + 3 + 1);
        let found = read(&pages, &root, depth);
        assert_eq!(
            found,
            (1..=5000).map(|h| (h, u64::from(h))).collect::<Vec<_>>()
        );
        // A damaged interior page: what is beneath is written anew from memory, and the rest stays as it is.
        let what = page_id(2, 0);
        let top = run(pages.read(root.block, root.crc, what)).expect("read");
        let (damaged, whole) = (child(&top, 1), child(&top, 0));
        pages.damage(damaged.block);
        let one = BTreeMap::from([(100, changed[&100].clone())]);
        let all = |leaf| changed.get(&leaf).cloned().unwrap_or_default();
        pages.writes.set(0);
        let (root, depth) = run(write_catalogue(&pages, &root, depth, &one, &all)).expect("room");
        assert_eq!(pages.writes.get(), 64 + 1 + 1);
        assert_eq!(*pages.given_up.borrow(), [page_id(1, 1)]);
        let top = run(pages.read(root.block, root.crc, what)).expect("read");
        assert_eq!(child(&top, 0), whole);
        assert_eq!(read(&pages, &root, depth), found);
        let refused = run(read_catalogue(&pages, &root, 200, |_, _| {}));
        assert_eq!(refused, Err(MapError::Depth { depth: 200 }));
    }
}
