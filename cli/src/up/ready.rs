//! The ready file: what serves where, for scripts and benchmarks. It is there while everything serves, and kept current.
use super::layout::write_json;
use crate::failure::Result;
use serde::Serialize;
use std::path::PathBuf;

/// The content of a ready file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// Id of the cluster.
    pub cluster_id: String,
    /// Its nodes.
    pub nodes: Vec<ReadyNode>,
    /// Its volumes.
    pub volumes: Vec<ReadyVolume>,
}

/// A node; its addresses are `address:port`. A process that is not running (stopped, or about to be started again) is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReadyNode {
    /// Its id, as `keelblock node` takes it.
    pub id: String,
    /// NVMe/TCP.
    pub nvme: String,
    /// gRPC: OpenStorage SDK and admin.
    pub sdk: String,
    /// REST, Swagger UI, metrics.
    pub rest: String,
    /// Key-value database; of an etcd all members, with commas between them.
    pub kvdb: String,
    /// Process id of the data path.
    pub datapath_pid: Option<u32>,
    /// Process id of the control process.
    pub control_pid: Option<u32>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReadyVolume {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The subsystem that hosts connect to; empty when it is detached.
    pub nqn: String,
    /// Its size.
    pub size_bytes: u64,
    /// The node where it is attached; empty when it is detached.
    pub coordinator: String,
}

/// The file, rewritten when its content changes and removed at the end.
#[derive(Debug)]
pub struct ReadyFile {
    path: Option<PathBuf>,
    written: Option<Ready>,
}

impl ReadyFile {
    /// Takes away what an earlier run left, so that nobody reads it for the truth.
    pub fn new(path: Option<PathBuf>) -> ReadyFile {
        if let Some(path) = &path {
            let _ = std::fs::remove_file(path);
        }
        ReadyFile {
            path,
            written: None,
        }
    }

    /// Writes it if it is new.
    pub fn update(&mut self, ready: Ready) -> Result<()> {
        if let Some(path) = &self.path
            && self.written.as_ref() != Some(&ready)
        {
            write_json(path, &ready)?;
            self.written = Some(ready);
        }
        Ok(())
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let (Some(path), Some(_)) = (&self.path, &self.written) {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_documented_shape_and_goes_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        std::fs::write(&path, "old").unwrap();
        let mut file = ReadyFile::new(Some(path.clone()));
        assert!(!path.exists(), "what an earlier run left is taken away");
        let node = ReadyNode {
            id: "node-1".into(),
            nvme: "127.0.0.1:4420".into(),
            sdk: "127.0.0.1:9020".into(),
            rest: "127.0.0.1:9021".into(),
            kvdb: "127.0.0.1:9019".into(),
            datapath_pid: Some(7),
            control_pid: None,
        };
        let volume = ReadyVolume {
            name: "v".into(),
            id: "i".into(),
            nqn: "q".into(),
            size_bytes: 4096,
            coordinator: "node-1".into(),
        };
        file.update(Ready {
            cluster_id: "c".into(),
            nodes: vec![node],
            volumes: vec![volume],
        })
        .unwrap();
        let found: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({
            "cluster_id": "c",
            "nodes": [{ "id": "node-1", "nvme": "127.0.0.1:4420", "sdk": "127.0.0.1:9020", "rest": "127.0.0.1:9021",
                        "kvdb": "127.0.0.1:9019", "datapath_pid": 7, "control_pid": null }],
            "volumes": [{ "name": "v", "id": "i", "nqn": "q", "size_bytes": 4096, "coordinator": "node-1" }],
        });
        assert_eq!(found, expected);
        drop(file);
        assert!(!path.exists());
    }
}
