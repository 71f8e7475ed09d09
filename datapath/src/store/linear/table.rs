//! Which grains of one drive belong to which volume: the table inside its superblock, and the arithmetic of its free space.

use std::collections::BTreeMap;
use std::ops::Range;

use super::VolumeId;
use super::superblock::{ENTRIES_MAX, GRAIN_BYTES};

/// Grains of the smallest drive: the superblocks' and one for data.
pub const GRAINS_MIN: u64 = 2;
/// Grains of the largest drive: 2^63 bytes.
pub const GRAINS_MAX: u64 = 1 << 43;

/// A volume, as its home drive records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
}

/// A run of grains of one drive that holds a run of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whose.
    pub volume: VolumeId,
    /// First grain in the volume's address space.
    pub volume_grain: u64,
    /// First grain on the drive.
    pub drive_grain: u64,
    /// Length in grains.
    pub grains: u64,
}

impl Extent {
    /// Grains of the drive.
    pub fn on_drive(&self) -> Range<u64> {
        self.drive_grain..self.drive_grain + self.grains
    }

    /// Grains of the volume.
    pub fn in_volume(&self) -> Range<u64> {
        self.volume_grain..self.volume_grain + self.grains
    }
}

/// Why an entry cannot be in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A drive of that size cannot be used.
    #[error("a drive of {grains} MiB: 2 MiB is the least")]
    DriveSize {
        /// Its whole grains.
        grains: u64,
    },
    /// The volume has a record already.
    #[error("volume {volume} is recorded twice")]
    Duplicate {
        /// Which.
        volume: VolumeId,
    },
    /// A volume's size is zero or no multiple of 4096.
    #[error("volume {volume} has an impossible size of {size_bytes} bytes")]
    Size {
        /// Which.
        volume: VolumeId,
        /// Its size.
        size_bytes: u64,
    },
    /// An extent is empty, leaves the drive, or lies on grains that are taken.
    #[error(
        "the extent of {grains} grains at {drive_grain} of volume {volume} is not free space of the drive"
    )]
    Extent {
        /// Whose.
        volume: VolumeId,
        /// Where it begins.
        drive_grain: u64,
        /// Its length.
        grains: u64,
    },
    /// The superblock has no room for another entry.
    #[error("the drive's table is full: it holds {ENTRIES_MAX} volumes and extents")]
    Full,
}

/// The table of one drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    grains: u64,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// By first grain on the drive.
    extents: BTreeMap<u64, Extent>,
    used: u64,
}

impl Table {
    /// An empty table of a drive of so many grains, grain 0 included.
    ///
    /// # Errors
    /// [`TableError::DriveSize`].
    pub fn new(grains: u64) -> Result<Self, TableError> {
        if !(GRAINS_MIN..=GRAINS_MAX).contains(&grains) {
            return Err(TableError::DriveSize { grains });
        }
        Ok(Self {
            grains,
            volumes: BTreeMap::new(),
            extents: BTreeMap::new(),
            used: 0,
        })
    }

    /// Grains of the drive, grain 0 included.
    pub fn grains(&self) -> u64 {
        self.grains
    }

    /// Grains that volumes can have.
    pub fn usable(&self) -> u64 {
        self.grains - 1
    }

    /// Grains that volumes have.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Grains that are free.
    pub fn free(&self) -> u64 {
        self.usable() - self.used
    }

    /// Entries in use, of [`ENTRIES_MAX`].
    pub fn entries(&self) -> usize {
        self.volumes.len() + self.extents.len()
    }

    /// Volumes at home here, by id.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeId, VolumeRecord)> {
        self.volumes.iter().map(|(&id, &record)| (id, record))
    }

    /// The record of a volume that is at home here.
    pub fn volume(&self, id: VolumeId) -> Option<VolumeRecord> {
        self.volumes.get(&id).copied()
    }

    /// Extents, by place on the drive.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        self.extents.values().copied()
    }

    /// Takes a larger drive size over.
    ///
    /// # Errors
    /// [`TableError::DriveSize`] if it is smaller than before or too large.
    pub fn grow_drive(&mut self, grains: u64) -> Result<(), TableError> {
        if grains < self.grains || grains > GRAINS_MAX {
            return Err(TableError::DriveSize { grains });
        }
        self.grains = grains;
        Ok(())
    }

    /// Adds a volume's record.
    ///
    /// # Errors
    /// [`TableError`] for a second record, an impossible size, or a full table.
    pub fn insert_volume(&mut self, id: VolumeId, record: VolumeRecord) -> Result<(), TableError> {
        if self.volumes.contains_key(&id) {
            return Err(TableError::Duplicate { volume: id });
        }
        check_size(id, record.size_bytes)?;
        self.room(1)?;
        self.volumes.insert(id, record);
        Ok(())
    }

    /// Changes the size of a volume that is at home here; false if it is not.
    ///
    /// # Errors
    /// [`TableError::Size`].
    pub fn set_size(&mut self, id: VolumeId, size_bytes: u64) -> Result<bool, TableError> {
        check_size(id, size_bytes)?;
        Ok(self.volumes.get_mut(&id).is_some_and(|record| {
            record.size_bytes = size_bytes;
            true
        }))
    }

    /// Adds an extent.
    ///
    /// # Errors
    /// [`TableError::Extent`] if it does not lie in free space, [`TableError::Full`].
    pub fn insert_extent(&mut self, extent: Extent) -> Result<(), TableError> {
        let bad = TableError::Extent {
            volume: extent.volume,
            drive_grain: extent.drive_grain,
            grains: extent.grains,
        };
        let end = extent.drive_grain.checked_add(extent.grains).ok_or(bad)?;
        let volume_end = extent.volume_grain.checked_add(extent.grains).ok_or(bad)?;
        if extent.grains == 0
            || extent.drive_grain == 0
            || end > self.grains
            || volume_end > GRAINS_MAX
            || self.taken(extent.drive_grain..end)
        {
            return Err(bad);
        }
        self.room(1)?;
        self.used += extent.grains;
        self.extents.insert(extent.drive_grain, extent);
        Ok(())
    }

    /// Adds an extent, joined with the one before it where both the volume and the drive go on.
    ///
    /// # Errors
    /// As [`Table::insert_extent`].
    pub fn append_extent(&mut self, extent: Extent) -> Result<(), TableError> {
        let before = self.extents.range(..extent.drive_grain).next_back();
        if let Some((&at, &last)) = before
            && extent.grains > 0
            && last.volume == extent.volume
            && last.on_drive().end == extent.drive_grain
            && last.in_volume().end == extent.volume_grain
        {
            self.remove_at(at);
            let joined = Extent {
                grains: last.grains + extent.grains,
                ..last
            };
            return self.insert_extent(joined).inspect_err(|_| {
                self.used += last.grains;
                self.extents.insert(at, last);
            });
        }
        self.insert_extent(extent)
    }

    /// Removes a volume's record; false if there is none.
    pub fn remove_volume(&mut self, id: VolumeId) -> bool {
        self.volumes.remove(&id).is_some()
    }

    /// Frees the extents, or the parts of extents, of a volume from grain `from` of its address space on. Returns how many grains.
    pub fn free_from(&mut self, id: VolumeId, from: u64) -> u64 {
        let theirs: Vec<Extent> = self.extents().filter(|e| e.volume == id).collect();
        let before = self.used;
        for extent in theirs {
            if extent.in_volume().end <= from {
                continue;
            }
            self.remove_at(extent.drive_grain);
            let keep = from.saturating_sub(extent.volume_grain);
            if keep > 0 {
                self.used += keep;
                let kept = Extent {
                    grains: keep,
                    ..extent
                };
                self.extents.insert(kept.drive_grain, kept);
            }
        }
        before - self.used
    }

    /// Free runs, by place on the drive.
    pub fn free_runs(&self) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        let mut at = 1;
        for extent in self.extents.values() {
            if extent.drive_grain > at {
                runs.push(at..extent.drive_grain);
            }
            at = extent.on_drive().end;
        }
        if at < self.grains {
            runs.push(at..self.grains);
        }
        runs
    }

    fn remove_at(&mut self, drive_grain: u64) {
        if let Some(extent) = self.extents.remove(&drive_grain) {
            self.used -= extent.grains;
        }
    }

    fn taken(&self, run: Range<u64>) -> bool {
        let last_before_end = self.extents.range(..run.end).next_back();
        last_before_end.is_some_and(|(_, e)| e.on_drive().end > run.start)
    }

    fn room(&self, entries: usize) -> Result<(), TableError> {
        if self.entries() + entries > ENTRIES_MAX {
            return Err(TableError::Full);
        }
        Ok(())
    }

    /// Asserts what every table must keep.
    ///
    /// # Panics
    /// If extents overlap or the count of used grains is wrong.
    pub fn check(&self) {
        let mut at = 1;
        let mut used = 0;
        for (&key, extent) in &self.extents {
            assert_eq!(key, extent.drive_grain);
            assert!(extent.drive_grain >= at, "extents overlap at grain {at}");
            assert!(extent.grains > 0);
            at = extent.on_drive().end;
            used += extent.grains;
        }
        assert!(at <= self.grains);
        assert_eq!(used, self.used);
        assert!(self.entries() <= ENTRIES_MAX);
    }
}

fn check_size(volume: VolumeId, size_bytes: u64) -> Result<(), TableError> {
    let too_large = size_bytes > GRAINS_MAX * GRAIN_BYTES;
    if size_bytes == 0 || !size_bytes.is_multiple_of(4096) || too_large {
        return Err(TableError::Size { volume, size_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: VolumeId = VolumeId([1; 16]);
    const B: VolumeId = VolumeId([2; 16]);

    fn extent(volume: VolumeId, volume_grain: u64, drive_grain: u64, grains: u64) -> Extent {
        Extent {
            volume,
            volume_grain,
            drive_grain,
            grains,
        }
    }

    #[test]
    fn what_overlaps_or_leaves_the_drive_is_refused() {
        let mut t = Table::new(10).unwrap();
        t.insert_extent(extent(A, 0, 3, 3)).unwrap();
        for (at, grains) in [
            (0, 1),
            (3, 1),
            (5, 1),
            (2, 2),
            (1, 9),
            (9, 2),
            (u64::MAX, 2),
            (7, 0),
        ] {
            assert!(
                t.insert_extent(extent(B, 0, at, grains)).is_err(),
                "{at}+{grains}"
            );
        }
        t.insert_extent(extent(B, 0, 1, 2)).unwrap();
        t.insert_extent(extent(B, 2, 6, 4)).unwrap();
        assert_eq!(t.free(), 0);
        assert_eq!(t.free_runs(), Vec::<Range<u64>>::new());
        t.check();
    }

    #[test]
    fn appending_joins_what_goes_on() {
        let mut t = Table::new(100).unwrap();
        t.append_extent(extent(A, 0, 1, 4)).unwrap();
        t.append_extent(extent(A, 4, 5, 4)).unwrap();
        assert_eq!(t.extents().collect::<Vec<_>>(), [extent(A, 0, 1, 8)]);
        t.append_extent(extent(A, 9, 9, 1)).unwrap();
        t.append_extent(extent(B, 10, 10, 1)).unwrap();
        assert_eq!(t.extents().count(), 3);
        assert!(t.append_extent(extent(B, 11, 11, 1000)).is_err());
        assert_eq!(t.used(), 10);
        t.check();
    }

    #[test]
    fn freeing_cuts_the_extent_at_the_size() {
        let mut t = Table::new(100).unwrap();
        t.insert_extent(extent(A, 0, 1, 10)).unwrap();
        t.insert_extent(extent(A, 10, 20, 10)).unwrap();
        t.insert_extent(extent(B, 0, 30, 10)).unwrap();
        assert_eq!(t.free_from(A, 15), 5);
        assert_eq!(t.free_from(A, 15), 0);
        assert_eq!(t.free_from(A, 0), 15);
        assert_eq!(t.used(), 10);
        t.check();
    }

    #[test]
    fn the_table_has_an_end() {
        let mut t = Table::new(GRAINS_MAX).unwrap();
        for n in 0..ENTRIES_MAX as u64 {
            t.insert_extent(extent(A, 2 * n, 1 + 2 * n, 1)).unwrap();
        }
        assert_eq!(t.insert_extent(extent(A, 1, 2, 1)), Err(TableError::Full));
        assert_eq!(
            t.insert_volume(A, VolumeRecord { size_bytes: 4096 }),
            Err(TableError::Full)
        );
        t.check();
    }

    proptest! {
        /// Against a model that is an array with one owner per grain.
        #[test]
        fn the_table_is_an_array_of_owners(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..40, 0u64..12, any::<bool>()), 1..60)
        ) {
            let mut table = Table::new(40).unwrap();
            let mut model: Vec<Option<(VolumeId, u64)>> = vec![None; 40];
            for (first, at, volume_grain, grains, free) in steps {
                let id = if first { A } else { B };
                if free {
                    let freed = table.free_from(id, at);
                    let mut expect = 0;
                    for owner in &mut model {
                        if owner.is_some_and(|(o, g)| o == id && g >= at) {
                            *owner = None;
                            expect += 1;
                        }
                    }
                    prop_assert_eq!(freed, expect);
                } else {
                    let fits = at > 0 && grains > 0 && at + grains <= 40
                        && (at..at + grains).all(|g| model[g as usize].is_none());
                    let got = table.append_extent(extent(id, volume_grain, at, grains));
                    prop_assert_eq!(got.is_ok(), fits);
                    if fits {
                        for n in 0..grains {
                            model[(at + n) as usize] = Some((id, volume_grain + n));
                        }
                    }
                }
                table.check();
                let mut seen = vec![None; 40];
                for e in table.extents() {
                    for n in 0..e.grains {
                        seen[(e.drive_grain + n) as usize] = Some((e.volume, e.volume_grain + n));
                    }
                }
                prop_assert_eq!(&seen, &model);
                let free: u64 = table.free_runs().iter().map(|r| r.end - r.start).sum();
                prop_assert_eq!(free, table.free());
            }
        }
    }
}
