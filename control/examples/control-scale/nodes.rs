//! Nodes that are only simulated: each has its records, its lease, a watch of everything, and makes its replicas of volumes as a node does, in the same transactions, without a data path.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use keelblock_api::etcd::mvccpb::Event;
use keelblock_api::etcd::mvccpb::event::EventType;
use keelblock_control::kvdb::Client;
use keelblock_control::kvdb::client::{Committed, Guard, KvError, LeaseGuard, WatchEvent, Write};
use keelblock_control::membership::MemberRecord;
use keelblock_control::records::{
    AliveRecord, Keys, NodeRecord, Phase, PoolSpace, ReplicaRecord, VolumeRecord, encode, unix_ms,
};
use keelblock_control::replication::record::ReplicationRecord;
use uuid::Uuid;

/// Of each node's pool.
pub const POOL_BYTES: u64 = 16 << 40;
/// Of `alive/`, as nodes have it.
const ALIVE_TTL_S: i64 = 3;
const ZONES: usize = 5;
const RACKS: usize = 20;

/// Simulated nodes, as long as this is there.
pub struct Nodes {
    _alive: Vec<LeaseGuard>,
}

impl Nodes {
    /// Starts those from number `first` to `last`; with `watch`, each hears of every change, as nodes do.
    pub async fn start(
        kvdb: &str,
        keys: &Keys,
        (first, last): (usize, usize),
        watch: bool,
    ) -> Result<Self, KvError> {
        let mut alive = Vec::new();
        let mut ids = HashSet::new();
        for n in first..=last {
            let id = format!("node-{n}");
            let kv = Client::new(kvdb)?;
            alive.push(join(&kv, keys, n, &id).await?);
            if watch {
                let now = kv.list(keys.root()).await?;
                let mut watcher = kv.watch(keys.root(), now.revision + 1);
                tokio::spawn(async move {
                    loop {
                        watcher.next().await;
                    }
                });
            }
            ids.insert(id);
        }
        let kv = Client::new(kvdb)?;
        let makers = Makers {
            kv,
            keys: keys.clone(),
            ids,
        };
        tokio::spawn(make_replicas(Arc::new(makers)));
        Ok(Self { _alive: alive })
    }
}

async fn join(kv: &Client, keys: &Keys, n: usize, id: &str) -> Result<LeaseGuard, KvError> {
    let mut member = MemberRecord::new(id, Uuid::new_v4(), unix_ms());
    let (zone, rack) = (n % ZONES, n % RACKS);
    member.labels = [("zone", zone), ("rack", rack)]
        .map(|(label, of)| (label.to_owned(), of.to_string()))
        .into();
    let at = |port: usize| format!("127.0.0.1:{port}");
    let node = NodeRecord {
        node_id: id.into(),
        version: "simulated".into(),
        hostname: id.into(),
        nvme_address: at(20_000 + n),
        sdk_address: at(22_000 + n),
        rest_address: at(24_000 + n),
        replication_address: at(26_000 + n),
        public_key: "07".repeat(32),
        gossip_address: String::new(),
    };
    let lease = kv.hold_lease(ALIVE_TTL_S).await?;
    let says = AliveRecord {
        pid: 1,
        incarnation: Uuid::new_v4().to_string(),
        pools: vec![PoolSpace {
            pool_id: Uuid::new_v4(),
            memory: false,
            total_bytes: POOL_BYTES,
            free_bytes: POOL_BYTES,
        }],
    };
    let writes = vec![
        Write::put(keys.member(id), encode(&member)),
        Write::put(keys.node(id), encode(&node)),
        Write::Put(keys.alive(id).into_bytes(), encode(&says), lease.id()),
    ];
    kv.commit(vec![], writes).await?;
    Ok(lease)
}

struct Makers {
    kv: Client,
    keys: Keys,
    ids: HashSet<String>,
}

/// A volume that is being made.
#[derive(Default)]
struct Making {
    volume: Option<(VolumeRecord, i64)>,
    set: Option<ReplicationRecord>,
    begun: bool,
    made: HashSet<Uuid>,
}

async fn make_replicas(makers: Arc<Makers>) {
    let root = makers.keys.root().to_owned();
    let Ok(now) = makers.kv.list(&root).await else {
        return;
    };
    let mut watcher = makers.kv.watch(&root, now.revision + 1);
    let mut making = HashMap::new();
    while let WatchEvent::Changes { events, .. } = watcher.next().await {
        let touched: HashSet<Uuid> = events
            .iter()
            .filter_map(|event| take_in(&makers.keys, &mut making, event))
            .collect();
        for id in touched {
            if act(&makers, &mut making, id) {
                making.remove(&id);
            }
        }
    }
}

/// What changed, of volumes that are being made.
fn take_in(keys: &Keys, making: &mut HashMap<Uuid, Making>, event: &Event) -> Option<Uuid> {
    let kv = event.kv.as_ref()?;
    if event.r#type() != EventType::Put {
        return None;
    }
    let key = kv.key.strip_prefix(keys.root().as_bytes())?;
    let (kind, rest) = std::str::from_utf8(key).ok()?.split_once('/')?;
    match kind {
        "volumes" => {
            let record: VolumeRecord = serde_json::from_slice(&kv.value).ok()?;
            let id = record.volume_id;
            making.entry(id).or_default().volume = Some((record, kv.mod_revision));
            Some(id)
        }
        "replication" => {
            let id = Uuid::try_parse(rest).ok()?;
            making.entry(id).or_default().set = Some(serde_json::from_slice(&kv.value).ok()?);
            Some(id)
        }
        "replicas" => {
            let (id, replica) = rest.split_once('/')?;
            let (id, replica) = (Uuid::try_parse(id).ok()?, Uuid::try_parse(replica).ok()?);
            let record: ReplicaRecord = serde_json::from_slice(&kv.value).ok()?;
            if record.made {
                making.get_mut(&id)?.made.insert(replica);
            }
            Some(id)
        }
        _ => None,
    }
}

/// Does what is next for a volume; true: there is nothing more to do.
fn act(makers: &Arc<Makers>, making: &mut HashMap<Uuid, Making>, id: Uuid) -> bool {
    let Some(one) = making.get_mut(&id) else {
        return false;
    };
    let (Some((volume, revision)), Some(set)) = (&one.volume, &one.set) else {
        return false;
    };
    if volume.phase != Phase::Creating {
        return true;
    }
    let mine = set
        .replicas
        .iter()
        .filter(|r| makers.ids.contains(&r.node_id));
    if !one.begun {
        for replica in mine.clone() {
            let (makers, node) = (makers.clone(), replica.node_id.clone());
            let (replica, revision) = (replica.replica_id, *revision);
            tokio::spawn(async move {
                if let Err(error) = makers.make(id, replica, node, revision).await {
                    eprintln!("a simulated node cannot make its replica of volume {id}: {error}");
                }
            });
        }
        one.begun = true;
    }
    if !set
        .replicas
        .iter()
        .all(|r| one.made.contains(&r.replica_id))
    {
        return false;
    }
    // Each node that has one says so; the first is heard.
    for _ in mine {
        let ready = VolumeRecord {
            phase: Phase::Ready,
            ..volume.clone()
        };
        let (makers, revision) = (makers.clone(), *revision);
        tokio::spawn(async move {
            let key = makers.keys.volume(id);
            let said = makers.kv.compare_and_swap(key, revision, encode(&ready));
            if let Err(error) = said.await {
                eprintln!("a simulated node cannot say that volume {id} is ready: {error}");
            }
        });
    }
    true
}

impl Makers {
    /// As `coordination::replicas` does it.
    async fn make(
        &self,
        volume: Uuid,
        replica: Uuid,
        node_id: String,
        revision: i64,
    ) -> Result<(), KvError> {
        let key = self.keys.replica(volume, replica);
        let mut record = ReplicaRecord {
            node_id,
            made: false,
            error: String::new(),
            lost: false,
        };
        let guards = vec![
            Guard::at(self.keys.volume(volume), revision),
            Guard::absent(&key),
        ];
        let write = Write::put(&key, encode(&record));
        if self.kv.commit(guards, vec![write]).await? == Committed::No {
            return Ok(());
        }
        record.made = true;
        self.kv.put(key, encode(&record)).await.map(drop)
    }
}
