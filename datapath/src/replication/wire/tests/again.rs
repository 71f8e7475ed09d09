//! Any message back to bytes: what was decoded must encode to what it came from. Property tests and the fuzz target share it.

use super::wire::batch::{Batch, BatchWriter};
use super::wire::items::{Item, List};
use super::wire::list::{Listed, ListedWriter};
use super::wire::message::Message;
use super::wire::read::{self, ReadResult};
use super::wire::resync::{self, CopyWriter};
use super::wire::{ack, heart, open, promise, snapshots};

/// The body, and how many bytes of data go behind it.
pub fn again(message: &Message<'_>) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let o = &mut out;
    let mut data = 0;
    match message {
        Message::Open(m) => m.put(o),
        Message::Opened(m) => open::encode_opened(o, m.boot, &all(&m.lanes)),
        Message::Feed(m) => open::encode_feed(o, &all(&m.lanes)),
        Message::Batch(m) => return batch(m),
        Message::Ack(m) => {
            let (lanes, early): (Vec<_>, Vec<_>) = (m.lanes().collect(), m.early().collect());
            ack::encode(o, &m.head, &lanes, &early);
        }
        Message::Heartbeat(m) => heart::encode_heartbeat(o, &m.beat, &all(&m.settled)),
        Message::Heard(m) => m.put(o),
        Message::Flush(m) => m.put(o),
        Message::Set(m) => promise::encode_set(o, m.version, m.purpose, &all(&m.members)),
        Message::Kept(m) => m.put(o),
        Message::Promise(m) => m.put(o),
        Message::Promised(m) => {
            promise::encode_promised(o, &m.head, &all(&m.members), &all(&m.lanes));
        }
        Message::List(m) => m.put(o),
        Message::Listed(m) => return (listed(m), 0),
        Message::Fetch(m) => m.put(o),
        Message::Fetched(m) => data = m.put(o),
        Message::Read(m) => m.put(o),
        Message::ReadDone(m) => match &m.result {
            ReadResult::Done(entries) => data = read::encode_done(o, m.request, &all(entries)),
            ReadResult::Damaged(block) => read::encode_damaged(o, m.request, *block),
            ReadResult::Failed => read::encode_failed(o, m.request),
        },
        Message::AskSummaries(m) => m.put(o),
        Message::Summaries(m) => {
            let summaries = m.summaries.map(|s| all(&s));
            resync::encode_summaries(o, &m.asked, summaries.as_deref().map_err(|e| *e));
        }
        Message::AskLeaf(m) => m.put(o),
        Message::Leaf(m) => {
            let entries = m.entries.map(|e| all(&e));
            resync::encode_leaf(o, &m.asked, entries.as_deref().map_err(|e| *e));
        }
        Message::Copy(m) => {
            let mut writer = CopyWriter::default();
            writer.begin(m.request);
            for record in m.batch.records() {
                assert!(writer.add(&record), "it had room before");
            }
            let (body, data) = writer.finish();
            return (body.to_vec(), data);
        }
        Message::Copied(m) => m.put(o),
        Message::Refused(m) => m.put(o),
        Message::Command(m) => {
            m.put(o);
            data = m.data() as usize;
        }
        Message::Done(m) => m.put(o),
        Message::Snapshots(m) => {
            snapshots::encode_snapshots(o, m.number, m.whole, &all(&m.ids));
        }
        Message::Damaged(m) => m.put(o),
        Message::Having(m) => snapshots::encode_having(o, m.number, &all(&m.ids)),
        Message::Close => {}
    }
    (out, data)
}

fn all<T: Item>(list: &List<'_, T>) -> Vec<T> {
    let all: Vec<_> = list.iter().collect();
    assert!(all.len() == list.len(), "each was looked at");
    all
}

fn batch(m: &Batch<'_>) -> (Vec<u8>, usize) {
    let mut writer = BatchWriter::default();
    writer.begin(m.settled());
    for record in m.records() {
        assert!(writer.add(&record), "it had room before");
    }
    let (body, data) = writer.finish();
    (body.to_vec(), data)
}

fn listed(m: &Listed<'_>) -> Vec<u8> {
    let mut writer = ListedWriter::default();
    if m.leaves {
        writer.leaves(m.lane);
    } else {
        writer.records(m.lane);
    }
    for record in m.records() {
        assert!(writer.add(&record), "it had room before");
    }
    for leaf in m.leaves() {
        assert!(writer.add_leaf(leaf), "it had room before");
    }
    writer.finish(m.last).to_vec()
}
