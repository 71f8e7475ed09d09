//! PDUs as the target sees them: what a host sends is checked here, what it gets is built here.
//!
//! Little-endian at the offsets of the NVMe/TCP transport specification, section 3.6. Nothing here trusts a byte.

use super::fatal::{Fatal, Fes};
use crate::nvmf::limits::{MAX_CAPSULE_PDU, MAX_H2C_DATA};

/// PDU types.
pub mod kind {
    pub const IC_REQ: u8 = 0x00;
    pub const IC_RESP: u8 = 0x01;
    pub const H2C_TERM: u8 = 0x02;
    pub const C2H_TERM: u8 = 0x03;
    pub const CAPSULE_CMD: u8 = 0x04;
    pub const CAPSULE_RESP: u8 = 0x05;
    pub const H2C_DATA: u8 = 0x06;
    pub const C2H_DATA: u8 = 0x07;
    pub const R2T: u8 = 0x09;
}

const FLAG_HDGST: u8 = 1;
const FLAG_DDGST: u8 = 2;
const FLAG_LAST: u8 = 4;
const FLAG_SUCCESS: u8 = 8;

/// The common header of every PDU.
pub const COMMON: usize = 8;
/// ICReq and ICResp, whole.
pub const IC: usize = 128;
const CAPSULE_HLEN: usize = 72;
const DATA_HLEN: usize = 24;
/// A digest.
pub const DIGEST: usize = 4;

/// What ICReq and ICResp settled for a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Header digests, both ways.
    pub hdgst: bool,
    /// Data digests, both ways.
    pub ddgst: bool,
    /// Alignment of data in C2HData PDUs, bytes: (HPDA + 1) * 4.
    pub align: usize,
}

#[inline]
fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

#[inline]
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The common header, decoded.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    pub kind: u8,
    pub flags: u8,
    pub hlen: usize,
    pub pdo: usize,
    pub plen: usize,
}

impl Common {
    /// Decodes the first [`COMMON`] bytes.
    #[inline]
    pub fn parse(b: &[u8]) -> Self {
        Self {
            kind: b[0],
            flags: b[1],
            hlen: b[2] as usize,
            pdo: b[3] as usize,
            plen: u32_at(b, 4) as usize,
        }
    }
}

/// Checks an ICReq and answers it.
///
/// # Errors
/// A fatal error that names the field (NVMe/TCP 3.6.2.2).
pub fn negotiate(req: &[u8; IC]) -> Result<(Params, [u8; IC]), Fatal> {
    let header = Common::parse(req);
    check_ic(header)?;
    if u16_at(req, 8) != 0 {
        return Err(Fatal::new(Fes::Unsupported, 8));
    }
    let hpda = req[10];
    if hpda > 31 {
        return Err(Fatal::new(Fes::Header, 10));
    }
    let params = Params {
        hdgst: req[11] & 1 != 0,
        ddgst: req[11] & 2 != 0,
        align: (hpda as usize + 1) * 4,
    };
    let mut resp = [0; IC];
    resp[0] = kind::IC_RESP;
    resp[2] = IC as u8;
    resp[4..8].copy_from_slice(&(IC as u32).to_le_bytes());
    // PFV 0, CPDA 0
    resp[11] = req[11] & 3;
    resp[12..16].copy_from_slice(&MAX_H2C_DATA.to_le_bytes());
    Ok((params, resp))
}

/// Checks the common header of an ICReq, before the rest is there.
///
/// # Errors
/// A fatal error that names the field.
pub fn check_ic(header: Common) -> Result<(), Fatal> {
    match header.kind {
        kind::IC_REQ => {}
        kind::H2C_TERM | kind::CAPSULE_CMD | kind::H2C_DATA => {
            return Err(Fatal::new(Fes::Sequence, 0));
        }
        _ => return Err(Fatal::new(Fes::Header, 0)),
    }
    if header.hlen != IC {
        return Err(Fatal::new(Fes::Header, 2));
    }
    if header.plen != IC {
        return Err(Fatal::new(Fes::Header, 4));
    }
    Ok(())
}

/// A PDU from the host, after ICReq: its header is valid, its data may still be on the way.
#[derive(Clone, Copy, Debug)]
pub enum Incoming {
    /// A command capsule; it is taken in whole.
    Capsule(Layout),
    /// Data for an R2T; it is taken in as it comes.
    Data(Layout, DataHeader),
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

/// The fields of an H2CData header.
#[derive(Clone, Copy, Debug)]
pub struct DataHeader {
    pub cccid: u16,
    pub ttag: u16,
    pub offset: u32,
    pub last: bool,
}

/// Decodes and checks the header at the start of `b`. `Ok(None)`: more bytes are needed.
///
/// # Errors
/// A fatal error (NVMe/TCP 3.4.2 and 3.6): the connection ends.
#[inline]
pub fn incoming(b: &[u8], params: Params) -> Result<Option<Incoming>, Fatal> {
    if b.len() < COMMON {
        return Ok(None);
    }
    let header = Common::parse(b);
    let hlen = match header.kind {
        kind::CAPSULE_CMD => CAPSULE_HLEN,
        kind::H2C_DATA => DATA_HLEN,
        kind::H2C_TERM => return Ok(Some(Incoming::Term)),
        kind::IC_REQ => return Err(Fatal::new(Fes::Sequence, 0)),
        _ => return Err(Fatal::new(Fes::Header, 0)),
    };
    if header.hlen != hlen {
        return Err(Fatal::new(Fes::Header, 2));
    }
    let (hdgst, ddgst) = (
        header.flags & FLAG_HDGST != 0,
        header.flags & FLAG_DDGST != 0,
    );
    if hdgst != params.hdgst {
        return Err(Fatal::new(Fes::Header, 1));
    }
    let head = hlen + if hdgst { DIGEST } else { 0 };
    if header.plen < head {
        return Err(Fatal::new(Fes::Header, 4));
    }
    if b.len() < head {
        // an absurd length is refused before its bytes are waited for
        check_plen(header)?;
        return Ok(None);
    }
    if hdgst && crc32c::crc32c(&b[..hlen]) != u32_at(b, hlen) {
        return Err(Fatal::digest(u32_at(b, hlen)));
    }
    check_plen(header)?;
    let layout = layout(header, head, ddgst, params)?;
    if header.kind == kind::CAPSULE_CMD {
        return Ok(Some(Incoming::Capsule(layout)));
    }
    if u32_at(b, 16) as usize != layout.len {
        return Err(Fatal::new(Fes::Header, 16));
    }
    let data = DataHeader {
        cccid: u16_at(b, 8),
        ttag: u16_at(b, 10),
        offset: u32_at(b, 12),
        last: header.flags & FLAG_LAST != 0,
    };
    Ok(Some(Incoming::Data(layout, data)))
}

#[inline]
fn check_plen(header: Common) -> Result<(), Fatal> {
    let most = if header.kind == kind::CAPSULE_CMD {
        // the padding before in-capsule data: PDO is one byte
        MAX_CAPSULE_PDU + 255
    } else {
        MAX_H2C_DATA as usize + 255 + DIGEST
    };
    if header.plen > most {
        let fes = if header.kind == kind::CAPSULE_CMD {
            Fes::Header
        } else {
            Fes::TransferLimit
        };
        return Err(Fatal::new(fes, 4));
    }
    Ok(())
}

#[inline]
fn layout(header: Common, head: usize, ddgst: bool, params: Params) -> Result<Layout, Fatal> {
    let plen = header.plen;
    if plen == head && !ddgst && header.kind == kind::CAPSULE_CMD {
        return Ok(Layout {
            pdo: head,
            len: 0,
            plen,
        });
    }
    // CPDA is 0: dword alignment
    if header.pdo < head || !header.pdo.is_multiple_of(4) || header.pdo > plen {
        return Err(Fatal::new(Fes::Header, 3));
    }
    if ddgst != params.ddgst {
        return Err(Fatal::new(Fes::Header, 1));
    }
    let digest = if ddgst { DIGEST } else { 0 };
    match (plen - header.pdo).checked_sub(digest) {
        None | Some(0) => Err(Fatal::new(Fes::Header, 4)),
        Some(len) => Ok(Layout {
            pdo: header.pdo,
            len,
            plen,
        }),
    }
}

/// A header to send: bytes with digest and padding.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; 160],
    len: usize,
}

impl Head {
    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    fn new(kind: u8, flags: u8, params: Params) -> Self {
        let mut bytes = [0; 160];
        bytes[0] = kind;
        bytes[1] = flags | if params.hdgst { FLAG_HDGST } else { 0 };
        bytes[2] = DATA_HLEN as u8;
        Self {
            bytes,
            len: DATA_HLEN,
        }
    }

    #[inline]
    fn put16(&mut self, at: usize, v: u16) {
        self.bytes[at..at + 2].copy_from_slice(&v.to_le_bytes());
    }

    #[inline]
    fn put32(&mut self, at: usize, v: u32) {
        self.bytes[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }

    #[inline]
    fn seal(&mut self, params: Params, plen: usize) {
        self.put32(4, plen as u32);
        if params.hdgst {
            let digest = crc32c::crc32c(&self.bytes[..DATA_HLEN]);
            self.put32(DATA_HLEN, digest);
        }
    }
}

/// A completion.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cqe {
    pub dw0: u32,
    pub dw1: u32,
    pub sqhd: u16,
    pub sqid: u16,
    pub cid: u16,
    pub status: u16,
}

/// CapsuleResp.
#[inline]
pub fn response(cqe: Cqe, params: Params) -> Head {
    let mut head = Head::new(kind::CAPSULE_RESP, 0, params);
    head.put32(8, cqe.dw0);
    head.put32(12, cqe.dw1);
    head.put16(16, cqe.sqhd);
    head.put16(18, cqe.sqid);
    head.put16(20, cqe.cid);
    head.put16(22, cqe.status << 1);
    if params.hdgst {
        head.len += DIGEST;
    }
    head.seal(params, head.len);
    head
}

/// R2T for the whole of a transfer.
pub fn r2t(cid: u16, ttag: u16, len: u32, params: Params) -> Head {
    let mut head = Head::new(kind::R2T, 0, params);
    head.put16(8, cid);
    head.put16(10, ttag);
    head.put32(16, len);
    if params.hdgst {
        head.len += DIGEST;
    }
    head.seal(params, head.len);
    head
}

/// The part of a C2HData PDU before its data. `success`: no CapsuleResp follows.
#[inline]
pub fn c2h_data(
    cid: u16,
    offset: u32,
    len: u32,
    last: bool,
    success: bool,
    params: Params,
) -> Head {
    let flags = if last { FLAG_LAST } else { 0 }
        | if success { FLAG_SUCCESS } else { 0 }
        | if params.ddgst { FLAG_DDGST } else { 0 };
    let mut head = Head::new(kind::C2H_DATA, flags, params);
    head.put16(8, cid);
    head.put32(12, offset);
    head.put32(16, len);
    let size = DATA_HLEN + if params.hdgst { DIGEST } else { 0 };
    let pdo = size.next_multiple_of(params.align);
    head.bytes[3] = pdo as u8;
    head.len = pdo;
    head.seal(
        params,
        pdo + len as usize + if params.ddgst { DIGEST } else { 0 },
    );
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn icreq() -> [u8; IC] {
        let mut b = [0; IC];
        b[2] = 128;
        b[4] = 128;
        b
    }

    #[test]
    fn negotiation() {
        let mut req = icreq();
        (req[10], req[11]) = (31, 3);
        let (params, resp) = negotiate(&req).unwrap();
        assert_eq!(
            params,
            Params {
                hdgst: true,
                ddgst: true,
                align: 128
            }
        );
        assert_eq!((resp[0], resp[2], resp[4], resp[11]), (1, 128, 128, 3));
        assert_eq!(u32_at(&resp, 12), MAX_H2C_DATA);
        for (at, value, fes, fei) in [
            (0, 4, Fes::Sequence, 0),
            (0, 9, Fes::Header, 0),
            (2, 127, Fes::Header, 2),
            (7, 1, Fes::Header, 4),
            (8, 1, Fes::Unsupported, 8),
            (10, 32, Fes::Header, 10),
        ] {
            let mut bad = req;
            bad[at] = value;
            assert_eq!(
                negotiate(&bad).unwrap_err(),
                Fatal::new(fes, fei),
                "byte {at} = {value}"
            );
        }
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
            let params = Params {
                hdgst,
                ddgst: false,
                align: (hpda + 1) * 4,
            };
            let head = c2h_data(1, 0, 512, true, false, params);
            assert_eq!(head.as_slice().len(), pdo);
            assert_eq!(head.as_slice()[3] as usize, pdo);
            assert_eq!(u32_at(head.as_slice(), 4) as usize, pdo + 512);
        }
    }

    #[test]
    fn digests_are_those_of_crc32c() {
        let params = Params {
            hdgst: true,
            ddgst: true,
            align: 4,
        };
        let head = response(
            Cqe {
                cid: 5,
                ..Cqe::default()
            },
            params,
        );
        assert_eq!(head.as_slice().len(), 28);
        assert_eq!(
            crc32c::crc32c(&head.as_slice()[..24]),
            u32_at(head.as_slice(), 24)
        );
    }

    proptest! {
        /// No bytes whatever make the decoder read beyond what it has, and what it accepts fits together.
        #[test]
        fn any_bytes(
            mut b in proptest::collection::vec(any::<u8>(), 0..160),
            valid_kind in proptest::option::of(prop_oneof![Just((4u8, 72u8)), Just((6, 24))]),
            plen in proptest::option::of(0u32..20_000),
            params in (any::<bool>(), any::<bool>()).prop_map(|(hdgst, ddgst)| Params { hdgst, ddgst, align: 4 }),
        ) {
            if let (Some((kind, hlen)), true) = (valid_kind, b.len() >= 8) {
                (b[0], b[2]) = (kind, hlen);
                if let Some(plen) = plen { b[4..8].copy_from_slice(&plen.to_le_bytes()); }
            }
            if let Ok(Some(Incoming::Capsule(l) | Incoming::Data(l, _))) = incoming(&b, params) {
                let digest = if params.ddgst && l.len > 0 { DIGEST } else { 0 };
                prop_assert_eq!(l.pdo + l.len + digest, l.plen);
                prop_assert!(l.len <= MAX_H2C_DATA as usize + 255);
            }
        }
    }
}
