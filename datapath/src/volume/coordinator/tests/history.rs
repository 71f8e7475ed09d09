//! What hosts were told, and what that forbids.
use std::collections::BTreeMap;

use crate::replication::held::Held;
use crate::store::types::Stamp;

use super::replica::value_of;

/// A block of the volume.
pub type At = (u8, u64);

/// Versions of blocks, and below which no later read may be.
#[derive(Default)]
pub struct History {
    versions: BTreeMap<At, BTreeMap<Stamp, u64>>,
    floor: BTreeMap<At, Stamp>,
    pub acked: usize,
    pub reads: usize,
    /// Power cuts may take what is not flushed: then only a flush says that something stays.
    pub fragile: bool,
    /// What was acknowledged and not flushed.
    written: Vec<(At, Stamp)>,
}

impl History {
    pub fn new(fragile: bool) -> Self {
        Self {
            fragile,
            ..Self::default()
        }
    }

    /// A record was seen on its way: each stamp has one value (invariant 3).
    pub fn seen(&mut self, held: &Held) {
        for block in held.blocks() {
            let (stamp, value) = (held.stamp_of(block), value_of(held, block));
            let of = self.versions.entry((held.lane, block)).or_default();
            let before = *of.entry(stamp).or_insert(value);
            assert_eq!(before, value, "invariant 3: two values of {stamp:?}");
        }
    }

    /// A write of this stamp was acknowledged; `fua`: as stable.
    pub fn acknowledged(&mut self, at: At, stamp: Stamp, fua: bool) {
        match self.fragile && !fua {
            true => self.written.push((at, stamp)),
            false => self.stays(at, stamp),
        }
    }

    /// A flush arrives: what it is to be ended with.
    pub fn flush(&self) -> usize {
        self.written.len()
    }

    /// It is done, by the coordinator of this epoch: it says nothing of what an older one acknowledged, and a power cut took before it arrived.
    pub fn flushed(&mut self, to: usize, epoch: u32) {
        for n in 0..to {
            let (at, stamp) = self.written[n];
            if stamp.epoch == epoch {
                self.stays(at, stamp);
            }
        }
    }

    fn stays(&mut self, at: At, stamp: Stamp) {
        let floor = self.floor.entry(at).or_insert(stamp);
        *floor = (*floor).max(stamp);
    }

    /// What a read that begins now must not be older than.
    pub fn floor(&self, at: At) -> Option<Stamp> {
        self.floor.get(&at).copied()
    }

    /// A read that began with this floor returned this.
    pub fn read(&mut self, at: At, floor: Option<Stamp>, value: u64) {
        if value == 0 && floor.is_none() {
            // It never was written.
            return;
        }
        let least = floor.unwrap_or(Stamp { epoch: 0, seq: 0 });
        let of = self.versions.get(&at);
        let found = of.and_then(|v| v.range(least..).find(|(_, v)| **v == value));
        match found {
            Some((&stamp, _)) if !self.fragile => self.stays(at, stamp),
            Some(_) => {}
            None => panic!(
                "invariant 1: block {at:?} reads {value}, and {floor:?} was told before: {of:?}"
            ),
        }
    }
}
