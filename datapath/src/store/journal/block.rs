//! A journal block: what it says of itself and of what is durable, then records.

use keelblock_nvme::digest::{digest, digest_append};
use thiserror::Error;

use super::super::bytes::{get32, get64, is_zero, put32, put64};
use super::super::types::{BLOCK_BYTES, Crc, DriveId, MountGeneration};

/// Bytes before the records.
pub const HEADER_BYTES: usize = 64;
/// Bytes of records that a block can hold.
pub const RECORDS_BYTES: usize = BLOCK_BYTES - HEADER_BYTES;

/// No journal gets there.
const SEQUENCE_MAX: u64 = 1 << 56;

const MAGIC: [u8; 4] = *b"KJB1";
const CRC: usize = 4;
const DRIVE: usize = 8;
const GENERATION: usize = 24;
const SEQUENCE: usize = 32;
const WATERMARK: usize = 40;
const TAIL: usize = 48;
const BYTES: usize = 56;
const CONTINUED: usize = 58;
const RESERVED: usize = 60;

const _: () = assert!(RESERVED + 4 == HEADER_BYTES);
const _: () = assert!(RECORDS_BYTES == 4032);

/// What a journal block says before its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Whose journal.
    pub drive: DriveId,
    /// The mount that wrote it.
    pub generation: MountGeneration,
    /// Which block.
    pub sequence: u64,
    /// Every block at or below it, and the data of its records, was on stable media when this one was written.
    pub watermark: u64,
    /// Replay needs nothing below it.
    pub tail: u64,
    /// Bytes of records.
    pub bytes: usize,
    /// Of these, bytes that continue a record of the block before.
    pub continued: usize,
}

/// Why a block does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    /// Nothing of the journal: never written, or torn at its start.
    #[error("no journal block")]
    Magic,
    /// Torn, or damaged.
    #[error("a journal block's checksum does not match")]
    Crc,
    /// It is whole, but not what this version writes.
    #[error("a journal block has {field} that this version does not write")]
    Field {
        /// What.
        field: &'static str,
    },
}

impl BlockHeader {
    /// Finishes a block whose records are in place: header, zeroes after the records, checksum.
    ///
    /// # Panics
    /// If that is no block, or the counts do not fit.
    pub fn encode(&self, block: &mut [u8]) {
        assert!(block.len() == BLOCK_BYTES, "a block");
        assert!(self.bytes <= RECORDS_BYTES, "records fit");
        assert!(self.continued <= self.bytes, "what continues is a part");
        block[..4].copy_from_slice(&MAGIC);
        put32(block, CRC, 0);
        block[DRIVE..DRIVE + 16].copy_from_slice(&self.drive.0);
        put64(block, GENERATION, self.generation.0);
        put64(block, SEQUENCE, self.sequence);
        put64(block, WATERMARK, self.watermark);
        put64(block, TAIL, self.tail);
        block[BYTES..BYTES + 2].copy_from_slice(&(self.bytes as u16).to_le_bytes());
        block[CONTINUED..CONTINUED + 2].copy_from_slice(&(self.continued as u16).to_le_bytes());
        put32(block, RESERVED, 0);
        block[HEADER_BYTES + self.bytes..].fill(0);
        let crc = Crc::of(block);
        put32(block, CRC, crc.0);
    }

    /// Drive, mount and sequence that a block, whole or not, seems to have.
    pub fn identity(block: &[u8]) -> (DriveId, MountGeneration, u64) {
        let drive = DriveId(std::array::from_fn(|i| block[DRIVE + i]));
        let generation = MountGeneration(get64(block, GENERATION));
        (drive, generation, get64(block, SEQUENCE))
    }

    /// The header of a block that is whole.
    ///
    /// # Panics
    /// If that is no block.
    pub fn decode(block: &[u8]) -> Result<Self, BlockError> {
        assert!(block.len() == BLOCK_BYTES, "a block");
        if block[..4] != MAGIC {
            return Err(BlockError::Magic);
        }
        let head = digest(&block[..CRC]);
        let head = digest_append(head, &[0; 4]);
        if digest_append(head, &block[CRC + 4..]) != get32(block, CRC) {
            return Err(BlockError::Crc);
        }
        let count = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
        let (drive, generation, sequence) = Self::identity(block);
        let header = Self {
            drive,
            generation,
            sequence,
            watermark: get64(block, WATERMARK),
            tail: get64(block, TAIL),
            bytes: count(BYTES),
            continued: count(CONTINUED),
        };
        let field = |field| Err(BlockError::Field { field });
        if header.bytes > RECORDS_BYTES || header.continued > header.bytes {
            return field("counts");
        }
        if header.sequence > SEQUENCE_MAX {
            return field("a sequence");
        }
        if header.watermark >= header.sequence || header.tail > header.sequence {
            return field("a watermark or tail");
        }
        if !is_zero(&block[RESERVED..HEADER_BYTES]) {
            return field("reserved bytes");
        }
        if !is_zero(&block[HEADER_BYTES + header.bytes..]) {
            return field("bytes after its records");
        }
        Ok(header)
    }

    /// A block's records.
    pub fn records<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[HEADER_BYTES..HEADER_BYTES + self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> BlockHeader {
        BlockHeader {
            drive: DriveId([7; 16]),
            generation: MountGeneration(3),
            sequence: 1000,
            watermark: 998,
            tail: 5,
            bytes: 100,
            continued: 20,
        }
    }

    #[test]
    fn a_block_comes_back_and_lies_as_documented() {
        let mut block = [0xaa; BLOCK_BYTES];
        header().encode(&mut block);
        assert_eq!(BlockHeader::decode(&block), Ok(header()));
        assert_eq!(block[..4], *b"KJB1");
        assert_eq!(block[8..24], [7; 16]);
        assert_eq!(get64(&block, 24), 3);
        assert_eq!(get64(&block, 32), 1000);
        assert_eq!(get64(&block, 40), 998);
        assert_eq!(get64(&block, 48), 5);
        assert_eq!(block[56..60], [100, 0, 20, 0]);
        assert_eq!(header().records(&block), [0xaa; 100]);
        assert!(is_zero(&block[164..]));
    }

    #[test]
    fn what_a_later_version_writes_is_refused() {
        let refused = |change: &dyn Fn(&mut [u8])| {
            let mut block = [0; BLOCK_BYTES];
            header().encode(&mut block);
            change(&mut block);
            put32(&mut block, CRC, 0);
            let crc = Crc::of(&block);
            put32(&mut block, CRC, crc.0);
            matches!(BlockHeader::decode(&block), Err(BlockError::Field { .. }))
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|b| b[60] = 1));
        assert!(refused(&|b| b[4095] = 1));
        assert!(refused(&|b| b[57] = 16));
        assert!(refused(&|b| b[58] = 101));
        assert!(refused(&|b| put64(b, WATERMARK, 1000)));
        assert!(refused(&|b| put64(b, TAIL, 1001)));
    }

    proptest! {
        #[test]
        fn any_damage_is_seen(at in 0..BLOCK_BYTES, by in 1u8..) {
            let mut block = [0x55; BLOCK_BYTES];
            header().encode(&mut block);
            block[at] ^= by;
            prop_assert!(BlockHeader::decode(&block).is_err());
        }
    }
}
