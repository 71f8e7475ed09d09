//! The store on simulated drives: random work, a crash between any two operations of the drive, opening, and everything that was answered
//! against what is found; over and over on the same drive.
//!
//! `KEEL_SEED` repeats one run, `KEEL_CRASHES` says how many crash points there are to be, `KEEL_SECONDS` ends after that time. A run that fails
//! prints its seed; with `KEEL_LOG` set, the store's log too. [`oracle`] says what may be found, [`work`] and [`admin`] do the work, [`life`] is one run.

mod admin;
mod faults;
mod generations;
mod life;
mod many;
mod oracle;
#[cfg(planted)]
mod planted;
mod replica;
mod unfinished;
mod work;

pub use life::Peek;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs until there were so many crash points; the first seed that fails ends it.
fn run_many(
    crashes: u64,
    mut seed: u64,
    one: impl Fn(u64) -> life::Counts,
) -> Result<life::Counts, (u64, life::Counts)> {
    let mut total = life::Counts::default();
    let began = Instant::now();
    let seconds = setting("KEEL_SECONDS").unwrap_or(u64::MAX);
    let mut said = 0;
    while total.crashes < crashes && began.elapsed().as_secs() < seconds {
        let counts = catch_unwind(AssertUnwindSafe(|| one(seed)));
        let Ok(counts) = counts else {
            return Err((seed, total));
        };
        total.add(&counts);
        seed += 1;
        if began.elapsed().as_secs() / 60 > said {
            said += 1;
            println!("{total:?} after {said} min, seed {seed}");
        }
    }
    Ok(total)
}

fn fresh_seed() -> u64 {
    StdRng::from_os_rng().random::<u32>().into()
}

fn log_if_asked() {
    if std::env::var_os("KEEL_LOG").is_some() {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO);
        let _ = log.with_ansi(false).try_init();
    }
}

#[test]
fn crashes() {
    let default = if cfg!(debug_assertions) { 200 } else { 2000 };
    let mut crashes = setting("KEEL_CRASHES").unwrap_or(default);
    let seed = setting("KEEL_SEED").inspect(|_| crashes = setting("KEEL_CRASHES").unwrap_or(1));
    let seed = seed.unwrap_or_else(fresh_seed);
    println!("from seed {seed}");
    log_if_asked();
    match run_many(crashes, seed, life::run) {
        Ok(total) => println!("{total:?}"),
        Err((seed, total)) => {
            panic!("seed {seed} fails (KEEL_SEED={seed} repeats it), after {total:?}")
        }
    }
}
