//! Leaves of a lane's map (`docs/store-format.md` §6): where each block of a lane is, and what its bytes must be.
//!
//! A leaf covers blocks of one slice only, so the last leaf of a slice has slots that no block belongs to. Everything here reads single entries
//! from a page's bytes; the page was checked when it came from the drive.

use std::ops::Range;
use std::rc::Rc;

use super::super::types::{Crc, Generation, LaneBlock, PhysicalBlock, SLICE_BLOCKS, Stamp};
use super::bytes::{array, get32, get40, get64, is_zero, put, put32, put40, put64};
use super::interior::{Beneath, NO_STAMP};
use super::page::{HEADER_BYTES, Page, PageError, PageKind, blank};
use crate::cipher::{KEY_INDEX_MAX, Seal};

/// Bytes of an entry without a tag.
const PLAIN_BYTES: usize = 26;
/// Bytes of an entry with a tag.
const SEALED_BYTES: usize = 42;
/// Entries of a plain leaf.
pub const LEAF_ENTRIES: usize = 152;
/// Entries of a sealed leaf.
pub const SEALED_ENTRIES: usize = 94;

const KIND: usize = 5;
const GENERATION: usize = 6;
const EPOCH: usize = 10;
const SEQ: usize = 14;
const CRC: usize = 22;
const TAG: usize = 26;
/// Bits of the kind's byte that are the kind; those above are the index of the data key.
const KIND_BITS: u32 = 2;
const KIND_MASK: u8 = (1 << KIND_BITS) - 1;
const _: () = assert!(KEY_INDEX_MAX == u8::MAX as u32 >> KIND_BITS);
const _: () = assert!(CRC + 4 == PLAIN_BYTES && TAG + 16 == SEALED_BYTES);
const _: () = assert!(HEADER_BYTES + LEAF_ENTRIES * PLAIN_BYTES <= 4096);
const _: () = assert!(HEADER_BYTES + SEALED_ENTRIES * SEALED_BYTES <= 4096);

/// What an entry takes part in a summary with: block of the lane, kind, stamp, CRC.
const SUMMARY_BYTES: usize = 8 + 1 + 12 + 4;

/// How a lane's leaves are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafShape {
    /// 152 entries, 27 leaves for a slice.
    Plain,
    /// 94 entries with tags, 44 leaves for a slice.
    Sealed,
}

impl LeafShape {
    /// Of a lane that is sealed or not.
    pub const fn of(sealed: bool) -> Self {
        if sealed { Self::Sealed } else { Self::Plain }
    }

    /// The kind of its leaves' pages.
    pub const fn kind(self) -> PageKind {
        match self {
            Self::Plain => PageKind::Leaf,
            Self::Sealed => PageKind::SealedLeaf,
        }
    }

    /// Entries that a leaf has room for.
    pub const fn entries(self) -> usize {
        match self {
            Self::Plain => LEAF_ENTRIES,
            Self::Sealed => SEALED_ENTRIES,
        }
    }

    const fn entry_bytes(self) -> usize {
        match self {
            Self::Plain => PLAIN_BYTES,
            Self::Sealed => SEALED_BYTES,
        }
    }

    /// Leaves of a slice.
    pub const fn leaves(self) -> u64 {
        SLICE_BLOCKS.div_ceil(self.entries() as u64)
    }

    /// A block's leaf, and its slot there.
    #[inline]
    pub const fn leaf_of(self, block: LaneBlock) -> (u64, u8) {
        let (slice, b) = (block.0 / SLICE_BLOCKS, block.0 % SLICE_BLOCKS);
        let entries = self.entries() as u64;
        (slice * self.leaves() + b / entries, (b % entries) as u8)
    }

    /// The block of a slot; only for slots that [`LeafShape::slots`] counts.
    #[inline]
    pub const fn block_of(self, leaf: u64, slot: u8) -> LaneBlock {
        LaneBlock(self.first_block(leaf) + slot as u64)
    }

    /// The first block of a leaf.
    pub const fn first_block(self, leaf: u64) -> u64 {
        let (slice, n) = (leaf / self.leaves(), leaf % self.leaves());
        slice * SLICE_BLOCKS + n * self.entries() as u64
    }

    /// The blocks of leaves `first` to `last`; without gaps, since a leaf ends where the next begins.
    pub const fn blocks(self, first: u64, last: u64) -> Range<u64> {
        self.first_block(first)..self.first_block(last + 1)
    }

    /// Slots of a leaf that blocks belong to.
    pub const fn slots(self, leaf: u64) -> u8 {
        let blocks = self.blocks(leaf, leaf);
        (blocks.end - blocks.start) as u8
    }

    #[inline]
    fn bytes(self, page: &Page, slot: u8) -> &[u8] {
        let at = HEADER_BYTES + slot as usize * self.entry_bytes();
        &page[at..at + self.entry_bytes()]
    }

    /// An entry of a leaf.
    #[inline]
    pub fn entry(self, page: &Page, slot: u8) -> LeafEntry {
        LeafEntry::decode(self.bytes(page, slot))
    }

    /// Whether two leaves have the same bytes in a slot.
    #[inline]
    pub(super) fn same(self, a: &Page, b: &Page, slot: u8) -> bool {
        self.bytes(a, slot) == self.bytes(b, slot)
    }

    /// Writes an entry of a leaf.
    pub fn set_entry(self, page: &mut Page, slot: u8, entry: &LeafEntry) {
        let at = HEADER_BYTES + slot as usize * self.entry_bytes();
        entry.encode(&mut page[at..at + self.entry_bytes()]);
    }

    /// A leaf of which nothing is known.
    pub(super) fn all_lost(self, leaf: u64) -> Rc<Page> {
        let mut page = blank();
        for slot in 0..self.slots(leaf) {
            self.set_entry(Rc::make_mut(&mut page), slot, &LeafEntry::LOST);
        }
        page
    }

    /// What the parent's entry says of a leaf.
    pub(in crate::store) fn beneath(self, page: &Page, leaf: u64) -> Beneath {
        let mut beneath = Beneath::NOTHING;
        let mut summed = [[0; SUMMARY_BYTES]; LEAF_ENTRIES];
        let slots = usize::from(self.slots(leaf));
        let entries = page[HEADER_BYTES..].chunks_exact(self.entry_bytes());
        let mut count = 0;
        for (entry, block) in entries.take(slots).zip(self.first_block(leaf)..) {
            let entry: &[u8; PLAIN_BYTES] = entry.first_chunk().expect("the shorter of the two");
            let kind = entry[KIND] & KIND_MASK;
            if kind == 0 {
                continue;
            }
            beneath.used += u64::from(kind == EntryKind::Data as u8);
            let stamp = Stamp {
                epoch: get32(entry, EPOCH),
                seq: get64(entry, SEQ),
            };
            beneath.highest = beneath.highest.max(stamp);
            let sum = &mut summed[count];
            sum[..8].copy_from_slice(&block.to_le_bytes());
            sum[8] = kind;
            sum[9..].copy_from_slice(&entry[EPOCH..CRC + 4]);
            count += 1;
        }
        beneath.entries = count as u16;
        if count > 0 {
            beneath.summary = Crc::of(summed[..count].as_flattened()).0;
        }
        beneath
    }
}

/// A block's leaf and slot in a map that is not sealed.
#[inline]
pub const fn leaf_of(block: LaneBlock) -> (u64, u8) {
    LeafShape::Plain.leaf_of(block)
}

/// The block of a leaf's slot in a map that is not sealed.
#[inline]
pub const fn block_of(leaf: u64, slot: u8) -> LaneBlock {
    LeafShape::Plain.block_of(leaf, slot)
}

/// What an entry says of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// Never written, or erased: it reads as zeroes.
    Absent = 0,
    /// It is in a block of the drive.
    Data = 1,
    /// It was damaged, and is known to be: reads fail. The stamp is kept.
    Poison = 3,
}

/// An entry of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafEntry {
    /// Where it is, if it is data.
    block: PhysicalBlock,
    /// What it says.
    pub kind: EntryKind,
    /// Of its insertion.
    pub generation: Generation,
    /// Of its write.
    pub stamp: Stamp,
    /// Of the block as stored.
    pub crc: Crc,
    /// Of sealed lanes; none otherwise.
    pub seal: Seal,
}

impl LeafEntry {
    /// Nothing there.
    pub const ABSENT: Self = Self {
        block: PhysicalBlock(0),
        kind: EntryKind::Absent,
        generation: Generation(0),
        stamp: NO_STAMP,
        crc: Crc(0),
        seal: Seal::NONE,
    };

    /// A block's data.
    pub const fn data(
        block: PhysicalBlock,
        generation: Generation,
        stamp: Stamp,
        crc: Crc,
    ) -> Self {
        Self {
            block,
            kind: EntryKind::Data,
            generation,
            stamp,
            crc,
            seal: Seal::NONE,
        }
    }

    /// A block that is known to be damaged.
    pub const fn poison(generation: Generation, stamp: Stamp, crc: Crc) -> Self {
        Self {
            kind: EntryKind::Poison,
            ..Self::data(PhysicalBlock(0), generation, stamp, crc)
        }
    }

    /// The block that it refers to, if it is data.
    #[inline]
    pub fn block(&self) -> Option<PhysicalBlock> {
        (self.kind == EntryKind::Data).then_some(self.block)
    }

    /// Damage took what was known of the block. Nobody's own, since no record has this generation.
    pub const LOST: Self = Self::poison(Generation(0), NO_STAMP, Crc(0));

    /// Whether the two say the same of a block; in which generation does not matter. Of what was lost nothing is the same.
    pub fn same_content(&self, other: &Self) -> bool {
        let known = self.kind != EntryKind::Poison || self.stamp != NO_STAMP;
        known && self.kind == other.kind && self.block == other.block && self.stamp == other.stamp
    }

    fn encode(&self, into: &mut [u8]) {
        into.fill(0);
        if self.kind == EntryKind::Absent {
            return;
        }
        assert_eq!(
            self.kind == EntryKind::Data,
            self.block.0 != 0,
            "data has a block, and nothing else has"
        );
        put40(into, 0, self.block.0);
        into[KIND] = self.kind as u8;
        put32(into, GENERATION, self.generation.0);
        put32(into, EPOCH, self.stamp.epoch);
        put64(into, SEQ, self.stamp.seq);
        put32(into, CRC, self.crc.0);
        if into.len() == SEALED_BYTES {
            assert!(self.seal.key <= KEY_INDEX_MAX, "an index has six bits");
            into[KIND] |= (self.seal.key as u8) << KIND_BITS;
            put(into, TAG, &self.seal.tag);
        }
    }

    /// From a checked page. A kind that no checked page has reads as damaged, not as empty.
    #[inline]
    fn decode(from: &[u8]) -> Self {
        let kind = match from[KIND] & KIND_MASK {
            0 => return Self::ABSENT,
            1 => EntryKind::Data,
            _ => EntryKind::Poison,
        };
        Self {
            block: PhysicalBlock(get40(from, 0)),
            kind,
            generation: Generation(get32(from, GENERATION)),
            stamp: Stamp {
                epoch: get32(from, EPOCH),
                seq: get64(from, SEQ),
            },
            crc: Crc(get32(from, CRC)),
            seal: if from.len() == SEALED_BYTES {
                Seal {
                    key: u32::from(from[KIND] >> KIND_BITS),
                    tag: array(from, TAG),
                }
            } else {
                Seal::NONE
            },
        }
    }
}

/// Looks at every entry of a leaf, and counts those that are not absent.
pub(super) fn check_body(page: &Page, shape: LeafShape) -> Result<u16, PageError> {
    let index = get64(page, 8);
    // An index that no lane has: its blocks' numbers would not fit.
    if index > u64::MAX / SLICE_BLOCKS {
        return Err(PageError::Index {
            expected: 0,
            found: index,
        });
    }
    let mut found = 0;
    for slot in 0..shape.entries() as u8 {
        let entry = shape.bytes(page, slot);
        let block = get40(entry, 0);
        let key = entry[KIND] >> KIND_BITS;
        let right = match entry[KIND] & KIND_MASK {
            _ if key != 0 && shape == LeafShape::Plain => false,
            0 => is_zero(entry),
            1 => block != 0 && slot < shape.slots(index),
            3 => block == 0 && slot < shape.slots(index),
            _ => false,
        };
        if !right {
            return Err(PageError::Entry { slot });
        }
        found += u16::from(entry[KIND] != 0);
    }
    let end = HEADER_BYTES + shape.entries() * shape.entry_bytes();
    if !is_zero(&page[end..]) {
        return Err(PageError::Reserved { at: end });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::map::page::blank;
    use std::rc::Rc;

    #[test]
    fn every_block_has_one_slot_and_leaves_have_no_gaps() {
        for shape in [LeafShape::Plain, LeafShape::Sealed] {
            let mut before = None;
            for b in 0..3 * SLICE_BLOCKS {
                let (leaf, slot) = shape.leaf_of(LaneBlock(b));
                assert!(slot < shape.slots(leaf));
                assert_eq!(shape.block_of(leaf, slot), LaneBlock(b));
                assert!(before < Some((leaf, slot)));
                before = Some((leaf, slot));
                assert!(shape.blocks(leaf, leaf).contains(&b));
            }
            assert_eq!(
                shape.leaf_of(LaneBlock(3 * SLICE_BLOCKS)).0,
                3 * shape.leaves()
            );
        }
        assert_eq!(LeafShape::Plain.leaves(), 27);
        assert_eq!(LeafShape::Sealed.leaves(), 44);
    }

    #[test]
    fn entries_are_at_their_offsets() {
        let entry = LeafEntry {
            seal: Seal {
                key: 63,
                tag: [9; 16],
            },
            ..LeafEntry::data(
                PhysicalBlock(0x01_0203_0405),
                Generation(0x0607_0809),
                Stamp {
                    epoch: 0x0a0b_0c0d,
                    seq: 0x1112_1314_1516_1718,
                },
                Crc(0x2122_2324),
            )
        };
        let mut page = blank();
        LeafShape::Sealed.set_entry(Rc::make_mut(&mut page), 1, &entry);
        let bytes = [
            5, 4, 3, 2, 1, 0xfd, 9, 8, 7, 6, 0x0d, 0x0c, 0x0b, 0x0a, 0x18, 0x17, 0x16, 0x15, 0x14,
            0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,
        ];
        assert_eq!(page[64 + 42..][..26], bytes);
        assert_eq!(page[64 + 42 + 26..][..16], [9; 16]);
        assert_eq!(LeafShape::Sealed.entry(&page, 1), entry);
        assert_eq!(LeafShape::Sealed.entry(&page, 0), LeafEntry::ABSENT);
    }

    #[test]
    fn a_body_that_makes_no_sense_is_refused() {
        let good = LeafEntry::data(
            PhysicalBlock(7),
            Generation(1),
            Stamp { epoch: 1, seq: 1 },
            Crc(1),
        );
        let mut page = blank();
        let page = Rc::make_mut(&mut page);
        LeafShape::Plain.set_entry(page, 3, &good);
        assert_eq!(check_body(page, LeafShape::Plain), Ok(1));
        for (offset, byte) in [(5, 2), (5, 0), (5, 3), (5, 5), (0, 0)] {
            let mut bad = *page;
            bad[64 + 3 * 26 + offset] = byte;
            assert_eq!(
                check_body(&bad, LeafShape::Plain),
                Err(PageError::Entry { slot: 3 })
            );
        }
        // Slot 150 of the last leaf of a slice is of no block.
        let mut bad = *page;
        LeafShape::Plain.set_entry(&mut bad, 150, &good);
        assert_eq!(check_body(&bad, LeafShape::Plain), Ok(2));
        put64(&mut bad, 8, 26);
        assert_eq!(
            check_body(&bad, LeafShape::Plain),
            Err(PageError::Entry { slot: 150 })
        );
        let mut bad = *page;
        bad[4095] = 1;
        assert_eq!(
            check_body(&bad, LeafShape::Plain),
            Err(PageError::Reserved { at: 64 + 152 * 26 })
        );
    }
}
