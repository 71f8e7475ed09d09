//! Unsettled records as a takeover reads them (`docs/replication.md` §§5 and 10): List, Listed, Fetch, Fetched.

use super::WireError;
use super::batch::RECORDS_MAX;
use super::bytes::{Cursor, put_stamp, put_zero};
use super::frame::BODY_BYTES_MAX;
use super::record::{Record, flag};
use crate::store::types::{BLOCK_BYTES, Stamp};

/// Most leaves of a Listed.
pub const LEAVES_MAX: usize = 4096;
/// Leaves of a lane are numbered below this: 2^40 blocks, of which the smaller kind of leaf has 94.
pub const LEAF_MAX: u64 = 1 << 34;

const LAST: u8 = 1;
const LEAVES: u8 = 2;
const HEAD_BYTES: usize = 8;

/// A part of a lane's list is asked for. Which of the two places counts depends on whether the list has degraded to leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListAsk {
    /// The lane.
    pub lane: u8,
    /// Records with higher stamps.
    pub after: Stamp,
    /// Leaves from this one on.
    pub leaf: u64,
}

impl ListAsk {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.lane);
        put_zero(out, 3);
        put_stamp(out, self.after);
        out.extend_from_slice(&self.leaf.to_le_bytes());
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no List of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("list", body);
        let lane = c.lane("lane of a list")?;
        c.zero(3)?;
        let after = c.stamp()?;
        let leaf = leaf(&mut c)?;
        c.end()?;
        Ok(Self { lane, after, leaf })
    }
}

/// A leaf's number.
pub(super) fn leaf(c: &mut Cursor<'_>) -> Result<u64, WireError> {
    match c.u64()? {
        n if n < LEAF_MAX => Ok(n),
        other => Err(WireError::value("number of a leaf", other)),
    }
}

/// A part of a list that is being put together, in room that is kept.
#[derive(Debug, Default)]
pub struct ListedWriter {
    body: Vec<u8>,
    lane: u8,
    count: u16,
    flags: u8,
}

impl ListedWriter {
    /// Begins one of records.
    pub fn records(&mut self, lane: u8) {
        self.begin(lane, 0);
    }

    /// Begins one of leaves.
    pub fn leaves(&mut self, lane: u8) {
        self.begin(lane, LEAVES);
    }

    fn begin(&mut self, lane: u8, flags: u8) {
        self.body.clear();
        put_zero(&mut self.body, HEAD_BYTES);
        (self.lane, self.count, self.flags) = (lane, 0, flags);
    }

    /// Adds a record, if there is room. They go in stamp order, flagged as listed and at position 0.
    ///
    /// # Panics
    /// If it is not such a record of this lane.
    #[must_use]
    pub fn add(&mut self, record: &Record<'_>) -> bool {
        let listed = record.head.flags & flag::LISTED != 0 && record.head.position == 0;
        assert!(listed, "a record as lists have it");
        assert!(record.head.lane == self.lane, "a record of this lane");
        assert!(self.flags == 0, "a list of records");
        let fits = usize::from(self.count) < RECORDS_MAX
            && self.body.len() + record.bytes() <= BODY_BYTES_MAX;
        if fits {
            record.put(&mut self.body);
            self.count += 1;
        }
        fits
    }

    /// Adds a leaf, if there is room. They go in order.
    ///
    /// # Panics
    /// If this is a list of records.
    #[must_use]
    pub fn add_leaf(&mut self, leaf: u64) -> bool {
        assert!(self.flags == LEAVES, "a list of leaves");
        let fits = usize::from(self.count) < LEAVES_MAX;
        if fits {
            self.body.extend_from_slice(&leaf.to_le_bytes());
            self.count += 1;
        }
        fits
    }

    /// The body; `last` if nothing comes after it.
    pub fn finish(&mut self, last: bool) -> &[u8] {
        self.body[0] = self.lane;
        self.body[1] = self.flags | if last { LAST } else { 0 };
        self.body[2..4].copy_from_slice(&self.count.to_le_bytes());
        &self.body
    }
}

/// A part of a lane's list that came: all of it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The lane.
    pub lane: u8,
    /// Nothing comes after it.
    pub last: bool,
    /// Of leaves: the list has degraded, and these were written since settled.
    pub leaves: bool,
    items: Cursor<'a>,
    count: u16,
}

impl<'a> Listed<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Listed of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("listed", body);
        let lane = c.lane("lane of a listed")?;
        let flags = c.flags("flags of a listed", LAST | LEAVES)?;
        let count = c.u16()?;
        c.zero(4)?;
        let leaves = flags & LEAVES != 0;
        let bound = if leaves { LEAVES_MAX } else { RECORDS_MAX };
        // A part without anything is only the last one: else nobody gets to the end.
        if usize::from(count) > bound || count == 0 && flags & LAST == 0 {
            return Err(WireError::value("entries of a listed", count));
        }
        let items = c;
        if leaves {
            in_order(&mut c, count)?;
        } else {
            records(&mut c, lane, count)?;
        }
        c.end()?;
        Ok(Self {
            lane,
            last: flags & LAST != 0,
            leaves,
            items,
            count,
        })
    }

    /// Its records, in stamp order; none if it is of leaves.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let mut c = self.items;
        let n = if self.leaves { 0 } else { self.count };
        (0..n).filter_map(move |_| Record::take(&mut c).ok())
    }

    /// Its leaves, in order; none if it is of records.
    pub fn leaves(&self) -> impl Iterator<Item = u64> + use<'a> {
        let mut c = self.items;
        let n = if self.leaves { self.count } else { 0 };
        (0..n).filter_map(move |_| c.u64().ok())
    }
}

fn in_order(c: &mut Cursor<'_>, count: u16) -> Result<(), WireError> {
    let mut next = 0;
    for _ in 0..count {
        let n = leaf(c)?;
        if n < next {
            return Err(WireError::value("leaf out of order", n));
        }
        next = n + 1;
    }
    Ok(())
}

fn records(c: &mut Cursor<'_>, lane: u8, count: u16) -> Result<(), WireError> {
    let mut last = None;
    for _ in 0..count {
        let head = Record::take(c)?.head;
        if head.lane != lane {
            return Err(WireError::value("lane of a listed record", head.lane));
        }
        if head.flags & flag::LISTED == 0 {
            return Err(WireError::value("flags of a listed record", head.flags));
        }
        if head.position != 0 {
            let what = "position of a listed record";
            return Err(WireError::value(what, head.position));
        }
        if last.is_some_and(|l| head.stamp <= l) {
            let what = "seq of a listed record, out of order,";
            return Err(WireError::value(what, head.stamp.seq));
        }
        last = Some(head.stamp);
    }
    Ok(())
}

/// A whole record is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Its stamp.
    pub stamp: Stamp,
    /// Its lane.
    pub lane: u8,
}

impl Fetch {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_stamp(out, self.stamp);
        out.push(self.lane);
        put_zero(out, 3);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Fetch of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("fetch", body);
        let stamp = c.stamp()?;
        let lane = c.lane("lane of a fetch")?;
        c.zero(3)?;
        c.end()?;
        Ok(Self { stamp, lane })
    }
}

/// The answer to a Fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched<'a> {
    /// What was asked for.
    pub asked: Fetch,
    /// What became of it.
    pub found: Found<'a>,
}

/// What became of a Fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// The record, with its data behind the body. Poison, if they are damaged.
    Record(Record<'a>),
    /// No such record is on the list: not there, settled, or torn.
    Unknown,
    /// The drive failed. Another replica may have it.
    Failed,
}

impl<'a> Fetched<'a> {
    /// Appends the body; returns how many bytes of data go behind it.
    ///
    /// # Panics
    /// If the record is not the one that was asked for, or a listed one.
    pub fn put(&self, out: &mut Vec<u8>) -> usize {
        put_stamp(out, self.asked.stamp);
        let result = match self.found {
            Found::Record(_) => 0,
            Found::Unknown => 1,
            Found::Failed => 2,
        };
        out.extend_from_slice(&[self.asked.lane, result, 0, 0]);
        let Found::Record(record) = self.found else {
            return 0;
        };
        assert!(self.asked.is(&record), "the record that was asked for");
        record.put(out);
        record.data_blocks() * BLOCK_BYTES
    }

    /// Reads the body of a frame with `data` bytes behind it.
    ///
    /// # Errors
    /// What no Fetched of this version is.
    pub fn decode(body: &'a [u8], data: usize) -> Result<Self, WireError> {
        let mut c = Cursor::new("fetched", body);
        let stamp = c.stamp()?;
        let lane = c.lane("lane of a fetched")?;
        let result = c.u8()?;
        c.zero(2)?;
        let asked = Fetch { stamp, lane };
        let (found, blocks) = match result {
            0 => {
                let record = Record::take(&mut c)?;
                if !asked.is(&record) {
                    let what = "seq of a fetched record that was not asked for,";
                    return Err(WireError::value(what, record.head.stamp.seq));
                }
                (Found::Record(record), record.data_blocks())
            }
            1 => (Found::Unknown, 0),
            2 => (Found::Failed, 0),
            other => return Err(WireError::value("result of a fetch", other)),
        };
        c.end()?;
        if blocks * BLOCK_BYTES != data {
            return Err(WireError::value("length of a record's data", data as u64));
        }
        Ok(Self { asked, found })
    }
}

impl Fetch {
    fn is(&self, record: &Record<'_>) -> bool {
        let head = record.head;
        (head.stamp, head.lane, head.position) == (self.stamp, self.lane, 0)
            && head.flags & flag::LISTED == 0
    }
}
