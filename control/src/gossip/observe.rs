//! How busy this node is, since the last look: its data path's stats page, and `/proc`. What cannot be read is 0.

use std::collections::HashMap;
use std::time::Duration;

use keelblock_api::stats::{ReactorField, StatsReader};
use tokio::time::Instant;

use super::stats::NodeStats;
use crate::datapath::LinkState;
use crate::node::Node;
use crate::system::{self, Observer};

/// A new look counts so many parts of `PARTS` in the load, so that a moment is none.
const NEW: u64 = 1;
const PARTS: u64 = 4;

/// Counters of a volume: reads, writes, bytes of each.
type Counters = [u64; 4];

/// Remembers the last look, for what is a rate.
#[derive(Debug, Default)]
pub struct Watcher {
    machine: Observer,
    at: Option<Instant>,
    /// Of which data path the counters are.
    page: [u8; 16],
    /// Of each reactor, ns that it worked.
    busy: Vec<u64>,
    volumes: HashMap<[u8; 16], Counters>,
    /// Of both processes, by process id, ns of processor time.
    processor: HashMap<u32, u64>,
    load_permille: u64,
}

impl Watcher {
    /// Looks now.
    pub fn look(&mut self, node: &Node) -> NodeStats {
        let now = Instant::now();
        let passed = self.at.map(|at| now - at);
        self.at = Some(now);
        let machine = self.machine.look();
        let up = matches!(node.link.state(), LinkState::Up(_));
        let page = node.link.stats().filter(|_| up);
        let mut stats = NodeStats {
            version: env!("CARGO_PKG_VERSION").into(),
            datapath_up: up,
            machine_permille: permille(10.0 * machine.cpu_percent),
            cores: u16::try_from(machine.cores).unwrap_or(u16::MAX),
            memory_total: machine.memory_total,
            memory_free: machine.memory_free,
            coordinated: node.coordination.seen().attached_to(node.node_id()),
            pools: node.gossip().pools(),
            ..NodeStats::default()
        };
        let processes = [Some(std::process::id()), page.as_ref().map(|p| p.pid())];
        let processes: Vec<u32> = processes.into_iter().flatten().collect();
        stats.memory_used = processes.iter().map(|id| system::resident_bytes(*id)).sum();
        let spent = self.processor(&processes);
        let worked = page.as_ref().map(|p| self.reactors(p)).unwrap_or_default();
        let served = page.as_ref().map(|p| self.served(p)).unwrap_or_default();
        let Some(passed) = passed.filter(|p| *p > Duration::ZERO) else {
            return stats;
        };
        let per_mille = |ns: u64| 1000 * u128::from(ns) / passed.as_nanos();
        let load = u64::try_from(per_mille(worked))
            .unwrap_or(u64::MAX)
            .min(1000);
        self.load_permille = ((PARTS - NEW) * self.load_permille + NEW * load) / PARTS;
        stats.load_permille = self.load_permille as u16;
        stats.cpu_permille = u32::try_from(per_mille(spent)).unwrap_or(u32::MAX);
        let rate = |count: u64| (count as f64 / passed.as_secs_f64()) as u64;
        let small = |count: u64| u32::try_from(rate(count)).unwrap_or(u32::MAX);
        let [reads, writes, read_bytes, written_bytes] = served;
        (stats.reads, stats.writes) = (small(reads), small(writes));
        (stats.read_bytes, stats.written_bytes) = (rate(read_bytes), rate(written_bytes));
        stats
    }

    /// ns of processor time since the last look.
    fn processor(&mut self, processes: &[u32]) -> u64 {
        let now: HashMap<u32, u64> = processes
            .iter()
            .map(|id| (*id, system::processor_ns(*id)))
            .collect();
        let since = |(id, ns): (&u32, &u64)| {
            let before = self.processor.get(id);
            before.map_or(0, |b| ns.saturating_sub(*b))
        };
        let spent = now.iter().map(since).sum();
        self.processor = now;
        spent
    }

    /// ns that the busiest reactor worked since the last look.
    fn reactors(&mut self, page: &StatsReader) -> u64 {
        let now: Vec<u64> = page
            .reactors()
            .iter()
            .map(|r| r.get(ReactorField::BusyNs))
            .collect();
        if self.page != page.incarnation() {
            self.page = page.incarnation();
            self.busy.clear();
            self.volumes.clear();
        }
        let since = now
            .iter()
            .zip(&self.busy)
            .map(|(n, b)| n.saturating_sub(*b));
        let most = since.max().unwrap_or(0);
        self.busy = now;
        most
    }

    /// What hosts read and wrote since the last look; of volumes that are new, all of it.
    fn served(&mut self, page: &StatsReader) -> Counters {
        let mut sum = Counters::default();
        let mut now = HashMap::new();
        for (_, volume) in page.volumes() {
            let counters = [
                volume.reads,
                volume.writes,
                volume.read_bytes,
                volume.write_bytes,
            ];
            let before = self.volumes.get(&volume.volume_id);
            let before = before.copied().unwrap_or_default();
            for (to, (n, b)) in sum.iter_mut().zip(counters.iter().zip(before)) {
                *to += n.saturating_sub(b);
            }
            now.insert(volume.volume_id, counters);
        }
        self.volumes = now;
        sum
    }
}

fn permille(value: f64) -> u16 {
    value.round().clamp(0.0, 1000.0) as u16
}
