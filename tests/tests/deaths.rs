//! Processes of three nodes die and pause while hosts write, a few times; `cargo xtask deaths` does it at length, with cuts and failing drives.
use keelblock_tests::deaths::{self, Plan};
use keelblock_tests::seed;

#[test]
fn what_was_acknowledged_outlives_deaths() {
    let plan = Plan::new(15, seed());
    let report = deaths::run(plan).unwrap();
    println!("{report}");
    assert!(
        report.writes > 0 && report.reads > 0 && !report.stalls.is_empty(),
        "{report:?}"
    );
}
