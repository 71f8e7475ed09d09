//! What volumes and snapshots use, exactly (`docs/store-format.md` §14).
//!
//! A root says how many data blocks are beneath it as of the last checkpoint. What the delta makes of that is found out when somebody
//! asks, so that writes need not read leaves: [`used_with`] goes through the delta once. A delta that leads to very many leaves is brought into
//! the map first: a checkpoint reads the same leaves, and has to come anyway.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::VolumeId;
use super::super::map::{CatalogueRecord, Root, Unique, count_unique, used_with};
use super::super::types::{CatalogueHandle, SnapshotId};
use super::lane::{LaneState, SharedLayer};
use super::{Inner, LaneInfo, RootOf, SnapshotInfo, Store, StoreError};

/// A layer with more entries is ended before it is gone through: it would be sorted again after each write that comes meanwhile.
const CHANGING_MAX: usize = 1024;
/// Leaves of a delta that a question may read; with more, a checkpoint comes first.
const LEAVES_MAX: usize = 8192;

/// Whose used blocks are wanted exactly: finding them out reads pages of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactly {
    /// Live lanes, of this volume or of all.
    Lanes(Option<VolumeId>),
    /// Snapshots, of this volume or of all.
    Snapshots(Option<VolumeId>),
    /// This snapshot.
    Snapshot(VolumeId, SnapshotId),
}

impl Exactly {
    fn volume(self) -> Option<VolumeId> {
        match self {
            Self::Lanes(volume) | Self::Snapshots(volume) => volume,
            Self::Snapshot(volume, _) => Some(volume),
        }
    }

    fn is_lane(self, lane: &LaneInfo) -> bool {
        matches!(self, Self::Lanes(volume) if volume.is_none_or(|v| v == lane.volume))
    }

    fn is_snapshot(self, s: &SnapshotInfo) -> bool {
        match self {
            Self::Lanes(_) => false,
            Self::Snapshots(volume) => volume.is_none_or(|v| v == s.volume),
            Self::Snapshot(volume, id) => (volume, id) == (s.volume, s.snapshot),
        }
    }
}

impl Store {
    /// Data blocks that a volume's lanes here, or a snapshot of them, refer to now, exactly. Of writes that are under way meanwhile, some count.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], and [`StoreError::Page`] if it cannot be known.
    pub async fn used_blocks(&self, volume: VolumeId, of: RootOf) -> Result<u64, StoreError> {
        self.0.used_blocks(volume, of).await
    }

    /// Blocks that a volume's live lanes here, or a snapshot of them, refer to and no other live lane or snapshot does; as of a moment during the
    /// call. None of what is not here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unique_blocks(&self, volume: VolumeId, of: RootOf) -> Result<Unique, StoreError> {
        self.0.unique_blocks(volume, of).await
    }

    /// As [`Store::lanes`] and [`Store::snapshots`], with used blocks of those that are meant as [`Store::used_blocks`] finds them. Where that
    /// fails, the figure is that of the last checkpoint, and the error says so.
    pub async fn lanes_and_snapshots(&self, meant: Exactly) -> (Vec<LaneInfo>, Vec<SnapshotInfo>) {
        self.0.few_leaves(meant.volume()).await;
        // Nothing is awaited between the lists and where they are resolved from.
        let (mut lanes, mut snapshots) = (self.lanes(), self.snapshots());
        let of_lanes: Vec<_> = lanes
            .iter()
            .map(|l| {
                let lane = self.0.lane_named(l.volume, l.lane);
                lane.filter(|_| meant.is_lane(l)).map(|l| whole(&l))
            })
            .collect();
        // Looked up from the few that the map does not show yet: there may be thousands of others.
        let unmerged = self.0.unmerged_snapshots();
        let of_snapshots: Vec<_> = snapshots
            .iter()
            .map(|s| {
                let handle = unmerged.get(&(s.volume, s.lane, s.snapshot));
                let handle = handle.filter(|_| meant.is_snapshot(s))?;
                self.0.unmerged_state(*handle)
            })
            .collect();
        let _reader = self.0.reclaim.read();
        for (lane, state) in lanes.iter_mut().zip(of_lanes) {
            if let Some(state) = state {
                match self.0.used_of(&state).await {
                    Ok(used) => lane.used_blocks = used,
                    Err(e) => lane.error = Some(e),
                }
            }
        }
        for (snapshot, state) in snapshots.iter_mut().zip(of_snapshots) {
            if let Some(state) = state {
                match self.0.used_of(&state).await {
                    Ok(used) => snapshot.used_blocks = used,
                    Err(e) => snapshot.error = Some(e),
                }
            }
        }
        (lanes, snapshots)
    }
}

/// A map and the layers over it, the oldest first, as they were at one moment.
type State = (Root, Vec<SharedLayer>);

/// A lane as it is now.
fn whole(lane: &LaneState) -> State {
    let mut layers = lane.frozen();
    layers.push(lane.newest());
    (lane.root.get(), layers)
}

impl Inner {
    /// If the delta, of this volume or of all, leads to too many leaves, waits for a checkpoint. That it fails changes nothing of what is found,
    /// only what that costs.
    async fn few_leaves(&self, of: Option<VolumeId>) {
        let meant = |lane: &&Rc<LaneState>| of.is_none_or(|volume| volume == lane.volume);
        for lane in self.lanes.borrow().values().filter(meant) {
            let newest = lane.newest();
            let (entries, generation) = (newest.borrow().len(), newest.borrow().generation);
            if entries > CHANGING_MAX {
                lane.cut(generation);
                self.deepest.set(self.deepest.get().max(lane.depth()));
            }
        }
        self.look_at_limits();
        let leaves: usize = {
            let lanes = self.lanes.borrow();
            let mut sum = 0;
            for lane in lanes.values().filter(meant) {
                lane.each_layer(|layer| sum += layer.leaves());
            }
            sum
        };
        if leaves > LEAVES_MAX
            && let Err(e) = self.checkpoint().await
        {
            tracing::warn!("used blocks are counted without a checkpoint: {e}");
        }
    }

    async fn used_blocks(&self, volume: VolumeId, of: RootOf) -> Result<u64, StoreError> {
        self.few_leaves(Some(volume)).await;
        let states: Vec<State> = match of {
            RootOf::Live => {
                let handles = self.live(volume);
                let lanes = self.lanes.borrow();
                let live = handles.iter().filter_map(|h| lanes.get(h));
                live.map(|lane| whole(lane)).collect()
            }
            RootOf::Snapshot(id) => {
                let handles = self.catalogue.borrow().snapshots(volume, id);
                let state = |h: CatalogueHandle| match self.unmerged_state(h) {
                    Some(state) => state,
                    None => {
                        let catalogue = self.catalogue.borrow();
                        let root = catalogue.get(h).map(CatalogueRecord::root);
                        (root.expect("it was just found"), Vec::new())
                    }
                };
                handles.into_iter().map(state).collect()
            }
        };
        if states.is_empty() {
            return Err(StoreError::Unknown);
        }
        // What was looked up stays until it is read.
        let _reader = self.reclaim.read();
        let mut used = 0;
        for state in &states {
            used += self.used_of(state).await?;
        }
        Ok(used)
    }

    async fn used_of(&self, (root, layers): &State) -> Result<u64, StoreError> {
        Ok(used_with(&self.pages, root, layers).await?)
    }

    /// Snapshots whose root no superblock has yet.
    fn unmerged_snapshots(&self) -> BTreeMap<(VolumeId, u8, SnapshotId), CatalogueHandle> {
        let catalogue = self.catalogue.borrow();
        let unmerged = self.unmerged.borrow();
        let named = unmerged.iter().filter_map(|handle| {
            let record = catalogue.get(*handle)?;
            Some(((record.volume, record.lane, record.snapshot), *handle))
        });
        named.collect()
    }

    /// A snapshot whose root no superblock has yet: its lane's map, and the layers up to the one that it closes.
    fn unmerged_state(&self, snapshot: CatalogueHandle) -> Option<State> {
        if !self.unmerged.borrow().contains(&snapshot) {
            return None;
        }
        let lanes = self.lanes.borrow();
        lanes.values().find_map(|lane| {
            let (root, mut layers) = whole(lane);
            let last = layers
                .iter()
                .position(|l| l.borrow().closes == Some(snapshot))?;
            layers.truncate(last + 1);
            Some((root, layers))
        })
    }

    async fn unique_blocks(
        self: &Rc<Self>,
        volume: VolumeId,
        of: RootOf,
    ) -> Result<Unique, StoreError> {
        // No snapshot is taken or deleted, and no deletion walks, while roots are compared.
        let _one = self.changing.lock().await;
        let handles = match of {
            RootOf::Live => self.live(volume),
            RootOf::Snapshot(snapshot) => self.catalogue.borrow().snapshots(volume, snapshot),
        };
        // What the relatives refer to is in their maps.
        self.checkpoint().await?;
        let _reader = self.reclaim.read();
        let mut sum = Unique::default();
        for handle in handles {
            let (root, own, others) = {
                let catalogue = self.catalogue.borrow();
                let (own, relatives) = catalogue.relatives(handle);
                let root_of = |h: &CatalogueHandle| catalogue.get(*h).map(CatalogueRecord::root);
                let others: Vec<Root> = relatives.iter().filter_map(root_of).collect();
                let Some(root) = root_of(&handle) else {
                    continue;
                };
                (root, own, others)
            };
            let unique = count_unique(&self.pages, &root, own, &others).await?;
            sum.data += unique.data;
            sum.pages += unique.pages;
        }
        Ok(sum)
    }
}

#[cfg(test)]
impl Store {
    /// Data blocks that only this one leads to, found by going through all maps there are. For tests.
    pub async fn unique_by_looking(&self, volume: VolumeId, of: RootOf) -> u64 {
        use super::super::map::{RecordKind, next_entries};
        use std::collections::BTreeMap;
        self.0.checkpoint().await.expect("a checkpoint");
        let _reader = self.0.reclaim.read();
        let records: Vec<CatalogueRecord> = {
            let catalogue = self.0.catalogue.borrow();
            let shown =
                |r: &&CatalogueRecord| matches!(r.kind, RecordKind::Live | RecordKind::Snapshot);
            catalogue
                .iter()
                .map(|(_, r)| r)
                .filter(shown)
                .cloned()
                .collect()
        };
        let mut led_to: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (n, record) in records.iter().enumerate() {
            let (root, mut from) = (record.root(), 0);
            let shape = root.shape();
            while let Some((leaf, page)) = next_entries(&self.0.pages, &root, None, from)
                .await
                .expect("a page")
            {
                for slot in 0..shape.slots(leaf) {
                    if let Some(block) = shape.entry(&page, slot).block() {
                        led_to.entry(block.0).or_default().push(n);
                    }
                }
                from = leaf + 1;
            }
        }
        let wanted = |r: &CatalogueRecord| {
            let it = match of {
                RootOf::Live => r.kind == RecordKind::Live,
                RootOf::Snapshot(id) => r.kind == RecordKind::Snapshot && r.snapshot == id,
            };
            it && r.volume == volume
        };
        let only = led_to.values().filter(|by| by.len() == 1);
        only.filter(|by| wanted(&records[by[0]])).count() as u64
    }
}
