//! Leases of the client: granted, renewed by a task while the guard lives.
use super::call::Kind;
use super::{Client, KvError, lease};
use keelblock_api::etcd::etcdserverpb::*;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

impl Client {
    /// Makes a lease of `ttl_s` seconds (the server may make it longer): its id and its seconds.
    pub async fn lease_grant(&self, ttl_s: i64) -> Result<(i64, i64), KvError> {
        let request = LeaseGrantRequest { ttl: ttl_s, id: 0 };
        let make = |door| async move { lease(door).lease_grant(request).await };
        let response = self.change("the grant of a lease", make).await?;
        Ok((response.id, response.ttl))
    }

    /// Ends a lease and deletes its keys.
    pub async fn lease_revoke(&self, id: i64) -> Result<(), KvError> {
        let request = LeaseRevokeRequest { id };
        let make = |door| async move { lease(door).lease_revoke(request).await };
        self.change("the end of a lease", make).await.map(drop)
    }

    /// Renews a lease once: its seconds from now.
    pub async fn lease_renew(&self, id: i64) -> Result<i64, KvError> {
        self.lease_renew_within(id, super::CALL_TIMEOUT).await
    }

    async fn lease_renew_within(&self, id: i64, within: Duration) -> Result<i64, KvError> {
        let make = |door| async move {
            let (requests, stream) = mpsc::channel(1);
            // The receiving end is right here.
            let _ = requests.try_send(LeaseKeepAliveRequest { id });
            let stream = ReceiverStream::new(stream);
            let mut responses = lease(door).lease_keep_alive(stream).await?;
            let first = responses.get_mut().message().await?;
            drop(requests);
            Ok(tonic::Response::new(first))
        };
        let what = "the renewal of a lease";
        let servers = &self.servers;
        match servers.call(what, Kind::Read, within, make).await? {
            Some(LeaseKeepAliveResponse { ttl, .. }) if ttl > 0 => Ok(ttl),
            Some(_) => Err(KvError::LeaseNotFound),
            None => Err(servers.unavailable("the stream of renewals ended".into())),
        }
    }

    /// Seconds left, seconds granted, and the lease's keys.
    pub async fn lease_time_to_live(&self, id: i64) -> Result<LeaseTimeToLiveResponse, KvError> {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let make = |door| async move { lease(door).lease_time_to_live(request).await };
        self.read("the time of a lease", make).await
    }

    /// All leases.
    pub async fn leases(&self) -> Result<Vec<i64>, KvError> {
        let make = |door| async move { lease(door).lease_leases(LeaseLeasesRequest {}).await };
        let response = self.read("the leases", make).await?;
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

/// Renews at a third of the time to live. Where there are several servers it waits no longer than that for an answer, so that one that hangs leaves time
/// for the others. Only a server that says so, or a whole time to live without an answer, loses it.
async fn renew(client: Client, id: i64, ttl: Duration, lost: watch::Sender<bool>) {
    let mut renewed = tokio::time::Instant::now();
    let mut failed = false;
    let within = match client.servers.count() {
        1 => super::CALL_TIMEOUT,
        _ => ttl / 3,
    };
    loop {
        // What failed at once is not asked for again at once.
        let pause = if failed { ttl / 10 } else { ttl / 3 };
        tokio::time::sleep(pause).await;
        let asked = tokio::time::Instant::now();
        match client.lease_renew_within(id, within).await {
            Ok(_) => (renewed, failed) = (asked, false),
            Err(KvError::LeaseNotFound) => break,
            Err(error) if asked.duration_since(renewed) < ttl => {
                if !failed {
                    tracing::warn!(id, %error, "a lease could not be renewed, trying again");
                }
                failed = true;
            }
            Err(_) => break,
        }
    }
    lost.send_replace(true);
}
