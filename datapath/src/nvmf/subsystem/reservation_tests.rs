//! Reservation commands from the I/O queue to the view, the commit, the completion and the notice.

use super::rig::{HOST_A, HOST_B, Rig, export, get_log, node};
use super::*;
use crate::nvmf::admin::features::fid;
use crate::nvmf::controller::status;
use crate::nvmf::reservation::COMMIT_TIMEOUT_NS;
use crate::nvmf::seam::{ReservationType, StatusField};
use keelblock_nvme::Sqe;
use keelblock_nvme::opcode::{admin, io};
use keelblock_nvme::sgl::Sgl;

const PTPL_SET: u32 = 3 << 30;
const WE: u32 = 1 << 8;

fn keys(a: u64, b: u64) -> Vec<u8> {
    [a.to_le_bytes(), b.to_le_bytes()].concat()
}

fn register(rig: &mut Rig, id: u16, cdw10: u32, current: u64, new: u64) -> Option<StatusField> {
    let sqe = Sqe::new(io::RESERVATION_REGISTER, 1).with_cdw(10, cdw10);
    rig.reservation(id, sqe, &keys(current, new))
        .map(|r| r.status)
}

fn acquire(rig: &mut Rig, id: u16, cdw10: u32, current: u64, victim: u64) -> Option<StatusField> {
    let sqe = Sqe::new(io::RESERVATION_ACQUIRE, 1).with_cdw(10, cdw10);
    rig.reservation(id, sqe, &keys(current, victim))
        .map(|r| r.status)
}

fn two_hosts() -> (Rig, u16, u16) {
    let mut rig = Rig::new();
    let (a, b) = (rig.controller(HOST_A), rig.controller(HOST_B));
    rig.io(HOST_A, a, 1);
    rig.io(HOST_B, b, 1);
    (rig, a, b)
}

const OK: Option<StatusField> = Some(StatusField::SUCCESS);

#[test]
fn an_acquire_completes_when_every_reactor_enforces_it() {
    let (mut rig, a, b) = two_hosts();
    assert_eq!(register(&mut rig, a, 0, 0, 0xa1), OK);
    rig.publish = false;
    assert_eq!(acquire(&mut rig, a, WE, 0xa1, 0), None);
    let view = rig.sub.view();
    assert_eq!(
        view.namespaces[0].reservation.kind,
        ReservationType::WriteExclusive
    );
    assert!(!view.namespaces[0].reservation.allows(&HOST_B, true));
    assert_eq!(
        register(&mut rig, b, 0, 0, 0xb1),
        None,
        "one change at a time"
    );
    rig.sub.published(view.generation, 0);
    rig.publish = true;
    rig.drain();
    let statuses: Vec<StatusField> = rig.done.drain(..).map(|(_, r)| r.status).collect();
    assert_eq!(statuses, [StatusField::SUCCESS, StatusField::SUCCESS]);
    assert!(rig.commits.is_empty(), "nothing persists without PTPL");
}

#[test]
fn preempt_and_abort_drains_and_tells_the_victim() {
    let (mut rig, a, b) = two_hosts();
    assert_eq!(register(&mut rig, a, 0, 0, 0xa1), OK);
    assert_eq!(register(&mut rig, b, 0, 0, 0xb1), OK);
    assert_eq!(acquire(&mut rig, a, WE, 0xa1, 0), OK);
    let aer = rig.aer(a);
    assert_eq!(acquire(&mut rig, b, WE | 2, 0xb1, 0xa1), OK);
    assert_eq!(rig.sub.view().namespaces[0].drain, [HOST_A]);
    assert_eq!(rig.completion(aer).unwrap().dw0, 0x0080_0006);
    let first = rig.log(a, 0x80, 64);
    assert_eq!((first[0], first[8], first[9], first[12]), (1, 1, 1, 1));
    let again = rig.aer(a);
    assert_eq!(
        rig.completion(again).unwrap().dw0,
        0x0080_0006,
        "another page waits"
    );
    let mut retained = get_log(0x80, 64);
    retained.set_cdw(10, retained.cdw(10) | 1 << 15);
    for _ in 0..2 {
        assert_eq!(rig.admin(a, retained).data[8], 3, "retained pages stay");
    }
    assert_eq!(rig.log(a, 0x80, 64)[8], 3);
    assert_eq!(rig.log(a, 0x80, 64), vec![0; 64]);
    assert_eq!(rig.log(b, 0x80, 64), vec![0; 64], "not the one who did it");
    assert_eq!(register(&mut rig, b, 1, 0xb1, 0), OK);
    assert!(
        rig.sub.view().namespaces[0].drain.is_empty(),
        "only in the view that preempts"
    );
}

#[test]
fn a_drain_is_waited_for_though_a_later_view_is_in_force() {
    let (mut rig, a, b) = two_hosts();
    assert_eq!(register(&mut rig, a, 0, 0, 0xa1), OK);
    assert_eq!(register(&mut rig, b, 0, 0, 0xb1), OK);
    assert_eq!(acquire(&mut rig, a, WE, 0xa1, 0), OK);
    rig.publish = false;
    assert_eq!(acquire(&mut rig, b, WE | 2, 0xb1, 0xa1), None);
    let preempt = rig.sub.view().generation;
    let mut config = export();
    config.namespaces[0].blocks += 1;
    rig.sub.update(config, 0).unwrap();
    rig.sub.published(preempt + 1, 0);
    rig.drain();
    assert!(rig.done.is_empty());
    rig.sub.published(preempt, 0);
    rig.drain();
    assert_eq!(rig.done.len(), 1);
}

#[test]
fn masked_notices_are_not_kept() {
    let (mut rig, a, b) = two_hosts();
    let mask = Sqe::new(admin::SET_FEATURES, 1)
        .with_cdw(10, fid::RESERVATION_MASK.into())
        .with_cdw(11, 0b1110);
    rig.admin(a, mask);
    register(&mut rig, a, 0, 0, 0xa1);
    register(&mut rig, b, 0, 0, 0xb1);
    let aer = rig.aer(a);
    assert_eq!(acquire(&mut rig, b, WE | 1, 0xb1, 0xa1), OK);
    assert_eq!(
        (rig.completion(aer), rig.log(a, 0x80, 64)),
        (None, vec![0; 64])
    );
}

#[test]
fn what_persists_is_committed_first_and_comes_back() {
    let (mut rig, a, _) = two_hosts();
    rig.commit = false;
    assert_eq!(register(&mut rig, a, PTPL_SET, 0, 0xa1), None);
    rig.sub.commit_reservation(1, 1, 0);
    rig.drain();
    assert_eq!(acquire(&mut rig, a, WE, 0xa1, 0), None);
    assert_eq!(
        rig.sub.view().namespaces[0].reservation.kind,
        ReservationType::None,
        "not before the commit"
    );
    rig.sub.commit_reservation(1, 2, 0);
    rig.drain();
    assert_eq!(rig.done.len(), 2);
    let (nsid, generation, bytes) = rig.commits.last().unwrap().clone();
    assert_eq!((nsid, generation), (1, 2));
    let mut config = export();
    config.namespaces[0].reservation = bytes;
    let mut after = Rig::of(Subsystem::new(config, &node(), 0).unwrap());
    assert!(
        !after.sub.view().namespaces[0]
            .reservation
            .allows(&HOST_B, true)
    );
    let b = after.controller(HOST_B);
    after.io(HOST_B, b, 1);
    assert_eq!(
        acquire(&mut after, b, WE, 0xb1, 0),
        Some(status::RESERVATION_CONFLICT)
    );
    assert_eq!(register(&mut after, b, 0, 0, 0xb1), OK);
    assert_eq!(after.commits[0].1, 3, "generations go on");
}

#[test]
fn without_control_the_command_is_interrupted_and_nothing_changes() {
    let (mut rig, a, _) = two_hosts();
    rig.commit = false;
    assert_eq!(register(&mut rig, a, PTPL_SET, 0, 0xa1), None);
    assert_eq!(rig.sub.deadline(), Some(COMMIT_TIMEOUT_NS));
    rig.sub.expire(COMMIT_TIMEOUT_NS);
    rig.drain();
    assert_eq!(
        rig.done.pop().unwrap().1.status,
        status::COMMAND_INTERRUPTED
    );
    assert_eq!(rig.commits.len(), 2, "the state before is handed out again");
    rig.sub.commit_reservation(1, 1, 0);
    rig.sub.commit_reservation(1, 2, 0);
    rig.drain();
    let mut report = Sqe::new(io::RESERVATION_REPORT, 1)
        .with_cdw(10, 15)
        .with_cdw(11, 1);
    report.set_sgl(Sgl::Transport { length: 64 });
    assert_eq!(rig.reservation(a, report, &[]).unwrap().data, vec![0; 64]);
}

#[test]
fn the_report_names_controllers() {
    let (mut rig, a, b) = two_hosts();
    register(&mut rig, a, 0, 0, 0xa1);
    register(&mut rig, b, 0, 0, 0xb1);
    acquire(&mut rig, b, 6 << 8, 0xb1, 0);
    rig.sub.queue_gone(b, 1, 0);
    rig.sub.queue_gone(b, 0, 0);
    let mut sqe = Sqe::new(io::RESERVATION_REPORT, 1)
        .with_cdw(10, 47)
        .with_cdw(11, 1);
    sqe.set_sgl(Sgl::Transport { length: 192 });
    let d = rig.reservation(a, sqe, &[]).unwrap().data;
    assert_eq!((d.len(), d[0], d[4], d[5]), (192, 2, 6, 2));
    assert_eq!(
        (d[64], d[65], d[66], d[72], &d[80..96]),
        (a as u8, 0, 1, 0xa1, &HOST_A[..])
    );
    assert_eq!(
        (d[128], d[129], d[130], d[136], &d[144..160]),
        (0xff, 0xff, 1, 0xb1, &HOST_B[..])
    );
}

#[test]
fn another_volume_by_the_same_id_starts_with_its_own_reservation() {
    let (mut rig, a, _) = two_hosts();
    register(&mut rig, a, 0, 0, 0xa1);
    assert_eq!(acquire(&mut rig, a, WE, 0xa1, 0), OK);
    let mut config = export();
    rig.sub.update(config.clone(), 0).unwrap();
    assert!(
        !rig.sub.view().namespaces[0]
            .reservation
            .allows(&HOST_B, true)
    );
    config.namespaces[0].volume = [0x99; 16];
    rig.sub.update(config, 0).unwrap();
    assert!(
        rig.sub.view().namespaces[0]
            .reservation
            .allows(&HOST_B, true)
    );
}

#[test]
fn a_namespace_that_leaves_takes_its_commands_along() {
    let (mut rig, a, _) = two_hosts();
    rig.publish = false;
    register(&mut rig, a, 0, 0, 0xa1);
    assert_eq!(acquire(&mut rig, a, WE, 0xa1, 0), None);
    assert_eq!(acquire(&mut rig, a, WE, 0xbad, 0), None);
    let pending = rig.sub.view().generation;
    rig.sub
        .update(
            ExportConfig {
                namespaces: Vec::new(),
                ..export()
            },
            0,
        )
        .unwrap();
    rig.sub.update(export(), 0).unwrap();
    rig.drain();
    let statuses: Vec<StatusField> = rig.done.drain(..).map(|(_, r)| r.status).collect();
    assert_eq!(statuses, [status::INVALID_NAMESPACE; 2]);
    rig.sub.published(pending, 0);
    rig.drain();
    assert!(rig.done.is_empty());
    let mut absent = Sqe::new(io::RESERVATION_REPORT, 9);
    absent.set_cdw(11, 1);
    assert_eq!(
        rig.reservation(a, absent, &[]).unwrap().status,
        status::INVALID_NAMESPACE
    );
}
