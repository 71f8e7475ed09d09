//! Drives are made ready on the service thread (created, grown, locked: what blocks), and then opened on reactor 0.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelblock_api::datapath as proto;
use tokio::sync::{Mutex, mpsc};
use tonic::Status;

use super::service::ask;
use super::{CommandError, Job};
use crate::device::{DeviceError, DeviceSource, DeviceSpec};
use crate::store::Name;

/// A drive to open, made ready on the service thread.
#[derive(Debug)]
pub struct PreparedDrive {
    /// Its id.
    pub id: Name,
    /// As it was named.
    pub path: String,
    /// Where its bytes are; `None`: it is open already.
    pub source: Option<Result<DeviceSource, DeviceError>>,
}

/// Prepares the drives of a pool that are not open, then opens the pool. Runs to its end whether or not anyone waits.
pub(super) async fn open_pool(
    preparing: Arc<Mutex<()>>,
    jobs: mpsc::Sender<Job>,
    request: proto::OpenPoolRequest,
) -> Result<proto::Pool, Status> {
    let _one = preparing.lock().await;
    let id = Name::new(&request.pool_id).map_err(CommandError::from)?;
    if request.drives.is_empty() {
        return Err(CommandError::field("drives", "a pool has at least one").into());
    }
    let open = ask(&jobs, |c| async move { Ok(c.open_drives()) }).await?;
    let drives = prepared(request.drives, open).await?;
    let (format, allow_missing) = (request.format, request.allow_missing);
    ask(&jobs, move |c| async move {
        c.open_pool(id, drives, format, allow_missing).await
    })
    .await
}

/// Adds a drive to a pool, in the place of another if there is one.
pub(super) async fn join_pool(
    preparing: Arc<Mutex<()>>,
    jobs: mpsc::Sender<Job>,
    pool: Name,
    replaces: Option<Name>,
    drive: Option<proto::DriveSpec>,
) -> Result<proto::ReplaceDriveReply, Status> {
    let _one = preparing.lock().await;
    let open = ask(&jobs, |c| async move { Ok(c.open_drives()) }).await?;
    let drives = drive.into_iter().collect();
    let drive = prepared(drives, open).await?.pop();
    ask(&jobs, move |c| async move {
        match (replaces, drive) {
            (Some(replaced), drive) => c.replace_drive(pool, replaced, drive).await,
            (None, Some(drive)) => {
                let pool = c.add_drive(pool, drive).await?;
                Ok(proto::ReplaceDriveReply {
                    pool: Some(pool),
                    lost_volume_ids: Vec::new(),
                })
            }
            (None, None) => Err(CommandError::field("drive", "it is not given")),
        }
    })
    .await
}

async fn prepared(
    drives: Vec<proto::DriveSpec>,
    open: BTreeMap<Name, String>,
) -> Result<Vec<PreparedDrive>, Status> {
    let prepared = tokio::task::spawn_blocking(move || prepare(drives, &open));
    let prepared = prepared.await;
    Ok(prepared.map_err(|e| Status::internal(e.to_string()))??)
}

/// The size that a drive shall have: what is asked for, or what it has by itself now.
pub(super) fn size_of(path: &str, size_bytes: u64) -> Result<u64, CommandError> {
    match DeviceSpec::parse(path)? {
        DeviceSpec::Memory { .. } => Err(CommandError::field(
            "drive_id",
            "a drive in memory does not grow",
        )),
        DeviceSpec::Path(path) if size_bytes == 0 => {
            let meta = std::fs::metadata(&path);
            let size = meta.map_or(0, |m| if m.is_file() { m.len() } else { 0 });
            Ok(size / 4096 * 4096)
        }
        DeviceSpec::Path(_) => Ok(size_bytes / 4096 * 4096),
    }
}

fn prepare(
    drives: Vec<proto::DriveSpec>,
    open: &BTreeMap<Name, String>,
) -> Result<Vec<PreparedDrive>, CommandError> {
    let prepare = |drive: proto::DriveSpec| {
        let id = Name::new(&drive.drive_id)?;
        let source = match open.contains_key(&id) {
            true => None,
            false => {
                let spec = DeviceSpec::parse(&drive.path)?;
                Some(DeviceSource::prepare(&spec, drive.size_bytes))
            }
        };
        Ok(PreparedDrive {
            id,
            path: drive.path,
            source,
        })
    };
    drives.into_iter().map(prepare).collect()
}
