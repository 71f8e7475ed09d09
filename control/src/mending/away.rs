//! How long nodes are away: counted by whoever looks, in a key for each, so that another goes on counting.

use std::collections::BTreeMap;

use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::membership::MemberState;
use crate::node::Node;
use crate::records::{AliveRecord, NodeRecord};
use crate::records::{AwayRecord, Versioned, encode};

/// How often it is written down.
const TELL_MS: u64 = 30_000;

/// Nodes that are away, and for how long, in ms.
pub type Away = BTreeMap<String, u64>;

/// Whether a node lives, and can have something to do with replicas.
pub fn lives((node, alive): &(NodeRecord, Option<AliveRecord>)) -> bool {
    let with_datapath = |a: &crate::records::AliveRecord| !a.incarnation.is_empty();
    !node.replication_address.is_empty() && alive.as_ref().is_some_and(with_datapath)
}

impl Node {
    /// Counts on.
    pub(super) async fn count_away(
        &self,
        nodes: &[(NodeRecord, Option<AliveRecord>)],
        now_unix_ms: u64,
    ) -> Result<Away, OpError> {
        let keys = self.registry.keys();
        let all = self.registry.list::<AwayRecord>(&keys.away_all()).await?;
        let mut known: BTreeMap<String, Versioned<AwayRecord>> = BTreeMap::new();
        known.extend(all.into_iter().map(|r| (r.record.node_id.clone(), r)));
        let mut away = Away::new();
        let meant: Vec<String> = {
            let seen = self.coordination.seen();
            let maintained = seen
                .members()
                .filter(|m| m.state == MemberState::Maintenance);
            maintained.map(|m| m.node_id.clone()).collect()
        };
        let is_meant_to = |node: &String| meant.contains(node);
        for seen in nodes.iter().filter(|seen| !lives(seen)) {
            let node_id = &seen.0.node_id;
            let found = known.remove(node_id);
            if is_meant_to(node_id) {
                // A person took the machine away: that does not count.
                away.insert(node_id.clone(), 0);
                continue;
            }
            let (revision, record) = match &found {
                Some(found) => (found.revision, found.record.at(now_unix_ms)),
                None => (0, AwayRecord::new(node_id, now_unix_ms)),
            };
            away.insert(node_id.clone(), record.away_ms);
            // That it is away again is said at once.
            let told = found.as_ref().filter(|f| f.record.back_unix_ms.is_none());
            let told = told.map(|f| f.record.looked_unix_ms);
            if told.is_some_and(|at| now_unix_ms.abs_diff(at) < TELL_MS) {
                continue;
            }
            let (kv, key) = (self.registry.kv(), keys.away(node_id));
            // Somebody who takes himself for the one, too, may have been first: he counts the same.
            kv.compare_and_swap(&key, revision, encode(&record)).await?;
        }
        for (node_id, found) in known {
            let key = keys.away(&node_id);
            let write = match found.record.back(now_unix_ms) {
                Some(_) if found.record.back_unix_ms.is_some() => continue,
                Some(lives) => Write::put(&key, encode(&lives)),
                None => Write::delete(&key),
            };
            let guard = Guard::at(&key, found.revision);
            self.registry.kv().commit(vec![guard], vec![write]).await?;
        }
        Ok(away)
    }
}
