//! Pools of drives that say this and that.

use super::*;
use crate::store::engine::{Counters, Identity, LaneInfo, SnapshotInfo, Space, StaleCopy};
use crate::store::types::DriveId;
use proptest::prelude::*;
use std::collections::BTreeMap;

const V: VolumeId = VolumeId([1; 16]);
const S: SnapshotId = SnapshotId([2; 16]);
const BLOCK: u64 = 4096;

fn name(n: usize) -> Name {
    Name::new(&format!("d{n}")).unwrap()
}

fn drive(n: usize, free: u64) -> PoolDrive {
    PoolDrive {
        id: name(n),
        number: Some(n as u32),
        failed: false,
        state: DriveState::InUse,
        facts: Some(DriveFacts {
            identity: Identity {
                id: DriveId([n as u8; 16]),
                drive: name(n),
                pool: name(99),
                members: 2,
            },
            state: DriveState::InUse,
            size_bytes: 1 << 30,
            volatile_cache: false,
            space: Space {
                total: 1000,
                fixed: 100,
                used: 900 - free,
                pages: 1,
                free,
                reserve: 50,
            },
            counters: Counters::default(),
            failed: false,
            lanes: Vec::new(),
            snapshots: Vec::new(),
        }),
    }
}

fn pool(drives: Vec<PoolDrive>) -> PoolView {
    PoolView {
        id: name(99),
        drives,
    }
}

fn lane(lane: u8, incarnation: u32, size_bytes: u64) -> LaneInfo {
    LaneInfo {
        volume: V,
        lane,
        lanes: 16,
        incarnation,
        leaving: false,
        size_bytes,
        used_blocks: 3,
        error: None,
        replica: false,
        lossy: false,
        origin: None,
    }
}

fn facts(drive: &mut PoolDrive) -> &mut DriveFacts {
    drive.facts.as_mut().unwrap()
}

#[test]
fn a_volume_is_complete_when_every_lane_is_somewhere() {
    let (mut one, mut two) = (drive(0, 500), drive(1, 500));
    facts(&mut one).lanes = (0..8).map(|n| lane(n, 1, 1 << 30)).collect();
    facts(&mut two).lanes = (8..15).map(|n| lane(n, 1, 1 << 30)).collect();
    let found = pool(vec![one.clone(), two.clone()]).volume(V).unwrap();
    let incomplete = PoolError::Incomplete {
        volume: V,
        missing: 1,
    };
    assert_eq!(found.places(), Err(incomplete));
    facts(&mut two).lanes.push(lane(15, 1, 1 << 30));
    let found = pool(vec![one, two]).volume(V).unwrap();
    let places: Vec<usize> = (0..16).map(|n| n / 8).collect();
    assert_eq!(found.places(), Ok(places));
    assert_eq!(found.used_bytes, 16 * 3 * BLOCK);
}

#[test]
fn of_two_copies_the_higher_incarnation_is_the_lane() {
    let (mut one, mut two) = (drive(0, 500), drive(1, 500));
    facts(&mut one).lanes = (0..16).map(|n| lane(n, 1, 1 << 30)).collect();
    facts(&mut two).lanes = vec![lane(3, 2, 1 << 30)];
    for drives in [vec![one.clone(), two.clone()], vec![two, one]] {
        let view = pool(drives);
        let places = view.volume(V).unwrap().places().unwrap();
        for (n, place) in places.into_iter().enumerate() {
            let expect = name(usize::from(n == 3));
            assert_eq!(view.drives[place].id, expect);
        }
    }
}

#[test]
fn what_is_leaving_counts_only_when_its_copy_can_be_looked_for() {
    let (mut one, two) = (drive(0, 500), drive(1, 500));
    facts(&mut one).lanes = (0..16).map(|n| lane(n, 1, 1 << 30)).collect();
    facts(&mut one).lanes[3].leaving = true;
    let mut gone = two.clone();
    gone.facts = None;
    let degraded = pool(vec![one.clone(), gone]);
    assert!(degraded.volume(V).unwrap().places().is_err());
    assert_eq!(degraded.staying(), []);
    let whole = pool(vec![one.clone(), two.clone()]);
    assert!(whole.volume(V).unwrap().places().is_ok());
    assert_eq!(whole.staying(), [(0, V, 3)]);
    let mut arrived = two;
    facts(&mut arrived).lanes = vec![lane(3, 2, 1 << 30)];
    let moved = pool(vec![one, arrived]);
    assert_eq!(moved.staying(), []);
    let copy = StaleCopy {
        volume: V,
        lane: 3,
        snapshot: None,
        below: 2,
    };
    assert_eq!(moved.stale(), BTreeMap::from([(0, vec![copy])]));
}

#[test]
fn a_size_counts_when_every_lane_was_told() {
    let mut one = drive(0, 500);
    facts(&mut one).lanes = (0..16)
        .map(|n| lane(n, 1, if n < 5 { 2 << 30 } else { 1 << 30 }))
        .collect();
    assert_eq!(pool(vec![one]).volume(V).unwrap().size_bytes, 1 << 30);
}

#[test]
fn a_snapshot_is_complete_when_every_lane_has_it() {
    let (mut one, mut two) = (drive(0, 500), drive(1, 500));
    let info = |lane| SnapshotInfo {
        volume: V,
        lane,
        snapshot: S,
        incarnation: 1,
        hidden: false,
        lanes: 16,
        size_bytes: 1 << 30,
        used_blocks: 2,
        error: None,
        lossy: false,
    };
    facts(&mut one).snapshots = (0..8).map(info).collect();
    facts(&mut two).snapshots = (8..15).map(info).collect();
    let found = pool(vec![one.clone(), two.clone()]).snapshot(V, S).unwrap();
    assert!(!found.complete());
    facts(&mut two).snapshots.push(info(15));
    let found = pool(vec![one.clone(), two]).snapshot(V, S).unwrap();
    assert!(found.complete());
    assert_eq!((found.drives(), found.used_bytes), (vec![0, 1], 32 * BLOCK));
    for info in &mut facts(&mut one).snapshots {
        info.hidden = true;
    }
    assert_eq!(pool(vec![one]).snapshot(V, S), None);
}

#[test]
fn drives_that_are_missing_are_missed() {
    let mut one = drive(0, 500);
    assert!(matches!(
        pool(vec![one.clone()]).whole(),
        Err(PoolError::Degraded {
            present: 1,
            members: 2,
            ..
        })
    ));
    assert_eq!(pool(vec![one.clone(), drive(1, 0)]).whole(), Ok(()));
    facts(&mut one).identity.members = 1;
    assert_eq!(pool(vec![one]).whole(), Ok(()));
}

#[test]
fn space_is_that_of_all_drives_and_free_only_what_takes_data() {
    let (one, mut two) = (drive(0, 300), drive(1, 400));
    two.failed = true;
    let space = pool(vec![one, two]).space();
    assert_eq!(space.total, 2 * 900 * BLOCK);
    assert_eq!(space.free, 250 * BLOCK);
    assert_eq!(space.reserved, 100 * BLOCK);
    assert_eq!(space.used, (600 + 500) * BLOCK);
}

#[test]
fn lanes_are_spread_by_the_room_that_there_is() {
    let all: Vec<u8> = (0..16).collect();
    let counts = |drives: Vec<PoolDrive>| -> Vec<(usize, usize)> {
        let placed = place(&pool(drives), &all, 25 * BLOCK).unwrap();
        placed.iter().map(|(p, l)| (*p, l.len())).collect()
    };
    assert_eq!(counts(vec![drive(0, 450), drive(1, 450)]), [(0, 8), (1, 8)]);
    // 200 and 600 blocks to give: the first gets a lane only when the second has as little left.
    assert_eq!(counts(vec![drive(0, 250), drive(1, 650)]), [(1, 16)]);
    assert_eq!(
        counts(vec![drive(0, 350), drive(1, 550)]),
        [(0, 4), (1, 12)]
    );
    let mut failed = drive(1, 800);
    failed.failed = true;
    assert_eq!(counts(vec![drive(0, 100), failed.clone()]), [(0, 16)]);
    let none = place(&pool(vec![failed]), &all, BLOCK);
    assert!(matches!(none, Err(PoolError::NoDrive { .. })));
}

proptest! {
    #[test]
    fn every_lane_is_placed_once(free in prop::collection::vec(0u64..890, 1..5), lane_blocks in 0u64..200) {
        let drives = free.iter().enumerate().map(|(n, &f)| drive(n, f)).collect();
        let all: Vec<u8> = (0..16).collect();
        let placed = place(&pool(drives), &all, lane_blocks * BLOCK).unwrap();
        let mut lanes: Vec<u8> = placed.into_iter().flat_map(|(_, l)| l).collect();
        lanes.sort_unstable();
        prop_assert_eq!(lanes, all);
    }
}
