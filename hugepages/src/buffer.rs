//! An owned DMA buffer.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::carve::{CHUNK_BYTES, Place, class_bytes};
use crate::pool::Core;

/// An owned, page-aligned buffer of its size class's length (4 KiB to 1 MiB), with whatever bytes its last owner left in it. Goes back to
/// the pool that it came from wherever it is dropped.
pub struct Buffer {
    core: NonNull<Core>,
    address: NonNull<u8>,
    class: u8,
    place: Place,
}

// SAFETY: the buffer owns its bytes; the core's part that a drop touches from another thread is atomic.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` gives out `&[u8]` only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// # Safety
    /// `address` must be that of `place` in `core`, handed out to this buffer alone.
    pub(crate) unsafe fn new(
        core: NonNull<Core>,
        address: NonNull<u8>,
        class: u8,
        place: Place,
    ) -> Self {
        Buffer {
            core,
            address,
            class,
            place,
        }
    }

    /// Number of the 1 MiB chunk of the pool's span that the buffer lies in, wholly: what a device registered it under.
    pub fn chunk(&self) -> usize {
        self.place.chunk as usize
    }

    /// Offset from the beginning of the pool's span.
    pub fn span_offset(&self) -> usize {
        self.place.chunk as usize * CHUNK_BYTES + self.place.unit as usize * class_bytes(self.class)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are initialised (a mapping begins as zeroes), inside the region, and ours.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), class_bytes(self.class)) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), class_bytes(self.class)) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: handed out by this core, not used after this, dropped once.
        unsafe { Core::give(self.core, self.class, self.place) }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("bytes", &self.len())
            .field("place", &self.place)
            .finish()
    }
}
