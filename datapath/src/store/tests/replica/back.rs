//! A replica is deleted but for its snapshots, and another is made of one of them, as when its volume is set back (`docs/replication.md` §20), while the world stops
//! between any two operations of the drive: at last the other one has what the snapshot has, and has promised nothing.

use rand::Rng;

use super::*;
use crate::replication::wire::resync::Tree;
use crate::store::types::SnapshotId;

const OTHER: [u8; 16] = [10; 16];
const SNAPSHOT: SnapshotId = SnapshotId([7; 16]);
/// A node of this level covers all of a lane.
const ALL: u8 = 6;

async fn content(replica: &Replica) -> Vec<Vec<u32>> {
    let mut lanes = Vec::new();
    for lane in 0..replica.lanes() {
        let summed = replica.summaries(Tree::live(lane), ALL, 0, 1).await;
        lanes.push(summed.expect("a summary"));
    }
    lanes
}

impl Run {
    /// Has it set back to how it is now; the drive as it was opened last.
    pub(super) fn set_back(&mut self, mut store: Store) -> Store {
        let volume = volume_id(VOLUME);
        let ctx = self.ctx(&store, 1);
        let taken = self.life.drive("taking a snapshot", async move {
            ctx.replica.flush().await.expect("a flush");
            let taken = ctx.store.snapshot(&[(volume, SNAPSHOT)]).await;
            taken.expect("a snapshot");
            content(&ctx.replica).await
        });
        let before = taken.expect("nothing halts");
        loop {
            let events = self.life.random.random_range(1..80);
            self.life.halt_after(events);
            let at = store.clone();
            let done = self.life.drive("setting back", async move {
                let removed = Replica::remove(&at, volume, true).await;
                removed.expect("there is room to delete");
                let of = ((volume, SNAPSHOT), (volume, OTHER, 1 << 40));
                Replica::create_of(std::slice::from_ref(&at), of.0, of.1).await
            });
            if let Some(made) = done.filter(|_| !self.life.halted()) {
                made.expect("it is made");
                self.life.sim.disk("d", |d| d.go_on());
                break;
            }
            drop(store);
            let killed = self.life.crash();
            store = self.life.reopen(killed).0;
        }
        let (replica, handle) = (opened(&store), self.life.handle.clone());
        assert_eq!(replica.id(), OTHER);
        assert_eq!(replica.promise(), None);
        let after = self.life.drive("looking", async move {
            summaries::check(&replica, &handle).await;
            content(&replica).await
        });
        assert_eq!(after.expect("nothing halts"), before);
        store.check();
        store
    }
}
