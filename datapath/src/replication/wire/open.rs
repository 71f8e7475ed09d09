//! How a channel begins and how its streams go on (`docs/replication.md` §5): Open, Opened, Feed. Close has no body.

use super::WireError;
use super::bytes::{Cursor, put_stamp, put_zero};
use super::items::{Item, List, put_all};
use super::record::LANES_MAX;
use crate::replication::seam::Id;
use crate::store::types::Stamp;

/// Longest lease, milliseconds.
pub const LEASE_MS_MAX: u32 = 60_000;

const OPEN_SUBSCRIBE: u8 = 1;
const OPEN_FORWARD: u8 = 2;
const LANE_LOST: u8 = 1;
const LANE_RESYNCING: u8 = 2;

/// A channel is asked for. Its epoch and number are in the frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The volume.
    pub volume: Id,
    /// Of the process that the epoch belongs to.
    pub incarnation: Id,
    /// To whom.
    pub to: Target,
}

/// Whom a channel leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The coordinator opens it to a replica.
    Replica {
        /// Which.
        id: Id,
        /// Of the set's record.
        version: u64,
        /// Lanes of the volume, 1 to 16.
        lanes: u8,
        /// Time of a lease, 1 to [`LEASE_MS_MAX`].
        lease_ms: u32,
        /// It is fed from s0 on, and copied to (§11).
        subscribe: bool,
    },
    /// Another node opens it to the coordinator, to forward commands.
    Coordinator,
}

impl Open {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        let (id, version, lanes, flags, lease) = match self.to {
            Target::Replica {
                id,
                version,
                lanes,
                lease_ms,
                subscribe,
            } => (
                id,
                version,
                lanes,
                if subscribe { OPEN_SUBSCRIBE } else { 0 },
                lease_ms,
            ),
            Target::Coordinator => ([0; 16], 0, 0, OPEN_FORWARD, 0),
        };
        put_all(out, &[self.volume, id, self.incarnation]);
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&[lanes, flags]);
        put_zero(out, 6);
        out.extend_from_slice(&lease.to_le_bytes());
        put_zero(out, 4);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Open of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("open", body);
        let volume = c.array()?;
        let id = c.array()?;
        let incarnation = c.array()?;
        let version = c.u64()?;
        let lanes = c.u8()?;
        let flags = c.flags("flags of an open", OPEN_SUBSCRIBE | OPEN_FORWARD)?;
        c.zero(6)?;
        let lease_ms = c.u32()?;
        c.zero(4)?;
        c.end()?;
        let to = if flags & OPEN_FORWARD == 0 {
            if !(1..=LANES_MAX).contains(&lanes) {
                return Err(WireError::value("lanes of an open", lanes));
            }
            if !(1..=LEASE_MS_MAX).contains(&lease_ms) {
                return Err(WireError::value("lease of an open", lease_ms));
            }
            Target::Replica {
                id,
                version,
                lanes,
                lease_ms,
                subscribe: flags & OPEN_SUBSCRIBE != 0,
            }
        } else {
            let nothing = (id, version, lanes, lease_ms) == ([0; 16], 0, 0, 0);
            if flags != OPEN_FORWARD || !nothing {
                return Err(WireError::value("flags of an open", flags));
            }
            Target::Coordinator
        };
        Ok(Self {
            volume,
            incarnation,
            to,
        })
    }
}

/// A lane of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneState {
    /// Its number.
    pub lane: u8,
    /// Up to where it is known to be settled.
    pub settled: Stamp,
    /// Position in this epoch's stream; 0: not known.
    pub written: u64,
    /// The same, for what is stable; not behind `written`.
    pub stable: u64,
    /// It is gone: the replica is not complete.
    pub lost: bool,
    /// It is being copied to.
    pub resyncing: bool,
}

impl Item for LaneState {
    const BYTES: usize = 40;

    fn put(&self, out: &mut Vec<u8>) {
        put_stamp(out, self.settled);
        put_zero(out, 4);
        out.extend_from_slice(&self.written.to_le_bytes());
        out.extend_from_slice(&self.stable.to_le_bytes());
        let lost = if self.lost { LANE_LOST } else { 0 };
        let resyncing = if self.resyncing { LANE_RESYNCING } else { 0 };
        out.extend_from_slice(&[self.lane, lost | resyncing]);
        put_zero(out, 6);
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        let settled = c.stamp()?;
        c.zero(4)?;
        let (written, stable) = (c.u64()?, c.u64()?);
        let lane = c.lane("lane of a lane state")?;
        let flags = c.flags("flags of a lane state", LANE_LOST | LANE_RESYNCING)?;
        c.zero(6)?;
        if stable > written {
            return Err(WireError::value(
                "stable position beyond the written one",
                stable,
            ));
        }
        Ok(Self {
            lane,
            settled,
            written,
            stable,
            lost: flags & LANE_LOST != 0,
            resyncing: flags & LANE_RESYNCING != 0,
        })
    }
}

/// Items of which each lane of a volume has one, in the order of the lanes.
pub(super) fn take_lanes<'a, T: Item>(
    c: &mut Cursor<'a>,
    n: u8,
    lane: impl Fn(&T) -> u8,
) -> Result<List<'a, T>, WireError> {
    if n > LANES_MAX {
        return Err(WireError::value("lanes of a volume", n));
    }
    let lanes = List::take(c, usize::from(n))?;
    let wrong = lanes
        .iter()
        .map(|t| lane(&t))
        .zip(0..)
        .find(|(a, b)| a != b);
    match wrong {
        None => Ok(lanes),
        Some((lane, _)) => Err(WireError::value("lane out of order", lane)),
    }
}

/// Appends those.
///
/// # Panics
/// If they are not one for each lane, in order.
pub(super) fn put_lanes<T: Item>(out: &mut Vec<u8>, items: &[T], lane: impl Fn(&T) -> u8) {
    let in_order = items.iter().map(lane).eq(0..items.len() as u8);
    assert!(in_order, "one for each lane, in order");
    assert!(items.len() <= usize::from(LANES_MAX), "one for each lane");
    put_all(out, items);
}

/// The channel is open.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// Changes whenever what was written and not flushed may be gone.
    pub boot: Id,
    /// Lanes of the replica; none on a channel for forwarding.
    pub lanes: List<'a, LaneState>,
}

/// Appends the body of an Opened.
///
/// # Panics
/// If the lanes are not 0, 1, 2, …, at most 16.
pub fn encode_opened(out: &mut Vec<u8>, boot: Id, lanes: &[LaneState]) {
    out.push(lanes.len() as u8);
    put_zero(out, 7);
    out.extend_from_slice(&boot);
    put_lanes(out, lanes, |l| l.lane);
}

impl<'a> Opened<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Opened of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("opened", body);
        let n = c.u8()?;
        c.zero(7)?;
        let boot = c.array()?;
        let lanes = take_lanes(&mut c, n, |l: &LaneState| l.lane)?;
        c.end()?;
        Ok(Self { boot, lanes })
    }
}

/// Where a lane's stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneFeed {
    /// The lane.
    pub lane: u8,
    /// The next record that comes has this position + 1.
    pub after: u64,
    /// Of a channel that subscribes: the last stamp given before what comes. Else zero.
    pub s0: Stamp,
}

impl Item for LaneFeed {
    const BYTES: usize = 32;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.lane);
        put_zero(out, 7);
        out.extend_from_slice(&self.after.to_le_bytes());
        put_stamp(out, self.s0);
        put_zero(out, 4);
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        let lane = c.lane("lane of a feed")?;
        c.zero(7)?;
        let after = c.u64()?;
        let s0 = c.stamp()?;
        c.zero(4)?;
        Ok(Self { lane, after, s0 })
    }
}

/// Where the streams go on: once, before the first batch.
#[derive(Clone, Copy, Debug)]
pub struct Feed<'a> {
    /// Each lane.
    pub lanes: List<'a, LaneFeed>,
}

/// Appends the body of a Feed.
///
/// # Panics
/// If the lanes are not 0, 1, 2, …, at most 16.
pub fn encode_feed(out: &mut Vec<u8>, lanes: &[LaneFeed]) {
    out.push(lanes.len() as u8);
    put_zero(out, 7);
    put_lanes(out, lanes, |l| l.lane);
}

impl<'a> Feed<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Feed of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("feed", body);
        let n = c.u8()?;
        c.zero(7)?;
        let lanes = take_lanes(&mut c, n, |l: &LaneFeed| l.lane)?;
        c.end()?;
        if lanes.is_empty() {
            return Err(WireError::value("lanes of a feed", n));
        }
        Ok(Self { lanes })
    }
}
