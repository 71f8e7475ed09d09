//! Whoever wants to hear when a volume or snapshot may be shown otherwise than before (`docs/sdk.md`, Watch).
//!
//! A watcher has no queue of changes but a set of ids that it has not looked at: so it costs the same however slow it is, hears the last of several changes, and holds nobody
//! else up. One for whom too many wait is told so, and ends.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keelblock_api::etcd::mvccpb::Event;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::error::OpError;
use crate::records::Keys;

/// Watchers of one process: each knows what it told of every volume, some 100 bytes.
pub(crate) const WATCHERS_MAX: usize = 64;
/// Ids that may wait for a watcher.
pub(crate) const BEHIND_MAX: usize = 1024;
/// What is shown of a volume is in these records, each under its id.
const KINDS: [&str; 6] = [
    "volumes",
    "snapshots",
    "attachments",
    "replication",
    "tasks",
    "schedules",
];

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    /// The process ends.
    ended: bool,
    last: u64,
    by_number: HashMap<u64, Arc<Marks>>,
}

/// What one has to look at.
#[derive(Debug, Default)]
struct Marks {
    marked: Mutex<Marked>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Marked {
    ids: HashSet<Uuid>,
    all: bool,
    behind: bool,
    ended: bool,
}

/// What a watcher has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// These may be shown otherwise, in the order of their ids.
    These(Vec<Uuid>),
    /// Any may.
    All,
    /// Too many wait: it ends.
    Behind,
    /// The process ends.
    Ended,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    number: u64,
    marks: Arc<Marks>,
    all: Arc<Watchers>,
}

// Nothing that holds these locks can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Volumes and snapshots whose records these are.
pub(super) fn concerned<'a>(
    keys: &'a Keys,
    events: &'a [Event],
) -> impl Iterator<Item = Uuid> + Clone + 'a {
    let id = |event: &'a Event| {
        let key = &event.kv.as_ref()?.key;
        let key = std::str::from_utf8(key.strip_prefix(keys.root().as_bytes())?).ok()?;
        let (kind, id) = key.split_once('/')?;
        let id = KINDS.contains(&kind).then(|| Uuid::try_parse(id).ok());
        id.flatten()
    };
    events.iter().filter_map(id)
}

impl Watchers {
    /// A new one, which has everything to look at.
    ///
    /// # Errors
    /// [`OpError::NoSpace`] if there are [`WATCHERS_MAX`]; [`OpError::Unavailable`] if the process ends.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Watcher, OpError> {
        let mut all = lock(&self.0);
        if all.ended {
            return Err(ending());
        }
        if all.by_number.len() >= WATCHERS_MAX {
            return Err(OpError::NoSpace(format!(
                "{WATCHERS_MAX} watches are open on this node, which is as many as may be: end one, or watch at another node"
            )));
        }
        let marks = Arc::new(Marks::default());
        lock(&marks.marked).all = true;
        marks.notify.notify_one();
        all.last += 1;
        let number = all.last;
        all.by_number.insert(number, marks.clone());
        Ok(Watcher {
            number,
            marks,
            all: self.clone(),
        })
    }

    /// These may be shown otherwise than before, or all.
    pub(super) fn mark(&self, ids: impl Iterator<Item = Uuid> + Clone, all: bool) {
        for marks in lock(&self.0).by_number.values() {
            marks.add(ids.clone(), all);
        }
    }

    /// The process ends.
    pub(crate) fn end(&self) {
        let mut all = lock(&self.0);
        all.ended = true;
        for marks in all.by_number.values() {
            lock(&marks.marked).ended = true;
            marks.notify.notify_one();
        }
    }
}

/// Why a watch ends, or does not begin, when the process ends.
pub(crate) fn ending() -> OpError {
    OpError::Unavailable("this control process is ending: watch again, or at another node".into())
}

impl Marks {
    fn add(&self, ids: impl Iterator<Item = Uuid>, all: bool) {
        let mut marked = lock(&self.marked);
        if marked.behind {
            return;
        }
        marked.all |= all;
        // Whoever looks at all looks at these.
        if !marked.all {
            marked.ids.extend(ids);
        } else {
            marked.ids = HashSet::new();
        }
        if marked.ids.len() > BEHIND_MAX {
            marked.behind = true;
            marked.ids = HashSet::new();
        }
        if marked.all || marked.behind || !marked.ids.is_empty() {
            self.notify.notify_one();
        }
    }

    fn take(&self) -> Option<Look> {
        let mut marked = lock(&self.marked);
        let ids = std::mem::take(&mut marked.ids);
        let all = std::mem::take(&mut marked.all);
        if marked.ended {
            return Some(Look::Ended);
        }
        if marked.behind {
            return Some(Look::Behind);
        }
        if all {
            return Some(Look::All);
        }
        let mut ids: Vec<Uuid> = ids.into_iter().collect();
        ids.sort_unstable();
        (!ids.is_empty()).then_some(Look::These(ids))
    }
}

impl Watcher {
    /// What is to be done next. Nothing is lost by dropping the future.
    pub(crate) async fn next(&self) -> Look {
        loop {
            if let Some(look) = self.marks.take() {
                return look;
            }
            self.marks.notify.notified().await;
        }
    }

    /// Waits until it has to end, whatever else there is to do.
    pub(crate) async fn over(&self) -> Look {
        loop {
            {
                let marked = lock(&self.marks.marked);
                match (marked.ended, marked.behind) {
                    (true, _) => return Look::Ended,
                    (false, true) => return Look::Behind,
                    (false, false) => {}
                }
            }
            self.marks.notify.notified().await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        lock(&self.all.0).by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::etcd::mvccpb::KeyValue;

    fn ids(range: std::ops::Range<usize>) -> impl Iterator<Item = Uuid> + Clone {
        range.map(|n| Uuid::from_u128(n as u128))
    }

    #[tokio::test]
    async fn a_slow_one_hears_the_last_and_one_that_is_too_slow_ends_alone() {
        let all = Arc::new(Watchers::default());
        let (slow, quick) = (all.begin().unwrap(), all.begin().unwrap());
        for watcher in [&slow, &quick] {
            assert_eq!(watcher.next().await, Look::All);
        }
        for _ in 0..5 {
            all.mark(ids(0..BEHIND_MAX), false);
            let look = quick.next().await;
            assert_eq!(look, Look::These(ids(0..BEHIND_MAX).collect()));
        }
        all.mark(ids(3..BEHIND_MAX + 1), false);
        assert_eq!(slow.next().await, Look::Behind, "one more than may wait");
        assert_eq!(slow.over().await, Look::Behind);
        let look = quick.next().await;
        assert_eq!(look, Look::These(ids(3..BEHIND_MAX + 1).collect()));
        // To look at all is as much as to look at whatever waits.
        all.mark(ids(0..9), true);
        all.mark(ids(0..BEHIND_MAX + 1), false);
        assert_eq!(quick.next().await, Look::All);
        all.mark(ids(4..5), false);
        assert_eq!(quick.next().await, Look::These(ids(4..5).collect()));
    }

    #[tokio::test]
    async fn there_are_so_many_and_all_end_with_the_process() {
        let all = Arc::new(Watchers::default());
        let mut some: Vec<Watcher> = (0..WATCHERS_MAX).map(|_| all.begin().unwrap()).collect();
        let error = all.begin().unwrap_err();
        assert!(matches!(error, OpError::NoSpace(_)), "{error}");
        some.pop();
        some.push(all.begin().unwrap());
        all.end();
        for watcher in &some {
            assert_eq!(watcher.over().await, Look::Ended);
            assert_eq!(watcher.next().await, Look::Ended);
        }
        drop(some);
        let error = all.begin().unwrap_err();
        assert!(matches!(error, OpError::Unavailable(_)), "{error}");
    }

    #[test]
    fn what_is_not_shown_of_a_volume_concerns_nobody() {
        let keys = Keys::new("c");
        let id = Uuid::from_u128(9);
        let event = |key: String| Event {
            kv: Some(KeyValue {
                key: key.into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let shown = [
            keys.volume(id),
            keys.snapshot(id),
            keys.attachment(id),
            keys.replication(id),
            keys.task(id),
            keys.schedule(id),
        ];
        let shown = shown.map(event);
        assert_eq!(concerned(&keys, &shown).count(), shown.len());
        let other = [
            keys.reservation(id),
            keys.replica(id, id),
            keys.alive("n1"),
            keys.cluster(),
            Keys::new("d").volume(id),
        ];
        let other = other.map(event);
        assert_eq!(concerned(&keys, &other).count(), 0);
    }
}
