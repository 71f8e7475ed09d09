//! How busy the others are, for the data path: whom a coordinator asks for a read (`docs/gossip.md`, What reaches the data path).

use std::sync::Arc;
use std::time::Duration;

use keelblock_api::datapath::{PeerLoad, SetLoadsRequest};
use tokio::sync::watch;

use crate::datapath::LinkState;
use crate::error::OpError;
use crate::node::Node;

/// Between two looks whether there is something new.
const LOOK: Duration = Duration::from_secs(2);
/// It is only a hint: one that takes longer is told again later.
const LIMIT: Duration = Duration::from_secs(2);
/// Loads are told in steps of so many percent, so that they are news only now and then.
const STEP: u8 = 10;

/// Tells this node's data path whenever it is news, until told to stop.
pub(crate) async fn tell_loads(
    node: Arc<Node>,
    mut stop: watch::Receiver<bool>,
) -> Option<OpError> {
    let tell = async {
        let mut told = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let LinkState::Up(hello) = node.link.state() else {
                continue;
            };
            // Before it has begun to replicate it knows no peers.
            if hello.replication_address.is_empty()
                || node.coordination.told().incarnation.is_none()
            {
                continue;
            }
            let now = (hello.incarnation.clone(), node.peer_loads());
            if told.as_ref() == Some(&now) {
                continue;
            }
            let request = SetLoadsRequest {
                peers: now.1.clone(),
            };
            let call = node
                .link
                .call_within(LIMIT, "set loads", |mut c| async move {
                    c.set_loads(request).await
                });
            match call.await {
                Ok(_) => told = Some(now),
                Err(error) => {
                    tracing::debug!(%error, "the data path cannot be told how busy others are")
                }
            }
        }
    };
    tokio::select! {
        () = tell => None,
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

impl Node {
    /// Of each other node that is heard or was.
    fn peer_loads(&self) -> Vec<PeerLoad> {
        let (loads, doubtful) = (self.gossip().loads(), self.gossip().doubtful());
        let known: Vec<String> = {
            let seen = self.coordination.seen();
            seen.nodes().map(|n| n.node_id.clone()).collect()
        };
        let others = known.into_iter().filter(|id| id != self.node_id());
        let of = |node_id: String| {
            let load = loads.get(&node_id).copied().unwrap_or(0);
            PeerLoad {
                load_percent: u32::from((load + STEP / 2) / STEP * STEP),
                doubtful: doubtful.contains(&node_id),
                node_id,
            }
        };
        others.map(of).collect()
    }
}
