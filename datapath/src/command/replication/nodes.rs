//! Who this node is, and who the others are.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use keelblock_api::datapath as proto;

use super::super::{CommandError, Commander, unix_ms};
use crate::replication::session::{Burden, Credentials, PUBLIC_KEY_BYTES, Peer};
use crate::replication::wire::hello::PeerId;

/// The name of a cluster or node, as sessions have it.
fn peer_id(field: &'static str, name: &str) -> Result<PeerId, CommandError> {
    PeerId::new(name).ok_or_else(|| {
        CommandError::field(field, format!("{name:?} is no name of 1 to 64 characters"))
    })
}

impl Commander {
    /// Replication begins, as this node of this cluster; where peers connect, and this node's public key. `None`: the process does not replicate.
    pub async fn begin_replication(
        &self,
        cluster: String,
        node: String,
    ) -> Result<Option<(SocketAddr, [u8; PUBLIC_KEY_BYTES])>, CommandError> {
        let Some(replication) = &self.replication else {
            return Ok(None);
        };
        let _one = replication_beginning(self).await;
        if replication.at.borrow().is_none() {
            let ids = (peer_id("cluster_id", &cluster)?, peer_id("node_id", &node)?);
            let with = &replication.with;
            let mut credentials =
                Credentials::new(ids, with.incarnation, with.key.clone(), with.secret);
            credentials.wall = (unix_ms(), self.handle.now());
            // The main one first: it may fail.
            let at = replication.node.begin(&credentials, with.listen)?;
            let main = self.handle.id();
            let rest = self.registry.hub().run_on_all(move |hub| async move {
                match hub.replication().filter(|_| hub.handle().id() != main) {
                    Some(node) => node.begin(&credentials, at).map(drop),
                    None => Ok(()),
                }
            });
            rest.await.into_iter().collect::<Result<(), _>>()?;
            tracing::info!(%at, "replication");
            replication.at.replace(Some(at));
        }
        let at = *replication.at.borrow();
        Ok(at.zip(replication.node.public_key()))
    }

    /// The cluster's nodes.
    pub async fn set_nodes(&self, nodes: Vec<proto::ClusterNode>) -> Result<(), CommandError> {
        let replication = self.replication()?;
        if replication.at.borrow().is_none() {
            return Err(CommandError::NoReplication);
        }
        let mut peers = BTreeMap::new();
        for node in &nodes {
            let id = peer_id("nodes.node_id", &node.node_id)?;
            let address = node.address.parse().map_err(|e| {
                CommandError::field("nodes.address", format!("{:?}: {e}", node.address))
            })?;
            let key = node.public_key.as_slice().try_into().map_err(|_| {
                let why = format!("{} bytes: a key has 32", node.public_key.len());
                CommandError::field("nodes.public_key", why)
            })?;
            peers.insert(id, Peer { key, address });
        }
        let told = self.registry.hub().run_on_all(move |hub| async move {
            if let Some(node) = hub.replication() {
                node.set_peers(peers);
            }
        });
        told.await;
        Ok(())
    }
}

impl Commander {
    /// How other nodes are, as gossip has it.
    pub async fn set_loads(&self, loads: Vec<proto::PeerLoad>) -> Result<(), CommandError> {
        let replication = self.replication()?;
        if replication.at.borrow().is_none() {
            return Err(CommandError::NoReplication);
        }
        let mut burdens = BTreeMap::new();
        for load in &loads {
            let id = peer_id("peers.node_id", &load.node_id)?;
            let percent = u8::try_from(load.load_percent).ok().filter(|p| *p <= 100);
            let load_percent = percent.ok_or_else(|| {
                let why = format!("{} is more than 100 percent", load.load_percent);
                CommandError::field("peers.load_percent", why)
            })?;
            let doubtful = load.doubtful;
            burdens.insert(
                id,
                Burden {
                    doubtful,
                    load_percent,
                },
            );
        }
        let told = self.registry.hub().run_on_all(move |hub| async move {
            if let Some(node) = hub.replication() {
                node.set_burdens(burdens);
            }
        });
        told.await;
        Ok(())
    }
}

/// Two greetings at once: one begins.
async fn replication_beginning(commander: &Commander) -> tokio::sync::MutexGuard<'_, ()> {
    commander.beginning.lock().await
}
