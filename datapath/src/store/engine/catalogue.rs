//! The catalogue in memory: every record of lanes and snapshots, and how they descend from each other (`docs/store-format.md` §7 and 8).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::super::VolumeId;
use super::super::map::{CATALOGUE_LEAF_RECORDS, CatalogueLeaf, CatalogueRecord, RecordKind};
use super::super::types::{CatalogueHandle, Generation, SnapshotId};

/// No record: what has no parent has this one.
pub const NONE: CatalogueHandle = CatalogueHandle(0);

/// Values by handle, in the leaves of the catalogue. A checkpoint works on a copy: leaves are shared with it until one of the two changes them, so
/// taking it costs one pointer for 31 values, and what is written meanwhile one leaf for each that it touches.
#[derive(Clone, Debug)]
struct ByHandle<V>(BTreeMap<u64, Rc<BTreeMap<CatalogueHandle, V>>>);

impl<V> Default for ByHandle<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Clone> ByHandle<V> {
    fn get(&self, handle: CatalogueHandle) -> Option<&V> {
        self.0.get(&leaf_of_handle(handle))?.get(&handle)
    }

    fn insert(&mut self, handle: CatalogueHandle, value: V) -> Option<V> {
        let leaf = self.0.entry(leaf_of_handle(handle)).or_default();
        Rc::make_mut(leaf).insert(handle, value)
    }

    fn remove(&mut self, handle: CatalogueHandle) -> Option<V> {
        let number = leaf_of_handle(handle);
        let leaf = self.0.get_mut(&number)?;
        let removed = Rc::make_mut(leaf).remove(&handle);
        if leaf.is_empty() {
            self.0.remove(&number);
        }
        removed
    }

    fn iter(&self) -> impl Iterator<Item = (CatalogueHandle, &V)> {
        let all = self.0.values().flat_map(|leaf| leaf.iter());
        all.map(|(h, v)| (*h, v))
    }
}

/// Snapshots by what they are asked for.
type ById = BTreeMap<(VolumeId, SnapshotId), BTreeSet<CatalogueHandle>>;

/// See the module's text. Beside the records there is what is asked of them all the time: with thousands of snapshots nobody may go through all.
#[derive(Clone, Debug)]
pub struct Catalogue {
    records: ByHandle<CatalogueRecord>,
    /// What descends directly from a record.
    children: ByHandle<BTreeSet<CatalogueHandle>>,
    /// What deletions walk, or will.
    going: BTreeSet<CatalogueHandle>,
    /// Not of a checkpoint's copy, which nobody asks.
    by_id: Option<ById>,
    /// Leaves with records that changed since a checkpoint wrote them.
    dirty: BTreeSet<u64>,
    next_handle: u32,
    next_generation: u32,
}

impl Catalogue {
    /// Empty, with counters as the superblock has them.
    pub fn new(next_handle: u32, next_generation: u32) -> Self {
        Self {
            records: ByHandle::default(),
            children: ByHandle::default(),
            going: BTreeSet::new(),
            by_id: Some(BTreeMap::new()),
            dirty: BTreeSet::new(),
            next_handle,
            next_generation,
        }
    }

    /// A copy that a checkpoint changes. Snapshots are not looked up by their ids in it.
    pub fn for_checkpoint(&self) -> Self {
        Self {
            records: self.records.clone(),
            children: self.children.clone(),
            going: self.going.clone(),
            by_id: None,
            dirty: self.dirty.clone(),
            ..*self
        }
    }

    /// The next handle that was never used.
    pub fn next_handle(&self) -> u32 {
        self.next_handle
    }

    /// The next generation that was never used.
    pub fn next_generation(&self) -> u32 {
        self.next_generation
    }

    /// Counters as a record of the journal has them.
    pub fn raise(&mut self, next_handle: u32, next_generation: u32) {
        self.next_handle = self.next_handle.max(next_handle);
        self.next_generation = self.next_generation.max(next_generation);
    }

    /// A new handle.
    pub fn new_handle(&mut self) -> CatalogueHandle {
        self.next_handle += 1;
        CatalogueHandle(self.next_handle - 1)
    }

    /// A new generation.
    pub fn new_generation(&mut self) -> Generation {
        self.next_generation += 1;
        Generation(self.next_generation - 1)
    }

    /// A record, as it was read from the drive: not a change.
    pub fn load(&mut self, handle: CatalogueHandle, record: CatalogueRecord) {
        self.set(handle, Some(record));
    }

    /// Sets or removes a record, and all that is known of it beside; what it was.
    fn set(
        &mut self,
        handle: CatalogueHandle,
        record: Option<CatalogueRecord>,
    ) -> Option<CatalogueRecord> {
        let (parent, goes, id) = (
            record.as_ref().map(|r| r.parent),
            record.as_ref().is_some_and(goes),
            record.as_ref().and_then(id_of),
        );
        let before = match record {
            Some(record) => self.records.insert(handle, record),
            None => self.records.remove(handle),
        };
        let parent_before = before.as_ref().map(|r| r.parent);
        if parent != parent_before {
            if let Some(parent) = parent_before {
                let mut others = self.children.remove(parent).unwrap_or_default();
                others.remove(&handle);
                if !others.is_empty() {
                    self.children.insert(parent, others);
                }
            }
            if let Some(parent) = parent.filter(|p| *p != NONE) {
                let mut all = self.children.get(parent).cloned().unwrap_or_default();
                all.insert(handle);
                self.children.insert(parent, all);
            }
        }
        match goes {
            true => self.going.insert(handle),
            false => self.going.remove(&handle),
        };
        let id_before = before.as_ref().and_then(id_of);
        if let Some(by_id) = &mut self.by_id
            && id != id_before
        {
            if let Some(id) = id_before
                && let Some(handles) = by_id.get_mut(&id)
            {
                handles.remove(&handle);
                if handles.is_empty() {
                    by_id.remove(&id);
                }
            }
            if let Some(id) = id {
                by_id.entry(id).or_default().insert(handle);
            }
        }
        before
    }

    /// A record.
    pub fn get(&self, handle: CatalogueHandle) -> Option<&CatalogueRecord> {
        self.records.get(handle)
    }

    /// Changes or adds a record.
    pub fn put(&mut self, handle: CatalogueHandle, record: CatalogueRecord) {
        self.dirty.insert(leaf_of_handle(handle));
        self.set(handle, Some(record));
    }

    /// Changes a record that is there.
    pub fn change(&mut self, handle: CatalogueHandle, change: impl FnOnce(&mut CatalogueRecord)) {
        if let Some(mut record) = self.records.get(handle).cloned() {
            change(&mut record);
            self.put(handle, record);
        }
    }

    /// Removes a record; what descends from it descends from its parent now.
    pub fn remove(&mut self, handle: CatalogueHandle) {
        let Some(record) = self.set(handle, None) else {
            return;
        };
        self.dirty.insert(leaf_of_handle(handle));
        for child in self.children(handle) {
            self.change(child, |r| r.parent = record.parent);
        }
    }

    /// All records.
    pub fn iter(&self) -> impl Iterator<Item = (CatalogueHandle, &CatalogueRecord)> {
        self.records.iter()
    }

    /// What descends directly from a record.
    pub fn children(&self, of: CatalogueHandle) -> Vec<CatalogueHandle> {
        let children = self.children.get(of);
        children.into_iter().flatten().copied().collect()
    }

    /// What is hidden or being deleted.
    pub fn going(&self) -> impl Iterator<Item = (CatalogueHandle, &CatalogueRecord)> {
        let record = |h: &CatalogueHandle| Some((*h, self.records.get(*h)?));
        self.going.iter().filter_map(record)
    }

    /// Whether no deletion is under way.
    pub fn settled(&self) -> bool {
        !self.going().any(|(_, r)| r.kind == RecordKind::Deleting)
    }

    /// What a record directly descends from.
    pub fn parent(&self, of: CatalogueHandle) -> Option<CatalogueHandle> {
        let parent = self.records.get(of)?.parent;
        self.records.get(parent).is_some().then_some(parent)
    }

    /// The oldest record that one descends from: what shares blocks has the same.
    pub fn oldest(&self, of: CatalogueHandle) -> CatalogueHandle {
        let mut at = of;
        while let Some(parent) = self.parent(at) {
            at = parent;
        }
        at
    }

    /// Who may refer to what a live lane or snapshot does, of those that are shown: the generation of the nearest ancestor, which has everything
    /// up to it; and the nearest of the others that descend from there, who have what any behind them has. What is hidden or being
    /// deleted is passed: what is left of it goes to those that descend from it.
    pub fn relatives(&self, of: CatalogueHandle) -> (Generation, Vec<CatalogueHandle>) {
        let shown = |r: &CatalogueRecord| matches!(r.kind, RecordKind::Live | RecordKind::Snapshot);
        let mut top = of;
        let mut own = Generation(0);
        while let Some(parent) = self.records.get(top).map(|r| r.parent) {
            match self.records.get(parent) {
                Some(p) if shown(p) => {
                    own = p.generation;
                    break;
                }
                Some(_) => top = parent,
                None => break,
            }
        }
        let mut others = Vec::new();
        let mut open = self.children(of);
        if top != of {
            open.push(top);
        }
        while let Some(handle) = open.pop() {
            match self.records.get(handle) {
                _ if handle == of => {}
                Some(r) if shown(r) => others.push(handle),
                _ => open.extend(self.children(handle)),
            }
        }
        (own, others)
    }

    /// The generation that a record's parent closed: above it, entries at a leaf are the record's own. A parent that is being deleted gave up
    /// the leaves below its `walked` already.
    pub fn bound(&self, handle: CatalogueHandle, last_leaf: u64) -> Generation {
        let Some(parent) = self.records.get(handle).map(|r| r.parent) else {
            return Generation(0);
        };
        match self.records.get(parent) {
            None => Generation(0),
            Some(p) if p.kind == RecordKind::Deleting && last_leaf < p.walked => {
                let older = self.records.get(p.parent);
                older.map_or(Generation(0), |r| r.generation)
            }
            Some(p) => p.generation,
        }
    }

    /// A volume's snapshots with an id, one for each lane here.
    pub fn snapshots(&self, volume: VolumeId, id: SnapshotId) -> Vec<CatalogueHandle> {
        let by_id = self.by_id.as_ref();
        let by_id = by_id.expect("a checkpoint's copy is not asked for snapshots by their ids");
        let handles = by_id.get(&(volume, id)).into_iter().flatten();
        handles.copied().collect()
    }

    /// The ids of a lane's snapshots.
    pub fn snapshots_of(&self, volume: VolumeId, lane: u8) -> Vec<SnapshotId> {
        let by_id = self.by_id.as_ref();
        let by_id = by_id.expect("a checkpoint's copy is not asked for snapshots by their ids");
        let of_volume =
            by_id.range((volume, SnapshotId([0; 16]))..=(volume, SnapshotId([0xff; 16])));
        let of_lane = |h: &CatalogueHandle| self.records.get(*h).is_some_and(|r| r.lane == lane);
        let found = of_volume.filter(|(_, handles)| handles.iter().any(of_lane));
        found.map(|((_, id), _)| *id).collect()
    }

    /// A snapshot of one lane.
    pub fn snapshot_of(
        &self,
        volume: VolumeId,
        lane: u8,
        id: SnapshotId,
    ) -> Option<CatalogueHandle> {
        let of_it = self.snapshots(volume, id);
        of_it
            .into_iter()
            .find(|h| self.records.get(*h).is_some_and(|r| r.lane == lane))
    }

    /// The leaves that changed, with their records (none: the leaf goes), and forgets that they did.
    pub fn take_dirty(&mut self) -> BTreeMap<u64, CatalogueLeaf> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|n| (n, self.leaf(n))).collect()
    }

    /// The records of a leaf.
    pub fn leaf(&self, leaf: u64) -> CatalogueLeaf {
        let records = self.records.0.get(&leaf).into_iter();
        let records = records.flat_map(|leaf| leaf.iter());
        records.map(|(h, r)| (*h, r.clone())).collect()
    }

    /// Records of leaves that are not those of another catalogue: what changed in one of the two since they were one.
    pub fn changed_since<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (CatalogueHandle, &'a CatalogueRecord)> {
        let same = |n: &u64, leaf: &Rc<BTreeMap<CatalogueHandle, CatalogueRecord>>| {
            let theirs = other.records.0.get(n);
            theirs.is_some_and(|theirs| Rc::ptr_eq(theirs, leaf))
        };
        let changed = self
            .records
            .0
            .iter()
            .filter(move |(n, leaf)| !same(n, leaf));
        changed.flat_map(|(_, leaf)| leaf.iter().map(|(h, r)| (*h, r)))
    }

    /// A checkpoint wrote `record`: root, sequence and walk are taken over, the rest may have changed since its freeze. What was
    /// removed meanwhile stays removed.
    pub fn take_over(&mut self, handle: CatalogueHandle, record: &CatalogueRecord) {
        if let Some(mut present) = self.records.get(handle).cloned() {
            present.keep_of(record);
            // The last but one that descended from it is gone, and it is walked.
            if record.kind == RecordKind::Deleting && present.kind == RecordKind::Hidden {
                present.kind = RecordKind::Deleting;
            }
            self.set(handle, Some(present));
        }
    }
}

/// The catalogue leaf that a handle's record is in.
pub fn leaf_of_handle(handle: CatalogueHandle) -> u64 {
    u64::from(handle.0) / CATALOGUE_LEAF_RECORDS as u64
}

/// Whether deletions walk a record, or will.
fn goes(record: &CatalogueRecord) -> bool {
    matches!(record.kind, RecordKind::Hidden | RecordKind::Deleting)
}

/// What a snapshot is asked for.
fn id_of(record: &CatalogueRecord) -> Option<(VolumeId, SnapshotId)> {
    let is_snapshot = record.kind == RecordKind::Snapshot;
    is_snapshot.then_some((record.volume, record.snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn catalogue(records: u32) -> Catalogue {
        let mut catalogue = Catalogue::new(records + 1, 2);
        for n in 1..=records {
            let record = CatalogueRecord {
                parent: CatalogueHandle(n - 1),
                generation: Generation(1),
                ..CatalogueRecord::EMPTY
            };
            catalogue.load(CatalogueHandle(n), record);
        }
        catalogue
    }

    #[test]
    fn a_copy_shares_all_leaves_but_those_that_change() {
        const RECORDS: u32 = 200_000;
        let mut present = catalogue(RECORDS);
        let mut copy = present.clone();
        let leaves = present.records.0.len();
        assert_eq!(leaves, RECORDS as usize / CATALOGUE_LEAF_RECORDS + 1);
        assert_eq!(copy.changed_since(&present).count(), 0);
        copy.change(CatalogueHandle(500), |r| r.epoch = 7);
        copy.remove(CatalogueHandle(90_000));
        present.change(CatalogueHandle(150_000), |r| r.size_bytes = 8);
        present.change(CatalogueHandle(RECORDS + 5), |_| {
            unreachable!("there is none")
        });
        let shared = |n: &u64| Rc::ptr_eq(&present.records.0[n], &copy.records.0[n]);
        let apart = present.records.0.keys().filter(|n| !shared(n)).count();
        // Record 90,001, whose parent goes, is in the same leaf.
        assert_eq!(apart, 3);
        let changed: Vec<u32> = copy.changed_since(&present).map(|(h, _)| h.0).collect();
        assert_eq!(changed.len(), 3 * CATALOGUE_LEAF_RECORDS - 1);
        assert!(changed.contains(&500) && changed.contains(&90_001));
        assert!(!changed.contains(&90_000));
        assert_eq!(present.get(CatalogueHandle(500)).map(|r| r.epoch), Some(0));
        assert_eq!(present.iter().count(), RECORDS as usize);
        assert_eq!(copy.iter().count(), RECORDS as usize - 1);
        for (handle, record) in copy.changed_since(&present.clone()) {
            present.take_over(handle, record);
        }
        assert_eq!(
            present.get(CatalogueHandle(500)).map(|r| r.size_bytes),
            Some(0)
        );
        assert_eq!(
            present.get(CatalogueHandle(150_000)).map(|r| r.size_bytes),
            Some(8)
        );
    }

    impl Catalogue {
        /// What is known beside the records is what going through all of them says.
        fn check(&self) {
            let handles: Vec<u32> = (0..self.next_handle).collect();
            for of in handles.into_iter().map(CatalogueHandle).skip(1) {
                let found: Vec<_> = self.iter().filter(|(_, r)| r.parent == of).collect();
                let found: Vec<_> = found.into_iter().map(|(h, _)| h).collect();
                assert_eq!(self.children(of), found, "children of {of:?}");
            }
            let going: Vec<_> = self.iter().filter(|(_, r)| goes(r)).collect();
            assert_eq!(self.going().collect::<Vec<_>>(), going);
            let Some(by_id) = &self.by_id else { return };
            let mut ids = ById::new();
            for (handle, record) in self.iter() {
                if let Some(id) = id_of(record) {
                    ids.entry(id).or_default().insert(handle);
                }
            }
            assert_eq!(by_id, &ids);
        }
    }

    const KINDS: [RecordKind; 5] = [
        RecordKind::Live,
        RecordKind::Snapshot,
        RecordKind::Hidden,
        RecordKind::Deleting,
        RecordKind::Arriving,
    ];

    fn record((handle, parent, kind, id): (u32, u32, usize, u8)) -> CatalogueRecord {
        CatalogueRecord {
            kind: KINDS[kind],
            // Of a clone or a restore it is lower, of a snapshot's live lane higher.
            parent: CatalogueHandle(if parent == handle { 0 } else { parent }),
            volume: VolumeId([id % 3; 16]),
            snapshot: SnapshotId([id; 16]),
            ..CatalogueRecord::EMPTY
        }
    }

    proptest! {
        #![proptest_config(crate::cases::cases(48))]

        #[test]
        fn what_is_known_beside_the_records_follows_them(
            steps in prop::collection::vec(((1u32..120, 0u32..120, 0usize..5, 0u8..6), 0u8..5), 1..200),
        ) {
            let mut present = Catalogue::new(120, 2);
            let mut copy = present.for_checkpoint();
            let mut removed = Vec::new();
            for (what, step) in steps {
                let handle = CatalogueHandle(what.0);
                match step {
                    0 => present.put(handle, record(what)),
                    1 => present.change(handle, |r| *r = record(what)),
                    2 => {
                        copy.remove(handle);
                        removed.push(handle);
                    }
                    3 => copy.change(handle, |r| r.kind = RecordKind::Deleting),
                    _ => {
                        for (handle, record) in copy.changed_since(&present.clone()) {
                            present.take_over(handle, record);
                        }
                        for handle in removed.drain(..) {
                            present.remove(handle);
                        }
                        copy = present.for_checkpoint();
                    }
                }
                present.check();
                copy.check();
            }
        }
    }

    #[test]
    fn the_last_record_of_a_leaf_takes_it_along() {
        let mut catalogue = catalogue(1);
        catalogue.remove(CatalogueHandle(1));
        assert!(catalogue.records.0.is_empty() && catalogue.leaf(0).is_empty());
        assert!(
            catalogue.take_dirty().contains_key(&0),
            "the drive must hear of it"
        );
    }
}
