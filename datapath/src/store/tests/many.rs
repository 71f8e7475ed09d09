//! A thousand snapshots of one volume (`docs/store-format.md` §7, §14): taken with writes in between, found again after a power cut, compared,
//! deleted in random order while writes go on. Then the drive has as many blocks in use as before them, data and pages.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::super::VolumeId;
use super::super::check::{CheckOptions, check};
use super::super::engine::{Space, Store};
use super::super::types::SnapshotId;
use super::life::{LONG, Peek, open};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;

const SNAPSHOTS: u32 = 1000;
/// Blocks of the volume, which all have data.
const BLOCKS: u64 = 1000;
/// Of these, written between two snapshots.
const WRITTEN: usize = 6;
/// Snapshots that are compared.
const COMPARED: usize = 12;
/// Taken and deleted before anything is counted: the catalogue has its depth then.
const WARM_UP: u32 = 40;

const VOLUME: VolumeId = VolumeId([1; 16]);
const CLONE: VolumeId = VolumeId([2; 16]);

fn id(n: u32) -> SnapshotId {
    let mut id = [9; 16];
    id[..4].copy_from_slice(&n.to_le_bytes());
    SnapshotId(id)
}

/// The version of each block.
type State = BTreeMap<u64, u32>;

struct Volume {
    handle: Handle,
    store: Store,
    random: StdRng,
    state: State,
    version: u32,
}

impl Volume {
    async fn write(&mut self, block: u64) {
        self.version += 1;
        let lane = self.store.lane(VOLUME, 0).expect("the lane");
        let mut buffer = self.handle.buffers().take(4096).await;
        buffer[..4].copy_from_slice(&self.version.to_le_bytes());
        buffer[4..12].copy_from_slice(&block.to_le_bytes());
        let (_, written) = lane.write(block..block + 1, buffer, false).await;
        written.expect("a write");
        self.state.insert(block, self.version);
    }

    async fn write_some(&mut self) {
        for _ in 0..WRITTEN {
            let block = self.random.random_range(0..BLOCKS);
            self.write(block).await;
        }
    }

    async fn take(&self, n: u32) {
        let taken = self.store.snapshot(&[(VOLUME, id(n))]).await;
        taken.expect("a snapshot");
    }

    async fn delete(&self, n: u32) {
        let deleted = self.store.delete_snapshot(VOLUME, id(n)).await;
        deleted.expect("it is deleted");
    }

    async fn compare(&self, volume: VolumeId, state: &State) {
        let lane = self.store.lane(volume, 0).expect("the lane");
        for (&block, version) in state {
            let buffer = self.handle.buffers().take(4096).await;
            let (buffer, read) = lane.read(block..block + 1, buffer).await;
            read.expect("a read");
            let found = (&buffer[..4], &buffer[4..12]);
            let wanted = (&version.to_le_bytes()[..], &block.to_le_bytes()[..]);
            assert_eq!(found, wanted, "block {block} of {volume}");
        }
    }

    /// Blocks in use once nothing is under way any more.
    async fn at_rest(&self) -> Space {
        while !self.store.settled() {
            self.store.checkpoint().await.expect("a checkpoint");
        }
        for _ in 0..2 {
            self.store.checkpoint().await.expect("a checkpoint");
            self.store.flush().await.expect("a flush");
        }
        self.store.check();
        self.store.space()
    }
}

/// Everything up to the power cut, and what is to be found after it.
async fn take_all(handle: Handle, seed: u64) -> (Space, State, Vec<(u32, State)>) {
    let store = open(handle.clone(), true).await.expect("the drive opens");
    let made = store.create_lanes(VOLUME, &[0], 1, BLOCKS * 4096).await;
    made.expect("a lane");
    let mut volume = Volume {
        handle,
        store,
        random: StdRng::seed_from_u64(seed),
        state: State::new(),
        version: 0,
    };
    for block in 0..BLOCKS {
        volume.write(block).await;
    }
    for n in 0..WARM_UP {
        volume.take(u32::MAX - n).await;
    }
    for n in 0..WARM_UP {
        volume.delete(u32::MAX - n).await;
    }
    let before = volume.at_rest().await;
    let compared: Vec<u32> = (0..COMPARED)
        .map(|_| volume.random.random_range(0..SNAPSHOTS))
        .chain([0, SNAPSHOTS - 1])
        .collect();
    let mut states = Vec::new();
    for n in 0..SNAPSHOTS {
        volume.take(n).await;
        if compared.contains(&n) {
            states.push((n, volume.state.clone()));
        }
        volume.write_some().await;
    }
    volume.store.flush().await.expect("a flush");
    (before, volume.state, states)
}

/// What comes after it.
async fn delete_all(handle: Handle, seed: u64, state: State, states: Vec<(u32, State)>) -> Space {
    let store = open(handle.clone(), false).await.expect("the drive opens");
    let mut volume = Volume {
        handle,
        store,
        random: StdRng::seed_from_u64(seed + 1),
        state,
        version: 1 << 30,
    };
    assert_eq!(volume.store.snapshots().len(), SNAPSHOTS as usize);
    volume.compare(VOLUME, &volume.state).await;
    for (n, state) in &states {
        let cloned = volume.store.clone_lanes(VOLUME, id(*n), CLONE).await;
        cloned.expect("a clone");
        volume.compare(CLONE, state).await;
        let deleted = volume.store.delete_lanes(CLONE).await;
        deleted.expect("it is deleted");
    }
    let mut order: Vec<u32> = (0..SNAPSHOTS).collect();
    order.shuffle(&mut volume.random);
    for (count, n) in order.into_iter().enumerate() {
        volume.delete(n).await;
        if count % 10 == 0 {
            volume.write_some().await;
        }
    }
    assert_eq!(volume.store.snapshots().len(), 0);
    volume.compare(VOLUME, &volume.state).await;
    let after = volume.at_rest().await;
    volume.store.close().await.expect("it closes");
    after
}

#[test]
fn nothing_is_left_of_a_thousand_snapshots() {
    let seed = super::setting("KEEL_SEED").unwrap_or_else(super::fresh_seed);
    println!("KEEL_SEED={seed} repeats it");
    super::log_if_asked();
    let sim = Sim::new(seed);
    sim.add_disk("d", 160 << 20);
    let (node, handles) = sim.start_node(1);
    let taken = take_all(handles[0].clone(), seed);
    let (before, state, states) = sim.run(&handles[0], LONG, taken).expect("it ends");
    drop(handles);
    sim.power_cut(node, &["d"]);
    let handle = sim.restart_node(node, 1)[0].clone();
    let deleted = delete_all(handle.clone(), seed, state, states);
    let after = sim.run(&handle, LONG, deleted).expect("it ends");
    assert_eq!((after.used, after.pages), (before.used, before.pages));
    let report = check(&Peek(&sim), CheckOptions { data: true });
    assert!(report.is_clean(), "{}", report.text());
}
