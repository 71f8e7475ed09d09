//! The codec: any bytes to every parser. None panics, and what parses encodes to the bytes that it came from.
//!
//! The first byte chooses digests and alignment; then one PDU or structure follows another until the bytes are used up.
#![no_main]

use keelblock_nvme::fabrics::{CONNECT_DATA_LEN, ConnectCommand, ConnectData, PropertyCommand};
use keelblock_nvme::identify::{ControllerData, IDENTIFY_LEN, NamespaceData};
use keelblock_nvme::nqn::{check_nqn, nqn_field};
use keelblock_nvme::pdu::{
    C2HData, COMMON_HEADER_LEN, CapsuleCmd, CapsuleResp, CommonHeader, DataLayout, Digests,
    H2CData, ICReq, ICResp, PduError, PduType, R2T, Sender, TERM_DATA_MAX, TermReq, flags,
    pda_bytes,
};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Cqe, Sqe, Status};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, mut rest)) = bytes.split_first() else {
        return;
    };
    let digests = Digests::from_bits(choice);
    let align = pda_bytes(choice >> 2 & 31);
    structures(rest);
    while let Some(used) = pdu(rest, digests, align) {
        rest = &rest[used..];
    }
});

/// One PDU at the start of `b`: its length, if there is a whole one.
fn pdu(b: &[u8], digests: Digests, align: usize) -> Option<usize> {
    let common = b.first_chunk::<COMMON_HEADER_LEN>()?;
    let mut parsed = None;
    for from in [Sender::Host, Sender::Controller] {
        match CommonHeader::parse(common, from, digests.header) {
            Ok(header) => parsed = Some((from, header)),
            Err(error) => terminate(from, &error, b),
        }
    }
    let (from, header) = parsed?;
    let hlen = header.kind.header_len();
    assert!(header.plen as usize >= hlen);
    assert_eq!(header.kind.sender(), from);
    if header.kind.carries_data() {
        data_range(&header, digests, align);
    }
    if b.len() < hlen {
        return None;
    }
    match header.kind {
        PduType::ICReq => ic(b.first_chunk()?, ICReq::parse, ICReq::encode, 16),
        PduType::ICResp => ic(b.first_chunk()?, ICResp::parse, ICResp::encode, 16),
        PduType::CapsuleCmd => command(&header, b.first_chunk()?, digests, align),
        PduType::CapsuleResp => {
            let head = b.first_chunk()?;
            let cqe = CapsuleResp::cqe(head);
            assert_eq!(CapsuleResp::encode(&cqe, digests)[8..], head[8..]);
        }
        PduType::H2CData => {
            let head = b.first_chunk()?;
            if let Ok(pdu) = H2CData::parse(&header, head, digests, align) {
                let again = pdu.encode(digests, align);
                assert_eq!(again[8..20], head[8..20]);
                let reparsed = CommonHeader::parse(again.first_chunk()?, from, digests.header)
                    .expect("our own header");
                assert_eq!(H2CData::parse(&reparsed, &again, digests, align), Ok(pdu));
                same_layout(&header, &again, digests, flags::LAST_PDU);
            }
        }
        PduType::C2HData => {
            let head = b.first_chunk()?;
            if let Ok(pdu) = C2HData::parse(&header, head, digests, align) {
                let again = pdu.encode(digests, align);
                assert_eq!(again[8..10], head[8..10]);
                assert_eq!(again[12..20], head[12..20]);
                same_layout(&header, &again, digests, flags::LAST_PDU | flags::SUCCESS);
            }
        }
        PduType::R2T => {
            let head = b.first_chunk()?;
            assert_eq!(R2T::parse(head).encode(digests)[8..20], head[8..20]);
        }
        PduType::H2CTermReq | PduType::C2HTermReq => {
            let term = TermReq::parse(b.first_chunk()?);
            assert_eq!(term.fes.to_le_bytes(), b[8..10]);
            assert_eq!(term.fei.to_le_bytes(), b[10..14]);
        }
    }
    let plen = header.plen as usize;
    (plen <= b.len()).then_some(plen)
}

/// Data lies within the PDU, behind the header, aligned; and a layout of our own of that length puts it where the parser expects it.
fn data_range(header: &CommonHeader, digests: Digests, align: usize) {
    let Ok(range) = header.data_range(digests, align) else {
        return;
    };
    let hlen = header.kind.header_len() + if digests.header { 4 } else { 0 };
    assert!(hlen <= range.start && range.start <= range.end && range.end <= header.plen as usize);
    if range.is_empty() {
        assert_eq!(header.kind, PduType::CapsuleCmd);
        return;
    }
    assert!(range.start.is_multiple_of(align));
    let layout = DataLayout::new(header.kind, range.len() as u32, digests, align);
    assert!(
        usize::from(layout.pdo) <= range.start,
        "no layout is tighter than ours"
    );
    let ours = CommonHeader {
        pdo: layout.pdo,
        plen: layout.plen,
        ..*header
    };
    assert_eq!(
        ours.data_range(digests, align).map(|r| r.len()),
        Ok(range.len())
    );
}

/// If a sender chose the tightest layout, ours is the same bytes, but for reserved flags.
fn same_layout(header: &CommonHeader, again: &[u8; 24], digests: Digests, meaningful: u8) {
    let ours = CommonHeader::parse(
        again.first_chunk().expect("24 > 8"),
        header.kind.sender(),
        digests.header,
    );
    let ours = ours.expect("our own header parses");
    assert_eq!(
        (ours.kind, ours.flags & meaningful),
        (header.kind, header.flags & meaningful)
    );
    assert_eq!(ours.flags & !meaningful, digests.flags(true));
    if ours.pdo == header.pdo {
        assert_eq!(ours.plen, header.plen);
    }
}

/// An initialization PDU: what parses encodes to the same meaningful bytes (the rest is reserved).
fn ic<T: PartialEq + std::fmt::Debug>(
    b: &[u8; 128],
    parse: fn(&[u8; 128]) -> Result<T, PduError>,
    encode: fn(&T) -> [u8; 128],
    meaningful: usize,
) {
    if let Ok(value) = parse(b) {
        let mut again = encode(&value);
        let mask_dgst = 3;
        assert_eq!(again[11], b[11] & mask_dgst);
        assert_eq!(
            (&again[8..11], &again[12..meaningful]),
            (&b[8..11], &b[12..meaningful])
        );
        assert_eq!(parse(&again), Ok(value));
        again[8] ^= 1;
        assert!(parse(&again).is_err(), "a PFV of another value");
    }
}

fn command(header: &CommonHeader, b: &[u8; 72], digests: Digests, align: usize) {
    let sqe = CapsuleCmd::sqe(b);
    let len = header
        .data_range(digests, align)
        .map_or(0, |r| r.len() as u32);
    let again = CapsuleCmd::encode(&sqe, len, digests, align);
    assert_eq!(again[8..], b[8..]);
    let ours = CommonHeader::parse(
        again.first_chunk().expect("72 > 8"),
        Sender::Host,
        digests.header,
    );
    let range = ours
        .and_then(|h| h.data_range(digests, align))
        .expect("our own header parses");
    assert_eq!(range.len(), len as usize);
    entry(&sqe);
}

/// Every accessor of an entry, and the commands that fit in one.
fn entry(sqe: &Sqe) {
    let connect = ConnectCommand::parse(sqe);
    assert_eq!(ConnectCommand::parse(&connect.encode()), connect);
    let property = PropertyCommand::parse(sqe);
    if let Some(wide) = property.wide {
        let again =
            PropertyCommand::parse(&PropertyCommand::set(property.offset, wide, property.value));
        assert_eq!(again, property);
    }
    let sgl = sqe.sgl();
    if !matches!(sgl, Sgl::Other { .. }) {
        assert_eq!(Sgl::decode(&sgl.encode()), sgl);
    }
    assert!(sgl.length() == 0 || !matches!(sgl, Sgl::None | Sgl::Other { .. }));
    let mut copy = *sqe;
    copy.set_cid(sqe.cid());
    copy.set_fuse(sqe.fuse());
    (0..16).for_each(|n| copy.set_cdw(n, sqe.cdw(n)));
    assert_eq!(copy, *sqe);
    assert!((1..=1 << 16).contains(&sqe.blocks()));
    let _ = format!(
        "{sqe:?} {:?} {} {} {}",
        sqe.slba(),
        sqe.fua(),
        sqe.deac(),
        sqe.psdt()
    );
}

fn terminate(from: Sender, error: &PduError, header: &[u8]) {
    let mut out = [0xff; 24 + TERM_DATA_MAX];
    let n = TermReq::encode(from, error, header, &mut out);
    assert_eq!(n, 24 + header.len().min(TERM_DATA_MAX));
    let common = CommonHeader::parse(out.first_chunk().expect("24 > 8"), from, true)
        .expect("our own request parses");
    assert_eq!(common.plen as usize, n);
    let term = TermReq::parse(out.first_chunk().expect("152 > 24"));
    assert_eq!((term.fes, term.fei), (error.fes as u16, error.fei));
}

/// Structures that do not start with a common header.
fn structures(b: &[u8]) {
    if let Some(b) = b.first_chunk() {
        entry(&Sqe(*b));
    }
    if let Some(b) = b.first_chunk() {
        let cqe = Cqe(*b);
        let status = cqe.status();
        let again = Cqe::new(cqe.cid(), cqe.sqhd(), status, cqe.dw0(), cqe.dw1());
        assert_eq!(again.status(), Status(status.0 & 0x7fff));
        let _ = format!("{cqe:?} {status} {}", cqe.dw01());
    }
    if let Some(b) = b.first_chunk::<CONNECT_DATA_LEN>()
        && let Ok(data) = ConnectData::parse(b)
    {
        let again = data.encode().expect("a name that fitted");
        assert_eq!(ConnectData::parse(&again), Ok(data));
    }
    if let Ok(name) = nqn_field(b) {
        let _ = check_nqn(name);
    }
    if b.len() >= IDENTIFY_LEN {
        let page: Box<[u8; IDENTIFY_LEN]> =
            Box::new(b[..IDENTIFY_LEN].try_into().expect("4096 bytes"));
        let c = ControllerData(page.clone());
        let _ = (
            c.serial(),
            c.model(),
            c.firmware(),
            c.max_transfer_bytes(),
            c.in_capsule_bytes(),
            c.subnqn(),
            c.oncs(),
        );
        let n = NamespaceData(page);
        let _ = (n.blocks(), n.block_bytes(), n.nguid());
    }
}
