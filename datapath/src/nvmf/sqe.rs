//! The fields of a submission queue entry that the transport looks at (NVMe Base 2.1, figure 92; NVM Command Set 1.1, section 3.2).

use super::seam::SqeBytes;

/// Opcodes of the NVM command set that we know.
pub mod opcode {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const VERIFY: u8 = 0x0c;
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    pub const RESERVATION_REPORT: u8 = 0x0e;
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Fabrics commands.
    pub const FABRICS: u8 = 0x7f;
}

/// Fabrics command type of Connect.
pub const FCTYPE_CONNECT: u8 = 0x01;

/// FUSE.
pub const FUSE_FIRST: u8 = 1;
/// FUSE.
pub const FUSE_SECOND: u8 = 2;

/// Which way data goes, by the low bits of the opcode (of the fabrics type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// Host to controller.
    FromHost,
    /// Controller to host.
    ToHost,
    /// Both: no command that we know.
    Both,
}

/// The data descriptor of a command, SGL 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// In the capsule, at an offset.
    Capsule { offset: u64, len: u32 },
    /// Over the transport: R2T or C2HData.
    Transport { len: u32 },
    /// Anything else: the type is not for this transport.
    Other,
}

impl Sgl {
    /// The length that it says.
    pub fn len(&self) -> u32 {
        match *self {
            Sgl::Capsule { len, .. } | Sgl::Transport { len } => len,
            Sgl::Other => 0,
        }
    }
}

/// A view of an entry.
#[derive(Clone, Copy)]
pub struct Sqe<'a>(pub &'a SqeBytes);

impl Sqe<'_> {
    #[inline]
    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
    #[inline]
    fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) | u64::from(self.u32_at(at + 4)) << 32
    }
    /// OPC.
    #[inline]
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }
    /// FUSE, bits 1:0 of byte 1.
    #[inline]
    pub fn fuse(&self) -> u8 {
        self.0[1] & 3
    }
    /// PSDT says SGL (01b or 10b); fabrics know nothing else.
    #[inline]
    pub fn uses_sgl(&self) -> bool {
        matches!(self.0[1] >> 6, 1 | 2)
    }
    /// CID.
    #[inline]
    pub fn cid(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }
    /// NSID (not of fabrics commands).
    #[inline]
    pub fn nsid(&self) -> u32 {
        self.u32_at(4)
    }
    /// FCTYPE of a fabrics command.
    #[inline]
    pub fn fctype(&self) -> u8 {
        self.0[4]
    }
    /// Command dwords 10 to 15.
    #[inline]
    pub fn cdw(&self, n: usize) -> u32 {
        self.u32_at(4 * n)
    }
    /// SLBA.
    #[inline]
    pub fn slba(&self) -> u64 {
        self.u64_at(40)
    }
    /// NLB, 1's based.
    #[inline]
    pub fn blocks(&self) -> u64 {
        u64::from(self.cdw(12) & 0xffff) + 1
    }
    /// FUA.
    #[inline]
    pub fn fua(&self) -> bool {
        self.cdw(12) & 1 << 30 != 0
    }
    /// DEAC of Write Zeroes.
    #[inline]
    pub fn deallocate(&self) -> bool {
        self.cdw(12) & 1 << 25 != 0
    }
    /// SGL 1.
    #[inline]
    pub fn sgl(&self) -> Sgl {
        let len = self.u32_at(32);
        match self.0[39] {
            0x5a => Sgl::Transport { len },
            0x01 => Sgl::Capsule {
                offset: self.u64_at(24),
                len,
            },
            _ => Sgl::Other,
        }
    }
    /// SGL 1 is all zeroes, as some hosts send with commands without data.
    pub fn empty_sgl(&self) -> bool {
        self.0[24..40] == [0; 16]
    }
    /// Which way data goes.
    #[inline]
    pub fn direction(&self) -> Direction {
        let code = if self.opcode() == opcode::FABRICS {
            self.fctype()
        } else {
            self.opcode()
        };
        match code & 3 {
            0 => Direction::None,
            1 => Direction::FromHost,
            2 => Direction::ToHost,
            _ => Direction::Both,
        }
    }
}
