//! An embedded KVDB, and a client of it whose transactions are lost or late.

use std::collections::VecDeque;
use std::sync::Mutex;

use keelblock_api::etcd::mvccpb::KeyValue;

use crate::kvdb::client::{Committed, Guard, Write};
use crate::kvdb::{Client, KvError, Server};
use crate::replication::swap::Kvdb;

/// What happens to a transaction. Of the first three its sender is told that nobody answered.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is not sent.
    Lost,
    /// It is done; the reply is lost.
    Unheard,
    /// It is on its way until [`Faulty::arrive`].
    Late,
    /// This is done before it.
    Overtaken(Write),
    /// It is done, and heard.
    Heard,
}

/// The KVDB.
pub struct Faulty {
    pub client: Client,
    fates: Mutex<VecDeque<Fate>>,
    late: Mutex<Vec<(Vec<Guard>, Vec<Write>)>>,
    server: Server,
    _folder: tempfile::TempDir,
}

impl Faulty {
    /// Whose next transactions have these fates; all others are heard.
    pub async fn start(fates: impl IntoIterator<Item = Fate>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let server = Server::start(&folder.path().join("kvdb.redb"), listener).expect("a server");
        Self {
            client: Client::new(&server.address().to_string()).expect("an address"),
            fates: Mutex::new(fates.into_iter().collect()),
            late: Mutex::default(),
            server,
            _folder: folder,
        }
    }

    /// What was late arrives: what became of each.
    pub async fn arrive(&self) -> Vec<Committed> {
        let late = std::mem::take(&mut *self.late.lock().expect("not poisoned"));
        let mut outcomes = Vec::new();
        for (guards, writes) in late {
            let done = self.client.commit(guards, writes).await;
            outcomes.push(done.expect("the server is there"));
        }
        outcomes
    }

    pub async fn stop(self) {
        self.server.stop().await;
    }
}

impl Kvdb for Faulty {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, KvError> {
        self.client.get(key).await
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Committed, KvError> {
        let fate = self.fates.lock().expect("not poisoned").pop_front();
        match fate.unwrap_or(Fate::Heard) {
            Fate::Heard => return self.client.commit(guards, writes).await,
            Fate::Overtaken(other) => {
                self.client.commit(Vec::new(), vec![other]).await?;
                return self.client.commit(guards, writes).await;
            }
            Fate::Unheard => drop(self.client.commit(guards, writes).await?),
            Fate::Late => self
                .late
                .lock()
                .expect("not poisoned")
                .push((guards, writes)),
            Fate::Lost => {}
        }
        Err(KvError::Unavailable {
            endpoints: "here".into(),
            reason: "no answer".into(),
        })
    }
}
