//! The path that hosts have to a volume on this node, and coordinating it.

use std::time::Duration;

use keelblock_api::datapath::{
    ClosePathRequest, EndReason, ExportRequest, ForwardTo, Namespace, OpenPathRequest,
    ServeRequest, StopServingRequest, UnexportRequest,
};
use uuid::Uuid;

use super::Now;
use super::actor::Attempts;
use super::changes::set_record;
use super::sizes::size_of_path;
use super::told::{PathTold, runs, serves};
use crate::datapath::CALL_TIMEOUT;
use crate::error::OpError;
use crate::names;
use crate::node::Node;
use crate::records::{AttachmentRecord, CntlidRecord, PathState, Versioned, VolumeRecord};
use crate::replication::attach::{AttachError, Process, attach};

/// How long K1 is tried at a time.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a volume that is moved here waits for the node that it comes from.
const MOVE_LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

impl From<AttachError> for OpError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Refused { .. } | AttachError::Unverified { .. } => {
                Self::State(error.to_string())
            }
            AttachError::NoRecord(_) | AttachError::NoCluster | AttachError::Swap(_) => {
                Self::Internal(error.to_string())
            }
            AttachError::Beaten { .. } | AttachError::Contended(_) => Self::Busy(error.to_string()),
            AttachError::Unknown { .. } => Self::Unavailable(error.to_string()),
        }
    }
}

impl Node {
    /// Coordinates a volume that is attached to this node, and exports it.
    pub(super) async fn coordinate_here(
        &self,
        now: &Now,
        attempts: &mut Attempts,
    ) -> Result<Option<Duration>, OpError> {
        let (Some(volume), Some(set), Some(attachment)) = (&now.volume, &now.set, &now.attachment)
        else {
            return Ok(None);
        };
        if attachment.record.errand {
            // What hosts had before.
            let path = self.coordination.told().path(now.id);
            if path.is_none_or(|p| p.export.is_some()) {
                self.nothing_here(now.id).await?;
            }
        }
        let coordinator = self.coordination.told().coordinator(now.id).cloned();
        // The KVDB's watch may be behind the epoch that was given a moment ago.
        let mine = coordinator.filter(|c| runs(c) && c.epoch >= set.record.epoch.number());
        let errand = self
            .end_errand(now, mine.as_ref(), &mut attempts.advance)
            .await?;
        let state = match mine.as_ref() {
            Some(c) if serves(c) => PathState::Optimized,
            _ => PathState::Inaccessible,
        };
        if mine.is_some() {
            if state == PathState::Optimized {
                attempts.well();
                self.coordination.set_trouble(now.id, None);
            }
            self.export_path(volume, attachment, state).await?;
            let serves = state == PathState::Optimized;
            return match mine.filter(|c| serves && c.epoch == set.record.epoch.number()) {
                Some(coordinator) => {
                    self.follow_size(volume, &coordinator).await?;
                    let followed = self.follow_snapshots(now, &coordinator).await;
                    // A clone may wait for a replica that this brings.
                    let wait = self.change_replicas(now, &coordinator).await?;
                    followed.map(|again| again.or(wait).or(errand))
                }
                None => Ok(errand),
            };
        }
        // Hosts keep their connections: they wait, or go elsewhere.
        self.export_path_if_open(volume, attachment).await?;
        if self.halt(now, volume).await? {
            return Ok(None);
        }
        if let Some(wait) = self.wait_for_move(now, attachment).await? {
            return Ok(Some(wait));
        }
        let wait = attempts.wait();
        if !wait.is_zero() {
            return Ok(Some(wait));
        }
        attempts.begin();
        self.take_and_serve(now, volume).await?;
        self.export_path(volume, attachment, PathState::Inaccessible)
            .await?;
        Ok(None)
    }

    /// Whether a person is to look first.
    async fn halt(&self, now: &Now, volume: &Versioned<VolumeRecord>) -> Result<bool, OpError> {
        let ended = self.coordination.told().coordinator(now.id).cloned();
        if let Some(ended) = ended.filter(|c| c.end() == EndReason::EndAlarm)
            && volume.record.error.is_empty()
        {
            let error = format!(
                "its replicas contradict each other ({}): it is not served until a person has looked; detach and attach it to try again",
                ended.alarm
            );
            tracing::error!(
                volume = volume.record.name,
                alarm = ended.alarm,
                "not served"
            );
            self.coordination.set_trouble(now.id, Some(error.clone()));
            self.set_volume_error(&volume.record, &error).await?;
            return Ok(true);
        }
        Ok(!volume.record.error.is_empty())
    }

    /// The node that it comes from ends serving it first, if it can.
    async fn wait_for_move(
        &self,
        now: &Now,
        attachment: &Versioned<AttachmentRecord>,
    ) -> Result<Option<Duration>, OpError> {
        let Some(from) = &attachment.record.moved_from else {
            return Ok(None);
        };
        let lives = self.coordination.seen().alive().contains_key(from);
        let waited = now.attached_since.map_or(MOVE_LIMIT, |at| at.elapsed());
        if lives && waited < MOVE_LIMIT {
            return Ok(Some(LOOK));
        }
        self.moved(attachment).await?;
        Ok(None)
    }

    /// Says that nobody has to be waited for any more. Somebody else may have changed where it is attached: then that counts.
    async fn moved(&self, attachment: &Versioned<AttachmentRecord>) -> Result<(), OpError> {
        let record = AttachmentRecord {
            moved_from: None,
            ..attachment.record.clone()
        };
        let key = self.registry.keys().attachment(record.volume_id);
        let text = crate::records::encode(&record);
        self.registry
            .kv()
            .compare_and_swap(&key, attachment.revision, text)
            .await?;
        Ok(())
    }

    async fn take_and_serve(
        &self,
        now: &Now,
        volume: &Versioned<VolumeRecord>,
    ) -> Result<(), OpError> {
        // A coordinator hears that it was superseded before the watch says that the volume is attached elsewhere.
        let found = self.registry.any_attachment(now.id).await?;
        if found.is_none_or(|a| a.record.node_id != self.node_id()) {
            return Err(OpError::Contended {
                what: format!("where volume {} is attached", volume.record.name),
            });
        }
        let incarnation = self.coordination.told().incarnation;
        let Some(incarnation) = incarnation else {
            return Err(OpError::Unavailable("the data path went away".into()));
        };
        let process = Process {
            node_id: self.node_id().into(),
            incarnation,
        };
        // Before an epoch is taken: without them it would be for nothing, and take the volume from who serves it.
        let data_keys = self.data_keys(&volume.record).await?;
        self.no_restore().await?;
        self.can_be_heard(&volume.record).await?;
        let (kv, keys) = (self.registry.kv(), self.registry.keys());
        let taken = attach(kv, keys, now.id, &process, PATIENCE).await?;
        let record = &taken.record.record;
        tracing::info!(volume = volume.record.name, epoch = %record.epoch, "epoch taken");
        let layout = volume.record.replicated.as_ref();
        // Behind K1: how far whoever served it before may have written.
        let size_bytes = self.size_to_serve(now.id).await?;
        let open = self.coordination.told().path(now.id).and_then(|p| p.open);
        if open.is_some_and(|open| open > size_bytes) {
            // It was set back, and is another volume for hosts.
            self.nothing_here(now.id).await?;
        }
        let request = ServeRequest {
            volume_id: now.id.to_string(),
            size_bytes,
            lanes: layout.map_or(1, |l| l.lanes).into(),
            record: Some(set_record(record)),
            lease_ms: 0,
            volatile_cache: layout.is_some_and(|l| l.volatile_cache),
            command_limit_ms: 0,
            keys: data_keys,
            // Behind K1: whatever was said to exist before is named, and what is named later is this epoch's business.
            snapshots: self.named_snapshots(now.id, record.epoch.number()).await?,
            compared_bytes: self.size_to_compare(now.id, size_bytes).await?,
            unverified: taken.unverified,
        };
        // Not sent again if its outcome is not known: another epoch is taken, as nobody may serve one twice (rule 2).
        let what = format!("serve volume {}", volume.record.name);
        let serving = self
            .link
            .call_within(CALL_TIMEOUT, &what, |mut c| async move {
                c.serve(request).await
            });
        let coordinator = serving.await?;
        let mut told = self.coordination.told();
        told.report(coordinator);
        let open = Some(size_bytes);
        let export = told.path(now.id).and_then(|p| p.export);
        let path = PathTold {
            open,
            export,
            forward: None,
        };
        told.set_path(now.id, path);
        Ok(())
    }

    /// Keeps a path to a volume that is coordinated elsewhere: what hosts send here is forwarded while that node serves; else they wait, or go where it does.
    pub(super) async fn path_here(&self, now: &Now) -> Result<(), OpError> {
        let (Some(volume), Some(attachment)) = (&now.volume, &now.attachment) else {
            return Ok(());
        };
        let to = now.forward_to(self.node_id());
        let coordinates = self.coordination.told().coordinator(now.id).is_some();
        if to.is_none() || coordinates {
            // Before anything else: what comes meanwhile is for another path.
            self.export_path_if_open(volume, attachment).await?;
        }
        self.stop_here(now.id).await?;
        if attachment.record.moved_from.as_deref() == Some(self.node_id()) {
            self.moved(attachment).await?;
        }
        let state = match to {
            Some(_) => PathState::NonOptimized,
            None => PathState::Inaccessible,
        };
        self.open_path(volume, to).await?;
        self.export_path(volume, attachment, state).await
    }

    async fn stop_here(&self, id: Uuid) -> Result<(), OpError> {
        if self.coordination.told().coordinator(id).is_none() {
            return Ok(());
        }
        let request = StopServingRequest {
            volume_id: id.to_string(),
        };
        self.link
            .call_within(CALL_TIMEOUT, "stop serving", |mut c| async move {
                c.stop_serving(request).await
            })
            .await?;
        self.coordination.told().stopped(id);
        tracing::info!(volume = %id, "not coordinated here any more");
        Ok(())
    }

    async fn open_path(
        &self,
        volume: &Versioned<VolumeRecord>,
        forward: Option<ForwardTo>,
    ) -> Result<(), OpError> {
        let record = &volume.record;
        let path = self
            .coordination
            .told()
            .path(record.volume_id)
            .unwrap_or_default();
        let size_bytes = size_of_path(record, path.open);
        if path.open == Some(size_bytes) && path.forward == forward {
            return Ok(());
        }
        if path.open.is_some_and(|open| open > size_bytes) {
            // It was set back, and is another volume for hosts.
            self.nothing_here(record.volume_id).await?;
        }
        let layout = record.replicated.as_ref();
        let request = OpenPathRequest {
            volume_id: record.volume_id.to_string(),
            size_bytes,
            lanes: layout.map_or(1, |l| l.lanes).into(),
            volatile_cache: layout.is_some_and(|l| l.volatile_cache),
            forward: forward.clone(),
        };
        self.link
            .call_within(CALL_TIMEOUT, "open a path", |mut c| async move {
                c.open_path(request).await
            })
            .await?;
        let open = Some(size_bytes);
        let path = PathTold {
            open,
            forward,
            ..path
        };
        self.coordination.told().set_path(record.volume_id, path);
        Ok(())
    }

    /// Exports a path that is open already, as one that does not work now.
    async fn export_path_if_open(
        &self,
        volume: &Versioned<VolumeRecord>,
        attachment: &Versioned<AttachmentRecord>,
    ) -> Result<(), OpError> {
        let path = self.coordination.told().path(volume.record.volume_id);
        match path.is_some_and(|p| p.export.is_some()) {
            true => {
                self.export_path(volume, attachment, PathState::Inaccessible)
                    .await
            }
            false => Ok(()),
        }
    }

    /// Exports the volume here, in a state, unless it is so exported already.
    async fn export_path(
        &self,
        volume: &Versioned<VolumeRecord>,
        attachment: &Versioned<AttachmentRecord>,
        state: PathState,
    ) -> Result<(), OpError> {
        let id = volume.record.volume_id;
        let path = self.coordination.told().path(id).unwrap_or_default();
        let export = Some((volume.revision, state));
        if path.export == export || attachment.record.errand {
            return Ok(());
        }
        let request = self
            .path_export(&volume.record, attachment.record.nsid, state)
            .await?;
        let told = self
            .link
            .call_within(CALL_TIMEOUT, "export", |mut c| async move {
                c.export(request).await
            });
        if let Err(error) = told.await {
            if error.is_uncertain() {
                self.coordination.told().doubt(id);
            }
            return Err(error);
        }
        let path = self.coordination.told().path(id).unwrap_or_default();
        self.coordination
            .told()
            .set_path(id, PathTold { export, ..path });
        tracing::info!(volume = volume.record.name, path = state.name(), "exported");
        Ok(())
    }

    async fn path_export(
        &self,
        volume: &VolumeRecord,
        nsid: u32,
        state: PathState,
    ) -> Result<ExportRequest, OpError> {
        let id = volume.volume_id;
        let (cntlid_min, cntlid_max) = CntlidRecord::range(self.grant_cntlids(volume).await?);
        let namespace = Namespace {
            nsid,
            volume_id: id.to_string(),
            lba_bytes: volume.block_bytes,
            nguid: names::namespace_uuid(id),
            uuid: names::namespace_uuid(id),
            reservation: self.registry.reservation(id).await?,
        };
        Ok(ExportRequest {
            nqn: names::subsystem_nqn(self.cluster_id(), id),
            serial: names::serial(id),
            namespaces: vec![namespace],
            allowed_hosts: volume.allowed_hosts.clone(),
            allow_any_host: volume.any_host,
            ana_state: state.ana().into(),
            cntlid_min,
            cntlid_max,
        })
    }

    /// Takes away what hosts have of a volume here. Of a connection that does not know whether there is something, too.
    pub(super) async fn nothing_here(&self, id: Uuid) -> Result<(), OpError> {
        if self.coordination.told().path(id) == Some(PathTold::default()) {
            return Ok(());
        }
        self.stop_here(id).await?;
        let request = UnexportRequest {
            nqn: names::subsystem_nqn(self.cluster_id(), id),
        };
        self.link
            .call_within(CALL_TIMEOUT, "unexport", |mut c| async move {
                c.unexport(request).await
            })
            .await?;
        let request = ClosePathRequest {
            volume_id: id.to_string(),
        };
        self.link
            .call_within(CALL_TIMEOUT, "close a path", |mut c| async move {
                c.close_path(request).await
            })
            .await?;
        self.coordination.told().set_path(id, PathTold::default());
        Ok(())
    }
}
