//! `keelblock up`, from its arguments to its end.
use super::args::{Device, UpArgs, VolumeWish};
use super::binaries::Binaries;
use super::check::{Plan, Subject};
use super::control_socket::{Reply, Request, Server, answer};
use super::layout::{Cluster, DataDir};
use super::live::describe;
use super::nodes::{Member, Nodes};
use super::ports::Ports;
use super::ready::{Ready, ReadyFile, ReadyVolume};
use super::screen::Screen;
use super::{device, drill, host};
use crate::client::{Client, Volume};
use crate::failure::{Failure, Result};
use crate::size::show_size;
use keelblock_api::openstorage as sdk;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the nodes are looked at while it serves.
const TICK: Duration = Duration::from_secs(1);
/// Without a terminal, a line is printed every this many looks.
const TICKS_PER_LINE: u32 = 10;
/// The volume of a new cluster, unless asked for others.
const DEFAULT_VOLUME: (&str, u64) = ("demo", 1 << 30);

/// Runs a cluster until it is told to stop, or with `--check` until it has been checked.
pub async fn run(args: UpArgs) -> Result<()> {
    let screen = Screen::new();
    let data = DataDir::open(&args.data)?;
    let binaries = Binaries::find()?;
    let cluster = cluster(&data, &args)?;
    check_replicas(&args, &cluster)?;
    let mut stop = Stop::new()?;
    let ready = ReadyFile::new(args.ready_file.clone());
    let nodes = Nodes::start(&cluster, &data, &args, &binaries, &screen).await?;
    let mut up = Up {
        args,
        data,
        cluster,
        nodes,
        ready,
        screen,
    };
    let outcome = tokio::select! {
        outcome = up.serve() => outcome,
        () = stop.wait() => Ok(()),
    };
    up.screen.end_status();
    if outcome.is_ok() && !up.args.check {
        up.screen.note("Stopping.");
    }
    up.nodes.stop().await;
    outcome
}

/// Replicas need nodes and drives.
fn check_replicas(args: &UpArgs, cluster: &Cluster) -> Result<()> {
    let refused = |v: &VolumeWish, why: String| {
        let (name, replicas) = (&v.name, v.replicas);
        Err(Failure::Usage(format!(
            "--volume {name}: {replicas} replicas {why}"
        )))
    };
    for volume in args.volume.iter().filter(|v| v.replicas > 1) {
        if volume.replicas > cluster.nodes {
            let nodes = cluster.nodes;
            return refused(volume, format!("need as many nodes, and there are {nodes}"));
        }
        if cluster.device == Device::Memory {
            let why = "want drives, and --device is memory, which is lost with its process";
            return refused(volume, why.into());
        }
    }
    Ok(())
}

fn cluster(data: &DataDir, args: &UpArgs) -> Result<Cluster> {
    let Some(mut cluster) = data.load()? else {
        let (device, size) =
            device::settle(args.device.clone().unwrap_or(Device::File), args.size)?;
        let nodes = args.nodes.unwrap_or(match device {
            Device::File => 3,
            // There is one device, and what lies in memory is no replica.
            Device::Memory | Device::Path(_) => 1,
        });
        let mut cluster = Cluster::new(device, size, nodes);
        cluster.etcd = args.etcd.clone();
        data.save(&cluster)?;
        return Ok(cluster);
    };
    let settled = match &args.device {
        Some(Device::Path(path)) => Some(Device::Path(
            std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        )),
        other => other.clone(),
    };
    let place = data.path().display();
    if let Some(device) = settled.filter(|d| *d != cluster.device) {
        return Err(Failure::Usage(format!(
            "--device {device}: the cluster in {place} lies on {}. Leave it out, or start another cluster with --data",
            cluster.device
        )));
    }
    if let Some(size) = args.size.filter(|s| *s != cluster.size_bytes) {
        return Err(Failure::Usage(format!(
            "--size {}: the cluster in {place} was made with {}. Leave it out, or start another cluster with --data",
            show_size(size),
            show_size(cluster.size_bytes)
        )));
    }
    if let Some(nodes) = args.nodes.filter(|n| *n != cluster.nodes) {
        return Err(Failure::Usage(format!(
            "--nodes {nodes}: the cluster in {place} has {}. Leave it out, or start another cluster with --data",
            cluster.nodes
        )));
    }
    match (&args.etcd, &cluster.etcd) {
        (Some(now), Some(before)) if now != before => {
            // Its members have moved: what is in it says whose it is.
            cluster.etcd = args.etcd.clone();
            data.save(&cluster)?;
        }
        (Some(etcd), None) => {
            return Err(Failure::Usage(format!(
                "--etcd {etcd}: the cluster in {place} has a key-value database of its own. Leave it out, or start another cluster with --data"
            )));
        }
        _ => {}
    }
    Ok(cluster)
}

/// A running cluster.
struct Up {
    args: UpArgs,
    data: DataDir,
    cluster: Cluster,
    nodes: Nodes,
    ready: ReadyFile,
    screen: Screen,
}

impl Up {
    /// Everything between start and stop.
    async fn serve(&mut self) -> Result<()> {
        self.nodes.wait_until_all_serve().await?;
        let plans = self.have_volumes().await?;
        self.nodes.any().wait_until_served().await?;
        let volumes = self.nodes.any().watcher.volumes().await?;
        let mut checked = Vec::new();
        for volume in volumes.iter().filter(|v| !v.nqn.is_empty()) {
            if let Some((_, plan)) = plans.iter().find(|(id, _)| *id == volume.id) {
                checked.push((volume, self.check(volume, *plan).await?));
            }
        }
        self.introduce(&volumes, &checked).await?;
        self.ready.update(self.current(volumes.clone()))?;
        if self.args.check {
            // What lies in memory is no replica.
            if self.cluster.nodes >= drill::REPLICAS && self.cluster.device != Device::Memory {
                let said = drill::drill(&mut self.nodes, &self.cluster.cluster_id).await?;
                self.screen.note(&format!("  {said}"));
            }
            self.screen.note("Check passed.");
            return Ok(());
        }
        self.watch(volumes).await
    }

    /// Makes the volumes that are asked for and not there, and says what to check on each volume.
    async fn have_volumes(&mut self) -> Result<Vec<(String, Plan)>> {
        let there = self.nodes.any().watcher.client().await?.list().await?;
        let mut wishes = self.args.volume.clone();
        let (name, size_bytes) = DEFAULT_VOLUME;
        let by_default = wishes.is_empty() && there.is_empty();
        if by_default {
            wishes.push(VolumeWish {
                name: name.into(),
                size_bytes,
                replicas: match self.cluster.device {
                    // What lies in memory is no replica.
                    Device::Memory => 1,
                    _ if self.cluster.nodes >= 3 => 3,
                    _ => 1,
                },
            });
        }
        // What lay in memory is gone with the data path that held it: such a volume is as good as new.
        let forgotten = self.cluster.device == Device::Memory;
        let old_plan = |v: &Volume| match &self.cluster.marked_volume {
            Some(id) if *id == v.id => {
                if forgotten {
                    Plan::Mark
                } else {
                    Plan::VerifyMark
                }
            }
            _ if forgotten => Plan::WriteAndClear,
            _ => Plan::Read,
        };
        let mut plans: Vec<_> = there.iter().map(|v| (v.id.clone(), old_plan(v))).collect();
        for (index, wish) in wishes.iter().enumerate() {
            match there.iter().find(|v| v.name == wish.name) {
                Some(volume) => {
                    let size = volume.spec().size;
                    if size != wish.size_bytes {
                        self.screen.note(&format!(
                            "Volume {} is there with {}; it stays so.",
                            wish.name,
                            show_size(size)
                        ));
                    }
                    if !volume.attached() {
                        let home = self.nodes.find(home_of(volume))?;
                        home.watcher.client().await?.attach(volume, None).await?;
                    }
                }
                None => {
                    // One after the other, so each node has some.
                    let home = self.nodes.in_turn(index);
                    let volume = create(home.watcher.client().await?, wish).await?;
                    plans.push((
                        volume.id,
                        if by_default {
                            Plan::Mark
                        } else {
                            Plan::WriteAndClear
                        },
                    ));
                }
            }
        }
        Ok(plans)
    }

    /// Checks one volume with real data.
    async fn check(&mut self, volume: &ReadyVolume, plan: Plan) -> Result<String> {
        let coordinator = self.nodes.find(&volume.coordinator)?;
        let address = coordinator.node.ports.nvme;
        let client = coordinator.watcher.client().await?;
        let info = client.connection(&volume.id).await?;
        let host_nqn = host::nqn(&self.cluster.cluster_id);
        if !info.any_host && !info.allowed_hosts.contains(&host_nqn) {
            return Ok("not checked: only the hosts on its list may connect".into());
        }
        let subject = Subject {
            address,
            nqn: info.nqn,
            nsid: info.nsid,
            cluster_id: self.cluster.cluster_id.clone(),
            id: volume.id.clone(),
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
        };
        let found = tokio::task::spawn_blocking(move || host::check(&subject, plan)).await;
        let found =
            found.map_err(|e| Failure::local(format!("check of volume {}", volume.name), e))??;
        if plan == Plan::Mark && self.cluster.marked_volume.as_ref() != Some(&volume.id) {
            self.cluster.marked_volume = Some(volume.id.clone());
            self.data.save(&self.cluster)?;
        }
        Ok(found)
    }

    /// Says what there is and how to use it.
    async fn introduce(
        &mut self,
        volumes: &[ReadyVolume],
        checked: &[(&ReadyVolume, String)],
    ) -> Result<()> {
        let mut lines = vec![format!(
            "Cluster {} serves, data in {}",
            self.cluster.cluster_id,
            self.data.path().display()
        )];
        for member in self.nodes.iter_mut() {
            lines.push(match member.node.left() {
                true => format!("  {}: was decommissioned", member.node.id),
                false => describe_node(member, &self.cluster.device).await?,
            });
        }
        for volume in volumes {
            let found = checked
                .iter()
                .find(|(v, _)| v.id == volume.id)
                .map_or("detached", |(_, found)| found.as_str());
            lines.push(format!(
                "  volume {}, {}: {found}",
                volume.name,
                show_size(volume.size_bytes)
            ));
            if !volume.nqn.is_empty() {
                let at = self.nodes.find(&volume.coordinator)?.node.ports.nvme;
                lines.push(format!(
                    "    nvme connect -t tcp -a {} -s {} -n {}",
                    at.ip(),
                    at.port(),
                    volume.nqn
                ));
            }
        }
        let first = &self.nodes.iter().next().expect("there is one").node;
        let (Ports { sdk, rest, .. }, kvdb) = (first.ports.clone(), first.ready().kvdb);
        for at in self.nodes.iter().map(|m| m.node.ports.nvme) {
            lines.push(format!(
                "  all volumes:   nvme discover -t tcp -a {} -s {}",
                at.ip(),
                at.port()
            ));
        }
        lines.push(format!(
            "  command line:  {} --endpoint {sdk} status",
            keelctl_path()
        ));
        lines.push(format!(
            "  REST API:      http://{rest}/swagger-ui/   metrics: http://{rest}/metrics"
        ));
        lines.push(format!(
            "  SDK (gRPC):    {sdk}   key-value database (etcd v3): {kvdb}"
        ));
        for line in lines {
            self.screen.note(&line);
        }
        if !self.args.check {
            self.screen
                .note("Ctrl-C stops it; the next `up` finds everything again.");
        }
        Ok(())
    }

    /// Shows what happens and does what is asked, for ever.
    async fn watch(&mut self, mut volumes: Vec<ReadyVolume>) -> Result<()> {
        let server = Server::bind(&self.data.socket())?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                (request, stream) = server.next() => {
                    let reply = self.turn(&request).await;
                    answer(stream, &reply).await;
                }
            }
            if let Ok(now) = self.nodes.any().watcher.volumes().await {
                volumes = now;
            }
            self.ready.update(self.current(volumes.clone()))?;
            if self.screen.is_terminal() || ticks % TICKS_PER_LINE == 0 {
                let line = self.line(&volumes).await;
                self.screen.status(&line);
            }
            ticks += 1;
        }
    }

    /// What is shown while it serves.
    async fn line(&mut self, volumes: &[ReadyVolume]) -> String {
        let mut nodes = Vec::new();
        for member in self.nodes.iter_mut() {
            let rates = match (member.node.stopped(), member.node.left()) {
                (_, true) => Err("was decommissioned".to_owned()),
                (true, false) => Err("is stopped".to_owned()),
                (false, false) => {
                    let rates = member.watcher.rates(volumes).await;
                    rates.map_err(|e| e.to_string().lines().next().unwrap_or_default().into())
                }
            };
            nodes.push((member.node.id.clone(), rates));
        }
        let mut line = describe(&nodes, volumes.len());
        line += &self.nodes.any().watcher.replicated();
        line
    }

    /// Takes the node away or returns it.
    async fn turn(&mut self, request: &Request) -> Reply {
        let not_done = |failure: Failure| Reply {
            done: false,
            said: failure.to_string(),
        };
        let member = match self.nodes.find(&request.node) {
            Ok(member) => member,
            Err(failure) => return not_done(failure),
        };
        let id = &request.node;
        let state = if request.run { "serves" } else { "is stopped" };
        if member.node.stopped() != request.run {
            return Reply {
                done: true,
                said: format!("{id} {state} already"),
            };
        }
        member.node.set_running(request.run).await;
        if request.run
            && let Err(failure) = member.wait_until_serving(false).await
        {
            return not_done(failure);
        }
        Reply {
            done: true,
            said: format!("{id} {state}"),
        }
    }

    fn current(&self, volumes: Vec<ReadyVolume>) -> Ready {
        Ready {
            cluster_id: self.cluster.cluster_id.clone(),
            nodes: self.nodes.ready(),
            volumes,
        }
    }
}

/// Makes a volume and attaches it.
pub async fn create(client: &mut Client, wish: &VolumeWish) -> Result<Volume> {
    let spec = sdk::VolumeSpec {
        size: wish.size_bytes,
        block_size: 4096,
        ha_level: i64::from(wish.replicas),
        ..Default::default()
    };
    let request = sdk::SdkVolumeCreateRequest {
        name: wish.name.clone(),
        spec: Some(spec),
        ..Default::default()
    };
    let id = client.create(request).await?;
    let volume = client.volume(&id).await?;
    if !volume.attached() {
        client.attach(&volume, None).await?;
    }
    Ok(volume)
}

/// Node that a volume lies on.
fn home_of(volume: &Volume) -> &str {
    let sets = volume.inner.replica_sets.iter();
    sets.flat_map(|s| &s.nodes).next().map_or("", |n| n)
}

/// A line about what a node got.
async fn describe_node(member: &mut Member, device: &Device) -> Result<String> {
    let status = member.watcher.client().await?.node_status().await?;
    let pages = match status.hugepages {
        true => "hugepages",
        false => "plain pages",
    };
    Ok(format!(
        "  {}: {}, {} of {pages}, device {device}",
        member.node.id,
        count(status.reactors.len(), "reactor"),
        show_size(status.memory_bytes),
    ))
}

/// `1 reactor`, `2 reactors`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// How to call `keelctl`: by its path beside this program, shortened where it lies below the current directory.
fn keelctl_path() -> String {
    let path = std::env::current_exe()
        .unwrap_or_default()
        .with_file_name("keelctl");
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(&path)
        .display()
        .to_string()
}

/// The signals that end it.
struct Stop([Signal; 3]);

impl Stop {
    fn new() -> Result<Stop> {
        let on = |kind| signal(kind).map_err(|e| Failure::local("wait for signals", e));
        Ok(Stop([
            on(SignalKind::interrupt())?,
            on(SignalKind::terminate())?,
            on(SignalKind::hangup())?,
        ]))
    }

    async fn wait(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! { _ = a.recv() => {} _ = b.recv() => {} _ = c.recv() => {} }
    }
}
