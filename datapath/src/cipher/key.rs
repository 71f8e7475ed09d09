//! One data key, made ready.
//!
//! `ring` looks at the CPU when it is first used, and takes the fastest code that it has for it (VAES with AVX2 where there is some).
//! `docs/performance.md` has what others took.

use std::fmt;
use std::mem::MaybeUninit;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

use super::{KeyId, NotOpened, Place, Secret, TAG_BYTES, Tag};

/// Bytes of the associated data: the key's id, the block's number.
const AAD_BYTES: usize = 24;

/// See the module's text.
pub(super) struct Key {
    id: KeyId,
    /// Initialized as long as this lives.
    schedule: Box<MaybeUninit<LessSafeKey>>,
}

impl Key {
    pub fn new(id: KeyId, secret: &Secret) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, secret.bytes()).expect("32 bytes are a key");
        Self {
            id,
            schedule: Box::new(MaybeUninit::new(LessSafeKey::new(key))),
        }
    }

    fn schedule(&self) -> &LessSafeKey {
        // SAFETY: `new` initialized it, and only `drop` ends that.
        unsafe { self.schedule.assume_init_ref() }
    }

    /// Encrypts in place.
    pub fn seal(&self, at: Place, block: &mut [u8]) -> Tag {
        let aad = Aad::from(self.aad(at));
        let sealed = self
            .schedule()
            .seal_in_place_separate_tag(nonce(at), aad, block);
        let tag = sealed.expect("a block is shorter than what GCM may take");
        tag.as_ref().try_into().expect("GCM's tags have 16 bytes")
    }

    /// Decrypts in place; zeroes, if that fails.
    pub fn open(&self, at: Place, tag: &Tag, block: &mut [u8]) -> Result<(), NotOpened> {
        let aad = Aad::from(self.aad(at));
        let tag: [u8; TAG_BYTES] = *tag;
        let opened =
            self.schedule()
                .open_in_place_separate_tag(nonce(at), aad, tag.into(), block, 0..);
        if opened.is_err() {
            block.fill(0);
            return Err(NotOpened::Tag);
        }
        Ok(())
    }

    fn aad(&self, at: Place) -> [u8; AAD_BYTES] {
        let mut aad = [0; AAD_BYTES];
        aad[..16].copy_from_slice(&self.id);
        aad[16..].copy_from_slice(&at.block.to_le_bytes());
        aad
    }
}

/// The stamp as it is on the wire.
fn nonce(at: Place) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&at.stamp.epoch.to_le_bytes());
    nonce[4..].copy_from_slice(&at.stamp.seq.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: it is initialized, and not looked at again.
        unsafe { self.schedule.assume_init_drop() };
        self.schedule.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}
