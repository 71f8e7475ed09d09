//! A pool: drives of one class, and the volumes on them. Every step that a crash could follow is in `docs/linear-format.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelblock_hugepages::BufferPool;

use super::super::name::Name;
use super::VolumeId;
use super::alloc::{Run, pick};
use super::drive::{DriveError, PoolDrive};
use super::superblock::GRAIN_BYTES;
use super::table::{Extent, Table, TableError, VolumeRecord};
use crate::device::{Device, IoError};
use crate::volume::MapExtent;

/// Why a pool could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A drive's superblock.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// A drive's table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The same drive was named twice.
    #[error("drive {drive} is named twice")]
    Twice {
        /// Which.
        drive: Name,
    },
    /// A volume is recorded on two drives.
    #[error("volume {volume} is recorded on drive {one} and on drive {other}")]
    TwoHomes {
        /// Which.
        volume: VolumeId,
        /// A home.
        one: Name,
        /// Another.
        other: Name,
    },
    /// Drives are missing: only what is there is served.
    #[error("pool {pool} has {present} of its {members} drives: open it with all of them first")]
    Degraded {
        /// Which.
        pool: Name,
        /// Drives that are there.
        present: usize,
        /// Drives that it has.
        members: u32,
    },
    /// Not enough space.
    #[error("pool {pool} has {free} bytes free of the {needed} that are needed")]
    Full {
        /// Which.
        pool: Name,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A volume with this id and another size exists.
    #[error("volume {volume} exists with {size_bytes} bytes")]
    Exists {
        /// Which.
        volume: VolumeId,
        /// Its size.
        size_bytes: u64,
    },
    /// There is no such volume.
    #[error("there is no volume {volume}")]
    Unknown {
        /// Which.
        volume: VolumeId,
    },
    /// Volumes do not shrink.
    #[error("volume {volume} has {size_bytes} bytes: it cannot become smaller")]
    Shrink {
        /// Which.
        volume: VolumeId,
        /// Its size.
        size_bytes: u64,
    },
    /// Part of the volume is on a drive that is not there.
    #[error("volume {volume} is incomplete: a drive with part of it is missing")]
    Incomplete {
        /// Which.
        volume: VolumeId,
    },
    /// A drive could not be zeroed or flushed.
    #[error("drive {drive}: {source}")]
    Io {
        /// Which.
        drive: Name,
        /// What happened.
        source: IoError,
    },
}

/// A volume of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where its bytes are; `None` if some are not there.
    pub extents: Option<Arc<[MapExtent]>>,
}

/// An open pool.
#[derive(Debug)]
pub struct Pool {
    id: Name,
    drives: Vec<PoolDrive>,
    members: u32,
}

/// A drive to open, in the order of the pool's configuration.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its id.
    pub id: Name,
    /// Its number among the process's drives.
    pub number: u32,
    /// Where its bytes are.
    pub device: Device,
}

impl Pool {
    /// Opens a pool of these drives; blank ones are formatted if `format` says so.
    ///
    /// # Errors
    /// [`PoolError`]: then nothing was opened.
    pub async fn open(
        id: Name,
        candidates: Vec<Candidate>,
        format: bool,
        buffers: &BufferPool,
    ) -> Result<Self, PoolError> {
        let mut pool = Self {
            id,
            drives: Vec::new(),
            members: 0,
        };
        pool.join(candidates, format, buffers).await?;
        Ok(pool)
    }

    /// Adds drives to an open pool; those that it has are left alone.
    ///
    /// # Errors
    /// [`PoolError`]: then none was added.
    pub async fn join(
        &mut self,
        candidates: Vec<Candidate>,
        format: bool,
        buffers: &BufferPool,
    ) -> Result<(), PoolError> {
        let mut joining: Vec<PoolDrive> = Vec::new();
        for candidate in candidates {
            if joining.iter().any(|d| *d.id() == candidate.id) {
                return Err(PoolError::Twice {
                    drive: candidate.id,
                });
            }
            if self.drives.iter().any(|d| *d.id() == candidate.id) {
                continue;
            }
            let Candidate { id, number, device } = candidate;
            let drive = PoolDrive::open(device, number, &id, &self.id, format, buffers).await?;
            joining.push(drive);
        }
        if joining.is_empty() {
            return Ok(());
        }
        check_homes(self.drives.iter().chain(&joining))?;
        let there = (self.drives.len() + joining.len()) as u32;
        let told = joining.iter().map(|d| d.present().members).max();
        let members = there.max(self.members).max(told.unwrap_or(0));
        // Newcomers first: a crash before the others know leaves a pool that asks for all of them.
        for drive in joining.iter_mut().chain(&mut self.drives) {
            let table = drive.present().table.clone();
            drive.commit(table, members, buffers).await?;
        }
        self.members = members;
        self.drives.append(&mut joining);
        self.free_orphans(buffers).await
    }

    /// Its id.
    pub fn id(&self) -> &Name {
        &self.id
    }

    /// Its drives.
    pub fn drives(&self) -> &[PoolDrive] {
        &self.drives
    }

    /// Bytes that volumes can have.
    pub fn total_bytes(&self) -> u64 {
        let usable = self.drives.iter().map(|d| d.present().table.usable());
        usable.sum::<u64>() * GRAIN_BYTES
    }

    /// Bytes that volumes have.
    pub fn used_bytes(&self) -> u64 {
        let used = self.drives.iter().map(|d| d.present().table.used());
        used.sum::<u64>() * GRAIN_BYTES
    }

    /// Its volumes, by id.
    pub fn volumes(&self) -> Vec<PoolVolume> {
        let mut all: BTreeMap<VolumeId, u64> = BTreeMap::new();
        for drive in &self.drives {
            for (id, record) in drive.present().table.volumes() {
                all.insert(id, record.size_bytes);
            }
        }
        let with_extents = all.into_iter().map(|(id, size_bytes)| PoolVolume {
            id,
            size_bytes,
            extents: self.map_of(id, size_bytes),
        });
        with_extents.collect()
    }

    /// One of its volumes.
    pub fn volume(&self, id: VolumeId) -> Option<PoolVolume> {
        let (_, record) = self.home(id)?;
        Some(PoolVolume {
            id,
            size_bytes: record.size_bytes,
            extents: self.map_of(id, record.size_bytes),
        })
    }

    /// Makes a volume that reads as zeroes. One that is there with the same size is the answer.
    ///
    /// # Errors
    /// [`PoolError`]: then there is no such volume.
    pub async fn create(
        &mut self,
        id: VolumeId,
        size_bytes: u64,
        buffers: &BufferPool,
    ) -> Result<PoolVolume, PoolError> {
        if let Some((_, record)) = self.home(id) {
            if record.size_bytes != size_bytes {
                return Err(PoolError::Exists {
                    volume: id,
                    size_bytes: record.size_bytes,
                });
            }
            return self.known(id);
        }
        self.whole()?;
        let mut tables = self.tables();
        for table in &mut tables {
            // Left over from an attempt that failed half-way.
            table.free_from(id, 0);
        }
        let runs = self.allocate(&tables, None, grains_of(size_bytes))?;
        let home = runs.first().map_or(0, |run| run.drive);
        tables[home].insert_volume(id, VolumeRecord { size_bytes })?;
        self.give(id, 0, &runs, &mut tables)?;
        self.zero(&runs).await?;
        self.commit_home_last(tables, home, buffers).await?;
        self.known(id)
    }

    /// Makes a volume larger; what is new reads as zeroes. A volume that has the size already is the answer.
    ///
    /// # Errors
    /// [`PoolError`]: then the volume is as it was.
    pub async fn grow(
        &mut self,
        id: VolumeId,
        size_bytes: u64,
        buffers: &BufferPool,
    ) -> Result<PoolVolume, PoolError> {
        let (home, record) = self.home(id).ok_or(PoolError::Unknown { volume: id })?;
        if size_bytes < record.size_bytes {
            return Err(PoolError::Shrink {
                volume: id,
                size_bytes: record.size_bytes,
            });
        }
        let present = self.known(id)?;
        if size_bytes == record.size_bytes {
            return Ok(present);
        }
        self.whole()?;
        let had = grains_of(record.size_bytes);
        let mut tables = self.tables();
        for table in &mut tables {
            table.free_from(id, had);
        }
        let runs = self.allocate(&tables, self.end_of(id, had), grains_of(size_bytes) - had)?;
        tables[home].set_size(id, size_bytes)?;
        self.give(id, had, &runs, &mut tables)?;
        self.zero(&runs).await?;
        self.commit_home_last(tables, home, buffers).await?;
        self.known(id)
    }

    /// Deletes a volume and frees its space; one that does not exist is deleted already.
    ///
    /// # Errors
    /// [`PoolError`].
    pub async fn delete(&mut self, id: VolumeId, buffers: &BufferPool) -> Result<(), PoolError> {
        let Some((home, _)) = self.home(id) else {
            return Ok(());
        };
        self.whole()?;
        let mut tables = self.tables();
        for table in &mut tables {
            table.remove_volume(id);
            table.free_from(id, 0);
        }
        let freed = std::mem::replace(&mut tables[home], self.drives[home].present().table.clone());
        // The record goes first: a volume without all of its extents must not exist.
        self.drives[home]
            .commit(freed.clone(), self.members, buffers)
            .await?;
        tables[home] = freed;
        self.commit_changed(tables, buffers).await
    }

    fn home(&self, id: VolumeId) -> Option<(usize, VolumeRecord)> {
        let mut drives = self.drives.iter().enumerate();
        drives.find_map(|(n, d)| Some((n, d.present().table.volume(id)?)))
    }

    fn known(&self, id: VolumeId) -> Result<PoolVolume, PoolError> {
        let volume = self.volume(id).ok_or(PoolError::Unknown { volume: id })?;
        match volume.extents {
            Some(_) => Ok(volume),
            None => Err(PoolError::Incomplete { volume: id }),
        }
    }

    /// Changes need every member: what is missing may hold a part of a volume, or its record.
    fn whole(&self) -> Result<(), PoolError> {
        if self.drives.len() < self.members as usize {
            return Err(PoolError::Degraded {
                pool: self.id.clone(),
                present: self.drives.len(),
                members: self.members,
            });
        }
        Ok(())
    }

    fn tables(&self) -> Vec<Table> {
        let tables = self.drives.iter().map(|d| d.present().table.clone());
        tables.collect()
    }

    fn map_of(&self, id: VolumeId, size_bytes: u64) -> Option<Arc<[MapExtent]>> {
        let mut extents: Vec<(Extent, u32)> = Vec::new();
        for drive in &self.drives {
            let theirs = drive.present().table.extents().filter(|e| e.volume == id);
            extents.extend(theirs.map(|e| (e, drive.number())));
        }
        extents.sort_by_key(|(e, _)| e.volume_grain);
        let needed = grains_of(size_bytes);
        let mut at = 0;
        let mut map = Vec::with_capacity(extents.len());
        for (extent, drive) in extents {
            if at >= needed {
                break;
            }
            if extent.volume_grain != at {
                return None;
            }
            at = extent.in_volume().end;
            map.push(MapExtent {
                start: extent.volume_grain * GRAIN_BYTES,
                end: at * GRAIN_BYTES,
                drive,
                drive_start: extent.drive_grain * GRAIN_BYTES,
            });
        }
        (at >= needed).then(|| map.into())
    }

    /// Drive and grain behind the last extent of a volume.
    fn end_of(&self, id: VolumeId, grains: u64) -> Option<(usize, u64)> {
        self.drives.iter().enumerate().find_map(|(n, drive)| {
            let mut extents = drive.present().table.extents();
            let last = extents.find(|e| e.volume == id && e.in_volume().end == grains)?;
            Some((n, last.on_drive().end))
        })
    }

    fn allocate(
        &self,
        tables: &[Table],
        after: Option<(usize, u64)>,
        grains: u64,
    ) -> Result<Vec<Run>, PoolError> {
        let mut free = Vec::new();
        for (drive, table) in tables.iter().enumerate() {
            if !self.drives[drive].device().failed() {
                free.extend(
                    table
                        .free_runs()
                        .into_iter()
                        .map(|grains| Run { drive, grains }),
                );
            }
        }
        let bytes: u64 = free
            .iter()
            .map(|r| r.grains.end - r.grains.start)
            .sum::<u64>()
            * GRAIN_BYTES;
        pick(free, after, grains).ok_or_else(|| PoolError::Full {
            pool: self.id.clone(),
            free: bytes,
            needed: grains.saturating_mul(GRAIN_BYTES),
        })
    }

    fn give(
        &self,
        id: VolumeId,
        from: u64,
        runs: &[Run],
        tables: &mut [Table],
    ) -> Result<(), PoolError> {
        let mut at = from;
        for run in runs {
            let grains = run.grains.end - run.grains.start;
            tables[run.drive].append_extent(Extent {
                volume: id,
                volume_grain: at,
                drive_grain: run.grains.start,
                grains,
            })?;
            at += grains;
        }
        Ok(())
    }

    /// Zeroes what a volume is about to get, stably: whoever had it before must not be seen in it, whatever crashes.
    async fn zero(&self, runs: &[Run]) -> Result<(), PoolError> {
        for run in runs {
            let drive = &self.drives[run.drive];
            let bytes = (run.grains.end - run.grains.start) * GRAIN_BYTES;
            let zeroed = drive
                .device()
                .write_zeroes(run.grains.start * GRAIN_BYTES, bytes)
                .await;
            zeroed.map_err(|source| PoolError::Io {
                drive: drive.id().clone(),
                source,
            })?;
        }
        for (n, drive) in self.drives.iter().enumerate() {
            if runs.iter().any(|r| r.drive == n) {
                drive.flush().await?;
            }
        }
        Ok(())
    }

    async fn commit_home_last(
        &mut self,
        mut tables: Vec<Table>,
        home: usize,
        buffers: &BufferPool,
    ) -> Result<(), PoolError> {
        let last = std::mem::replace(&mut tables[home], self.drives[home].present().table.clone());
        self.commit_changed(tables, buffers).await?;
        self.drives[home]
            .commit(last, self.members, buffers)
            .await?;
        Ok(())
    }

    async fn commit_changed(
        &mut self,
        tables: Vec<Table>,
        buffers: &BufferPool,
    ) -> Result<(), PoolError> {
        for (drive, table) in self.drives.iter_mut().zip(tables) {
            if drive.present().table != table {
                drive.commit(table, self.members, buffers).await?;
            }
        }
        Ok(())
    }

    /// Frees what belongs to no volume, or lies beyond a volume's size: steps that a crash cut short.
    async fn free_orphans(&mut self, buffers: &BufferPool) -> Result<(), PoolError> {
        if self.whole().is_err() {
            return Ok(());
        }
        let mut tables = self.tables();
        for table in &mut tables {
            let owners: Vec<VolumeId> = table.extents().map(|e| e.volume).collect();
            for id in owners {
                let size = self.home(id).map_or(0, |(_, record)| record.size_bytes);
                table.free_from(id, grains_of(size));
            }
        }
        self.commit_changed(tables, buffers).await
    }
}

fn grains_of(bytes: u64) -> u64 {
    bytes.div_ceil(GRAIN_BYTES)
}

fn check_homes<'a>(drives: impl Iterator<Item = &'a PoolDrive>) -> Result<(), PoolError> {
    let mut homes: BTreeMap<VolumeId, &Name> = BTreeMap::new();
    for drive in drives {
        for (volume, _) in drive.present().table.volumes() {
            if let Some(one) = homes.insert(volume, drive.id()) {
                return Err(PoolError::TwoHomes {
                    volume,
                    one: one.clone(),
                    other: drive.id().clone(),
                });
            }
        }
    }
    Ok(())
}
