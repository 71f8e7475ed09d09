//! Opening the node's pool. A drive is only ever formatted when the KVDB does not know it yet: one that the KVDB knows and
//! that comes back without its superblock has lost its data, and is refused instead of being made empty.
use super::Link;
use crate::error::OpError;
use crate::node::{Node, PoolSpec};
use crate::records::{DriveRecord, PoolRecord, Versioned};
use keelblock_api::datapath::{DriveSpec, OpenPoolRequest};
use std::time::Duration;

/// Opening may lay out a file of many gigabytes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);

/// Opens the pool in the data path and keeps its record.
pub async fn open(node: &Node, pool: &PoolSpec) -> Result<(), OpError> {
    let key = node.registry.keys().pool(pool.record.pool_id);
    let known: Option<Versioned<PoolRecord>> = node.registry.get(&key).await?;
    let known = known.map(|k| k.record.drives).unwrap_or_default();
    if pool.record.memory {
        open_drives(&node.link, pool, &pool.record.drives, true).await?;
    } else {
        let config = &pool.record.drives;
        if let Some(gone) = known.iter().find(|d| !config.contains(d)) {
            return Err(OpError::State(format!(
                "pool {} has the drive {}, which is not among this process' --drive options: give all drives of the pool",
                pool.record.name, gone.path
            )));
        }
        if !known.is_empty() {
            open_drives(&node.link, pool, &known, false).await?;
        }
        if known.len() < config.len() {
            open_drives(&node.link, pool, config, true).await?;
        }
    }
    if known != pool.record.drives {
        node.registry.put(&key, &pool.record).await?;
    }
    Ok(())
}

async fn open_drives(
    link: &Link,
    pool: &PoolSpec,
    drives: &[DriveRecord],
    format: bool,
) -> Result<(), OpError> {
    let size_of = |drive: &DriveRecord| pool.sizes.get(&drive.drive_id).copied().unwrap_or(0);
    let drives = drives.iter().map(|drive| DriveSpec {
        drive_id: drive.drive_id.to_string(),
        path: drive.path.clone(),
        size_bytes: size_of(drive),
    });
    let request = OpenPoolRequest {
        pool_id: pool.record.pool_id.to_string(),
        drives: drives.collect(),
        format,
        allow_missing: !format,
    };
    let what = format!("open pool {}", pool.record.name);
    let opened = link
        .call_within(OPEN_TIMEOUT, &what, |mut c| async move {
            c.open_pool(request).await
        })
        .await?;
    for drive in &opened.drives {
        if !drive.error.is_empty() {
            tracing::error!(
                drive = drive.path,
                error = drive.error,
                "a drive has failed; it takes no more writes"
            );
        }
    }
    tracing::info!(
        pool = pool.record.name,
        total = opened.total_bytes,
        used = opened.used_bytes,
        "pool open"
    );
    Ok(())
}
