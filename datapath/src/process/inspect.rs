//! `keelblock-datapath check` and `dump`: drives that no data path has open.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::store::VolumeId;
use crate::store::check::dump::{What, dump};
use crate::store::check::{CheckOptions, FileReader, check};

/// See [`Inspect::Check`].
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Print one JSON object for each drive
    #[arg(long)]
    json: bool,
    /// Read all data and compare it with its checksums
    #[arg(long)]
    data: bool,
    /// Files or block devices
    #[arg(required = true, value_name = "DRIVE")]
    drives: Vec<PathBuf>,
}

/// See [`Inspect::Dump`].
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    /// A file or a block device
    #[arg(value_name = "DRIVE")]
    drive: PathBuf,
    #[command(subcommand)]
    what: DumpWhat,
}

#[derive(Clone, Debug, Subcommand)]
enum DumpWhat {
    /// All copies, and what the present one says
    Superblock,
    /// The group table
    Groups,
    /// Lanes, snapshots, and what is being deleted
    Catalogue,
    /// Records that replay would look at
    Journal,
    /// Pages and entries of a live lane
    Map {
        /// Of this volume
        #[arg(long, value_parser = parse_volume)]
        volume: VolumeId,
        /// Its lane
        #[arg(long, default_value_t = 0)]
        lane: u8,
    },
    /// A block's bytes
    Block {
        /// Its number, from the start of the drive
        number: u64,
    },
}

/// Looks at drives without changing them.
#[derive(Clone, Debug, Subcommand)]
pub enum Inspect {
    /// Check everything that drives hold; changes nothing
    ///
    /// Exit codes: 0 clean, 1 problems, 2 a drive could not be read.
    Check(CheckArgs),
    /// Show a structure of a drive
    Dump(DumpArgs),
}

fn parse_volume(text: &str) -> Result<VolumeId, String> {
    let id = uuid::Uuid::parse_str(text).map_err(|e| format!("{text:?} is no volume id: {e}"))?;
    Ok(VolumeId(id.into_bytes()))
}

fn open(path: &std::path::Path) -> Result<FileReader, ExitCode> {
    match FileReader::open(path) {
        Ok(reader) if reader.in_use() => {
            eprintln!(
                "keelblock-datapath: {} is in use by a running data path: stop it first, what is read from under it makes no sense",
                path.display()
            );
            Err(ExitCode::from(2))
        }
        Ok(reader) => Ok(reader),
        Err(e) => {
            eprintln!("keelblock-datapath: {}: {e}", path.display());
            Err(ExitCode::from(2))
        }
    }
}

/// Does it.
#[allow(clippy::print_stdout)]
pub fn run(inspect: &Inspect) -> ExitCode {
    match inspect {
        Inspect::Check(args) => check_all(args),
        Inspect::Dump(args) => {
            let reader = match open(&args.drive) {
                Ok(reader) => reader,
                Err(code) => return code,
            };
            let what = match &args.what {
                DumpWhat::Superblock => What::Superblock,
                DumpWhat::Groups => What::Groups,
                DumpWhat::Catalogue => What::Catalogue,
                DumpWhat::Journal => What::Journal,
                DumpWhat::Map { volume, lane } => What::Map {
                    volume: *volume,
                    lane: *lane,
                },
                DumpWhat::Block { number } => What::Block(*number),
            };
            match dump(&reader, &what) {
                Ok(text) => {
                    println!("{text}");
                    ExitCode::SUCCESS
                }
                Err(e) => {
                    eprintln!("keelblock-datapath: {}: {e}", args.drive.display());
                    ExitCode::FAILURE
                }
            }
        }
    }
}

#[allow(clippy::print_stdout)]
fn check_all(args: &CheckArgs) -> ExitCode {
    let (mut problems, mut unread) = (false, false);
    for drive in &args.drives {
        let Ok(reader) = open(drive) else {
            unread = true;
            continue;
        };
        let report = check(&reader, CheckOptions { data: args.data });
        problems |= !report.is_clean();
        if args.json {
            println!("{}", report.json());
        } else {
            print!("{}: {}", drive.display(), report.text());
        }
    }
    if unread {
        ExitCode::from(2)
    } else if problems {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
