//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::inspect::Inspect;
use crate::reactor::{Poll, run::REACTORS_MAX};

/// DMA memory of a process unless told otherwise.
const MEMORY_DEFAULT: &str = "128MiB";
/// Cached blocks of a process unless told otherwise; the same as [`crate::store::engine::CacheBudget::BYTES_DEFAULT`].
const CACHE_DEFAULT: &str = "128MiB";
/// The least that a reactor can work with: its scratch buffers, a few large transfers, and some for each connection.
const MEMORY_PER_REACTOR_MIN: u64 = 16 << 20;

/// The polled data path of a Keelblock node: serves volumes over NVMe/TCP and takes commands from its control process.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "keelblock-datapath",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    /// Look at drives instead of serving them
    #[command(subcommand)]
    pub inspect: Option<Inspect>,

    /// Unix socket on which the control process connects
    #[arg(long, value_name = "PATH", required = true)]
    pub socket: Option<PathBuf>,

    /// Where hosts connect with NVMe/TCP
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4420")]
    pub listen: SocketAddr,

    /// Where other nodes' data paths connect for replication; without it there are no replicated volumes here
    #[arg(long, value_name = "ADDR:PORT", requires = "identity")]
    pub replication: Option<SocketAddr>,

    /// File of this node's private key; made, for its owner only, if it is not there
    #[arg(long, value_name = "FILE", requires = "replication")]
    pub identity: Option<PathBuf>,

    /// Reactors, one thread each [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=REACTORS_MAX as i64))]
    pub reactors: Option<u16>,

    /// Cores to pin reactors to, for example 0,2-3 [default: all that this process may use]
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    pub cpus: Option<CpuList>,

    /// What a reactor does without work: spin on, or sleep
    #[arg(long, value_enum, default_value_t = PollMode::Adaptive)]
    pub poll: PollMode,

    /// Time without work before a reactor sleeps, in microseconds
    #[arg(long, value_name = "US", default_value_t = 50)]
    pub idle_us: u64,

    /// DMA memory of all reactors together, from hugepages if the machine has them
    #[arg(long, value_name = "SIZE", default_value = MEMORY_DEFAULT, value_parser = parse_size)]
    pub memory: u64,

    /// Memory for cached data and metadata of all drives together
    #[arg(long, value_name = "SIZE", default_value = CACHE_DEFAULT, value_parser = parse_size)]
    pub cache: u64,

    /// What to log: error, warn, info, debug, trace, or directives as RUST_LOG has them
    #[arg(
        long,
        value_name = "LEVEL",
        env = "KEELBLOCK_LOG",
        default_value = "info"
    )]
    pub log: String,
}

/// See [`Args::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PollMode {
    /// Spins on: needs a core per reactor.
    Always,
    /// Sleeps after a while without work.
    Adaptive,
}

impl PollMode {
    /// As the contract and the log call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Adaptive => "adaptive",
        }
    }
}

impl From<PollMode> for Poll {
    fn from(mode: PollMode) -> Self {
        match mode {
            PollMode::Always => Self::Always,
            PollMode::Adaptive => Self::Adaptive,
        }
    }
}

/// Cores by number, each once, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// Highest core number that is taken for one.
const CPU_MAX: usize = 1 << 16;

fn parse_cpus(text: &str) -> Result<CpuList, String> {
    let number = |n: &str| match n.trim().parse() {
        Ok(n) if n <= CPU_MAX => Ok(n),
        _ => Err(format!("{n:?} is no core number: write for example 0,2-3")),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(format!("the range {part} runs backwards"));
        }
        cpus.extend(
            (first..=last)
                .filter(|n| !cpus.contains(n))
                .collect::<Vec<_>>(),
        );
    }
    Ok(CpuList(cpus))
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit
        .trim()
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => {
            return Err(format!(
                "{unit:?} is no unit: write for example 64MiB or 1G"
            ));
        }
    };
    let number: u64 = number.parse().map_err(|e| format!("{text:?}: {e}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is too much"))
}

impl Args {
    /// Cores to pin to, as the reactors want them: none for all.
    pub fn cpu_numbers(&self) -> Vec<usize> {
        self.cpus
            .as_ref()
            .map(|list| list.0.clone())
            .unwrap_or_default()
    }

    /// How many reactors to start when this process may use `cores` cores.
    pub fn reactor_count(&self, cores: usize) -> usize {
        let named = self.cpus.as_ref().map(|list| list.0.len());
        let default = named.unwrap_or(cores).clamp(1, REACTORS_MAX);
        self.reactors.map_or(default, usize::from)
    }

    /// DMA memory for each of so many reactors.
    ///
    /// # Errors
    /// The message says what would be enough.
    pub fn memory_per_reactor(&self, reactors: usize) -> Result<usize, String> {
        let each = self.memory / reactors as u64;
        if each < MEMORY_PER_REACTOR_MIN {
            return Err(format!(
                "--memory {} is too little for {reactors} reactors: {} MiB is the least",
                self.memory,
                reactors as u64 * (MEMORY_PER_REACTOR_MIN >> 20)
            ));
        }
        usize::try_from(each).map_err(|e| format!("--memory {}: {e}", self.memory))
    }

    /// See [`Args::idle_us`].
    pub fn idle(&self) -> Duration {
        Duration::from_micros(self.idle_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::engine::CacheBudget;
    use clap::CommandFactory;

    fn parse(more: &[&str]) -> Result<Args, String> {
        let given = ["keelblock-datapath", "--socket", "s"].iter().chain(more);
        Args::try_parse_from(given).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_cache_has_a_budget() {
        assert_eq!(parse(&[]).unwrap().cache, CacheBudget::BYTES_DEFAULT);
        assert_eq!(parse(&["--cache", "1G"]).unwrap().cache, 1 << 30);
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpus("0,2-4,3"), Ok(CpuList(vec![0, 2, 3, 4])));
        for bad in ["", "a", "1-", "3-1", "1,,2", "-1", "0-99999999"] {
            assert!(parse_cpus(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes() {
        let cases = [
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("1G", 1 << 30),
            ("2 kb", 2048),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "-1", "1X", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reactors_follow_cores() {
        assert_eq!(parse(&[]).unwrap().reactor_count(4), 4);
        assert_eq!(parse(&["--cpus", "1,2"]).unwrap().reactor_count(4), 2);
        assert_eq!(parse(&["--reactors", "3"]).unwrap().reactor_count(1), 3);
        assert!(parse(&["--reactors", "0"]).is_err());
    }

    #[test]
    fn memory_is_divided_and_has_a_least() {
        let args = parse(&["--memory", "64MiB"]).unwrap();
        assert_eq!(args.memory_per_reactor(2), Ok(32 << 20));
        assert!(args.memory_per_reactor(5).unwrap_err().contains("80 MiB"));
    }
}
