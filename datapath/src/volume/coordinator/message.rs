//! What a coordinator says to replicas and hears from them (`docs/replication.md` §5), without the bytes. Epoch, incarnation, volume and replica are those
//! of the channel.

use std::rc::Rc;
use std::time::Duration;

use super::flush::Token;
use super::members::Place;
use super::ring::Out;
use super::set::{Outcome, Request};
use crate::replication::held::{Held, What};
use crate::replication::seam::{Id, KeptSet, Standing};
use crate::replication::wire::ack::{AckHead, Early, LaneAck};
use crate::replication::wire::refused::Reason;
use crate::store::types::{SnapshotId, Stamp};

/// Lanes, and up to where each is settled.
pub type SettledLanes = Vec<(u8, Stamp)>;

/// To a replica.
#[derive(Clone, Debug)]
pub enum Message {
    /// Refuse everything lower from now on.
    Promise {
        /// Of the set's record.
        version: u64,
        /// Of the attach.
        attempt: Id,
    },
    /// Which records of a lane are above this?
    List {
        /// The lane.
        lane: u8,
        /// The last that is known; at first the settled one.
        after: Stamp,
    },
    /// A record with its data.
    Fetch {
        /// The lane.
        lane: u8,
        /// Its stamp.
        stamp: Stamp,
    },
    /// Follow.
    Open {
        /// Of the set's record.
        version: u64,
        /// It is no member, and subscribes.
        subscribe: bool,
        /// T.
        lease_ms: u32,
    },
    /// Where the streams go on: the next record of a lane has its position + 1.
    Feed {
        /// Each lane with its position, and s0 of a subscription.
        lanes: Vec<(u8, u64, Option<Stamp>)>,
    },
    /// Records of streams.
    Batch {
        /// What is settled.
        settled: SettledLanes,
        /// The records.
        records: Vec<Out>,
    },
    /// I am here.
    Heartbeat {
        /// Rises.
        number: u64,
        /// Of the set's record.
        version: u64,
        /// The lease is given back.
        release: bool,
        /// What is settled.
        settled: SettledLanes,
    },
    /// Make stable what came before this.
    Flush {
        /// Rises.
        number: u64,
    },
    /// Keep this set.
    Set {
        /// Of the set's record.
        version: u64,
        /// Its members.
        members: Vec<Id>,
        /// Note: you are level, and count if the record of this version names you, as these will be. What was kept stays.
        level: bool,
    },
    /// These snapshots exist, or are being taken; others are to be deleted.
    Snapshots {
        /// Rises.
        number: u64,
        /// What some lanes lack is to be deleted, too: it comes again, by copies.
        whole: bool,
        /// The snapshots.
        ids: Vec<SnapshotId>,
    },
    /// The channel ends.
    Close,
}

/// How far a lane is at a replica that opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneState {
    /// Its lane, and its positions in this epoch's stream; 0: not known.
    pub at: LaneAck,
    /// The highest settled stamp that it was told.
    pub settled: Stamp,
    /// It is lost.
    pub lost: bool,
}

/// What a replica says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Changes when what was written and not flushed may be gone.
    pub boot: Id,
    /// Every lane.
    pub lanes: Vec<LaneState>,
    /// It is being copied to, or was.
    pub standing: Standing,
    /// The version that it is level for, if that is its standing.
    pub level: u64,
    /// Its list has degraded to leaves (rule 16).
    pub leaves: bool,
    /// The newest set that it kept.
    pub kept: KeptSet,
}

/// From a replica.
#[derive(Clone, Debug)]
pub enum Said {
    /// It promised.
    Promised(State),
    /// Records without data; `last` if there are no more.
    Listed {
        /// The lane.
        lane: u8,
        /// In stamp order.
        records: Vec<Rc<Held>>,
        /// There are no more.
        last: bool,
    },
    /// A record with data, or none: it has it no more, or it is damaged.
    Fetched {
        /// The lane.
        lane: u8,
        /// Its stamp.
        stamp: Stamp,
        /// The record.
        held: Option<Rc<Held>>,
    },
    /// It follows.
    Opened(State),
    /// What it has.
    Ack {
        /// What it grants.
        head: AckHead,
        /// How far its lanes are.
        lanes: Vec<LaneAck>,
        /// Records before others.
        early: Vec<Early>,
    },
    /// It heard a heartbeat.
    Heard {
        /// Which.
        number: u64,
        /// It was asked for a higher epoch, and renews nothing.
        asked: bool,
    },
    /// It has these of the snapshots that were named, in all lanes.
    Having {
        /// Of the question.
        number: u64,
        /// The snapshots.
        ids: Vec<SnapshotId>,
    },
    /// It has a block damaged.
    Damaged {
        /// The lane.
        lane: u8,
        /// The block.
        block: u64,
    },
    /// It keeps a set.
    Kept {
        /// Of this version.
        version: u64,
        /// It is only noted that the replica is level for it.
        level: bool,
    },
    /// It refuses, and the channel has ended.
    Refused {
        /// Why.
        reason: Reason,
        /// The highest that it promised.
        epoch: u32,
    },
}

/// What happens to a coordinator.
#[derive(Debug)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// There is a session to a replica.
    Connected(Place),
    /// It has ended.
    Lost(Place),
    /// A replica says something.
    Said(Place, Said),
    /// What came of a change of the record.
    Outcome(Outcome),
    /// A host writes or erases.
    Write {
        /// Names the command.
        token: Token,
        /// The lane.
        lane: u8,
        /// What it does, with its data.
        what: What,
        /// It must be on stable media when it is done.
        fua: bool,
        /// Its stamps were reserved by this command (§14).
        given: Option<u64>,
    },
    /// A host flushes.
    Flush(Token),
    /// A snapshot is to be taken.
    Snapshot(Token, SnapshotId),
    /// A snapshot is to be put in, and what comes behind it held for so long at most, or until it is released (§22).
    HoldSnapshot(Token, SnapshotId, Duration),
    /// What came behind it may be acknowledged.
    ReleaseSnapshot(Token, SnapshotId),
    /// A snapshot is to be deleted.
    DeleteSnapshot(Token, SnapshotId),
    /// A replica was given the snapshots that it lacked.
    Prepared(Place),
    /// A replica is to be fed from now on: it will be copied to.
    Subscribe(Place),
    /// A replica is to join the set, or leave, or the like.
    Change(Wish),
    /// Serve no more.
    Detach,
}

/// A change that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A subscriber that was copied to joins.
    Join(Place),
    /// A member leaves.
    Exclude(Place),
    /// A replica is added.
    Add(Id),
    /// One is to go; a member leaves the set by it.
    Leave(Id),
    /// One that was going is gone.
    Remove(Id),
    /// Another minimum.
    Minimum(u8),
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// Too few replicas could be reached for as long as the volume waits: another path, or a later try, may do.
    #[error("too few replicas are reachable")]
    Stalled,
    /// This coordinator has ended: another serves the volume.
    #[error("the volume is served elsewhere")]
    Ended,
    /// A replica has no space for it.
    #[error("a replica has no space left")]
    Full,
    /// More wait than may.
    #[error("too many operations wait")]
    Busy,
    /// Its stamps were reserved, and the reservation is void: another path, or a later try, may do.
    #[error("the reservation of its stamps is void")]
    Void,
    /// A snapshot of this id was begun in an earlier epoch and never existed: another one may be taken, under another id.
    #[error("the snapshot was interrupted by a takeover and does not exist: take another one")]
    NeverTaken,
    /// It is one of several volumes' snapshots of one moment, and was not held until all of them were there: they are none.
    #[error("other volumes' snapshots of the same moment came too late: take all of them again")]
    NotHeld,
    /// The volume has as many snapshots as it may.
    #[error("the volume has as many snapshots as it can have: delete some first")]
    TooMany,
    /// The blocks are damaged on every replica that was asked.
    #[error("the data is damaged")]
    Damaged,
    /// The blocks of no replica that was asked are what was encrypted.
    #[error("encrypted data does not match its authentication tag")]
    NotOpened,
}

/// Why a coordinator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is a higher epoch.
    Epoch(u32),
    /// The record is another's.
    Conflict,
    /// It was told to.
    Detached,
    /// Too few of those who took part in its takeover are left: a new epoch finds out what is there.
    Again,
    /// Two records of one stamp (invariant 3), or the record of this epoch is not as it was asked for: a person looks.
    Alarm(&'static str),
}

/// What a coordinator wants done.
#[derive(Debug)]
pub enum Action {
    /// Say this to a replica.
    Send(Place, Message),
    /// Send this change to the KVDB.
    Submit(Request),
    /// A command is done.
    Done(Token, Result<(), Failed>),
    /// A replica's session breaks the protocol: end it.
    Cut(Place),
    /// The volume is served.
    Serving,
    /// Fewer than a quorum is reachable, or again enough.
    Stalled(bool),
    /// The set has changed.
    SetChanged,
    /// There is another replica: it may be reached from now on.
    Added(Place),
    /// A replica goes, or has gone: nothing is said to it any more.
    Gone(Place),
    /// A member has a block damaged: it is to have it from another one.
    Repair(Place, u8, u64),
    /// A wish was not met.
    NotMet(Wish),
    /// It has ended.
    Ended(End),
}
