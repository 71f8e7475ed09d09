//! A batch: records of several lanes' streams, and what is settled (`docs/replication.md` §5).

use super::WireError;
use super::bytes::{Cursor, put_stamp, put_zero};
use super::frame::{BODY_BYTES_MAX, DATA_BYTES_MAX};
use super::items::{Item, List};
use super::record::{LANES_MAX, Record};
use crate::store::types::{BLOCK_BYTES, Stamp};

/// Most records of a batch.
pub const RECORDS_MAX: usize = 1024;

const HEADER_BYTES: usize = 8;

/// In the lane's byte of a settled entry, to a replica that is copied to: what is settled *and* stable there, by its stream.
pub const HERE: u8 = 0x80;

/// Most settled entries: of each lane what is settled, and what of that is there.
pub const SETTLED_MAX: u8 = 2 * LANES_MAX;

/// A lane, and up to where it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The lane, or [`HERE`] and the lane.
    pub lane: u8,
    /// Everything at or below it is stable on every member.
    pub stamp: Stamp,
}

impl Item for Settled {
    const BYTES: usize = 16;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.lane);
        put_zero(out, 3);
        put_stamp(out, self.stamp);
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        let lane = c.u8()?;
        if lane & !HERE >= LANES_MAX {
            return Err(WireError::value("lane of a settled entry", lane));
        }
        c.zero(3)?;
        let stamp = c.stamp()?;
        Ok(Self { lane, stamp })
    }
}

/// A batch that is being put together.
#[derive(Debug, Default)]
pub struct BatchWriter {
    body: Vec<u8>,
    /// Where its header is.
    at: usize,
    settled: usize,
    records: usize,
    data: usize,
}

impl BatchWriter {
    /// Begins a batch, in room that is kept; first comes what is settled.
    ///
    /// # Panics
    /// If there are more entries than two for each lane.
    pub fn begin(&mut self, settled: impl IntoIterator<Item = (u8, Stamp)>) {
        self.begin_behind(&[], settled);
    }

    /// The same, in a frame that has something in front of the batch.
    pub(super) fn begin_behind(
        &mut self,
        front: &[u8],
        settled: impl IntoIterator<Item = (u8, Stamp)>,
    ) {
        self.body.clear();
        self.body.extend_from_slice(front);
        self.at = front.len();
        put_zero(&mut self.body, HEADER_BYTES);
        (self.settled, self.records, self.data) = (0, 0, 0);
        for (lane, stamp) in settled {
            Settled { lane, stamp }.put(&mut self.body);
            self.settled += 1;
        }
        assert!(
            self.settled <= usize::from(SETTLED_MAX),
            "two for each lane"
        );
    }

    /// Adds a record, if there is room for it and its data.
    #[must_use]
    pub fn add(&mut self, record: &Record<'_>) -> bool {
        let data = self.data + record.data_blocks() * BLOCK_BYTES;
        let fits = self.records < RECORDS_MAX
            && self.body.len() + record.bytes() <= BODY_BYTES_MAX
            && data <= DATA_BYTES_MAX;
        if fits {
            record.put(&mut self.body);
            self.records += 1;
            self.data = data;
        }
        fits
    }

    /// The body, and how many bytes of data go behind it.
    pub fn finish(&mut self) -> (&[u8], usize) {
        let header = &mut self.body[self.at..];
        header[0] = self.settled as u8;
        header[2..4].copy_from_slice(&(self.records as u16).to_le_bytes());
        (&self.body, self.data)
    }
}

/// A batch that came: all of it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    settled: List<'a, Settled>,
    records: Cursor<'a>,
    count: usize,
}

impl<'a> Batch<'a> {
    /// Reads the body of a frame with `data` bytes behind it.
    ///
    /// # Errors
    /// What no batch of this version is; data that are not as long as its records say.
    pub fn decode(body: &'a [u8], data: usize) -> Result<Self, WireError> {
        let mut c = Cursor::new("batch", body);
        let settled = usize::from(c.u8()?);
        c.zero(1)?;
        let count = usize::from(c.u16()?);
        c.zero(4)?;
        let value = |what, value: usize| WireError::Value {
            what,
            value: value as u64,
        };
        if settled > usize::from(SETTLED_MAX) {
            return Err(value("settled entries of a batch", settled));
        }
        if count > RECORDS_MAX {
            return Err(value("records of a batch", count));
        }
        let settled = List::take(&mut c, settled)?;
        let records = c;
        let mut blocks = 0;
        for _ in 0..count {
            blocks += Record::take(&mut c)?.data_blocks();
        }
        c.end()?;
        if blocks * BLOCK_BYTES != data {
            return Err(value("length of a batch's data", data));
        }
        Ok(Self {
            settled,
            records,
            count,
        })
    }

    /// Lanes, some with [`HERE`], and up to where each is settled.
    pub fn settled(&self) -> impl Iterator<Item = (u8, Stamp)> + 'a {
        self.settled.iter().map(|s| (s.lane, s.stamp))
    }

    /// Its records, in order. Their data stand in the same order.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + 'a {
        let mut c = self.records;
        // `decode` has read them all.
        (0..self.count).filter_map(move |_| Record::take(&mut c).ok())
    }
}
