//! Identify structures byte by byte, through a whole subsystem.

use super::tests::{rig_of, two_formats, u16_at, u32_at, u64_at};
use crate::nvmf::controller::status;
use crate::nvmf::seam::StatusField;
use crate::nvmf::subsystem::Subsystem;
use crate::nvmf::subsystem::rig::{HOST_A, HOST_B, Rig, export, node};
use keelblock_nvme::Sqe;
use keelblock_nvme::opcode::admin;
use keelblock_nvme::sgl::Sgl;

pub(super) fn identify_sqe(cns: u8, nsid: u32) -> Sqe {
    let mut sqe = Sqe::new(admin::IDENTIFY, nsid).with_cdw(10, cns.into());
    sqe.set_sgl(Sgl::Transport { length: 4096 });
    sqe
}

fn identify(rig: &mut Rig, id: u16, cns: u8, nsid: u32) -> Result<Vec<u8>, StatusField> {
    let reply = rig.admin(id, identify_sqe(cns, nsid));
    if reply.status.is_success() {
        assert_eq!(reply.data.len(), 4096);
        return Ok(reply.data);
    }
    assert!(reply.data.is_empty());
    Err(reply.status)
}

#[test]
fn identify_controller() {
    let (mut rig, id) = rig_of(two_formats());
    let b = identify(&mut rig, id, 1, 0).unwrap();
    assert_eq!(&b[4..24], b"KB01                ");
    assert_eq!(
        (&b[24..34], &b[64..72]),
        (&b"Keelblock "[..], &b"0.1.0   "[..])
    );
    assert_eq!(
        (b[76], b[77], u16_at(&b, 78), u32_at(&b, 80)),
        (0x0b, 8, id, 0x20100)
    );
    assert_eq!((u32_at(&b, 92), u32_at(&b, 96), b[111]), (0x900, 0x41, 1));
    assert_eq!(b[256..264], [0, 0, 3, 3, 3, 0x26, 63, 0]);
    assert_eq!(
        (
            u16_at(&b, 320),
            b[342],
            b[343],
            u32_at(&b, 344),
            u32_at(&b, 348)
        ),
        (10, 10, 0x5f, 1, 1)
    );
    assert_eq!(
        (b[512], b[513], u16_at(&b, 514), u32_at(&b, 516)),
        (0x66, 0x44, 1024, 1024)
    );
    assert_eq!(
        (u16_at(&b, 520), u16_at(&b, 522), b[524], b[525]),
        (0xad, 1, 0, 7)
    );
    assert_eq!(
        (
            u16_at(&b, 526),
            u16_at(&b, 528),
            u32_at(&b, 536),
            u32_at(&b, 540)
        ),
        (0, 0, 0x0030_0001, 1024)
    );
    assert!(b[768..].starts_with(b"nqn.2024-01.io.keelblock:test\0"));
    assert_eq!(
        (u32_at(&b, 1792), u32_at(&b, 1796), b[1800..1808].to_vec()),
        (516, 1, vec![0, 0, 0, 1, 0, 0, 0, 0])
    );
    let (mut rig, id) = rig_of(export());
    assert_eq!(
        identify(&mut rig, id, 1, 0).unwrap()[525],
        6,
        "no cache, and it says so"
    );
}

#[test]
fn identify_discovery_controller() {
    let mut rig = Rig::of(Subsystem::discovery(&node(), 0));
    let id = rig.controller(HOST_A);
    let b = identify(&mut rig, id, 1, 0).unwrap();
    assert_eq!(
        (
            b[111],
            u32_at(&b, 92),
            b[261],
            u32_at(&b, 516),
            u16_at(&b, 520)
        ),
        (2, 1 << 31, 4, 0, 0)
    );
    assert!(b[768..].starts_with(b"nqn.2014-08.org.nvmexpress.discovery\0"));
    assert_eq!(b[1806], 1);
}

#[test]
fn identify_namespaces() {
    let (mut rig, id) = rig_of(two_formats());
    let big = identify(&mut rig, id, 0, 1).unwrap();
    assert_eq!(
        (u64_at(&big, 0), u64_at(&big, 8), u64_at(&big, 16)),
        (1 << 18, 1 << 18, 1 << 18)
    );
    assert_eq!(big[24..34], [0x1a, 0, 0, 0, 0, 0, 1, 0xff, 0, 9]);
    let atomic = |b: &[u8]| -> Vec<u16> { (34..46).step_by(2).map(|at| u16_at(b, at)).collect() };
    // NAWUN and NAWUPF: 256 blocks; no NACWU; NABSN and NABSPF: a slice, from NABO 0.
    assert_eq!(atomic(&big), [255, 255, 0, 4095, 0, 4095]);
    assert_eq!(
        (
            u16_at(&big, 46),
            u64_at(&big, 48),
            u16_at(&big, 64),
            u32_at(&big, 92)
        ),
        (4096, 1 << 30, 0, 1)
    );
    assert_eq!(
        (&big[104..120], &big[120..128], u32_at(&big, 128)),
        (&[0x11; 16][..], &[0; 8][..], 12 << 16)
    );
    let small = identify(&mut rig, id, 0, 7).unwrap();
    assert_eq!(
        (u64_at(&small, 0), u64_at(&small, 48), u32_at(&small, 128)),
        (1 << 21, 1 << 30, 9 << 16)
    );
    // 2041 LBAs touch 256 blocks at most, wherever they begin.
    assert_eq!(atomic(&small), [2040, 2040, 0, 32767, 0, 32767]);
    assert_eq!(
        (u16_at(&small, 46), small[64..74].to_vec()),
        (32768, vec![7, 0, 7, 0, 7, 0, 7, 0, 7, 0])
    );
    assert_eq!(identify(&mut rig, id, 0, 2), Ok(vec![0; 4096]), "inactive");
    for nsid in [0, 1025, 0xffff_fffe, 0xffff_ffff] {
        assert_eq!(
            identify(&mut rig, id, 0, nsid),
            Err(status::INVALID_NAMESPACE),
            "{nsid:#x}"
        );
    }
}

#[test]
fn identify_lists_and_descriptors() {
    let (mut rig, id) = rig_of(two_formats());
    assert_eq!(
        identify(&mut rig, id, 2, 0).unwrap()[..12],
        [1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        identify(&mut rig, id, 7, 1).unwrap()[..8],
        [7, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        identify(&mut rig, id, 2, 0xffff_fffe),
        Err(status::INVALID_NAMESPACE)
    );
    let d = identify(&mut rig, id, 3, 1).unwrap();
    assert_eq!(d[..4], [2, 16, 0, 0]);
    assert_eq!(
        (&d[4..20], &d[20..24], &d[24..40]),
        (&[0x11; 16][..], &[3, 16, 0, 0][..], &[0x22; 16][..])
    );
    assert_eq!(d[40..49], [4, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(identify(&mut rig, id, 3, 2), Err(status::INVALID_NAMESPACE));
    let other = rig.controller(HOST_B);
    let expected = [2, 0, id as u8, 0, other as u8, 0, 0, 0];
    assert_eq!(identify(&mut rig, id, 0x13, 0).unwrap()[..8], expected);
    assert_eq!(identify(&mut rig, id, 0x12, 7).unwrap()[..8], expected);
    let after = identify_sqe(0x13, 0).with_cdw(10, 0x13 | u32::from(other) << 16);
    assert_eq!(rig.admin(id, after).data[..4], [1, 0, other as u8, 0]);
}

#[test]
fn identify_of_command_sets() {
    let (mut rig, id) = rig_of(two_formats());
    let limits = identify(&mut rig, id, 6, 0).unwrap();
    assert_eq!(
        (limits[..4].to_vec(), u32_at(&limits, 4)),
        (vec![0, 13, 0, 0], 1 << 18)
    );
    let one = identify(&mut rig, id, 8, 1).unwrap();
    assert_eq!(
        one[..15],
        [0x28, 1, 0xff, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "no cache where others have one"
    );
    assert_eq!(identify(&mut rig, id, 8, 7).unwrap()[0], 0x08);
    assert_eq!(identify(&mut rig, id, 5, 1), Ok(vec![0; 4096]));
    let sets = |cntid: u16| identify_sqe(0x1c, 0).with_cdw(10, 0x1c | u32::from(cntid) << 16);
    assert_eq!(
        rig.admin(id, sets(0xffff)).data[..9],
        [1, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(rig.admin(id, sets(0x999)).status, status::INVALID_FIELD);
    for cns in 5..8 {
        let zns = identify_sqe(cns, 1).with_cdw(11, 2 << 24);
        assert_eq!(rig.admin(id, zns).status, status::INVALID_FIELD);
    }
}

#[test]
fn unknown_structures_and_short_buffers() {
    let (mut rig, id) = rig_of(export());
    for cns in [0x04, 0x09, 0x0a, 0x14, 0x17, 0x1d, 0x20, 0xff] {
        assert_eq!(
            identify(&mut rig, id, cns, 1),
            Err(status::INVALID_FIELD),
            "{cns:#x}"
        );
    }
    let mut short = identify_sqe(1, 0);
    short.set_sgl(Sgl::Transport { length: 4092 });
    assert_eq!(rig.admin(id, short).status, status::SGL_LENGTH);
}
