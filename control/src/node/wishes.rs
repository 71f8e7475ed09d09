//! What is wished of volumes, and what can be said of a wish without looking at anything.
use super::placing::Ask;
use crate::auth::{OwnershipRecord, OwnershipWish};
use crate::error::OpError;
use crate::names;
use crate::placement::Rules;
use crate::records::VolumeRecord;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Sizes are multiples of this.
pub const SIZE_UNIT: u64 = 4096;
/// Largest size: what an NVMe namespace of 512-byte blocks, and our own arithmetic, stay far from overflowing with.
const SIZE_MAX: u64 = 1 << 60;
/// Labels of a volume.
const LABELS_MAX: usize = 256;
/// Bytes of a label's key, and of its value.
const LABEL_BYTES_MAX: usize = 1024;

/// A volume to be made.
#[derive(Debug, Clone)]
pub struct VolumeWish {
    /// Its name.
    pub name: String,
    /// Its size; rounded up to [`SIZE_UNIT`].
    pub size_bytes: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub block_bytes: u32,
    /// How many nodes hold it: 1 to 5.
    pub replicas: u8,
    /// Its blocks are encrypted.
    pub encrypted: bool,
    /// It cannot be deleted.
    pub sticky: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is wished for the place of its replicas, for good.
    pub rules: Option<Rules>,
    /// Schedule policies by which snapshots of it are taken.
    pub policies: Vec<String>,
    /// Nodes that may be used; empty: any.
    pub nodes: Vec<String>,
    /// Pools that may be used; empty: any.
    pub pools: Vec<Uuid>,
    /// Whose it is, and who else may do what with it.
    pub ownership: Option<OwnershipRecord>,
}

impl VolumeWish {
    /// Whether the node that is asked makes it in its own pool: nothing is said of its place, and it is a single copy.
    pub fn is_local(&self) -> bool {
        let anywhere = self.rules.is_none() && self.nodes.is_empty() && self.pools.is_empty();
        // Encryption is the coordinator's: a single replica has one, too.
        self.replicas == 1 && !self.encrypted && anywhere
    }

    /// What is to be placed.
    pub(super) fn ask(&self, size_bytes: u64) -> Ask<'_> {
        Ask {
            size_bytes,
            labels: self.labels.clone(),
            rules: self.rules.as_ref(),
            replicas: self.replicas.into(),
            nodes: self.nodes.iter().map(String::as_str).collect(),
            pools: self.pools.clone(),
            ..Ask::default()
        }
    }
}

/// Changes to a volume.
#[derive(Debug, Clone, Default)]
pub struct VolumeChange {
    /// A new size, not below the present one.
    pub size_bytes: Option<u64>,
    /// How many nodes are to hold it.
    pub replicas: Option<u8>,
    /// The node of the replica that comes or goes by that.
    pub node: Option<String>,
    /// Schedule policies, instead of those that it has.
    pub policies: Option<Vec<String>>,
    /// Whether it can be deleted.
    pub sticky: Option<bool>,
    /// Labels to set; an empty value takes one away.
    pub labels: BTreeMap<String, String>,
    /// Whose it is to be, and who else may do what with it.
    pub ownership: Option<OwnershipWish>,
}

pub(super) fn rounded(size_bytes: u64) -> Result<u64, OpError> {
    match size_bytes {
        0 => Err(OpError::Missing {
            field: "spec.size",
            hint: "the volume's size in bytes",
        }),
        too_large if too_large > SIZE_MAX => Err(OpError::invalid(
            "spec.size",
            format!("at most {SIZE_MAX} bytes"),
        )),
        size => Ok(size.next_multiple_of(SIZE_UNIT)),
    }
}

pub(super) fn cannot_shrink(record: &VolumeRecord, size_bytes: u64) -> OpError {
    let why = format!(
        "volume {} has {} bytes, and cannot shrink to {size_bytes}",
        record.name,
        record.served_bytes()
    );
    OpError::invalid("spec.size", why)
}

pub(super) fn check_name(name: &str) -> Result<(), OpError> {
    if name.is_empty() {
        return Err(OpError::Missing {
            field: "name",
            hint: "a name that no other volume or snapshot of the cluster has",
        });
    }
    if name.len() > names::VOLUME_NAME_MAX || name.chars().any(char::is_control) {
        let why = format!(
            "at most {} bytes, without control characters",
            names::VOLUME_NAME_MAX
        );
        return Err(OpError::invalid("name", why));
    }
    Ok(())
}

pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), OpError> {
    let too_long = |text: &String| text.len() > LABEL_BYTES_MAX;
    if labels.len() > LABELS_MAX
        || labels
            .iter()
            .any(|(k, v)| k.is_empty() || too_long(k) || too_long(v))
    {
        let why = format!(
            "at most {LABELS_MAX}, with keys that are not empty, and up to {LABEL_BYTES_MAX} bytes each"
        );
        return Err(OpError::invalid("labels", why));
    }
    Ok(())
}

/// Sets labels; an empty value takes one away.
pub(super) fn merge_labels(
    labels: &mut BTreeMap<String, String>,
    change: &BTreeMap<String, String>,
) -> Result<(), OpError> {
    labels.extend(change.clone());
    labels.retain(|_, value| !value.is_empty());
    check_labels(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_bounded() {
        assert_eq!(rounded(1).unwrap(), 4096);
        assert_eq!(rounded(4096).unwrap(), 4096);
        assert_eq!(rounded(4097).unwrap(), 8192);
        assert!(matches!(
            rounded(0),
            Err(OpError::Missing {
                field: "spec.size",
                ..
            })
        ));
        assert!(rounded(u64::MAX).is_err());
    }

    #[test]
    fn names_and_labels_have_limits() {
        check_name(&"n".repeat(255)).unwrap();
        assert!(check_name(&"n".repeat(256)).is_err());
        assert!(check_name("a\nb").is_err());
        assert!(matches!(
            check_name(""),
            Err(OpError::Missing { field: "name", .. })
        ));
        let label = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        check_labels(&label("k", "")).unwrap();
        assert!(check_labels(&label("", "v")).is_err());
        assert!(check_labels(&label("k", &"v".repeat(1025))).is_err());
    }
}
