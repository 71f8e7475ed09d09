//! What a cluster costs that nobody uses.
use super::process::{cpu_seconds, rss};
use crate::cluster::builder;
use crate::run::Outcome;
use keelblock_tests::several::kvdb_pid;
use std::time::Duration;

/// Share of a core that an idle cluster may use, all processes together.
const IDLE_CPU_MAX: f64 = 0.01;
/// Memory that a data path with default pools may hold.
const DATAPATH_RSS_MAX: u64 = 200 << 20;

/// Watches it for so long.
pub fn idle(seconds: u64, nodes: u16) -> Outcome {
    let count = nodes.to_string();
    let volume = format!("idle:1G:{}", if nodes >= 3 { 3 } else { 1 });
    let cluster = builder().arg(&["--nodes", &count]).volume(&volume).start();
    let pid = |pid: Option<u32>| pid.ok_or("a process is not running");
    let mut processes = vec![("up".to_owned(), cluster.up_pid())];
    for node in &cluster.ready().nodes {
        processes.push((format!("{} datapath", node.id), pid(node.datapath_pid)?));
        processes.push((format!("{} control", node.id), pid(node.control_pid)?));
    }
    if nodes > 1 {
        let kvdb = kvdb_pid(&cluster).ok_or("the key-value database is not running")?;
        processes.push(("kvdb".to_owned(), kvdb));
    }
    // What starting up left to do is not idling.
    std::thread::sleep(Duration::from_secs(5));
    let costs = || processes.iter().map(|(_, pid)| cpu_seconds(*pid));
    let before = costs().collect::<Outcome<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = costs().collect::<Outcome<Vec<_>>>()?;
    let (mut sum, mut most) = (0.0, 0);
    for ((name, pid), (before, after)) in processes.iter().zip(before.into_iter().zip(after)) {
        let (share, memory) = ((after - before) / seconds as f64, rss(*pid)?);
        println!(
            "{name:16} {:6.2} % of a core  {:4} MiB resident",
            share * 100.0,
            memory >> 20
        );
        sum += share;
        if name.ends_with("datapath") {
            most = most.max(memory);
        }
    }
    println!("{:16} {:6.2} % of a core", "together", sum * 100.0);
    if sum > IDLE_CPU_MAX {
        return Err(format!(
            "an idle cluster uses {:.2} % of a core",
            sum * 100.0
        ));
    }
    if most > DATAPATH_RSS_MAX {
        return Err(format!("a data path holds {} MiB", most >> 20));
    }
    Ok(())
}
