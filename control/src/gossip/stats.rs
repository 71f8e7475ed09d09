//! How busy a node is, as bytes (`docs/gossip.md`, Statistics), and what is known of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foca::{BroadcastHandler, Invalidates};
use uuid::Uuid;

use super::peer::{ID_MAX, Peer};

/// Most pools that are told of.
pub const POOLS_MAX: usize = 16;
/// Longest version, in bytes.
const VERSION_MAX: usize = 32;
/// Most nodes of which something is kept.
const NODES_MAX: usize = 4096;

const VERSION: u8 = 1;
const FIXED: usize = 84;
const POOL: usize = 32;

/// A pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Its id.
    pub pool_id: Uuid,
    /// What it can hold, in bytes.
    pub total_bytes: u64,
    /// What is in it, in bytes.
    pub used_bytes: u64,
}

/// How busy a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// Whose these are.
    pub node_id: String,
    /// Version of its control process.
    pub version: String,
    /// Of the node, and number of these statistics: the higher pair is newer.
    pub generation: u64,
    /// See there.
    pub sequence: u64,
    /// Its data path can be used.
    pub datapath_up: bool,
    /// Part of the time in which the busiest reactor worked, in thousandths, smoothed.
    pub load_permille: u16,
    /// Processor time of both processes, in thousandths of one core.
    pub cpu_permille: u32,
    /// Use of all cores of the machine, in thousandths.
    pub machine_permille: u16,
    /// Cores of the machine.
    pub cores: u16,
    /// Memory of the machine, in bytes.
    pub memory_total: u64,
    /// Of that what is free or can be made free.
    pub memory_free: u64,
    /// Memory of both processes.
    pub memory_used: u64,
    /// Reads of hosts per second.
    pub reads: u32,
    /// Writes of hosts per second.
    pub writes: u32,
    /// Bytes that hosts read per second.
    pub read_bytes: u64,
    /// Bytes that hosts wrote per second.
    pub written_bytes: u64,
    /// Volumes that it coordinates.
    pub coordinated: u32,
    /// Its pools.
    pub pools: Vec<PoolStats>,
}

/// Bytes that are no statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these are no statistics of a node")]
pub struct NoStats;

/// The longest beginning of a text that fits.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl NodeStats {
    /// As bytes. What does not fit of version and pools is left out.
    pub fn encode(&self) -> Vec<u8> {
        let (id, version) = (cut(&self.node_id, ID_MAX), cut(&self.version, VERSION_MAX));
        let pools = &self.pools[..self.pools.len().min(POOLS_MAX)];
        let mut out = Vec::with_capacity(FIXED + id.len() + version.len() + POOL * pools.len());
        out.extend([VERSION, u8::from(self.datapath_up)]);
        out.extend(self.load_permille.to_le_bytes());
        out.extend(self.cpu_permille.to_le_bytes());
        for number in [
            self.generation,
            self.sequence,
            self.memory_total,
            self.memory_free,
            self.memory_used,
        ] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.reads.to_le_bytes());
        out.extend(self.writes.to_le_bytes());
        out.extend(self.read_bytes.to_le_bytes());
        out.extend(self.written_bytes.to_le_bytes());
        out.extend(self.cores.to_le_bytes());
        out.extend(self.machine_permille.to_le_bytes());
        out.extend(self.coordinated.to_le_bytes());
        // All are below 256 by what was cut.
        out.extend([id.len() as u8, version.len() as u8, pools.len() as u8, 0]);
        debug_assert_eq!(out.len(), FIXED);
        out.extend(id.as_bytes());
        out.extend(version.as_bytes());
        for pool in pools {
            out.extend(pool.pool_id.as_bytes());
            out.extend(pool.total_bytes.to_le_bytes());
            out.extend(pool.used_bytes.to_le_bytes());
        }
        out
    }

    /// From bytes; `None`: of another version.
    ///
    /// # Errors
    /// [`NoStats`].
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, NoStats> {
        match bytes.first() {
            None => return Err(NoStats),
            Some(version) if *version != VERSION => return Ok(None),
            Some(_) if bytes.len() < FIXED => return Err(NoStats),
            Some(_) => {}
        }
        let (id, version, pools) = (
            usize::from(bytes[80]),
            usize::from(bytes[81]),
            usize::from(bytes[82]),
        );
        let fits = (1..=ID_MAX).contains(&id) && version <= VERSION_MAX && pools <= POOLS_MAX;
        if !fits || bytes.len() != FIXED + id + version + POOL * pools {
            return Err(NoStats);
        }
        let text = |at: usize, length: usize| {
            let text = std::str::from_utf8(&bytes[at..at + length]);
            text.map(str::to_owned).map_err(|_| NoStats)
        };
        let pool = |bytes: &[u8]| {
            let mut id = [0; 16];
            id.copy_from_slice(&bytes[..16]);
            PoolStats {
                pool_id: Uuid::from_bytes(id),
                total_bytes: u64_at(bytes, 16),
                used_bytes: u64_at(bytes, 24),
            }
        };
        Ok(Some(Self {
            node_id: text(FIXED, id)?,
            version: text(FIXED + id, version)?,
            datapath_up: bytes[1] & 1 == 1,
            load_permille: u16_at(bytes, 2),
            cpu_permille: u32_at(bytes, 4),
            generation: u64_at(bytes, 8),
            sequence: u64_at(bytes, 16),
            memory_total: u64_at(bytes, 24),
            memory_free: u64_at(bytes, 32),
            memory_used: u64_at(bytes, 40),
            reads: u32_at(bytes, 48),
            writes: u32_at(bytes, 52),
            read_bytes: u64_at(bytes, 56),
            written_bytes: u64_at(bytes, 64),
            cores: u16_at(bytes, 72),
            machine_permille: u16_at(bytes, 74),
            coordinated: u32_at(bytes, 76),
            pools: bytes[FIXED + id + version..]
                .chunks_exact(POOL)
                .map(pool)
                .collect(),
        }))
    }

    fn age(&self) -> (u64, u64) {
        (self.generation, self.sequence)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[derive(Debug, Default)]
struct Known {
    now: Duration,
    of: HashMap<String, (NodeStats, Duration)>,
}

/// The newest statistics of each node, and when they came by the engine's clock.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<Mutex<Known>>);

impl Book {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing that holds the lock can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What time it is.
    pub fn set_now(&self, now: Duration) {
        self.known().now = now;
    }

    /// The newest of a node, and how old they are.
    pub fn of(&self, node_id: &str) -> Option<(NodeStats, Duration)> {
        let known = self.known();
        let (stats, at) = known.of.get(node_id)?;
        Some((stats.clone(), known.now.saturating_sub(*at)))
    }

    fn take(&self, stats: NodeStats) -> bool {
        let mut known = self.known();
        let before = known.of.get(&stats.node_id);
        let newer = match before {
            Some((before, _)) => stats.age() > before.age(),
            None => known.of.len() < NODES_MAX,
        };
        if newer {
            let now = known.now;
            known.of.insert(stats.node_id.clone(), (stats, now));
        }
        newer
    }
}

/// Whose statistics: newer ones are sent on instead of older.
#[derive(Debug)]
pub struct Whose(String);

impl Invalidates for Whose {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl BroadcastHandler<Peer> for Book {
    type Key = Whose;
    type Error = NoStats;

    fn receive_item(&mut self, data: &[u8], _: Option<&Peer>) -> Result<Option<Whose>, NoStats> {
        let Some(stats) = NodeStats::decode(data)? else {
            return Ok(None);
        };
        let whose = Whose(stats.node_id.clone());
        Ok(self.take(stats).then_some(whose))
    }
}
