//! Pages that a merge will read, read ahead: many at a time, level by level.
//!
//! Where changes lie far apart, each leaf has interior pages of its own above it, and a merge that goes down to one leaf after the other would wait for
//! each page by itself: three times for each change, which makes opening after a crash as long as it has changes. So before a merge
//! goes into a subtree with few enough changes it has the whole of it read, and holds it until it is through.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::types::{Crc, PhysicalBlock};
use super::interior::{ChildEntry, FANOUT, child, leaves_of_level};
use super::page::{Page, PageId};
use super::{Changes, Pages, Root};

/// Leaves that are read ahead, with what is above them: with 4 KiB for each page some 6 MiB where they are far apart.
pub const LEAVES_MAX: usize = 512;
/// Pages that are asked for before others may run.
const PAGES_AT_ONCE: usize = 32;

/// See the module's text.
#[derive(Default)]
pub(super) struct Ahead {
    pages: RefCell<BTreeMap<PhysicalBlock, Rc<Page>>>,
    /// The merge is inside a subtree that was read.
    inside: Cell<bool>,
}

impl Ahead {
    /// A page that was read ahead: each is asked for once.
    pub fn take(&self, at: PhysicalBlock) -> Option<Rc<Page>> {
        self.pages.borrow_mut().remove(&at)
    }

    /// The leaves from `first` to `last` that have changes, if it is worth while to read them ahead and there is room for them.
    pub fn leaves<C: Changes>(&self, changes: &C, first: u64, last: u64) -> Option<Vec<u64>> {
        if self.inside.get() {
            return None;
        }
        let mut leaves = Vec::new();
        let mut at = first;
        while let Some(leaf) = changes.next_leaf(at)
            && leaf <= last
        {
            if leaves.len() == LEAVES_MAX {
                return None;
            }
            leaves.push(leaf);
            at = leaf + 1;
        }
        (leaves.len() > 1).then_some(leaves)
    }

    /// Reads a page and what leads from it to some leaves, ascending; `wanted` says of a leaf whether it matters. What cannot be read is left
    /// to the merge, which knows what to do then.
    pub async fn fetch<P: Pages>(
        &self,
        pages: &P,
        root: &Root,
        (top, index, entry): (u8, u64, &ChildEntry),
        leaves: &[u64],
        wanted: impl Fn(u64, &ChildEntry) -> bool,
    ) {
        self.inside.set(true);
        let mut above: BTreeMap<u64, Rc<Page>> = BTreeMap::new();
        for level in (0..=top).rev() {
            let mut numbers: Vec<u64> = leaves.iter().map(|l| l / leaves_of_level(level)).collect();
            numbers.dedup();
            let mut list: Vec<(PhysicalBlock, Crc, PageId)> = Vec::with_capacity(numbers.len());
            for number in numbers {
                let entry = match level == top {
                    true => *entry,
                    false => match above.get(&(number / FANOUT)) {
                        Some(page) => child(page, number % FANOUT),
                        None => continue,
                    },
                };
                let there = !entry.is_none() && !entry.is_lost();
                if there && (level > 0 || wanted(number, &entry)) {
                    list.push((entry.block, entry.crc, root.page(level, number)));
                }
            }
            above.clear();
            for some in list.chunks(PAGES_AT_ONCE) {
                let read = pages.read_each(some).await;
                for ((at, _, what), page) in some.iter().zip(read) {
                    let Ok(page) = page else { continue };
                    above.insert(what.index, page.clone());
                    self.pages.borrow_mut().insert(*at, page);
                }
                pages.breathe().await;
            }
        }
        debug_assert!(top > 0 && index == leaves[0] / leaves_of_level(top));
    }

    /// The merge is through with the subtree.
    pub fn end(&self) {
        self.pages.borrow_mut().clear();
        self.inside.set(false);
    }
}
