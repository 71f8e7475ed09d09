//! Data transfers and the request for one (NVMe/TCP 1.1, 3.6.2.8 to 3.6.2.10).

use super::{CommonHeader, DataLayout, Digests, PduError, PduType, at, flags};
use crate::bytes::{put_u16, put_u32, u16_at, u32_at};

const LEN: usize = 24;
const CCCID: usize = 8;
const TTAG: usize = 10;
const OFFSET: usize = 12;
const LENGTH: usize = 16;
const _: () = assert!(LEN == PduType::H2CData.header_len() && LEN == PduType::C2HData.header_len());
const _: () = assert!(LEN == PduType::R2T.header_len() && LENGTH + 8 == LEN);

/// The range that a data PDU says it carries must be what its PLEN holds.
fn check_length(
    header: &CommonHeader,
    length: u32,
    digests: Digests,
    align: usize,
) -> Result<(), PduError> {
    let range = header.data_range(digests, align)?;
    if range.len() != length as usize {
        return Err(PduError::field(
            at::PLEN,
            "PLEN does not match the data length",
        ));
    }
    Ok(())
}

fn encode(
    kind: PduType,
    flags: u8,
    layout: DataLayout,
    cccid: u16,
    ttag: u16,
    offset: u32,
    length: u32,
) -> [u8; LEN] {
    let mut b = [0; LEN];
    CommonHeader::put(&mut b, kind, flags, layout.pdo, layout.plen);
    put_u16(&mut b, CCCID, cccid);
    put_u16(&mut b, TTAG, ttag);
    put_u32(&mut b, OFFSET, offset);
    put_u32(&mut b, LENGTH, length);
    b
}

/// Host to Controller Data Transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct H2CData {
    /// The command's identifier.
    pub cccid: u16,
    /// The tag of the R2T that this answers.
    pub ttag: u16,
    /// Offset of the data in the command's data, bytes.
    pub offset: u32,
    /// Length of the data, bytes.
    pub length: u32,
    /// The last PDU that answers the R2T.
    pub last: bool,
}

impl H2CData {
    /// Offset of CCCID, for errors.
    pub const AT_CCCID: usize = CCCID;
    /// Offset of TTAG, for errors.
    pub const AT_TTAG: usize = TTAG;
    /// Offset of DATAO, for errors.
    pub const AT_OFFSET: usize = OFFSET;
    /// Offset of DATAL, for errors.
    pub const AT_LENGTH: usize = LENGTH;

    /// Parses a header; `align` is the alignment that the controller asked for (CPDA) in bytes.
    pub fn parse(
        header: &CommonHeader,
        b: &[u8; LEN],
        digests: Digests,
        align: usize,
    ) -> Result<Self, PduError> {
        let pdu = Self {
            cccid: u16_at(b, CCCID),
            ttag: u16_at(b, TTAG),
            offset: u32_at(b, OFFSET),
            length: u32_at(b, LENGTH),
            last: header.flags & flags::LAST_PDU != 0,
        };
        check_length(header, pdu.length, digests, align)?;
        Ok(pdu)
    }

    /// The header.
    pub fn encode(&self, digests: Digests, align: usize) -> [u8; LEN] {
        let last = if self.last { flags::LAST_PDU } else { 0 };
        let layout = DataLayout::new(PduType::H2CData, self.length, digests, align);
        encode(
            PduType::H2CData,
            digests.flags(true) | last,
            layout,
            self.cccid,
            self.ttag,
            self.offset,
            self.length,
        )
    }
}

/// Controller to Host Data Transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct C2HData {
    /// The command's identifier.
    pub cccid: u16,
    /// Offset of the data in the command's data, bytes.
    pub offset: u32,
    /// Length of the data, bytes.
    pub length: u32,
    /// The last PDU of the command's data.
    pub last: bool,
    /// The command succeeded and no response capsule follows (only with `last`).
    pub success: bool,
}

impl C2HData {
    /// Parses a header; `align` is the alignment that the host asked for (HPDA) in bytes.
    pub fn parse(
        header: &CommonHeader,
        b: &[u8; LEN],
        digests: Digests,
        align: usize,
    ) -> Result<Self, PduError> {
        let pdu = Self {
            cccid: u16_at(b, CCCID),
            offset: u32_at(b, OFFSET),
            length: u32_at(b, LENGTH),
            last: header.flags & flags::LAST_PDU != 0,
            success: header.flags & flags::SUCCESS != 0,
        };
        if pdu.success && !pdu.last {
            return Err(PduError::field(at::FLAGS, "SUCCESS without LAST_PDU"));
        }
        check_length(header, pdu.length, digests, align)?;
        Ok(pdu)
    }

    /// The header.
    pub fn encode(&self, digests: Digests, align: usize) -> [u8; LEN] {
        let mut f = digests.flags(true);
        if self.last {
            f |= flags::LAST_PDU;
        }
        if self.success {
            f |= flags::SUCCESS;
        }
        let layout = DataLayout::new(PduType::C2HData, self.length, digests, align);
        encode(
            PduType::C2HData,
            f,
            layout,
            self.cccid,
            0,
            self.offset,
            self.length,
        )
    }
}

/// Ready to Transfer: the controller asks for a part of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2T {
    /// The command's identifier.
    pub cccid: u16,
    /// The tag that the data must carry.
    pub ttag: u16,
    /// Offset of the data asked for, bytes.
    pub offset: u32,
    /// Length of the data asked for, bytes.
    pub length: u32,
}

impl R2T {
    /// Parses a header.
    pub fn parse(b: &[u8; LEN]) -> Self {
        Self {
            cccid: u16_at(b, CCCID),
            ttag: u16_at(b, TTAG),
            offset: u32_at(b, OFFSET),
            length: u32_at(b, LENGTH),
        }
    }

    /// The header.
    pub fn encode(&self, digests: Digests) -> [u8; LEN] {
        let plen = (LEN + if digests.header { super::DIGEST_LEN } else { 0 }) as u32;
        let layout = DataLayout { pdo: 0, plen };
        encode(
            PduType::R2T,
            digests.flags(false),
            layout,
            self.cccid,
            self.ttag,
            self.offset,
            self.length,
        )
    }
}
