//! A live lane in memory: its root, its delta, and its counters.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::super::VolumeId;
use super::super::map::{Changes, LeafEntry, LeafShape, Root};
use super::super::types::{CatalogueHandle, Generation, LaneBlock, LaneSequence, Stamp};
use super::front::LeafKey;
use super::layer::{Found, Layer};
use super::unsettled::ReplicaLane;
use crate::cipher::Seal;

/// Entries that a new layer has room for at once, if the one before had so many: a burst is not paid for ever.
const ROOM_MAX: usize = 16 << 10;

/// A layer, shared between the lane, records that are on their way to it, and a checkpoint that merges it.
pub type SharedLayer = Rc<RefCell<Layer>>;

impl Changes for SharedLayer {
    fn next_leaf(&self, from: u64) -> Option<u64> {
        self.borrow().next_leaf(from)
    }

    fn entries(&self, leaf: u64, each: &mut dyn FnMut(u8, &LeafEntry)) {
        self.borrow().entries(leaf, each);
    }

    fn next_erased(&self, from: LaneBlock) -> Option<Range<u64>> {
        self.borrow().next_erased(from)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct LaneState {
    /// Its record.
    pub handle: CatalogueHandle,
    /// The volume.
    pub volume: VolumeId,
    /// Its lane.
    pub lane: u8,
    /// The map, as of the last checkpoint.
    pub root: Cell<Root>,
    /// Counts the roots that it had.
    root_version: Cell<u32>,
    /// The delta, newest layer first; never empty.
    layers: RefCell<VecDeque<SharedLayer>>,
    next_sequence: Cell<u64>,
    /// Of its stamps.
    pub epoch: u32,
    next_seq: Cell<u64>,
    /// Deleted, or replaced by a restore: handles of it are of no use any more.
    pub void: Cell<bool>,
    /// Of a replica's lane.
    pub replica: Option<ReplicaLane>,
}

/// What a record gets when it is admitted to a lane.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Its place in the lane's stream.
    pub sequence: LaneSequence,
    /// Of its first block.
    pub stamp: Stamp,
    /// Where it will go; it is counted there as in flight.
    pub layer: SharedLayer,
    /// Of that layer.
    pub generation: Generation,
}

impl LaneState {
    /// A lane whose map shows everything up to `sequence`, and whose new entries get `generation`.
    pub fn new(
        handle: CatalogueHandle,
        (volume, lane): (VolumeId, u8),
        root: Root,
        sequence: LaneSequence,
        generation: Generation,
        epoch: u32,
        replica: Option<ReplicaLane>,
    ) -> Self {
        let first = Rc::new(RefCell::new(Layer::new(root.shape(), generation)));
        Self {
            handle,
            volume,
            lane,
            root: Cell::new(root),
            root_version: Cell::new(0),
            layers: RefCell::new(VecDeque::from([first])),
            next_sequence: Cell::new(sequence.0 + 1),
            epoch,
            next_seq: Cell::new(1),
            void: Cell::new(false),
            replica,
        }
    }

    /// The highest lane sequence that was given.
    pub fn sequence(&self) -> LaneSequence {
        LaneSequence(self.next_sequence.get() - 1)
    }

    /// The highest stamp that was given.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            epoch: self.epoch,
            seq: self.next_seq.get() - 1,
        }
    }

    /// A place in the lane's stream for a record of so many stamps.
    pub fn admit(&self, stamps: u64) -> Admitted {
        let seq = self.next_seq.get();
        self.next_seq.set(seq + stamps);
        self.admit_as(Stamp {
            epoch: self.epoch,
            seq,
        })
    }

    /// A place in the lane's stream for a record that has a stamp.
    pub fn admit_as(&self, stamp: Stamp) -> Admitted {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        let layer = self.layers.borrow()[0].clone();
        let generation = {
            let mut layer = layer.borrow_mut();
            layer.in_flight += 1;
            layer.generation
        };
        Admitted {
            sequence: LaneSequence(sequence),
            stamp,
            layer,
            generation,
        }
    }

    /// A place in the lane's stream for blocks that arrive with stamps of their own (§13), and where they go.
    pub fn arrive(&self) -> (u64, SharedLayer) {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        (sequence, self.newest())
    }

    /// A record was replayed: what comes later is numbered behind it.
    pub fn replayed(&self, sequence: LaneSequence) {
        let next = self.next_sequence.get().max(sequence.0 + 1);
        self.next_sequence.set(next);
    }

    /// Ends the present layer: later records go to a new one, of `generation`.
    pub fn cut(&self, generation: Generation) {
        let shape = self.shape();
        let mut layers = self.layers.borrow_mut();
        let like = layers[0].borrow().len().min(ROOM_MAX);
        layers.push_front(Rc::new(RefCell::new(Layer::with_room(
            shape, generation, like,
        ))));
    }

    /// The present layer.
    pub fn newest(&self) -> SharedLayer {
        self.layers.borrow()[0].clone()
    }

    /// The newest layer of a generation (for replay).
    pub fn of_generation(&self, generation: Generation) -> Option<SharedLayer> {
        let layers = self.layers.borrow();
        let found = layers.iter().find(|l| l.borrow().generation == generation);
        found.cloned()
    }

    /// All layers but the present one, oldest first.
    pub fn frozen(&self) -> Vec<SharedLayer> {
        let layers = self.layers.borrow();
        layers.iter().skip(1).rev().cloned().collect()
    }

    /// How many layers there are.
    pub fn depth(&self) -> usize {
        self.layers.borrow().len()
    }

    /// Entries of all layers.
    pub fn entries(&self) -> usize {
        self.layers.borrow().iter().map(|l| l.borrow().len()).sum()
    }

    /// The oldest `count` layers are in the map that `root` is of.
    pub fn merged(&self, count: usize, root: Root) {
        let mut layers = self.layers.borrow_mut();
        let left = layers.len() - count;
        assert!(left > 0, "the present layer stays");
        layers.truncate(left);
        self.root.set(root);
        self.root_version
            .set(self.root_version.get().wrapping_add(1));
    }

    /// A leaf of the present map.
    #[inline]
    pub fn leaf_key(&self, leaf: u64) -> LeafKey {
        LeafKey {
            lane: self.handle,
            root: self.root_version.get(),
            leaf,
        }
    }

    /// What the delta says of a block, the newest layer first.
    #[inline]
    pub fn delta(&self, block: LaneBlock) -> Option<Found> {
        let layers = self.layers.borrow();
        layers.iter().find_map(|layer| layer.borrow().get(block))
    }

    /// With what the delta's entry of a block was sealed.
    pub fn delta_seal(&self, block: LaneBlock) -> Seal {
        let layers = self.layers.borrow();
        let found = layers.iter().find(|l| l.borrow().get(block).is_some());
        found.map_or(Seal::NONE, |layer| layer.borrow().seal(block))
    }

    /// How its leaves are.
    #[inline]
    pub fn shape(&self) -> LeafShape {
        self.root.get().shape()
    }

    /// Whether the present layer has an entry of a block.
    #[inline]
    pub fn delta_knows(&self, block: LaneBlock) -> bool {
        self.layers.borrow()[0].borrow().has_entry(block)
    }

    /// Every layer, newest first.
    pub fn each_layer(&self, mut each: impl FnMut(&Layer)) {
        for layer in self.layers.borrow().iter() {
            each(&layer.borrow());
        }
    }
}
