//! What is collected to look into a failure: of all nodes, also of those that cannot be reached, and no key is in it.
use crate::replicated::Nodes;
use keelblock_api::admin::*;
use keelblock_api::openstorage::VolumeSpec;
use std::collections::BTreeMap;

const KEY: &str = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210";

/// Files by node and name.
async fn collect(c: &Nodes, request: CollectDiagsRequest) -> BTreeMap<(String, String), Vec<u8>> {
    let mut admin = c.nodes[0].admin();
    let mut stream = admin.collect_diags(request).await.unwrap().into_inner();
    let mut files: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    while let Some(part) = stream.message().await.unwrap() {
        let file = files.entry((part.node_id, part.name)).or_default();
        file.extend(part.bytes);
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_of_every_node_but_no_key() {
    let mut c = Nodes::start(2).await;
    let extra = tempfile::tempdir().unwrap();
    let log = extra.path().join("datapath.log");
    std::fs::write(&log, "the data path says so").unwrap();
    let first = &mut c.nodes[0];
    first.config().cluster_key_command = Some(format!("echo {KEY}"));
    first.config().diags_files = vec![log];
    first.restart_control().await;
    let spec = VolumeSpec {
        size: 1 << 24,
        ha_level: 2,
        encrypted: true,
        ..Default::default()
    };
    let made = async {
        // A node says that it lives a moment before it says what room it has.
        while let Err(error) = c.nodes[0].try_create("secret", spec.clone()).await {
            assert!(error.message().contains("replicas need"), "{error:?}");
        }
    };
    tokio::time::timeout(crate::replicated::PATIENCE, made)
        .await
        .expect("it is made");
    let files = collect(&c, CollectDiagsRequest::default()).await;
    let name = |node: &str, name: &str| (node.to_owned(), name.to_owned());
    for node in ["n1", "n2"] {
        for file in [
            "versions.json",
            "config.txt",
            "status.json",
            "metrics.txt",
            "control.log",
        ] {
            assert!(files.contains_key(&name(node, file)), "{node} {file}");
        }
    }
    assert_eq!(files[&name("n1", "datapath.log")], b"the data path says so");
    let records = String::from_utf8(files[&name("n1", "kvdb.json")].clone()).unwrap();
    for says in ["volumes/", "secret", "replication/", "left out"] {
        assert!(records.contains(says), "{says}");
    }
    let registry = &c.nodes[0].control().node.registry;
    let prefix = registry.keys().secrets();
    let kept = registry.kv().list(&prefix).await.unwrap().kvs;
    assert_eq!(kept.len(), 1);
    let record: serde_json::Value = serde_json::from_slice(&kept[0].value).unwrap();
    let wrapped = record["keys"][0]["wrapped"].as_str().unwrap();
    assert!(wrapped.len() > 100, "{record}");
    let configuration = String::from_utf8_lossy(&files[&name("n1", "config.txt")]);
    assert!(configuration.contains("left out"), "{configuration}");
    for ((node, file), bytes) in &files {
        let text = String::from_utf8_lossy(bytes);
        for secret in [KEY, &KEY[..16], &KEY[48..], wrapped, &wrapped[24..56]] {
            assert!(!text.contains(secret), "{node} {file} has {secret}");
        }
    }

    let small = CollectDiagsRequest {
        here: false,
        bytes_max: 20_000,
    };
    let files = collect(&c, small).await;
    let bytes: usize = files.values().map(Vec::len).sum();
    assert!(
        bytes <= 20_000 && files.len() > 10,
        "{bytes} {}",
        files.len()
    );
    c.nodes[1].stop_control().await;
    let files = collect(&c, CollectDiagsRequest::default()).await;
    assert!(files.contains_key(&name("n2", "unreachable.txt")));
    assert!(files.contains_key(&name("n1", "status.json")));
    let here = CollectDiagsRequest {
        here: true,
        bytes_max: 0,
    };
    let files = collect(&c, here).await;
    assert!(
        files
            .keys()
            .all(|(node, file)| node == "n1" && file != "kvdb.json")
    );
    c.stop().await;
}
