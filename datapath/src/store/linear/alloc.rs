//! Picking free grains: as few runs as possible, going on where the volume ends if that is free.

use std::ops::Range;

/// Free grains on one of a pool's drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the drive in the pool.
    pub drive: usize,
    /// Which grains.
    pub grains: Range<u64>,
}

impl Run {
    fn len(&self) -> u64 {
        self.grains.end - self.grains.start
    }

    fn take(&mut self, grains: u64) -> Run {
        let end = self.grains.start + grains.min(self.len());
        let taken = self.grains.start..end;
        self.grains.start = end;
        Run {
            drive: self.drive,
            grains: taken,
        }
    }
}

/// Picks `need` grains out of `free`; `None` if there are not so many. `after` is where the volume's last extent ends.
pub fn pick(mut free: Vec<Run>, after: Option<(usize, u64)>, need: u64) -> Option<Vec<Run>> {
    let mut picked = Vec::new();
    let mut left = need;
    let next = after.and_then(|(drive, grain)| {
        free.iter_mut()
            .find(|r| r.drive == drive && r.grains.start == grain)
    });
    if let Some(run) = next {
        let taken = run.take(left);
        left -= taken.len();
        picked.push(taken);
    }
    while left > 0 {
        free.retain(|r| r.len() > 0);
        // The smallest run that holds all that is left keeps larger ones whole; without one, the largest makes the fewest extents.
        let smallest = free
            .iter_mut()
            .filter(|r| r.len() >= left)
            .min_by_key(|r| r.len());
        let run = match smallest {
            Some(run) => run,
            None => free.iter_mut().max_by_key(|r| r.len())?,
        };
        let taken = run.take(left);
        left -= taken.len();
        picked.push(taken);
    }
    Some(picked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(drive: usize, grains: Range<u64>) -> Run {
        Run { drive, grains }
    }

    #[test]
    fn the_tightest_run_is_taken() {
        let free = vec![run(0, 1..100), run(1, 10..20), run(1, 50..62)];
        assert_eq!(pick(free, None, 10), Some(vec![run(1, 10..20)]));
    }

    #[test]
    fn a_volume_goes_on_where_it_ends() {
        let free = vec![run(0, 1..5), run(1, 7..9)];
        let got = pick(free, Some((1, 7)), 4);
        assert_eq!(got, Some(vec![run(1, 7..9), run(0, 1..3)]));
    }

    #[test]
    fn too_much_is_refused() {
        assert_eq!(pick(vec![run(0, 1..5)], None, 5), None);
    }

    proptest! {
        #[test]
        fn picked_is_free_once_and_enough(lens in prop::collection::vec((0usize..3, 1u64..9), 1..12), need in 1u64..60) {
            let mut at = [1; 3];
            let free: Vec<Run> = lens.iter().map(|&(d, n)| {
                at[d] += n + 1;
                run(d, at[d] - n..at[d])
            }).collect();
            let total: u64 = lens.iter().map(|l| l.1).sum();
            match pick(free.clone(), None, need) {
                None => prop_assert!(need > total),
                Some(picked) => {
                    prop_assert_eq!(picked.iter().map(Run::len).sum::<u64>(), need);
                    let mut grains = Vec::new();
                    for p in picked {
                        prop_assert!(free.iter().any(|f| f.drive == p.drive
                            && f.grains.start <= p.grains.start && p.grains.end <= f.grains.end));
                        grains.extend(p.grains.map(|g| (p.drive, g)));
                    }
                    let n = grains.len();
                    grains.sort();
                    grains.dedup();
                    prop_assert_eq!(grains.len(), n);
                }
            }
        }
    }
}
