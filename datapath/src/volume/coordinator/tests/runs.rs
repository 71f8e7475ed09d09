//! Many runs of what may happen, each by a seed that is said when it fails.
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::world::{Faults, World};

const ALL: Faults = Faults {
    power: true,
    cuts: true,
    coordinators: 6,
    kvdb: true,
    clocks: true,
    changes: false,
};

/// Says which seed it was.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} (KEEL_SEED repeats it)", self.0);
        }
    }
}

/// Half of the runs by seeds that stay the same, of which it is known how far they get, and half by new ones; or the one that `KEEL_SEED` names.
fn run(faults: Faults, runs: u64, steps: usize) {
    let given = std::env::var("KEEL_SEED").ok().and_then(|s| s.parse().ok());
    let runs = std::env::var("KEEL_RUNS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(runs);
    if let Some(seed) = given {
        some(faults, seed, 1, steps);
        return;
    }
    let [acked, reads, exclusions, joins, served, _, added, left] =
        some(faults, 1, runs.div_ceil(2), steps);
    let mut far = acked > 0 && reads > 0 && served > 0;
    if faults.power || faults.cuts {
        // Else a member is hardly ever excluded. Gapped ones are rare.
        far &= exclusions > 0 && joins > 0;
    }
    far &= !faults.changes || added > 0 && left > 0;
    assert!(far, "the runs by seeds that stay the same did not get far");
    let first = u64::from(StdRng::from_os_rng().random::<u32>()) << 16;
    some(faults, first, runs / 2, steps);
}

/// Runs by seeds from the first one; returns how often each of what is printed happened.
fn some(faults: Faults, first: u64, runs: u64, steps: usize) -> [usize; 8] {
    println!("{runs} seeds from {first}");
    let mut sums = [0; 8];
    for seed in first..first + runs {
        let _says = Seed(seed);
        let mut world = World::new(seed, faults);
        world.attach();
        for _ in 0..steps {
            world.step();
        }
        world.end();
        let saw = [
            world.history.acked,
            world.history.reads,
            world.exclusions,
            world.joins,
            world.served,
            world.gapped,
            world.added,
            world.left,
        ];
        for (sum, n) in sums.iter_mut().zip(saw) {
            *sum += n;
        }
    }
    println!(
        "acknowledged, reads, exclusions, joins, takeovers, gapped, added, taken away: {sums:?}"
    );
    sums
}

/// No acknowledged write is lost, no lower epoch has one acknowledged that a higher one lacks, no read is older than what was told before, no stamp has two
/// values, no set is below the minimum, and at the end all replicas are alike; whatever is lost, late, cut, restarted, taken over, swapped.
#[test]
fn whatever_happens_what_hosts_were_told_stays_true() {
    run(ALL, 100, 3000);
}

/// The same with nobody but the first coordinator: what goes wrong here is not takeover's.
#[test]
fn one_coordinator_and_replicas_that_come_and_go() {
    let one = Faults {
        coordinators: 1,
        ..ALL
    };
    run(one, 20, 3000);
}

/// The same without faults but restarts of the coordinator: nothing is excluded for good.
#[test]
fn takeovers_with_nobody_lost() {
    let calm = Faults {
        power: false,
        cuts: false,
        kvdb: false,
        ..ALL
    };
    run(calm, 20, 2000);
}

/// The same with replicas that are added, and taken away however well they are, amid all of it.
#[test]
fn replicas_are_added_and_taken_away() {
    let changes = Faults {
        changes: true,
        ..ALL
    };
    run(changes, 200, 3000);
}
