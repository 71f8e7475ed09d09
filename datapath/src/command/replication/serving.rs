//! Paths to replicated volumes, and the coordinators that serve them here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use keelblock_api::datapath as proto;

use super::super::{CommandError, Commander};
use super::Replication;
use super::forwarding::Forward;
use super::growing::lane_blocks;
use super::words::{change_to, node_of, record_to, state_to};
use crate::cipher::{KeyId, Keys, Secret};
use crate::replication::seam::Id;
use crate::replication::wire::hello::PeerId;
use crate::store::VolumeId;
use crate::store::pool::{PoolError, check_size};
use crate::volume::coordinator::links::{Links, Route};
use crate::volume::coordinator::message::Event;
use crate::volume::coordinator::set::{Outcome, VolumeRecord};
use crate::volume::coordinator::state::{Config, Named, Standing};
use crate::volume::{Coordinating, Coordinator, LANES_MAX, Lanes, VolumeOpening};

/// How long a coordinator may take to end: what is stamped settles within a part of it.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked how far a resync is.
const PROGRESS: Duration = Duration::from_secs(1);
/// The lease where none is said.
const LEASE_DEFAULT_MS: u32 = 3_000;
/// The longest that a replica may give.
const LEASE_MAX_MS: u32 = 60_000;

/// A replicated volume, as a path to it is told.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Its id.
    pub volume: VolumeId,
    /// Its size.
    pub size_bytes: u64,
    /// Its lanes.
    pub lanes: u32,
    /// What hosts are told.
    pub volatile_cache: bool,
}

/// An epoch to be served.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// The record that K1 made.
    pub record: VolumeRecord,
    /// Where its replicas are, in the record's order.
    pub nodes: Vec<(Id, PeerId)>,
    /// T; 0: the default.
    pub lease_ms: u32,
    /// 0: the default.
    pub command_limit_ms: u32,
    /// Of an encrypted volume.
    pub keys: Option<ServedKeys>,
    /// That the KVDB names.
    pub snapshots: Vec<Named>,
    /// So far replicas are compared, if that is more than the size.
    pub compared_bytes: u64,
    /// The KVDB was restored, and the set of the record means nothing.
    pub unverified: bool,
}

/// The data keys of a volume.
#[derive(Clone, Debug)]
pub struct ServedKeys {
    /// The index of the one that blocks are encrypted with.
    pub current: u32,
    /// Each with its index and id.
    pub all: Vec<(u32, KeyId, Secret)>,
}

/// A coordinator of this process.
pub(super) struct Serving {
    volume: VolumeId,
    pub(super) by: Coordinating,
    /// Where its replicas are, those that were added since included.
    nodes: RefCell<Vec<(Id, PeerId)>>,
    /// The replica that it was told to add last.
    added: Rc<RefCell<Option<proto::NewReplica>>>,
    attempt: Id,
    /// Told it has ended, and its volume was let go.
    over: Cell<bool>,
}

impl Serving {
    pub(super) fn ended(&self) -> bool {
        matches!(self.by.driver.standing(), Standing::Ended(_))
    }

    /// The replica that is to be added, and how it is reached.
    pub(super) fn offer(&self, new: proto::NewReplica, replica: Id, node: PeerId, route: Route) {
        let mut nodes = self.nodes.borrow_mut();
        nodes.retain(|(id, _)| *id != replica);
        nodes.push((replica, node));
        self.added.replace(Some(new));
        self.by.driver.peers().offer(route);
    }
}

impl Commander {
    /// Opens a replicated volume for exports, while nobody else changes that.
    pub async fn open_path_alone(
        &self,
        path: Path,
        forward: Option<Forward>,
    ) -> Result<(), CommandError> {
        let _one = self.serving.lock().await;
        self.open_path(path).await?;
        self.lead(path.volume, forward)
    }

    /// With `serving` held.
    async fn open_path(&self, path: Path) -> Result<(), CommandError> {
        self.replication()?;
        check_size(path.size_bytes)?;
        let lanes = u8::try_from(path.lanes).ok().and_then(Lanes::of_count);
        let lanes = lanes.ok_or_else(|| {
            let why = format!("{}: a volume has 1 or {LANES_MAX}", path.lanes);
            CommandError::field("lanes", why)
        })?;
        let Some(open) = self.registry.volume(path.volume) else {
            let opening = VolumeOpening {
                id: path.volume,
                size_bytes: path.size_bytes,
                drives: vec![0; lanes.count()],
                volatile_cache: path.volatile_cache,
                replicated: true,
            };
            self.registry.open(opening).await;
            return Ok(());
        };
        if !open.replicated() {
            return Err(CommandError::NotReplicated(path.volume));
        }
        if open.lanes() != lanes.count() {
            let why = format!("{}: this volume has {}", path.lanes, open.lanes());
            return Err(CommandError::field("lanes", why));
        }
        let size_bytes = open.size_bytes();
        if path.size_bytes < size_bytes {
            return Err(PoolError::Shrink {
                volume: path.volume,
                size_bytes,
            }
            .into());
        }
        if path.size_bytes > size_bytes {
            let serving = {
                let all = self.replication()?.coordinators.borrow();
                all.get(&path.volume).cloned()
            };
            if serving.is_some_and(|s| !s.ended()) {
                // A coordinator is told first, as it is to compare what is written there.
                return Err(CommandError::Served(path.volume));
            }
            self.registry.resize(path.volume, path.size_bytes).await;
            self.export_again(path.volume).await?;
        }
        Ok(())
    }

    /// Closes it; unknown succeeds.
    pub async fn close_path(&self, volume: VolumeId) -> Result<(), CommandError> {
        let replication = self.replication()?;
        let _one = self.serving.lock().await;
        let Some(open) = self.registry.volume(volume) else {
            return Ok(());
        };
        if !open.replicated() {
            return Err(CommandError::NotReplicated(volume));
        }
        let serving = replication.coordinators.borrow().get(&volume).cloned();
        if serving.is_some_and(|s| !s.ended()) {
            return Err(CommandError::Served(volume));
        }
        self.close_volume(volume).await?;
        replication.coordinators.borrow_mut().remove(&volume);
        Ok(())
    }

    /// Begins to coordinate a volume.
    pub async fn serve(
        self: Rc<Self>,
        path: Path,
        epoch: Epoch,
    ) -> Result<proto::Coordinator, CommandError> {
        let replication = self.replication()?;
        let (Some(here), true) = (replication.node.id(), replication.at.borrow().is_some()) else {
            return Err(CommandError::NoReplication);
        };
        if epoch.record.incarnation != replication.with.incarnation {
            let why = "it is another process's: its epoch is not for this one";
            return Err(CommandError::field("record.incarnation", why));
        }
        if epoch.lease_ms > LEASE_MAX_MS {
            let why = format!("{} is more than {LEASE_MAX_MS}", epoch.lease_ms);
            return Err(CommandError::field("lease_ms", why));
        }
        let _one = self.serving.lock().await;
        let before = replication.coordinators.borrow().get(&path.volume).cloned();
        if let Some(before) = before {
            let (of, asked) = (before.by.driver.epoch(), epoch.record.epoch);
            if of > asked && !before.ended() {
                let volume = path.volume;
                return Err(CommandError::HigherEpoch { volume, epoch: of });
            }
            if of == asked && before.attempt == epoch.record.attempt {
                return Ok(self.coordinator_to(&before));
            }
            // A process ends its older epoch before it asks for promises (§9).
            self.end(&before).await;
        }
        // Behind that: while one serves, its size is not changed by this.
        self.open_path(path).await?;
        let serving = self.start_serving(replication, path, epoch, here)?;
        let status = self.coordinator_to(&serving);
        self.events.coordinator(status.clone());
        Ok(status)
    }

    fn start_serving(
        self: &Rc<Self>,
        replication: &Replication,
        path: Path,
        epoch: Epoch,
        here: PeerId,
    ) -> Result<Rc<Serving>, CommandError> {
        let Epoch {
            record,
            nodes,
            keys,
            snapshots,
            ..
        } = epoch;
        let target: Rc<RefCell<Option<Coordinator>>> = Rc::default();
        let told = Rc::downgrade(&target);
        let tell: Rc<dyn Fn(Event)> = Rc::new(move |event| {
            let driver = told.upgrade().and_then(|t| t.borrow().clone());
            if let Some(driver) = driver {
                driver.event(event);
            }
        });
        let mut routes = Vec::with_capacity(nodes.len());
        for (replica, node) in &nodes {
            let trunk = replication.node.trunk(*node);
            routes.push(Route {
                replica: *replica,
                trunk: trunk.ok_or(CommandError::NoReplication)?,
                near: *node == here,
            });
        }
        let lanes = path.lanes as u8;
        let ends = (path.volume.0, record.incarnation, record.epoch, lanes);
        let links = Links::new(&self.handle, ends, routes, tell);
        let mut config = Config::new(lanes);
        config.volatile = path.volatile_cache;
        config.snapshots = snapshots;
        config.unverified = epoch.unverified;
        let compared = path.size_bytes.max(epoch.compared_bytes);
        config.lane_blocks = lane_blocks(compared, path.lanes.into());
        let lease = match epoch.lease_ms {
            0 => LEASE_DEFAULT_MS,
            ms => ms,
        };
        config.lease = Duration::from_millis(lease.into());
        if epoch.command_limit_ms > 0 {
            config.command_limit = Duration::from_millis(epoch.command_limit_ms.into());
        }
        if let Some(ServedKeys { current, all }) = keys {
            let keys = Keys::new(current, all);
            let keys = keys.map_err(|e| CommandError::field("keys", e.to_string()))?;
            config.cipher = Some(Rc::new(keys));
        }
        let buffers = replication.buffers()?;
        let (events, volume) = (self.events.clone(), path.volume);
        let added: Rc<RefCell<Option<proto::NewReplica>>> = Rc::default();
        let new = added.clone();
        let ask: Box<dyn Fn(_)> = Box::new(move |request| {
            let change = change_to(volume, &request, new.borrow().as_ref());
            events.set_change(change);
        });
        let attempt = record.attempt;
        let driver = Coordinator::start(&self.handle, config, record, links, ask);
        target.replace(Some(driver.clone()));
        let by = Coordinating { driver, buffers };
        if let Some(open) = self.registry.volume(volume) {
            open.serve_by(by.clone());
        }
        by.driver.peers().connect();
        self.take_forwarded(replication, volume, &by.driver);
        let serving = Rc::new(Serving {
            volume,
            by,
            nodes: RefCell::new(nodes),
            added,
            attempt,
            over: Cell::new(false),
        });
        let mut all = replication.coordinators.borrow_mut();
        all.insert(volume, serving.clone());
        drop(all);
        let (this, watched) = (Rc::clone(self), serving.clone());
        let watch = async move { this.watch(&watched, target).await };
        self.handle.spawn("coordinator: watched", watch);
        Ok(serving)
    }

    /// Tells of each change of a coordinator, and how far a resync is, until it has ended. `_target`: what its replicas say comes to it as long as this runs.
    async fn watch(&self, serving: &Rc<Serving>, _target: Rc<RefCell<Option<Coordinator>>>) {
        let mut told = None;
        loop {
            let now = (
                state_to(serving.by.driver.standing()),
                serving.by.driver.record().version,
                serving.by.driver.resync(),
            );
            if told.as_ref() != Some(&now) {
                self.events.coordinator(self.coordinator_to(serving));
                told = Some(now);
            }
            if serving.ended() {
                break;
            }
            let changes = serving.by.driver.stands();
            match told.as_ref().is_some_and(|t| t.2.is_some()) {
                // Whatever else happens, it gets further.
                true => drop(self.handle.timeout(PROGRESS, changes).await),
                false => changes.await,
            }
        }
        self.let_go(serving);
    }

    /// A coordinator has ended: nothing of it is used any more.
    fn let_go(&self, serving: &Serving) {
        if serving.over.replace(true) {
            return;
        }
        serving.by.driver.peers().stop();
        self.take_no_more(serving.volume, serving.by.driver.epoch());
        if let Some(open) = self.registry.volume(serving.volume) {
            open.served_no_more(serving.by.driver.epoch());
        }
    }

    /// Has a coordinator end, and waits for that.
    async fn end(&self, serving: &Serving) {
        let ended = self.handle.timeout(END_LIMIT, serving.by.driver.detach());
        if ended.await.is_err() {
            tracing::error!(volume = %serving.volume, "a coordinator did not end in time");
        }
        self.let_go(serving);
    }

    /// Coordinates a volume no more.
    pub async fn stop_serving(&self, volume: VolumeId) -> Result<(), CommandError> {
        let replication = self.replication()?;
        let _one = self.serving.lock().await;
        let serving = replication.coordinators.borrow().get(&volume).cloned();
        if let Some(serving) = serving {
            self.end(&serving).await;
            replication.coordinators.borrow_mut().remove(&volume);
        }
        Ok(())
    }

    /// All coordinators of this process, those that ended included until something else becomes of their volumes.
    pub fn list_coordinators(&self) -> Result<Vec<proto::Coordinator>, CommandError> {
        let all = self.replication()?.coordinators.borrow();
        Ok(all.values().map(|s| self.coordinator_to(s)).collect())
    }

    /// For a new watcher.
    pub fn tell_coordinators(&self) {
        for status in self.list_coordinators().into_iter().flatten() {
            self.events.coordinator(status);
        }
    }

    /// What came of a change. One that nobody waits for any more is of an earlier version.
    pub fn answer_set_change(
        &self,
        (volume, epoch, version, outcome): (VolumeId, u32, u64, Outcome),
    ) -> Result<(), CommandError> {
        let serving = self
            .replication()?
            .coordinators
            .borrow()
            .get(&volume)
            .cloned();
        if let Some(serving) = serving {
            let driver = &serving.by.driver;
            if driver.epoch() == epoch && driver.record().version == version {
                driver.event(Event::Outcome(outcome));
            }
        }
        Ok(())
    }

    pub(super) fn coordinator_to(&self, serving: &Serving) -> proto::Coordinator {
        let driver = &serving.by.driver;
        let (state, end, alarm) = state_to(driver.standing());
        let resync = driver.resync();
        let peers = driver.replicas().into_iter().map(|r| {
            let resync = resync.as_ref().filter(|report| report.replica == r.id);
            proto::Peer {
                replica_id: uuid::Uuid::from_bytes(r.id).to_string(),
                node_id: node_of(r.id, &serving.nodes.borrow()),
                connected: r.follows,
                behind_records: r.behind.map_or(0, |b| b.records as u64),
                resync_done_bytes: resync.map_or(0, |r| r.done_bytes),
                resync_total_bytes: resync.map_or(0, |r| r.total_bytes),
                resync_copied_bytes: resync.map_or(0, |r| r.copied_bytes),
            }
        });
        let open = self.registry.volume(serving.volume);
        proto::Coordinator {
            volume_id: serving.volume.to_string(),
            epoch: driver.epoch(),
            state: state.into(),
            end: end.into(),
            alarm,
            record: Some(record_to(&driver.record(), &serving.nodes.borrow())),
            peers: peers.collect(),
            size_bytes: open.map_or(0, |v| v.size_bytes()),
            unauthentic_blocks: driver.not_opened(),
        }
    }
}
