//! The data directory of a control process. `identity.json` in it says whose it is, so that a directory of another cluster or
//! node is refused before anything in it is touched. `lock` is held while a process uses it; `kvdb.redb` is the embedded KVDB.
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It belongs to another cluster or node.
    #[error(
        "data directory {dir} belongs to node {found_node} of cluster {found_cluster}, not to node {node} of cluster {cluster}: \
         give that one's ids, or another directory with --data"
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Cluster that it belongs to.
        found_cluster: String,
        /// Node that it belongs to.
        found_node: String,
        /// Our cluster.
        cluster: String,
        /// Our node.
        node: String,
    },
    /// Another process uses it.
    #[error(
        "data directory {dir} is in use by another control process: stop that one, or give another directory with --data"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Its identity cannot be read.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file operation failed.
    #[error("data directory: cannot {doing} {path}: {error}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    cluster_id: String,
    node_id: String,
    /// Random: tells this directory from another one of the same node id. Format 1 had none.
    #[serde(default)]
    identity: Uuid,
}

const FORMAT: u32 = 2;

/// A data directory that is ours while this lives.
#[derive(Debug)]
pub struct DataDir {
    dir: PathBuf,
    identity: Uuid,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is not there (its parent must be), checks whose it is, and locks it.
    pub fn open(dir: &Path, cluster_id: &str, node_id: &str) -> Result<Self, DataDirError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |error| DataDirError::Io { doing, path, error }
        };
        match fs::create_dir(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io("make", dir)(error));
            }
            _ => {}
        }
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path);
        let lock = lock.map_err(io("write", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataDirError::InUse {
                    dir: dir.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", &lock_path)(error)),
        }
        let mut data = Self {
            dir: dir.to_owned(),
            identity: Uuid::nil(),
            _lock: lock,
        };
        data.identity = data.identify(cluster_id, node_id)?;
        Ok(data)
    }

    /// What tells this directory from another one of the same node id (`docs/membership.md`).
    pub fn identity(&self) -> Uuid {
        self.identity
    }

    fn identify(&self, cluster_id: &str, node_id: &str) -> Result<Uuid, DataDirError> {
        let path = self.dir.join("identity.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return draw(&path, cluster_id, node_id);
            }
            Err(error) => {
                return Err(DataDirError::Io {
                    doing: "read",
                    path,
                    error,
                });
            }
        };
        let damaged = |why: String| DataDirError::Damaged {
            path: path.clone(),
            why,
        };
        let found: Identity = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if !(1..=FORMAT).contains(&found.format) {
            return Err(damaged(format!(
                "it has format {}, this version knows 1 to {FORMAT}",
                found.format
            )));
        }
        if (found.format == FORMAT) == found.identity.is_nil() {
            return Err(damaged(
                "its format and identity do not fit together".into(),
            ));
        }
        if found.cluster_id != cluster_id || found.node_id != node_id {
            return Err(DataDirError::Foreign {
                dir: self.dir.clone(),
                found_cluster: found.cluster_id,
                found_node: found.node_id,
                cluster: cluster_id.into(),
                node: node_id.into(),
            });
        }
        match found.format {
            FORMAT => Ok(found.identity),
            _ => draw(&path, cluster_id, node_id),
        }
    }

    /// The embedded KVDB's file.
    pub fn kvdb_file(&self) -> PathBuf {
        self.dir.join("kvdb.redb")
    }
}

/// Draws an identity, and writes whose the directory is.
fn draw(path: &Path, cluster_id: &str, node_id: &str) -> Result<Uuid, DataDirError> {
    let identity = Identity {
        format: FORMAT,
        cluster_id: cluster_id.into(),
        node_id: node_id.into(),
        identity: Uuid::new_v4(),
    };
    let written = write_whole(path, &identity);
    written.map_err(|error| DataDirError::Io {
        doing: "write",
        path: path.to_owned(),
        error,
    })?;
    Ok(identity.identity)
}

/// Writes a file so that a crash leaves it whole or absent.
fn write_whole(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let part = path.with_extension("new");
    let mut file = File::create(&part)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("control");
        let data = DataDir::open(&dir, "c1", "n1").unwrap();
        assert!(matches!(
            DataDir::open(&dir, "c1", "n1"),
            Err(DataDirError::InUse { .. })
        ));
        let identity = data.identity();
        assert!(!identity.is_nil());
        drop(data);
        for (cluster, node) in [("c2", "n1"), ("c1", "n2")] {
            let error = DataDir::open(&dir, cluster, node).unwrap_err();
            assert!(
                matches!(&error, DataDirError::Foreign { found_cluster, .. } if found_cluster == "c1"),
                "{error}"
            );
        }
        let again = DataDir::open(&dir, "c1", "n1").unwrap();
        assert_eq!(again.identity(), identity);
        drop(again);
        // Made by a version that had no identities: it gets one, for good.
        let old = r#"{"format":1,"cluster_id":"c1","node_id":"n1"}"#;
        fs::write(dir.join("identity.json"), old).unwrap();
        let drawn = DataDir::open(&dir, "c1", "n1").unwrap().identity();
        assert!(!drawn.is_nil() && drawn != identity);
        assert_eq!(DataDir::open(&dir, "c1", "n1").unwrap().identity(), drawn);
    }

    #[test]
    fn missing_parents_and_damage_are_errors() {
        let parent = tempfile::tempdir().unwrap();
        assert!(matches!(
            DataDir::open(&parent.path().join("a/b"), "c", "n"),
            Err(DataDirError::Io { doing: "make", .. })
        ));
        let dir = parent.path().join("c");
        drop(DataDir::open(&dir, "c", "n").unwrap());
        for text in [
            "",
            "{}",
            r#"{"format":2,"cluster_id":"c","node_id":"n"}"#,
            r#"{"format":3,"cluster_id":"c","node_id":"n"}"#,
        ] {
            fs::write(dir.join("identity.json"), text).unwrap();
            assert!(
                matches!(
                    DataDir::open(&dir, "c", "n"),
                    Err(DataDirError::Damaged { .. })
                ),
                "{text}"
            );
        }
    }
}
