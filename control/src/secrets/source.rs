//! Where the cluster's keys come from: a line for each, 64 hexadecimal digits, the present one first.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use ring::digest::{SHA256, digest};
use zeroize::{Zeroize, Zeroizing};

use super::wrap::{hex, unhex};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Most keys: there are two while one takes the other's place.
const KEYS_MAX: usize = 16;
/// Longest text that is read.
const TEXT_MAX: usize = 64 << 10;
/// How long reading a file, or a command, may take.
const LIMIT: Duration = Duration::from_secs(10);

/// See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// This node has none.
    #[default]
    Nowhere,
    /// A file.
    File(PathBuf),
    /// A variable of this process' environment.
    Variable(String),
    /// What a command prints, run by `sh -c`.
    Command(String),
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nobody said where they are.
    #[error("it has no cluster key")]
    Nowhere,
    /// A file that cannot be read.
    #[error("the cluster key cannot be read from {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A variable that is not there.
    #[error(
        "the environment of keelblock-control has no variable {0}, which is to be the cluster key"
    )]
    Variable(String),
    /// A command that fails.
    #[error("the command that is to give the cluster key {0}")]
    Command(String),
    /// It is no key.
    #[error("line {line} of what is to be the cluster key is not {} hexadecimal digits", 2 * KEY_BYTES)]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// It is a text of another kind.
    #[error("what is to be the cluster key is longer than {} KiB", TEXT_MAX >> 10)]
    Long,
    /// There is nothing, or too much.
    #[error(
        "what is to be the cluster key has {0} keys: 1 to {KEYS_MAX} are needed, the present one first"
    )]
    Count(usize),
}

/// A cluster key.
pub struct ClusterKey {
    /// What it is known by: of its sum, so it says nothing of the key.
    pub id: String,
    pub(super) bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The cluster's keys, the present one first.
#[derive(Debug)]
pub struct ClusterKeys(Vec<ClusterKey>);

impl Source {
    /// What it is, for people.
    pub fn name(&self) -> String {
        match self {
            Self::Nowhere => "none".into(),
            Self::File(path) => format!("file {}", path.display()),
            Self::Variable(name) => format!("environment variable {name}"),
            Self::Command(_) => "a command".into(),
        }
    }

    /// The keys, as they are now.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn read(&self) -> Result<ClusterKeys, SourceError> {
        let text = match self {
            Self::Nowhere => return Err(SourceError::Nowhere),
            Self::File(path) => {
                let read = tokio::time::timeout(LIMIT, read_file(path)).await;
                // Of a file system that is away.
                let late = |_| Err(std::io::ErrorKind::TimedOut.into());
                read.unwrap_or_else(late)
                    .map_err(|error| SourceError::File {
                        path: path.clone(),
                        error,
                    })?
            }
            Self::Variable(name) => {
                let text = std::env::var(name);
                let none = |_| SourceError::Variable(name.clone());
                text.map_err(none)?.into_bytes()
            }
            Self::Command(command) => run(command).await.map_err(SourceError::Command)?,
        };
        ClusterKeys::parse(&Zeroizing::new(text))
    }
}

async fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    // A pipe that nobody writes into is empty, instead of holding a thread for ever.
    let file = tokio::fs::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .await?;
    let mode = file.metadata().await?.permissions().mode();
    if mode & 0o007 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format!("{:o}", mode & 0o777),
            "everybody on this machine may read the cluster key: take that away with chmod o="
        );
    }
    read_all(file).await
}

/// Everything, up to one byte more than may be there.
async fn read_all(from: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(TEXT_MAX + 1);
    from.take(TEXT_MAX as u64 + 1)
        .read_to_end(&mut text)
        .await?;
    Ok(text)
}

async fn run(command: &str) -> Result<Vec<u8>, String> {
    let late = |_| format!("did not end within {} s", LIMIT.as_secs());
    let done = tokio::time::timeout(LIMIT, run_to_end(command)).await;
    done.map_err(late)?
}

async fn run_to_end(command: &str) -> Result<Vec<u8>, String> {
    let cannot = |e: std::io::Error| format!("cannot be run: {e}");
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(cannot)?;
    let mut text = match child.stdout.take() {
        Some(out) => read_all(out).await.map_err(cannot)?,
        None => Vec::new(),
    };
    // Who prints more is not waited for, and is ended.
    if text.len() > TEXT_MAX {
        return Ok(text);
    }
    let status = child.wait().await.map_err(cannot)?;
    if !status.success() {
        text.zeroize();
        return Err(format!("failed: {status}"));
    }
    Ok(text)
}

impl ClusterKeys {
    /// Of lines of text. Empty ones, and those that begin with #, are left out.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn parse(text: &[u8]) -> Result<Self, SourceError> {
        if text.len() > TEXT_MAX {
            return Err(SourceError::Long);
        }
        let mut keys = Vec::new();
        for (n, line) in text.split(|b| *b == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let bad = SourceError::Line { line: n + 1 };
            let Some(bytes) = unhex::<KEY_BYTES>(line) else {
                return Err(bad);
            };
            let bytes = Zeroizing::new(bytes);
            let named = Zeroizing::new([b"keel-cluster-key".as_slice(), &bytes[..]].concat());
            let sum = digest(&SHA256, &named);
            keys.push(ClusterKey {
                id: hex(&sum.as_ref()[..16]),
                bytes,
            });
        }
        match keys.len() {
            1..=KEYS_MAX => Ok(Self(keys)),
            n => Err(SourceError::Count(n)),
        }
    }

    /// What new keys are wrapped with.
    pub fn present(&self) -> &ClusterKey {
        &self.0[0]
    }

    /// The key of that id.
    pub fn of(&self, id: &str) -> Option<&ClusterKey> {
        self.0.iter().find(|k| k.id == id)
    }

    /// All ids, the present one first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|k| k.id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_the_present_one_first() {
        let (a, b) = ("ab".repeat(32), "CD".repeat(32));
        let text = format!("# the new one\n{a}\n\n  {b}  \n");
        let keys = ClusterKeys::parse(text.as_bytes()).unwrap();
        let one = ClusterKeys::parse(b.as_bytes()).unwrap();
        assert_eq!(keys.ids().count(), 2);
        assert_ne!(keys.present().id, one.present().id);
        assert!(keys.of(&one.present().id).is_some());
        assert!(one.of(&keys.present().id).is_none());
        assert_eq!(keys.present().bytes[..], [0xab; 32]);
        assert!(!format!("{keys:?}").contains("171"));
    }

    #[test]
    fn what_is_no_key_is_told_by_its_line() {
        let good = "ab".repeat(32);
        for (text, line) in [
            (format!("{good}\nxy"), 2),
            (good[1..].to_owned(), 1),
            (format!("{good}00"), 1),
        ] {
            let error = ClusterKeys::parse(text.as_bytes()).unwrap_err();
            assert!(
                matches!(error, SourceError::Line { line: n } if n == line),
                "{error}"
            );
        }
        for text in [
            String::new(),
            "# none\n".into(),
            format!("{good}\n").repeat(17),
        ] {
            let error = ClusterKeys::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error, SourceError::Count(0 | 17)), "{error}");
        }
    }

    #[tokio::test]
    async fn sources_say_what_is_wrong() {
        let good = "ab".repeat(32);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = Source::File(path.clone());
        assert!(file.read().await.unwrap_err().to_string().contains("key"));
        std::fs::write(&path, &good).unwrap();
        let id = file.read().await.unwrap().present().id.clone();
        let echo = Source::Command(format!("echo {good}"));
        assert_eq!(echo.read().await.unwrap().present().id, id);
        let long = Source::File("/dev/zero".into()).read().await;
        assert!(matches!(long, Err(SourceError::Long)), "{long:?}");
        let long = Source::Command("cat /dev/zero".into()).read().await;
        assert!(matches!(long, Err(SourceError::Long)), "{long:?}");
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let empty = Source::File(pipe).read().await;
        assert!(matches!(empty, Err(SourceError::Count(0))), "{empty:?}");
        let fails = Source::Command("echo ab; exit 3".into());
        let error = fails.read().await.unwrap_err().to_string();
        assert!(error.contains("failed"), "{error}");
        let none = Source::Variable("KEEL_NO_SUCH_VARIABLE".into());
        let error = none.read().await.unwrap_err().to_string();
        assert!(error.contains("KEEL_NO_SUCH_VARIABLE"), "{error}");
        assert!(Source::Nowhere.read().await.is_err());
    }
}
