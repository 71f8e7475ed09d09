//! Keeping the connection to the data path: connect, restore, listen, and again.
use super::{LinkState, pool};
use crate::error::OpError;
use crate::node::Node;
use keelblock_api::datapath::{HelloReply, HelloRequest, WatchRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(300);
/// A data path that is there says hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the connection until it is dropped. Returns only if the data path refuses what this process was started with (its
/// drives, its cluster) before it has ever been usable: starting was a mistake then.
pub async fn supervise(node: Arc<Node>, state: watch::Sender<LinkState>) -> OpError {
    let mut was_up = false;
    let mut told = String::new();
    loop {
        let reason = match session(&node, &state, &mut was_up).await {
            Ok(reason) => reason,
            Err(OpError::Datapath { reason, .. }) => reason,
            Err(error) if !was_up && !error.is_uncertain() => return error,
            Err(error) => error.to_string(),
        };
        if told != reason {
            tracing::warn!(reason, "the data path is not usable");
            told = reason.clone();
        }
        state.send_replace(LinkState::Down(reason));
        node.coordination.disconnected();
        tokio::time::sleep(RETRY).await;
    }
}

/// One connection, from hello to its end; why it ended.
async fn session(
    node: &Arc<Node>,
    state: &watch::Sender<LinkState>,
    was_up: &mut bool,
) -> Result<String, OpError> {
    let hello = hello(node).await?;
    node.no_restore().await?;
    tracing::info!(
        pid = hello.pid,
        incarnation = hello.incarnation,
        nvme = hello.nvme_address,
        "data path connected"
    );
    node.publish(&hello).await?;
    if let Some(spec) = &node.pool {
        pool::open(node, spec).await?;
    }
    node.coordination.disconnected();
    // What a restore of the KVDB changes, it changes between two of these.
    let mut restores = node.registry.watch_cluster().await?;
    // Events are heard before anything is exported, so that no reservation waits for us longer than it must.
    let events = node
        .link
        .call(
            "watch",
            |mut c| async move { c.watch(WatchRequest {}).await },
        )
        .await?;
    let mut doubts = node.link.doubts();
    let follower = node.clone();
    // In a set, so that it ends with this session, however that ends.
    let mut following = JoinSet::new();
    following.spawn(async move { follower.follow(events).await });
    tokio::select! {
        restored = node.reconcile() => restored?,
        reason = ended(&mut following) => return Ok(reason),
    }
    if !hello.replication_address.is_empty() {
        node.connected(&hello).await?;
    }
    *was_up = true;
    state.send_replace(LinkState::Up(Arc::new(hello)));
    node.coordination.poke_all();
    tracing::info!("data path ready: volumes and exports are as the KVDB has them");
    tokio::select! {
        reason = ended(&mut following) => Ok(reason),
        // The sender is the link's, which the node has.
        _ = restores.next() => Ok("the KVDB was restored, and everything is looked at again".into()),
        _ = doubts.changed() => Ok("the outcome of a command is unknown, and is being looked at".into()),
    }
}

/// Why the only task of the set ended.
async fn ended(following: &mut JoinSet<String>) -> String {
    match following.join_next().await {
        Some(Ok(reason)) => reason,
        Some(Err(error)) => error.to_string(),
        None => "nobody listens to it".into(),
    }
}

async fn hello(node: &Node) -> Result<HelloReply, OpError> {
    let request = HelloRequest {
        cluster_id: node.cluster_id().into(),
        node_id: node.node_id().into(),
    };
    node.link
        .call_within(HELLO_TIMEOUT, "hello", |mut c| async move {
            c.hello(request).await
        })
        .await
}
