//! An exhaustive breadth-first search of a model's states.
//!
//! Of each state only 128 bits of hash and its parent's number are kept, so tens of millions fit into memory; those of the present depth are kept whole.
//! What is found is a shortest trace, repeated from the start by looking for each successor with the hash that is known.
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use hashbrown::HashTable;

/// Takes a successor: what was done (said only when it is asked for), and the state after it.
pub type Each<'a, S> = dyn FnMut(&dyn Fn() -> String, S) + 'a;

/// What can be checked.
pub trait Model {
    /// A state; small, as all of one depth are kept.
    type State: Copy + Eq + Hash;
    /// Where it begins.
    fn initial(&self) -> Self::State;
    /// Every state that may come next, already in its canonical form, with what was done.
    fn successors(&self, state: &Self::State, each: &mut Each<'_, Self::State>);
    /// The invariant that this state breaks.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
}

/// How a search ended.
#[derive(Debug)]
pub struct Outcome {
    /// Different states.
    pub states: usize,
    /// Steps from the start to the farthest one.
    pub depth: usize,
    /// Whether all states were seen: no bound ended the search.
    pub complete: bool,
    /// The invariant that was broken, and a shortest way there.
    pub found: Option<(&'static str, Vec<String>)>,
    /// How long it took.
    pub time: Duration,
}

struct Fnv(u128);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        (self.0 >> 64) as u64
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.mix(u64::from(n));
    }
}

impl Fnv {
    fn mix(&mut self, word: u64) {
        let x = (self.0 ^ u128::from(word)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        self.0 = x ^ (x >> 61);
    }
}

fn fingerprint(state: &impl Hash) -> u128 {
    let mut h = Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
    state.hash(&mut h);
    h.mix(0x9e37_79b9_7f4a_7c15);
    h.0
}

struct Seen {
    states: Vec<(u128, u32)>,
    table: HashTable<u32>,
}

impl Seen {
    /// Its number, if it is new.
    fn insert(&mut self, print: u128, parent: u32) -> Option<u32> {
        let Self { states, table } = self;
        let hash = |p: u128| (p >> 64) as u64 ^ p as u64;
        if table
            .find(hash(print), |&n| states[n as usize].0 == print)
            .is_some()
        {
            return None;
        }
        let number = u32::try_from(states.len()).expect("fewer than 2^32 states");
        states.push((print, parent));
        table.insert_unique(hash(print), number, |&n| hash(states[n as usize].0));
        Some(number)
    }
}

/// Searches until an invariant is broken, all states were seen, or there are more than `bound` of them.
pub fn check<M: Model>(model: &M, bound: usize) -> Outcome {
    let start = Instant::now();
    let mut seen = Seen {
        states: Vec::new(),
        table: HashTable::new(),
    };
    let first = model.initial();
    seen.insert(fingerprint(&first), u32::MAX);
    let mut layer = vec![(first, 0_u32)];
    let mut depth = 0;
    while !layer.is_empty() {
        let mut next = Vec::new();
        let mut bad = None;
        for (state, number) in &layer {
            model.successors(state, &mut |_, after| {
                let Some(new) = seen.insert(fingerprint(&after), *number) else {
                    return;
                };
                if let Some(what) = model.broken(&after) {
                    bad.get_or_insert((what, new));
                }
                next.push((after, new));
            });
            if bad.is_some() {
                break;
            }
        }
        depth += usize::from(!next.is_empty());
        if let Some((what, number)) = bad {
            return Outcome {
                states: seen.states.len(),
                depth,
                complete: false,
                found: Some((what, trace(model, &seen.states, number))),
                time: start.elapsed(),
            };
        }
        if seen.states.len() > bound {
            break;
        }
        layer = next;
    }
    Outcome {
        states: seen.states.len(),
        depth,
        complete: seen.states.len() <= bound,
        found: None,
        time: start.elapsed(),
    }
}

fn trace<M: Model>(model: &M, states: &[(u128, u32)], last: u32) -> Vec<String> {
    let mut way = Vec::new();
    let mut at = last;
    while at != 0 {
        let (print, parent) = states[at as usize];
        way.push(print);
        at = parent;
    }
    let mut steps = Vec::new();
    let mut state = model.initial();
    for print in way.into_iter().rev() {
        let mut found = None;
        model.successors(&state, &mut |name, after| {
            if found.is_none() && fingerprint(&after) == print {
                found = Some((name(), after));
            }
        });
        let (name, after) = found.expect("a model's successors do not change");
        steps.push(name);
        state = after;
    }
    steps
}
