//! Attaching: what the data path is told to export, and what hosts are told.
use crate::bench::{Bench, Drive, refused};
use crate::fake::NVME;
use keelblock_api::admin::*;
use keelblock_api::datapath::{AnaState, ReservationChanged, event};
use keelblock_api::openstorage::open_storage_mount_attach_client::OpenStorageMountAttachClient;
use keelblock_api::openstorage::{SdkVolumeAttachOptions, SdkVolumeAttachRequest, VolumeState};
use std::time::Duration;
use tonic::Code;

const MIB: u64 = 1 << 20;

fn nqn(id: &str) -> String {
    format!("nqn.2026-01.io.keelblock:test:{id}")
}

async fn connection(b: &Bench, volume: &str) -> ConnectionInfoReply {
    b.admin()
        .connection_info(ConnectionInfoRequest {
            volume: volume.into(),
        })
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_is_exported_until_it_is_detached() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    assert_eq!(
        b.attach("v").await,
        format!("/dev/disk/by-id/nvme-uuid.{id}")
    );
    let export = b.fake.memory().exports[&nqn(&id)].clone();
    assert_eq!(
        (
            export.serial.len(),
            export.allow_any_host,
            export.ana_state()
        ),
        (20, true, AnaState::AnaOptimized)
    );
    assert_eq!((export.cntlid_min, export.cntlid_max), (1, 1023));
    let namespace = &export.namespaces[0];
    assert_eq!(
        (
            namespace.nsid,
            namespace.lba_bytes,
            namespace.volume_id.as_str()
        ),
        (1, 4096, id.as_str())
    );
    assert_eq!(namespace.nguid, namespace.uuid);
    let volume = b.inspect("v").await.unwrap();
    assert_eq!(
        (volume.state(), volume.attached_on.as_str()),
        (VolumeState::Attached, "node-1")
    );
    assert_eq!(volume.attach_info["nqn"], nqn(&id));
    let info = connection(&b, "v").await;
    assert_eq!((info.nqn, info.nsid, info.any_host), (nqn(&id), 1, true));
    let path = &info.paths[0];
    assert_eq!(
        (
            format!("{}:{}", path.address, path.port).as_str(),
            path.state.as_str()
        ),
        (NVME, "optimized")
    );
    refused(
        b.delete("v").await,
        Code::FailedPrecondition,
        "detach it first",
    );
    b.attach("v").await;
    b.detach("v").await.unwrap();
    b.detach("v").await.unwrap();
    assert!(b.fake.memory().exports.is_empty());
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Detached);
    assert!(connection(&b, "v").await.paths.is_empty());
    refused(b.detach("none").await, Code::NotFound, "none");
    refused(b.try_attach("none", None).await, Code::NotFound, "none");
    b.delete("v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_can_be_a_further_namespace_of_anothers_subsystem() {
    let b = Bench::new(Drive::File).await;
    let mut ids = Vec::new();
    for name in ["first", "second", "third"] {
        ids.push(b.create(name, MIB).await);
    }
    refused(
        b.try_attach("second", Some("first")).await,
        Code::FailedPrecondition,
        "attach it first",
    );
    b.attach("first").await;
    b.try_attach("second", Some("first")).await.unwrap();
    b.try_attach("third", Some(&ids[0])).await.unwrap();
    b.try_attach("third", Some("first")).await.unwrap();
    let nsids = || {
        let memory = b.fake.memory();
        memory.exports[&nqn(&ids[0])]
            .namespaces
            .iter()
            .map(|n| (n.nsid, n.volume_id.clone()))
            .collect::<Vec<_>>()
    };
    let expected: Vec<_> = (1..).zip(ids.iter().cloned()).collect();
    assert_eq!(nsids(), expected);
    assert_eq!(b.fake.memory().exports.len(), 1);
    let info = connection(&b, "third").await;
    assert_eq!((info.nqn, info.nsid), (nqn(&ids[0]), 3));
    refused(
        b.detach("first").await,
        Code::FailedPrecondition,
        "detach that first",
    );
    refused(
        b.try_attach("third", Some("second")).await,
        Code::FailedPrecondition,
        "detach it first",
    );
    b.detach("second").await.unwrap();
    assert_eq!(nsids(), [expected[0].clone(), expected[2].clone()]);
    b.try_attach("second", Some("first")).await.unwrap();
    assert_eq!(nsids(), expected, "the free namespace id is used again");
    let hosts = SetAllowedHostsRequest {
        volume: "second".into(),
        host_nqns: vec![],
        any: true,
    };
    refused(
        b.admin().set_allowed_hosts(hosts).await,
        Code::FailedPrecondition,
        "subsystem of volume",
    );
    for name in ["third", "second", "first"] {
        b.detach(name).await.unwrap();
    }
    assert!(b.fake.memory().exports.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_are_not_there_are_refused_by_name() {
    let b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    let mut attach = OpenStorageMountAttachClient::new(b.channel());
    let options = [("keelblock.typo".to_owned(), "x".to_owned())].into();
    let request = SdkVolumeAttachRequest {
        volume_id: "v".into(),
        driver_options: options,
        options: None,
    };
    refused(
        attach.attach(request).await,
        Code::InvalidArgument,
        "keelblock.typo",
    );
    let secret = SdkVolumeAttachOptions {
        secret_name: "s".into(),
        ..Default::default()
    };
    let request = SdkVolumeAttachRequest {
        volume_id: "v".into(),
        options: Some(secret),
        ..Default::default()
    };
    refused(
        attach.attach(request).await,
        Code::InvalidArgument,
        "options.secret_name",
    );
    refused(
        attach
            .mount(keelblock_api::openstorage::SdkVolumeMountRequest::default())
            .await,
        Code::Unimplemented,
        "Mount",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_path_state_reach_the_data_path_and_stay() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    let hosts = |list: &[&str], any| {
        let host_nqns = list.iter().map(|h| h.to_string()).collect();
        let mut admin = b.admin();
        async move {
            admin
                .set_allowed_hosts(SetAllowedHostsRequest {
                    volume: "v".into(),
                    host_nqns,
                    any,
                })
                .await
        }
    };
    let state = |state: &str| {
        let request = SetPathStateRequest {
            volume: "v".into(),
            state: state.into(),
        };
        let mut admin = b.admin();
        async move { admin.set_path_state(request).await }
    };
    // Before it is attached, too.
    hosts(
        &[
            "nqn.2014-08.org.example:b",
            "nqn.2014-08.org.example:a",
            "nqn.2014-08.org.example:a",
        ],
        false,
    )
    .await
    .unwrap();
    refused(hosts(&["host"], false).await, Code::InvalidArgument, "host");
    refused(
        hosts(&["nqn.x"], true).await,
        Code::InvalidArgument,
        "host_nqns",
    );
    refused(
        state("inaccessible").await,
        Code::FailedPrecondition,
        "not attached",
    );
    b.attach("v").await;
    state("inaccessible").await.unwrap();
    refused(
        state("perfect").await,
        Code::InvalidArgument,
        "non-optimized",
    );
    let check = |b: &Bench| {
        let memory = b.fake.memory();
        let export = &memory.exports[&nqn(&id)];
        assert_eq!(
            export.allowed_hosts,
            ["nqn.2014-08.org.example:a", "nqn.2014-08.org.example:b"]
        );
        assert_eq!(
            (export.allow_any_host, export.ana_state()),
            (false, AnaState::AnaInaccessible)
        );
    };
    check(&b);
    assert_eq!(connection(&b, "v").await.paths[0].state, "inaccessible");
    b.fake.restart();
    b.down().await;
    b.ready().await;
    check(&b);
    b.detach("v").await.unwrap();
    assert_eq!(
        connection(&b, "v").await.allowed_hosts.len(),
        2,
        "the list is the volume's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_export_leaves_the_volume_detached() {
    let b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    b.fake
        .memory()
        .refuse
        .insert("export", (Code::ResourceExhausted, "no controllers left"));
    refused(
        b.try_attach("v", None).await,
        Code::ResourceExhausted,
        "no controllers left",
    );
    assert_eq!(b.inspect("v").await.unwrap().state(), VolumeState::Detached);
    b.fake.memory().refuse.clear();
    b.attach("v").await;
}

/// A reservation is in the KVDB before the data path hears that it is, and comes back with the next export.
#[tokio::test(flavor = "multi_thread")]
async fn reservations_are_kept_before_they_are_confirmed() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    b.attach("v").await;
    let change = |generation, state: &[u8]| {
        event::What::Reservation(ReservationChanged {
            nqn: nqn(&id),
            nsid: 1,
            generation,
            state: state.to_vec(),
        })
    };
    b.fake.report(change(7, b"reserved")).await;
    while b.fake.memory().commits.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let commit = b.fake.memory().commits[0].clone();
    assert_eq!(
        (commit.nqn, commit.nsid, commit.generation),
        (nqn(&id), 1, 7)
    );
    b.fake.restart();
    b.down().await;
    b.ready().await;
    assert_eq!(
        b.fake.memory().exports[&nqn(&id)].namespaces[0].reservation,
        b"reserved"
    );
    b.fake.report(change(8, b"")).await;
    while b.fake.memory().commits.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A namespace that is not there is not confirmed, and disturbs nothing.
    let nowhere = ReservationChanged {
        nqn: nqn(&id),
        nsid: 9,
        generation: 1,
        state: b"x".to_vec(),
    };
    b.fake.report(event::What::Reservation(nowhere)).await;
    b.restart_control().await;
    assert_eq!(
        b.fake.memory().exports[&nqn(&id)].namespaces[0].reservation,
        b""
    );
    assert_eq!(b.fake.memory().commits.len(), 2);
}
