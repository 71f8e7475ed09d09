//! A layer of a lane's delta: what records did to it between two freezes or snapshots (`docs/store-format.md` §10).
//!
//! A layer maps blocks to entries and ranges to erasures. Of two records over the same block the one with the higher lane sequence counts, in
//! whichever order they complete. An entry that loses gives its block back.
//!
//! Entries are put one behind the other, and found through a hash table of their places: a write touches one line of the table and the end of
//! the entries, wherever its block is. A checkpoint wants them in order; they are sorted when it asks first, and nothing is inserted then any more.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;

use hashbrown::HashTable;

use crate::cipher::Seal;

use super::super::map::{LeafEntry, LeafShape};
use super::super::types::{CatalogueHandle, Crc, Generation, LaneBlock, PhysicalBlock, Stamp};

/// What a layer knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub block: PhysicalBlock,
    /// Its checksum.
    pub crc: Crc,
    /// Of its write.
    pub stamp: Stamp,
    /// Lane sequence of the record.
    pub sequence: u64,
}

impl Entry {
    /// No block: it is known to be damaged. The drive's first block is no data's.
    const NOWHERE: PhysicalBlock = PhysicalBlock(0);

    /// A block that is known to be damaged.
    pub fn poison(stamp: Stamp, crc: Crc, sequence: u64) -> Self {
        Self {
            block: Self::NOWHERE,
            crc,
            stamp,
            sequence,
        }
    }

    /// Whether it is known to be damaged.
    #[inline]
    pub fn is_poison(&self) -> bool {
        self.block == Self::NOWHERE
    }

    /// It lost: its block, if it has one, goes to `free`.
    fn give_back(&self, free: &mut Vec<PhysicalBlock>) {
        if !self.is_poison() {
            free.push(self.block);
        }
    }
}

/// What a layer says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was written.
    Entry(Entry),
    /// It was erased.
    Erased,
}

#[derive(Clone, Copy, Debug)]
struct Erased {
    end: u64,
    sequence: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Layer {
    /// What its entries get in the map.
    pub generation: Generation,
    /// The snapshot that it is the last layer of.
    pub closes: Option<CatalogueHandle>,
    /// Records that have a sequence and are not complete.
    pub in_flight: u32,
    /// Of the lane's leaves.
    shape: LeafShape,
    /// In no order.
    entries: Vec<(LaneBlock, Entry)>,
    /// Of each entry, in their order, if the lane is sealed; else nothing.
    seals: Vec<Seal>,
    /// Where in `entries` a block is: both in one number, so that who looks for a block does not look at the entries.
    places: HashTable<Known>,
    /// The same numbers, ascending; made when it is asked for, and void with the next change.
    order: OnceCell<Vec<Known>>,
    erased: BTreeMap<u64, Erased>,
}

/// A block and the place of its entry in one number; in the order of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known(u64);

impl Known {
    /// Bits that are the place; a block has 40.
    const PLACE_BITS: u32 = 24;

    #[inline]
    fn new(block: LaneBlock, place: usize) -> Self {
        Self(block.0 << Self::PLACE_BITS | place as u64)
    }

    #[inline]
    fn block(self) -> LaneBlock {
        LaneBlock(self.0 >> Self::PLACE_BITS)
    }

    #[inline]
    fn place(self) -> usize {
        (self.0 & ((1 << Self::PLACE_BITS) - 1)) as usize
    }
}

/// Neighbours that are together in the table, so that a long read or write looks at few of its lines; a power of two.
const TOGETHER: u64 = 16;

/// Block numbers are no secret, and nobody gains by choosing them: one multiplication spreads them. The table takes the place from the low bits,
/// and compares the high ones first: those of neighbours differ.
#[inline]
fn hash(block: LaneBlock) -> u64 {
    let (group, within) = (block.0 / TOGETHER, block.0 % TOGETHER);
    let wide = u128::from(group + 1) * 0x9e37_79b9_7f4a_7c15_u128;
    let spread = (wide >> 64) as u64 ^ wide as u64;
    spread.wrapping_mul(TOGETHER).wrapping_add(within) ^ within << 60
}

impl Layer {
    /// An empty one.
    pub fn new(shape: LeafShape, generation: Generation) -> Self {
        Self {
            generation,
            closes: None,
            in_flight: 0,
            shape,
            entries: Vec::new(),
            seals: Vec::new(),
            places: HashTable::new(),
            order: OnceCell::new(),
            erased: BTreeMap::new(),
        }
    }

    /// An empty one that does not grow before it has so many entries.
    pub fn with_room(shape: LeafShape, generation: Generation, entries: usize) -> Self {
        Self {
            entries: Vec::with_capacity(entries),
            places: HashTable::with_capacity(entries),
            ..Self::new(shape, generation)
        }
    }

    /// Entries and erased ranges: what counts against the delta's limit.
    pub fn len(&self) -> usize {
        self.entries.len() + self.erased.len()
    }

    /// Leaves that it has entries of.
    pub fn leaves(&self) -> usize {
        let order = self.order();
        let leaf = |n: &Known| self.shape.leaf_of(n.block()).0;
        order.chunk_by(|a, b| leaf(a) == leaf(b)).count()
    }

    /// Whether nothing is in it and nothing is on its way to it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.in_flight == 0
    }

    /// What it says about a block.
    #[inline]
    pub fn get(&self, block: LaneBlock) -> Option<Found> {
        if let Some(place) = self.place(block) {
            return Some(Found::Entry(self.entries[place].1));
        }
        self.erasure(block).map(|_| Found::Erased)
    }

    /// With what a block's entry was sealed.
    pub fn seal(&self, block: LaneBlock) -> Seal {
        let seal = self.place(block).and_then(|place| self.seals.get(place));
        seal.copied().unwrap_or(Seal::NONE)
    }

    /// Whether there is an entry of a block.
    #[inline]
    pub fn has_entry(&self, block: LaneBlock) -> bool {
        self.place(block).is_some()
    }

    /// Where a block's entry is.
    #[inline]
    fn place(&self, block: LaneBlock) -> Option<usize> {
        if self.entries.is_empty() {
            return None;
        }
        let is = |known: &Known| known.block() == block;
        self.places.find(hash(block), is).map(|known| known.place())
    }

    /// The sequence of the erasure that covers a block.
    fn erasure(&self, block: LaneBlock) -> Option<u64> {
        if self.erased.is_empty() {
            return None;
        }
        let (_, erased) = self.erased.range(..=block.0).next_back()?;
        (block.0 < erased.end).then_some(erased.sequence)
    }

    /// A record's block that is not encrypted. What loses goes to `free`: the block of the entry that was there, or that of this one.
    pub fn insert(&mut self, block: LaneBlock, entry: Entry, free: &mut Vec<PhysicalBlock>) {
        self.insert_sealed(block, (entry, Seal::NONE), free);
    }

    /// The same of one that may be.
    pub fn insert_sealed(
        &mut self,
        block: LaneBlock,
        (entry, seal): (Entry, Seal),
        free: &mut Vec<PhysicalBlock>,
    ) {
        if self.erasure(block).is_some_and(|at| at > entry.sequence) {
            entry.give_back(free);
            return;
        }
        if let Some(place) = self.place(block) {
            let there = &mut self.entries[place].1;
            #[cfg(planted)]
            if super::super::planted::is(super::super::planted::Bug::LaterCompletionWins) {
                there.give_back(free);
                *there = entry;
                self.set_seal(place, seal);
                return;
            }
            if there.sequence > entry.sequence {
                entry.give_back(free);
            } else if there.sequence < entry.sequence {
                there.give_back(free);
                *there = entry;
                #[cfg(planted)]
                if super::super::planted::is(super::super::planted::Bug::TagOfOldBlock) {
                    return;
                }
                self.set_seal(place, seal);
            }
            return;
        }
        let place = self.entries.len();
        assert!(place < 1 << Known::PLACE_BITS, "a delta has a limit");
        self.order.take();
        self.entries.push((block, entry));
        if self.shape == LeafShape::Sealed {
            self.seals.push(seal);
        }
        let hash_of = |known: &Known| hash(known.block());
        self.places
            .insert_unique(hash(block), Known::new(block, place), hash_of);
    }

    fn set_seal(&mut self, place: usize, seal: Seal) {
        if let Some(there) = self.seals.get_mut(place) {
            *there = seal;
        }
    }

    /// Takes an entry out; the last one takes its place.
    fn remove(&mut self, place: usize) -> Entry {
        self.order.take();
        let last = self.entries.len() - 1;
        let block = self.entries[place].0;
        let found = self
            .places
            .find_entry(hash(block), |known| known.place() == place);
        found.expect("every entry has its place").remove();
        if place != last {
            let moved = self.entries[last].0;
            let known = self
                .places
                .find_mut(hash(moved), |known| known.place() == last);
            *known.expect("every entry has its place") = Known::new(moved, place);
        }
        if self.shape == LeafShape::Sealed {
            self.seals.swap_remove(place);
        }
        self.entries.swap_remove(place).1
    }

    /// An erasure. Blocks of older entries beneath it go to `free`.
    pub fn erase(&mut self, range: Range<u64>, sequence: u64, free: &mut Vec<PhysicalBlock>) {
        self.erase_entries(&range, sequence, free);
        // Older erasures lose what is covered; newer ones stay as they are.
        let mut newer = Vec::new();
        let mut rest = Vec::new();
        let overlapping: Vec<u64> = self
            .erased
            .range(..range.end)
            .rev()
            .take_while(|(_, e)| e.end > range.start)
            .map(|(&start, _)| start)
            .collect();
        for start in overlapping {
            let there = self.erased[&start];
            if there.sequence >= sequence {
                newer.push(start.max(range.start)..there.end.min(range.end));
                continue;
            }
            self.erased.remove(&start);
            if start < range.start {
                rest.push((start, range.start, there.sequence));
            }
            if there.end > range.end {
                rest.push((range.end, there.end, there.sequence));
            }
        }
        for (start, end, sequence) in rest {
            self.erased.insert(start, Erased { end, sequence });
        }
        newer.sort_by_key(|r| r.start);
        let mut at = range.start;
        for part in newer.iter().chain([&(range.end..range.end)]) {
            if at < part.start {
                let end = part.start;
                self.erased.insert(at, Erased { end, sequence });
            }
            at = at.max(part.end);
        }
    }

    fn erase_entries(&mut self, range: &Range<u64>, sequence: u64, free: &mut Vec<PhysicalBlock>) {
        // Whichever is less to look at.
        if range.end - range.start < self.entries.len() as u64 {
            for block in range.clone().map(LaneBlock) {
                if let Some(place) = self.place(block)
                    && self.entries[place].1.sequence < sequence
                {
                    self.remove(place).give_back(free);
                }
            }
            return;
        }
        for place in (0..self.entries.len()).rev() {
            let (block, entry) = self.entries[place];
            if range.contains(&block.0) && entry.sequence < sequence {
                self.remove(place).give_back(free);
            }
        }
    }

    /// See the field.
    fn order(&self) -> &[Known] {
        self.order.get_or_init(|| {
            let numbered = self.entries.iter().enumerate();
            let mut all: Vec<Known> = numbered
                .map(|(place, (block, _))| Known::new(*block, place))
                .collect();
            all.sort_unstable();
            all
        })
    }

    /// Blocks of the lane that it has entries of, in no order.
    pub fn written(&self) -> impl Iterator<Item = LaneBlock> {
        self.entries.iter().map(|(block, _)| *block)
    }

    /// Ranges that it erases, in order.
    pub fn erasures(&self) -> impl Iterator<Item = Range<u64>> {
        self.erased.iter().map(|(&start, e)| start..e.end)
    }

    /// Every block that it holds.
    pub fn blocks(&self) -> impl Iterator<Item = PhysicalBlock> {
        let entries = self.entries.iter().map(|(_, entry)| entry);
        entries.filter(|e| !e.is_poison()).map(|e| e.block)
    }
}

impl super::super::map::Changes for Layer {
    fn next_leaf(&self, from: u64) -> Option<u64> {
        let order = self.order();
        let first = self.shape.first_block(from);
        let at = order.partition_point(|n| n.block().0 < first);
        Some(self.shape.leaf_of(order.get(at)?.block()).0)
    }

    fn entries(&self, leaf: u64, each: &mut dyn FnMut(u8, &LeafEntry)) {
        let order = self.order();
        let blocks = self.shape.blocks(leaf, leaf);
        let first = order.partition_point(|n| n.block().0 < blocks.start);
        for known in &order[first..] {
            if known.block().0 >= blocks.end {
                break;
            }
            let (block, entry) = &self.entries[known.place()];
            let slot = (block.0 - blocks.start) as u8;
            let mut entry = match entry.is_poison() {
                true => LeafEntry::poison(self.generation, entry.stamp, entry.crc),
                false => LeafEntry::data(entry.block, self.generation, entry.stamp, entry.crc),
            };
            if let Some(seal) = self.seals.get(known.place()) {
                entry.seal = *seal;
            }
            each(slot, &entry);
        }
    }

    fn next_erased(&self, from: LaneBlock) -> Option<Range<u64>> {
        let before = self.erased.range(..=from.0).next_back();
        let before = before.filter(|(_, e)| e.end > from.0);
        let (&start, mut erased) = before.or_else(|| self.erased.range(from.0..).next())?;
        // Touching ones are one.
        while let Some(next) = self.erased.get(&erased.end) {
            erased = next;
        }
        Some(start..erased.end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::map::Changes;
    use super::*;
    use proptest::prelude::*;

    fn entry(block: u64, sequence: u64) -> Entry {
        Entry {
            block: PhysicalBlock(block),
            crc: Crc(0),
            stamp: Stamp {
                epoch: 1,
                seq: block,
            },
            sequence,
        }
    }

    fn seal(block: u64) -> Seal {
        Seal {
            key: block as u32 % 63 + 1,
            tag: [block as u8; 16],
        }
    }

    #[derive(Clone, Debug)]
    struct Step {
        at: u64,
        blocks: u64,
        erase: bool,
    }

    fn step() -> impl Strategy<Value = Step> {
        (0u64..600, 1u64..200, any::<bool>()).prop_map(|(at, blocks, erase)| Step {
            at,
            blocks: if erase { blocks } else { blocks % 8 + 1 },
            erase,
        })
    }

    proptest! {
        /// Records in any order have the effect of their sequences' order, and every block is in the layer or given back.
        #[test]
        fn the_highest_sequence_wins_in_any_order(steps in prop::collection::vec(step(), 1..40), order in any::<u64>(), sealed in any::<bool>()) {
            let shape = LeafShape::of(sealed);
            let mut all: Vec<(u64, Step)> = (1u64..).zip(steps).collect();
            let mut model: BTreeMap<u64, Option<u64>> = BTreeMap::new();
            for (sequence, s) in &all {
                for b in s.at..s.at + s.blocks {
                    model.insert(b, (!s.erase).then_some(sequence * 1000 + b));
                }
            }
            let mut random = order;
            for n in (1..all.len()).rev() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                all.swap(n, (random >> 33) as usize % (n + 1));
            }
            let mut layer = Layer::new(shape, Generation(1));
            let (mut free, mut given) = (Vec::new(), 0);
            for (sequence, s) in &all {
                if s.erase {
                    layer.erase(s.at..s.at + s.blocks, *sequence, &mut free);
                } else {
                    for b in s.at..s.at + s.blocks {
                        given += 1;
                        layer.insert_sealed(LaneBlock(b), (entry(sequence * 1000 + b, *sequence), seal(sequence * 1000 + b)), &mut free);
                    }
                }
            }
            prop_assert_eq!(layer.blocks().count() + free.len(), given);
            prop_assert_eq!(layer.places.len(), layer.entries.len());
            let mut seen = 0;
            let mut next = layer.next_leaf(0);
            while let Some(leaf) = next {
                layer.entries(leaf, &mut |slot, e| {
                    let block = shape.block_of(leaf, slot);
                    let expect = model.get(&block.0).copied().flatten().map(PhysicalBlock);
                    assert_eq!(e.block(), expect);
                    assert_eq!(e.seal, if sealed { seal(expect.unwrap().0) } else { Seal::NONE });
                    assert_eq!(e.seal, layer.seal(block));
                    seen += 1;
                });
                next = layer.next_leaf(leaf + 1);
            }
            prop_assert_eq!(seen, layer.entries.len());
            for b in 0..900 {
                let expect = match model.get(&b) {
                    None => None,
                    Some(None) => Some(Found::Erased),
                    Some(Some(block)) => Some(Found::Entry(entry(*block, block / 1000))),
                };
                prop_assert_eq!(layer.get(LaneBlock(b)), expect, "block {}", b);
            }
            let mut at = LaneBlock(0);
            let mut end_before = None;
            while let Some(range) = layer.next_erased(at) {
                prop_assert!(end_before.is_none_or(|end| range.start > end), "they touch");
                end_before = Some(range.end);
                at = LaneBlock(range.end);
            }
        }
    }
}
