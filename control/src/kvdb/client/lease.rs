//! Leases of the client: granted, renewed by a task while the guard lives.
use super::{Client, KvError};
use keelblock_api::etcd::etcdserverpb::*;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

impl Client {
    /// Makes a lease of `ttl_s` seconds (the server may make it longer): its id and its seconds.
    pub async fn lease_grant(&self, ttl_s: i64) -> Result<(i64, i64), KvError> {
        let response = self
            .bounded(
                self.lease()
                    .lease_grant(LeaseGrantRequest { ttl: ttl_s, id: 0 }),
            )
            .await?;
        Ok((response.id, response.ttl))
    }

    /// Ends a lease and deletes its keys.
    pub async fn lease_revoke(&self, id: i64) -> Result<(), KvError> {
        self.bounded(self.lease().lease_revoke(LeaseRevokeRequest { id }))
            .await
            .map(drop)
    }

    /// Renews a lease once: its seconds from now.
    pub async fn lease_renew(&self, id: i64) -> Result<i64, KvError> {
        let (requests, stream) = mpsc::channel(1);
        // The receiving end is right here.
        let _ = requests.try_send(LeaseKeepAliveRequest { id });
        let renewed = async {
            let mut responses = self
                .lease()
                .lease_keep_alive(ReceiverStream::new(stream))
                .await?;
            let first = responses.get_mut().message().await?;
            Ok(tonic::Response::new(first))
        };
        let response = self.bounded(renewed).await?;
        drop(requests);
        match response {
            Some(LeaseKeepAliveResponse { ttl, .. }) if ttl > 0 => Ok(ttl),
            Some(_) => Err(KvError::LeaseNotFound),
            None => Err(self.unavailable("the stream of renewals ended".into())),
        }
    }

    /// Seconds left, seconds granted, and the lease's keys.
    pub async fn lease_time_to_live(&self, id: i64) -> Result<LeaseTimeToLiveResponse, KvError> {
        self.bounded(
            self.lease()
                .lease_time_to_live(LeaseTimeToLiveRequest { id, keys: true }),
        )
        .await
    }

    /// All leases.
    pub async fn leases(&self) -> Result<Vec<i64>, KvError> {
        let response = self
            .bounded(self.lease().lease_leases(LeaseLeasesRequest {}))
            .await?;
        Ok(response.leases.into_iter().map(|l| l.id).collect())
    }

    /// Makes a lease and keeps it alive until the guard is dropped or the lease is lost.
    pub async fn hold_lease(&self, ttl_s: i64) -> Result<LeaseGuard, KvError> {
        let (id, ttl_s) = self.lease_grant(ttl_s).await?;
        let (lost, is_lost) = watch::channel(false);
        let renewing = tokio::spawn(renew(
            self.clone(),
            id,
            Duration::from_secs(ttl_s.max(1) as u64),
            lost,
        ));
        Ok(LeaseGuard {
            id,
            is_lost,
            renewing,
        })
    }
}

/// A lease that is being kept alive. Dropping it lets the lease run out; its keys go then.
#[derive(Debug)]
pub struct LeaseGuard {
    id: i64,
    is_lost: watch::Receiver<bool>,
    renewing: JoinHandle<()>,
}

impl LeaseGuard {
    /// The lease's id, to put keys with.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Returns when the lease is known to be gone, or may be.
    pub async fn lost(&mut self) {
        // An error means that the renewing task ended, which is the same.
        let _ = self.is_lost.wait_for(|lost| *lost).await;
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Renews at a third of the time to live. Only a server that says so, or a whole time to live without an answer, loses it.
async fn renew(client: Client, id: i64, ttl: Duration, lost: watch::Sender<bool>) {
    let mut renewed = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(ttl / 3).await;
        let asked = tokio::time::Instant::now();
        match client.lease_renew(id).await {
            Ok(_) => renewed = asked,
            Err(KvError::LeaseNotFound) => break,
            Err(error) if asked.duration_since(renewed) < ttl => {
                tracing::warn!(id, %error, "a lease could not be renewed, trying again");
            }
            Err(_) => break,
        }
    }
    lost.send_replace(true);
}
