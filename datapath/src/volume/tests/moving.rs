//! Lanes move between drives of two reactors, to and fro, while both reactors work on them.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use super::workload::Workload;
use super::*;
use crate::store::engine::NextFamily;
use crate::store::mover::{AtDrive, Conduct, move_family};

struct Mover {
    handle: Handle,
    registry: Registry,
    to: u32,
}

impl Conduct for Mover {
    fn handle(&self) -> &Handle {
        &self.handle
    }

    fn cancelled(&self) -> bool {
        false
    }

    fn copied(&self, _: u64) {}

    fn lagging(&self) {}

    async fn alone<T>(&self, work: impl Future<Output = T>) -> T {
        work.await
    }

    async fn held<T>(&self, lanes: &[(VolumeId, u8)], work: impl Future<Output = T>) -> Option<T> {
        let within = Duration::from_secs(5);
        self.registry.hold_lanes(lanes, within, work).await
    }

    async fn switch(&self, lanes: &[(VolumeId, u8)]) {
        self.registry.move_lanes(lanes, self.to).await;
    }
}

/// Moves all that a drive has to another.
async fn empty(handle: &Handle, registry: &Registry, from: u32, to: u32) -> usize {
    let (source, destination) = (registry.home(from), registry.home(to));
    let mover = Mover {
        handle: handle.clone(),
        registry: registry.clone(),
        to,
    };
    let mut moved = 0;
    loop {
        let next = source.run(|s| async move { Ok(s.next_family()) });
        match next.await.unwrap() {
            NextFamily::Family(family) => {
                let done = move_family(&source, &destination, &mover, family);
                done.await.unwrap();
                moved += 1;
            }
            NextFamily::Nothing => return moved,
            NextFamily::Deleting => handle.sleep(Duration::from_millis(10)).await,
            NextFamily::Undecided => panic!("no drive failed"),
        }
    }
}

fn to_and_fro(sources: Vec<DeviceSource>, size: u64, rounds: u32, seed: u64) {
    println!("seed {seed}");
    with_volume(2, sources, size, move |here: Here| async move {
        let mut work = Workload::new(here.clone(), size, seed);
        let Some(registry) = here.registry.clone() else {
            // Until the volume is closed by the other.
            while here.volume.size_bytes() == size {
                work.step().await;
            }
            work.check_all().await;
            return;
        };
        let done = Rc::new(Cell::new(false));
        let (moving, handle) = (done.clone(), here.handle.clone());
        let mover = registry.clone();
        here.handle.spawn("mover", async move {
            for round in 0..rounds {
                let (from, to) = (round % 2, 1 - round % 2);
                let moved = empty(&handle, &mover, from, to).await;
                assert!(moved > 0, "round {round}");
                // All of it is there now, and on no other reactor.
                let drives = mover.drives(ID).unwrap();
                assert!(drives.iter().all(|d| *d == to), "{drives:?}");
                let volume = mover.volume(ID).unwrap();
                assert_eq!(volume.only_owner(), Some(mover_home(&mover, to)));
            }
            moving.set(true);
        });
        let mut steps = 0;
        while !done.get() {
            work.step().await;
            here.volume.flush().await.unwrap();
            steps += 1;
        }
        assert!(steps > 0);
        work.check_all().await;
        // The other reactor's sign to end.
        registry.resize(ID, size - 4096).await;
    });
}

fn mover_home(registry: &Registry, drive: u32) -> ReactorId {
    registry.hub().home_of(drive)
}

#[test]
fn lanes_move_under_work_in_memory() {
    let size = 1024 * MIB;
    to_and_fro(memories(2, 128 * MIB), size, 3, fresh_seed());
}

#[test]
fn lanes_move_under_work_on_files() {
    let dir = tempfile::tempdir().unwrap();
    to_and_fro(files(&dir, 2, 64 * MIB), 128 * MIB, 3, fresh_seed());
}
