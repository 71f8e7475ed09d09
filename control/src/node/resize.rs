//! Resizing a pool as a whole: its files are made larger, or another file is put beside them. Devices cannot be made larger from here; what has
//! grown by itself is used, and for the rest the error says what to do.
use super::Node;
use crate::config::DriveSpec;
use crate::error::OpError;
use crate::records::{DriveRecord, PoolRecord, ResizeRecord};
use keelblock_api::datapath::{Drive, DriveState, Health, Pool};
use std::path::Path;
use uuid::Uuid;

/// Files grow by multiples of this.
const GRAIN: u64 = 1 << 20;
/// Smallest file that is made.
const FILE_MIN: u64 = 64 << 20;

/// To what.
#[derive(Debug, Clone, Copy)]
pub enum ResizeFactor {
    /// So many bytes.
    Bytes(u64),
    /// Larger by this many percent.
    Percent(u64),
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeHow {
    /// As it can be done.
    Auto,
    /// By another drive.
    AddDisk,
    /// By larger drives.
    ResizeDisk,
}

fn target(factor: ResizeFactor, total_bytes: u64) -> Result<u64, OpError> {
    match factor {
        ResizeFactor::Bytes(0) | ResizeFactor::Percent(0) => Err(OpError::Missing {
            field: "resize_factor",
            hint: "size in bytes, or percentage to grow by",
        }),
        ResizeFactor::Bytes(bytes) if bytes < total_bytes => Err(OpError::invalid(
            "size",
            format!(
                "the pool has {total_bytes} bytes, and cannot shrink; evacuate and remove a drive for that"
            ),
        )),
        ResizeFactor::Bytes(bytes) => Ok(bytes),
        ResizeFactor::Percent(percent) => {
            // 64 by 64 bits, and a little: within 128.
            let more = u128::from(total_bytes) * u128::from(percent) / 100;
            u64::try_from(u128::from(total_bytes) + more)
                .map_err(|_| OpError::invalid("percentage", "is too much"))
        }
    }
}

impl Node {
    /// Makes the pool as large as asked for. Large enough already is done already.
    pub async fn resize_pool(
        &self,
        uuid: &str,
        factor: ResizeFactor,
        how: ResizeHow,
    ) -> Result<(), OpError> {
        let _changing = self.exclusive().await?;
        let pool = self.pool_named(uuid).await?;
        self.link.up()?;
        let now = self.pool_now(pool.pool_id).await?;
        let wanted_bytes = target(factor, now.total_bytes)?;
        let missing = wanted_bytes - now.total_bytes;
        if missing == 0 {
            return Ok(());
        }
        let done = match how {
            ResizeHow::AddDisk => self.add_beside(&pool, missing).await,
            ResizeHow::Auto | ResizeHow::ResizeDisk => self.enlarge(&pool, &now, missing).await,
        };
        let error = done
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default();
        self.change_pool(pool.pool_id, |r| {
            r.last_resize = Some(ResizeRecord {
                wanted_bytes,
                error: error.clone(),
            });
            Ok(true)
        })
        .await?;
        done
    }

    /// The pool of this node, if it is the one that is meant: by id or name, or not named at all.
    pub(super) async fn pool_named(&self, pool: &str) -> Result<PoolRecord, OpError> {
        let record = self.pool_record().await?;
        let is_it =
            pool.is_empty() || pool == record.name || Uuid::try_parse(pool) == Ok(record.pool_id);
        if !is_it {
            return Err(OpError::NotFound {
                kind: "pool",
                name: format!("{pool} on node {}", self.node_id()),
            });
        }
        Ok(record)
    }

    async fn enlarge(&self, pool: &PoolRecord, now: &Pool, missing: u64) -> Result<(), OpError> {
        let usable = |d: &&DriveRecord| {
            let id = d.drive_id.to_string();
            let seen = now.drives.iter().find(|s| s.drive_id == id);
            seen.is_some_and(|s| {
                s.health() == Health::Online
                    && s.state() != DriveState::DriveEvacuating
                    && s.state() != DriveState::DriveEvacuated
            })
        };
        let drives: Vec<&DriveRecord> = pool.drives.iter().filter(usable).collect();
        let files: Vec<&DriveRecord> = drives
            .iter()
            .copied()
            .filter(|d| Path::new(&d.path).is_file())
            .collect();
        if !files.is_empty() {
            let each = missing.div_ceil(files.len() as u64).next_multiple_of(GRAIN);
            for file in files {
                let size = size_of(&now.drives, file) + each;
                self.grow_known(pool, file, size).await?;
            }
            return Ok(());
        }
        if pool.memory {
            return Err(OpError::State(format!(
                "pool {} is memory, which does not grow: add some with `keelctl service drive add memory:SIZE`",
                pool.name
            )));
        }
        let mut grown = 0;
        for device in drives {
            let (_, drive) = self.grow_known(pool, device, 0).await?;
            grown += drive
                .size_bytes
                .saturating_sub(size_of(&now.drives, device));
        }
        if grown >= missing {
            return Ok(());
        }
        Err(OpError::State(format!(
            "the devices of pool {} have grown by {grown} bytes, not by {missing}: make them larger and do this again, or add one \
             with `keelctl service drive add PATH`",
            pool.name
        )))
    }

    async fn add_beside(&self, pool: &PoolRecord, missing: u64) -> Result<(), OpError> {
        let file = pool.drives.iter().find(|d| Path::new(&d.path).is_file());
        let Some(file) = file else {
            return Err(OpError::invalid(
                "operation_type",
                format!(
                    "pool {} has no file that another could be made beside; name a drive with `keelctl service drive add PATH`",
                    pool.name
                ),
            ));
        };
        let free = |n: &usize| !Path::new(&format!("{}.{n}", file.path)).exists();
        let number = (2..1000).find(free).ok_or_else(|| {
            OpError::State(format!("there are too many files beside {}", file.path))
        })?;
        let spec = DriveSpec {
            path: format!("{}.{number}", file.path),
            size_bytes: missing.next_multiple_of(GRAIN).max(FILE_MIN),
        };
        self.add(spec).await.map(drop)
    }
}

fn size_of(seen: &[Drive], drive: &DriveRecord) -> u64 {
    let id = drive.drive_id.to_string();
    seen.iter()
        .find(|s| s.drive_id == id)
        .map_or(0, |s| s.size_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_only_grow() {
        assert_eq!(target(ResizeFactor::Bytes(20), 10).unwrap(), 20);
        assert_eq!(target(ResizeFactor::Bytes(10), 10).unwrap(), 10);
        assert!(
            target(ResizeFactor::Bytes(9), 10)
                .unwrap_err()
                .to_string()
                .contains("shrink")
        );
        assert_eq!(target(ResizeFactor::Percent(50), 10).unwrap(), 15);
        assert!(target(ResizeFactor::Percent(0), 10).is_err());
        assert!(target(ResizeFactor::Percent(u64::MAX), u64::MAX).is_err());
    }
}
