//! Bits of a group, one for each block.

use super::super::types::BLOCK_BYTES;
use super::GROUP_BLOCKS;

const WORDS: usize = GROUP_BLOCKS as usize / 64;

/// A bit for each block of a group; as bytes, a bitmap page.
#[derive(Clone, PartialEq, Eq)]
pub struct Bits([u64; WORDS]);

impl Bits {
    /// All clear.
    pub const CLEAR: Self = Self([0; WORDS]);

    /// From a page.
    pub fn decode(page: &[u8]) -> Self {
        assert_eq!(page.len(), BLOCK_BYTES);
        let word = |w: usize| u64::from_le_bytes(std::array::from_fn(|i| page[8 * w + i]));
        Self(std::array::from_fn(word))
    }

    /// As a page.
    pub fn encode(&self, page: &mut [u8]) {
        assert_eq!(page.len(), BLOCK_BYTES);
        for (bytes, word) in page.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// One bit.
    #[inline]
    pub fn get(&self, bit: u32) -> bool {
        self.0[bit as usize / 64] >> (bit % 64) & 1 == 1
    }

    /// Sets one bit.
    #[inline]
    pub fn set(&mut self, bit: u32) {
        self.0[bit as usize / 64] |= 1 << (bit % 64);
    }

    /// Clears one bit.
    #[inline]
    pub fn clear(&mut self, bit: u32) {
        self.0[bit as usize / 64] &= !(1 << (bit % 64));
    }

    /// Sets the bits from `from` to before `to`.
    pub fn set_range(&mut self, from: u32, to: u32) {
        each_word(from, to, |word, mask| self.0[word] |= mask);
    }

    /// Clears the bits from `from` to before `to`.
    pub fn clear_range(&mut self, from: u32, to: u32) {
        each_word(from, to, |word, mask| self.0[word] &= !mask);
    }

    /// How many of the bits from `from` to before `to` are set.
    pub fn count(&self, from: u32, to: u32) -> u32 {
        let mut n = 0;
        each_word(from, to, |word, mask| {
            n += (self.0[word] & mask).count_ones();
        });
        n
    }

    /// Whether a bit is set in both.
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }
}

fn each_word(from: u32, to: u32, mut f: impl FnMut(usize, u64)) {
    assert!(from <= to);
    assert!(to <= GROUP_BLOCKS);
    let mut at = from;
    while at < to {
        let bits = (64 - at % 64).min(to - at);
        f(at as usize / 64, u64::MAX >> (64 - bits) << (at % 64));
        at += bits;
    }
}

/// The first bit from `from` on that is clear in both.
#[inline]
pub fn next_clear(a: &Bits, b: &Bits, from: u32) -> Option<u32> {
    next(from, GROUP_BLOCKS, |w| !(a.0[w] | b.0[w]))
}

/// The first bit from `from` to before `to` that is set in any of both; `to` if there is none.
#[inline]
pub fn next_set(a: &Bits, b: &Bits, from: u32, to: u32) -> u32 {
    next(from, to, |w| a.0[w] | b.0[w]).unwrap_or(to)
}

#[inline]
fn next(from: u32, to: u32, word: impl Fn(usize) -> u64) -> Option<u32> {
    if from >= to {
        return None;
    }
    let (mut w, last) = (from as usize / 64, (to - 1) as usize / 64);
    let mut found = word(w) >> (from % 64) << (from % 64);
    while found == 0 {
        if w == last {
            return None;
        }
        w += 1;
        found = word(w);
    }
    let bit = w as u32 * 64 + found.trailing_zeros();
    (bit < to).then_some(bit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_are_an_array(steps in prop::collection::vec((any::<bool>(), 0..=GROUP_BLOCKS, 0..=GROUP_BLOCKS), 1..10), from in 0..GROUP_BLOCKS, more in 0..GROUP_BLOCKS) {
            let mut bits = Bits::CLEAR;
            let mut model = vec![false; GROUP_BLOCKS as usize];
            for (set, a, b) in steps {
                let (a, b) = (a.min(b), a.max(b));
                if set { bits.set_range(a, b) } else { bits.clear_range(a, b) }
                model[a as usize..b as usize].fill(set);
            }
            prop_assert!((0..GROUP_BLOCKS).all(|b| bits.get(b) == model[b as usize]));
            let rest = &model[from as usize..];
            let place = |set| rest.iter().position(|b| *b == set).map(|n| from + n as u32);
            prop_assert_eq!(next_clear(&bits, &Bits::CLEAR, from), place(false));
            let to = (from + more).min(GROUP_BLOCKS);
            let set = place(true).map_or(to, |bit| bit.min(to));
            prop_assert_eq!(next_set(&Bits::CLEAR, &bits, from, to), set);
            prop_assert_eq!(bits.count(from, GROUP_BLOCKS), rest.iter().filter(|b| **b).count() as u32);
            let mut page = vec![0xee; BLOCK_BYTES];
            bits.encode(&mut page);
            prop_assert_eq!(page[from as usize / 8] >> (from % 8) & 1 == 1, model[from as usize]);
            prop_assert!(Bits::decode(&page) == bits);
        }
    }
}
