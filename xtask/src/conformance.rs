//! `cargo xtask conformance`: a script with raw protocol checks, against a cluster that has what they need: two volumes, a second
//! namespace that comes and goes, a subsystem that does not let the script in.
use crate::cluster::{build_release, builder, release_dir};
use crate::run::{Outcome, step};
use clap::Args;
use keelblock_tests::cluster::Cluster;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub struct ConformanceArgs {
    /// The script. It is called with HOST PORT NQN, --strict, --discovery, --deny-nqn and the hooks --hook-remove-ns,
    /// --hook-add-ns, --hook-ana-inaccessible, --hook-ana-optimized, --hook-disc-add, --hook-disc-remove.
    #[arg(long)]
    script: PathBuf,
    /// Reactors of the data path.
    #[arg(long, default_value = "2")]
    reactors: u16,
    /// Block size of the volume.
    #[arg(long, default_value = "4096", value_parser = ["512", "4096"])]
    block_size: String,
    /// What the volumes lie on.
    #[arg(long, default_value = "memory")]
    device: String,
    /// More arguments of the script.
    #[arg(last = true)]
    more: Vec<String>,
}

/// Starts a cluster and runs the script on it.
pub fn conformance(args: &ConformanceArgs) -> Outcome {
    build_release()?;
    let reactors = args.reactors.to_string();
    let options = [
        "--device",
        &args.device,
        "--size",
        "1G",
        "--reactors",
        &reactors,
    ];
    let cluster = builder().arg(&options).volume("spare:64M").start();
    for (name, block_size) in [
        ("main", args.block_size.as_str()),
        ("second", &args.block_size),
        ("closed", "4096"),
    ] {
        cluster.keelctl_json(&[
            "volume",
            "create",
            name,
            "--size",
            "64M",
            "--block-size",
            block_size,
            "--no-attach",
        ]);
    }
    for words in [
        &["host", "attach", "main"][..],
        &["host", "attach", "second", "--with", "main"],
        &["host", "attach", "closed"],
        &["volume", "hosts", "deny", "closed", "--any"],
        &["host", "detach", "spare"],
    ] {
        cluster.keelctl_json(words);
    }
    let served = cluster.wait_until("three volumes are served, and the spare one is not", |r| {
        r.volumes.len() == 4
            && r.volumes
                .iter()
                .all(|v| v.nqn.is_empty() == (v.name == "spare"))
    });
    let nvme = served.nodes[0].nvme;
    let outcome = step(
        Command::new("python3")
            .arg(&args.script)
            .args([
                &nvme.ip().to_string(),
                &nvme.port().to_string(),
                &served.volume("main").nqn,
            ])
            .args([
                "--strict",
                "--discovery",
                &nvme.to_string(),
                "--deny-nqn",
                &served.volume("closed").nqn,
            ])
            .args(hooks(&cluster, &release_dir()))
            .args(&args.more),
    );
    if outcome.is_err() {
        eprintln!("{}", cluster.logs());
    }
    outcome.map(drop)
}

/// The commands that change the target as the script wants.
fn hooks(cluster: &Cluster, programs: &Path) -> Vec<String> {
    let keelctl = format!(
        "{} --endpoint {}",
        programs.join("keelctl").display(),
        cluster.ready().nodes[0].sdk
    );
    [
        ("remove-ns", "host detach second"),
        ("add-ns", "host attach second --with main"),
        ("ana-inaccessible", "volume path main --state inaccessible"),
        ("ana-optimized", "volume path main --state optimized"),
        ("disc-add", "host attach spare"),
        ("disc-remove", "host detach spare"),
    ]
    .into_iter()
    .flat_map(|(hook, words)| [format!("--hook-{hook}"), format!("{keelctl} {words}")])
    .collect()
}
