//! Where a volume's lanes should be: with the reactors whose hosts use the volume.
//!
//! An operation on a lane of another reactor costs two messages, and a wake-up if that reactor sleeps. So lanes follow the reactor that
//! most operations come from, and are shared out in proportion when several are busy with the volume. Nothing looks at the clock for
//! this: a reactor that forwards [`FORWARDS_PER_REPORT`] operations says so, and then the counts of all are looked at.

use std::time::Duration;

use super::lane::Lane;
use crate::reactor::ReactorId;

/// A reactor that has forwarded so many operations of a volume asks for its lanes to be looked at.
pub(super) const FORWARDS_PER_REPORT: u32 = 512;
/// The lanes of one volume are looked at this often at most: each move holds up their I/O for some hundred microseconds.
pub(super) const BALANCE_INTERVAL: Duration = Duration::from_millis(500);
/// Fewer operations than this say nothing.
const OPERATIONS_MIN: u64 = 256;

/// Which lanes should go where. `owners` is by lane, `operations` by reactor: what came from its hosts since the last look.
pub(super) fn decide(owners: &[(Lane, ReactorId)], operations: &[u64]) -> Vec<(Lane, ReactorId)> {
    let total: u64 = operations.iter().sum();
    if total < OPERATIONS_MIN {
        return Vec::new();
    }
    let want = shares(owners.len(), operations, total);
    let mut have = vec![0; operations.len()];
    for (_, owner) in owners {
        have[usize::from(owner.0)] += 1;
    }
    let missing: usize = want
        .iter()
        .zip(&have)
        .map(|(w, h): (&usize, &usize)| w.saturating_sub(*h))
        .sum();
    // A quarter of the lanes or more, else moving costs more than it brings.
    if missing * 4 < owners.len() {
        return Vec::new();
    }
    let mut moves = Vec::with_capacity(missing);
    for &(lane, owner) in owners {
        let from = usize::from(owner.0);
        if have[from] <= want[from] {
            continue;
        }
        if let Some(to) = (0..want.len()).find(|&r| have[r] < want[r]) {
            have[from] -= 1;
            have[to] += 1;
            moves.push((lane, ReactorId(to as u16)));
        }
    }
    moves
}

/// How many lanes each reactor should have.
fn shares(lanes: usize, operations: &[u64], total: u64) -> Vec<usize> {
    let busiest = (0..operations.len())
        .max_by_key(|&r| operations[r])
        .unwrap_or(0);
    let mut want = vec![0; operations.len()];
    // Three quarters from one place: all lanes there, for most of the rest is noise of other queues.
    if lanes == 1 || u128::from(operations[busiest]) * 4 >= u128::from(total) * 3 {
        want[busiest] = lanes;
        return want;
    }
    let mut left = lanes;
    for (want, &from_here) in want.iter_mut().zip(operations) {
        *want = (u128::from(from_here) * lanes as u128 / u128::from(total)) as usize;
        left -= *want;
    }
    // What rounding left over.
    let mut by_operations: Vec<usize> = (0..operations.len()).collect();
    by_operations.sort_by_key(|&r| std::cmp::Reverse(operations[r]));
    for &r in by_operations.iter().cycle().take(left) {
        want[r] += 1;
    }
    want
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Lanes;
    use proptest::prelude::*;

    fn owners(of: &[u16]) -> Vec<(Lane, ReactorId)> {
        let lanes = Lanes::for_size(if of.len() == 1 { 1 } else { 1 << 30 });
        lanes.all().zip(of.iter().map(|&r| ReactorId(r))).collect()
    }

    fn after(before: &[u16], operations: &[u64]) -> Vec<u16> {
        let mut now = before.to_vec();
        for (lane, to) in decide(&owners(before), operations) {
            now[lane.index()] = to.0;
        }
        now
    }

    #[test]
    fn lanes_follow_the_only_user() {
        assert_eq!(after(&[0; 16], &[0, 5000]), [1; 16]);
        assert_eq!(after(&[0], &[0, 5000]), [1]);
        assert_eq!(after(&[0; 16], &[1000, 4000]), [1; 16]);
    }

    #[test]
    fn two_users_share() {
        let now = after(&[0; 16], &[5000, 5000]);
        assert_eq!(now.iter().filter(|&&r| r == 1).count(), 8);
        // And it stays so while the shares only waver.
        assert_eq!(after(&now, &[5600, 4400]), now);
    }

    #[test]
    fn little_says_nothing() {
        assert_eq!(after(&[0; 16], &[0, OPERATIONS_MIN - 1]), [0; 16]);
    }

    proptest! {
        #[test]
        fn a_second_look_changes_nothing(
            before in prop::collection::vec(0u16..4, 16),
            operations in prop::collection::vec(prop_oneof![Just(0u64), 0u64..1 << 40], 4),
        ) {
            let now = after(&before, &operations);
            prop_assert_eq!(after(&now, &operations), now.clone());
            let total: u64 = operations.iter().sum();
            for (r, &n) in operations.iter().enumerate() {
                let had = before.iter().filter(|&&o| usize::from(o) == r).count();
                let has = now.iter().filter(|&&o| usize::from(o) == r).count();
                // Whoever has nothing to do with it gets no lane.
                prop_assert!(n > 0 || has <= had || total < OPERATIONS_MIN);
            }
        }

        #[test]
        fn shares_add_up(lanes in prop_oneof![Just(1usize), Just(16)], operations in prop::collection::vec(0u64..u64::MAX / 8, 1..8)) {
            let total: u64 = operations.iter().sum();
            prop_assume!(total > 0);
            prop_assert_eq!(shares(lanes, &operations, total).iter().sum::<usize>(), lanes);
        }
    }
}
