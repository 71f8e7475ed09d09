//! Taking the snapshots that are due, and deleting the oldest of too many.
use super::calendar::stamp;
use super::policy::PolicyRecord;
use super::record::{Due, ScheduleRecord};
use crate::auth::Way;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::{Node, SnapshotWish};
use crate::records::{
    AlertKind, NodeRecord, Phase, Severity, SnapshotRecord, Versioned, VolumeRecord, encode,
    unix_ms,
};
use keelblock_api::openstorage::open_storage_volume_client::OpenStorageVolumeClient;
use keelblock_api::openstorage::{SdkVolumeDeleteRequest, SdkVolumeSnapshotCreateRequest};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Endpoint;

/// The label of scheduled snapshots: `policy/time`, which they count for.
pub const SCHEDULE_LABEL: &str = "keelblock.schedule";

/// How often it is looked at what is due.
const LOOK: Duration = Duration::from_secs(5);
/// How long another node may take for a snapshot or its deletion: as long as a caller waits there.
const ASK_LIMIT: Duration = Duration::from_secs(15);

/// Does what is due while this node is the one that does it, until told to stop.
pub async fn keep_schedules(node: Arc<Node>, mut stop: watch::Receiver<bool>) -> Option<OpError> {
    let key = node.registry.keys().schedule_leader();
    let work = node.while_leading(&key, "scheduled snapshots", || run(&node));
    tokio::select! {
        () = work => None,
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

async fn run(node: &Node) {
    loop {
        if let Err(error) = node.schedule_tick(unix_ms()).await {
            tracing::warn!(%error, "cannot see which snapshots are due");
        }
        if let Err(error) = node.trash_tick(unix_ms()).await {
            tracing::warn!(%error, "cannot see what is due to leave the trashcan");
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Node {
    /// Does what is due at this moment, given in ms since the Unix epoch. What cannot be done is said in the schedule's record and as an alert, and
    /// tried again each time until something later is due.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn schedule_tick(&self, now_unix_ms: u64) -> Result<(), OpError> {
        self.no_restore().await?;
        let schedules = self.schedules().await?;
        if schedules.is_empty() {
            return Ok(());
        }
        let policies = self.policies().await?;
        for schedule in schedules {
            let id = schedule.record.volume_id;
            match self.registry.volume_by_id(id).await? {
                // If it is taken out of the trashcan, its schedules go on.
                Some(volume) if volume.record.in_trash().is_some() => {}
                Some(volume) if volume.record.phase == Phase::Ready => {
                    self.do_what_is_due(schedule, &volume.record, &policies, now_unix_ms)
                        .await?;
                }
                Some(volume) if volume.record.phase == Phase::Creating => {}
                _ => self.end_schedule(&schedule).await?,
            }
        }
        Ok(())
    }

    /// Of a volume that is no more.
    async fn end_schedule(&self, schedule: &Versioned<ScheduleRecord>) -> Result<(), OpError> {
        let key = self.registry.keys().schedule(schedule.record.volume_id);
        let guard = Guard::at(&key, schedule.revision);
        let write = Write::delete(&key);
        // If somebody changed it, it is looked at again.
        Ok(self
            .registry
            .kv()
            .commit(vec![guard], vec![write])
            .await
            .map(drop)?)
    }

    async fn do_what_is_due(
        &self,
        schedule: Versioned<ScheduleRecord>,
        volume: &VolumeRecord,
        policies: &[PolicyRecord],
        now_unix_ms: u64,
    ) -> Result<(), OpError> {
        let before = &schedule.record;
        let mut after = before.clone();
        let has = |p: &&PolicyRecord| before.policies.contains_key(&p.name);
        let mine: Vec<PolicyRecord> = policies.iter().filter(has).cloned().collect();
        let due: Vec<Due> = mine
            .iter()
            .flat_map(|p| before.due(p, now_unix_ms))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let mut failed = None;
        for due in &due {
            match self.take_scheduled(volume, due).await {
                Ok(()) => drop(after.done.insert(due.of.clone(), due.at_s)),
                Err(error) => failed = Some(format!("the {} snapshot: {error}", due.frequency)),
            }
        }
        after.forget(&mine);
        after.error = failed.unwrap_or_default();
        if after == *before {
            return Ok(());
        }
        let key = self.registry.keys().schedule(volume.volume_id);
        let kv = self.registry.kv();
        // Somebody who changed the schedules meanwhile was first: the same snapshots are found again at the next look.
        if kv
            .compare_and_swap(&key, schedule.revision, encode(&after))
            .await?
            == Committed::No
        {
            return Ok(());
        }
        self.tell(volume, &before.error, &after.error).await
    }

    async fn tell(&self, volume: &VolumeRecord, before: &str, now: &str) -> Result<(), OpError> {
        let (kind, id) = (AlertKind::SnapshotFailed, volume.volume_id.to_string());
        if now.is_empty() {
            return match before.is_empty() {
                true => Ok(()),
                false => self.clear_alert(kind, &id).await,
            };
        }
        let message = format!(
            "a scheduled snapshot of volume {} was not taken: {now}",
            volume.name
        );
        tracing::warn!(
            volume = volume.name,
            now,
            "a scheduled snapshot was not taken"
        );
        self.raise_alert(kind, &id, "", Severity::Warning, message)
            .await
    }

    /// Takes one, then deletes what is too old.
    async fn take_scheduled(&self, volume: &VolumeRecord, due: &Due) -> Result<(), OpError> {
        let wish = SnapshotWish {
            volume: volume.volume_id.to_string(),
            name: format!("{}_{}_{}", volume.name, due.frequency, stamp(due.at_s)),
            labels: BTreeMap::from([(SCHEDULE_LABEL.into(), due.of.clone())]),
        };
        match self.elsewhere(&volume.node_id).await? {
            None => drop(self.create_snapshots(vec![wish]).await?),
            Some(channel) => {
                let request = SdkVolumeSnapshotCreateRequest {
                    volume_id: wish.volume,
                    name: wish.name,
                    labels: wish.labels.into_iter().collect(),
                };
                let mut client = OpenStorageVolumeClient::new(channel);
                let asked = client.snapshot_create(request).await;
                asked.map_err(|s| self.said(&volume.node_id, &s))?;
            }
        }
        self.delete_scheduled(volume, due).await
    }

    async fn delete_scheduled(&self, volume: &VolumeRecord, due: &Due) -> Result<(), OpError> {
        let mut all = self.registry.snapshots().await?;
        let counts = |s: &SnapshotRecord| {
            let label = s.labels.get(SCHEDULE_LABEL);
            let ready = s.phase == Phase::Ready && s.volume_id == volume.volume_id;
            ready && label == Some(&due.of)
        };
        all.retain(counts);
        // Their names end with the time at which they were due.
        all.sort_by(|a, b| b.name.cmp(&a.name));
        for old in all.into_iter().skip(due.retain as usize) {
            let id = old.snapshot_id.to_string();
            match self.elsewhere(&old.node_id).await? {
                None => self.delete_volume(&id).await?,
                Some(channel) => {
                    let request = SdkVolumeDeleteRequest { volume_id: id };
                    let mut client = OpenStorageVolumeClient::new(channel);
                    let asked = client.delete(request).await;
                    asked.map_err(|s| self.said(&old.node_id, &s))?;
                }
            }
            tracing::info!(snapshot = old.name, "an old scheduled snapshot is deleted");
        }
        Ok(())
    }

    pub(crate) fn said(&self, node_id: &str, status: &tonic::Status) -> OpError {
        OpError::Unavailable(format!("node {node_id}: {}", status.message()))
    }

    /// The way to the node that has a volume's only copy, if that is another; replicated ones have none, and are anybody's.
    pub(crate) async fn elsewhere(&self, node_id: &str) -> Result<Option<Way>, OpError> {
        if node_id.is_empty() || node_id == self.node_id() {
            return Ok(None);
        }
        let key = self.registry.keys().node(node_id);
        let node: Option<Versioned<NodeRecord>> = self.registry.get(&key).await?;
        let away = |why: String| OpError::Unavailable(format!("node {node_id} {why}"));
        let node = node.ok_or_else(|| away("is not known".into()))?.record;
        let endpoint = Endpoint::from_shared(format!("http://{}", node.sdk_address));
        let endpoint = endpoint.map_err(|e| away(format!("has no address: {e}")))?;
        let endpoint = endpoint.connect_timeout(ASK_LIMIT / 5).timeout(ASK_LIMIT);
        Ok(Some(self.as_node(endpoint.connect_lazy()).await))
    }
}
