//! Summaries of two replicas, from the top down: where they differ, beneath; blocks that differ are copied.

use std::ops::Range;
use std::rc::Rc;

use super::copy::{Flight, Part};
use super::pass::Pass;
use super::{Inner, Peers, SetStore, Why};
use crate::replication::summary::{beneath, blocks_of_nodes, top};
use crate::replication::wire::resync::{AskSummaries, BLOCK_LEVEL, SUMMARIES_MAX, Tree};
use crate::store::types::BLOCK_BYTES;
use crate::volume::coordinator::members::Place;

/// Nodes of a lane that are compared first, at most: more would cost more than they spare where little differs.
const FIRST_MAX: u64 = 512;

/// A pass over all lanes.
pub(super) struct Compare<'a, P: Peers, K: SetStore> {
    of: &'a Rc<Inner<P, K>>,
    target: Place,
    pass: Pass,
    /// What is to be compared, the next one last: lane, level, nodes.
    left: Vec<(u8, u8, Range<u64>)>,
}

impl<'a, P: Peers, K: SetStore> Compare<'a, P, K> {
    /// Of everything.
    pub fn new(of: &'a Rc<Inner<P, K>>, target: Place, pass: Pass) -> Self {
        let (level, nodes) = top(of.shape(), of.lane_blocks.get(), FIRST_MAX);
        let lanes = 0..pass.s0().len() as u8;
        Self {
            of,
            target,
            pass,
            left: lanes.rev().map(|lane| (lane, level, 0..nodes)).collect(),
        }
    }

    /// Goes on with this source. What fails is compared again by the next call.
    pub async fn go(&mut self, source: Place) -> Result<(), Why> {
        let flight = Flight::new(self.of, source, self.target);
        let begun = self.left.clone();
        let compared = self.go_on(&flight, source).await;
        let copied = flight.end().await;
        let done = compared.and(copied);
        if matches!(done, Err(Why::Source(_))) {
            // What was read and not copied is not known: all of it again. Most is alike now.
            self.left = begun;
        }
        done
    }

    async fn go_on(&mut self, flight: &Flight<'_, P, K>, source: Place) -> Result<(), Why> {
        while let Some((lane, level, nodes)) = self.left.pop() {
            // Its channel is the one of which s0 is.
            if !self.pass.lasts(&self.of.machine.borrow(), self.target) {
                return Err(Why::Gone);
            }
            let tree = self.pass.tree(lane);
            let here = self.ask(self.target, Tree::live(lane), level, &nodes).await;
            let here = here.map_err(Why::Target)?;
            let there = self.ask(source, tree, level, &nodes).await;
            let there = there.map_err(Why::Source)?;
            let differ = runs(&nodes, |n| here[n] != there[n]);
            let unlike: u64 = differ.iter().map(|r| self.bytes(level, r)).sum();
            self.of
                .resyncs
                .progress
                .compared(self.bytes(level, &nodes) - unlike);
            if level != BLOCK_LEVEL {
                for run in differ.into_iter().rev() {
                    let (level, nodes) = beneath(self.of.shape(), level, &run);
                    let pieces = pieces(nodes, SUMMARIES_MAX.into());
                    self.left.extend(pieces.rev().map(|p| (lane, level, p)));
                }
                continue;
            }
            let s0 = self.pass.s0()[usize::from(lane)];
            let mut part = Part::new(tree, s0);
            for run in differ {
                let within = run.start - nodes.start;
                let gone = runs(&run, |n| there[within as usize + n] == 0);
                for blocks in &gone {
                    flight.add(&mut part, blocks.clone(), true).await?;
                }
                for blocks in without(run, &gone) {
                    flight.add(&mut part, blocks, false).await?;
                }
            }
            flight.send(part).await?;
        }
        Ok(())
    }

    fn bytes(&self, level: u8, nodes: &Range<u64>) -> u64 {
        let blocks = blocks_of_nodes(self.of.shape(), level, nodes);
        let end = blocks.end.min(self.of.lane_blocks.get());
        end.saturating_sub(blocks.start) * BLOCK_BYTES as u64
    }

    async fn ask(
        &self,
        whom: Place,
        tree: Tree,
        level: u8,
        nodes: &Range<u64>,
    ) -> Result<Vec<u32>, super::NotRead> {
        let ask = AskSummaries {
            tree,
            level,
            first: nodes.start,
            count: (nodes.end - nodes.start) as u32,
        };
        self.of.peers.summaries(whom, ask).await
    }
}

/// Neighbours of which something holds; it is asked with places within the range.
fn runs(of: &Range<u64>, holds: impl Fn(usize) -> bool) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for (n, at) in of.clone().enumerate() {
        if !holds(n) {
            continue;
        }
        match all.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => all.push(at..at + 1),
        }
    }
    all
}

/// What is left of a range.
fn without(of: Range<u64>, gone: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut at = of.start;
    for part in gone.iter().chain([&(of.end..of.end)]) {
        if at < part.start {
            left.push(at..part.start);
        }
        at = part.end;
    }
    left
}

fn pieces(of: Range<u64>, most: u64) -> impl DoubleEndedIterator<Item = Range<u64>> {
    let count = (of.end - of.start).div_ceil(most);
    (0..count).map(move |n| of.start + n * most..(of.start + (n + 1) * most).min(of.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let of = [false, true, true, false, true];
        assert_eq!(runs(&(10..15), |n| of[n]), [11..13, 14..15]);
        assert_eq!(without(10..15, &[11..13, 14..15]), [10..11, 13..14]);
        assert_eq!(without(10..12, &[])[0], 10..12);
        assert_eq!(pieces(3..10, 4).collect::<Vec<_>>(), [3..7, 7..10]);
    }
}
