//! `keelblock-datapath`: the data path of a node.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    keelblock_datapath::process::run(&keelblock_datapath::process::Args::parse())
}
