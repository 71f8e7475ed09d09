//! Watches: one task per stream, many watches on it. There are no queues of events: a watch remembers the next revision
//! that it wants, and takes it from the newest changes when the store has got there, or, if it is behind those, reads it from
//! the log of the file. One whose next revision has been compacted away is cancelled, and told so.
use super::error::StoreError;
use super::server::{Shared, stopped};
use super::span::Span;
use super::store::{Changes, Filter, Snapshot};
use keelblock_api::etcd::etcdserverpb::watch_create_request::FilterType;
use keelblock_api::etcd::etcdserverpb::watch_request::RequestUnion;
use keelblock_api::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use keelblock_api::etcd::mvccpb::Event;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Log entries read for one watch at a time; it may be exceeded to finish a revision.
const ENTRIES_MAX: usize = 1000;
/// Responses that may wait for a slow client before the stream's task waits too.
pub const RESPONSES: usize = 16;
/// Watches on one stream.
const WATCHES_MAX: usize = 4096;
/// Bytes of events after which a response is split, for watches that asked for fragments.
const FRAGMENT_BYTES: usize = 1 << 20;
/// How often an idle watch that asked for progress is told the revision.
const PROGRESS: Duration = Duration::from_secs(60);

type Out = mpsc::Sender<Result<WatchResponse, Status>>;
/// The client is gone: the stream's task ends.
struct Gone;

struct Watch {
    filter: Filter,
    /// First revision that it has not been told.
    next: u64,
    progress: bool,
    fragment: bool,
}

/// One stream's watches.
pub struct Stream {
    shared: Arc<Shared>,
    out: Out,
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
}

impl Stream {
    /// Serves a stream until either side ends it.
    pub async fn serve(shared: Arc<Shared>, mut requests: Streaming<WatchRequest>, out: Out) {
        let mut revision = shared.engine.revision();
        let mut stop = shared.stop.clone();
        let mut progress = tokio::time::interval(PROGRESS);
        let mut stream = Self {
            shared,
            out,
            watches: BTreeMap::new(),
            next_id: 0,
        };
        loop {
            let current = *revision.borrow_and_update();
            let behind = stream.watches.values().any(|w| w.next <= current);
            let went_on = tokio::select! {
                biased;
                request = requests.message() => match request {
                    Ok(Some(request)) => stream.request(request, current).await,
                    Ok(None) | Err(_) => Err(Gone),
                },
                () = stopped(&mut stop) => Err(Gone),
                () = std::future::ready(()), if behind => stream.catch_up(current).await,
                changed = revision.changed() => changed.map_err(|_| Gone),
                _ = progress.tick() => stream.report_progress(current).await,
            };
            if went_on.is_err() {
                return;
            }
        }
    }

    async fn send(&self, revision: u64, response: WatchResponse) -> Result<(), Gone> {
        let response = WatchResponse {
            header: Some(self.shared.header(revision)),
            ..response
        };
        self.out.send(Ok(response)).await.map_err(|_| Gone)
    }

    async fn request(&mut self, request: WatchRequest, current: u64) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create, current).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                if self.watches.remove(&cancel.watch_id).is_none() {
                    return Ok(());
                }
                let canceled = WatchResponse {
                    watch_id: cancel.watch_id,
                    canceled: true,
                    ..Default::default()
                };
                self.send(current, canceled).await
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                // True of every watch of the stream only once all of them have got there.
                while self.watches.values().any(|w| w.next <= current) {
                    self.catch_up(current).await?;
                }
                self.send(
                    current,
                    WatchResponse {
                        watch_id: -1,
                        ..Default::default()
                    },
                )
                .await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, create: WatchCreateRequest, current: u64) -> Result<(), Gone> {
        let refused = |reason: &str| WatchResponse {
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: reason.into(),
            ..Default::default()
        };
        // etcd reads an empty key as the first key that there can be.
        let key = if create.key.is_empty() {
            vec![0]
        } else {
            create.key.clone()
        };
        let span = match Span::new(&key, &create.range_end) {
            Ok(span) if !span.is_empty() => span,
            _ => {
                return self
                    .send(current, refused("etcdserver: the watch's range is empty"))
                    .await;
            }
        };
        if self.watches.contains_key(&create.watch_id) && create.watch_id != 0 {
            return self
                .send(
                    current,
                    refused("etcdserver: mvcc: duplicate watch ID provided on the WatchStream"),
                )
                .await;
        }
        if self.watches.len() >= WATCHES_MAX {
            return self
                .send(
                    current,
                    refused("etcdserver: too many watches on this stream"),
                )
                .await;
        }
        let watch_id = if create.watch_id != 0 {
            create.watch_id
        } else {
            self.free_id()
        };
        let next = u64::try_from(create.start_revision)
            .ok()
            .filter(|r| *r > 0)
            .unwrap_or(current + 1);
        let filters = |f: FilterType| create.filters.contains(&i32::from(f));
        let filter = Filter {
            span,
            puts: !filters(FilterType::Noput),
            deletions: !filters(FilterType::Nodelete),
            prev_kv: create.prev_kv,
        };
        let watch = Watch {
            filter,
            next,
            progress: create.progress_notify,
            fragment: create.fragment,
        };
        self.watches.insert(watch_id, watch);
        self.send(
            current,
            WatchResponse {
                watch_id,
                created: true,
                ..Default::default()
            },
        )
        .await
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// One step of every watch that is behind.
    async fn catch_up(&mut self, current: u64) -> Result<(), Gone> {
        let behind: Vec<i64> = self
            .watches
            .iter()
            .filter(|(_, w)| w.next <= current)
            .map(|(id, _)| *id)
            .collect();
        for id in behind {
            self.step(id).await?;
        }
        Ok(())
    }

    async fn step(&mut self, watch_id: i64) -> Result<(), Gone> {
        let Some(watch) = self.watches.get(&watch_id) else {
            return Ok(());
        };
        let (from, filter, fragment) = (watch.next, watch.filter.clone(), watch.fragment);
        let recent = self.shared.engine.recent();
        let read = match recent.changes(from, &filter, ENTRIES_MAX) {
            Some(changes) => Ok(changes),
            None => {
                let older = move |s: &Snapshot| s.changes(from, &filter, ENTRIES_MAX);
                self.shared.read(older).await
            }
        };
        let Changes { events, through } = match read {
            Ok(changes) => changes,
            Err(error) => return self.cancel(watch_id, &error).await,
        };
        if let Some(watch) = self.watches.get_mut(&watch_id) {
            watch.next = watch.next.max(through + 1);
        }
        if events.is_empty() {
            return Ok(());
        }
        let mut parts = if fragment {
            split(events)
        } else {
            vec![events]
        };
        let last = parts.pop().unwrap_or_default();
        for events in parts {
            self.send(
                through,
                WatchResponse {
                    watch_id,
                    events,
                    fragment: true,
                    ..Default::default()
                },
            )
            .await?;
        }
        self.send(
            through,
            WatchResponse {
                watch_id,
                events: last,
                ..Default::default()
            },
        )
        .await
    }

    async fn cancel(&mut self, watch_id: i64, error: &StoreError) -> Result<(), Gone> {
        self.watches.remove(&watch_id);
        let compacted = if let StoreError::Compacted { compacted } = error {
            *compacted
        } else {
            0
        };
        let current = *self.shared.engine.revision().borrow();
        let canceled = WatchResponse {
            watch_id,
            canceled: true,
            compact_revision: compacted as i64,
            cancel_reason: error.to_string(),
            ..Default::default()
        };
        self.send(current, canceled).await
    }

    async fn report_progress(&mut self, current: u64) -> Result<(), Gone> {
        let idle: Vec<i64> = self
            .watches
            .iter()
            .filter(|(_, w)| w.progress && w.next > current)
            .map(|(id, _)| *id)
            .collect();
        for watch_id in idle {
            self.send(
                current,
                WatchResponse {
                    watch_id,
                    ..Default::default()
                },
            )
            .await?;
        }
        Ok(())
    }
}

/// Splits events into parts of about [`FRAGMENT_BYTES`].
fn split(events: Vec<Event>) -> Vec<Vec<Event>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for event in events {
        let more = event.encoded_len();
        if bytes > 0 && bytes + more > FRAGMENT_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        parts.last_mut().expect("at least one part").push(event);
    }
    parts
}
