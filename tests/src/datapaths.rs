//! Data paths of several nodes with one replicated volume, and no control process: the test commands them, and is their KVDB.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keelblock_api::datapath as proto;
use keelblock_api::datapath::datapath_client::DatapathClient;
use keelblock_api::datapath::event::What;
use proto::answer_set_change_request::Outcome;
use proto::set_change::Change;
use proto::{CoordinatorState, ReplicaRole};
use rand::Rng;
use rand::rngs::SmallRng;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::cluster::PATIENCE;
use crate::programs::program;
use crate::recorder::Recorder;
use crate::workload::Target;

/// The volume.
pub const VOLUME: &str = "11111111-2222-4333-8444-555555555555";
const CLUSTER: &str = "datapaths";
const NQN: &str = "nqn.2024-01.io.keelblock:datapaths:volume";
const DRIVE_BYTES: u64 = 512 << 20;

/// A node's data path.
struct Node {
    name: String,
    child: Option<Child>,
    client: Option<DatapathClient<Channel>>,
    hello: proto::HelloReply,
}

/// See the module's text. Dropped, all processes end.
pub struct DataPaths {
    dir: TempDir,
    runtime: Runtime,
    nodes: Vec<Node>,
    record: Arc<Mutex<proto::SetRecord>>,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// What hosts are told, and when writes are acknowledged.
    pub volatile_cache: bool,
    /// Of the namespace.
    pub lba_bytes: u32,
    keys: Option<proto::DataKeys>,
    /// What passes between nodes, by whom it was sent to, if that is recorded.
    pub recorders: Vec<Recorder>,
    random: SmallRng,
}

/// What a volume need not have.
#[derive(Default)]
pub struct Extra {
    /// It is encrypted.
    pub keys: Option<proto::DataKeys>,
    /// What passes between nodes is recorded.
    pub recorded: bool,
}

fn uuid(of: usize) -> String {
    format!("00000000-0000-4000-8000-{of:012}")
}

impl DataPaths {
    /// Starts so many, each with a replica of a volume of that size.
    ///
    /// # Panics
    /// If they do not.
    pub fn start(count: usize, size_bytes: u64, random: SmallRng) -> Self {
        Self::start_with(count, size_bytes, Extra::default(), random)
    }

    /// The same with what a volume need not have.
    ///
    /// # Panics
    /// As [`DataPaths::start`].
    pub fn start_with(count: usize, size_bytes: u64, extra: Extra, random: SmallRng) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let replicas = (0..count).map(|n| proto::SetReplica {
            replica_id: uuid(n),
            node_id: format!("node-{n}"),
            role: ReplicaRole::ReplicaMember.into(),
        });
        let record = proto::SetRecord {
            version: 1,
            epoch: 1 << 24,
            incarnation: vec![0; 16],
            attempt: vec![0; 16],
            serving: false,
            minimum: if count > 2 { 2 } else { 1 },
            replicas: replicas.collect(),
        };
        let mut all = Self {
            dir: TempDir::new().expect("a directory"),
            runtime,
            nodes: Vec::new(),
            record: Arc::new(Mutex::new(record)),
            size_bytes,
            volatile_cache: true,
            lba_bytes: 4096,
            keys: extra.keys,
            recorders: match extra.recorded {
                true => (0..count).map(|_| Recorder::new()).collect(),
                false => Vec::new(),
            },
            random,
        };
        for n in 0..count {
            all.nodes.push(Node {
                name: format!("node-{n}"),
                child: None,
                client: None,
                hello: proto::HelloReply::default(),
            });
            all.begin(n);
        }
        for n in 0..count {
            let lanes = all.lanes();
            let request = proto::CreateReplicaRequest {
                volume_id: VOLUME.into(),
                replica_id: uuid(n),
                pool_id: format!("pool-{n}"),
                size_bytes,
                lanes,
                encrypted: all.keys.is_some(),
                source: None,
            };
            all.call(n, |mut c| async move { c.create_replica(request).await });
        }
        all
    }

    fn lanes(&self) -> u32 {
        if self.size_bytes < 1 << 30 { 1 } else { 16 }
    }

    /// A file of a node.
    pub fn path(&self, node: usize, what: &str) -> PathBuf {
        self.dir.path().join(format!("{node}.{what}"))
    }

    /// Starts a node's data path, and tells all of it.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn begin(&mut self, node: usize) {
        let socket = self.path(node, "sock");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(node, "log"))
            .expect("a log");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let child = Command::new(program("keelblock-datapath"))
            .arg("--socket")
            .arg(&socket)
            .args(["--listen", "127.0.0.1:0", "--replication", "127.0.0.1:0"])
            .arg("--identity")
            .arg(self.path(node, "key"))
            .args(["--cpus", &(node % cores).to_string()])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the data path starts");
        let (channel, _) = self
            .runtime
            .block_on(async { keelblock_api::channel::connect(&socket) });
        let client = DatapathClient::new(channel);
        let hello = proto::HelloRequest {
            cluster_id: CLUSTER.into(),
            node_id: format!("node-{node}"),
        };
        let greeted = until(|| {
            let (mut client, hello) = (client.clone(), hello.clone());
            self.runtime
                .block_on(async move { client.hello(hello).await })
                .ok()
        });
        self.nodes[node].hello = greeted.into_inner();
        if let Some(recorder) = self.recorders.get(node) {
            let hello = &mut self.nodes[node].hello;
            recorder.set_upstream(hello.replication_address.parse().expect("an address"));
            hello.replication_address = recorder.address.to_string();
        }
        self.nodes[node].child = Some(child);
        self.nodes[node].client = Some(client);
        let drive = proto::DriveSpec {
            drive_id: format!("drive-{node}"),
            path: self.path(node, "drive").display().to_string(),
            size_bytes: DRIVE_BYTES,
        };
        let open = proto::OpenPoolRequest {
            pool_id: format!("pool-{node}"),
            drives: vec![drive],
            format: true,
            allow_missing: false,
        };
        self.call(node, |mut c| async move { c.open_pool(open).await });
        self.watch(node);
        self.tell_nodes();
    }

    /// All that run are told of all.
    fn tell_nodes(&self) {
        let running = self.nodes.iter().filter(|n| n.client.is_some());
        let nodes: Vec<_> = running
            .map(|n| proto::ClusterNode {
                node_id: n.name.clone(),
                address: n.hello.replication_address.clone(),
                public_key: n.hello.public_key.clone(),
            })
            .collect();
        for n in (0..self.nodes.len()).filter(|n| self.nodes[*n].client.is_some()) {
            let nodes = nodes.clone();
            self.call(n, |mut c| async move {
                c.set_nodes(proto::SetNodesRequest { nodes }).await
            });
        }
    }

    /// Answers what a node's coordinators ask for.
    fn watch(&self, node: usize) {
        let mut client = self.client(node);
        let record = self.record.clone();
        self.runtime.spawn(async move {
            let Ok(events) = client.watch(proto::WatchRequest {}).await else {
                return;
            };
            let mut events = events.into_inner();
            while let Ok(Some(event)) = events.message().await {
                let Some(What::SetChange(change)) = event.what else {
                    continue;
                };
                let outcome = submit(&record, &change);
                let answer = proto::AnswerSetChangeRequest {
                    volume_id: change.volume_id,
                    epoch: change.epoch,
                    expected_version: change.expected_version,
                    outcome: Some(outcome),
                };
                if client.answer_set_change(answer).await.is_err() {
                    return;
                }
            }
        });
    }

    fn client(&self, node: usize) -> DatapathClient<Channel> {
        self.nodes[node].client.clone().expect("it runs")
    }

    /// A command that succeeds.
    ///
    /// # Panics
    /// If it does not.
    pub fn call<T, F>(&self, node: usize, command: impl FnOnce(DatapathClient<Channel>) -> F) -> T
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let client = self.client(node);
        let done = self.runtime.block_on(async { command(client).await });
        done.unwrap_or_else(|e| panic!("node {node}: {e}"))
            .into_inner()
    }

    /// K1 for a node, and its data path coordinates: exported when it serves.
    ///
    /// # Panics
    /// If it does not serve in time.
    pub fn attach(&mut self, node: usize) -> Target {
        let incarnation = uuid_bytes(&self.nodes[node].hello.incarnation);
        let record = {
            let mut record = self.record.lock().expect("no panic");
            record.version += 1;
            record.epoch += 1;
            record.incarnation = incarnation;
            record.attempt = self.random.random::<[u8; 16]>().to_vec();
            record.serving = false;
            record.clone()
        };
        let serve = proto::ServeRequest {
            volume_id: VOLUME.into(),
            size_bytes: self.size_bytes,
            lanes: self.lanes(),
            record: Some(record),
            lease_ms: 1000,
            volatile_cache: self.volatile_cache,
            command_limit_ms: 0,
            keys: self.keys.clone(),
            snapshots: Vec::new(),
            compared_bytes: 0,
            unverified: false,
        };
        self.call(node, |mut c| async move { c.serve(serve).await });
        self.serves(node);
        self.export(node, proto::AnaState::AnaOptimized)
    }

    /// Has a node forward to the one that coordinates.
    ///
    /// # Panics
    /// If it does not.
    pub fn forward(&self, node: usize, to: usize) -> Target {
        let (epoch, incarnation) = {
            let record = self.record.lock().expect("no panic");
            (record.epoch, record.incarnation.clone())
        };
        let open = proto::OpenPathRequest {
            volume_id: VOLUME.into(),
            size_bytes: self.size_bytes,
            lanes: self.lanes(),
            volatile_cache: self.volatile_cache,
            forward: Some(proto::ForwardTo {
                node_id: self.nodes[to].name.clone(),
                epoch,
                incarnation,
            }),
        };
        self.call(node, |mut c| async move { c.open_path(open).await });
        self.export(node, proto::AnaState::AnaNonOptimized)
    }

    fn export(&self, node: usize, state: proto::AnaState) -> Target {
        let export = proto::ExportRequest {
            nqn: NQN.into(),
            serial: "1".into(),
            namespaces: vec![proto::Namespace {
                nsid: 1,
                volume_id: VOLUME.into(),
                lba_bytes: self.lba_bytes,
                nguid: vec![1; 16],
                uuid: vec![1; 16],
                reservation: Vec::new(),
            }],
            allowed_hosts: Vec::new(),
            allow_any_host: true,
            ana_state: state.into(),
            cntlid_min: 1 + 1000 * node as u32,
            cntlid_max: 1000 + 1000 * node as u32,
        };
        self.call(node, |mut c| async move { c.export(export).await });
        Target {
            address: self.nodes[node].hello.nvme_address.parse().expect("told"),
            nqn: NQN.into(),
            nsid: 1,
        }
    }

    /// Has a process stand still, or go on.
    ///
    /// # Panics
    /// If it does not run.
    pub fn hold(&self, node: usize, still: bool) {
        let child = self.nodes[node].child.as_ref().expect("it runs");
        let signal = match still {
            true => rustix::process::Signal::STOP,
            false => rustix::process::Signal::CONT,
        };
        crate::cluster::kill(child.id(), signal);
    }

    /// Coordinates no more.
    pub fn detach(&self, node: usize) {
        let stop = proto::StopServingRequest {
            volume_id: VOLUME.into(),
        };
        self.call(node, |mut c| async move { c.stop_serving(stop).await });
    }

    /// Waits until a node's coordinator serves.
    ///
    /// # Panics
    /// If that takes too long, or it ended.
    pub fn serves(&self, node: usize) {
        until(|| {
            let status = self.coordinator(node);
            assert_ne!(
                status.state(),
                CoordinatorState::CoordinatorEnded,
                "{status:?}"
            );
            (status.state() == CoordinatorState::CoordinatorServing).then_some(())
        });
    }

    /// What a node says of its coordinator.
    ///
    /// # Panics
    /// If it has none.
    pub fn coordinator(&self, node: usize) -> proto::Coordinator {
        let all = self.call(node, |mut c| async move {
            c.list_coordinators(proto::ListCoordinatorsRequest {}).await
        });
        all.coordinators.into_iter().next().expect("it coordinates")
    }

    /// Ends a process at once.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let mut child = node.child.take().expect("it runs");
        node.client = None;
        child.kill().expect("it can be killed");
        let _ = child.wait();
    }

    /// Replicas in the set, by node.
    ///
    /// # Panics
    /// Never.
    pub fn members(&self) -> Vec<usize> {
        let record = self.record.lock().expect("no panic");
        let all = record.replicas.iter().enumerate();
        all.filter(|(_, r)| r.role() == ReplicaRole::ReplicaMember)
            .map(|(n, _)| n)
            .collect()
    }

    /// Scrubs a node's pool, to its end.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn scrub(&mut self, node: usize) -> proto::ScrubStatus {
        let scrub_id = uuid(self.random.random_range(0..1 << 40));
        let start = proto::StartScrubRequest {
            pool_id: format!("pool-{node}"),
            scrub_id: scrub_id.clone(),
            rate_bytes_per_s: 0,
        };
        self.call(node, |mut c| async move { c.start_scrub(start).await });
        until(|| {
            let all = self.call(node, |mut c| async move {
                c.list_scrubs(proto::ListScrubsRequest {}).await
            });
            let ended = |s: &proto::ScrubStatus| s.state() == proto::ScrubState::ScrubDone;
            let mut scrubs = all.scrubs.into_iter();
            scrubs.find(|s| s.scrub_id == scrub_id && ended(s))
        })
    }

    /// Waits for a set.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_for_members(&self, wanted: &[usize]) {
        until(|| (self.members() == wanted).then_some(()));
    }
}

impl Drop for DataPaths {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for n in 0..self.nodes.len() {
                let log = std::fs::read_to_string(self.path(n, "log")).unwrap_or_default();
                eprintln!("--- node {n}\n{log}");
            }
        }
    }
}

fn uuid_bytes(text: &str) -> Vec<u8> {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&hex, 16).expect("a UUID");
    number.to_be_bytes().to_vec()
}

/// Looks until there is something.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it took too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The KVDB: a change of a record that is as its coordinator knows it.
fn submit(record: &Mutex<proto::SetRecord>, change: &proto::SetChange) -> Outcome {
    let mut record = record.lock().expect("no panic");
    let holds = record.version == change.expected_version
        && record.epoch == change.epoch
        && record.incarnation == change.incarnation
        && record.attempt == change.attempt;
    if !holds {
        return Outcome::Conflict(record.clone());
    }
    record.version += 1;
    let mut roles: BTreeMap<String, ReplicaRole> = BTreeMap::new();
    match change.change.as_ref().expect("a change") {
        Change::Serve(members) => {
            record.serving = true;
            for r in &record.replicas {
                let takes_part = members.replica_ids.contains(&r.replica_id);
                let role = match (takes_part, r.role()) {
                    (true, _) => ReplicaRole::ReplicaMember,
                    (false, ReplicaRole::ReplicaMember) => ReplicaRole::ReplicaBehind,
                    (false, other) => other,
                };
                roles.insert(r.replica_id.clone(), role);
            }
        }
        Change::Exclude(who) => {
            for id in &who.replica_ids {
                roles.insert(id.clone(), ReplicaRole::ReplicaBehind);
            }
        }
        Change::Admit(id) => {
            roles.insert(id.clone(), ReplicaRole::ReplicaMember);
        }
        other => panic!("nobody asked for {other:?}"),
    }
    for replica in &mut record.replicas {
        if let Some(role) = roles.get(&replica.replica_id) {
            replica.role = (*role).into();
        }
    }
    Outcome::Done(proto::SetDone {})
}
