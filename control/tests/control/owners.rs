//! Volumes of several users of one cluster: each sees and does what is theirs or shared, and no more, by whichever method.
use crate::auth::{Door, Guarded, create, list, token};
use crate::bench::{Bench, Drive, refused};
use keelblock_api::admin::admin_client::AdminClient;
use keelblock_api::admin::{ConnectionInfoRequest, SetAllowedHostsRequest};
use keelblock_api::openstorage::open_storage_mount_attach_client::OpenStorageMountAttachClient;
use keelblock_api::openstorage::open_storage_volume_client::OpenStorageVolumeClient;
use keelblock_api::openstorage::open_storage_watch_client::OpenStorageWatchClient;
use keelblock_api::openstorage::ownership::{AccessControl, AccessType, PublicAccessControl};
use keelblock_api::openstorage::*;
use std::time::Duration;
use tonic::{Code, Status};

/// Longer than anything here takes, so that what hangs fails.
const PATIENCE: Duration = Duration::from_secs(30);

type Volumes = OpenStorageVolumeClient<Door>;

fn ownership(owner: &str, groups: &[(&str, AccessType)], public: Option<AccessType>) -> Ownership {
    let groups = groups.iter();
    let groups = groups.map(|(n, a)| ((*n).to_owned(), i32::from(*a)));
    Ownership {
        owner: owner.into(),
        acls: Some(AccessControl {
            groups: groups.collect(),
            public: public.map(|a| PublicAccessControl { r#type: a.into() }),
            ..Default::default()
        }),
    }
}

async fn give(volumes: &mut Volumes, volume: &str, to: Ownership) -> Result<(), Status> {
    let spec = VolumeSpecUpdate {
        ownership: Some(to),
        ..Default::default()
    };
    let request = SdkVolumeUpdateRequest {
        volume_id: volume.into(),
        spec: Some(spec),
        ..Default::default()
    };
    volumes.update(request).await.map(drop)
}

async fn inspect(volumes: &mut Volumes, volume: &str) -> Result<Volume, Status> {
    let request = SdkVolumeInspectRequest {
        volume_id: volume.into(),
        options: None,
    };
    Ok(volumes.inspect(request).await?.into_inner().volume.unwrap())
}

async fn owner(volumes: &mut Volumes, volume: &str) -> String {
    let spec = inspect(volumes, volume).await.unwrap().spec.unwrap();
    spec.ownership.map(|o| o.owner).unwrap_or_default()
}

async fn delete(volumes: &mut Volumes, volume: &str) -> Result<(), Status> {
    let request = SdkVolumeDeleteRequest {
        volume_id: volume.into(),
    };
    volumes.delete(request).await.map(drop)
}

async fn snapshot(volumes: &mut Volumes, volume: &str, name: &str) -> Result<String, Status> {
    let request = SdkVolumeSnapshotCreateRequest {
        volume_id: volume.into(),
        name: name.into(),
        ..Default::default()
    };
    let made = volumes.snapshot_create(request).await?;
    Ok(made.into_inner().snapshot_id)
}

async fn clone_of(volumes: &mut Volumes, parent: &str, name: &str) -> Result<String, Status> {
    let request = SdkVolumeCloneRequest {
        name: name.into(),
        parent_id: parent.into(),
        ..Default::default()
    };
    let made = OpenStorageVolumeClient::clone(volumes, request).await?;
    Ok(made.into_inner().volume_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_its_makers_and_nobody_else_sees_it_until_it_is_shared() {
    let g = Guarded::new().await;
    let user = |name: &str, groups: &[&str]| token(name, &["system.user"], groups);
    let mut ann = g.volumes(&user("ann", &[]));
    let bobs = user("bob", &["dev"]);
    let mut bob = g.volumes(&bobs);
    let mut root = g.volumes(&token("root", &["system.admin"], &["*"]));
    let mut guest = OpenStorageVolumeClient::new(g.door(None));
    let id = create(&mut ann, "a").await.unwrap();
    assert_eq!(create(&mut ann, "a").await.unwrap(), id, "the same again");
    assert_eq!(owner(&mut ann, "a").await, "ann");
    for (owner, found) in [("ann", 1), ("bob", 0)] {
        let filter = SdkVolumeEnumerateWithFiltersRequest {
            ownership: Some(ownership(owner, &[], None)),
            ..Default::default()
        };
        let all = root.enumerate_with_filters(filter).await.unwrap();
        assert_eq!(all.into_inner().volume_ids.len(), found, "of {owner}");
    }
    let public = create(&mut guest, "open").await.unwrap();
    assert_eq!(owner(&mut guest, "open").await, "");

    let mut attaching = OpenStorageMountAttachClient::new(g.door(Some(&bobs)));
    let attach = SdkVolumeAttachRequest {
        volume_id: "a".into(),
        ..Default::default()
    };
    let mut admin = AdminClient::new(g.door(Some(&bobs)));
    for volumes in [&mut bob, &mut guest] {
        assert_eq!(list(volumes).await.unwrap(), [public.as_str()]);
        let all = SdkVolumeInspectWithFiltersRequest::default();
        let all = volumes.inspect_with_filters(all).await.unwrap();
        assert_eq!(all.into_inner().volumes.len(), 1);
        for name in ["a", &id] {
            let denied = inspect(volumes, name).await;
            refused(denied, Code::PermissionDenied, "it is another's");
            refused(
                delete(volumes, name).await,
                Code::PermissionDenied,
                "another's",
            );
            let denied = snapshot(volumes, name, "s").await;
            refused(denied, Code::PermissionDenied, "another's");
            let denied = clone_of(volumes, name, "c").await;
            refused(denied, Code::PermissionDenied, "another's");
        }
        let denied = create(volumes, "a").await;
        refused(denied, Code::PermissionDenied, "another's");
        let stats = SdkVolumeStatsRequest {
            volume_id: "a".into(),
            not_cumulative: false,
        };
        refused(
            volumes.stats(stats).await,
            Code::PermissionDenied,
            "another's",
        );
    }
    let denied = attaching.attach(attach.clone()).await;
    refused(denied, Code::PermissionDenied, "another's");
    let info = ConnectionInfoRequest { volume: "a".into() };
    let denied = admin.connection_info(info.clone()).await;
    refused(denied, Code::PermissionDenied, "another's");
    delete(&mut bob, "nothing").await.unwrap();
    refused(
        inspect(&mut bob, "nothing").await,
        Code::NotFound,
        "nothing",
    );

    let shared = ownership("", &[("dev", AccessType::Read)], None);
    let denied = give(&mut bob, "a", shared.clone()).await;
    refused(denied, Code::PermissionDenied, "another's");
    give(&mut ann, "a", shared).await.unwrap();
    assert_eq!(owner(&mut bob, "a").await, "ann");
    assert_eq!(list(&mut bob).await.unwrap().len(), 2);
    admin.connection_info(info).await.unwrap();
    let hosts = SetAllowedHostsRequest {
        volume: "a".into(),
        host_nqns: Vec::new(),
        any: true,
    };
    let denied = admin.set_allowed_hosts(hosts.clone()).await;
    refused(denied, Code::PermissionDenied, "Write access");
    let denied = attaching.attach(attach.clone()).await;
    refused(denied, Code::PermissionDenied, "Write access");
    let write = ownership("", &[("dev", AccessType::Write)], None);
    give(&mut ann, "a", write).await.unwrap();
    admin.set_allowed_hosts(hosts).await.unwrap();
    attaching.attach(attach).await.unwrap();
    let detach = SdkVolumeDetachRequest {
        volume_id: id.clone(),
        ..Default::default()
    };
    attaching.detach(detach).await.unwrap();
    refused(
        delete(&mut bob, "a").await,
        Code::PermissionDenied,
        "Admin access",
    );
    let mine = ownership("bob", &[], None);
    let denied = give(&mut bob, "a", mine.clone()).await;
    refused(denied, Code::PermissionDenied, "only the owner");
    let denied = give(&mut ann, "a", mine.clone()).await;
    refused(denied, Code::PermissionDenied, "another owner");
    give(&mut root, "a", mine).await.unwrap();
    refused(
        delete(&mut ann, "a").await,
        Code::PermissionDenied,
        "another's",
    );
    let everybodys = ownership("", &[], Some(AccessType::Read));
    give(&mut bob, "a", everybodys).await.unwrap();
    assert_eq!(owner(&mut guest, "a").await, "bob");
    let denied = delete(&mut guest, "a").await;
    refused(denied, Code::PermissionDenied, "Admin access");
    delete(&mut bob, "a").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_the_volumes_owners_and_clones_whoever_makes_them() {
    let g = Guarded::new().await;
    let user = |name: &str, groups: &[&str]| token(name, &["system.user"], groups);
    let mut ann = g.volumes(&user("ann", &[]));
    let mut bob = g.volumes(&user("bob", &["dev"]));
    let mut eve = g.volumes(&user("eve", &[]));
    let id = create(&mut ann, "a").await.unwrap();
    let shared = ownership("", &[("dev", AccessType::Read)], None);
    give(&mut ann, "a", shared.clone()).await.unwrap();
    let s = snapshot(&mut bob, "a", "s").await.unwrap();
    assert_eq!(owner(&mut bob, "s").await, "ann", "the volume's");
    refused(
        delete(&mut bob, "s").await,
        Code::PermissionDenied,
        "Admin access",
    );
    refused(
        inspect(&mut eve, "s").await,
        Code::PermissionDenied,
        "another's",
    );
    let of = |volume: &str| SdkVolumeSnapshotEnumerateRequest {
        volume_id: volume.into(),
    };
    let denied = eve.snapshot_enumerate(of("a")).await;
    refused(denied, Code::PermissionDenied, "another's");
    let seen = eve.snapshot_enumerate(of("")).await.unwrap().into_inner();
    assert_eq!(seen.volume_snapshot_ids, [""; 0]);
    let seen = bob.snapshot_enumerate(of("a")).await.unwrap().into_inner();
    assert_eq!(seen.volume_snapshot_ids, [s.as_str()]);

    clone_of(&mut bob, "s", "b").await.unwrap();
    assert_eq!(owner(&mut bob, "b").await, "bob");
    refused(
        inspect(&mut ann, "b").await,
        Code::PermissionDenied,
        "another's",
    );
    clone_of(&mut ann, &id, "again").await.unwrap();
    let kept = inspect(&mut bob, "again").await.unwrap().spec.unwrap();
    let kept = kept.ownership.unwrap();
    assert_eq!(
        (kept.owner.as_str(), kept.acls),
        ("ann", shared.acls),
        "shared as before"
    );
    refused(
        clone_of(&mut eve, "s", "e").await,
        Code::PermissionDenied,
        "another's",
    );
    refused(
        clone_of(&mut ann, "s", "b").await,
        Code::PermissionDenied,
        "another's",
    );
    let restore = SdkVolumeSnapshotRestoreRequest {
        volume_id: "a".into(),
        snapshot_id: s,
    };
    let denied = bob.snapshot_restore(restore.clone()).await;
    refused(denied, Code::PermissionDenied, "Write access");
    ann.snapshot_restore(restore).await.unwrap();
    assert_eq!(owner(&mut ann, "a").await, "ann");
    delete(&mut ann, "s").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_nothing_is_owned_and_a_guest_owns_nothing() {
    let b = Bench::new(Drive::File).await;
    let owned = |name: &str, owner: &str| SdkVolumeCreateRequest {
        name: name.into(),
        spec: Some(VolumeSpec {
            size: 1 << 20,
            ownership: Some(ownership(owner, &[("dev", AccessType::Admin)], None)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let made = b.volumes().create(owned("v", "ann")).await;
    refused(made, Code::InvalidArgument, "spec.ownership");
    b.create("v", 1 << 20).await;
    let spec = b.inspect("v").await.unwrap().spec.unwrap();
    assert_eq!(spec.ownership, None);
    let g = Guarded::new().await;
    let mut guest = OpenStorageVolumeClient::new(g.door(None));
    let made = guest.create(owned("v", "")).await;
    refused(made, Code::PermissionDenied, "a guest owns nothing");
    let mut ann = g.volumes(&token("ann", &["system.user"], &[]));
    let made = ann.create(owned("v", "bob")).await;
    refused(made, Code::PermissionDenied, "somebody else's");
    ann.create(owned("v", "")).await.unwrap();
    let mut bob = g.volumes(&token("bob", &["system.user"], &["dev"]));
    delete(&mut bob, "v").await.unwrap();
}

/// What a watch says next: name and state.
async fn heard(watch: &mut tonic::Streaming<SdkWatchResponse>) -> (String, VolumeState) {
    let next = tokio::time::timeout(PATIENCE, watch.message()).await;
    let next = next.expect("it says something").unwrap().unwrap();
    let Some(sdk_watch_response::EventType::VolumeEvent(news)) = next.event_type else {
        panic!("it is of something else");
    };
    (news.name, news.volume.unwrap().state())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_may_be_looked_at_and_when_it_may_be_no_more() {
    let g = Guarded::new().await;
    let mut ann = g.volumes(&token("ann", &["system.user"], &[]));
    let bobs = token("bob", &["system.user", "system.view"], &["dev"]);
    let mut bob = g.volumes(&bobs);
    let wanted = SdkWatchRequest {
        event_type: Some(sdk_watch_request::EventType::VolumeEvent(
            SdkVolumeWatchRequest::default(),
        )),
    };
    let mut watches = OpenStorageWatchClient::new(g.door(Some(&bobs)));
    let mut watch = watches.watch(wanted).await.unwrap().into_inner();
    create(&mut ann, "a").await.unwrap();
    create(&mut bob, "b").await.unwrap();
    assert_eq!(heard(&mut watch).await.0, "b", "nothing of a");
    let shared = ownership("", &[("dev", AccessType::Read)], None);
    give(&mut ann, "a", shared).await.unwrap();
    while heard(&mut watch).await != ("a".into(), VolumeState::Detached) {}
    give(&mut ann, "a", ownership("", &[], None)).await.unwrap();
    while heard(&mut watch).await != ("a".into(), VolumeState::Deleted) {}
    assert_eq!(owner(&mut ann, "a").await, "ann", "it is there");
}
