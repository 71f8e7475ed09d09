//! The linear map: which drive holds which bytes of a volume.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::{ByteRange, Lanes, VolumeError};
use crate::device::Device;
use crate::store::VolumeId;

/// A run of a volume's bytes on one drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapExtent {
    /// First byte in the volume.
    pub start: u64,
    /// One beyond the last.
    pub end: u64,
    /// Number of the drive in this process.
    pub drive: u32,
    /// Where the run begins on the drive, in bytes.
    pub drive_start: u64,
}

/// What every reactor is told of a volume.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// Its id.
    pub id: VolumeId,
    /// Its number in this process.
    pub number: u32,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its lanes.
    pub lanes: Lanes,
    /// Its extents, ascending, without holes below the size.
    pub extents: Arc<[MapExtent]>,
    /// Operations that drives could not do, on all reactors.
    pub media_errors: Arc<AtomicU64>,
}

/// An extent with this reactor's handle of its drive.
#[derive(Debug)]
struct Placed {
    extent: MapExtent,
    device: Device,
}

/// A volume's map as one reactor uses it.
#[derive(Debug)]
pub struct Map {
    size_bytes: u64,
    extents: Vec<Placed>,
}

impl Map {
    /// The map of `spec` over this reactor's `drives`.
    ///
    /// # Panics
    /// If the extents have holes or name a drive that this reactor was not given: the registry made a mistake.
    pub fn new(spec: &VolumeSpec, drives: &[Device]) -> Self {
        let mut at = 0;
        let extents = spec.extents.iter().map(|&extent| {
            assert_eq!(extent.start, at, "a hole in {spec:?}");
            at = extent.end;
            Placed {
                extent,
                device: drives[extent.drive as usize].clone(),
            }
        });
        let extents: Vec<Placed> = extents.collect();
        assert!(at >= spec.size_bytes, "{spec:?} ends early");
        Self {
            size_bytes: spec.size_bytes,
            extents,
        }
    }

    /// Size of the volume in bytes.
    #[inline]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where a range begins: the drive, the byte on it, and how many bytes of the range lie there in one run.
    ///
    /// # Errors
    /// [`VolumeError::OutOfRange`].
    #[inline]
    pub fn locate(&self, at: ByteRange) -> Result<(&Device, u64, u64), VolumeError> {
        if at.end > self.size_bytes {
            return Err(VolumeError::OutOfRange);
        }
        let index = match self.extents.len() {
            1 => 0,
            _ => self.extents.partition_point(|p| p.extent.end <= at.start),
        };
        let Placed { extent, device } = &self.extents[index];
        let place = at.start - extent.start + extent.drive_start;
        Ok((device, place, at.end.min(extent.end) - at.start))
    }

    /// The drives beneath, each once.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.extents.iter().enumerate().filter_map(|(n, placed)| {
            let drive = placed.extent.drive;
            let first = self.extents.iter().position(|p| p.extent.drive == drive);
            (first == Some(n)).then_some(&placed.device)
        })
    }
}
