//! Pools and their drives, on reactor 0: opened, looked at, grown.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use keelblock_api::datapath as proto;

use super::Commander;
use super::convert;
use super::error::CommandError;
use super::prepare::PreparedDrive;
use crate::device::Latch;
use crate::store::engine::{Damage, Exactly, StoreConfig, StoreError};
use crate::store::pool::{DriveFacts, DriveState, PoolDrive, PoolView};
use crate::store::{Name, VolumeId};
use crate::volume::{DriveOpening, VolumeOpening};

/// A drive of a pool, open or not.
#[derive(Clone, Debug)]
pub(super) struct OpenDrive {
    /// `None`: it could not be opened, and `error` says why.
    pub number: Option<u32>,
    pub path: String,
    pub latch: Latch,
    pub pool: Name,
    pub error: String,
}

/// The drives of each pool, in the order in which they joined.
pub(super) type Pools = BTreeMap<Name, Vec<Name>>;

impl Commander {
    /// Paths of drives that are open, by id: those need no preparing.
    pub fn open_drives(&self) -> BTreeMap<Name, String> {
        let drives = self.drives.borrow();
        let open = drives.iter().filter(|(_, d)| d.number.is_some());
        open.map(|(id, d)| (id.clone(), d.path.clone())).collect()
    }

    /// Opens a pool, or adds drives to one that is open, and opens its volumes on every reactor.
    pub async fn open_pool(
        self: Rc<Self>,
        id: Name,
        drives: Vec<PreparedDrive>,
        format: bool,
        allow_missing: bool,
    ) -> Result<proto::Pool, CommandError> {
        let mut pools = self.pools.lock().await;
        let mut opened: Vec<Name> = Vec::new();
        let mut named: Vec<Name> = Vec::new();
        let mut missing = Vec::new();
        let mut failed = None;
        for drive in drives {
            let (name, path) = (drive.id.clone(), drive.path.clone());
            if named.contains(&name) {
                failed = Some(CommandError::Twice(name));
                break;
            }
            named.push(name.clone());
            match self.open_drive(&id, drive, format).await {
                Ok(true) => opened.push(name),
                Ok(false) => {}
                Err(e) if allow_missing && e.is_of_the_drive() => {
                    tracing::error!(pool = %id, drive = %name, "a drive is missing: {e}");
                    missing.push((name, path, e));
                }
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let open = named.len() - missing.len();
        if failed.is_none() && open == 0 && !pools.contains_key(&id) {
            failed = missing.pop().map(|(_, _, e)| e);
        }
        if let Some(e) = failed {
            self.close_drives(&opened).await;
            return Err(e);
        }
        for (name, path, e) in missing {
            let drive = OpenDrive {
                number: None,
                path,
                latch: Latch::new(|_| {}),
                pool: id.clone(),
                error: e.to_string(),
            };
            self.drives.borrow_mut().insert(name, drive);
        }
        let members = pools.entry(id.clone()).or_default();
        for name in named {
            if !members.contains(&name) {
                members.push(name);
            }
        }
        let view = self.look(&id, members).await;
        self.tell_members(&view, view.members(), &opened).await?;
        let mut view = self.look(&id, members).await;
        if self.put_right(&view).await {
            view = self.look(&id, members).await;
        }
        let space = view.space();
        tracing::info!(pool = %id, drives = view.drives.len(), bytes = space.total, "pool open");
        self.open_volumes(&view).await;
        self.serve_replicas(&view).await;
        self.go_on_evacuating(&view);
        drop(pools);
        Ok(self.pool_to(&view))
    }

    /// Opens a drive for a pool. False: it was open.
    pub(super) async fn open_drive(
        &self,
        pool: &Name,
        drive: PreparedDrive,
        format: bool,
    ) -> Result<bool, CommandError> {
        let there = self.drives.borrow().get(&drive.id).cloned();
        if let Some(open) = &there
            && open.pool != *pool
        {
            return Err(CommandError::OtherPool {
                what: format!("drive {}", drive.id),
                pool: open.pool.to_string(),
            });
        }
        if let Some(open) = &there
            && open.number.is_some()
        {
            return match open.path == drive.path {
                true => Ok(false),
                false => Err(CommandError::OtherPath {
                    drive: drive.id.to_string(),
                    path: open.path.clone(),
                }),
            };
        }
        let Some(source) = drive.source else {
            let why = format!("drive {} was closed meanwhile: try again", drive.id);
            return Err(CommandError::field("drives", why));
        };
        let (events, id) = (self.events.clone(), drive.id.to_string());
        let latch = Latch::new(move |why| events.drive_failed(&id, why));
        let (events, id) = (self.events.clone(), drive.id.to_string());
        let opening = DriveOpening {
            source: source?,
            latch: latch.clone(),
            faults: Arc::new(move |damage: &Damage| events.damage(&id, damage)),
            drive: drive.id.clone(),
            pool: pool.clone(),
            format,
            config: StoreConfig {
                cache: self.cache.clone(),
            },
        };
        let (number, _) = self.registry.open_drive(opening).await?;
        let open = OpenDrive {
            number: Some(number),
            path: drive.path,
            latch,
            pool: pool.clone(),
            error: String::new(),
        };
        self.drives.borrow_mut().insert(drive.id, open);
        Ok(true)
    }

    /// Closes drives and forgets them.
    pub(super) async fn close_drives(&self, names: &[Name]) {
        for name in names {
            let drive = self.drives.borrow_mut().remove(name);
            let Some(number) = drive.and_then(|d| d.number) else {
                continue;
            };
            let closed = self.registry.on_drive(number, move |hub| async move {
                hub.release_drive(number).await
            });
            if let Err(error) = closed.await {
                tracing::error!(drive = %name, %error, "a drive was not closed cleanly");
            }
        }
    }

    /// Tells the drives of a pool how many they are, newcomers first: a crash in between leaves a pool that asks for all of them.
    pub(super) async fn tell_members(
        &self,
        view: &PoolView,
        members: u32,
        newcomers: &[Name],
    ) -> Result<(), CommandError> {
        let mut order: Vec<&PoolDrive> = view.drives.iter().collect();
        order.sort_by_key(|d| !newcomers.contains(&d.id));
        for drive in order {
            let told = drive.facts.as_ref().map(|f| f.identity.members);
            if let (Some(number), Some(told)) = (drive.number, told)
                && told != members
                && !drive.failed
            {
                self.on_store(&drive.id, number, move |store| async move {
                    store.set_members(members).await
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Runs something with the store of a drive, on its home.
    pub(super) async fn on_store<T, F, Fut>(
        &self,
        drive: &Name,
        number: u32,
        work: F,
    ) -> Result<T, CommandError>
    where
        T: Send + 'static,
        F: FnOnce(crate::store::engine::Store) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + 'static,
    {
        let done = self.registry.on_drive(number, move |hub| async move {
            match hub.store(number) {
                Some(store) => work(store).await,
                None => Err(StoreError::Closed),
            }
        });
        done.await.map_err(|source| CommandError::Store {
            drive: drive.clone(),
            source,
        })
    }

    /// The same on several drives of a pool, beside each other, by their places. The first error is the answer.
    pub(super) async fn on_stores<T, F, Fut>(
        &self,
        view: &PoolView,
        places: &[usize],
        work: F,
    ) -> Result<Vec<T>, CommandError>
    where
        T: Send + 'static,
        F: FnOnce(crate::store::engine::Store) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + 'static,
    {
        let numbers = view.numbers(places);
        let done = self
            .registry
            .on_drives(&numbers, move |hub, number| async move {
                match hub.store(number) {
                    Some(store) => work(store).await,
                    None => Err(StoreError::Closed),
                }
            });
        let mut answers = Vec::with_capacity(places.len());
        for (answer, &place) in done.await.into_iter().zip(places) {
            answers.push(answer.map_err(|source| CommandError::Store {
                drive: view.drives[place].id.clone(),
                source,
            })?);
        }
        Ok(answers)
    }

    /// Asks the drives of a pool what they have, and remembers that for lists.
    pub(super) async fn look(&self, id: &Name, names: &[Name]) -> PoolView {
        let drives: Vec<(Name, OpenDrive)> = {
            let open = self.drives.borrow();
            let found = names
                .iter()
                .filter_map(|n| Some((n.clone(), open.get(n)?.clone())));
            found.collect()
        };
        let numbers: Vec<u32> = drives.iter().filter_map(|(_, d)| d.number).collect();
        let facts = self
            .registry
            .on_drives(
                &numbers,
                |hub, number| async move { hub.drive_facts(number) },
            )
            .await;
        let mut facts = facts.into_iter();
        let drives = drives.into_iter().map(|(id, drive)| {
            let facts = drive.number.and_then(|_| facts.next().flatten());
            PoolDrive {
                id,
                number: drive.number,
                failed: drive.latch.failed() || facts.as_ref().is_none_or(|f| f.failed),
                state: facts.as_ref().map_or(DriveState::InUse, |f| f.state),
                facts,
            }
        });
        let view = PoolView {
            id: id.clone(),
            drives: drives.collect(),
        };
        self.seen.borrow_mut().insert(id.clone(), view.clone());
        self.tell_level(&view);
        view
    }

    /// Brings what lists are answered from up to date, unless a change is under way: then they show what was before it.
    pub(super) async fn look_at_all(&self) {
        if let Ok(pools) = self.pools.try_lock() {
            for (id, names) in pools.iter() {
                self.look(id, names).await;
            }
        }
    }

    /// All pools, with used blocks of the volumes or snapshots that are meant exactly as they are now; under a change, of what was there before it.
    pub(super) async fn look_exactly(&self, meant: Exactly) -> Vec<PoolView> {
        self.look_at_all().await;
        let mut views: Vec<PoolView> = self.seen.borrow().values().cloned().collect();
        for view in &mut views {
            let open = view.drives.iter_mut().filter(|d| d.facts.is_some());
            let mut open: Vec<&mut PoolDrive> = open.filter(|d| d.number.is_some()).collect();
            let numbers: Vec<u32> = open.iter().filter_map(|d| d.number).collect();
            let exactly = move |hub: crate::volume::Hub, number| async move {
                hub.drive_facts_exactly(number, meant).await
            };
            let facts = self.registry.on_drives(&numbers, exactly).await;
            // Drives answer one after the other: a lane that moves meanwhile would be on none of them, or on two.
            let lanes = |f: &DriveFacts| -> Vec<(VolumeId, u8)> {
                f.lanes.iter().map(|l| (l.volume, l.lane)).collect()
            };
            let mut asked = open.iter().zip(&facts);
            if asked.any(|(drive, f)| f.as_ref().map(lanes) != drive.facts.as_ref().map(lanes)) {
                continue;
            }
            for (drive, facts) in open.iter_mut().zip(facts) {
                // One that was closed meanwhile stays as it was seen.
                if facts.is_some() {
                    drive.facts = facts;
                }
            }
        }
        views
    }

    /// Opens the volumes of a pool that are complete and not open.
    pub(super) async fn open_volumes(&self, view: &PoolView) {
        for volume in view.volumes().into_values().filter(|v| !v.replica) {
            if let Err(e) = self.open_volume(view, volume.id).await {
                tracing::warn!(pool = %view.id, "{e}");
            }
        }
    }

    /// Opens a volume on every reactor. One that is open stays as it is.
    pub(super) async fn open_volume(
        &self,
        view: &PoolView,
        id: VolumeId,
    ) -> Result<(), CommandError> {
        let volume = view.volume(id).ok_or(CommandError::NoVolume(id))?;
        let places = volume.places()?;
        let volatile = |&place: &usize| {
            let facts = &view.drives[place].facts;
            facts.as_ref().is_some_and(|f| f.volatile_cache)
        };
        let opening = VolumeOpening {
            id,
            size_bytes: volume.size_bytes,
            drives: view.numbers(&places),
            volatile_cache: places.iter().any(volatile),
            replicated: false,
        };
        self.registry.open(opening).await;
        Ok(())
    }

    /// All pools.
    pub async fn list_pools(&self) -> Vec<proto::Pool> {
        self.look_at_all().await;
        let seen = self.seen.borrow();
        seen.values().map(|view| self.pool_to(view)).collect()
    }

    pub(super) fn pool_to(&self, view: &PoolView) -> proto::Pool {
        let space = view.space();
        proto::Pool {
            pool_id: view.id.to_string(),
            drives: view.drives.iter().map(|d| self.drive_to(d)).collect(),
            total_bytes: space.total,
            used_bytes: space.used,
            free_bytes: space.free,
            reserved_bytes: space.reserved,
            metadata_bytes: space.metadata,
            provisioned_bytes: view.provisioned_bytes(),
        }
    }

    pub(super) fn drive_to(&self, drive: &PoolDrive) -> proto::Drive {
        let drives = self.drives.borrow();
        let open = drives.get(&drive.id);
        let why = open.map(|d| match d.latch.why() {
            Some(why) => why.to_owned(),
            None => d.error.clone(),
        });
        let path = open.map_or("", |d| &d.path);
        let mut shown = convert::drive_to(drive, path, why.unwrap_or_default());
        self.show_evacuation(&drive.id, &mut shown);
        shown
    }

    /// Makes more of a drive usable. `size_bytes` is the size that it shall have.
    pub async fn grow_drive(
        &self,
        pool: Name,
        drive: Name,
        size_bytes: u64,
    ) -> Result<proto::Drive, CommandError> {
        let pools = self.pools.lock().await;
        let names = pools.get(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let view = self.look(&pool, names).await;
        let place = view.drives.iter().position(|d| d.id == drive);
        let place = place.ok_or_else(|| CommandError::NoDrive(drive.to_string()))?;
        let found = &view.drives[place];
        let (Some(number), Some(facts)) = (found.number, &found.facts) else {
            return Err(CommandError::NoDrive(drive.to_string()));
        };
        if size_bytes < facts.size_bytes {
            let why = format!(
                "drive {drive} has {} bytes: it cannot become smaller",
                facts.size_bytes
            );
            return Err(CommandError::field("size_bytes", why));
        }
        self.on_store(&drive, number, move |store| async move {
            store.device().grow(size_bytes).await?;
            store.grow().await
        })
        .await?;
        let view = self.look(&pool, names).await;
        Ok(self.drive_to(&view.drives[place]))
    }

    /// Closes every drive: the last thing before the process ends.
    pub async fn close_all(&self) {
        self.end_replication().await;
        let numbers: Vec<u32> = {
            let drives = self.drives.borrow();
            drives.values().filter_map(|d| d.number).collect()
        };
        let closed = self.registry.on_drives(&numbers, |hub, number| async move {
            hub.close_drive(number).await
        });
        for error in closed.await.into_iter().filter_map(Result::err) {
            tracing::error!(%error, "a drive was not closed cleanly: its next opening takes it for one after a crash");
        }
    }
}
