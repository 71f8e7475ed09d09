//! Keeps what is seen current, and an actor for each volume that there is something to do about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Seen;
use super::actor::{LONG, Poked, act};
use super::now::Touched;
use super::watchers::concerned;
use crate::error::OpError;
use crate::kvdb::client::WatchEvent;
use crate::node::Node;

/// Between attempts to read the KVDB, or to tell the data path.
const RETRY: Duration = Duration::from_millis(300);
/// How often it is looked at what replicas hear of coordinators on other nodes.
const LISTEN: Duration = Duration::from_secs(1);

/// A round over all volumes has so many steps.
const STEPS: u32 = 30;
const STEP: Duration = LONG.checked_div(STEPS).expect("not 0");

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
    node.coordination.watchers.end();
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
        coordination.watchers.mark(std::iter::empty(), true);
        coordination.stir();
        let mut watcher = kv.watch(keys.root(), listed.revision + 1);
        while let WatchEvent::Changes { events, .. } = watcher.next().await {
            let touched = coordination.seen().apply(keys, &events);
            let any = touched.nodes || touched.alive;
            coordination.watchers.mark(concerned(keys, &events), any);
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

/// An actor for each volume that was poked, as long as there is something to do about it.
async fn keep_actors(node: &Arc<Node>, mut pokes: mpsc::UnboundedReceiver<Uuid>) {
    let mut actors: HashMap<Uuid, Arc<Poked>> = HashMap::new();
    let mut running = JoinSet::new();
    let mut of_task = HashMap::new();
    let mut rounds = Rounds::default();
    let mut tick = tokio::time::interval(STEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            poked = pokes.recv() => {
                let Some(id) = poked else { return };
                let poked = actors.entry(id).or_insert_with(|| {
                    let poked = Arc::new(Poked::default());
                    let task = running.spawn(act(node.clone(), id, poked.clone()));
                    of_task.insert(task.id(), id);
                    poked
                });
                poked.poke();
            }
            Some(ended) = running.join_next_with_id() => {
                let (task, heard) = match ended {
                    Ok((task, heard)) => (task, Some(heard)),
                    Err(error) => {
                        tracing::error!(%error, "what looked after a volume ended with a fault of this program");
                        (error.id(), None)
                    }
                };
                if let Some(id) = of_task.remove(&task) {
                    let poked = actors.remove(&id);
                    // What came between its last look and now.
                    if poked.is_some_and(|p| heard.is_none_or(|heard| p.count() > heard)) {
                        node.coordination.poke(id);
                    }
                }
            }
            _ = tick.tick() => {
                let due = rounds.step(|| node.coordination.volume_ids());
                due.into_iter().for_each(|id| node.coordination.poke(id));
            }
        }
    }
}

/// All volumes are looked at now and then, some at a time: nothing is missed, so this is only for what nobody thought of.
#[derive(Debug, Default)]
struct Rounds {
    left: Vec<Uuid>,
    steps: u32,
}

impl Rounds {
    /// The next ones; `all` is asked for at the begin of each round.
    fn step(&mut self, all: impl FnOnce() -> Vec<Uuid>) -> Vec<Uuid> {
        if self.steps == 0 {
            self.left = all();
            self.steps = STEPS;
        }
        let some = self.left.len().div_ceil(self.steps as usize);
        self.steps -= 1;
        self.left.split_off(self.left.len() - some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_each_volume_once_and_begins_anew() {
        for count in [0, 1, 29, 30, 31, 1000_u128] {
            let all: Vec<Uuid> = (0..count).map(Uuid::from_u128).collect();
            let mut rounds = Rounds::default();
            for _ in 0..2 {
                let mut had = Vec::new();
                for step in 0..STEPS {
                    let some = rounds.step(|| match step {
                        0 => all.clone(),
                        _ => panic!("a round asks once"),
                    });
                    assert!(some.len() <= all.len().div_ceil(STEPS as usize));
                    had.extend(some);
                }
                had.sort();
                assert_eq!(had, all);
            }
        }
    }
}
