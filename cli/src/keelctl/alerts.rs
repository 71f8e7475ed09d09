//! `keelctl alerts …`: what went wrong, or is worth knowing.
use super::view::word;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use crate::time::show_time;
use clap::{Args, Subcommand, ValueEnum};
use keelblock_api::openstorage as sdk;
use sdk::sdk_alerts_option::Opt;
use sdk::sdk_alerts_query::Query;
use sdk::{ResourceType, SeverityType};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Alerts that are not over, newest first.
    Show {
        #[command(flatten)]
        filter: Filter,
        /// Those that are over, too.
        #[arg(long)]
        all: bool,
    },
    /// Forget alerts. What goes on raises them anew.
    Delete {
        #[command(flatten)]
        filter: Filter,
        /// Only those that are over.
        #[arg(long)]
        cleared: bool,
        /// Say that all alerts are meant, if nothing else says which.
        #[arg(long)]
        all: bool,
    },
}

/// Which alerts.
#[derive(Debug, Args)]
pub struct Filter {
    /// Of these things only.
    #[arg(long, value_enum)]
    resource: Option<Resource>,
    /// Of the thing with this id only.
    #[arg(long, value_name = "ID", requires = "resource")]
    id: Option<String>,
    /// At least so bad.
    #[arg(long, value_enum)]
    severity: Option<Severity>,
}

/// What alerts are of.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Resource {
    /// Volumes and snapshots.
    Volume,
    /// Drives.
    Drive,
    /// Pools.
    Pool,
    /// Nodes.
    Node,
}

/// How bad.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Severity {
    /// Something has happened.
    Notify,
    /// It will get worse.
    Warning,
    /// Data or service are lost, or about to be.
    Alarm,
}

impl Filter {
    fn queries(&self, mut opts: Vec<Opt>) -> Vec<sdk::SdkAlertsQuery> {
        let severity = self.severity.map(|s| match s {
            Severity::Notify => SeverityType::Notify,
            Severity::Warning => SeverityType::Warning,
            Severity::Alarm => SeverityType::Alarm,
        });
        opts.extend(severity.map(|s| Opt::MinSeverityType(s.into())));
        let opts: Vec<_> = opts
            .into_iter()
            .map(|o| sdk::SdkAlertsOption { opt: Some(o) })
            .collect();
        let types = match self.resource {
            None => vec![
                ResourceType::Volume,
                ResourceType::Drive,
                ResourceType::Pool,
                ResourceType::Node,
            ],
            Some(Resource::Volume) => vec![ResourceType::Volume],
            Some(Resource::Drive) => vec![ResourceType::Drive],
            Some(Resource::Pool) => vec![ResourceType::Pool],
            Some(Resource::Node) => vec![ResourceType::Node],
        };
        let query = |of: ResourceType| match &self.id {
            Some(id) => Query::ResourceIdQuery(sdk::SdkAlertsResourceIdQuery {
                resource_type: of.into(),
                alert_type: 0,
                resource_id: id.clone(),
            }),
            None => Query::ResourceTypeQuery(sdk::SdkAlertsResourceTypeQuery {
                resource_type: of.into(),
            }),
        };
        let with_options = |of: ResourceType| sdk::SdkAlertsQuery {
            query: Some(query(of)),
            opts: opts.clone(),
        };
        types.into_iter().map(with_options).collect()
    }

    fn is_everything(&self) -> bool {
        self.resource.is_none() && self.severity.is_none()
    }
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Show { filter, all } => {
            let opts = if all {
                Vec::new()
            } else {
                vec![Opt::IsCleared(false)]
            };
            let alerts = find(client, filter.queries(opts)).await?;
            let text = match alerts.is_empty() {
                true => "No alerts.".to_owned(),
                false => table(
                    &["LAST SEEN", "SEVERITY", "OF", "ID", "COUNT>", "MESSAGE"],
                    alerts.iter().map(row),
                ),
            };
            Ok(Answer::new(
                alerts.iter().map(alert_json).collect::<Vec<_>>(),
                text,
            ))
        }
        Command::Delete {
            filter,
            cleared,
            all,
        } => {
            if filter.is_everything() && !cleared && !all {
                return Err(Failure::Usage(
                    "say which alerts: --resource, --severity, --cleared, or --all".into(),
                ));
            }
            let opts = if cleared {
                vec![Opt::IsCleared(true)]
            } else {
                Vec::new()
            };
            let queries = filter.queries(opts);
            let count = find(client, queries.clone()).await?.len();
            let reply = client
                .alerts
                .delete(sdk::SdkAlertsDeleteRequest { queries })
                .await;
            reply.map_err(|s| Failure::from_status("delete alerts", &s))?;
            Ok(Answer::new(
                json!({ "deleted": count }),
                format!("{count} alerts deleted."),
            ))
        }
    }
}

/// Alerts that are not over.
pub async fn open(client: &mut Client) -> Result<Vec<sdk::Alert>> {
    let all = Filter {
        resource: None,
        id: None,
        severity: None,
    };
    find(client, all.queries(vec![Opt::IsCleared(false)])).await
}

async fn find(client: &mut Client, queries: Vec<sdk::SdkAlertsQuery>) -> Result<Vec<sdk::Alert>> {
    let request = sdk::SdkAlertsEnumerateWithFiltersRequest { queries };
    let failed = |s: tonic::Status| Failure::from_status("show alerts", &s);
    let reply = client.alerts.enumerate_with_filters(request).await;
    let mut parts = reply.map_err(failed)?.into_inner();
    let mut alerts = Vec::new();
    while let Some(part) = parts.message().await.map_err(failed)? {
        alerts.extend(part.alerts);
    }
    Ok(alerts)
}

fn severity(alert: &sdk::Alert) -> String {
    word(alert.severity().as_str_name(), "SEVERITY_TYPE_")
}

fn resource(alert: &sdk::Alert) -> String {
    word(alert.resource().as_str_name(), "RESOURCE_TYPE_")
}

fn row(alert: &sdk::Alert) -> Vec<String> {
    let over = if alert.cleared { "over: " } else { "" };
    vec![
        show_time(last_seen(alert)),
        severity(alert),
        resource(alert),
        alert.resource_id.clone(),
        alert.count.to_string(),
        format!("{over}{}", alert.message),
    ]
}

fn unix_ms(seconds: i64, nanos: i32) -> u64 {
    u64::try_from(seconds * 1000 + i64::from(nanos) / 1_000_000).unwrap_or(0)
}

fn last_seen(alert: &sdk::Alert) -> u64 {
    alert
        .timestamp
        .as_ref()
        .map_or(0, |t| unix_ms(t.seconds, t.nanos))
}

fn alert_json(alert: &sdk::Alert) -> Value {
    let first = alert
        .first_seen
        .as_ref()
        .map_or(0, |t| unix_ms(t.seconds, t.nanos));
    json!({
        "id": alert.id.to_string(), "severity": severity(alert), "resource": resource(alert), "resource_id": alert.resource_id,
        "type": alert.alert_type, "tag": alert.unique_tag, "count": alert.count, "cleared": alert.cleared,
        "first_seen_unix_ms": first, "last_seen_unix_ms": last_seen(alert), "message": alert.message,
    })
}
