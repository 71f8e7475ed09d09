//! What replication and encryption cost: three nodes on this machine, a volume with three replicas in turns with one that has one, or with one that is encrypted,
//! both coordinated by the same node.
use super::perf::{Figure, Job, fill, median};
use super::process::cpu_seconds;
use crate::cluster::builder;
use crate::run::Outcome;
use keelblock_tests::cluster::Cluster;

const SIZE: &str = "512M";

const OPTIONS: [&str; 6] = ["--nodes", "3", "--size", "3G", "--reactors", "1"];

/// A volume that is measured: what it is, where, and its subsystem.
type Measured = (&'static str, String, String);

/// Three replicas and one.
pub fn replicas(seconds: f64, rounds: u32) -> Outcome {
    let (three, one) = (format!("three:{SIZE}:3"), format!("one:{SIZE}"));
    // Volumes are attached to one node after the other: the fourth is on the node of the first.
    let cluster = builder().arg(&OPTIONS).volume(&three);
    let cluster = cluster.volume("b:16M").volume("c:16M").volume(&one).start();
    let volumes = [("three replicas", "three"), ("one", "one")].map(|(title, name)| {
        let target = cluster.target(name);
        (title, target.address.to_string(), target.nqn)
    });
    compare(&cluster, &volumes, seconds, rounds)
}

/// Three replicas, encrypted and not.
pub fn encryption(seconds: f64, rounds: u32) -> Outcome {
    let plain = format!("plain:{SIZE}:3");
    let builder = builder().arg(&OPTIONS).volume(&plain);
    let key = builder.dir().join("cluster-key");
    std::fs::write(&key, "5e".repeat(32)).map_err(|e| e.to_string())?;
    let key = key.display().to_string();
    let cluster = builder.arg(&["--cluster-key-file", &key]).start();
    let create = [
        "volume", "create", "secure", "--size", SIZE, "--repl", "3", "--secure",
    ];
    cluster.keelctl_json(&create);
    let volumes = [("encrypted", "secure"), ("not", "plain")].map(|(title, name)| {
        let target = cluster.target(name);
        (title, target.address.to_string(), target.nqn)
    });
    compare(&cluster, &volumes, seconds, rounds)
}

/// Measures and prints.
fn compare(cluster: &Cluster, volumes: &[Measured; 2], seconds: f64, rounds: u32) -> Outcome {
    let ready = cluster.ready();
    for (_, target, nqn) in volumes {
        fill(target, nqn)?;
    }
    let datapaths = ready.nodes.iter().map(|n| n.datapath_pid);
    let datapaths: Vec<u32> = datapaths
        .collect::<Option<_>>()
        .ok_or("a data path is not running")?;
    let spent = || -> Outcome<f64> { datapaths.iter().map(|pid| cpu_seconds(*pid)).sum() };
    println!(
        "\n{:18} {:>26} {:>26} {:>8} {:>20}",
        "", volumes[0].0, volumes[1].0, "ratio", "CPU of data paths"
    );
    for (rw, depth) in [
        ("randwrite", 1),
        ("randwrite", 32),
        ("randwrite", 128),
        ("randread", 1),
        ("randread", 32),
    ] {
        let job = Job {
            rw,
            bs: "4k",
            depth,
            seconds,
            cpu: None,
        };
        let mut figures = [Vec::new(), Vec::new()];
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (at, (_, target, nqn)) in volumes.iter().enumerate() {
                let before = spent()?;
                let figure = job.measure(target, nqn)?;
                // The measurement and its warm-up of half a second.
                let done = figure.iops * (seconds + 0.5);
                costs[at].push((spent()? - before) / done * 1e6);
                figures[at].push(figure);
            }
        }
        let [three, one] = figures.map(|f| median(&f));
        let [cost, cost_of_one] = costs.map(|mut c| {
            c.sort_by(f64::total_cmp);
            c[c.len() / 2]
        });
        println!(
            "{:18} {:>26} {:>26} {:>8.2} {:>20}",
            format!("4k {rw} QD{depth}"),
            show(three),
            show(one),
            three.iops / one.iops,
            format!("{cost:.1}, {cost_of_one:.1} us")
        );
    }
    println!("\nCPU is that of all three data paths for each command; the client's is not in it.");
    Ok(())
}

fn show(figure: Figure) -> String {
    format!("{:.1}k IOPS, {:.0} us", figure.iops / 1e3, figure.mean_us)
}
