//! What scrubs found of replicas of this node, for whoever coordinates them.

use std::collections::BTreeMap;

use crate::command::Commander;
use crate::store::VolumeId;
use crate::store::types::LaneBlock;

impl Commander {
    /// Whether a volume has a replica here that is served.
    pub(in crate::command) fn replicates(&self, volume: VolumeId) -> bool {
        let replication = self.replication.as_ref();
        replication.is_some_and(|r| r.replicas.borrow().contains_key(&volume))
    }

    /// Tells coordinators of blocks of their replicas here that are damaged. Who does not hear it is told again by the next look.
    pub(in crate::command) fn tell_damaged(&self, blocks: &[(VolumeId, u8, LaneBlock)]) {
        let Some(replication) = &self.replication else {
            return;
        };
        let mut by_volume: BTreeMap<VolumeId, Vec<(u8, LaneBlock)>> = BTreeMap::new();
        for (volume, lane, block) in blocks {
            by_volume.entry(*volume).or_default().push((*lane, *block));
        }
        for (volume, blocks) in by_volume {
            let replicas = replication.replicas.borrow();
            if let Some(here) = replicas.get(&volume) {
                here.served.tell_damaged(blocks);
            }
        }
    }
}
