//! The side of the command service that lives on reactor 0: pools, volumes and exports, and the order in which they change.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use keelblock_api::datapath as proto;
use tokio::sync::Mutex;

use super::convert;
use super::error::CommandError;
use super::events::EventSink;
use crate::device::{Device, DeviceSource, Latch};
use crate::nvmf::Target;
use crate::nvmf::seam::ExportConfig;
use crate::reactor::Handle;
use crate::store::pool::Candidate;
use crate::store::{Name, Pool, PoolVolume, VolumeId};
use crate::volume::Registry;

/// A drive to open, made ready on the service thread; `None` if it is open already.
#[derive(Debug)]
pub struct PreparedDrive {
    /// Its id.
    pub id: Name,
    /// As it was named.
    pub path: String,
    /// Where its bytes are.
    pub source: Option<DeviceSource>,
}

/// A drive that is open, in a pool or not yet.
#[derive(Clone, Debug)]
struct OpenDrive {
    number: u32,
    path: String,
    latch: Latch,
    device: Device,
    pool: Name,
}

/// What lists are answered from, without waiting for a change that is under way.
#[derive(Clone, Debug, Default)]
struct Seen {
    pools: BTreeMap<Name, SeenPool>,
    volumes: BTreeMap<VolumeId, (Name, PoolVolume)>,
}

#[derive(Clone, Debug)]
struct SeenPool {
    drives: Vec<Name>,
    total_bytes: u64,
    used_bytes: u64,
}

/// See the module's text. Lives on reactor 0.
pub struct Commander {
    handle: Handle,
    registry: Registry,
    target: Target,
    events: EventSink,
    /// Held through every change of space, so that there is one at a time.
    pools: Mutex<BTreeMap<Name, Pool>>,
    drives: RefCell<BTreeMap<Name, OpenDrive>>,
    seen: RefCell<Seen>,
    /// By NQN. Changed together with the target, under `exporting`.
    exports: RefCell<BTreeMap<Arc<str>, ExportConfig>>,
    exporting: Mutex<()>,
}

impl Commander {
    /// Makes it, and starts passing the target's events on.
    pub fn start(
        handle: &Handle,
        registry: Registry,
        target: Target,
        events: EventSink,
    ) -> Rc<Self> {
        let (from, to) = (target.clone(), events.clone());
        handle.spawn("target events", async move {
            loop {
                to.target(from.next_event().await).await;
            }
        });
        Rc::new(Self {
            handle: handle.clone(),
            registry,
            target,
            events,
            pools: Mutex::new(BTreeMap::new()),
            drives: RefCell::default(),
            seen: RefCell::default(),
            exports: RefCell::default(),
            exporting: Mutex::new(()),
        })
    }

    /// Paths of drives that are open, by id: those need no preparing.
    pub fn open_drives(&self) -> BTreeMap<Name, String> {
        let drives = self.drives.borrow();
        drives
            .iter()
            .map(|(id, d)| (id.clone(), d.path.clone()))
            .collect()
    }

    /// Opens a pool, or adds drives to one that is open, and opens its volumes on every reactor.
    pub async fn open_pool(
        &self,
        id: Name,
        drives: Vec<PreparedDrive>,
        format: bool,
    ) -> Result<proto::Pool, CommandError> {
        let mut pools = self.pools.lock().await;
        let mut candidates = Vec::with_capacity(drives.len());
        for drive in drives {
            candidates.push(self.open_drive(&id, drive).await?);
        }
        let buffers = self.handle.buffers();
        match pools.get_mut(&id) {
            Some(pool) => pool.join(candidates, format, buffers).await?,
            None => {
                let pool = Pool::open(id.clone(), candidates, format, buffers).await?;
                pools.insert(id.clone(), pool);
            }
        }
        self.look(&pools);
        let pool = &pools[&id];
        tracing::info!(pool = %id, drives = pool.drives().len(), bytes = pool.total_bytes(), "pool open");
        for volume in pool.volumes() {
            let Some(extents) = volume.extents else {
                tracing::warn!(pool = %id, volume = %volume.id, "a volume is incomplete: a drive with part of it is missing");
                continue;
            };
            self.registry
                .open(volume.id, volume.size_bytes, extents)
                .await;
        }
        drop(pools);
        self.pool_info(&id)
            .ok_or_else(|| CommandError::NoPool(id.to_string()))
    }

    async fn open_drive(
        &self,
        pool: &Name,
        drive: PreparedDrive,
    ) -> Result<Candidate, CommandError> {
        let open = self.drives.borrow().get(&drive.id).cloned();
        let open = match (open, drive.source) {
            (Some(open), _) => open,
            (None, Some(source)) => {
                let (events, id) = (self.events.clone(), drive.id.to_string());
                let latch = Latch::new(move |why| events.drive_failed(&id, why));
                let number = self.registry.open_drive(source, latch.clone()).await?;
                let device = self.registry.drive(number);
                let open = OpenDrive {
                    number,
                    path: drive.path.clone(),
                    latch,
                    device: device.expect("it has just been opened"),
                    pool: pool.clone(),
                };
                self.drives
                    .borrow_mut()
                    .insert(drive.id.clone(), open.clone());
                open
            }
            (None, None) => {
                let why = format!(
                    "drive {} is being opened by another command: try again",
                    drive.id
                );
                return Err(CommandError::field("drives", why));
            }
        };
        if open.path != drive.path {
            return Err(CommandError::OtherPath {
                drive: drive.id.to_string(),
                path: open.path,
            });
        }
        if open.pool != *pool {
            return Err(CommandError::OtherPool {
                what: format!("drive {}", drive.id),
                pool: open.pool.to_string(),
            });
        }
        Ok(Candidate {
            id: drive.id,
            number: open.number,
            device: open.device,
        })
    }

    /// All pools.
    pub fn list_pools(&self) -> Vec<proto::Pool> {
        let ids: Vec<Name> = self.seen.borrow().pools.keys().cloned().collect();
        ids.iter().filter_map(|id| self.pool_info(id)).collect()
    }

    fn pool_info(&self, id: &Name) -> Option<proto::Pool> {
        let seen = self.seen.borrow();
        let pool = seen.pools.get(id)?;
        let open = self.drives.borrow();
        let drives = pool
            .drives
            .iter()
            .filter_map(|id| Some((id, open.get(id)?)));
        let drives = drives.map(|(id, drive)| {
            let health = match drive.latch.failed() {
                true => proto::Health::Failed,
                false => proto::Health::Online,
            };
            proto::Drive {
                drive_id: id.to_string(),
                path: drive.path.clone(),
                size_bytes: drive.device.size_bytes(),
                health: health.into(),
                error: drive.latch.why().unwrap_or_default().to_owned(),
                ..Default::default()
            }
        });
        Some(proto::Pool {
            pool_id: id.to_string(),
            drives: drives.collect(),
            total_bytes: pool.total_bytes,
            used_bytes: pool.used_bytes,
            ..Default::default()
        })
    }

    /// Makes a volume and opens it on every reactor.
    pub async fn create_volume(
        &self,
        id: VolumeId,
        pool: Name,
        size_bytes: u64,
    ) -> Result<proto::Volume, CommandError> {
        let mut pools = self.pools.lock().await;
        if let Some((owner, _)) = self.seen.borrow().volumes.get(&id)
            && *owner != pool
        {
            return Err(CommandError::OtherPool {
                what: format!("volume {id}"),
                pool: owner.to_string(),
            });
        }
        let found = pools
            .get_mut(&pool)
            .ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let volume = found.create(id, size_bytes, self.handle.buffers()).await?;
        self.look(&pools);
        self.open_volume(volume).await?;
        drop(pools);
        self.volume_info(id)
    }

    async fn open_volume(&self, volume: PoolVolume) -> Result<(), CommandError> {
        let extents = volume.extents.ok_or(CommandError::Incomplete(volume.id))?;
        self.registry
            .open(volume.id, volume.size_bytes, extents)
            .await;
        Ok(())
    }

    /// Grows a volume; its exports tell their hosts.
    pub async fn resize_volume(
        &self,
        id: VolumeId,
        size_bytes: u64,
    ) -> Result<proto::Volume, CommandError> {
        let mut pools = self.pools.lock().await;
        let pool = self.pool_of(id)?;
        let found = pools.get_mut(&pool).ok_or(CommandError::NoVolume(id))?;
        let volume = found.grow(id, size_bytes, self.handle.buffers()).await?;
        self.look(&pools);
        let extents = volume.extents.ok_or(CommandError::Incomplete(id))?;
        self.registry.resize(id, volume.size_bytes, extents).await;
        drop(pools);
        self.export_again(id).await?;
        self.volume_info(id)
    }

    /// Publishes the present size of a volume with each of its exports.
    async fn export_again(&self, id: VolumeId) -> Result<(), CommandError> {
        let _one = self.exporting.lock().await;
        let uses = |config: &&ExportConfig| config.namespaces.iter().any(|ns| ns.volume == id.0);
        let configs: Vec<ExportConfig> = self
            .exports
            .borrow()
            .values()
            .filter(uses)
            .cloned()
            .collect();
        for config in configs {
            self.put_export(config).await?;
        }
        Ok(())
    }

    /// Deletes a volume that is not exported.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<(), CommandError> {
        let mut pools = self.pools.lock().await;
        let Ok(pool) = self.pool_of(id) else {
            return Ok(());
        };
        {
            // No export of it begins between looking and closing: exporting a volume that is closed fails.
            let _one = self.exporting.lock().await;
            if let Some(nqn) = self.export_of(id) {
                return Err(CommandError::Exported { volume: id, nqn });
            }
            self.registry.close(id).await;
        }
        if let Some(pool) = pools.get_mut(&pool) {
            let deleted = pool.delete(id, self.handle.buffers()).await;
            if deleted.is_err()
                && let Some(volume) = pool.volume(id)
            {
                // It is still there, so it is served again.
                self.open_volume(volume).await?;
            }
            deleted?;
        }
        self.look(&pools);
        Ok(())
    }

    fn export_of(&self, id: VolumeId) -> Option<String> {
        let exports = self.exports.borrow();
        let mut all = exports.values();
        let using = all.find(|config| config.namespaces.iter().any(|ns| ns.volume == id.0));
        using.map(|config| config.nqn.to_string())
    }

    /// All volumes.
    pub fn list_volumes(&self) -> Vec<proto::Volume> {
        let ids: Vec<VolumeId> = self.seen.borrow().volumes.keys().copied().collect();
        ids.into_iter()
            .filter_map(|id| self.volume_info(id).ok())
            .collect()
    }

    fn volume_info(&self, id: VolumeId) -> Result<proto::Volume, CommandError> {
        let seen = self.seen.borrow();
        let (pool, volume) = seen.volumes.get(&id).ok_or(CommandError::NoVolume(id))?;
        let exported = self.export_of(id).is_some();
        let slot = self.registry.stats_slot(id).filter(|_| exported);
        Ok(proto::Volume {
            volume_id: id.to_string(),
            pool_id: pool.to_string(),
            size_bytes: volume.size_bytes,
            // The linear map gives a volume all of its space at once.
            used_bytes: volume.size_bytes,
            stats_slot: slot.map_or(-1, |slot| slot as i32),
            ..Default::default()
        })
    }

    fn pool_of(&self, id: VolumeId) -> Result<Name, CommandError> {
        let seen = self.seen.borrow();
        let (pool, _) = seen.volumes.get(&id).ok_or(CommandError::NoVolume(id))?;
        Ok(pool.clone())
    }

    /// Exports volumes, or changes an export.
    pub async fn export(&self, config: ExportConfig) -> Result<proto::Subsystem, CommandError> {
        let _one = self.exporting.lock().await;
        let nqn = config.nqn.clone();
        self.put_export(config).await?;
        let found = self.target.inspect(&nqn).await;
        let (config, controllers) =
            found.ok_or_else(|| CommandError::field("nqn", "it was unexported meanwhile"))?;
        Ok(convert::subsystem_to(&config, &controllers))
    }

    /// With `exporting` held.
    async fn put_export(&self, mut config: ExportConfig) -> Result<(), CommandError> {
        for ns in &mut config.namespaces {
            let id = VolumeId(ns.volume);
            self.pool_of(id)?;
            let volume = self
                .registry
                .volume(id)
                .ok_or(CommandError::Incomplete(id))?;
            ns.blocks = volume.size_bytes() >> ns.lba_shift;
            ns.volatile_cache = volume.volatile_cache();
        }
        let nqn = config.nqn.clone();
        self.target.export(config.clone()).await?;
        if self
            .exports
            .borrow_mut()
            .insert(nqn.clone(), config)
            .is_none()
        {
            tracing::info!(%nqn, "exported");
        }
        Ok(())
    }

    /// Ends an export; one that does not exist has ended.
    pub async fn unexport(&self, nqn: &str) {
        let _one = self.exporting.lock().await;
        self.target.unexport(nqn).await;
        if self.exports.borrow_mut().remove(nqn).is_some() {
            tracing::info!(nqn, "unexported");
        }
    }

    /// All exports and who is connected.
    pub async fn list_subsystems(&self) -> Vec<proto::Subsystem> {
        let all = self.target.list().await;
        all.iter()
            .map(|(config, controllers)| convert::subsystem_to(config, controllers))
            .collect()
    }

    /// A reservation is stored: the command that waits for it completes.
    pub async fn commit_reservation(&self, nqn: &str, nsid: u32, generation: u64) {
        self.target.commit_reservation(nqn, nsid, generation).await;
    }

    /// Brings every drive to stable media: the last thing before the process ends.
    pub async fn flush_drives(&self) {
        let drives: Vec<OpenDrive> = self.drives.borrow().values().cloned().collect();
        for drive in drives {
            if let Err(error) = drive.device.flush().await {
                tracing::error!(path = drive.path, %error, "a drive could not be flushed at the end");
            }
        }
    }

    fn look(&self, pools: &BTreeMap<Name, Pool>) {
        let mut seen = Seen::default();
        for (id, pool) in pools {
            let drives = pool.drives().iter().map(|d| d.id().clone());
            let total = SeenPool {
                drives: drives.collect(),
                total_bytes: pool.total_bytes(),
                used_bytes: pool.used_bytes(),
            };
            seen.pools.insert(id.clone(), total);
            for volume in pool.volumes() {
                seen.volumes.insert(volume.id, (id.clone(), volume));
            }
        }
        *self.seen.borrow_mut() = seen;
    }
}
