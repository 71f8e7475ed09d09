//! Connects, ends, resets, timers, changes of the export.

use super::rig::*;
use super::*;
use crate::nvmf::admin::features::fid;
use crate::nvmf::controller::status;
use crate::nvmf::seam::{AnaState, ConnectRequest, Grant, QueueScope, StatusField};
use keelblock_nvme::opcode::{admin, io};
use keelblock_nvme::{Sqe, fabrics::at};

fn refusal(r: Result<Grant, crate::nvmf::seam::ConnectError>) -> (StatusField, u16, bool) {
    let e = r.expect_err("refused");
    (e.status, e.ipo, e.in_data)
}

#[test]
fn connect_rules_of_admin_queues() {
    let mut rig = Rig::of(
        Subsystem::new(
            ExportConfig {
                allowed_hosts: Some(vec!["nqn.host.aa".into()]),
                ..export()
            },
            &node(),
            0,
        )
        .unwrap(),
    );
    let good = rig.request(HOST_A, 0xffff, 0);
    let bad = status::CONNECT_INVALID_PARAMETERS;
    let with = |f: &dyn Fn(&mut ConnectRequest)| {
        let mut r = good.clone();
        f(&mut r);
        r
    };
    let mut try_it = |r: ConnectRequest| refusal(rig.sub.connect_admin(&r, 0));
    assert_eq!(
        try_it(with(&|r| r.cntlid = 5)),
        (bad, at::CNTLID as u16, true)
    );
    assert_eq!(
        try_it(with(&|r| r.sqsize = 0)),
        (bad, at::SQSIZE as u16, false)
    );
    assert_eq!(
        try_it(with(&|r| r.sqsize = 128)),
        (bad, at::SQSIZE as u16, false)
    );
    assert_eq!(
        try_it(with(&|r| r.hostnqn = "nqn.host.bb".into())),
        (status::CONNECT_INVALID_HOST, 0, false)
    );
    assert_eq!(
        [
            rig.connect(HOST_A),
            rig.connect(HOST_A),
            rig.connect(HOST_A)
        ],
        [10, 11, 12]
    );
    assert_eq!(
        refusal(rig.sub.connect_admin(&good, 0)).0,
        status::CONNECT_BUSY
    );
    rig.sub.queue_gone(11, 0, 0);
    rig.drain();
    assert_eq!(rig.connect(HOST_A), 11);
    assert_eq!(rig.take_seen()[1], "+nqn.host.aa");
}

#[test]
fn connect_rules_of_io_queues() {
    let mut rig = Rig::new();
    let id = rig.connect(HOST_A);
    let good = rig.request(HOST_A, id, 1);
    let bad = status::CONNECT_INVALID_PARAMETERS;
    assert_eq!(
        refusal(rig.sub.connect_io(&good, 0)).0,
        status::COMMAND_SEQUENCE,
        "not enabled"
    );
    rig.set_cc(id, ENABLE);
    let with = |f: &dyn Fn(&mut ConnectRequest)| {
        let mut r = good.clone();
        f(&mut r);
        r
    };
    let mut try_it = |r: ConnectRequest| refusal(rig.sub.connect_io(&r, 0));
    assert_eq!(
        try_it(with(&|r| r.cntlid = 0xffff)),
        (bad, at::CNTLID as u16, true)
    );
    assert_eq!(
        try_it(with(&|r| r.hostnqn.push('x'))),
        (bad, at::HOSTNQN as u16, true)
    );
    assert_eq!(
        try_it(with(&|r| r.hostid = HOST_B)),
        (bad, at::HOSTID as u16, true)
    );
    assert_eq!(try_it(with(&|r| r.qid = 129)), (bad, at::QID as u16, false));
    assert_eq!(
        try_it(with(&|r| r.sqsize = 0)),
        (bad, at::SQSIZE as u16, false)
    );
    assert_eq!(
        try_it(with(&|r| r.sqsize = 1024)),
        (bad, at::SQSIZE as u16, false)
    );
    let grant = rig
        .sub
        .connect_io(&with(&|r| (r.sqsize, r.cattr) = (1023, 4)), 0)
        .unwrap();
    assert_eq!(
        grant,
        Grant {
            cntlid: id,
            sq_entries: 1024,
            sq_flow_control: false
        }
    );
    assert_eq!(
        refusal(rig.sub.connect_io(&good, 0)).0,
        status::COMMAND_SEQUENCE,
        "twice"
    );
    rig.sub.queue_gone(id, 1, 0);
    assert!(rig.sub.connect_io(&good, 0).is_ok(), "free again");
}

#[test]
fn the_end_of_the_admin_queue_is_the_end_of_the_controller() {
    let mut rig = Rig::new();
    let id = rig.controller(HOST_A);
    rig.io(HOST_A, id, 1);
    rig.take_seen();
    rig.sub.queue_gone(id, 0, 0);
    rig.drain();
    assert_eq!(
        rig.take_seen(),
        ["-nqn.host.aa", &format!("close {id} All")]
    );
    assert!(rig.sub.controllers().is_empty());
    let late = rig.request(HOST_A, id, 2);
    assert_eq!(refusal(rig.sub.connect_io(&late, 0)).1, at::CNTLID as u16);
    assert_eq!(
        rig.sub.controllers.len(),
        1,
        "its identifier is kept until its queues are gone"
    );
    rig.sub.queue_gone(id, 1, 0);
    assert!(rig.sub.controllers.is_empty());
}

#[test]
fn reset_closes_io_queues_and_forgets_settings() {
    let mut rig = Rig::new();
    let id = rig.controller(HOST_A);
    rig.io(HOST_A, id, 1);
    let aer = rig.aer(id);
    rig.admin(
        id,
        Sqe::new(admin::SET_FEATURES, 0).with_cdw(10, fid::ASYNC_EVENTS.into()),
    );
    rig.take_seen();
    rig.set_cc(id, ENABLE & !1);
    assert_eq!(
        rig.take_seen(),
        [format!("close {id} {:?}", QueueScope::Io)]
    );
    assert_eq!(
        rig.completion(aer).unwrap().status,
        status::ABORTED_SQ_DELETION
    );
    assert_eq!(rig.csts(id) & 1, 1);
    rig.sub.queue_gone(id, 1, 0);
    assert_eq!(rig.csts(id), 0);
    rig.set_cc(id, ENABLE);
    let config = rig.admin(
        id,
        Sqe::new(admin::GET_FEATURES, 0).with_cdw(10, fid::ASYNC_EVENTS.into()),
    );
    assert_eq!(config.dw0, 1 << 8 | 1 << 11);
    rig.io(HOST_A, id, 1);
}

#[test]
fn shutdown_flushes_after_the_queues_are_gone() {
    let mut rig = Rig::new();
    let id = rig.controller(HOST_A);
    rig.io(HOST_A, id, 1);
    rig.take_seen();
    rig.set_cc(id, ENABLE | 1 << 14);
    assert_eq!(rig.take_seen(), [format!("close {id} Io")]);
    rig.sub.queue_gone(id, 1, 0);
    rig.drain();
    assert_eq!(
        (rig.take_seen(), rig.csts(id) >> 2),
        (vec![format!("flush {id}")], 1)
    );
    rig.sub.flushed(id, 0);
    assert_eq!(rig.csts(id) >> 2, 2);
}

#[test]
fn keep_alive_expires_and_any_command_restarts_it() {
    let mut rig = Rig::new();
    let mut req = rig.request(HOST_A, 0xffff, 0);
    req.kato_ms = 1000;
    let id = rig.sub.connect_admin(&req, 0).unwrap().cntlid;
    rig.set_cc(id, ENABLE);
    rig.io(HOST_A, id, 1);
    rig.take_seen();
    rig.now = 1000 * MS;
    rig.admin(id, Sqe::new(0xc0, 0));
    assert_eq!(
        rig.sub.deadline(),
        Some(2200 * MS),
        "a refused command counts"
    );
    rig.sub.activity(id, 1500 * MS);
    rig.sub.expire(2300 * MS);
    rig.drain();
    assert_eq!(rig.take_seen(), Vec::<String>::new());
    rig.sub.expire(2700 * MS);
    rig.drain();
    assert_eq!(rig.take_seen(), Vec::<String>::new(), "noticed");
    assert_eq!(rig.sub.deadline(), Some(2900 * MS));
    rig.sub.expire(2900 * MS);
    rig.drain();
    assert_eq!(
        rig.take_seen(),
        ["-nqn.host.aa".to_string(), format!("close {id} All")]
    );
    assert_eq!(
        (rig.sub.deadline(), rig.sub.controllers()),
        (None, Vec::new())
    );
}

#[test]
fn namespaces_that_change_are_told_when_reactors_have_them() {
    let mut rig = Rig::new();
    let id = rig.controller(HOST_A);
    let aer = rig.aer(id);
    rig.publish = false;
    let mut config = export();
    config.namespaces[0].blocks += 1;
    config.namespaces.push(namespace(5, 9));
    rig.sub.update(config.clone(), 0).unwrap();
    rig.drain();
    assert_eq!(rig.completion(aer), None, "not before the view is in force");
    rig.sub.published(rig.sub.view().generation, 0);
    rig.drain();
    assert_eq!(rig.completion(aer).unwrap().dw0, 0x0004_0002);
    assert_eq!(
        rig.log(id, 4, 4096)[..12],
        [1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(rig.log(id, 4, 4096), vec![0; 4096]);
    rig.take_seen();
    rig.sub.update(config, 0).unwrap();
    rig.drain();
    assert_eq!(
        rig.take_seen(),
        Vec::<String>::new(),
        "exported again without a change"
    );
}

#[test]
fn a_view_that_is_acknowledged_again_stands_for_no_other() {
    let mut rig = Rig::new();
    let id = rig.controller(HOST_A);
    let aer = rig.aer(id);
    rig.publish = false;
    let in_force = rig.sub.view().generation;
    rig.sub
        .update(
            ExportConfig {
                ana_state: AnaState::Change,
                ..export()
            },
            0,
        )
        .unwrap();
    rig.sub.published(in_force, 0);
    rig.sub.published(in_force, 0);
    rig.drain();
    assert_eq!(rig.completion(aer), None);
    rig.sub.published(in_force + 1, 0);
    rig.drain();
    assert!(rig.completion(aer).is_some());
}

#[test]
fn retained_events_stay_masked() {
    let mut rig = Rig::new();
    let id = rig.controller(HOST_A);
    let (first, second) = (rig.aer(id), rig.aer(id));
    let resize = |rig: &mut Rig, blocks| {
        let mut config = export();
        config.namespaces[0].blocks = blocks;
        rig.sub.update(config, 0).unwrap();
        rig.drain();
    };
    resize(&mut rig, 1);
    assert!(rig.completion(first).is_some());
    let mut retained = get_log(4, 4096);
    retained.set_cdw(10, retained.cdw(10) | 1 << 15);
    assert_eq!(rig.admin(id, retained).data[0], 1);
    resize(&mut rig, 2);
    assert!(rig.completion(second).is_none());
    assert_eq!(rig.log(id, 4, 4096)[0], 1, "still on the page");
    resize(&mut rig, 3);
    assert!(rig.completion(second).is_some());
}

#[test]
fn ana_changes_raise_the_event_and_the_count() {
    let mut rig = Rig::new();
    let id = rig.controller(HOST_A);
    let before = rig.log(id, 0x0c, 52);
    assert_eq!((before[0], before[32]), (1, 1));
    let aer = rig.aer(id);
    rig.sub
        .update(
            ExportConfig {
                ana_state: AnaState::Inaccessible,
                ..export()
            },
            0,
        )
        .unwrap();
    rig.drain();
    assert_eq!(rig.completion(aer).unwrap().dw0, 0x000c_0302);
    let after = rig.log(id, 0x0c, 52);
    assert_eq!((after[0], after[32], after[48]), (2, 3, 1));
    assert_eq!(rig.sub.view().namespaces[0].ana, AnaState::Inaccessible);
    rig.io(HOST_A, id, 1);
    let refused = rig
        .reservation(id, Sqe::new(io::RESERVATION_REGISTER, 1), &[1; 16])
        .unwrap();
    assert_eq!(refused.status, status::ANA_INACCESSIBLE);
}

#[test]
fn hosts_that_are_no_longer_allowed_are_disconnected() {
    let mut rig = Rig::new();
    let (a, b) = (rig.controller(HOST_A), rig.controller(HOST_B));
    rig.take_seen();
    rig.sub
        .update(
            ExportConfig {
                allowed_hosts: Some(vec!["nqn.host.bb".into()]),
                ..export()
            },
            0,
        )
        .unwrap();
    rig.drain();
    assert_eq!(
        rig.take_seen(),
        ["-nqn.host.aa".to_string(), format!("close {a} All")]
    );
    assert_eq!(
        rig.sub
            .controllers()
            .iter()
            .map(|c| c.cntlid)
            .collect::<Vec<_>>(),
        [b]
    );
    rig.sub.remove(0);
    rig.drain();
    assert_eq!(
        rig.take_seen(),
        ["-nqn.host.bb".to_string(), format!("close {b} All")]
    );
}

#[test]
fn bad_exports_are_refused_and_change_nothing() {
    let new = |c: ExportConfig| Subsystem::new(c, &node(), 0).map(|_| ()).unwrap_err();
    assert_eq!(
        new(ExportConfig {
            cntlid_min: 0,
            ..export()
        }),
        ExportError::ControllerIds(0, 12)
    );
    assert_eq!(
        new(ExportConfig {
            cntlid_max: 0xfff0,
            ..export()
        }),
        ExportError::ControllerIds(10, 0xfff0)
    );
    assert_eq!(
        new(ExportConfig {
            namespaces: vec![namespace(1025, 9)],
            ..export()
        }),
        ExportError::Namespace(1025)
    );
    let mut rig = Rig::new();
    let mut config = export();
    config.namespaces.push(NamespaceConfig {
        reservation: vec![1; 40],
        ..namespace(2, 9)
    });
    assert!(matches!(
        rig.sub.update(config, 0),
        Err(ExportError::Reservation { nsid: 2, .. })
    ));
    assert_eq!(rig.sub.config(), &export());
}

#[test]
fn the_discovery_controller() {
    let mut rig = Rig::of(Subsystem::discovery(&node(), 0));
    let id = rig.controller(HOST_A);
    let entry = |hosts| DiscoveryEntry {
        nqn: "nqn.x".into(),
        address: node().address,
        allowed_hosts: hosts,
    };
    assert_eq!(rig.log(id, 0x70, 1024)[..9], [0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let aer = rig.aer(id);
    rig.sub.set_discovery_log(vec![entry(None)], 0);
    rig.drain();
    assert_eq!(rig.completion(aer).unwrap().dw0, 0x0070_f002);
    assert_eq!(rig.log(id, 0x70, 1024)[..9], [1, 0, 0, 0, 0, 0, 0, 0, 2]);
    let aer = rig.aer(id);
    rig.sub.set_discovery_log(vec![entry(None)], 0);
    rig.drain();
    assert_eq!(rig.completion(aer), None, "the same log");
    for sqe in [
        Sqe::new(admin::ABORT, 0),
        Sqe::new(admin::GET_FEATURES, 0).with_cdw(10, 7),
        Sqe::new(admin::IDENTIFY, 1),
    ] {
        assert!(!rig.admin(id, sqe).status.is_success());
    }
    let io = rig.request(HOST_A, id, 1);
    assert_eq!(
        refusal(rig.sub.connect_io(&io, 0)).0,
        status::CONNECT_INVALID_PARAMETERS
    );
    assert_eq!(
        rig.sub.deadline(),
        Some(120_200 * MS),
        "two minutes without a keep-alive timeout"
    );
}
