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
    /// Rule 2: a node that holds the volume, and restarted, goes on in its epoch; replicas do not compare incarnations.
    SameEpochAgain = 11,
    /// Rule 13: a lease is counted from the last heartbeat before the answer, not from the one that is answered.
    LeaseFromAnswer = 12,
    /// Rule 13: a replica that restarted waits for no lease that it may have given.
    LeaseForgotten = 13,
    /// Rule 4: a member is excluded before what is acknowledged is stable on those that stay.
    NotLevelled = 14,
    /// Rule 3: the new set alone counts from the sending of a change on.
    NewSetAlone = 15,
    /// Rule 3: the record is written without a look at its version.
    BlindSwap = 16,
    /// Rule 3: a takeover takes K2 for done when it is sent.
    SwapNotDone = 17,
    /// Rule 17: a set gets smaller than the minimum.
    BelowMinimum = 18,
    /// Rule 1: what has run out before a promise is not flushed, and listed as if it were.
    PromiseNotFlushed = 19,
    /// Rule 4: the ring is released up to what one member has.
    RingReleasedEarly = 20,
    /// Rule 14: a takeover completes only what all who take part have listed.
    ListedByAll = 21,
    /// Takeover, step 6: K2 is sent before all who take part have everything.
    TakeoverNotStable = 22,
    /// Rule 5: a copy replaces what is above s0, too.
    CopyReplacesLive = 23,
    /// Rule 5: a copy leaves a higher stamp alone, also one of an abandoned epoch.
    HigherStampWins = 24,
    /// Rule 5: blocks are copied from a member that has not everything up to s0.
    SourceBehind = 25,
    /// Rule 5: a replica joins before everything was compared.
    JoinsBehind = 26,
    /// Rule 6: what is erased is forgotten when it is settled, also where blocks are copied to.
    ReclaimedInResync = 27,
    /// §11: a repair replaces whatever is there.
    RepairUnchecked = 28,
    /// Rule 8: a forwarded command gets its stamp when it is confirmed.
    NotReserved = 29,
    /// Rule 8: a forwarder does not ask whether the host still holds a command.
    NotConfirmed = 30,
    /// Rule 8: a forwarder sends a command to another coordinator than the one it began with.
    GoesToTheNext = 31,
    /// Rule 8: what is settled passes open reservations, and does not void them.
    SettledPasses = 32,
    /// Rule 12: a replica flushes neither before a snapshot nor behind it.
    SnapshotNotFlushed = 33,
    /// Rule 12: a snapshot is applied beside what came before it and behind it in its lane.
    SnapshotOvertakes = 34,
    /// Rule 12: a snapshot is said to exist before all members have it.
    SnapshotNamedEarly = 35,
    /// Rule 12: lanes get their snapshot records one after the other, 20 ms apart.
    SnapshotNoBarrier = 36,
    /// Rule 12: a takeover keeps a snapshot that some who take part lack.
    SnapshotVoidKept = 37,
    /// §12: a replica that is being copied to stays in the stream when a snapshot is taken.
    SnapshotWhileCopied = 38,
    /// §12: a replica that comes back is not given the snapshots that it lacks.
    SnapshotsNotCopied = 39,
    /// §22: what comes behind a snapshot that is for several volumes is acknowledged at once.
    GroupNotHeld = 40,
    /// §22: one whose time had passed is said to have been held until it was released.
    GroupExpiredCounts = 41,
    /// §22: snapshots of several volumes become ready whatever epochs there are by then.
    GroupEpochIgnored = 42,
    /// Rule 10: after a restore of the KVDB the members of its record are believed.
    RestoreBelieved = 43,
    /// §8, lists: a record that a full list has no room for is refused, in a takeover as well.
    FullListRefuses = 44,
    /// §11, 3: a replica that is copied to is told that all is there that is settled.
    HereIsSettled = 45,
}

/// All of them.
#[cfg(all(test, planted))]
pub const ALL: [Bug; 45] = [
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
    Bug::SameEpochAgain,
    Bug::LeaseFromAnswer,
    Bug::LeaseForgotten,
    Bug::NotLevelled,
    Bug::NewSetAlone,
    Bug::BlindSwap,
    Bug::SwapNotDone,
    Bug::BelowMinimum,
    Bug::PromiseNotFlushed,
    Bug::RingReleasedEarly,
    Bug::ListedByAll,
    Bug::TakeoverNotStable,
    Bug::CopyReplacesLive,
    Bug::HigherStampWins,
    Bug::SourceBehind,
    Bug::JoinsBehind,
    Bug::ReclaimedInResync,
    Bug::RepairUnchecked,
    Bug::NotReserved,
    Bug::NotConfirmed,
    Bug::GoesToTheNext,
    Bug::SettledPasses,
    Bug::SnapshotNotFlushed,
    Bug::SnapshotOvertakes,
    Bug::SnapshotNamedEarly,
    Bug::SnapshotNoBarrier,
    Bug::SnapshotVoidKept,
    Bug::SnapshotWhileCopied,
    Bug::SnapshotsNotCopied,
    Bug::GroupNotHeld,
    Bug::GroupExpiredCounts,
    Bug::GroupEpochIgnored,
    Bug::RestoreBelieved,
    Bug::FullListRefuses,
    Bug::HereIsSettled,
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
