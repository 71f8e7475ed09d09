//! Credits (`docs/replication.md` §5): absolute counts of records and bytes since the session's start, so a lost acknowledgement costs nothing.
//!
//! The receiver has [`Grants`], the sender a [`Credit`]; both are of a session, whatever the channel. A sender begins with nothing: the first grant comes with
//! the first Ack.

use std::cell::Cell;

use super::limits::{WINDOW_BYTES, WINDOW_RECORDS};
use crate::reactor::Notify;

/// Records, and bytes of their data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Records.
    pub records: u64,
    /// Bytes of data.
    pub bytes: u64,
}

impl Amount {
    /// That many of each.
    pub fn new(records: u64, bytes: u64) -> Self {
        Self { records, bytes }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn within(self, other: Self) -> bool {
        self.records <= other.records && self.bytes <= other.bytes
    }
}

/// What a sender may send.
#[derive(Debug, Default)]
pub struct Credit {
    granted: Cell<Amount>,
    used: Cell<Amount>,
    changed: Notify,
}

impl Credit {
    /// Uses some, if there is that much.
    #[must_use]
    pub fn take(&self, amount: Amount) -> bool {
        let used = self.used.get().plus(amount);
        let fits = used.within(self.granted.get());
        if fits {
            self.used.set(used);
        }
        fits
    }

    /// What there is.
    pub fn left(&self) -> Amount {
        let (granted, used) = (self.granted.get(), self.used.get());
        Amount::new(granted.records - used.records, granted.bytes - used.bytes)
    }

    /// The receiver granted so much, counted from the session's start. Less than before changes nothing.
    pub fn granted(&self, total: Amount) {
        let old = self.granted.get();
        let new = Amount::new(old.records.max(total.records), old.bytes.max(total.bytes));
        if new != old {
            self.granted.set(new);
            self.changed.notify_all();
        }
    }

    /// Waits until more is granted; whoever waits is also told when the session ends.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }
}

/// The sender used more than it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more was sent than was granted")]
pub struct OverCredit;

/// What a receiver lets come.
#[derive(Debug)]
pub struct Grants {
    window: Amount,
    came: Cell<Amount>,
    done: Cell<Amount>,
}

impl Default for Grants {
    fn default() -> Self {
        Self::new(Amount::new(WINDOW_RECORDS, WINDOW_BYTES))
    }
}

impl Grants {
    /// That much may be here at once.
    pub fn new(window: Amount) -> Self {
        Self {
            window,
            came: Cell::default(),
            done: Cell::default(),
        }
    }

    /// So much came.
    ///
    /// # Errors
    /// That is more than was granted: the session ends.
    pub fn come(&self, amount: Amount) -> Result<(), OverCredit> {
        let came = self.came.get().plus(amount);
        if !came.within(self.granted()) {
            return Err(OverCredit);
        }
        self.came.set(came);
        Ok(())
    }

    /// So much of what came is done with, and its memory is free.
    ///
    /// # Panics
    /// If that is more than came.
    pub fn done(&self, amount: Amount) {
        let done = self.done.get().plus(amount);
        assert!(done.within(self.came.get()), "done with what came");
        self.done.set(done);
    }

    /// What is granted by now, as it goes into an Ack.
    pub fn granted(&self) -> Amount {
        self.done.get().plus(self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_grant_that_comes_late_or_twice_changes_nothing() {
        let credit = Credit::default();
        assert!(!credit.take(Amount::new(1, 0)));
        credit.granted(Amount::new(3, 8192));
        credit.granted(Amount::new(2, 4096));
        assert!(credit.take(Amount::new(2, 8192)));
        assert!(!credit.take(Amount::new(1, 4096)), "no bytes are left");
        assert!(credit.take(Amount::new(1, 0)));
        assert_eq!(credit.left(), Amount::default());
    }

    proptest! {
        /// Whoever takes only what it has never breaks the receiver's bound; who sends one record more does at once.
        #[test]
        fn what_is_granted_is_what_is_taken(steps in prop::collection::vec((0u64..4, 0u64..4, any::<bool>()), 1..200)) {
            let window = Amount::new(8, 8);
            let (grants, credit) = (Grants::new(window), Credit::default());
            let mut here = Amount::default();
            credit.granted(grants.granted());
            for (records, bytes, told) in steps {
                let amount = Amount::new(records, bytes);
                if credit.take(amount) {
                    prop_assert_eq!(grants.come(amount), Ok(()));
                    here = here.plus(amount);
                    prop_assert!(here.within(window));
                } else {
                    let done = Amount::new(here.records.min(records), here.bytes.min(bytes));
                    grants.done(done);
                    here = Amount::new(here.records - done.records, here.bytes - done.bytes);
                    if told {
                        credit.granted(grants.granted());
                    }
                }
            }
            let over = Amount::new(window.records - here.records + 1, 0);
            prop_assert_eq!(grants.come(over), Err(OverCredit));
        }
    }
}
