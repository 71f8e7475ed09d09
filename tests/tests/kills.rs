//! The data path is killed a few times while hosts write; `cargo xtask kills` does it at length.
use keelblock_tests::{kills, seed};

#[test]
fn what_was_acknowledged_outlives_kills() {
    let report = kills::run(5, seed()).unwrap();
    assert!(
        report.kills >= 5 && report.volumes_verified >= 4,
        "{report:?}"
    );
    assert!(
        report.acknowledged > 0 && report.in_flight > 0,
        "{report:?}"
    );
}
