//! One session at a time for each (node, incarnation, reactor): who comes later ends the one before, and waits until all that it admitted has completed.
//!
//! Invariant: of the sessions that were installed under a key, all but the newest have ended, and what they admitted had completed before the next was
//! installed. So no frame of an older one is applied after one of a newer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::down::Down;
use super::gate::Gate;
use super::limits::{PEERS_MAX, REMEMBERED};
use super::state::{Session, WeakSession};
use crate::reactor::{Handle, Nanos, Notify};
use crate::replication::wire::hello::{Hello, PeerId, Refusal};

/// Who has one session at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    node: PeerId,
    incarnation: [u8; 16],
    reactor: u16,
}

impl Key {
    pub(super) fn of(hello: &Hello) -> Self {
        Self {
            node: hello.from,
            incarnation: hello.incarnation,
            reactor: hello.reactor,
        }
    }
}

struct Entry {
    /// The highest number that was proved.
    newest: u64,
    /// What the newest installed session admitted, while it may be running.
    gate: Option<Rc<Gate>>,
    session: WeakSession,
    /// When it was last claimed or ended.
    touched: Nanos,
    /// A higher number came.
    overtaken: Rc<Notify>,
}

impl Entry {
    fn is_over(&self) -> bool {
        let ended = self.session.upgrade().is_none_or(|s| s.is_ended());
        ended && self.gate.as_ref().is_none_or(|g| g.is_idle())
    }
}

/// The sessions that this reactor accepted.
#[derive(Default)]
pub(super) struct Registry {
    entries: RefCell<BTreeMap<Key, Entry>>,
}

impl Registry {
    /// Ends the session before, and waits until what it admitted has completed. The caller installs its session in the same step as this returns.
    pub(super) async fn claim(
        &self,
        handle: &Handle,
        key: Key,
        number: u64,
    ) -> Result<(), Refusal> {
        let (before, overtaken) = self.enter(handle, key, number)?;
        let Some(gate) = before else { return Ok(()) };
        let mut drained = std::pin::pin!(gate.drained());
        let mut overtaken = std::pin::pin!(overtaken.notified());
        std::future::poll_fn(|cx| {
            let _ = overtaken.as_mut().poll(cx);
            if !self.is_newest(&key, number) {
                return std::task::Poll::Ready(Err(Refusal::Busy));
            }
            drained.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Notes the claim; returns what is to be waited for.
    fn enter(
        &self,
        handle: &Handle,
        key: Key,
        number: u64,
    ) -> Result<(Option<Rc<Gate>>, Rc<Notify>), Refusal> {
        let now = handle.now();
        let mut entries = self.entries.borrow_mut();
        if !entries.contains_key(&key) {
            entries.retain(|_, e| !(e.is_over() && now.since(e.touched) > REMEMBERED));
            if entries.len() >= PEERS_MAX {
                return Err(Refusal::Busy);
            }
        }
        let entry = entries.entry(key).or_insert_with(|| Entry {
            newest: 0,
            gate: None,
            session: WeakSession::new(),
            touched: now,
            overtaken: Rc::default(),
        });
        if number <= entry.newest {
            return Err(Refusal::Busy);
        }
        entry.newest = number;
        entry.touched = now;
        let found = (entry.gate.clone(), entry.overtaken.clone());
        let old = entry.session.upgrade();
        drop(entries);
        if let Some(old) = old {
            old.end(Down::Replaced);
        }
        found.1.notify_all();
        Ok(found)
    }

    fn is_newest(&self, key: &Key, number: u64) -> bool {
        let entries = self.entries.borrow();
        entries.get(key).is_some_and(|e| e.newest == number)
    }

    /// The session that was claimed for.
    pub(super) fn install(&self, key: Key, session: &Rc<Session>) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(&key) {
            entry.gate = Some(session.gate.clone());
            entry.session = Rc::downgrade(session);
        }
    }

    /// A session ended by itself.
    pub(super) fn ended(&self, handle: &Handle, key: &Key) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(key) {
            entry.touched = handle.now();
        }
    }

    /// Sessions that have not ended.
    pub(super) fn live(&self) -> Vec<Rc<Session>> {
        let entries = self.entries.borrow();
        let all = entries.values().filter_map(|e| e.session.upgrade());
        all.filter(|s| !s.is_ended()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::sim::Sim;
    use std::time::Duration;

    /// Who is gone makes room for others, but not at once, as its number still counts.
    #[test]
    fn peers_are_bounded_and_forgotten() {
        let sim = Sim::new(1);
        let (_, handles) = sim.start_node(1);
        let handle = handles[0].clone();
        let registry = Rc::new(Registry::default());
        let node = PeerId::new("n").expect("a letter");
        let key = move |reactor| Key {
            node,
            incarnation: [1; 16],
            reactor,
        };
        let claim = |reactor: u16, number| {
            let (registry, handle) = (registry.clone(), handle.clone());
            let claim = async move { registry.claim(&handle, key(reactor), number).await };
            sim.run(&handles[0], Duration::from_secs(1), claim)
        };
        for reactor in 0..PEERS_MAX as u16 {
            assert_eq!(claim(reactor, 1), Some(Ok(())));
        }
        assert_eq!(claim(PEERS_MAX as u16, 1), Some(Err(Refusal::Busy)));
        assert_eq!(claim(3, 1), Some(Err(Refusal::Busy)));
        sim.run_for(REMEMBERED);
        assert_eq!(claim(3, 2), Some(Ok(())), "known ones have their place");
        sim.run_for(Duration::from_secs(1));
        assert_eq!(claim(PEERS_MAX as u16, 1), Some(Ok(())));
        assert_eq!(claim(3, 2), Some(Err(Refusal::Busy)), "claimed again since");
        assert_eq!(claim(4, 1), Some(Ok(())), "forgotten");
    }
}
