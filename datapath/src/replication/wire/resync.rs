//! Comparing and copying (`docs/replication.md` §§5 and 11): summaries, leaves, copies, repairs.

use super::WireError;
use super::batch::{Batch, BatchWriter};
use super::bytes::{Cursor, put_stamp, put_zero};
use super::items::{Item, List, put_all};
use super::list::{LEAF_MAX, leaf};
use super::read::{check_entry, kind_number, take_kind};
use super::record::{Content, Record, flag};
use crate::cipher::Seal;
use crate::replication::seam::{Entry, Kind};
use crate::store::types::{BLOCKS_MAX, Crc, SnapshotId, Stamp};

/// Most summaries of a frame.
pub const SUMMARIES_MAX: u32 = 8192;
/// Highest level of a lane's map: 64 children at each cover all leaves.
pub const LEVEL_MAX: u8 = 6;
/// The level of single blocks, beneath the leaves.
pub const BLOCK_LEVEL: u8 = 255;
/// Blocks of the larger kind of leaf.
pub const LEAF_BLOCKS_MAX: u8 = 152;

/// Which tree of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tree {
    /// The lane.
    pub lane: u8,
    /// As of this snapshot; `None`: as it is.
    pub snapshot: Option<SnapshotId>,
}

impl Tree {
    /// A lane as it is.
    pub fn live(lane: u8) -> Self {
        Self {
            lane,
            snapshot: None,
        }
    }

    pub(super) fn put_id(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.snapshot.map_or([0; 16], |s| s.0));
    }

    pub(super) fn take_id(c: &mut Cursor<'_>) -> Result<Option<SnapshotId>, WireError> {
        let id = c.array()?;
        Ok((id != [0; 16]).then_some(SnapshotId(id)))
    }
}

/// Why a tree was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotRead {
    /// There is no such snapshot here.
    Unknown,
    /// The drive failed, or a page of the map is damaged.
    Failed,
}

fn result<T>(of: &Result<T, NotRead>) -> u8 {
    match of {
        Ok(_) => 0,
        Err(NotRead::Unknown) => 1,
        Err(NotRead::Failed) => 2,
    }
}

fn take_result(c: &mut Cursor<'_>) -> Result<Result<(), NotRead>, WireError> {
    Ok(match c.u8()? {
        0 => Ok(()),
        1 => Err(NotRead::Unknown),
        2 => Err(NotRead::Failed),
        other => return Err(WireError::value("result of a comparison", other)),
    })
}

/// Summaries of neighbouring nodes of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskSummaries {
    /// Of this tree.
    pub tree: Tree,
    /// 0: leaves; [`BLOCK_LEVEL`]: blocks.
    pub level: u8,
    /// Number of the first, among those of its level.
    pub first: u64,
    /// How many, 1 to [`SUMMARIES_MAX`]. What the map does not reach has summary 0.
    pub count: u32,
}

impl AskSummaries {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        self.put_with(out, 0);
    }

    fn put_with(&self, out: &mut Vec<u8>, result: u8) {
        out.extend_from_slice(&[self.tree.lane, self.level, result, 0]);
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        self.tree.put_id(out);
    }

    fn take(c: &mut Cursor<'_>) -> Result<(Self, Result<(), NotRead>), WireError> {
        let lane = c.lane("lane of summaries")?;
        let level = c.u8()?;
        let result = take_result(c)?;
        c.zero(1)?;
        let count = c.u32()?;
        let first = c.u64()?;
        let snapshot = Tree::take_id(c)?;
        let most = match level {
            BLOCK_LEVEL => BLOCKS_MAX,
            0..=LEVEL_MAX => LEAF_MAX,
            _ => return Err(WireError::value("level of summaries", level)),
        };
        if !(1..=SUMMARIES_MAX).contains(&count) {
            return Err(WireError::value("count of summaries", count));
        }
        if first >= most || u64::from(count) > most - first {
            return Err(WireError::value("first of summaries", first));
        }
        let ask = Self {
            tree: Tree { lane, snapshot },
            level,
            first,
            count,
        };
        Ok((ask, result))
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no such question of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("ask for summaries", body);
        let (ask, result) = Self::take(&mut c)?;
        c.end()?;
        match result {
            Ok(()) => Ok(ask),
            Err(_) => Err(WireError::value("result in a question,", body[2])),
        }
    }
}

/// The answer.
#[derive(Clone, Copy, Debug)]
pub struct Summaries<'a> {
    /// What was asked for.
    pub asked: AskSummaries,
    /// As many as were asked for; 0: nothing is beneath.
    pub summaries: Result<List<'a, u32>, NotRead>,
}

/// Appends the body of Summaries.
///
/// # Panics
/// If they are not as many as were asked for.
pub fn encode_summaries(
    out: &mut Vec<u8>,
    asked: &AskSummaries,
    summaries: Result<&[u32], NotRead>,
) {
    asked.put_with(out, result(&summaries));
    if let Ok(all) = summaries {
        assert!(all.len() == asked.count as usize, "as many as asked for");
        put_all(out, all);
    }
}

impl<'a> Summaries<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Summaries of this version are.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("summaries", body);
        let (asked, result) = AskSummaries::take(&mut c)?;
        let summaries = match result {
            Ok(()) => Ok(List::take(&mut c, asked.count as usize)?),
            Err(e) => Err(e),
        };
        c.end()?;
        Ok(Self { asked, summaries })
    }
}

/// The entries of a leaf are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskLeaf {
    /// Of this tree.
    pub tree: Tree,
    /// Its number.
    pub leaf: u64,
}

impl AskLeaf {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        self.put_with(out, 0, 0);
    }

    fn put_with(&self, out: &mut Vec<u8>, result: u8, entries: u8) {
        out.extend_from_slice(&[self.tree.lane, result, entries]);
        put_zero(out, 5);
        out.extend_from_slice(&self.leaf.to_le_bytes());
        self.tree.put_id(out);
    }

    fn take(c: &mut Cursor<'_>) -> Result<(Self, Result<u8, NotRead>), WireError> {
        let lane = c.lane("lane of a leaf")?;
        let result = take_result(c)?;
        let n = c.u8()?;
        c.zero(5)?;
        let leaf = leaf(c)?;
        let snapshot = Tree::take_id(c)?;
        if n > LEAF_BLOCKS_MAX || n != 0 && result.is_err() {
            return Err(WireError::value("entries of a leaf", n));
        }
        let tree = Tree { lane, snapshot };
        Ok((Self { tree, leaf }, result.map(|()| n)))
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no such question of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("ask for a leaf", body);
        let (ask, result) = Self::take(&mut c)?;
        c.end()?;
        match result {
            Ok(0) => Ok(ask),
            _ => Err(WireError::value("result in a question,", body[1])),
        }
    }
}

/// An entry of a leaf that is not absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafEntry {
    /// Which block of the leaf.
    pub index: u8,
    /// What it is.
    pub entry: Entry,
}

impl Item for LeafEntry {
    const BYTES: usize = 20;

    fn put(&self, out: &mut Vec<u8>) {
        let Entry {
            kind, stamp, crc, ..
        } = self.entry;
        out.extend_from_slice(&[self.index, kind_number(kind), 0, 0]);
        out.extend_from_slice(&crc.0.to_le_bytes());
        put_stamp(out, stamp);
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        let index = c.u8()?;
        let kind = take_kind(c)?;
        c.zero(2)?;
        let crc = Crc(c.u32()?);
        let stamp: Stamp = c.stamp()?;
        // Its seal comes with its data.
        let entry = Entry {
            kind,
            stamp,
            crc,
            seal: Seal::NONE,
        };
        check_entry(&entry)?;
        if kind == Kind::Absent {
            return Err(WireError::value("kind of a leaf's entry", 0_u8));
        }
        if index >= LEAF_BLOCKS_MAX {
            return Err(WireError::value("index of a leaf's entry", index));
        }
        Ok(Self { index, entry })
    }
}

/// The answer.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    /// What was asked for.
    pub asked: AskLeaf,
    /// What is not absent, by rising index.
    pub entries: Result<List<'a, LeafEntry>, NotRead>,
}

/// Appends the body of a Leaf.
///
/// # Panics
/// If there are more entries than a leaf has, or not by rising index.
pub fn encode_leaf(out: &mut Vec<u8>, asked: &AskLeaf, entries: Result<&[LeafEntry], NotRead>) {
    let n = entries.map_or(0, <[_]>::len);
    assert!(n <= usize::from(LEAF_BLOCKS_MAX), "entries of one leaf");
    asked.put_with(out, result(&entries), n as u8);
    if let Ok(all) = entries {
        let rising = all.is_sorted_by(|a, b| a.index < b.index);
        assert!(rising, "entries in order");
        put_all(out, all);
    }
}

impl<'a> Leaf<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Leaf of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("leaf", body);
        let (asked, result) = AskLeaf::take(&mut c)?;
        let entries = match result {
            Ok(n) => {
                let entries = List::<LeafEntry>::take(&mut c, usize::from(n))?;
                if !entries.iter().is_sorted_by(|a, b| a.index < b.index) {
                    return Err(WireError::value("entries out of order, of a leaf's", n));
                }
                Ok(entries)
            }
            Err(e) => Err(e),
        };
        c.end()?;
        Ok(Self { asked, entries })
    }
}

/// A copy that is being put together: of a resync, or a repair.
#[derive(Debug, Default)]
pub struct CopyWriter(BatchWriter);

impl CopyWriter {
    /// Begins one, in room that is kept.
    pub fn begin(&mut self, request: u64) {
        self.0.begin_behind(&request.to_le_bytes(), []);
    }

    /// Adds a record, if there is room. Its position is the seq of its lane's s0; of a repair, 0.
    ///
    /// # Panics
    /// If it cannot be copied.
    #[must_use]
    pub fn add(&mut self, record: &Record<'_>) -> bool {
        assert!(check_copied(record).is_ok(), "a record that can be copied");
        self.0.add(record)
    }

    /// The body, and how many bytes of data go behind it.
    pub fn finish(&mut self) -> (&[u8], usize) {
        self.0.finish()
    }
}

/// Records that replace what is at or below s0, whatever its stamp; or, flagged so, only exactly themselves.
#[derive(Clone, Copy, Debug)]
pub struct Copy<'a> {
    /// The sender's number for it.
    pub request: u64,
    /// Nothing is settled in it.
    pub batch: Batch<'a>,
}

impl<'a> Copy<'a> {
    /// Reads the body of a frame with `data` bytes behind it.
    ///
    /// # Errors
    /// What no Copy of this version is.
    pub fn decode(body: &'a [u8], data: usize) -> Result<Self, WireError> {
        let mut c = Cursor::new("copy", body);
        let request = c.u64()?;
        let batch = Batch::decode(c.rest(), data)?;
        if let Some((lane, _)) = batch.settled().next() {
            return Err(WireError::value("settled lane of a copy", lane));
        }
        if batch.records().next().is_none() {
            return Err(WireError::value("records of a copy", 0_u8));
        }
        batch.records().try_for_each(|r| check_copied(&r))?;
        Ok(Self { request, batch })
    }
}

fn check_copied(record: &Record<'_>) -> Result<(), WireError> {
    let head = record.head;
    if head.flags & !(flag::SEALED | flag::REPAIR) != 0 {
        return Err(WireError::value("flags of a copied record", head.flags));
    }
    let repair = head.flags & flag::REPAIR != 0;
    if repair && head.position != 0 {
        return Err(WireError::value("position of a repair", head.position));
    }
    match record.content {
        Content::Write(_) => Ok(()),
        Content::Tombstone { .. } | Content::Poison(_) | Content::Snapshot(_) if !repair => Ok(()),
        _ => Err(WireError::value(
            "flags of a record that is not copied",
            head.flags,
        )),
    }
}

/// What became of a Copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Of the Copy.
    pub request: u64,
    /// All of it is written, or was left alone; or why not.
    pub result: Result<(), NotCopied>,
}

/// Why a copy was not done, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotCopied {
    /// No space.
    Full,
    /// The drive failed.
    Failed,
}

impl Copied {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request.to_le_bytes());
        out.push(match self.result {
            Ok(()) => 0,
            Err(NotCopied::Full) => 1,
            Err(NotCopied::Failed) => 2,
        });
        put_zero(out, 7);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Copied of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("copied", body);
        let request = c.u64()?;
        let result = match c.u8()? {
            0 => Ok(()),
            1 => Err(NotCopied::Full),
            2 => Err(NotCopied::Failed),
            other => return Err(WireError::value("result of a copy", other)),
        };
        c.zero(7)?;
        c.end()?;
        Ok(Self { request, result })
    }
}
