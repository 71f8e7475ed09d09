//! What is damaged on a drive, as people are told of it (`docs/store-format.md` §15).

use super::super::VolumeId;
use super::super::map::MapError;
use super::super::types::{Crc, LaneBlock, PhysicalBlock};
use super::pages::LostPage;
use super::{Inner, Store, StoreError};
use crate::device::IoError;

/// Something that a drive does not give back as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Of which volume; `None`: the drive's own records.
    pub volume: Option<VolumeId>,
    /// Of which of its lanes.
    pub lane: u8,
    /// Which block of the lane; of a page: its index in its level. Of what cannot be read: the first block that was asked for.
    pub block: u64,
    /// Where it is on the drive, if that is known.
    pub at: Option<PhysicalBlock>,
    /// How it is damaged.
    pub kind: DamageKind,
}

/// How something is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// Data is not what was written.
    Data {
        /// As the map has it.
        expected: Crc,
        /// Of what was read.
        actual: Crc,
    },
    /// A page of the map is not what was written.
    Page {
        /// As the page above has it; as `actual` if only its header is another page's.
        expected: Crc,
        /// Of what was read.
        actual: Crc,
    },
    /// The drive cannot read it.
    Unreadable,
}

/// Where damage that no operation meets is told of. Called on the drive's home; it must not block.
pub type DamageReport = Box<dyn Fn(&Damage)>;

impl Store {
    /// What an error of an operation on a block of a lane says of the drive; `None`: nothing.
    pub fn damage(
        &self,
        (volume, lane): (VolumeId, u8),
        block: LaneBlock,
        error: StoreError,
    ) -> Option<Damage> {
        self.0.damage((volume, lane), block, error)
    }

    /// Has everything reported that checkpoints gave up, what was given up since the opening too.
    pub fn report_damage(&self, report: DamageReport) {
        for damage in self.0.unreported.take() {
            report(&damage);
        }
        *self.0.damage_report.borrow_mut() = Some(report);
    }
}

impl Inner {
    pub(super) fn damage(
        &self,
        (volume, lane): (VolumeId, u8),
        block: LaneBlock,
        error: StoreError,
    ) -> Option<Damage> {
        let damage = Damage {
            volume: Some(volume),
            lane,
            block: block.0,
            at: None,
            kind: DamageKind::Unreadable,
        };
        match error {
            StoreError::Checksum {
                block,
                at,
                expected,
                actual,
            } => Some(Damage {
                block: block.0,
                at: Some(at),
                kind: DamageKind::Data { expected, actual },
                ..damage
            }),
            StoreError::Page { at } => {
                let (index, kind) = self.pages.damage_at(at)?;
                Some(Damage {
                    block: index,
                    at: Some(at),
                    kind,
                    ..damage
                })
            }
            StoreError::Io(IoError::Unreadable) => Some(damage),
            _ => None,
        }
    }

    /// A checkpoint gave these up: they are lost from now on.
    pub(super) fn tell_lost(&self, lost: &[LostPage]) {
        let drive = self.superblock.borrow().drive.clone();
        for page in lost {
            let (level, index, error) = (page.what.level, page.what.index, page.error);
            let whose = self.catalogue.borrow().get(page.handle).cloned();
            match &whose {
                Some(r) => {
                    tracing::error!(%drive, volume = %r.volume, lane = r.lane, level, index, "a page of the map is damaged, and what it led to is lost: {error}");
                }
                None => {
                    tracing::error!(%drive, level, index, "a page of the catalogue is damaged, and was written anew: {error}");
                }
            }
            let (at, kind) = kind_of(&error);
            self.tell(Damage {
                volume: whose.as_ref().map(|r| r.volume),
                lane: whose.map_or(0, |r| r.lane),
                block: index,
                at,
                kind,
            });
        }
    }

    fn tell(&self, damage: Damage) {
        match &*self.damage_report.borrow() {
            Some(report) => report(&damage),
            None => self.unreported.borrow_mut().push(damage),
        }
    }
}

/// Where a page is that was damaged, and how it was.
pub(super) fn kind_of(error: &MapError) -> (Option<PhysicalBlock>, DamageKind) {
    match *error {
        MapError::Checksum {
            at,
            expected,
            actual,
        } => (Some(at), DamageKind::Page { expected, actual }),
        MapError::Page { at, .. } => {
            let (expected, actual) = (Crc(0), Crc(0));
            (Some(at), DamageKind::Page { expected, actual })
        }
        _ => (None, DamageKind::Unreadable),
    }
}
