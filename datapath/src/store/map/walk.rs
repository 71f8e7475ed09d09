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
        child,
        from: from_leaf,
        leaves_max: leaves_max.max(1),
        leaves: Cell::new(0),
        freed: Cell::new(0),
        frees: true,
    };
    let next = walk.run().await?;
    Ok(GivenUp {
        next,
        leaves: walk.leaves.get(),
    })
}

/// Blocks that a deletion would free, data and pages: the same walk, which frees nothing.
///
/// # Errors
/// [`MapError`].
pub async fn count_unique<P: Pages>(
    pages: &P,
    root: &Root,
    own: Generation,
    child: Option<&Root>,
) -> Result<u64, MapError> {
    let walk = Walk {
        pages,
        root,
        own,
        child,
        from: 0,
        leaves_max: u32::MAX,
        leaves: Cell::new(0),
        freed: Cell::new(0),
        frees: false,
    };
    walk.run().await?;
    Ok(walk.freed.get())
}

struct Walk<'a, P> {
    pages: &'a P,
    root: &'a Root,
    own: Generation,
    child: Option<&'a Root>,
    from: u64,
    leaves_max: u32,
    leaves: Cell<u32>,
    freed: Cell<u64>,
    frees: bool,
}

impl<P: Pages> Walk<'_, P> {
    async fn run(&self) -> Result<Option<u64>, MapError> {
        let level = self.root.depth;
        let other = match Side::top(self.pages, self.child, level).await {
            Err(MapError::Lost) => Side::Nothing,
            top => match self.or_damaged(self.root.page(level, 0), top)? {
                Some(top) => top,
                // What the child has of this map is not known at all.
                None => return Ok(None),
            },
        };
        if !self.concerns(level, 0, &self.root.child, &other) {
            return Ok(None);
        }
        if level == 0 {
            return self.leaves(&[(0, self.root.child, other)]).await;
        }
        self.interior(level, 0, self.root.child, other).await
    }

    /// Whether there may be something to free in a subtree.
    fn concerns(&self, level: u8, index: u64, entry: &ChildEntry, other: &Side) -> bool {
        let (_, last) = leaves_of_page(level, index);
        // Nothing beneath is newer than the page.
        let own = !entry.is_none() && !entry.is_lost() && entry.generation > self.own;
        own && last >= self.from && !self.shares(entry.block, other.entry().map(|e| e.block))
    }

    fn shares(&self, block: PhysicalBlock, theirs: Option<PhysicalBlock>) -> bool {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::DeletionFreesShared) {
            return false;
        }
        theirs == Some(block)
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
        other: Side,
    ) -> Step<'_, Option<u64>> {
        Box::pin(async move {
            let what = self.root.page(level, index);
            let page = self.pages.read(entry.block, entry.crc, what).await;
            let page = self.or_damaged(what, page)?;
            let other = known(other);
            let theirs = other.read(self.pages, self.child, level, index).await;
            let theirs = self.or_damaged(what, theirs)?;
            let (Some(page), Some(theirs)) = (page, theirs) else {
                self.free(entry.block);
                self.spend();
                return Ok(None);
            };
            let mut concerned = Vec::new();
            for n in 0..FANOUT {
                let below = child(&page, n);
                let other = other.below(self.child, theirs.as_ref(), level, n);
                if self.concerns(level - 1, index * FANOUT + n, &below, &other) {
                    concerned.push((index * FANOUT + n, below, other));
                }
            }
            let stopped = if level == 1 {
                self.leaves(&concerned).await?
            } else {
                self.interiors(level - 1, &concerned).await?
            };
            self.pages.breathe().await;
            if stopped.is_none() {
                self.free(entry.block);
                self.spend();
            }
            Ok(stopped)
        })
    }

    async fn interiors(
        &self,
        level: u8,
        concerned: &[(u64, ChildEntry, Side)],
    ) -> Result<Option<u64>, MapError> {
        for (index, entry, other) in concerned {
            if self.is_spent() {
                let (first, _) = leaves_of_page(level, *index);
                return Ok(Some(first.max(self.from)));
            }
            let stopped = self.interior(level, *index, *entry, *other).await?;
            if stopped.is_some() {
                return Ok(stopped);
            }
        }
        Ok(None)
    }

    async fn leaves(&self, concerned: &[(u64, ChildEntry, Side)]) -> Result<Option<u64>, MapError> {
        let left = self.leaves_max.saturating_sub(self.leaves.get()) as usize;
        let now = &concerned[..concerned.len().min(left)];
        let mut wanted: Vec<(PhysicalBlock, Crc, PageId)> = Vec::new();
        for (leaf, entry, _) in now {
            wanted.push((entry.block, entry.crc, self.root.page(0, *leaf)));
        }
        for (leaf, _, other) in now {
            if let (Some(theirs), Some(root)) = (known(*other).entry(), self.child) {
                wanted.push((theirs.block, theirs.crc, root.page(0, *leaf)));
            }
        }
        let mut ours = self.pages.read_each(&wanted).await;
        let mut theirs = ours.split_off(now.len()).into_iter();
        for ((leaf, entry, other), page) in now.iter().zip(ours) {
            let what = self.root.page(0, *leaf);
            let page = self.or_damaged(what, page)?;
            let theirs = known(*other)
                .entry()
                .map(|_| theirs.next().expect("one for each"));
            let theirs = self.or_damaged(what, theirs.transpose())?;
            if let (Some(page), Some(theirs)) = (page, theirs) {
                self.leaf(*leaf, &page, theirs.as_deref());
            }
            self.free(entry.block);
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

    fn leaf(&self, leaf: u64, page: &Page, theirs: Option<&Page>) {
        let shape = self.root.shape();
        for slot in 0..shape.slots(leaf) {
            let entry = shape.entry(page, slot);
            if let Some(block) = entry.block()
                && entry.generation > self.own
                && !self.shares(block, theirs.and_then(|p| shape.entry(p, slot).block()))
            {
                self.free(block);
            }
        }
    }

    fn free(&self, block: PhysicalBlock) {
        self.freed.set(self.freed.get() + 1);
        if self.frees {
            self.pages.free(block);
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
