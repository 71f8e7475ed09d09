//! Opening the node's pool. A drive is only ever formatted when the KVDB does not know it yet: one that the KVDB knows and
//! that comes back without its superblock has lost its data, and is shown as failed instead of being made empty.
//!
//! The pool has the drives of its record: those of the command line, less those that were taken out by a command, and those that were added by
//! one. A drive that does not open is reported; the others serve.
use super::Link;
use crate::error::OpError;
use crate::node::{Node, PoolSpec};
use crate::records::{AlertKind, DriveRecord, PoolRecord, Severity, Versioned};
use keelblock_api::datapath::{DriveSpec, Health, OpenPoolRequest, Pool};
use std::time::Duration;

/// Opening may lay out a file of many gigabytes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);

/// Opens the pool in the data path and keeps its record.
pub async fn open(node: &Node, pool: &PoolSpec) -> Result<(), OpError> {
    let key = node.registry.keys().pool(pool.record.pool_id);
    let known: Option<Versioned<PoolRecord>> = node.registry.get(&key).await?;
    let known = known.map(|k| k.record);
    let wanted = wanted(pool, known.as_ref())?;
    let settled = |d: &&DriveRecord| !d.fresh;
    let there: Vec<DriveRecord> = known
        .iter()
        .flat_map(|k| &k.drives)
        .filter(settled)
        .cloned()
        .collect();
    let all: Vec<DriveRecord> = wanted.drives.iter().filter(settled).cloned().collect();
    // Known drives first, and apart: nothing of them may be formatted.
    let mut opened = None;
    if !wanted.memory && !there.is_empty() {
        opened = Some(open_drives(&node.link, pool, &there, false).await?);
    }
    let opened = match opened {
        Some(opened) if there.len() == all.len() => opened,
        _ => open_drives(&node.link, pool, &all, true).await?,
    };
    if known.as_ref() != Some(&wanted) {
        node.registry.put(&key, &wanted).await?;
    }
    for drive in wanted.drives.iter().filter(|d| d.fresh) {
        // An add was interrupted.
        match node.add_fresh(wanted.pool_id, drive).await {
            Ok(_) => tracing::info!(drive = drive.path, "drive added"),
            Err(error) if error.is_uncertain() => return Err(error),
            Err(error) => tracing::error!(drive = drive.path, %error, "a drive cannot be added"),
        }
    }
    report(node, &opened).await
}

/// The record as it is to be: the drives that are known, and those that are new on the command line.
fn wanted(pool: &PoolSpec, known: Option<&PoolRecord>) -> Result<PoolRecord, OpError> {
    let Some(known) = known else {
        return Ok(pool.record.clone());
    };
    let config = &pool.record.drives;
    if pool.record.memory {
        // Memory is told apart by its place on the command line, and what was added is made again.
        let added = known.drives.iter().filter(|d| d.added).cloned();
        let kept = config.iter().filter(|d| !known.removed.contains(&d.path));
        return Ok(PoolRecord {
            drives: kept.cloned().chain(added).collect(),
            removed: known.removed.clone(),
            last_resize: known.last_resize.clone(),
            ..pool.record.clone()
        });
    }
    let named = |d: &&DriveRecord| !d.added && config.iter().all(|c| c.path != d.path);
    if let Some(gone) = known.drives.iter().find(named) {
        return Err(OpError::State(format!(
            "pool {} has the drive {}, which is not among this process' --drive options: give all drives of the pool",
            pool.record.name, gone.path
        )));
    }
    let mut drives = known.drives.clone();
    for drive in config {
        if known.removed.contains(&drive.path) {
            tracing::warn!(
                drive = drive.path,
                "this drive was taken out of the pool and is not opened; leave its --drive out, or add it with `keelctl service drive add`"
            );
        } else if known.drives.iter().all(|k| k.path != drive.path) {
            drives.push(drive.clone());
        }
    }
    Ok(PoolRecord {
        drives,
        removed: known.removed.clone(),
        last_resize: known.last_resize.clone(),
        ..pool.record.clone()
    })
}

async fn open_drives(
    link: &Link,
    pool: &PoolSpec,
    drives: &[DriveRecord],
    format: bool,
) -> Result<Pool, OpError> {
    let size_of = |drive: &DriveRecord| {
        let given = pool.sizes.get(&drive.drive_id).copied();
        given.unwrap_or(drive.size_bytes)
    };
    let drives = drives.iter().map(|drive| DriveSpec {
        drive_id: drive.drive_id.to_string(),
        path: drive.path.clone(),
        // A known file that is not there must not be made anew, empty.
        size_bytes: if format { size_of(drive) } else { 0 },
    });
    let request = OpenPoolRequest {
        pool_id: pool.record.pool_id.to_string(),
        drives: drives.collect(),
        format,
        allow_missing: !format,
    };
    let what = format!("open pool {}", pool.record.name);
    link.call_within(OPEN_TIMEOUT, &what, |mut c| async move {
        c.open_pool(request).await
    })
    .await
}

/// Says how the drives are.
async fn report(node: &Node, opened: &Pool) -> Result<(), OpError> {
    for drive in &opened.drives {
        if drive.health() == Health::Online {
            node.clear_alert(AlertKind::DriveFailed, &drive.drive_id)
                .await?;
            continue;
        }
        tracing::error!(
            drive = drive.path,
            error = drive.error,
            "a drive has failed, or is not there"
        );
        node.drive_failed(&drive.drive_id, &drive.path, &drive.error)
            .await?;
    }
    tracing::info!(
        pool = opened.pool_id,
        total = opened.total_bytes,
        used = opened.used_bytes,
        "pool open"
    );
    Ok(())
}

impl Node {
    /// Raises the alert of a drive that does not work.
    pub(super) async fn drive_failed(
        &self,
        drive_id: &str,
        path: &str,
        error: &str,
    ) -> Result<(), OpError> {
        let message = format!(
            "drive {path} has failed ({error}): what only it holds cannot be used. If it does not come back, give it up with \
             `keelctl service drive replace {drive_id}`"
        );
        self.raise_alert(
            AlertKind::DriveFailed,
            drive_id,
            "",
            Severity::Alarm,
            message,
        )
        .await
    }
}
