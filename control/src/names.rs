//! The names by which hosts know a volume, and what they are made of (`docs/identities.md`). All follow from the cluster's and the
//! volume's id, so that every node gives the same ones, for ever.
use uuid::Uuid;

/// Longest cluster or node id: an NQN has at most 223 bytes, and these are part of it.
pub const ID_MAX: usize = 64;
/// Longest volume name, in bytes.
pub const VOLUME_NAME_MAX: usize = 255;

/// The beginning of every subsystem's NQN.
const NQN_PREFIX: &str = "nqn.2026-01.io.keelblock";
/// Under which the ids of pools and drives are made from what they are called.
const NAMESPACE: Uuid = Uuid::from_u128(0x5f0c_9a52_7c1e_4f0b_9d3e_6b65_656c_626c);

/// Checks a cluster or node id: letters, digits, `.`, `_` and `-`, at most [`ID_MAX`].
pub fn check_id(id: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() || id.len() > ID_MAX || !id.chars().all(allowed) {
        return Err(format!(
            "`{id}` cannot be an id: use 1 to {ID_MAX} letters, digits, `.`, `_` or `-`"
        ));
    }
    Ok(())
}

/// NQN of a volume's subsystem: `nqn.2026-01.io.keelblock:<cluster-id>:<volume-id>`.
pub fn subsystem_nqn(cluster_id: &str, volume_id: Uuid) -> String {
    format!("{}{volume_id}", cluster_nqn_prefix(cluster_id))
}

/// What the NQNs of a cluster's subsystems begin with.
pub fn cluster_nqn_prefix(cluster_id: &str) -> String {
    format!("{NQN_PREFIX}:{cluster_id}:")
}

/// The volume whose subsystem has this NQN, if it is one of the cluster.
pub fn volume_of_nqn(cluster_id: &str, nqn: &str) -> Option<Uuid> {
    Uuid::try_parse(nqn.strip_prefix(&cluster_nqn_prefix(cluster_id))?).ok()
}

/// Serial number of a volume's subsystem: `KB` and 18 digits of the id, as NVMe has room for 20.
pub fn serial(volume_id: Uuid) -> String {
    let mut digits = volume_id.simple().to_string();
    digits.truncate(18);
    format!("KB{}", digits.to_uppercase())
}

/// NGUID and namespace UUID: the volume's id.
pub fn namespace_uuid(volume_id: Uuid) -> Vec<u8> {
    volume_id.as_bytes().to_vec()
}

/// The device of a volume on a Linux host that is connected to it, as udev names it after the namespace's UUID.
pub fn device_path(volume_id: Uuid) -> String {
    format!("/dev/disk/by-id/nvme-uuid.{volume_id}")
}

/// Id of a node's pool.
pub fn pool_id(cluster_id: &str, node_id: &str, pool: &str) -> Uuid {
    Uuid::new_v5(
        &NAMESPACE,
        format!("pool/{cluster_id}/{node_id}/{pool}").as_bytes(),
    )
}

/// Id of a drive of a pool.
pub fn drive_id(pool_id: Uuid, path: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("drive/{pool_id}/{path}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_ids_fit_an_nqn_and_nqns_lead_back() {
        let cluster = "c".repeat(ID_MAX);
        check_id(&cluster).unwrap();
        let volume = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let nqn = subsystem_nqn(&cluster, volume);
        assert!(nqn.len() <= 223);
        assert_eq!(volume_of_nqn(&cluster, &nqn), Some(volume));
        assert_eq!(volume_of_nqn("other", &nqn), None);
        assert_eq!(
            volume_of_nqn(&cluster, "nqn.2014-08.org.nvmexpress.discovery"),
            None
        );
        assert_eq!(serial(volume), "KB0123456789ABCDEF01");
        assert_eq!(serial(volume).len(), 20);
    }

    /// These are on disks and in hosts' configuration: they must never change.
    #[test]
    fn derived_ids_are_fixed() {
        let pool = pool_id("demo", "node-1", "default");
        assert_eq!(pool.to_string(), "f06e097b-3892-529c-ad17-b3c3b6e4be95");
        assert_eq!(
            drive_id(pool, "/dev/sdb").to_string(),
            "90dbd9c4-260b-5fee-8558-36173fa4481a"
        );
    }

    #[test]
    fn bad_ids_are_refused() {
        for id in ["", "a b", "a/b", "a:b", "ä", &"x".repeat(65)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
