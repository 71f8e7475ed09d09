//! PDUs of NVMe/TCP (NVMe/TCP Transport 1.1, 3.6): an 8-byte common header, a PDU-specific header, then, by type, a header digest,
//! padding, data and a data digest.
//!
//! Parsing never allocates and never panics: what a peer sends wrong becomes a [`PduError`], which holds all that a Terminate
//! Connection Request needs. Layouts are hand-checked offsets; a header is always encoded into an array of its exact length.

mod capsule;
mod data;
mod ic;
mod term;

pub use capsule::{CapsuleCmd, CapsuleResp};
pub use data::{C2HData, H2CData, R2T};
pub use ic::{ICReq, ICResp, PDA_MAX};
pub use term::{TERM_DATA_MAX, TermReq};

use crate::bytes::{put_u32, u32_at};

/// Length of the common header.
pub const COMMON_HEADER_LEN: usize = 8;
/// Length of a header digest or a data digest (CRC32C).
pub const DIGEST_LEN: usize = 4;
/// The longest header of any PDU (ICReq, ICResp).
pub const HEADER_LEN_MAX: usize = 128;

/// Offsets within the common header; also the FEI of a field that is wrong.
pub mod at {
    /// PDU type.
    pub const TYPE: usize = 0;
    /// Flags.
    pub const FLAGS: usize = 1;
    /// Header length.
    pub const HLEN: usize = 2;
    /// PDU data offset.
    pub const PDO: usize = 3;
    /// PDU length.
    pub const PLEN: usize = 4;
}

/// Flags of the common header.
pub mod flags {
    /// A header digest follows the header.
    pub const HDGSTF: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DDGSTF: u8 = 1 << 1;
    /// The last data PDU of a transfer.
    pub const LAST_PDU: u8 = 1 << 2;
    /// C2HData: the command succeeded, no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// PDU types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request.
    ICReq = 0x00,
    /// Initialize Connection Response.
    ICResp = 0x01,
    /// Host to Controller Terminate Connection Request.
    H2CTermReq = 0x02,
    /// Controller to Host Terminate Connection Request.
    C2HTermReq = 0x03,
    /// Command capsule.
    CapsuleCmd = 0x04,
    /// Response capsule.
    CapsuleResp = 0x05,
    /// Host to Controller Data Transfer.
    H2CData = 0x06,
    /// Controller to Host Data Transfer.
    C2HData = 0x07,
    /// Ready to Transfer.
    R2T = 0x09,
}

/// Who sends a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The host (initiator).
    Host,
    /// The controller (target).
    Controller,
}

impl PduType {
    /// The type of a code, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::ICReq,
            0x01 => Self::ICResp,
            0x02 => Self::H2CTermReq,
            0x03 => Self::C2HTermReq,
            0x04 => Self::CapsuleCmd,
            0x05 => Self::CapsuleResp,
            0x06 => Self::H2CData,
            0x07 => Self::C2HData,
            0x09 => Self::R2T,
            _ => return None,
        })
    }

    /// HLEN of the type.
    pub const fn header_len(self) -> usize {
        match self {
            Self::ICReq | Self::ICResp => 128,
            Self::CapsuleCmd => 72,
            _ => 24,
        }
    }

    /// Which end sends it.
    pub const fn sender(self) -> Sender {
        match self {
            Self::ICReq | Self::H2CTermReq | Self::CapsuleCmd | Self::H2CData => Sender::Host,
            _ => Sender::Controller,
        }
    }

    /// Whether data may follow its header at PDO. (Terminate requests carry theirs right after the header, without PDO.)
    pub const fn carries_data(self) -> bool {
        matches!(self, Self::CapsuleCmd | Self::H2CData | Self::C2HData)
    }

    /// Whether digests apply to it: never to the connection's set-up and end.
    pub const fn has_header_digest(self) -> bool {
        !matches!(
            self,
            Self::ICReq | Self::ICResp | Self::H2CTermReq | Self::C2HTermReq
        )
    }
}

/// Fatal error status of a Terminate Connection Request (NVMe/TCP 1.1, figures 'H2CTermReq' and 'C2HTermReq').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Fes {
    /// A header field has an invalid value; FEI is the field's offset.
    InvalidHeaderField = 1,
    /// A PDU came when it may not come.
    SequenceError = 2,
    /// A header digest does not match; FEI is the digest received.
    HeaderDigest = 3,
    /// Data lies outside what was asked for.
    DataOutOfRange = 4,
    /// More R2Ts (to a host) or more data (to a controller) than allowed.
    LimitExceeded = 5,
    /// A parameter that the receiver does not support; FEI is the field's offset.
    UnsupportedParameter = 6,
}

/// A PDU that ends the connection: what is wrong, in the words of a Terminate Connection Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (fatal error status {fes:?}, information {fei:#x})")]
pub struct PduError {
    /// The status to send.
    pub fes: Fes,
    /// Its information: an offset, or a digest.
    pub fei: u32,
    /// For people.
    pub what: &'static str,
}

impl PduError {
    /// An invalid header field at `offset`.
    pub const fn field(offset: usize, what: &'static str) -> Self {
        Self {
            fes: Fes::InvalidHeaderField,
            fei: offset as u32,
            what,
        }
    }
    /// A PDU out of sequence.
    pub const fn sequence(what: &'static str) -> Self {
        Self {
            fes: Fes::SequenceError,
            fei: 0,
            what,
        }
    }
    /// Data outside of what was asked for.
    pub const fn out_of_range(what: &'static str) -> Self {
        Self {
            fes: Fes::DataOutOfRange,
            fei: 0,
            what,
        }
    }
}

/// The common header, checked against what its type allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonHeader {
    /// Type.
    pub kind: PduType,
    /// Flags as received.
    pub flags: u8,
    /// PDU data offset.
    pub pdo: u8,
    /// Length of the whole PDU in bytes, digests included.
    pub plen: u32,
}

impl CommonHeader {
    /// Checks type, direction, HLEN, and that PLEN holds the header (and, for types that need one, its digest when `header_digest` was
    /// negotiated). PDO is checked by [`Self::data_range`], since it counts only where there is data.
    pub fn parse(
        b: &[u8; COMMON_HEADER_LEN],
        from: Sender,
        header_digest: bool,
    ) -> Result<Self, PduError> {
        let Some(kind) = PduType::from_code(b[at::TYPE]) else {
            return Err(PduError::field(at::TYPE, "unknown PDU type"));
        };
        if kind.sender() != from {
            return Err(PduError::field(
                at::TYPE,
                "a PDU type of the other direction",
            ));
        }
        let hlen = kind.header_len();
        if b[at::HLEN] as usize != hlen {
            return Err(PduError::field(
                at::HLEN,
                "HLEN is not that of the PDU type",
            ));
        }
        let plen = u32_at(b, at::PLEN);
        let header = Self {
            kind,
            flags: b[at::FLAGS],
            pdo: b[at::PDO],
            plen,
        };
        let digest = header_digest && kind.has_header_digest();
        if (plen as usize) < hlen + if digest { DIGEST_LEN } else { 0 } {
            return Err(PduError::field(at::PLEN, "PLEN is shorter than the header"));
        }
        if !kind.carries_data() {
            header.check_no_data(digest)?;
        }
        Ok(header)
    }

    fn check_no_data(&self, digest: bool) -> Result<(), PduError> {
        let hlen = self.kind.header_len();
        let max = match self.kind {
            PduType::H2CTermReq | PduType::C2HTermReq => hlen + TERM_DATA_MAX,
            _ => hlen + if digest { DIGEST_LEN } else { 0 },
        };
        if self.plen as usize > max {
            return Err(PduError::field(
                at::PLEN,
                "PLEN is longer than the PDU type",
            ));
        }
        Ok(())
    }

    /// Where the data of this PDU lies within it, and how long it is by PLEN. `align` is the alignment in bytes that was negotiated for
    /// data in this direction. A command capsule without data has an empty range.
    pub fn data_range(
        &self,
        digests: Digests,
        align: usize,
    ) -> Result<std::ops::Range<usize>, PduError> {
        let header = self.kind.header_len() + if digests.header { DIGEST_LEN } else { 0 };
        let (pdo, plen) = (self.pdo as usize, self.plen as usize);
        if plen == header {
            return if self.kind == PduType::CapsuleCmd {
                Ok(header..header)
            } else {
                Err(PduError::field(at::PLEN, "a data PDU without data"))
            };
        }
        if pdo < header || !pdo.is_multiple_of(4) || !pdo.is_multiple_of(align.max(1)) {
            return Err(PduError::field(
                at::PDO,
                "PDO lies within the header or is not aligned as negotiated",
            ));
        }
        let end = plen.checked_sub(if digests.data { DIGEST_LEN } else { 0 });
        match end {
            Some(end) if end > pdo => Ok(pdo..end),
            _ => Err(PduError::field(at::PLEN, "PLEN ends before the data")),
        }
    }

    pub(crate) fn put(b: &mut [u8], kind: PduType, flags: u8, pdo: u8, plen: u32) {
        b[at::TYPE] = kind as u8;
        b[at::FLAGS] = flags;
        b[at::HLEN] = kind.header_len() as u8;
        b[at::PDO] = pdo;
        put_u32(b, at::PLEN, plen);
    }
}

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Header digests.
    pub header: bool,
    /// Data digests.
    pub data: bool,
}

impl Digests {
    /// As DGST of ICReq and ICResp.
    pub const fn from_bits(bits: u8) -> Self {
        Self {
            header: bits & 1 != 0,
            data: bits & 2 != 0,
        }
    }
    /// As DGST of ICReq and ICResp.
    pub const fn bits(self) -> u8 {
        self.header as u8 | (self.data as u8) << 1
    }
    /// The digest flags of a PDU with or without data.
    pub const fn flags(self, with_data: bool) -> u8 {
        (if self.header { flags::HDGSTF } else { 0 })
            | (if self.data && with_data {
                flags::DDGSTF
            } else {
                0
            })
    }
}

/// Sizes of a PDU that carries data: where the data starts and how long the PDU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataLayout {
    /// PDO: after header, header digest and padding.
    pub pdo: u8,
    /// PLEN.
    pub plen: u32,
}

impl DataLayout {
    /// The layout of `kind` with `len` bytes of data (not 0) aligned to `align` bytes (4 to 128, a multiple of 4).
    pub const fn new(kind: PduType, len: u32, digests: Digests, align: usize) -> Self {
        let header = kind.header_len() + if digests.header { DIGEST_LEN } else { 0 };
        let pdo = header.div_ceil(align) * align;
        let plen = pdo as u32 + len + if digests.data { DIGEST_LEN as u32 } else { 0 };
        Self {
            pdo: pdo as u8,
            plen,
        }
    }
}

/// The alignment in bytes that a PDA field (HPDA, CPDA) asks for: 0's based dwords.
pub const fn pda_bytes(pda: u8) -> usize {
    (pda as usize + 1) * 4
}

#[cfg(test)]
mod tests;
