//! The load generator against a tiny target: its figures add up, and `--verify` finds a write that was acknowledged and lost.

// Not all of what the initiator's tests need is needed here.
#[allow(dead_code)]
#[path = "../../nvme/tests/support/mod.rs"]
mod support;

use std::time::Duration;

use keelblock_bench::run::{RunError, RunOptions, run};
use keelblock_bench::workload::Pattern;
use keelblock_nvme::pdu::Digests;
use support::{BLOCK, BLOCKS, Config, HOST, NQN, Target};

fn options(target: &Target, pattern: Pattern) -> RunOptions {
    RunOptions {
        target: target.addr,
        nqn: NQN.into(),
        hostnqn: HOST.into(),
        nsid: 1,
        pattern,
        mix: 50,
        io_bytes: 4096,
        depth: 16,
        queues: 2,
        duration: Duration::from_millis(100),
        warmup: Duration::from_millis(10),
        rate: None,
        fill: false,
        verify: true,
        cpu: None,
        digests: Digests {
            header: true,
            data: true,
        },
        sq_flow_control: false,
        range_bytes: Some(1 << 20),
        seed: 3,
    }
}

#[test]
fn a_good_target_is_clean_and_the_figures_add_up() {
    let target = Target::start(Config {
        success_flag: true,
        ..Config::default()
    });
    let report = run(&options(&target, Pattern::RandRw)).unwrap();
    assert!(report.is_clean(), "{}", report.text());
    let verified = report.verify.as_ref().unwrap();
    assert!(
        verified.blocks_checked >= report.read.ios * 8 + (1 << 20) / BLOCK as u64,
        "all reads, and everything again at the end: {verified:?}"
    );
    assert_eq!(report.total.ios, report.read.ios + report.write.ios);
    assert!(
        report.read.ios > 0 && report.write.ios > 0 && report.total.max_us >= report.total.p50_us
    );
    assert_eq!(
        (
            report.depth,
            report.queues,
            report.hdgst,
            report.range_bytes
        ),
        (16, 2, true, 1 << 20)
    );
    let json = serde_json::to_value(&report).unwrap();
    for key in [
        "iops", "mb_per_s", "mean_us", "p50_us", "p90_us", "p99_us", "p99_9_us", "max_us", "errors",
    ] {
        assert!(json["total"][key].is_number(), "{key}");
    }
}

#[test]
fn a_lost_write_is_found() {
    for nth in [1, 100] {
        let target = Target::start(Config {
            lose_write: Some(nth),
            ..Config::default()
        });
        let report = run(&options(&target, Pattern::RandRead)).unwrap();
        let verified = report.verify.as_ref().unwrap();
        assert!(
            verified.mismatches > 0 && !report.is_clean(),
            "write {nth}: {}",
            report.text()
        );
        assert!(
            verified.first_mismatch.as_ref().unwrap().contains("LBA"),
            "{verified:?}"
        );
    }
}

#[test]
fn a_refused_io_is_an_error_of_the_run() {
    let target = Target::start(Config::default());
    let write = |range| RunOptions {
        verify: false,
        range_bytes: Some(range),
        ..options(&target, Pattern::Write)
    };
    assert!(run(&write(1 << 20)).unwrap().is_clean());
    let whole = (BLOCK * BLOCKS) as u64;
    assert_eq!(
        run(&write(whole * 2)).unwrap().range_bytes,
        whole,
        "the range ends with the namespace"
    );
    assert!(matches!(
        run(&write(100)),
        Err(RunError::Range { range: 100 })
    ));
    let odd = RunOptions {
        io_bytes: 1000,
        ..write(1 << 20)
    };
    assert!(matches!(
        run(&odd),
        Err(RunError::IoSize {
            block_bytes: 512,
            ..
        })
    ));
    let queues = RunOptions {
        queues: 9,
        ..write(1 << 20)
    };
    assert!(matches!(
        run(&queues),
        Err(RunError::Queues {
            granted: 4,
            asked: 9
        })
    ));
}

#[test]
fn a_rate_is_kept() {
    let target = Target::start(Config::default());
    let slow = RunOptions {
        rate: Some(200.0),
        verify: false,
        duration: Duration::from_millis(300),
        ..options(&target, Pattern::RandRead)
    };
    let report = run(&slow).unwrap();
    assert!(
        (1..=70).contains(&report.total.ios),
        "200 per second for 0.3 s, and what was late in the warm-up: {}",
        report.total.ios
    );
}
