//! How far a resync is.

use std::cell::Cell;

use crate::replication::seam::Id;

/// Of the replica that is being brought back now, if there is one.
#[derive(Debug, Default)]
pub struct Progress {
    of: Cell<Option<Id>>,
    total: Cell<u64>,
    done: Cell<u64>,
    copied: Cell<u64>,
}

/// The same, as it is told to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which replica.
    pub replica: Id,
    /// Bytes of blocks that were compared, and copied where they differed.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
    /// Bytes of data that were copied.
    pub copied_bytes: u64,
}

impl Progress {
    /// A replica is compared from its first block on.
    pub fn begin(&self, of: Option<Id>, total: u64) {
        self.of.set(of);
        self.total.set(total);
        self.done.set(0);
        self.copied.set(0);
    }

    /// It is back, or is not brought back for now.
    pub fn end(&self) {
        self.of.set(None);
    }

    /// So many bytes are alike now.
    pub fn compared(&self, bytes: u64) {
        self.done.set(self.done.get().saturating_add(bytes));
    }

    /// So many were copied.
    pub fn add_copied(&self, bytes: u64) {
        self.copied.set(self.copied.get() + bytes);
    }

    /// Bytes of data that were copied.
    pub fn copied(&self) -> u64 {
        self.copied.get()
    }

    /// As it is told.
    pub fn report(&self) -> Option<Report> {
        Some(Report {
            replica: self.of.get()?,
            done_bytes: self.done.get(),
            total_bytes: self.total.get(),
            copied_bytes: self.copied.get(),
        })
    }
}
