//! What is settled (`docs/replication.md` §2, §8 step 5; rule 4): per lane the highest stamp up to which everything is stable on every member.

use super::members::Members;
use super::ring::Ring;
use crate::store::types::Stamp;

/// The settled stamps of all lanes.
#[derive(Debug)]
pub struct Settled {
    stamps: Box<[Stamp]>,
    /// The positions that they stand for.
    positions: Box<[u64]>,
    /// Where they would be, but for reservations.
    held: Box<[Option<Stamp>]>,
}

/// The stamp in front of one that was given.
pub fn before(stamp: Stamp) -> Stamp {
    // Counters begin at 1.
    Stamp {
        seq: stamp.seq - 1,
        ..stamp
    }
}

impl Settled {
    /// As a takeover found it.
    pub fn new(stamps: &[Stamp]) -> Self {
        Self {
            stamps: stamps.into(),
            positions: vec![0; stamps.len()].into(),
            held: vec![None; stamps.len()].into(),
        }
    }

    /// Of a lane.
    pub fn of(&self, lane: u8) -> Stamp {
        self.stamps[usize::from(lane)]
    }

    /// Position in its lane's stream that it stands for.
    pub fn position(&self, lane: u8) -> u64 {
        self.positions[usize::from(lane)]
    }

    /// All lanes.
    pub fn all(&self) -> Vec<(u8, Stamp)> {
        let stamps = self.stamps.iter().enumerate();
        stamps.map(|(n, &s)| (n as u8, s)).collect()
    }

    /// All that older epochs left is settled: up to the first stamp of this one.
    pub fn begin(&mut self, epoch: u32) {
        for stamp in &mut self.stamps {
            *stamp = (*stamp).max(Stamp { epoch, seq: 0 });
        }
    }

    /// Where the lane would be settled but for a reservation.
    pub fn held(&self, lane: u8) -> Option<Stamp> {
        self.held[usize::from(lane)]
    }

    /// Looks again; whether any rose. `everyone`: who must have it stable, in doubt both sets; `None` while one of them is gapped, as nothing is known
    /// of it: settled stays where it is. `bound`: what it must not pass.
    pub fn raise(
        &mut self,
        ring: &Ring,
        everyone: Option<Members>,
        bound: impl Fn(u8) -> Option<Stamp>,
    ) -> bool {
        let Some(everyone) = everyone else {
            return false;
        };
        let mut rose = false;
        for lane in ring.lanes() {
            let n = usize::from(lane);
            let Some(to) = ring.stable_at_all(everyone, lane) else {
                continue;
            };
            if to <= self.positions[n] && self.held[n].is_none() {
                continue;
            }
            let Some(all) = ring.stream(lane).all_below(to.max(self.positions[n])) else {
                continue;
            };
            let bound = bound(lane).filter(|b| *b < all);
            self.held[n] = bound.map(|_| all);
            let stamp = bound.unwrap_or(all);
            // Everything settled is at or in front of it.
            self.positions[n] = to.max(self.positions[n]);
            if stamp > self.stamps[n] {
                self.stamps[n] = stamp;
                rose = true;
            }
        }
        rose
    }
}
