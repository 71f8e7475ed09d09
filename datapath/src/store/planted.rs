//! Bugs that tests plant on purpose, to show that the simulator finds each. Compiled only with `--cfg planted`, which no release has.

use std::sync::atomic::{AtomicU32, Ordering};

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Bug {
    /// S1 left out: a freed block is reused before a FLUSH.
    ReuseBeforeFlush = 1,
    /// S1 left out at a checkpoint: no FLUSH between pages and superblock.
    CheckpointWithoutFlush = 2,
    /// S2 left out: a damaged record below the watermark is dropped as if torn.
    RotIsTorn = 3,
    /// S3 left out: a replaced entry is freed whatever its generation.
    FreeShared = 4,
    /// S4 left out: a checkpoint drops the delta of writes that were in flight at its freeze.
    FreezeLosesInFlight = 5,
    /// S5 left out: a tombstone is not journaled.
    TombstoneNotJournaled = 6,
    /// S6 left out: writes may use the reserve.
    ReserveIsUsed = 7,
    /// S7 left out: journal blocks of older generations are replayed.
    OldGenerationReplays = 8,
    /// S7 left out: replay goes on behind a hole.
    ReplayBehindHole = 9,
    /// S8 left out: blocks freed by a merge are reused before the superblock that frees them.
    ReuseBeforeCommit = 10,
    /// The flush of a Flush command is dropped.
    FlushDropped = 11,
    /// A write is acknowledged before its data is written.
    AckBeforeData = 12,
    /// A write is acknowledged before its record is written.
    AckBeforeRecord = 13,
    /// Checksums of data are not compared.
    ChecksumNotCompared = 14,
    /// The journal's tail moves before the checkpoint is flushed.
    TailMovesEarly = 15,
    /// Torn records are not tested at opening.
    TornNotTested = 16,
    /// A record that lost a block is applied in part.
    HalfRecordApplied = 17,
    /// A superblock commit overwrites the present pair.
    SuperblockInPlace = 18,
    /// Blocks of replayed records are not marked in use.
    ReplayDoesNotMark = 19,
    /// An older overlapping write that completes later wins.
    LaterCompletionWins = 20,
    /// The watermark counts writes that completed after the flush was issued.
    WatermarkTooHigh = 21,
    /// A page's header is not compared: a misdirected page counts.
    PageHeaderNotCompared = 22,
    /// A deletion frees what the child still refers to.
    DeletionFreesShared = 23,
    /// The mount generation is not raised before the first write.
    MountGenerationNotRaised = 24,
    /// A reader's block may be reused under it.
    ReadersNotWaitedFor = 25,
    /// §13: lanes are used on their new drive before the checkpoint that makes them its.
    MoveNotCheckpointed = 26,
    /// §13: the source gives a family up before the destination has taken it.
    MoveLeftFirst = 27,
    /// §13: the source does not say that a lane is leaving.
    LeavingNotTold = 28,
    /// §13: a moved lane's stamps begin with the new drive's mount.
    MovedEpochLost = 29,
    /// §13: arriving records stay at opening.
    ArrivingKept = 30,
    /// §13: deletions walk what is being moved.
    PinsIgnored = 31,
    /// §13: lanes are not held while the last differences are copied.
    MoveNotHeld = 32,
    /// S7 left out: a journal write counts before those that it follows.
    JournalOutOfOrder = 33,
    /// Rule 9 left out: a promise is written to one pair of the superblock's copies.
    PromiseInOnePair = 34,
    /// Rule 5 left out: a record with a lower stamp replaces one with a higher.
    OlderStampReplaces = 35,
    /// Rule 14 left out: a checkpoint leaves records above settled behind.
    UnsettledNotCopied = 36,
    /// Rule 14 left out: blocks of records above settled are given back.
    SupersededNotKept = 37,
    /// What is settled is taken for durable before the journal says so.
    SettledNotWritten = 38,
    /// Rule 5 left out: a copy replaces what came by the stream.
    CopyReplacesNewer = 39,
    /// Of a block that is written again while its entry is in the delta, the tag stays that of the old one.
    TagOfOldBlock = 40,
}

/// All of them.
pub const ALL: [Bug; 40] = [
    Bug::ReuseBeforeFlush,
    Bug::CheckpointWithoutFlush,
    Bug::RotIsTorn,
    Bug::FreeShared,
    Bug::FreezeLosesInFlight,
    Bug::TombstoneNotJournaled,
    Bug::ReserveIsUsed,
    Bug::OldGenerationReplays,
    Bug::ReplayBehindHole,
    Bug::ReuseBeforeCommit,
    Bug::FlushDropped,
    Bug::AckBeforeData,
    Bug::AckBeforeRecord,
    Bug::ChecksumNotCompared,
    Bug::TailMovesEarly,
    Bug::TornNotTested,
    Bug::HalfRecordApplied,
    Bug::SuperblockInPlace,
    Bug::ReplayDoesNotMark,
    Bug::LaterCompletionWins,
    Bug::WatermarkTooHigh,
    Bug::PageHeaderNotCompared,
    Bug::DeletionFreesShared,
    Bug::MountGenerationNotRaised,
    Bug::ReadersNotWaitedFor,
    Bug::MoveNotCheckpointed,
    Bug::MoveLeftFirst,
    Bug::LeavingNotTold,
    Bug::MovedEpochLost,
    Bug::ArrivingKept,
    Bug::PinsIgnored,
    Bug::MoveNotHeld,
    Bug::JournalOutOfOrder,
    Bug::PromiseInOnePair,
    Bug::OlderStampReplaces,
    Bug::UnsettledNotCopied,
    Bug::SupersededNotKept,
    Bug::SettledNotWritten,
    Bug::CopyReplacesNewer,
    Bug::TagOfOldBlock,
];

static PLANTED: AtomicU32 = AtomicU32::new(0);

/// Plants a bug in this process, or none.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |b| b as u32), Ordering::Relaxed);
}

/// Whether this bug is planted.
pub fn is(bug: Bug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as u32
}
