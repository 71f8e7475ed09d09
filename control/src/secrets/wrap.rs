//! The record of a volume's data keys, and wrapping: AES-256-GCM under a cluster key, with a random nonce. The associated data are the volume's id, the data
//! key's index and its id: a wrapped key is of no use to another volume.

use keelblock_api::datapath::{DataKey, DataKeys};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::source::{ClusterKey, ClusterKeys, KEY_BYTES};

const TAG_BYTES: usize = 16;
/// Nonce, key, tag.
const WRAPPED_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_BYTES;
/// Index of a volume's first key.
const FIRST_INDEX: u32 = 1;
/// The last index that a block's entry has room for.
const KEY_INDEX_MAX: u32 = 63;

/// The data keys of a volume, wrapped (`secrets/<volume-id>`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRecord {
    /// The volume.
    pub volume_id: Uuid,
    /// Index of the key that blocks are encrypted with.
    pub current: u32,
    /// All of them.
    pub keys: Vec<WrappedKey>,
}

/// A data key, wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKey {
    /// Its index in the volume.
    pub index: u32,
    /// Its id: associated data of each block. Never used again.
    pub key_id: Uuid,
    /// Id of the cluster key.
    pub wrap_key: String,
    /// Nonce (12 bytes), what it wraps (32), tag (16), as hexadecimal digits.
    pub wrapped: String,
}

/// Why a key was not wrapped or unwrapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// The cluster key is not here.
    #[error("its keys are wrapped by cluster key {0}, which is not here")]
    NoKey(String),
    /// It was changed, or is another volume's.
    #[error("what the KVDB has of its data key {0} is damaged")]
    Damaged(u32),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A clone of a clone of … has no index left for a key of its own.
    #[error(
        "it has as many data keys as a volume can have, inherited from what it was cloned from"
    )]
    TooMany,
}

impl SecretRecord {
    /// One new key.
    ///
    /// # Errors
    /// [`WrapError::Random`].
    pub fn new(volume_id: Uuid, keys: &ClusterKeys) -> Result<Self, WrapError> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        let filled = SystemRandom::new().fill(&mut secret[..]);
        filled.map_err(|_| WrapError::Random)?;
        let key_id = Uuid::new_v4();
        let key = wrap(volume_id, (FIRST_INDEX, key_id), &secret, keys.present())?;
        Ok(Self {
            volume_id,
            current: FIRST_INDEX,
            keys: vec![key],
        })
    }

    /// Of a volume that is made of a snapshot of this one: what was encrypted before is opened with the keys that are here, under the same indices; what is
    /// written to it is encrypted with a new one (rule 11).
    ///
    /// # Errors
    /// [`WrapError`].
    pub fn inherited(&self, volume_id: Uuid, keys: &ClusterKeys) -> Result<Self, WrapError> {
        let mut new = Self::new(volume_id, keys)?;
        let mut own = new.keys.remove(0);
        let secret = own.unwrap(volume_id, keys)?;
        let last = self.keys.iter().map(|k| k.index).max().unwrap_or(0);
        let index = last + 1;
        if index > KEY_INDEX_MAX {
            return Err(WrapError::TooMany);
        }
        own = wrap(volume_id, (index, own.key_id), &secret, keys.present())?;
        for key in &self.keys {
            let secret = key.unwrap(self.volume_id, keys)?;
            let name = (key.index, key.key_id);
            new.keys
                .push(wrap(volume_id, name, &secret, keys.present())?);
        }
        new.keys.push(own);
        new.current = index;
        Ok(new)
    }

    /// The keys themselves.
    ///
    /// # Errors
    /// [`WrapError`].
    pub fn unwrap(&self, by: &ClusterKeys) -> Result<DataKeys, WrapError> {
        let open = |key: &WrappedKey| {
            let secret = key.unwrap(self.volume_id, by)?;
            Ok(DataKey {
                index: key.index,
                id: key.key_id.as_bytes().to_vec(),
                secret: secret.to_vec(),
            })
        };
        Ok(DataKeys {
            current: self.current,
            keys: self.keys.iter().map(open).collect::<Result<_, _>>()?,
        })
    }

    /// Wraps what is wrapped by other keys by the present one; false: nothing was.
    ///
    /// # Errors
    /// [`WrapError`]: nothing has changed.
    pub fn wrap_again(&mut self, by: &ClusterKeys) -> Result<bool, WrapError> {
        let present = by.present();
        let mut again = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            again.push(if key.wrap_key == present.id {
                key.clone()
            } else {
                let secret = key.unwrap(self.volume_id, by)?;
                wrap(self.volume_id, (key.index, key.key_id), &secret, present)?
            });
        }
        let changed = again != self.keys;
        self.keys = again;
        Ok(changed)
    }
}

fn sealer(key: &ClusterKey) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, &key.bytes[..]);
    LessSafeKey::new(key.expect("32 bytes are a key"))
}

fn aad(volume_id: Uuid, (index, key_id): (u32, Uuid)) -> Aad<Vec<u8>> {
    let parts: [&[u8]; 4] = [
        b"keel-data-key",
        volume_id.as_bytes(),
        &index.to_le_bytes(),
        key_id.as_bytes(),
    ];
    Aad::from(parts.concat())
}

fn wrap(
    volume_id: Uuid,
    name: (u32, Uuid),
    secret: &[u8; KEY_BYTES],
    by: &ClusterKey,
) -> Result<WrappedKey, WrapError> {
    let mut nonce = [0; NONCE_LEN];
    let filled = SystemRandom::new().fill(&mut nonce);
    filled.map_err(|_| WrapError::Random)?;
    let mut sealed = Zeroizing::new(*secret);
    let tag = sealer(by).seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        aad(volume_id, name),
        &mut sealed[..],
    );
    let tag = tag.expect("a key is shorter than what GCM may take");
    Ok(WrappedKey {
        index: name.0,
        key_id: name.1,
        wrap_key: by.id.clone(),
        wrapped: hex(&[&nonce[..], &sealed[..], tag.as_ref()].concat()),
    })
}

impl WrappedKey {
    fn unwrap(
        &self,
        volume_id: Uuid,
        by: &ClusterKeys,
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, WrapError> {
        let key = by.of(&self.wrap_key);
        let key = key.ok_or_else(|| WrapError::NoKey(self.wrap_key.clone()))?;
        let damaged = || WrapError::Damaged(self.index);
        let bytes = unhex::<WRAPPED_BYTES>(self.wrapped.as_bytes()).ok_or_else(damaged)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().expect("it has more");
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened = sealer(key).open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            aad(volume_id, (self.index, self.key_id)),
            &mut sealed,
        );
        let opened = opened.map_err(|_| damaged())?;
        let secret: &[u8; KEY_BYTES] = (&*opened).try_into().map_err(|_| damaged())?;
        Ok(Zeroizing::new(*secret))
    }
}

/// As hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// From hexadecimal digits; `None` if they are not just so many.
pub(crate) fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let digit = |d: u8| char::from(d).to_digit(16);
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(all: &[u8]) -> ClusterKeys {
        let lines = all.iter().map(|b| format!("{b:02x}").repeat(32) + "\n");
        ClusterKeys::parse(lines.collect::<String>().as_bytes()).unwrap()
    }

    #[test]
    fn what_was_wrapped_comes_back_by_that_key_only() {
        let id = Uuid::new_v4();
        let record = SecretRecord::new(id, &keys(&[1])).unwrap();
        let opened = record.unwrap(&keys(&[2, 1])).unwrap();
        assert_eq!((opened.current, opened.keys.len()), (1, 1));
        assert_eq!(opened.keys[0].secret.len(), KEY_BYTES);
        assert_eq!(opened.keys[0].id, record.keys[0].key_id.as_bytes());
        let secret = hex(&opened.keys[0].secret);
        assert!(!record.keys[0].wrapped.contains(&secret));
        let other = SecretRecord::new(id, &keys(&[1])).unwrap();
        assert_ne!(other.unwrap(&keys(&[1])).unwrap(), opened);
        let without = record.unwrap(&keys(&[2]));
        assert_eq!(
            without,
            Err(WrapError::NoKey(keys(&[1]).present().id.clone()))
        );
    }

    #[test]
    fn a_wrapped_key_is_of_no_use_elsewhere() {
        let record = SecretRecord::new(Uuid::new_v4(), &keys(&[1])).unwrap();
        let mut moved = record.clone();
        moved.volume_id = Uuid::new_v4();
        let mut renamed = record.clone();
        renamed.keys[0].key_id = Uuid::new_v4();
        let mut changed = record.clone();
        let digit = if changed.keys[0].wrapped.ends_with('0') {
            "1"
        } else {
            "0"
        };
        let at = changed.keys[0].wrapped.len() - 1;
        changed.keys[0].wrapped.replace_range(at.., digit);
        let mut short = record;
        short.keys[0].wrapped.pop();
        for bad in [moved, renamed, changed, short] {
            assert_eq!(bad.unwrap(&keys(&[1])), Err(WrapError::Damaged(1)));
        }
    }

    #[test]
    fn wrapping_again_changes_what_wraps_and_not_what_is_wrapped() {
        let mut record = SecretRecord::new(Uuid::new_v4(), &keys(&[1])).unwrap();
        let before = record.unwrap(&keys(&[1])).unwrap();
        assert_eq!(record.wrap_again(&keys(&[2, 1])), Ok(true));
        assert_eq!(record.wrap_again(&keys(&[2, 1])), Ok(false));
        assert_eq!(record.unwrap(&keys(&[2])), Ok(before));
        let kept = record.clone();
        assert!(record.wrap_again(&keys(&[3])).is_err());
        assert_eq!(record, kept);
    }
}
