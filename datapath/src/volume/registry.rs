//! The registry of open volumes and drives, on reactor 0: it numbers them and tells every reactor of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keelblock_api::stats::{StatsPage, VolumeSlot};
use tokio::sync::Mutex;

use super::drive::{DriveError, DriveOpening};
use super::{Hub, Lanes, Volume, VolumeSpec};
use crate::reactor::ReactorId;
use crate::store::VolumeId;
use crate::store::pool::DriveFacts;

/// What it takes to open a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOpening {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The number of each lane's drive; as many as it has lanes.
    pub drives: Vec<u32>,
    /// Whether any of these drives has a volatile cache.
    pub volatile_cache: bool,
    /// It is replicated: the drives say only which reactor coordinates it, the home of drive 0.
    pub replicated: bool,
}

struct Entry {
    number: u32,
    drives: Arc<[u32]>,
    slot: Option<VolumeSlot>,
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<VolumeId, Entry>,
    free_numbers: Vec<u32>,
    next_number: u32,
}

struct Inner {
    hub: Hub,
    stats: StatsPage,
    state: RefCell<State>,
    next_drive: Cell<u32>,
    next_barrier: Cell<u64>,
    /// One change of volumes at a time: each has a step on every reactor.
    changing: Mutex<()>,
}

/// The registry. Lives on reactor 0; cheap to clone.
#[derive(Clone)]
pub struct Registry(Rc<Inner>);

impl Registry {
    /// Makes the registry over reactor 0's hub.
    pub fn start(hub: &Hub, stats: StatsPage) -> Self {
        assert_eq!(
            hub.0.here(),
            ReactorId(0),
            "the registry lives on reactor 0"
        );
        Self(Rc::new(Inner {
            hub: hub.clone(),
            stats,
            state: RefCell::default(),
            next_drive: Cell::new(0),
            next_barrier: Cell::new(0),
            changing: Mutex::new(()),
        }))
    }

    /// Opens a drive on the reactor that will be its home; the answer is its number, which no other drive gets.
    ///
    /// # Errors
    /// [`DriveError`]: then nothing of it is open.
    pub async fn open_drive(&self, opening: DriveOpening) -> Result<(u32, DriveFacts), DriveError> {
        let number = self.0.next_drive.get();
        self.0.next_drive.set(number + 1);
        let opened = self.on_drive(number, move |hub| async move {
            hub.open_drive(number, opening).await
        });
        opened.await.map(|facts| (number, facts))
    }

    /// Runs `work` on the home of a drive.
    pub async fn on_drive<T, F, Fut>(&self, drive: u32, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(Hub) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let hub = &self.0.hub;
        hub.run_on(hub.home_of(drive), work).await
    }

    /// Runs `work` for each of some drives on its home, beside each other; answers in the order of the drives.
    pub async fn on_drives<T, F, Fut>(&self, drives: &[u32], work: F) -> Vec<T>
    where
        T: Send + 'static,
        F: FnOnce(Hub, u32) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let hub = &self.0.hub;
        let mut sent = Vec::with_capacity(drives.len());
        for &drive in drives {
            let work = work.clone();
            let job = hub.send_job(hub.home_of(drive), move |hub| work(hub, drive));
            sent.push(job.await);
        }
        let mut answers = Vec::with_capacity(sent.len());
        for job in sent {
            answers.push(job.answer().await);
        }
        answers
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
    ///
    /// # Panics
    /// If no volume has as many lanes as `opening` has drives.
    pub async fn open(&self, opening: VolumeOpening) {
        let _one = self.0.changing.lock().await;
        let id = opening.id;
        if self.0.state.borrow().volumes.contains_key(&id) {
            return;
        }
        let lanes = u8::try_from(opening.drives.len())
            .ok()
            .and_then(Lanes::of_count);
        let spec = VolumeSpec {
            id,
            number: self.new_number(),
            size_bytes: opening.size_bytes,
            lanes: lanes.expect("as many drives as a volume has lanes"),
            drives: opening.drives.into(),
            volatile_cache: opening.volatile_cache,
            replicated: opening.replicated,
            media_errors: Arc::default(),
        };
        let slot = self.0.stats.volume(id.0);
        let entry = Entry {
            number: spec.number,
            drives: Arc::clone(&spec.drives),
            slot: slot.clone(),
        };
        self.0.state.borrow_mut().volumes.insert(id, entry);
        let open = move |hub: Hub| async move { hub.open(&spec, slot) };
        self.0.hub.run_on_all(open).await;
    }

    /// Gives an open volume another size; when this is done, every reactor has it.
    pub async fn resize(&self, id: VolumeId, size_bytes: u64) {
        let _one = self.0.changing.lock().await;
        let resize = move |hub: Hub| async move {
            if let Some(volume) = hub.volume(id) {
                volume.0.size_bytes.set(size_bytes);
            }
        };
        self.0.hub.run_on_all(resize).await;
    }

    /// Closes a volume: when this is done, no reactor touches its space any more.
    pub async fn close(&self, id: VolumeId) {
        let _one = self.0.changing.lock().await;
        let Some(entry) = self.0.state.borrow_mut().volumes.remove(&id) else {
            return;
        };
        let number = entry.number;
        let close = move |hub: Hub| async move { hub.close(number).await };
        self.0.hub.run_on_all(close).await;
        self.0.state.borrow_mut().free_numbers.push(number);
    }

    /// The drives of an open volume, by lane.
    pub fn drives(&self, id: VolumeId) -> Option<Arc<[u32]>> {
        let state = self.0.state.borrow();
        Some(Arc::clone(&state.volumes.get(&id)?.drives))
    }

    /// Reactor 0's hub.
    pub fn hub(&self) -> &Hub {
        &self.0.hub
    }

    /// Lanes of open volumes are on another drive.
    pub(super) fn note_moved(&self, lanes: &[(VolumeId, u8)], drive: u32) {
        let mut state = self.0.state.borrow_mut();
        for &(id, lane) in lanes {
            if let Some(entry) = state.volumes.get_mut(&id) {
                let places = entry.drives.iter().zip(0u8..);
                let moved = places.map(|(&old, n)| if n == lane { drive } else { old });
                entry.drives = moved.collect();
            }
        }
    }

    /// Holds up all operations on these lanes (`None`: all of the volume), on every reactor, while `work` runs: nothing is under way when it
    /// begins. `None`: what was under way did not end `within` that time, and nothing was done.
    pub async fn at_barrier<T>(
        &self,
        lanes: Vec<(VolumeId, Option<u8>)>,
        within: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let barrier = self.0.next_barrier.get();
        self.0.next_barrier.set(barrier + 1);
        let hub = &self.0.hub;
        let hold = move |hub: Hub| async move { hub.hold(barrier, &lanes, within).await };
        let held = hub.run_on_all(hold).await;
        let done = match held.iter().all(|&held| held) {
            true => Some(work.await),
            false => None,
        };
        hub.run_on_all(move |hub: Hub| async move { hub.release(barrier) })
            .await;
        done
    }

    fn new_number(&self) -> u32 {
        let mut state = self.0.state.borrow_mut();
        state.free_numbers.pop().unwrap_or_else(|| {
            state.next_number += 1;
            state.next_number - 1
        })
    }
}
