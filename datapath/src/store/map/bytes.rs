//! Little-endian numbers at offsets of a page, of sizes that only the map has.

pub use super::super::bytes::{get32, get64, is_zero, put32, put64};

/// One byte.
pub fn get8(from: &[u8], at: usize) -> u8 {
    from[at]
}

/// Two bytes.
pub fn get16(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([from[at], from[at + 1]])
}

/// Five bytes.
pub fn get40(from: &[u8], at: usize) -> u64 {
    u64::from(get32(from, at)) | u64::from(from[at + 4]) << 32
}

/// Six bytes.
pub fn get48(from: &[u8], at: usize) -> u64 {
    u64::from(get32(from, at)) | u64::from(get16(from, at + 4)) << 32
}

/// Bytes as they are.
pub fn array<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[at..at + N]);
    bytes
}

/// Two bytes.
pub fn put16(into: &mut [u8], at: usize, n: u16) {
    put(into, at, &n.to_le_bytes());
}

/// Five bytes.
pub fn put40(into: &mut [u8], at: usize, n: u64) {
    assert!(n < 1 << 40, "{n:#x} does not fit 5 bytes");
    put(into, at, &n.to_le_bytes()[..5]);
}

/// Six bytes.
pub fn put48(into: &mut [u8], at: usize, n: u64) {
    assert!(n < 1 << 48, "{n:#x} does not fit 6 bytes");
    put(into, at, &n.to_le_bytes()[..6]);
}

/// Bytes as they are.
pub fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}
