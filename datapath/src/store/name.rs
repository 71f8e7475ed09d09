//! Names of drives and pools.

use std::fmt;

/// Longest drive or pool name, in bytes.
pub const NAME_BYTES_MAX: usize = 62;

/// The name of a drive or a pool: 1 to 62 bytes of UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Checks the length.
    ///
    /// # Errors
    /// [`NameError`] if it is empty or longer than [`NAME_BYTES_MAX`].
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(NameError { bytes: name.len() });
        }
        Ok(Self(name.to_owned()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// An id of an impossible length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id of {bytes} bytes: drive and pool ids have 1 to {NAME_BYTES_MAX}")]
pub struct NameError {
    /// Its length.
    pub bytes: usize,
}
