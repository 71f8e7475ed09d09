//! The data keys of a volume, by index: new blocks are sealed with the current one, what others sealed is opened with theirs.

use super::key::Key;
use super::{Cipher, KEY_INDEX_MAX, KeyId, NotOpened, Place, Seal, Secret};

/// Keys that are none of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// Of no index that there is.
    #[error("{0}: the index of a data key is 1 to {KEY_INDEX_MAX}")]
    Index(u32),
    /// The same index twice.
    #[error("there are two data keys of index {0}")]
    Twice(u32),
    /// None to seal with.
    #[error("the current data key, {0}, is not among the keys")]
    NoCurrent(u32),
}

/// See the module's text.
#[derive(Debug)]
pub struct Keys {
    current: u32,
    /// By index, the first being of none.
    keys: Box<[Option<Key>]>,
}

impl Keys {
    /// Keys with their indices and ids; blocks are sealed with `current`.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn new(
        current: u32,
        all: impl IntoIterator<Item = (u32, KeyId, Secret)>,
    ) -> Result<Self, KeysError> {
        let mut keys: Vec<Option<Key>> = Vec::new();
        for (index, id, secret) in all {
            if index == 0 || index > KEY_INDEX_MAX {
                return Err(KeysError::Index(index));
            }
            let at = index as usize;
            if keys.len() <= at {
                keys.resize_with(at + 1, || None);
            }
            if keys[at].is_some() {
                return Err(KeysError::Twice(index));
            }
            keys[at] = Some(Key::new(id, &secret));
        }
        let keys = Self {
            current,
            keys: keys.into(),
        };
        match keys.key(current) {
            Some(_) => Ok(keys),
            None => Err(KeysError::NoCurrent(current)),
        }
    }

    fn key(&self, index: u32) -> Option<&Key> {
        self.keys.get(index as usize)?.as_ref()
    }
}

impl Cipher for Keys {
    fn seal(&self, at: Place, block: &mut [u8]) -> Seal {
        let key = self.key(self.current).expect("looked at when it was made");
        Seal {
            key: self.current,
            tag: key.seal(at, block),
        }
    }

    fn open(&self, at: Place, seal: &Seal, block: &mut [u8]) -> Result<(), NotOpened> {
        let opened = match (seal.key, self.key(seal.key)) {
            (0, _) => Err(NotOpened::Plain),
            (n, None) => Err(NotOpened::NoKey(n)),
            (_, Some(key)) => return key.open(at, &seal.tag, block),
        };
        block.fill(0);
        opened
    }
}
