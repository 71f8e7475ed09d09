//! The side of the command service that lives on reactor 0: pools, volumes and exports, and the order in which they change.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keelblock_api::datapath as proto;
use keelblock_api::datapath::pool_space_low::Level;
use tokio::sync::Mutex;

use super::convert;
use super::error::CommandError;
use super::evacuate::Evacuations;
use super::events::EventSink;
use super::pools::{OpenDrive, Pools};
use super::replication::{Replicating, Replication};
use super::scrub::Scrubs;
use crate::nvmf::Target;
use crate::nvmf::seam::ExportConfig;
use crate::reactor::Handle;
use crate::store::engine::CacheBudget;
use crate::store::pool::PoolView;
use crate::store::{Name, VolumeId};
use crate::volume::Registry;

/// How often pools are looked at for want of space.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// See the module's text. Lives on reactor 0.
pub struct Commander {
    pub(super) handle: Handle,
    pub(super) registry: Registry,
    pub(super) target: Target,
    pub(super) events: EventSink,
    /// Held through every change of what drives hold, so that there is one at a time.
    pub(super) pools: Mutex<Pools>,
    pub(super) drives: RefCell<BTreeMap<Name, OpenDrive>>,
    /// Of all drives together.
    pub(super) cache: CacheBudget,
    /// Each pool as it was when it was last looked at: what lists show while a change is under way.
    pub(super) seen: RefCell<BTreeMap<Name, PoolView>>,
    pub(super) scrubs: Scrubs,
    pub(super) evacuations: Evacuations,
    /// Levels of pools that are not OK, as the control process was told.
    levels: RefCell<BTreeMap<Name, Level>>,
    /// By NQN. Changed together with the target, under `exporting`.
    exports: RefCell<BTreeMap<Arc<str>, ExportConfig>>,
    pub(super) exporting: Mutex<()>,
    /// `None`: the process does not replicate.
    pub(super) replication: Option<Replication>,
    /// Held while replication begins.
    pub(super) beginning: Mutex<()>,
    /// Held while who coordinates what is changed.
    pub(super) serving: Mutex<()>,
}

impl Commander {
    /// Makes it, and starts passing the target's events on.
    pub fn start(
        handle: &Handle,
        registry: Registry,
        target: Target,
        events: EventSink,
        cache: CacheBudget,
        replicating: Option<Replicating>,
    ) -> Rc<Self> {
        let (from, to) = (target.clone(), events.clone());
        handle.spawn("target events", async move {
            loop {
                to.target(from.next_event().await).await;
            }
        });
        let node = registry.hub().replication();
        let replication = replicating.zip(node);
        let this = Rc::new(Self {
            handle: handle.clone(),
            scrubs: Scrubs::default(),
            evacuations: Evacuations::default(),
            registry,
            target,
            events,
            pools: Mutex::default(),
            drives: RefCell::default(),
            cache,
            seen: RefCell::default(),
            levels: RefCell::default(),
            exports: RefCell::default(),
            exporting: Mutex::new(()),
            replication: replication.map(|(with, node)| Replication::new(handle, with, node)),
            beginning: Mutex::new(()),
            serving: Mutex::new(()),
        });
        let (looking, clock) = (Rc::downgrade(&this), handle.clone());
        handle.spawn("levels of pools", async move {
            loop {
                clock.sleep(LOOK_INTERVAL).await;
                match looking.upgrade() {
                    Some(commander) => commander.look_at_all().await,
                    None => return,
                }
            }
        });
        this
    }

    /// Tells the control process if a pool has become short of space, or is not any more.
    pub(super) fn tell_level(&self, view: &PoolView) {
        let space = view.space();
        let before = self.levels.borrow().get(&view.id).copied();
        let before = before.unwrap_or(Level::Ok);
        let now = match (space.free, before) {
            (0, _) => Level::Full,
            (free, _) if free < space.total / 5 => Level::Low,
            // Back only when there is clearly room again.
            (free, Level::Low | Level::Full) if free < space.total / 4 => Level::Low,
            _ => Level::Ok,
        };
        if now != before {
            self.levels.borrow_mut().insert(view.id.clone(), now);
            self.events.pool_space(&view.id, now, space);
        }
    }

    /// For a new watcher: each pool that is short of space.
    pub fn tell_levels(&self) {
        for view in self.seen.borrow().values() {
            let level = self.levels.borrow().get(&view.id).copied();
            if let Some(level @ (Level::Low | Level::Full)) = level {
                self.events.pool_space(&view.id, level, view.space());
            }
        }
    }

    /// Publishes the present size of a volume with each of its exports.
    pub(super) async fn export_again(&self, id: VolumeId) -> Result<(), CommandError> {
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

    pub(super) fn export_of(&self, id: VolumeId) -> Option<String> {
        let exports = self.exports.borrow();
        let mut all = exports.values();
        let using = all.find(|config| config.namespaces.iter().any(|ns| ns.volume == id.0));
        using.map(|config| config.nqn.to_string())
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
            let volume = match self.registry.volume(id) {
                Some(volume) => volume,
                None => {
                    // Only what is complete is open.
                    let found = self.view_of(id)?.volume(id);
                    found.map_or(Ok(Vec::new()), |v| v.places())?;
                    return Err(CommandError::NoVolume(id));
                }
            };
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
}
