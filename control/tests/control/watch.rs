//! Watch: whoever watches hears what there is, then each change, whoever makes it; one that is slow ends, and holds nobody up.
use crate::bench::{Bench, Drive, refused};
use crate::replicated::{Nodes, PATIENCE};
use keelblock_api::admin::{RestoreTrashRequest, TrashOptionsRequest};
use keelblock_api::openstorage::open_storage_watch_client::OpenStorageWatchClient;
use keelblock_api::openstorage::*;
use keelblock_control::kvdb::client::Write;
use keelblock_control::records::{Phase, VolumeRecord, encode};
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write as _};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// A watch that is open.
struct Watch(Streaming<SdkWatchResponse>);

fn request(labels: &[(&str, &str)]) -> SdkWatchRequest {
    let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    let wanted = SdkVolumeWatchRequest {
        labels: labels.collect(),
    };
    SdkWatchRequest {
        event_type: Some(sdk_watch_request::EventType::VolumeEvent(wanted)),
    }
}

impl Watch {
    async fn begin(channel: Channel, labels: &[(&str, &str)]) -> Result<Self, Status> {
        let mut client = OpenStorageWatchClient::new(channel);
        Ok(Self(client.watch(request(labels)).await?.into_inner()))
    }

    async fn of(b: &Bench, labels: &[(&str, &str)]) -> Self {
        Self::begin(b.channel(), labels).await.unwrap()
    }

    /// The next message, or how it ends.
    async fn heard(&mut self) -> Result<Volume, Status> {
        let next = tokio::time::timeout(PATIENCE, self.0.message());
        let message = next.await.expect("a message comes, or an end")?;
        let message = message.expect("it does not end without a reason");
        let Some(sdk_watch_response::EventType::VolumeEvent(event)) = message.event_type else {
            panic!("{message:?} is of no volume");
        };
        let volume = event.volume.unwrap();
        let name = &volume.locator.as_ref().unwrap().name;
        assert_eq!((name, volume.usage), (&event.name, 0));
        Ok(volume)
    }

    /// The first message that is so; those before it are of changes on the way to it.
    async fn until(&mut self, is_so: impl Fn(&Volume) -> bool) -> Volume {
        loop {
            let heard = self.heard().await.unwrap();
            if is_so(&heard) {
                return heard;
            }
        }
    }

    async fn until_state(&mut self, name: &str, state: VolumeState) -> Volume {
        self.until(|v| name_of(v) == name && v.state() == state)
            .await
    }
}

fn name_of(volume: &Volume) -> &str {
    &volume.locator.as_ref().unwrap().name
}

#[tokio::test(flavor = "multi_thread")]
async fn first_comes_what_there_is_then_each_change_and_an_end() {
    use VolumeState::{Attached, Deleted, Detached};
    let mut b = Bench::new(Drive::File).await;
    b.create("one", MIB).await;
    b.create("two", MIB).await;
    b.snapshot("two", "snap").await.unwrap();
    let mut watch = Watch::of(&b, &[]).await;
    let mut first = Vec::new();
    for _ in 0..3 {
        let v = watch.heard().await.unwrap();
        assert_eq!(v.readonly, name_of(&v) == "snap");
        first.push((name_of(&v).to_owned(), v.state()));
    }
    first.sort();
    let detached = |name: &str| (name.to_owned(), Detached);
    assert_eq!(first, ["one", "snap", "two"].map(detached));
    let id = b.create("three", MIB).await;
    let made = watch.until_state("three", Detached).await;
    assert_eq!(made.id, id);
    b.attach("three").await;
    let attached = watch.until_state("three", Attached).await;
    assert_eq!(attached.attached_on, "node-1");
    assert_eq!(attached.attach_info["nsid"], "1");
    b.update("three", &[("a", "b")], Some(2 * MIB))
        .await
        .unwrap();
    let is_new = |v: &Volume| {
        let labels = &v.locator.as_ref().unwrap().volume_labels;
        labels.get("a").is_some() && v.spec.as_ref().unwrap().size == 2 * MIB
    };
    watch.until(is_new).await;
    // Whether it can be used.
    b.fake.kill();
    b.down().await;
    let down = |v: &Volume| name_of(v) == "three" && v.status() == VolumeStatus::Down;
    watch.until(down).await;
    b.fake.restart();
    b.ready().await;
    let up = |v: &Volume| name_of(v) == "three" && v.status() == VolumeStatus::Up;
    watch.until(up).await;
    b.detach("three").await.unwrap();
    watch.until_state("three", Detached).await;
    b.delete("snap").await.unwrap();
    assert!(watch.until_state("snap", Deleted).await.readonly);
    b.delete("three").await.unwrap();
    let gone = watch.until_state("three", Deleted).await;
    assert_eq!(
        (gone.id.as_str(), gone.in_trashcan, is_new(&gone)),
        (id.as_str(), false, true),
        "it is what it was last"
    );
    // In the trashcan it is no volume, and comes back as one.
    let keep = TrashOptionsRequest {
        keep_minutes: Some(5),
    };
    b.admin().trash_options(keep).await.unwrap();
    b.delete("one").await.unwrap();
    assert!(watch.until_state("one", Deleted).await.in_trashcan);
    let restore = RestoreTrashRequest {
        volume: "one".into(),
        ..Default::default()
    };
    b.admin().restore_trash(restore).await.unwrap();
    assert!(!watch.until_state("one", Detached).await.in_trashcan);
    // The process ends, and says so.
    b.stop_control().await;
    let end = loop {
        match watch.heard().await {
            Ok(_) => {}
            end => break end,
        }
    };
    refused(end, Code::Unavailable, "watch again");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_has_the_labels_comes_and_that_it_has_them_no_more() {
    let b = Bench::new(Drive::File).await;
    for name in ["other", "mine", "later"] {
        b.create(name, MIB).await;
    }
    let ours = [("team", "a"), ("tier", "x")];
    b.update("mine", &ours, None).await.unwrap();
    b.update("other", &ours[..1], None).await.unwrap();
    let mut watch = Watch::of(&b, &ours).await;
    let first = watch.heard().await.unwrap();
    assert_eq!(name_of(&first), "mine");
    b.attach("other").await;
    b.update("later", &ours, None).await.unwrap();
    assert_eq!(name_of(&watch.heard().await.unwrap()), "later");
    b.update("mine", &[("tier", "y")], None).await.unwrap();
    let last = watch.heard().await.unwrap();
    let labels = &last.locator.as_ref().unwrap().volume_labels;
    assert_eq!((name_of(&last), labels["tier"].as_str()), ("mine", "y"));
    b.delete("mine").await.unwrap();
    b.delete("later").await.unwrap();
    let gone = watch.heard().await.unwrap();
    assert_eq!(
        (name_of(&gone), gone.state()),
        ("later", VolumeState::Deleted),
        "nothing of one that has them no more"
    );
    let mut client = OpenStorageWatchClient::new(b.channel());
    let nothing = client.watch(SdkWatchRequest::default()).await;
    refused(nothing, Code::InvalidArgument, "event_type");
    let unnamed = Watch::begin(b.channel(), &[("", "x")]).await;
    refused(unnamed.map(|_| ()), Code::InvalidArgument, "labels");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lives_is_news_of_volumes_and_what_cannot_be_read_is_no_end_of_one() {
    let c = Nodes::start(2).await;
    let id = c.create("v", 2).await;
    c.nodes[1].create("single", MIB).await;
    let mut watch = Watch::of(&c.nodes[0], &[]).await;
    let up = |v: &Volume| v.id == id && v.status() == VolumeStatus::Up;
    let shown = watch.until(up).await;
    assert_eq!(shown.replica_sets[0].nodes.len(), 2);
    let registry = &c.nodes[0].control().node.registry;
    let key = registry.keys().alive("n2");
    registry.kv().delete(&key).await.unwrap();
    let away = |v: &Volume| v.id == id && v.status() != VolumeStatus::Up;
    watch.until(away).await;
    // A node tells what another one did.
    c.nodes[1]
        .update("single", &[("a", "b")], None)
        .await
        .unwrap();
    let labelled = |v: &Volume| {
        let labels = &v.locator.as_ref().unwrap().volume_labels;
        name_of(v) == "single" && labels.get("a").is_some()
    };
    let single = watch.until(labelled).await;
    let key = registry.keys().volume(single.id.parse().unwrap());
    registry.kv().put(&key, "{}").await.unwrap();
    let end = loop {
        match watch.heard().await {
            Ok(heard) => assert_ne!(heard.state(), VolumeState::Deleted),
            end => break end,
        }
    };
    refused(end, Code::Internal, &key);
    let again = Watch::begin(c.nodes[0].channel(), &[]).await;
    refused(again.map(|_| ()), Code::Internal, &key);
    c.stop().await;
}

/// Labels of such a size are not taken from users; here they fill what lies between two ends of a connection.
const LARGE: usize = 64 << 10;

/// Many at once, as no user makes them: their names.
async fn put_many(b: &Bench, one: &VolumeRecord, numbers: std::ops::Range<u128>, size: usize) {
    let registry = &b.control().node.registry;
    let numbers: Vec<u128> = numbers.collect();
    for some in numbers.chunks(16) {
        let write = |n: &u128| {
            let labels: BTreeMap<String, String> = [("l".into(), "x".repeat(size))].into();
            let record = VolumeRecord {
                volume_id: Uuid::from_u128(*n),
                name: format!("many-{n}"),
                phase: Phase::Ready,
                labels,
                ..one.clone()
            };
            Write::put(registry.keys().volume(record.volume_id), encode(&record))
        };
        let writes = some.iter().map(write).collect();
        registry.kv().commit(Vec::new(), writes).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_listen_ends_and_the_others_hear_everything() {
    let b = Bench::new(Drive::File).await;
    b.create("one", MIB).await;
    let one = b.control().node.registry.volumes().await.unwrap().remove(0);
    let small = Endpoint::from_shared(format!("http://{}", b.control().sdk))
        .unwrap()
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .connect_lazy();
    let mut slow = Watch::begin(small, &[]).await.unwrap();
    let mut quick = Watch::of(&b, &[]).await;
    let mut left: HashSet<String> = HashSet::from([one.volume_id.to_string()]);
    // More than is on the way to it, then more than may wait for it; the quick one hears each part before the next is written.
    let parts = [(0..64, LARGE)].into_iter();
    let parts = parts.chain((1..=20).map(|n| (n * 64..(n + 1) * 64, 1)));
    for (numbers, size) in parts {
        left.extend(numbers.clone().map(|n| Uuid::from_u128(n).to_string()));
        put_many(&b, &one, numbers, size).await;
        while !left.is_empty() {
            left.remove(&quick.heard().await.unwrap().id);
        }
    }
    let mut told = 0;
    let end = loop {
        match slow.heard().await {
            Ok(_) => told += 1,
            end => break end,
        }
    };
    refused(end, Code::ResourceExhausted, "too slow");
    assert!((1..64).contains(&told), "{told} of 1345 were on the way");
    // It began once more than there may be at a time.
    let mut all = Vec::new();
    let full = loop {
        match Watch::begin(b.channel(), &[("no", "such")]).await {
            Ok(watch) => all.push(watch),
            Err(full) => break full,
        }
        assert!(all.len() < 64, "the quick one is one, too");
    };
    refused(Err::<(), _>(full), Code::ResourceExhausted, "64 watches");
    assert_eq!(all.len(), 63);
    drop(all);
    let again = async { while Watch::begin(b.channel(), &[]).await.is_err() {} };
    let again = tokio::time::timeout(PATIENCE, again).await;
    assert!(again.is_ok(), "those that end make room");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_rest_each_message_is_a_line_and_so_is_the_end() {
    let mut b = Bench::new(Drive::File).await;
    b.create("v", MIB).await;
    let rest = b.control().rest;
    let (said, mut lines) = tokio::sync::mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(rest).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = r#"{"volume_event":{}}"#;
        let length = body.len();
        write!(stream, "POST /v1/watch HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if line.starts_with('{') && said.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let mut next = async |has: &str| {
        let wait = async {
            loop {
                let line = lines.recv().await.expect("it does not end without a word");
                if line.contains(has) {
                    return serde_json::from_str::<serde_json::Value>(&line).unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap()
    };
    let first = next("volume_event").await;
    let event = &first["result"]["volume_event"];
    assert_eq!(event["name"], "v");
    assert_eq!(event["volume"]["state"], "VOLUME_STATE_DETACHED");
    b.attach("v").await;
    next("VOLUME_STATE_ATTACHED").await;
    b.stop_control().await;
    assert_eq!(next("error").await["error"]["code"], 14);
}
