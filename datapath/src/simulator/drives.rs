//! What a node keeps its replica on: a store in memory, or a simulated drive with the real store on it.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use crate::device::{Device, DeviceSource, Latch};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;
use crate::replication::held::Held;
use crate::replication::replica::memory::{Disk, Memory};
use crate::replication::seam::{
    Entry, Id, KeptSet, Promise, ReplicaError, ReplicaStore, Unsettled,
};
use crate::replication::wire::resync::Tree;
use crate::store::check::{BlockReader, CheckOptions, check};
use crate::store::engine::{CacheBudget, OpenError, Replica, Store, StoreConfig};
use crate::store::types::{SnapshotId, Stamp};
use crate::store::{Name, VolumeId};

/// Bytes of a drive: small, so that its journal comes around and its blocks are used again.
const DRIVE_BYTES: u64 = 16 << 20;
/// Bytes that a node caches.
const CACHE_BYTES: u64 = 256 << 10;
/// Bytes of the volume.
const VOLUME_BYTES: u64 = 1 << 30;
/// Formatting takes no longer.
const FORMATTED_WITHIN: Duration = Duration::from_secs(10);

/// A node's drive.
#[derive(Clone)]
pub enum Drive {
    /// In memory.
    Memory(Rc<RefCell<Disk>>),
    /// A simulated one, of this name.
    Real(String),
}

/// A store that was opened.
#[derive(Clone)]
pub enum Opened {
    /// In memory.
    Memory(Memory),
    /// The real one.
    Real(Replica),
}

fn name(text: &str) -> Name {
    Name::new(text).expect("letters are a name")
}

async fn open(handle: &Handle, drive: &str, format: bool) -> Result<Store, OpenError> {
    let source = DeviceSource::Sim { name: drive.into() };
    let device = Device::open(handle, &source, &Latch::new(|_| {})).expect("the drive is there");
    if format {
        Store::format(handle, &device, &name(drive), &name("pool")).await?;
    }
    let config = StoreConfig {
        cache: CacheBudget::new(CACHE_BYTES),
    };
    Store::open(handle, &device, &config).await
}

impl Drive {
    /// One of real stores, with an empty replica on it.
    pub fn format(
        sim: &Sim,
        handle: &Handle,
        drive: String,
        (volume, id, lanes): (Id, Id, u8),
        (volatile, sealed): (bool, bool),
    ) -> Self {
        sim.add_disk(&drive, DRIVE_BYTES);
        sim.disk(&drive, |d| d.volatile_cache = volatile);
        let (on, of) = (handle.clone(), drive.clone());
        let formatted = sim.run(handle, FORMATTED_WITHIN, async move {
            let store = open(&on, &of, true).await.expect("it is formatted");
            let all = [(store.clone(), (0..lanes).collect())];
            let made =
                Replica::create(&all, VolumeId(volume), id, lanes, (VOLUME_BYTES, sealed)).await;
            made.expect("there is room");
            store.close().await.expect("it closes");
        });
        formatted.expect("it is formatted in time");
        Self::Real(drive)
    }

    /// Opens what is on it. `volatile`: what is written is lost without a flush when the power goes.
    pub async fn open(&self, handle: &Handle, volume: Id, volatile: bool) -> Opened {
        match self {
            Self::Memory(disk) => Opened::Memory(Memory::open(handle, disk, volatile)),
            Self::Real(drive) => {
                let store = open(handle, drive, false).await;
                let store = store.unwrap_or_else(|e| panic!("{drive} does not open: {e}"));
                let replica = Replica::open(&[store], VolumeId(volume));
                Opened::Real(replica.unwrap_or_else(|e| panic!("{drive}: {e}")))
            }
        }
    }

    /// Its operations take up to so long.
    pub fn set_slow(&self, sim: &Sim, slow: Duration) {
        if let Self::Real(drive) = self {
            sim.disk(drive, |d| d.latency = (slow / 10, slow));
        }
    }

    /// Its name, if the simulation has it.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Memory(_) => None,
            Self::Real(drive) => Some(drive),
        }
    }

    /// Looks at a drive that nobody has open.
    ///
    /// # Panics
    /// If what is on it contradicts itself.
    pub fn check(&self, sim: &Sim) {
        let Self::Real(drive) = self else { return };
        let report = check(&Outside(sim, drive), CheckOptions { data: true });
        assert!(report.is_clean(), "{drive}:\n{}", report.text());
    }
}

/// A drive from outside.
struct Outside<'a>(&'a Sim, &'a str);

impl BlockReader for Outside<'_> {
    fn blocks(&self) -> u64 {
        self.0.disk(self.1, |d| d.bytes()) / 4096
    }

    fn read(&self, block: u64, into: &mut [u8; 4096]) -> io::Result<()> {
        self.0.disk(self.1, |d| d.peek(block * 4096, into));
        Ok(())
    }
}

impl Opened {
    /// Its operations take up to so long.
    pub fn set_slow(&self, slow: Duration) {
        if let Self::Memory(store) = self {
            store.set_slow(slow);
        }
    }
}

/// The same of either.
macro_rules! either {
    ($self:ident, $store:ident => $does:expr) => {
        match $self {
            Opened::Memory($store) => $does,
            Opened::Real($store) => $does,
        }
    };
}

impl ReplicaStore for Opened {
    fn lanes(&self) -> u8 {
        either!(self, s => s.lanes())
    }

    fn sealed(&self) -> bool {
        either!(self, s => s.sealed())
    }

    async fn apply(&self, record: &Rc<Held>) -> Result<(), ReplicaError> {
        either!(self, s => s.apply(record).await)
    }

    async fn copy(&self, record: &Rc<Held>, s0: Stamp) -> Result<(), ReplicaError> {
        either!(self, s => s.copy(record, s0).await)
    }

    async fn repair(&self, record: &Rc<Held>) -> Result<(), ReplicaError> {
        either!(self, s => s.repair(record).await)
    }

    async fn flush(&self) -> Result<(), ReplicaError> {
        either!(self, s => s.flush().await)
    }

    async fn read(
        &self,
        tree: Tree,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, ReplicaError>) {
        either!(self, s => s.read(tree, blocks, into).await)
    }

    async fn unsettled(&self, lane: u8) -> Result<Unsettled, ReplicaError> {
        either!(self, s => s.unsettled(lane).await)
    }

    async fn fetch(&self, lane: u8, stamp: Stamp) -> Result<Option<Rc<Held>>, ReplicaError> {
        either!(self, s => s.fetch(lane, stamp).await)
    }

    async fn summaries(
        &self,
        tree: Tree,
        level: u8,
        first: u64,
        count: u32,
    ) -> Result<Vec<u32>, ReplicaError> {
        either!(self, s => s.summaries(tree, level, first, count).await)
    }

    async fn leaf(&self, tree: Tree, leaf: u64) -> Result<Vec<(u64, Entry)>, ReplicaError> {
        either!(self, s => s.leaf(tree, leaf).await)
    }

    fn snapshots(&self) -> Vec<(SnapshotId, u8)> {
        either!(self, s => s.snapshots())
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), ReplicaError> {
        either!(self, s => s.delete_snapshot(id).await)
    }

    fn settled(&self, lane: u8) -> Stamp {
        either!(self, s => s.settled(lane))
    }

    fn settle(&self, lane: u8, stamp: Stamp) {
        either!(self, s => s.settle(lane, stamp));
    }

    fn copied_from(&self, lane: u8, s0: Stamp) {
        either!(self, s => s.copied_from(lane, s0));
    }

    fn settle_here(&self, lane: u8, stamp: Stamp) {
        either!(self, s => s.settle_here(lane, stamp));
    }

    fn has_room(&self, record: &Held, rolled: bool) -> bool {
        either!(self, s => s.has_room(record, rolled))
    }

    fn promise(&self) -> Option<Promise> {
        either!(self, s => s.promise())
    }

    async fn keep_promise(&self, promise: Promise) -> Result<(), ReplicaError> {
        either!(self, s => s.keep_promise(promise).await)
    }

    fn set(&self) -> KeptSet {
        either!(self, s => s.set())
    }

    async fn keep_set(&self, set: &KeptSet) -> Result<(), ReplicaError> {
        either!(self, s => s.keep_set(set).await)
    }

    fn boot(&self) -> Id {
        either!(self, s => s.boot())
    }

    fn space(&self) -> u64 {
        either!(self, s => s.space())
    }

    fn volatile(&self) -> bool {
        either!(self, s => s.volatile())
    }
}
