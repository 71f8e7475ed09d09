//! `keelctl sched-policy …`: when snapshots are taken without being asked, and `keelctl volume snap-schedule`, of which volumes. Times are UTC.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use clap::{Args, Subcommand};
use keelblock_api::openstorage as sdk;
use sdk::sdk_schedule_policy_interval::PeriodType;
use serde_json::{Value, json};

/// Days of the week, as they are written; the SDK's numbers are their places.
const DAYS: [&str; 7] = [
    "sunday",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
];

/// A time, and how many snapshots of it are kept (0: as many as is usual).
type Interval = sdk::SdkSchedulePolicyInterval;

/// When.
#[derive(Debug, Args)]
pub struct Times {
    /// Every so many minutes; the last 5 are kept, unless K says otherwise (repeatable, as all of these).
    #[arg(long, value_name = "MINUTES[,K]", value_parser = periodic)]
    periodic: Vec<Interval>,
    /// Each day at that time; 7 are kept.
    #[arg(long, value_name = "HH:MM[,K]", value_parser = daily)]
    daily: Vec<Interval>,
    /// Each week, like sunday@23:30; 5 are kept.
    #[arg(long, value_name = "DAY@HH:MM[,K]", value_parser = weekly)]
    weekly: Vec<Interval>,
    /// Each month, like 1@04:00; 31 is the last day; 12 are kept.
    #[arg(long, value_name = "DAY@HH:MM[,K]", value_parser = monthly)]
    monthly: Vec<Interval>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a policy.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        times: Times,
    },
    /// All policies, or one.
    List {
        /// Only this one.
        name: Option<String>,
    },
    /// Give a policy other times, instead of all that it has. Volumes follow.
    Update {
        /// Its name.
        name: String,
        #[command(flatten)]
        times: Times,
    },
    /// Delete policies that no volume has.
    Delete {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

fn retain(text: &str) -> Result<(&str, i64), String> {
    let Some((time, retain)) = text.rsplit_once(',') else {
        return Ok((text, 0));
    };
    match retain.parse() {
        Ok(k @ 1..) => Ok((time, k)),
        _ => Err(format!(
            "`{retain}` is not how many are kept: write a number from 1 on"
        )),
    }
}

fn time(text: &str) -> Result<(i32, i32), String> {
    let wrong = || format!("`{text}` is not a time of day: write HH:MM, 00:00 to 23:59");
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    match (hour.parse(), minute.parse()) {
        (Ok(hour @ 0..=23), Ok(minute @ 0..=59)) => Ok((hour, minute)),
        _ => Err(wrong()),
    }
}

fn interval(retain: i64, period_type: PeriodType) -> Interval {
    Interval {
        retain,
        period_type: Some(period_type),
    }
}

fn periodic(text: &str) -> Result<Interval, String> {
    let (minutes, retain) = retain(text)?;
    match minutes.parse::<i64>() {
        Ok(minutes @ 1..=527_040) => {
            let seconds = minutes * 60;
            let periodic = sdk::SdkSchedulePolicyIntervalPeriodic { seconds };
            Ok(interval(retain, PeriodType::Periodic(periodic)))
        }
        _ => Err(format!(
            "`{minutes}` is not a number of minutes from 1 to a year"
        )),
    }
}

fn daily(text: &str) -> Result<Interval, String> {
    let (at, retain) = retain(text)?;
    let (hour, minute) = time(at)?;
    let daily = sdk::SdkSchedulePolicyIntervalDaily { hour, minute };
    Ok(interval(retain, PeriodType::Daily(daily)))
}

fn day_and_time(text: &str) -> Result<(&str, (i32, i32)), String> {
    let (day, at) = text
        .split_once('@')
        .ok_or_else(|| format!("`{text}`: write DAY@HH:MM"))?;
    Ok((day, time(at)?))
}

fn weekly(text: &str) -> Result<Interval, String> {
    let (at, retain) = retain(text)?;
    let (day, (hour, minute)) = day_and_time(at)?;
    let day = day.to_ascii_lowercase();
    let number = DAYS
        .iter()
        .position(|d| day.len() >= 2 && d.starts_with(&day));
    let number = number.ok_or_else(|| format!("`{day}` is not a day of the week, like sunday"))?;
    let weekly = sdk::SdkSchedulePolicyIntervalWeekly {
        day: i32::try_from(number).expect("there are seven"),
        hour,
        minute,
    };
    Ok(interval(retain, PeriodType::Weekly(weekly)))
}

fn monthly(text: &str) -> Result<Interval, String> {
    let (at, retain) = retain(text)?;
    let (day, (hour, minute)) = day_and_time(at)?;
    match day.parse() {
        Ok(day @ 1..=31) => {
            let monthly = sdk::SdkSchedulePolicyIntervalMonthly { day, hour, minute };
            Ok(interval(retain, PeriodType::Monthly(monthly)))
        }
        _ => Err(format!("`{day}` is not a day of a month: write 1 to 31")),
    }
}

fn policy(name: String, times: Times) -> Result<Option<sdk::SdkSchedulePolicy>> {
    let all = [times.periodic, times.daily, times.weekly, times.monthly];
    let schedules: Vec<_> = all.into_iter().flatten().collect();
    if schedules.is_empty() {
        return Err(Failure::Usage(
            "say when: --periodic, --daily, --weekly or --monthly".into(),
        ));
    }
    Ok(Some(sdk::SdkSchedulePolicy { name, schedules }))
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Create { name, times } => {
            let schedule_policy = policy(name.clone(), times)?;
            let request = sdk::SdkSchedulePolicyCreateRequest { schedule_policy };
            let made = client.policies.create(request).await;
            made.map_err(|s| Failure::from_status(format!("create schedule policy {name}"), &s))?;
            Ok(done(&name, "is made"))
        }
        Command::Update { name, times } => {
            let schedule_policy = policy(name.clone(), times)?;
            let request = sdk::SdkSchedulePolicyUpdateRequest { schedule_policy };
            let made = client.policies.update(request).await;
            made.map_err(|s| Failure::from_status(format!("update schedule policy {name}"), &s))?;
            Ok(done(&name, "is changed"))
        }
        Command::List { name } => list(client, name).await,
        Command::Delete { names } => {
            for name in &names {
                let request = sdk::SdkSchedulePolicyDeleteRequest { name: name.clone() };
                let deleted = client.policies.delete(request).await;
                deleted.map_err(|s| {
                    Failure::from_status(format!("delete schedule policy {name}"), &s)
                })?;
            }
            Ok(done(&names.join(", "), "is no more"))
        }
    }
}

fn done(name: &str, what: &str) -> Answer {
    let text = format!("Schedule policy {name} {what}.");
    Answer::new(json!({ "policy": name }), text)
}

async fn list(client: &mut Client, name: Option<String>) -> Result<Answer> {
    let failed = |s: tonic::Status| Failure::from_status("list schedule policies", &s);
    let policies = match name {
        Some(name) => {
            let request = sdk::SdkSchedulePolicyInspectRequest { name };
            let reply = client.policies.inspect(request).await.map_err(failed)?;
            reply.into_inner().policy.into_iter().collect()
        }
        None => {
            let request = sdk::SdkSchedulePolicyEnumerateRequest {};
            let reply = client.policies.enumerate(request).await.map_err(failed)?;
            reply.into_inner().policies
        }
    };
    let data: Vec<Value> = policies
        .iter()
        .map(|p| {
            let times: Vec<_> = p
                .schedules
                .iter()
                .map(|i| json!({ "when": words(i), "retain": i.retain }))
                .collect();
            json!({ "name": p.name, "schedules": times })
        })
        .collect();
    let rows = policies.iter().flat_map(|p| {
        let row = |(at, i): (usize, &Interval)| {
            let name = if at == 0 {
                p.name.clone()
            } else {
                String::new()
            };
            vec![name, words(i), i.retain.to_string()]
        };
        p.schedules.iter().enumerate().map(row)
    });
    Ok(Answer::new(
        data,
        table(&["POLICY", "WHEN (UTC)", "KEPT>"], rows),
    ))
}

/// As it is written for an option.
fn words(interval: &Interval) -> String {
    match &interval.period_type {
        Some(PeriodType::Periodic(p)) => format!("every {} min", p.seconds / 60),
        Some(PeriodType::Daily(d)) => format!("daily {:02}:{:02}", d.hour, d.minute),
        Some(PeriodType::Weekly(w)) => {
            let day = usize::try_from(w.day).ok().and_then(|d| DAYS.get(d));
            format!(
                "weekly {}@{:02}:{:02}",
                day.unwrap_or(&"?"),
                w.hour,
                w.minute
            )
        }
        Some(PeriodType::Monthly(m)) => format!("monthly {}@{:02}:{:02}", m.day, m.hour, m.minute),
        None => "?".into(),
    }
}

/// `keelctl volume snap-schedule VOLUME --policy P …`.
pub async fn set(client: &mut Client, volume: &str, policies: Vec<String>) -> Result<Answer> {
    let request = sdk::SdkVolumeSnapshotScheduleUpdateRequest {
        volume_id: volume.into(),
        snapshot_schedule_names: policies.clone(),
    };
    let set = client.volumes.snapshot_schedule_update(request).await;
    set.map_err(|s| Failure::from_status(format!("schedule snapshots of volume {volume}"), &s))?;
    let text = match policies.is_empty() {
        true => format!(
            "Snapshots of volume {volume} are not taken by schedule any more; those that were taken stay."
        ),
        false => format!(
            "Snapshots of volume {volume} are taken by {}.",
            policies.join(", ")
        ),
    };
    Ok(Answer::new(
        json!({ "volume": volume, "policies": policies }),
        text,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        let said = |i: Result<Interval, String>| i.map(|i| (words(&i), i.retain)).unwrap();
        assert_eq!(said(periodic("15,3")), ("every 15 min".into(), 3));
        assert_eq!(said(daily("23:05")), ("daily 23:05".into(), 0));
        assert_eq!(
            said(weekly("Sun@00:00,9")),
            ("weekly sunday@00:00".into(), 9)
        );
        assert_eq!(
            said(weekly("saturday@1:02")),
            ("weekly saturday@01:02".into(), 0)
        );
        assert_eq!(said(monthly("31@04:00,1")), ("monthly 31@04:00".into(), 1));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in ["", "0", "x", "5,0", "5,x", "-1", "600000"] {
            assert!(periodic(bad).is_err(), "{bad}");
        }
        for bad in ["24:00", "1:60", "12", "12:00,0", ""] {
            assert!(daily(bad).is_err(), "{bad}");
        }
        for bad in ["s@1:00", "someday@1:00", "1:00", "monday"] {
            assert!(weekly(bad).is_err(), "{bad}");
        }
        for bad in ["0@1:00", "32@1:00", "1@25:00"] {
            assert!(monthly(bad).is_err(), "{bad}");
        }
    }
}
