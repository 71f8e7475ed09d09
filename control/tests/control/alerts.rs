//! What the data path reports becomes alerts.
use crate::bench::{Bench, Drive, refused};
use keelblock_api::datapath::event::What;
use keelblock_api::datapath::pool_space_low::Level;
use keelblock_api::datapath::{
    ChecksumError, DriveEvacuated, DriveFailed, PoolSpaceLow, ReadError,
};
use keelblock_api::openstorage::sdk_alerts_option::Opt;
use keelblock_api::openstorage::sdk_alerts_query::Query;
use keelblock_api::openstorage::*;
use std::time::Duration;
use tonic::Code;

fn of(resource: ResourceType, opts: &[Opt]) -> Vec<SdkAlertsQuery> {
    vec![SdkAlertsQuery {
        query: Some(Query::ResourceTypeQuery(SdkAlertsResourceTypeQuery {
            resource_type: resource.into(),
        })),
        opts: opts
            .iter()
            .map(|opt| SdkAlertsOption { opt: Some(*opt) })
            .collect(),
    }]
}

async fn find(b: &Bench, queries: Vec<SdkAlertsQuery>) -> Vec<Alert> {
    let request = SdkAlertsEnumerateWithFiltersRequest { queries };
    let reply = b.alerts().enumerate_with_filters(request).await;
    let mut parts = reply.unwrap().into_inner();
    let mut alerts = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        alerts.extend(part.alerts);
    }
    alerts
}

/// Waits until there are so many, as reports are heard after a while.
async fn wait(b: &Bench, resource: ResourceType, ready: impl Fn(&[Alert]) -> bool) -> Vec<Alert> {
    for _ in 0..1000 {
        let found = find(b, of(resource, &[])).await;
        if ready(&found) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the alerts are {:?}", find(b, of(resource, &[])).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn drives_and_pools_raise_alerts() {
    let mut b = Bench::new(Drive::File).await;
    let pool = b.pool().await;
    let drive = pool.drives[0].clone();
    let error = ChecksumError {
        drive_id: drive.drive_id.clone(),
        volume_id: "f".into(),
        lane: 3,
        block: 9,
        expected: 1,
        actual: 2,
        ..Default::default()
    };
    for _ in 0..3 {
        b.fake.report(What::ChecksumError(error.clone())).await;
    }
    let found = wait(&b, ResourceType::Drive, |a| a.iter().any(|a| a.count == 3)).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].severity(), SeverityType::Alarm);
    assert_eq!(found[0].resource_id, drive.drive_id);
    assert!(
        found[0].message.contains("block 9 of lane 3"),
        "{}",
        found[0].message
    );
    assert!(found[0].message.contains(&drive.path));
    let page = ChecksumError {
        volume_id: "g".into(),
        metadata: true,
        ..error
    };
    b.fake.report(What::ChecksumError(page)).await;
    let unread = ReadError {
        drive_id: drive.drive_id.clone(),
        volume_id: "f".into(),
        lane: 4,
        block: 7,
    };
    b.fake.report(What::ReadError(unread)).await;
    let of_drive = wait(&b, ResourceType::Drive, |a| a.len() == 3).await;
    let says = |text: &str| of_drive.iter().find(|a| a.message.contains(text));
    let page = says("page 9 of the map of lane 3 of volume g").expect("of the page");
    assert_eq!(page.alert_type, 2);
    let unread = says("block 7 of lane 4 of volume f").expect("of the read");
    assert_eq!(
        (unread.alert_type, unread.unique_tag.as_str()),
        (7, "read-error/f")
    );
    assert_eq!(unread.severity(), SeverityType::Alarm);
    assert!(found[0].first_seen.unwrap().seconds <= found[0].timestamp.unwrap().seconds);

    let space = |level: Level| PoolSpaceLow {
        pool_id: pool.pool_id.clone(),
        level: level.into(),
        total_bytes: 100,
        free_bytes: 1,
    };
    b.fake.report(What::PoolSpaceLow(space(Level::Low))).await;
    let low = wait(&b, ResourceType::Pool, |a| a.len() == 1).await;
    assert_eq!(low[0].severity(), SeverityType::Warning);
    b.fake.report(What::PoolSpaceLow(space(Level::Full))).await;
    let full = wait(&b, ResourceType::Pool, |a| a[0].count == 2).await;
    assert_eq!(full[0].severity(), SeverityType::Alarm);
    assert!(full[0].message.contains("keelctl service drive add"));
    b.fake.report(What::PoolSpaceLow(space(Level::Ok))).await;
    wait(&b, ResourceType::Pool, |a| a[0].cleared).await;

    let failed = DriveFailed {
        drive_id: drive.drive_id.clone(),
        error: "EIO".into(),
    };
    b.fake.report(What::DriveFailed(failed)).await;
    let empty = DriveEvacuated {
        pool_id: pool.pool_id.clone(),
        drive_id: drive.drive_id.clone(),
    };
    b.fake.report(What::DriveEvacuated(empty)).await;
    let found = wait(&b, ResourceType::Drive, |a| a.len() == 5).await;
    let failed = found.iter().find(|a| a.message.contains("EIO")).unwrap();
    assert!(
        failed.message.contains("drive replace"),
        "{}",
        failed.message
    );
    // It opens again.
    b.restart_control().await;
    wait(&b, ResourceType::Drive, |a| {
        a.iter().any(|a| a.cleared && a.message.contains("EIO"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_filtered_and_deleted() {
    let b = Bench::new(Drive::File).await;
    let drive = b.pool().await.drives[0].drive_id.clone();
    let failed = DriveFailed {
        drive_id: drive.clone(),
        error: "EIO".into(),
    };
    b.fake.report(What::DriveFailed(failed)).await;
    let alert = wait(&b, ResourceType::Drive, |a| a.len() == 1)
        .await
        .remove(0);
    let drives = ResourceType::Drive;
    let severity = |s: SeverityType| Opt::MinSeverityType(s.into());
    assert_eq!(
        find(&b, of(drives, &[severity(SeverityType::Warning)]))
            .await
            .len(),
        1
    );
    assert!(
        find(&b, of(drives, &[Opt::IsCleared(true)]))
            .await
            .is_empty()
    );
    let span = SdkAlertsTimeSpan {
        start_time: None,
        end_time: Some(prost_types::Timestamp::default()),
    };
    assert!(
        find(&b, of(drives, &[Opt::TimeSpan(span)]))
            .await
            .is_empty()
    );
    let span = SdkAlertsCountSpan {
        min_count: 1,
        max_count: 1,
    };
    assert_eq!(find(&b, of(drives, &[Opt::CountSpan(span)])).await.len(), 1);
    assert!(find(&b, of(ResourceType::Node, &[])).await.is_empty());
    let by_id = |alert_type| {
        let query = SdkAlertsResourceIdQuery {
            resource_type: drives.into(),
            alert_type,
            resource_id: drive.clone(),
        };
        vec![SdkAlertsQuery {
            query: Some(Query::ResourceIdQuery(query)),
            opts: Vec::new(),
        }]
    };
    assert_eq!(find(&b, by_id(alert.alert_type)).await.len(), 1);
    assert_eq!(find(&b, by_id(0)).await.len(), 1);
    assert!(find(&b, by_id(99)).await.is_empty());
    let delete = |queries| SdkAlertsDeleteRequest { queries };
    refused(
        b.alerts().delete(delete(Vec::new())).await,
        Code::InvalidArgument,
        "queries",
    );
    refused(
        b.alerts()
            .delete(delete(vec![SdkAlertsQuery::default()]))
            .await,
        Code::InvalidArgument,
        "query",
    );
    b.alerts()
        .delete(delete(by_id(alert.alert_type)))
        .await
        .unwrap();
    assert!(find(&b, of(drives, &[])).await.is_empty());
}
