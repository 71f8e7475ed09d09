//! Volumes, nodes and pools as `keelctl` shows them: the JSON that programs may rely on.
use crate::client::Volume;
use keelblock_api::openstorage as sdk;
use serde::Serialize;
use std::collections::BTreeMap;

/// The words of an enum of the SDK, without its prefix: `VOLUME_STATUS_UP` is `up`.
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_ascii_lowercase()
        .replace('_', "-")
}

/// A volume.
#[derive(Debug, Serialize)]
pub struct VolumeView {
    pub id: String,
    pub name: String,
    pub size_bytes: u64,
    pub block_size: i64,
    pub replicas: i64,
    /// Nodes that have one.
    pub replicas_on: Vec<String>,
    /// Of a volume with several: what the cluster says of them (`RuntimeState`, `WriteSet`, `WriteQuorum`, …).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub replication: BTreeMap<String, String>,
    pub status: String,
    pub state: String,
    pub attached_on: String,
    pub used_bytes: u64,
    pub labels: BTreeMap<String, String>,
    /// It is a snapshot.
    pub snapshot: bool,
    /// Of a snapshot, its volume; of a clone, what it was made from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parent: String,
    pub created_unix_ms: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

impl VolumeView {
    pub fn new(volume: &Volume) -> VolumeView {
        let spec = volume.spec();
        let labels = volume
            .inner
            .locator
            .clone()
            .unwrap_or_default()
            .volume_labels;
        let (sets, states) = (
            volume.inner.replica_sets.iter(),
            volume.inner.runtime_state.iter(),
        );
        VolumeView {
            id: volume.id.clone(),
            name: volume.name.clone(),
            size_bytes: spec.size,
            block_size: spec.block_size,
            replicas: spec.ha_level,
            replicas_on: sets.flat_map(|s| s.nodes.clone()).collect(),
            replication: states.flat_map(|s| s.runtime_state.clone()).collect(),
            status: word(volume.inner.status().as_str_name(), "VOLUME_STATUS_"),
            state: word(volume.inner.state().as_str_name(), "VOLUME_STATE_"),
            attached_on: volume.inner.attached_on.clone(),
            used_bytes: volume.inner.usage,
            labels: labels.into_iter().collect(),
            snapshot: volume.is_snapshot(),
            parent: volume
                .inner
                .source
                .as_ref()
                .map(|s| s.parent.clone())
                .unwrap_or_default(),
            created_unix_ms: volume.inner.ctime.as_ref().map_or(0, |t| {
                u64::try_from(t.seconds * 1000 + i64::from(t.nanos) / 1_000_000).unwrap_or(0)
            }),
            error: volume.inner.error.clone(),
        }
    }

    /// `3`, or `2 of 3` while some are not in sync.
    pub fn replicas_shown(&self) -> String {
        let set = self.replication.get("WriteSet");
        let members = set.map(|s| s.trim_matches(['[', ']']).split_whitespace().count());
        match members {
            Some(members) if members as i64 != self.replicas => {
                format!("{members} of {}", self.replicas)
            }
            _ => self.replicas.to_string(),
        }
    }

    /// How the replicas of a volume with several are; empty for one.
    pub fn replication_shown(&self) -> String {
        let of = |key: &str| self.replication.get(key).cloned().unwrap_or_default();
        match self.replication.is_empty() {
            true => String::new(),
            false => format!(
                "{}, in sync {}, write quorum {}",
                of("RuntimeState"),
                of("WriteSet"),
                of("WriteQuorum")
            ),
        }
    }

    pub fn labels_shown(&self) -> String {
        let pairs: Vec<_> = self
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        pairs.join(",")
    }
}

/// A node.
#[derive(Debug, Serialize)]
pub struct NodeView {
    pub id: String,
    pub status: String,
    pub hostname: String,
    pub data_ip: String,
    pub management_ip: String,
    pub cpu_cores: i64,
    pub memory_bytes: u64,
    pub pools: Vec<PoolView>,
    /// What is wanted of it; absent where that was not asked.
    #[serde(flatten)]
    pub member: Option<super::member::MemberView>,
}

/// A pool.
#[derive(Debug, Serialize)]
pub struct PoolView {
    pub id: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
}

impl NodeView {
    pub fn new(node: &sdk::StorageNode) -> NodeView {
        let pool = |p: &sdk::StoragePool| PoolView {
            id: p.uuid.clone(),
            total_bytes: p.total_size,
            used_bytes: p.used,
        };
        NodeView {
            id: node.id.clone(),
            status: word(node.status().as_str_name(), "STATUS_"),
            hostname: node.hostname.clone(),
            data_ip: node.data_ip.clone(),
            management_ip: node.mgmt_ip.clone(),
            cpu_cores: node.cpu_cores,
            memory_bytes: node.mem_total,
            pools: node.pools.iter().map(pool).collect(),
            member: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn enum_names_become_words() {
        assert_eq!(
            word("VOLUME_STATUS_NOT_PRESENT", "VOLUME_STATUS_"),
            "not-present"
        );
        assert_eq!(word("OTHER", "VOLUME_STATUS_"), "other");
    }
}
