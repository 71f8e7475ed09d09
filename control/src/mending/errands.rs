//! Volumes that are attached nowhere, and have something to do that whoever serves them does: they get somebody for a while, a few at a time.

use std::collections::HashMap;

use uuid::Uuid;

use super::decide::View;
use crate::coordination::Now;
use crate::replication::record::ReplicaState;

/// So many volumes at a time.
pub const AT_ONCE: usize = 4;
/// The next one for the same volume is begun after this, doubled up to the second.
const AGAIN_MS: (u64, u64) = (60_000, 1_800_000);

/// When errands were begun.
#[derive(Debug, Default)]
pub struct Begun(HashMap<Uuid, (u32, u64)>);

impl Begun {
    /// Whether one may be begun.
    pub fn may(&self, volume: Uuid, now_unix_ms: u64) -> bool {
        let last = self.0.get(&volume);
        last.is_none_or(|(_, next)| now_unix_ms >= *next)
    }

    /// One is.
    pub fn begin(&mut self, volume: Uuid, now_unix_ms: u64) {
        let (first, longest) = AGAIN_MS;
        let (times, next) = self.0.entry(volume).or_default();
        *next = now_unix_ms + longest.min(first << (*times).min(16));
        *times += 1;
    }

    /// Only these have something to do.
    pub fn keep(&mut self, those: impl Fn(&Uuid) -> bool) {
        self.0.retain(|id, _| those(id));
    }
}

impl View<'_> {
    /// Whether somebody is to serve it for a while: it is attached nowhere, and there is something to do.
    pub fn wants_errand(&self) -> bool {
        let now = self.now;
        let usable = |node: &str| !self.away.contains_key(node);
        let ready = now.volume.as_ref().is_some_and(|v| {
            let v = &v.record;
            v.phase == crate::records::Phase::Ready && v.restoring.is_none() && v.error.is_empty()
        });
        let verified =
            |s: &crate::replication::record::ReplicationRecord| !s.unverified(self.generation);
        ready
            && now.attachment.is_none()
            && now.set.as_ref().is_some_and(|s| verified(&s.record))
            && (now.has_replica_work(usable) || self.has_lost_member())
    }

    /// It is a member until somebody serves the volume.
    fn has_lost_member(&self) -> bool {
        let lost = |b: &super::decide::Bad| b.replica.state == ReplicaState::Member;
        self.after_ms.is_some() && self.bad().iter().any(lost)
    }

    /// The node that is to: of a member that is well, and may get something, with fewest errands. `None`: too few are well, or none may.
    pub fn errand_node(&self, errands: &HashMap<String, usize>) -> Option<String> {
        let set = &self.now.set.as_ref()?.record;
        let well = self.well();
        if well.len() < set.read_quorum().max(usize::from(set.minimum)) {
            return None;
        }
        let busy = |node: &str| errands.get(node).copied().unwrap_or(0);
        let fit = well.iter().filter(|r| !(self.unfit)(&r.node_id));
        let best = fit.min_by_key(|r| (busy(&r.node_id), &r.node_id));
        best.map(|r| r.node_id.clone())
    }
}

impl Now {
    /// Replicas are changed, or one of them could be brought back.
    pub fn has_replica_work(&self, usable: impl Fn(&str) -> bool) -> bool {
        if self
            .task
            .as_ref()
            .is_some_and(|t| !t.record.state.is_over())
        {
            return true;
        }
        let mut all = self.set.iter().flat_map(|s| &s.record.replicas);
        all.any(|r| {
            let outside = matches!(r.state, ReplicaState::Behind | ReplicaState::Empty);
            let known = self.replicas.get(&r.replica_id).map(|k| &k.record);
            let well = known.is_some_and(|k| k.made && !k.lost && k.error.is_empty());
            outside && well && usable(&r.node_id)
        })
    }
}
