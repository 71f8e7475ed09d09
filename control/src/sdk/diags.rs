//! What whoever looks into a failure wants to have of a node: versions, configuration, log, status, metrics, and, once for the cluster, what the KVDB has. No key and
//! no password is in it: data keys and checks of secrets are left out of the KVDB's records, of secrets that the process was started with only the paths are there.
use super::Services;
use crate::error::OpError;
use crate::logs;
use crate::rest;
use keelblock_api::admin::admin_client::AdminClient;
use keelblock_api::admin::*;
use keelblock_api::json::Codec;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;
use tonic::Status;

/// Most bytes of a bundle, and as much as it is unless said otherwise.
const BYTES_MAX: u64 = 64 << 20;
/// Of a part on the way.
const PART_BYTES: usize = 1 << 20;
/// Of a file that the process was told to add: its end.
const FILE_BYTES_MAX: u64 = 2 << 20;
/// How long another node may take.
const NODE_LIMIT: Duration = Duration::from_secs(15);
/// Records whose values are left out.
const SECRET: [&str; 3] = ["secrets/", "token", "gossip/"];

/// A file of the bundle.
struct Entry {
    name: String,
    bytes: Vec<u8>,
}

impl Entry {
    fn new(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

impl Services {
    /// All files of the bundle, in parts.
    pub(super) async fn collect_diags(
        &self,
        request: CollectDiagsRequest,
    ) -> Result<Vec<Result<DiagsPart, Status>>, Status> {
        let most = match request.bytes_max {
            0 => BYTES_MAX,
            n => n.min(BYTES_MAX),
        };
        let nodes = self.node().registry.nodes().await.unwrap_or_default();
        let others = match request.here {
            true => Vec::new(),
            false => nodes
                .into_iter()
                .filter(|(n, _)| n.node_id != self.node().node_id())
                .collect(),
        };
        let share = most / (others.len() as u64 + 1);
        let mut parts = Vec::new();
        let mut own = self.entries().await;
        if !request.here {
            own.push(self.kvdb_entry().await);
        }
        add(&mut parts, self.node().node_id(), own, share);
        for (other, _) in others {
            let id = &other.node_id;
            match tokio::time::timeout(NODE_LIMIT, self.parts_of(id, share)).await {
                Ok(Ok(theirs)) => parts.extend(theirs),
                Ok(Err(error)) => add(&mut parts, id, unreachable(&error.to_string()), share),
                Err(_) => add(
                    &mut parts,
                    id,
                    unreachable("it does not answer in time"),
                    share,
                ),
            }
        }
        Ok(parts.into_iter().map(Ok).collect())
    }

    async fn parts_of(&self, node_id: &str, bytes_max: u64) -> Result<Vec<DiagsPart>, OpError> {
        let channel = self.node().elsewhere(node_id).await?;
        let channel = channel.ok_or_else(|| OpError::Internal("it is this node".into()))?;
        let request = CollectDiagsRequest {
            here: true,
            bytes_max,
        };
        let said = |s: Status| self.node().said(node_id, &s);
        let mut client = AdminClient::new(channel);
        let mut stream = client
            .collect_diags(request)
            .await
            .map_err(said)?
            .into_inner();
        let (mut parts, mut bytes) = (Vec::new(), 0);
        while let Some(part) = stream.message().await.map_err(said)? {
            bytes += part.bytes.len() as u64;
            // It was told; whatever it does, this process does not grow without bound.
            if bytes > bytes_max {
                break;
            }
            parts.push(part);
        }
        Ok(parts)
    }

    /// What this node has to say, the shortest and most wanted first.
    async fn entries(&self) -> Vec<Entry> {
        let node = self.node();
        let versions = json!({
            "node_id": node.node_id(), "cluster_id": node.cluster_id(), "version": env!("CARGO_PKG_VERSION"),
            "hostname": crate::system::hostname(), "kernel": kernel(), "unix_ms": crate::records::unix_ms(),
        });
        let status = Codec::new().encode(&self.status_of_node().await);
        let status = status.unwrap_or_else(|e| e.to_string().into_bytes());
        let mut entries = vec![
            Entry::new("versions.json", format!("{versions:#}")),
            Entry::new("config.txt", node.configuration()),
            Entry::new("status.json", status),
            Entry::new("metrics.txt", rest::metrics_text(self).await),
            Entry::new("control.log", logs::last_words()),
        ];
        for path in node.diags_files() {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let name = name.unwrap_or_else(|| "file".into());
            let bytes = end_of(path).unwrap_or_else(|e| format!("{}: {e}", path.display()).into());
            entries.push(Entry { name, bytes });
        }
        entries
    }

    /// Everything of the cluster in the KVDB, but for secrets.
    async fn kvdb_entry(&self) -> Entry {
        let registry = &self.node().registry;
        let root = registry.keys().root();
        let listed = match registry.kv().list(root).await {
            Ok(listed) => listed,
            Err(error) => return Entry::new("kvdb.txt", error.to_string()),
        };
        let mut all = serde_json::Map::new();
        for kv in &listed.kvs {
            let key = String::from_utf8_lossy(&kv.key);
            let key = key.strip_prefix(root).unwrap_or(&key).to_owned();
            let value = shown(&key, &kv.value);
            all.insert(key, json!({ "revision": kv.mod_revision, "value": value }));
        }
        let data = json!({ "revision": listed.revision, "records": all });
        Entry::new("kvdb.json", format!("{data:#}"))
    }
}

/// A record's value, unless it is a secret.
fn shown(key: &str, value: &[u8]) -> Value {
    if SECRET.iter().any(|s| key.starts_with(s)) {
        return Value::from("left out");
    }
    match serde_json::from_slice(value) {
        Ok(value) => value,
        Err(_) => match std::str::from_utf8(value) {
            Ok(text) => Value::from(text),
            Err(_) => Value::from(format!("{} bytes", value.len())),
        },
    }
}

fn unreachable(why: &str) -> Vec<Entry> {
    vec![Entry::new("unreachable.txt", why)]
}

/// Cuts a node's files into parts, as long as there is room; what there is none for is cut off, and that is said.
fn add(parts: &mut Vec<DiagsPart>, node_id: &str, entries: Vec<Entry>, bytes_max: u64) {
    let mut left = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    for Entry { name, bytes } in entries {
        let (kept, truncated) = match bytes.len() > left {
            // The end of a log is what is wanted.
            true if name.ends_with(".log") => (&bytes[bytes.len() - left..], true),
            true => (&bytes[..left], true),
            false => (&bytes[..], false),
        };
        left -= kept.len();
        let part = |bytes: &[u8]| DiagsPart {
            node_id: node_id.into(),
            name: name.clone(),
            bytes: bytes.to_vec(),
            truncated,
        };
        if kept.is_empty() {
            parts.push(part(&[]));
        }
        parts.extend(kept.chunks(PART_BYTES).map(part));
    }
}

fn kernel() -> String {
    let version = std::fs::read_to_string("/proc/version").unwrap_or_default();
    version.trim().to_owned()
}

/// The end of a file.
fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(FILE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_and_everything_is_bounded() {
        let wrapped = br#"{"keys":[{"wrapped":"00112233"}]}"#;
        assert_eq!(shown("secrets/x", wrapped), Value::from("left out"));
        assert_eq!(shown("token", b"{}"), Value::from("left out"));
        assert_eq!(shown("volumes/x", b"{\"a\":1}"), json!({ "a": 1 }));
        assert_eq!(shown("reservations/x", &[0xff, 0]), Value::from("2 bytes"));
        let mut parts = Vec::new();
        let log = [vec![b'a'; 10], vec![b'z'; PART_BYTES]].concat();
        let entries = vec![
            Entry::new("status.json", "{}"),
            Entry::new("control.log", log),
            Entry::new("kvdb.json", "{}"),
        ];
        let most = PART_BYTES as u64 + 2;
        add(&mut parts, "n1", entries, most);
        let total: usize = parts.iter().map(|p| p.bytes.len()).sum();
        assert_eq!(total as u64, most);
        assert!(!parts[0].truncated && parts[1].truncated);
        assert!(parts[1].bytes.iter().all(|b| *b == b'z'), "its end");
        assert!(parts[2].bytes.is_empty() && parts[2].truncated);
    }

    #[test]
    fn of_a_long_file_the_end_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = [vec![b'a'; 10], vec![b'z'; FILE_BYTES_MAX as usize]].concat();
        std::fs::write(file.path(), &text).unwrap();
        assert_eq!(end_of(file.path()).unwrap(), text[10..]);
        assert!(end_of(Path::new("/nowhere")).is_err());
    }
}
