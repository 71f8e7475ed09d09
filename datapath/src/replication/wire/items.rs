//! Lists in a frame's body: items of one size, one behind the other.

use std::marker::PhantomData;

use super::WireError;
use super::bytes::Cursor;
use crate::replication::seam::Id;

/// Something of which frames have several.
pub trait Item: Sized {
    /// Bytes of one.
    const BYTES: usize;

    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads one.
    ///
    /// # Errors
    /// What it cannot be.
    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError>;
}

/// Items that came: each was looked at.
#[derive(Debug)]
pub struct List<'a, T> {
    bytes: &'a [u8],
    items: PhantomData<T>,
}

// Not derived: that would ask the same of the items.
impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<'_, T> {}

impl<'a, T: Item> List<'a, T> {
    /// The next `n`; the caller has compared `n` with its bound.
    pub(super) fn take(c: &mut Cursor<'a>, n: usize) -> Result<Self, WireError> {
        let bytes = {
            let mut look = *c;
            for _ in 0..n {
                T::take(&mut look)?;
            }
            c.take(n * T::BYTES)?
        };
        let items = PhantomData;
        Ok(Self { bytes, items })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.bytes.len() / T::BYTES
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let mut c = Cursor::new("item", self.bytes);
        // `take` has read them all.
        (0..self.len()).filter_map(move |_| T::take(&mut c).ok())
    }
}

impl Item for Id {
    const BYTES: usize = 16;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        c.array()
    }
}

impl Item for u32 {
    const BYTES: usize = 4;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, WireError> {
        c.u32()
    }
}

/// Appends them all.
pub(super) fn put_all<T: Item>(out: &mut Vec<u8>, items: &[T]) {
    items.iter().for_each(|i| i.put(out));
}
