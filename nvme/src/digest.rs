//! Header and data digests: CRC32C, little-endian (NVMe/TCP 1.1, 3.2).

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The digest of what `digest` covered, followed by `bytes`. Starts at 0.
pub fn digest_append(digest: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(digest, bytes)
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
