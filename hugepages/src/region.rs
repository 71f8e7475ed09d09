//! A private piece of DMA memory: hugetlb pages if the machine has enough of them free, plain pages if not.
//!
//! Pages come into being when first touched, so a large region costs address space only. It never moves.

use std::ptr::NonNull;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Size of the huge pages asked for.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What a region's memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// 2 MiB pages of a hugetlb memfd.
    Huge,
    /// The system's plain pages.
    Plain,
}

impl std::fmt::Display for PageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PageKind::Huge => "2 MiB huge pages",
            PageKind::Plain => "plain pages",
        })
    }
}

/// The address space could not be had.
#[derive(Debug, thiserror::Error)]
#[error("no address space for {bytes} bytes of buffers: {source}")]
pub struct NoMemory {
    /// Bytes asked for.
    pub bytes: usize,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// Zeroed memory, page aligned, owned.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    kind: PageKind,
}

// SAFETY: a region is plain memory that it owns; access goes through raw pointers whose users answer for it.
unsafe impl Send for Region {}
// SAFETY: `&Region` gives out addresses only.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `bytes` (rounded up to 2 MiB) of zeroes. Huge pages are used only if all of it can have them.
    ///
    /// # Errors
    /// Only if there is no address space; missing huge pages are no error.
    pub fn new(bytes: usize) -> Result<Self, NoMemory> {
        let len = bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        if let Some(base) = Self::map_huge(len, prot) {
            return Ok(Region {
                base,
                len,
                kind: PageKind::Huge,
            });
        }
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                prot,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        match base.map(|b| NonNull::new(b.cast::<u8>())) {
            Ok(Some(base)) => Ok(Region {
                base,
                len,
                kind: PageKind::Plain,
            }),
            Ok(None) => Err(NoMemory {
                bytes: len,
                source: std::io::ErrorKind::OutOfMemory.into(),
            }),
            Err(e) => Err(NoMemory {
                bytes: len,
                source: e.into(),
            }),
        }
    }

    /// Mapping a hugetlb file reserves its pages, so success means that they are ours.
    fn map_huge(len: usize, prot: ProtFlags) -> Option<NonNull<u8>> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let fd = rustix::fs::memfd_create("keelblock-buffers", flags).ok()?;
        rustix::fs::ftruncate(&fd, len as u64).ok()?;
        // SAFETY: a fresh mapping of our own file at an address of the kernel's choice.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }
                .ok()?;
        NonNull::new(base.cast::<u8>())
    }

    /// First byte; aligned to a page.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Size in bytes, a multiple of 2 MiB.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// What was got.
    pub fn kind(&self) -> PageKind {
        self.kind
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and len are those of our mapping; users of its addresses promised to be gone.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zeroed_writable_and_rounded_up() {
        let region = Region::new(3 << 20).unwrap();
        assert_eq!(region.len(), 4 << 20);
        // SAFETY: inside the region, which nobody else uses.
        let bytes = unsafe { std::slice::from_raw_parts_mut(region.base().as_ptr(), region.len()) };
        assert_eq!((bytes[0], bytes[region.len() - 1]), (0, 0));
        bytes[region.len() - 1] = 7;
        assert_eq!(bytes[region.len() - 1], 7);
        assert!(region.base().as_ptr().addr().is_multiple_of(4096));
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Region::new(1 << 60).is_err());
    }
}
