//! Counting what was admitted and has not completed, so that who comes after can wait for it.

use std::cell::Cell;

use crate::reactor::Notify;

/// A count that can be waited for.
#[derive(Debug, Default)]
pub(super) struct Gate {
    count: Cell<usize>,
    idle: Notify,
}

impl Gate {
    pub(super) fn enter(&self) {
        self.count.set(self.count.get() + 1);
    }

    /// Returns whether that was the last.
    pub(super) fn leave(&self) -> bool {
        let left = self.count.get() - 1;
        self.count.set(left);
        if left == 0 {
            self.idle.notify_all();
        }
        left == 0
    }

    pub(super) fn is_idle(&self) -> bool {
        self.count.get() == 0
    }

    /// How many have not left.
    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    /// Waits until everything that entered has left. Nothing must enter any more.
    pub(super) async fn drained(&self) {
        while !self.is_idle() {
            self.idle.notified().await;
        }
    }
}
