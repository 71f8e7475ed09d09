//! Where two maps of a lane differ: for incremental backup, moves and resync. Subtrees that both share are passed at once.

use std::rc::Rc;

use super::super::types::{Crc, LaneBlock, PhysicalBlock};
use super::interior::{FANOUT, leaves_of_page};
use super::leaf::{LeafEntry, LeafShape};
use super::merge::Step;
use super::page::{Page, PageId};
use super::side::Side;
use super::{MapError, Pages, Root};

/// A range in which two roots differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffRange {
    /// First block of the lane.
    pub first: LaneBlock,
    /// How many.
    pub blocks: u64,
    /// False: the newer one has nothing there.
    pub data: bool,
}

/// Ranges from a block on in which `newer` differs from `older` (`None`: from nothing), ascending, at most `ranges_max` of them (at least
/// one), and where to go on if there are more.
///
/// # Errors
/// [`MapError`].
pub async fn diff<P: Pages>(
    pages: &P,
    older: Option<&Root>,
    newer: &Root,
    from: LaneBlock,
    ranges_max: usize,
) -> Result<(Vec<DiffRange>, Option<LaneBlock>), MapError> {
    let older = older.filter(|r| !r.is_empty());
    let level = newer.depth.max(older.map_or(0, |r| r.depth));
    let diff = Diff {
        pages,
        older,
        newer,
        shape: newer.shape(),
        from: from.0,
    };
    if let Some(older) = older {
        assert_eq!(older.sealed, newer.sealed, "two maps of one lane");
    }
    let mut found = Found {
        ranges: Vec::new(),
        ranges_max: ranges_max.max(1),
        next: None,
    };
    let a = Side::top(pages, older, level).await?;
    let b = Side::top(pages, Some(newer), level).await?;
    if level > 0 {
        diff.interior(level, 0, (a, b), &mut found).await?;
    } else if !a.is_shared(&b) {
        let a = a.read(pages, older, 0, 0).await?;
        let b = b.read(pages, Some(newer), 0, 0).await?;
        diff.leaf(0, a.as_deref(), b.as_deref(), &mut found);
    }
    Ok((found.ranges, found.next))
}

struct Found {
    ranges: Vec<DiffRange>,
    ranges_max: usize,
    next: Option<LaneBlock>,
}

impl Found {
    fn push(&mut self, block: LaneBlock, data: bool) {
        if let Some(last) = self.ranges.last_mut()
            && last.data == data
            && last.first.0 + last.blocks == block.0
        {
            last.blocks += 1;
        } else if self.ranges.len() == self.ranges_max {
            self.next = Some(block);
        } else {
            self.ranges.push(DiffRange {
                first: block,
                blocks: 1,
                data,
            });
        }
    }
}

struct Diff<'a, P> {
    pages: &'a P,
    older: Option<&'a Root>,
    newer: &'a Root,
    shape: LeafShape,
    from: u64,
}

impl<P: Pages> Diff<'_, P> {
    fn interior<'b>(
        &'b self,
        level: u8,
        index: u64,
        (a, b): (Side, Side),
        found: &'b mut Found,
    ) -> Step<'b, ()> {
        Box::pin(async move {
            let (first, last) = leaves_of_page(level, index);
            if a.is_shared(&b) || self.shape.blocks(first, last).end <= self.from {
                return Ok(());
            }
            let old = a.read(self.pages, self.older, level, index).await?;
            let newer = Some(self.newer);
            let new = b.read(self.pages, newer, level, index).await?;
            let sides = (0..FANOUT).map(|n| {
                let a = a.below(self.older, old.as_ref(), level, n);
                let b = b.below(newer, new.as_ref(), level, n);
                (index * FANOUT + n, a, b)
            });
            if level == 1 {
                let leaf_from = self.shape.leaf_of(LaneBlock(self.from)).0;
                let differ = sides.filter(|(leaf, a, b)| *leaf >= leaf_from && !a.is_shared(b));
                self.leaves(&differ.collect::<Vec<_>>(), found).await?;
            } else {
                for (index, a, b) in sides {
                    self.interior(level - 1, index, (a, b), found).await?;
                    if found.next.is_some() {
                        break;
                    }
                }
            }
            self.pages.breathe().await;
            Ok(())
        })
    }

    async fn leaves(
        &self,
        differ: &[(u64, Side, Side)],
        found: &mut Found,
    ) -> Result<(), MapError> {
        let mut wanted: Vec<(PhysicalBlock, Crc, PageId)> = Vec::new();
        for (leaf, a, b) in differ {
            for entry in [a, b].into_iter().filter_map(Side::entry) {
                wanted.push((entry.block, entry.crc, self.newer.page(0, *leaf)));
            }
        }
        let mut read = self.pages.read_many(&wanted).await?.into_iter();
        for (leaf, a, b) in differ {
            let mut page =
                |side: &Side| -> Option<Rc<Page>> { side.entry().and_then(|_| read.next()) };
            let (old, new) = (page(a), page(b));
            self.leaf(*leaf, old.as_deref(), new.as_deref(), found);
            if found.next.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn leaf(&self, leaf: u64, old: Option<&Page>, new: Option<&Page>, found: &mut Found) {
        let entry = |page: Option<&Page>, slot| {
            page.map_or(LeafEntry::ABSENT, |page| self.shape.entry(page, slot))
        };
        for slot in 0..self.shape.slots(leaf) {
            let block = self.shape.block_of(leaf, slot);
            let (old, new) = (entry(old, slot), entry(new, slot));
            if block.0 < self.from || old.same_content(&new) {
                continue;
            }
            found.push(block, new != LeafEntry::ABSENT);
            if found.next.is_some() {
                return;
            }
        }
    }
}
