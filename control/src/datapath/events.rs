//! What the data path reports: reservations that must be kept before their command completes, alerts, and things worth a line in the log.
use crate::error::OpError;
use crate::names;
use crate::node::Node;
use crate::records::{AlertKind, Severity};
use keelblock_api::datapath::event::What;
use keelblock_api::datapath::pool_space_low::Level;
use keelblock_api::datapath::{
    ChecksumError, CommitReservationRequest, Event, PoolSpaceLow, ReadError, ReservationChanged,
};
use std::sync::Arc;
use std::time::Duration;
use tonic::Streaming;

impl Node {
    /// Handles events until the stream ends, in order: a later state of a reservation never gets overtaken by an earlier one. Why
    /// it ended.
    pub(super) async fn follow(self: &Arc<Self>, mut events: Streaming<Event>) -> String {
        loop {
            match events.message().await {
                Ok(Some(event)) => self.event(event).await,
                Ok(None) => return "it ended the stream of events".into(),
                Err(status) => return format!("the connection broke: {}", status.message()),
            }
        }
    }

    async fn event(self: &Arc<Self>, event: Event) {
        match event.what {
            Some(What::Reservation(change)) => {
                if let Err(error) = self.keep_reservation(&change).await {
                    // The data path fails the host's command after its own time limit, with a status to retry on.
                    tracing::error!(nqn = change.nqn, nsid = change.nsid, %error, "a reservation could not be kept");
                }
            }
            Some(What::HostConnected(host)) => {
                tracing::debug!(
                    host = host.host_nqn,
                    peer = host.peer,
                    subsystem = host.nqn,
                    "host connected"
                );
            }
            Some(What::HostDisconnected(host)) => {
                tracing::debug!(
                    host = host.host_nqn,
                    peer = host.peer,
                    subsystem = host.nqn,
                    "host disconnected"
                );
            }
            Some(What::TaskStalled(stall)) => {
                tracing::warn!(
                    reactor = stall.reactor,
                    task = stall.task,
                    held_us = stall.held_us,
                    "a task held its reactor"
                );
            }
            Some(
                what @ (What::DriveFailed(_)
                | What::ChecksumError(_)
                | What::ReadError(_)
                | What::PoolSpaceLow(_)
                | What::ScrubDone(_)
                | What::DriveEvacuated(_)),
            ) => {
                if let Err(error) = self.report(&what).await {
                    tracing::error!(?what, %error, "what the data path reported could not be kept");
                }
                if matches!(what, What::DriveFailed(_)) {
                    self.clone().look_at_failed();
                }
            }
            Some(What::SetChange(change)) => self.set_change(change),
            Some(What::Coordinator(coordinator)) => self.coordinator_reports(coordinator),
            None => {
                tracing::debug!("the data path reported something that this version does not know")
            }
        }
    }

    /// Has replicas looked at, which are on a drive that failed. Beside the events, which are not to wait for the data path.
    fn look_at_failed(self: Arc<Self>) {
        tokio::spawn(async move {
            match self.look_at_replicas(Duration::ZERO).await {
                Ok(()) => self.coordination.poke_all(),
                // They are listed when it is connected again.
                Err(error) => tracing::debug!(%error, "replicas cannot be looked at"),
            }
        });
    }

    /// Writes down what operators must hear of.
    async fn report(&self, what: &What) -> Result<(), OpError> {
        match what {
            What::DriveFailed(failed) => {
                tracing::error!(
                    drive = failed.drive_id,
                    error = failed.error,
                    "a drive has failed; it takes no more writes"
                );
                let path = self.path_of(&failed.drive_id).await?;
                self.drive_failed(&failed.drive_id, &path, &failed.error)
                    .await
            }
            What::ChecksumError(error) => self.checksum_error(error).await,
            What::ReadError(error) => self.read_error(error).await,
            What::PoolSpaceLow(space) => self.pool_space(space).await,
            What::ScrubDone(status) => self.scan_done(status).await,
            What::DriveEvacuated(done) => {
                let path = self.path_of(&done.drive_id).await?;
                let message = format!(
                    "drive {path} is empty: `keelctl service drive remove {path}` takes it out of the pool"
                );
                tracing::info!(drive = path, "drive evacuated");
                let id = &done.drive_id;
                self.raise_alert(AlertKind::DriveEvacuated, id, "", Severity::Notify, message)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// What operators call a drive.
    async fn path_of(&self, drive_id: &str) -> Result<String, OpError> {
        let pools = self.registry.pools().await?;
        let mut drives = pools.iter().flat_map(|p| &p.drives);
        let drive = drives.find(|d| d.drive_id.to_string() == drive_id);
        Ok(drive.map_or_else(|| drive_id.to_owned(), |d| d.path.clone()))
    }

    async fn checksum_error(&self, error: &ChecksumError) -> Result<(), OpError> {
        let path = self.path_of(&error.drive_id).await?;
        let at = match (error.metadata, error.volume_id.is_empty()) {
            (true, true) => "in the drive's own records".to_owned(),
            (true, false) => format!(
                "in page {} of the map of lane {} of volume {}",
                error.block, error.lane, error.volume_id
            ),
            (false, _) => format!(
                "in block {} of lane {} of volume {}",
                error.block, error.lane, error.volume_id
            ),
        };
        let message = format!(
            "drive {path} gave back other data than were written, {at} (block {} of the drive; checksum {:08x}, not {:08x}): reads of \
             it, and of what a page leads to, fail, or come from another replica if the volume has one. A scan of the pool has blocks of replicas repaired; \
             restore others from a snapshot or backup, and think of replacing the drive",
            error.physical_block, error.actual, error.expected
        );
        tracing::error!(message);
        let (kind, id) = (AlertKind::ChecksumError, &error.drive_id);
        self.raise_alert(kind, id, &error.volume_id, Severity::Alarm, message)
            .await
    }

    async fn read_error(&self, error: &ReadError) -> Result<(), OpError> {
        let path = self.path_of(&error.drive_id).await?;
        let at = match error.volume_id.is_empty() {
            true => "its own records".to_owned(),
            false => format!(
                "what is at or behind block {} of lane {} of volume {}",
                error.block, error.lane, error.volume_id
            ),
        };
        let message = format!(
            "drive {path} cannot read {at}: reads of it fail. What is written there anew may be readable again; restore the rest from a \
             snapshot or backup, and think of replacing the drive"
        );
        tracing::error!(message);
        let (kind, id) = (AlertKind::ReadError, &error.drive_id);
        self.raise_alert(kind, id, &error.volume_id, Severity::Alarm, message)
            .await
    }

    async fn pool_space(&self, space: &PoolSpaceLow) -> Result<(), OpError> {
        let severity = match space.level() {
            Level::Full => Severity::Alarm,
            Level::Low => Severity::Warning,
            Level::Ok | Level::Unspecified => {
                return self
                    .clear_alert(AlertKind::PoolSpaceLow, &space.pool_id)
                    .await;
            }
        };
        let message = format!(
            "{} of {} bytes are free{}. Delete volumes or snapshots that nobody needs, or make the pool larger: `keelctl service drive add \
             PATH`, or `keelctl service pool expand`",
            space.free_bytes,
            space.total_bytes,
            if severity == Severity::Alarm {
                ", and writes that need space fail"
            } else {
                ""
            }
        );
        tracing::warn!(pool = space.pool_id, message);
        let (kind, id) = (AlertKind::PoolSpaceLow, &space.pool_id);
        self.raise_alert(kind, id, "", severity, message).await
    }

    /// KVDB first, then the data path may complete the command.
    async fn keep_reservation(&self, change: &ReservationChanged) -> Result<(), OpError> {
        let subsystem = names::volume_of_nqn(self.cluster_id(), &change.nqn);
        let subsystem = subsystem.ok_or_else(|| {
            OpError::Internal(format!("{} is no subsystem of this cluster", change.nqn))
        })?;
        let attachments = self.registry.attachments().await?;
        let attachment = attachments
            .iter()
            .find(|a| a.subsystem_of == subsystem && a.nsid == change.nsid);
        let attachment = attachment
            .ok_or_else(|| OpError::Internal("there is no such namespace any more".into()))?;
        let key = self.registry.keys().reservation(attachment.volume_id);
        if change.state.is_empty() {
            self.registry.kv().delete(key).await?;
        } else {
            self.registry.kv().put(key, change.state.clone()).await?;
        }
        let commit = CommitReservationRequest {
            nqn: change.nqn.clone(),
            nsid: change.nsid,
            generation: change.generation,
        };
        self.link
            .call("commit reservation", |mut c| async move {
                c.commit_reservation(commit).await
            })
            .await?;
        Ok(())
    }
}
