//! The node's private key: a file that only its owner may read, made at the first start.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;

use crate::replication::session::PrivateKey;

/// A key is less than this; a larger file is something else.
const KEY_BYTES_MAX: u64 = 4096;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("--identity {path}: cannot {what}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("--identity {path}: others may read it (mode {mode:o}): whoever read it can pass for this node. Set its mode to 600, or delete it for a new key", path = .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no key.
    #[error("--identity {path}: this is no Ed25519 key in PKCS#8: delete it for a new key", path = .path.display())]
    NoKey {
        /// Which.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes for a key")]
    Random,
}

/// The key in a file; one is made if there is no file.
///
/// # Errors
/// [`KeyError`].
pub fn key(path: &Path) -> Result<PrivateKey, KeyError> {
    let failed = |what| {
        move |source| KeyError::File {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return make(path),
        Err(e) => return Err(failed("look at it")(e)),
    };
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(KeyError::Open { path, mode });
    }
    let bytes = match meta.len() <= KEY_BYTES_MAX {
        true => fs::read(path).map_err(failed("read it"))?,
        false => Vec::new(),
    };
    if Ed25519KeyPair::from_pkcs8_maybe_unchecked(&bytes).is_err() {
        return Err(KeyError::NoKey {
            path: path.to_owned(),
        });
    }
    Ok(PrivateKey::Pkcs8(bytes))
}

fn make(path: &Path) -> Result<PrivateKey, KeyError> {
    let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    let key = key.map_err(|_| KeyError::Random)?;
    let written = write(path, key.as_ref());
    written.map_err(|source| KeyError::File {
        path: path.to_owned(),
        what: "make it",
        source,
    })?;
    tracing::info!(file = %path.display(), "a new key of this node");
    Ok(PrivateKey::Pkcs8(key.as_ref().to_vec()))
}

/// Whole, or not there.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// 32 bytes that nobody can foresee.
///
/// # Errors
/// [`KeyError::Random`].
pub fn secret() -> Result<[u8; 32], KeyError> {
    use ring::rand::SecureRandom;
    let mut secret = [0; 32];
    let filled = SystemRandom::new().fill(&mut secret);
    filled.map(|()| secret).map_err(|_| KeyError::Random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn bytes(key: &PrivateKey) -> &[u8] {
        match key {
            PrivateKey::Seed(seed) => seed,
            PrivateKey::Pkcs8(bytes) => bytes,
        }
    }

    #[test]
    fn a_key_is_made_once_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let made = key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(bytes(&key(&path).unwrap()), bytes(&made));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            key(&path),
            Err(KeyError::Open { mode: 0o640, .. })
        ));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        for content in [&b""[..], b"-----BEGIN", &[0x30; 5000]] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(key(&path), Err(KeyError::NoKey { .. })));
        }
        let nowhere = folder.path().join("no/node.key");
        let error = key(&nowhere).err().unwrap().to_string();
        assert!(error.contains("cannot make it"), "{error}");
    }
}
