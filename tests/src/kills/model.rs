//! What a volume may hold after a kill, and what a snapshot of it may.
//!
//! A command is kept as one *unit* for each slice that it touches: that is what the target promises to be atomic. No two commands that are in
//! flight touch the same block, so each block has one unit that it shows for sure, and at most one that nobody knows the outcome of. Units are
//! numbered in the order in which they were issued, and the number is in the bytes.

use std::collections::BTreeSet;
use std::ops::Range;

/// Blocks of a slice.
pub const SLICE_BLOCKS: u64 = 4096;

/// A unit's number; 0 is "never written".
pub type Unit = u64;

#[derive(Clone, Debug)]
struct Change {
    blocks: Range<u64>,
    /// A discard or write-zeroes.
    zero: bool,
    issued: u64,
    /// When it was acknowledged, or found whole after a kill.
    there: Option<u64>,
    /// It was in flight at a kill, and found absent.
    gone: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Model {
    clock: u64,
    changes: Vec<Change>,
    /// The unit that each block shows for sure.
    sure: Vec<Unit>,
    /// In flight, or in flight when the data path died.
    open: BTreeSet<Unit>,
}

/// What was known when a snapshot began and when it had ended.
#[derive(Debug)]
pub struct Snapshot {
    base: Vec<Unit>,
    open: BTreeSet<Unit>,
    from: Unit,
    to: Unit,
}

impl Model {
    /// A volume of so many blocks, never written.
    pub fn new(blocks: u64) -> Self {
        let never = Change {
            blocks: 0..blocks,
            zero: true,
            issued: 0,
            there: Some(0),
            gone: false,
        };
        Self {
            clock: 0,
            changes: vec![never],
            sure: vec![0; blocks as usize],
            open: BTreeSet::new(),
        }
    }

    /// Blocks of the volume.
    pub fn blocks(&self) -> u64 {
        self.sure.len() as u64
    }

    /// Units so far.
    pub fn units(&self) -> u64 {
        self.changes.len() as u64 - 1
    }

    fn change(&self, unit: Unit) -> &Change {
        &self.changes[unit as usize]
    }

    /// What a block shows of a unit: its number, or 0 for zeroes.
    fn shows(&self, unit: Unit) -> Unit {
        if self.change(unit).zero { 0 } else { unit }
    }

    /// Whether no unknown change touches these blocks.
    pub fn is_quiet(&self, blocks: &Range<u64>) -> bool {
        !self.open.iter().any(|unit| {
            let other = &self.change(*unit).blocks;
            other.start < blocks.end && blocks.start < other.end
        })
    }

    /// What quiet blocks show.
    pub fn shown(&self, blocks: Range<u64>) -> Vec<Unit> {
        let sure = &self.sure[blocks.start as usize..blocks.end as usize];
        sure.iter().map(|unit| self.shows(*unit)).collect()
    }

    /// A command is about to be sent. Its units.
    pub fn issue(&mut self, blocks: Range<u64>, zero: bool) -> Range<Unit> {
        assert!(self.is_quiet(&blocks));
        let first = self.changes.len() as Unit;
        self.clock += 1;
        let mut at = blocks.start;
        while at < blocks.end {
            let to = blocks.end.min((at / SLICE_BLOCKS + 1) * SLICE_BLOCKS);
            self.open.insert(self.changes.len() as Unit);
            self.changes.push(Change {
                blocks: at..to,
                zero,
                issued: self.clock,
                there: None,
                gone: false,
            });
            at = to;
        }
        first..self.changes.len() as Unit
    }

    /// The unit of a command that a block is of.
    pub fn unit_of(&self, units: &Range<Unit>, block: u64) -> Unit {
        let of = units
            .clone()
            .find(|u| self.change(*u).blocks.contains(&block));
        of.expect("a block of that command")
    }

    /// A command was acknowledged.
    pub fn acknowledged(&mut self, units: Range<Unit>) {
        self.clock += 1;
        for unit in units {
            self.is_there(unit);
        }
    }

    fn is_there(&mut self, unit: Unit) {
        self.open.remove(&unit);
        let change = &mut self.changes[unit as usize];
        change.there = Some(self.clock);
        self.sure[change.blocks.start as usize..change.blocks.end as usize].fill(unit);
    }

    /// After a kill: what the whole volume shows. From now on each block is known.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn settle(&mut self, shown: &[Unit]) -> Result<(), String> {
        self.clock += 1;
        let mut lost: Vec<Option<Unit>> = vec![None; self.sure.len()];
        for unit in &self.open {
            let Range { start, end } = self.change(*unit).blocks;
            lost[start as usize..end as usize].fill(Some(*unit));
        }
        for (block, found) in shown.iter().enumerate() {
            let sure = self.sure[block];
            if lost[block].is_none() && *found != self.shows(sure) {
                return Err(format!(
                    "block {block} shows {found}, and unit {sure} was acknowledged: {:?}",
                    self.change(sure)
                ));
            }
        }
        for unit in std::mem::take(&mut self.open) {
            let Range { start, end } = self.change(unit).blocks;
            let of = start as usize..end as usize;
            let whole = shown[of.clone()].iter().all(|s| *s == self.shows(unit));
            let mut each = shown[of.clone()].iter().zip(&self.sure[of]);
            let absent = each.all(|(s, sure)| *s == self.shows(*sure));
            if whole {
                self.is_there(unit);
            } else if absent {
                self.changes[unit as usize].gone = true;
            } else {
                return Err(format!(
                    "unit {unit} was in flight, and is there in part: {:?}, shown {:?}",
                    self.change(unit),
                    &shown[start as usize..end as usize]
                ));
            }
        }
        Ok(())
    }

    /// A snapshot is about to be asked for.
    pub fn snapshot_begins(&self) -> Snapshot {
        Snapshot {
            base: self.sure.clone(),
            open: self.open.clone(),
            from: self.changes.len() as Unit,
            to: Unit::MAX,
        }
    }

    /// It was taken: what is issued from now on is not in it.
    pub fn snapshot_ended(&self, snapshot: &mut Snapshot) {
        snapshot.to = snapshot.to.min(self.changes.len() as Unit);
    }

    /// Checks what a snapshot shows: what was acknowledged before it began, and of what came later a part that is closed: with a unit
    /// everything that was acknowledged before that was issued.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_snapshot(&self, snapshot: &Snapshot, shown: &[Unit]) -> Result<(), String> {
        let later = snapshot.from..snapshot.to.min(self.changes.len() as Unit);
        let may = snapshot.open.iter().copied().chain(later);
        let may: Vec<Unit> = may.filter(|u| !self.change(*u).gone).collect();
        // Of each block: what it may show, in order.
        let mut of: Vec<Vec<Unit>> = snapshot.base.iter().map(|base| vec![*base]).collect();
        for unit in &may {
            let Range { start, end } = self.change(*unit).blocks;
            for list in &mut of[start as usize..end as usize] {
                list.push(*unit);
            }
        }
        for (block, found) in shown.iter().enumerate() {
            if !of[block].iter().any(|unit| self.shows(*unit) == *found) {
                return Err(format!(
                    "block {block} of a snapshot shows {found}, and not one of {:?}",
                    of[block]
                ));
            }
        }
        let in_it: BTreeSet<Unit> = shown.iter().copied().filter(|u| may.contains(u)).collect();
        let newest = in_it.iter().map(|u| self.change(*u).issued).max();
        let newest = newest.unwrap_or(0);
        for unit in may {
            let change = self.change(unit);
            if !in_it.contains(&unit) && change.there.is_none_or(|at| at >= newest) {
                continue;
            }
            for block in change.blocks.clone() {
                let list = &of[block as usize];
                let mut from_it = list.iter().skip_while(|u| **u != unit);
                let found = shown[block as usize];
                if !from_it.any(|u| self.shows(*u) == found) {
                    return Err(format!(
                        "block {block} of a snapshot shows {found}, older than unit {unit}, which is in it, or was acknowledged before what is: \
                         {change:?}, its units {list:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four blocks of unit 1, acknowledged.
    fn written() -> Model {
        let mut model = Model::new(8);
        let units = model.issue(0..4, false);
        model.acknowledged(units);
        model
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let shown = [1, 1, 1, 1, 0, 0, 0, 0];
        written().settle(&shown).unwrap();
        assert!(written().settle(&[1, 1, 1, 0, 0, 0, 0, 0]).is_err());
        assert!(written().settle(&[1, 1, 1, 1, 1, 0, 0, 0]).is_err());
        let mut model = written();
        let erased = model.issue(2..6, true);
        model.acknowledged(erased);
        assert!(model.settle(&shown).is_err());
    }

    #[test]
    fn what_was_in_flight_is_whole_or_absent() {
        for (shown, right) in [
            ([1, 1, 1, 1, 0, 0, 0, 0], true),
            ([1, 1, 2, 2, 2, 2, 0, 0], true),
            ([1, 1, 2, 2, 2, 0, 0, 0], false),
            ([1, 2, 2, 2, 2, 2, 0, 0], false),
        ] {
            let mut model = written();
            model.issue(2..6, false);
            assert!(!model.is_quiet(&(5..7)) && model.is_quiet(&(6..8)));
            assert_eq!(model.settle(&shown).is_ok(), right, "{shown:?}");
        }
        // A command over two slices is two units.
        let mut model = Model::new(2 * SLICE_BLOCKS);
        let units = model.issue(SLICE_BLOCKS - 1..SLICE_BLOCKS + 1, false);
        assert_eq!(units, 1..3);
        let mut shown = vec![0; 2 * SLICE_BLOCKS as usize];
        shown[SLICE_BLOCKS as usize] = 2;
        model.settle(&shown).unwrap();
    }

    #[test]
    fn a_snapshot_is_one_moment() {
        let mut model = written();
        let mut snapshot = model.snapshot_begins();
        let second = model.issue(0..2, false);
        model.acknowledged(second);
        model.issue(4..6, false);
        model.snapshot_ended(&mut snapshot);
        model.issue(6..8, false);
        for (shown, right) in [
            ([1, 1, 1, 1, 0, 0, 0, 0], true),
            ([2, 2, 1, 1, 0, 0, 0, 0], true),
            ([2, 2, 1, 1, 3, 3, 0, 0], true),
            // The third without the second, which was acknowledged before it; a part; what came later; what is lost.
            ([1, 1, 1, 1, 3, 3, 0, 0], false),
            ([2, 1, 1, 1, 0, 0, 0, 0], false),
            ([2, 2, 1, 1, 3, 3, 4, 4], false),
            ([0, 0, 1, 1, 0, 0, 0, 0], false),
        ] {
            let checked = model.check_snapshot(&snapshot, &shown);
            assert_eq!(checked.is_ok(), right, "{shown:?}: {checked:?}");
        }
    }
}
