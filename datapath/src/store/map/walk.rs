//! Walks over a whole map, in steps: deletions give up what nobody else refers to, scrub looks at everything (`docs/store-format.md` §7).
//!
//! A deletion of X with one child c goes over the leaves of X in order. What it finds of X's own, and c does not have at the same place,
//! is freed; what c has there too becomes c's when the position passes it. A page's place is its last leaf, so it is looked at when everything
//! beneath was. Subtrees that both have are passed at once. Below the position c frees what it replaces, at and above it X will: each block is
//! freed exactly once, however the child changes between two steps.
//!
//! A page that is damaged is given up: of what it led to, or of what X has where the child's page is damaged, nothing is freed (§15).
//!
//! This needs a line that holds still otherwise: no step of X while its parent or its child is in the middle of a walk itself.

use std::cell::Cell;
use std::rc::Rc;

use super::super::types::{Crc, Generation, PhysicalBlock};
use super::interior::{ChildEntry, FANOUT, child, leaves_of_level, leaves_of_page};
use super::merge::Step;
use super::page::{Page, PageId};
use super::side::Side;
use super::{MapError, Pages, Root};

/// How far a step of a deletion came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Leaves below this one are given up; `None`: all, and X can be forgotten.
    pub next: Option<u64>,
    /// Leaves and pages that were looked at: the cost.
    pub leaves: u32,
}

/// Gives up what X alone refers to, from a leaf on, and at most about `leaves_max` leaves; at least one, so repeating it ends. `own` is
/// the generation that X's parent closed, `child` the root of the only one that descends from X, as it is now.
///
/// # Errors
/// [`MapError`]. Then some of the work is done: the checkpoint must be given up.
pub async fn give_up<P: Pages>(
    pages: &P,
    root: &Root,
    own: Generation,
    child: Option<&Root>,
    from_leaf: u64,
    leaves_max: u32,
) -> Result<GivenUp, MapError> {
    let walk = Walk {
        pages,
        root,
        own,
        others: child.map_or(&[], std::slice::from_ref),
        from: from_leaf,
        leaves_max: leaves_max.max(1),
        leaves: Cell::new(0),
        found: Cell::default(),
        frees: true,
    };
    let next = walk.run().await?;
    Ok(GivenUp {
        next,
        leaves: walk.leaves.get(),
    })
}

/// Blocks that nothing else refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unique {
    /// Of data.
    pub data: u64,
    /// Pages of the map.
    pub pages: u64,
}

/// Blocks above a generation that a map has and none of `others` at the same place: with one that descends from it, those that a deletion would
/// free. The same walk, which frees nothing.
///
/// # Errors
/// [`MapError`].
pub async fn count_unique<P: Pages>(
    pages: &P,
    root: &Root,
    own: Generation,
    others: &[Root],
) -> Result<Unique, MapError> {
    let walk = Walk {
        pages,
        root,
        own,
        others,
        from: 0,
        leaves_max: u32::MAX,
        leaves: Cell::new(0),
        found: Cell::default(),
        frees: false,
    };
    walk.run().await?;
    Ok(walk.found.get())
}

struct Walk<'a, P> {
    pages: &'a P,
    root: &'a Root,
    own: Generation,
    others: &'a [Root],
    from: u64,
    leaves_max: u32,
    leaves: Cell<u32>,
    found: Cell<Unique>,
    frees: bool,
}

/// What each of the others has at a place.
type Theirs = Vec<Side>;

impl<P: Pages> Walk<'_, P> {
    async fn run(&self) -> Result<Option<u64>, MapError> {
        let level = self.root.depth;
        let mut theirs = Theirs::with_capacity(self.others.len());
        for other in self.others {
            theirs.push(match Side::top(self.pages, Some(other), level).await {
                Err(MapError::Lost) => Side::Nothing,
                top => match self.or_damaged(self.root.page(level, 0), top)? {
                    Some(top) => top,
                    // What the child has of this map is not known at all.
                    None => return Ok(None),
                },
            });
        }
        if !self.concerns(level, 0, &self.root.child, &theirs) {
            return Ok(None);
        }
        if level == 0 {
            return self.leaves(&[(0, self.root.child, theirs)]).await;
        }
        self.interior(level, 0, self.root.child, theirs).await
    }

    /// Whether there may be something to free in a subtree.
    fn concerns(&self, level: u8, index: u64, entry: &ChildEntry, theirs: &[Side]) -> bool {
        let (_, last) = leaves_of_page(level, index);
        // Nothing beneath is newer than the page.
        let own = !entry.is_none() && !entry.is_lost() && entry.generation > self.own;
        let mut blocks = theirs.iter().filter_map(|s| Some(s.entry()?.block));
        own && last >= self.from && !blocks.any(|b| self.shares(entry.block, b))
    }

    fn shares(&self, block: PhysicalBlock, theirs: PhysicalBlock) -> bool {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::DeletionFreesShared) {
            return false;
        }
        theirs == block
    }

    fn is_spent(&self) -> bool {
        self.leaves.get() >= self.leaves_max
    }

    fn spend(&self) {
        self.leaves.set(self.leaves.get().saturating_add(1));
    }

    /// An interior page and what is beneath, which concerns the walk. If it does not come to its end: where it stopped.
    fn interior(
        &self,
        level: u8,
        index: u64,
        entry: ChildEntry,
        theirs: Theirs,
    ) -> Step<'_, Option<u64>> {
        Box::pin(async move {
            let what = self.root.page(level, index);
            let page = self.pages.read(entry.block, entry.crc, what).await;
            let page = self.or_damaged(what, page)?;
            let mut read = Vec::with_capacity(theirs.len());
            for (side, root) in theirs.iter().zip(self.others) {
                let side = known(*side);
                let page = side.read(self.pages, Some(root), level, index).await;
                read.extend(self.or_damaged(what, page)?.map(|page| (side, root, page)));
            }
            let Some(page) = page.filter(|_| read.len() == theirs.len()) else {
                self.free_page(entry.block);
                self.spend();
                return Ok(None);
            };
            let mut concerned = Vec::new();
            for n in 0..FANOUT {
                let below = child(&page, n);
                let theirs = read.iter();
                let theirs = theirs
                    .map(|(side, root, page)| side.below(Some(root), page.as_ref(), level, n));
                let theirs: Theirs = theirs.collect();
                if self.concerns(level - 1, index * FANOUT + n, &below, &theirs) {
                    concerned.push((index * FANOUT + n, below, theirs));
                }
            }
            let stopped = if level == 1 {
                self.leaves(&concerned).await?
            } else {
                self.interiors(level - 1, &concerned).await?
            };
            self.pages.breathe().await;
            if stopped.is_none() {
                self.free_page(entry.block);
                self.spend();
            }
            Ok(stopped)
        })
    }

    async fn interiors(
        &self,
        level: u8,
        concerned: &[(u64, ChildEntry, Theirs)],
    ) -> Result<Option<u64>, MapError> {
        for (index, entry, theirs) in concerned {
            if self.is_spent() {
                let (first, _) = leaves_of_page(level, *index);
                return Ok(Some(first.max(self.from)));
            }
            let stopped = self.interior(level, *index, *entry, theirs.clone()).await?;
            if stopped.is_some() {
                return Ok(stopped);
            }
        }
        Ok(None)
    }

    async fn leaves(
        &self,
        concerned: &[(u64, ChildEntry, Theirs)],
    ) -> Result<Option<u64>, MapError> {
        let left = self.leaves_max.saturating_sub(self.leaves.get()) as usize;
        let now = &concerned[..concerned.len().min(left)];
        let mut wanted: Vec<(PhysicalBlock, Crc, PageId)> = Vec::new();
        for (leaf, entry, _) in now {
            wanted.push((entry.block, entry.crc, self.root.page(0, *leaf)));
        }
        for (leaf, _, theirs) in now {
            for (side, root) in theirs.iter().zip(self.others) {
                if let Some(theirs) = known(*side).entry() {
                    wanted.push((theirs.block, theirs.crc, root.page(0, *leaf)));
                }
            }
        }
        let mut ours = self.pages.read_each(&wanted).await;
        let mut theirs = ours.split_off(now.len()).into_iter();
        for ((leaf, entry, sides), page) in now.iter().zip(ours) {
            let what = self.root.page(0, *leaf);
            let mut page = self.or_damaged(what, page)?;
            let mut others = Vec::new();
            for _ in sides.iter().filter(|s| known(**s).entry().is_some()) {
                match self.or_damaged(what, theirs.next().expect("one for each"))? {
                    Some(theirs) => others.push(theirs),
                    None => page = None,
                }
            }
            if let Some(page) = page {
                self.leaf(*leaf, &page, &others);
            }
            self.free_page(entry.block);
            self.spend();
        }
        Ok(concerned.get(now.len()).map(|(leaf, _, _)| *leaf))
    }

    /// `None`: it is damaged, and given up. Who only counts cannot know then.
    fn or_damaged<T>(
        &self,
        what: PageId,
        read: Result<T, MapError>,
    ) -> Result<Option<T>, MapError> {
        match read {
            Ok(page) => Ok(Some(page)),
            Err(e) if !self.frees => Err(e),
            Err(e) => self.pages.give_up_page(what, e).map(|()| None),
        }
    }

    fn leaf(&self, leaf: u64, page: &Page, theirs: &[Rc<Page>]) {
        let shape = self.root.shape();
        for slot in 0..shape.slots(leaf) {
            let entry = shape.entry(page, slot);
            let Some(block) = entry.block().filter(|_| entry.generation > self.own) else {
                continue;
            };
            let mut theirs = theirs.iter().filter_map(|p| shape.entry(p, slot).block());
            if theirs.any(|b| self.shares(block, b)) {
                continue;
            }
            let found = self.found.get();
            let data = found.data + 1;
            self.found.set(Unique { data, ..found });
            if self.frees {
                self.pages.free(block);
            }
        }
    }

    fn free_page(&self, block: PhysicalBlock) {
        let found = self.found.get();
        let pages = found.pages + 1;
        self.found.set(Unique { pages, ..found });
        if self.frees {
            self.pages.free_page(block);
        }
    }
}

/// What the child lost it does not refer to any more.
fn known(side: Side) -> Side {
    match side {
        Side::Page(entry) if entry.is_lost() => Side::Nothing,
        side => side,
    }
}

/// The first leaf at or behind a place that a map has and, if `own` is given, that was written above that generation: what is below is the
/// parent's too. Subtrees without such leaves are passed.
///
/// # Errors
/// [`MapError`].
pub async fn next_entries<P: Pages>(
    pages: &P,
    root: &Root,
    own: Option<Generation>,
    from_leaf: u64,
) -> Result<Option<(u64, Rc<Page>)>, MapError> {
    let wanted = |entry: &ChildEntry| {
        let there = !entry.is_none() && !entry.is_lost();
        there && own.is_none_or(|generation| entry.generation > generation)
    };
    let mut from = from_leaf;
    'from_root: while from < leaves_of_level(root.depth) && wanted(&root.child) {
        let (mut entry, mut index) = (root.child, 0);
        for level in (1..=root.depth).rev() {
            let what = root.page(level, index);
            let page = pages.read(entry.block, entry.crc, what).await?;
            let (first, last) = leaves_of_page(level, index);
            let span = leaves_of_level(level - 1);
            let here = (from - first) / span;
            let Some(n) = (here..FANOUT).find(|n| wanted(&child(&page, *n))) else {
                pages.breathe().await;
                from = last + 1;
                continue 'from_root;
            };
            if n > here {
                from = first + n * span;
            }
            (entry, index) = (child(&page, n), index * FANOUT + n);
        }
        let what = root.page(0, index);
        let page = pages.read(entry.block, entry.crc, what).await?;
        return Ok(Some((index, page)));
    }
    Ok(None)
}
