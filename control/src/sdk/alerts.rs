//! Alerts.
use super::view::timestamp;
use super::{Services, answer};
use crate::error::OpError;
use crate::node::AlertFilter;
use crate::records::{AlertRecord, Resource, Severity};
use keelblock_api::openstorage::open_storage_alerts_server::OpenStorageAlerts;
use keelblock_api::openstorage::sdk_alerts_option::Opt;
use keelblock_api::openstorage::sdk_alerts_query::Query;
use keelblock_api::openstorage::*;
use tonic::{Request, Response, Status as Refusal};

/// A filter that nothing matches: of a resource that no alert is of.
fn resource(number: i32) -> Result<Resource, Option<OpError>> {
    match ResourceType::try_from(number) {
        Ok(ResourceType::Volume) => Ok(Resource::Volume),
        Ok(ResourceType::Drive) => Ok(Resource::Drive),
        Ok(ResourceType::Pool) => Ok(Resource::Pool),
        Ok(ResourceType::Node) => Ok(Resource::Node),
        // There are none of these yet.
        Ok(ResourceType::Cluster) => Err(None),
        Ok(ResourceType::None) => Err(Some(OpError::Missing {
            field: "resource_type",
            hint: "what kind of thing the alerts are of",
        })),
        Err(_) => Err(Some(OpError::invalid(
            "resource_type",
            format!("there is no resource type {number}"),
        ))),
    }
}

fn unix_ms(field: &str, time: &prost_types::Timestamp) -> Result<u64, OpError> {
    let ms = i128::from(time.seconds) * 1000 + i128::from(time.nanos) / 1_000_000;
    u64::try_from(ms).map_err(|_| OpError::invalid(field, "is before 1970"))
}

fn apply(option: SdkAlertsOption, filter: &mut AlertFilter) -> Result<(), OpError> {
    match option.opt {
        None => {
            return Err(OpError::Missing {
                field: "opts.opt",
                hint: "an option says one of min_severity_type, is_cleared, time_span, count_span",
            });
        }
        Some(Opt::MinSeverityType(number)) => {
            filter.min_severity = match SeverityType::try_from(number) {
                Ok(SeverityType::Alarm) => Some(Severity::Alarm),
                Ok(SeverityType::Warning) => Some(Severity::Warning),
                Ok(SeverityType::Notify) => Some(Severity::Notify),
                Ok(SeverityType::None) => None,
                Err(_) => {
                    let why = format!("there is no severity {number}");
                    return Err(OpError::invalid("opts.min_severity_type", why));
                }
            };
        }
        Some(Opt::IsCleared(cleared)) => filter.cleared = Some(cleared),
        Some(Opt::TimeSpan(span)) => {
            if let Some(start) = &span.start_time {
                filter.from_unix_ms = Some(unix_ms("opts.time_span.start_time", start)?);
            }
            if let Some(end) = &span.end_time {
                filter.to_unix_ms = Some(unix_ms("opts.time_span.end_time", end)?);
            }
        }
        Some(Opt::CountSpan(span)) => {
            filter.min_count = Some(u64::try_from(span.min_count).unwrap_or(0));
            // 0 is no limit: an alert was seen once at least.
            filter.max_count = u64::try_from(span.max_count).ok().filter(|max| *max > 0);
        }
    }
    Ok(())
}

/// The filters of a request; a query that cannot select anything is left out.
fn filters(queries: Vec<SdkAlertsQuery>) -> Result<Vec<AlertFilter>, OpError> {
    if queries.is_empty() {
        return Err(OpError::Missing {
            field: "queries",
            hint: "at least one says which alerts are meant",
        });
    }
    let mut filters = Vec::new();
    for query in queries {
        let (of, alert_type, resource_id) = match query.query {
            Some(Query::ResourceTypeQuery(q)) => (q.resource_type, None, None),
            Some(Query::AlertTypeQuery(q)) => (q.resource_type, Some(q.alert_type), None),
            Some(Query::ResourceIdQuery(q)) => {
                // Without a type: all alerts of the thing.
                let kind = (q.alert_type != 0).then_some(q.alert_type);
                (q.resource_type, kind, Some(q.resource_id))
            }
            None => {
                return Err(OpError::Missing {
                    field: "queries.query",
                    hint: "a query is one of resource_type_query, alert_type_query, resource_id_query",
                });
            }
        };
        let mut filter = AlertFilter {
            alert_type,
            resource_id,
            ..Default::default()
        };
        for option in query.opts {
            apply(option, &mut filter)?;
        }
        match resource(of) {
            Ok(resource) => filter.resource = Some(resource),
            Err(None) => continue,
            Err(Some(error)) => return Err(error),
        }
        filters.push(filter);
    }
    Ok(filters)
}

fn alert(record: AlertRecord) -> Alert {
    Alert {
        id: record.id,
        severity: record.severity.sdk().into(),
        alert_type: record.kind as i64,
        timestamp: Some(timestamp(record.last_seen_unix_ms)),
        resource: record.kind.resource().sdk().into(),
        resource_id: record.resource_id,
        cleared: record.cleared,
        ttl: 0,
        unique_tag: match record.tag.as_str() {
            "" => record.kind.name().to_owned(),
            tag => format!("{}/{tag}", record.kind.name()),
        },
        count: i64::try_from(record.count).unwrap_or(i64::MAX),
        first_seen: Some(timestamp(record.first_seen_unix_ms)),
        message: record.message,
    }
}

/// Alerts in one message.
const PART: usize = 100;

/// A message of the stream.
type Part = Result<SdkAlertsEnumerateWithFiltersResponse, Refusal>;

/// At least one, so that whoever wants only one gets it.
fn parts(alerts: &[Alert]) -> Vec<Part> {
    let part = |alerts: &[Alert]| {
        Ok(SdkAlertsEnumerateWithFiltersResponse {
            alerts: alerts.to_vec(),
        })
    };
    match alerts.is_empty() {
        true => vec![part(&[])],
        false => alerts.chunks(PART).map(part).collect(),
    }
}

#[tonic::async_trait]
impl OpenStorageAlerts for Services {
    type EnumerateWithFiltersStream = tokio_stream::Iter<std::vec::IntoIter<Part>>;

    async fn enumerate_with_filters(
        &self,
        request: Request<SdkAlertsEnumerateWithFiltersRequest>,
    ) -> Result<Response<Self::EnumerateWithFiltersStream>, Refusal> {
        let filters = filters(request.into_inner().queries)?;
        let found = self.node().find_alerts(&filters).await?;
        let found: Vec<Alert> = found.into_iter().map(alert).collect();
        Ok(Response::new(tokio_stream::iter(parts(&found))))
    }

    async fn delete(
        &self,
        request: Request<SdkAlertsDeleteRequest>,
    ) -> Result<Response<SdkAlertsDeleteResponse>, Refusal> {
        let filters = filters(request.into_inner().queries)?;
        let deleted = self.node().delete_alerts(&filters).await;
        answer(deleted.map(|()| SdkAlertsDeleteResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_all_of_them_once_and_never_nothing() {
        let alerts = |n: i64| -> Vec<Alert> {
            let one = |id| Alert {
                id,
                ..Default::default()
            };
            (0..n).map(one).collect()
        };
        for (count, messages) in [(0, 1), (1, 1), (100, 1), (101, 2), (250, 3)] {
            let all = alerts(count);
            let parts: Vec<_> = parts(&all).into_iter().map(Result::unwrap).collect();
            assert_eq!(parts.len(), messages, "{count}");
            let told: Vec<Alert> = parts.into_iter().flat_map(|p| p.alerts).collect();
            assert_eq!(told, all);
        }
    }
}
