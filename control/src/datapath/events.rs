//! What the data path reports: reservations that must be kept before their command completes, and things worth a line in the log.
use crate::error::OpError;
use crate::names;
use crate::node::Node;
use keelblock_api::datapath::event::What;
use keelblock_api::datapath::{CommitReservationRequest, Event, ReservationChanged};
use tonic::Streaming;

impl Node {
    /// Handles events until the stream ends, in order: a later state of a reservation never gets overtaken by an earlier one. Why
    /// it ended.
    pub(super) async fn follow(&self, mut events: Streaming<Event>) -> String {
        loop {
            match events.message().await {
                Ok(Some(event)) => self.event(event).await,
                Ok(None) => return "it ended the stream of events".into(),
                Err(status) => return format!("the connection broke: {}", status.message()),
            }
        }
    }

    async fn event(&self, event: Event) {
        match event.what {
            Some(What::Reservation(change)) => {
                if let Err(error) = self.keep_reservation(&change).await {
                    // The data path fails the host's command after its own time limit, with a status to retry on.
                    tracing::error!(nqn = change.nqn, nsid = change.nsid, %error, "a reservation could not be kept");
                }
            }
            Some(What::DriveFailed(failed)) => {
                tracing::error!(
                    drive = failed.drive_id,
                    error = failed.error,
                    "a drive has failed; it takes no more writes"
                );
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
                What::ChecksumError(_)
                | What::PoolSpaceLow(_)
                | What::ScrubDone(_)
                | What::DriveEvacuated(_),
            )
            | None => {
                tracing::debug!("the data path reported something that this version does not know")
            }
        }
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
