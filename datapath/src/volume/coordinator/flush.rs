//! Flushes (`docs/replication.md` §8 *Flush*, rule 4): each is done when a write quorum holds stable everything that was acknowledged when it arrived.

use std::collections::VecDeque;

use super::members::{Members, PLACES_MAX, Place};
use super::quorum::Sets;
use super::ring::Ring;
use crate::reactor::Nanos;

/// A command's number, given by its owner.
pub type Token = u64;

#[derive(Debug)]
struct Waiting {
    token: Token,
    since: Nanos,
    /// Up to which position each lane must be stable.
    to: Box<[u64]>,
}

/// Flushes that wait, and the number of the one that members were told last.
#[derive(Debug, Default)]
pub struct Flushes {
    waiting: VecDeque<Waiting>,
    number: u64,
}

impl Flushes {
    /// A flush arrives, and must see these positions stable.
    pub fn add(&mut self, token: Token, to: Box<[u64]>, now: Nanos) {
        self.waiting.push_back(Waiting {
            token,
            since: now,
            to,
        });
    }

    /// The number of the next Flush that is sent.
    pub fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the oldest has waited since before this.
    pub fn older_than(&self, then: Nanos) -> bool {
        self.waiting.front().is_some_and(|w| w.since <= then)
    }

    /// When the oldest that waits arrived.
    pub fn oldest(&self) -> Option<Nanos> {
        self.waiting.front().map(|w| w.since)
    }

    /// Takes out those that are done.
    pub fn done(&mut self, ring: &Ring, sets: &Sets) -> Vec<Token> {
        let mut done = Vec::new();
        // Later ones ask for more, so the first that is not done ends it.
        while let Some(first) = self.waiting.front() {
            if !sets.reached(holders(ring, &first.to)) {
                break;
            }
            done.extend(self.waiting.pop_front().map(|w| w.token));
        }
        done
    }

    /// Takes out those that have waited since before this.
    pub fn expired(&mut self, then: Nanos) -> Vec<Token> {
        let mut gone = Vec::new();
        while self.older_than(then) {
            gone.extend(self.waiting.pop_front().map(|w| w.token));
        }
        gone
    }

    /// Takes out all.
    pub fn drain(&mut self) -> Vec<Token> {
        self.waiting.drain(..).map(|w| w.token).collect()
    }
}

/// Who holds all of this stable, in every lane.
pub fn holders(ring: &Ring, to: &[u64]) -> Members {
    let all = (0..PLACES_MAX).filter_map(Place::new);
    let holds = |p: &Place| {
        to.iter().enumerate().all(|(lane, &to)| {
            ring.position(*p, lane as u8)
                .is_some_and(|(_, stable)| stable >= to)
        })
    };
    all.filter(holds).collect()
}
