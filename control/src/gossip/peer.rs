//! Who takes part: a node id, where it is, and a generation that tells its processes apart.

use std::net::SocketAddr;
use std::sync::Arc;

/// Longest node id, in bytes.
pub const ID_MAX: usize = 64;

/// Most by which a generation rises at once: more than a clock can be wrong by, in ms, and so little that it never ends.
const STEP_MAX: u64 = 1 << 42;

/// A node, as gossip knows it. Of two with one id the higher generation is the node.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its node id: 1 to [`ID_MAX`] bytes.
    pub id: Arc<str>,
    /// Start of its process, ms since the Unix epoch, or higher.
    pub generation: u64,
    /// Where it gossips.
    pub address: SocketAddr,
    /// By how much the generation rises next time. Not part of who it is, and not told.
    pub step: u64,
}

impl Peer {
    /// A node whose process started then.
    pub fn new(id: &str, generation: u64, address: SocketAddr) -> Self {
        Self {
            id: id.into(),
            generation,
            address,
            step: 1,
        }
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        (self.generation, self.address, &self.id) == (other.generation, other.address, &other.id)
    }
}

impl Eq for Peer {}

impl foca::Identity for Peer {
    type Addr = Arc<str>;

    /// It is taken for dead: the steps double, so that a clock that was set back is made up for soon.
    fn renew(&self) -> Option<Self> {
        let generation = self.generation.checked_add(self.step)?;
        Some(Self {
            generation,
            step: (self.step * 2).min(STEP_MAX),
            ..self.clone()
        })
    }

    fn addr(&self) -> Arc<str> {
        self.id.clone()
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        // Of equal generations somebody must win, and the same one everywhere.
        (self.generation, self.address) > (other.generation, other.address)
    }
}
