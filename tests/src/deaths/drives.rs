//! A drive that fails: writes to it beyond a place are refused by the kernel, until they are not.
//!
//! No device of the test's own is needed for it: a limit on the size of files that a running process may write does it. The process must leave the signal alone that comes with it,
//! which `groups` sees to.

use std::io;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// The signal of the limit.
pub const SIGNAL: &str = "XFSZ";

/// Lets a process write files up to so many bytes; `None`: as long as they like.
///
/// # Errors
/// There is no such process.
pub fn limit(pid: u32, bytes: Option<u64>) -> io::Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(Some(pid), Resource::Fsize, limit)?;
    Ok(())
}
