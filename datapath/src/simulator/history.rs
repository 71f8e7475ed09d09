//! What hosts saw of each block, and whether one copy could have shown it: linearizability, block by block.
//!
//! A write that was not acknowledged may have happened at any time after it began, or never; a read that failed says nothing. Values are numbers that
//! no two writes share; 0 is what erased and never written blocks read as. The search is Wing and Gong's with Lowe's memory: at each step any operation may
//! be next that began before the end of every one that is left, and what was tried is not tried again.

use std::collections::{BTreeMap, HashSet};

/// A moment of the run; larger is later.
pub type Moment = u64;

/// What an operation did to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// Wrote this value; 0: erased.
    Wrote(u64),
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
    // A write of which nobody knows and whose value nobody saw need not have happened.
    let counts = |s: &&Seen| match (s.did, s.to) {
        (Did::Wrote(value), None) => was_read(value),
        _ => true,
    };
    let mut ops: Vec<Seen> = all.iter().filter(counts).copied().collect();
    ops.sort_by_key(|s| s.from);
    let mut search = Search {
        ops: &ops,
        tried: HashSet::new(),
        done: vec![false; ops.len()],
        best: Vec::new(),
    };
    match search.go(0, 0, 0) {
        true => Ok(()),
        false => {
            let best = search.best;
            let left = |n: &usize| !best.get(*n).copied().unwrap_or(false);
            Err((
                ops.len(),
                (0..ops.len()).filter(left).map(|n| ops[n]).collect(),
            ))
        }
    }
}

struct Search<'a> {
    ops: &'a [Seen],
    /// (which are done, what the block holds).
    tried: HashSet<(Vec<bool>, u64)>,
    done: Vec<bool>,
    best: Vec<bool>,
}

impl Search<'_> {
    /// Whether the rest has an order, `count` being done, all before `first` among them, and the block holding `value`.
    fn go(&mut self, count: usize, mut first: usize, value: u64) -> bool {
        while self.done.get(first) == Some(&true) {
            first += 1;
        }
        // A write of which nobody knows need not happen.
        let must = |n: &usize| !self.done[*n] && self.ops[*n].to.is_some();
        let Some(end) = (first..self.ops.len())
            .filter(must)
            .filter_map(|n| self.ops[n].to)
            .min()
        else {
            return true;
        };
        if !self.tried.insert((self.done[first..].to_vec(), value)) {
            return false;
        }
        if count > self.best.iter().filter(|d| **d).count() {
            self.best.clone_from(&self.done);
        }
        for n in first..self.ops.len() {
            let op = self.ops[n];
            if op.from > end {
                break;
            }
            if self.done[n] {
                continue;
            }
            let next = match op.did {
                Did::Read(read) if read != value => continue,
                Did::Read(_) => value,
                Did::Wrote(written) => written,
            };
            self.done[n] = true;
            if self.go(count + 1, first, next) {
                return true;
            }
            self.done[n] = false;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Did::{Read, Wrote};

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
