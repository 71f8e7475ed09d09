//! Merging into one map: what is there afterwards, and how much is written for it.

use super::fake::{FakeLayer, FakePages, run};
use super::*;
use crate::store::types::{CatalogueHandle, Crc, Generation, LaneBlock, Stamp};

const OWN: &dyn Fn(u64) -> Generation = &|_| Generation(0);

fn context(generation: u32) -> MergeContext<'static> {
    MergeContext {
        handle: CatalogueHandle(1),
        generation: Generation(generation),
        own: OWN,
    }
}

fn write(pages: &FakePages, layer: &mut FakeLayer, blocks: impl IntoIterator<Item = u64>) {
    for block in blocks {
        let at = pages.data();
        let stamp = Stamp {
            epoch: 1,
            seq: at.0,
        };
        let entry = LeafEntry::data(at, Generation(1), stamp, Crc(at.0 as u32));
        layer.entries.insert(block, entry);
    }
}

fn account(pages: &FakePages, root: &Root) {
    let mut all: Vec<u64> = pages.reach(root, 0).blocks().collect();
    all.sort_unstable();
    let used: Vec<u64> = pages.used.borrow().iter().copied().collect();
    assert_eq!(all, used);
}

#[test]
fn a_tree_grows_as_it_must_and_ends_empty() {
    for shape in [LeafShape::Plain, LeafShape::Sealed] {
        let pages = FakePages::default();
        let mut root = Root::empty(shape == LeafShape::Sealed);
        let mut depths = Vec::new();
        for block in [5, 6, 70 * 152, 5000 * 152, 1 << 39] {
            let mut layer = FakeLayer::new(shape);
            write(&pages, &mut layer, [block]);
            root = run(merge(&pages, &root, &layer, &context(1))).expect("room");
            depths.push(root.depth);
            account(&pages, &root);
            let (at, slot) = shape.leaf_of(LaneBlock(block));
            let found = run(leaf(&pages, &root, at)).expect("read").expect("there");
            assert_eq!(shape.entry(&found, slot), layer.entries[&block]);
            assert!(leaf_cached(&pages, &root, at).expect("cached").is_some());
            assert!(
                leaf_cached(&pages, &root, at + 1)
                    .expect("cached")
                    .is_none()
            );
        }
        assert_eq!(depths[..2], [0, 0]);
        assert!(depths[2] < depths[3] && depths[3] < depths[4]);
        assert_eq!(root.child.used, 5);
        let mut layer = FakeLayer::new(shape);
        layer.erase(0..1 << 40);
        root = run(merge(&pages, &root, &layer, &context(1))).expect("room");
        assert_eq!(root, Root::empty(shape == LeafShape::Sealed));
        account(&pages, &root);
    }
}

#[test]
fn what_is_far_apart_is_read_together_and_once() {
    let pages = FakePages::default();
    let far: Vec<u64> = (0..1000).map(|n| n * 152 * 64 * 3 + n % 7).collect();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, far.iter().copied());
    let root = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    let all = pages.reach(&root, 0).pages.len() as u64;
    pages.reads.set(0);
    pages.waits.set(0);
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, far.iter().map(|block| block + 1));
    let root = run(merge(&pages, &root, &layer, &context(1))).expect("room");
    assert_eq!(pages.reads.get(), all);
    // One by one it would be two for each.
    assert!(pages.waits.get() < 200, "{}", pages.waits.get());
    account(&pages, &root);
    let used = pages.reach(&root, 0).entries.len();
    assert_eq!(used, 2 * far.len());
}

#[test]
fn only_pages_on_changed_paths_are_written() {
    let pages = FakePages::default();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, (0..200_000).step_by(100));
    let root = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    assert_eq!(root.depth, 2);
    pages.writes.set(0);
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [0, 1, 150_000]);
    let newer = run(merge(&pages, &root, &layer, &context(1))).expect("room");
    assert_eq!(pages.writes.get(), 2 + 2 + 1);
    account(&pages, &newer);
    // The same again, and erasing what is not there, changes nothing.
    layer.erase(3..90);
    layer.erase(1 << 30..1 << 31);
    pages.writes.set(0);
    let same = run(merge(&pages, &newer, &layer, &context(1))).expect("room");
    assert_eq!((same, pages.writes.get()), (newer, 0));
    account(&pages, &newer);
}

#[test]
fn an_erased_subtree_is_not_rewritten() {
    let pages = FakePages::default();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, (0..200_000).step_by(100));
    let root = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    pages.writes.set(0);
    let mut layer = FakeLayer::new(LeafShape::Plain);
    layer.erase(50..190_000);
    write(&pages, &mut layer, [100_000]);
    let root = run(merge(&pages, &root, &layer, &context(2))).expect("room");
    account(&pages, &root);
    assert_eq!(root.child.used, 1 + 1 + 100);
    assert!(pages.writes.get() < 10, "{} pages", pages.writes.get());
}

#[test]
fn what_the_parent_refers_to_stays() {
    let pages = FakePages::default();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, 0..20_000);
    let parent = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    let before = pages.used.borrow().clone();
    let own = |_| Generation(1);
    let context = MergeContext {
        own: &own,
        ..context(2)
    };
    let mut layer = FakeLayer::new(LeafShape::Plain);
    layer.erase(100..15_000);
    pages.reads.set(0);
    let child = run(merge(&pages, &parent, &layer, &context)).expect("room");
    assert!(pages.reads.get() < 8, "shared subtrees are not read");
    assert_eq!(child.child.used, 100 + 5_000);
    assert!(before.is_subset(&pages.used.borrow()));
    pages.reach(&parent, 0);
    let mut layer = FakeLayer::new(LeafShape::Plain);
    layer.erase(0..1 << 30);
    let child = run(merge(&pages, &child, &layer, &context)).expect("room");
    assert!(child.is_empty());
    account(&pages, &parent);
}

#[test]
fn damage_and_a_full_drive_are_said() {
    let pages = FakePages::default();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [1, 1_000_000]);
    let root = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    pages.room.set(Some(1));
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [2]);
    let full = run(merge(&pages, &root, &layer, &context(1)));
    assert_eq!(full, Err(MapError::NoSpace));
    pages.damage(root.child.block);
    let damaged = run(leaf(&pages, &root, 0));
    assert!(matches!(damaged, Err(MapError::Checksum { .. })));
}
