//! Which cores each node's reactors are pinned to, where nobody said: several nodes of one machine divide them, as two pinned to one core take it
//! from each other.
use rustix::thread::{CpuSet, sched_getaffinity};

/// Of this process; empty if the system does not say.
fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).ok();
    let is_set = |n: &usize| set.as_ref().is_some_and(|s| s.is_set(*n));
    (0..CpuSet::MAX_CPU).filter(is_set).collect()
}

/// The cores of the reactors of node `index` (from 0) of `nodes`. `None`: of all that there are, the data path takes what it wants.
pub fn of_node(index: u16, nodes: u16) -> Option<String> {
    divide(&allowed(), index.into(), nodes.into())
}

fn divide(cores: &[usize], index: usize, nodes: usize) -> Option<String> {
    if nodes <= 1 || cores.is_empty() {
        return None;
    }
    let each = (cores.len() / nodes).max(1);
    let mine = (0..each).map(|n| cores[(index * each + n) % cores.len()].to_string());
    Some(mine.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_divide_the_cores_and_share_them_only_if_they_must() {
        assert_eq!(divide(&[0, 1], 0, 1), None);
        assert_eq!(divide(&[], 0, 3), None);
        let of = |cores: &[usize], nodes| {
            let all = (0..nodes).map(|n| divide(cores, n, nodes).unwrap());
            all.collect::<Vec<_>>()
        };
        assert_eq!(of(&[0, 1], 3), ["0", "1", "0"]);
        assert_eq!(of(&[2, 3, 6, 7], 2), ["2,3", "6,7"]);
    }
}
