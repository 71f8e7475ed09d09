//! Which drive a new lane goes to.

use super::{PoolError, PoolView};

/// Chooses a drive for each of `lanes`, of a volume of which each lane may take `lane_bytes`: always the one that has most room left when
/// the lanes placed before are full. Answers drives by their place, each with its lanes.
///
/// # Errors
/// [`PoolError::NoDrive`].
pub fn place(
    pool: &PoolView,
    lanes: &[u8],
    lane_bytes: u64,
) -> Result<Vec<(usize, Vec<u8>)>, PoolError> {
    // Volumes are thin and may promise more than there is: then the room left is below zero, and the order is still right.
    let mut room: Vec<(usize, i128)> = Vec::new();
    for (place, drive) in pool.drives.iter().enumerate() {
        let takes = drive.facts.is_some() && !drive.failed && drive.state == Default::default();
        if takes {
            room.push((place, i128::from(drive.free_bytes())));
        }
    }
    let mut placed: Vec<(usize, Vec<u8>)> = room.iter().map(|&(p, _)| (p, Vec::new())).collect();
    for &lane in lanes {
        // Of equals the first: the same drives always give the same answer.
        let most = (0..room.len()).min_by_key(|&n| (-room[n].1, n));
        let most = most.ok_or_else(|| PoolError::NoDrive {
            pool: pool.id.clone(),
        })?;
        room[most].1 -= i128::from(lane_bytes);
        placed[most].1.push(lane);
    }
    placed.retain(|(_, lanes)| !lanes.is_empty());
    Ok(placed)
}
