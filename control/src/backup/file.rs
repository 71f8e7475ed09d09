//! A backup as bytes. Little-endian:
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | `KEELKVDB` |
//! | 8 | 4 | format, 1 |
//! | 12 | 4 | bytes of the cluster's id, c |
//! | 16 | 8 | revision at which everything was read |
//! | 24 | 8 | when, ms since the Unix epoch |
//! | 32 | 8 | entries |
//! | 40 | c | the cluster's id |
//! | 40 + c | | entries, in the order of their keys: bytes of the key (4), of the value (4), key without `/<cluster-id>/`, value |
//! | end − 32 | 32 | SHA-256 over all before |
//!
//! The sum at the end comes last, so that a file that was not written whole is none.
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

const MAGIC: &[u8; 8] = b"KEELKVDB";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 40;
/// A cluster's id is short.
const ID_BYTES_MAX: usize = 255;

/// Everything of a cluster at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Whose.
    pub cluster_id: String,
    /// At which revision of the KVDB.
    pub revision: u64,
    /// When, ms since the Unix epoch.
    pub taken_unix_ms: u64,
    /// Keys, without the cluster's prefix, and values, in the order of the keys.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why bytes are no backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("this is no backup of a KVDB: it does not begin with KEELKVDB")]
    Foreign,
    /// A later version wrote it.
    #[error("it has format {0}, and this version knows {FORMAT}: restore it with a later version")]
    Format(u32),
    /// It is not whole, or was changed.
    #[error("it is damaged or not whole: its checksum is not that of its content")]
    Damaged,
    /// The sum is right and the content is not: whoever wrote it is at fault.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Reads from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BackupError> {
        let (taken, left) = self
            .0
            .split_at_checked(length)
            .ok_or(BackupError::Malformed("it ends in an entry"))?;
        self.0 = left;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, BackupError> {
        let bytes = self.take(4)?.try_into();
        Ok(u32::from_le_bytes(bytes.expect("four of them")))
    }

    fn u64(&mut self) -> Result<u64, BackupError> {
        let bytes = self.take(8)?.try_into();
        Ok(u64::from_le_bytes(bytes.expect("eight of them")))
    }
}

impl Backup {
    /// As a file.
    pub fn encode(&self) -> Vec<u8> {
        let of_entries = self.entries.iter().map(|(k, v)| 8 + k.len() + v.len());
        let length = HEADER_BYTES + self.cluster_id.len() + of_entries.sum::<usize>();
        let mut bytes = Vec::with_capacity(length + SHA256_OUTPUT_LEN);
        let number = |n: usize| u32::try_from(n).expect("keys and values are below 1.5 MiB");
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&number(self.cluster_id.len()).to_le_bytes());
        bytes.extend_from_slice(&self.revision.to_le_bytes());
        bytes.extend_from_slice(&self.taken_unix_ms.to_le_bytes());
        bytes.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        bytes.extend_from_slice(self.cluster_id.as_bytes());
        for (key, value) in &self.entries {
            bytes.extend_from_slice(&number(key.len()).to_le_bytes());
            bytes.extend_from_slice(&number(value.len()).to_le_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
        let sum = digest(&SHA256, &bytes);
        bytes.extend_from_slice(sum.as_ref());
        bytes
    }

    /// From a file.
    ///
    /// # Errors
    /// [`BackupError`]: another file, a later format, damage.
    pub fn decode(file: &[u8]) -> Result<Self, BackupError> {
        if !file.starts_with(MAGIC) {
            return Err(BackupError::Foreign);
        }
        let whole = file.len() >= HEADER_BYTES + SHA256_OUTPUT_LEN;
        if !whole {
            return Err(BackupError::Damaged);
        }
        let (content, sum) = file.split_at(file.len() - SHA256_OUTPUT_LEN);
        if digest(&SHA256, content).as_ref() != sum {
            return Err(BackupError::Damaged);
        }
        let mut bytes = Bytes(&content[MAGIC.len()..]);
        let format = bytes.u32()?;
        if format != FORMAT {
            return Err(BackupError::Format(format));
        }
        let id_bytes = bytes.u32()? as usize;
        if id_bytes > ID_BYTES_MAX {
            return Err(BackupError::Malformed("its cluster's id is too long"));
        }
        let (revision, taken_unix_ms, count) = (bytes.u64()?, bytes.u64()?, bytes.u64()?);
        let cluster_id = std::str::from_utf8(bytes.take(id_bytes)?);
        let cluster_id =
            cluster_id.map_err(|_| BackupError::Malformed("its cluster's id is no text"))?;
        let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for _ in 0..count {
            let (key, value) = (bytes.u32()? as usize, bytes.u32()? as usize);
            let key = bytes.take(key)?.to_vec();
            if entries.last().is_some_and(|(last, _)| *last >= key) {
                return Err(BackupError::Malformed("its keys are not in order"));
            }
            entries.push((key, bytes.take(value)?.to_vec()));
        }
        if !bytes.0.is_empty() {
            return Err(BackupError::Malformed("it has more than its entries"));
        }
        Ok(Self {
            cluster_id: cluster_id.into(),
            revision,
            taken_unix_ms,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn sample() -> Backup {
        let entry = |k: &str, v: &str| (k.as_bytes().to_vec(), v.as_bytes().to_vec());
        Backup {
            cluster_id: "c".into(),
            revision: 7,
            taken_unix_ms: 9,
            entries: vec![entry("a", "1"), entry("b/c", "")],
        }
    }

    /// With the right sum, whatever is in it.
    fn summed(content: &[u8]) -> Vec<u8> {
        [content, digest(&SHA256, content).as_ref()].concat()
    }

    #[test]
    fn the_bytes_are_where_the_table_says() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..12], b"KEELKVDB\x01\0\0\0");
        assert_eq!(&bytes[12..16], &[1, 0, 0, 0]);
        assert_eq!(
            (bytes[16], bytes[24], bytes[32], bytes[40]),
            (7, 9, 2, b'c')
        );
        assert_eq!(&bytes[41..51], b"\x01\0\0\0\x01\0\0\0a1");
        assert_eq!(bytes.len(), 51 + 8 + 3 + 32);
        assert_eq!(Backup::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_found() {
        let bytes = sample().encode();
        for length in 0..bytes.len() {
            assert!(Backup::decode(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Backup::decode(&changed).is_err(), "{at}");
        }
        assert_eq!(Backup::decode(b"something"), Err(BackupError::Foreign));
    }

    #[test]
    fn what_is_wrong_inside_is_said() {
        let bytes = sample().encode();
        let content = &bytes[..bytes.len() - SHA256_OUTPUT_LEN];
        let with = |at: usize, byte: u8| {
            let mut changed = content.to_vec();
            changed[at] = byte;
            Backup::decode(&summed(&changed))
        };
        assert_eq!(with(8, 2), Err(BackupError::Format(2)));
        assert!(matches!(with(13, 1), Err(BackupError::Malformed(_))));
        assert!(matches!(with(32, 1), Err(BackupError::Malformed(m)) if m.contains("more")));
        assert!(matches!(with(32, 3), Err(BackupError::Malformed(m)) if m.contains("ends")));
        assert!(matches!(with(39, 255), Err(BackupError::Malformed(_))));
        assert!(matches!(with(49, b'z'), Err(BackupError::Malformed(m)) if m.contains("order")));
        assert!(matches!(with(40, 255), Err(BackupError::Malformed(m)) if m.contains("text")));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            entries in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 0..20),
                proptest::collection::vec(any::<u8>(), 0..50),
                0..20,
            ),
            revision in any::<u64>(),
        ) {
            let entries: BTreeMap<Vec<u8>, Vec<u8>> = entries;
            let backup = Backup {
                cluster_id: "cluster".into(),
                revision,
                taken_unix_ms: 1,
                entries: entries.into_iter().collect(),
            };
            prop_assert_eq!(Backup::decode(&backup.encode()), Ok(backup));
        }

        #[test]
        fn junk_is_refused_and_never_a_panic(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"KEELKVDB\x01\0\0\0".to_vec();
            bytes.extend(content);
            // Whatever it says, it is said in words.
            if let Err(error) = Backup::decode(&summed(&bytes)) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
