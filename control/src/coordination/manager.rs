//! Keeps what is seen current, and an actor for each volume that there is something to do about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Seen;
use super::actor::act;
use super::seen::Touched;
use crate::error::OpError;
use crate::kvdb::client::WatchEvent;
use crate::node::Node;

/// Between attempts to read the KVDB, or to tell the data path.
const RETRY: Duration = Duration::from_millis(300);
/// How often it is looked at what replicas hear of coordinators on other nodes.
const LISTEN: Duration = Duration::from_secs(1);

/// Volumes that are to be looked at.
#[derive(Debug)]
pub struct Pokes(pub(super) mpsc::UnboundedReceiver<Uuid>);

/// Takes this node's part in replicated volumes, until told to stop. What runs goes on without it.
pub async fn coordinate(
    node: Arc<Node>,
    pokes: Pokes,
    mut stop: watch::Receiver<bool>,
) -> Option<OpError> {
    tokio::select! {
        () = watch_kvdb(&node) => {}
        () = tell_nodes(&node) => {}
        () = listen(&node) => {}
        () = keep_actors(&node, pokes.0) => {}
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => {}
    }
    None
}

async fn watch_kvdb(node: &Arc<Node>) {
    let (kv, keys) = (node.registry.kv(), node.registry.keys());
    let coordination = &node.coordination;
    loop {
        let listed = match kv.list(keys.root()).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(%error, "the KVDB cannot be read");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        {
            let mut seen = coordination.seen();
            let mut read = Seen::read(keys, &listed.kvs, &mut seen);
            read.revision = listed.revision;
            *seen = read;
        }
        coordination.nodes_changed();
        coordination.poke_all();
        coordination.stir();
        let mut watcher = kv.watch(keys.root(), listed.revision + 1);
        while let WatchEvent::Changes { events, .. } = watcher.next().await {
            let touched = coordination.seen().apply(keys, &events);
            heed(node, touched);
        }
    }
}

fn heed(node: &Node, touched: Touched) {
    let coordination = &node.coordination;
    if touched == Touched::default() {
        // Some wait until a revision is seen, whatever it changed.
        coordination.stir();
        return;
    }
    if touched.nodes {
        coordination.nodes_changed();
    }
    if touched.alive {
        let elsewhere: Vec<Uuid> = {
            let seen = coordination.seen();
            seen.attached_elsewhere(node.node_id()).collect()
        };
        elsewhere.into_iter().for_each(|id| coordination.poke(id));
    }
    touched.volumes.iter().for_each(|id| coordination.poke(*id));
    coordination.stir();
}

/// Tells the data path who the nodes are whenever that changes, and once a connection has begun: they were read for it before, and may have changed meanwhile.
async fn tell_nodes(node: &Node) {
    loop {
        node.coordination.until_nodes_changed().await;
        // Where there is no connection, or one that only begins, this is done when it has begun.
        while node.coordination.told().incarnation.is_some() {
            match node.set_nodes().await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, "the data path cannot be told who the nodes are");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Looks at what this node's replicas hear of their coordinators, if those are elsewhere.
async fn listen(node: &Node) {
    let coordination = &node.coordination;
    loop {
        tokio::time::sleep(LISTEN).await;
        let elsewhere: Vec<Uuid> = {
            let seen = coordination.seen();
            let with_replica = |id: &Uuid| {
                let set = seen.set(*id);
                set.is_some_and(|s| s.replicas.iter().any(|r| r.node_id == node.node_id()))
            };
            let elsewhere = seen.attached_elsewhere(node.node_id());
            elsewhere.filter(with_replica).collect()
        };
        if elsewhere.is_empty() || coordination.told().incarnation.is_none() {
            continue;
        }
        match node.look_at_replicas(LISTEN / 2).await {
            Ok(()) => elsewhere.into_iter().for_each(|id| coordination.poke(id)),
            Err(error) => tracing::debug!(%error, "replicas cannot be looked at"),
        }
    }
}

/// An actor for each volume, as long as there is something of it.
async fn keep_actors(node: &Arc<Node>, mut pokes: mpsc::UnboundedReceiver<Uuid>) {
    let mut actors: HashMap<Uuid, Arc<Notify>> = HashMap::new();
    let mut running = JoinSet::new();
    let mut of_task = HashMap::new();
    loop {
        tokio::select! {
            poked = pokes.recv() => {
                let Some(id) = poked else { return };
                let notify = actors.entry(id).or_insert_with(|| {
                    let notify = Arc::new(Notify::new());
                    let task = running.spawn(act(node.clone(), id, notify.clone()));
                    of_task.insert(task.id(), id);
                    notify
                });
                notify.notify_one();
            }
            Some(ended) = running.join_next_with_id() => {
                let task = match &ended {
                    Ok((task, ())) => *task,
                    Err(error) => {
                        tracing::error!(%error, "what looked after a volume ended with a fault of this program");
                        error.id()
                    }
                };
                if let Some(id) = of_task.remove(&task) {
                    actors.remove(&id);
                    // What came between its last look and now.
                    if ended.is_err() || node.coordination.seen().volume(id).is_some() {
                        node.coordination.poke(id);
                    }
                }
            }
        }
    }
}
