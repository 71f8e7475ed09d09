//! In which order records of a lane are applied: overlapping ones as they came, others beside each other, a snapshot alone.
//!
//! A snapshot waits for all that came before it, and all that comes after waits for it: else a record would be in it, or not, by chance (rule 12).
//! How many records there may be at once, the grants say.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// A record's number in the order of arrival.
pub type Ticket = u64;

/// Ranges of at most so many blocks are found by where they begin.
const NARROW: u64 = 256;

#[derive(Debug)]
struct Waiting<T> {
    what: Option<T>,
    blocks: Range<u64>,
    /// Records that it waits for.
    before: usize,
    /// Those that wait for it.
    after: Vec<Ticket>,
}

#[derive(Debug)]
enum Late<T> {
    Blocks(T, Range<u64>),
    Alone(T),
}

/// The records of a lane that are not done.
#[derive(Debug)]
pub struct Order<T> {
    next: Ticket,
    /// That run, or wait for others that run.
    entered: BTreeMap<Ticket, Waiting<T>>,
    /// By their first block.
    narrow: BTreeMap<(u64, Ticket), u64>,
    /// Long ranges: erased ones. Few.
    wide: Vec<(Range<u64>, Ticket)>,
    /// One that wants to be alone, and what came after it.
    behind: VecDeque<Late<T>>,
    /// The one that is alone now.
    alone: Option<Ticket>,
    ready: VecDeque<(Ticket, T)>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self {
            next: 0,
            entered: BTreeMap::new(),
            narrow: BTreeMap::new(),
            wide: Vec::new(),
            behind: VecDeque::new(),
            alone: None,
            ready: VecDeque::new(),
        }
    }
}

impl<T> Order<T> {
    /// A record comes that is about these blocks; none: it is about nothing that others touch.
    pub fn push(&mut self, what: T, blocks: Range<u64>) {
        if self.alone.is_some() || !self.behind.is_empty() {
            return self.behind.push_back(Late::Blocks(what, blocks));
        }
        self.enter(what, blocks);
    }

    /// A record comes that is applied alone.
    pub fn push_alone(&mut self, what: T) {
        self.behind.push_back(Late::Alone(what));
        self.advance();
    }

    /// One that may begin; it is said once.
    pub fn pop(&mut self) -> Option<(Ticket, T)> {
        self.ready.pop_front()
    }

    /// It could not begin after all: it is the next.
    pub fn put_back(&mut self, ticket: Ticket, what: T) {
        self.ready.push_front((ticket, what));
    }

    /// One that began is done.
    pub fn done(&mut self, ticket: Ticket) {
        if self.alone == Some(ticket) {
            self.alone = None;
        } else {
            self.leave(ticket);
        }
        self.advance();
    }

    /// Forgets all that did not begin, and returns it.
    pub fn clear(&mut self) -> Vec<T> {
        let mut dropped = Vec::new();
        for (ticket, what) in std::mem::take(&mut self.ready) {
            dropped.push(what);
            if self.alone == Some(ticket) {
                self.alone = None;
            } else {
                self.forget(ticket);
            }
        }
        let waiting = self.entered.iter().filter(|(_, w)| w.what.is_some());
        let waiting: Vec<_> = waiting.map(|(&t, _)| t).collect();
        for ticket in waiting {
            dropped.extend(self.forget(ticket).and_then(|w| w.what));
        }
        for running in self.entered.values_mut() {
            running.after.clear();
        }
        dropped.extend(self.behind.drain(..).map(|late| match late {
            Late::Blocks(what, _) | Late::Alone(what) => what,
        }));
        dropped
    }

    /// Whether nothing runs or waits.
    pub fn is_empty(&self) -> bool {
        self.entered.is_empty() && self.behind.is_empty() && self.alone.is_none()
    }

    fn enter(&mut self, what: T, blocks: Range<u64>) {
        let ticket = self.next;
        self.next += 1;
        let mut before = 0;
        let from = blocks.start.saturating_sub(NARROW - 1);
        let narrow = self.narrow.range((from, 0)..(blocks.end, 0));
        let narrow = narrow.filter(|((_, _), end)| **end > blocks.start);
        let narrow = narrow.map(|((_, t), _)| *t);
        let wide = self.wide.iter();
        let wide = wide.filter(|(r, _)| r.start < blocks.end && blocks.start < r.end);
        for t in narrow.chain(wide.map(|(_, t)| *t)) {
            if let Some(earlier) = self.entered.get_mut(&t) {
                earlier.after.push(ticket);
                before += 1;
            }
        }
        if blocks.end - blocks.start <= NARROW {
            self.narrow.insert((blocks.start, ticket), blocks.end);
        } else {
            self.wide.push((blocks.clone(), ticket));
        }
        let mut waiting = Waiting {
            what: Some(what),
            blocks,
            before,
            after: Vec::new(),
        };
        if before == 0 {
            self.ready.extend(waiting.what.take().map(|w| (ticket, w)));
        }
        self.entered.insert(ticket, waiting);
    }

    fn forget(&mut self, ticket: Ticket) -> Option<Waiting<T>> {
        let gone = self.entered.remove(&ticket)?;
        self.narrow.remove(&(gone.blocks.start, ticket));
        self.wide.retain(|(_, t)| *t != ticket);
        Some(gone)
    }

    fn leave(&mut self, ticket: Ticket) {
        let Some(gone) = self.forget(ticket) else {
            return;
        };
        for after in gone.after {
            let Some(waiting) = self.entered.get_mut(&after) else {
                continue;
            };
            waiting.before -= 1;
            if waiting.before == 0 {
                self.ready.extend(waiting.what.take().map(|w| (after, w)));
            }
        }
    }

    /// Lets in what waited behind one that was alone.
    fn advance(&mut self) {
        while self.alone.is_none() {
            match self.behind.front() {
                None => return,
                Some(Late::Alone(_)) if !self.entered.is_empty() => return,
                Some(_) => {}
            }
            match self.behind.pop_front() {
                Some(Late::Blocks(what, blocks)) => self.enter(what, blocks),
                Some(Late::Alone(what)) => {
                    let ticket = self.next;
                    self.next += 1;
                    self.alone = Some(ticket);
                    self.ready.push_back((ticket, what));
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlapping_ones_go_in_order_and_others_beside_each_other() {
        let mut order = Order::default();
        order.push('a', 0..4);
        order.push('b', 3..5);
        order.push('c', 5..9);
        let (a, c) = (order.pop().unwrap(), order.pop().unwrap());
        assert_eq!((a.1, c.1, order.pop()), ('a', 'c', None));
        order.done(a.0);
        assert_eq!(order.pop().map(|b| b.1), Some('b'));
    }

    #[test]
    fn a_snapshot_is_alone() {
        let mut order = Order::default();
        order.push('a', 0..4);
        order.push_alone('s');
        order.push('b', 8..9);
        let a = order.pop().unwrap();
        assert_eq!(order.pop(), None);
        order.done(a.0);
        let s = order.pop().unwrap();
        assert_eq!((s.1, order.pop()), ('s', None));
        order.done(s.0);
        assert_eq!(order.pop().map(|b| b.1), Some('b'));
    }

    #[test]
    fn what_did_not_begin_is_forgotten() {
        let mut order = Order::default();
        order.push('a', 0..4);
        let a = order.pop().unwrap();
        order.push('b', 0..1);
        order.push('c', 9..10);
        order.push_alone('s');
        order.push('d', 2000..9000);
        let mut dropped = order.clear();
        dropped.sort_unstable();
        assert_eq!(dropped, ['b', 'c', 'd', 's']);
        assert!(!order.is_empty(), "one runs");
        order.push('e', 0..1);
        assert_eq!(order.pop(), None, "behind the one that runs");
        order.done(a.0);
        let e = order.pop().unwrap();
        order.done(e.0);
        assert!(order.is_empty());
    }

    proptest! {
        /// Whatever runs overlaps nothing that came before it and is not done; a snapshot runs alone; everything runs once, and nothing waits for nothing.
        #[test]
        fn nothing_overtakes_what_it_overlaps(steps in prop::collection::vec((0u8..8, 0u64..40, 1u64..600, any::<prop::sample::Index>()), 1..200)) {
            let mut order = Order::default();
            // Alone or its range, began, done.
            let mut all: Vec<(Option<Range<u64>>, bool, bool)> = Vec::new();
            let mut running = Vec::new();
            for (what, first, blocks, which) in steps {
                match what {
                    0 => {
                        order.push_alone(all.len());
                        all.push((None, false, false));
                    }
                    1..=3 => {
                        let blocks = if what == 1 { blocks } else { blocks % 5 + 1 };
                        order.push(all.len(), first..first + blocks);
                        all.push((Some(first..first + blocks), false, false));
                    }
                    _ if !running.is_empty() => {
                        let (ticket, n): (Ticket, usize) = running.swap_remove(which.index(running.len()));
                        all[n].2 = true;
                        order.done(ticket);
                    }
                    _ => {}
                }
                while let Some((ticket, n)) = order.pop() {
                    prop_assert!(!all[n].1, "once");
                    all[n].1 = true;
                    running.push((ticket, n));
                }
                let meets = |a: &Option<Range<u64>>, b: &Option<Range<u64>>| match (a, b) {
                    (Some(a), Some(b)) => a.start < b.end && b.start < a.end,
                    _ => true,
                };
                for n in 0..all.len() {
                    let free = all[..n].iter().all(|b| b.2 || !meets(&all[n].0, &b.0));
                    prop_assert_eq!(all[n].1, free, "{} of {:?}", n, &all);
                }
            }
        }
    }
}
