//! What replication wants of the store that holds a replica (`docs/replication.md` §15). One value is one replica: all lanes of a volume on this
//! node. The store implements it; tests of the replica have one in memory.

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::held::Held;
use crate::cipher::Seal;
use crate::replication::wire::resync::Tree;
use crate::store::types::{Crc, SnapshotId, Stamp};

/// Why a replica could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// No space; freeing some helps.
    #[error("the pool of this replica is full")]
    Full,
    /// The block cannot be read, or does not match its checksum.
    #[error("block {block} of lane {lane} is damaged")]
    Damaged {
        /// The lane.
        lane: u8,
        /// Its block.
        block: u64,
    },
    /// A drive failed: what is not known to be stable may be gone.
    #[error("a drive of this replica failed: {0}")]
    Drive(String),
    /// It lost a lane, or its promise: it is never this replica again (rule 9).
    #[error("this replica is not complete: {0}")]
    Incomplete(String),
    /// It has no such snapshot.
    #[error("this replica has no snapshot {0:?}")]
    NoSnapshot(SnapshotId),
    /// The store cannot do it, and nothing of the replica was lost or changed by asking.
    #[error(
        "this version's store has no {0}: nothing was changed, and only a later version can do it"
    )]
    NotBuilt(&'static str),
}

/// 16 bytes: a replica id, an incarnation, an attempt.
pub type Id = [u8; 16];

/// What a replica has promised, and may never forget (rules 1 and 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// It accepts nothing lower.
    pub epoch: u32,
    /// The process that the epoch belongs to.
    pub incarnation: Id,
    /// Of the set's record when it was asked; in state `Level`, of the K4 that may name it.
    pub version: u64,
    /// What it is.
    pub state: Standing,
}

/// What a replica is besides its promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// A replica like any.
    #[default]
    Promised,
    /// It is being copied to: no takeover counts it.
    Resyncing,
    /// It was copied to, and counts if the set of the promise's version names it.
    Level,
}

/// A set as a replica keeps it (rule 10).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptSet {
    /// The epoch that it is of.
    pub epoch: u32,
    /// Its version.
    pub version: u64,
    /// Replica ids.
    pub members: Vec<Id>,
}

impl KeptSet {
    /// Most members beside the replica itself that a store has room for.
    pub const OTHERS_MAX: usize = crate::store::superblock::OTHERS_MAX;
}

/// What a block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Never written, or erased and settled.
    #[default]
    Absent,
    /// Data.
    Data,
    /// Erased by the record of its stamp.
    Erased,
    /// Damaged, under its stamp.
    Poison,
}

/// A block's entry; stamp and checksum are zero if it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its stamp.
    pub stamp: Stamp,
    /// Of its data, as they are stored.
    pub crc: Crc,
    /// With which key it was sealed, and its tag: of data, and of damage where it is known.
    pub seal: Seal,
}

impl Entry {
    /// Nothing.
    pub const ABSENT: Self = Self {
        kind: Kind::Absent,
        stamp: Stamp { epoch: 0, seq: 0 },
        crc: Crc(0),
        seal: Seal::NONE,
    };

    /// Whether two say the same of a block: in summaries and leaves nothing else takes part.
    pub fn same(&self, other: &Self) -> bool {
        (self.kind, self.stamp, self.crc) == (other.kind, other.stamp, other.crc)
    }
}

/// A lane's unsettled records (rule 14), in stamp order.
#[derive(Clone, Debug, Default)]
pub struct Unsettled {
    /// Whole ones, with data where the store still has them at hand; otherwise `fetch` gives them.
    pub records: Vec<Rc<Held>>,
    /// There were too many: these leaves were written since settled, and `records` is empty (rule 16).
    pub leaves: Option<Vec<u64>>,
}

/// A replica's store.
///
/// Records of one lane may be applied beside each other; each is atomic, also over a crash. What is done is *written*: it is stable after a
/// [`ReplicaStore::flush`] that began after it was done.
#[allow(async_fn_in_trait, reason = "a reactor has one thread")]
pub trait ReplicaStore: 'static {
    /// How many lanes.
    fn lanes(&self) -> u8;

    /// Whether its blocks are encrypted: then their entries have seals, and its leaves another number of blocks.
    fn sealed(&self) -> bool;

    /// Applies a record: each block of it is replaced if the record's stamp for it is higher than what is there. A snapshot keeps its lane as it is now, unless
    /// the lane has it already.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing of it is there, or (after `Drive`) perhaps all of it after a restart.
    async fn apply(&self, record: &Rc<Held>) -> Result<(), ReplicaError>;

    /// Applies a copy: each block is replaced if what is there is at or below `s0`, and never above, whatever the copy's stamp (rule 5); a block whose
    /// own stamp in the copy is above `s0` may be left to the stream, by which it comes. A snapshot as for `apply`.
    ///
    /// # Errors
    /// [`ReplicaError`], as for `apply`.
    async fn copy(&self, record: &Rc<Held>, s0: Stamp) -> Result<(), ReplicaError>;

    /// Puts a block in the place of a damaged one of exactly this record's stamp and checksum; anything else is left alone.
    ///
    /// # Errors
    /// [`ReplicaError`], as for `apply`.
    async fn repair(&self, record: &Rc<Held>) -> Result<(), ReplicaError>;

    /// Makes all that was done before it began stable, on all drives of the replica; what was settled, too.
    ///
    /// # Errors
    /// [`ReplicaError::Drive`].
    async fn flush(&self) -> Result<(), ReplicaError>;

    /// Reads blocks into the beginning of `into` with their entries in order; what is not `Data` reads as zeroes.
    ///
    /// # Errors
    /// [`ReplicaError::Damaged`] for data that do not match; [`ReplicaError::NoSnapshot`].
    async fn read(
        &self,
        tree: Tree,
        blocks: Range<u64>,
        into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, ReplicaError>);

    /// Records above settled.
    ///
    /// # Errors
    /// [`ReplicaError`].
    async fn unsettled(&self, lane: u8) -> Result<Unsettled, ReplicaError>;

    /// The record of this stamp with its data, if it is above settled and whole.
    ///
    /// # Errors
    /// [`ReplicaError`].
    async fn fetch(&self, lane: u8, stamp: Stamp) -> Result<Option<Rc<Held>>, ReplicaError>;

    /// Summaries of `count` neighbouring nodes of a level of a tree: of the lane as it is now, or as of a snapshot ([`summary`](super::summary)); 0 where nothing is. Each block is
    /// looked at once, at any moment until this returns: not all at the same.
    ///
    /// # Errors
    /// [`ReplicaError`].
    async fn summaries(
        &self,
        tree: Tree,
        level: u8,
        first: u64,
        count: u32,
    ) -> Result<Vec<u32>, ReplicaError>;

    /// The blocks of a leaf that are not absent, in order, all as of one moment.
    ///
    /// # Errors
    /// [`ReplicaError`].
    async fn leaf(&self, tree: Tree, leaf: u64) -> Result<Vec<(u64, Entry)>, ReplicaError>;

    /// Its snapshots, and in how many lanes each is.
    fn snapshots(&self) -> Vec<(SnapshotId, u8)>;

    /// Deletes a snapshot in all lanes that have it, durably before it returns.
    ///
    /// # Errors
    /// [`ReplicaError::Drive`]; then some lanes have it still.
    async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), ReplicaError>;

    /// The highest settled stamp that was told, as far as it is remembered.
    fn settled(&self, lane: u8) -> Stamp;

    /// Everything at or below it is stable on every member; lower than before changes nothing.
    fn settle(&self, lane: u8, stamp: Stamp);

    /// For a replica that is copied to, where its stream begins: everything at or below `s0` comes by copies (`docs/replication.md` §11, 2), and no copy of an older
    /// subscription is under way. It leaves the lists; of what was erased only what is above stays known.
    fn copied_from(&self, lane: u8, s0: Stamp);

    /// For a replica that is copied to: everything at or below it is settled, and was stable here before (`docs/replication.md` §11, 3). It leaves the lists;
    /// what was erased stays known.
    fn settle_here(&self, lane: u8, stamp: Stamp);

    /// Whether the list of its lane has room for a record, or has it already; else what is settled must make it first. `rolled`: it is of an older epoch, and comes by a
    /// takeover: such are let in beyond what others may take (`docs/replication.md` §8, *Lists*).
    fn has_room(&self, record: &Held, rolled: bool) -> bool;

    /// The promise that is durable.
    fn promise(&self) -> Option<Promise>;

    /// Keeps a promise, on every drive with a lane of the replica and in all superblock copies, before it returns.
    ///
    /// # Errors
    /// [`ReplicaError::Drive`]; then what is kept is the old or the new one.
    async fn keep_promise(&self, promise: Promise) -> Result<(), ReplicaError>;

    /// The newest set that is kept.
    fn set(&self) -> KeptSet;

    /// Keeps a set, durably before it returns.
    ///
    /// # Errors
    /// [`ReplicaError::Drive`].
    async fn keep_set(&self, set: &KeptSet) -> Result<(), ReplicaError>;

    /// Changes whenever what was written and not flushed may be gone.
    fn boot(&self) -> Id;

    /// Blocks that it can take beyond its reserve.
    fn space(&self) -> u64;

    /// Whether what is written can be lost before a flush. If not, it is stable at once.
    fn volatile(&self) -> bool {
        true
    }
}
