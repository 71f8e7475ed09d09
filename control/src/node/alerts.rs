//! Alerts: raised by what the data path reports and by what is found when it is connected, kept in the KVDB, shown by the SDK.
use super::Node;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Write};
use crate::records::{AlertKind, AlertRecord, Resource, Severity, Versioned, encode, unix_ms};

/// Attempts to count an alert that others count too.
const ATTEMPTS: usize = 8;

/// Which alerts are meant. Everything that is given must match.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    /// Of these things.
    pub resource: Option<Resource>,
    /// Of this kind, by its number.
    pub alert_type: Option<i64>,
    /// Of this thing.
    pub resource_id: Option<String>,
    /// At least so bad.
    pub min_severity: Option<Severity>,
    /// Over, or not.
    pub cleared: Option<bool>,
    /// Last seen at or after this, ms since the Unix epoch.
    pub from_unix_ms: Option<u64>,
    /// Last seen at or before this.
    pub to_unix_ms: Option<u64>,
    /// Seen at least so often.
    pub min_count: Option<u64>,
    /// Seen at most so often.
    pub max_count: Option<u64>,
}

impl AlertFilter {
    /// Whether an alert is meant.
    pub fn selects(&self, alert: &AlertRecord) -> bool {
        // Lower is worse.
        let bad_enough = |min: Severity| alert.severity.sdk() as i32 <= min.sdk() as i32;
        self.resource.is_none_or(|r| r == alert.kind.resource())
            && self.alert_type.is_none_or(|t| t == alert.kind as i64)
            && self
                .resource_id
                .as_ref()
                .is_none_or(|id| *id == alert.resource_id)
            && self.min_severity.is_none_or(bad_enough)
            && self.cleared.is_none_or(|c| c == alert.cleared)
            && self
                .from_unix_ms
                .is_none_or(|t| alert.last_seen_unix_ms >= t)
            && self.to_unix_ms.is_none_or(|t| alert.last_seen_unix_ms <= t)
            && self.min_count.is_none_or(|n| alert.count >= n)
            && self.max_count.is_none_or(|n| alert.count <= n)
    }
}

impl Node {
    /// Says that something happened; again, if it has happened before.
    pub(crate) async fn raise_alert(
        &self,
        kind: AlertKind,
        resource_id: &str,
        tag: &str,
        severity: Severity,
        message: String,
    ) -> Result<(), OpError> {
        let id = AlertRecord::id_of(kind, resource_id, tag);
        let key = self.registry.keys().alert(id);
        let now = unix_ms();
        for _ in 0..ATTEMPTS {
            let found: Option<Versioned<AlertRecord>> = self.registry.get(&key).await?;
            let revision = found.as_ref().map_or(0, |f| f.revision);
            let before = found.map(|f| f.record);
            let alert = AlertRecord {
                id,
                kind,
                resource_id: resource_id.into(),
                tag: tag.into(),
                severity,
                message: message.clone(),
                count: before.as_ref().map_or(0, |b| b.count) + 1,
                first_seen_unix_ms: before.map_or(now, |b| b.first_seen_unix_ms),
                last_seen_unix_ms: now,
                cleared: false,
            };
            let kv = self.registry.kv();
            if kv.compare_and_swap(&key, revision, encode(&alert)).await? != Committed::No {
                tracing::debug!(kind = kind.name(), resource_id, message, "alert");
                return Ok(());
            }
        }
        Err(OpError::Contended { what: key })
    }

    /// Says that what a thing's alerts of a kind were about is over.
    pub(crate) async fn clear_alert(
        &self,
        kind: AlertKind,
        resource_id: &str,
    ) -> Result<(), OpError> {
        self.clear_alerts(|a| a.kind == kind && a.resource_id == resource_id)
            .await
    }

    /// Says so of all of these.
    pub(crate) async fn clear_alerts(
        &self,
        those: impl Fn(&AlertRecord) -> bool,
    ) -> Result<(), OpError> {
        let mine = |a: &AlertRecord| !a.cleared && those(a);
        let alerts = self.registry.alerts().await?;
        let cleared = alerts.into_iter().filter(mine).map(|alert| {
            let key = self.registry.keys().alert(alert.id);
            let cleared = AlertRecord {
                cleared: true,
                ..alert
            };
            Write::put(key, encode(&cleared))
        });
        let cleared: Vec<Write> = cleared.collect();
        if cleared.is_empty() {
            return Ok(());
        }
        self.commit("alerts", vec![], cleared).await
    }

    /// The alerts that any of the filters selects, newest first.
    pub async fn find_alerts(&self, filters: &[AlertFilter]) -> Result<Vec<AlertRecord>, OpError> {
        let mut alerts = self.registry.alerts().await?;
        alerts.retain(|a| filters.iter().any(|f| f.selects(a)));
        alerts.sort_by_key(|a| (std::cmp::Reverse(a.last_seen_unix_ms), a.id));
        Ok(alerts)
    }

    /// Forgets the alerts that any of the filters selects. What goes on raises them anew.
    pub async fn delete_alerts(&self, filters: &[AlertFilter]) -> Result<(), OpError> {
        for alert in self.find_alerts(filters).await? {
            let key = self.registry.keys().alert(alert.id);
            self.registry.kv().delete(key).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_given_must_match() {
        let alert = AlertRecord {
            id: 1,
            kind: AlertKind::ChecksumError,
            resource_id: "d".into(),
            tag: String::new(),
            severity: Severity::Warning,
            message: String::new(),
            count: 3,
            first_seen_unix_ms: 10,
            last_seen_unix_ms: 20,
            cleared: false,
        };
        let all = AlertFilter::default();
        assert!(all.selects(&alert));
        let f = |change: fn(&mut AlertFilter)| {
            let mut filter = AlertFilter::default();
            change(&mut filter);
            filter.selects(&alert)
        };
        assert!(f(|f| f.resource = Some(Resource::Drive)));
        assert!(!f(|f| f.resource = Some(Resource::Pool)));
        assert!(f(|f| f.alert_type = Some(2)) && !f(|f| f.alert_type = Some(1)));
        assert!(f(|f| f.min_severity = Some(Severity::Notify)));
        assert!(f(|f| f.min_severity = Some(Severity::Warning)));
        assert!(!f(|f| f.min_severity = Some(Severity::Alarm)));
        assert!(f(|f| f.from_unix_ms = Some(20)) && !f(|f| f.from_unix_ms = Some(21)));
        assert!(f(|f| f.to_unix_ms = Some(20)) && !f(|f| f.to_unix_ms = Some(19)));
        assert!(f(|f| f.min_count = Some(3)) && !f(|f| f.max_count = Some(2)));
        assert!(!f(|f| f.cleared = Some(true)));
    }

    #[test]
    fn ids_tell_alerts_apart_and_are_positive() {
        let id = AlertRecord::id_of(AlertKind::ChecksumError, "d", "v");
        assert!(id > 0);
        assert_eq!(id, AlertRecord::id_of(AlertKind::ChecksumError, "d", "v"));
        assert_ne!(id, AlertRecord::id_of(AlertKind::ChecksumError, "d", "w"));
        assert_ne!(id, AlertRecord::id_of(AlertKind::DriveFailed, "d", "v"));
    }
}
