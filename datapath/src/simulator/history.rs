//! What hosts saw of each block, and whether one copy could have shown it: linearizability, block by block.
//!
//! A write that was not acknowledged may have happened at any time after it began, or never; a read that failed says nothing. Values are numbers that
//! no two writes share; 0 is what erased and never written blocks read as. The search is Wing and Gong's with Lowe's memory: at each step any operation may
//! be next that began before the end of every one that is left, and what was tried is not tried again. A read of what is there is taken at once, and of erasures
//! without an answer only the number counts, so that long histories with many of them end.

use std::collections::{BTreeMap, HashSet};

/// A moment of the run; larger is later.
pub type Moment = u64;

/// What an operation did to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// Wrote this value; 0: erased.
    Wrote(u64),
    /// Perhaps wrote this value, but not after its end: it was sent again by another way, and that was answered.
    Tried(u64),
    /// Read this value.
    Read(u64),
}

/// An operation on one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it did.
    pub did: Did,
    /// When it was asked for.
    pub from: Moment,
    /// When it was answered; `None`: a write of which nobody knows.
    pub to: Option<Moment>,
}

/// A block's history that one copy could not have shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "block {block} shows what no order of its {count} operations explains; stuck with {left:?}"
)]
pub struct Wrong {
    /// The block.
    pub block: u64,
    /// Operations on it that count.
    pub count: usize,
    /// Those that the best order leaves.
    pub left: Vec<Seen>,
}

/// What was seen of all blocks.
#[derive(Clone, Debug, Default)]
pub struct History {
    blocks: BTreeMap<u64, Vec<Seen>>,
}

impl History {
    /// Adds an operation's part on one block.
    pub fn add(&mut self, block: u64, seen: Seen) {
        self.blocks.entry(block).or_default().push(seen);
    }

    /// How many parts of operations there are.
    pub fn len(&self) -> usize {
        self.blocks.values().map(Vec::len).sum()
    }

    /// Whether blocks could have held these values at one moment within: each was written before it, and no write that came after it was over.
    ///
    /// # Errors
    /// The moment from which on all were there, and the one before which one had gone.
    pub fn at_once(
        &self,
        within: (Moment, Moment),
        values: &BTreeMap<u64, u64>,
    ) -> Result<(), (Moment, Moment)> {
        let (mut from, mut to) = within;
        for (block, value) in values {
            let all = self.blocks.get(block).into_iter().flatten();
            let writes = || all.clone().filter(|s| matches!(s.did, Did::Wrote(_)));
            let erased = writes().any(|s| s.did == Did::Wrote(0));
            if *value == 0 && erased {
                // Which erasure it was is not known.
                continue;
            }
            let of_it = writes().find(|s| s.did == Did::Wrote(*value));
            // It may have been sent more than once.
            let is = |s: &&Seen| matches!(s.did, Did::Wrote(v) | Did::Tried(v) if v == *value);
            let first = all.clone().filter(is).map(|s| s.from).min();
            from = from.max(first.filter(|_| *value != 0).unwrap_or(0));
            let there = match of_it {
                Some(s) => s.to,
                None => Some(0),
            };
            let later = writes().filter(|s| there.is_some_and(|there| s.from > there));
            to = later
                .filter_map(|s| s.to)
                .min()
                .map_or(to, |end| end.min(to));
        }
        match from <= to {
            true => Ok(()),
            false => Err((from, to)),
        }
    }

    /// Looks at every block.
    ///
    /// # Errors
    /// The first block whose history is none of one copy.
    pub fn check(&self) -> Result<(), Wrong> {
        self.blocks.iter().try_for_each(|(block, all)| {
            look(all).map_err(|(count, left)| Wrong {
                block: *block,
                count,
                left,
            })
        })
    }
}

/// Whether there is an order; if not, how many operations count, and those that the longest one leaves.
fn look(all: &[Seen]) -> Result<(), (usize, Vec<Seen>)> {
    let was_read = |value| all.iter().any(|s| s.did == Did::Read(value));
    let (mut must, mut may, mut erasures) = (Vec::new(), Vec::new(), Vec::new());
    for seen in all {
        match (seen.did, seen.to) {
            (Did::Tried(value), _) if was_read(value) => may.push(*seen),
            (Did::Tried(_), _) => {}
            (_, Some(_)) => must.push(*seen),
            // One is as good as another: only how many have happened counts.
            (Did::Wrote(0), None) => erasures.push(seen.from),
            // A write of which nobody knows and whose value nobody saw need not have happened.
            (Did::Wrote(value), None) if was_read(value) => may.push(*seen),
            (_, None) => {}
        }
    }
    must.sort_by_key(|s| s.from);
    erasures.sort_unstable();
    let mut search = Search {
        done: vec![false; must.len()],
        used: vec![false; may.len()],
        best: (0, Vec::new()),
        tried: HashSet::new(),
        must: &must,
        may: &may,
        erasures: &erasures,
    };
    match search.go(0, 0, 0, 0) {
        true => Ok(()),
        false => {
            let best = search.best.1;
            let left = |n: &usize| !best.get(*n).copied().unwrap_or(false);
            let left = (0..must.len()).filter(left).map(|n| must[n]);
            Err((must.len() + may.len() + erasures.len(), left.collect()))
        }
    }
}

/// What of a search says how it goes on: which of those that were answered are done, behind the first that is not; which others; erasures; the value.
type State = (usize, Vec<bool>, Vec<bool>, usize, u64);

struct Search<'a> {
    /// Answered, in the order in which they began.
    must: &'a [Seen],
    /// Writes of which nobody knows.
    may: &'a [Seen],
    /// When such erasures began.
    erasures: &'a [Moment],
    done: Vec<bool>,
    used: Vec<bool>,
    tried: HashSet<State>,
    best: (usize, Vec<bool>),
}

impl Search<'_> {
    /// Whether the rest has an order, `count` being done, all before `first` among them, and the block holding `value`.
    fn go(&mut self, mut count: usize, mut first: usize, erased: usize, value: u64) -> bool {
        let mut taken = Vec::new();
        let end = loop {
            while self.done.get(first) == Some(&true) {
                first += 1;
            }
            let Some(end) = self.end(first) else {
                return true;
            };
            // A read of what is there can be next whatever follows.
            let Some(read) = self.read(first, end, value) else {
                break end;
            };
            self.done[read] = true;
            taken.push(read);
            count += 1;
        };
        if count > self.best.0 {
            self.best = (count, self.done.clone());
        }
        let found = self.branch((count, first, erased, value), end);
        if !found {
            taken.into_iter().for_each(|n| self.done[n] = false);
        }
        found
    }

    fn branch(
        &mut self,
        (count, first, erased, value): (usize, usize, usize, u64),
        end: Moment,
    ) -> bool {
        let last = self.done.iter().rposition(|d| *d).map_or(first, |n| n + 1);
        let window = self.done[first..last.max(first)].to_vec();
        if !self
            .tried
            .insert((first, window, self.used.clone(), erased, value))
        {
            return false;
        }
        for n in first..self.must.len() {
            let op = self.must[n];
            if op.from > end {
                break;
            }
            let Did::Wrote(written) = op.did else {
                continue;
            };
            if !self.done[n] {
                self.done[n] = true;
                if self.go(count + 1, first, erased, written) {
                    return true;
                }
                self.done[n] = false;
            }
        }
        for n in 0..self.may.len() {
            let op = self.may[n];
            let (Did::Wrote(written) | Did::Tried(written)) = op.did else {
                continue;
            };
            let over = op.to.is_some_and(|to| self.latest(last, erased) > to);
            if !self.used[n] && op.from <= end && !over {
                self.used[n] = true;
                if self.go(count, first, erased, written) {
                    return true;
                }
                self.used[n] = false;
            }
        }
        let erasure = self.erasures.get(erased).filter(|from| **from <= end);
        value != 0 && erasure.is_some() && self.go(count, first, erased + 1, 0)
    }

    /// When the latest of what has happened began: nothing that had ended by then comes after it.
    fn latest(&self, last: usize, erased: usize) -> Moment {
        let must = last.checked_sub(1).map_or(0, |n| self.must[n].from);
        let used = self.may.iter().zip(&self.used).filter(|(_, used)| **used);
        let may = used.map(|(op, _)| op.from).max().unwrap_or(0);
        let erased = erased.checked_sub(1).map_or(0, |n| self.erasures[n]);
        must.max(may).max(erased)
    }

    /// The first end among those that are left: nothing that began after it can come before it.
    fn end(&self, first: usize) -> Option<Moment> {
        let mut end = None;
        for n in first..self.must.len() {
            let op = self.must[n];
            if end.is_some_and(|end| op.from > end) {
                break;
            }
            if !self.done[n] {
                end = Some(end.map_or(op.to?, |end: Moment| end.min(op.to.unwrap_or(end))));
            }
        }
        end
    }

    fn read(&self, first: usize, end: Moment, value: u64) -> Option<usize> {
        let began = (first..self.must.len()).take_while(|n| self.must[*n].from <= end);
        let fits = |n: &usize| !self.done[*n] && self.must[*n].did == Did::Read(value);
        began.into_iter().find(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Did::{Read, Tried, Wrote};

    fn seen(did: Did, from: Moment, to: impl Into<Option<Moment>>) -> Seen {
        Seen {
            did,
            from,
            to: to.into(),
        }
    }

    fn check(all: &[Seen]) -> bool {
        let mut history = History::default();
        all.iter().for_each(|s| history.add(7, *s));
        assert_eq!(history.len(), all.len());
        history.check().is_ok()
    }

    #[test]
    fn what_one_copy_can_show() {
        assert!(check(&[]));
        assert!(check(&[seen(Read(0), 0, 1)]));
        // Beside each other: either may be last, and a read beside a write sees either.
        assert!(check(&[
            seen(Wrote(1), 0, 5),
            seen(Wrote(2), 0, 5),
            seen(Read(1), 6, 7)
        ]));
        assert!(check(&[
            seen(Wrote(1), 0, 5),
            seen(Wrote(2), 0, 5),
            seen(Read(2), 6, 7)
        ]));
        assert!(check(&[
            seen(Wrote(1), 0, 1),
            seen(Wrote(2), 2, 9),
            seen(Read(1), 3, 4),
            seen(Read(2), 5, 6)
        ]));
        // One that nobody knows of may happen late, or never.
        assert!(check(&[
            seen(Wrote(1), 0, None),
            seen(Read(0), 5, 6),
            seen(Read(1), 7, 8)
        ]));
        assert!(check(&[
            seen(Wrote(1), 0, None),
            seen(Wrote(2), 1, 2),
            seen(Read(2), 7, 8)
        ]));
        // Erased.
        assert!(check(&[
            seen(Wrote(1), 0, 1),
            seen(Wrote(0), 2, None),
            seen(Read(1), 3, 4),
            seen(Read(0), 5, 6)
        ]));
    }

    #[test]
    fn what_it_cannot() {
        // An acknowledged write is lost, or comes back.
        assert!(!check(&[seen(Wrote(1), 0, 1), seen(Read(0), 2, 3)]));
        assert!(!check(&[
            seen(Wrote(1), 0, 1),
            seen(Wrote(2), 2, 3),
            seen(Read(1), 4, 5)
        ]));
        // Read, and then not there any more.
        assert!(!check(&[
            seen(Wrote(1), 0, None),
            seen(Read(1), 5, 6),
            seen(Read(0), 7, 8)
        ]));
        // A value of nobody, and one before it was written.
        assert!(!check(&[seen(Wrote(1), 0, 1), seen(Read(9), 2, 3)]));
        assert!(!check(&[seen(Read(1), 0, 1), seen(Wrote(1), 2, 3)]));
        // Two readers see two writes in two orders.
        assert!(!check(&[
            seen(Wrote(1), 0, 9),
            seen(Wrote(2), 0, 9),
            seen(Read(1), 1, 2),
            seen(Read(2), 3, 4),
            seen(Read(1), 5, 6),
        ]));
        // What was erased comes back.
        assert!(!check(&[
            seen(Wrote(1), 0, 1),
            seen(Wrote(0), 2, 3),
            seen(Read(0), 4, 5),
            seen(Read(1), 6, 7)
        ]));
    }

    #[test]
    fn what_was_sent_again_does_not_happen_after_its_answer() {
        let again = |read: Moment| {
            check(&[
                seen(Tried(1), 0, 20),
                seen(Wrote(2), 5, 6),
                seen(Wrote(1), 10, 20),
                seen(Read(2), 14, 15),
                seen(Read(1), 16, 17),
                seen(Wrote(4), read, read + 1),
                seen(Read(1), read + 2, read + 3),
            ])
        };
        // Each may have happened once: the first before 2, or behind 4.
        assert!(again(17));
        assert!(!again(21));
        assert!(check(&[
            seen(Tried(1), 0, 9),
            seen(Wrote(1), 3, 9),
            seen(Read(1), 10, 11)
        ]));
    }

    #[test]
    fn values_of_one_moment() {
        let mut history = History::default();
        history.add(1, seen(Wrote(1), 1, 2));
        history.add(2, seen(Wrote(2), 3, 4));
        history.add(1, seen(Wrote(3), 5, 9));
        history.add(2, seen(Wrote(4), 6, None));
        let at_once = |a, b, from, to| {
            let values = BTreeMap::from([(1, a), (2, b)]);
            history.at_once((from, to), &values).is_ok()
        };
        assert!(at_once(1, 2, 4, 20) && at_once(3, 2, 4, 20) && at_once(1, 4, 4, 20));
        // The second block was written after the first one was there.
        assert!(at_once(1, 0, 2, 4) && !at_once(0, 2, 0, 20));
        // Overwritten before this began; not written yet when it ended.
        assert!(!at_once(1, 2, 10, 20) && !at_once(3, 2, 2, 4));
    }

    #[test]
    fn many_erasures_without_an_answer_are_quick() {
        let mut all = Vec::new();
        for n in 1..400 {
            all.push(seen(Wrote(0), n * 10, None));
            all.push(seen(Wrote(n), n * 10 + 1, n * 10 + 15));
            let value = if n % 7 == 0 { 0 } else { n };
            all.push(seen(Read(value), n * 10 + 16, n * 10 + 18));
        }
        assert!(check(&all));
        all.push(seen(Read(1), 50_000, 50_001));
        assert!(!check(&all));
    }

    #[test]
    fn long_histories_of_few_at_a_time_are_quick() {
        let mut all = Vec::new();
        for n in 1..2000 {
            all.push(seen(Wrote(n), n * 10, n * 10 + 15));
            all.push(seen(Read(n), n * 10 + 8, n * 10 + 22));
        }
        assert!(check(&all));
        all.push(seen(Read(1), 50_000, 50_001));
        assert!(!check(&all));
    }

    proptest::proptest! {
        /// What one copy showed, with each operation's moment somewhere within its time, is always accepted.
        #[test]
        fn what_one_copy_did_is_accepted(ops in proptest::collection::vec((0u8..4, 0u64..20, 0u64..20), 1..60)) {
            let (mut value, mut all) = (0, Vec::new());
            for (n, (kind, before, after)) in ops.into_iter().enumerate() {
                let at = 100 + n as u64 * 5;
                let did = match kind {
                    0 => Read(value),
                    1 => Wrote(0),
                    _ => Wrote(n as u64 + 1),
                };
                if let Wrote(written) = did {
                    value = written;
                }
                let answered = kind == 0 || after < 15;
                all.push(seen(did, at - before, answered.then_some(at + after)));
            }
            proptest::prop_assert!(check(&all));
        }
    }
}
