//! Junk over live connections disturbs nobody. A short run; `cargo xtask fuzz --pdus 10000000` is the long one.
use keelblock_tests::cluster::Cluster;
use keelblock_tests::fuzz::{self, Config};

#[test]
fn junk_disturbs_nobody_and_leaves_nothing_behind() {
    let seed = keelblock_tests::seed();
    let device = ["--device", "memory", "--size", "256M", "--reactors", "2"];
    let cluster = Cluster::builder()
        .arg(&device)
        .volume("fuzzed:32M")
        .volume("verified:96M")
        .start();
    let report = fuzz::run(
        &cluster,
        Config {
            pdus: 100_000,
            seed,
            threads: 2,
            verbose: false,
        },
    )
    .unwrap();
    println!("{report:?}");
    assert!(report.pdus >= 100_000 && report.verified > 0);
}
