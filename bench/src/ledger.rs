//! What a read may return: per extent the generation acknowledged last and the one issued last.
//!
//! One write per extent is in flight at a time. A read may see anything from what was acknowledged when it was issued to what had been
//! issued when it completed, block by block. A write that failed may or may not have happened, so it raises only the upper end.

use crate::stamp::{Foreign, Stamp};

/// More extents than this would need more than 2 GiB for the ledger.
const EXTENTS_MAX: u64 = 1 << 28;

/// A block that no read may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Not a block of ours.
    #[error("LBA {lba} {why}")]
    Foreign {
        /// Where.
        lba: u64,
        /// What it is.
        why: Foreign,
    },
    /// A block written elsewhere, or by another run.
    #[error("LBA {lba} holds the block of LBA {} that run {:#x} wrote", found.lba, found.run)]
    Misplaced {
        /// Where.
        lba: u64,
        /// What was found.
        found: Stamp,
    },
    /// Too old, or of a write that has not been issued.
    #[error("LBA {lba} holds generation {found}, and not one from {oldest} to {newest}")]
    Generation {
        /// Where.
        lba: u64,
        /// What was found.
        found: u32,
        /// What was acknowledged when the read was issued.
        oldest: u32,
        /// What had been issued when it completed.
        newest: u32,
    },
}

/// The range is too large to keep account of.
#[derive(Debug, thiserror::Error)]
#[error(
    "--verify keeps account of at most {EXTENTS_MAX} extents and the range has {0}: choose a smaller --range or a larger --bs"
)]
pub struct TooManyExtents(u64);

#[derive(Clone, Copy, Default)]
struct Extent {
    acknowledged: u32,
    /// Generation issued last, shifted left by one; bit 0: a write is in flight.
    issued: u32,
}

/// The account of a range of the namespace.
pub struct Ledger {
    extents: Vec<Extent>,
    blocks_per_extent: u64,
    block_bytes: usize,
    run: u64,
}

impl Ledger {
    /// Nothing written yet in `extents` extents of `blocks_per_extent` blocks.
    pub fn new(
        extents: u64,
        blocks_per_extent: u64,
        block_bytes: usize,
        run: u64,
    ) -> Result<Self, TooManyExtents> {
        if extents > EXTENTS_MAX {
            return Err(TooManyExtents(extents));
        }
        Ok(Self {
            extents: vec![Extent::default(); extents as usize],
            blocks_per_extent,
            block_bytes,
            run,
        })
    }

    /// Begins a write: fills `data` and returns true, or false when another write of the extent is in flight.
    pub fn begin_write(&mut self, extent: u64, data: &mut [u8]) -> bool {
        let e = &mut self.extents[extent as usize];
        if e.issued & 1 != 0 {
            return false;
        }
        e.issued = (e.issued + 2) | 1;
        let generation = e.issued >> 1;
        let first = extent * self.blocks_per_extent;
        for (lba, block) in (first..).zip(data.chunks_exact_mut(self.block_bytes)) {
            Stamp {
                lba,
                generation,
                run: self.run,
            }
            .write(block);
        }
        true
    }

    /// Ends a write.
    pub fn end_write(&mut self, extent: u64, acknowledged: bool) {
        let e = &mut self.extents[extent as usize];
        e.issued &= !1;
        if acknowledged {
            e.acknowledged = e.issued >> 1;
        }
    }

    /// What a read that is issued now may return at the oldest.
    pub fn oldest(&self, extent: u64) -> u32 {
        self.extents[extent as usize].acknowledged
    }

    /// Checks what a read of `extent`, issued when `oldest` was acknowledged, returned. Returns the number of blocks checked:
    /// those never acknowledged may hold anything.
    pub fn check(&self, extent: u64, oldest: u32, data: &[u8]) -> Result<u64, Mismatch> {
        if oldest == 0 {
            return Ok(0);
        }
        let newest = self.extents[extent as usize].issued >> 1;
        let first = extent * self.blocks_per_extent;
        for (lba, block) in (first..).zip(data.chunks_exact(self.block_bytes)) {
            let found = Stamp::read(block).map_err(|why| Mismatch::Foreign { lba, why })?;
            if found.lba != lba || found.run != self.run {
                return Err(Mismatch::Misplaced { lba, found });
            }
            if found.generation < oldest || found.generation > newest {
                return Err(Mismatch::Generation {
                    lba,
                    found: found.generation,
                    oldest,
                    newest,
                });
            }
        }
        Ok(self.blocks_per_extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger::new(4, 2, 512, 77).unwrap()
    }

    #[test]
    fn a_read_during_a_write_may_see_either_and_nothing_else() {
        let mut ledger = ledger();
        let (mut first, mut second) = (vec![0; 1024], vec![0; 1024]);
        assert!(ledger.begin_write(3, &mut first));
        assert_eq!(
            ledger.check(3, ledger.oldest(3), &first),
            Ok(0),
            "nothing is acknowledged"
        );
        ledger.end_write(3, true);
        let oldest = ledger.oldest(3);
        assert_eq!(ledger.check(3, oldest, &first), Ok(2));
        assert!(ledger.begin_write(3, &mut second));
        assert!(
            !ledger.begin_write(3, &mut [0; 1024]),
            "one write at a time"
        );
        assert_eq!(ledger.check(3, oldest, &first), Ok(2));
        let torn = [&second[..512], &first[512..]].concat();
        assert_eq!(ledger.check(3, oldest, &torn), Ok(2));
        ledger.end_write(3, true);
        assert_eq!(
            ledger.check(3, oldest, &first),
            Ok(2),
            "a read that was issued before"
        );
        let stale = ledger.check(3, ledger.oldest(3), &first);
        assert_eq!(
            stale,
            Err(Mismatch::Generation {
                lba: 6,
                found: 1,
                oldest: 2,
                newest: 2
            })
        );
    }

    #[test]
    fn a_failed_write_may_have_happened() {
        let mut ledger = ledger();
        let (mut first, mut second) = (vec![0; 1024], vec![0; 1024]);
        ledger.begin_write(0, &mut first);
        ledger.end_write(0, true);
        ledger.begin_write(0, &mut second);
        ledger.end_write(0, false);
        assert_eq!(ledger.check(0, ledger.oldest(0), &first), Ok(2));
        assert_eq!(ledger.check(0, ledger.oldest(0), &second), Ok(2));
    }

    #[test]
    fn misplaced_and_foreign_blocks_are_named() {
        let mut ledger = ledger();
        let mut data = vec![vec![0; 1024]; 2];
        for (extent, data) in data.iter_mut().enumerate() {
            ledger.begin_write(extent as u64, data);
            ledger.end_write(extent as u64, true);
        }
        let found = Stamp {
            lba: 2,
            generation: 1,
            run: 77,
        };
        assert_eq!(
            ledger.check(0, 1, &data[1]),
            Err(Mismatch::Misplaced { lba: 0, found })
        );
        assert_eq!(
            ledger.check(0, 1, &[0; 1024]),
            Err(Mismatch::Foreign {
                lba: 0,
                why: Foreign::NoStamp
            })
        );
    }

    #[test]
    fn a_range_that_needs_too_much_memory_is_refused() {
        assert!(Ledger::new(EXTENTS_MAX + 1, 1, 512, 0).is_err());
    }
}
