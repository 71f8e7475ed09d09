//! Blocks of an older mount in the journal (S7). An opening that cannot read the newest of them goes on where the last one is that it could read, under the
//! same sequence numbers; when they can be read again, they stand right behind what was written since.

use std::ops::Range;

use super::super::VolumeId;
use super::super::engine::Store;
use super::super::journal::BlockHeader;
use super::super::superblock::{self, Found};
use super::super::types::BLOCK_BYTES;
use super::life::{LONG, open};
use crate::device::{Device, DeviceSource, Latch};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;

const DRIVE: &str = "d";
const VOLUME: VolumeId = VolumeId([1; 16]);
/// The block that is changed in both mounts.
const BLOCK: u64 = 2;

async fn write(handle: &Handle, store: &Store, block: u64, value: u8) {
    let lane = store.lane(VOLUME, 0).expect("the lane");
    let mut buffer = handle.buffers().take(BLOCK_BYTES).await;
    buffer[..BLOCK_BYTES].fill(value);
    let (_, written) = lane.write(block..block + 1, buffer, false).await;
    written.expect("a write");
}

async fn read(handle: &Handle, store: &Store) -> u8 {
    let lane = store.lane(VOLUME, 0).expect("the lane");
    let buffer = handle.buffers().take(BLOCK_BYTES).await;
    let (buffer, read) = lane.read(BLOCK..BLOCK + 1, buffer).await;
    read.expect("a read");
    buffer[0]
}

/// Where the journal is, in bytes.
async fn journal(handle: &Handle) -> Range<u64> {
    let source = DeviceSource::Sim { name: DRIVE.into() };
    let device = Device::open(handle, &source, &Latch::new(|_| {})).expect("the drive is there");
    let found = superblock::find(&device, handle.buffers()).await;
    let Ok(Found::Present(present)) = found else {
        panic!("no superblock: {found:?}");
    };
    let layout = present.superblock.layout;
    let start = layout.journal_start().0 * BLOCK_BYTES as u64;
    start..start + u64::from(layout.journal_blocks()) * BLOCK_BYTES as u64
}

/// Erases a block in one mount; another one, which cannot read the last two blocks of the journal, writes it; a third reads it. What the second
/// wrote, and what the third found.
pub fn written_behind_an_older_mount() -> (u8, u8) {
    let sim = Sim::new(1);
    sim.add_disk(DRIVE, 16 << 20);
    sim.disk(DRIVE, |d| d.volatile_cache = true);
    let mount = |handle: &Handle, format: bool| {
        let opened = sim.run(handle, LONG, open(handle.clone(), format));
        opened.expect("it ends").expect("the drive opens")
    };
    let (node, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let store = mount(&handle, true);
    let at = handle.clone();
    let done = sim.run(&handle, LONG, async move {
        let made = store.create_lanes(VOLUME, &[0], 1, 16 * 4096).await;
        made.expect("a lane");
        for (block, value) in [(0, 1), (BLOCK, 2), (1, 3)] {
            write(&at, &store, block, value).await;
        }
        // No data that somebody else may have taken the place of: nothing but the mount says that it is old.
        let lane = store.lane(VOLUME, 0).expect("the lane");
        lane.erase(BLOCK..BLOCK + 1).await.expect("an erasure");
        journal(&at).await
    });
    let places = done.expect("it ends");
    sim.kill(node);
    // The two newest blocks of the journal.
    let mut there: Vec<(u64, u64)> = Vec::new();
    for at in places.step_by(BLOCK_BYTES) {
        let mut block = [0; BLOCK_BYTES];
        sim.disk(DRIVE, |d| d.peek(at, &mut block));
        if BlockHeader::decode(&block).is_ok() {
            there.push((BlockHeader::identity(&block).2, at));
        }
    }
    there.sort_unstable();
    let newest: Vec<u64> = there.iter().rev().take(2).map(|(_, at)| *at).collect();
    let unreadable = newest.iter().map(|at| *at..*at + BLOCK_BYTES as u64);
    sim.disk(DRIVE, |d| d.faults.unreadable = unreadable.collect());
    let handle = sim.restart_node(node, 1)[0].clone();
    let store = mount(&handle, false);
    sim.disk(DRIVE, |d| d.faults.unreadable.clear());
    let at = handle.clone();
    let done = sim.run(&handle, LONG, async move {
        write(&at, &store, BLOCK, 4).await;
    });
    done.expect("it ends");
    sim.kill(node);
    let handle = sim.restart_node(node, 1)[0].clone();
    let store = mount(&handle, false);
    let at = handle.clone();
    let found = sim.run(&handle, LONG, async move { read(&at, &store).await });
    (4, found.expect("it ends"))
}

#[test]
fn an_older_mount_is_not_replayed_behind_a_newer_one() {
    let (written, found) = written_behind_an_older_mount();
    assert_eq!(found, written);
}
