//! Bytes that nobody prints, and that are gone when they are dropped.

use std::fmt;

use zeroize::Zeroize;

use super::KEY_BYTES;

/// The bytes of a key.
pub struct Secret(Box<[u8; KEY_BYTES]>);

impl Secret {
    /// Of bytes that somebody sent, which are overwritten; `None` if they are too many or too few.
    pub fn take(mut bytes: Vec<u8>) -> Option<Self> {
        let mut secret = Self(Box::new([0; KEY_BYTES]));
        let fits = bytes.len() == KEY_BYTES;
        if fits {
            secret.0.copy_from_slice(&bytes);
        }
        bytes.zeroize();
        fits.then_some(secret)
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl Clone for Secret {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
