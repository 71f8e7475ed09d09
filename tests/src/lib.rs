//! Whole-system tests: a cluster builder, faults, real Linux hosts.
//!
//! Everything here treats Keelblock as its users do: it starts `keelblock up`, talks to it with `keelctl` and NVMe/TCP, and
//! kills processes. [`cluster`] is that cluster, [`several`] one of several nodes with a replicated volume, [`programs`] finds (or builds) the executables, [`guest`] boots Debian's
//! kernel in a virtual machine, [`workload`] is verified I/O from our own initiator, [`fuzz`] is hosts that break the protocol,
//! [`kills`] a data path that dies while hosts write, [`deaths`] processes, networks and drives of several nodes that fail, [`etcd`] a key-value database whose members fail, [`outage`] one that is away for long, [`scale`] large drives and many snapshots.
//! The tests are in `tests/tests`, one file per kind of failure.
pub mod cluster;
pub mod datapaths;
pub mod deaths;
pub mod etcd;
pub mod fuzz;
pub mod guest;
pub mod kills;
pub mod marked;
pub mod outage;
pub mod programs;
pub mod recorder;
pub mod scale;
pub mod several;
pub mod workload;

/// A seed for a test's randomness: another each time, and printed, so that a failure can be repeated with `KEELBLOCK_SEED`.
///
/// # Panics
/// If `KEELBLOCK_SEED` is not a number.
pub fn seed() -> u64 {
    let given = std::env::var("KEELBLOCK_SEED")
        .ok()
        .map(|s| s.parse().expect("KEELBLOCK_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        rand::Rng::random(&mut <rand::rngs::SmallRng as rand::SeedableRng>::from_os_rng())
    });
    println!("seed {seed}");
    seed
}
