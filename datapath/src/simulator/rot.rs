//! Blocks that rot on one member while hosts use them, and are found by its scrub at once.
//!
//! For as long as that lasts nothing else goes wrong, and what was not repaired by then is as if it never happened: whether damage is survived where nobody else has the
//! block is not the question here, but whether a repair disturbs what is written meanwhile. Drawn from dice of its own.

use std::time::Duration;

use super::changes::all_joined;
use super::cluster::{Cluster, LANES};
use super::faults::{Dice, serving};
use super::run::{BLOCKS, Counts};
use crate::store::types::LaneBlock;

/// One run in so many has it.
const SHARE: u64 = 3;
/// One step in so many.
const EVERY: u64 = 3;
/// How long it takes at most, in microseconds.
const WITHIN: u64 = 3_000;
/// Apart from the dice of everything else.
const OTHER: u64 = 0x726f_7420_726f_7420;

/// The rot of a run.
pub struct Rot {
    dice: Dice,
    there: bool,
}

impl Rot {
    /// Of a run.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ OTHER);
        let there = dice.once_in(SHARE);
        Self { dice, there }
    }

    /// Perhaps some blocks rot, are told of, and are repaired.
    pub fn step(&mut self, cluster: &mut Cluster, counts: &mut Counts) {
        if !self.there || !self.dice.once_in(EVERY) {
            return;
        }
        // Who is copied to would get what is damaged as damaged.
        if !all_joined(cluster) || cluster.kvdb.unverified.get() || serving(cluster).is_none() {
            return;
        }
        let members = cluster.member_nodes();
        let node = members[self.dice.below(members.len() as u64) as usize];
        let Some(disk) = cluster.disk(node) else {
            return;
        };
        let blocks = (0..1 + self.dice.below(4)).map(|_| {
            let lane = self.dice.below(u64::from(LANES)) as u8;
            (lane, LaneBlock(self.dice.below(BLOCKS)))
        });
        let blocks: Vec<(u8, LaneBlock)> = blocks.collect();
        let damaged = blocks.iter().map(|(lane, block)| (*lane, block.0));
        let before = {
            let mut disk = disk.borrow_mut();
            disk.damaged.extend(damaged);
            disk.damaged.len()
        };
        if cluster.tell_damaged(node, blocks) {
            let within = 1 + self.dice.below(WITHIN);
            cluster.rig.sim.run_for(Duration::from_micros(within));
        }
        let left = std::mem::take(&mut disk.borrow_mut().damaged);
        counts.repaired += (before - left.len()) as u64;
    }
}
