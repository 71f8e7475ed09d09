//! The data directory:
//!
//! ```text
//! DIR/lock            held while an `up` runs on it; holds that one's process id
//! DIR/cluster.json    what the cluster is: made once, read by every later `up`
//! DIR/up.sock         control socket of the running `up`
//! DIR/node-N/         drive.img, datapath.sock, identity.key, datapath.log, control.log, control/ (of a single node: key-value database)
//! DIR/kvdb/           the key-value database of several nodes, kvdb.log
//! ```
use super::args::Device;
use crate::failure::{Failure, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Version of `cluster.json` that this program writes and reads.
const VERSION: u32 = 1;

/// What a cluster is, for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    version: u32,
    /// Id of the cluster, a UUID.
    pub cluster_id: String,
    /// What the volumes of each node lie on.
    pub device: Device,
    /// Size of that; 0: its own.
    pub size_bytes: u64,
    /// How many nodes it has.
    #[serde(default = "one")]
    pub nodes: u16,
    /// Members of the etcd that is its key-value database; absent: `up` serves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<String>,
    /// The volume whose last blocks hold the mark of [`super::check`], once written.
    #[serde(default)]
    pub marked_volume: Option<String>,
}

/// What a file without the number means: it was written when there was always one.
fn one() -> u16 {
    1
}

impl Cluster {
    /// A new one.
    pub fn new(device: Device, size_bytes: u64, nodes: u16) -> Cluster {
        let cluster_id = uuid::Uuid::new_v4().to_string();
        Cluster {
            version: VERSION,
            cluster_id,
            device,
            size_bytes,
            nodes,
            etcd: None,
            marked_volume: None,
        }
    }
}

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Its lock goes with it.
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is not there, checks that it can be written, and locks it.
    pub fn open(path: &Path) -> Result<DataDir> {
        let what = || format!("data directory {}", path.display());
        fs::create_dir_all(path).map_err(|e| Failure::local(what(), advice(&e)))?;
        let path = fs::canonicalize(path).map_err(|e| Failure::local(what(), advice(&e)))?;
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join("lock"));
        let lock = lock
            .as_mut()
            .map_err(|e| Failure::local(what(), advice(e)))?;
        if flock(&*lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            let holder = holder.trim();
            return Err(Failure::local(
                what(),
                format!(
                    "another `keelblock up` (process {holder}) runs on it. Stop that one, or choose another with --data"
                ),
            ));
        }
        let lock = lock.try_clone().map_err(|e| Failure::local(what(), e))?;
        let written = lock
            .set_len(0)
            .and_then(|()| (&lock).write_all(format!("{}\n", std::process::id()).as_bytes()));
        written.map_err(|e| Failure::local(what(), advice(&e)))?;
        Ok(DataDir { path, _lock: lock })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of a node.
    pub fn node(&self, id: &str) -> Result<PathBuf> {
        let dir = self.path.join(id);
        fs::create_dir_all(&dir)
            .map_err(|e| Failure::local(format!("directory {}", dir.display()), advice(&e)))?;
        Ok(dir)
    }

    /// The cluster that lives here, if one does.
    pub fn load(&self) -> Result<Option<Cluster>> {
        let file = self.path.join("cluster.json");
        let what = || format!("read {}", file.display());
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::local(what(), e)),
        };
        let cluster: Cluster = serde_json::from_slice(&text).map_err(|e| {
            Failure::local(
                what(),
                format!("{e}. It is damaged; restore it, or choose another directory with --data"),
            )
        })?;
        if cluster.version != VERSION {
            let why = format!(
                "it has version {}, and this program knows {VERSION}",
                cluster.version
            );
            return Err(Failure::local(what(), why));
        }
        Ok(Some(cluster))
    }

    /// Keeps what the cluster is.
    pub fn save(&self, cluster: &Cluster) -> Result<()> {
        write_json(&self.path.join("cluster.json"), cluster)
    }

    /// Where a running `up` listens for `keelblock node`.
    pub fn socket(&self) -> PathBuf {
        self.path.join("up.sock")
    }
}

/// Writes a file whole or not at all: readers see the old or the new text, also after a power cut.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut text = serde_json::to_vec_pretty(value).expect("our own structs serialize");
    text.push(b'\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let part = path.with_file_name(name);
    let mut file = File::create(&part).map_err(|e| Failure::local(what(), advice(&e)))?;
    let written = file
        .write_all(&text)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&part, path));
    written.map_err(|e| Failure::local(what(), advice(&e)))
}

/// What the system says, and what helps.
pub fn advice(error: &std::io::Error) -> String {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => ". Choose a directory that you may write to with --data",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            ". Free some space, or choose a directory elsewhere with --data"
        }
        ErrorKind::ReadOnlyFilesystem => {
            ". Choose a directory on a writable file system with --data"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            ". A file is in the way: choose another directory with --data"
        }
        ErrorKind::NotFound => ". Choose a directory that exists, or can be made, with --data",
        _ => "",
    };
    format!("{error}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("a/b")).unwrap();
        assert_eq!(data.load().unwrap(), None);
        let cluster = Cluster::new(Device::Path("/dev/sdb".into()), 7 << 30, 1);
        data.save(&cluster).unwrap();
        assert_eq!(data.load().unwrap(), Some(cluster));
    }

    #[test]
    fn a_second_up_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn damage_is_an_error_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        for text in [
            "",
            "{",
            r#"{"version":9,"cluster_id":"x","device":"file","size_bytes":1}"#,
        ] {
            fs::write(dir.path().join("cluster.json"), text).unwrap();
            assert!(
                data.load()
                    .unwrap_err()
                    .to_string()
                    .contains("cluster.json")
            );
        }
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        assert!(DataDir::open(&dir.path().join("f/data")).is_err());
    }
}
