//! How many cases a test by random values tries.
use proptest::test_runner::Config;

/// So many, or what `PROPTEST_CASES` says: `cargo xtask test` runs the store's once more in release, with more of them.
pub fn cases(few: u32) -> Config {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => Config::default(),
        None => Config::with_cases(few),
    }
}
