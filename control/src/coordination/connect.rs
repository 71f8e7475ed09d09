//! What is done when the data path is connected, and what it reports.

use keelblock_api::datapath::{
    ClusterNode, Coordinator, HelloReply, ListCoordinatorsRequest, SetNodesRequest,
};

use super::{Coordination, Told, incarnation};
use crate::datapath::CALL_TIMEOUT;
use crate::error::OpError;
use crate::node::Node;
use crate::records::NodeRecord;
use std::time::Duration;

impl Coordination {
    /// There is no connection: nothing is known of what the data path does.
    pub(crate) fn disconnected(&self) {
        *self.told() = Told::default();
        self.stir();
    }
}

impl Node {
    /// Tells a data path that is connected who the nodes are, and learns what it coordinates and holds. What it serves is not disturbed.
    pub(crate) async fn connected(&self, hello: &HelloReply) -> Result<(), OpError> {
        let process = incarnation(&hello.incarnation)?;
        self.set_nodes().await?;
        self.look_at_replicas(Duration::ZERO).await?;
        let listed = self
            .link
            .call_within(CALL_TIMEOUT, "list coordinators", |mut c| async move {
                c.list_coordinators(ListCoordinatorsRequest {}).await
            });
        let coordinators = listed.await?.coordinators;
        {
            let mut told = self.coordination.told();
            told.list_coordinators(coordinators);
            told.incarnation = Some(process);
        }
        self.coordination.nodes_changed();
        Ok(())
    }

    /// Tells the data path which nodes there are, and by which keys they prove it.
    pub(super) async fn set_nodes(&self) -> Result<(), OpError> {
        let nodes = self.registry.nodes().await?;
        let nodes = nodes.into_iter().filter_map(|(node, _)| cluster_node(node));
        let request = SetNodesRequest {
            nodes: nodes.collect(),
        };
        let told = self
            .link
            .call_within(CALL_TIMEOUT, "set nodes", |mut c| async move {
                c.set_nodes(request).await
            });
        told.await.map(drop)
    }

    /// A coordinator says how it is.
    pub(crate) fn coordinator_reports(&self, coordinator: Coordinator) {
        tracing::info!(
            volume = coordinator.volume_id,
            epoch = coordinator.epoch,
            state = coordinator.state().as_str_name(),
            end = coordinator.end().as_str_name(),
            "coordinator"
        );
        let volume = self.coordination.told().report(coordinator);
        if let Some(id) = volume {
            self.coordination.poke(id);
        }
        self.coordination.stir();
    }
}

/// A node, as sessions know it; `None`: it takes no part in replication.
fn cluster_node(node: NodeRecord) -> Option<ClusterNode> {
    let digits = node.public_key.as_bytes();
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let public_key: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    let public_key = public_key.filter(|key| key.len() == 32)?;
    Some(ClusterNode {
        node_id: node.node_id,
        address: node.replication_address,
        public_key,
    })
}
