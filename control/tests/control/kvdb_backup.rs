//! The KVDB is lost, or turned back: what a backup brings back, what it must not, and that a restore that is interrupted can be done again.
use crate::bench::{Bench, Drive, refused};
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::admin::*;
use keelblock_api::openstorage::open_storage_role_client::OpenStorageRoleClient;
use keelblock_api::openstorage::*;
use keelblock_control::backup::RestoreRecord;
use keelblock_control::kvdb::Client;
use keelblock_control::records::{ClusterRecord, encode};
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;

async fn backup(b: &Bench) -> Vec<u8> {
    let mut parts = b
        .admin()
        .backup_kvdb(BackupKvdbRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        bytes.extend(part.bytes);
    }
    bytes
}

async fn restore(b: &Bench, bytes: &[u8]) -> Result<RestoreKvdbReply, Status> {
    // Parts of any length.
    let parts: Vec<KvdbPart> = bytes
        .chunks(1000)
        .map(|part| KvdbPart {
            bytes: part.to_vec(),
        })
        .collect();
    let reply = b.admin().restore_kvdb(tokio_stream::iter(parts)).await?;
    Ok(reply.into_inner())
}

async fn status(b: &Bench) -> KvdbStatusReply {
    let reply = b.admin().kvdb_status(KvdbStatusRequest {}).await;
    reply.unwrap().into_inner()
}

async fn names(b: &Bench) -> Vec<String> {
    let request = SdkVolumeInspectWithFiltersRequest::default();
    let reply = b.volumes().inspect_with_filters(request).await.unwrap();
    let volumes = reply.into_inner().volumes.into_iter();
    let mut names: Vec<_> = volumes
        .filter_map(|v| Some(v.volume?.locator?.name))
        .collect();
    names.sort();
    names
}

/// Until what is asked is done: after a restore each node looks at everything again first.
async fn done<T>(what: impl AsyncFn() -> Result<T, Status>) -> T {
    let mut last = None;
    let again = async {
        loop {
            match what().await {
                Ok(done) => return done,
                Err(status) => {
                    let away = status.message().contains("no data path at the moment");
                    assert!(away || status.code() == Code::Unavailable, "{status:?}");
                    last = Some(status);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, again).await;
    done.unwrap_or_else(|_| panic!("it is not done: {last:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_back_what_was_and_forgets_what_came_since() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("first", 16 * MIB).await;
    b.snapshot("first", "snap").await.unwrap();
    let mut roles = OpenStorageRoleClient::new(b.channel());
    let rule = SdkRule {
        services: vec!["volume".into()],
        apis: vec!["*".into()],
    };
    let role = |name: &str| SdkRole {
        name: name.into(),
        rules: vec![rule.clone()],
    };
    let role = |name: &str| SdkRoleCreateRequest {
        role: Some(role(name)),
    };
    roles.create(role("then")).await.unwrap();
    let taken = backup(&b).await;
    roles.create(role("since")).await.unwrap();
    let gone = SdkRoleDeleteRequest {
        name: "then".into(),
    };
    roles.delete(gone).await.unwrap();
    b.create("second", 16 * MIB).await;
    b.delete("snap").await.unwrap();
    b.update("first", &[("k", "v")], None).await.unwrap();
    let before = status(&b).await;
    assert_eq!((before.generation, before.embedded), (0, true));
    assert_eq!((before.members.len(), before.restoring.as_str()), (1, ""));

    b.attach("first").await;
    refused(
        restore(&b, &taken).await,
        Code::FailedPrecondition,
        "detach",
    );
    b.detach("first").await.unwrap();
    let restored = restore(&b, &taken).await.unwrap();
    assert_eq!((restored.generation, restored.unverified.len()), (1, 0));
    assert!(restored.put > 0 && restored.deleted > 0, "{restored:?}");
    assert_eq!(names(&b).await, ["first", "snap"]);
    let there = roles.enumerate(SdkRoleEnumerateRequest {}).await.unwrap();
    let there = there.into_inner().names;
    assert!(there.contains(&"then".to_owned()) && !there.contains(&"since".to_owned()));
    let volume = b.inspect("first").await.unwrap();
    assert_eq!(volume.id, id);
    let labels = volume.locator.unwrap().volume_labels;
    assert!(labels.is_empty(), "{labels:?}");
    done(async || b.try_create("third", spec(16 * MIB)).await).await;
    assert_eq!(b.try_create("first", spec(16 * MIB)).await.unwrap(), id);
    // The same again is one generation more.
    assert_eq!(restore(&b, &taken).await.unwrap().generation, 2);
    assert_eq!(status(&b).await.generation, 2);
    assert_eq!(names(&b).await, ["first", "snap"]);
}

fn spec(size: u64) -> VolumeSpec {
    VolumeSpec {
        size,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kvdb_that_is_lost_comes_back_with_its_volumes() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("kept", 16 * MIB).await;
    let taken = backup(&b).await;
    b.stop_control().await;
    let file = b.config().data.join("kvdb.redb");
    std::fs::remove_file(file).unwrap();
    b.start_control().await.unwrap();
    b.ready().await;
    assert!(names(&b).await.is_empty());
    let restored = restore(&b, &taken).await.unwrap();
    assert_eq!(restored.generation, 1);
    assert_eq!(b.inspect("kept").await.unwrap().id, id);
    done(async || b.try_attach("kept", None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_backup_of_this_cluster_changes_nothing() {
    let b = Bench::new(Drive::File).await;
    b.create("v", 16 * MIB).await;
    let taken = backup(&b).await;
    let revision = status(&b).await.revision;
    let mut changed = taken.clone();
    changed[taken.len() / 2] ^= 1;
    for (bytes, says) in [
        (&taken[..taken.len() - 1], "damaged"),
        (&changed[..], "damaged"),
        (&b"no backup"[..], "KEELKVDB"),
        (&[][..], "KEELKVDB"),
    ] {
        refused(restore(&b, bytes).await, Code::InvalidArgument, says);
    }
    let other = keelblock_control::backup::Backup::decode(&taken).unwrap();
    let other = keelblock_control::backup::Backup {
        cluster_id: "another".into(),
        ..other
    };
    let other = restore(&b, &other.encode()).await;
    refused(other, Code::FailedPrecondition, "cluster another");
    let kept = status(&b).await;
    assert_eq!((kept.revision, kept.generation), (revision, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_interrupted_stops_changes_until_it_is_done_again() {
    let b = Bench::new(Drive::File).await;
    b.create("v", 16 * MIB).await;
    let taken = backup(&b).await;
    b.create("later", 16 * MIB).await;
    // As if whoever did it had died after its second step.
    let kv = Client::new(&b.control().kvdb).unwrap();
    let record = RestoreRecord {
        node_id: "gone".into(),
        started_unix_ms: 1,
        taken_unix_ms: 1,
        revision: 1,
    };
    let cluster = ClusterRecord {
        cluster_id: "test".into(),
        created_unix_ms: 1,
        generation: 1,
    };
    kv.put("/test/restore", encode(&record)).await.unwrap();
    kv.put("/test/cluster", encode(&cluster)).await.unwrap();
    let create = b.try_create("w", spec(16 * MIB)).await;
    refused(create, Code::Unavailable, "being restored, by node gone");
    let no = b.admin().backup_kvdb(BackupKvdbRequest {}).await;
    refused(no, Code::Unavailable, "restore` again");
    assert!(status(&b).await.restoring.contains("node gone"));
    assert_eq!(names(&b).await, ["later", "v"], "looking goes on");
    let restored = restore(&b, &taken).await.unwrap();
    assert_eq!(restored.generation, 2);
    assert_eq!(names(&b).await, ["v"]);
    done(async || b.try_create("w", spec(16 * MIB)).await).await;
    assert_eq!(status(&b).await.restoring, "");
}

/// What is half done in a backup would be done again when it is put back: a drive with data formatted, a volume set back over what was written since.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_half_done_is_neither_backed_up_nor_put_back() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", 16 * MIB).await;
    let taken = backup(&b).await;
    let whole = keelblock_control::backup::Backup::decode(&taken).unwrap();
    let kv = Client::new(&b.control().kvdb).unwrap();
    let pool = whole.entries.iter().find(|(k, _)| k.starts_with(b"pools/"));
    let pool = String::from_utf8(pool.unwrap().0.clone()).unwrap();
    for (key, field, value, says) in [
        (
            format!("volumes/{id}"),
            "/phase",
            "creating".into(),
            "volume v is being made",
        ),
        (
            format!("volumes/{id}"),
            "/restoring",
            id.clone().into(),
            "volume v is being set back",
        ),
        (pool, "/drives/0/fresh", true.into(), "is being added"),
    ] {
        let at = format!("/test/{key}");
        let before = kv.get(&at).await.unwrap().unwrap().value;
        let mut record: serde_json::Value = serde_json::from_slice(&before).unwrap();
        let (parent, name) = field.rsplit_once('/').unwrap();
        let parent = record.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        parent.insert(name.into(), value);
        let half = serde_json::to_vec(&record).unwrap();
        kv.put(&at, half.clone()).await.unwrap();
        let no = b.admin().backup_kvdb(BackupKvdbRequest {}).await;
        refused(no, Code::Aborted, says);
        kv.put(&at, before).await.unwrap();
        let mut other = whole.clone();
        let entry = other.entries.iter_mut().find(|(k, _)| *k == key.as_bytes());
        entry.unwrap().1 = half;
        refused(
            restore(&b, &other.encode()).await,
            Code::FailedPrecondition,
            says,
        );
    }
    assert_eq!(backup(&b).await.len(), taken.len());
}

/// A volume was set back since the backup, so its replicas are others than the record of then says: nothing of them may go, and a person cannot have the old
/// ones count.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_a_backup_does_not_name_stay() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    c.nodes[0].snapshot("v", "s").await.unwrap();
    let here = |c: &Nodes| -> Vec<Vec<String>> {
        let of = |b: &Bench| {
            b.fake
                .memory()
                .replication
                .replicas
                .keys()
                .cloned()
                .collect()
        };
        c.nodes.iter().map(of).collect()
    };
    let taken = backup(&c.nodes[1]).await;
    let before = here(&c);
    c.nodes[0].detach("v").await.unwrap();
    c.nodes[1].restore("v", "s").await.unwrap();
    let after = here(&c);
    assert_ne!(before, after);
    restore(&c.nodes[1], &taken).await.unwrap();
    let kv = Client::new(&c.nodes[0].control().kvdb).unwrap();
    for replica in before.iter().flatten() {
        // Its node has looked at the record of then.
        let lost = async {
            let key = format!("/test/replicas/{id}/{replica}");
            loop {
                let found = kv.get(&key).await.unwrap();
                let found = found.and_then(|f| serde_json::from_slice(&f.value).ok());
                if found.is_some_and(|f: serde_json::Value| f["lost"] == true) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let said = tokio::time::timeout(PATIENCE, lost).await;
        said.expect("a replica that is not there is said to be lost");
    }
    let refusal = decide(&c.nodes[2], &["n1", "n2"]).await;
    refused(refusal, Code::FailedPrecondition, "not there any more");
    let attached = c.attach_to(0, "v", "n2").await;
    refused(attached, Code::FailedPrecondition, "not there any more");
    let deleted = c.nodes[2].delete("v").await;
    refused(deleted, Code::FailedPrecondition, "decide-replicas");
    assert_eq!(here(&c), after, "what the record does not name stays");
    c.stop().await;
}

async fn decide(b: &Bench, nodes: &[&str]) -> Result<DecideReplicasReply, Status> {
    let request = DecideReplicasRequest {
        volume: "v".into(),
        nodes: nodes.iter().map(|n| (*n).into()).collect(),
        minimum: 0,
    };
    Ok(b.admin().decide_replicas(request).await?.into_inner())
}

/// The set of a backup may name replicas that lack acknowledged writes: whoever serves it is told to hear all, or a person says which count.
#[tokio::test(flavor = "multi_thread")]
async fn of_replicated_volumes_all_replicas_are_heard_after_a_restore_or_a_person_decides() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.attach_to(0, "v", "n1").await.unwrap();
    let taken = backup(&c.nodes[1]).await;
    let refusal = decide(&c.nodes[1], &["n1"]).await;
    refused(refusal, Code::FailedPrecondition, "attached to node n1");
    c.nodes[1].detach("v").await.unwrap();
    let refusal = decide(&c.nodes[1], &["n1"]).await;
    refused(refusal, Code::FailedPrecondition, "volume v");
    let restored = restore(&c.nodes[1], &taken).await.unwrap();
    assert_eq!(
        (restored.generation, &restored.unverified[..]),
        (1, &["v".to_owned()][..])
    );
    // Where it was attached then is not put back.
    assert_eq!(c.locate(2, "v").await.state, "detached");
    let begun = |c: &Nodes| {
        let serves = |b: &Bench| !b.fake.memory().replication.coordinators.is_empty();
        c.nodes.iter().filter(|b| serves(b)).count()
    };
    assert_eq!(begun(&c), 0, "nobody was told to serve it");
    let unverified = |n: usize| c.nodes[n].fake.memory().replication.unverified;
    done(async || c.attach_to(0, "v", "n2").await).await;
    assert!(unverified(1), "it is to hear all");
    // That takeover verified the set: nothing is left to decide, and the next one is as any.
    c.nodes[1].detach("v").await.unwrap();
    let refusal = decide(&c.nodes[2], &["n3", "n2"]).await;
    refused(refusal, Code::FailedPrecondition, "volume v");
    done(async || c.attach_to(0, "v", "n3").await).await;
    assert!(!unverified(2));
    c.nodes[1].detach("v").await.unwrap();
    // Restored once more; a person knows better.
    let restored = restore(&c.nodes[1], &taken).await.unwrap();
    assert_eq!(restored.generation, 2);
    let refusal = decide(&c.nodes[2], &["n9"]).await;
    refused(refusal, Code::InvalidArgument, "n1, n2, n3");
    let decided = decide(&c.nodes[2], &["n3", "n2"]).await.unwrap();
    assert_eq!((decided.nodes.len(), decided.minimum), (2, 2));
    done(async || c.attach_to(0, "v", "n2").await).await;
    let located = c.locate(0, "v").await;
    assert_eq!(located.volume_id, id);
    let members: Vec<&str> = located
        .replicas
        .iter()
        .filter(|r| r.state == "member")
        .map(|r| r.node_id.as_str())
        .collect();
    assert_eq!(members, ["n2", "n3"]);
    let kv = Client::new(&c.nodes[0].control().kvdb).unwrap();
    let record = kv.get(format!("/test/replication/{id}")).await.unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record.unwrap().value).unwrap();
    assert_eq!(record["generation"], 2);
    assert_eq!(
        record["epoch"],
        (2 << 24) + 1,
        "the first epoch of the new generation"
    );
    c.stop().await;
}

/// The node that has no replica.
fn spare(c: &Nodes) -> usize {
    let none = |b: &Bench| b.fake.memory().replication.replicas.is_empty();
    let found = (0..c.nodes.len()).find(|n| none(&c.nodes[*n]));
    found.expect("one has none")
}

/// A replica was added since the backup: it may alone have what was acknowledged last, and no takeover by the record of then would hear it, but delete it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_more_than_a_restored_record_knows_is_in_the_way_of_an_attach() {
    let c = Nodes::start(3).await;
    c.create("v", 2).await;
    let spare = spare(&c);
    let first = (spare + 1) % 3;
    let [first_id, spare_id] = [first, spare].map(|n| format!("n{}", n + 1));
    c.attach_to(first, "v", &first_id).await.unwrap();
    let taken = backup(&c.nodes[first]).await;
    let request = UpdateReplicasRequest {
        volume: "v".into(),
        change: Some(update_replicas_request::Change::Replicas(3)),
        node: spare_id.clone(),
    };
    c.nodes[0].admin().update_replicas(request).await.unwrap();
    let here = || c.nodes[spare].fake.memory().replication.replicas.clone();
    c.until("it is added", |_| !here().is_empty()).await;
    c.nodes[first].detach("v").await.unwrap();
    restore(&c.nodes[0], &taken).await.unwrap();
    let before = here();
    let attached = c.attach_to(first, "v", &first_id).await;
    let why = format!("node {spare_id} has a replica that the restored record does not know");
    refused(attached, Code::FailedPrecondition, &why);
    assert_eq!(here(), before, "it stays");
    // A person answers for what the record knows.
    decide(&c.nodes[spare], &[&first_id]).await.unwrap();
    done(async || c.attach_to(first, "v", &first_id).await).await;
    c.stop().await;
}

/// A node that is away may have a replica that came since.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_every_node_says_what_it_has_before_a_takeover() {
    let mut c = Nodes::start(3).await;
    c.create("v", 2).await;
    let (spare, first) = (spare(&c), (spare(&c) + 1) % 3);
    let [spare_id, first_id] = [spare, first].map(|n| format!("n{}", n + 1));
    let taken = backup(&c.nodes[first]).await;
    restore(&c.nodes[first], &taken).await.unwrap();
    c.nodes[spare].stop_control().await;
    let kv = Client::new(&c.kvdb()).unwrap();
    let gone = async {
        let key = format!("/test/alive/{spare_id}");
        while kv.get(&key).await.unwrap().is_some() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    gone.expect("its lease ends");
    let attached = c.attach_to(first, "v", &first_id).await;
    let why = format!("node {spare_id}, which may have one");
    refused(attached, Code::FailedPrecondition, &why);
    c.stop().await;
}
