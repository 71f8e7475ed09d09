//! What a read asks the coordinator (`docs/replication.md` §8 *Reads*, §9).

use std::ops::Range;

use super::super::members::{Members, Place};
use super::super::read::Ready;
use super::{Machine, Phase};
use crate::reactor::Nanos;
use crate::replication::planted::{self, Bug};
use crate::replication::seam::Entry;

/// A read that is under way: to be given back to [`Machine::end_read`].
#[derive(Debug)]
pub struct Reading {
    lane: u8,
    blocks: Range<u64>,
    pin: u64,
    /// The heartbeat that members must have answered, if reads are confirmed.
    confirm: Option<u64>,
    /// A replica has to be asked.
    pub needs_replica: bool,
}

impl Machine {
    /// A read begins. `None`: nothing is served.
    pub fn begin_read(&mut self, lane: u8, blocks: Range<u64>) -> Option<Reading> {
        if !matches!(self.phase, Phase::Serving) {
            return None;
        }
        let confirm = self.config.confirmed_reads.then(|| self.leases.next());
        self.confirm |= confirm.is_some();
        Some(Reading {
            needs_replica: self.overlay.needs_replica(&self.ring, lane, blocks.clone()),
            pin: self.ring.pin(lane),
            lane,
            blocks,
            confirm,
        })
    }

    /// Replicas that may be asked: they are fed, and have all that left the stream.
    pub fn readable(&self) -> Members {
        self.sets.counted().and(self.opened())
    }

    /// Puts it together with what a replica gave.
    pub fn assemble(&self, reading: &Reading, replica: Option<&[Entry]>) -> Ready {
        let blocks = reading.blocks.clone();
        self.overlay
            .assemble(&self.ring, reading.lane, blocks, replica)
    }

    /// Whether it may be answered at this moment: to be asked when the data are in hand (rule 13).
    pub fn may_answer(&self, reading: &Reading, now: Nanos) -> bool {
        let whose = match reading.confirm {
            Some(number) => self.leases.answered(number),
            None => self.leases.running(now),
        };
        let leased = self.sets.reached(whose) || planted::is(Bug::LeaseNotChecked);
        matches!(self.phase, Phase::Serving) && leased
    }

    /// It has ended.
    pub fn end_read(&mut self, reading: Reading) {
        // After an end the streams are others, and nothing is pinned.
        if matches!(self.phase, Phase::Serving) {
            self.ring.unpin(reading.lane, reading.pin);
            self.release();
        }
    }

    /// Whether this replica is still one that may be asked.
    pub fn still_readable(&self, place: Place) -> bool {
        matches!(self.phase, Phase::Serving) && self.readable().has(place)
    }
}
