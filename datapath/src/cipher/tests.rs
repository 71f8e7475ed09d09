//! What is sealed is what another implementation seals, and opens only as what it is.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use proptest::prelude::*;

use super::*;

fn secret(byte: u8) -> Secret {
    Secret::take(vec![byte; KEY_BYTES]).expect("32 bytes")
}

fn keys(current: u32, all: &[(u32, u8)]) -> Result<Keys, KeysError> {
    let all = all.iter().map(|&(n, byte)| (n, [byte; 16], secret(byte)));
    Keys::new(current, all)
}

fn place(epoch: u32, seq: u64, block: u64) -> Place {
    Place {
        stamp: Stamp { epoch, seq },
        block,
    }
}

/// The same by `aes-gcm`.
fn oracle(byte: u8, at: Place, block: &mut [u8]) -> Tag {
    let key = Aes256Gcm::new_from_slice(&[byte; KEY_BYTES]).expect("32 bytes");
    let mut nonce = at.stamp.epoch.to_le_bytes().to_vec();
    nonce.extend(at.stamp.seq.to_le_bytes());
    let mut aad = vec![byte; 16];
    aad.extend(at.block.to_le_bytes());
    let nonce: [u8; 12] = nonce.try_into().expect("12 bytes");
    let tag = key.encrypt_inout_detached(&nonce.into(), &aad, block.into());
    tag.expect("a block is not too long").into()
}

proptest! {
    #[test]
    fn another_implementation_says_the_same(
        byte in any::<u8>(), epoch in any::<u32>(), seq in any::<u64>(), block in any::<u64>(),
        data in prop::collection::vec(any::<u8>(), 4096),
    ) {
        let at = place(epoch, seq, block);
        let (mut here, mut there) = (data.clone(), data.clone());
        let keys = keys(1, &[(1, byte)]).unwrap();
        let seal = keys.seal(at, &mut here);
        let tag = oracle(byte, at, &mut there);
        prop_assert_eq!(seal, Seal { key: 1, tag });
        prop_assert_eq!(&here, &there);
        prop_assert_eq!(keys.open(at, &seal, &mut here), Ok(()));
        prop_assert_eq!(here, data);
    }

    /// A bit of anything that is not as it was.
    #[test]
    fn what_was_changed_does_not_open(bit in 0usize..8 * 4096, what in 0..5u8, n in 0..64u32) {
        let at = place(7, 9, 11);
        let mut block = vec![3; 4096];
        let keys = keys(1, &[(1, 1), (2, 2)]).unwrap();
        let mut seal = keys.seal(at, &mut block);
        let mut from = at;
        match what {
            0 => block[bit / 8] ^= 1 << (bit % 8),
            1 => seal.tag[bit / 8 % TAG_BYTES] ^= 1 << (bit % 8),
            2 => from.stamp.seq ^= 1 << n,
            3 => from.stamp.epoch ^= 1 << (n % 32),
            _ => from.block ^= 1 << n,
        }
        prop_assert_eq!(keys.open(from, &seal, &mut block), Err(NotOpened::Tag));
        prop_assert!(block.iter().all(|b| *b == 0));
    }
}

#[test]
fn a_block_is_opened_with_the_key_that_sealed_it() {
    let (old, new) = (keys(1, &[(1, 1)]).unwrap(), keys(2, &[(2, 2), (1, 1)]));
    let new = new.unwrap();
    let at = place(1, 1, 1);
    let mut block = vec![3; 4096];
    let seal = old.seal(at, &mut block);
    assert_eq!(new.open(at, &seal, &mut block.clone()), Ok(()));
    let other = new.seal(place(2, 1, 1), &mut vec![3; 4096]);
    assert_eq!(other.key, 2);
    for (seal, why) in [
        (Seal::NONE, NotOpened::Plain),
        (Seal { key: 3, ..seal }, NotOpened::NoKey(3)),
        (Seal { key: 2, ..seal }, NotOpened::Tag),
    ] {
        let mut block = block.clone();
        assert_eq!(new.open(at, &seal, &mut block), Err(why));
        assert!(block.iter().all(|b| *b == 0));
    }
}

#[test]
fn keys_that_are_none() {
    assert_eq!(keys(0, &[(0, 1)]).unwrap_err(), KeysError::Index(0));
    assert_eq!(keys(64, &[(64, 1)]).unwrap_err(), KeysError::Index(64));
    assert_eq!(keys(2, &[(1, 1)]).unwrap_err(), KeysError::NoCurrent(2));
    assert_eq!(keys(1, &[(1, 1), (1, 2)]).unwrap_err(), KeysError::Twice(1));
    assert!(Secret::take(vec![1; 31]).is_none());
}

#[test]
fn nobody_prints_a_key() {
    let text = format!("{:?} {:?}", keys(1, &[(1, 0xab)]), secret(0xab));
    assert!(!text.contains("171") && !text.contains("ab, "), "{text}");
}
