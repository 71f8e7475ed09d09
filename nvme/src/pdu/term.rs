//! Terminate Connection Requests, either way (NVMe/TCP 1.1, 3.6.2.4 and 3.6.2.5).

use super::{CommonHeader, PduError, PduType, Sender};
use crate::bytes::{put_u16, put_u32, u16_at, u32_at};

const LEN: usize = 24;
const FES: usize = 8;
const FEI: usize = 10;
const _: () =
    assert!(LEN == PduType::H2CTermReq.header_len() && LEN == PduType::C2HTermReq.header_len());

/// The most of the offending PDU's header that is sent back.
pub const TERM_DATA_MAX: usize = 128;

/// A Terminate Connection Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermReq {
    /// Fatal error status, as on the wire ([`super::Fes`]).
    pub fes: u16,
    /// Fatal error information.
    pub fei: u32,
}

impl TermReq {
    /// Parses a header.
    pub fn parse(b: &[u8; LEN]) -> Self {
        Self {
            fes: u16_at(b, FES),
            fei: u32_at(b, FEI),
        }
    }

    /// Writes the PDU that tells the peer of `error`, with the header of the PDU that it is about (cut to [`TERM_DATA_MAX`]), into `out`;
    /// returns its length.
    pub fn encode(
        from: Sender,
        error: &PduError,
        header: &[u8],
        out: &mut [u8; LEN + TERM_DATA_MAX],
    ) -> usize {
        let data = &header[..header.len().min(TERM_DATA_MAX)];
        let kind = match from {
            Sender::Host => PduType::H2CTermReq,
            Sender::Controller => PduType::C2HTermReq,
        };
        let plen = LEN + data.len();
        out[..LEN].fill(0);
        CommonHeader::put(out, kind, 0, 0, plen as u32);
        put_u16(out, FES, error.fes as u16);
        put_u32(out, FEI, error.fei);
        out[LEN..plen].copy_from_slice(data);
        plen
    }
}
