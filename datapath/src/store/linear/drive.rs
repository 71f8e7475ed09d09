//! One drive of a pool: finding its present superblock, and replacing it so that a crash leaves the old one or the new one.

use keelblock_hugepages::BufferPool;

use super::super::name::Name;
use super::superblock::{COPIES, COPY_BYTES, CopyError, GRAIN_BYTES, Superblock};
use super::table::{Table, TableError};
use crate::device::{Device, IoError};

/// Why a drive's superblock could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// Nothing of ours is on it.
    #[error("drive {drive} has no superblock: format it to use it")]
    Blank {
        /// Which.
        drive: Name,
    },
    /// There was something of ours, and no copy of it is valid.
    #[error(
        "drive {drive} is corrupt: no copy of its superblock is valid ({why}); it is not formatted over"
    )]
    Corrupt {
        /// Which.
        drive: Name,
        /// What is wrong with the copy that came furthest.
        why: CopyError,
    },
    /// It is another drive than was expected there.
    #[error(
        "drive {drive} of pool {pool} was expected, but found drive {found_drive} of pool {found_pool}"
    )]
    Another {
        /// Expected.
        drive: Name,
        /// Expected.
        pool: Name,
        /// Found.
        found_drive: Name,
        /// Found.
        found_pool: Name,
    },
    /// It became smaller than its superblock says.
    #[error("drive {drive} has {found} MiB where it had {expected}")]
    Shrunk {
        /// Which.
        drive: Name,
        /// Whole MiB there.
        found: u64,
        /// Whole MiB before.
        expected: u64,
    },
    /// Its size, or its table, does not do.
    #[error("drive {drive}: {source}")]
    Table {
        /// Which.
        drive: Name,
        /// What is wrong.
        source: TableError,
    },
    /// It could not be read, written or flushed.
    #[error("drive {drive}: {source}")]
    Io {
        /// Which.
        drive: Name,
        /// What happened.
        source: IoError,
    },
}

/// A drive whose superblock is known.
#[derive(Debug)]
pub struct PoolDrive {
    device: Device,
    /// Its number among the process's drives.
    number: u32,
    /// As it is on the drive.
    present: Superblock,
}

/// What was found where a superblock should be.
enum Found {
    Present(Box<Superblock>),
    Blank,
    Corrupt(CopyError),
}

impl PoolDrive {
    /// Opens a drive: finds its superblock, or makes a first one if it is blank and `format` says so. Nothing else is changed on it;
    /// [`PoolDrive::commit`] has to follow before anything is.
    ///
    /// # Errors
    /// [`DriveError`].
    pub async fn open(
        device: Device,
        number: u32,
        drive: &Name,
        pool: &Name,
        format: bool,
        buffers: &BufferPool,
    ) -> Result<Self, DriveError> {
        let grains = device.size_bytes() / GRAIN_BYTES;
        let mut present = match find(&device, drive, buffers).await? {
            Found::Present(superblock) => *superblock,
            Found::Blank if format => first(drive, pool, grains)?,
            Found::Blank => {
                return Err(DriveError::Blank {
                    drive: drive.clone(),
                });
            }
            Found::Corrupt(why) => {
                return Err(DriveError::Corrupt {
                    drive: drive.clone(),
                    why,
                });
            }
        };
        if (&present.drive, &present.pool) != (drive, pool) {
            return Err(DriveError::Another {
                drive: drive.clone(),
                pool: pool.clone(),
                found_drive: present.drive,
                found_pool: present.pool,
            });
        }
        if grains < present.table.grains() {
            return Err(DriveError::Shrunk {
                drive: drive.clone(),
                found: grains,
                expected: present.table.grains(),
            });
        }
        present
            .table
            .grow_drive(grains)
            .map_err(|source| DriveError::Table {
                drive: drive.clone(),
                source,
            })?;
        present.generation += 1;
        let this = Self {
            device,
            number,
            present,
        };
        // What we read may only be in the drive's cache. The next commit overwrites the pair before it, so it must be stable first.
        this.flush().await?;
        Ok(this)
    }

    /// Its id.
    pub fn id(&self) -> &Name {
        &self.present.drive
    }

    /// Its number among the process's drives.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Where its bytes are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its superblock, as it is on the drive.
    pub fn present(&self) -> &Superblock {
        &self.present
    }

    /// Brings everything written so far to stable media.
    ///
    /// # Errors
    /// [`DriveError::Io`].
    pub async fn flush(&self) -> Result<(), DriveError> {
        self.device.flush().await.map_err(|source| self.io(source))
    }

    /// Makes `table` and `members` what the drive says: when this succeeds, a crash does not undo it; when it fails, the old state is
    /// still there, or the new one was reached.
    ///
    /// # Errors
    /// [`DriveError::Io`].
    pub async fn commit(
        &mut self,
        table: Table,
        members: u32,
        buffers: &BufferPool,
    ) -> Result<(), DriveError> {
        table.check();
        let next = Superblock {
            sequence: self.present.sequence + 1,
            table,
            members,
            ..self.present.clone()
        };
        let mut buffer = buffers.take(COPY_BYTES).await;
        next.encode(&mut buffer[..COPY_BYTES]);
        for copy in pair(next.sequence) {
            let at = (copy * COPY_BYTES) as u64;
            let written;
            (buffer, written) = self.device.write(at, buffer, COPY_BYTES, false).await;
            written.map_err(|source| self.io(source))?;
        }
        // Only now: whoever acts on the new state (reuses space, answers) must not be ahead of the media.
        self.flush().await?;
        self.present = next;
        Ok(())
    }

    fn io(&self, source: IoError) -> DriveError {
        DriveError::Io {
            drive: self.present.drive.clone(),
            source,
        }
    }
}

/// The copies that a sequence is written to.
fn pair(sequence: u64) -> [usize; 2] {
    let first = 2 * (sequence % 2) as usize;
    [first, first + 1]
}

fn first(drive: &Name, pool: &Name, grains: u64) -> Result<Superblock, DriveError> {
    let table = Table::new(grains).map_err(|source| DriveError::Table {
        drive: drive.clone(),
        source,
    })?;
    Ok(Superblock {
        sequence: 0,
        generation: 0,
        drive: drive.clone(),
        pool: pool.clone(),
        members: 1,
        table,
    })
}

async fn find(device: &Device, drive: &Name, buffers: &BufferPool) -> Result<Found, DriveError> {
    let mut buffer = buffers.take(COPY_BYTES).await;
    let mut best: Option<Superblock> = None;
    let mut wrong: Option<CopyError> = None;
    let mut unreadable = None;
    for copy in 0..COPIES {
        let at = (copy * COPY_BYTES) as u64;
        let read;
        (buffer, read) = device.read(at, buffer, COPY_BYTES).await;
        if let Err(e) = read {
            // One copy that cannot be read is what the others are for.
            unreadable = Some(e);
            continue;
        }
        match Superblock::decode(&buffer[..COPY_BYTES]) {
            Ok(found) if best.as_ref().is_none_or(|b| b.sequence < found.sequence) => {
                best = Some(found);
            }
            Ok(_) | Err(CopyError::Blank) => {}
            Err(e) => wrong = Some(e),
        }
    }
    match (best, wrong, unreadable) {
        (Some(superblock), ..) => Ok(Found::Present(Box::new(superblock))),
        (None, Some(why), _) => Ok(Found::Corrupt(why)),
        // Blank as far as could be read is not blank.
        (None, None, Some(source)) => Err(DriveError::Io {
            drive: drive.clone(),
            source,
        }),
        (None, None, None) => Ok(Found::Blank),
    }
}
