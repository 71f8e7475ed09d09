//! What a scrub of the drive found is told to the coordinator, which has it from another replica and sends it (`docs/replication.md` §11).

use super::Outgoing;
use super::events::Phase;
use super::service::Replica;
use crate::replication::seam::ReplicaStore;
use crate::replication::wire::damaged::Damaged;
use crate::replication::wire::frame::Kind;
use crate::store::types::LaneBlock;

impl<S: ReplicaStore, O: Outgoing> Replica<S, O> {
    /// Tells whoever coordinates that these blocks, by lane, are damaged here. False: nobody does, or this is no member of the set now; what is
    /// copied to it replaces them, or they are told of later. Nothing is kept of it: who wants them repaired looks again.
    pub fn tell_damaged(&self, blocks: Vec<(u8, LaneBlock)>) -> bool {
        let inner = self.inner();
        let Phase::Following(of) = inner.state.borrow().phase() else {
            return false;
        };
        let mut all = inner.all_channels().into_iter();
        let Some(chan) = all.find(|c| c.sender == of && c.fed.get()) else {
            return false;
        };
        let this = inner.clone();
        inner.handle.spawn("replica: damage", async move {
            let _busy = chan.busy();
            for (lane, block) in blocks {
                let mut body = Vec::new();
                Damaged { lane, block }.put(&mut body);
                if !this.admits(&chan) || !chan.send(Kind::Damaged, &body, &[]).await {
                    return;
                }
            }
        });
        true
    }
}
