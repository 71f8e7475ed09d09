//! One thing at a time: what the random work does not do, or would not say clearly.

use std::rc::Rc;

use super::super::super::engine::{Replica, Store};
use super::super::super::superblock::COPY_BYTES;
use super::super::super::types::{BLOCK_BYTES, Stamp};
use super::super::life::{LONG, open};
use super::super::work::volume_id;
use super::model::{Does, Rec, State, content, held};
use super::{ID, VOLUME, opened};
use crate::reactor::Handle;
use crate::reactor::sim::{NodeId, Sim};
use crate::replication::held::Held;
use crate::replication::seam::{
    Entry, KeptSet, Kind, Promise, ReplicaError, ReplicaStore, Standing,
};

use crate::replication::wire::resync::Tree;

const DRIVE: &str = "d";

struct Rig {
    sim: Sim,
    node: NodeId,
    handle: Handle,
    store: Store,
    replica: Replica,
}

fn stamp(seq: u64) -> Stamp {
    Stamp { epoch: 3, seq }
}

impl Rig {
    fn new() -> Self {
        Self::of(false)
    }

    /// Of a replica that is sealed or not.
    fn of(sealed: bool) -> Self {
        let sim = Sim::new(5);
        sim.add_disk(DRIVE, 16 << 20);
        let (node, handles) = sim.start_node(1);
        let handle = handles[0].clone();
        let on = handle.clone();
        let made = async move {
            let store = open(on, true).await.expect("it opens");
            let drives = [(store.clone(), vec![0])];
            let made = Replica::create(&drives, volume_id(VOLUME), ID, 1, (1 << 30, sealed)).await;
            made.expect("there is room");
            store
        };
        let store = sim.run(&handle, LONG, made).expect("it ends");
        let replica = opened(&store);
        Self {
            sim,
            node,
            handle,
            store,
            replica,
        }
    }

    fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        self.sim.run(&self.handle, LONG, work).expect("it ends")
    }

    /// The power is cut; what the drive says then.
    fn cut(&mut self) -> Result<Replica, ReplicaError> {
        self.sim.power_cut(self.node, &[DRIVE]);
        self.handle = self.sim.restart_node(self.node, 1).remove(0);
        let opening = open(self.handle.clone(), false);
        self.store = self.run(opening).expect("it opens");
        Replica::open(std::slice::from_ref(&self.store), volume_id(VOLUME))
    }

    fn record(&self, does: Does, seq: u64, blocks: std::ops::Range<u64>) -> Rc<Held> {
        let handle = self.handle.clone();
        let state = State::Held;
        let rec = Rec {
            does,
            blocks,
            state,
            sealed: self.replica.sealed(),
        };
        self.run(async move { held(&handle, 0, stamp(seq), &rec, true).await })
    }

    fn try_apply(
        &self,
        does: Does,
        seq: u64,
        blocks: std::ops::Range<u64>,
    ) -> Result<(), ReplicaError> {
        let record = self.record(does, seq, blocks);
        let replica = self.replica.clone();
        self.run(async move { replica.apply(&record).await })
    }

    fn apply(&self, does: Does, seq: u64, blocks: std::ops::Range<u64>) {
        self.try_apply(does, seq, blocks).expect("it is applied");
    }

    fn copy(&self, does: Does, seq: u64, blocks: std::ops::Range<u64>, s0: u64) {
        let record = self.record(does, seq, blocks);
        let replica = self.replica.clone();
        let copied = self.run(async move { replica.copy(&record, stamp(s0)).await });
        copied.expect("it is copied");
    }

    fn try_read(&self, blocks: std::ops::Range<u64>) -> Result<Vec<Entry>, ReplicaError> {
        let (replica, handle) = (self.replica.clone(), self.handle.clone());
        let of = (0, replica.sealed());
        self.run(async move {
            let len = (blocks.end - blocks.start) as usize * BLOCK_BYTES;
            let buffer = handle.buffers().take(len).await;
            let (buffer, read) = replica.read(Tree::live(0), blocks.clone(), buffer).await;
            if let Ok(entries) = &read {
                for ((n, block), entry) in blocks.enumerate().zip(entries) {
                    let bytes = &buffer[n * BLOCK_BYTES..][..BLOCK_BYTES];
                    super::model::check_bytes(of, block, entry, bytes);
                }
            }
            read
        })
    }

    /// Kinds and counters of stamps.
    fn read(&self, blocks: std::ops::Range<u64>) -> Vec<(Kind, u64)> {
        let entries = self.try_read(blocks).expect("it can be read");
        entries.iter().map(|e| (e.kind, e.stamp.seq)).collect()
    }

    fn fetch(&self, seq: u64) -> Result<Option<Rc<Held>>, ReplicaError> {
        let replica = self.replica.clone();
        self.run(async move { replica.fetch(0, stamp(seq)).await })
    }

    fn flush(&self) {
        let replica = self.replica.clone();
        self.run(async move { replica.flush().await })
            .expect("a flush");
    }

    fn checkpoint(&self) {
        let store = self.store.clone();
        self.run(async move { store.checkpoint().await })
            .expect("a checkpoint");
    }

    /// Where a block's data are; it is there once.
    fn find(&self, block: u64, seq: u64) -> u64 {
        let mut wanted = [0; BLOCK_BYTES];
        content(0, block, stamp(seq), &mut wanted);
        self.sim.disk(DRIVE, |disk| {
            let mut bytes = [0; BLOCK_BYTES];
            let is_there = |at: &u64| {
                disk.peek(*at, &mut bytes);
                bytes == wanted
            };
            let places = (0..disk.bytes()).step_by(BLOCK_BYTES);
            let found: Vec<u64> = places.filter(is_there).collect();
            assert_eq!(found.len(), 1, "{found:?}");
            found[0]
        })
    }

    fn promised(&self, epoch: u32, state: Standing) -> Promise {
        let promise = Promise {
            epoch,
            incarnation: [4; 16],
            version: 9,
            state,
        };
        let replica = self.replica.clone();
        self.run(async move { replica.keep_promise(promise).await })
            .expect("it is kept");
        promise
    }
}

#[test]
fn a_late_record_replaces_what_nothing_higher_is_over_and_all_stay_whole_until_they_are_settled() {
    let mut rig = Rig::new();
    rig.apply(Does::Write, 10, 2..5);
    rig.apply(Does::Erase, 20, 4..6);
    rig.apply(Does::Write, 1, 0..8);
    let expected = vec![
        (Kind::Data, 1),
        (Kind::Data, 2),
        (Kind::Data, 10),
        (Kind::Data, 11),
        (Kind::Erased, 20),
        (Kind::Erased, 20),
        (Kind::Data, 7),
        (Kind::Data, 8),
    ];
    assert_eq!(rig.read(0..8), expected);
    // Again, and another one of that stamp.
    rig.apply(Does::Write, 1, 0..8);
    let other = rig.try_apply(Does::Write, 1, 0..7);
    assert!(
        matches!(other, Err(ReplicaError::Incomplete(_))),
        "{other:?}"
    );
    rig.flush();
    rig.checkpoint();
    for _ in 0..2 {
        rig.replica = rig.cut().expect("it is complete");
        assert_eq!(rig.read(0..8), expected);
        for (seq, blocks) in [(1, 8), (10, 3), (20, 2)] {
            let record = rig.fetch(seq).expect("it is whole").expect("it is listed");
            assert_eq!(record.blocks().count(), blocks);
        }
    }
    rig.replica.settle(0, stamp(12));
    assert!(rig.fetch(10).expect("no error").is_none());
    // What is settled is not applied again.
    rig.apply(Does::Write, 9, 0..1);
    assert_eq!(rig.read(0..1), [(Kind::Data, 1)]);
    rig.replica.settle(0, stamp(20));
    assert_eq!(rig.read(4..6), [(Kind::Absent, 0); 2]);
    rig.checkpoint();
    rig.replica = rig.cut().expect("it is complete");
    assert_eq!(rig.replica.settled(0), stamp(20));
    let replica = rig.replica.clone();
    let list = rig.run(async move { replica.unsettled(0).await });
    assert!(list.expect("a list").records.is_empty());
}

#[test]
fn a_copy_goes_below_s0_and_not_above() {
    let rig = Rig::new();
    rig.promised(3, Standing::Resyncing);
    rig.apply(Does::Write, 50, 0..3);
    rig.apply(Does::Write, 101, 3..6);
    rig.apply(Does::Erase, 110, 6..8);
    // Settled or not: until the resync has ended nothing brings it back.
    rig.replica.settle(0, stamp(110));
    rig.checkpoint();
    rig.copy(Does::Write, 10, 0..10, 100);
    let data = |seq| (Kind::Data, seq);
    assert_eq!(
        rig.read(0..10),
        [
            data(10),
            data(11),
            data(12),
            data(101),
            data(102),
            data(103),
            (Kind::Erased, 110),
            (Kind::Erased, 110),
            data(18),
            data(19)
        ]
    );
    // Blocks with stamps above s0 of their own come by the stream.
    rig.copy(Does::Write, 99, 0..4, 100);
    assert_eq!(rig.read(0..3), [data(99), data(100), data(12)]);
    rig.copy(Does::Erase, 20, 0..20, 100);
    assert_eq!(rig.read(2..4), [(Kind::Absent, 0), data(101)]);
    rig.copy(Does::Poison, 60, 1..3, 100);
    assert_eq!(rig.read(1..3), [(Kind::Poison, 60), (Kind::Poison, 61)]);
}

/// What was erased and is settled is known to copies before it has left the list, too; another subscription needs nothing of what it begins with.
#[test]
fn what_was_erased_is_known_until_another_subscription() {
    let rig = Rig::new();
    rig.promised(3, Standing::Resyncing);
    rig.apply(Does::Write, 90, 0..4);
    rig.replica.copied_from(0, stamp(100));
    rig.apply(Does::Erase, 110, 0..2);
    rig.replica.settle_here(0, stamp(110));
    let erased = |seq| (Kind::Erased, seq);
    let data = |seq| (Kind::Data, seq);
    rig.copy(Does::Write, 10, 0..3, 100);
    assert_eq!(rig.read(0..3), [erased(110), erased(110), data(12)]);
    rig.checkpoint();
    rig.copy(Does::Write, 10, 0..3, 100);
    assert_eq!(rig.read(0..3), [erased(110), erased(110), data(12)]);
    rig.replica.copied_from(0, stamp(120));
    rig.copy(Does::Write, 115, 0..2, 120);
    rig.apply(Does::Erase, 130, 1..2);
    rig.copy(Does::Write, 20, 0..2, 120);
    assert_eq!(rig.read(0..2), [data(20), erased(130)]);
}

#[test]
fn a_repair_is_for_exactly_what_is_damaged() {
    let rig = Rig::new();
    rig.apply(Does::Write, 10, 0..3);
    rig.flush();
    let at = rig.find(1, 11);
    rig.sim.disk(DRIVE, |d| d.rot(at, 3));
    rig.sim.disk(DRIVE, |d| d.rot(at + 100, 3));
    let damaged = Err(ReplicaError::Damaged { lane: 0, block: 1 });
    let fetched = rig.fetch(10);
    assert!(
        matches!(fetched, Err(ReplicaError::Damaged { .. })),
        "{fetched:?}"
    );
    assert_eq!(rig.try_read(0..3).map(drop), damaged);
    let repair = |seq: u64, blocks: std::ops::Range<u64>| {
        let record = rig.record(Does::Write, seq, blocks);
        let replica = rig.replica.clone();
        let repaired = rig.run(async move { replica.repair(&record).await });
        repaired.expect("it is done");
    };
    repair(12, 1..2);
    assert_eq!(rig.try_read(0..3).map(drop), damaged, "of another stamp");
    repair(11, 1..2);
    let data = [(Kind::Data, 10), (Kind::Data, 11), (Kind::Data, 12)];
    assert_eq!(rig.read(0..3), data);
    rig.apply(Does::Poison, 20, 0..2);
    repair(20, 0..1);
    assert_eq!(rig.read(0..2), [(Kind::Data, 20), (Kind::Poison, 21)]);
    repair(11, 1..2);
    assert_eq!(rig.read(1..2), [(Kind::Poison, 21)]);
}

/// A promise is kept, and the newest pair of the superblock's copies rots at once: the promise that is found.
pub fn promise_without_the_newest_pair() -> (Promise, Option<Promise>) {
    let mut rig = Rig::new();
    rig.promised(6, Standing::Promised);
    let promise = rig.promised(7, Standing::Promised);
    let sequence = |copy: usize| {
        let mut bytes = [0; 8];
        let at = (copy * COPY_BYTES + 16) as u64;
        rig.sim.disk(DRIVE, |d| d.peek(at, &mut bytes));
        u64::from_le_bytes(bytes)
    };
    let newest = match sequence(0) > sequence(2) {
        true => [0, 1],
        false => [2, 3],
    };
    for copy in newest {
        let at = (copy * COPY_BYTES + 36_864) as u64;
        rig.sim.disk(DRIVE, |d| d.rot(at, 1));
    }
    let replica = rig.cut().expect("two copies agree");
    (promise, replica.promise())
}

#[test]
fn a_promise_is_in_both_pairs() {
    let (kept, found) = promise_without_the_newest_pair();
    assert_eq!(found, Some(kept));
}

#[test]
fn a_replica_that_may_have_forgotten_is_never_a_replica_again() {
    let mut rig = Rig::new();
    assert_eq!(rig.replica.promise(), None);
    let promise = rig.promised(7, Standing::Promised);
    let set = KeptSet {
        epoch: 7,
        version: 2,
        members: vec![[1; 16], ID],
    };
    let (replica, kept) = (rig.replica.clone(), set.clone());
    rig.run(async move { replica.keep_set(&kept).await })
        .expect("it is kept");
    let rot = |rig: &Rig, copy: usize| {
        let at = (copy * COPY_BYTES + 36_864) as u64;
        rig.sim.disk(DRIVE, |d| d.rot(at, 1));
    };
    let boot = rig.replica.boot();
    rot(&rig, 0);
    rot(&rig, 3);
    rig.replica = rig.cut().expect("two copies agree");
    assert_ne!(rig.replica.boot(), boot);
    assert_eq!(
        (rig.replica.promise(), rig.replica.set()),
        (Some(promise), set)
    );
    for copy in [0, 1, 2] {
        rot(&rig, copy);
    }
    for _ in 0..2 {
        let found = rig.cut().map(|r| r.id());
        assert!(
            matches!(found, Err(ReplicaError::Incomplete(_))),
            "{found:?}"
        );
    }
    // Another one takes its place.
    let store = rig.store.clone();
    let again = rig.run(async move {
        store.delete_lanes(volume_id(VOLUME)).await?;
        let drives = [(store, vec![0])];
        Replica::create(&drives, volume_id(VOLUME), [10; 16], 1, (1 << 30, false)).await
    });
    again.expect("it is made");
    assert_eq!(opened(&rig.store).id(), [10; 16]);
}

#[test]
fn a_list_has_a_bound_and_settling_makes_room() {
    let rig = Rig::new();
    let mut seq = 1;
    let full = loop {
        match rig.try_apply(Does::Write, seq, 0..8) {
            Ok(()) => seq += 8,
            Err(e) => break e,
        }
        assert!(seq < 20_000, "there is a bound");
    };
    assert_eq!(full, ReplicaError::Full);
    rig.flush();
    rig.replica.settle(0, stamp(seq - 1));
    rig.checkpoint();
    rig.apply(Does::Write, seq, 0..8);
    assert_eq!(rig.read(0..1), [(Kind::Data, seq)]);
    rig.store.check();
}

#[test]
fn summaries_are_those_of_what_is_read() {
    for sealed in [false, true] {
        summaries_of(Rig::of(sealed));
    }
}

fn summaries_of(mut rig: Rig) {
    let check = |rig: &Rig| {
        let (replica, handle) = (rig.replica.clone(), rig.handle.clone());
        rig.run(async move { super::summaries::check(&replica, &handle).await });
    };
    check(&rig);
    rig.apply(Does::Write, 1, 0..8);
    rig.apply(Does::Write, 10, 150..158);
    rig.apply(Does::Write, 20, 4094..4100);
    check(&rig);
    rig.flush();
    rig.checkpoint();
    check(&rig);
    rig.apply(Does::Erase, 30, 4..156);
    rig.apply(Does::Write, 31, 60..62);
    check(&rig);
    rig.replica.settle(0, stamp(40));
    check(&rig);
    rig.flush();
    rig.checkpoint();
    check(&rig);
    // Everything beneath a leaf is erased over the map.
    rig.apply(Does::Erase, 50, 4000..4200);
    check(&rig);
    rig.replica = rig.cut().expect("it is complete");
    check(&rig);
}

/// In the delta, beside what it replaced, in the map, on the list, after a crash; by the stream, late, by copies and repairs.
#[test]
fn tags_are_where_their_blocks_are() {
    let mut rig = Rig::of(true);
    rig.apply(Does::Write, 10, 2..5);
    rig.apply(Does::Write, 20, 3..4);
    rig.apply(Does::Poison, 30, 90..96);
    // Late: of another stamp, and so of other tags.
    rig.apply(Does::Write, 1, 0..8);
    let data = |seq| (Kind::Data, seq);
    let expected = [1, 2, 10, 20, 12, 6, 7, 8].map(data);
    assert_eq!(rig.read(0..8), expected);
    for _ in 0..2 {
        rig.flush();
        rig.checkpoint();
        assert_eq!(rig.read(0..8), expected);
        rig.replica = rig.cut().expect("it is complete");
        assert_eq!(rig.read(0..8), expected);
        assert_eq!(rig.read(90..91), [(Kind::Poison, 30)]);
        for (seq, blocks) in [(1, 8), (10, 3)] {
            let record = rig.fetch(seq).expect("it is whole").expect("it is listed");
            let tags = record.blocks().map(|b| record.seal_of(b));
            let of = |b| super::model::seal(0, b, record.stamp_of(b));
            assert!(tags.eq(record.blocks().map(of)), "{record:?}");
            assert_eq!(record.blocks().count(), blocks);
        }
    }
    rig.promised(3, Standing::Resyncing);
    rig.copy(Does::Write, 40, 3..7, 50);
    assert_eq!(rig.read(2..8), [10, 40, 41, 42, 43, 8].map(data));
    let record = rig.record(Does::Write, 30, 90..91);
    let replica = rig.replica.clone();
    rig.run(async move { replica.repair(&record).await })
        .expect("it is done");
    assert_eq!(rig.read(90..91), [data(30)]);
    rig.flush();
    rig.checkpoint();
    rig.replica = rig.cut().expect("it is complete");
    assert_eq!(rig.read(2..8), [10, 40, 41, 42, 43, 8].map(data));
    assert_eq!(rig.read(90..91), [data(30)]);
    rig.store.check();
}

#[test]
fn a_lane_takes_no_record_of_the_other_kind() {
    for sealed in [false, true] {
        let (rig, other) = (Rig::of(sealed), Rig::of(!sealed));
        let record = other.record(Does::Write, 1, 0..1);
        let replica = rig.replica.clone();
        let applied = rig.run(async move { replica.apply(&record).await });
        assert!(
            matches!(applied, Err(ReplicaError::Incomplete(_))),
            "{applied:?}"
        );
        assert_eq!(rig.read(0..1), [(Kind::Absent, 0)]);
    }
}

#[test]
fn a_flush_makes_durable_what_was_settled_before_it() {
    let mut rig = Rig::new();
    rig.apply(Does::Write, 1, 0..4);
    rig.flush();
    rig.replica.settle(0, stamp(1));
    // Right behind the one before: it would wait for a while.
    rig.replica.settle(0, stamp(2));
    rig.flush();
    rig.replica.settle(0, stamp(3));
    rig.replica = rig.cut().expect("it is complete");
    assert_eq!(rig.replica.settled(0), stamp(2));
    // Said by the drive's opening already: nothing is written for it.
    let before = rig.store.counters().journal_blocks;
    rig.flush();
    rig.flush();
    assert_eq!(rig.store.counters().journal_blocks, before);
    rig.replica.settle(0, stamp(4));
    rig.checkpoint();
    rig.flush();
    rig.replica = rig.cut().expect("it is complete");
    assert_eq!(rig.replica.settled(0), stamp(4));
}
