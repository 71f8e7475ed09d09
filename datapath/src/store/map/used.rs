//! How many data blocks a map would have with layers of the delta over it, exactly (`docs/store-format.md` §14).
//!
//! Whether an entry of the delta is a new block or replaces one is said only by the leaf beneath, which a write does not read. So it is found
//! out when somebody asks: what no layer touches is known from the entries that lead to it, and only leaves that layers cover in part are read.

use std::rc::Rc;

use super::super::types::LaneBlock;
use super::changes::Touch;
use super::interior::{FANOUT, leaves_of_level, leaves_of_page};
use super::leaf::EntryKind;
use super::merge::Step;
use super::page::Page;
use super::side::Side;
use super::{Changes, MapError, Pages, Root};

/// Data blocks of a map beneath `layers`, the oldest first. Each leaf is as it is when it is looked at.
///
/// # Errors
/// [`MapError`]: a page that matters could not be read.
pub async fn used_with<P: Pages, C: Changes>(
    pages: &P,
    root: &Root,
    layers: &[C],
) -> Result<u64, MapError> {
    let mut level = root.depth;
    let deeper = |level| {
        let end = leaves_of_level(level);
        layers.iter().any(|l| l.next_leaf(end).is_some())
    };
    while deeper(level) {
        level += 1;
    }
    let count = Count {
        pages,
        root,
        layers,
    };
    let top = Side::top(pages, Some(root), level).await?;
    if level == 0 {
        return count.leaves(&[(0, top, 0)]).await;
    }
    count.page(level, 0, top, 0).await
}

struct Count<'a, P, C> {
    pages: &'a P,
    root: &'a Root,
    layers: &'a [C],
}

/// What layers say of the slots of a leaf.
#[derive(Default)]
struct Slots {
    /// Said of by a layer.
    decided: SlotSet,
    /// Of these, those with data.
    data: u32,
}

/// A bit for each slot of a leaf.
#[derive(Default)]
struct SlotSet([u128; 2]);

impl SlotSet {
    /// Sets a bit; false: it was set.
    fn set(&mut self, slot: u8) -> bool {
        let (word, bit) = (&mut self.0[usize::from(slot) / 128], 1u128 << (slot % 128));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn has(&self, slot: u8) -> bool {
        self.0[usize::from(slot) / 128] >> (slot % 128) & 1 == 1
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }
}

impl<P: Pages, C: Changes> Count<'_, P, C> {
    fn touch<'a>(&'a self, layer: &'a C) -> Touch<'a, C> {
        Touch {
            changes: layer,
            shape: self.root.shape(),
        }
    }

    /// Blocks beneath a page of a level above 0; layers before `from` do not matter.
    fn page(&self, level: u8, index: u64, side: Side, from: usize) -> Step<'_, u64> {
        Box::pin(async move {
            let (first, last) = leaves_of_page(level, index);
            let (mut side, mut from) = (side, from);
            // What a layer erased at one go hides everything that is older.
            let erased = |n: &usize| self.touch(&self.layers[*n]).is_erased(first, last);
            if let Some(newest) = (from..self.layers.len()).rev().find(erased) {
                (side, from) = (Side::Nothing, newest);
            }
            let layers = &self.layers[from..];
            let written = |l: &C| l.next_leaf(first).is_some_and(|leaf| leaf <= last);
            if matches!(side, Side::Nothing) && !layers.iter().any(written) {
                return Ok(0);
            }
            let touched = layers
                .iter()
                .fold(0, |bits, l| bits | self.touch(l).touched(level, index));
            if touched == 0 {
                return Ok(self.used(&side));
            }
            let page = side.read(self.pages, Some(self.root), level, index).await?;
            let mut sum = 0;
            let mut leaves = Vec::new();
            for n in 0..FANOUT {
                let below = side.below(Some(self.root), page.as_ref(), level, n);
                if touched >> n & 1 == 0 {
                    sum += self.used(&below);
                } else if level == 1 {
                    leaves.push((index * FANOUT + n, below, from));
                } else {
                    sum += self
                        .page(level - 1, index * FANOUT + n, below, from)
                        .await?;
                }
            }
            sum += self.leaves(&leaves).await?;
            self.pages.breathe().await;
            Ok(sum)
        })
    }

    /// What a subtree has without the layers.
    fn used(&self, side: &Side) -> u64 {
        match side {
            Side::Nothing => 0,
            Side::AboveRoot => self.root.child.used,
            Side::Page(entry) => entry.used,
        }
    }

    async fn leaves(&self, leaves: &[(u64, Side, usize)]) -> Result<u64, MapError> {
        let slots = |leaf: &u64| self.root.shape().slots(*leaf);
        let mut wanted = Vec::new();
        for (leaf, side, from) in leaves {
            if let Some(entry) = side.entry()
                && self.said(*leaf, *from).decided.count() < u32::from(slots(leaf))
            {
                wanted.push((entry.block, entry.crc, self.root.page(0, *leaf)));
            }
        }
        let read = self.pages.read_many(&wanted).await?;
        let mut sum = 0;
        for (leaf, side, from) in leaves {
            // The newest layer may have changed while leaves were read: it is asked again, and never says less.
            let said = self.said(*leaf, *from);
            let index = wanted.iter().position(|(_, _, what)| what.index == *leaf);
            sum += u64::from(said.data);
            let page: Option<&Rc<Page>> = index.map(|n| &read[n]);
            if let (Some(page), Some(_)) = (page, side.entry()) {
                let data = |slot: &u8| {
                    let kept = !said.decided.has(*slot);
                    kept && self.root.shape().entry(page, *slot).kind == EntryKind::Data
                };
                sum += (0..slots(leaf)).filter(data).count() as u64;
            }
        }
        Ok(sum)
    }

    /// What the layers from `from` on say of a leaf, the newest first.
    fn said(&self, leaf: u64, from: usize) -> Slots {
        let blocks = self.root.shape().blocks(leaf, leaf);
        let mut said = Slots::default();
        for layer in self.layers[from..].iter().rev() {
            layer.entries(leaf, &mut |slot, entry| {
                if said.decided.set(slot) {
                    said.data += u32::from(entry.kind == EntryKind::Data);
                }
            });
            let mut at = blocks.start;
            while let Some(erased) = layer.next_erased(LaneBlock(at))
                && erased.start < blocks.end
            {
                for block in erased.start.max(at)..erased.end.min(blocks.end) {
                    said.decided.set((block - blocks.start) as u8);
                }
                at = erased.end;
            }
        }
        said
    }
}
