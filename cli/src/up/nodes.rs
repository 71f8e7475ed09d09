//! All nodes of the cluster, and the key-value database that they share if there are several.
use super::args::{Device, UpArgs};
use super::binaries::Binaries;
use super::layout::{Cluster, DataDir};
use super::live::Watcher;
use super::node::{Node, NodeSpec};
use super::ports::Ports;
use super::process::{Program, Service};
use super::ready::ReadyNode;
use super::screen::Screen;
use super::{cores, device, stale};
use crate::failure::{Failure, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest time from the start of the programs to service.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const START_LOOK: Duration = Duration::from_millis(100);

/// A node, and how it is watched.
pub struct Member {
    /// Its programs.
    pub node: Node,
    /// The connection to its control process.
    pub watcher: Watcher,
}

/// All of them.
pub struct Nodes {
    members: Vec<Member>,
    kvdb: Option<Service>,
}

impl Nodes {
    /// Checks that all can be, and starts them.
    ///
    /// # Errors
    /// Ports that are taken, too little space, a program that does not start: each by name.
    pub async fn start(
        cluster: &Cluster,
        data: &DataDir,
        args: &UpArgs,
        binaries: &Binaries,
        screen: &Screen,
    ) -> Result<Nodes> {
        let ids: Vec<String> = (1..=cluster.nodes).map(|n| format!("node-{n}")).collect();
        let dirs = ids.iter().map(|id| data.node(id));
        let dirs = dirs.collect::<Result<Vec<_>>>()?;
        let several = ids.len() > 1;
        if several && matches!(cluster.device, Device::Path(_)) {
            return Err(Failure::Usage(format!(
                "--device {}: it is one, and each of {} nodes needs its own; use file or memory",
                cluster.device,
                ids.len()
            )));
        }
        let own = several && cluster.etcd.is_none();
        let kvdb_dir = own.then(|| data.node("kvdb")).transpose()?;
        for dir in dirs.iter().chain(&kvdb_dir) {
            stale::end_leftovers(dir, screen)?;
        }
        let mut ports = Ports::choose(args.port_base, cluster.nodes)?;
        device::check(&cluster.device, cluster.size_bytes, data.path(), &dirs)?;
        let shared = ports[0].kvdb;
        let mut nodes = Nodes {
            members: Vec::new(),
            kvdb: None,
        };
        if let Some(dir) = kvdb_dir {
            ports.iter_mut().for_each(|p| p.kvdb = shared);
            let program = kvdb_program(&cluster.cluster_id, &dir, shared, binaries);
            let kvdb = nodes.kvdb.insert(Service::start(program, screen.clone())?);
            answers(kvdb, shared).await?;
        }
        for ((index, id), (dir, ports)) in (0..).zip(ids).zip(dirs.iter().zip(ports)) {
            let spec = NodeSpec {
                id,
                cluster_id: &cluster.cluster_id,
                drive: device::drive_argument(&cluster.device, cluster.size_bytes, dir),
                dir,
                ports,
                joins: several,
                etcd: cluster.etcd.as_deref(),
                cpus: cores::of_node(index, cluster.nodes),
            };
            let node = Node::start(spec, args, binaries, screen)?;
            let watcher = Watcher::new(node.ports.sdk.to_string());
            nodes.members.push(Member { node, watcher });
        }
        Ok(nodes)
    }

    /// Waits until each serves; the death of a program is a failure.
    ///
    /// # Errors
    /// What is missing, with the last lines of its logs.
    pub async fn wait_until_all_serve(&mut self) -> Result<()> {
        for member in &mut self.members {
            match member.wait_until_serving(true).await {
                // It is no part of the cluster any more.
                Err(_) if member.node.left() => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Stops all programs: control processes and data paths first, as they use the database.
    pub async fn stop(&mut self) {
        for member in &mut self.members {
            member.node.set_running(false).await;
        }
        if let Some(kvdb) = &mut self.kvdb {
            kvdb.set_running(false).await;
        }
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    /// In order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.members.iter_mut()
    }

    /// One of those that are part of the cluster, another one for each number.
    pub fn in_turn(&mut self, number: usize) -> &mut Member {
        let part = |(_, m): &(usize, &Member)| !m.node.left();
        let part: Vec<usize> = self
            .members
            .iter()
            .enumerate()
            .filter(part)
            .map(|(at, _)| at)
            .collect();
        let at = part.get(number % part.len().max(1));
        &mut self.members[at.copied().unwrap_or(0)]
    }

    /// The one of that id.
    ///
    /// # Errors
    /// There is none: says which there are.
    pub fn find(&mut self, id: &str) -> Result<&mut Member> {
        let all = || self.members.iter().map(|m| m.node.id.clone());
        let names = all().collect::<Vec<_>>().join(", ");
        let found = self.members.iter_mut().find(|m| m.node.id == id);
        found.ok_or_else(|| Failure::Usage(format!("there is no node {id}; there is {names}")))
    }

    /// One that runs, to be asked about the cluster; the first, if none does.
    pub fn any(&mut self) -> &mut Member {
        let serves = |m: &Member| !m.node.stopped() && !m.node.left();
        let at = self.members.iter().position(serves);
        &mut self.members[at.unwrap_or(0)]
    }

    /// For the ready file.
    pub fn ready(&self) -> Vec<ReadyNode> {
        self.members.iter().map(|m| m.node.ready()).collect()
    }
}

impl Member {
    /// Waits until the control process answers, reaches the data path, and the pool is open.
    ///
    /// # Errors
    /// What is missing, with the last lines of its logs.
    pub async fn wait_until_serving(&mut self, deaths_count: bool) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if self.node.left() {
                let why = "it was decommissioned, and its data directory never joins again";
                return Err(Failure::local(format!("start of {}", self.node.id), why));
            }
            if let Some(failure) = self.node.death().filter(|_| deaths_count) {
                return Err(failure);
            }
            let status = match self.watcher.client().await {
                Ok(client) => client.node_status().await,
                Err(failure) => Err(failure),
            };
            let missing = match status {
                Ok(status) if status.datapath_up && !status.pools.is_empty() => return Ok(()),
                Ok(status) if status.datapath_up => "its pool is not open".into(),
                Ok(_) => "its control process does not reach its data path".into(),
                Err(Failure::Unreachable { why, .. }) => why,
                Err(failure) => failure.to_string(),
            };
            if Instant::now() > deadline {
                let why = format!(
                    "no service within {} s: {missing}; {}",
                    START_LIMIT.as_secs(),
                    self.node.last_words()
                );
                return Err(Failure::local(format!("start of {}", self.node.id), why));
            }
            tokio::time::sleep(START_LOOK).await;
        }
    }
}

impl Member {
    /// Waits until replicated volumes that are attached are served: after a start their replicas wait for leases that they may have given before.
    ///
    /// # Errors
    /// Which is not, and why.
    pub async fn wait_until_served(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let volumes = self.watcher.client().await?.list().await?;
        for volume in volumes
            .iter()
            .filter(|v| v.attached() && v.spec().ha_level > 1)
        {
            loop {
                let found = self.watcher.client().await?.locate(&volume.id).await?;
                if found.state == "serving" {
                    break;
                }
                if Instant::now() > deadline {
                    let why = format!(
                        "it is not served within {} s: {}, {}",
                        START_LIMIT.as_secs(),
                        found.state,
                        found.trouble
                    );
                    return Err(Failure::local(format!("volume {}", volume.name), why));
                }
                tokio::time::sleep(START_LOOK).await;
            }
        }
        Ok(())
    }
}

fn kvdb_program(cluster_id: &str, dir: &Path, at: SocketAddr, binaries: &Binaries) -> Program {
    let at = at.to_string();
    let words = [
        "kvdb",
        "--cluster-id",
        cluster_id,
        "--data",
        "data",
        "--listen",
        &at,
    ];
    Program {
        name: "key-value database".into(),
        exe: binaries.control.clone(),
        args: words.map(str::to_owned).to_vec(),
        dir: dir.into(),
        log: dir.join("kvdb.log"),
        last_code: None,
    }
}

/// Waits until somebody listens there.
async fn answers(kvdb: &Service, at: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while tokio::net::TcpStream::connect(at).await.is_err() {
        if kvdb.state().deaths > 0 || Instant::now() > deadline {
            let what = "start of the key-value database";
            return Err(Failure::local(what, kvdb.last_words()));
        }
        tokio::time::sleep(START_LOOK).await;
    }
    Ok(())
}
