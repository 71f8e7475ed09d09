//! Interior pages of the map and of the catalogue (`docs/store-format.md` §6): what is beneath, and where.

use std::rc::Rc;

use super::super::types::{BLOCKS_MAX, Crc, Generation, PhysicalBlock, Stamp};
use super::bytes::{get32, get40, get48, get64, is_zero, put32, put40, put48, put64};
use super::page::{HEADER_BYTES, Page, PageError, blank};

/// Children of an interior page.
pub const FANOUT: u64 = 64;
/// Bytes of a child entry.
pub const CHILD_BYTES: usize = 56;
/// Bytes of a child entry that a catalogue record keeps of a root.
pub const ROOT_BYTES: usize = 20;
/// The deepest tree: the leaves of 2^40 blocks fit it.
pub const DEPTH_MAX: u8 = 6;

const CRC: usize = 6;
const GENERATION: usize = 10;
const USED: usize = 14;
const EPOCH: usize = 20;
const SEQ: usize = 24;
const SUMMARY: usize = 32;
const ZERO: usize = 36;
const _: () = assert!(USED + 6 == ROOT_BYTES && ZERO + 20 == CHILD_BYTES);
const _: () = assert!(HEADER_BYTES + FANOUT as usize * CHILD_BYTES <= 4096);

/// Lower than any stamp that a write has.
pub(super) const NO_STAMP: Stamp = Stamp { epoch: 0, seq: 0 };

/// What a page's parent says of what is beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Beneath {
    /// Present children, or entries that are not absent.
    pub entries: u16,
    /// Data blocks.
    pub used: u64,
    /// The highest stamp.
    pub highest: Stamp,
    /// What resync compares.
    pub summary: u32,
}

impl Beneath {
    /// Nothing.
    pub(super) const NOTHING: Self = Self {
        entries: 0,
        used: 0,
        highest: NO_STAMP,
        summary: 0,
    };
}

/// Where a page would be that was lost to damage.
pub const LOST_BLOCK: PhysicalBlock = PhysicalBlock(BLOCKS_MAX - 1);

/// What a lost child takes part in a summary with.
const LOST_SUMMARY: u32 = u32::MAX;

/// A child entry: where a page is, what its bytes must be, what is beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildEntry {
    /// Of the page; 0 if there is none.
    pub block: PhysicalBlock,
    /// Of the page.
    pub crc: Crc,
    /// At which the page was written.
    pub generation: Generation,
    /// Data blocks in use beneath.
    pub used: u64,
    /// The highest stamp beneath.
    pub highest: Stamp,
    /// What resync compares.
    pub summary: u32,
}

impl ChildEntry {
    /// No page.
    pub const NONE: Self = Self {
        block: PhysicalBlock(0),
        crc: Crc(0),
        generation: Generation(0),
        used: 0,
        highest: NO_STAMP,
        summary: 0,
    };

    /// What is beneath was lost to damage. No drive has this block, so whoever takes it for a page gets an error. No record has this
    /// generation, so it is nobody's own, and never freed.
    pub const LOST: Self = Self {
        block: LOST_BLOCK,
        ..Self::NONE
    };

    /// Whether what is beneath was lost to damage.
    #[inline]
    pub fn is_lost(&self) -> bool {
        self.block == LOST_BLOCK
    }

    /// Whether there is no page.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.block.0 == 0
    }

    /// The same, if there is a page.
    #[inline]
    pub fn present(self) -> Option<Self> {
        (!self.is_none()).then_some(self)
    }

    /// Writes it to 56 bytes, or its beginning to 20.
    pub fn encode(&self, into: &mut [u8]) {
        assert!(
            into.len() == CHILD_BYTES || into.len() == ROOT_BYTES,
            "{} bytes are neither a child entry nor a root",
            into.len()
        );
        into.fill(0);
        if self.is_none() {
            return;
        }
        put40(into, 0, self.block.0);
        put32(into, CRC, self.crc.0);
        put32(into, GENERATION, self.generation.0);
        put48(into, USED, self.used);
        if into.len() == CHILD_BYTES {
            put32(into, EPOCH, self.highest.epoch);
            put64(into, SEQ, self.highest.seq);
            put32(into, SUMMARY, self.summary);
        }
    }

    /// Reads 56 bytes, or 20 (then stamp and summary are zero); `None` if no child entry looks like this.
    pub fn decode(from: &[u8]) -> Option<Self> {
        let whole = from.len() == CHILD_BYTES;
        if !whole && from.len() != ROOT_BYTES {
            return None;
        }
        let reserved = from[5] == 0 && (!whole || is_zero(&from[ZERO..]));
        let block = get40(from, 0);
        let none = block == 0 && !is_zero(from);
        let lost = block == LOST_BLOCK.0 && !is_zero(&from[5..]);
        if !reserved || none || lost {
            return None;
        }
        Some(Self::read(from))
    }

    fn read(from: &[u8]) -> Self {
        let whole = from.len() == CHILD_BYTES;
        Self {
            block: PhysicalBlock(get40(from, 0)),
            crc: Crc(get32(from, CRC)),
            generation: Generation(get32(from, GENERATION)),
            used: get48(from, USED),
            highest: Stamp {
                epoch: if whole { get32(from, EPOCH) } else { 0 },
                seq: if whole { get64(from, SEQ) } else { 0 },
            },
            summary: if whole { get32(from, SUMMARY) } else { 0 },
        }
    }
}

/// Child `n` of a checked interior page.
#[inline]
pub fn child(page: &Page, n: u64) -> ChildEntry {
    ChildEntry::read(child_bytes(page, n))
}

fn child_bytes(page: &Page, n: u64) -> &[u8] {
    let at = HEADER_BYTES + n as usize * CHILD_BYTES;
    &page[at..at + CHILD_BYTES]
}

/// Writes child `n` of an interior page.
pub(super) fn set_child(page: &mut Page, n: u64, entry: &ChildEntry) {
    let at = HEADER_BYTES + n as usize * CHILD_BYTES;
    entry.encode(&mut page[at..at + CHILD_BYTES]);
}

/// An interior page of which nothing is known.
pub(super) fn all_lost() -> Rc<Page> {
    let mut page = blank();
    for n in 0..FANOUT {
        set_child(Rc::make_mut(&mut page), n, &ChildEntry::LOST);
    }
    page
}

/// What the parent's entry says of an interior page.
pub(in crate::store) fn beneath(page: &Page) -> Beneath {
    let mut beneath = Beneath::NOTHING;
    let mut summaries = [0; 4 * FANOUT as usize];
    for n in 0..FANOUT {
        let child = child(page, n);
        beneath.entries += u16::from(!child.is_none());
        beneath.used += child.used;
        beneath.highest = beneath.highest.max(child.highest);
        // What was lost is not what is absent: nobody is to take one for the other.
        let summary = match child.is_lost() {
            true => LOST_SUMMARY,
            false => child.summary,
        };
        put32(&mut summaries, 4 * n as usize, summary);
    }
    if !is_zero(&summaries) {
        beneath.summary = Crc::of(&summaries).0;
    }
    beneath
}

/// Looks at every child entry, and counts the present ones.
pub(super) fn check_body(page: &Page) -> Result<u16, PageError> {
    let mut found = 0;
    for n in 0..FANOUT {
        let entry = ChildEntry::decode(child_bytes(page, n));
        let entry = entry.ok_or(PageError::Entry { slot: n as u8 })?;
        found += u16::from(!entry.is_none());
    }
    let end = HEADER_BYTES + FANOUT as usize * CHILD_BYTES;
    if !is_zero(&page[end..]) {
        return Err(PageError::Reserved { at: end });
    }
    Ok(found)
}

/// Leaves beneath a page of a level.
pub const fn leaves_of_level(level: u8) -> u64 {
    FANOUT.pow(level as u32)
}

/// First and last leaf of page `index` of a level.
pub const fn leaves_of_page(level: u8, index: u64) -> (u64, u64) {
    let leaves = leaves_of_level(level);
    (index * leaves, (index + 1) * leaves - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_entry_is_at_its_offsets() {
        let entry = ChildEntry {
            block: PhysicalBlock(0x01_0203_0405),
            crc: Crc(0x0607_0809),
            generation: Generation(0x0a0b_0c0d),
            used: 0x1112_1314_1516,
            highest: Stamp {
                epoch: 0x2122_2324,
                seq: 0x3132_3334_3536_3738,
            },
            summary: 0x4142_4344,
        };
        let mut bytes = [0xff; CHILD_BYTES];
        entry.encode(&mut bytes);
        let expected = [
            5, 4, 3, 2, 1, 0, 9, 8, 7, 6, 0x0d, 0x0c, 0x0b, 0x0a, 0x16, 0x15, 0x14, 0x13, 0x12,
            0x11, 0x24, 0x23, 0x22, 0x21, 0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31, 0x44,
            0x43, 0x42, 0x41,
        ];
        assert_eq!(bytes[..36], expected);
        assert!(is_zero(&bytes[36..]));
        assert_eq!(ChildEntry::decode(&bytes), Some(entry));
        let mut root = [0xff; ROOT_BYTES];
        entry.encode(&mut root);
        assert_eq!(root, bytes[..20]);
        let kept = ChildEntry::decode(&root).expect("a root");
        assert_eq!((kept.block, kept.used), (entry.block, entry.used));
        assert_eq!((kept.highest.seq, kept.summary), (0, 0));
        for reserved in [5, 36, 55] {
            let mut bad = bytes;
            bad[reserved] = 1;
            assert_eq!(ChildEntry::decode(&bad), None);
        }
        let mut bad = bytes;
        bad[..5].fill(0);
        assert_eq!(ChildEntry::decode(&bad), None, "no block, but the rest");
        let mut lost = [0xff; CHILD_BYTES];
        ChildEntry::LOST.encode(&mut lost);
        assert_eq!(lost[..5], [0xff; 5]);
        assert!(is_zero(&lost[5..]));
        assert_eq!(ChildEntry::decode(&lost), Some(ChildEntry::LOST));
        lost[14] = 1;
        assert_eq!(
            ChildEntry::decode(&lost),
            None,
            "lost, but something is known"
        );
        assert_eq!(ChildEntry::decode(&[0; 56]), Some(ChildEntry::NONE));
        assert_eq!(ChildEntry::decode(&[0; 21]), None);
    }

    #[test]
    fn what_is_beneath_is_summed() {
        let mut page = blank();
        let page = Rc::make_mut(&mut page);
        assert_eq!(beneath(page), Beneath::NOTHING);
        for n in [3, 9] {
            let entry = ChildEntry {
                block: PhysicalBlock(100 + n),
                used: n,
                highest: Stamp {
                    epoch: 1,
                    seq: 20 - n,
                },
                summary: n as u32,
                ..ChildEntry::NONE
            };
            set_child(page, n, &entry);
        }
        let sum = beneath(page);
        assert_eq!((sum.entries, sum.used, sum.highest.seq), (2, 12, 17));
        assert_eq!(check_body(page), Ok(2));
        page[4095] = 1;
        assert!(check_body(page).is_err());
    }
}
