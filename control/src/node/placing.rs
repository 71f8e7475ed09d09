//! Placing replicas: what is asked, chosen from what is seen, and written so that no two are chosen from the same state (`docs/placement.md` §5).
use super::Node;
use crate::coordination::place::no_place;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::placement::{Limits, Request, Rules, Verdict};
use crate::records::encode;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::Instant;
use uuid::Uuid;

/// How long it is waited until what is seen is what others have placed, and for enough nodes: one that has just started says a moment later what room it has.
const SEE_LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
/// How long a placement is tried while others are placed at the same time.
pub(super) const PLACING_LIMIT: Duration = Duration::from_secs(5);

/// How long until it is tried again: not as long as others wait.
pub(super) fn pause() -> Duration {
    let random = Uuid::new_v4().as_u128() % 20;
    Duration::from_millis(1 + random as u64)
}

/// Where replicas are to be placed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ask<'a> {
    /// The volume, if there is one.
    pub volume: Option<Uuid>,
    /// Its size.
    pub size_bytes: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its rules.
    pub rules: Option<&'a Rules>,
    /// How many are to be placed.
    pub replicas: usize,
    /// Nodes whose replicas stay.
    pub held: Vec<&'a str>,
    /// Nodes that have one that leaves.
    pub shut: Vec<&'a str>,
    /// Only these nodes; empty: any.
    pub nodes: Vec<&'a str>,
    /// Only these pools; empty: any.
    pub pools: Vec<Uuid>,
}

/// Where they are placed, and what is to be written with them.
#[derive(Debug)]
pub(crate) struct Placed<'a> {
    /// Nodes and pools.
    pub places: Vec<(String, Uuid)>,
    /// Nobody else has placed anything meanwhile.
    pub guard: Guard,
    /// So that nobody else does.
    pub write: Write,
    /// Placements of this process wait for each other.
    pub _turn: MutexGuard<'a, ()>,
}

impl Node {
    /// What pools may be asked for.
    pub(crate) async fn limits(&self) -> Result<Limits, OpError> {
        let key = self.registry.keys().placement_limits();
        let found = self.registry.get::<Limits>(&key).await?;
        Ok(found.map(|f| f.record).unwrap_or_default())
    }

    /// Sets what pools may be asked for.
    pub(crate) async fn set_limits(&self, limits: Limits) -> Result<(), OpError> {
        let too_much = |field: &str, max| {
            OpError::invalid(field, format!("must be 0 (none) to {max} percent"))
        };
        if limits.overcommit_percent > Limits::OVERCOMMIT_MAX {
            return Err(too_much("overcommit_percent", Limits::OVERCOMMIT_MAX));
        }
        if limits.reserve_percent > Limits::RESERVE_MAX {
            return Err(too_much("reserve_percent", Limits::RESERVE_MAX));
        }
        let keys = self.registry.keys();
        let writes = vec![
            Write::put(keys.placement_limits(), encode(&limits)),
            // Whoever counts by them sees what was there before, also what had no limit to heed then.
            Write::put(keys.placements(), Uuid::new_v4().to_string()),
        ];
        self.registry.kv().commit(vec![], writes).await?;
        Ok(())
    }

    /// Chooses nodes and pools.
    ///
    /// # Errors
    /// There are too few, or none that keep the rules; the KVDB does not answer.
    pub(crate) async fn place(&self, ask: &Ask<'_>) -> Result<Placed<'_>, OpError> {
        let turn = self.placing.lock().await;
        let end = Instant::now() + SEE_LIMIT;
        loop {
            let (revision, limits) = self.current().await?;
            let chosen = self.choose(ask, limits);
            match chosen {
                Err(OpError::TooFewNodes { .. } | OpError::NoNode { .. })
                    if Instant::now() < end =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                chosen => {
                    let key = self.registry.keys().placements();
                    return Ok(Placed {
                        places: chosen?,
                        guard: Guard::at(&key, revision),
                        write: Write::put(&key, Uuid::new_v4().to_string()),
                        _turn: turn,
                    });
                }
            }
        }
    }

    /// What would be chosen, with a word on every node; without a placement, why.
    pub(crate) async fn explain(
        &self,
        ask: &Ask<'_>,
    ) -> Result<(Vec<Verdict>, Option<OpError>), OpError> {
        let (_, limits) = self.current().await?;
        self.known(&ask.nodes)?;
        let seen = self.coordination.seen();
        let (cluster, request) = (
            seen.cluster(&self.gossip().loads()),
            self.request(&seen, ask, limits),
        );
        Ok(match cluster.choose(&request) {
            Ok(choice) => (choice.explain(), None),
            Err(none) => (none.explain(), Some(no_place(&none, &request))),
        })
    }

    /// Waits until what others have placed is seen; the revision of the last placement, and the limits.
    pub(super) async fn current(&self) -> Result<(i64, Limits), OpError> {
        let limits = self.limits().await?;
        let last = self.registry.kv().get(self.registry.keys().placements());
        let revision = last.await?.map_or(0, |kv| kv.mod_revision);
        let caught_up = self.coordination.until(SEE_LIMIT, |c| {
            let seen = c.seen();
            (seen.complete && seen.revision >= revision).then_some(())
        });
        match caught_up.await {
            Some(()) => Ok((revision, limits)),
            None => Err(OpError::Unavailable(
                "this node does not hear what changes in the KVDB: try again, or ask another node"
                    .into(),
            )),
        }
    }

    fn choose(&self, ask: &Ask<'_>, limits: Limits) -> Result<Vec<(String, Uuid)>, OpError> {
        self.known(&ask.nodes)?;
        let seen = self.coordination.seen();
        let (cluster, request) = (
            seen.cluster(&self.gossip().loads()),
            self.request(&seen, ask, limits),
        );
        let choice = cluster.choose(&request);
        choice
            .map(|c| c.picks())
            .map_err(|none| no_place(&none, &request))
    }

    fn request<'s>(
        &'s self,
        seen: &'s crate::coordination::Seen,
        ask: &'s Ask<'_>,
        limits: Limits,
    ) -> Request<'s> {
        let of_volumes = ask.rules.is_some_and(Rules::of_volumes);
        Request {
            size_bytes: ask.size_bytes,
            replicas: ask.replicas,
            labels: &ask.labels,
            rules: ask.rules,
            held: ask.held.clone(),
            shut: ask.shut.clone(),
            nodes: (!ask.nodes.is_empty()).then(|| ask.nodes.clone()),
            pools: (!ask.pools.is_empty()).then(|| ask.pools.clone()),
            neighbours: seen.neighbours(ask.volume, of_volumes),
            limits,
            first: self.node_id(),
        }
    }

    /// Nodes that are named exist.
    fn known(&self, nodes: &[&str]) -> Result<(), OpError> {
        let seen = self.coordination.seen();
        let unknown = |n: &&&str| !seen.nodes().any(|k| k.node_id == ***n);
        match nodes.iter().find(unknown) {
            None => Ok(()),
            Some(name) => Err(OpError::NotFound {
                kind: "node",
                name: (*name).into(),
            }),
        }
    }
}
