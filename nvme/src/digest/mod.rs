//! CRC32C: header and data digests, little-endian (NVMe/TCP 1.1, 3.2), and every other checksum of ours. The crate folds with whatever carry-less
//! multiplication the processor has, found at run time; blocks of 4 KiB have a way of their own (`block`) where that is faster: everywhere if
//! they come from memory, and on processors without AVX-512 in any case.

#[cfg(target_arch = "x86_64")]
mod block;

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Ok(whole) = bytes.try_into()
        && block::possible()
        && !folds_64_bytes()
    {
        // SAFETY: it is possible.
        return unsafe { block::digest(whole, None) };
    }
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The digest of `bytes`, which are probably not in the caches; the 4 KiB from `ahead` on are asked for meanwhile, wherever that points.
pub fn digest_ahead(bytes: &[u8], ahead: Option<*const u8>) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Ok(whole) = bytes.try_into()
        && block::possible()
    {
        // SAFETY: it is possible.
        return unsafe { block::digest(whole, ahead) };
    }
    let _ = ahead;
    digest(bytes)
}

/// Whether the crate folds four times as many bytes at once as without.
#[cfg(target_arch = "x86_64")]
fn folds_64_bytes() -> bool {
    is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("vpclmulqdq")
}

/// The digest of what `digest` covered, followed by `bytes`. Starts at 0.
pub fn digest_append(digest: u32, bytes: &[u8]) -> u32 {
    // the register holds the complement of the digest
    let mut going_on = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!digest));
    going_on.update(bytes);
    going_on.finalize() as u32
}

/// The digest of several pieces in order.
pub fn digest_parts(parts: &[&[u8]]) -> u32 {
    parts.iter().fold(0, |d, p| digest_append(d, p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_and_pieces() {
        // the check value of CRC-32C (iSCSI)
        assert_eq!(digest(b"123456789"), 0xe306_9283);
        assert_eq!(digest(&[0; 32]), 0x8a91_36aa);
        assert_eq!(digest_parts(&[b"1234", b"", b"56789"]), 0xe306_9283);
    }

    #[test]
    fn blocks_have_the_same_digest_by_either_way() {
        let mut block = [0_u8; 4096];
        for seed in 0..64_u64 {
            let mut state = seed;
            for word in block.chunks_exact_mut(8) {
                // a Weyl sequence through a multiplication: no word like another, the first block all but empty
                state = state.wrapping_add(seed << 32 | seed);
                word.copy_from_slice(&state.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            }
            block[seed as usize * 64] ^= 1 << (seed % 8);
            let expected = checksum(CrcAlgorithm::Crc32Iscsi, &block) as u32;
            assert_eq!(digest(&block), expected, "seed {seed}");
            let nowhere = std::ptr::without_provenance(usize::MAX - 100);
            for ahead in [
                None,
                Some(block.as_ptr()),
                Some(std::ptr::null()),
                Some(nowhere),
            ] {
                assert_eq!(digest_ahead(&block, ahead), expected, "seed {seed}");
            }
        }
        // of any other length, and one bit anywhere
        assert_eq!(digest_ahead(&block[1..], None), digest(&block[1..]));
        let before = digest(&block);
        for bit in (0..8 * 4096).step_by(61) {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(digest(&block), before, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
