//! Acknowledgements, and what the replica grants (`docs/replication.md` §5).

use super::WireError;
use super::bytes::{Cursor, put_zero};
use super::record::LANES_MAX;

/// Most records that are acknowledged one by one.
pub const EARLY_MAX: usize = 64;

/// What an acknowledgement says beside its lanes. All are counts since the session began, so one that is lost costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckHead {
    /// Number of the last flush that is done.
    pub flushed: u64,
    /// Records that may be sent.
    pub records: u64,
    /// Bytes of data that may be sent.
    pub bytes: u64,
    /// Blocks that the replica has room for.
    pub space: u64,
}

/// How far a lane's stream is here. Stable is not behind written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneAck {
    /// The lane.
    pub lane: u8,
    /// Every record up to this position is written.
    pub written: u64,
    /// And stable.
    pub stable: u64,
}

/// A record that is written before one in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Early {
    /// The lane.
    pub lane: u8,
    /// Its position.
    pub position: u64,
}

/// Appends the body of an Ack.
///
/// # Panics
/// If there are more lanes or early records than a frame may have.
pub fn encode(out: &mut Vec<u8>, head: &AckHead, lanes: &[LaneAck], early: &[Early]) {
    assert!(lanes.len() <= usize::from(LANES_MAX), "one for each lane");
    assert!(early.len() <= EARLY_MAX, "early ones within their bound");
    out.extend_from_slice(&[lanes.len() as u8, 0]);
    out.extend_from_slice(&(early.len() as u16).to_le_bytes());
    put_zero(out, 4);
    for n in [head.flushed, head.records, head.bytes, head.space] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    put_zero(out, 8);
    for l in lanes {
        out.push(l.lane);
        put_zero(out, 7);
        out.extend_from_slice(&l.written.to_le_bytes());
        out.extend_from_slice(&l.stable.to_le_bytes());
    }
    for e in early {
        out.push(e.lane);
        put_zero(out, 7);
        out.extend_from_slice(&e.position.to_le_bytes());
    }
}

/// An acknowledgement that came: all of it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Ack<'a> {
    /// What it says beside its lanes.
    pub head: AckHead,
    lanes: (usize, Cursor<'a>),
    early: (usize, Cursor<'a>),
}

impl<'a> Ack<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Ack of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("ack", body);
        let lanes = usize::from(c.u8()?);
        c.zero(1)?;
        let early = usize::from(c.u16()?);
        c.zero(4)?;
        let head = AckHead {
            flushed: c.u64()?,
            records: c.u64()?,
            bytes: c.u64()?,
            space: c.u64()?,
        };
        c.zero(8)?;
        if lanes > usize::from(LANES_MAX) || early > EARLY_MAX {
            return Err(WireError::Value {
                what: "entries of an ack",
                value: (lanes + early) as u64,
            });
        }
        let lanes = (lanes, c);
        for _ in 0..lanes.0 {
            lane(&mut c)?;
        }
        let early = (early, c);
        for _ in 0..early.0 {
            one(&mut c)?;
        }
        c.end()?;
        Ok(Self { head, lanes, early })
    }

    /// Its lanes.
    pub fn lanes(&self) -> impl Iterator<Item = LaneAck> + 'a {
        let (n, mut c) = self.lanes;
        (0..n).filter_map(move |_| lane(&mut c).ok())
    }

    /// Records beyond what its lanes say.
    pub fn early(&self) -> impl Iterator<Item = Early> + 'a {
        let (n, mut c) = self.early;
        (0..n).filter_map(move |_| one(&mut c).ok())
    }
}

fn lane_number(c: &mut Cursor<'_>) -> Result<u8, WireError> {
    let lane = c.u8()?;
    c.zero(7)?;
    if lane < LANES_MAX {
        return Ok(lane);
    }
    Err(WireError::Value {
        what: "lane of an ack",
        value: u64::from(lane),
    })
}

fn lane(c: &mut Cursor<'_>) -> Result<LaneAck, WireError> {
    let ack = LaneAck {
        lane: lane_number(c)?,
        written: c.u64()?,
        stable: c.u64()?,
    };
    if ack.stable <= ack.written {
        return Ok(ack);
    }
    Err(WireError::Value {
        what: "stable position beyond the written one",
        value: ack.stable,
    })
}

fn one(c: &mut Cursor<'_>) -> Result<Early, WireError> {
    Ok(Early {
        lane: lane_number(c)?,
        position: c.u64()?,
    })
}
