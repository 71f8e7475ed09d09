//! Drives of the node's pool: added, grown, emptied, taken out, replaced.
//!
//! The pool's record says which drives it has. One that is being added is in the record as *fresh* before anything is written to it,
//! so that an interrupted add is completed, or can be asked for again, and nothing else is ever formatted.
use super::Node;
use crate::config::DriveSpec;
use crate::error::OpError;
use crate::records::{AlertKind, DriveRecord, Phase, PoolRecord};
use keelblock_api::datapath::{
    self as dp, AddDriveRequest, CancelEvacuationRequest, Drive, EvacuateDriveRequest,
    GrowDriveRequest, ListPoolsRequest, ListVolumesRequest, Pool, RemoveDriveRequest,
    ReplaceDriveRequest,
};
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// A file may have to be laid out.
const LAY_OUT: Duration = Duration::from_secs(50);
/// Drives of a pool.
const DRIVES_MAX: usize = 256;

/// What a replacement did.
#[derive(Debug, Clone, Default)]
pub struct Replaced {
    /// The new drive, if there is one.
    pub drive: Option<Drive>,
    /// Volumes that lost data.
    pub lost_volume_ids: Vec<String>,
}

impl Node {
    /// The pool of this node.
    pub(super) async fn pool_record(&self) -> Result<PoolRecord, OpError> {
        let spec = self.pool.as_ref().ok_or_else(|| self.no_pool())?;
        let key = self.registry.keys().pool(spec.record.pool_id);
        let found = self.registry.get(&key).await?;
        Ok(found.map_or_else(|| spec.record.clone(), |f| f.record))
    }

    pub(super) fn no_pool(&self) -> OpError {
        OpError::State(format!(
            "node {} has no pool: start its control process with --drive",
            self.node_id()
        ))
    }

    pub(crate) async fn change_pool(
        &self,
        pool_id: Uuid,
        change: impl FnMut(&mut PoolRecord) -> Result<bool, OpError>,
    ) -> Result<PoolRecord, OpError> {
        let key = self.registry.keys().pool(pool_id);
        let missing = || OpError::NotFound {
            kind: "pool",
            name: pool_id.to_string(),
        };
        self.registry.change(&key, missing, change).await
    }

    /// The pool as the data path has it.
    pub(super) async fn pool_now(&self, pool_id: Uuid) -> Result<Pool, OpError> {
        let listed = self.link.call("list pools", |mut c| async move {
            c.list_pools(ListPoolsRequest {}).await
        });
        let id = pool_id.to_string();
        let found = listed.await?.pools.into_iter().find(|p| p.pool_id == id);
        found.ok_or_else(|| {
            OpError::Unavailable(format!("the data path has not opened pool {id}: try again"))
        })
    }

    /// Adds a drive; what it holds is lost.
    pub async fn add_drive(&self, path: &str, size_bytes: u64) -> Result<(Uuid, Drive), OpError> {
        let spec = drive_spec(path, size_bytes)?;
        let _changing = self.exclusive().await?;
        self.add(spec).await
    }

    pub(super) async fn add(&self, spec: DriveSpec) -> Result<(Uuid, Drive), OpError> {
        self.link.up()?;
        let pool = self.pool_record().await?;
        if pool.memory != spec.is_memory() {
            return Err(OpError::invalid(
                "path",
                "a pool is all memory or all drives, as memory is lost at the end",
            ));
        }
        if pool.drives.len() >= DRIVES_MAX {
            return Err(OpError::NoSpace(format!(
                "pool {} has {DRIVES_MAX} drives, which is the most",
                pool.name
            )));
        }
        let same = pool
            .drives
            .iter()
            .find(|d| d.path == spec.path && !pool.memory);
        let drive = match same {
            Some(there) if there.fresh => there.clone(),
            Some(there) => {
                return Err(OpError::Exists {
                    name: format!("drive {}", there.path),
                    what: format!("in pool {}, as {}", pool.name, there.drive_id),
                });
            }
            None => {
                if let Some(why) = spec.unusable() {
                    return Err(OpError::invalid("path", why));
                }
                fresh(spec)
            }
        };
        self.change_pool(pool.pool_id, |r| {
            r.removed.retain(|path| *path != drive.path);
            if !r.drives.contains(&drive) {
                r.drives.push(drive.clone());
            }
            Ok(true)
        })
        .await?;
        let opened = self.add_fresh(pool.pool_id, &drive).await?;
        tracing::info!(pool = pool.name, drive = drive.path, id = %drive.drive_id, "drive added");
        Ok((pool.pool_id, opened))
    }

    /// Has the data path add a drive whose record is there. If it is refused, the record goes.
    pub(crate) async fn add_fresh(
        &self,
        pool_id: Uuid,
        drive: &DriveRecord,
    ) -> Result<Drive, OpError> {
        let request = AddDriveRequest {
            pool_id: pool_id.to_string(),
            drive: Some(spec_of(drive)),
        };
        let what = format!("add drive {}", drive.path);
        let added =
            self.link.call_for(
                LAY_OUT,
                &what,
                |mut c| async move { c.add_drive(request).await },
            );
        match added.await {
            Ok(pool) => {
                self.settle_drive(pool_id, drive.drive_id).await?;
                drive_in(pool, drive.drive_id)
            }
            Err(error) if error.is_uncertain() => Err(error),
            Err(refused) => {
                self.change_pool(pool_id, |r| {
                    r.drives.retain(|d| d.drive_id != drive.drive_id);
                    Ok(true)
                })
                .await?;
                Err(refused)
            }
        }
    }

    /// From now on the drive is never formatted again.
    async fn settle_drive(&self, pool_id: Uuid, drive_id: Uuid) -> Result<(), OpError> {
        let settle = |r: &mut PoolRecord| {
            let found = r.drives.iter_mut().find(|d| d.drive_id == drive_id);
            if let Some(drive) = found {
                drive.fresh = false;
            }
            Ok(true)
        };
        self.change_pool(pool_id, settle).await.map(drop)
    }

    /// Uses more of a drive: a file is made as large as `size_bytes`, a device is looked at (0).
    pub async fn grow_drive(&self, drive: &str, size_bytes: u64) -> Result<(Uuid, Drive), OpError> {
        let _changing = self.exclusive().await?;
        let (pool, drive) = self.find_drive(drive).await?;
        self.grow_known(&pool, &drive, size_bytes).await
    }

    pub(super) async fn grow_known(
        &self,
        pool: &PoolRecord,
        drive: &DriveRecord,
        size_bytes: u64,
    ) -> Result<(Uuid, Drive), OpError> {
        let request = GrowDriveRequest {
            pool_id: pool.pool_id.to_string(),
            drive_id: drive.drive_id.to_string(),
            size_bytes,
        };
        let what = format!("grow drive {}", drive.path);
        let grown = self.link.call_for(LAY_OUT, &what, |mut c| async move {
            c.grow_drive(request).await
        });
        let grown = grown.await?;
        tracing::info!(drive = drive.path, bytes = grown.size_bytes, "drive grown");
        Ok((pool.pool_id, grown))
    }

    /// Begins to move everything off a drive, or ends that.
    pub async fn evacuate_drive(
        &self,
        drive: &str,
        cancel: bool,
    ) -> Result<(Uuid, Drive), OpError> {
        let _changing = self.exclusive().await?;
        let (pool, drive) = self.find_drive(drive).await?;
        let (pool_id, drive_id) = (pool.pool_id.to_string(), drive.drive_id.to_string());
        if !cancel && pool.drives.len() == 1 {
            return Err(OpError::State(format!(
                "drive {} is the only one of pool {}: add another first, for its data to go to",
                drive.path, pool.name
            )));
        }
        let what = match cancel {
            true => format!("end the evacuation of drive {}", drive.path),
            false => format!("evacuate drive {}", drive.path),
        };
        let answer = self.link.call(&what, |mut c| async move {
            match cancel {
                true => {
                    c.cancel_evacuation(CancelEvacuationRequest { pool_id, drive_id })
                        .await
                }
                false => {
                    c.evacuate_drive(EvacuateDriveRequest { pool_id, drive_id })
                        .await
                }
            }
        });
        Ok((pool.pool_id, answer.await?))
    }

    /// Takes an empty drive out of the pool.
    pub async fn remove_drive(&self, drive: &str) -> Result<(), OpError> {
        let _changing = self.exclusive().await?;
        let (pool, drive) = self.find_drive(drive).await?;
        let request = RemoveDriveRequest {
            pool_id: pool.pool_id.to_string(),
            drive_id: drive.drive_id.to_string(),
        };
        let what = format!("remove drive {}", drive.path);
        let removed = self
            .link
            .call(&what, |mut c| async move { c.remove_drive(request).await });
        removed.await?;
        self.change_pool(pool.pool_id, |r| {
            take_out(r, &drive);
            Ok(true)
        })
        .await?;
        self.forget_alerts(&drive).await?;
        tracing::info!(pool = pool.name, drive = drive.path, "drive removed");
        Ok(())
    }

    /// Gives up a drive that failed, with what only it held, and adds another in its place, if one is given. The record changes first: a drive that
    /// was given up is not opened again.
    pub async fn replace_drive(
        &self,
        drive: &str,
        path: &str,
        size_bytes: u64,
    ) -> Result<Replaced, OpError> {
        let replacement = match path {
            "" => None,
            path => Some(drive_spec(path, size_bytes)?),
        };
        let _changing = self.exclusive().await?;
        let (pool, old) = self.find_drive(drive).await?;
        let new = match replacement {
            Some(spec) if spec.is_memory() != pool.memory => {
                return Err(OpError::invalid(
                    "path",
                    "a pool is all memory or all drives, as memory is lost at the end",
                ));
            }
            Some(spec) => {
                if let Some(why) = spec.unusable() {
                    return Err(OpError::invalid("path", why));
                }
                Some(fresh(spec))
            }
            None => None,
        };
        let now = self.pool_now(pool.pool_id).await?;
        if let Ok(seen) = drive_in(now, old.drive_id)
            && seen.health() == dp::Health::Online
        {
            return Err(OpError::State(format!(
                "drive {} works: evacuate it, so that nothing is lost, and remove it then",
                old.path
            )));
        }
        let before = pool.clone();
        self.change_pool(pool.pool_id, |r| {
            take_out(r, &old);
            if let Some(new) = &new {
                r.removed.retain(|path| *path != new.path);
                r.drives.push(new.clone());
            }
            Ok(true)
        })
        .await?;
        let request = ReplaceDriveRequest {
            pool_id: pool.pool_id.to_string(),
            drive_id: old.drive_id.to_string(),
            replacement: new.as_ref().map(spec_of),
        };
        let what = format!("replace drive {}", old.path);
        let replaced = self.link.call_for(LAY_OUT, &what, |mut c| async move {
            c.replace_drive(request).await
        });
        let reply = match replaced.await {
            Ok(reply) => reply,
            Err(error) if error.is_uncertain() => return Err(error),
            Err(refused) => {
                let put_back = |r: &mut PoolRecord| {
                    *r = before.clone();
                    Ok(true)
                };
                self.change_pool(pool.pool_id, put_back).await?;
                return Err(refused);
            }
        };
        let mut drive = None;
        let now = reply.pool.unwrap_or_default();
        if let Some(new) = &new {
            self.settle_drive(pool.pool_id, new.drive_id).await?;
            drive = Some(drive_in(now.clone(), new.drive_id)?);
        }
        self.forget_alerts(&old).await?;
        let mut lost_volume_ids = reply.lost_volume_ids;
        if now.drives.iter().all(|d| d.health() == dp::Health::Online) {
            for id in self.unknown_volumes(pool.pool_id).await? {
                if !lost_volume_ids.contains(&id) {
                    lost_volume_ids.push(id);
                }
            }
        }
        self.report_lost(&lost_volume_ids, &old).await?;
        tracing::warn!(
            pool = pool.name,
            drive = old.path,
            lost = lost_volume_ids.len(),
            "drive given up"
        );
        Ok(Replaced {
            drive,
            lost_volume_ids,
        })
    }

    /// Volumes of a pool that its drives do not know. With all of them there, those were wholly on one that is not in the pool any more,
    /// and that the data path may never have opened.
    async fn unknown_volumes(&self, pool_id: Uuid) -> Result<Vec<String>, OpError> {
        let listed = self.link.call("list volumes", |mut c| async move {
            c.list_volumes(ListVolumesRequest::default()).await
        });
        let there: BTreeSet<String> = listed
            .await?
            .volumes
            .into_iter()
            .map(|v| v.volume_id)
            .collect();
        let mut volumes = self.registry.volumes().await?;
        volumes.retain(|v| v.pool_id == pool_id && v.phase == Phase::Ready);
        let ids = volumes.iter().map(|v| v.volume_id.to_string());
        Ok(ids.filter(|id| !there.contains(id)).collect())
    }

    async fn report_lost(&self, volumes: &[String], drive: &DriveRecord) -> Result<(), OpError> {
        for id in volumes {
            let Ok(id) = Uuid::try_parse(id) else {
                continue;
            };
            if let Some(volume) = self.registry.volume_by_id(id).await? {
                let error = format!(
                    "part of its data was on drive {}, which was given up",
                    drive.path
                );
                self.set_volume_error(&volume.record, &error).await?;
            }
        }
        Ok(())
    }

    async fn forget_alerts(&self, drive: &DriveRecord) -> Result<(), OpError> {
        let id = drive.drive_id.to_string();
        for kind in [
            AlertKind::DriveFailed,
            AlertKind::ChecksumError,
            AlertKind::ReadError,
            AlertKind::DriveEvacuated,
        ] {
            self.clear_alert(kind, &id).await?;
        }
        Ok(())
    }

    /// A drive of the pool, by id or path, and the pool.
    async fn find_drive(&self, drive: &str) -> Result<(PoolRecord, DriveRecord), OpError> {
        if drive.is_empty() {
            return Err(OpError::Missing {
                field: "drive",
                hint: "the id or path of a drive",
            });
        }
        self.link.up()?;
        let pool = self.pool_record().await?;
        let id = Uuid::try_parse(drive).ok();
        let mut named = pool
            .drives
            .iter()
            .filter(|d| Some(d.drive_id) == id || d.path == drive);
        let found = named.next().cloned();
        if named.next().is_some() {
            return Err(OpError::invalid(
                "drive",
                format!("several drives are {drive}: give the id of one"),
            ));
        }
        let missing = || OpError::NotFound {
            kind: "drive",
            name: drive.into(),
        };
        Ok((pool, found.ok_or_else(missing)?))
    }
}

fn take_out(pool: &mut PoolRecord, drive: &DriveRecord) {
    pool.drives.retain(|d| d.drive_id != drive.drive_id);
    if !drive.added {
        pool.removed.push(drive.path.clone());
    }
}

fn drive_spec(path: &str, size_bytes: u64) -> Result<DriveSpec, OpError> {
    if path.is_empty() {
        return Err(OpError::Missing {
            field: "path",
            hint: "a file or block device",
        });
    }
    let memory = path.starts_with("memory:");
    if memory && path.parse::<DriveSpec>().is_err() {
        return Err(OpError::invalid("path", "memory:BYTES"));
    }
    if !memory && !path.starts_with('/') {
        return Err(OpError::invalid(
            "path",
            format!("{path} must begin with /"),
        ));
    }
    Ok(DriveSpec {
        path: path.into(),
        size_bytes,
    })
}

/// A drive that is new here.
fn fresh(spec: DriveSpec) -> DriveRecord {
    DriveRecord {
        drive_id: Uuid::new_v4(),
        path: spec.path,
        added: true,
        size_bytes: spec.size_bytes,
        fresh: true,
    }
}

fn spec_of(drive: &DriveRecord) -> dp::DriveSpec {
    dp::DriveSpec {
        drive_id: drive.drive_id.to_string(),
        path: drive.path.clone(),
        size_bytes: drive.size_bytes,
    }
}

fn drive_in(pool: Pool, drive_id: Uuid) -> Result<Drive, OpError> {
    let id = drive_id.to_string();
    let found = pool.drives.into_iter().find(|d| d.drive_id == id);
    found.ok_or_else(|| OpError::Internal(format!("the data path does not show drive {id}")))
}
