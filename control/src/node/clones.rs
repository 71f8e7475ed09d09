//! Clones, and setting a volume back: what snapshots are for.
//!
//! A clone of a volume is a clone of a snapshot that is taken for it and deleted when the clone is there. A volume that is being set
//! back says so in its record, as its lanes are set back one by one, and is used again when all are.
use super::Node;
use super::placing::{self, PLACING_LIMIT};
use super::wishes::{check_labels, check_name, merge_labels};
use crate::auth::Caller;
use crate::error::OpError;
use crate::records::{Found, Phase, SourceRecord, Versioned, VolumeRecord, unix_ms};
use keelblock_api::datapath::{
    CloneVolumeRequest, CreateSnapshotsRequest, NewSnapshot, RestoreVolumeRequest,
};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// Either waits for a checkpoint at times.
const LONG: Duration = Duration::from_secs(40);

impl Node {
    /// Makes a writable volume of a volume or snapshot; its id. It has the parent's labels, and those that are given. It is `caller`'s. The same wish again gives
    /// the same id.
    pub async fn clone_volume(
        &self,
        name: String,
        parent: &str,
        labels: BTreeMap<String, String>,
        caller: &Caller,
    ) -> Result<Uuid, OpError> {
        check_name(&name)?;
        check_labels(&labels)?;
        let end = Instant::now() + PLACING_LIMIT;
        loop {
            let once = self.clone_once(name.clone(), parent, labels.clone(), caller);
            match once.await {
                // Others are placed at the same time, or something of the source has changed.
                Err(OpError::Contended { .. }) if Instant::now() < end => {
                    tokio::time::sleep(placing::pause()).await;
                }
                made => return made,
            }
        }
    }

    async fn clone_once(
        &self,
        name: String,
        parent: &str,
        labels: BTreeMap<String, String>,
        caller: &Caller,
    ) -> Result<Uuid, OpError> {
        let found = self.registry.find("parent_id", parent).await?;
        let found = found.ok_or_else(|| OpError::no_volume(parent))?;
        match &found {
            Found::Snapshot(s) if s.record.epoch.is_some() => {
                return self.clone_replicated(name, s, labels, caller).await;
            }
            Found::Volume(v) if v.record.replicated.is_some() => {
                return self.clone_replicated_volume(name, v, labels, caller).await;
            }
            _ => {}
        }
        let _changing = self.exclusive().await?;
        let owned = match &found {
            Found::Volume(v) => &v.record.ownership,
            Found::Snapshot(s) => &s.record.ownership,
        };
        let (source, template) = match &found {
            Found::Volume(Versioned { record, .. }) => (
                SourceRecord {
                    volume_id: record.volume_id,
                    snapshot_id: Uuid::new_v4(),
                    own: true,
                },
                (record.size_bytes, record.block_bytes, &record.labels),
            ),
            Found::Snapshot(Versioned { record, .. }) => (
                SourceRecord {
                    volume_id: record.volume_id,
                    snapshot_id: record.snapshot_id,
                    own: false,
                },
                (record.size_bytes, record.block_bytes, &record.labels),
            ),
        };
        if let Some(there) = self.existing(&name).await? {
            return self.adopt_clone(&there.record, &source).await;
        }
        let pool_id = match &found {
            Found::Volume(v) => {
                self.own(&v.record)?;
                self.usable(&v.record)?;
                v.record.pool_id
            }
            Found::Snapshot(s) => {
                self.usable_snapshot(&s.record)?;
                s.record.pool_id
            }
        };
        self.link.up()?;
        let (size_bytes, block_bytes, inherited) = template;
        let mut all = inherited.clone();
        merge_labels(&mut all, &labels)?;
        let record = VolumeRecord {
            volume_id: Uuid::new_v4(),
            name,
            phase: Phase::Creating,
            node_id: self.node_id().into(),
            pool_id,
            replicated: None,
            size_bytes,
            block_bytes,
            encrypted: false,
            sticky: false,
            labels: all,
            any_host: true,
            allowed_hosts: Vec::new(),
            created_unix_ms: unix_ms(),
            detached_unix_ms: 0,
            error: String::new(),
            source: Some(source),
            restoring: None,
            placement: None,
            trashed: None,
            asked_bytes: None,
            ownership: caller.owns_clone(owned.as_ref()),
        };
        self.make_volume(&record, &[]).await?;
        tracing::info!(volume = record.name, id = %record.volume_id, parent, "volume cloned");
        Ok(record.volume_id)
    }

    async fn adopt_clone(
        &self,
        record: &VolumeRecord,
        source: &SourceRecord,
    ) -> Result<Uuid, OpError> {
        let same = record.source.as_ref().map(SourceRecord::parent) == Some(source.parent());
        if !same {
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: "but was not cloned from there".into(),
            });
        }
        if record.phase == Phase::Creating {
            self.link.up()?;
            self.finish_create(record).await?;
        }
        Ok(record.volume_id)
    }

    /// Makes a clone's content. An error that is not uncertain leaves nothing behind.
    pub(super) async fn fill_clone(
        &self,
        record: &VolumeRecord,
        source: &SourceRecord,
    ) -> Result<(), OpError> {
        let (volume_id, snapshot_id) = (source.volume_id, source.snapshot_id);
        let what = format!("clone volume {}", record.name);
        if source.own {
            let request = CreateSnapshotsRequest {
                snapshots: vec![NewSnapshot {
                    volume_id: volume_id.to_string(),
                    snapshot_id: snapshot_id.to_string(),
                }],
            };
            let taken = self.link.call(
                &what,
                |mut c| async move { c.create_snapshots(request).await },
            );
            taken.await?;
        }
        let request = CloneVolumeRequest {
            volume_id: record.volume_id.to_string(),
            source_volume_id: volume_id.to_string(),
            snapshot_id: snapshot_id.to_string(),
        };
        let cloned =
            self.link.call_for(
                LONG,
                &what,
                |mut c| async move { c.clone_volume(request).await },
            );
        let cloned = cloned.await.map(drop);
        let uncertain = cloned.as_ref().is_err_and(OpError::is_uncertain);
        if source.own && !uncertain {
            self.drop_snapshot(&what, volume_id, snapshot_id).await?;
        }
        cloned
    }

    /// Sets a detached volume back to a snapshot of it.
    pub async fn restore_volume(&self, name: &str, snapshot: &str) -> Result<(), OpError> {
        let volume = self.registry.volume(name).await?;
        if volume.record.replicated.is_some() {
            return self.restore_replicated(&volume, snapshot).await;
        }
        let _changing = self.exclusive().await?;
        let volume = self.registry.volume(name).await?.record;
        self.own(&volume)?;
        let snapshot = self.registry.snapshot(snapshot).await?.record;
        if snapshot.volume_id != volume.volume_id {
            return Err(OpError::State(format!(
                "snapshot {} is of volume {}, not of {}: clone it to have its content in another volume",
                snapshot.name, snapshot.volume_name, volume.name
            )));
        }
        self.usable_snapshot(&snapshot)?;
        if volume.restoring.is_none() {
            self.usable(&volume)?;
        }
        if self.registry.attachment(volume.volume_id).await?.is_some() {
            return Err(OpError::State(format!(
                "volume {} is attached, and its hosts would not notice: detach it first",
                volume.name
            )));
        }
        self.link.up()?;
        if snapshot.size_bytes > volume.counted_bytes() {
            self.ask_room(volume.volume_id, snapshot.size_bytes, "set back")
                .await?;
        }
        let restoring = self.change_volume(volume.volume_id, |r| {
            r.restoring = Some(snapshot.snapshot_id);
            Ok(true)
        });
        let begun = volume.restoring.is_some();
        self.finish_restore(&restoring.await?, snapshot.snapshot_id, begun)
            .await?;
        tracing::info!(
            volume = volume.name,
            snapshot = snapshot.name,
            "volume restored"
        );
        Ok(())
    }

    /// Sets a volume back whose record says so. A refusal before anything was done (not even by an attempt that has `begun` before) takes
    /// that back; after any other error it stays, so that nobody uses a volume that is half one and half the other.
    pub(crate) async fn finish_restore(
        &self,
        record: &VolumeRecord,
        snapshot_id: Uuid,
        begun: bool,
    ) -> Result<(), OpError> {
        let request = RestoreVolumeRequest {
            volume_id: record.volume_id.to_string(),
            snapshot_id: snapshot_id.to_string(),
        };
        let what = format!("restore volume {}", record.name);
        let restored = self.link.call_for(LONG, &what, |mut c| async move {
            c.restore_volume(request).await
        });
        let (size_bytes, result) = match restored.await {
            Ok(volume) => (volume.size_bytes, Ok(())),
            Err(refused @ (OpError::State(_) | OpError::Invalid { .. })) if !begun => {
                (record.size_bytes, Err(refused))
            }
            Err(error) => return Err(error),
        };
        self.change_volume(record.volume_id, |r| {
            r.restoring = None;
            r.asked_bytes = None;
            r.size_bytes = size_bytes;
            Ok(true)
        })
        .await?;
        result
    }
}
