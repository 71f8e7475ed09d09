//! Block devices: what only ioctls tell.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `BLKGETSIZE64`: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Size of a block device, in bytes.
///
/// # Errors
/// What the kernel says, `ENOTTY` if the descriptor is no block device.
pub fn device_bytes(fd: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the request writes one u64 to the address given, which is that of a live u64.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_is_no_block_device() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(
            super::device_bytes(&file).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
    }
}
