//! Maps with damaged pages: what is not known is said to be, what is known stays, and nothing is freed that somebody may refer to.

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

/// What a leaf says of a block.
fn entry_of(pages: &FakePages, root: &Root, block: u64) -> Result<LeafEntry, MapError> {
    let (number, slot) = leaf_of(LaneBlock(block));
    let page = run(leaf(pages, root, number))?;
    Ok(page.map_or(LeafEntry::ABSENT, |p| LeafShape::Plain.entry(&p, slot)))
}

fn kind_of(pages: &FakePages, root: &Root, block: u64) -> Result<EntryKind, MapError> {
    entry_of(pages, root, block).map(|e| e.kind)
}

#[test]
fn a_damaged_leaf_is_poison_but_for_what_is_written() {
    let pages = FakePages::default();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, 0..1000);
    let root = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    let what = |level, index| root.page(level, index);
    let top = run(pages.read(root.child.block, root.child.crc, what(1, 0))).expect("read");
    let damaged = interior::child(&top, 2);
    pages.damage(damaged.block);
    let before = pages.used.borrow().len();
    // Elsewhere nothing is noticed.
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [5]);
    let root = run(merge(&pages, &root, &layer, &context(1))).expect("room");
    assert!(pages.given_up.borrow().is_empty());
    assert!(matches!(
        kind_of(&pages, &root, 310),
        Err(MapError::Checksum { .. })
    ));
    let mut layer = FakeLayer::new(LeafShape::Plain);
    layer.erase(310..315);
    write(&pages, &mut layer, [304, 312]);
    let root = run(merge(&pages, &root, &layer, &context(2))).expect("room");
    assert_eq!(*pages.given_up.borrow(), [what(0, 2)]);
    for (block, kind) in [
        (303, EntryKind::Data),
        (304, EntryKind::Data),
        (305, EntryKind::Poison),
        (311, EntryKind::Absent),
        (312, EntryKind::Data),
        (315, EntryKind::Poison),
        (455, EntryKind::Poison),
        (456, EntryKind::Data),
        (1001, EntryKind::Absent),
    ] {
        assert_eq!(kind_of(&pages, &root, block), Ok(kind), "block {block}");
    }
    assert_eq!(root.child.used, 1000 - 152 + 2);
    // The blocks that the leaf led to stay marked; the page itself does not.
    assert!(!pages.used.borrow().contains(&damaged.block.0));
    assert_eq!(pages.used.borrow().len(), before + 2);
    let count = |layers: &[FakeLayer]| run(used_with(&pages, &root, layers));
    assert_eq!(count(&[layer]), Ok(root.child.used));
}

#[test]
fn what_a_damaged_interior_page_led_to_is_lost_until_it_is_erased() {
    lose_an_interior_page(false);
}

#[test]
fn what_a_damaged_interior_page_led_to_is_passed_by_a_deletion() {
    lose_an_interior_page(true);
}

fn lose_an_interior_page(deleted: bool) {
    let pages = FakePages::default();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, (0..300_000).step_by(50));
    let root = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    assert_eq!(root.depth, 2);
    let top = run(pages.read(root.child.block, root.child.crc, root.page(2, 0))).expect("read");
    pages.damage(interior::child(&top, 1).block);
    // Leaf 70 is beneath it.
    let first = LeafShape::Plain.first_block(70);
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [first]);
    let lost = run(merge(&pages, &root, &layer, &context(2))).expect("room");
    assert_eq!(*pages.given_up.borrow(), [root.page(1, 1)]);
    assert_eq!(kind_of(&pages, &lost, 0), Ok(EntryKind::Data));
    assert_eq!(kind_of(&pages, &lost, first), Ok(EntryKind::Data));
    assert_eq!(kind_of(&pages, &lost, first + 1), Ok(EntryKind::Poison));
    assert_eq!(kind_of(&pages, &lost, first + 152), Err(MapError::Lost));
    // How it differs from something else is not known either; scrub passes it.
    let differ = diff(&pages, None, &lost, LaneBlock(0), 10_000);
    assert_eq!(run(differ), Err(MapError::Lost));
    let next = run(next_entries(&pages, &lost, None, 71)).expect("read");
    assert_eq!(next.map(|(leaf, _)| leaf), Some(128));
    // A write beneath what is lost, and then an erasure of all of it.
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [first + 152]);
    let lost = run(merge(&pages, &lost, &layer, &context(3))).expect("room");
    assert_eq!(kind_of(&pages, &lost, first + 152), Ok(EntryKind::Data));
    if deleted {
        // Nothing that is lost is in the way of a deletion.
        let gone = run(give_up(&pages, &lost, Generation(0), None, 0, u32::MAX));
        assert_eq!(gone.expect("it ends").next, None);
        assert_eq!(pages.given_up.borrow().len(), 1);
        return;
    }
    let mut layer = FakeLayer::new(LeafShape::Plain);
    layer.erase(LeafShape::Plain.first_block(64)..LeafShape::Plain.first_block(128));
    let whole = run(merge(&pages, &lost, &layer, &context(4))).expect("room");
    assert_eq!(kind_of(&pages, &whole, first), Ok(EntryKind::Absent));
    assert_eq!(kind_of(&pages, &whole, first + 400), Ok(EntryKind::Absent));
    assert_eq!(
        pages.given_up.borrow().len(),
        1,
        "what is lost is lost once"
    );
}

#[test]
fn a_damaged_root_may_be_beneath_a_tree_that_grows() {
    let pages = FakePages::default();
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [0, 1]);
    let root = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
    assert_eq!(root.depth, 0);
    pages.damage(root.child.block);
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [1_000_000]);
    let deep = run(merge(&pages, &root, &layer, &context(1))).expect("room");
    assert_eq!(*pages.given_up.borrow(), [root.page(0, 0)]);
    assert!(!pages.used.borrow().contains(&root.child.block.0));
    assert_eq!(kind_of(&pages, &deep, 1_000_000), Ok(EntryKind::Data));
    assert_eq!(kind_of(&pages, &deep, 1), Err(MapError::Lost));
    let mut layer = FakeLayer::new(LeafShape::Plain);
    write(&pages, &mut layer, [1]);
    let deep = run(merge(&pages, &deep, &layer, &context(1))).expect("room");
    assert_eq!(kind_of(&pages, &deep, 1), Ok(EntryKind::Data));
    assert_eq!(kind_of(&pages, &deep, 0), Ok(EntryKind::Poison));
}

/// A deletion where the parent's page, or the child's, is damaged frees only what nobody else can have.
#[test]
fn a_deletion_gives_up_what_is_damaged() {
    for of_child in [false, true] {
        let pages = FakePages::default();
        let mut layer = FakeLayer::new(LeafShape::Plain);
        write(&pages, &mut layer, 0..1000);
        let parent = run(merge(&pages, &Root::empty(false), &layer, &context(1))).expect("room");
        let own = |_| Generation(1);
        let mut layer = FakeLayer::new(LeafShape::Plain);
        write(&pages, &mut layer, [0, 160, 320]);
        let context = MergeContext {
            own: &own,
            ..context(2)
        };
        let child = run(merge(&pages, &parent, &layer, &context)).expect("room");
        let of = if of_child { &child } else { &parent };
        let top = run(pages.read(of.child.block, of.child.crc, of.page(1, 0))).expect("read");
        pages.damage(interior::child(&top, 1).block);
        let before = pages.used.borrow().len();
        let replaced = |block| entry_of(&pages, &parent, block).expect("read").block();
        let freed = [replaced(0), replaced(320)];
        let done = run(give_up(
            &pages,
            &parent,
            Generation(0),
            Some(&child),
            0,
            u32::MAX,
        ));
        assert_eq!(done.expect("it ends").next, None);
        assert_eq!(*pages.given_up.borrow(), [parent.page(0, 1)]);
        // The root, three leaves, and two of the blocks that were replaced.
        assert_eq!(before - pages.used.borrow().len(), 1 + 3 + 2);
        for block in freed {
            assert!(!pages.used.borrow().contains(&block.expect("data").0));
        }
        for block in [0, 1, 320, 999] {
            assert_eq!(kind_of(&pages, &child, block), Ok(EntryKind::Data));
        }
        let counted = count_unique(&pages, &child, Generation(1), &[]);
        assert_eq!(
            run(counted).is_err(),
            of_child,
            "what is not known is not counted"
        );
    }
}
