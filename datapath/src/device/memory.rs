//! A drive in memory: hugepages where the machine has them, plain (transparently huge) pages where not.
//!
//! The region is shared by all reactors as raw memory. What makes that sound is the volume layer: a block belongs to a lane, a lane to
//! one reactor at a time, and a hand-over passes through the mesh, which orders memory. This module never makes a reference into it.

use std::ptr::NonNull;
use std::sync::Arc;

use keelblock_hugepages::{PageKind, Region};
use rustix::mm::Advice;

use super::{DeviceError, stream};

/// From this many bytes on, zeroing gives whole pages back to the kernel instead of writing them.
const GIVE_BACK_BYTES: usize = 64 * 1024;

/// Maps `bytes` of zeroes for a drive.
///
/// # Errors
/// [`DeviceError::Memory`] if there is no address space for it.
pub fn map(bytes: u64) -> Result<Arc<Region>, DeviceError> {
    let len = usize::try_from(bytes).unwrap_or(usize::MAX / 2);
    let region = Region::new(len).map_err(|e| DeviceError::Memory {
        bytes,
        source: e.source,
    })?;
    if region.kind() == PageKind::Plain {
        let base = region.base().as_ptr().cast();
        // SAFETY: the range is our fresh mapping. Refusal costs speed only.
        let _ = unsafe { rustix::mm::madvise(base, region.len(), Advice::LinuxHugepage) };
    }
    Ok(Arc::new(region))
}

/// Granularity in which pages can be given back, and how: a hugetlb region is a shared file, a plain one is private.
fn pages_of(region: &Region) -> (usize, Advice) {
    match region.kind() {
        PageKind::Huge => (2 << 20, Advice::LinuxRemove),
        PageKind::Plain => (4096, Advice::LinuxDontNeed),
    }
}

fn address(region: &Region, offset: u64, len: usize) -> Option<*mut u8> {
    let start = usize::try_from(offset).ok()?;
    if start.checked_add(len)? > region.len() {
        return None;
    }
    // SAFETY: start + len <= region.len(), inside the mapping.
    Some(unsafe { region.base().as_ptr().add(start) })
}

/// Bytes of a memory drive, to send from without a copy: good until the end of the reactor's pass.
///
/// The bytes are those of the drive: a write to them that is served later in the same pass shows. So who computes a digest over
/// them must send them before anything else is served, or copy them.
#[derive(Clone, Copy, Debug)]
pub struct View {
    at: NonNull<u8>,
    len: usize,
}

impl View {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A block of zeroes, which is good for ever.
    pub fn zeroes() -> Self {
        static ZEROES: [u8; 4096] = [0; 4096];
        Self {
            at: NonNull::from(&ZEROES).cast(),
            len: ZEROES.len(),
        }
    }

    /// `len` bytes of it, `skip` bytes in.
    ///
    /// # Panics
    /// If it has not so many.
    #[inline]
    pub fn part(&self, skip: usize, len: usize) -> Self {
        assert!(skip + len <= self.len, "a part of a view is inside of it");
        // SAFETY: skip <= self.len, so the address is inside of the same mapping or static, or one past its end.
        let at = unsafe { self.at.add(skip) };
        Self { at, len }
    }

    /// Takes in a view that begins where this one ends; false: it begins elsewhere.
    #[inline]
    pub fn join(&mut self, next: Self) -> bool {
        let joins = self.at.as_ptr().wrapping_add(self.len) == next.at.as_ptr();
        if joins {
            self.len += next.len;
        }
        joins
    }

    /// Begins to fetch their beginning, for a reader that comes next.
    #[inline]
    pub fn prefetch(&self) {
        stream::prefetch(self.at.as_ptr(), self.len.min(stream::AHEAD_BYTES));
    }

    /// Begins to fetch all of them, for a reader that comes a little later.
    #[inline]
    pub fn prefetch_whole(&self) {
        stream::prefetch(self.at.as_ptr(), self.len);
    }

    /// Where they are.
    pub fn as_ptr(&self) -> *const u8 {
        self.at.as_ptr()
    }

    /// The bytes themselves.
    ///
    /// # Safety
    /// It is still the pass in which the view was taken, and nothing is written to the volume while the slice lives.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: inside the mapping; the caller vouches that it is neither unmapped nor written meanwhile.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

/// A reactor's handle of a memory drive.
#[derive(Clone, Debug)]
pub struct Memory {
    region: Arc<Region>,
    /// As asked for: the mapping may be longer.
    size_bytes: u64,
}

impl Memory {
    /// A handle.
    pub fn new(region: Arc<Region>, size_bytes: u64) -> Self {
        Self { region, size_bytes }
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes to send from; `None` outside of the drive.
    #[inline]
    pub fn view(&self, offset: u64, len: usize) -> Option<View> {
        let at = NonNull::new(address(&self.region, offset, len)?)?;
        Some(View { at, len })
    }

    /// Copies bytes out; false outside of the drive.
    #[must_use]
    pub fn load(&self, offset: u64, into: &mut [u8]) -> bool {
        let Some(at) = address(&self.region, offset, into.len()) else {
            return false;
        };
        // SAFETY: inside the mapping; `into` is a separate exclusive borrow; no other reactor writes these bytes now.
        unsafe { std::ptr::copy_nonoverlapping(at, into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies bytes in; false outside of the drive.
    #[inline]
    #[must_use]
    pub fn store(&self, offset: u64, from: &[u8]) -> bool {
        let Some(at) = address(&self.region, offset, from.len()) else {
            return false;
        };
        // SAFETY: inside the mapping, which no reference points into; no other reactor touches these bytes now.
        unsafe { stream::store(from.as_ptr(), at, from.len()) };
        true
    }

    /// Zeroes bytes, giving whole pages back to the kernel; false outside of the drive.
    #[must_use]
    pub fn zero(&self, offset: u64, len: usize) -> bool {
        let Some(at) = address(&self.region, offset, len) else {
            return false;
        };
        let start = offset as usize;
        let (page_bytes, give_back) = pages_of(&self.region);
        let first = start.next_multiple_of(page_bytes);
        let last = (start + len) / page_bytes * page_bytes;
        if len < GIVE_BACK_BYTES || last <= first {
            // SAFETY: inside the mapping, see `store`.
            unsafe { std::ptr::write_bytes(at, 0, len) };
            return true;
        }
        // SAFETY: whole pages of our mapping; they read as zeroes afterwards. Nobody reads or writes them now.
        let given_back = unsafe {
            let pages = self.region.base().as_ptr().add(first);
            rustix::mm::madvise(pages.cast(), last - first, give_back).is_ok()
        };
        let (head, tail) = (first - start, start + len - last);
        // SAFETY: head, tail and middle lie inside the range that `at` was checked for.
        unsafe {
            std::ptr::write_bytes(at, 0, head);
            std::ptr::write_bytes(at.add(len - tail), 0, tail);
            if !given_back {
                std::ptr::write_bytes(at.add(head), 0, last - first);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(len: u64) -> Memory {
        Memory::new(map(len).unwrap(), len)
    }

    #[test]
    fn a_size_that_no_machine_has_is_an_error() {
        assert!(matches!(map(1 << 60), Err(DeviceError::Memory { .. })));
    }

    #[test]
    fn nothing_outside_of_the_mapping_is_touched() {
        let m = memory(4 << 20);
        assert!(m.view((4 << 20) - 1, 2).is_none());
        assert!(m.view(u64::MAX, 1).is_none());
        assert!(!m.store(4 << 20, &[1]));
        assert!(!m.load(u64::MAX - 1, &mut [0; 4]));
        assert!(!m.zero(1, 4 << 20));
    }

    #[test]
    fn a_view_shows_what_was_stored() {
        let m = memory(4 << 20);
        assert!(m.store(8191, b"abc"));
        let view = m.view(8190, 5).unwrap();
        // SAFETY: nothing is written while the slice lives.
        assert_eq!(unsafe { view.bytes() }, b"\0abc\0");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn memory_is_an_array(steps in prop::collection::vec((0usize..200_000, 0usize..140_000, any::<Option<u8>>()), 1..12)) {
            let m = memory(400_000);
            let mut model = vec![0u8; 400_000];
            for (at, len, value) in steps {
                match value {
                    Some(v) => prop_assert!(m.store(at as u64, &vec![v; len])),
                    None => prop_assert!(m.zero(at as u64, len)),
                }
                model[at..at + len].fill(value.unwrap_or(0));
            }
            let mut got = vec![1; model.len()];
            prop_assert!(m.load(0, &mut got));
            prop_assert!(got == model);
        }
    }
}
