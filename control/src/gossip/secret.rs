//! The cluster's gossip secret: in the KVDB, made by the first node that finds none (`docs/gossip.md`, Key).

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::OpError;
use crate::node::Node;
use crate::records::{encode, unix_ms};
use crate::secrets::{hex, unhex};

/// Bytes of the secret.
const SECRET_BYTES: usize = 32;

/// The key `gossip/secret`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GossipRecord {
    /// 32 bytes, hexadecimal.
    pub secret: String,
    /// When it was made, ms since the Unix epoch.
    pub made_unix_ms: u64,
}

impl std::fmt::Debug for GossipRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GossipRecord(of {})", self.made_unix_ms)
    }
}

impl GossipRecord {
    fn new() -> Result<Self, OpError> {
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        SystemRandom::new()
            .fill(&mut *secret)
            .map_err(|_| OpError::Internal("the system gives no random bytes".into()))?;
        Ok(Self {
            secret: hex(&*secret),
            made_unix_ms: unix_ms(),
        })
    }

    /// Its bytes; `None`: it is none.
    pub fn bytes(&self) -> Option<Zeroizing<[u8; SECRET_BYTES]>> {
        unhex(self.secret.as_bytes()).map(Zeroizing::new)
    }
}

impl Node {
    /// Makes the secret if the cluster has none.
    ///
    /// # Errors
    /// The KVDB, or no randomness.
    pub(crate) async fn bring_gossip_secret(&self) -> Result<(), OpError> {
        let key = self.registry.keys().gossip();
        if self.registry.get::<GossipRecord>(&key).await?.is_none() {
            // Of two at once the first one's counts.
            let record = GossipRecord::new()?;
            self.registry.make(vec![(key, encode(&record))]).await?;
        }
        Ok(())
    }
}
