//! Which blocks were reached, and as what: a block may be reached again from another root of the same family, at the same place, and as the
//! same thing. Everything else is double use.

use super::super::superblock::{BITMAP_BLOCKS, GROUP_BLOCKS, GroupId, Layout};
use super::super::types::PhysicalBlock;

/// Drives of more blocks (4 TiB) are checked without knowing as what a block was reached: that would take 4 bytes for each.
const PRINTS_MAX: u64 = 1 << 30;

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// Not reached before.
    First,
    /// Reached before, as the same.
    Again,
    /// Reached before, as something else.
    Otherwise,
    /// It is no block of a group.
    Outside,
}

/// Marks of all groups; made for a group when its first block is reached.
pub(super) struct Marks {
    layout: Layout,
    prints: bool,
    groups: Vec<Option<Box<Group>>>,
}

struct Group {
    bits: [u64; GROUP_BLOCKS as usize / 64],
    prints: Vec<u32>,
}

impl Marks {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            prints: layout.blocks() <= PRINTS_MAX,
            groups: (0..layout.groups()).map(|_| None).collect(),
        }
    }

    /// Marks a block; `print` is a hash of what it is.
    pub fn mark(&mut self, at: PhysicalBlock, print: u32) -> Marked {
        let Some((GroupId(group), bit)) = self.layout.place(at) else {
            return Marked::Outside;
        };
        let prints = if self.prints {
            GROUP_BLOCKS as usize
        } else {
            0
        };
        let group = self.groups[group as usize].get_or_insert_with(|| {
            Box::new(Group {
                bits: [0; GROUP_BLOCKS as usize / 64],
                prints: vec![0; prints],
            })
        });
        let (word, mask) = (bit as usize / 64, 1 << (bit % 64));
        let before = group.bits[word] & mask != 0;
        group.bits[word] |= mask;
        let Some(known) = group.prints.get_mut(bit as usize) else {
            return if before { Marked::Again } else { Marked::First };
        };
        if !before {
            *known = print;
            Marked::First
        } else if *known == print {
            Marked::Again
        } else {
            Marked::Otherwise
        }
    }

    /// Whether a block was reached.
    pub fn has(&self, at: PhysicalBlock) -> bool {
        let Some((GroupId(group), bit)) = self.layout.place(at) else {
            return false;
        };
        let group = self.groups[group as usize].as_ref();
        group.is_some_and(|g| g.bits[bit as usize / 64] >> (bit % 64) & 1 == 1)
    }

    /// The bitmap that a group must have, 64 bits at a time.
    pub fn bitmap(&self, group: GroupId) -> [u64; GROUP_BLOCKS as usize / 64] {
        let marked = self.groups[group.0 as usize].as_ref();
        let mut bits = marked.map_or([0; GROUP_BLOCKS as usize / 64], |g| g.bits);
        let end = self.layout.group_blocks(group);
        for bit in (0..BITMAP_BLOCKS).chain(end..GROUP_BLOCKS) {
            bits[bit as usize / 64] |= 1 << (bit % 64);
        }
        bits
    }
}

/// A hash of what a block is.
pub(super) fn print(words: &[u64]) -> u32 {
    let mut hash = 0x51_7c_c1_b7_27_22_0a_95_u64;
    for word in words {
        hash = (hash.rotate_left(23) ^ word).wrapping_mul(0x2127_599b_f432_5c37);
    }
    (hash >> 32) as u32
}
