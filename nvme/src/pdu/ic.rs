//! ICReq and ICResp: the first PDU each way (NVMe/TCP 1.1, 3.6.2.2 and 3.6.2.3).

use super::{CommonHeader, Digests, Fes, PduError, PduType};
use crate::bytes::{put_u16, put_u32, u16_at, u32_at};

const LEN: usize = 128;
const PFV: usize = 8;
const PDA: usize = 10;
const DGST: usize = 11;
const MAXR2T: usize = 12;
const MAXH2CDATA: usize = 12;
const _: () = assert!(LEN == PduType::ICReq.header_len() && LEN == PduType::ICResp.header_len());

/// The largest HPDA or CPDA: 128 bytes.
pub const PDA_MAX: u8 = 31;

/// Initialize Connection Request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ICReq {
    /// PDU format version: 0.
    pub pfv: u16,
    /// Host PDU data alignment, 0's based dwords.
    pub hpda: u8,
    /// Digests asked for.
    pub digests: Digests,
    /// R2Ts per command that the host takes at once, 0's based.
    pub maxr2t: u32,
}

impl ICReq {
    /// Parses a whole PDU whose common header was checked. Reserved bytes are ignored.
    pub fn parse(b: &[u8; LEN]) -> Result<Self, PduError> {
        let req = Self {
            pfv: u16_at(b, PFV),
            hpda: b[PDA],
            digests: Digests::from_bits(b[DGST]),
            maxr2t: u32_at(b, MAXR2T),
        };
        if req.pfv != 0 {
            return Err(PduError {
                fes: Fes::UnsupportedParameter,
                fei: PFV as u32,
                what: "PFV is not 0",
            });
        }
        if req.hpda > PDA_MAX {
            return Err(PduError::field(PDA, "HPDA is above 31"));
        }
        Ok(req)
    }

    /// The PDU.
    pub fn encode(&self) -> [u8; LEN] {
        let mut b = [0; LEN];
        CommonHeader::put(&mut b, PduType::ICReq, 0, 0, LEN as u32);
        put_u16(&mut b, PFV, self.pfv);
        b[PDA] = self.hpda;
        b[DGST] = self.digests.bits();
        put_u32(&mut b, MAXR2T, self.maxr2t);
        b
    }
}

/// Initialize Connection Response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ICResp {
    /// PDU format version: 0.
    pub pfv: u16,
    /// Controller PDU data alignment, 0's based dwords.
    pub cpda: u8,
    /// Digests granted.
    pub digests: Digests,
    /// The longest data of an H2CData PDU, bytes: 4096 at least, a multiple of 4.
    pub maxh2cdata: u32,
}

impl ICResp {
    /// Parses a whole PDU whose common header was checked.
    pub fn parse(b: &[u8; LEN]) -> Result<Self, PduError> {
        let resp = Self {
            pfv: u16_at(b, PFV),
            cpda: b[PDA],
            digests: Digests::from_bits(b[DGST]),
            maxh2cdata: u32_at(b, MAXH2CDATA),
        };
        if resp.pfv != 0 {
            return Err(PduError {
                fes: Fes::UnsupportedParameter,
                fei: PFV as u32,
                what: "PFV is not 0",
            });
        }
        if resp.cpda > PDA_MAX {
            return Err(PduError::field(PDA, "CPDA is above 31"));
        }
        if resp.maxh2cdata < 4096 || !resp.maxh2cdata.is_multiple_of(4) {
            return Err(PduError::field(
                MAXH2CDATA,
                "MAXH2CDATA is below 4096 or no multiple of 4",
            ));
        }
        Ok(resp)
    }

    /// The PDU.
    pub fn encode(&self) -> [u8; LEN] {
        let mut b = [0; LEN];
        CommonHeader::put(&mut b, PduType::ICResp, 0, 0, LEN as u32);
        put_u16(&mut b, PFV, self.pfv);
        b[PDA] = self.cpda;
        b[DGST] = self.digests.bits();
        put_u32(&mut b, MAXH2CDATA, self.maxh2cdata);
        b
    }
}
