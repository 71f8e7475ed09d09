use super::*;
use crate::{Cqe, Sqe, Status};
use proptest::prelude::*;

const BOTH: Digests = Digests {
    header: true,
    data: true,
};

fn header(b: &[u8], from: Sender, digest: bool) -> CommonHeader {
    CommonHeader::parse(b.first_chunk().unwrap(), from, digest).unwrap()
}

#[test]
fn icreq_bytes() {
    let req = ICReq {
        pfv: 0,
        hpda: 3,
        digests: BOTH,
        maxr2t: 0x0102,
    };
    let b = req.encode();
    assert_eq!(
        b[..16],
        [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 3, 2, 1, 0, 0]
    );
    assert!(b[16..].iter().all(|&x| x == 0));
    assert_eq!(ICReq::parse(&b), Ok(req));
    let mut bad = b;
    bad[10] = 32;
    assert_eq!(ICReq::parse(&bad).unwrap_err().fei, 10);
    bad[8] = 1;
    assert_eq!(
        ICReq::parse(&bad).unwrap_err().fes,
        Fes::UnsupportedParameter
    );
}

#[test]
fn icresp_bytes() {
    let resp = ICResp {
        pfv: 0,
        cpda: 0,
        digests: Digests::default(),
        maxh2cdata: 0x20000,
    };
    let b = resp.encode();
    assert_eq!(
        b[..16],
        [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]
    );
    assert_eq!(ICResp::parse(&b), Ok(resp));
    assert!(
        ICResp::parse(
            &ICResp {
                maxh2cdata: 4095,
                ..resp
            }
            .encode()
        )
        .is_err()
    );
}

#[test]
fn capsule_layouts() {
    let sqe = Sqe::io(1, 1, 0, 1);
    let b = CapsuleCmd::encode(&sqe, 4096, BOTH, 4);
    assert_eq!(b[..8], [4, 3, 72, 76, 0x50, 0x10, 0, 0]); // 72 + 4 + 4096 + 4
    assert_eq!(
        header(&b, Sender::Host, true).data_range(BOTH, 4),
        Ok(76..76 + 4096)
    );
    assert_eq!(CapsuleCmd::sqe(&b), sqe);
    let b = CapsuleCmd::encode(&sqe, 0, BOTH, 4);
    assert_eq!(b[..8], [4, 1, 72, 0, 76, 0, 0, 0]);
    assert_eq!(
        header(&b, Sender::Host, true).data_range(BOTH, 4),
        Ok(76..76)
    );
    let cqe = Cqe::new(1, 2, Status::SUCCESS, 3, 4);
    let b = CapsuleResp::encode(&cqe, Digests::default());
    assert_eq!(b[..8], [5, 0, 24, 0, 24, 0, 0, 0]);
    assert_eq!(CapsuleResp::cqe(&b), cqe);
}

#[test]
fn data_layouts() {
    let c2h = C2HData {
        cccid: 0x1234,
        offset: 8192,
        length: 4096,
        last: true,
        success: true,
    };
    let b = c2h.encode(BOTH, 128);
    assert_eq!(b[..4], [7, 0x0f, 24, 128]);
    assert_eq!(b[4..8], (128u32 + 4096 + 4).to_le_bytes());
    assert_eq!(
        b[8..24],
        [0x34, 0x12, 0, 0, 0, 0x20, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        C2HData::parse(&header(&b, Sender::Controller, true), &b, BOTH, 128),
        Ok(c2h)
    );
    let h2c = H2CData {
        cccid: 1,
        ttag: 2,
        offset: 4,
        length: 12,
        last: false,
    };
    let b = h2c.encode(Digests::default(), 4);
    assert_eq!(b[..8], [6, 0, 24, 24, 36, 0, 0, 0]);
    let h = header(&b, Sender::Host, false);
    assert_eq!(H2CData::parse(&h, &b, Digests::default(), 4), Ok(h2c));
    let mut wrong = b;
    wrong[16] = 13;
    assert_eq!(
        H2CData::parse(&h, &wrong, Digests::default(), 4)
            .unwrap_err()
            .fei,
        4
    );
    let r2t = R2T {
        cccid: 9,
        ttag: 8,
        offset: 7,
        length: 6,
    };
    let b = r2t.encode(BOTH);
    assert_eq!(b[..8], [9, 1, 24, 0, 28, 0, 0, 0]);
    assert_eq!(R2T::parse(&b), r2t);
}

#[test]
fn header_errors_name_the_field() {
    let parse = |b: [u8; 8]| {
        CommonHeader::parse(&b, Sender::Host, false)
            .unwrap_err()
            .fei
    };
    assert_eq!(parse([8, 0, 24, 0, 24, 0, 0, 0]), 0, "unknown type");
    assert_eq!(parse([5, 0, 24, 0, 24, 0, 0, 0]), 0, "other direction");
    assert_eq!(parse([4, 0, 71, 0, 72, 0, 0, 0]), 2, "HLEN");
    assert_eq!(parse([4, 0, 72, 0, 71, 0, 0, 0]), 4, "PLEN below HLEN");
    assert_eq!(
        parse([0, 0, 128, 0, 129, 0, 0, 0]),
        4,
        "PLEN above the type"
    );
    let short = CommonHeader::parse(&[4, 0, 72, 0, 72, 0, 0, 0], Sender::Host, true);
    assert_eq!(short.unwrap_err().fei, 4, "no room for the digest");
}

#[test]
fn terminate_request_holds_the_header() {
    let error = PduError {
        fes: Fes::HeaderDigest,
        fei: 0xdead_beef,
        what: "",
    };
    let mut out = [0xff; 24 + TERM_DATA_MAX];
    let n = TermReq::encode(Sender::Controller, &error, &[7; 200], &mut out);
    assert_eq!(n, 152);
    assert_eq!(
        out[..16],
        [
            3, 0, 24, 0, 152, 0, 0, 0, 3, 0, 0xef, 0xbe, 0xad, 0xde, 0, 0
        ]
    );
    assert_eq!(out[16..24], [0; 8]);
    let t = TermReq::parse(out.first_chunk().unwrap());
    assert_eq!((t.fes, t.fei), (3, 0xdead_beef));
}

proptest! {
    /// Any bytes are refused or give ranges inside the PDU.
    #[test]
    fn arbitrary_headers(b in any::<[u8; 128]>(), kind in 0u8..10, hd: bool, dd: bool, align in 1usize..33) {
        let digests = Digests { header: hd, data: dd };
        let mut b = b;
        b[0] = kind;
        if let Some(k) = PduType::from_code(kind) { b[2] = k.header_len() as u8; }
        b[6] = 0; b[7] = 0;
        for from in [Sender::Host, Sender::Controller] {
            let Ok(h) = CommonHeader::parse(b.first_chunk().unwrap(), from, hd) else { continue };
            if h.kind.carries_data() && let Ok(r) = h.data_range(digests, align * 4) {
                prop_assert!(r.start <= r.end && r.end <= h.plen as usize);
                prop_assert!(r.is_empty() || r.start.is_multiple_of(align * 4));
            }
        }
        let _ = ICReq::parse(&b);
        let _ = ICResp::parse(&b);
    }

    #[test]
    fn data_round_trips(cccid: u16, ttag: u16, offset: u32, length in 1u32..1 << 21, last: bool, hd: bool, dd: bool, pda in 0u8..32) {
        let digests = Digests { header: hd, data: dd };
        let align = pda_bytes(pda);
        let pdu = H2CData { cccid, ttag, offset, length, last };
        let b = pdu.encode(digests, align);
        prop_assert_eq!(H2CData::parse(&header(&b, Sender::Host, hd), &b, digests, align), Ok(pdu));
        let pdu = C2HData { cccid, offset, length, last, success: last };
        let b = pdu.encode(digests, align);
        prop_assert_eq!(C2HData::parse(&header(&b, Sender::Controller, hd), &b, digests, align), Ok(pdu));
    }
}
