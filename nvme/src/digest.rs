//! CRC32C: header and data digests, little-endian (NVMe/TCP 1.1, 3.2), and every other checksum of ours. The crate folds with whatever carry-less
//! multiplication the processor has, found at run time: 4 KiB take less than half the time of the CRC instruction.

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
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
}
