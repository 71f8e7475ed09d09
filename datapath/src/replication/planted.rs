//! Rules of replication that tests leave out on purpose, to show that the simulator finds it. Only with `--cfg planted`, which no release has; without, nothing of
//! it is compiled: [`is`] is false.

/// A rule left out, or another mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Bug {
    /// A write is acknowledged, and a lease counted, by one member fewer than W.
    MinorityAck = 1,
    /// A takeover hears one member fewer than R.
    MinorityPromise = 2,
    /// Rule 1: a replica takes and confirms what comes from lower epochs.
    FenceSkipped = 3,
    /// Rule 1: a promise is given before what was admitted has run out.
    DrainSkipped = 4,
    /// Rule 1: a promise is not made durable.
    PromiseNotKept = 5,
    /// Rule 3: a member that is being excluded counts until the record has changed.
    DepartingCounts = 6,
    /// Rule 4: what is written, and not stable, settles and leaves the ring.
    SettledNotStable = 7,
    /// Rule 7: reads show what is not acknowledged.
    UnacknowledgedShown = 8,
    /// Rule 13: reads are answered without a lease.
    LeaseNotChecked = 9,
    /// Rule 14: what is above settled is not listed.
    ListEmpty = 10,
}

/// All of them.
#[cfg(all(test, planted))]
pub const ALL: [Bug; 10] = [
    Bug::MinorityAck,
    Bug::MinorityPromise,
    Bug::FenceSkipped,
    Bug::DrainSkipped,
    Bug::PromiseNotKept,
    Bug::DepartingCounts,
    Bug::SettledNotStable,
    Bug::UnacknowledgedShown,
    Bug::LeaseNotChecked,
    Bug::ListEmpty,
];

#[cfg(planted)]
static PLANTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Plants one in this process.
#[cfg(all(test, planted))]
pub fn plant(bug: Bug) {
    PLANTED.store(bug as u32, std::sync::atomic::Ordering::Relaxed);
}

/// Whether it is planted.
#[cfg(planted)]
pub fn is(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u32
}

/// Whether it is planted.
#[cfg(not(planted))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
