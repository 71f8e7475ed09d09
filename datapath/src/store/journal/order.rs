//! Blocks of a record that came when its lane had higher stamps: those that no such record was over. The store decides so when it admits the record,
//! and whoever reads the journal decides the same.

use std::ops::Range;

/// What is left of a range without others, ascending.
pub fn without(range: Range<u64>, others: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let overlaps = |o: &Range<u64>| o.start < range.end && range.start < o.end;
    let mut others: Vec<Range<u64>> = others.into_iter().filter(overlaps).collect();
    others.sort_unstable_by_key(|o| o.start);
    let mut left = Vec::new();
    let mut at = range.start;
    for other in others {
        if at < other.start {
            left.push(at..other.start);
        }
        at = at.max(other.end);
    }
    if at < range.end {
        left.push(at..range.end);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_left_is_in_no_other(others in prop::collection::vec((0u64..40, 1u64..10), 0..6)) {
            let others: Vec<Range<u64>> = others.into_iter().map(|(at, len)| at..at + len).collect();
            let left = without(10..30, others.clone());
            prop_assert!(left.is_sorted_by(|a, b| a.end < b.start));
            for block in 0..60 {
                let expect = (10..30).contains(&block) && !others.iter().any(|o| o.contains(&block));
                prop_assert_eq!(left.iter().any(|l| l.contains(&block)), expect, "block {}", block);
            }
        }
    }
}
