//! Encryption of blocks (`docs/replication.md` §16): one seam, [`Cipher`], and its implementation over a volume's keys, [`Keys`].
//!
//! A coordinator seals a block once, when its stamp is given, and opens what a read found. Nobody else has keys: replicas, resync, scrub and repair move
//! ciphertext with its tag and the checksum of the ciphertext.
//!
//! AES-256-GCM. The nonce is the stamp as it is on the wire, and no stamp is used twice under a key. The associated data are the key's id and the block's
//! number in the volume: a block that is put elsewhere, or under another key, does not verify.

mod key;
mod keys;
mod secret;
#[cfg(test)]
mod tests;

use std::fmt;

pub use keys::{Keys, KeysError};
pub use secret::Secret;

use crate::store::types::Stamp;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a block's tag.
pub const TAG_BYTES: usize = 16;
/// The highest index of a data key: a map's leaf has six bits for it (`docs/store-format.md` §6).
pub const KEY_INDEX_MAX: u32 = 63;

/// A block's tag.
pub type Tag = [u8; TAG_BYTES];
/// What a key is known by.
pub type KeyId = [u8; 16];

/// With which key a block was sealed, and its tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Index of the data key; 0: it is not encrypted.
    pub key: u32,
    /// Zero, if it is not encrypted.
    pub tag: Tag,
}

impl Seal {
    /// It is not encrypted.
    pub const NONE: Self = Self {
        key: 0,
        tag: [0; TAG_BYTES],
    };
}

/// Which block it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its stamp: it is never sealed again under this one.
    pub stamp: Stamp,
    /// Its number in the volume.
    pub block: u64,
}

/// Why a block cannot be opened. Whatever was in its place is not what was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// It was sealed with a key that is not here.
    #[error("data key {0} is not here")]
    NoKey(u32),
    /// It is not encrypted, and the volume is.
    #[error("the block is not encrypted, though the volume is")]
    Plain,
    /// The tag is another: block, stamp, place or tag were changed.
    #[error("the block does not match its authentication tag")]
    Tag,
}

/// Seals and opens blocks.
pub trait Cipher: fmt::Debug {
    /// Encrypts a block in place.
    fn seal(&self, at: Place, block: &mut [u8]) -> Seal;

    /// Decrypts a block in place.
    ///
    /// # Errors
    /// [`NotOpened`]; then the block is zeroes.
    fn open(&self, at: Place, seal: &Seal, block: &mut [u8]) -> Result<(), NotOpened>;
}
