//! Admin commands byte by byte, through a whole subsystem.

use super::features::fid;
use super::identify_tests::identify_sqe;
use crate::nvmf::controller::status;
use crate::nvmf::seam::{
    CommandRef, ErrorReport, ExportConfig, IoCounters, NamespaceConfig, Reply, StatusField,
};
use crate::nvmf::subsystem::Subsystem;
use crate::nvmf::subsystem::rig::{HOST_A, Rig, export, get_log, namespace, node};
use keelblock_nvme::opcode::{admin, fabrics};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Fuse, Sqe};

pub(super) fn two_formats() -> ExportConfig {
    let mut config = export();
    config.namespaces.push(NamespaceConfig {
        volatile_cache: true,
        ..namespace(7, 9)
    });
    config
}

pub(super) fn rig_of(config: ExportConfig) -> (Rig, u16) {
    let mut rig = Rig::of(Subsystem::new(config, &node(), 0).unwrap());
    let id = rig.controller(HOST_A);
    (rig, id)
}

pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
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
