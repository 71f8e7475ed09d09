//! Promises, and the set as replicas keep it (`docs/replication.md` §§5, 6 and 13): Promise, Promised, Set, Kept.

use super::WireError;
use super::bytes::{Cursor, put_zero};
use super::items::{List, put_all};
use super::open::{LaneState, put_lanes, take_lanes};
use crate::replication::seam::{Id, Standing};

/// Most replicas of a volume.
pub const REPLICAS_MAX: usize = 5;

const DEGRADED: u8 = 1;
const LEVEL: u8 = 1;

/// A promise of the frame's epoch is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The volume.
    pub volume: Id,
    /// The replica that is meant.
    pub replica: Id,
    /// Of the process that the epoch belongs to.
    pub incarnation: Id,
    /// Of the swap that gave the epoch.
    pub attempt: Id,
    /// Of the set's record.
    pub version: u64,
}

impl Promise {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        let ids = [self.volume, self.replica, self.incarnation, self.attempt];
        put_all(out, &ids);
        out.extend_from_slice(&self.version.to_le_bytes());
        put_zero(out, 8);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Promise of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("promise", body);
        let promise = Self {
            volume: c.array()?,
            replica: c.array()?,
            incarnation: c.array()?,
            attempt: c.array()?,
            version: c.u64()?,
        };
        c.zero(8)?;
        c.end()?;
        Ok(promise)
    }
}

/// What a promise says beside members and lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromisedHead {
    /// What the replica is besides.
    pub standing: Standing,
    /// Of a level one: the version that may name it; else 0.
    pub level: u64,
    /// Its unsettled lists are leaves, of one lane at least.
    pub degraded: bool,
    /// What it had promised before this was asked: epoch (0: nothing) and process.
    pub former: (u32, Id),
    /// Changes whenever what was written and not flushed may be gone.
    pub boot: Id,
    /// The newest set that it kept: epoch and version (0 and 0: none).
    pub set: (u32, u64),
}

/// A promise.
#[derive(Clone, Copy, Debug)]
pub struct Promised<'a> {
    /// What it says beside members and lanes.
    pub head: PromisedHead,
    /// Of the set that it kept.
    pub members: List<'a, Id>,
    /// Each lane.
    pub lanes: List<'a, LaneState>,
}

/// Appends the body of a Promised.
///
/// # Panics
/// If there are more members than a volume has replicas, or the lanes are not 0, 1, 2, …, at most 16.
pub fn encode_promised(
    out: &mut Vec<u8>,
    head: &PromisedHead,
    members: &[Id],
    lanes: &[LaneState],
) {
    assert!(members.len() <= REPLICAS_MAX, "members within their bound");
    let standing = match head.standing {
        Standing::Promised => 0,
        Standing::Resyncing => 1,
        Standing::Level => 2,
    };
    let flags = if head.degraded { DEGRADED } else { 0 };
    out.extend_from_slice(&[standing, flags, members.len() as u8, lanes.len() as u8]);
    out.extend_from_slice(&head.former.0.to_le_bytes());
    put_all(out, &[head.former.1, head.boot]);
    out.extend_from_slice(&head.level.to_le_bytes());
    out.extend_from_slice(&head.set.0.to_le_bytes());
    put_zero(out, 4);
    out.extend_from_slice(&head.set.1.to_le_bytes());
    put_all(out, members);
    put_lanes(out, lanes, |l| l.lane);
}

impl<'a> Promised<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Promised of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("promised", body);
        let standing = match c.u8()? {
            0 => Standing::Promised,
            1 => Standing::Resyncing,
            2 => Standing::Level,
            other => return Err(WireError::value("standing of a replica", other)),
        };
        let flags = c.flags("flags of a promised", DEGRADED)?;
        let (members, lanes) = (c.u8()?, c.u8()?);
        let former = (c.u32()?, c.array()?);
        let boot = c.array()?;
        let level = c.u64()?;
        let epoch = c.u32()?;
        c.zero(4)?;
        let version = c.u64()?;
        if standing != Standing::Level && level != 0 {
            return Err(WireError::value("level of one that is not", level));
        }
        let members = take_members(&mut c, members)?;
        let lanes = take_lanes(&mut c, lanes, |l: &LaneState| l.lane)?;
        c.end()?;
        if lanes.is_empty() {
            return Err(WireError::value("lanes of a promised", 0_u8));
        }
        if members.is_empty() && (epoch, version) != (0, 0) {
            return Err(WireError::value("version of no set", version));
        }
        let head = PromisedHead {
            standing,
            level,
            degraded: flags & DEGRADED != 0,
            former,
            boot,
            set: (epoch, version),
        };
        Ok(Self {
            head,
            members,
            lanes,
        })
    }
}

/// Members of a set, none of them twice.
fn take_members<'a>(c: &mut Cursor<'a>, n: u8) -> Result<List<'a, Id>, WireError> {
    if usize::from(n) > REPLICAS_MAX {
        return Err(WireError::value("members of a set", n));
    }
    let members = List::<Id>::take(c, usize::from(n))?;
    let twice = |(i, m): (usize, Id)| members.iter().take(i).any(|other| other == m);
    match members.iter().enumerate().any(twice) {
        false => Ok(members),
        true => Err(WireError::value("member that is there twice, of", n)),
    }
}

/// What a Set asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The set of this epoch, to be kept. A replica that it does not name is resyncing.
    Keep,
    /// The receiver, which is resyncing, is level if the set of this version names it (§11, 6).
    Level,
}

/// The set.
#[derive(Clone, Copy, Debug)]
pub struct Set<'a> {
    /// Its version.
    pub version: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// Replica ids, 1 to 5.
    pub members: List<'a, Id>,
}

/// Appends the body of a Set.
///
/// # Panics
/// If there are no members, or more than a volume has replicas.
pub fn encode_set(out: &mut Vec<u8>, version: u64, purpose: Purpose, members: &[Id]) {
    let bound = 1..=REPLICAS_MAX;
    assert!(bound.contains(&members.len()), "members within bounds");
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[members.len() as u8, purpose.bits()]);
    put_zero(out, 6);
    put_all(out, members);
}

impl<'a> Set<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Set of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("set", body);
        let version = c.u64()?;
        let n = c.u8()?;
        let purpose = Purpose::take(&mut c)?;
        c.zero(6)?;
        let members = take_members(&mut c, n)?;
        c.end()?;
        if members.is_empty() {
            return Err(WireError::value("members of a set", n));
        }
        Ok(Self {
            version,
            purpose,
            members,
        })
    }
}

impl Purpose {
    fn bits(self) -> u8 {
        match self {
            Self::Keep => 0,
            Self::Level => LEVEL,
        }
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        Ok(match c.flags("flags of a set", LEVEL)? {
            0 => Self::Keep,
            _ => Self::Level,
        })
    }
}

/// What a Set asked for is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the Set.
    pub version: u64,
    /// Of the Set.
    pub purpose: Purpose,
}

impl Kept {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_le_bytes());
        out.push(self.purpose.bits());
        put_zero(out, 7);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Kept of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("kept", body);
        let version = c.u64()?;
        let purpose = Purpose::take(&mut c)?;
        c.zero(7)?;
        c.end()?;
        Ok(Self { version, purpose })
    }
}
