//! `up --check` of several nodes: the node that coordinates a volume is killed while a host writes to it, another takes over, and the node
//! comes back. The volume is made for this and deleted afterwards, so nobody's data are touched.
use super::check::Subject;
use super::load::Load;
use super::nodes::Nodes;
use super::start::create;
use crate::failure::{Failure, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Size of the volume.
const SIZE: u64 = 64 << 20;
/// Its replicas.
pub const REPLICAS: u16 = 3;
/// Writes before the node is killed, and after another has taken over.
const WRITES: u64 = 200;
/// Longest wait for each of: writes going on, the node serving, all replicas being in sync.
const LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Carries it out and says what happened.
///
/// # Errors
/// Whatever does not hold, in words; the volume is left for a look then.
pub async fn drill(nodes: &mut Nodes, cluster_id: &str) -> Result<String> {
    let name = format!("check-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let wish = super::args::VolumeWish {
        name,
        size_bytes: SIZE,
        replicas: REPLICAS,
    };
    let volume = create(nodes.any().watcher.client().await?, &wish).await?;
    nodes.any().wait_until_served().await?;
    let run = Drill {
        id: volume.id.clone(),
        name: wish.name.clone(),
    };
    let said = run.carry_out(nodes, cluster_id).await?;
    let client = nodes.any().watcher.client().await?;
    client.detach(&volume).await?;
    client.delete(&volume).await?;
    Ok(said)
}

struct Drill {
    id: String,
    name: String,
}

impl Drill {
    async fn carry_out(&self, nodes: &mut Nodes, cluster_id: &str) -> Result<String> {
        let coordinator = self.coordinator(nodes).await?;
        let victim = nodes.find(&coordinator)?;
        let address = victim.node.ports.nvme;
        let info = victim.watcher.client().await?.connection(&self.id).await?;
        let subject = Subject {
            address,
            nqn: info.nqn,
            nsid: info.nsid,
            cluster_id: cluster_id.into(),
            id: self.id.clone(),
            name: self.name.clone(),
            size_bytes: SIZE,
        };
        let load = Arc::new(Load::new(address));
        let shared = load.clone();
        let mut host = tokio::task::spawn_blocking(move || shared.run(subject));
        let ended = self.watched(nodes, &coordinator, &load, &mut host).await;
        load.stop();
        // What the host found is what matters most; only then what those who watched it waited for.
        self.of_host(host.await)?;
        let (gone, back) = ended?;
        Ok(format!(
            "{coordinator} was killed under load: {} writes, each acknowledged one is there; the longest waited {:.1} s, {gone} took over, all replicas were in sync {:.1} s after the node was started again",
            load.writes(),
            load.longest().as_secs_f64(),
            back.as_secs_f64()
        ))
    }

    /// Kills the node, waits for another one and for writes, starts it again, and waits until all is well.
    async fn watched(
        &self,
        nodes: &mut Nodes,
        victim: &str,
        load: &Load,
        host: &mut JoinHandle<Result<()>>,
    ) -> Result<(String, Duration)> {
        self.wrote(load, host, WRITES).await?;
        nodes.find(victim)?.node.kill().await;
        let began = Instant::now();
        let other = loop {
            let why = match self.coordinator(nodes).await {
                Ok(now) if !now.is_empty() && now != victim => break now,
                Ok(_) => "no other node takes over".to_owned(),
                Err(failure) => failure.to_string(),
            };
            self.patience(began, &why)?;
            tokio::time::sleep(LOOK).await;
        };
        load.go_to(nodes.find(&other)?.node.ports.nvme);
        self.wrote(load, host, load.writes() + WRITES).await?;
        let member = nodes.find(victim)?;
        member.node.set_running(true).await;
        let began = Instant::now();
        member.wait_until_serving(false).await?;
        loop {
            let why = match self.in_sync(nodes).await {
                Ok(true) => return Ok((other, began.elapsed())),
                Ok(false) => "not all replicas are in sync again".to_owned(),
                // Whoever is asked may be the one that has just begun.
                Err(failure) => failure.to_string(),
            };
            self.patience(began, &why)?;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn in_sync(&self, nodes: &mut Nodes) -> Result<bool> {
        let client = nodes.any().watcher.client().await?;
        let found = client.locate(&self.id).await?;
        let members = found.replicas.iter().filter(|r| r.state == "member");
        Ok(members.count() == usize::from(REPLICAS) && found.state == "serving")
    }

    /// The node that serves it; empty: none does.
    async fn coordinator(&self, nodes: &mut Nodes) -> Result<String> {
        let client = nodes.any().watcher.client().await?;
        let found = client.locate(&self.id).await?;
        Ok(match found.state.as_str() {
            "serving" => found.coordinator,
            _ => String::new(),
        })
    }

    async fn wrote(
        &self,
        load: &Load,
        host: &mut JoinHandle<Result<()>>,
        writes: u64,
    ) -> Result<()> {
        let began = Instant::now();
        while load.writes() < writes {
            if host.is_finished() {
                return Err(self.failed("the host ended early"));
            }
            self.patience(began, "writes do not go on")?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn patience(&self, since: Instant, what: &str) -> Result<()> {
        match since.elapsed() > LIMIT {
            true => Err(self.failed(&format!("after {} s: {what}", LIMIT.as_secs()))),
            false => Ok(()),
        }
    }

    fn failed(&self, why: &str) -> Failure {
        Failure::local(format!("check of volume {}", self.name), why)
    }

    fn of_host(
        &self,
        ended: std::result::Result<Result<()>, tokio::task::JoinError>,
    ) -> Result<()> {
        ended.map_err(|e| self.failed(&e.to_string()))?
    }
}
