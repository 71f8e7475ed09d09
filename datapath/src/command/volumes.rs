//! A reactor's volumes as the target wants them: handles, and what all reactors counted.

use std::sync::Arc;

use keelblock_api::stats::StatsReader;

use crate::nvmf::Volumes;
use crate::nvmf::seam::IoCounters;
use crate::store::VolumeId;
use crate::volume::{Hub, Volume};

/// The volumes of a reactor's hub, and the stats page to read back from.
pub struct HubVolumes {
    hub: Hub,
    stats: Arc<StatsReader>,
}

impl HubVolumes {
    /// Over a hub and this process's own stats page.
    pub fn new(hub: Hub, stats: Arc<StatsReader>) -> Self {
        Self { hub, stats }
    }
}

impl Volumes for HubVolumes {
    fn open(&self, id: &[u8; 16]) -> Option<Volume> {
        self.hub.volume(VolumeId(*id))
    }

    fn commit(&self) -> bool {
        let done = self.hub.commit_now();
        if let Err(error) = &done {
            tracing::error!(%error, "writes are not acknowledged: their records could not be written");
        }
        done.is_ok()
    }

    fn counters(&self, id: &[u8; 16]) -> IoCounters {
        let counted = self.stats.volume(*id);
        let volume = self.hub.volume(VolumeId(*id));
        let media_errors = volume.map_or(0, |v| v.media_errors());
        counted.map_or_else(IoCounters::default, |c| IoCounters {
            reads: c.reads,
            writes: c.writes,
            read_bytes: c.read_bytes,
            write_bytes: c.write_bytes,
            media_errors,
        })
    }
}
