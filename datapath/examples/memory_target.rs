//! An NVMe/TCP target on one drive, without a control process: for measuring the path alone.
//!
//!     memory_target [LISTEN] [DEVICE] [VOLUME_MIB] [REACTORS] [LBA_SHIFT] [CPUS]

#[path = "../tests/target/harness.rs"]
mod harness;

use harness::{Export, Setup};

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut args = std::env::args().skip(1);
    let mut next = |default: &str| args.next().unwrap_or_else(|| default.to_owned());
    let mut setup = Setup {
        listen: next("127.0.0.1:4420").parse().expect("LISTEN"),
        ..Setup::default()
    };
    setup.device = next("memory:536870912");
    setup.volume_bytes = next("256").parse::<u64>().expect("VOLUME_MIB") << 20;
    setup.reactors = next("1").parse().expect("REACTORS");
    setup.lba_shift = next("12").parse().expect("LBA_SHIFT");
    setup.config.cpus = next("0")
        .split(',')
        .map(|c| c.parse().expect("CPUS"))
        .collect();
    setup.exports.push(Export {
        nqn: "nqn.2024-01.io.keelblock:denied".into(),
        allowed_hosts: Some(vec!["nqn.2024-01.io.keelblock:nobody".into()]),
    });
    let running = setup.start();
    println!("READY {}", running.address);
    loop {
        std::thread::park();
    }
}
