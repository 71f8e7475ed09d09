//! Watches of the client: one prefix each, carried over reconnects without missing or repeating a revision.
use super::call::Kind;
use super::{CALL_TIMEOUT, Client, KvError, Revision, watches};
use crate::kvdb::span::prefix_end;
use keelblock_api::etcd::etcdserverpb::watch_request::RequestUnion;
use keelblock_api::etcd::etcdserverpb::*;
use keelblock_api::etcd::mvccpb::Event;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Between attempts to reconnect.
const RETRY: Duration = Duration::from_millis(300);
/// How many of them fail before it is said, each time.
const ATTEMPTS_PER_WORD: u32 = 30;

/// What a watch reports.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// Changes, in order; the next call goes on after `revision`.
    Changes {
        /// Of whole revisions.
        events: Vec<Event>,
        /// The last of them.
        revision: Revision,
    },
    /// The watch was away for too long: what it missed has been compacted. List again, and watch from there.
    Compacted {
        /// The oldest revision that can be watched.
        compacted: Revision,
    },
}

/// A watch of everything under a prefix.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    prefix: Vec<u8>,
    next: Revision,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    responses: Streaming<WatchResponse>,
    /// The server that it comes from.
    at: usize,
    /// Held because the server ends the stream when the client's half ends.
    _requests: mpsc::Sender<WatchRequest>,
}

impl Client {
    /// Watches everything under `prefix` from revision `from` on (1 + that of a list).
    pub fn watch(&self, prefix: impl AsRef<[u8]>, from: Revision) -> Watcher {
        Watcher {
            client: self.clone(),
            prefix: prefix.as_ref().to_vec(),
            next: from,
            open: None,
        }
    }
}

impl Watcher {
    /// The next changes. Waits as long as there are none, reconnecting as often as it takes; cancel it by dropping the future,
    /// which loses nothing.
    pub async fn next(&mut self) -> WatchEvent {
        let mut failed = 0;
        loop {
            match self.attempt().await {
                Ok(Some(event)) => return event,
                Ok(None) => failed = 0,
                Err(error) => {
                    failed += 1;
                    if failed % ATTEMPTS_PER_WORD == 0 {
                        let prefix = String::from_utf8_lossy(&self.prefix);
                        tracing::warn!(%prefix, next = self.next, %error, "a watch of the KVDB still waits for a server");
                    } else {
                        tracing::debug!(%error, "kvdb: watch interrupted");
                    }
                    let servers = &self.client.servers;
                    if let Some(open) = self.open.take() {
                        servers.leave(open.at);
                    }
                    if !error.is_transient() {
                        // Perhaps the token is one that the server does not know any more: of a watch it has no word for that.
                        servers.forget_token();
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<Option<WatchEvent>, KvError> {
        if self.open.is_none() {
            self.open = Some(self.connect().await?);
        }
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        let message = open
            .responses
            .message()
            .await
            .map_err(|status| self.client.servers.error("a watch", &status))?;
        let Some(response) = message else {
            return Err(self.client.servers.unavailable("the stream ended".into()));
        };
        if response.compact_revision > 0 {
            self.open = None;
            return Ok(Some(WatchEvent::Compacted {
                compacted: response.compact_revision,
            }));
        }
        if response.canceled {
            return Err(KvError::Refused(response.cancel_reason));
        }
        let Some(last) = response
            .events
            .last()
            .and_then(|e| e.kv.as_ref())
            .map(|kv| kv.mod_revision)
        else {
            return Ok(None);
        };
        self.next = last + 1;
        Ok(Some(WatchEvent::Changes {
            events: response.events,
            revision: last,
        }))
    }

    async fn connect(&self) -> Result<Open, KvError> {
        let create = WatchCreateRequest {
            key: self.prefix.clone(),
            range_end: prefix_end(&self.prefix),
            start_revision: self.next,
            ..Default::default()
        };
        let servers = &self.client.servers;
        let make = |door| {
            let (create, at) = (create.clone(), servers.at());
            async move {
                let (requests, stream) = mpsc::channel(1);
                // The receiving end is right here.
                let _ = requests.try_send(WatchRequest {
                    request_union: Some(RequestUnion::CreateRequest(create)),
                });
                let responses = watches(door).watch(ReceiverStream::new(stream)).await?;
                Ok(responses.map(|responses| Open {
                    responses,
                    at,
                    _requests: requests,
                }))
            }
        };
        servers
            .call("the begin of a watch", Kind::Read, CALL_TIMEOUT, make)
            .await
    }
}
