//! Which snapshots there are (`docs/replication.md` §12): the coordinator names them, whatever else is here is deleted, and it is told which are here whole.
//!
//! What is deleted is what was there when they were named: a snapshot that is taken later came behind it in the channel. It goes one after the other with
//! sets, so a replica that is to be copied to has noted that before.

use std::rc::Rc;

use super::Breach;
use super::Outgoing;
use super::apply::why;
use super::channel::{Busy, Chan};
use super::service::Inner;
use super::sets::Task;
use crate::replication::seam::{Id, ReplicaError, ReplicaStore};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::snapshots::{SNAPSHOTS_MAX, Snapshots, encode_having};
use crate::store::types::SnapshotId;

/// Snapshots that were named, and what is to be deleted by that.
pub(super) struct Named<O: Outgoing> {
    number: u64,
    ids: Vec<Id>,
    whole: bool,
    gone: Vec<SnapshotId>,
    pub busy: Busy<O>,
    _admitted: O::Admitted,
}

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// Snapshots of an admitted channel.
    pub(super) fn admit_snapshots(
        self: &Rc<Self>,
        chan: &Rc<Chan<O>>,
        said: &Snapshots<'_>,
        admitted: O::Admitted,
    ) -> Result<(), Breach> {
        let ids: Vec<Id> = said.ids.iter().collect();
        let gone = self.others(&ids, false);
        self.put_task(Task::Snapshots(Named {
            number: said.number,
            whole: said.whole,
            busy: chan.busy(),
            _admitted: admitted,
            ids,
            gone,
        }))
    }

    /// What is here and not named; with `whole` also what some lanes lack.
    fn others(&self, named: &[Id], whole: bool) -> Vec<SnapshotId> {
        let lanes = self.store.lanes();
        let all = self.store.snapshots().into_iter();
        let others = all.filter(|(id, n)| !named.contains(&id.0) || whole && *n < lanes);
        others.map(|(id, _)| id).collect()
    }

    pub(super) async fn keep_snapshots(self: &Rc<Self>, mut named: Named<O>) {
        let chan = named.busy.0.clone();
        if named.whole {
            // Copies of a channel that ended may still run, and one of them may be a snapshot.
            self.quiet().await;
            named.gone = self.others(&named.ids, true);
        }
        for id in named.gone {
            if !self.admits(&chan) {
                return;
            }
            self.running.set(self.running.get() + 1);
            let done = self.store.delete_snapshot(id).await;
            self.one_done();
            match done {
                Ok(()) => {
                    tracing::debug!(snapshot = %id, "a snapshot that nobody names was deleted")
                }
                Err(ReplicaError::Incomplete(_)) => return self.lost(),
                Err(error) => return self.refuse(&chan, why(&error)),
            }
        }
        if !self.admits(&chan) {
            return;
        }
        let lanes = self.store.lanes();
        let here = self.store.snapshots().into_iter();
        let here = here.filter(|(id, n)| *n == lanes && named.ids.contains(&id.0));
        let here: Vec<Id> = here.map(|(id, _)| id.0).take(SNAPSHOTS_MAX).collect();
        let mut body = Vec::new();
        encode_having(&mut body, named.number, &here);
        chan.send(Kind::Having, &body, &[]).await;
    }
}
