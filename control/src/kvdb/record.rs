//! The bytes of a version of a key (`docs/kvdb.md`, "The file").
use super::error::StoreError;
use keelblock_api::etcd::mvccpb::KeyValue;

const KIND_AT: usize = 0;
const CREATE_AT: usize = 8;
const VERSION_AT: usize = 16;
const LEASE_AT: usize = 24;
const HEADER_BYTES: usize = 32;
const _: () = assert!(LEASE_AT + 8 == HEADER_BYTES);

const KIND_PUT: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;

/// What a key became at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version<'a> {
    /// It was set.
    Put {
        /// Revision at which it came into being.
        create_revision: u64,
        /// Puts since then, this one included.
        version: u64,
        /// Its lease, 0 = none.
        lease: i64,
        /// Its value.
        value: &'a [u8],
    },
    /// It was deleted.
    Tombstone,
}

impl<'a> Version<'a> {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Version::Put {
                create_revision,
                version,
                lease,
                value,
            } => {
                let mut bytes = vec![0; HEADER_BYTES + value.len()];
                bytes[KIND_AT] = KIND_PUT;
                bytes[CREATE_AT..CREATE_AT + 8].copy_from_slice(&create_revision.to_le_bytes());
                bytes[VERSION_AT..VERSION_AT + 8].copy_from_slice(&version.to_le_bytes());
                bytes[LEASE_AT..LEASE_AT + 8].copy_from_slice(&lease.to_le_bytes());
                bytes[HEADER_BYTES..].copy_from_slice(value);
                bytes
            }
            Version::Tombstone => {
                let mut bytes = vec![0; HEADER_BYTES];
                bytes[KIND_AT] = KIND_TOMBSTONE;
                bytes
            }
        }
    }

    /// Reads a record.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, StoreError> {
        let damaged = |what| StoreError::Damaged {
            table: "versions",
            what,
        };
        if bytes.len() < HEADER_BYTES {
            return Err(damaged("shorter than its header"));
        }
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        match bytes[KIND_AT] {
            KIND_PUT => Ok(Version::Put {
                create_revision: u64_at(CREATE_AT),
                version: u64_at(VERSION_AT),
                lease: u64_at(LEASE_AT) as i64,
                value: &bytes[HEADER_BYTES..],
            }),
            KIND_TOMBSTONE if bytes.len() == HEADER_BYTES => Ok(Version::Tombstone),
            KIND_TOMBSTONE => Err(damaged("a deletion with a value")),
            _ => Err(damaged("unknown kind")),
        }
    }

    /// The key-value message of this version; `None` for a deletion.
    pub fn key_value(&self, key: &[u8], mod_revision: u64) -> Option<KeyValue> {
        match *self {
            Version::Put {
                create_revision,
                version,
                lease,
                value,
            } => Some(KeyValue {
                key: key.to_vec(),
                create_revision: create_revision as i64,
                mod_revision: mod_revision as i64,
                version: version as i64,
                value: value.to_vec(),
                lease,
            }),
            Version::Tombstone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_record_reads_back(create in any::<u64>(), version in any::<u64>(), lease in any::<i64>(), value in any::<Vec<u8>>()) {
            let put = Version::Put { create_revision: create, version, lease, value: &value };
            let bytes = put.encode();
            prop_assert_eq!(Version::decode(&bytes).unwrap(), put);
        }

        #[test]
        fn foreign_bytes_are_an_error_or_a_record_never_a_panic(bytes in any::<Vec<u8>>()) {
            if let Ok(version) = Version::decode(&bytes) {
                // The padding after the kind is not kept.
                prop_assert_eq!(&version.encode()[CREATE_AT..], if version == Version::Tombstone { &[0; 24][..] } else { &bytes[CREATE_AT..] });
            }
        }
    }

    #[test]
    fn damage_is_told_apart() {
        for bytes in [&[][..], &[KIND_PUT; 31], &[0; 32], &[KIND_TOMBSTONE; 33]] {
            assert!(
                matches!(Version::decode(bytes), Err(StoreError::Damaged { .. })),
                "{bytes:?}"
            );
        }
    }
}
