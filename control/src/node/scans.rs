//! Scans of the node's pool: everything is read and compared with its checksums. The data path does it and forgets it when it ends; the
//! schedule, and what the last scan found, are in the KVDB.
use super::Node;
use crate::error::OpError;
use crate::kvdb::client::Committed;
use crate::records::{
    AlertKind, ScanRecord, ScanResult, ScanState, Schedule, Severity, Versioned, encode, unix_ms,
};
use keelblock_api::datapath::{
    ListScrubsRequest, ScrubRequest, ScrubState, ScrubStatus, StartScrubRequest,
};
use uuid::Uuid;

/// Attempts at a record that an event changes too.
const ATTEMPTS: usize = 8;
/// Shortest interval of a schedule: a scan takes hours on drives of some size.
const INTERVAL_MIN_S: u64 = 60;

/// A pool's scans.
#[derive(Debug, Clone)]
pub struct ScanReport {
    /// The pool.
    pub pool_id: Uuid,
    /// Schedule, and the last scan as it is now.
    pub record: ScanRecord,
}

/// What to do with a scan that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steer {
    Pause,
    Resume,
    Cancel,
}

fn result_of(status: &ScrubStatus) -> Option<ScanResult> {
    let state = match status.state() {
        ScrubState::ScrubRunning | ScrubState::Unspecified => ScanState::Running,
        ScrubState::ScrubPaused => ScanState::Paused,
        ScrubState::ScrubCancelled => ScanState::Cancelled,
        ScrubState::ScrubDone => ScanState::Done,
    };
    Some(ScanResult {
        scan_id: Uuid::try_parse(&status.scrub_id).ok()?,
        state,
        rate_bytes_per_s: status.rate_bytes_per_s,
        total_bytes: status.total_bytes,
        scanned_bytes: status.scanned_bytes,
        errors: status.errors,
        repaired: status.repaired,
        started_unix_ms: status.started_unix_ms,
        finished_unix_ms: status.finished_unix_ms,
    })
}

fn goes_on(result: &ScanResult) -> bool {
    matches!(result.state, ScanState::Running | ScanState::Paused)
}

impl Node {
    /// Starts a scan of a pool.
    pub async fn start_scan(
        &self,
        pool: &str,
        rate_bytes_per_s: u64,
    ) -> Result<ScanReport, OpError> {
        let _changing = self.exclusive().await?;
        let pool_id = self.pool_named(pool).await?.pool_id;
        self.link.up()?;
        let record = self.scan_now(pool_id).await?;
        if record.last.as_ref().is_some_and(goes_on) {
            return Err(OpError::State(
                "a scan of the pool goes on: see `keelctl service scan status`, or cancel it first"
                    .into(),
            ));
        }
        self.begin_scan(pool_id, rate_bytes_per_s).await
    }

    async fn begin_scan(
        &self,
        pool_id: Uuid,
        rate_bytes_per_s: u64,
    ) -> Result<ScanReport, OpError> {
        let request = StartScrubRequest {
            pool_id: pool_id.to_string(),
            scrub_id: Uuid::new_v4().to_string(),
            rate_bytes_per_s,
        };
        let started = self.link.call(
            "start scan",
            |mut c| async move { c.start_scrub(request).await },
        );
        let status = started.await?;
        tracing::info!(pool = %pool_id, scan = status.scrub_id, "scan started");
        self.keep_scan(pool_id, &status).await
    }

    /// Pauses, resumes or ends the scan that goes on.
    pub(crate) async fn steer_scan(&self, pool: &str, steer: Steer) -> Result<ScanReport, OpError> {
        let _changing = self.exclusive().await?;
        let pool_id = self.pool_named(pool).await?.pool_id;
        self.link.up()?;
        let record = self.scan_now(pool_id).await?;
        let Some(last) = record.last.filter(goes_on) else {
            return Err(OpError::State(
                "no scan of the pool goes on: `keelctl service scan start` starts one".into(),
            ));
        };
        let request = ScrubRequest {
            pool_id: pool_id.to_string(),
            scrub_id: last.scan_id.to_string(),
        };
        let steered = self.link.call("change scan", |mut c| async move {
            match steer {
                Steer::Pause => c.pause_scrub(request).await,
                Steer::Resume => c.resume_scrub(request).await,
                Steer::Cancel => c.cancel_scrub(request).await,
            }
        });
        let status = steered.await?;
        self.keep_scan(pool_id, &status).await
    }

    /// The scans of a pool, as far as is known: while the data path is away, as it was last heard.
    pub async fn scan_report(&self, pool: &str) -> Result<ScanReport, OpError> {
        let pool_id = self.pool_named(pool).await?.pool_id;
        let record = match self.link.up() {
            Ok(_) => self.scan_now(pool_id).await?,
            Err(_) => self.scan_record(pool_id).await?.record,
        };
        Ok(ScanReport { pool_id, record })
    }

    /// Sets or ends (0) a pool's schedule.
    pub async fn schedule_scan(
        &self,
        pool: &str,
        interval_s: u64,
        rate_bytes_per_s: u64,
    ) -> Result<ScanReport, OpError> {
        if interval_s != 0 && interval_s < INTERVAL_MIN_S {
            return Err(OpError::invalid(
                "interval_s",
                format!("at least {INTERVAL_MIN_S} seconds, or 0 for no schedule"),
            ));
        }
        let pool_id = self.pool_named(pool).await?.pool_id;
        let schedule = (interval_s != 0).then(|| Schedule {
            interval_s,
            rate_bytes_per_s,
            set_unix_ms: unix_ms(),
        });
        let record = self
            .change_scan(pool_id, |r| r.schedule = schedule.clone())
            .await?;
        Ok(ScanReport { pool_id, record })
    }

    /// Starts what is due at this time. Called again and again.
    pub async fn scan_tick(&self, now_unix_ms: u64) -> Result<(), OpError> {
        let Some(pool) = &self.pool else {
            return Ok(());
        };
        let pool_id = pool.record.pool_id;
        // Without a schedule the data path is left in peace.
        let scheduled = self.scan_record(pool_id).await?.record.schedule.is_some();
        if !scheduled || self.link.up().is_err() {
            return Ok(());
        }
        let _changing = self.exclusive().await?;
        let record = self.scan_now(pool_id).await?;
        let Some(schedule) = record.schedule.clone() else {
            return Ok(());
        };
        if record
            .next_unix_ms()
            .is_some_and(|next| next <= now_unix_ms)
        {
            self.begin_scan(pool_id, schedule.rate_bytes_per_s).await?;
        }
        Ok(())
    }

    /// The record, brought up to what the data path says.
    async fn scan_now(&self, pool_id: Uuid) -> Result<ScanRecord, OpError> {
        let listed = self.link.call("list scans", |mut c| async move {
            c.list_scrubs(ListScrubsRequest {}).await
        });
        let id = pool_id.to_string();
        let status = listed.await?.scrubs.into_iter().find(|s| s.pool_id == id);
        match status {
            Some(status) => Ok(self.keep_scan(pool_id, &status).await?.record),
            None => {
                let lost = |r: &mut ScanRecord| {
                    if let Some(last) = r.last.as_mut().filter(|l| goes_on(l)) {
                        last.state = ScanState::Interrupted;
                    }
                };
                self.change_scan(pool_id, lost).await
            }
        }
    }

    /// Writes down what the data path says about a scan.
    async fn keep_scan(&self, pool_id: Uuid, status: &ScrubStatus) -> Result<ScanReport, OpError> {
        let result = result_of(status);
        let result = result
            .ok_or_else(|| OpError::Internal(format!("{} is no id of a scan", status.scrub_id)))?;
        let record = self
            .change_scan(pool_id, |r| r.last = Some(result.clone()))
            .await?;
        Ok(ScanReport { pool_id, record })
    }

    /// A scan has ended.
    pub(crate) async fn scan_done(&self, status: &ScrubStatus) -> Result<(), OpError> {
        let pool_id = Uuid::try_parse(&status.pool_id)
            .map_err(|_| OpError::Internal(format!("{} is no id of a pool", status.pool_id)))?;
        self.keep_scan(pool_id, status).await?;
        let (severity, message) = match (status.errors, status.repaired) {
            (0, _) => (
                Severity::Notify,
                format!(
                    "a scan read {} bytes and found nothing wrong",
                    status.scanned_bytes
                ),
            ),
            (errors, repaired) if repaired >= errors => (
                Severity::Warning,
                format!(
                    "a scan found {errors} blocks that were not what was written, and has them from other replicas again; checksum alerts of the drives say where"
                ),
            ),
            (errors, repaired) => (
                Severity::Alarm,
                format!(
                    "a scan found {errors} blocks that are not what was written, of which {repaired} came from other replicas; checksum alerts of the drives say where"
                ),
            ),
        };
        self.raise_alert(AlertKind::ScanDone, &status.pool_id, "", severity, message)
            .await
    }

    async fn scan_record(&self, pool_id: Uuid) -> Result<Versioned<ScanRecord>, OpError> {
        let found = self
            .registry
            .get(&self.registry.keys().scan(pool_id))
            .await?;
        Ok(found.unwrap_or(Versioned {
            record: ScanRecord::default(),
            revision: 0,
        }))
    }

    async fn change_scan(
        &self,
        pool_id: Uuid,
        mut change: impl FnMut(&mut ScanRecord),
    ) -> Result<ScanRecord, OpError> {
        let key = self.registry.keys().scan(pool_id);
        for _ in 0..ATTEMPTS {
            let found = self.scan_record(pool_id).await?;
            let mut record = found.record.clone();
            change(&mut record);
            if record == found.record {
                return Ok(record);
            }
            let swapped =
                self.registry
                    .kv()
                    .compare_and_swap(&key, found.revision, encode(&record));
            if swapped.await? != Committed::No {
                return Ok(record);
            }
        }
        Err(OpError::Contended { what: key })
    }
}
