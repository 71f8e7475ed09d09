//! The table of replicas in a superblock copy (`docs/store-format.md` §2): what each replica on the drive has promised, and the set it keeps.

use super::super::VolumeId;
use super::super::bytes::{get32, get64, is_zero, put32, put64};
use super::copy::CopyError;

/// Bytes of an entry.
const ENTRY_BYTES: usize = 144;
/// Most replicas of a drive.
pub const REPLICAS_MAX: usize = TABLE_BYTES / ENTRY_BYTES;
/// Bytes of the table.
pub(super) const TABLE_BYTES: usize = super::COPY_BYTES - 36_864;
/// Members of a set beside the replica itself.
pub const OTHERS_MAX: usize = 4;

const VOLUME: usize = 0;
const REPLICA: usize = 16;
const EPOCH: usize = 32;
const STATE: usize = 36;
const OTHERS: usize = 37;
const SELF: usize = 38;
const ZERO_39: usize = 39;
const INCARNATION: usize = 40;
const VERSION: usize = 56;
const SET_EPOCH: usize = 64;
const ZERO_68: usize = 68;
const SET_VERSION: usize = 72;
const MEMBERS: usize = 80;
const _: () = assert!(MEMBERS + 16 * OTHERS_MAX == ENTRY_BYTES);
const _: () = assert!(REPLICAS_MAX == 1564);

/// What a replica has promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplicaState {
    /// Nothing yet: epoch, incarnation and version are zero.
    #[default]
    Fresh = 0,
    /// An epoch.
    Promised = 1,
    /// The same, and it is being copied to.
    Resyncing = 2,
    /// It was copied to; the version is that of the record that may name it.
    Level = 3,
    /// Its promise was lost with copies of the superblock: it is never this replica again.
    Lost = 4,
}

/// A replica, as a superblock has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaEntry {
    /// Whose lanes it is.
    pub volume: VolumeId,
    /// Its id.
    pub replica: [u8; 16],
    /// What it is.
    pub state: ReplicaState,
    /// It promised to accept nothing lower.
    pub epoch: u32,
    /// The process that this epoch belongs to.
    pub incarnation: [u8; 16],
    /// Of the set's record when it was asked.
    pub version: u64,
    /// Of the newest set that was kept: its epoch, its version, and its members in the order of their ids.
    pub set_epoch: u32,
    /// See [`ReplicaEntry::set_epoch`].
    pub set_version: u64,
    /// See [`ReplicaEntry::set_epoch`].
    pub members: Vec<[u8; 16]>,
}

impl ReplicaEntry {
    /// One that has promised nothing.
    pub fn fresh(volume: VolumeId, replica: [u8; 16]) -> Self {
        Self {
            volume,
            replica,
            state: ReplicaState::Fresh,
            epoch: 0,
            incarnation: [0; 16],
            version: 0,
            set_epoch: 0,
            set_version: 0,
            members: Vec::new(),
        }
    }

    fn encode(&self, into: &mut [u8]) {
        into[VOLUME..VOLUME + 16].copy_from_slice(&self.volume.0);
        into[REPLICA..REPLICA + 16].copy_from_slice(&self.replica);
        put32(into, EPOCH, self.epoch);
        into[STATE] = self.state as u8;
        into[INCARNATION..INCARNATION + 16].copy_from_slice(&self.incarnation);
        put64(into, VERSION, self.version);
        put32(into, SET_EPOCH, self.set_epoch);
        put64(into, SET_VERSION, self.set_version);
        let mut others = 0;
        for member in &self.members {
            if *member == self.replica {
                into[SELF] = 1;
                continue;
            }
            let at = MEMBERS + 16 * others;
            into[at..at + 16].copy_from_slice(member);
            others += 1;
        }
        into[OTHERS] = others as u8;
    }

    fn decode(from: &[u8]) -> Option<Self> {
        let id = |at: usize| std::array::from_fn(|i| from[at + i]);
        let state = match from[STATE] {
            0 => ReplicaState::Fresh,
            1 => ReplicaState::Promised,
            2 => ReplicaState::Resyncing,
            3 => ReplicaState::Level,
            4 => ReplicaState::Lost,
            _ => return None,
        };
        let others = usize::from(from[OTHERS]);
        let zero = [&from[ZERO_39..INCARNATION], &from[ZERO_68..SET_VERSION]];
        if others > OTHERS_MAX || from[SELF] > 1 || !zero.iter().all(|bytes| is_zero(bytes)) {
            return None;
        }
        if !is_zero(&from[MEMBERS + 16 * others..ENTRY_BYTES]) {
            return None;
        }
        let mut members: Vec<[u8; 16]> = (0..others).map(|n| id(MEMBERS + 16 * n)).collect();
        if from[SELF] == 1 {
            members.push(id(REPLICA));
            members.sort_unstable();
        }
        let entry = Self {
            volume: VolumeId(id(VOLUME)),
            replica: id(REPLICA),
            state,
            epoch: get32(from, EPOCH),
            incarnation: id(INCARNATION),
            version: get64(from, VERSION),
            set_epoch: get32(from, SET_EPOCH),
            set_version: get64(from, SET_VERSION),
            members,
        };
        entry.is_valid().then_some(entry)
    }

    fn is_valid(&self) -> bool {
        let others = self.members.iter().filter(|m| **m != self.replica).count();
        let promise = self.epoch != 0 || self.version != 0 || self.incarnation != [0; 16];
        self.volume.0 != [0; 16]
            && self.replica != [0; 16]
            && others <= OTHERS_MAX
            && self.members.is_sorted_by(|a, b| a < b)
            && !(self.state == ReplicaState::Fresh && promise)
    }
}

/// Whether these are a table: each valid, each volume once, in the order of volumes.
pub(super) fn are_valid(entries: &[ReplicaEntry]) -> bool {
    entries.len() <= REPLICAS_MAX
        && entries.iter().all(ReplicaEntry::is_valid)
        && entries.is_sorted_by(|a, b| a.volume < b.volume)
}

/// Writes the table; `into` is zero.
pub(super) fn encode(entries: &[ReplicaEntry], into: &mut [u8]) {
    for (entry, bytes) in entries.iter().zip(into.chunks_exact_mut(ENTRY_BYTES)) {
        entry.encode(bytes);
    }
}

/// Reads it: entries, then zeroes.
pub(super) fn decode(from: &[u8]) -> Result<Vec<ReplicaEntry>, CopyError> {
    let wrong = CopyError::Field { field: "replica" };
    let mut entries = Vec::new();
    let mut chunks = from.chunks_exact(ENTRY_BYTES);
    let mut rest = chunks.remainder();
    for bytes in chunks.by_ref() {
        if is_zero(bytes) {
            rest = &from[entries.len() * ENTRY_BYTES..];
            break;
        }
        entries.push(ReplicaEntry::decode(bytes).ok_or(wrong.clone())?);
    }
    if !is_zero(rest) {
        return Err(CopyError::Reserved {
            part: "behind the replicas",
        });
    }
    if are_valid(&entries) {
        Ok(entries)
    } else {
        Err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8) -> ReplicaEntry {
        ReplicaEntry {
            state: ReplicaState::Level,
            epoch: 0x0102_0304,
            incarnation: [7; 16],
            version: 0x1112,
            set_epoch: 0x2122,
            set_version: 0x3132,
            members: vec![[3; 16], [n; 16]],
            ..ReplicaEntry::fresh(VolumeId([n; 16]), [n; 16])
        }
    }

    #[test]
    fn an_entry_is_at_its_offsets() {
        let mut bytes = [0; ENTRY_BYTES];
        entry(5).encode(&mut bytes);
        assert_eq!((bytes[0], bytes[16]), (5, 5));
        assert_eq!(bytes[32..40], [4, 3, 2, 1, 3, 1, 1, 0]);
        assert_eq!((bytes[40], bytes[56], bytes[57]), (7, 0x12, 0x11));
        assert_eq!(
            (bytes[64], bytes[72], bytes[80], bytes[96]),
            (0x22, 0x32, 3, 0)
        );
        assert_eq!(ReplicaEntry::decode(&bytes), Some(entry(5)));
    }

    #[test]
    fn a_full_table_is_read_back() {
        let numbered = |n: usize| {
            let mut volume = [0; 16];
            volume[..2].copy_from_slice(&(n as u16 + 1).to_be_bytes());
            ReplicaEntry::fresh(VolumeId(volume), [9; 16])
        };
        for count in [0, 1, REPLICAS_MAX] {
            let all: Vec<_> = (0..count).map(numbered).collect();
            let mut bytes = vec![0; TABLE_BYTES];
            encode(&all, &mut bytes);
            assert_eq!(decode(&bytes), Ok(all));
        }
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused() {
        let good = |entries: &[ReplicaEntry]| {
            let mut bytes = vec![0; TABLE_BYTES];
            encode(entries, &mut bytes);
            bytes
        };
        let wrong = Err(CopyError::Field { field: "replica" });
        assert_eq!(decode(&good(&[entry(5), entry(4)])), wrong);
        assert_eq!(decode(&good(&[entry(4), entry(4)])), wrong);
        for (at, byte) in [
            (36, 5),
            (36, 0),
            (37, 5),
            (37, 0),
            (38, 2),
            (39, 1),
            (68, 1),
        ] {
            let mut bytes = good(&[entry(5)]);
            bytes[at] = byte;
            assert_eq!(decode(&bytes), wrong, "byte {at}");
        }
        let mut bytes = good(&[entry(5)]);
        bytes[3 * ENTRY_BYTES] = 1;
        let behind = CopyError::Reserved {
            part: "behind the replicas",
        };
        assert_eq!(decode(&bytes), Err(behind));
        let mut bytes = good(&[]);
        *bytes.last_mut().expect("not empty") = 1;
        assert!(decode(&bytes).is_err());
    }
}
