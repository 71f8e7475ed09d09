//! PDUs as the target sees them: what a host sends is checked here, what it gets is built here, with the codec of `keelblock_nvme`.
//!
//! Nothing here trusts a byte, and nothing waits for bytes that a header makes absurd.

use keelblock_nvme::digest::digest;
use keelblock_nvme::pdu::{
    C2HData, COMMON_HEADER_LEN, CapsuleCmd, CapsuleResp, CommonHeader, DIGEST_LEN, Digests, Fes,
    H2CData, ICReq, ICResp, PduError, PduType, R2T, Sender, at, flags, pda_bytes,
};
use keelblock_nvme::{Cqe, Status};

use crate::nvmf::limits::{MAX_CAPSULE_PDU, MAX_H2C_DATA};
use crate::nvmf::seam::StatusField;

/// ICReq and ICResp, whole.
pub const IC: usize = PduType::ICReq.header_len();
/// Our CPDA: data of the host's PDUs is aligned to dwords.
const CPDA: u8 = 0;
/// The largest PDO: it is one byte.
const PDO_MAX: usize = 255;
/// A data PDU's header, as H2CData, C2HData and R2T have it.
const DATA_HLEN: usize = PduType::H2CData.header_len();

/// What ICReq and ICResp settled for a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Digests, both ways.
    pub digests: Digests,
    /// Alignment of data in C2HData PDUs, bytes (HPDA).
    pub align: usize,
}

/// The common header of a PDU from the host, checked. `Ok(None)`: more bytes are needed.
#[inline]
fn common(b: &[u8], digests: Digests) -> Result<Option<CommonHeader>, PduError> {
    b.first_chunk()
        .map(|b| CommonHeader::parse(b, Sender::Host, digests.header))
        .transpose()
}

/// Takes an ICReq from the start of `b` and answers it. `Ok(None)`: more bytes are needed.
///
/// # Errors
/// The connection ends (NVMe/TCP 1.1, 3.6.2.2).
pub fn negotiate(b: &[u8]) -> Result<Option<(Params, [u8; IC])>, PduError> {
    let Some(header) = common(b, Digests::default())? else {
        return Ok(None);
    };
    if header.kind != PduType::ICReq {
        return Err(PduError::sequence("a PDU before ICReq"));
    }
    if header.plen as usize != IC {
        return Err(PduError::field(at::PLEN, "PLEN is not that of an ICReq"));
    }
    let Some(whole) = b.first_chunk::<IC>() else {
        return Ok(None);
    };
    let req = ICReq::parse(whole)?;
    let params = Params {
        digests: req.digests,
        align: pda_bytes(req.hpda),
    };
    let resp = ICResp {
        pfv: 0,
        cpda: CPDA,
        digests: req.digests,
        maxh2cdata: MAX_H2C_DATA,
    };
    Ok(Some((params, resp.encode())))
}

/// A PDU from the host, after ICReq: its header is valid, its data may still be on the way.
#[derive(Clone, Copy, Debug)]
pub enum Incoming {
    /// A command capsule; it is taken in whole.
    Capsule(Layout),
    /// Data for an R2T; it is taken in as it comes.
    Data(Layout, H2CData),
    /// The host ends the connection.
    Term,
}

/// Where the data of a PDU lies.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Offset of the data in the PDU; all before it is header, digest and padding.
    pub pdo: usize,
    /// Data bytes.
    pub len: usize,
    /// Bytes of the PDU, a data digest included.
    pub plen: usize,
}

/// Decodes and checks the header at the start of `b`. `Ok(None)`: more bytes are needed.
///
/// # Errors
/// The connection ends (NVMe/TCP 1.1, 3.4.2 and 3.6).
#[inline]
pub fn incoming(b: &[u8], params: Params) -> Result<Option<Incoming>, PduError> {
    let Some(header) = common(b, params.digests)? else {
        return Ok(None);
    };
    match header.kind {
        PduType::CapsuleCmd => check_plen(&header, MAX_CAPSULE_PDU + PDO_MAX)?,
        PduType::H2CData => check_plen(&header, MAX_H2C_DATA as usize + PDO_MAX + DIGEST_LEN)?,
        PduType::H2CTermReq => return Ok(Some(Incoming::Term)),
        _ => return Err(PduError::sequence("a second ICReq")),
    }
    if (header.flags & flags::HDGSTF != 0) != params.digests.header {
        return Err(PduError::field(at::FLAGS, "HDGSTF is not as negotiated"));
    }
    let hlen = header.kind.header_len();
    if b.len() < hlen + if params.digests.header { DIGEST_LEN } else { 0 } {
        return Ok(None);
    }
    if params.digests.header {
        check_digest(b, hlen)?;
    }
    let data = header.data_range(params.digests, pda_bytes(CPDA))?;
    if (header.flags & flags::DDGSTF != 0) != (params.digests.data && !data.is_empty()) {
        return Err(PduError::field(at::FLAGS, "DDGSTF is not as negotiated"));
    }
    let layout = Layout {
        pdo: data.start,
        len: data.len(),
        plen: header.plen as usize,
    };
    Ok(Some(match (header.kind, b.first_chunk()) {
        (PduType::H2CData, Some(b)) => Incoming::Data(
            layout,
            H2CData::parse(&header, b, params.digests, pda_bytes(CPDA))?,
        ),
        _ => Incoming::Capsule(layout),
    }))
}

#[inline]
fn check_plen(header: &CommonHeader, most: usize) -> Result<(), PduError> {
    if header.plen as usize <= most {
        return Ok(());
    }
    let fes = if header.kind == PduType::H2CData {
        Fes::LimitExceeded
    } else {
        Fes::InvalidHeaderField
    };
    Err(PduError {
        fes,
        fei: at::PLEN as u32,
        what: "PLEN is longer than what this controller takes",
    })
}

fn check_digest(b: &[u8], hlen: usize) -> Result<(), PduError> {
    let received = u32::from_le_bytes([b[hlen], b[hlen + 1], b[hlen + 2], b[hlen + 3]]);
    if digest(&b[..hlen]) == received {
        return Ok(());
    }
    Err(PduError {
        fes: Fes::HeaderDigest,
        fei: received,
        what: "the header digest does not match",
    })
}

/// Whether the data digest at the end of a whole PDU matches (or there is none).
#[inline]
pub fn data_intact(pdu: &[u8], layout: Layout, params: Params) -> bool {
    layout.len == 0
        || !params.digests.data
        || digest(&pdu[layout.pdo..layout.pdo + layout.len]).to_le_bytes()
            == pdu[layout.plen - DIGEST_LEN..layout.plen]
}

/// The bytes of a header to send: with digest and padding.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: usize,
}

/// Header, digest, padded to the largest HPDA.
const HEAD_MAX: usize = 128;
const _: () = assert!(
    HEAD_MAX == pda_bytes(keelblock_nvme::pdu::PDA_MAX) && HEAD_MAX >= DATA_HLEN + DIGEST_LEN
);

impl Head {
    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// A header whose data, if any, begins at `pdo`.
    #[inline]
    fn new(header: [u8; DATA_HLEN], pdo: Option<usize>, params: Params) -> Self {
        let mut bytes = [0; HEAD_MAX];
        bytes[..DATA_HLEN].copy_from_slice(&header);
        let mut len = DATA_HLEN;
        if params.digests.header {
            bytes[DATA_HLEN..DATA_HLEN + DIGEST_LEN]
                .copy_from_slice(&digest(&header).to_le_bytes());
            len += DIGEST_LEN;
        }
        Self {
            bytes,
            len: pdo.unwrap_or(len),
        }
    }
}

/// CapsuleResp.
#[inline]
pub fn response(
    cid: u16,
    sqhd: u16,
    status: StatusField,
    dw0: u32,
    dw1: u32,
    params: Params,
) -> Head {
    const _: () = assert!(CapsuleResp::LEN == DATA_HLEN);
    let cqe = Cqe::new(cid, sqhd, Status(status.0), dw0, dw1);
    Head::new(CapsuleResp::encode(&cqe, params.digests), None, params)
}

/// R2T for the whole of a transfer.
pub fn r2t(cccid: u16, ttag: u16, length: u32, params: Params) -> Head {
    let r2t = R2T {
        cccid,
        ttag,
        offset: 0,
        length,
    };
    Head::new(r2t.encode(params.digests), None, params)
}

/// The part of a C2HData PDU before its data. `success`: no CapsuleResp follows.
#[inline]
pub fn c2h_data(
    cccid: u16,
    offset: u32,
    length: u32,
    last: bool,
    success: bool,
    params: Params,
) -> Head {
    let header = C2HData {
        cccid,
        offset,
        length,
        last,
        success,
    }
    .encode(params.digests, params.align);
    Head::new(header, Some(header[at::PDO] as usize), params)
}

/// Bytes of a capsule before its data or digests.
pub const CAPSULE_HLEN: usize = CapsuleCmd::LEN;
/// Where its SQE begins.
pub const SQE_AT: usize = COMMON_HEADER_LEN;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn u32_at(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
    }

    fn params(header: bool, data: bool, align: usize) -> Params {
        Params {
            digests: Digests { header, data },
            align,
        }
    }

    #[test]
    fn negotiation() {
        let mut req = [0; IC];
        (req[2], req[4], req[10], req[11]) = (128, 128, 31, 3);
        let (got, resp) = negotiate(&req).unwrap().unwrap();
        assert_eq!(got, params(true, true, 128));
        assert_eq!((resp[0], resp[2], resp[4], resp[11]), (1, 128, 128, 3));
        assert_eq!(u32_at(&resp, 12), MAX_H2C_DATA);
        assert!(negotiate(&req[..127]).unwrap().is_none());
        for (at, value, fes, fei) in [
            (0, 9, Fes::InvalidHeaderField, 0),
            (2, 127, Fes::InvalidHeaderField, 2),
            (7, 1, Fes::InvalidHeaderField, 4),
            (8, 1, Fes::UnsupportedParameter, 8),
            (10, 32, Fes::InvalidHeaderField, 10),
        ] {
            let mut bad = req;
            bad[at] = value;
            let e = negotiate(&bad).unwrap_err();
            assert_eq!((e.fes, e.fei), (fes, fei), "byte {at} = {value}");
        }
        let mut capsule = [0; IC];
        (capsule[0], capsule[2], capsule[4]) = (4, 72, 72);
        assert_eq!(negotiate(&capsule).unwrap_err().fes, Fes::SequenceError);
    }

    #[test]
    fn data_is_aligned_as_the_host_asked() {
        for (hpda, hdgst, pdo) in [
            (0, false, 24),
            (0, true, 28),
            (1, false, 24),
            (1, true, 32),
            (31, true, 128),
        ] {
            let head = c2h_data(
                1,
                0,
                512,
                true,
                false,
                params(hdgst, false, pda_bytes(hpda)),
            );
            assert_eq!(head.as_slice().len(), pdo);
            assert_eq!(head.as_slice()[3] as usize, pdo);
            assert_eq!(u32_at(head.as_slice(), 4) as usize, pdo + 512);
        }
    }

    #[test]
    fn header_digests_are_those_of_crc32c() {
        let head = response(5, 0, StatusField::SUCCESS, 0, 0, params(true, true, 4));
        assert_eq!(head.as_slice().len(), 28);
        assert_eq!(digest(&head.as_slice()[..24]), u32_at(head.as_slice(), 24));
    }

    #[test]
    fn an_absurd_length_is_refused_before_it_is_waited_for() {
        for kind in [4, 6] {
            let b = [kind, 0, if kind == 4 { 72 } else { 24 }, 72, 0, 0, 0, 0x80];
            assert!(incoming(&b, params(false, false, 4)).is_err());
        }
    }

    proptest! {
        /// No bytes whatever make the decoder read beyond what it has, and what it accepts fits together.
        #[test]
        fn any_bytes(
            mut b in proptest::collection::vec(any::<u8>(), 0..160),
            valid_kind in proptest::option::of(prop_oneof![Just((4u8, 72u8)), Just((6, 24))]),
            plen in proptest::option::of(0u32..20_000),
            flags in proptest::option::of(0u8..16),
            params in (any::<bool>(), any::<bool>()).prop_map(|(h, d)| params(h, d, 4)),
        ) {
            if let (Some((kind, hlen)), true) = (valid_kind, b.len() >= 8) {
                (b[0], b[2]) = (kind, hlen);
                if let Some(plen) = plen { b[4..8].copy_from_slice(&plen.to_le_bytes()); }
                if let Some(flags) = flags { b[1] = flags; }
            }
            if let Ok(Some(Incoming::Capsule(l) | Incoming::Data(l, _))) = incoming(&b, params) {
                let digest = if params.digests.data && l.len > 0 { DIGEST_LEN } else { 0 };
                prop_assert_eq!(l.pdo + l.len + digest, l.plen);
                prop_assert!(l.len <= MAX_H2C_DATA as usize + PDO_MAX);
            }
        }
    }
}
