//! Completion queue entries (NVMe Base 2.1, 4.2).

use crate::Status;
use crate::bytes::{put_u16, put_u32, u16_at, u32_at, u64_at};

const DW0: usize = 0;
const DW1: usize = 4;
const SQHD: usize = 8;
const CID: usize = 12;
const STATUS: usize = 14;

/// A completion queue entry: 16 bytes. Over fabrics SQID and the phase tag are 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cqe(pub [u8; Cqe::LEN]);

impl std::fmt::Debug for Cqe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Cqe {{ cid {}, {:?}, dw0 {:#x}, dw1 {:#x} }}",
            self.cid(),
            self.status(),
            self.dw0(),
            self.dw1()
        )
    }
}

impl Cqe {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// An entry.
    pub fn new(cid: u16, sqhd: u16, status: Status, dw0: u32, dw1: u32) -> Self {
        let mut b = [0; Self::LEN];
        put_u32(&mut b, DW0, dw0);
        put_u32(&mut b, DW1, dw1);
        put_u16(&mut b, SQHD, sqhd);
        put_u16(&mut b, CID, cid);
        put_u16(&mut b, STATUS, status.0 << 1);
        Self(b)
    }
    /// Command-specific dword 0.
    pub fn dw0(&self) -> u32 {
        u32_at(&self.0, DW0)
    }
    /// Command-specific dword 1.
    pub fn dw1(&self) -> u32 {
        u32_at(&self.0, DW1)
    }
    /// Dwords 0 and 1 as one value (Property Get).
    pub fn dw01(&self) -> u64 {
        u64_at(&self.0, DW0)
    }
    /// Submission queue head pointer.
    pub fn sqhd(&self) -> u16 {
        u16_at(&self.0, SQHD)
    }
    /// Command identifier.
    pub fn cid(&self) -> u16 {
        u16_at(&self.0, CID)
    }
    /// Status.
    pub fn status(&self) -> Status {
        Status(u16_at(&self.0, STATUS) >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_says() {
        let c = Cqe::new(0x1234, 5, Status::COMPARE_FAILURE, 0xa1a2_a3a4, 6);
        assert_eq!(
            c.0,
            [
                0xa4, 0xa3, 0xa2, 0xa1, 6, 0, 0, 0, 5, 0, 0, 0, 0x34, 0x12, 0x0a, 0x05
            ]
        );
        assert_eq!(
            (c.cid(), c.sqhd(), c.status(), c.dw1()),
            (0x1234, 5, Status::COMPARE_FAILURE, 6)
        );
    }
}
