//! Watching a node from outside: what its control process says, turned into rates.
use super::ready::ReadyVolume;
use crate::client::{Client, Volume};
use crate::failure::Result;
use crate::keelctl::VolumeView;
use crate::rates::{Interval, show_latency};
use keelblock_api::admin::{NodeStatusReply, ReactorStatus, VolumeStatusReply};
use keelblock_api::stats::bucket_upper_ns;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Longest wait for one answer.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// Volumes whose counters are looked at: with more, the figures are those of the first ones, and the line says so.
const VOLUMES_MAX: usize = 64;

/// One look.
#[derive(Clone, Debug)]
struct Look {
    at: Instant,
    node: NodeStatusReply,
    volumes: HashMap<String, VolumeStatusReply>,
}

/// The watcher of one node.
pub struct Watcher {
    endpoint: String,
    client: Option<Client>,
    /// NQNs do not change while a volume is attached, so each is asked for once.
    nqns: HashMap<String, String>,
    last: Option<Look>,
    /// Replicated volumes, in words.
    replicated: String,
}

impl Watcher {
    /// Watches the node whose SDK port is `endpoint`.
    pub fn new(endpoint: String) -> Watcher {
        Watcher {
            endpoint,
            client: None,
            nqns: HashMap::new(),
            last: None,
            replicated: String::new(),
        }
    }

    /// The connection, made when it is not there.
    pub async fn client(&mut self) -> Result<&mut Client> {
        if self.client.is_none() {
            self.client = Some(Client::connect(&self.endpoint, CALL_LIMIT).await?);
        }
        Ok(self.client.as_mut().expect("was just made"))
    }

    /// The volumes, as the ready file has them.
    pub async fn volumes(&mut self) -> Result<Vec<ReadyVolume>> {
        let volumes = self.client().await?.list().await?;
        let mut list = Vec::with_capacity(volumes.len());
        self.replicated = volumes.iter().filter_map(show_replicated).collect();
        for volume in volumes {
            let nqn = if volume.attached() {
                self.nqn(&volume).await?
            } else {
                String::new()
            };
            if !volume.attached() {
                self.nqns.remove(&volume.id);
            }
            let size_bytes = volume.spec().size;
            let coordinator = volume.inner.attached_on.clone();
            list.push(ReadyVolume {
                name: volume.name,
                id: volume.id,
                nqn,
                size_bytes,
                coordinator,
            });
        }
        Ok(list)
    }

    /// Who coordinates which replicated volume, and with how many replicas, as of the last look.
    pub fn replicated(&self) -> String {
        self.replicated.clone()
    }

    async fn nqn(&mut self, volume: &Volume) -> Result<String> {
        if let Some(nqn) = self.nqns.get(&volume.id) {
            return Ok(nqn.clone());
        }
        let nqn = self.client().await?.connection(&volume.id).await?.nqn;
        self.nqns.insert(volume.id.clone(), nqn.clone());
        Ok(nqn)
    }

    /// What happened since the last time that this was asked.
    pub async fn rates(&mut self, volumes: &[ReadyVolume]) -> Result<Rates> {
        let client = self.client().await?;
        let mut look = Look {
            at: Instant::now(),
            node: client.node_status().await?,
            volumes: HashMap::new(),
        };
        let node_id = look.node.node_id.clone();
        let here = volumes.iter().filter(|v| v.coordinator == node_id);
        for volume in here.take(VOLUMES_MAX) {
            look.volumes
                .insert(volume.id.clone(), client.volume_status(&volume.id).await?);
        }
        let rates = Rates::between(self.last.as_ref(), &look);
        self.last = Some(look);
        Ok(rates)
    }
}

/// `  |  db: 2 of 3 replicas, by node-1`; of a volume with one replica nothing.
fn show_replicated(volume: &Volume) -> Option<String> {
    let view = VolumeView::new(volume);
    let (name, replicas) = (&view.name, view.replicas_shown());
    let by = match view.attached_on.as_str() {
        "" => "detached".to_owned(),
        node if view.status == "down" => format!("not served by {node}"),
        node => format!("by {node}"),
    };
    (!view.replication.is_empty()).then(|| format!("  |  {name}: {replicas} replicas, {by}"))
}

/// What a node did in an interval.
#[derive(Clone, Debug)]
pub struct Rates {
    seconds: f64,
    sum: Interval,
    reactors: Vec<(u32, f64)>,
    connections: u64,
    datapath_up: bool,
}

impl Rates {
    fn between(before: Option<&Look>, now: &Look) -> Rates {
        let started = |look: &Look| look.node.datapath_started_unix_ms;
        // After a restart of the data path all counters start again.
        let before = before.filter(|b| started(b) == started(now));
        let seconds = before.map_or(1.0, |b| (now.at - b.at).as_secs_f64().max(1e-3));
        let mut sum = Interval::default();
        if let Some(before) = before {
            for (id, status) in &now.volumes {
                if let Some(old) = before.volumes.get(id) {
                    sum.add(&Interval::between(Some(old), status));
                }
            }
        }
        let cpu = |reactor: &ReactorStatus| {
            let old = before.and_then(|b| b.node.reactors.iter().find(|r| r.id == reactor.id));
            let used = old.map_or(0, |o| reactor.cpu_ns.saturating_sub(o.cpu_ns));
            (reactor.id, used as f64 / seconds / 1e7)
        };
        Rates {
            seconds,
            sum,
            reactors: now.node.reactors.iter().map(cpu).collect(),
            connections: now.node.reactors.iter().map(|r| r.connections).sum(),
            datapath_up: now.node.datapath_up,
        }
    }
}

/// One line about all nodes: what they did together, then what each one's reactors cost, or what is wrong with it.
pub fn describe(nodes: &[(String, std::result::Result<Rates, String>)], volumes: usize) -> String {
    let all = || nodes.iter().filter_map(|(_, rates)| rates.as_ref().ok());
    let mut sum = Interval::default();
    all().for_each(|r| sum.add(&r.sum));
    let per_second = |of: &dyn Fn(&Interval) -> u64| -> f64 {
        all().map(|r| of(&r.sum) as f64 / r.seconds).sum()
    };
    let mut line = format!(
        "{:.0} IOPS  {:.1} MB/s  p50 {}  p99 {}  |",
        per_second(&|i| i.commands),
        per_second(&|i| i.bytes) / 1e6,
        show_latency(sum.percentile_ns(0.5, bucket_upper_ns)),
        show_latency(sum.percentile_ns(0.99, bucket_upper_ns)),
    );
    for (id, rates) in nodes {
        if nodes.len() > 1 {
            line += &format!(" {id}");
        }
        match rates {
            Ok(rates) => {
                for (reactor, cpu) in &rates.reactors {
                    line += &format!(" reactor {reactor} {cpu:.1} %");
                }
                if !rates.datapath_up {
                    line += " data path does not answer";
                }
            }
            Err(why) => line += &format!(" {why}"),
        }
        line += "  |";
    }
    let connections: u64 = all().map(|r| r.connections).sum();
    line += &format!("  {volumes} volumes  {connections} connections");
    if volumes > VOLUMES_MAX {
        line += &format!(" (I/O of the first {VOLUMES_MAX} of each node)");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: Instant, reads: u64, cpu_ns: u64, started: u64) -> Look {
        let reactors = vec![ReactorStatus {
            cpu_ns,
            connections: 2,
            ..Default::default()
        }];
        let node = NodeStatusReply {
            datapath_up: true,
            datapath_started_unix_ms: started,
            reactors,
            ..Default::default()
        };
        let status = VolumeStatusReply {
            reads,
            read_bytes: reads * 4096,
            ..Default::default()
        };
        Look {
            at,
            node,
            volumes: [("v".to_owned(), status)].into(),
        }
    }

    #[test]
    fn rates_are_per_second() {
        let start = Instant::now();
        let rates = Rates::between(
            Some(&look(start, 100, 0, 1)),
            &look(start + Duration::from_secs(2), 2100, 1_000_000_000, 1),
        );
        let line = describe(&[("a".into(), Ok(rates))], 1);
        assert!(line.starts_with("1000 IOPS  4.1 MB/s"), "{line}");
        assert!(
            line.contains("reactor 0 50.0 %") && line.contains("2 connections"),
            "{line}"
        );
    }

    #[test]
    fn a_restarted_data_path_gives_no_nonsense() {
        let start = Instant::now();
        let rates = Rates::between(
            Some(&look(start, 5000, 1 << 40, 1)),
            &look(start + Duration::from_secs(1), 10, 5, 2),
        );
        let line = describe(&[("a".into(), Ok(rates))], 1);
        assert!(
            line.starts_with("0 IOPS") && line.contains("reactor 0 0.0 %"),
            "{line}"
        );
    }

    #[test]
    fn nodes_are_added_up_and_one_that_is_away_is_named() {
        let start = Instant::now();
        let each = || {
            Rates::between(
                Some(&look(start, 0, 0, 1)),
                &look(start + Duration::from_secs(1), 500, 0, 1),
            )
        };
        let away = Err("is stopped".to_owned());
        let nodes = [Ok(each()), away, Ok(each())];
        let nodes = ["n1", "n2", "n3"].map(str::to_owned).into_iter().zip(nodes);
        let line = describe(&nodes.collect::<Vec<_>>(), 2);
        assert!(line.starts_with("1000 IOPS"), "{line}");
        assert!(
            line.contains(" n2 is stopped  |") && line.contains("4 connections"),
            "{line}"
        );
    }
}
