//! What a node's volumes lie on, checked before anything is started: a full disk shall be told by us, at once.
use super::args::Device;
use super::layout::advice;
use crate::failure::{Failure, Result};
use crate::size::show_size;
use rustix::fs::statvfs;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Size of the drive of a new node, unless told.
pub const DEFAULT_SIZE: u64 = 4 << 30;

/// What must be free in the data directory beside the drive: databases and logs.
const BESIDE_DRIVE: u64 = 64 << 20;

/// The drive of a node as the control process takes it: `PATH`, `PATH,BYTES` or `memory:BYTES`.
pub fn drive_argument(device: &Device, size_bytes: u64, node_dir: &Path) -> String {
    match device {
        Device::Memory => format!("memory:{size_bytes}"),
        Device::File => format!("{},{size_bytes}", node_dir.join("drive.img").display()),
        Device::Path(path) if size_bytes == 0 => path.display().to_string(),
        Device::Path(path) => format!("{},{size_bytes}", path.display()),
    }
}

/// Settles what a new cluster lies on: an absolute path, and a size (0 = that of the device itself).
pub fn settle(device: Device, size: Option<u64>) -> Result<(Device, u64)> {
    let Device::Path(path) = device else {
        return Ok((device, size.unwrap_or(DEFAULT_SIZE)));
    };
    let what = format!("device {}", path.display());
    let path = std::path::absolute(&path).map_err(|e| Failure::local(what.clone(), e))?;
    let size = match fs::metadata(&path) {
        Ok(found) if found.is_file() || found.file_type().is_block_device() => {
            if let Some(size) = size {
                let why = format!(
                    "it is there and has its own size; leave out --size {}",
                    show_size(size)
                );
                return Err(Failure::Usage(format!("{what}: {why}")));
            }
            0
        }
        Ok(_) => {
            return Err(Failure::local(
                what,
                "it is neither a file nor a block device",
            ));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => size.ok_or_else(|| {
            Failure::Usage(format!(
                "{what}: there is none. With --size it would be made as a file"
            ))
        })?,
        Err(e) => return Err(Failure::local(what, e)),
    };
    Ok((Device::Path(path), size))
}

/// Checks that the drives of all nodes can be what they shall be, and that the rest of the data directory fits as well.
pub fn check(device: &Device, size_bytes: u64, data: &Path, node_dirs: &[PathBuf]) -> Result<()> {
    let mut wanted = BESIDE_DRIVE * node_dirs.len() as u64;
    for node_dir in node_dirs {
        let file: PathBuf = match device {
            Device::Memory => continue,
            Device::File => node_dir.join("drive.img"),
            Device::Path(path) => path.clone(),
        };
        let missing = match fs::metadata(&file) {
            Ok(found) => {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&file)
                    .map_err(|e| {
                        Failure::local(
                            format!("device {}", file.display()),
                            format!("{e}. It must be readable and writable for you"),
                        )
                    })?;
                if found.is_file() {
                    found
                        .len()
                        .max(size_bytes)
                        .saturating_sub(found.blocks() * 512)
                } else {
                    0
                }
            }
            Err(_) => size_bytes,
        };
        let dir = file.parent().unwrap_or(Path::new("/"));
        if same_file_system(dir, data) {
            wanted += missing;
        } else {
            need(dir, missing, &format!("the drive {}", file.display()))?;
        }
    }
    need(data, wanted, "the cluster's files")
}

fn same_file_system(a: &Path, b: &Path) -> bool {
    matches!((fs::metadata(a), fs::metadata(b)), (Ok(a), Ok(b)) if a.dev() == b.dev())
}

/// Fails unless `dir` has room for `bytes` more.
fn need(dir: &Path, bytes: u64, what_for: &str) -> Result<()> {
    let what = format!("space in {}", dir.display());
    let found = statvfs(dir).map_err(|e| Failure::local(what.clone(), advice(&e.into())))?;
    let free = found.f_bavail * found.f_frsize;
    if free >= bytes {
        return Ok(());
    }
    let (free, bytes) = (show_size(free), show_size(bytes));
    Err(Failure::local(
        what,
        format!(
            "{what_for} may need {bytes} more, and {free} are free. Free some space, choose a smaller drive with --size, or a \
             directory elsewhere with --data"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_are_told_to_control() {
        let node = Path::new("/d/node-1");
        assert_eq!(
            drive_argument(&Device::Memory, 1 << 30, node),
            "memory:1073741824"
        );
        assert_eq!(
            drive_argument(&Device::File, 4096, node),
            "/d/node-1/drive.img,4096"
        );
        assert_eq!(
            drive_argument(&Device::Path("/dev/sdb".into()), 0, node),
            "/dev/sdb"
        );
    }

    #[test]
    fn more_than_the_disk_holds_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [dir.path().join("a"), dir.path().join("b")];
        for node in &nodes {
            fs::create_dir(node).unwrap();
        }
        let refused = check(&Device::File, 1 << 60, dir.path(), &nodes)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--size"), "{refused}");
        check(&Device::File, 1 << 20, dir.path(), &nodes).unwrap();
    }

    #[test]
    fn a_file_that_is_there_has_its_own_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        assert_eq!(
            settle(Device::Path(path.clone()), None)
                .unwrap_err()
                .exit_code(),
            2
        );
        assert_eq!(
            settle(Device::Path(path.clone()), Some(8192)).unwrap().1,
            8192
        );
        fs::write(&path, [0; 4096]).unwrap();
        assert_eq!(settle(Device::Path(path.clone()), None).unwrap().1, 0);
        assert_eq!(
            settle(Device::Path(path), Some(8192))
                .unwrap_err()
                .exit_code(),
            2
        );
        assert!(settle(Device::Path("/dev/null".into()), None).is_err());
    }
}
