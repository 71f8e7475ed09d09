//! Watch: first all volumes and snapshots, then each that is shown otherwise (`docs/sdk.md`). All of it is from what this node sees of the KVDB.
//!
//! A task for each watcher compares what is to be looked at with what it told last, and has few messages on their way; `coordination` says what is to be looked at.
use super::Services;
use super::view::{Shown, Viewer, has_labels};
use crate::auth::{Access, Caller, OwnershipRecord};
use crate::coordination::{Kept, Look, Watcher, ending};
use crate::error::OpError;
use crate::node::{Node, check_labels};
use crate::records::{
    Phase, SnapshotRecord, TrashedRecord, VolumeRecord, snapshot_is_there, volume_is_there,
};
use keelblock_api::openstorage::open_storage_watch_server::OpenStorageWatch;
use keelblock_api::openstorage::*;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::{Request, Response, Status as Refusal};
use uuid::Uuid;

/// Messages that are made before somebody takes them.
const READY: usize = 16;
/// How long nothing may be taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ids that are looked up without letting others go on.
const AT_ONCE: usize = 64;

/// Something that is shown.
#[derive(Debug, Clone)]
enum Thing {
    Volume(Kept<VolumeRecord>),
    Snapshot(Kept<SnapshotRecord>),
}

/// What was told last of something.
#[derive(Debug)]
struct Told {
    thing: Thing,
    print: u64,
}

/// A message, and what is remembered of it.
struct News {
    id: Uuid,
    message: SdkVolumeWatchResponse,
    /// `None`: it is not told of again.
    told: Option<Told>,
}

impl Thing {
    fn shown(&self) -> Shown {
        match self {
            Self::Volume(v) => (v.record.volume_id, None),
            Self::Snapshot(s) => (s.record.volume_id, Some(s.record.snapshot_id)),
        }
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Volume(v) => &v.record.labels,
            Self::Snapshot(s) => &s.record.labels,
        }
    }

    fn ownership(&self) -> Option<&OwnershipRecord> {
        match self {
            Self::Volume(v) => v.record.ownership.as_ref(),
            Self::Snapshot(s) => s.record.ownership.as_ref(),
        }
    }

    fn print(&self, viewer: &Viewer) -> u64 {
        match self {
            Self::Volume(v) => viewer.print(v),
            Self::Snapshot(s) => viewer.print_snapshot(s),
        }
    }

    fn message(&self, viewer: &Viewer) -> SdkVolumeWatchResponse {
        message(match self {
            Self::Volume(v) => viewer.response(&v.record),
            Self::Snapshot(s) => viewer.snapshot(&s.record),
        })
    }

    /// That it is not there any more.
    fn gone(&self, viewer: &Viewer, trashed: Option<&TrashedRecord>) -> SdkVolumeWatchResponse {
        let phase = Phase::Deleting;
        let shown = match self {
            Self::Volume(v) => {
                let record = v.record.clone();
                viewer.response(&VolumeRecord { phase, ..record })
            }
            Self::Snapshot(s) => {
                let record = s.record.clone();
                viewer.snapshot(&SnapshotRecord { phase, ..record })
            }
        };
        let mut message = message(shown);
        if let Some(volume) = &mut message.volume {
            volume.in_trashcan = trashed.is_some();
        }
        message
    }
}

fn message(shown: SdkVolumeInspectResponse) -> SdkVolumeWatchResponse {
    SdkVolumeWatchResponse {
        volume: shown.volume,
        name: shown.name,
    }
}

/// One watch.
struct Watch {
    node: Arc<Node>,
    watcher: Watcher,
    labels: HashMap<String, String>,
    /// Who is told.
    caller: Caller,
    told: HashMap<Uuid, Told>,
    out: mpsc::Sender<SdkWatchResponse>,
}

/// Why a watch ends; `None`: its other end is gone.
type End = Option<OpError>;

fn behind(why: &str) -> End {
    Some(OpError::NoSpace(format!(
        "this watcher is too slow: {why}, so changes would be missed. Watch again: it begins with all that there is"
    )))
}

impl Watch {
    /// Until it has to end.
    async fn run(mut self) -> End {
        let mut link = self.node.link.clone();
        loop {
            let look = tokio::select! {
                look = self.watcher.next() => look,
                // Whether volumes of this node can be used.
                () = link.changed() => Look::All,
                () = self.out.closed() => return None,
            };
            let ids = match look {
                Look::These(ids) => ids,
                Look::All => self.all(),
                over => return end(&over),
            };
            for some in ids.chunks(AT_ONCE) {
                let news = match self.news(some) {
                    Ok(news) => news,
                    Err(error) => return Some(error),
                };
                for one in news {
                    if let Err(end) = self.tell(one).await {
                        return end;
                    }
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// What there is, and what was there when it was told.
    fn all(&self) -> Vec<Uuid> {
        let seen = self.node.coordination.seen();
        let volumes = seen.volumes().map(|v| v.record.volume_id);
        let snapshots = seen.snapshots().map(|s| s.record.snapshot_id);
        let mut all: Vec<Uuid> = volumes.chain(snapshots).collect();
        drop(seen);
        all.extend(self.told.keys());
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What is to be told of these.
    fn news(&self, ids: &[Uuid]) -> Result<Vec<News>, OpError> {
        let node = &self.node;
        let mut now: Vec<(Uuid, Option<Thing>, Option<TrashedRecord>)> = Vec::new();
        let viewer = {
            let seen = node.coordination.seen();
            readable(seen.unreadable())?;
            for id in ids {
                let volume = seen.kept_volume(*id);
                let snapshot = seen.kept_snapshot(*id);
                let snapshot = snapshot.filter(|s| snapshot_is_there(&s.record));
                let there = volume.filter(|v| volume_is_there(&v.record));
                let there = there.cloned().map(Thing::Volume);
                let thing = there.or_else(|| snapshot.cloned().map(Thing::Snapshot));
                // What may not be looked at any more is gone for this one.
                let thing = thing.filter(|t| self.caller.may(t.ownership(), Access::Read));
                let trashed = volume.and_then(|v| v.record.in_trash());
                now.push((*id, thing, trashed.cloned()));
            }
            let told = |id: &Uuid| self.told.get(id).map(|t| &t.thing);
            let things = now.iter().filter_map(|(id, t, _)| t.as_ref().or(told(id)));
            let shown: Vec<Shown> = things.map(Thing::shown).collect();
            Viewer::seen(node, &seen, &shown)
        };
        let mut news = Vec::new();
        for (id, thing, trashed) in now {
            let told = self.told.get(&id);
            let one = match (thing, told) {
                (None, None) => None,
                (None, Some(told)) => Some((told.thing.gone(&viewer, trashed.as_ref()), None)),
                (Some(thing), told) => {
                    let wanted = has_labels(thing.labels(), &self.labels);
                    let print = thing.print(&viewer);
                    let is_news = match told {
                        Some(told) => !wanted || told.print != print,
                        None => wanted,
                    };
                    is_news.then(|| {
                        let message = thing.message(&viewer);
                        (message, wanted.then_some(Told { thing, print }))
                    })
                }
            };
            news.extend(one.map(|(message, told)| News { id, message, told }));
        }
        Ok(news)
    }

    /// Tells it, and remembers that.
    async fn tell(&mut self, news: News) -> Result<(), End> {
        let message = SdkWatchResponse {
            event_type: Some(sdk_watch_response::EventType::VolumeEvent(news.message)),
        };
        give(&self.out, &self.watcher, message, PATIENCE).await?;
        match news.told {
            Some(told) => drop(self.told.insert(news.id, told)),
            None => drop(self.told.remove(&news.id)),
        }
        Ok(())
    }
}

/// Waits until there is room for a message, if that is not too long.
async fn give(
    out: &mpsc::Sender<SdkWatchResponse>,
    watcher: &Watcher,
    message: SdkWatchResponse,
    patience: Duration,
) -> Result<(), End> {
    let sent = tokio::select! {
        sent = tokio::time::timeout(patience, out.send(message)) => sent,
        over = watcher.over() => return Err(end(&over)),
    };
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(None),
        Err(_) => {
            let why = format!("it has taken nothing for {} s", patience.as_secs());
            Err(behind(&why))
        }
    }
}

fn end(over: &Look) -> End {
    match over {
        Look::Behind => behind("too many volumes have changed since it took something"),
        _ => Some(ending()),
    }
}

/// A volume that cannot be read is none for this node, which is not to be told as its end.
fn readable(unreadable: Option<String>) -> Result<(), OpError> {
    match unreadable {
        None => Ok(()),
        Some(key) => Err(OpError::Internal(format!(
            "the record {key} in the KVDB cannot be read, so it is not known what is to be told; was it written by a later version?"
        ))),
    }
}

/// The messages, and why there are no more.
pub struct Watched {
    messages: mpsc::Receiver<SdkWatchResponse>,
    end: Option<oneshot::Receiver<End>>,
}

impl Stream for Watched {
    type Item = Result<SdkWatchResponse, Refusal>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.messages.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(message)) => return Poll::Ready(Some(Ok(message))),
            Poll::Ready(None) => {}
        }
        let Some(end) = &mut self.end else {
            return Poll::Ready(None);
        };
        let why = match Pin::new(end).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(why)) => why.map(Refusal::from),
            Poll::Ready(Err(_)) => Some(Refusal::internal(
                "the watch ended with a fault of this program",
            )),
        };
        self.end = None;
        Poll::Ready(why.map(Err))
    }
}

impl Services {
    async fn watch_volumes(
        &self,
        wanted: SdkVolumeWatchRequest,
        caller: Caller,
    ) -> Result<Watched, OpError> {
        let labels: BTreeMap<String, String> = wanted.labels.into_iter().collect();
        check_labels(&labels)?;
        let node = self.node.clone();
        let watcher = node.coordination.watchers.begin()?;
        // What somebody was answered before is there, or comes soon, where revisions are not seen one by one.
        node.sees_now().await?;
        {
            let seen = node.coordination.seen();
            if !seen.complete {
                return Err(OpError::Unavailable(
                    "this node has not read the KVDB yet: watch again in a moment".into(),
                ));
            }
            readable(seen.unreadable())?;
        }
        let (out, messages) = mpsc::channel(READY);
        let (say, end) = oneshot::channel();
        let watch = Watch {
            node,
            watcher,
            labels: labels.into_iter().collect(),
            caller,
            told: HashMap::new(),
            out,
        };
        tokio::spawn(async move {
            let end = watch.run().await;
            if let Some(error) = &end {
                tracing::info!(%error, "a watch of volumes has ended");
            }
            // Who does not listen any more knows.
            let _ = say.send(end);
        });
        Ok(Watched {
            messages,
            end: Some(end),
        })
    }
}

#[tonic::async_trait]
impl OpenStorageWatch for Services {
    type WatchStream = Watched;

    async fn watch(&self, request: Request<SdkWatchRequest>) -> Result<Response<Watched>, Refusal> {
        use sdk_watch_request::EventType;
        let caller = self.caller(&request)?;
        let Some(EventType::VolumeEvent(wanted)) = request.into_inner().event_type else {
            return Err(OpError::Missing {
                field: "event_type",
                hint: "volume_event, with or without labels; other kinds of events are not supported",
            }
            .into());
        };
        let watched = self.watch_volumes(wanted, caller).await;
        Ok(Response::new(watched?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::Watchers;

    #[tokio::test]
    async fn nobody_is_waited_for_for_ever() {
        let all = Arc::new(Watchers::default());
        let watcher = all.begin().unwrap();
        let (out, mut taken) = mpsc::channel(1);
        let message = SdkWatchResponse::default;
        let said = |end: Result<(), End>| end.unwrap_err().map(|e| (e.code(), e.to_string()));
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(3600));
        assert!(give(&out, &watcher, message(), short).await.is_ok());
        let (code, why) = said(give(&out, &watcher, message(), short).await).unwrap();
        assert_eq!(code, tonic::Code::ResourceExhausted);
        assert!(why.contains("taken nothing"), "{why}");
        assert!(taken.recv().await.is_some());
        assert!(give(&out, &watcher, message(), long).await.is_ok());
        // Nor does anything else wait for one that is not taken.
        all.end();
        let (code, _) = said(give(&out, &watcher, message(), long).await).unwrap();
        assert_eq!(code, tonic::Code::Unavailable);
        drop(taken);
        let watcher = Arc::new(Watchers::default()).begin().unwrap();
        assert_eq!(said(give(&out, &watcher, message(), long).await), None);
    }
}
