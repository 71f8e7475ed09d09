//! The newest changes, in memory: a watch that keeps up is told from here, and reads the file only for what is older. Without this each of a cluster's watches reads each
//! change from the file by itself, which with 200 of them was most of what a create cost.
//!
//! Invariants: everything that changed from `from` through `through` is here, in the order of the log; all of it is durable; nothing before the last compaction is here, so
//! that who asks for that hears of it from the file.
use super::store::{Changes, Filter};
use keelblock_api::etcd::mvccpb::Event;
use keelblock_api::etcd::mvccpb::event::EventType;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Changes that are kept at most: minutes of a busy cluster.
const ENTRIES_MAX: usize = 8192;
/// And their bytes.
const BYTES_MAX: usize = 8 << 20;

/// See the module's text.
#[derive(Debug)]
pub struct Recent {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    from: u64,
    through: u64,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

/// The revision of a change.
fn revision(event: &Event) -> u64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision as u64)
}

fn bytes(event: &Event) -> usize {
    let kv = event.kv.as_ref();
    std::mem::size_of::<Event>() + kv.map_or(0, |kv| kv.key.len() + kv.value.len())
}

impl Recent {
    /// Nothing of a store that is at this revision.
    pub fn new(current: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                from: current + 1,
                through: current,
                events: VecDeque::new(),
                bytes: 0,
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds the lock can panic half way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a commit changed, after it and before anybody hears of its revision: `through` is the store's then, `compacted` what it has forgotten.
    pub fn append(&self, events: Vec<Event>, through: u64, compacted: u64) {
        let mut inner = self.inner();
        inner.bytes += events.iter().map(bytes).sum::<usize>();
        inner.events.extend(events.into_iter().map(Arc::new));
        inner.through = through;
        inner.forget_before(compacted);
        while inner.events.len() > ENTRIES_MAX || inner.bytes > BYTES_MAX {
            // Whole revisions.
            let first = inner.events.front().map_or(through, |e| revision(e));
            inner.forget_before(first + 1);
        }
    }

    /// As [`super::store::Snapshot::changes`]; `None`: not all of it is here.
    pub fn changes(&self, from: u64, filter: &Filter, entries_max: usize) -> Option<Changes> {
        let (events, through) = {
            let inner = self.inner();
            if filter.prev_kv || from < inner.from {
                return None;
            }
            let first = inner.events.partition_point(|e| revision(e) < from);
            let mut through = inner.through;
            let (mut wanted, mut last) = (Vec::new(), 0);
            for (seen, event) in inner.events.range(first..).enumerate() {
                if seen >= entries_max && revision(event) != last {
                    through = last;
                    break;
                }
                last = revision(event);
                if wants(filter, event) {
                    wanted.push(event.clone());
                }
            }
            (wanted, through)
        };
        Some(Changes {
            events: events.iter().map(|e| Event::clone(e)).collect(),
            through,
        })
    }
}

fn wants(filter: &Filter, event: &Event) -> bool {
    let of_kind = match event.r#type() {
        EventType::Put => filter.puts,
        EventType::Delete => filter.deletions,
    };
    of_kind
        && event
            .kv
            .as_ref()
            .is_some_and(|kv| filter.span.contains(&kv.key))
}

impl Inner {
    fn forget_before(&mut self, revision_kept: u64) {
        self.from = self.from.max(revision_kept);
        while let Some(first) = self.events.front()
            && revision(first) < revision_kept
        {
            self.bytes -= bytes(first);
            self.events.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::span::Span;
    use super::super::store::Store;
    use super::super::txn::Writer;
    use super::*;
    use keelblock_api::etcd::etcdserverpb::request_op::Request;
    use keelblock_api::etcd::etcdserverpb::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8, u16),
        Delete(u8, u8),
        /// At one revision.
        Both(u8, u8),
        Compact(u64),
    }

    fn key(n: u8) -> Vec<u8> {
        vec![b'a' + n]
    }

    fn put(n: u8, bytes: u16) -> PutRequest {
        PutRequest {
            key: key(n),
            value: vec![n; bytes.into()],
            ..Default::default()
        }
    }

    fn apply(writer: &mut Writer<'_>, step: &Step) {
        let done = match step {
            Step::Put(n, bytes) => writer.put(&put(*n, *bytes)).map(drop),
            Step::Delete(from, to) => {
                let (key, range_end) = (key(*from), key(*to));
                let request = DeleteRangeRequest {
                    key,
                    range_end,
                    ..Default::default()
                };
                writer.delete_range(&request).map(drop)
            }
            Step::Both(n, m) => {
                let op = |n| RequestOp {
                    request: Some(Request::RequestPut(put(n, 3))),
                };
                let mut success = vec![op(*n)];
                success.extend((n != m).then(|| op(*m)));
                writer
                    .txn(&TxnRequest {
                        success,
                        ..Default::default()
                    })
                    .map(drop)
            }
            Step::Compact(back) => {
                let at = writer.revisions.current.saturating_sub(*back);
                // What is compacted already is refused.
                let _ = writer.compact(at as i64);
                Ok(())
            }
        };
        done.unwrap();
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..5u8, 0..9u16).prop_map(|(n, bytes)| Step::Put(n, bytes)),
            3 => (0..5u8, 0..6u8).prop_map(|(n, m)| Step::Delete(n, m)),
            3 => (0..5u8, 0..5u8).prop_map(|(n, m)| Step::Both(n, m)),
            1 => (0..6u64).prop_map(Step::Compact),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_told_from_memory_is_what_the_file_says(
            // Batches, each one commit.
            batches in proptest::collection::vec(proptest::collection::vec(step(), 1..4), 1..12),
            puts in any::<bool>(), deletions in any::<bool>(), first in 0..5u8, entries_max in 1..6usize,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("kvdb.redb")).unwrap();
            let recent = Recent::new(store.snapshot().unwrap().revisions.current);
            let filter = Filter { span: Span::new(&key(first), &[0]).unwrap(), puts, deletions, prev_kv: false };
            for batch in &batches {
                let mut txn = store.db.begin_write().unwrap();
                txn.set_durability(redb::Durability::None).unwrap();
                let (events, at) = {
                    let mut writer = Writer::new(&txn).unwrap();
                    batch.iter().for_each(|step| apply(&mut writer, step));
                    (writer.events, writer.revisions)
                };
                txn.commit().unwrap();
                recent.append(events, at.current, at.compacted);
                let snapshot = store.snapshot().unwrap();
                for from in 0..=at.current {
                    let file = snapshot.changes(from, &filter, entries_max);
                    match recent.changes(from, &filter, entries_max) {
                        Some(found) => {
                            let file = file.unwrap();
                            prop_assert_eq!((found.events, found.through), (file.events, file.through));
                        }
                        // Of a new file everything is here but what is compacted.
                        None => prop_assert!(from < at.compacted.max(2), "{} is not here", from),
                    }
                }
                let prev_kv = Filter { prev_kv: true, ..filter.clone() };
                prop_assert!(recent.changes(at.current, &prev_kv, entries_max).is_none());
            }
        }
    }

    #[test]
    fn it_is_bounded_and_forgets_whole_revisions() {
        let recent = Recent::new(1);
        let event = |revision: u64, bytes: usize| Event {
            kv: Some(keelblock_api::etcd::mvccpb::KeyValue {
                key: b"k".to_vec(),
                value: vec![0; bytes],
                mod_revision: revision as i64,
                ..Default::default()
            }),
            ..Default::default()
        };
        let all = Filter {
            span: Span::new(b"k", &[]).unwrap(),
            puts: true,
            deletions: true,
            prev_kv: false,
        };
        for revision in 2..10_000 {
            recent.append(vec![event(revision, 1), event(revision, 1)], revision, 0);
        }
        let first = 10_000 - ENTRIES_MAX as u64 / 2;
        assert!(recent.changes(first - 1, &all, 10).is_none());
        assert_eq!(recent.changes(first, &all, 10).unwrap().events.len(), 10);
        recent.append(vec![event(10_000, BYTES_MAX), event(10_000, 1)], 10_000, 0);
        assert!(
            recent.changes(10_000, &all, 10).is_none(),
            "one that is too large is nothing to keep"
        );
        recent.append(vec![event(10_001, 1)], 10_001, 0);
        assert_eq!(recent.changes(10_001, &all, 10).unwrap().events.len(), 1);
    }
}
