//! A volume that is coordinated here gets a larger size (`docs/replication.md` §19).

use keelblock_api::datapath as proto;

use super::super::{CommandError, Commander};
use crate::store::VolumeId;
use crate::store::pool::{PoolError, check_size};
use crate::store::types::SLICE_BLOCKS;
use crate::volume::SLICE_BYTES;

/// Blocks of each lane of a volume.
pub(super) fn lane_blocks(size_bytes: u64, lanes: u64) -> u64 {
    let slices = size_bytes.div_ceil(SLICE_BYTES);
    slices.div_ceil(lanes) * SLICE_BLOCKS
}

impl Commander {
    /// Grows a volume that is coordinated here in this epoch; its exports tell their hosts.
    pub async fn grow_served(
        &self,
        volume: VolumeId,
        epoch: u32,
        size_bytes: u64,
    ) -> Result<proto::Coordinator, CommandError> {
        check_size(size_bytes)?;
        let _one = self.serving.lock().await;
        let serving = self.served(volume, epoch)?;
        let open = self.registry.volume(volume);
        let open = open.ok_or(CommandError::NoVolume(volume))?;
        let before = open.size_bytes();
        if size_bytes < before {
            let size_bytes = before;
            return Err(PoolError::Shrink { volume, size_bytes }.into());
        }
        if size_bytes > before {
            // Before any host can write there: what is below s0 and is not compared would be missing on a replica that comes back.
            let blocks = lane_blocks(size_bytes, open.lanes() as u64);
            serving.by.driver.grow(blocks);
            self.registry.resize(volume, size_bytes).await;
        }
        // Also if it is asked again: the first time hosts may not have been told.
        self.export_again(volume).await?;
        Ok(self.coordinator_to(&serving))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_slices_and_the_last_ones_may_have_one_more_than_they_use() {
        let one = SLICE_BLOCKS;
        assert_eq!(lane_blocks(1, 1), one);
        assert_eq!(lane_blocks(SLICE_BYTES + 1, 1), 2 * one);
        assert_eq!(lane_blocks(16 * SLICE_BYTES, 16), one);
        assert_eq!(lane_blocks(16 * SLICE_BYTES + 1, 16), 2 * one);
    }
}
