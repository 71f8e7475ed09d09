//! The keys of a run's volume, and what was sealed with them: no nonce may ever be used for two values (rule 11), whoever coordinates.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::cipher::{Cipher, KEY_BYTES, Keys, NotOpened, Place, Seal, Secret};
use crate::store::types::{Crc, Stamp};

/// See the module's text.
#[derive(Debug)]
pub struct Ledger {
    keys: Keys,
    /// By key and nonce: block of the volume, and a sum of what was encrypted.
    sealed: RefCell<BTreeMap<(u32, Stamp), (u64, u32)>>,
    /// Somebody changes what is on drives.
    pub changed: Cell<bool>,
}

impl Ledger {
    /// Nothing is sealed yet.
    pub fn new(seed: u64) -> Self {
        let secret = vec![seed as u8; KEY_BYTES];
        let secret = Secret::take(secret).expect("as many bytes as a key has");
        Self {
            keys: Keys::new(3, [(3, [7; 16], secret)]).expect("one key"),
            sealed: RefCell::default(),
            changed: Cell::new(false),
        }
    }

    /// How many blocks were sealed.
    pub fn len(&self) -> usize {
        self.sealed.borrow().len()
    }
}

impl Cipher for Ledger {
    fn seal(&self, at: Place, block: &mut [u8]) -> Seal {
        let value = (at.block, Crc::of(block).0);
        let seal = self.keys.seal(at, block);
        let before = self.sealed.borrow_mut().insert((seal.key, at.stamp), value);
        assert!(
            before.is_none(),
            "a nonce is used twice: {at:?}, {value:?} and {before:?}"
        );
        seal
    }

    fn open(&self, at: Place, seal: &Seal, block: &mut [u8]) -> Result<(), NotOpened> {
        let opened = self.keys.open(at, seal, block);
        if self.changed.get() && opened.is_err() {
            return opened;
        }
        // Drives lose and rot here; what they give back matches a checksum. Nobody changes tags.
        assert_eq!(opened, Ok(()), "{at:?} does not open");
        let known = self.sealed.borrow().get(&(seal.key, at.stamp)).copied();
        assert_eq!(known, Some((at.block, Crc::of(block).0)), "{at:?}");
        opened
    }
}
