//! What a map would have with layers over it is what it has when they are merged.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::fake::{FakeLayer, FakePages, run};
use super::*;
use crate::store::types::{CatalogueHandle, Crc, Generation, Stamp};

/// Erased ranges and then written ones, each a first block and how many.
type Change = (Vec<(u64, u64)>, Vec<(u64, u64)>);

/// Near borders of leaves, slices and pages of several levels.
fn place() -> impl Strategy<Value = u64> {
    let base = prop_oneof![
        4 => Just(0u64),
        2 => Just(4000),
        2 => Just(64 * 152 - 300),
        1 => Just(650_000),
        1 => Just(40_000_000),
    ];
    (base, 0u64..600).prop_map(|(base, offset)| base + offset)
}

fn change() -> impl Strategy<Value = Change> {
    let long = prop_oneof![1u64..300, Just(20_000), Just(2_000_000), Just(1 << 39)];
    (
        prop::collection::vec((place(), long), 0..3),
        prop::collection::vec((place(), 1u64..40), 0..5),
    )
}

fn layer(pages: &FakePages, model: &mut BTreeSet<u64>, generation: u32, c: &Change) -> FakeLayer {
    let mut layer = FakeLayer::new(LeafShape::Plain);
    for (first, blocks) in &c.0 {
        layer.erase(*first..first + blocks);
        model.retain(|b| !(*first..first + blocks).contains(b));
    }
    for block in c.1.iter().flat_map(|(first, n)| *first..first + n) {
        let stamp = Stamp { epoch: 1, seq: 1 };
        if layer.entries.contains_key(&block) {
            continue;
        }
        let entry = LeafEntry::data(pages.data(), Generation(generation), stamp, Crc(1));
        layer.entries.insert(block, entry);
        model.insert(block);
    }
    layer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn layers_over_a_map_are_counted_as_if_they_were_merged(
        merged in prop::collection::vec(change(), 0..4),
        over in prop::collection::vec(change(), 0..5),
    ) {
        let pages = FakePages::default();
        let (mut model, mut root) = (BTreeSet::new(), Root::empty(false));
        let own = |_| Generation(0);
        let mut generation = 1;
        let merge_in = |root: &Root, layer: &FakeLayer, generation| {
            let context = MergeContext { handle: CatalogueHandle(1), generation: Generation(generation), own: &own };
            run(merge(&pages, root, layer, &context)).expect("room")
        };
        for c in &merged {
            let layer = layer(&pages, &mut model, generation, c);
            root = merge_in(&root, &layer, generation);
            generation += 1;
        }
        prop_assert_eq!(root.child.used, model.len() as u64);
        let base = root;
        let mut layers = Vec::new();
        for c in &over {
            let next = layer(&pages, &mut model, generation, c);
            layers.push(next);
            generation += 1;
            prop_assert_eq!(run(used_with(&pages, &base, &layers)).expect("read"), model.len() as u64);
        }
    }
}

#[test]
fn what_is_not_in_doubt_is_not_read() {
    let pages = FakePages::default();
    let mut model = BTreeSet::new();
    let wide: Vec<(u64, u64)> = (0..200).map(|n| (n * 152, 10)).collect();
    let base = layer(&pages, &mut model, 1, &(Vec::new(), wide));
    let context = MergeContext {
        handle: CatalogueHandle(1),
        generation: Generation(1),
        own: &|_| Generation(0),
    };
    let root = run(merge(&pages, &Root::empty(false), &base, &context)).expect("room");
    let reads = |layers: &[FakeLayer], expect: u64| {
        let before = pages.reads.get();
        assert_eq!(run(used_with(&pages, &root, layers)), Ok(expect));
        pages.reads.get() - before
    };
    assert_eq!(reads(&[], 2000), 0, "as the root says");
    let all = layer(&pages, &mut model, 2, &(vec![(0, 1 << 30)], Vec::new()));
    assert_eq!(reads(&[all], 0), 0, "all is erased");
    let one = layer(&pages, &mut model, 3, &(Vec::new(), vec![(5, 10)]));
    let depth = u64::from(root.depth);
    assert_eq!(
        reads(&[one], 2005),
        depth + 1,
        "one leaf and what leads there"
    );
    let whole = layer(&pages, &mut model, 4, &(Vec::new(), vec![(152, 152)]));
    assert_eq!(reads(&[whole], 2142), depth, "a leaf that is all new");
}
