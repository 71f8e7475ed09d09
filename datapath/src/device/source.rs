//! From the words of a configuration to a drive that this process alone holds: parsing, creating, preallocating, locking.
//!
//! Everything here blocks, so it runs on the service thread; the reactors get the [`DeviceSource`] and open their own handles of it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use keelblock_hugepages::Region;

use super::{DEVICE_BYTES_MIN, DeviceError, memory};

/// How a file is preallocated, a piece at a time.
const PREALLOCATE_BYTES: u64 = 1 << 30;

/// Where a drive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// `memory:BYTES`.
    Memory {
        /// Its size.
        bytes: u64,
    },
    /// A file or a block device.
    Path(PathBuf),
}

impl DeviceSpec {
    /// Reads `memory:BYTES` or a path.
    ///
    /// # Errors
    /// [`DeviceError::Spec`].
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        let bad = |why| DeviceError::Spec {
            text: text.to_owned(),
            why,
        };
        match text.strip_prefix("memory:") {
            Some(number) => {
                let bytes = number
                    .parse()
                    .map_err(|_| bad("after memory: comes a number of bytes"))?;
                Ok(Self::Memory { bytes })
            }
            None if text.is_empty() => Err(bad("it is empty")),
            None => Ok(Self::Path(PathBuf::from(text))),
        }
    }
}

/// A drive that is there, has its size, and is locked: what every reactor opens its handle from.
#[derive(Clone, Debug)]
pub enum DeviceSource {
    /// Memory of this process.
    Memory {
        /// The bytes.
        region: Arc<Region>,
        /// The size asked for.
        size_bytes: u64,
    },
    /// A file or a block device.
    File {
        /// Where.
        path: PathBuf,
        /// The descriptor that holds the lock; the drive is ours while it is open.
        lock: Arc<File>,
    },
    /// A drive of the simulator.
    Sim {
        /// Its name there.
        name: String,
    },
}

impl std::fmt::Display for DeviceSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory { size_bytes, .. } => write!(f, "memory:{size_bytes}"),
            Self::File { path, .. } => path.display().fmt(f),
            Self::Sim { name } => f.write_str(name),
        }
    }
}

impl DeviceSource {
    /// Whether nobody else has this drive any more: then dropping this lets go of it.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Memory { region, .. } => Arc::strong_count(region) == 1,
            Self::File { lock, .. } => Arc::strong_count(lock) == 1,
            Self::Sim { .. } => true,
        }
    }

    /// Makes ready what `spec` names. A file that does not exist is created with `size_bytes`; one that is smaller grows to it.
    ///
    /// # Errors
    /// [`DeviceError`]: each way in which this fails has its variant.
    pub fn prepare(spec: &DeviceSpec, size_bytes: u64) -> Result<Self, DeviceError> {
        match spec {
            DeviceSpec::Memory { bytes } => {
                if *bytes < DEVICE_BYTES_MIN {
                    return Err(DeviceError::TooSmall {
                        path: PathBuf::from(format!("memory:{bytes}")),
                        bytes: *bytes,
                    });
                }
                Ok(Self::Memory {
                    region: memory::map(*bytes)?,
                    size_bytes: *bytes,
                })
            }
            DeviceSpec::Path(path) => prepare_path(path, size_bytes),
        }
    }
}

fn prepare_path(path: &Path, size_bytes: u64) -> Result<DeviceSource, DeviceError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => {
            // O_EXCL without O_CREAT on a block device: refused while it is mounted or part of another device.
            let file = open(path, OFlags::EXCL.bits() as i32)?;
            lock(path, &file)?;
            Ok(source(path, file))
        }
        Ok(meta) if meta.is_file() => {
            let file = open(path, 0)?;
            lock(path, &file)?;
            let bytes = size_bytes.max(file_len(path, &file)?);
            preallocate(path, &file, bytes)?;
            Ok(source(path, file))
        }
        Ok(_) => Err(DeviceError::Kind {
            path: path.to_owned(),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => create(path, size_bytes),
        Err(e) => Err(open_error(path, e)),
    }
}

fn source(path: &Path, file: File) -> DeviceSource {
    DeviceSource::File {
        path: path.to_owned(),
        lock: Arc::new(file),
    }
}

fn create(path: &Path, size_bytes: u64) -> Result<DeviceSource, DeviceError> {
    if size_bytes == 0 {
        return Err(DeviceError::Missing {
            path: path.to_owned(),
        });
    }
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let file = match made {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(DeviceError::Directory {
                path: path.to_owned(),
            });
        }
        Err(e) => return Err(open_error(path, e)),
    };
    let ready = lock(path, &file).and_then(|()| preallocate(path, &file, size_bytes));
    if let Err(e) = ready {
        // A file of ours that is not a drive yet would fill the disk for nothing, and be in the way of the next attempt.
        let _ = std::fs::remove_file(path);
        return Err(e);
    }
    sync_directory(path)?;
    Ok(source(path, file))
}

/// The name of a new file is stable before anything is promised about what is in it.
fn sync_directory(path: &Path) -> Result<(), DeviceError> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let synced = File::open(parent).and_then(|d| d.sync_all());
    synced.map_err(|e| open_error(parent, e))
}

fn open(path: &Path, flags: i32) -> Result<File, DeviceError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path);
    opened.map_err(|e| open_error(path, e))
}

fn open_error(path: &Path, source: std::io::Error) -> DeviceError {
    let path = path.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => DeviceError::Permission { path, source },
        Some(Errno::BUSY) => DeviceError::Busy { path },
        Some(Errno::NOTDIR) => DeviceError::Directory { path },
        _ => DeviceError::Open { path, source },
    }
}

fn lock(path: &Path, file: &File) -> Result<(), DeviceError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(DeviceError::Busy {
            path: path.to_owned(),
        }),
        Err(e) => Err(open_error(path, e.into())),
    }
}

fn file_len(path: &Path, file: &File) -> Result<u64, DeviceError> {
    let meta = file.metadata().map_err(|e| open_error(path, e))?;
    Ok(meta.len())
}

/// Gives a file its size with every block allocated (`RULES.md` S9: writes into holes take the slow way). Holes that it had are filled,
/// what is written stays.
fn preallocate(path: &Path, file: &File, bytes: u64) -> Result<(), DeviceError> {
    if bytes < DEVICE_BYTES_MIN {
        return Err(DeviceError::TooSmall {
            path: path.to_owned(),
            bytes,
        });
    }
    enough_space(path, file, bytes)?;
    let mut at = 0;
    while at < bytes {
        let len = PREALLOCATE_BYTES.min(bytes - at);
        match rustix::fs::fallocate(file, FallocateFlags::empty(), at, len) {
            Ok(()) => at += len,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return fill(path, file, bytes),
            Err(e) => return Err(space_error(path, bytes, e.into())),
        }
    }
    Ok(())
}

/// Asks first: allocating until there is nothing left would take the disk away from others for that time.
fn enough_space(path: &Path, file: &File, bytes: u64) -> Result<(), DeviceError> {
    let system = |e: Errno| open_error(path, e.into());
    let fs = rustix::fs::fstatvfs(file).map_err(system)?;
    let has = rustix::fs::fstat(file).map_err(system)?.st_blocks as u64 * 512;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if bytes.saturating_sub(has) > free {
        return Err(space_error(path, bytes, Errno::NOSPC.into()));
    }
    Ok(())
}

/// For file systems that cannot preallocate: writes what is beyond the end.
fn fill(path: &Path, mut file: &File, bytes: u64) -> Result<(), DeviceError> {
    use std::io::{Seek, SeekFrom};
    let zeroes = vec![0; 1 << 20];
    let failed = |e| space_error(path, bytes, e);
    let mut at = file.seek(SeekFrom::End(0)).map_err(failed)?;
    while at < bytes {
        let len = (bytes - at).min(zeroes.len() as u64);
        file.write_all(&zeroes[..len as usize]).map_err(failed)?;
        at += len;
    }
    Ok(())
}

fn space_error(path: &Path, bytes: u64, source: std::io::Error) -> DeviceError {
    let path = path.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => DeviceError::Full {
            path,
            bytes,
            source,
        },
        _ => DeviceError::Open { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    fn prepare(path: &Path, bytes: u64) -> Result<DeviceSource, DeviceError> {
        let spec = DeviceSpec::parse(path.to_str().unwrap()).unwrap();
        DeviceSource::prepare(&spec, bytes)
    }

    #[test]
    fn specs() {
        assert_eq!(
            DeviceSpec::parse("memory:1048576").unwrap(),
            DeviceSpec::Memory { bytes: MIB }
        );
        assert_eq!(
            DeviceSpec::parse("/dev/x").unwrap(),
            DeviceSpec::Path("/dev/x".into())
        );
        for bad in ["", "memory:", "memory:x", "memory:-1"] {
            let got = DeviceSpec::parse(bad);
            assert!(matches!(got, Err(DeviceError::Spec { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_new_file_is_allocated_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        let _held = prepare(&path, 8 * MIB).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 8 * MIB);
        assert!(meta.blocks() * 512 >= 8 * MIB, "holes");
    }

    #[test]
    fn an_existing_file_grows_keeps_its_bytes_and_loses_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        std::fs::write(&path, b"kept").unwrap();
        let sparse = OpenOptions::new().write(true).open(&path).unwrap();
        sparse.set_len(4 * MIB).unwrap();
        drop(prepare(&path, 0).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 * MIB);
        drop(prepare(&path, 6 * MIB).unwrap());
        drop(prepare(&path, 3 * MIB).unwrap());
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 6 * MIB);
        assert!(meta.blocks() * 512 >= 6 * MIB, "holes");
        assert_eq!(&std::fs::read(&path).unwrap()[..5], b"kept\0");
    }

    #[test]
    fn a_drive_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        let held = prepare(&path, 4 * MIB).unwrap();
        let second = prepare(&path, 4 * MIB);
        assert!(
            matches!(second, Err(DeviceError::Busy { .. })),
            "{second:?}"
        );
        drop(held);
        prepare(&path, 4 * MIB).unwrap();
    }

    #[test]
    fn each_failure_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(matches!(
            prepare(&at("a"), 0),
            Err(DeviceError::Missing { .. })
        ));
        assert!(matches!(
            prepare(&at("no/a"), 4 * MIB),
            Err(DeviceError::Directory { .. })
        ));
        assert!(matches!(
            prepare(dir.path(), 4 * MIB),
            Err(DeviceError::Kind { .. })
        ));
        assert!(matches!(
            prepare(&at("b"), MIB),
            Err(DeviceError::TooSmall { .. })
        ));
        std::fs::write(at("file"), b"").unwrap();
        assert!(matches!(
            prepare(&at("file/a"), 4 * MIB),
            Err(DeviceError::Directory { .. })
        ));
        let tiny = DeviceSource::prepare(&DeviceSpec::Memory { bytes: 4096 }, 0);
        assert!(matches!(tiny, Err(DeviceError::TooSmall { .. })));
    }

    #[test]
    fn a_full_disk_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        let got = prepare(&path, 1 << 50);
        assert!(matches!(got, Err(DeviceError::Full { .. })), "{got:?}");
        assert!(!path.exists());
    }
}
