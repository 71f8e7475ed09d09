//! Admin commands byte by byte, through a whole subsystem.

use super::features::fid;
use crate::nvmf::controller::status;
use crate::nvmf::seam::{
    CommandRef, ErrorReport, ExportConfig, IoCounters, NamespaceConfig, Reply, StatusField,
};
use crate::nvmf::subsystem::Subsystem;
use crate::nvmf::subsystem::tests::{HOST_A, HOST_B, Rig, export, get_log, namespace, node};
use keelblock_nvme::opcode::{admin, fabrics};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Fuse, Sqe};

fn identify_sqe(cns: u8, nsid: u32) -> Sqe {
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

fn two_formats() -> ExportConfig {
    let mut config = export();
    config.namespaces.push(NamespaceConfig {
        volatile_cache: true,
        ..namespace(7, 9)
    });
    config
}

fn rig_of(config: ExportConfig) -> (Rig, u16) {
    let mut rig = Rig::of(Subsystem::new(config, &node(), 0).unwrap());
    let id = rig.controller(HOST_A);
    (rig, id)
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
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
    assert_eq!(big[24..34], [0x18, 0, 0, 0, 0, 0, 1, 0xff, 0, 9]);
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

#[test]
fn log_pages() {
    let (mut rig, id) = rig_of(export());
    let list = rig.log(id, 0, 1024);
    let listed: Vec<usize> = (0..256).filter(|i| u32_at(&list, 4 * i) & 1 != 0).collect();
    assert_eq!(listed, [0, 1, 2, 3, 4, 5, 0x0c, 0x12, 0x13, 0x80]);
    for lid in 0..=255 {
        let reply = rig.admin(id, get_log(lid, 512));
        let expected = if listed.contains(&lid.into()) {
            StatusField::SUCCESS
        } else {
            status::INVALID_LOG_PAGE
        };
        assert_eq!(reply.status, expected, "{lid:#x}");
    }
    let firmware = rig.log(id, 3, 512);
    assert_eq!((firmware[0], &firmware[8..16]), (1, &b"0.1.0   "[..]));
    assert_eq!(
        rig.log(id, 0x0c, 4096)[48..],
        [[1, 0, 0, 0].to_vec(), vec![0; 4044]].concat()
    );
}

#[test]
fn health_counts() {
    let (mut rig, id) = rig_of(export());
    let counters = IoCounters {
        reads: 7,
        writes: 300,
        read_bytes: 1,
        write_bytes: 1_024_001,
        media_errors: 2,
    };
    rig.sub.set_counters(counters);
    rig.now = 2 * 3_600_000_000_000;
    rig.admin(id, Sqe::new(0xc1, 0));
    let b = rig.log(id, 2, 512);
    assert_eq!(b[..6], [0, 0, 0, 100, 10, 0]);
    assert_eq!((b[32], b[48], b[64], u16_at(&b, 80)), (1, 3, 7, 300));
    assert_eq!((b[112], b[128], b[160], b[176]), (1, 2, 2, 1));
    let mut of_namespace = get_log(2, 512);
    of_namespace.set_cdw(1, 1);
    assert_eq!(rig.admin(id, of_namespace).status, status::INVALID_FIELD);
}

#[test]
fn offsets_and_lengths_of_log_pages() {
    let (mut rig, id) = rig_of(export());
    let whole = rig.log(id, 3, 512);
    let at = |offset: u64, bytes: u32| {
        get_log(3, bytes)
            .with_cdw(12, offset as u32)
            .with_cdw(13, (offset >> 32) as u32)
    };
    let mut part = |offset, bytes| {
        let reply = rig.admin(id, at(offset, bytes));
        if reply.status.is_success() {
            Ok(reply.data)
        } else {
            Err(reply.status)
        }
    };
    assert_eq!(part(8, 8), Ok(whole[8..16].to_vec()));
    assert_eq!(part(508, 1024), Ok(vec![0; 1024]), "zeroes beyond the end");
    assert_eq!(part(512, 4), Ok(vec![0; 4]));
    for offset in [2, 516, 1 << 20, 1 << 62] {
        assert_eq!(part(offset, 4), Err(status::INVALID_FIELD), "{offset:#x}");
    }
    let mut too_long = get_log(3, 4096);
    too_long.set_sgl(Sgl::Transport { length: 512 });
    assert_eq!(rig.admin(id, too_long).status, status::SGL_LENGTH);
    assert_eq!(
        rig.admin(id, get_log(3, (1 << 20) + 4)).status,
        status::INVALID_FIELD,
        "beyond MDTS"
    );
}

#[test]
fn errors_are_logged() {
    let (mut rig, id) = rig_of(export());
    let cmd = CommandRef {
        reactor: 0,
        connection: 9,
        cntlid: id,
        qid: 2,
        cid: 77,
    };
    let status = StatusField::new(2, 0x81);
    rig.sub.log_error(
        ErrorReport {
            cmd,
            status,
            nsid: 1,
            lba: 5,
        },
        0,
    );
    assert_eq!(
        rig.admin(id, Sqe::new(0x04, 0)).status,
        status::INVALID_OPCODE
    );
    let b = rig.log(id, 1, 128);
    assert_eq!(
        (u64_at(&b, 0), u16_at(&b, 8), u16_at(&b, 12)),
        (2, 0, status::INVALID_OPCODE.0 << 1)
    );
    assert_eq!(
        (
            u64_at(&b, 64),
            u16_at(&b, 72),
            u16_at(&b, 74),
            u64_at(&b, 80)
        ),
        (1, 2, 77, 5)
    );
}

fn get(rig: &mut Rig, id: u16, fid: u8, nsid: u32) -> Reply {
    rig.admin(
        id,
        Sqe::new(admin::GET_FEATURES, nsid).with_cdw(10, fid.into()),
    )
}

fn set(rig: &mut Rig, id: u16, fid: u8, nsid: u32, value: u32) -> Reply {
    let sqe = Sqe::new(admin::SET_FEATURES, nsid)
        .with_cdw(10, fid.into())
        .with_cdw(11, value);
    rig.try_admin(id, sqe).expect("answered")
}

#[test]
fn every_listed_feature_can_be_read() {
    let (mut rig, id) = rig_of(two_formats());
    let list = rig.log(id, 0x12, 1024);
    for fid in 0..=255 {
        let reply = get(&mut rig, id, fid, 1);
        let listed = u32_at(&list, 4 * usize::from(fid)) & 1 != 0;
        // The host identifier wants EXHID.
        let expected = if listed && fid != fid::HOST_IDENTIFIER {
            StatusField::SUCCESS
        } else {
            status::INVALID_FIELD
        };
        assert_eq!(reply.status, expected, "{fid:#x}");
        let accepted = set(&mut rig, id, fid, 1, 0).status.is_success();
        assert!(listed || !accepted, "{fid:#x}");
    }
    let saved = Sqe::new(admin::GET_FEATURES, 0).with_cdw(10, 7 | 2 << 8);
    assert_eq!(rig.admin(id, saved).status, status::INVALID_FIELD);
    let save = Sqe::new(admin::SET_FEATURES, 0).with_cdw(10, 0x0b | 1 << 31);
    assert_eq!(rig.admin(id, save).status, status::FEATURE_NOT_SAVEABLE);
}

#[test]
fn a_buffer_that_no_feature_fills_is_zeroed() {
    let (mut rig, id) = rig_of(export());
    for (length, sent) in [(0, 0), (512, 512), (1 << 20, 4096)] {
        let mut sqe = Sqe::new(admin::GET_FEATURES, 0).with_cdw(10, 7);
        sqe.set_sgl(Sgl::Transport { length });
        let reply = rig.admin(id, sqe);
        assert_eq!((reply.dw0, reply.data), (127 | 127 << 16, vec![0; sent]));
    }
}

#[test]
fn features_of_the_association() {
    let (mut rig, id) = rig_of(export());
    assert_eq!(
        set(&mut rig, id, fid::KEEP_ALIVE, 0, 60_001),
        Reply::default()
    );
    assert_eq!(get(&mut rig, id, fid::KEEP_ALIVE, 0).dw0, 61_000);
    assert_eq!(set(&mut rig, id, fid::ASYNC_EVENTS, 0, 1 << 8).dw0, 0);
    assert_eq!(get(&mut rig, id, fid::ASYNC_EVENTS, 0).dw0, 1 << 8);
    assert_eq!(
        set(&mut rig, id, fid::ASYNC_EVENTS, 0, 1 << 31).status,
        status::INVALID_FIELD
    );
    assert_eq!(
        set(&mut rig, id, fid::ASYNC_EVENTS, 1, 0).status,
        status::FEATURE_NOT_NAMESPACE
    );
    let mut host = Sqe::new(admin::GET_FEATURES, 0)
        .with_cdw(10, 0x81)
        .with_cdw(11, 1);
    host.set_sgl(Sgl::Transport { length: 16 });
    assert_eq!(rig.admin(id, host).data, HOST_A);
    assert_eq!(
        set(&mut rig, id, fid::HOST_IDENTIFIER, 0, 1).status,
        status::COMMAND_SEQUENCE
    );
}

#[test]
fn reservation_features_are_of_a_namespace() {
    let (mut rig, id) = rig_of(export());
    for fid in [fid::RESERVATION_MASK, fid::RESERVATION_PERSISTENCE] {
        for nsid in [0, 2] {
            assert_eq!(
                get(&mut rig, id, fid, nsid).status,
                status::INVALID_NAMESPACE
            );
            assert_eq!(
                set(&mut rig, id, fid, nsid, 1).status,
                status::INVALID_NAMESPACE
            );
        }
    }
    assert_eq!(
        set(&mut rig, id, fid::RESERVATION_MASK, u32::MAX, 2),
        Reply::default()
    );
    assert_eq!(get(&mut rig, id, fid::RESERVATION_MASK, 1).dw0, 2);
    rig.commit = false;
    let sqe = Sqe::new(admin::SET_FEATURES, 1)
        .with_cdw(10, 0x83)
        .with_cdw(11, 1);
    assert_eq!(rig.try_admin(id, sqe), None, "waits for the commit");
    assert_eq!(get(&mut rig, id, fid::RESERVATION_PERSISTENCE, 1).dw0, 0);
    rig.sub.commit_reservation(1, 1, 0);
    rig.drain();
    assert_eq!(
        (
            rig.done[0].1.clone(),
            get(&mut rig, id, fid::RESERVATION_PERSISTENCE, 1).dw0
        ),
        (Reply::default(), 1)
    );
}

#[test]
fn async_events_have_a_limit_and_can_be_aborted() {
    let (mut rig, id) = rig_of(export());
    let waiting: Vec<CommandRef> = (0..4).map(|_| rig.aer(id)).collect();
    assert_eq!(
        rig.admin(id, Sqe::new(admin::ASYNC_EVENT_REQUEST, 0))
            .status,
        status::AER_LIMIT
    );
    let abort =
        |sqid: u32, cid: u16| Sqe::new(admin::ABORT, 0).with_cdw(10, sqid | u32::from(cid) << 16);
    assert_eq!(rig.admin(id, abort(1, waiting[1].cid)).dw0, 1);
    assert_eq!(rig.admin(id, abort(0, 0x7777)).dw0, 1);
    assert_eq!(rig.admin(id, abort(0, waiting[1].cid)), Reply::default());
    assert_eq!(
        rig.completion(waiting[1]).unwrap().status,
        status::ABORT_REQUESTED
    );
    rig.aer(id);
}

#[test]
fn commands_that_are_refused() {
    let mut rig = Rig::new();
    let id = rig.connect(HOST_A);
    assert_eq!(
        rig.admin(id, identify_sqe(1, 0)).status,
        status::COMMAND_SEQUENCE,
        "before CC.EN"
    );
    let id = rig.controller(HOST_A);
    for opcode in [0x00, 0x01, 0x04, 0x05, 0x7c, 0x03, 0x07, 0x1b, 0xc0, 0xfc] {
        assert_eq!(
            rig.admin(id, Sqe::new(opcode, 0)).status,
            status::INVALID_OPCODE,
            "{opcode:#x}"
        );
    }
    for fuse in [Fuse::First, Fuse::Second, Fuse::Reserved] {
        let mut sqe = Sqe::new(admin::KEEP_ALIVE, 0);
        sqe.set_fuse(fuse);
        assert_eq!(rig.admin(id, sqe).status, status::INVALID_FIELD);
    }
    assert_eq!(
        rig.admin(id, Sqe::new(admin::KEEP_ALIVE, 0)),
        Reply::default()
    );
    assert_eq!(
        rig.admin(id, Sqe::fabrics(fabrics::CONNECT)).status,
        status::COMMAND_SEQUENCE
    );
    for fctype in [0x05, 0x06, 0x08, 0x0c, 0xc0] {
        assert_eq!(
            rig.admin(id, Sqe::fabrics(fctype)).status,
            status::INVALID_FIELD
        );
    }
    let size_7 = Sqe::fabrics(fabrics::PROPERTY_GET).with_cdw(10, 7);
    assert_eq!(rig.admin(id, size_7).status, status::INVALID_FIELD);
    let cap = rig.admin(id, Sqe::fabrics(fabrics::PROPERTY_GET).with_cdw(10, 1));
    assert_eq!(
        (cap.dw0, cap.dw1 >> 20),
        (1023 | 1 << 16 | 30 << 24, 4 | 1 << 7)
    );
}
