//! That this node lives, and how: a key under a lease, written again when it changes. Other nodes take its volumes when the key is gone.
//!
//! The lease is [`ALIVE_TTL_S`] and is renewed each third of it, so it is gone 2 to 3 s after the process has died, and the KVDB looks each 250 ms (etcd: 500):
//! it is noticed after 2 to 3.5 s. By then the lease that replicas gave the coordinator (3 s at most, counted from its last heartbeat) has
//! run out, or does at the same time: so what is added to the host's wait is K1 and the takeover itself.

use std::sync::Arc;
use std::time::Duration;

use keelblock_api::datapath::ListPoolsRequest;
use tokio::sync::watch;
use uuid::Uuid;

use crate::backup::say_what_is_here;
use crate::datapath::LinkState;
use crate::error::OpError;
use crate::gossip::PoolStats;
use crate::kvdb::client::LeaseGuard;
use crate::node::Node;
use crate::records::{AliveRecord, PoolSpace, encode};

/// Life of the lease that shows that this node lives.
const ALIVE_TTL_S: i64 = 3;
/// Between attempts to get one.
const RETRY: Duration = Duration::from_millis(500);
/// How often room in pools is looked at.
const ROOM: Duration = Duration::from_secs(10);
/// It is only for choosing among nodes: a data path that takes longer is shown without.
const ROOM_LIMIT: Duration = Duration::from_secs(2);
/// Room that differs by less than this part of the pool is no news.
const NEWS: u64 = 64;

/// Shows in the KVDB that this node lives, until told to stop.
pub async fn stay_alive(node: Arc<Node>, mut stop: watch::Receiver<bool>) -> Option<OpError> {
    let live = async {
        loop {
            match node.registry.kv().hold_lease(ALIVE_TTL_S).await {
                Ok(mut lease) => live_on(&node, &mut lease).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot get a lease to show that this node lives");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = live => None,
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

/// As long as the lease lasts.
async fn live_on(node: &Node, lease: &mut LeaseGuard) {
    let key = node.registry.keys().alive(node.node_id());
    let mut link = node.link.clone();
    let id = lease.id();
    let mut said = None;
    let speak = async {
        loop {
            let says = node.alive_record().await;
            if said.as_ref().is_none_or(|before| is_news(before, &says)) {
                match node.registry.kv().put_leased(&key, encode(&says), id).await {
                    Ok(_) => said = Some(says),
                    Err(error) => {
                        tracing::warn!(%error, "cannot show that this node lives");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                () = link.changed() => {}
                () = tokio::time::sleep(ROOM) => {}
            }
        }
    };
    tokio::select! {
        () = speak => {}
        () = say_what_is_here(node, id) => {}
        () = lease.lost() => {}
    }
}

/// Whether others want to know.
fn is_news(before: &AliveRecord, now: &AliveRecord) -> bool {
    let differs = |(a, b): (&PoolSpace, &PoolSpace)| {
        let by = a.free_bytes.abs_diff(b.free_bytes);
        a.pool_id != b.pool_id || a.total_bytes != b.total_bytes || by > b.total_bytes / NEWS
    };
    before.incarnation != now.incarnation
        || before.pools.len() != now.pools.len()
        || before.pools.iter().zip(&now.pools).any(differs)
}

impl Node {
    async fn alive_record(&self) -> AliveRecord {
        let mut record = AliveRecord {
            pid: std::process::id(),
            ..AliveRecord::default()
        };
        if let LinkState::Up(hello) = self.link.state() {
            record.incarnation = hello.incarnation.clone();
            record.pools = self.room().await;
        }
        record
    }

    async fn room(&self) -> Vec<PoolSpace> {
        let listed = self
            .link
            .call_within(ROOM_LIMIT, "list pools", |mut c| async move {
                c.list_pools(ListPoolsRequest {}).await
            });
        let pools = listed.await.map(|reply| reply.pools).unwrap_or_default();
        let told = |pool: &keelblock_api::datapath::Pool| {
            let pool_id = Uuid::try_parse(&pool.pool_id).ok()?;
            Some(PoolStats {
                pool_id,
                total_bytes: pool.total_bytes,
                used_bytes: pool.used_bytes,
            })
        };
        self.gossip()
            .put_pools(pools.iter().filter_map(told).collect());
        let space = |pool: keelblock_api::datapath::Pool| {
            let pool_id = Uuid::try_parse(&pool.pool_id).ok()?;
            Some(PoolSpace {
                pool_id,
                memory: self.is_memory(pool_id),
                total_bytes: pool.total_bytes,
                free_bytes: pool.free_bytes,
            })
        };
        pools.into_iter().filter_map(space).collect()
    }
}
