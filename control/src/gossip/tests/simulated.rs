//! The cases of `docs/gossip.md`. Periods are of a second.

use std::time::Duration;

use foca::State;

use super::net::{Net, Weather, id};

const SECOND: Duration = Duration::from_secs(1);
const CALM: Weather = Weather {
    loss: 0,
    twice: 0,
    late_ms: 5,
};
const STORM: Weather = Weather {
    loss: 20,
    twice: 10,
    late_ms: 120,
};

/// Seeds of a test; `KEELBLOCK_SEED` is another one alone.
fn seeds(count: u64) -> Vec<u64> {
    let told = std::env::var("KEELBLOCK_SEED").ok();
    let told = told.map(|s| vec![s.parse().expect("a number")]);
    told.unwrap_or_else(|| (1..=count).collect())
}

#[test]
fn all_find_each_other_and_know_how_busy_each_is() {
    for seed in seeds(4) {
        for (nodes, weather, limit) in [(2, CALM, 6), (5, CALM, 8), (16, CALM, 15), (16, STORM, 25)]
        {
            let mut net = Net::new(seed, nodes, weather);
            net.until_agreed(limit * SECOND);
            net.pass(6 * SECOND);
            for (a, b) in (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))) {
                let (stats, age) = net.engine(a).stats_of(&id(b)).unwrap();
                assert_eq!(stats.load_permille, 10 * b as u16, "seed {seed}");
                assert!(age < 10 * SECOND, "seed {seed}: {a} of {b}: {age:?}");
            }
        }
    }
}

#[test]
fn nobody_is_taken_for_dead_while_a_fifth_is_lost() {
    for seed in seeds(6) {
        for nodes in [3, 5, 9] {
            let mut net = Net::new(seed, nodes, STORM);
            net.until_agreed(25 * SECOND);
            net.pass_without(180 * SECOND, None, |net| {
                let all = 0..net.nodes();
                for (a, b) in all.clone().flat_map(|a| all.clone().map(move |b| (a, b))) {
                    let dead = a != b && net.hears(a, b) == Some(State::Down);
                    assert!(
                        !dead,
                        "seed {seed}, {nodes} nodes: {a} takes {b} for dead at {:?}\n{}",
                        net.now,
                        net.lately()
                    );
                }
            });
        }
    }
}

#[test]
fn who_has_died_is_found_by_all_in_time() {
    for seed in seeds(4) {
        for (nodes, weather, limit) in [
            (3, CALM, 10),
            (5, CALM, 10),
            (16, CALM, 15),
            (16, STORM, 25),
        ] {
            let mut net = Net::new(seed, nodes, weather);
            net.until_agreed(25 * SECOND);
            net.stop(1);
            assert!(!net.agrees(), "seed {seed}: nobody knows yet");
            net.until_agreed(limit * SECOND);
        }
    }
}

#[test]
fn who_returns_is_alive_again_whatever_its_clock_says() {
    let years = 10 * 365 * 24 * 3600 * 1000;
    for seed in seeds(6) {
        // At once, and after it was found dead; with a clock that went on, and one that was set back.
        for (away, by) in [(0, 1), (20, 20_000), (0, -500), (20, -500), (20, -years)] {
            let mut net = Net::new(seed, 5, CALM);
            net.stop(2);
            net.start_later(2, 2 * years);
            net.until_agreed(15 * SECOND);
            net.stop(2);
            net.pass(away * SECOND);
            net.start_later(2, by);
            net.until_agreed(150 * SECOND);
            let took = net.until_agreed(SECOND);
            net.pass(20 * SECOND);
            assert!(
                net.agrees(),
                "seed {seed}, {away} s, {by} ms: it stays so, after {took:?}"
            );
            let new = net.engine(2).me().generation;
            let (stats, age) = net.engine(4).stats_of(&id(2)).unwrap();
            assert_eq!(stats.generation, new, "seed {seed}, {away} s, {by} ms");
            assert!(age < 10 * SECOND, "seed {seed}: {age:?}");
        }
    }
}

#[test]
fn halves_part_and_become_one_again() {
    for seed in seeds(4) {
        for these in [&[0][..], &[0, 1], &[0, 1, 2]] {
            let mut net = Net::new(seed, 6, CALM);
            net.until_agreed(10 * SECOND);
            net.part(these);
            net.pass(60 * SECOND);
            let across = (0..6).flat_map(|a| (0..6).map(move |b| (a, b)));
            for (a, b) in across.filter(|(a, b)| a != b) {
                let parted = these.contains(&a) != these.contains(&b);
                let heard = net.hears(a, b) == Some(State::Alive);
                assert_eq!(heard, !parted, "seed {seed}: {a} of {b}");
            }
            net.cut.clear();
            net.until_agreed(30 * SECOND);
            net.pass(20 * SECOND);
            assert!(net.agrees(), "seed {seed}: it stays so");
        }
    }
}

#[test]
fn a_link_that_is_cut_makes_nobody_dead() {
    for seed in seeds(4) {
        let mut net = Net::new(seed, 5, CALM);
        net.until_agreed(10 * SECOND);
        net.cut.extend([(0, 1), (1, 0), (2, 3)]);
        net.pass_without(120 * SECOND, None, |net| {
            for (a, b) in [(0, 1), (1, 0), (2, 3), (3, 2), (4, 0)] {
                assert_ne!(
                    net.hears(a, b),
                    Some(State::Down),
                    "seed {seed}: {a} of {b}"
                );
            }
        });
    }
}

#[test]
fn who_was_stopped_takes_nobody_for_dead() {
    for seed in seeds(4) {
        let mut net = Net::new(seed, 5, CALM);
        net.until_agreed(10 * SECOND);
        net.pass_without(60 * SECOND, Some(0), |_| ());
        let others_dead = |net: &Net| (1..5).any(|n| net.hears(0, n) == Some(State::Down));
        net.pass_without(60 * SECOND, None, |net| {
            assert!(!others_dead(net), "seed {seed}, at {:?}", net.now);
        });
        assert!(net.agrees(), "seed {seed}: and is heard again");
    }
}

#[test]
fn what_was_recorded_says_nothing_when_it_is_sent_again() {
    for seed in seeds(4) {
        let mut net = Net::new(seed, 4, CALM);
        net.until_agreed(10 * SECOND);
        net.stop(3);
        net.until_agreed(15 * SECOND);
        let recorded = net.recorded.clone();
        for (to, datagram) in recorded {
            let now = net.now;
            if net.runs(to) {
                let before = net.engine(to).counts();
                net.engine(to).receive(now, &datagram);
                let after = net.engine(to).counts();
                assert_eq!(after.received, before.received, "seed {seed}");
                assert_eq!(after.refused[3], before.refused[3] + 1, "seed {seed}");
            }
        }
        net.pass(10 * SECOND);
        assert!(net.agrees(), "seed {seed}: the dead one stays dead");
    }
}
