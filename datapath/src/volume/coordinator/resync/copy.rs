//! Parts: blocks are read from a member and copied, some parts at a time.
//!
//! Blocks go with the stamps that they have when they are read. A block that this member has damaged is taken from another one; if none has it whole, it is
//! copied as what it is: damaged, under its stamp.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::{Inner, LOOK, NotRead, Peers, SetStore, Why};
use crate::replication::held::{Held, What};
use crate::replication::seam::{Entry, Kind};
use crate::replication::summary::{blocks_of, leaf_of};
use crate::replication::wire::resync::{AskLeaf, Tree};
use crate::store::types::{BLOCK_BYTES, LaneBlock, Stamp};
use crate::volume::coordinator::driver::Copying;
use crate::volume::coordinator::members::Place;

/// Blocks of a part, and ranges of it.
const BLOCKS_MAX: u64 = 256;
/// Bits of a seq that are the lane's counter.
const COUNTER_BITS: u32 = 56;

/// Blocks that are copied together.
#[derive(Debug)]
pub(super) struct Part {
    tree: Tree,
    s0: Stamp,
    /// Each with whether nothing is there.
    ranges: Vec<(Range<u64>, bool)>,
    blocks: u64,
}

impl Part {
    /// From this tree, of blocks that are at or below s0 where they go.
    pub fn new(tree: Tree, s0: Stamp) -> Self {
        Self {
            tree,
            s0,
            ranges: Vec::new(),
            blocks: 0,
        }
    }
}

struct Shared {
    running: Cell<usize>,
    failed: Cell<Option<Why>>,
}

/// Parts in flight, from one member to one replica.
pub(super) struct Flight<'a, P: Peers, K: SetStore> {
    of: &'a Rc<Inner<P, K>>,
    source: Place,
    target: Place,
    shared: Rc<Shared>,
}

impl<'a, P: Peers, K: SetStore> Flight<'a, P, K> {
    pub fn new(of: &'a Rc<Inner<P, K>>, source: Place, target: Place) -> Self {
        let shared = Rc::new(Shared {
            running: Cell::new(0),
            failed: Cell::new(None),
        });
        Self {
            of,
            source,
            target,
            shared,
        }
    }

    /// Adds blocks to a part, and sends it whenever it is full.
    pub async fn add(&self, part: &mut Part, blocks: Range<u64>, gone: bool) -> Result<(), Why> {
        let mut at = blocks.start;
        while at < blocks.end {
            // What is not there costs a record, however long it is.
            let room = BLOCKS_MAX - part.blocks;
            let end = if gone {
                blocks.end
            } else {
                blocks.end.min(at + room)
            };
            part.ranges.push((at..end, gone));
            part.blocks += if gone { 1 } else { end - at };
            at = end;
            if part.blocks >= BLOCKS_MAX {
                let next = Part::new(part.tree, part.s0);
                self.send(std::mem::replace(part, next)).await?;
            }
        }
        Ok(())
    }

    /// Reads and copies a part, as soon as fewer are in flight than may be.
    pub async fn send(&self, part: Part) -> Result<(), Why> {
        if part.ranges.is_empty() {
            return Ok(());
        }
        let resyncs = &self.of.resyncs;
        while self.shared.running.get() >= resyncs.pace.parts(self.of.handle.now()) {
            self.of.handle.sleep(LOOK / 5).await;
        }
        if let Some(why) = self.shared.failed.get() {
            return Err(why);
        }
        self.shared.running.set(self.shared.running.get() + 1);
        let (of, shared) = (self.of.clone(), self.shared.clone());
        let (source, target) = (self.source, self.target);
        self.of.handle.spawn("resync: part", async move {
            if let Err(why) = bring(&of, source, target, part).await {
                shared.failed.set(Some(why));
            }
            shared.running.set(shared.running.get() - 1);
        });
        Ok(())
    }

    /// Waits for all of them.
    pub async fn end(self) -> Result<(), Why> {
        while self.shared.running.get() > 0 {
            self.of.handle.sleep(LOOK / 5).await;
        }
        self.shared.failed.get().map_or(Ok(()), Err)
    }
}

async fn bring<P: Peers, K: SetStore>(
    of: &Rc<Inner<P, K>>,
    source: Place,
    target: Place,
    part: Part,
) -> Result<(), Why> {
    let Part {
        tree, s0, ranges, ..
    } = part;
    let lane = tree.lane;
    let copies = RefCell::new(Vec::new());
    let mut done = 0;
    for (blocks, gone) in ranges {
        done += blocks.end - blocks.start;
        if gone {
            copies.borrow_mut().push(erased(lane, s0, &blocks));
            continue;
        }
        let found = read(of, source, tree, blocks.clone()).await;
        match found {
            Ok((buffer, entries)) => {
                let made = as_copies(lane, s0, blocks.start, &entries, &Rc::new(buffer));
                copies.borrow_mut().extend(made);
            }
            Err(NotRead::Damaged) => {
                for block in blocks {
                    let made = one(of, source, tree, s0, block).await?;
                    copies.borrow_mut().extend(made);
                }
            }
            Err(NotRead::Away) => return Err(Why::Source(NotRead::Away)),
        }
    }
    let copies = copies.into_inner();
    let bytes: usize = copies.iter().map(Copying::bytes).sum();
    if !copies.is_empty() {
        of.peers.copy(target, &copies).await?;
    }
    let progress = &of.resyncs.progress;
    progress.add_copied(bytes as u64);
    progress.compared(done * BLOCK_BYTES as u64);
    Ok(())
}

/// Reads blocks of a member as it has them.
pub(super) async fn read<P: Peers, K: SetStore>(
    of: &Rc<Inner<P, K>>,
    from: Place,
    tree: Tree,
    blocks: Range<u64>,
) -> Result<(Buffer, Vec<Entry>), NotRead> {
    let bytes = (blocks.end - blocks.start) as usize * BLOCK_BYTES;
    let buffer = of.handle.buffers().take(bytes).await;
    let (buffer, entries) = of.peers.read(from, tree, blocks, buffer).await;
    Ok((buffer, entries?))
}

/// A block that the source may have damaged: from whoever has it whole.
async fn one<P: Peers, K: SetStore>(
    of: &Rc<Inner<P, K>>,
    source: Place,
    tree: Tree,
    s0: Stamp,
    block: u64,
) -> Result<Vec<Copying>, Why> {
    let lane = tree.lane;
    // Others may lack what is at or below s0 and not written there yet, so they give no more than the block of the source's stamp.
    let entry = match read(of, source, tree, block..block + 1).await {
        Ok((buffer, entries)) => {
            return Ok(as_copies(lane, s0, block, &entries, &Rc::new(buffer)));
        }
        Err(NotRead::Away) => return Err(Why::Source(NotRead::Away)),
        Err(NotRead::Damaged) => of_leaf(of, source, tree, block).await?,
    };
    let others = of.machine.borrow().readable().without(source);
    for other in others.iter() {
        if let Ok((buffer, entries)) = read(of, other, tree, block..block + 1).await
            && entries[0].same(&entry)
        {
            return Ok(as_copies(lane, s0, block, &entries, &Rc::new(buffer)));
        }
    }
    Ok(Vec::from([poison(lane, s0, block, &entry)]))
}

/// A block's entry as the source's map has it.
async fn of_leaf<P: Peers, K: SetStore>(
    of: &Rc<Inner<P, K>>,
    source: Place,
    tree: Tree,
    block: u64,
) -> Result<Entry, Why> {
    let leaf = leaf_of(of.shape(), block);
    let entries = of.peers.leaf(source, AskLeaf { tree, leaf }).await;
    let entries = entries.map_err(Why::Source)?;
    let index = (block - blocks_of(of.shape(), &(leaf..leaf + 1)).start) as usize;
    let entry = entries.get(index).copied().unwrap_or(Entry::ABSENT);
    match entry.kind {
        Kind::Data | Kind::Poison => Ok(entry),
        // It changed meanwhile: the next pass sees what it is.
        Kind::Absent | Kind::Erased => Err(Why::Source(NotRead::Damaged)),
    }
}

/// A stamp that says nothing but the lane; nothing above s0.
pub(super) fn says_nothing(lane: u8, s0: Stamp) -> Stamp {
    let first_of_lane = u64::from(lane) << COUNTER_BITS;
    match s0.seq >= first_of_lane && s0.seq > 0 {
        true => s0,
        false => Stamp {
            epoch: s0.epoch - 1,
            seq: first_of_lane,
        },
    }
}

fn erased(lane: u8, s0: Stamp, blocks: &Range<u64>) -> Copying {
    let stamp = says_nothing(lane, s0);
    let what = What::Tombstone {
        first: LaneBlock(blocks.start),
        blocks: blocks.end - blocks.start,
    };
    copying((lane, 0), s0, stamp, what, None)
}

fn poison(lane: u8, s0: Stamp, block: u64, entry: &Entry) -> Copying {
    let what = What::Poison {
        first: LaneBlock(block),
        crcs: entry.crc.0.to_le_bytes().into(),
        tags: tags(std::slice::from_ref(entry)),
    };
    copying((lane, entry.seal.key), s0, entry.stamp, what, None)
}

/// The tags of blocks that are of one key.
pub(super) fn tags(of: &[Entry]) -> Box<[u8]> {
    let sealed = of.iter().filter(|e| e.seal.key != 0);
    sealed.flat_map(|e| e.seal.tag).collect()
}

pub(super) fn copying(
    (lane, key): (u8, u32),
    s0: Stamp,
    stamp: Stamp,
    what: What,
    data: Option<(Rc<Buffer>, Range<usize>)>,
) -> Copying {
    let record = Held {
        lane,
        stamp,
        key,
        what,
    };
    Copying {
        record,
        data,
        s0: Some(s0),
    }
}

/// Records of blocks as they were read: neighbours of one write are one.
fn as_copies(
    lane: u8,
    s0: Stamp,
    first: u64,
    entries: &[Entry],
    buffer: &Rc<Buffer>,
) -> Vec<Copying> {
    let mut copies = Vec::new();
    let follows = |a: &Entry, b: &Entry| {
        let next = Stamp {
            seq: a.stamp.seq + 1,
            ..a.stamp
        };
        let data = a.kind == Kind::Data && b.kind == Kind::Data;
        data && next == b.stamp && a.seal.key == b.seal.key
    };
    let mut at = 0;
    for group in entries.chunk_by(follows) {
        let block = first + at as u64;
        let part = at * BLOCK_BYTES..(at + group.len()) * BLOCK_BYTES;
        at += group.len();
        match group[0].kind {
            Kind::Data => {
                let crcs = group.iter().flat_map(|e| e.crc.0.to_le_bytes());
                let what = What::Write {
                    first: LaneBlock(block),
                    crcs: crcs.collect(),
                    tags: tags(group),
                    data: None,
                };
                let data = Some((buffer.clone(), part));
                let of = (lane, group[0].seal.key);
                copies.push(copying(of, s0, group[0].stamp, what, data));
            }
            Kind::Poison => copies.push(poison(lane, s0, block, &group[0])),
            // Erased since it was compared.
            Kind::Absent | Kind::Erased => {
                copies.push(erased(lane, s0, &(block..block + group.len() as u64)));
            }
        }
    }
    copies
}
