//! Watches: order, history, compaction, many on a stream.
use crate::backend::Backend;
use crate::kv::put;
use keelblock_api::etcd::etcdserverpb::watch_client::WatchClient;
use keelblock_api::etcd::etcdserverpb::watch_create_request::FilterType;
use keelblock_api::etcd::etcdserverpb::watch_request::RequestUnion;
use keelblock_api::etcd::etcdserverpb::*;
use keelblock_api::etcd::mvccpb::Event;
use keelblock_api::etcd::mvccpb::event::EventType;
use keelblock_control::kvdb::client::{WatchEvent, Watcher, Write};
use keelblock_control::kvdb::span::prefix_end;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Longer than any of these take, so that a watch that hangs fails its test.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn next(watcher: &mut Watcher) -> WatchEvent {
    tokio::time::timeout(PATIENCE, watcher.next())
        .await
        .expect("the watch reports something")
}

/// The next changes, at least `count`.
async fn changes(watcher: &mut Watcher, count: usize) -> Vec<Event> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(watcher).await {
            WatchEvent::Changes { events, .. } => all.extend(events),
            other => panic!("expected changes, got {other:?}"),
        }
    }
    all
}

fn describe(b: &Backend, event: &Event) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kv = event.kv.clone().unwrap_or_default();
    let before = event
        .prev_kv
        .as_ref()
        .map_or(String::new(), |kv| format!(" was {}", text(&kv.value)));
    let key = text(&kv.key).replace(&b.key(""), "");
    match event.r#type() {
        EventType::Put => format!("{key}={}{before}", text(&kv.value)),
        EventType::Delete => format!("{key} deleted,{before}"),
    }
}

pub async fn changes_arrive_in_order_with_what_was_before(b: &Backend) {
    let from = b.client.list(b.key("")).await.unwrap().revision + 1;
    let mut watcher = b.client.watch(b.key(""), from);
    let mut request = create(b.key(""), 1);
    request.prev_kv = true;
    let mut raw = Raw::open(b, request).await;
    assert!(raw.receive().await.created);
    b.client.put(b.key("a"), "1").await.unwrap();
    b.client.put(b.key("a"), "2").await.unwrap();
    b.client.put("/somewhere-else", "x").await.unwrap();
    b.client
        .commit(
            vec![],
            vec![Write::put(b.key("b"), "1"), Write::delete(b.key("a"))],
        )
        .await
        .unwrap();
    let seen: Vec<String> = changes(&mut watcher, 4)
        .await
        .iter()
        .map(|e| describe(b, e))
        .collect();
    assert_eq!(seen, ["a=1", "a=2", "b=1", "a deleted,"]);
    let mut with_before = Vec::new();
    while with_before.len() < 4 {
        let events = raw.receive().await.events;
        with_before.extend(events.iter().map(|e| describe(b, e)));
    }
    assert_eq!(with_before, ["a=1", "a=2 was 1", "b=1", "a deleted, was 2"]);
}

pub async fn a_watch_from_the_past_catches_up(b: &Backend) {
    let first = b.client.put(b.key("a"), "1").await.unwrap();
    b.client.put(b.key("a"), "2").await.unwrap();
    let mut watcher = b.client.watch(b.key(""), first);
    let seen = changes(&mut watcher, 2).await;
    assert_eq!(
        seen.iter().map(|e| describe(b, e)).collect::<Vec<_>>(),
        ["a=1", "a=2"]
    );
    b.client.put(b.key("a"), "3").await.unwrap();
    assert_eq!(describe(b, &changes(&mut watcher, 1).await[0]), "a=3");
}

pub async fn a_compacted_watch_says_so_and_a_new_list_goes_on(b: &Backend) {
    let first = b.client.put(b.key("a"), "1").await.unwrap();
    b.client.put(b.key("a"), "2").await.unwrap();
    let third = b.client.put(b.key("a"), "3").await.unwrap();
    b.client.compact(third).await.unwrap();
    let mut watcher = b.client.watch(b.key(""), first);
    match next(&mut watcher).await {
        WatchEvent::Compacted { compacted } => assert_eq!(compacted, third),
        other => panic!("{other:?}"),
    }
    let listed = b.client.list(b.key("")).await.unwrap();
    let mut watcher = b.client.watch(b.key(""), listed.revision + 1);
    b.client.put(b.key("a"), "4").await.unwrap();
    let seen = changes(&mut watcher, 1).await;
    assert_eq!(seen[0].kv.as_ref().unwrap().value, b"4");
    // The compacted revision itself can still be watched.
    let mut watcher = b.client.watch(b.key(""), third);
    assert_eq!(
        changes(&mut watcher, 2).await[0].kv.as_ref().unwrap().value,
        b"3"
    );
}

/// A stream of watches, spoken to by hand.
struct Raw {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Raw {
    async fn open(b: &Backend, first: WatchCreateRequest) -> Self {
        let (requests, stream) = mpsc::channel(16);
        requests
            .send(WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(first)),
            })
            .await
            .unwrap();
        let responses = WatchClient::new(b.channel())
            .watch(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            responses,
        }
    }

    async fn send(&self, request: RequestUnion) {
        self.requests
            .send(WatchRequest {
                request_union: Some(request),
            })
            .await
            .unwrap();
    }

    async fn receive(&mut self) -> WatchResponse {
        tokio::time::timeout(PATIENCE, self.responses.message())
            .await
            .expect("an answer")
            .unwrap()
            .expect("no end of the stream")
    }
}

fn create(key: String, watch_id: i64) -> WatchCreateRequest {
    let key = key.into_bytes();
    WatchCreateRequest {
        range_end: prefix_end(&key),
        key,
        watch_id,
        ..Default::default()
    }
}

pub async fn many_watches_share_a_stream(b: &Backend) {
    let mut raw = Raw::open(b, create(b.key("a"), 11)).await;
    raw.send(RequestUnion::CreateRequest(create(b.key(""), 12)))
        .await;
    for id in [11, 12] {
        let response = raw.receive().await;
        assert!(
            response.created && !response.canceled && response.watch_id == id,
            "{response:?}"
        );
    }
    raw.send(RequestUnion::CreateRequest(create(b.key("b"), 11)))
        .await;
    let refused = raw.receive().await;
    assert!(
        refused.canceled && refused.cancel_reason.contains("duplicate"),
        "{refused:?}"
    );
    b.client.put(b.key("a"), "1").await.unwrap();
    b.client.put(b.key("b"), "1").await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = raw.receive().await;
        seen.extend(
            response
                .events
                .iter()
                .map(|e| (response.watch_id, describe(b, e))),
        );
    }
    seen.sort();
    let put = |id: i64, what: &str| (id, format!("{what}=1"));
    assert_eq!(seen, [put(11, "a"), put(12, "a"), put(12, "b")]);
}

pub async fn filters_progress_and_cancel(b: &Backend) {
    let mut request = create(b.key(""), 5);
    request.filters = vec![FilterType::Noput.into()];
    let mut raw = Raw::open(b, request).await;
    assert!(raw.receive().await.created);
    b.client.put(b.key("a"), "1").await.unwrap();
    b.client.delete(b.key("a")).await.unwrap();
    let response = raw.receive().await;
    assert_eq!(response.events.len(), 1);
    assert_eq!(response.events[0].r#type(), EventType::Delete);
    assert!(response.events[0].prev_kv.is_none(), "it was not asked for");
    let revision = b.client.put(b.key("a"), "1").await.unwrap();
    // etcd is known to forget a progress request that comes while watches are catching up, so ask until it is answered.
    let progress = loop {
        raw.send(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            .await;
        if let Ok(Ok(Some(response))) =
            tokio::time::timeout(Duration::from_secs(1), raw.responses.message()).await
        {
            break response;
        }
    };
    assert_eq!(progress.watch_id, -1);
    assert!(progress.events.is_empty() && progress.header.unwrap().revision >= revision);
    raw.send(RequestUnion::CancelRequest(WatchCancelRequest {
        watch_id: 5,
    }))
    .await;
    let canceled = loop {
        let response = raw.receive().await;
        if response.canceled {
            break response;
        }
    };
    assert_eq!((canceled.watch_id, canceled.compact_revision), (5, 0));
}

pub async fn a_watcher_that_is_far_behind_gets_everything(b: &Backend) {
    const BATCHES: usize = 30;
    const KEYS: usize = 100;
    let from = b.client.put(b.key("first"), "").await.unwrap() + 1;
    for batch in 0..BATCHES {
        let ops = (0..KEYS)
            .map(|i| put(&b.key(&format!("{i:03}")), &format!("{batch}")))
            .collect();
        b.client
            .txn(TxnRequest {
                success: ops,
                ..Default::default()
            })
            .await
            .unwrap();
    }
    let mut watcher = b.client.watch(b.key(""), from);
    let mut seen = Vec::new();
    while seen.len() < BATCHES * KEYS {
        match next(&mut watcher).await {
            WatchEvent::Changes { events, .. } => {
                let last = events.last().unwrap().kv.as_ref().unwrap().mod_revision;
                let of_last = events
                    .iter()
                    .filter(|e| e.kv.as_ref().unwrap().mod_revision == last)
                    .count();
                assert_eq!(of_last, KEYS, "a revision comes whole");
                seen.extend(events);
            }
            other => panic!("{other:?}"),
        }
    }
    for (i, event) in seen.iter().enumerate() {
        assert_eq!(
            event.kv.as_ref().unwrap().value,
            (i / KEYS).to_string().as_bytes()
        );
    }
}
