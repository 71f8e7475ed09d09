//! What replicas promised, kept in all copies of the superblock (`docs/store-format.md` §2): a commit of it writes both pairs, each flushed, so
//! that any two copies that are left say so, and one that is left alone is known to be alone.

use std::cell::{Cell, RefCell};

use super::super::VolumeId;
use super::super::superblock::{self, REPLICAS_MAX, ReplicaEntry, ReplicaState};
use super::{Inner, Store, StoreError};

/// The table as it is to be, and which changes of it are durable.
#[derive(Debug, Default)]
pub struct Promises {
    wanted: RefCell<Vec<ReplicaEntry>>,
    changes: Cell<u64>,
    durable: Cell<u64>,
}

impl Promises {
    /// As the superblock has it.
    pub fn new(entries: &[ReplicaEntry]) -> Self {
        Self {
            wanted: RefCell::new(entries.to_vec()),
            ..Self::default()
        }
    }
}

impl Store {
    /// What is durable of a volume's replica here.
    pub fn replica(&self, volume: VolumeId) -> Option<ReplicaEntry> {
        let superblock = self.0.superblock.borrow();
        let at = superblock
            .replicas
            .binary_search_by_key(&volume, |r| r.volume);
        at.ok().map(|at| superblock.replicas[at].clone())
    }

    /// Changes what is kept of a volume's replica; durable, in all copies, when this returns. Changes that wait share a commit.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] without the replica; others: what is kept is the old or the new one.
    pub async fn keep_replica(
        &self,
        volume: VolumeId,
        change: impl FnOnce(&mut ReplicaEntry),
    ) -> Result<(), StoreError> {
        {
            let mut wanted = self.0.promises.wanted.borrow_mut();
            let at = wanted.binary_search_by_key(&volume, |r| r.volume);
            let at = at.map_err(|_| StoreError::Unknown)?;
            if wanted[at].state == ReplicaState::Lost {
                return Err(StoreError::Unknown);
            }
            change(&mut wanted[at]);
        }
        self.0.commit_replicas().await
    }

    /// A replica that has promised nothing, in the place of one that the volume had here.
    ///
    /// # Errors
    /// [`StoreError::Full`] if the drive has as many as it can have, and others.
    pub async fn add_replica(&self, volume: VolumeId, replica: [u8; 16]) -> Result<(), StoreError> {
        {
            let mut wanted = self.0.promises.wanted.borrow_mut();
            let entry = ReplicaEntry::fresh(volume, replica);
            match wanted.binary_search_by_key(&volume, |r| r.volume) {
                Ok(at) => wanted[at] = entry,
                Err(_) if wanted.len() == REPLICAS_MAX => return Err(StoreError::Full),
                Err(at) => wanted.insert(at, entry),
            }
        }
        self.0.commit_replicas().await
    }

    /// Forgets a volume's replica. Its lanes are the caller's to delete.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn drop_replica(&self, volume: VolumeId) -> Result<(), StoreError> {
        {
            let mut wanted = self.0.promises.wanted.borrow_mut();
            match wanted.binary_search_by_key(&volume, |r| r.volume) {
                Ok(at) => drop(wanted.remove(at)),
                Err(_) => return Ok(()),
            }
        }
        self.0.commit_replicas().await
    }
}

impl Inner {
    /// Makes what is wanted durable, in both pairs of the superblock.
    async fn commit_replicas(&self) -> Result<(), StoreError> {
        let number = self.promises.changes.get() + 1;
        self.promises.changes.set(number);
        // One commit at a time: who has the buffer.
        let mut buffer = self.superblock_buffer.take().await;
        if self.promises.durable.get() >= number {
            return Ok(());
        }
        if self.stopped.get() {
            return Err(StoreError::Closed);
        }
        let carried = self.promises.changes.get();
        let mut next = self.superblock.borrow().clone();
        next.layout = self.committed_layout.get();
        next.replicas = self.promises.wanted.borrow().clone();
        next.replicas_version += 1;
        #[cfg(planted)]
        let pairs = match super::super::planted::is(super::super::planted::Bug::PromiseInOnePair) {
            true => 1,
            false => 2,
        };
        #[cfg(not(planted))]
        let pairs = 2;
        for _ in 0..pairs {
            let (back, done) = superblock::commit(&self.device, &mut next, buffer.lend()).await;
            buffer.back(back);
            let mut present = self.superblock.borrow_mut();
            present.sequence = next.sequence;
            done?;
            // Also if it is in one pair only for now: no later commit may have an older table.
            present.replicas.clone_from(&next.replicas);
            present.replicas_version = next.replicas_version;
        }
        self.promises.durable.set(carried);
        Ok(())
    }
}
