//! A read under way: it holds the stream, asks a replica if it must, is put together, opened if the volume is encrypted, and answered while a lease runs
//! (`docs/replication.md` §§8, 9 and 16).

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::driver::{Inner, NotRead, Peers, SetStore};
use super::members::{Members, Place};
use super::message::Failed;
use super::read::{Part, Ready};
use super::resync::repair;
use super::state::{Reading, block_of_volume};
use crate::cipher::{self, NotOpened, Seal};
use crate::reactor::Nanos;
use crate::replication::held::What;
use crate::replication::seam::Entry;
use crate::replication::wire::resync::Tree;
use crate::store::types::{BLOCK_BYTES, Stamp};

/// A read that began: however it ends, the stream is let go.
pub(super) struct Pinned<'a, P: Peers, K: SetStore> {
    pub inner: &'a Rc<Inner<P, K>>,
    pub reading: Option<Reading>,
}

impl<P: Peers, K: SetStore> Drop for Pinned<'_, P, K> {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.take() {
            self.inner.machine.borrow_mut().end_read(reading);
        }
    }
}

impl<P: Peers, K: SetStore> Pinned<'_, P, K> {
    /// To its end, within the volume's limit.
    pub async fn go(
        self,
        lane: u8,
        blocks: Range<u64>,
        mut into: Buffer,
        mut ask: bool,
        until: Nanos,
    ) -> (Buffer, Result<(), Failed>) {
        let mut found: Option<Vec<Entry>> = None;
        let mut tried = Members::NONE;
        let mut wrong = None;
        loop {
            if self.inner.ended.get() {
                return (into, Err(Failed::Ended));
            }
            if ask && found.is_none() {
                match self.choose(tried) {
                    Some(from) => {
                        tried = tried.with(from);
                        let read =
                            self.inner
                                .peers
                                .read(from, Tree::live(lane), blocks.clone(), into);
                        let entries;
                        (into, entries) = read.await;
                        if entries == Err(NotRead::Damaged) {
                            wrong.get_or_insert(Failed::Damaged);
                            repair::damaged(self.inner, from, lane, blocks.clone());
                        }
                        found = entries.ok();
                        // Asked while it was a member, answered when it is none: others know better.
                        let still = self.inner.machine.borrow().still_readable(from);
                        found = found.filter(|_| still);
                        continue;
                    }
                    None => {
                        if let Some(wrong) = wrong {
                            return (into, Err(wrong));
                        }
                        tried = Members::NONE;
                        if let Err(failed) = self.inner.wait(until).await {
                            return (into, Err(failed));
                        }
                        continue;
                    }
                }
            }
            match self.assemble(found.as_deref()) {
                Ready::Parts(parts) if parts.iter().any(|p| matches!(p, Part::Damaged)) => {
                    // Another may have it whole.
                    wrong.get_or_insert(Failed::Damaged);
                    (ask, found) = (true, None);
                    continue;
                }
                Ready::Parts(parts) => {
                    if self.may_answer() {
                        let entries = found.as_deref().unwrap_or(&[]);
                        let filled = self.inner.fill(lane, &blocks, &parts, entries, &mut into);
                        match filled {
                            // Opening took a while.
                            Ok(()) if self.may_answer() => return (into, Ok(())),
                            // What was opened cannot be opened again.
                            Ok(()) => (found, tried) = (None, Members::NONE),
                            // Another may have it as it was.
                            Err(NotFilled::Replica) => {
                                wrong = Some(Failed::NotOpened);
                                (ask, found) = (true, None);
                                continue;
                            }
                            Err(NotFilled::Stream) => return (into, Err(Failed::NotOpened)),
                        }
                    }
                }
                Ready::Elsewhere => {
                    (ask, found) = (true, None);
                    continue;
                }
                Ready::Wait => {}
            }
            if let Err(failed) = self.inner.wait(until).await {
                return (into, Err(failed));
            }
        }
    }

    /// Somebody who may be asked and was not: the nearest first, else the better of two that chance says. Of all the best would be the same for every
    /// coordinator, for as long as it is not known that it is busy now.
    fn choose(&self, tried: Members) -> Option<Place> {
        let peers = &self.inner.peers;
        let readable = self.inner.machine.borrow().readable().minus(tried);
        let near = peers.near().filter(|p| readable.has(*p));
        let chance = |among: Members| {
            let n = u64::from(among.count());
            let which = (n > 0).then(|| (self.inner.handle.random() % n) as usize)?;
            among.iter().nth(which)
        };
        near.or_else(|| {
            let one = chance(readable)?;
            let other = chance(readable.without(one)).unwrap_or(one);
            [one, other].into_iter().min_by_key(|p| peers.burden(*p))
        })
    }

    fn assemble(&self, found: Option<&[Entry]>) -> Ready {
        let machine = self.inner.machine.borrow();
        match &self.reading {
            Some(reading) => machine.assemble(reading, found),
            None => Ready::Wait,
        }
    }

    /// Looked at when the data are in hand (rule 13).
    fn may_answer(&self) -> bool {
        let machine = self.inner.machine.borrow();
        // The pass may have been long.
        let now = self.inner.handle.clock();
        self.reading
            .as_ref()
            .is_some_and(|r| machine.may_answer(r, now))
    }
}

/// Whose blocks are not what was encrypted.
enum NotFilled {
    Replica,
    Stream,
}

impl<P: Peers, K: SetStore> Inner<P, K> {
    /// Puts blocks that do not come from the replica to their places, and opens all that are encrypted.
    fn fill(
        &self,
        lane: u8,
        blocks: &Range<u64>,
        parts: &[Part],
        entries: &[Entry],
        into: &mut Buffer,
    ) -> Result<(), NotFilled> {
        let each = blocks.clone().zip(parts).enumerate();
        for ((n, (block, part)), bytes) in each.zip(into.chunks_exact_mut(BLOCK_BYTES)) {
            match part {
                Part::Zero | Part::Damaged => bytes.fill(0),
                Part::Replica => {
                    let entry = entries.get(n).ok_or(NotFilled::Replica)?;
                    self.open((lane, block), entry.stamp, &entry.seal, bytes)
                        .map_err(|_| NotFilled::Replica)?;
                }
                Part::Record { held, index } => {
                    if let What::Write {
                        data: Some(data), ..
                    } = &held.what
                    {
                        bytes.copy_from_slice(&data[index * BLOCK_BYTES..][..BLOCK_BYTES]);
                        let (stamp, seal) = (held.stamp_of(block), held.seal_of(block));
                        self.open((lane, block), stamp, &seal, bytes)
                            .map_err(|_| NotFilled::Stream)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Decrypts a block, if the volume is encrypted.
    fn open(
        &self,
        (lane, block): (u8, u64),
        stamp: Stamp,
        seal: &Seal,
        bytes: &mut [u8],
    ) -> Result<(), NotOpened> {
        let at = cipher::Place {
            stamp,
            block: block_of_volume(self.lanes, lane, block),
        };
        let opened = match &self.cipher {
            Some(cipher) => cipher.open(at, seal, bytes),
            None if seal.key == 0 => return Ok(()),
            None => Err(NotOpened::NoKey(seal.key)),
        };
        if let Err(why) = &opened {
            bytes.fill(0);
            self.not_opened.set(self.not_opened.get() + 1);
            tracing::error!(lane, block, %why, "a block cannot be decrypted");
        }
        opened
    }
}
