//! Stamps that are given and in no stream yet: reservations of commands that hosts sent to other nodes (`docs/replication.md` §14, rule 8).
//!
//! A reservation has so many counters of a lane, for blocks that are known. It is *open* until its command is over, or it is *void*: then it is forgotten here,
//! and nothing is put into a stream under it. Void are those that settled, s0 or a snapshot would pass, those that are too old, and those over whose blocks
//! there is a record with a higher stamp: so records that share blocks have rising stamps along a stream, and only others may come late.

use std::ops::Range;
use std::time::Duration;

use super::settled::before;
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};
use crate::store::types::Stamp;

/// Reservations of a volume at a time, lanes counted each.
pub const RESERVATIONS_MAX: usize = 8192;
/// Settled waits for an open reservation so long, then it is void. What waits with settled is memory of replicas, no host.
pub const SETTLED_WAITS: Duration = Duration::from_millis(500);

/// The part of a command in one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The lane.
    pub lane: u8,
    /// Blocks of the lane that it may touch.
    pub blocks: Range<u64>,
    /// Most stamps that its records use.
    pub stamps: u64,
}

#[derive(Debug)]
struct Open {
    command: u64,
    /// The next one that is not used.
    next: Stamp,
    left: u64,
    blocks: Range<u64>,
    /// Older it is void.
    until: Nanos,
    /// Since when settled waits for it.
    wanted: Option<Nanos>,
}

/// Those of a volume.
#[derive(Debug)]
pub struct Reservations {
    lanes: Box<[Vec<Open>]>,
}

impl Reservations {
    /// None are open.
    pub fn new(lanes: u8) -> Self {
        Self {
            lanes: (0..lanes).map(|_| Vec::new()).collect(),
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.lanes.iter().map(Vec::len).sum()
    }

    /// A command has the stamps from this one on.
    pub fn open(&mut self, command: u64, part: Part, first: Stamp, until: Nanos) {
        self.lanes[usize::from(part.lane)].push(Open {
            command,
            next: first,
            left: part.stamps,
            blocks: part.blocks,
            until,
            wanted: None,
        });
    }

    /// A record of a command uses so many of its stamps: the first of them. `None`: it is void, or was not given for this.
    pub fn take(
        &mut self,
        (command, lane): (u64, u8),
        count: u64,
        blocks: &Range<u64>,
    ) -> Option<Stamp> {
        let mut all = self.lanes[usize::from(lane)].iter_mut();
        let open = all.find(|o| o.command == command)?;
        let inside = open.blocks.start <= blocks.start && blocks.end <= open.blocks.end;
        if !inside || open.left < count {
            return None;
        }
        let first = open.next;
        open.left -= count;
        open.next.seq += count;
        Some(first)
    }

    /// A record over these blocks is put into the stream: what has lower stamps over any of them is void.
    pub fn overtaken(&mut self, lane: u8, stamp: Stamp, blocks: &Range<u64>) {
        let open = &mut self.lanes[usize::from(lane)];
        if !open.is_empty() {
            let over = |o: &Open| o.blocks.start < blocks.end && blocks.start < o.blocks.end;
            open.retain(|o| o.next > stamp || !over(o));
        }
    }

    /// A command is over.
    pub fn close(&mut self, command: u64) {
        for open in &mut self.lanes {
            open.retain(|o| o.command != command);
        }
    }

    /// All are void: a snapshot, or s0, is above them.
    pub fn void_all(&mut self) {
        self.lanes.iter_mut().for_each(Vec::clear);
    }

    /// Everything up to this may be settled, as far as reservations are concerned; `None`: whatever it is.
    pub fn bound(&self, lane: u8) -> Option<Stamp> {
        if planted::is(Bug::SettledPasses) {
            return None;
        }
        let least = self.lanes[usize::from(lane)].iter().map(|o| o.next).min();
        least.map(before)
    }

    /// Settled of a lane would be at this but for those below it.
    pub fn wanted(&mut self, lane: u8, settled: Stamp, now: Nanos) {
        for open in &mut self.lanes[usize::from(lane)] {
            if open.next <= settled {
                open.wanted.get_or_insert(now);
            }
        }
    }

    /// Those that are too old, or for which settled has waited for long, are void; whether there were any.
    pub fn expire(&mut self, now: Nanos) -> bool {
        let before = self.count();
        for open in &mut self.lanes {
            open.retain(|o| now < o.due());
        }
        self.count() < before
    }

    /// When one of them is void by time.
    pub fn deadline(&self) -> Option<Nanos> {
        self.lanes.iter().flatten().map(Open::due).min()
    }
}

impl Open {
    fn due(&self) -> Nanos {
        match self.wanted {
            Some(since) if !planted::is(Bug::SettledPasses) => {
                self.until.min(since + SETTLED_WAITS)
            }
            _ => self.until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seq: u64) -> Stamp {
        Stamp { epoch: 3, seq }
    }

    fn part(blocks: Range<u64>, stamps: u64) -> Part {
        Part {
            lane: 0,
            blocks,
            stamps,
        }
    }

    const LATE: Nanos = Nanos(9_000_000_000);

    #[test]
    fn a_command_uses_its_stamps_in_order_and_no_others() {
        let mut all = Reservations::new(1);
        all.open(7, part(4..8, 3), stamp(10), LATE);
        assert_eq!(all.take((7, 0), 2, &(4..6)), Some(stamp(10)));
        assert_eq!(all.take((7, 0), 2, &(6..8)), None, "one is left");
        assert_eq!(all.take((7, 0), 1, &(7..9)), None, "for other blocks");
        assert_eq!(all.take((8, 0), 1, &(7..8)), None, "of another command");
        assert_eq!(all.take((7, 0), 1, &(7..8)), Some(stamp(12)));
        all.close(7);
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn what_is_overtaken_is_void_and_what_is_higher_or_beside_it_is_not() {
        let mut all = Reservations::new(1);
        all.open(1, part(0..4, 4), stamp(10), LATE);
        all.open(2, part(4..8, 4), stamp(14), LATE);
        all.open(3, part(0..4, 4), stamp(20), LATE);
        all.overtaken(0, stamp(18), &(3..4));
        assert_eq!(all.take((1, 0), 4, &(0..4)), None);
        assert_eq!(all.take((2, 0), 4, &(4..8)), Some(stamp(14)));
        assert_eq!(all.take((3, 0), 4, &(0..4)), Some(stamp(20)));
    }

    #[test]
    fn settled_stays_below_what_is_open_for_a_while() {
        let mut all = Reservations::new(1);
        assert_eq!(all.bound(0), None);
        all.open(1, part(0..4, 4), stamp(10), LATE);
        all.open(2, part(4..8, 4), stamp(14), LATE);
        assert_eq!(all.bound(0), Some(stamp(9)));
        all.wanted(0, stamp(12), Nanos(5));
        assert!(!all.expire(Nanos(4) + SETTLED_WAITS));
        assert!(all.expire(Nanos(5) + SETTLED_WAITS));
        assert_eq!(all.bound(0), Some(stamp(13)));
        assert_eq!(all.deadline(), Some(LATE));
        assert!(all.expire(LATE));
    }
}
