//! What `--verify` writes into each block: enough to recognise it anywhere, at any time.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 8 | LBA |
//! | 16 | 4 | generation: how often this run wrote the extent |
//! | 20 | 4 | CRC32C of the whole block, with this field as zeroes |
//! | 24 | 8 | run: tells blocks of this run from those of earlier ones |
//! | 32 | … | words that follow from LBA, generation and run |

use keelblock_nvme::digest::{digest, digest_append};

/// Length of the fields before the fill.
const HEADER_LEN: usize = 32;
const MAGIC: [u8; 8] = *b"KB-PERF1";
const CRC: std::ops::Range<usize> = 20..24;

/// 2^64 divided by the golden ratio: multiples of it fill the space evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of splitmix64: stamps that differ in a bit fill blocks that have nothing in common.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(GOLDEN);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Which block this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Where it was written.
    pub lba: u64,
    /// The how-manieth write of its extent.
    pub generation: u32,
    /// The run that wrote it.
    pub run: u64,
}

/// Why bytes are no block of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// No magic: never written by any run, or overwritten by something else.
    #[error("holds no stamp")]
    NoStamp,
    /// A stamp, but not all of the bytes that were written with it.
    #[error("holds a damaged block (stamp of LBA {}, generation {})", .0.lba, .0.generation)]
    Damaged(Stamp),
}

impl Stamp {
    /// Fills `block`, which is at least 512 bytes long.
    pub fn write(&self, block: &mut [u8]) {
        block[..8].copy_from_slice(&MAGIC);
        block[8..16].copy_from_slice(&self.lba.to_le_bytes());
        block[16..20].copy_from_slice(&self.generation.to_le_bytes());
        block[CRC].fill(0);
        block[24..32].copy_from_slice(&self.run.to_le_bytes());
        let mut word = mix(mix(self.lba) ^ self.run ^ u64::from(self.generation) << 32);
        for chunk in block[HEADER_LEN..].as_chunks_mut::<8>().0 {
            word = word.wrapping_add(GOLDEN);
            *chunk = word.to_le_bytes();
        }
        let crc = digest(block);
        block[CRC].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the stamp of `block` and checks all of its bytes.
    pub fn read(block: &[u8]) -> Result<Self, Foreign> {
        if block[..8] != MAGIC {
            return Err(Foreign::NoStamp);
        }
        let u64_at = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("8 bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"));
        let stamp = Self {
            lba: u64_at(8),
            generation: u32_at(16),
            run: u64_at(24),
        };
        let crc = digest(&block[..CRC.start]);
        let crc = digest_append(crc, &[0; 4]);
        let crc = digest_append(crc, &block[CRC.end..]);
        if crc == u32_at(CRC.start) {
            Ok(stamp)
        } else {
            Err(Foreign::Damaged(stamp))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_recognised_and_any_flipped_bit_is_found(lba: u64, generation: u32, run: u64, at in 0usize..4096, bit in 0u8..8) {
            let stamp = Stamp { lba, generation, run };
            let mut block = vec![0xa5; 4096];
            stamp.write(&mut block);
            prop_assert_eq!(Stamp::read(&block), Ok(stamp));
            block[at] ^= 1 << bit;
            prop_assert!(Stamp::read(&block).is_err());
        }
    }

    #[test]
    fn fills_of_neighbours_differ() {
        let mut blocks = [[0; 512]; 2];
        for (lba, block) in blocks.iter_mut().enumerate() {
            Stamp {
                lba: lba as u64,
                generation: 1,
                run: 9,
            }
            .write(block);
        }
        let same = (HEADER_LEN..512)
            .filter(|&i| blocks[0][i] == blocks[1][i])
            .count();
        assert!(same < 100, "{same} of 480 bytes are equal");
    }
}
