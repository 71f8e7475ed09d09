//! How many leaves the delta leads to (`docs/store-format.md` §14): what a checkpoint reads and writes, and so how long an opening after a crash
//! takes, and how long writers wait for room.
//!
//! Leaves are counted by marks in a bitmap, at a place that their number decides. Two leaves may share one: at the limit there are about 9 %
//! more leaves than marks, and the limits below say so. What the checkpoint under way has frozen is kept apart: a crash finds both.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::super::map::LeafShape;
use super::super::types::{CatalogueHandle, Generation, LaneBlock};

/// Places of marks: 32 KiB.
const PLACES: usize = 1 << 18;
/// Marks from which on a checkpoint begins: of about 30,000 leaves.
const MARKS_ENOUGH: usize = 28_300;
/// Marks that nothing is added to until a checkpoint is through: of about 45,000 leaves.
const MARKS_MAX: usize = 41_300;

#[derive(Debug)]
struct Marks(Box<[u64]>);

impl Marks {
    fn new(places: usize) -> Self {
        Self(vec![0; places / 64].into_boxed_slice())
    }

    #[inline]
    fn has(&self, place: usize) -> bool {
        self.0[place / 64] >> (place % 64) & 1 == 1
    }

    #[inline]
    fn set(&mut self, place: usize) {
        self.0[place / 64] |= 1 << (place % 64);
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Scatter {
    /// A delta that cannot have so many entries is not counted.
    counts: bool,
    present: RefCell<Marks>,
    frozen: RefCell<Marks>,
    /// Marks of `present`, and of both together.
    new: Cell<usize>,
    all: Cell<usize>,
}

#[inline]
fn place(lane: CatalogueHandle, generation: Generation, leaf: u64) -> usize {
    // A leaf is merged once for each generation that the delta has of it.
    let whose = u64::from(lane.0) << 32 | u64::from(generation.0);
    let mut mixed = leaf ^ whose.wrapping_mul(0xd6e8_feb8_6659_fd93);
    // Twice: leaves at equal distances would meet otherwise, where the distance is an unlucky one.
    for _ in 0..2 {
        mixed = (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (mixed >> 40) as usize % PLACES
}

impl Scatter {
    /// Of a delta with at most so many entries.
    pub fn new(delta_max: u64) -> Self {
        let counts = delta_max > MARKS_ENOUGH as u64;
        let places = if counts { PLACES } else { 0 };
        Self {
            counts,
            present: RefCell::new(Marks::new(places)),
            frozen: RefCell::new(Marks::new(places)),
            new: Cell::new(0),
            all: Cell::new(0),
        }
    }

    /// A record of these blocks was admitted.
    #[inline]
    pub fn written(
        &self,
        (lane, shape): (CatalogueHandle, LeafShape),
        generation: Generation,
        blocks: &Range<u64>,
    ) {
        if self.counts {
            let (first, _) = shape.leaf_of(LaneBlock(blocks.start));
            let (last, _) = shape.leaf_of(LaneBlock(blocks.end - 1));
            for leaf in first..=last {
                self.mark(place(lane, generation, leaf));
            }
        }
    }

    /// An erasure was: what it covers as a whole is not read.
    pub fn erased(
        &self,
        lane: (CatalogueHandle, LeafShape),
        generation: Generation,
        blocks: &Range<u64>,
    ) {
        self.written(lane, generation, &(blocks.start..blocks.start + 1));
        self.written(lane, generation, &(blocks.end - 1..blocks.end));
    }

    fn mark(&self, place: usize) {
        let mut present = self.present.borrow_mut();
        if !present.has(place) {
            present.set(place);
            self.new.set(self.new.get() + 1);
            if !self.frozen.borrow().has(place) {
                self.all.set(self.all.get() + 1);
            }
        }
    }

    /// A checkpoint begins: what there is belongs to it.
    pub fn freeze(&self) {
        let mut frozen = self.frozen.borrow_mut();
        std::mem::swap(&mut *self.present.borrow_mut(), &mut *frozen);
        // Those of a checkpoint before were merged.
        self.present.borrow_mut().0.fill(0);
        self.all.set(self.new.replace(0));
    }

    /// It is through.
    pub fn merged(&self) {
        self.frozen.borrow_mut().0.fill(0);
        self.all.set(self.new.get());
    }

    /// Whether a checkpoint should begin.
    pub fn enough(&self) -> bool {
        self.new.get() >= MARKS_ENOUGH
    }

    /// Whether more may come.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.all.get() < MARKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: CatalogueHandle = CatalogueHandle(5);
    const OTHER: CatalogueHandle = CatalogueHandle(6);
    const GENERATION: Generation = Generation(9);

    fn write_leaf(scatter: &Scatter, lane: CatalogueHandle, leaf: u64) {
        let at = LeafShape::Plain.first_block(leaf);
        scatter.written((lane, LeafShape::Plain), GENERATION, &(at..at + 1));
    }

    fn write_leaves(scatter: &Scatter, lane: CatalogueHandle, leaves: Range<u64>) {
        for leaf in leaves {
            write_leaf(scatter, lane, leaf);
        }
    }

    /// Leaves until something is true of it.
    fn until(stride: u64, is: impl Fn(&Scatter) -> bool) -> u64 {
        let scatter = Scatter::new(500_000);
        let mut leaf = 0;
        while !is(&scatter) {
            write_leaf(&scatter, LANE, leaf * stride);
            leaf += 1;
        }
        leaf
    }

    #[test]
    fn limits_are_where_they_are_said_to_be_however_far_apart_leaves_lie() {
        for stride in [1, 64, 4096, 99_991] {
            let enough = until(stride, Scatter::enough);
            let most = until(stride, |s| !s.has_room());
            assert!((28_300..31_500).contains(&enough), "{stride}: {enough}");
            assert!((41_300..47_000).contains(&most), "{stride}: {most}");
        }
    }

    #[test]
    fn writing_the_same_leaves_again_is_not_counted_and_what_is_frozen_is() {
        let scatter = Scatter::new(500_000);
        for _ in 0..3 {
            write_leaves(&scatter, LANE, 0..20_000);
        }
        let once = scatter.all.get();
        assert!((18_000..=20_000).contains(&once), "{once}");
        assert!(!scatter.enough());
        scatter.freeze();
        assert_eq!((scatter.new.get(), scatter.all.get()), (0, once));
        // The same ones: an opening would merge them once.
        write_leaves(&scatter, LANE, 0..20_000);
        assert_eq!((scatter.new.get(), scatter.all.get()), (once, once));
        write_leaves(&scatter, OTHER, 0..30_000);
        assert!(scatter.enough() && !scatter.has_room());
        scatter.merged();
        assert_eq!(scatter.all.get(), scatter.new.get());
        scatter.freeze();
        scatter.merged();
        assert_eq!((scatter.new.get(), scatter.all.get()), (0, 0));
        assert!(scatter.has_room());
    }

    #[test]
    fn a_small_delta_is_not_counted() {
        let scatter = Scatter::new(16_384);
        write_leaves(&scatter, LANE, 0..100_000);
        assert!(scatter.has_room() && !scatter.enough());
    }

    #[test]
    fn an_erasure_counts_at_its_ends() {
        let scatter = Scatter::new(500_000);
        scatter.erased((LANE, LeafShape::Plain), GENERATION, &(1000..1 << 40));
        assert_eq!(scatter.all.get(), 2);
    }
}
