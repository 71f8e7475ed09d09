//! What lists show: what this node sees of the KVDB, but never less than was answered before, by whichever node; and however large that is.
use crate::bench::refused;
use crate::replicated::Nodes;
use keelblock_api::openstorage::*;
use keelblock_control::records::{Phase, VolumeRecord};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use uuid::Uuid;

/// Names and labels of what a node lists.
async fn list(
    c: &Nodes,
    at: usize,
    label: Option<(&str, &str)>,
) -> Result<Vec<SdkVolumeInspectResponse>, Status> {
    let request = SdkVolumeInspectWithFiltersRequest {
        labels: label
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect(),
        ..Default::default()
    };
    let mut client = c.nodes[at].volumes().max_decoding_message_size(64 << 20);
    let listed = client.inspect_with_filters(request).await?;
    Ok(listed.into_inner().volumes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_what_another_node_has_answered_a_moment_ago() {
    let c = Nodes::start(2).await;
    let id = c.create("v", 2).await;
    let single = c.nodes[1].create("single", 1 << 20).await;
    for n in 0..40 {
        let value = n.to_string();
        let label = [("n", value.as_str())];
        c.nodes[1].update("v", &label, None).await.unwrap();
        c.nodes[1].update("single", &label, None).await.unwrap();
        let listed = list(&c, 0, Some(("n", &value))).await.unwrap();
        assert_eq!(listed.len(), 2, "round {n}");
    }
    c.attach_to(0, "v", "n1").await.unwrap();
    c.nodes[1].snapshot("single", "snap").await.unwrap();
    let mut listed = list(&c, 0, None).await.unwrap();
    let by_name = |v: &SdkVolumeInspectResponse| v.name.clone();
    listed.sort_by_key(by_name);
    let names: Vec<String> = listed.iter().map(by_name).collect();
    assert_eq!(names, ["single", "snap", "v"]);
    let v = listed[2].volume.as_ref().unwrap();
    assert_eq!((&v.id, v.attached_on.as_str()), (&id, "n1"));
    assert_eq!(
        (v.state(), v.status()),
        (VolumeState::Attached, VolumeStatus::Up)
    );
    assert_eq!(v.replica_sets[0].nodes.len(), 2);
    assert!(listed[1].volume.as_ref().unwrap().readonly);
    // The other node says it in the same words.
    for (a, b) in list(&c, 1, None).await.unwrap().iter().zip(&listed) {
        let (a, b) = (a.volume.as_ref().unwrap(), b.volume.as_ref().unwrap());
        if a.id == b.id {
            assert_eq!((&a.attach_info, a.state()), (&b.attach_info, b.state()));
        }
    }
    c.nodes[1].delete("snap").await.unwrap();
    c.nodes[1].delete(&single).await.unwrap();
    assert_eq!(list(&c, 0, None).await.unwrap().len(), 1);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_named_not_left_out() {
    let c = Nodes::start(1).await;
    let registry = &c.nodes[0].control().node.registry;
    let key = registry.keys().volume(Uuid::from_u128(7));
    registry.kv().put(&key, "{}").await.unwrap();
    refused(list(&c, 0, None).await, Code::Internal, &key);
    registry.kv().delete(&key).await.unwrap();
    assert!(list(&c, 0, None).await.unwrap().is_empty());
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_may_be_larger_than_what_grpc_takes_by_default() {
    let c = Nodes::start(1).await;
    c.nodes[0].create("one", 1 << 20).await;
    let registry = &c.nodes[0].control().node.registry;
    let one = registry.volumes().await.unwrap().remove(0);
    for n in 0..6u128 {
        let labels: BTreeMap<String, String> = [("l".into(), "x".repeat(1 << 20))].into();
        let record = VolumeRecord {
            volume_id: Uuid::from_u128(100 + n),
            name: format!("large-{n}"),
            phase: Phase::Ready,
            labels,
            ..one.clone()
        };
        let key = registry.keys().volume(record.volume_id);
        registry.put(&key, &record).await.unwrap();
    }
    assert_eq!(list(&c, 0, None).await.unwrap().len(), 7);
    let mut stream = TcpStream::connect(c.nodes[0].control().rest).await.unwrap();
    let request = "POST /v1/volumes/inspectwithfilters HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let head: String = answer.chars().take(200).collect();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(answer.len() > 6 << 20);
    c.stop().await;
}
