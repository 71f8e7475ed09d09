//! Shared regions: a sealed memfd, mapped by its maker and by whoever is handed its descriptor.
//!
//! The other process is not trusted with our memory safety. The size is sealed (neither side can shrink the file under the
//! other's mapping, which would be SIGBUS), and no reference to plain bytes of the region ever exists: everything is read and written
//! through atomics, so whatever the peer does at the same time, we see bytes, wrong ones at worst. Callers copy an index first and
//! check it then (RULES S13).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// A region is at most this large (1 GiB): larger requests are mistakes.
pub const REGION_BYTES_MAX: usize = 1 << 30;

/// Why a region could not be made or adopted.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The size is zero, not a multiple of 8, or above [`REGION_BYTES_MAX`].
    #[error(
        "a shared region of {bytes} bytes is not possible: it must be a multiple of 8 and at most {REGION_BYTES_MAX}"
    )]
    Size {
        /// The size asked for, or found.
        bytes: u64,
    },
    /// The descriptor is no sealed memfd, so its size could change under the mapping.
    #[error("the descriptor handed over is no memfd sealed against shrinking and growing")]
    Unsealed,
    /// A system call failed.
    #[error("{call} of a shared region failed: {source}")]
    System {
        /// Name of the system call.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn system(call: &'static str) -> impl FnOnce(Errno) -> RegionError {
    move |e| RegionError::System {
        call,
        source: e.into(),
    }
}

/// The mapping itself, without an opinion on who may write.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
}

// SAFETY: the mapping is owned, lives until drop, and is only reached through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above; every access through `&Mapping` is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: OwnedFd, len: usize, prot: ProtFlags) -> Result<Self, RegionError> {
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else refers to it.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }
                .map_err(system("mmap"))?;
        let base =
            NonNull::new(base.cast::<u8>()).ok_or(RegionError::Size { bytes: len as u64 })?;
        Ok(Mapping { base, len, fd })
    }

    /// Size of a descriptor's file, once it is known that it cannot change.
    fn sealed_len(fd: &OwnedFd) -> Result<usize, RegionError> {
        let need = SealFlags::SHRINK | SealFlags::GROW;
        match rustix::fs::fcntl_get_seals(fd) {
            Ok(seals) if seals.contains(need) => {}
            _ => return Err(RegionError::Unsealed),
        }
        let bytes = rustix::fs::fstat(fd).map_err(system("fstat"))?.st_size as u64;
        checked_len(bytes)
    }

    /// Address of `count` units of `unit` bytes at `offset`, if they are aligned and inside.
    fn at(&self, offset: usize, unit: usize, count: usize) -> Option<*mut u8> {
        let end = unit.checked_mul(count)?.checked_add(offset)?;
        if !offset.is_multiple_of(unit) || end > self.len {
            return None;
        }
        // SAFETY: offset <= end <= len, inside the mapping.
        Some(unsafe { self.base.as_ptr().add(offset) })
    }

    fn words64(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        let at = self.at(offset, 8, count)?;
        // SAFETY: aligned (the base is page aligned), inside the mapping, which lives as long as `self`; all access is atomic.
        Some(unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), count) })
    }

    fn words32(&self, offset: usize, count: usize) -> Option<&[AtomicU32]> {
        let at = self.at(offset, 4, count)?;
        // SAFETY: as in `words64`.
        Some(unsafe { std::slice::from_raw_parts(at.cast::<AtomicU32>(), count) })
    }

    fn bytes(&self, offset: usize, count: usize) -> Option<&[AtomicU8]> {
        let at = self.at(offset, 1, count)?;
        // SAFETY: as in `words64`.
        Some(unsafe { std::slice::from_raw_parts(at.cast::<AtomicU8>(), count) })
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some((head, words)) = self.split(offset, into.len()) else {
            return false;
        };
        let (first, rest) = into.split_at_mut(head);
        let mut at = offset;
        for b in first {
            *b = self.load8(at);
            at += 1;
        }
        let mut chunks = rest.chunks_exact_mut(8);
        for (chunk, word) in (&mut chunks).zip(words) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            at += 8;
        }
        for b in chunks.into_remainder() {
            *b = self.load8(at);
            at += 1;
        }
        true
    }

    fn write(&self, offset: usize, from: &[u8]) -> bool {
        let Some((head, words)) = self.split(offset, from.len()) else {
            return false;
        };
        let (first, rest) = from.split_at(head);
        let mut at = offset;
        for &b in first {
            self.store8(at, b);
            at += 1;
        }
        let mut chunks = rest.chunks_exact(8);
        for (chunk, word) in (&mut chunks).zip(words) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            at += 8;
        }
        for &b in chunks.remainder() {
            self.store8(at, b);
            at += 1;
        }
        true
    }

    /// Splits a byte range into the bytes before the first aligned word, and the whole words; `None` if it is not inside.
    fn split(&self, offset: usize, len: usize) -> Option<(usize, &[AtomicU64])> {
        self.at(offset, 1, len)?;
        let head = (offset.next_multiple_of(8) - offset).min(len);
        let count = (len - head) / 8;
        let words = if count == 0 {
            &[]
        } else {
            self.words64(offset + head, count)?
        };
        Some((head, words))
    }

    fn load8(&self, at: usize) -> u8 {
        self.bytes(at, 1)
            .map_or(0, |b| b[0].load(Ordering::Relaxed))
    }

    fn store8(&self, at: usize, value: u8) {
        if let Some(b) = self.bytes(at, 1) {
            b[0].store(value, Ordering::Relaxed);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of our mapping, and nothing borrowed from it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

fn checked_len(bytes: u64) -> Result<usize, RegionError> {
    match usize::try_from(bytes) {
        Ok(len) if len > 0 && len.is_multiple_of(8) && len <= REGION_BYTES_MAX => Ok(len),
        _ => Err(RegionError::Size { bytes }),
    }
}

/// A region that this process may read and write.
#[derive(Debug)]
pub struct SharedRegion(Mapping);

impl SharedRegion {
    /// Makes a zeroed region of `len` bytes; whoever gets its descriptor may map it for reading and writing.
    ///
    /// # Errors
    /// [`RegionError::Size`] for a length that is no multiple of 8, zero or too large; [`RegionError::System`] otherwise.
    pub fn create(name: &str, len: usize) -> Result<Self, RegionError> {
        Self::make(
            name,
            len,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )
    }

    /// As [`SharedRegion::create`], but others can only map it for reading ([`SharedView`]).
    ///
    /// # Errors
    /// As [`SharedRegion::create`].
    pub fn create_read_only_for_others(name: &str, len: usize) -> Result<Self, RegionError> {
        // FUTURE_WRITE spares mappings that exist: ours.
        Self::make(
            name,
            len,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL,
        )
    }

    fn make(name: &str, len: usize, seals: SealFlags) -> Result<Self, RegionError> {
        let len = checked_len(len as u64)?;
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(system("memfd_create"))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(system("ftruncate"))?;
        let mapping = Mapping::new(fd, len, ProtFlags::READ | ProtFlags::WRITE)?;
        rustix::fs::fcntl_add_seals(&mapping.fd, seals).map_err(system("fcntl(F_ADD_SEALS)"))?;
        Ok(SharedRegion(mapping))
    }

    /// Maps a region that another process made and handed over. Its size is what it was made with: check [`SharedRegion::len`].
    ///
    /// # Errors
    /// [`RegionError::Unsealed`] if its size could still change; [`RegionError::Size`] if that is not a region's size.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, RegionError> {
        let len = Mapping::sealed_len(&fd)?;
        Ok(SharedRegion(Mapping::new(
            fd,
            len,
            ProtFlags::READ | ProtFlags::WRITE,
        )?))
    }

    /// Size in bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The 64-bit word at byte `offset`; `None` if unaligned or outside.
    pub fn word64(&self, offset: usize) -> Option<&AtomicU64> {
        self.0.words64(offset, 1).map(|w| &w[0])
    }

    /// `count` 64-bit words from byte `offset`; `None` if unaligned or outside.
    pub fn words64(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        self.0.words64(offset, count)
    }

    /// The 32-bit word at byte `offset`; `None` if unaligned or outside.
    pub fn word32(&self, offset: usize) -> Option<&AtomicU32> {
        self.0.words32(offset, 1).map(|w| &w[0])
    }

    /// Copies bytes out, relaxed; false (and nothing read) if the range is not inside.
    #[must_use]
    pub fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        self.0.read(offset, into)
    }

    /// Copies bytes in, relaxed; false (and nothing written) if the range is not inside. Publish them with a release store of a word.
    #[must_use]
    pub fn write(&self, offset: usize, from: &[u8]) -> bool {
        self.0.write(offset, from)
    }
}

impl AsFd for SharedRegion {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// A region that this process may only read.
#[derive(Debug)]
pub struct SharedView(Mapping);

impl SharedView {
    /// Maps a region that another process made and handed over, for reading.
    ///
    /// # Errors
    /// As [`SharedRegion::from_fd`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, RegionError> {
        let len = Mapping::sealed_len(&fd)?;
        Ok(SharedView(Mapping::new(fd, len, ProtFlags::READ)?))
    }

    /// Size in bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The 64-bit word at byte `offset` (acquire); `None` if unaligned or outside.
    pub fn load64(&self, offset: usize) -> Option<u64> {
        self.0
            .words64(offset, 1)
            .map(|w| w[0].load(Ordering::Acquire))
    }

    /// Copies bytes out, relaxed; false (and nothing read) if the range is not inside.
    #[must_use]
    pub fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        self.0.read(offset, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_mappings_show_the_same_bytes() {
        let ours = SharedRegion::create("keelblock-test", 8192).unwrap();
        let theirs = SharedRegion::from_fd(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(theirs.len(), 8192);
        ours.word64(4096)
            .unwrap()
            .store(0x0102_0304, Ordering::Release);
        assert_eq!(
            theirs.word64(4096).unwrap().load(Ordering::Acquire),
            0x0102_0304
        );
        assert!(theirs.write(17, b"back"));
        let mut got = [0; 4];
        assert!(ours.read(17, &mut got));
        assert_eq!(&got, b"back");
    }

    #[test]
    fn a_read_only_region_cannot_be_mapped_for_writing() {
        let ours = SharedRegion::create_read_only_for_others("keelblock-test", 4096).unwrap();
        let fd = || ours.as_fd().try_clone_to_owned().unwrap();
        assert!(matches!(
            SharedRegion::from_fd(fd()),
            Err(RegionError::System { call: "mmap", .. })
        ));
        let view = SharedView::from_fd(fd()).unwrap();
        ours.word64(8).unwrap().store(7, Ordering::Release);
        assert_eq!(view.load64(8), Some(7));
        assert_eq!(view.load64(4096), None);
    }

    #[test]
    fn a_file_whose_size_can_change_is_refused() {
        let fd = rustix::fs::memfd_create(
            "keelblock-test",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(matches!(
            SharedRegion::from_fd(fd),
            Err(RegionError::Unsealed)
        ));
    }

    #[test]
    fn impossible_sizes_and_offsets_are_refused() {
        for len in [0, 7, REGION_BYTES_MAX + 8] {
            assert!(
                matches!(
                    SharedRegion::create("keelblock-test", len),
                    Err(RegionError::Size { .. })
                ),
                "{len}"
            );
        }
        let region = SharedRegion::create("keelblock-test", 64).unwrap();
        assert!(region.word64(4).is_none());
        assert!(region.word64(64).is_none());
        assert!(region.word32(60).is_some());
        assert!(region.word32(62).is_none());
        assert!(region.words64(8, usize::MAX).is_none());
        assert!(!region.write(usize::MAX, b"x"));
        assert!(!region.write(60, b"12345"));
        assert!(!region.read(65, &mut []));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_beside_it(offset in 0usize..64, data in prop::collection::vec(any::<u8>(), 0..64)) {
            let region = SharedRegion::create("keelblock-test", 128).unwrap();
            prop_assert!(region.write(0, &[0xa5; 128]));
            prop_assert!(region.write(offset, &data));
            let mut want = vec![0xa5; 128];
            want[offset..offset + data.len()].copy_from_slice(&data);
            let mut got = vec![0; 128];
            prop_assert!(region.read(0, &mut got));
            prop_assert_eq!(&got, &want);
            let mut part = vec![0; data.len()];
            prop_assert!(region.read(offset, &mut part));
            prop_assert_eq!(part, data);
        }
    }
}
