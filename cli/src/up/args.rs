//! What `keelblock up` can be asked for.
use crate::size::parse_size;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;

/// Most nodes on one machine.
const NODES_MAX: i64 = 64;

/// Arguments of `keelblock up`.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Where the cluster's files are; made if it is not there.
    #[arg(long, value_name = "DIR", default_value = "keelblock-data")]
    pub data: PathBuf,
    /// Number of nodes of a new cluster [default: 3; 1 in memory or on a device of yours]. A volume is on as many of them as it has replicas.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=NODES_MAX))]
    pub nodes: Option<u16>,
    /// What the volumes lie on: a file in the data directory, memory (lost at the end), or the path of a file or block device.
    /// Without it: as it was, and a file for a new cluster.
    #[arg(long, value_name = "file|memory|PATH")]
    pub device: Option<Device>,
    /// Size of the device, like 8G. For a block device or an existing file: its own.
    #[arg(long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// Number of reactors of each data path.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub reactors: Option<u16>,
    /// Cores that the reactors are pinned to, like 0,2-3.
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    pub cpus: Option<String>,
    /// Whether reactors sleep when idle (adaptive) or spin for ever (always).
    #[arg(long, value_enum)]
    pub poll: Option<Poll>,
    /// First port of the first node: NVMe/TCP on P, SDK on P+1, REST on P+2, KVDB on P+3, replication on P+4, gossip (UDP) on P+5. 0 takes any free ports.
    /// Without it: 4420, 9020, 9021, 9019, 9022, 9023.
    #[arg(long, value_name = "P")]
    pub port_base: Option<u16>,
    /// A volume to have (repeatable). Without it a new cluster gets `demo:1G`, with three replicas if it has
    /// three nodes or more with drives.
    #[arg(long, value_name = "NAME:SIZE[:REPLICAS]")]
    pub volume: Vec<VolumeWish>,
    /// The key-value database of a new cluster: all members of an etcd that runs [default: `up` serves one itself]. It is kept, so later runs find it.
    #[arg(long, value_name = "ADDR:PORT,...")]
    pub etcd: Option<String>,
    /// A file with the cluster key, which all nodes need for encrypted volumes: 64 hexadecimal digits.
    #[arg(long, value_name = "FILE")]
    pub cluster_key_file: Option<PathBuf>,
    /// A file whose first line is the cluster's token. Once a cluster has one, no start is without.
    #[arg(long, value_name = "FILE")]
    pub cluster_token_file: Option<PathBuf>,
    /// Write what serves where into FILE as JSON once everything serves, and keep it current.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Start, check with real data, stop, and exit with 0 or 1. Of three nodes or more, one is killed meanwhile.
    #[arg(long)]
    pub check: bool,
}

/// What a node's volumes lie on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A file in the data directory.
    File,
    /// Memory of the data path.
    Memory,
    /// A file or block device of the user's.
    Path(PathBuf),
}

impl FromStr for Device {
    type Err = String;
    fn from_str(text: &str) -> Result<Device, String> {
        match text {
            "" => Err("write file, memory, or a path".into()),
            "file" => Ok(Device::File),
            "memory" => Ok(Device::Memory),
            path => Ok(Device::Path(path.into())),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::File => f.write_str("file"),
            Device::Memory => f.write_str("memory"),
            Device::Path(path) => path.display().fmt(f),
        }
    }
}

/// How reactors wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Poll {
    /// Spin for ever.
    Always,
    /// Spin, then sleep.
    Adaptive,
}

/// A volume that `up` shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeWish {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// How many nodes hold it.
    pub replicas: u16,
}

impl FromStr for VolumeWish {
    type Err = String;
    fn from_str(text: &str) -> Result<VolumeWish, String> {
        let wrong = || {
            format!("`{text}` is not a volume: write NAME:SIZE or NAME:SIZE:REPLICAS, like db:10G")
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (name, size, replicas) = match parts[..] {
            [name, size] => (name, size, 1),
            [name, size, replicas] => (name, size, replicas.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        };
        let size_bytes = parse_size(size)?;
        if name.is_empty() || size_bytes == 0 || replicas == 0 {
            return Err(wrong());
        }
        Ok(VolumeWish {
            name: name.into(),
            size_bytes,
            replicas,
        })
    }
}

/// Checks a list of cores, `0,2-3`, and gives it back as it was: the data path reads the same.
fn parse_cpus(text: &str) -> Result<String, String> {
    let valid = |part: &str| match part.split_once('-') {
        Some((first, last)) => {
            matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(a), Ok(b)) if a <= b)
        }
        None => part.parse::<u16>().is_ok(),
    };
    if text.split(',').all(valid) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is not a list of cores: write numbers and ranges, like 0,2-3"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read() {
        let wish = |name: &str, size_bytes, replicas| VolumeWish {
            name: name.into(),
            size_bytes,
            replicas,
        };
        assert_eq!("db:10G".parse(), Ok(wish("db", 10 << 30, 1)));
        assert_eq!("db:1M:3".parse(), Ok(wish("db", 1 << 20, 3)));
        for text in [
            "",
            "db",
            "db:",
            ":1G",
            "db:0",
            "db:1G:0",
            "db:1G:x",
            "db:1G:1:1",
        ] {
            assert!(text.parse::<VolumeWish>().is_err(), "{text}");
        }
    }

    #[test]
    fn core_lists_are_checked() {
        for good in ["0", "0,1", "2-3", "0,2-3,7"] {
            assert_eq!(parse_cpus(good).as_deref(), Ok(good));
        }
        for bad in ["", ",", "a", "3-2", "0-", "-1", "0,,1"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_read() {
        assert_eq!("file".parse(), Ok(Device::File));
        assert_eq!("memory".parse(), Ok(Device::Memory));
        assert_eq!("/dev/sdb".parse(), Ok(Device::Path("/dev/sdb".into())));
    }
}
