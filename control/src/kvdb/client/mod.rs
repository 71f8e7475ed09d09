//! The client of the KVDB, embedded or etcd: the few calls that the control plane makes, each bounded in time.
mod call;
mod lease;
mod options;
mod watch;

pub use lease::LeaseGuard;
pub use options::Options;
pub use watch::{WatchEvent, Watcher};

use self::call::{Door, Kind, Servers};
use super::span::prefix_end;
use keelblock_api::etcd::etcdserverpb::cluster_client::ClusterClient;
use keelblock_api::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelblock_api::etcd::etcdserverpb::kv_client::KvClient;
use keelblock_api::etcd::etcdserverpb::lease_client::LeaseClient;
use keelblock_api::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use keelblock_api::etcd::etcdserverpb::request_op::Request as Op;
use keelblock_api::etcd::etcdserverpb::watch_client::WatchClient;
use keelblock_api::etcd::etcdserverpb::*;
use keelblock_api::etcd::mvccpb::KeyValue;
use std::sync::Arc;
use std::time::Duration;

/// A call that took longer has failed; whether a change happened is then unknown.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A list of everything under a prefix comes in pages of this many keys.
const PAGE_KEYS: i64 = 1000;
/// Largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// No endpoint answers.
    #[error("the KVDB at {endpoints} does not answer: {reason}")]
    Unavailable {
        /// Where it should be.
        endpoints: String,
        /// What was seen.
        reason: String,
    },
    /// The revision asked for has been compacted.
    #[error("the KVDB has compacted the revision asked for")]
    Compacted,
    /// No such lease: it expired, or was revoked.
    #[error("the KVDB has no such lease")]
    LeaseNotFound,
    /// It answered with an error.
    #[error("the KVDB refused: {0}")]
    Refused(String),
    /// Whoever this is may not do it there.
    #[error(
        "the KVDB refuses {user}: {reason}; see --etcd-user and --etcd-password-file, and that the user has a role that may read and write everything of the cluster"
    )]
    Denied {
        /// Who.
        user: String,
        /// What it said.
        reason: String,
    },
    /// An endpoint is not an address.
    #[error(
        "\"{0}\" is not the address of a KVDB: give HOST:PORT, http://HOST:PORT or https://HOST:PORT"
    )]
    Endpoint(String),
    /// What it is to be reached with cannot be.
    #[error("{0}")]
    Options(String),
}

/// An error with what caused it, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        source = cause.source();
    }
    said
}

impl KvError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A key at a revision: what was read, or 0 for "does not exist", to compare with when writing.
pub type Revision = i64;

/// One change of a transaction.
#[derive(Debug, Clone)]
pub enum Write {
    /// Sets a key, with a lease or 0.
    Put(Vec<u8>, Vec<u8>, i64),
    /// Deletes a key.
    Delete(Vec<u8>),
}

impl Write {
    /// Sets a key for good.
    pub fn put(key: impl AsRef<[u8]>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put(key.as_ref().to_vec(), value.into(), 0)
    }

    /// Deletes a key.
    pub fn delete(key: impl AsRef<[u8]>) -> Self {
        Self::Delete(key.as_ref().to_vec())
    }
}

/// A comparison that must hold for a transaction to be done.
#[derive(Debug, Clone)]
pub enum Guard {
    /// The key was last changed at this revision; 0: it does not exist.
    At(Vec<u8>, Revision),
    /// The key exists.
    Exists(Vec<u8>),
}

impl Guard {
    /// The key was last changed at this revision; 0: it does not exist.
    pub fn at(key: impl AsRef<[u8]>, revision: Revision) -> Self {
        Self::At(key.as_ref().to_vec(), revision)
    }

    /// The key does not exist.
    pub fn absent(key: impl AsRef<[u8]>) -> Self {
        Self::at(key, 0)
    }

    /// The key exists.
    pub fn exists(key: impl AsRef<[u8]>) -> Self {
        Self::Exists(key.as_ref().to_vec())
    }
}

/// The outcome of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// All of it is done, at this revision.
    Yes(Revision),
    /// A comparison did not hold; nothing was done.
    No,
}

/// Everything under a prefix, and the revision at which it was so: a watch from the next one misses nothing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// In order of their keys.
    pub kvs: Vec<KeyValue>,
    /// The store's revision.
    pub revision: Revision,
}

/// A connection to the KVDB; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    servers: Arc<Servers>,
}

fn kv(door: Door) -> KvClient<Door> {
    KvClient::new(door).max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn lease(door: Door) -> LeaseClient<Door> {
    LeaseClient::new(door)
}

fn watches(door: Door) -> WatchClient<Door> {
    WatchClient::new(door).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Client {
    /// A client of the servers at `endpoints` ("HOST:PORT" or URLs, with commas between them), without TLS and users. Connects when first used,
    /// and again whenever the connection is lost; one server is used until it does not answer, then the next.
    ///
    /// # Errors
    /// [`KvError::Endpoint`].
    pub fn new(endpoints: &str) -> Result<Self, KvError> {
        Self::with(&Options::plain(endpoints))
    }

    /// The same with all that can be said of them.
    ///
    /// # Errors
    /// [`KvError::Endpoint`], [`KvError::Options`].
    pub fn with(options: &Options) -> Result<Self, KvError> {
        let servers = Arc::new(Servers::new(options)?);
        Ok(Self { servers })
    }

    async fn read<T, F>(&self, what: &str, make: impl Fn(Door) -> F) -> Result<T, KvError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let servers = &self.servers;
        servers.call(what, Kind::Read, CALL_TIMEOUT, make).await
    }

    async fn change<T, F>(&self, what: &str, make: impl Fn(Door) -> F) -> Result<T, KvError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let servers = &self.servers;
        servers.call(what, Kind::Change, CALL_TIMEOUT, make).await
    }

    /// A key, if it exists.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<KeyValue>, KvError> {
        let request = RangeRequest {
            key: key.as_ref().to_vec(),
            ..Default::default()
        };
        Ok(self.range(request).await?.kvs.pop())
    }

    /// Any range request, as etcd has it.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, KvError> {
        let make = |door| {
            let request = request.clone();
            async move { kv(door).range(request).await }
        };
        self.read("a read", make).await
    }

    /// Everything under a prefix, at one revision.
    pub async fn list(&self, prefix: impl AsRef<[u8]>) -> Result<Listed, KvError> {
        let range_end = prefix_end(prefix.as_ref());
        let mut key = prefix.as_ref().to_vec();
        let mut listed = Listed {
            kvs: Vec::new(),
            revision: 0,
        };
        loop {
            // The pages after the first look at the store as it was then.
            let request = RangeRequest {
                key,
                range_end: range_end.clone(),
                limit: PAGE_KEYS,
                revision: listed.revision,
                ..Default::default()
            };
            let page = self.range(request).await?;
            if listed.revision == 0 {
                listed.revision = page.header.unwrap_or_default().revision;
            }
            listed.kvs.extend(page.kvs);
            match listed.kvs.last() {
                Some(last) if page.more => key = [last.key.as_slice(), &[0]].concat(),
                _ => return Ok(listed),
            }
        }
    }

    /// Sets a key, whatever it was. The revision of the change.
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Vec<u8>>,
    ) -> Result<Revision, KvError> {
        self.put_leased(key, value, 0).await
    }

    /// Sets a key that goes when its lease does.
    pub async fn put_leased(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Vec<u8>>,
        lease: i64,
    ) -> Result<Revision, KvError> {
        let request = PutRequest {
            key: key.as_ref().to_vec(),
            value: value.into(),
            lease,
            ..Default::default()
        };
        let make = |door| {
            let request = request.clone();
            async move { kv(door).put(request).await }
        };
        let response = self.change("a write", make).await?;
        Ok(response.header.unwrap_or_default().revision)
    }

    /// Deletes a key; whether there was one.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool, KvError> {
        let request = DeleteRangeRequest {
            key: key.as_ref().to_vec(),
            ..Default::default()
        };
        Ok(self.delete_range(request).await? > 0)
    }

    /// Deletes everything under a prefix; how many keys that were.
    pub async fn delete_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<i64, KvError> {
        let key = prefix.as_ref().to_vec();
        let range_end = prefix_end(&key);
        self.delete_range(DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        })
        .await
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<i64, KvError> {
        let make = |door| {
            let request = request.clone();
            async move { kv(door).delete_range(request).await }
        };
        Ok(self.change("a deletion", make).await?.deleted)
    }

    /// Does all of `writes` if all of `guards` hold, at one revision.
    pub async fn commit(
        &self,
        guards: Vec<Guard>,
        writes: Vec<Write>,
    ) -> Result<Committed, KvError> {
        let request = TxnRequest {
            compare: guards.into_iter().map(compare).collect(),
            success: writes.into_iter().map(operation).collect(),
            failure: Vec::new(),
        };
        let response = self.txn(request).await?;
        Ok(if response.succeeded {
            Committed::Yes(response.header.unwrap_or_default().revision)
        } else {
            Committed::No
        })
    }

    /// Sets a key if it still is as it was read (0: does not exist). The revision of the change.
    pub async fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        read_at: Revision,
        value: impl Into<Vec<u8>>,
    ) -> Result<Committed, KvError> {
        let key = key.as_ref();
        self.commit(vec![Guard::at(key, read_at)], vec![Write::put(key, value)])
            .await
    }

    /// Any transaction, as etcd has it.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, KvError> {
        let make = |door| {
            let request = request.clone();
            async move { kv(door).txn(request).await }
        };
        self.change("a transaction", make).await
    }

    /// Forgets history before a revision.
    pub async fn compact(&self, revision: Revision) -> Result<(), KvError> {
        let request = CompactionRequest {
            revision,
            physical: false,
        };
        let make = |door| async move { kv(door).compact(request).await };
        self.change("a compaction", make).await.map(drop)
    }

    /// The server's version, size, revision.
    pub async fn status(&self) -> Result<StatusResponse, KvError> {
        let make =
            |door| async move { MaintenanceClient::new(door).status(StatusRequest {}).await };
        self.read("its status", make).await
    }

    /// The servers of the KVDB, as the one that is asked knows them.
    pub async fn members(&self) -> Result<Vec<Member>, KvError> {
        let make = |door| async move {
            let request = MemberListRequest::default();
            ClusterClient::new(door).member_list(request).await
        };
        Ok(self.read("its members", make).await?.members)
    }

    /// Where it is, as this client was told.
    pub fn endpoints(&self) -> &str {
        &self.servers.endpoints
    }
}

fn compare(guard: Guard) -> Compare {
    let (key, result, target, operand) = match guard {
        Guard::At(key, revision) => (
            key,
            CompareResult::Equal,
            CompareTarget::Mod,
            TargetUnion::ModRevision(revision),
        ),
        Guard::Exists(key) => (
            key,
            CompareResult::Greater,
            CompareTarget::Create,
            TargetUnion::CreateRevision(0),
        ),
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key,
        target_union: Some(operand),
        range_end: Vec::new(),
    }
}

fn operation(write: Write) -> RequestOp {
    let request = match write {
        Write::Put(key, value, lease) => Op::RequestPut(PutRequest {
            key,
            value,
            lease,
            ..Default::default()
        }),
        Write::Delete(key) => Op::RequestDeleteRange(DeleteRangeRequest {
            key,
            ..Default::default()
        }),
    };
    RequestOp {
        request: Some(request),
    }
}
