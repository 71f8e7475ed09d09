//! A lane's map, from its root down (`docs/store-format.md` §6).

use std::rc::Rc;

use super::interior::{ChildEntry, FANOUT, NO_STAMP, beneath, child, leaves_of_level};
use super::leaf::LeafShape;
use super::page::{Page, PageId, PageKind};
use super::{MapError, Pages};
use crate::replication::summary::of_children;

/// Root of a map: the page at the top, and how many interior levels there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The page; stamp and summary are zero, for a catalogue record does not keep them.
    pub child: ChildEntry,
    /// Its level; 0: the page is leaf 0.
    pub depth: u8,
    /// Leaves have tags.
    pub sealed: bool,
}

impl Root {
    /// From a child entry.
    pub fn new(child: ChildEntry, depth: u8, sealed: bool) -> Self {
        Self {
            child: ChildEntry {
                highest: NO_STAMP,
                summary: 0,
                ..child
            },
            depth: if child.is_none() { 0 } else { depth },
            sealed,
        }
    }

    /// A map without pages.
    pub fn empty(sealed: bool) -> Self {
        Self::new(ChildEntry::NONE, 0, sealed)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.child.is_none()
    }

    /// How its leaves are laid out.
    pub fn shape(&self) -> LeafShape {
        LeafShape::of(self.sealed)
    }

    /// What a page of this tree must be.
    pub(super) fn page(&self, level: u8, index: u64) -> PageId {
        PageId {
            kind: if level == 0 {
                self.shape().kind()
            } else {
                PageKind::Interior
            },
            level,
            index,
        }
    }
}

/// Which child of a page of `level` leads to a leaf.
#[inline]
const fn step(leaf: u64, level: u8) -> u64 {
    leaf / leaves_of_level(level - 1) % FANOUT
}

/// A leaf, if the map has it.
///
/// # Errors
/// [`MapError`]: a page on the way could not be read.
pub async fn leaf<P: Pages>(
    pages: &P,
    root: &Root,
    leaf: u64,
) -> Result<Option<Rc<Page>>, MapError> {
    if leaf >= leaves_of_level(root.depth) {
        return Ok(None);
    }
    let mut entry = root.child;
    let mut level = root.depth;
    loop {
        if entry.is_none() {
            return Ok(None);
        }
        let what = root.page(level, leaf / leaves_of_level(level));
        let page = pages.read(entry.block, entry.crc, what).await?;
        if level == 0 {
            return Ok(Some(page));
        }
        entry = child(&page, step(leaf, level));
        level -= 1;
    }
}

/// A leaf, if the map has it, and `None` if a page that says so is not in the cache.
pub fn leaf_cached<P: Pages>(pages: &P, root: &Root, leaf: u64) -> Option<Option<Rc<Page>>> {
    if leaf >= leaves_of_level(root.depth) {
        return Some(None);
    }
    let mut entry = root.child;
    let mut level = root.depth;
    loop {
        if entry.is_none() {
            return Some(None);
        }
        let page = pages.cached(entry.block)?;
        if level == 0 {
            return Some(Some(page));
        }
        entry = child(&page, step(leaf, level));
        level -= 1;
    }
}

/// What resync compares, of the node of this level and number (`docs/store-format.md` §6); 0: nothing is there. A root's is not kept, so its page is read.
///
/// # Errors
/// [`MapError`]: a page on the way could not be read, or the node was lost.
pub async fn summary<P: Pages>(
    pages: &P,
    root: &Root,
    level: u8,
    index: u64,
) -> Result<u32, MapError> {
    let depth = root.depth;
    if level >= depth {
        if index != 0 || root.is_empty() {
            return Ok(0);
        }
        let page = pages
            .read(root.child.block, root.child.crc, root.page(depth, 0))
            .await?;
        let mut found = match depth {
            0 => root.shape().beneath(&page, 0).summary,
            _ => beneath(&page).summary,
        };
        for _ in depth..level {
            let mut children = [0; FANOUT as usize];
            children[0] = found;
            found = of_children(&children);
        }
        return Ok(found);
    }
    if index >= leaves_of_level(depth - level) {
        return Ok(0);
    }
    let mut entry = root.child;
    for at in (level + 1..=depth).rev() {
        if entry.is_none() {
            return Ok(0);
        }
        let number = index / leaves_of_level(at - level);
        let page = pages
            .read(entry.block, entry.crc, root.page(at, number))
            .await?;
        entry = child(&page, index / leaves_of_level(at - 1 - level) % FANOUT);
    }
    match entry.is_lost() {
        true => Err(MapError::Lost),
        false => Ok(entry.summary),
    }
}
