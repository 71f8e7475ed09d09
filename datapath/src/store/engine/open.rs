//! Formatting and opening a drive (`docs/store-format.md` §11). Opening after a crash brings the journal's records into deltas, tests
//! those that may be torn, and ends with a checkpoint; until that is committed a second crash finds what the first one left.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tokio::sync::Mutex;

use super::super::group::{Opening, Space as Groups};
use super::super::journal::{RecordRef, Scan, ScanError, Scanner, select};
use super::super::map::{CatalogueRecord, ChildEntry, RecordKind, read_catalogue};
use super::super::superblock::{self, COPY_BYTES, Found, Layout, Superblock};
use super::super::types::{
    BLOCK_BYTES, CatalogueHandle, Crc, DriveId, LaneBlock, LaneSequence, MountGeneration,
    PhysicalBlock, Stamp,
};
use super::super::{Name, VolumeId};
use super::buffers::BufferSet;
use super::cache::BlockCache;
use super::catalogue::Catalogue;
use super::checkpoint::Checkpointer;
use super::flush::Flusher;
use super::gather::{GATHER_BYTES, GATHERS_MAX};
use super::join::join_all;
use super::journal::Journal;
use super::layer::Entry;
use super::now::Now;
use super::pages::DrivePages;
use super::promise::Promises;
use super::reclaim::Reclaim;
use super::scatter::Scatter;
use super::space::{delta_max, reserve};
use super::unsettled::Kept;
use super::writer::Writer;
use super::{Inner, OpenError, Store, StoreConfig, StoreError};
use crate::cipher::Seal;
use crate::device::{Device, IoError};
use crate::reactor::{Handle, Notify};

/// Bytes that a piece of a fragmented read, and a part of the journal at opening, is read with.
const READ_BYTES: usize = 64 << 10;
const READ_BUFFERS: usize = 8;
const NO_STAMP: Stamp = Stamp { epoch: 0, seq: 0 };

fn io(doing: &'static str) -> impl Fn(IoError) -> OpenError {
    move |source| OpenError::Io { doing, source }
}

pub(super) fn corrupt(what: impl std::fmt::Display) -> OpenError {
    OpenError::Corrupt {
        what: what.to_string(),
    }
}

impl Store {
    /// Writes an empty store to a blank drive.
    ///
    /// # Errors
    /// [`OpenError::NotBlank`], [`OpenError::TooSmall`], [`OpenError::Io`].
    pub async fn format(
        handle: &Handle,
        device: &Device,
        drive: &Name,
        pool: &Name,
    ) -> Result<(), OpenError> {
        match find(handle, device).await? {
            Found::Blank => {}
            Found::Present(_) | Found::Corrupt(_) => return Err(OpenError::NotBlank),
        }
        let layout = Layout::for_drive(device.size_bytes()).map_err(|e| OpenError::TooSmall {
            bytes: e.bytes,
            least: superblock::DRIVE_BYTES_MIN,
        })?;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&handle.random().to_le_bytes());
        id[8..].copy_from_slice(&handle.random().to_le_bytes());
        let id = DriveId(
            uuid::Builder::from_random_bytes(id)
                .into_uuid()
                .into_bytes(),
        );
        let mut superblock = Superblock::new(layout, id, drive, pool);
        let buffers = BufferSet::new(handle.buffers(), COPY_BYTES, 1).ok_or(OpenError::Memory)?;
        let mut buffer = buffers.take().await;
        let (back, done) = superblock::commit(device, &mut superblock, buffer.lend()).await;
        buffer.back(back);
        done.map_err(io("format the drive"))
    }

    /// Opens a drive, after a crash too: when this succeeds, it serves.
    ///
    /// # Errors
    /// [`OpenError`]: nothing is served, and nothing was changed that the next opening does not find.
    pub async fn open(
        handle: &Handle,
        device: &Device,
        config: &StoreConfig,
    ) -> Result<Self, OpenError> {
        let present = match find(handle, device).await? {
            Found::Present(present) => *present,
            Found::Blank => return Err(OpenError::Blank),
            Found::Corrupt(why) => return Err(corrupt(why)),
        };
        let (found, expected) = (
            device.size_bytes() / BLOCK_BYTES as u64,
            present.superblock.layout.blocks(),
        );
        if found < expected {
            return Err(OpenError::Shrunk { found, expected });
        }
        // What was found may only be in the drive's cache, and the commit overwrites the pair before it.
        device.flush().await.map_err(io("flush the drive"))?;
        let superblocks =
            BufferSet::new(handle.buffers(), COPY_BYTES, 1).ok_or(OpenError::Memory)?;
        let mut superblock = first_superblock(device, present, &superblocks).await?;
        let clean = superblock.clean;
        raise_mount(&mut superblock);
        if clean {
            superblock.journal_generation = superblock.mount_generation;
        }
        superblock.clean = false;
        superblock.leave_unfinished_behind();
        {
            let mut buffer = superblocks.take().await;
            let (back, done) = superblock::commit(device, &mut superblock, buffer.lend()).await;
            buffer.back(back);
            done.map_err(io("raise the mount generation"))?;
        }
        let inner = Inner::load(handle, device, config, superblock, superblocks).await?;
        let inner = Rc::new(inner);
        inner.read_lanes().await?;
        inner.clone().start_tasks();
        let opened = match clean {
            true if inner.raise_epochs() => inner.checkpoint().await.map_err(checkpoint_failed),
            true => Ok(()),
            false => inner.recover().await,
        };
        if let Err(e) = opened {
            inner.stop();
            return Err(e);
        }
        if !inner.settled() {
            inner.ask_to_delete();
        }
        Ok(Self(inner))
    }
}

/// What the first commit goes on from: nothing that a replica promised gets lost by it, and what may be lost already is said.
async fn first_superblock(
    device: &Device,
    present: superblock::Present,
    buffers: &BufferSet,
) -> Result<Superblock, OpenError> {
    if present.superblock.replicas_version > 0 {
        let mut buffer = buffers.take().await;
        let (back, healed) = superblock::heal(device, &present, buffer.lend()).await;
        buffer.back(back);
        healed.map_err(io("write a torn copy of the superblock again"))?;
    }
    let mut superblock = present.superblock;
    if !present.promises_whole {
        tracing::error!(drive = %superblock.drive, "too few copies of the superblock agree: the replicas on the drive are incomplete, as they may have promised more");
        superblock.lose_promises();
    }
    Ok(superblock)
}

fn raise_mount(superblock: &mut Superblock) {
    #[cfg(planted)]
    if super::super::planted::is(super::super::planted::Bug::MountGenerationNotRaised) {
        return;
    }
    superblock.mount_generation = MountGeneration(superblock.mount_generation.0 + 1);
}

async fn find(handle: &Handle, device: &Device) -> Result<Found, OpenError> {
    let found = superblock::find(device, handle.buffers()).await;
    found.map_err(
        |superblock::SuperblockError::Unreadable { source, .. }| OpenError::Io {
            doing: "read the superblock",
            source,
        },
    )
}

/// The group table.
async fn read_space(
    device: &Device,
    superblock: &Superblock,
    buffers: &BufferSet,
) -> Result<Groups, OpenError> {
    let bad = |e| corrupt(format!("group table: {e}"));
    let mut opening = Opening::new(superblock.layout, superblock.drive_id, &superblock.table);
    let mut buffer = buffers.take().await;
    for (page, at) in opening.pages() {
        let place = at.0 * BLOCK_BYTES as u64;
        let (back, read) = device.read(place, buffer.lend(), BLOCK_BYTES).await;
        buffer.back(back);
        read.map_err(io("read the group table"))?;
        opening.page(page, &buffer[..BLOCK_BYTES]).map_err(bad)?;
    }
    opening.finish(superblock.free_blocks).map_err(bad)
}

impl Inner {
    /// The store's state as the superblock has it: space, and nothing of lanes yet.
    async fn load(
        handle: &Handle,
        device: &Device,
        config: &StoreConfig,
        superblock: Superblock,
        superblocks: BufferSet,
    ) -> Result<Self, OpenError> {
        let set =
            |bytes, count| BufferSet::new(handle.buffers(), bytes, count).ok_or(OpenError::Memory);
        let layout = superblock.layout;
        let cache = Rc::new(BlockCache::new(config.cache.share()));
        let space = read_space(device, &superblock, &set(BLOCK_BYTES, 1)?).await?;
        let space = Rc::new(RefCell::new(space));
        let pages = DrivePages::new(handle, device, superblock.drive_id, &space, &cache);
        let pages = Rc::new(pages.ok_or(OpenError::Memory)?);
        let in_memory = matches!(device, Device::Memory(_));
        let delta_max = delta_max(layout.blocks(), layout.journal_blocks(), in_memory);
        space
            .borrow_mut()
            .set_reserve(reserve(layout.blocks(), delta_max));
        let volatile = device.volatile_cache();
        let journal =
            Journal::new(handle, &superblock, in_memory, volatile).ok_or(OpenError::Memory)?;
        Ok(Self {
            handle: handle.clone(),
            device: device.clone(),
            volatile,
            superblock_buffer: superblocks,
            committed_layout: Cell::new(layout),
            promises: Promises::new(&superblock.replicas),
            read_buffers: set(READ_BYTES, READ_BUFFERS)?,
            cache,
            pages,
            space,
            now_read: RefCell::default(),
            summed: super::read::Summed::default(),
            reclaim: Rc::new(Reclaim::new()),
            journal,
            kept: Kept::default(),
            writer: Writer::new(set(GATHER_BYTES, GATHERS_MAX)?),
            now: Now::default(),
            flusher: Flusher::default(),
            checkpointer: Checkpointer::default(),
            catalogue: RefCell::new(Catalogue::new(
                superblock.next_handle.0,
                superblock.next_generation.0,
            )),
            superblock: RefCell::new(superblock),
            lanes: RefCell::default(),
            names: RefCell::new(BTreeMap::new()),
            unmerged: RefCell::new(BTreeSet::new()),
            pinned: RefCell::default(),
            changing: Mutex::new(()),
            delta_entries: Cell::new(0),
            delta_max,
            delta_frozen: Cell::new(0),
            delta_meanwhile: Cell::new(0),
            scatter: Scatter::new(delta_max),
            deepest: Cell::new(1),
            completed: Notify::new(),
            room: Notify::new(),
            low_on_groups: Notify::new(),
            checksum_errors: Cell::new(0),
            damage_report: RefCell::default(),
            unreported: RefCell::default(),
            cache_hits: Cell::new(0),
            closed: Cell::new(false),
            closing: Cell::new(false),
            stopped: Cell::new(false),
        })
    }

    async fn read_lanes(self: &Rc<Self>) -> Result<(), OpenError> {
        let (root, depth) = {
            let superblock = self.superblock.borrow();
            let root = ChildEntry::decode(&superblock.catalogue_root);
            let root = root.ok_or_else(|| corrupt("the catalogue's root is no child entry"))?;
            (root, superblock.catalogue_depth)
        };
        let mut found = Vec::new();
        let read = read_catalogue(&self.pages, &root, depth, |handle, record| {
            found.push((handle, record));
        });
        read.await.map_err(|e| corrupt(format!("catalogue: {e}")))?;
        let mut arriving = Vec::new();
        for (handle, record) in found {
            match record.kind {
                RecordKind::Live => drop(self.add_lane(handle, &record)),
                RecordKind::Arriving => arriving.push(handle),
                RecordKind::Snapshot | RecordKind::Hidden | RecordKind::Deleting => {}
            }
            self.catalogue.borrow_mut().load(handle, record);
        }
        for handle in arriving {
            self.forget_arrival(handle);
        }
        Ok(())
    }

    /// Lanes that came from a drive with higher epochs than this one's mounts: their next epoch is in their records before the first stamp
    /// of it. True if a checkpoint must say so.
    fn raise_epochs(&self) -> bool {
        let mount = self.superblock.borrow().mount_generation.0 as u32;
        let lanes = self.lanes.borrow();
        let above = lanes.values().filter(|l| l.epoch > mount);
        let mut raised = false;
        for lane in above {
            raised = true;
            let raise = |r: &mut CatalogueRecord| r.epoch = r.epoch.max(lane.epoch);
            self.catalogue.borrow_mut().change(lane.handle, raise);
        }
        raised
    }

    fn start_tasks(self: Rc<Self>) {
        let handle = self.handle.clone();
        handle.spawn("store writer", self.clone().run_writer());
        handle.spawn("store flusher", self.clone().run_flusher());
        handle.spawn("store checkpoints", self.clone().run_checkpointer());
        handle.spawn("store groups", self.clone().run_loader());
        let cache = self.cache.clone();
        handle.spawn("store cache", async move { cache.give_when_asked().await });
        if !self.in_memory() {
            handle.spawn("store journal", self.run_journal());
        }
    }

    /// Brings back what the journal has, and checkpoints.
    async fn recover(self: &Rc<Self>) -> Result<(), OpenError> {
        let scan = self.scan().await?;
        let done: BTreeMap<CatalogueHandle, LaneSequence> = {
            let lanes = self.lanes.borrow();
            lanes
                .iter()
                .map(|(h, lane)| (*h, lane.sequence()))
                .collect()
        };
        // Blocks behind a hole keep what their headers say until the checkpoint: an opening that is repeated sees the same.
        self.journal.resume(scan.first, scan.last + 1);
        let settled_now = self.settled_by(&scan.records);
        let tester = async |blocks: &[(PhysicalBlock, Crc)]| self.test(blocks).await;
        let accepted = select(
            scan.records,
            scan.watermark,
            |handle| done.get(&handle).copied().unwrap_or(LaneSequence(0)),
            |handle| settled_now.get(&handle).copied().unwrap_or(NO_STAMP),
            tester,
        )
        .await
        .map_err(io("test records of the journal"))?;
        let count = accepted.records.len();
        let replaced = accepted.replaced();
        for record in accepted.listed.iter() {
            self.list_again(record, &settled_now);
        }
        for (n, record) in accepted.records.iter().enumerate() {
            self.replay(record, replaced.get(&n).map(Vec::as_slice))?;
            self.list_again(record, &settled_now);
        }
        self.raise_epochs();
        self.hold_delta().await?;
        self.keep_listed(&settled_now).await?;
        tracing::info!(drive = %self.superblock.borrow().drive, records = count, "the drive was not closed: its journal was replayed");
        self.checkpoint().await.map_err(checkpoint_failed)
    }

    /// Of each block, whether it holds what a record says.
    async fn test(&self, blocks: &[(PhysicalBlock, Crc)]) -> Result<Vec<bool>, IoError> {
        let mut found = Vec::with_capacity(blocks.len());
        for some in blocks.chunks(READ_BUFFERS) {
            let tests = some.iter().map(|&(at, crc)| self.test_one(at, crc));
            for one in join_all(tests).await {
                found.push(one?);
            }
        }
        Ok(found)
    }

    async fn test_one(&self, at: PhysicalBlock, crc: Crc) -> Result<bool, IoError> {
        let mut buffer = self.read_buffers.take().await;
        let place = at.0 * BLOCK_BYTES as u64;
        let (back, read) = self.device.read(place, buffer.lend(), BLOCK_BYTES).await;
        buffer.back(back);
        match read {
            Ok(()) => Ok(Crc::of(&buffer[..BLOCK_BYTES]) == crc),
            // What cannot be read was not flushed either: the record is above the watermark.
            Err(IoError::Unreadable | IoError::OutOfRange) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reads the journal.
    async fn scan(&self) -> Result<Scan, OpenError> {
        let (layout, id, generation, first) = {
            let s = self.superblock.borrow();
            (s.layout, s.drive_id, s.journal_generation, s.journal_first)
        };
        let mut scanner = Scanner::new(layout.journal_blocks(), id, generation, first);
        let mut buffer = self.read_buffers.take().await;
        while let Some(places) = scanner.next_read((READ_BYTES / BLOCK_BYTES) as u32) {
            let at = layout.journal_start().0 + u64::from(places.start);
            let len = places.len() * BLOCK_BYTES;
            let place = at * BLOCK_BYTES as u64;
            let (back, read) = self.device.read(place, buffer.lend(), len).await;
            buffer.back(back);
            match read {
                Ok(()) => scanner.feed(places, &buffer[..len]),
                Err(_) => self.feed_singly(&mut scanner, places, layout).await,
            }
            .map_err(scan_error)?;
        }
        Ok(scanner.finish())
    }

    /// A part of the journal cannot be read: block by block, and what is unreadable is a hole.
    async fn feed_singly(
        &self,
        scanner: &mut Scanner,
        places: std::ops::Range<u32>,
        layout: Layout,
    ) -> Result<(), ScanError> {
        let mut buffer = self.read_buffers.take().await;
        for at in places {
            let place = (layout.journal_start().0 + u64::from(at)) * BLOCK_BYTES as u64;
            let (back, read) = self.device.read(place, buffer.lend(), BLOCK_BYTES).await;
            buffer.back(back);
            if read.is_err() {
                buffer[..BLOCK_BYTES].fill(0);
            }
            scanner.feed(at..at + 1, &buffer[..BLOCK_BYTES])?;
        }
        Ok(())
    }

    /// `replaces`: the blocks of a record that came late which are its; `None`: all.
    fn replay(
        &self,
        record: RecordRef<'_>,
        replaces: Option<&[std::ops::Range<u64>]>,
    ) -> Result<(), OpenError> {
        // Blocks that lose are not marked: nothing is to be done for them.
        let freed = &mut Vec::new();
        match record {
            RecordRef::Write(w) => {
                let w = w.to_write();
                let lane = self.lanes.borrow().get(&w.handle).cloned();
                // The lane is gone: its deletion was walked to the end.
                let Some(lane) = lane else { return Ok(()) };
                let layer = lane.of_generation(w.generation);
                let layer = layer.ok_or_else(no_generation)?;
                let mut places = w.runs.iter().flat_map(|run| {
                    let first = run.first.0;
                    (first..first + u64::from(run.blocks)).map(PhysicalBlock)
                });
                for (n, &crc) in (0u64..).zip(&w.crcs) {
                    let seal = w.tags.as_ref().map_or(Seal::NONE, |t| t.seal(n as usize));
                    let at = places.next();
                    let block = w.first.0 + n;
                    if replaces.is_some_and(|parts| !parts.iter().any(|p| p.contains(&block))) {
                        continue;
                    }
                    let stamp = Stamp {
                        epoch: w.stamp.epoch,
                        seq: w.stamp.seq + n,
                    };
                    let sequence = w.lane_sequence.0;
                    let entry = match at {
                        Some(block) => Entry {
                            block,
                            crc,
                            stamp,
                            sequence,
                        },
                        None => Entry::poison(stamp, crc, sequence),
                    };
                    let mut layer = layer.borrow_mut();
                    let before = layer.len();
                    layer.insert_sealed(LaneBlock(block), (entry, seal), freed);
                    self.delta_grew(layer.len() as isize - before as isize);
                }
                lane.replayed(w.lane_sequence);
            }
            RecordRef::Tombstone(t) => {
                let lane = self.lanes.borrow().get(&t.handle).cloned();
                let Some(lane) = lane else { return Ok(()) };
                let layer = lane.of_generation(t.generation);
                let layer = layer.ok_or_else(no_generation)?;
                let mut layer = layer.borrow_mut();
                let before = layer.len();
                let whole = std::slice::from_ref(&(t.first.0..t.first.0 + t.blocks)).to_vec();
                for part in replaces.map_or(whole, <[_]>::to_vec) {
                    layer.erase(part, t.lane_sequence.0, freed);
                }
                self.delta_grew(layer.len() as isize - before as isize);
                lane.replayed(t.lane_sequence);
            }
            RecordRef::Snapshot(s) => {
                let lane = self.lanes.borrow().get(&s.handle).cloned();
                let Some(lane) = lane else { return Ok(()) };
                self.catalogue
                    .borrow_mut()
                    .raise(s.snapshot.0 + 1, s.live_generation.0 + 1);
                lane.replayed(s.lane_sequence);
                self.take_snapshot(&lane, s.snapshot, s.id, s.live_generation);
            }
            RecordRef::Put(p) => {
                if p.checkpoint < self.superblock.borrow().checkpoint {
                    return Ok(());
                }
                let record = CatalogueRecord::decode_put(&p.record)
                    .map_err(|e| corrupt(format!("journal: {e}")))?
                    .ok_or_else(|| corrupt("journal: a put without a record"))?;
                self.replay_put(p.handle, record, (p.next_handle.0, p.next_generation.0));
            }
            // Looked at before all others.
            RecordRef::Settled(_) => {}
        }
        Ok(())
    }

    fn replay_put(&self, handle: CatalogueHandle, mut record: CatalogueRecord, next: (u32, u32)) {
        let present = self.catalogue.borrow().get(handle).cloned();
        self.catalogue.borrow_mut().raise(next.0, next.1);
        match &present {
            // What the last checkpoint says of the map stays.
            Some(present) => {
                record.keep_of(present);
                // That checkpoint may have removed the parent which the put was written with, and passed the record on to the one above.
                record.parent = present.parent;
            }
            None if record.kind == RecordKind::Live => {
                self.add_lane(handle, &record);
            }
            None => {}
        }
        if record.kind != RecordKind::Live {
            let lane = self.lanes.borrow().get(&handle).cloned();
            if let Some(lane) = lane {
                lane.void.set(true);
                let name: (VolumeId, u8) = (lane.volume, lane.lane);
                let mut names = self.names.borrow_mut();
                if names.get(&name) == Some(&handle) {
                    names.remove(&name);
                }
            }
        }
        self.catalogue.borrow_mut().put(handle, record);
    }
}

fn checkpoint_failed(e: StoreError) -> OpenError {
    match e {
        StoreError::Io(source) => OpenError::Io {
            doing: "checkpoint the drive",
            source,
        },
        e => corrupt(e),
    }
}

fn no_generation() -> OpenError {
    corrupt("journal: a record has a generation that its lane never had")
}

fn scan_error(e: ScanError) -> OpenError {
    corrupt(format!("journal: {e}"))
}
