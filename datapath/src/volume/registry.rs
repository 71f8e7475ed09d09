//! The registry of open volumes, on reactor 0: it numbers volumes and drives, tells every reactor of them, and decides who owns which lane.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use keelblock_api::stats::{StatsPage, VolumeSlot};
use tokio::sync::Mutex;

use super::balance::{BALANCE_INTERVAL, decide};
use super::hub::{Ask, Control, ControlResult, LaneSet};
use super::lane::{LANES_MAX, Lane};
use super::{Hub, Lanes, MapExtent, Volume, VolumeSpec};
use crate::device::{Device, DeviceSource, Latch};
use crate::reactor::{Nanos, ReactorId};
use crate::store::VolumeId;

/// Which reactor owns which lane of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneTable([ReactorId; LANES_MAX]);

impl LaneTable {
    /// All lanes with one reactor.
    pub fn all(owner: ReactorId) -> Self {
        Self([owner; LANES_MAX])
    }

    /// The owner of a lane.
    pub fn owner(&self, lane: Lane) -> ReactorId {
        self.0[lane.index()]
    }
}

/// A drive could not be opened on some reactor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reactor {reactor}: {why}")]
pub struct OpenError {
    /// Which reactor.
    pub reactor: ReactorId,
    /// What it said.
    pub why: String,
}

struct Entry {
    spec: VolumeSpec,
    owners: LaneTable,
    placed: bool,
    /// When its lanes were last looked at.
    balanced: Nanos,
    slot: Option<VolumeSlot>,
}

struct State {
    volumes: BTreeMap<VolumeId, Entry>,
    free_numbers: Vec<u32>,
    next_number: u32,
    drives: u32,
}

struct Inner {
    hub: Hub,
    stats: StatsPage,
    state: RefCell<State>,
    /// One change at a time: each has several steps on several reactors.
    changing: Mutex<()>,
}

/// The registry. Lives on reactor 0; cheap to clone.
#[derive(Clone)]
pub struct Registry(Rc<Inner>);

impl Registry {
    /// Makes the registry over reactor 0's hub, and starts placing volumes where their hosts connect.
    pub fn start(hub: &Hub, stats: StatsPage) -> Self {
        assert_eq!(
            hub.0.here(),
            ReactorId(0),
            "the registry lives on reactor 0"
        );
        let state = State {
            volumes: BTreeMap::new(),
            free_numbers: Vec::new(),
            next_number: 0,
            drives: 0,
        };
        let this = Self(Rc::new(Inner {
            hub: hub.clone(),
            stats,
            state: RefCell::new(state),
            changing: Mutex::new(()),
        }));
        let placing = this.clone();
        hub.0.handle().spawn("place volumes", async move {
            loop {
                match placing.0.hub.0.next_asked() {
                    Some(Ask::Place { volume, reactor }) => placing.place(volume, reactor).await,
                    Some(Ask::Balance { volume }) => placing.balance(volume).await,
                    None => placing.0.hub.0.asked_something.notified().await,
                }
            }
        });
        this
    }

    /// Opens a drive on every reactor; the answer is its number.
    ///
    /// # Errors
    /// [`OpenError`]: then it has no number.
    pub async fn open_drive(&self, source: DeviceSource, latch: Latch) -> Result<u32, OpenError> {
        let _one = self.0.changing.lock().await;
        let number = self.0.state.borrow().drives;
        let order = Control::Drive {
            number,
            source,
            latch,
        };
        if let Err(e) = self.tell_all(order).await {
            self.tell_all_surely(Control::ForgetDrive { number }).await;
            return Err(e);
        }
        self.0.state.borrow_mut().drives = number + 1;
        Ok(number)
    }

    /// Reactor 0's handle of a drive.
    pub fn drive(&self, number: u32) -> Option<Device> {
        self.0.hub.0.drive(number)
    }

    /// Reactor 0's handle of an open volume.
    pub fn volume(&self, id: VolumeId) -> Option<Volume> {
        self.0.hub.volume(id)
    }

    /// A volume's slot in the stats page.
    pub fn stats_slot(&self, id: VolumeId) -> Option<u32> {
        let state = self.0.state.borrow();
        let slot = &state.volumes.get(&id)?.slot;
        slot.as_ref().map(VolumeSlot::index)
    }

    /// Opens a volume on every reactor. One that is open stays as it is.
    pub async fn open(&self, id: VolumeId, size_bytes: u64, extents: Arc<[MapExtent]>) {
        let _one = self.0.changing.lock().await;
        if self.0.state.borrow().volumes.contains_key(&id) {
            return;
        }
        let spec = VolumeSpec {
            id,
            number: self.new_number(),
            size_bytes,
            lanes: Lanes::for_size(size_bytes),
            extents,
            media_errors: Arc::default(),
        };
        let entry = Entry {
            owners: LaneTable::all(ReactorId(0)),
            placed: false,
            balanced: Nanos(0),
            slot: self.0.stats.volume(id.0),
            spec,
        };
        let order = Control::Open {
            spec: entry.spec.clone(),
            owners: entry.owners,
            slot: entry.slot.clone(),
        };
        self.0.state.borrow_mut().volumes.insert(id, entry);
        self.tell_all_surely(order).await;
    }

    /// Gives an open volume a larger map; when this is done, every reactor has it.
    pub async fn resize(&self, id: VolumeId, size_bytes: u64, extents: Arc<[MapExtent]>) {
        let _one = self.0.changing.lock().await;
        let spec = {
            let mut state = self.0.state.borrow_mut();
            let Some(entry) = state.volumes.get_mut(&id) else {
                return;
            };
            entry.spec.size_bytes = size_bytes;
            entry.spec.extents = extents;
            entry.spec.clone()
        };
        self.tell_all_surely(Control::Resize { spec }).await;
    }

    /// Closes a volume: when this is done, no reactor touches its space any more.
    pub async fn close(&self, id: VolumeId) {
        let _one = self.0.changing.lock().await;
        let Some(entry) = self.0.state.borrow_mut().volumes.remove(&id) else {
            return;
        };
        let number = entry.spec.number;
        self.tell_all_surely(Control::Close { number }).await;
        self.0.state.borrow_mut().free_numbers.push(number);
    }

    /// The lane table of an open volume.
    pub fn lanes(&self, id: VolumeId) -> Option<LaneTable> {
        Some(self.0.state.borrow().volumes.get(&id)?.owners)
    }

    /// Moves lanes of an open volume to another reactor: the old owner finishes what is under way, the new one takes over, then all
    /// others are told. I/O that arrives meanwhile waits, and follows.
    pub async fn move_lanes(&self, id: VolumeId, lanes: &[Lane], to: ReactorId) {
        let _one = self.0.changing.lock().await;
        let found = {
            let state = self.0.state.borrow();
            state.volumes.get(&id).map(|e| (e.spec.number, e.owners))
        };
        let Some((number, owners)) = found else {
            return;
        };
        let mut by_owner: BTreeMap<ReactorId, LaneSet> = BTreeMap::new();
        for &lane in lanes {
            let owner = owners.owner(lane);
            if owner != to {
                by_owner.entry(owner).or_insert(LaneSet(0)).0 |= 1 << lane.index();
            }
        }
        for (from, lanes) in by_owner {
            self.hand_over(number, lanes, from, to).await;
            if let Some(entry) = self.0.state.borrow_mut().volumes.get_mut(&id) {
                for lane in lanes.of(entry.spec.lanes) {
                    entry.owners.0[lane.index()] = to;
                }
            }
        }
    }

    async fn hand_over(&self, number: u32, lanes: LaneSet, from: ReactorId, to: ReactorId) {
        self.tell_surely(from, Control::Quiesce { number, lanes })
            .await;
        let own = Control::Own {
            number,
            lanes,
            owner: to,
        };
        // The new owner first, then the old one, who lets those go on that waited there: at no time do two reactors send to each other.
        self.tell_surely(to, own.clone()).await;
        self.tell_surely(from, own.clone()).await;
        self.tell_all_surely(own).await;
    }

    async fn place(&self, number: u32, reactor: ReactorId) {
        let found = {
            let mut state = self.0.state.borrow_mut();
            let mut entries = state.volumes.values_mut();
            let entry = entries.find(|e| e.spec.number == number && !e.placed);
            entry.map(|e| {
                e.placed = true;
                (e.spec.id, e.spec.lanes)
            })
        };
        if let Some((id, lanes)) = found {
            let all: Vec<Lane> = lanes.all().collect();
            self.move_lanes(id, &all, reactor).await;
        }
    }

    /// Moves lanes to where the volume is used, if it was not looked at just now.
    async fn balance(&self, number: u32) {
        let now = self.0.hub.0.handle().now();
        let due = {
            let mut state = self.0.state.borrow_mut();
            let mut entries = state.volumes.values_mut();
            let entry = entries.find(|e| e.spec.number == number);
            let entry = entry.filter(|e| now.since(e.balanced) >= BALANCE_INTERVAL);
            entry.map(|e| {
                e.balanced = now;
                e.spec.id
            })
        };
        let Some(id) = due else {
            return;
        };
        let operations = self.operations(number).await;
        let owners: Vec<(Lane, ReactorId)> = {
            let state = self.0.state.borrow();
            let Some(entry) = state.volumes.get(&id) else {
                return;
            };
            let lanes = entry.spec.lanes.all();
            lanes.map(|lane| (lane, entry.owners.owner(lane))).collect()
        };
        let mut by_target: BTreeMap<ReactorId, Vec<Lane>> = BTreeMap::new();
        for (lane, to) in decide(&owners, &operations) {
            by_target.entry(to).or_default().push(lane);
        }
        for (to, lanes) in by_target {
            tracing::debug!(volume = %id, lanes = lanes.len(), %to, "lanes move");
            self.move_lanes(id, &lanes, to).await;
        }
    }

    /// What each reactor's hosts did with a volume since this was last asked.
    async fn operations(&self, number: u32) -> Vec<u64> {
        let _one = self.0.changing.lock().await;
        let reactors = self.0.hub.0.handle().reactors();
        let mut operations = Vec::with_capacity(usize::from(reactors));
        for reactor in (0..reactors).map(ReactorId) {
            let answer = self.tell(reactor, Control::Operations { number }).await;
            operations.push(answer.unwrap_or(0));
        }
        operations
    }

    fn new_number(&self) -> u32 {
        let mut state = self.0.state.borrow_mut();
        state.free_numbers.pop().unwrap_or_else(|| {
            state.next_number += 1;
            state.next_number - 1
        })
    }

    async fn tell(&self, to: ReactorId, order: Control) -> ControlResult {
        let hub = &self.0.hub.0;
        let ticket = hub.order(to, order).await;
        self.answer(ticket).await
    }

    async fn answer(&self, ticket: u64) -> ControlResult {
        let hub = &self.0.hub.0;
        loop {
            match hub.take_answer(ticket) {
                Some(result) => return result,
                None => hub.answered.notified().await,
            }
        }
    }

    /// For orders that cannot fail.
    async fn tell_surely(&self, to: ReactorId, order: Control) {
        let done = self.tell(to, order).await;
        assert!(done.is_ok(), "this order cannot fail: {done:?}");
    }

    async fn tell_all(&self, order: Control) -> Result<(), OpenError> {
        let reactors = self.0.hub.0.handle().reactors();
        let mut tickets = Vec::with_capacity(usize::from(reactors));
        for reactor in (0..reactors).map(ReactorId) {
            tickets.push((reactor, self.0.hub.0.order(reactor, order.clone()).await));
        }
        let mut first_error = Ok(());
        for (reactor, ticket) in tickets {
            if let Err(why) = self.answer(ticket).await
                && first_error.is_ok()
            {
                first_error = Err(OpenError { reactor, why });
            }
        }
        first_error
    }

    async fn tell_all_surely(&self, order: Control) {
        let done = self.tell_all(order).await;
        assert!(done.is_ok(), "this order cannot fail: {done:?}");
    }
}
