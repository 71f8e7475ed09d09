//! Lanes: how a volume's address space is divided among reactors (`DESIGN.md` §1).

use std::ops::Range;

/// Bytes of a slice, the unit that lanes alternate by.
pub const SLICE_BYTES: u64 = 16 << 20;
/// log2 of [`SLICE_BYTES`].
pub const SLICE_SHIFT: u32 = 24;
/// From this size on a volume has [`LANES_MAX`] lanes.
pub const MANY_LANES_FROM_BYTES: u64 = 1 << 30;
/// Lanes of a volume that is not small.
pub const LANES_MAX: usize = 16;

const _: () = assert!(1 << SLICE_SHIFT == SLICE_BYTES);

/// A lane of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u8);

impl Lane {
    /// Its number, below the volume's lane count.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The number of lanes of a volume, fixed when it is made: growing does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    count: u8,
}

impl Lanes {
    /// For a volume that is created with this size.
    pub fn for_size(bytes: u64) -> Self {
        let many = bytes >= MANY_LANES_FROM_BYTES;
        Self {
            count: if many { LANES_MAX as u8 } else { 1 },
        }
    }

    /// For a volume that was made with `count` lanes; `None` if no volume has so many.
    pub fn of_count(count: u8) -> Option<Self> {
        matches!(usize::from(count), 1 | LANES_MAX).then_some(Self { count })
    }

    /// How many there are.
    pub fn count(self) -> usize {
        usize::from(self.count)
    }

    /// All of them.
    pub fn all(self) -> impl Iterator<Item = Lane> {
        (0..self.count).map(Lane)
    }

    /// The lane of a byte.
    #[inline]
    pub fn of(self, offset: u64) -> Lane {
        Lane((offset >> SLICE_SHIFT) as u8 & (self.count - 1))
    }

    /// The lane with this number, if there is one.
    pub fn get(self, index: usize) -> Option<Lane> {
        (index < self.count()).then_some(Lane(index as u8))
    }

    /// Whether a range (not empty) lies in one slice: so in one lane, and a write of it can be atomic.
    #[inline]
    pub fn single(self, bytes: &Range<u64>) -> bool {
        (bytes.start ^ (bytes.end - 1)) >> SLICE_SHIFT == 0
    }

    /// The first part of a range (not empty) that is [`Lanes::single`].
    pub fn first_part(self, bytes: &Range<u64>) -> Range<u64> {
        if self.single(bytes) {
            return bytes.clone();
        }
        bytes.start..((bytes.start >> SLICE_SHIFT) + 1) << SLICE_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_volumes_have_one_lane() {
        assert_eq!(Lanes::for_size(MANY_LANES_FROM_BYTES - 4096).count(), 1);
        assert_eq!(Lanes::for_size(MANY_LANES_FROM_BYTES).count(), 16);
    }

    proptest! {
        #[test]
        fn a_lane_is_the_slice_modulo_the_lanes(offset in 0u64..1 << 50, many in any::<bool>()) {
            let lanes = Lanes::for_size(if many { 1 << 30 } else { 1 << 20 });
            let expect = offset / SLICE_BYTES % lanes.count() as u64;
            prop_assert_eq!(lanes.of(offset).index() as u64, expect);
        }

        #[test]
        fn parts_cover_a_range_each_in_one_slice(start in 0u64..1 << 40, len in 1u64..100 << 20, many in any::<bool>()) {
            let lanes = Lanes::for_size(if many { 1 << 30 } else { 1 << 20 });
            let mut at = start;
            while at < start + len {
                let part = lanes.first_part(&(at..start + len));
                prop_assert_eq!(part.start, at);
                prop_assert!(part.end > at && part.end <= start + len);
                prop_assert_eq!(part.start / SLICE_BYTES, (part.end - 1) / SLICE_BYTES);
                prop_assert!(lanes.single(&part));
                at = part.end;
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
