//! Questions of a coordinator: lists and whole records for a takeover, blocks for reads.
//!
//! A few tasks for each channel answer them; they stay while the channel does, so that a read begins none.

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::channel::Chan;
use super::service::Inner;
use super::{ANSWERING_MAX, Outgoing};
use crate::replication::held::{Held, What};
use crate::replication::seam::{Entry, Kind as BlockKind, ReplicaError, ReplicaStore, Unsettled};
use crate::replication::summary;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::list::{Fetch, Fetched, Found, ListAsk, ListedWriter};
use crate::replication::wire::read::{Read, encode_damaged, encode_done, encode_failed};
use crate::replication::wire::record::flag;
use crate::replication::wire::resync::{
    AskLeaf, AskSummaries, LeafEntry, NotRead, encode_leaf, encode_summaries,
};
use crate::store::map::LeafShape;
use crate::store::types::{BLOCK_BYTES, LaneBlock};

/// What is asked, with what was admitted by it.
#[derive(Debug)]
pub(super) enum Question<A> {
    List(ListAsk, A),
    Fetch(Fetch, A),
    Read(Read, A),
    Summaries(AskSummaries, A),
    Leaf(AskLeaf, A),
}

impl<A> Question<A> {
    pub fn lane(&self) -> u8 {
        match self {
            Self::List(q, _) => q.lane,
            Self::Fetch(q, _) => q.lane,
            Self::Read(q, _) => q.tree.lane,
            Self::Summaries(q, _) => q.tree.lane,
            Self::Leaf(q, _) => q.tree.lane,
        }
    }
}

/// Data of an answer.
type Data = Vec<(Rc<Buffer>, Range<usize>)>;

impl<S: ReplicaStore, O: Outgoing> Inner<S, O> {
    /// A question waits: somebody takes it.
    pub(super) fn answer_questions(self: &Rc<Self>, chan: &Rc<Chan<O>>) {
        if chan.idle.get() > 0 || chan.answering.get() >= ANSWERING_MAX {
            return chan.asked.notify();
        }
        chan.answering.set(chan.answering.get() + 1);
        let chan = chan.clone();
        self.begin("replica: questions", |this| async move {
            let mut body = Vec::new();
            while !chan.ended.get() && !this.stopped.get() {
                let next = chan.questions.borrow_mut().pop_front();
                let Some(question) = next else {
                    chan.idle.set(chan.idle.get() + 1);
                    chan.asked.notified().await;
                    chan.idle.set(chan.idle.get() - 1);
                    continue;
                };
                let busy = chan.busy();
                body.clear();
                this.answer_one(&chan, question, &mut body).await;
                drop(busy);
                if chan.closing.get() {
                    this.ack.notify();
                }
            }
            chan.questions.borrow_mut().clear();
        });
    }

    async fn answer_one(
        self: &Rc<Self>,
        chan: &Rc<Chan<O>>,
        question: Question<O::Admitted>,
        body: &mut Vec<u8>,
    ) {
        // Held until it is answered.
        let (kind, done, _admitted) = match question {
            Question::List(ask, a) => (Kind::Listed, self.answer_list(&ask, body).await, a),
            Question::Fetch(ask, a) => (Kind::Fetched, self.answer_fetch(ask, body).await, a),
            Question::Read(ask, a) => (Kind::ReadDone, self.answer_read(&ask, body).await, a),
            Question::Summaries(ask, a) => {
                let done = self.answer_summaries(&ask, body).await;
                (Kind::Summaries, done, a)
            }
            Question::Leaf(ask, a) => (Kind::Leaf, self.answer_leaf(&ask, body).await, a),
        };
        match done {
            // Looked at again (rule 1).
            Ok(data) if self.admits(chan) => drop(chan.send(kind, body, &data).await),
            Ok(_) => {}
            Err(ReplicaError::Incomplete(_)) => self.lost(),
            Err(error) => self.refuse(chan, super::apply::why(&error)),
        }
    }

    async fn answer_list(&self, ask: &ListAsk, body: &mut Vec<u8>) -> Result<Data, ReplicaError> {
        let list = self.listed(ask.lane).await?;
        let mut part = ListedWriter::default();
        let mut last = true;
        match &list.leaves {
            Some(leaves) => {
                part.leaves(ask.lane);
                let from = leaves.partition_point(|l| *l < ask.leaf);
                for leaf in &leaves[from..] {
                    if !part.add_leaf(*leaf) {
                        last = false;
                        break;
                    }
                }
            }
            None => {
                part.records(ask.lane);
                let from = list.records.partition_point(|r| r.stamp <= ask.after);
                for record in &list.records[from..] {
                    if !part.add(&record.record(0, flag::LISTED)) {
                        last = false;
                        break;
                    }
                }
            }
        }
        body.extend_from_slice(part.finish(last));
        Ok(Data::new())
    }

    /// The list of a lane: that of the promise, or after a restart one that is made now.
    pub(super) async fn listed(&self, lane: u8) -> Result<Rc<Unsettled>, ReplicaError> {
        let at = usize::from(lane);
        let known = self.lanes.borrow()[at].listed.clone();
        if let Some(list) = known {
            return Ok(list);
        }
        let list = Rc::new(self.store.unsettled(lane).await?);
        self.lanes.borrow_mut()[at].listed = Some(list.clone());
        Ok(list)
    }

    async fn answer_fetch(&self, asked: Fetch, body: &mut Vec<u8>) -> Result<Data, ReplicaError> {
        let found = match self.store.fetch(asked.lane, asked.stamp).await {
            Err(ReplicaError::Damaged { .. }) => self.poisoned(asked).await,
            Err(error @ ReplicaError::Incomplete(_)) => return Err(error),
            Err(_) => Err(Found::Failed),
            Ok(None) => Err(Found::Unknown),
            Ok(Some(record)) => Ok(record),
        };
        let record = match found {
            Err(found) => {
                Fetched { asked, found }.put(body);
                return Ok(Data::new());
            }
            Ok(record) => record,
        };
        let mut data = Data::new();
        let found = match &record.what {
            // Only what is known of it: whoever asks has that already.
            What::Write { data: None, .. } => Found::Failed,
            What::Write {
                data: Some(bytes),
                crcs,
                ..
            } => {
                data.push((bytes.clone(), 0..crcs.len() / 4 * BLOCK_BYTES));
                Found::Record(record.record(0, 0))
            }
            _ => Found::Record(record.record(0, 0)),
        };
        Fetched { asked, found }.put(body);
        Ok(data)
    }

    /// A listed record whose data are damaged: it stays, as poison under its stamp (§10, 4).
    async fn poisoned(&self, asked: Fetch) -> Result<Rc<Held>, Found<'static>> {
        let list = self.store.unsettled(asked.lane).await;
        let list = list.map_err(|_| Found::Failed)?;
        let records = &list.records;
        let at = records.binary_search_by_key(&asked.stamp, |r| r.stamp);
        let record = &records[at.map_err(|_| Found::Failed)?];
        match &record.what {
            What::Write {
                first, crcs, tags, ..
            } => Ok(Rc::new(Held {
                what: What::Poison {
                    first: *first,
                    crcs: crcs.clone(),
                    tags: tags.clone(),
                },
                ..**record
            })),
            _ => Err(Found::Failed),
        }
    }

    async fn answer_summaries(
        &self,
        ask: &AskSummaries,
        body: &mut Vec<u8>,
    ) -> Result<Data, ReplicaError> {
        let AskSummaries {
            tree,
            level,
            first,
            count,
        } = *ask;
        let found = read(self.store.summaries(tree, level, first, count).await)?;
        encode_summaries(body, ask, found.as_deref().map_err(|e| *e));
        Ok(Data::new())
    }

    async fn answer_leaf(&self, ask: &AskLeaf, body: &mut Vec<u8>) -> Result<Data, ReplicaError> {
        let found = read(self.store.leaf(ask.tree, ask.leaf).await)?;
        let shape = LeafShape::of(self.store.sealed());
        let first = summary::blocks_of(shape, &(ask.leaf..ask.leaf + 1)).start;
        let entries = found.map(|all| {
            let entry = |(block, entry): (u64, Entry)| LeafEntry {
                index: (block - first) as u8,
                entry,
            };
            all.into_iter().map(entry).collect::<Vec<_>>()
        });
        encode_leaf(body, ask, entries.as_deref().map_err(|e| *e));
        Ok(Data::new())
    }

    async fn answer_read(&self, ask: &Read, body: &mut Vec<u8>) -> Result<Data, ReplicaError> {
        let blocks = ask.first.0..ask.first.0 + u64::from(ask.blocks);
        let bytes = ask.blocks as usize * BLOCK_BYTES;
        let buffer = self.handle.buffers().take(bytes).await;
        let (buffer, entries) = self.store.read(ask.tree, blocks, buffer).await;
        match entries {
            Ok(entries) => {
                encode_done(body, ask.request, &entries);
                Ok(data_of(&entries, buffer))
            }
            Err(ReplicaError::Damaged { block, .. }) => {
                encode_damaged(body, ask.request, LaneBlock(block));
                Ok(Data::new())
            }
            Err(error @ ReplicaError::Incomplete(_)) => Err(error),
            Err(_) => {
                encode_failed(body, ask.request);
                Ok(Data::new())
            }
        }
    }
}

/// What the drive or a damaged page of the map does not give is said; that it is no replica any more is not.
fn read<T>(found: Result<T, ReplicaError>) -> Result<Result<T, NotRead>, ReplicaError> {
    match found {
        Ok(found) => Ok(Ok(found)),
        Err(error @ ReplicaError::Incomplete(_)) => Err(error),
        Err(ReplicaError::NoSnapshot(_)) => Ok(Err(NotRead::Unknown)),
        Err(_) => Ok(Err(NotRead::Failed)),
    }
}

/// The data of those blocks that have some; neighbours go as one.
fn data_of(entries: &[Entry], buffer: Buffer) -> Data {
    let buffer = Rc::new(buffer);
    let mut data = Data::new();
    for (n, entry) in entries.iter().enumerate() {
        if entry.kind != BlockKind::Data {
            continue;
        }
        let (from, to) = (n * BLOCK_BYTES, (n + 1) * BLOCK_BYTES);
        match data.last_mut() {
            Some((_, part)) if part.end == from => part.end = to,
            _ => data.push((buffer.clone(), from..to)),
        }
    }
    data
}
