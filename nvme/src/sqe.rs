//! Submission queue entries (NVMe Base 2.1, 4.1; fabrics commands 6.1).

use crate::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::sgl::Sgl;

const OPC: usize = 0;
const FLAGS: usize = 1;
const CID: usize = 2;
const NSID: usize = 4;
const FCTYPE: usize = 4;
const SGL1: usize = 24;
const CDW10: usize = 40;

/// A submission queue entry: 64 bytes, read and written at their offsets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sqe(pub [u8; Sqe::LEN]);

/// Whether a command is half of a fused pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// A command by itself.
    Normal,
    /// The first of two.
    First,
    /// The second of two.
    Second,
    /// The reserved value 11b.
    Reserved,
}

impl Default for Sqe {
    fn default() -> Self {
        Self([0; Self::LEN])
    }
}

impl std::fmt::Debug for Sqe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Sqe {{ opc {:#04x}, cid {}, nsid {:#x}",
            self.opcode(),
            self.cid(),
            self.nsid()
        )?;
        (10..16).try_for_each(|n| write!(f, ", cdw{n} {:#x}", self.cdw(n)))?;
        f.write_str(" }")
    }
}

impl Sqe {
    /// Length in bytes.
    pub const LEN: usize = 64;

    /// An entry with this opcode and namespace, SGLs for its data (PSDT 01b), all else 0.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        let mut s = Self::default();
        s.0[OPC] = opcode;
        s.0[FLAGS] = 1 << 6;
        put_u32(&mut s.0, NSID, nsid);
        s
    }

    /// A fabrics command of this type.
    pub fn fabrics(fctype: u8) -> Self {
        let mut s = Self::new(crate::opcode::FABRICS, 0);
        s.0[FCTYPE] = fctype;
        s
    }

    /// Opcode.
    pub fn opcode(&self) -> u8 {
        self.0[OPC]
    }
    /// Fabrics command type, of an entry with the fabrics opcode.
    pub fn fctype(&self) -> u8 {
        self.0[FCTYPE]
    }
    /// FUSE.
    pub fn fuse(&self) -> Fuse {
        match self.0[FLAGS] & 3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }
    /// Sets FUSE.
    pub fn set_fuse(&mut self, fuse: Fuse) {
        self.0[FLAGS] = self.0[FLAGS] & !3 | fuse as u8;
    }
    /// PSDT: 00b PRPs, 01b and 10b SGLs.
    pub fn psdt(&self) -> u8 {
        self.0[FLAGS] >> 6
    }
    /// Command identifier.
    pub fn cid(&self) -> u16 {
        u16_at(&self.0, CID)
    }
    /// Sets the command identifier.
    pub fn set_cid(&mut self, cid: u16) {
        put_u16(&mut self.0, CID, cid);
    }
    /// Namespace identifier.
    pub fn nsid(&self) -> u32 {
        u32_at(&self.0, NSID)
    }
    /// The 16 bytes of SGL1.
    pub fn sgl_bytes(&self) -> &[u8; 16] {
        self.0[SGL1..].first_chunk().expect("64 - 24 > 16")
    }
    /// SGL1, decoded.
    pub fn sgl(&self) -> Sgl {
        Sgl::decode(self.sgl_bytes())
    }
    /// Sets SGL1.
    pub fn set_sgl(&mut self, sgl: Sgl) {
        self.0[SGL1..SGL1 + 16].copy_from_slice(&sgl.encode());
    }
    /// Command dword `n`, 0 to 15.
    pub fn cdw(&self, n: usize) -> u32 {
        u32_at(&self.0, n * 4)
    }
    /// Sets command dword `n`, 0 to 15.
    pub fn set_cdw(&mut self, n: usize, v: u32) {
        put_u32(&mut self.0, n * 4, v);
    }
    /// The same with command dword `n` set.
    pub fn with_cdw(mut self, n: usize, v: u32) -> Self {
        self.set_cdw(n, v);
        self
    }
    /// Starting LBA of a read, write and their like (dwords 10 and 11).
    pub fn slba(&self) -> u64 {
        u64_at(&self.0, CDW10)
    }
    /// Number of blocks of a read, write and their like: NLB is 0's based on the wire, this is not.
    pub fn blocks(&self) -> u32 {
        (self.cdw(12) & 0xffff) + 1
    }
    /// Force Unit Access of a read, write and their like.
    pub fn fua(&self) -> bool {
        self.cdw(12) & FUA != 0
    }
    /// Deallocate of a Write Zeroes.
    pub fn deac(&self) -> bool {
        self.cdw(12) & DEAC != 0
    }
    /// A read, write, compare, verify or write zeroes of `blocks` (1 to 65536) at `slba`.
    pub fn io(opcode: u8, nsid: u32, slba: u64, blocks: u32) -> Self {
        assert!(
            (1..=1 << 16).contains(&blocks),
            "NLB holds 1 to 65536 blocks"
        );
        let mut s = Self::new(opcode, nsid);
        put_u64(&mut s.0, CDW10, slba);
        s.set_cdw(12, blocks - 1);
        s
    }
}

/// Bit of dword 12: Force Unit Access.
pub const FUA: u32 = 1 << 30;
/// Bit of dword 12 of Write Zeroes: Deallocate.
pub const DEAC: u32 = 1 << 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_says() {
        let mut s = Sqe::io(0x01, 7, 0x1122_3344_5566_7788, 9);
        s.set_cid(0xabcd);
        s.set_fuse(Fuse::Second);
        s.set_cdw(12, s.cdw(12) | FUA);
        assert_eq!(s.0[..8], [0x01, 0x42, 0xcd, 0xab, 7, 0, 0, 0]);
        assert_eq!(
            s.0[40..52],
            [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 8, 0, 0, 0x40
            ]
        );
        assert_eq!(
            (s.slba(), s.blocks(), s.fua(), s.deac()),
            (0x1122_3344_5566_7788, 9, true, false)
        );
        assert_eq!(
            (s.fuse(), s.psdt(), s.cid(), s.nsid()),
            (Fuse::Second, 1, 0xabcd, 7)
        );
    }
}
