//! A family of roots against a model: writes, erasures, snapshots, clones, restores and deletions in any order, deletions in steps between
//! which the others go on changing. At any point every live root has exactly what the model says, and what is allocated is exactly what is
//! reached: nothing is lost, nothing is freed too early, nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::fake::{FakeLayer, FakePages, run};
use super::*;
use crate::store::types::{CatalogueHandle, Crc, Generation, LaneBlock, Stamp};

type Content = BTreeMap<u64, LeafEntry>;

#[derive(Clone, Debug)]
struct Member {
    kind: RecordKind,
    parent: u32,
    generation: Generation,
    root: Root,
    walked: u64,
    content: Content,
}

#[derive(Clone, Debug)]
enum Op {
    Change {
        lane: usize,
        erased: Vec<(u64, u64)>,
        writes: Vec<(u64, u64)>,
        poison: Option<u64>,
    },
    Snapshot(usize),
    Clone(usize),
    Restore(usize, usize),
    DeleteSnapshot(usize),
    DeleteLane(usize),
    Walk(usize, u32),
}

/// Blocks near borders of leaves, slices and pages of every level up to 3.
fn block() -> impl Strategy<Value = u64> {
    let base = prop_oneof![
        4 => Just(0u64),
        2 => Just(4000),
        2 => Just(64 * 152 - 300),
        1 => Just(650_000),
        1 => Just(40_000_000),
    ];
    (base, 0u64..600).prop_map(|(base, offset)| base + offset)
}

fn op() -> impl Strategy<Value = Op> {
    let erased = (
        block(),
        prop_oneof![1u64..300, Just(20_000), Just(2_000_000)],
    );
    let change = (
        0usize..8,
        prop::collection::vec(erased, 0..3),
        prop::collection::vec((block(), 1u64..30), 0..5),
        prop::option::weighted(0.1, block()),
    );
    prop_oneof![
        8 => change.prop_map(|(lane, erased, writes, poison)| Op::Change { lane, erased, writes, poison }),
        3 => (0usize..8).prop_map(Op::Snapshot),
        1 => (0usize..8).prop_map(Op::Clone),
        1 => (0usize..8, 0usize..8).prop_map(|(l, s)| Op::Restore(l, s)),
        2 => (0usize..8).prop_map(Op::DeleteSnapshot),
        1 => (0usize..8).prop_map(Op::DeleteLane),
        8 => (0usize..8, prop_oneof![4 => 1u32..4, 1 => Just(u32::MAX)]).prop_map(|(x, n)| Op::Walk(x, n)),
    ]
}

struct Family {
    pages: FakePages,
    shape: LeafShape,
    members: BTreeMap<u32, Member>,
    next: u32,
    stamps: u64,
}

impl Family {
    fn new(sealed: bool) -> Self {
        let mut family = Self {
            pages: FakePages::default(),
            shape: LeafShape::of(sealed),
            members: BTreeMap::new(),
            next: 1,
            stamps: 0,
        };
        family.add(RecordKind::Live, 0, Root::empty(sealed), Content::new());
        family
    }

    /// Handles and generations rise together here: each record gets a new one of both.
    fn add(&mut self, kind: RecordKind, parent: u32, root: Root, content: Content) -> u32 {
        let member = Member {
            kind,
            parent,
            generation: Generation(self.next),
            root,
            walked: 0,
            content,
        };
        self.members.insert(self.next, member);
        self.next += 1;
        self.next - 1
    }

    fn pick(&self, n: usize, kind: RecordKind) -> Option<u32> {
        let all = self.members.iter().filter(|(_, m)| m.kind == kind);
        let all: Vec<u32> = all.map(|(h, _)| *h).collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    fn children(&self, of: u32) -> Vec<u32> {
        let all = self.members.iter().filter(|(_, m)| m.parent == of);
        all.map(|(h, _)| *h).collect()
    }

    fn closed(&self, handle: u32) -> Generation {
        let member = self.members.get(&handle);
        member.map_or(Generation(0), |m| m.generation)
    }

    /// What is above it is own at a leaf.
    fn bound(&self, handle: u32, leaf: u64) -> Generation {
        let parent = self.members[&handle].parent;
        match self.members.get(&parent) {
            Some(p) if p.kind == RecordKind::Deleting && leaf < p.walked => self.closed(p.parent),
            _ => self.closed(parent),
        }
    }

    fn change(
        &mut self,
        handle: u32,
        erased: &[(u64, u64)],
        writes: &[(u64, u64)],
        poison: Option<u64>,
    ) {
        let mut member = self.members[&handle].clone();
        let mut layer = FakeLayer::new(self.shape);
        for (first, blocks) in erased {
            layer.erase(*first..first + blocks);
            member
                .content
                .retain(|b, _| !(*first..first + blocks).contains(b));
        }
        let generation = member.generation;
        for block in writes.iter().flat_map(|(first, n)| *first..first + n) {
            self.stamps += 1;
            let stamp = Stamp {
                epoch: 1,
                seq: self.stamps,
            };
            let entry = if poison == Some(block) {
                LeafEntry::poison(generation, stamp, Crc(3))
            } else {
                LeafEntry::data(
                    self.pages.data(),
                    generation,
                    stamp,
                    Crc(self.stamps as u32),
                )
            };
            if let Some(before) = layer.entries.insert(block, entry)
                && let Some(block) = before.block()
            {
                self.pages.delta.borrow_mut().remove(&block.0);
            }
            member.content.insert(block, entry);
        }
        let own = |leaf| self.bound(handle, leaf);
        let context = MergeContext {
            handle: CatalogueHandle(handle),
            generation,
            own: &own,
        };
        member.root = run(merge(&self.pages, &member.root, &layer, &context)).expect("room");
        assert!(self.pages.delta.borrow().is_empty());
        self.members.insert(handle, member);
    }

    /// A snapshot has the generation that the lane had; the lane gets a new one.
    fn snapshot(&mut self, lane: u32) {
        let member = self.members[&lane].clone();
        let snapshot = self.add(
            RecordKind::Snapshot,
            member.parent,
            member.root,
            member.content,
        );
        let new = Generation(self.next);
        self.next += 1;
        let taken = self.members.get_mut(&snapshot).expect("just added");
        taken.generation = member.generation;
        let live = self.members.get_mut(&lane).expect("it is there");
        live.parent = snapshot;
        live.generation = new;
    }

    fn branch(&mut self, snapshot: u32) {
        let origin = self.members[&snapshot].clone();
        self.add(RecordKind::Live, snapshot, origin.root, origin.content);
    }

    fn delete(&mut self, handle: u32) {
        let kind = if self.children(handle).len() > 1 {
            RecordKind::Hidden
        } else {
            RecordKind::Deleting
        };
        self.members.get_mut(&handle).expect("it is there").kind = kind;
    }

    /// Hidden ones that only one descends from are being deleted.
    fn unhide(&mut self) {
        let hidden = self
            .members
            .iter()
            .filter(|(_, m)| m.kind == RecordKind::Hidden);
        let hidden: Vec<u32> = hidden.map(|(h, _)| *h).collect();
        for handle in hidden {
            self.delete(handle);
        }
    }

    /// One at a time in a line: who began goes on, then the older one.
    fn must_wait(&self, handle: u32) -> bool {
        let deleting = |h: &u32| {
            let member = self.members.get(h);
            member.filter(|m| m.kind == RecordKind::Deleting)
        };
        let member = &self.members[&handle];
        let child_began = |h: &u32| deleting(h).is_some_and(|m| m.walked > 0);
        self.children(handle).iter().any(child_began)
            || member.walked == 0 && deleting(&member.parent).is_some()
    }

    fn walk(&mut self, handle: u32, leaves_max: u32) {
        if self.must_wait(handle) {
            return;
        }
        let member = self.members[&handle].clone();
        let own = self.closed(member.parent);
        let children = self.children(handle);
        assert!(children.len() <= 1);
        let child = children.first().map(|c| self.members[c].root);
        let before = self.pages.used.borrow().len() as u64;
        let unique = (member.walked == 0).then(|| {
            let children = child.as_slice();
            let unique = count_unique(&self.pages, &member.root, own, children);
            let unique = run(unique).expect("read");
            unique.data + unique.pages
        });
        let step = give_up(
            &self.pages,
            &member.root,
            own,
            child.as_ref(),
            member.walked,
            leaves_max,
        );
        let step = run(step).expect("read");
        let freed = before - self.pages.used.borrow().len() as u64;
        if let Some(unique) = unique {
            assert!(freed <= unique);
            assert!(step.next.is_some() || freed == unique);
        }
        if leaves_max == u32::MAX {
            assert_eq!(step.next, None);
        }
        match step.next {
            Some(next) => {
                assert!(next > member.walked, "every step comes further");
                self.members.get_mut(&handle).expect("it is there").walked = next;
            }
            None => {
                self.members.remove(&handle);
                for child in children {
                    self.members.get_mut(&child).expect("it is there").parent = member.parent;
                }
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        self.pages.checkpoint.set(self.pages.checkpoint.get() + 1);
        match op {
            Op::Change {
                lane,
                erased,
                writes,
                poison,
            } => {
                if let Some(lane) = self.pick(*lane, RecordKind::Live) {
                    self.change(lane, erased, writes, *poison);
                }
            }
            Op::Snapshot(lane) => {
                if let Some(lane) = self.pick(*lane, RecordKind::Live) {
                    self.snapshot(lane);
                }
            }
            Op::Clone(snapshot) => {
                if let Some(snapshot) = self.pick(*snapshot, RecordKind::Snapshot) {
                    self.branch(snapshot);
                }
            }
            Op::Restore(lane, snapshot) => {
                let lane = self.pick(*lane, RecordKind::Live);
                let snapshot = self.pick(*snapshot, RecordKind::Snapshot);
                if let (Some(lane), Some(snapshot)) = (lane, snapshot) {
                    self.branch(snapshot);
                    self.delete(lane);
                }
            }
            Op::DeleteSnapshot(snapshot) => {
                if let Some(snapshot) = self.pick(*snapshot, RecordKind::Snapshot) {
                    self.delete(snapshot);
                }
            }
            Op::DeleteLane(lane) => {
                if let Some(lane) = self.pick(*lane, RecordKind::Live) {
                    self.delete(lane);
                }
            }
            Op::Walk(which, leaves) => {
                self.unhide();
                if let Some(handle) = self.pick(*which, RecordKind::Deleting) {
                    self.walk(handle, *leaves);
                }
            }
        }
    }

    fn check(&self) {
        let mut blocks = BTreeSet::new();
        for member in self.members.values() {
            let reached = self.pages.reach(&member.root, member.walked);
            if member.kind != RecordKind::Deleting {
                assert_eq!(reached.entries, member.content);
            }
            blocks.extend(reached.blocks());
        }
        assert_eq!(blocks, *self.pages.used.borrow());
    }

    /// Everything between two roots, as ranges that are asked for a few at a time.
    fn check_diff(&self, older: Option<&Member>, newer: &Member) {
        let nothing = Content::new();
        let old = older.map_or(&nothing, |m| &m.content);
        let mut expected = BTreeMap::new();
        for block in old.keys().chain(newer.content.keys()) {
            let of = |content: &Content| content.get(block).copied().unwrap_or(LeafEntry::ABSENT);
            let (a, b) = (of(old), of(&newer.content));
            if !a.same_content(&b) {
                expected.insert(*block, b != LeafEntry::ABSENT);
            }
        }
        for ranges_max in [1, 3, usize::MAX] {
            let (mut found, mut from) = (BTreeMap::new(), Some(LaneBlock(0)));
            while let Some(at) = from {
                let part = diff(
                    &self.pages,
                    older.map(|m| &m.root),
                    &newer.root,
                    at,
                    ranges_max,
                );
                let (ranges, next) = run(part).expect("read");
                assert!(ranges.len() <= ranges_max);
                for range in ranges {
                    for block in range.first.0..range.first.0 + range.blocks {
                        assert!(found.insert(block, range.data).is_none());
                    }
                }
                assert!(next.is_none_or(|n| n > at));
                from = next;
            }
            assert_eq!(found, expected);
        }
    }

    /// Scrub sees every leaf, or every one that has something of its own.
    fn check_scrub(&self, member: &Member) {
        let parents = self.closed(member.parent);
        for own in [None, Some(parents)] {
            let (mut from, mut leaves) = (0, BTreeSet::new());
            while let Some((leaf, page)) =
                run(next_entries(&self.pages, &member.root, own, from)).expect("read")
            {
                assert!(leaf >= from);
                let header = PageHeader::decode(&page).expect("a page");
                assert!(own.is_none_or(|own| header.generation > own));
                leaves.insert(leaf);
                from = leaf + 1;
            }
            let all = member.content.iter();
            let news = all.filter(|(_, e)| own.is_none_or(|own| e.generation > own));
            let needed = news.map(|(b, _)| self.shape.leaf_of(LaneBlock(*b)).0);
            let needed: BTreeSet<u64> = needed.collect();
            assert!(needed.is_subset(&leaves));
            if own.is_none() {
                assert_eq!(needed, leaves);
            }
        }
    }

    /// Deletes everything that is left, in steps: then nothing is allocated.
    fn end(&mut self) {
        let all: Vec<u32> = self.members.keys().copied().collect();
        for handle in all.into_iter().rev() {
            if matches!(
                self.members[&handle].kind,
                RecordKind::Live | RecordKind::Snapshot
            ) {
                self.delete(handle);
            }
        }
        let mut steps = 0;
        while !self.members.is_empty() {
            self.unhide();
            let deleting = self.members.iter();
            let deleting = deleting.filter(|(_, m)| m.kind == RecordKind::Deleting);
            for handle in deleting.map(|(h, _)| *h).collect::<Vec<_>>() {
                self.walk(handle, 5);
            }
            steps += 1;
            assert!(steps < 10_000, "deletions wait for each other");
        }
        self.check();
        assert!(self.pages.used.borrow().is_empty());
    }
}

fn live_like(m: &&Member) -> bool {
    matches!(m.kind, RecordKind::Live | RecordKind::Snapshot)
}

/// Many leaves written thinly, or many erased, in pages that two levels of the tree share.
fn wide_change() -> impl Strategy<Value = Op> {
    let base = prop_oneof![Just(0u64), Just(58 * 152), Just(630_000)];
    let write = (base.clone(), 1u64..300, 1u64..12).prop_map(|(base, step, n)| {
        (0..n)
            .map(|k| (base + k * (step + 60), 1))
            .collect::<Vec<_>>()
    });
    let erased = (
        base,
        0u64..1500,
        prop_oneof![1u64..2000, Just(12_000), Just(700_000)],
    );
    let erased = erased.prop_map(|(base, at, blocks)| (base + at, blocks));
    (write, prop::option::weighted(0.4, erased)).prop_map(|(writes, erased)| Op::Change {
        lane: 0,
        erased: erased.into_iter().collect(),
        writes,
        poison: None,
    })
}

proptest! {
    #![proptest_config(crate::cases::cases(32))]

    #[test]
    fn every_root_keeps_its_blocks_and_every_block_has_a_root(
        sealed in any::<bool>(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut family = Family::new(sealed);
        for op in &ops {
            family.apply(op);
            family.check();
        }
        let members: Vec<&Member> = family.members.values().filter(live_like).take(5).collect();
        for newer in &members {
            family.check_scrub(newer);
            family.check_diff(None, newer);
            for older in &members {
                family.check_diff(Some(older), newer);
            }
        }
        family.end();
    }

    /// A deletion stops in the middle of pages, and its child replaces and erases on both sides of where it stopped.
    #[test]
    fn a_child_goes_on_changing_while_its_parent_is_given_up(
        first in prop::collection::vec(wide_change(), 1..4),
        between in prop::collection::vec(wide_change(), 1..3),
        later in prop::collection::vec((1u32..6, wide_change(), prop::bool::weighted(0.2)), 1..20),
        grandparent in any::<bool>(),
    ) {
        let mut family = Family::new(false);
        let (lane, rest) = (1, first.len() / 2);
        for change in &first[..rest] {
            family.apply(change);
        }
        if grandparent {
            family.snapshot(lane);
        }
        for change in &first[rest..] {
            family.apply(change);
        }
        family.snapshot(lane);
        let parent = family.members[&lane].parent;
        for change in &between {
            family.apply(change);
        }
        family.delete(parent);
        for (leaves, change, snapshot) in &later {
            if family.members.contains_key(&parent) {
                family.walk(parent, *leaves);
            }
            family.check();
            family.apply(change);
            family.check();
            if *snapshot {
                family.snapshot(lane);
            }
        }
        family.end();
    }
}
