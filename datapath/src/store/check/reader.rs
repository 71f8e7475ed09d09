//! Where blocks come from.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::types::BLOCK_BYTES;

/// A drive that is only read.
pub trait BlockReader {
    /// How many blocks it has.
    fn blocks(&self) -> u64;

    /// Reads one.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, block: u64, into: &mut [u8; BLOCK_BYTES]) -> io::Result<()>;
}

/// A file or a block device.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    blocks: u64,
    in_use: bool,
}

impl FileReader {
    /// Opens it for reading.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let blocks = file.seek(SeekFrom::End(0))? / BLOCK_BYTES as u64;
        // A data path holds the exclusive lock as long as it has the drive.
        let lock = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared);
        Ok(Self {
            file,
            blocks,
            in_use: lock == Err(rustix::io::Errno::WOULDBLOCK),
        })
    }

    /// Whether a running data path has it: then what is read is of many moments.
    pub fn in_use(&self) -> bool {
        self.in_use
    }
}

impl BlockReader for FileReader {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&self, block: u64, into: &mut [u8; BLOCK_BYTES]) -> io::Result<()> {
        self.file.read_exact_at(into, block * BLOCK_BYTES as u64)
    }
}
