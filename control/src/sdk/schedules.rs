//! Schedule policies.
use super::{Services, answer};
use crate::error::OpError;
use crate::records::unix_ms;
use crate::schedule::{Interval, PolicyRecord, When};
use keelblock_api::openstorage::open_storage_schedule_policy_server::OpenStorageSchedulePolicy;
use keelblock_api::openstorage::sdk_schedule_policy_interval::PeriodType;
use keelblock_api::openstorage::*;
use tonic::{Request, Response, Status as Refusal};

/// A number that must fit where it is kept; what it must be besides is checked there.
fn small(field: &str, number: i32) -> Result<u8, OpError> {
    u8::try_from(number).map_err(|_| OpError::invalid(field, format!("cannot be {number}")))
}

fn when(field: &str, period: Option<PeriodType>) -> Result<When, OpError> {
    let of = |name: &str| format!("{field}.{name}");
    match period {
        None => Err(OpError::Missing {
            field: "schedule_policy.schedules.period_type",
            hint: "one of daily, weekly, monthly, periodic",
        }),
        Some(PeriodType::Periodic(p)) => match u64::try_from(p.seconds) {
            Ok(seconds) => Ok(When::Periodic { seconds }),
            Err(_) => Err(OpError::invalid(of("periodic.seconds"), "is negative")),
        },
        Some(PeriodType::Daily(d)) => Ok(When::Daily {
            hour: small(&of("daily.hour"), d.hour)?,
            minute: small(&of("daily.minute"), d.minute)?,
        }),
        Some(PeriodType::Weekly(w)) => Ok(When::Weekly {
            day: small(&of("weekly.day"), w.day)?,
            hour: small(&of("weekly.hour"), w.hour)?,
            minute: small(&of("weekly.minute"), w.minute)?,
        }),
        Some(PeriodType::Monthly(m)) => Ok(When::Monthly {
            day: small(&of("monthly.day"), m.day)?,
            hour: small(&of("monthly.hour"), m.hour)?,
            minute: small(&of("monthly.minute"), m.minute)?,
        }),
    }
}

/// As it is kept. `retain` 0: as many as is usual.
fn record(policy: Option<SdkSchedulePolicy>) -> Result<PolicyRecord, OpError> {
    let policy = policy.ok_or(OpError::Missing {
        field: "schedule_policy",
        hint: "a name, and when",
    })?;
    let interval = |(index, interval): (usize, SdkSchedulePolicyInterval)| {
        let field = format!("schedule_policy.schedules[{index}]");
        let when = when(&field, interval.period_type)?;
        let retain = match interval.retain {
            0 => when.retain_default(),
            n => u32::try_from(n).map_err(|_| {
                OpError::invalid(format!("{field}.retain"), format!("cannot be {n}"))
            })?,
        };
        Ok(Interval { when, retain })
    };
    let schedules = policy.schedules.into_iter().enumerate().map(interval);
    Ok(PolicyRecord {
        name: policy.name,
        schedules: schedules.collect::<Result<_, OpError>>()?,
        changed_unix_ms: unix_ms(),
    })
}

fn shown(policy: PolicyRecord) -> SdkSchedulePolicy {
    let interval = |interval: Interval| {
        let period = match interval.when {
            When::Periodic { seconds } => {
                // Refused above a year.
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                PeriodType::Periodic(SdkSchedulePolicyIntervalPeriodic { seconds })
            }
            When::Daily { hour, minute } => PeriodType::Daily(SdkSchedulePolicyIntervalDaily {
                hour: hour.into(),
                minute: minute.into(),
            }),
            When::Weekly { day, hour, minute } => {
                PeriodType::Weekly(SdkSchedulePolicyIntervalWeekly {
                    day: day.into(),
                    hour: hour.into(),
                    minute: minute.into(),
                })
            }
            When::Monthly { day, hour, minute } => {
                PeriodType::Monthly(SdkSchedulePolicyIntervalMonthly {
                    day: day.into(),
                    hour: hour.into(),
                    minute: minute.into(),
                })
            }
        };
        SdkSchedulePolicyInterval {
            retain: interval.retain.into(),
            period_type: Some(period),
        }
    };
    SdkSchedulePolicy {
        name: policy.name,
        schedules: policy.schedules.into_iter().map(interval).collect(),
    }
}

#[tonic::async_trait]
impl OpenStorageSchedulePolicy for Services {
    async fn create(
        &self,
        request: Request<SdkSchedulePolicyCreateRequest>,
    ) -> Result<Response<SdkSchedulePolicyCreateResponse>, Refusal> {
        let policy = record(request.into_inner().schedule_policy)?;
        let made = self.to_the_end(|node| async move { node.create_policy(policy).await });
        answer(made.await.map(|()| SdkSchedulePolicyCreateResponse {}))
    }

    async fn update(
        &self,
        request: Request<SdkSchedulePolicyUpdateRequest>,
    ) -> Result<Response<SdkSchedulePolicyUpdateResponse>, Refusal> {
        let policy = record(request.into_inner().schedule_policy)?;
        let changed = self.to_the_end(|node| async move { node.update_policy(policy).await });
        answer(changed.await.map(|()| SdkSchedulePolicyUpdateResponse {}))
    }

    async fn enumerate(
        &self,
        _: Request<SdkSchedulePolicyEnumerateRequest>,
    ) -> Result<Response<SdkSchedulePolicyEnumerateResponse>, Refusal> {
        let all = self.node().policies().await;
        answer(all.map(|all| SdkSchedulePolicyEnumerateResponse {
            policies: all.into_iter().map(shown).collect(),
        }))
    }

    async fn inspect(
        &self,
        request: Request<SdkSchedulePolicyInspectRequest>,
    ) -> Result<Response<SdkSchedulePolicyInspectResponse>, Refusal> {
        let found = self.node().policy(&request.into_inner().name).await;
        answer(found.map(|policy| SdkSchedulePolicyInspectResponse {
            policy: Some(shown(policy)),
        }))
    }

    async fn delete(
        &self,
        request: Request<SdkSchedulePolicyDeleteRequest>,
    ) -> Result<Response<SdkSchedulePolicyDeleteResponse>, Refusal> {
        let name = request.into_inner().name;
        let deleted = self.to_the_end(|node| async move { node.delete_policy(&name).await });
        answer(deleted.await.map(|()| SdkSchedulePolicyDeleteResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_was_asked_for() {
        let daily = SdkSchedulePolicyIntervalDaily { hour: 1, minute: 2 };
        let monthly = SdkSchedulePolicyIntervalMonthly {
            day: 31,
            hour: 3,
            minute: 4,
        };
        let weekly = SdkSchedulePolicyIntervalWeekly {
            day: SdkTimeWeekday::Saturday.into(),
            hour: 5,
            minute: 6,
        };
        let interval = |retain, period| SdkSchedulePolicyInterval {
            retain,
            period_type: Some(period),
        };
        let asked = SdkSchedulePolicy {
            name: "p".into(),
            schedules: vec![
                interval(3, PeriodType::Daily(daily)),
                interval(0, PeriodType::Monthly(monthly)),
                interval(1, PeriodType::Weekly(weekly)),
            ],
        };
        let kept = record(Some(asked.clone())).unwrap();
        kept.check().unwrap();
        let mut told = shown(kept);
        assert_eq!(told.schedules[1].retain, 12, "as is usual");
        told.schedules[1].retain = 0;
        assert_eq!(told, asked);
    }

    #[test]
    fn numbers_that_fit_nowhere_are_refused() {
        let with = |retain, seconds| {
            let periodic = SdkSchedulePolicyIntervalPeriodic { seconds };
            record(Some(SdkSchedulePolicy {
                name: "p".into(),
                schedules: vec![SdkSchedulePolicyInterval {
                    retain,
                    period_type: Some(PeriodType::Periodic(periodic)),
                }],
            }))
        };
        assert!(with(-1, 60).is_err() && with(1, -60).is_err());
        assert!(with(1, 0).unwrap().check().is_err());
        assert!(record(None).is_err());
        let daily = SdkSchedulePolicyIntervalDaily {
            hour: 300,
            minute: 0,
        };
        assert!(when("f", Some(PeriodType::Daily(daily))).is_err());
        assert!(when("f", None).is_err());
    }
}
