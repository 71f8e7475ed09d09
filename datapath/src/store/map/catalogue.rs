//! Records of the catalogue (`docs/store-format.md` §8): live lanes, snapshots, and what is being deleted.

use super::super::VolumeId;
use super::super::types::{CatalogueHandle, Generation, LaneSequence, SnapshotId, Stamp};
use super::bytes::{array, get32, get64, is_zero, put, put32, put64};
use super::interior::{ChildEntry, DEPTH_MAX, NO_STAMP, ROOT_BYTES};
use super::page::{HEADER_BYTES, Page, PageError};
use super::tree::Root;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 128;
/// Bytes of a record in a put of the journal.
pub const PUT_BYTES: usize = 96;
/// Records of a leaf of the catalogue.
pub const CATALOGUE_LEAF_RECORDS: usize = 31;

const KIND: usize = 0;
const LANE: usize = 1;
const LANES: usize = 2;
const FLAGS: usize = 3;
const PARENT: usize = 4;
const GENERATION: usize = 8;
const INCARNATION: usize = 12;
const VOLUME: usize = 16;
const SNAPSHOT: usize = 32;
const MAP: usize = 48;
const DEPTH: usize = 68;
const ZERO_69: usize = 69;
const EPOCH: usize = 72;
const SIZE: usize = 76;
const ZERO_84: usize = 84;
const SEQUENCE: usize = 96;
const WALKED: usize = 104;
const SETTLED: usize = 112;
const ZERO_124: usize = 124;
const _: () = assert!(MAP + ROOT_BYTES == DEPTH && ZERO_84 + 12 == PUT_BYTES);
const _: () = assert!(ZERO_124 + 4 == RECORD_BYTES);
const _: () = assert!(HEADER_BYTES + CATALOGUE_LEAF_RECORDS * RECORD_BYTES <= 4096);

const SEALED: u8 = 1;
const LEAVING: u8 = 2;
const LOSSY: u8 = 4;
const REPLICA: u8 = 8;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A lane that is written to.
    Live = 1,
    /// A snapshot of a lane.
    Snapshot = 2,
    /// One that was deleted, and that more than one other descends from.
    Hidden = 3,
    /// What it alone refers to is being given back.
    Deleting = 4,
    /// Of a move that is under way.
    Arriving = 5,
}

/// A record of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueRecord {
    /// What it is.
    pub kind: RecordKind,
    /// Of the volume.
    pub lane: u8,
    /// How many lanes the volume has.
    pub lanes: u8,
    /// Its leaves have tags.
    pub sealed: bool,
    /// A copy of it on another drive may be the lane by now (§13); of a live lane.
    pub leaving: bool,
    /// A page of its map was lost to damage.
    pub lossy: bool,
    /// Of a replica: stamps come with its records.
    pub replica: bool,
    /// The snapshot that it was derived from; 0: none.
    pub parent: CatalogueHandle,
    /// What new entries get, or the one that it closed.
    pub generation: Generation,
    /// Of two copies of a lane, the higher is the lane.
    pub incarnation: u32,
    /// The volume.
    pub volume: VolumeId,
    /// Of a snapshot; zero otherwise.
    pub snapshot: SnapshotId,
    /// Root of its map, stamp and summary zero; see [`CatalogueRecord::root`].
    pub map: ChildEntry,
    /// Of its map.
    pub depth: u8,
    /// The highest epoch seen.
    pub epoch: u32,
    /// Of the volume, as far as this lane was told.
    pub size_bytes: u64,
    /// Every record of the journal at or below it is in the map.
    pub sequence: LaneSequence,
    /// Leaves below it are given up; of what is being deleted.
    pub walked: u64,
    /// Of a replica's lane: everything up to it is stable on all members.
    pub settled: Stamp,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a catalogue record with a wrong {field}")]
pub struct RecordError {
    /// Which field.
    pub field: &'static str,
}

impl CatalogueRecord {
    /// A record of which nothing is set, to fill in: a live lane without anything.
    pub const EMPTY: Self = Self {
        kind: RecordKind::Live,
        lane: 0,
        lanes: 1,
        sealed: false,
        leaving: false,
        lossy: false,
        replica: false,
        parent: CatalogueHandle(0),
        generation: Generation(0),
        incarnation: 0,
        volume: VolumeId([0; 16]),
        snapshot: SnapshotId([0; 16]),
        map: ChildEntry::NONE,
        depth: 0,
        epoch: 0,
        size_bytes: 0,
        sequence: LaneSequence(0),
        walked: 0,
        settled: NO_STAMP,
    };

    /// Root of its map.
    pub fn root(&self) -> Root {
        Root::new(self.map, self.depth, self.sealed)
    }

    /// Its map has another root.
    pub fn set_root(&mut self, root: &Root) {
        self.map = root.child;
        self.depth = root.depth;
    }

    /// Takes over what a put does not say: root, depth, and everything from offset 96 on.
    pub fn keep_of(&mut self, present: &Self) {
        self.map = present.map;
        self.depth = present.depth;
        self.sequence = present.sequence;
        self.walked = present.walked;
        self.settled = present.settled;
        // What is lost does not come back because a put was written without knowing of it.
        self.lossy |= present.lossy;
    }

    /// As it is in a leaf of the catalogue.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut into = [0; RECORD_BYTES];
        into[KIND] = self.kind as u8;
        into[LANE] = self.lane;
        into[LANES] = self.lanes;
        into[FLAGS] = (u8::from(self.sealed) * SEALED)
            | (u8::from(self.leaving) * LEAVING)
            | (u8::from(self.lossy) * LOSSY)
            | (u8::from(self.replica) * REPLICA);
        put32(&mut into, PARENT, self.parent.0);
        put32(&mut into, GENERATION, self.generation.0);
        put32(&mut into, INCARNATION, self.incarnation);
        put(&mut into, VOLUME, &self.volume.0);
        put(&mut into, SNAPSHOT, &self.snapshot.0);
        self.map.encode(&mut into[MAP..MAP + ROOT_BYTES]);
        into[DEPTH] = self.depth;
        put32(&mut into, EPOCH, self.epoch);
        put64(&mut into, SIZE, self.size_bytes);
        put64(&mut into, SEQUENCE, self.sequence.0);
        put64(&mut into, WALKED, self.walked);
        put32(&mut into, SETTLED, self.settled.epoch);
        put64(&mut into, SETTLED + 4, self.settled.seq);
        into
    }

    /// As it is in a put of the journal.
    pub fn encode_put(&self) -> [u8; PUT_BYTES] {
        array(&self.encode(), 0)
    }

    /// From a leaf of the catalogue; `None` if the record is free.
    ///
    /// # Errors
    /// [`RecordError`]: no record looks like this.
    pub fn decode(from: &[u8; RECORD_BYTES]) -> Result<Option<Self>, RecordError> {
        let wrong = |field| Err(RecordError { field });
        let kind = match from[KIND] {
            0 if is_zero(from) => return Ok(None),
            1 => RecordKind::Live,
            2 => RecordKind::Snapshot,
            3 => RecordKind::Hidden,
            4 => RecordKind::Deleting,
            5 => RecordKind::Arriving,
            _ => return wrong("kind"),
        };
        if from[FLAGS] & !(SEALED | LEAVING | LOSSY | REPLICA) != 0 {
            return wrong("flag");
        }
        if from[LANE] >= from[LANES] {
            return wrong("lane");
        }
        let reserved = [
            &from[ZERO_69..EPOCH],
            &from[ZERO_84..SEQUENCE],
            &from[ZERO_124..],
        ];
        if !reserved.iter().all(|bytes| is_zero(bytes)) {
            return wrong("reserved byte");
        }
        let Some(map) = ChildEntry::decode(&from[MAP..MAP + ROOT_BYTES]) else {
            return wrong("root");
        };
        let record = Self {
            kind,
            lane: from[LANE],
            lanes: from[LANES],
            sealed: from[FLAGS] & SEALED != 0,
            leaving: from[FLAGS] & LEAVING != 0,
            lossy: from[FLAGS] & LOSSY != 0,
            replica: from[FLAGS] & REPLICA != 0,
            parent: CatalogueHandle(get32(from, PARENT)),
            generation: Generation(get32(from, GENERATION)),
            incarnation: get32(from, INCARNATION),
            volume: VolumeId(array(from, VOLUME)),
            snapshot: SnapshotId(array(from, SNAPSHOT)),
            map,
            depth: from[DEPTH],
            epoch: get32(from, EPOCH),
            size_bytes: get64(from, SIZE),
            sequence: LaneSequence(get64(from, SEQUENCE)),
            walked: get64(from, WALKED),
            settled: Stamp {
                epoch: get32(from, SETTLED),
                seq: get64(from, SETTLED + 4),
            },
        };
        record.validate()?;
        Ok(Some(record))
    }

    /// From a put of the journal; what it does not say is zero.
    ///
    /// # Errors
    /// [`RecordError`]: no record looks like this.
    pub fn decode_put(from: &[u8; PUT_BYTES]) -> Result<Option<Self>, RecordError> {
        let mut whole = [0; RECORD_BYTES];
        put(&mut whole, 0, from);
        Self::decode(&whole)
    }

    fn validate(&self) -> Result<(), RecordError> {
        let wrong = |field| Err(RecordError { field });
        let snapshot = matches!(self.kind, RecordKind::Snapshot | RecordKind::Hidden);
        let has_id = self.snapshot != SnapshotId([0; 16]);
        if snapshot && !has_id || self.kind == RecordKind::Live && has_id {
            return wrong("snapshot id");
        }
        if self.depth > DEPTH_MAX || self.map.is_none() && self.depth != 0 {
            return wrong("depth");
        }
        if self.generation.0 == 0 || self.map.generation > self.generation {
            return wrong("generation");
        }
        if self.leaving && self.kind != RecordKind::Live {
            return wrong("flag");
        }
        if self.walked != 0 && self.kind != RecordKind::Deleting {
            return wrong("walk");
        }
        Ok(())
    }
}

fn record_bytes(page: &Page, n: usize) -> [u8; RECORD_BYTES] {
    array(page, HEADER_BYTES + n * RECORD_BYTES)
}

/// Record `n` of a checked leaf.
pub(in crate::store) fn record(page: &Page, n: usize) -> Option<CatalogueRecord> {
    CatalogueRecord::decode(&record_bytes(page, n))
        .ok()
        .flatten()
}

/// Writes record `n` of a leaf.
pub(super) fn set_record(page: &mut Page, n: usize, record: &CatalogueRecord) {
    put(page, HEADER_BYTES + n * RECORD_BYTES, &record.encode());
}

/// Looks at every record of a leaf, and counts those that are not free.
pub(super) fn check_body(page: &Page, index: u64) -> Result<u16, PageError> {
    let last = u64::from(u32::MAX) / CATALOGUE_LEAF_RECORDS as u64;
    if index > last {
        return Err(PageError::Index {
            expected: last,
            found: index,
        });
    }
    let mut found = 0;
    for n in 0..CATALOGUE_LEAF_RECORDS {
        let wrong = PageError::Entry { slot: n as u8 };
        let record = CatalogueRecord::decode(&record_bytes(page, n)).map_err(|_| wrong)?;
        if record.is_some() && index == 0 && n == 0 {
            return Err(wrong);
        }
        found += u16::from(record.is_some());
    }
    let end = HEADER_BYTES + CATALOGUE_LEAF_RECORDS * RECORD_BYTES;
    if !is_zero(&page[end..]) {
        return Err(PageError::Reserved { at: end });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::map::page::blank;
    use crate::store::types::{Crc, PhysicalBlock};
    use std::rc::Rc;

    fn snapshot() -> CatalogueRecord {
        CatalogueRecord {
            kind: RecordKind::Snapshot,
            lane: 3,
            lanes: 16,
            sealed: true,
            leaving: false,
            lossy: true,
            replica: true,
            parent: CatalogueHandle(0x0102_0304),
            generation: Generation(0x1112_1314),
            incarnation: 0x2122_2324,
            volume: VolumeId([7; 16]),
            snapshot: SnapshotId([8; 16]),
            map: ChildEntry {
                block: PhysicalBlock(99),
                crc: Crc(5),
                generation: Generation(4),
                used: 1000,
                ..ChildEntry::NONE
            },
            depth: 3,
            epoch: 0x3132_3334,
            size_bytes: 1 << 40,
            sequence: LaneSequence(77),
            walked: 0,
            settled: Stamp { epoch: 1, seq: 2 },
        }
    }

    #[test]
    fn a_record_is_at_its_offsets() {
        let record = snapshot();
        let bytes = record.encode();
        assert_eq!(bytes[..8], [2, 3, 16, 13, 4, 3, 2, 1]);
        assert_eq!(
            bytes[8..16],
            [0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21]
        );
        assert_eq!(
            (bytes[48], bytes[68], bytes[72], bytes[81]),
            (99, 3, 0x34, 1)
        );
        assert_eq!((bytes[96], bytes[112], bytes[116]), (77, 1, 2));
        assert_eq!(CatalogueRecord::decode(&bytes), Ok(Some(record.clone())));
        assert_eq!(CatalogueRecord::decode(&[0; 128]), Ok(None));
        let put = CatalogueRecord::decode_put(&record.encode_put());
        let mut put = put.expect("valid").expect("not free");
        assert_eq!((put.sequence, put.settled), (LaneSequence(0), NO_STAMP));
        put.lossy = false;
        put.keep_of(&record);
        assert_eq!(put, record);
        put.keep_of(&CatalogueRecord {
            lossy: false,
            ..record.clone()
        });
        assert!(put.lossy, "what is lost does not come back");
        let root = record.root();
        assert!(root.sealed && root.depth == 3 && root.child == record.map);
    }

    #[test]
    fn a_record_that_makes_no_sense_is_refused() {
        let good = snapshot().encode();
        let bad = [
            (0, 6, "kind"),
            (0, 0, "kind"),
            (1, 16, "lane"),
            (3, 16, "flag"),
            (3, 2, "flag"),
            (53, 1, "root"),
            (68, 7, "depth"),
            (69, 1, "reserved byte"),
            (95, 1, "reserved byte"),
            (127, 1, "reserved byte"),
            (11, 0, "generation"),
            (0, 1, "snapshot id"),
            (104, 1, "walk"),
        ];
        for (at, byte, field) in bad {
            let mut bytes = good;
            bytes[at] = byte;
            if field == "generation" {
                bytes[8..12].fill(0);
            }
            assert_eq!(
                CatalogueRecord::decode(&bytes),
                Err(RecordError { field }),
                "byte {at}"
            );
        }
    }

    #[test]
    fn handle_zero_is_never_used() {
        let mut page = blank();
        let page = Rc::make_mut(&mut page);
        set_record(page, 0, &snapshot());
        assert_eq!(check_body(page, 1), Ok(1));
        assert_eq!(record(page, 0), Some(snapshot()));
        assert_eq!(check_body(page, 0), Err(PageError::Entry { slot: 0 }));
    }
}
