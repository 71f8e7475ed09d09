//! What should be there: records by their stamps, and what copies left beneath them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;
use rand::Rng;
use rand::rngs::StdRng;

use super::super::super::types::{BLOCK_BYTES, Crc, LaneBlock, Stamp};
use crate::cipher::{KEY_INDEX_MAX, Seal, TAG_BYTES};
use crate::reactor::Handle;
use crate::replication::held::{Held, What};
use crate::replication::seam::{Entry, KeptSet, Kind, Promise};

pub const ZERO: Stamp = Stamp { epoch: 0, seq: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    Write,
    Erase,
    Poison,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its stamp was given; nobody applied it, or a crash took it.
    Held,
    /// Applied now, and not known to be there.
    Applying,
    Written,
    Stable,
    /// Never to be applied: settled, or a copy, passed it.
    Dead,
}

/// A record of the stream.
#[derive(Clone, Debug)]
pub struct Rec {
    pub does: Does,
    pub blocks: Range<u64>,
    pub state: State,
    /// Its blocks are encrypted, as far as the store knows.
    pub sealed: bool,
}

impl Rec {
    pub fn stamps(&self) -> u64 {
        match self.does {
            Does::Erase => 1,
            _ => self.blocks.end - self.blocks.start,
        }
    }

    pub fn stamp_of(&self, first: Stamp, block: u64) -> Stamp {
        match self.does {
            Does::Erase => first,
            _ => Stamp {
                epoch: first.epoch,
                seq: first.seq + (block - self.blocks.start),
            },
        }
    }

    pub fn last(&self, first: Stamp) -> Stamp {
        Stamp {
            epoch: first.epoch,
            seq: first.seq + self.stamps() - 1,
        }
    }
}

/// What a copy left in a block: everything up to `s0` is beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub s0: Stamp,
    pub kind: Kind,
    pub stamp: Stamp,
}

pub const NEVER: Base = Base {
    s0: ZERO,
    kind: Kind::Absent,
    stamp: ZERO,
};

#[derive(Clone, Debug, Default)]
pub struct Lane {
    pub all: BTreeMap<Stamp, Rec>,
    pub sealed: bool,
    pub next: u64,
    pub told: Stamp2,
    /// What was settled when the drive was opened last.
    pub found: Stamp2,
    /// Of copies: what a block may have beneath its records; one, unless a crash may decide.
    pub bases: BTreeMap<u64, Vec<Base>>,
}

/// A stamp that begins as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp2(pub Stamp);

impl Default for Stamp2 {
    fn default() -> Self {
        Self(ZERO)
    }
}

#[derive(Clone, Debug)]
pub struct Model {
    pub lanes: Vec<Lane>,
    pub epoch: u32,
    pub window: u64,
    /// Kept for certain, and what is being kept.
    pub promise: (Option<Promise>, Option<Promise>),
    pub set: (KeptSet, Option<KeptSet>),
    pub resyncing: bool,
    pub full: u64,
}

pub fn content(lane: u8, block: u64, stamp: Stamp, into: &mut [u8]) {
    let mut x = (u64::from(lane) << 56 | block)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(stamp.seq << 20 ^ u64::from(stamp.epoch))
        | 1;
    for word in into.as_chunks_mut::<8>().0 {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *word = x.to_le_bytes();
    }
}

/// The key of an epoch, and a tag that is of no other block and stamp.
pub fn seal(lane: u8, block: u64, stamp: Stamp) -> Seal {
    let mut bytes = [0; TAG_BYTES];
    content(lane ^ 0x55, block, stamp, &mut bytes);
    Seal {
        key: stamp.epoch % KEY_INDEX_MAX + 1,
        tag: bytes,
    }
}

pub fn crc(lane: u8, block: u64, stamp: Stamp) -> Crc {
    let mut bytes = [0; BLOCK_BYTES];
    content(lane, block, stamp, &mut bytes);
    Crc::of(&bytes)
}

pub async fn held(handle: &Handle, lane: u8, stamp: Stamp, rec: &Rec, data: bool) -> Rc<Held> {
    let first = LaneBlock(rec.blocks.start);
    let seals = rec.blocks.clone();
    let seals = seals.map(|b| seal(lane, b, rec.stamp_of(stamp, b)));
    let mut seals = seals.filter(|_| rec.sealed && rec.does != Does::Erase);
    let sealed: Box<[u8]> = seals.clone().flat_map(|s| s.tag).collect();
    let key = seals.next_back().map_or(0, |s| s.key);
    let count = (rec.blocks.end - rec.blocks.start) as usize;
    let what = match rec.does {
        Does::Write if data => {
            let mut buffer: Buffer = handle.buffers().take(count * BLOCK_BYTES).await;
            for (n, block) in rec.blocks.clone().enumerate() {
                let bytes = &mut buffer[n * BLOCK_BYTES..][..BLOCK_BYTES];
                content(lane, block, rec.stamp_of(stamp, block), bytes);
            }
            let mut held = Held::write(lane, stamp, first, count, Rc::new(buffer));
            if let What::Write { tags, .. } = &mut held.what {
                (held.key, *tags) = (key, sealed);
            }
            return Rc::new(held);
        }
        Does::Erase => What::Tombstone {
            first,
            blocks: count as u64,
        },
        does => {
            let crcs = rec.blocks.clone();
            let crcs = crcs.flat_map(|b| crc(lane, b, rec.stamp_of(stamp, b)).0.to_le_bytes());
            let (crcs, tags) = (crcs.collect(), sealed);
            match does {
                Does::Poison => What::Poison { first, crcs, tags },
                _ => What::Write {
                    first,
                    crcs,
                    tags,
                    data: None,
                },
            }
        }
    };
    Rc::new(Held {
        lane,
        stamp,
        key,
        what,
    })
}

impl Lane {
    /// A new record of the stream.
    pub fn give(&mut self, epoch: u32, random: &mut StdRng, window: u64) -> Stamp {
        let most = [1, 4, 8, 40][random.random_range(0..4)];
        let first = random.random_range(0..window);
        let len = random.random_range(1..=most).min(window - first);
        let (does, blocks) = match random.random_range(0..12) {
            0 => (Does::Erase, first..first + len),
            1 => (Does::Erase, first / 2..first * 2 + 300),
            2 => (Does::Poison, first..first + len),
            _ => (Does::Write, first..first + len),
        };
        let rec = Rec {
            does,
            blocks,
            state: State::Held,
            sealed: self.sealed,
        };
        let stamp = Stamp {
            epoch,
            seq: self.next,
        };
        self.next += rec.stamps();
        self.all.insert(stamp, rec);
        stamp
    }

    /// What a block is by records that are there, and by what is beneath.
    pub fn expected(&self, block: u64, base: Base) -> Base {
        let there = self.all.iter().filter(|(_, r)| {
            matches!(r.state, State::Written | State::Stable) && r.blocks.contains(&block)
        });
        let there = there.map(|(stamp, r)| (r.stamp_of(*stamp, block), r.does));
        let highest = there
            .filter(|(stamp, _)| *stamp > base.s0)
            .max_by_key(|(s, _)| *s);
        match highest {
            None => base,
            Some((stamp, does)) => Base {
                s0: base.s0,
                stamp,
                kind: match does {
                    Does::Write => Kind::Data,
                    Does::Erase => Kind::Erased,
                    Does::Poison => Kind::Poison,
                },
            },
        }
    }

    /// For messages.
    pub fn over(&self, block: u64) -> Vec<(&Stamp, &Rec)> {
        let over = self.all.iter().filter(|(_, r)| r.blocks.contains(&block));
        over.collect()
    }

    /// The highest stamp up to which all is stable or will never come.
    pub fn may_settle(&self) -> Stamp {
        let mut at = self.told.0;
        for (stamp, rec) in self.all.range(self.told.0..) {
            match rec.state {
                State::Applying | State::Written => break,
                State::Held | State::Dead | State::Stable => at = at.max(rec.last(*stamp)),
            }
        }
        at
    }

    pub fn kill_up_to(&mut self, stamp: Stamp) {
        for (first, rec) in &mut self.all {
            if rec.state == State::Held && *first <= stamp {
                rec.state = State::Dead;
            }
        }
    }
}

pub fn check_bytes((lane, sealed): (u8, bool), block: u64, entry: &Entry, bytes: &[u8]) {
    let has_one = sealed && matches!(entry.kind, Kind::Data | Kind::Poison);
    let expected = match has_one {
        true => seal(lane, block, entry.stamp),
        false => Seal::NONE,
    };
    assert_eq!(entry.seal, expected, "block {block}, {entry:?}");
    let mut expected = [0; BLOCK_BYTES];
    if entry.kind == Kind::Data {
        content(lane, block, entry.stamp, &mut expected);
        assert_eq!(entry.crc, Crc::of(&expected), "block {block}, {entry:?}");
    }
    assert!(bytes == expected, "block {block}, {entry:?}");
}
