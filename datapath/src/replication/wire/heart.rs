//! Leases and flushes (`docs/replication.md` §§5, 8 and 9): Heartbeat, Heard, Flush.

use super::WireError;
use super::batch::{SETTLED_MAX, Settled};
use super::bytes::{Cursor, put_zero};
use super::items::{List, put_all};

const RELEASE: u8 = 1;

/// What a heartbeat says beside what is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Of this heartbeat on its channel.
    pub number: u64,
    /// When it was sent: nanoseconds of the coordinator's clock. Nobody else looks at it.
    pub sent_ns: u64,
    /// Of the set's record.
    pub version: u64,
    /// The coordinator has ended: its lease is given back.
    pub release: bool,
}

/// A lease is asked for, or given back.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat<'a> {
    /// What it says beside what is settled.
    pub beat: Beat,
    /// Lanes, some with [`HERE`](super::batch::HERE), and up to where each is settled.
    pub settled: List<'a, Settled>,
}

/// Appends the body of a Heartbeat.
///
/// # Panics
/// If there are more entries than two for each lane.
pub fn encode_heartbeat(out: &mut Vec<u8>, beat: &Beat, settled: &[Settled]) {
    assert!(
        settled.len() <= usize::from(SETTLED_MAX),
        "two for each lane"
    );
    for n in [beat.number, beat.sent_ns, beat.version] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    let flags = if beat.release { RELEASE } else { 0 };
    out.extend_from_slice(&[flags, settled.len() as u8]);
    put_zero(out, 6);
    put_all(out, settled);
}

impl<'a> Heartbeat<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Heartbeat of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("heartbeat", body);
        let (number, sent_ns, version) = (c.u64()?, c.u64()?, c.u64()?);
        let release = c.flags("flags of a heartbeat", RELEASE)? != 0;
        let n = c.u8()?;
        c.zero(6)?;
        if n > SETTLED_MAX {
            return Err(WireError::value("settled entries of a heartbeat", n));
        }
        let settled = List::take(&mut c, usize::from(n))?;
        c.end()?;
        let beat = Beat {
            number,
            sent_ns,
            version,
            release,
        };
        Ok(Self { beat, settled })
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Of the heartbeat.
    pub number: u64,
    /// Of the heartbeat.
    pub sent_ns: u64,
    /// A lease runs from its receiving on. If not, a higher epoch was asked for, or it was given back.
    pub lease: bool,
}

impl Heard {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.sent_ns.to_le_bytes());
        out.push(u8::from(!self.lease));
        put_zero(out, 7);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Heard of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("heard", body);
        let (number, sent_ns) = (c.u64()?, c.u64()?);
        let lease = c.flags("result of a heartbeat", 1)? == 0;
        c.zero(7)?;
        c.end()?;
        Ok(Self {
            number,
            sent_ns,
            lease,
        })
    }
}

/// What was written before it shall be stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Of this flush on its channel, from 1 on; an Ack says which are done.
    pub number: u64,
}

impl Flush {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Flush of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("flush", body);
        let number = c.u64()?;
        c.end()?;
        match number {
            0 => Err(WireError::value("number of a flush", number)),
            _ => Ok(Self { number }),
        }
    }
}
