//! A thousand snapshots of one volume: what taking the last costs beside the first, what they show, and that nothing is left of them.

use super::rest::Rest;
use super::writer::Writer;
use super::{Accounts, accounts};
use crate::cluster::Cluster;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// Blocks that are written at all: later writes replace.
const REGION_BLOCKS: u64 = 16_384;
/// Blocks that are replaced between two snapshots.
const REPLACED: usize = 64;
/// Snapshots that are compared.
const COMPARED: usize = 10;
/// Blocks of each that are.
const COMPARED_BLOCKS: usize = 500;
/// Snapshots that are taken and deleted first: the catalogue has its depth then, as each has 16 lanes, and two levels lead to 1,984 records.
const WARM_UP: usize = 130;
/// One in so many is taken by `keelctl`, the others through the SDK.
const BY_KEELCTL: usize = 10;
/// Snapshots that are inspected.
const INSPECTED: usize = 50;
/// Snapshots that one `keelctl` deletes.
const DELETED_AT_ONCE: usize = 20;

/// What was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Snapshots.
    pub count: usize,
    /// Milliseconds that taking one took through the SDK: medians of the first, the middle and the last hundred.
    pub taking_ms: [f64; 3],
    /// The longest.
    pub taking_max_ms: f64,
    /// Of those that `keelctl` took (one in [`BY_KEELCTL`]), the median, its start included.
    pub keelctl_ms: f64,
    /// Milliseconds that inspecting one of them took through the SDK, with all there: the median.
    pub inspecting_ms: f64,
    /// Seconds until all were deleted, in random order, as a user sees it.
    pub deleting_s: f64,
    /// Seconds of the clean close after that, which ends the deletions that are under way.
    pub close_s: f64,
    /// The drive before the first and after the last.
    pub before: Accounts,
    /// And after the last was deleted.
    pub after: Accounts,
    /// The drive with all of them.
    pub with_all: Accounts,
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn delete(cluster: &Cluster, names: &[String]) {
    for some in names.chunks(DELETED_AT_ONCE) {
        let words = ["volume", "snapshot", "delete"]
            .into_iter()
            .chain(some.iter().map(String::as_str));
        cluster.keelctl_json(&words.collect::<Vec<&str>>());
    }
}

/// The drive as a clean close leaves it.
fn closed(cluster: &mut Cluster) -> Result<Accounts, String> {
    cluster.stop();
    let counted = accounts(&cluster.path("data/node-1/drive.img"));
    cluster.start();
    counted
}

/// The drive once deletions, which go on in the background, have come to their end.
fn settled(cluster: &mut Cluster) -> Result<Accounts, String> {
    let mut last = closed(cluster)?;
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let now = closed(cluster)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    Err(format!(
        "the drive's accounts do not come to rest: {last:?}"
    ))
}

/// Runs it.
///
/// # Errors
/// The first thing that is wrong.
pub fn run(count: usize, seed: u64) -> Result<Report, String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::builder()
        .arg(&["--size", "4G", "--reactors", "1"])
        .volume("other:16M")
        .start();
    cluster.keelctl_json(&["volume", "create", "v", "--size", "1G"]);
    let mut writer = Writer::connect(cluster.target("v"))?;
    writer.write((0..REGION_BLOCKS).step_by(64), 64)?;
    let take = |cluster: &Cluster, name: &str| {
        let began = Instant::now();
        cluster.keelctl_json(&["volume", "snapshot", "create", "v", "--name", name]);
        milliseconds(began)
    };
    let warm: Vec<String> = (0..WARM_UP).map(|n| format!("w{n}")).collect();
    for name in &warm {
        take(&cluster, name);
    }
    delete(&cluster, &warm);
    let before = settled(&mut cluster)?;
    writer.reconnect(cluster.target("v"))?;

    let mut sdk = Rest::connect(cluster.ready().nodes[0].rest)?;
    let (mut times, mut by_keelctl) = (Vec::new(), Vec::new());
    let mut states = BTreeMap::new();
    let compared: Vec<usize> = (0..COMPARED)
        .map(|_| random.random_range(0..count))
        .chain([0, count - 1])
        .collect();
    for n in 0..count {
        let name = format!("s{n}");
        if n % BY_KEELCTL == 0 {
            by_keelctl.push(take(&cluster, &name));
        } else {
            let began = Instant::now();
            let wish = json!({ "volume_id": "v", "name": name });
            sdk.call("POST", "/v1/volumes/snapshots", &wish)?;
            times.push(milliseconds(began));
        }
        if compared.contains(&n) {
            states.insert(n, writer.written.clone());
        }
        let mut places: Vec<u64> = (0..REPLACED)
            .map(|_| random.random_range(0..REGION_BLOCKS))
            .collect();
        places.sort_unstable();
        places.dedup();
        writer.write(places, 1)?;
    }
    let mut inspecting = Vec::new();
    for _ in 0..INSPECTED {
        let path = format!("/v1/volumes/inspect/s{}", random.random_range(0..count));
        let began = Instant::now();
        sdk.call("GET", &path, &json!({}))?;
        inspecting.push(milliseconds(began));
    }
    for (n, state) in &states {
        let clone = format!("c{n}");
        cluster.keelctl_json(&["volume", "clone", &format!("s{n}"), "--name", &clone]);
        let mut reader = Writer::connect(cluster.target(&clone))?;
        reader.written.clone_from(state);
        let checked = reader.verify_some(&mut random, COMPARED_BLOCKS);
        checked.map_err(|e| format!("snapshot {n}: {e}"))?;
        drop(reader);
        cluster.keelctl_json(&["volume", "delete", &clone, "--force"]);
    }
    // Nobody kept the connection alive meanwhile.
    writer.reconnect(cluster.target("v"))?;
    writer.verify_some(&mut random, COMPARED_BLOCKS)?;
    let with_all = closed(&mut cluster)?;

    let mut names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
    names.shuffle(&mut random);
    let began = Instant::now();
    delete(&cluster, &names);
    let deleting_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    cluster.stop();
    let close_s = began.elapsed().as_secs_f64();
    cluster.start();
    let after = settled(&mut cluster)?;
    writer.reconnect(cluster.target("v"))?;
    writer.verify_some(&mut random, COMPARED_BLOCKS)?;
    if after != before {
        return Err(format!(
            "before {count} snapshots {before:?}, and after their deletion {after:?}"
        ));
    }
    Ok(Report {
        count,
        taking_ms: [0, times.len() / 2, times.len()].map(|at| {
            let from = at.saturating_sub(100).min(times.len().saturating_sub(100));
            median(&times[from..(from + 100).min(times.len())])
        }),
        taking_max_ms: times.iter().copied().fold(0.0, f64::max),
        keelctl_ms: median(&by_keelctl),
        inspecting_ms: median(&inspecting),
        deleting_s,
        close_s,
        before,
        after,
        with_all,
    })
}
