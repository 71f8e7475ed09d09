//! Volumes through the SDK.
use crate::bench::{Bench, Drive, refused};
use keelblock_api::openstorage::open_storage_volume_client::OpenStorageVolumeClient;
use keelblock_api::openstorage::*;
use tonic::Code;

const MIB: u64 = 1 << 20;

fn sized(size: u64) -> VolumeSpec {
    VolumeSpec {
        size,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_shown_and_deleted() {
    let b = Bench::new(Drive::File).await;
    let labels = [("app".to_owned(), "db".to_owned())].into();
    let request = SdkVolumeCreateRequest {
        name: "data".into(),
        spec: Some(sized(64 * MIB)),
        labels,
    };
    let id = b
        .volumes()
        .create(request)
        .await
        .unwrap()
        .into_inner()
        .volume_id;
    assert_eq!(b.fake.memory().volumes[&id].size_bytes, 64 * MIB);
    for name in ["data", id.as_str()] {
        let volume = b.inspect(name).await.unwrap();
        assert_eq!(
            (volume.id.as_str(), volume.status(), volume.state()),
            (id.as_str(), VolumeStatus::Up, VolumeState::Detached)
        );
        let spec = volume.spec.unwrap();
        assert_eq!(
            (spec.size, spec.block_size, spec.ha_level),
            (64 * MIB, 4096, 1)
        );
        assert_eq!(volume.locator.unwrap().volume_labels["app"], "db");
        assert_eq!(volume.usage, 32 * MIB);
        assert_eq!(volume.replica_sets[0].nodes, ["node-1"]);
    }
    b.delete("data").await.unwrap();
    refused(
        b.inspect("data").await,
        Code::NotFound,
        "volume data does not exist",
    );
    refused(b.inspect(&id).await, Code::NotFound, &id);
    b.delete(&id).await.unwrap();
    assert!(b.fake.memory().volumes.is_empty());
    let again = b.create("data", 64 * MIB).await;
    assert_ne!(again, id, "a new volume is another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_twice_is_one_volume_and_another_size_is_refused() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", 10_000).await;
    assert_eq!(
        b.inspect("v").await.unwrap().spec.unwrap().size,
        12_288,
        "rounded up to whole blocks"
    );
    assert_eq!(b.create("v", 10_000).await, id);
    assert_eq!(b.create("v", 12_288).await, id);
    refused(
        b.try_create("v", sized(MIB)).await,
        Code::AlreadyExists,
        "12288",
    );
    let small = VolumeSpec {
        block_size: 512,
        ..sized(10_000)
    };
    refused(
        b.try_create("v", small).await,
        Code::AlreadyExists,
        "blocks of 4096",
    );
    assert_eq!(
        b.volumes()
            .enumerate(SdkVolumeEnumerateRequest {})
            .await
            .unwrap()
            .into_inner()
            .volume_ids,
        [id]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_make_one_volume() {
    let b = Bench::new(Drive::File).await;
    let create = |_| {
        let mut volumes = b.volumes();
        let request = SdkVolumeCreateRequest {
            name: "same".into(),
            spec: Some(sized(MIB)),
            ..Default::default()
        };
        tokio::spawn(async move {
            volumes
                .create(request)
                .await
                .unwrap()
                .into_inner()
                .volume_id
        })
    };
    let mut ids = Vec::new();
    for creating in (0..8).map(create).collect::<Vec<_>>() {
        ids.push(creating.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(b.fake.memory().volumes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_not_supported_is_named() {
    let b = Bench::new(Drive::File).await;
    refused(
        b.try_create("", sized(MIB)).await,
        Code::InvalidArgument,
        "name",
    );
    let no_spec = SdkVolumeCreateRequest {
        name: "v".into(),
        ..Default::default()
    };
    refused(
        b.volumes().create(no_spec).await,
        Code::InvalidArgument,
        "spec",
    );
    refused(
        b.try_create("v", sized(0)).await,
        Code::InvalidArgument,
        "spec.size",
    );
    refused(
        b.try_create(
            "v",
            VolumeSpec {
                ha_level: 6,
                ..sized(MIB)
            },
        )
        .await,
        Code::InvalidArgument,
        "spec.ha_level",
    );
    refused(
        b.try_create(
            "v",
            VolumeSpec {
                ha_level: 3,
                ..sized(MIB)
            },
        )
        .await,
        Code::FailedPrecondition,
        "there are 0 (node-1: its data path was started without --replication)",
    );
    refused(
        b.try_create(
            "v",
            VolumeSpec {
                encrypted: true,
                ..sized(MIB)
            },
        )
        .await,
        Code::FailedPrecondition,
        "there are 0 (node-1: its data path was started without --replication)",
    );
    refused(
        b.try_create(
            "v",
            VolumeSpec {
                block_size: 1024,
                ..sized(MIB)
            },
        )
        .await,
        Code::InvalidArgument,
        "spec.block_size",
    );
    refused(
        b.try_create(&"n".repeat(256), sized(MIB)).await,
        Code::InvalidArgument,
        "name",
    );
    b.create(&"n".repeat(255), MIB).await;
    refused(b.delete("").await, Code::InvalidArgument, "volume_id");
    refused(b.inspect("").await, Code::InvalidArgument, "volume_id");
    b.delete("unknown").await.unwrap();
    refused(
        b.update("unknown", &[], Some(MIB)).await,
        Code::NotFound,
        "unknown",
    );
    let clone =
        OpenStorageVolumeClient::clone(&mut b.volumes(), SdkVolumeCloneRequest::default()).await;
    refused(clone, Code::InvalidArgument, "name");
    refused(
        b.volumes()
            .volume_catalog(SdkVolumeCatalogRequest::default())
            .await,
        Code::Unimplemented,
        "VolumeCatalog",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_refuses_and_leaves_nothing_behind() {
    let b = Bench::new(Drive::File).await;
    b.fake.memory().capacity = 10 * MIB;
    refused(
        b.try_create("big", sized(11 * MIB)).await,
        Code::ResourceExhausted,
        "keelctl service drive add",
    );
    refused(b.inspect("big").await, Code::NotFound, "big");
    let id = b.create("big", 9 * MIB).await;
    refused(
        b.update("big", &[], Some(11 * MIB)).await,
        Code::ResourceExhausted,
        "full",
    );
    assert_eq!(b.inspect(&id).await.unwrap().spec.unwrap().size, 9 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_grow_and_change_labels() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", MIB).await;
    b.update("v", &[("a", "1"), ("b", "2")], Some(2 * MIB))
        .await
        .unwrap();
    b.update("v", &[("a", ""), ("c", "3")], None).await.unwrap();
    let volume = b.inspect("v").await.unwrap();
    let mut labels: Vec<_> = volume.locator.unwrap().volume_labels.into_iter().collect();
    labels.sort();
    assert_eq!(labels, [("b".into(), "2".into()), ("c".into(), "3".into())]);
    assert_eq!(
        (
            volume.spec.unwrap().size,
            b.fake.memory().volumes[&id].size_bytes
        ),
        (2 * MIB, 2 * MIB)
    );
    refused(
        b.update("v", &[], Some(MIB)).await,
        Code::InvalidArgument,
        "cannot shrink",
    );
    b.update("v", &[], Some(2 * MIB)).await.unwrap();
    let cos = VolumeSpecUpdate {
        cos_opt: Some(volume_spec_update::CosOpt::Cos(3)),
        ..Default::default()
    };
    let request = SdkVolumeUpdateRequest {
        volume_id: "v".into(),
        spec: Some(cos),
        ..Default::default()
    };
    refused(
        b.volumes().update(request).await,
        Code::InvalidArgument,
        "spec.cos",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_by_name_and_labels() {
    let b = Bench::new(Drive::File).await;
    for (name, tier) in [("a", "hot"), ("b", "hot"), ("c", "cold")] {
        b.create(name, MIB).await;
        b.update(name, &[("tier", tier), ("team", "x")], None)
            .await
            .unwrap();
    }
    let find = |name: &str, labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let request = SdkVolumeInspectWithFiltersRequest {
            name: name.into(),
            labels,
            ..Default::default()
        };
        let mut volumes = b.volumes();
        async move {
            let found = volumes
                .inspect_with_filters(request)
                .await
                .unwrap()
                .into_inner()
                .volumes;
            let mut names: Vec<String> = found.into_iter().map(|v| v.name).collect();
            names.sort();
            names.join(" ")
        }
    };
    assert_eq!(find("", &[]).await, "a b c");
    assert_eq!(find("b", &[]).await, "b");
    assert_eq!(find("", &[("tier", "hot"), ("team", "x")]).await, "a b");
    assert_eq!(find("c", &[("tier", "hot")]).await, "");
    let request = SdkVolumeEnumerateWithFiltersRequest {
        name: "c".into(),
        ..Default::default()
    };
    let ids = b
        .volumes()
        .enumerate_with_filters(request)
        .await
        .unwrap()
        .into_inner()
        .volume_ids;
    assert_eq!(ids.len(), 1);
    let owner = Ownership {
        owner: "me".into(),
        acls: None,
    };
    let request = SdkVolumeEnumerateWithFiltersRequest {
        ownership: Some(owner),
        ..Default::default()
    };
    let none = b.volumes().enumerate_with_filters(request).await.unwrap();
    assert_eq!(none.into_inner().volume_ids, [""; 0], "nothing is owned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sticky_volume_stays_until_it_is_not() {
    let b = Bench::new(Drive::File).await;
    b.try_create(
        "v",
        VolumeSpec {
            sticky: true,
            ..sized(MIB)
        },
    )
    .await
    .unwrap();
    refused(b.delete("v").await, Code::FailedPrecondition, "sticky");
    let loose = VolumeSpecUpdate {
        sticky_opt: Some(volume_spec_update::StickyOpt::Sticky(false)),
        ..Default::default()
    };
    let request = SdkVolumeUpdateRequest {
        volume_id: "v".into(),
        spec: Some(loose),
        ..Default::default()
    };
    b.volumes().update(request).await.unwrap();
    b.delete("v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_and_capacity_are_counted() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", 8 * MIB).await;
    let stats = |not_cumulative| {
        let request = SdkVolumeStatsRequest {
            volume_id: "v".into(),
            not_cumulative,
        };
        let mut volumes = b.volumes();
        async move {
            volumes
                .stats(request)
                .await
                .unwrap()
                .into_inner()
                .stats
                .unwrap()
        }
    };
    assert_eq!(
        (stats(false).await.reads, stats(false).await.bytes_used),
        (0, 4 * MIB)
    );
    b.attach("v").await;
    b.fake.count_io(&id);
    let s = stats(true).await;
    assert_eq!(
        (s.reads, s.read_bytes, s.writes, s.write_bytes, s.write_ms),
        (1, 4096, 1, 8192, 2)
    );
    b.fake.count_io(&id);
    b.fake.count_io(&id);
    assert_eq!(stats(true).await.reads, 2, "since the last call");
    assert_eq!(stats(true).await.reads, 0);
    assert_eq!(stats(false).await.reads, 3);
    let capacity = b
        .volumes()
        .capacity_usage(SdkVolumeCapacityUsageRequest { volume_id: id })
        .await
        .unwrap();
    let capacity = capacity.into_inner().capacity_usage_info.unwrap();
    assert_eq!(
        (
            capacity.total_bytes,
            capacity.exclusive_bytes,
            capacity.shared_bytes
        ),
        (4 * MIB as i64, MIB as i64, 3 * MIB as i64)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_shown_and_unknown_ones_are_not_found() {
    let b = Bench::new(Drive::File).await;
    assert_eq!(
        b.nodes()
            .enumerate(SdkNodeEnumerateRequest {})
            .await
            .unwrap()
            .into_inner()
            .node_ids,
        ["node-1"]
    );
    let node = b
        .nodes()
        .inspect_current(SdkNodeInspectCurrentRequest {})
        .await
        .unwrap()
        .into_inner()
        .node
        .unwrap();
    assert_eq!(
        (node.id.as_str(), node.status(), node.data_ip.as_str()),
        ("node-1", Status::Ok, "127.0.0.1")
    );
    assert_eq!((node.pools.len(), node.disks.len()), (1, 1));
    assert_eq!(node.pools[0].total_size, 1 << 40);
    let inspect = |id: &str| {
        let request = SdkNodeInspectRequest { node_id: id.into() };
        let mut nodes = b.nodes();
        async move { nodes.inspect(request).await }
    };
    assert_eq!(
        inspect("node-1")
            .await
            .unwrap()
            .into_inner()
            .node
            .unwrap()
            .id,
        "node-1"
    );
    refused(inspect("node-2").await, Code::NotFound, "node node-2");
    refused(inspect("").await, Code::InvalidArgument, "node_id");
    let all = b
        .nodes()
        .enumerate_with_filters(SdkNodeEnumerateWithFiltersRequest {})
        .await
        .unwrap()
        .into_inner()
        .nodes;
    assert_eq!(all.len(), 1);
}
