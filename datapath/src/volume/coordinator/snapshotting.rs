//! Snapshots for users of a coordinator: taken, deleted, listed.

use std::time::Duration;

use super::driver::{Driver, Peers, SetStore};
use super::message::{Event, Failed};
use crate::store::types::SnapshotId;

impl<P: Peers, K: SetStore> Driver<P, K> {
    /// Takes a snapshot: done when it exists, on every member (§12). Asked again in the same epoch it is the same one.
    ///
    /// # Errors
    /// [`Failed`]. After [`Failed::Stalled`] it may exist later.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<(), Failed> {
        let command = self.0.command();
        self.0.event(Event::Snapshot(command.token, id));
        command.done().await
    }

    /// Puts a snapshot in, and holds acknowledgements of what comes behind it, for `limit` at most: done when that is so (§22). Whether it exists
    /// says [`Self::snapshot`].
    ///
    /// # Errors
    /// [`Failed`]; [`Failed::NotHeld`] if it was put in before, and is held no more.
    pub async fn hold_snapshot(&self, id: SnapshotId, limit: Duration) -> Result<(), Failed> {
        let command = self.0.command();
        self.0.event(Event::HoldSnapshot(command.token, id, limit));
        command.done().await
    }

    /// Ends that. The same again succeeds.
    ///
    /// # Errors
    /// [`Failed::NotHeld`]: it was not held until now.
    pub async fn release_snapshot(&self, id: SnapshotId) -> Result<(), Failed> {
        let command = self.0.command();
        self.0.event(Event::ReleaseSnapshot(command.token, id));
        command.done().await
    }

    /// Deletes a snapshot: on replicas that are away, when they are back. Unknown succeeds.
    ///
    /// # Errors
    /// [`Failed`]: [`Failed::Busy`] while it is being taken.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), Failed> {
        let command = self.0.command();
        self.0.event(Event::DeleteSnapshot(command.token, id));
        command.done().await
    }

    /// Snapshots that exist, as far as this epoch knows.
    pub fn snapshots(&self) -> Vec<SnapshotId> {
        self.0.machine.borrow().snapshots().to_vec()
    }
}
