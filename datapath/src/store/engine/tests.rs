//! The whole of a store on a simulated drive, step by step; the harness in `store/tests` does it at random.

use std::time::Duration;

use super::super::Name;
use super::*;
use crate::device::{DeviceSource, Latch};
use crate::reactor::sim::{NodeId, Sim};

const LONG: Duration = Duration::from_secs(10_000);
const VOLUME: VolumeId = VolumeId([7; 16]);
const CLONE: VolumeId = VolumeId([8; 16]);
const SNAP: SnapshotId = SnapshotId([9; 16]);

struct Rig {
    sim: Sim,
    node: NodeId,
    handle: Handle,
    store: Store,
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

async fn open(handle: Handle, format: bool) -> Store {
    let source = DeviceSource::Sim { name: "d".into() };
    let device = Device::open(&handle, &source, &Latch::new(|_| {})).unwrap();
    if format {
        let formatted = Store::format(&handle, &device, &name("d"), &name("p")).await;
        formatted.unwrap();
    }
    let config = StoreConfig {
        cache: CacheBudget::new(1 << 20),
    };
    Store::open(&handle, &device, &config).await.unwrap()
}

impl Rig {
    fn new(bytes: u64) -> Self {
        let sim = Sim::new(5);
        sim.add_disk("d", bytes);
        let (node, handles) = sim.start_node(1);
        let handle = handles[0].clone();
        let store = sim.run(&handle, LONG, open(handle.clone(), true)).unwrap();
        Self {
            sim,
            node,
            handle,
            store,
        }
    }

    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        self.sim.run(&self.handle, LONG, future).expect("it ends")
    }

    fn power_cut(mut self) -> Self {
        self.sim.power_cut(self.node, &["d"]);
        self.handle = self.sim.restart_node(self.node, 1)[0].clone();
        let opened = open(self.handle.clone(), false);
        self.store = self.sim.run(&self.handle, LONG, opened).expect("it opens");
        self
    }

    fn lane(&self, volume: VolumeId) -> StoreLane {
        self.store.lane(volume, 0).unwrap()
    }

    fn create(&self) {
        let store = self.store.clone();
        self.run(async move { store.create_lanes(VOLUME, &[0], 1, 1 << 30).await })
            .unwrap();
    }

    fn write(&self, volume: VolumeId, first: u64, count: u64, fill: u8) {
        let (lane, handle) = (self.lane(volume), self.handle.clone());
        self.run(async move {
            let mut buffer = handle.buffers().take((count * 4096) as usize).await;
            buffer[..(count * 4096) as usize].fill(fill);
            lane.write(first..first + count, buffer, false).await.1
        })
        .unwrap();
    }

    fn read(&self, volume: VolumeId, first: u64, count: u64) -> Vec<u8> {
        let (lane, handle) = (self.lane(volume), self.handle.clone());
        self.run(async move {
            let mut buffer = handle.buffers().take((count * 4096) as usize).await;
            buffer.fill(0xee);
            let (buffer, result) = lane.read(first..first + count, buffer).await;
            result.unwrap();
            (0..count as usize)
                .map(|n| {
                    let block = &buffer[n * 4096..][..4096];
                    assert!(block.iter().all(|b| *b == block[0]));
                    block[0]
                })
                .collect()
        })
    }

    fn flush(&self) {
        let store = self.store.clone();
        self.run(async move { store.flush().await }).unwrap();
    }

    fn checkpoint(&self) {
        let store = self.store.clone();
        self.run(async move { store.checkpoint().await }).unwrap();
        self.store.check();
    }
}

#[test]
fn what_was_flushed_survives_with_and_without_a_checkpoint() {
    let rig = Rig::new(32 << 20);
    rig.create();
    rig.write(VOLUME, 0, 8, 1);
    rig.write(VOLUME, 100, 256, 2);
    rig.write(VOLUME, 4, 1, 3);
    assert_eq!(rig.read(VOLUME, 0, 10), [1, 1, 1, 1, 3, 1, 1, 1, 0, 0]);
    rig.flush();
    let rig = rig.power_cut();
    assert_eq!(rig.read(VOLUME, 0, 10), [1, 1, 1, 1, 3, 1, 1, 1, 0, 0]);
    assert_eq!(rig.read(VOLUME, 99, 3), [0, 2, 2]);
    rig.write(VOLUME, 5, 1, 4);
    rig.checkpoint();
    rig.write(VOLUME, 6, 1, 5);
    assert_eq!(rig.read(VOLUME, 0, 10), [1, 1, 1, 1, 3, 4, 5, 1, 0, 0]);
    rig.flush();
    let rig = rig.power_cut();
    assert_eq!(rig.read(VOLUME, 0, 10), [1, 1, 1, 1, 3, 4, 5, 1, 0, 0]);
    assert_eq!(rig.read(VOLUME, 354, 3), [2, 2, 0]);
    let store = rig.store.clone();
    rig.run(async move { store.close().await }).unwrap();
    let rig = rig.power_cut();
    assert_eq!(rig.read(VOLUME, 0, 10), [1, 1, 1, 1, 3, 4, 5, 1, 0, 0]);
}

#[test]
fn snapshots_clones_and_restores() {
    let rig = Rig::new(32 << 20);
    rig.create();
    rig.write(VOLUME, 0, 4, 1);
    let store = rig.store.clone();
    rig.run(async move { store.snapshot(&[(VOLUME, SNAP)]).await })
        .unwrap();
    rig.write(VOLUME, 1, 1, 2);
    let store = rig.store.clone();
    rig.run(async move { store.clone_lanes(VOLUME, SNAP, CLONE).await })
        .unwrap();
    assert_eq!(rig.read(VOLUME, 0, 5), [1, 2, 1, 1, 0]);
    assert_eq!(rig.read(CLONE, 0, 5), [1, 1, 1, 1, 0]);
    rig.write(CLONE, 4, 1, 3);
    let rig = {
        rig.flush();
        rig.power_cut()
    };
    assert_eq!(rig.read(VOLUME, 0, 5), [1, 2, 1, 1, 0]);
    assert_eq!(rig.read(CLONE, 0, 5), [1, 1, 1, 1, 3]);
    let store = rig.store.clone();
    let diff = rig.run(async move {
        store
            .diff(
                VOLUME,
                0,
                Some(RootOf::Snapshot(SNAP)),
                RootOf::Live,
                LaneBlock(0),
                100,
            )
            .await
    });
    let expect = DiffRange {
        first: LaneBlock(1),
        blocks: 1,
        data: true,
    };
    assert_eq!(diff, Ok((vec![expect], None)));
    let store = rig.store.clone();
    rig.run(async move { store.restore(VOLUME, SNAP).await })
        .unwrap();
    assert_eq!(rig.read(VOLUME, 0, 5), [1, 1, 1, 1, 0]);
    let store = rig.store.clone();
    rig.run(async move {
        store.delete_lanes(CLONE).await?;
        store.delete_snapshot(VOLUME, SNAP).await?;
        store.delete_lanes(VOLUME).await
    })
    .unwrap();
    let (store, handle) = (rig.store.clone(), rig.handle.clone());
    rig.run(async move {
        while !store.settled() || store.0.reclaim.waiting() > 0 {
            handle.sleep(Duration::from_millis(10)).await;
            store.flush().await.unwrap();
        }
    });
    rig.checkpoint();
    assert_eq!(rig.store.space().used, 0);
    let rig = rig.power_cut();
    assert_eq!(rig.store.space().used, 0);
    assert!(rig.store.lanes().is_empty() && rig.store.snapshots().is_empty());
}

#[test]
fn a_full_drive_takes_overwrites_and_erasures() {
    let rig = Rig::new(16 << 20);
    rig.create();
    let (lane, handle, store) = (rig.lane(VOLUME), rig.handle.clone(), rig.store.clone());
    rig.run(async move {
        let mut buffer = handle.buffers().take(64 * 4096).await;
        let mut at = 0;
        let mut result;
        loop {
            (buffer, result) = lane.write(at..at + 16, buffer, false).await;
            if result.is_err() {
                break;
            }
            at += 16;
        }
        assert_eq!(result, Err(StoreError::Full));
        let used = store.space();
        assert!(used.free <= used.reserve + 16, "{used:?}");
        for n in 0..2 * at {
            (buffer, result) = lane.write(n * 7 % at..n * 7 % at + 1, buffer, false).await;
            assert_eq!(result, Ok(()), "overwrite {n}");
        }
        lane.erase(0..at / 2).await.unwrap();
        for n in 0..at / 32 {
            (buffer, result) = lane
                .write(at + n * 16..at + n * 16 + 16, buffer, false)
                .await;
            assert_eq!(result, Ok(()), "after erasing, {n}");
        }
    });
    rig.store.check();
}

/// Each looks at the reserve, and then reads leaves: what it saw is not true any more when it has.
#[test]
fn overwrites_beside_each_other_leave_the_checkpoint_its_half_of_the_reserve() {
    let mut rig = Rig::new(16 << 20);
    rig.create();
    let mut at = 0;
    while rig.store.space().free > rig.store.space().reserve + 32 {
        rig.write(VOLUME, at, 8, 1);
        at += 8;
    }
    rig.checkpoint();
    // Leaves are not in memory after an opening.
    let store = rig.store.clone();
    rig.run(async move { store.close().await }).unwrap();
    let opened = open(rig.handle.clone(), false);
    rig.store = rig.run(opened);
    let done = Rc::new(Cell::new(0));
    // Large ones, then small ones for what is left: together more than there is.
    for n in 0..40 {
        let (lane, handle, done) = (rig.lane(VOLUME), rig.handle.clone(), done.clone());
        rig.handle.spawn("overwrite", async move {
            let blocks = if n < 8 { 64 } else { 8 };
            let buffer = handle.buffers().take(blocks as usize * 4096).await;
            let first = n * 66;
            let (_, result) = lane.write(first..first + blocks, buffer, false).await;
            assert_eq!(result, Ok(()), "overwrite {n}");
            done.set(done.get() + 1);
        });
    }
    let handle = rig.handle.clone();
    let all = done.clone();
    rig.run(async move {
        while all.get() < 40 {
            handle.sleep(Duration::from_millis(1)).await;
        }
    });
    rig.checkpoint();
    rig.store.check();
}

impl Rig {
    fn used(&self, volume: VolumeId, of: RootOf) -> u64 {
        let store = self.store.clone();
        self.run(async move { store.used_blocks(volume, of).await })
            .unwrap()
    }

    fn erase(&self, volume: VolumeId, blocks: Range<u64>) {
        let lane = self.lane(volume);
        self.run(async move { lane.erase(blocks).await }).unwrap();
    }
}

#[test]
fn used_blocks_are_exact_without_a_checkpoint() {
    let rig = Rig::new(32 << 20);
    rig.create();
    let live = |rig: &Rig, expect| {
        assert_eq!(rig.used(VOLUME, RootOf::Live), expect);
        let store = rig.store.clone();
        let (lanes, _) =
            rig.run(async move { store.lanes_and_snapshots(Exactly::Lanes(None)).await });
        let found = lanes.iter().find(|l| l.volume == VOLUME).unwrap();
        assert_eq!((found.used_blocks, found.error), (expect, None));
    };
    let checkpoints = rig.store.counters().checkpoints;
    rig.write(VOLUME, 0, 8, 1);
    rig.write(VOLUME, 4, 8, 2);
    live(&rig, 12);
    rig.checkpoint();
    live(&rig, 12);
    rig.write(VOLUME, 0, 8, 3);
    live(&rig, 12);
    rig.write(VOLUME, 10, 4, 3);
    live(&rig, 14);
    rig.erase(VOLUME, 0..2);
    live(&rig, 12);
    rig.erase(VOLUME, 100..1 << 30);
    live(&rig, 12);
    rig.write(VOLUME, 1000, 3, 3);
    live(&rig, 15);
    let store = rig.store.clone();
    rig.run(async move { store.snapshot(&[(VOLUME, SNAP)]).await })
        .unwrap();
    rig.write(VOLUME, 0, 4, 4);
    rig.erase(VOLUME, 0..1 << 30);
    live(&rig, 0);
    assert_eq!(rig.used(VOLUME, RootOf::Snapshot(SNAP)), 15);
    rig.write(VOLUME, 5, 1, 5);
    live(&rig, 1);
    assert_eq!(
        rig.store.counters().checkpoints,
        checkpoints + 1,
        "only the one that was asked for"
    );
    rig.flush();
    let rig = rig.power_cut();
    live(&rig, 1);
    assert_eq!(rig.used(VOLUME, RootOf::Snapshot(SNAP)), 15);
    let store = rig.store.clone();
    rig.run(async move { store.clone_lanes(VOLUME, SNAP, CLONE).await })
        .unwrap();
    rig.write(CLONE, 14, 2, 6);
    assert_eq!(rig.used(CLONE, RootOf::Live), 17);
    assert_eq!(rig.used(VOLUME, RootOf::Snapshot(SNAP)), 15);
    let store = rig.store.clone();
    rig.run(async move { store.restore(VOLUME, SNAP).await })
        .unwrap();
    live(&rig, 15);
    let unknown = SnapshotId([1; 16]);
    let store = rig.store.clone();
    let none = rig.run(async move {
        let unknown = store.used_blocks(VOLUME, RootOf::Snapshot(unknown)).await;
        (
            unknown,
            store.used_blocks(VolumeId([1; 16]), RootOf::Live).await,
        )
    });
    assert_eq!(none, (Err(StoreError::Unknown), Err(StoreError::Unknown)));
}

/// Where a page of a lane's map is: the first of a level in which a leaf's path leads through it.
fn page_at(
    rig: &Rig,
    volume: VolumeId,
    level: u8,
    leaf: u64,
) -> super::super::types::PhysicalBlock {
    use super::super::map::{PageId, PageKind, Pages, interior};
    let root = rig.lane(volume).lane.root.get();
    let pages = rig.store.0.pages.clone();
    rig.run(async move {
        let (mut entry, mut at) = (root.child, root.depth);
        while at > level {
            let index = leaf / interior::leaves_of_level(at);
            let kind = PageKind::Interior;
            let what = PageId {
                kind,
                level: at,
                index,
            };
            let page = pages.read(entry.block, entry.crc, what).await.unwrap();
            at -= 1;
            entry = interior::child(
                &page,
                leaf / interior::leaves_of_level(at) % interior::FANOUT,
            );
        }
        assert!(!entry.is_none());
        entry.block
    })
}

/// Rot in a page of a map: lanes go on, the journal's tail moves, what is not known says so, and what is written again is whole.
#[test]
fn a_damaged_page_costs_what_it_led_to_and_nothing_else() {
    for level in [0, 1] {
        let rig = Rig::new(64 << 20);
        rig.create();
        let store = rig.store.clone();
        rig.run(async move { store.create_lanes(CLONE, &[0], 1, 1 << 30).await })
            .unwrap();
        // Leaves 0 and 1, and one beneath another interior page.
        rig.write(VOLUME, 0, 200, 1);
        rig.write(VOLUME, 20_000, 10, 2);
        rig.write(CLONE, 0, 10, 3);
        rig.checkpoint();
        let at = page_at(&rig, VOLUME, level, 0);
        rig.flush();
        let rig = rig.power_cut();
        rig.sim.disk("d", |d| d.rot(at.0 * 4096 + 100, 3));
        rig.write(VOLUME, 5, 1, 4);
        rig.write(CLONE, 5, 1, 5);
        rig.checkpoint();
        for n in 0..20_u8 {
            // Elsewhere in the volume, and in another lane.
            rig.write(VOLUME, 20_000 + u64::from(n), 1, n + 10);
            rig.write(CLONE, 7, 1, n + 10);
            rig.checkpoint();
        }
        assert!(!rig.store.failed());
        let counters = rig.store.counters();
        assert_eq!((counters.lost_pages, counters.checksum_errors), (1, 1));
        let found = |rig: &Rig, block: u64| {
            let (lane, handle) = (rig.lane(VOLUME), rig.handle.clone());
            rig.run(async move {
                let buffer = handle.buffers().take(4096).await;
                let (buffer, read) = lane.read(block..block + 1, buffer).await;
                read.map(|()| buffer[0])
            })
        };
        let check = |rig: &Rig| {
            assert_eq!(found(rig, 5), Ok(4));
            let of_leaf_0 = StoreError::Poisoned {
                block: LaneBlock(6),
            };
            assert_eq!(found(rig, 6), Err(of_leaf_0));
            let of_leaf_1 = if level == 0 {
                Ok(1)
            } else {
                Err(StoreError::Lost)
            };
            assert_eq!(found(rig, 160), of_leaf_1);
            assert_eq!(rig.read(VOLUME, 20_000, 20)[19], 29);
            assert_eq!(rig.read(CLONE, 5, 3), [5, 3, 29]);
            let lossy = rig
                .store
                .lanes()
                .iter()
                .map(|l| (l.volume, l.lossy))
                .collect::<Vec<_>>();
            assert_eq!(lossy, [(VOLUME, true), (CLONE, false)]);
        };
        check(&rig);
        let store = rig.store.clone();
        rig.run(async move { store.close().await }).unwrap();
        let report = super::super::check::check(
            &crate::store::tests::Peek(&rig.sim),
            super::super::check::CheckOptions { data: true },
        );
        assert!(report.is_clean(), "{}", report.text());
        // Of leaf 0 all but the block that was written again; beneath the interior page all.
        let cut_off = if level == 0 { 152 } else { 200 + 2 };
        assert_eq!(report.cut_off, cut_off, "{}", report.text());
        let rig = rig.power_cut();
        check(&rig);
        rig.erase(VOLUME, 0..1000);
        rig.write(VOLUME, 0, 10, 6);
        assert_eq!(rig.read(VOLUME, 0, 11)[9..], [6, 0]);
        rig.checkpoint();
        assert_eq!(rig.read(VOLUME, 160, 1), [0]);
        assert_eq!(rig.used(VOLUME, RootOf::Live), 10 + 20);
        rig.store.check();
    }
}

/// A drive that cannot be read for a while is not taken for one whose pages rotted.
#[test]
fn a_drive_that_does_not_read_fails_a_checkpoint_and_loses_nothing() {
    let rig = Rig::new(64 << 20);
    rig.create();
    for n in 0..100 {
        rig.write(VOLUME, n * 152, 1, 1);
    }
    rig.checkpoint();
    let rig = {
        rig.flush();
        rig.power_cut()
    };
    rig.sim
        .disk("d", |d| d.faults.unreadable.push(0..d.bytes()));
    for n in 0..100 {
        rig.write(VOLUME, n * 152, 1, 2);
    }
    let store = rig.store.clone();
    let failed = rig.run(async move { store.checkpoint().await });
    assert!(failed.is_err() && rig.store.failed(), "{failed:?}");
    rig.sim.disk("d", |d| d.faults.unreadable.clear());
    let rig = {
        rig.flush();
        rig.power_cut()
    };
    for n in 0..100 {
        assert_eq!(rig.read(VOLUME, n * 152, 2), [2, 0]);
    }
    assert_eq!(rig.store.counters().lost_pages, 0);
}

/// A delta of few entries that lead to many leaves would make a crash's opening as long as one of many.
#[test]
fn writes_far_apart_begin_a_checkpoint_by_the_leaves_they_lead_to() {
    let rig = Rig::new(8 << 30);
    rig.create();
    let store = rig.store.clone();
    let before = store.counters().checkpoints;
    let (handle, lane) = (rig.handle.clone(), rig.lane(VOLUME));
    let begun = rig.run(async move {
        // Many at a time: one record in each block would fill the journal first.
        for some in 0..60_000 / 64 {
            let writes = (some * 64..(some + 1) * 64).map(|slice| {
                let (handle, lane) = (handle.clone(), lane.clone());
                async move {
                    let buffer = handle.buffers().take(BLOCK_BYTES).await;
                    lane.write(slice * 4096..slice * 4096 + 1, buffer, false)
                        .await
                        .1
                }
            });
            for written in join::join_all(writes).await {
                written.unwrap();
            }
            if store.counters().checkpoints > before {
                return (some * 64, store.0.delta_max);
            }
        }
        panic!("no checkpoint");
    });
    let (writes, delta_max) = begun;
    // Begun at 30,000; and if it takes so long, writes wait for it at 45,000.
    assert!((28_000..47_000).contains(&writes), "after {writes} writes");
    assert!(delta_max / 2 > 60_000, "and not by entries: {delta_max}");
}
