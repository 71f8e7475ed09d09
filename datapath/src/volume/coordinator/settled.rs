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
}

impl Settled {
    /// As a takeover found it.
    pub fn new(stamps: &[Stamp]) -> Self {
        Self {
            stamps: stamps.into(),
            positions: vec![0; stamps.len()].into(),
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

    /// Looks again; whether any rose. `everyone`: who must have it stable, in doubt both sets; `None` while one of them is gapped, as nothing is known
    /// of it: settled stays where it is.
    pub fn raise(&mut self, ring: &Ring, everyone: Option<Members>) -> bool {
        let Some(everyone) = everyone else {
            return false;
        };
        let mut rose = false;
        for lane in ring.lanes() {
            let n = usize::from(lane);
            let Some(to) = ring.stable_at_all(everyone, lane) else {
                continue;
            };
            if to <= self.positions[n] {
                continue;
            }
            let stream = ring.stream(lane);
            // All stamps behind it are higher, so this one speaks of everything at or below it.
            if let Some(stamp) = stream.last_stamp(to) {
                debug_assert!(stream.get(to + 1).is_none_or(|e| e.held.stamp > stamp));
                self.stamps[n] = self.stamps[n].max(stamp);
                self.positions[n] = to;
                rose = true;
            }
        }
        rose
    }
}
