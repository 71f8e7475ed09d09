//! Records as they are kept: by rings, unsettled lists and whoever applies them. One copy, shared by all on a reactor.

use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::wire::record::{Blocks, Content, Head, Record};
use crate::cipher::{Seal, TAG_BYTES};
use crate::store::types::{BLOCK_BYTES, Crc, LaneBlock, SnapshotId, Stamp};

/// What a record does, with what it needs for that.
#[derive(Debug)]
pub enum What {
    /// Blocks are written.
    Write {
        /// The first.
        first: LaneBlock,
        /// Four bytes for each block, as on the wire.
        crcs: Box<[u8]>,
        /// Sixteen for each, if they are sealed.
        tags: Box<[u8]>,
        /// The blocks: the beginning of the buffer. `None`: only what is known of it is here (a listed record).
        data: Option<Rc<Buffer>>,
    },
    /// Blocks are known to be damaged.
    Poison {
        /// The first.
        first: LaneBlock,
        /// Four bytes for each block.
        crcs: Box<[u8]>,
        /// Sixteen for each, if they were sealed.
        tags: Box<[u8]>,
    },
    /// Blocks are erased.
    Tombstone {
        /// The first.
        first: LaneBlock,
        /// How many, at least 1.
        blocks: u64,
    },
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// A record of a lane's stream (`docs/replication.md` §2 and §5).
#[derive(Debug)]
pub struct Held {
    /// Its lane.
    pub lane: u8,
    /// Of its first block; block i of a write has seq + i, a tombstone the same for all.
    pub stamp: Stamp,
    /// Index of the data key; 0: not encrypted.
    pub key: u32,
    /// What it does.
    pub what: What,
}

impl What {
    /// Blocks of data that it writes, on whichever replica: what it takes of a drive's space.
    pub fn written_blocks(&self) -> u64 {
        match self {
            What::Write { crcs, .. } => (crcs.len() / 4) as u64,
            _ => 0,
        }
    }

    /// The blocks of its lane that it is about; none for a snapshot.
    pub fn blocks(&self) -> std::ops::Range<u64> {
        match self {
            Self::Write { first, crcs, .. } | Self::Poison { first, crcs, .. } => {
                first.0..first.0 + (crcs.len() / 4) as u64
            }
            Self::Tombstone { first, blocks } => first.0..first.0 + blocks,
            Self::Snapshot(_) => 0..0,
        }
    }
}

impl Held {
    /// A write; checksums are computed here.
    ///
    /// # Panics
    /// If there are not that many blocks in the buffer, none, or more than a record has.
    pub fn write(
        lane: u8,
        stamp: Stamp,
        first: LaneBlock,
        blocks: usize,
        data: Rc<Buffer>,
    ) -> Self {
        let bytes = &data[..blocks * BLOCK_BYTES];
        let crcs = bytes
            .chunks_exact(BLOCK_BYTES)
            .flat_map(|b| Crc::of(b).0.to_le_bytes());
        let crcs = crcs.collect();
        Self::with_checksums(lane, stamp, first, crcs, data)
    }

    /// A write that is encrypted when it has its stamp: it has room for checksums, and none yet.
    ///
    /// # Panics
    /// As [`Held::write`].
    pub fn to_seal(
        lane: u8,
        stamp: Stamp,
        first: LaneBlock,
        blocks: usize,
        data: Rc<Buffer>,
    ) -> Self {
        assert!(data.len() >= blocks * BLOCK_BYTES, "{blocks} blocks");
        Self::with_checksums(lane, stamp, first, vec![0; 4 * blocks].into(), data)
    }

    fn with_checksums(
        lane: u8,
        stamp: Stamp,
        first: LaneBlock,
        crcs: Box<[u8]>,
        data: Rc<Buffer>,
    ) -> Self {
        assert!(
            Blocks::new(first, &crcs, &[]).is_some(),
            "{} blocks at {first:?}",
            crcs.len() / 4
        );
        let what = What::Write {
            first,
            crcs,
            tags: Box::default(),
            data: Some(data),
        };
        Self {
            lane,
            stamp,
            key: 0,
            what,
        }
    }

    /// A copy of one from the wire, with its data if they came with it.
    pub fn of(record: &Record<'_>, data: Option<Rc<Buffer>>) -> Self {
        let bytes = |b: &Blocks<'_>| {
            let crcs = b.crcs().flat_map(|c| c.0.to_le_bytes()).collect();
            let tags = b.tags().flatten().copied().collect();
            (b.first, crcs, tags)
        };
        let what = match &record.content {
            Content::Write(b) => {
                let (first, crcs, tags) = bytes(b);
                What::Write {
                    first,
                    crcs,
                    tags,
                    data,
                }
            }
            Content::Poison(b) => {
                let (first, crcs, tags) = bytes(b);
                What::Poison { first, crcs, tags }
            }
            Content::Tombstone { first, blocks } => What::Tombstone {
                first: *first,
                blocks: *blocks,
            },
            Content::Snapshot(id) => What::Snapshot(*id),
        };
        let Head {
            lane, stamp, key, ..
        } = record.head;
        Self {
            lane,
            stamp,
            key,
            what,
        }
    }

    /// As it goes on the wire.
    pub fn record(&self, position: u64, flags: u8) -> Record<'_> {
        // What it holds was checked when it was made.
        let blocks = |first, crcs, tags| Blocks::new(first, crcs, tags).expect("lengths that fit");
        let content = match &self.what {
            What::Write {
                first, crcs, tags, ..
            } => Content::Write(blocks(*first, crcs, tags)),
            What::Poison { first, crcs, tags } => Content::Poison(blocks(*first, crcs, tags)),
            What::Tombstone { first, blocks } => Content::Tombstone {
                first: *first,
                blocks: *blocks,
            },
            What::Snapshot(id) => Content::Snapshot(*id),
        };
        let head = Head {
            flags,
            lane: self.lane,
            stamp: self.stamp,
            position,
            key: self.key,
        };
        Record { head, content }
    }

    /// The blocks of its lane that it is about; none for a snapshot.
    pub fn blocks(&self) -> std::ops::Range<u64> {
        self.what.blocks()
    }

    /// The stamp of a block of it.
    pub fn stamp_of(&self, block: u64) -> Stamp {
        let Stamp { epoch, seq } = self.stamp;
        match self.what {
            What::Write { first, .. } | What::Poison { first, .. } => Stamp {
                epoch,
                seq: seq + (block - first.0),
            },
            What::Tombstone { .. } | What::Snapshot(_) => self.stamp,
        }
    }

    /// With which key a block of it was sealed, and its tag.
    pub fn seal_of(&self, block: u64) -> Seal {
        let (What::Write { first, tags, .. } | What::Poison { first, tags, .. }) = &self.what
        else {
            return Seal::NONE;
        };
        let tags = tags.as_chunks::<TAG_BYTES>().0;
        let tag = tags.get((block - first.0) as usize);
        tag.map_or(Seal::NONE, |tag| Seal {
            key: self.key,
            tag: *tag,
        })
    }

    /// The highest stamp that it uses.
    pub fn last(&self) -> Stamp {
        let blocks = self.blocks();
        if blocks.is_empty() {
            self.stamp
        } else {
            self.stamp_of(blocks.end - 1)
        }
    }

    /// Whether two with one stamp say the same: kind, blocks, checksums, tags. If not, invariant 3 is broken.
    pub fn same(&self, other: &Held) -> bool {
        let key = |h: &Held| (h.lane, h.stamp, h.key, h.blocks());
        key(self) == key(other)
            && match (&self.what, &other.what) {
                (
                    What::Write {
                        crcs: a, tags: s, ..
                    }
                    | What::Poison {
                        crcs: a, tags: s, ..
                    },
                    What::Write {
                        crcs: b, tags: t, ..
                    }
                    | What::Poison {
                        crcs: b, tags: t, ..
                    },
                ) => a == b && s == t,
                (What::Tombstone { .. }, What::Tombstone { .. }) => true,
                (What::Snapshot(a), What::Snapshot(b)) => a == b,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::wire::record::flag;

    fn stamp(epoch: u32, seq: u64) -> Stamp {
        Stamp { epoch, seq }
    }

    fn poison(first: u64, crcs: &[u8]) -> Held {
        let what = What::Poison {
            first: LaneBlock(first),
            crcs: crcs.into(),
            tags: Box::default(),
        };
        Held {
            lane: 1,
            stamp: stamp(3, 7),
            key: 0,
            what,
        }
    }

    #[test]
    fn what_was_sent_is_what_is_kept() {
        let snapshot = What::Snapshot(SnapshotId([9; 16]));
        let tombstone = What::Tombstone {
            first: LaneBlock(5),
            blocks: 70_000,
        };
        let others = [snapshot, tombstone].map(|what| Held {
            lane: 1,
            stamp: stamp(3, 7),
            key: 0,
            what,
        });
        for held in others.into_iter().chain([poison(8, &[1; 8])]) {
            let again = Held::of(&held.record(4, flag::ROLLED), None);
            assert!(again.same(&held), "{again:?}");
            assert_eq!((again.blocks(), again.last()), (held.blocks(), held.last()));
        }
    }

    #[test]
    fn each_block_has_a_stamp_and_a_tombstone_one_for_all() {
        let two = poison(8, &[1; 8]);
        assert_eq!(
            (two.blocks(), two.stamp_of(9), two.last()),
            (8..10, stamp(3, 8), stamp(3, 8))
        );
        let what = What::Tombstone {
            first: LaneBlock(5),
            blocks: 4,
        };
        let erased = Held {
            lane: 1,
            stamp: stamp(3, 7),
            key: 0,
            what,
        };
        assert_eq!(
            (erased.stamp_of(8), erased.last()),
            (stamp(3, 7), stamp(3, 7))
        );
    }

    #[test]
    fn two_values_of_one_stamp_are_told_apart() {
        assert!(!poison(8, &[1; 4]).same(&poison(8, &[2; 4])));
        assert!(!poison(8, &[1; 4]).same(&poison(9, &[1; 4])));
        assert!(!poison(8, &[1; 4]).same(&poison(8, &[1; 8])));
    }
}
