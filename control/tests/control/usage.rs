//! What a node says of the space on it, whichever node is asked, and its drains as jobs.
use crate::bench::refused;
use crate::replicated::Nodes;
use keelblock_api::openstorage::open_storage_job_client::OpenStorageJobClient;
use keelblock_api::openstorage::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn any_node_says_what_is_used_on_another_and_which_nodes_are_drained() {
    let c = Nodes::start(2).await;
    let one = c.nodes[0].create("one", 8 << 20).await;
    let two = c.nodes[0].create("two", 8 << 20).await;
    let snapshot = c.nodes[0].snapshot("one", "s").await.unwrap();
    for asked in [0, 1] {
        let mut nodes = c.nodes[asked].nodes();
        let usage = |node_id: &str| SdkNodeVolumeUsageByNodeRequest {
            node_id: node_id.into(),
        };
        let there = nodes.volume_usage_by_node(usage("n1")).await.unwrap();
        let there = there.into_inner().volume_usage_info.unwrap().volume_usage;
        let mut named: Vec<_> = there
            .iter()
            .map(|u| (u.volume_name.as_str(), u.volume_id.as_str()))
            .collect();
        named.sort_unstable();
        let all = [("one", one.as_str()), ("s", &snapshot), ("two", &two)];
        assert_eq!(named, all, "asked at {asked}");
        for used in &there {
            assert!(used.exclusive_bytes <= used.total_bytes && !used.pool_uuid.is_empty());
        }
        let none = nodes.volume_usage_by_node(usage("n2")).await.unwrap();
        let none = none.into_inner().volume_usage_info.unwrap();
        assert!(none.volume_usage.is_empty(), "{none:?}");
        let unknown = nodes.volume_usage_by_node(usage("n9")).await;
        refused(unknown, Code::NotFound, "n9");
        let bytes = |ids: Vec<u64>| SdkVolumeBytesUsedRequest {
            node_id: "n1".into(),
            ids,
        };
        let used = nodes.volume_bytes_used_by_node(bytes(vec![])).await;
        let used = used.unwrap().into_inner().vol_util_info.unwrap();
        let ids: Vec<&str> = used
            .vol_usage
            .iter()
            .map(|u| u.volume_id.as_str())
            .collect();
        assert!(ids.len() == 2 && ids.contains(&one.as_str()) && ids.contains(&two.as_str()));
        let some = nodes.volume_bytes_used_by_node(bytes(vec![1])).await;
        refused(some, Code::InvalidArgument, "ids");
    }
    let drain = SdkNodeDrainAttachmentsRequest {
        node_id: "n2".into(),
        ..Default::default()
    };
    let job = c.nodes[0].nodes().drain_attachments(drain).await.unwrap();
    let job = job.into_inner().job.unwrap();
    let mut jobs = OpenStorageJobClient::new(c.nodes[1].channel());
    let of = |kind: job::Type| SdkEnumerateJobsRequest {
        r#type: kind.into(),
    };
    let listed = jobs.enumerate(of(job::Type::None)).await.unwrap();
    assert_eq!(listed.into_inner().jobs[0].id, job.id);
    let none = jobs.enumerate(of(job::Type::Defrag)).await.unwrap();
    assert!(none.into_inner().jobs.is_empty());
    let status = |id: &str| SdkGetJobStatusRequest {
        id: id.into(),
        ..Default::default()
    };
    let found = jobs.get_status(status(&job.id)).await.unwrap().into_inner();
    assert_eq!(found.job.unwrap().r#type(), job::Type::DrainAttachments);
    assert_eq!(found.summary.unwrap().id, job.id);
    refused(jobs.get_status(status("j")).await, Code::NotFound, "job j");
    let update = |state: job::State| SdkUpdateJobRequest {
        id: job.id.clone(),
        state: state.into(),
        ..Default::default()
    };
    let paused = jobs.update(update(job::State::Paused)).await;
    refused(paused, Code::InvalidArgument, "PAUSED");
    c.stop().await;
}
