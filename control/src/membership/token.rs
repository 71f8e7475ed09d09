//! The cluster's token: a secret that nodes bring when they start (`docs/membership.md`, Identity). The KVDB has a check of it, not the token.

use std::num::NonZeroU32;
use std::path::PathBuf;

use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::former::{FormerToken, SealedToken};
use crate::secrets::{hex, unhex};

/// Longest token, in bytes.
pub(super) const TOKEN_MAX: usize = 1024;
/// Shortest.
pub(super) const TOKEN_MIN: usize = 8;
/// Rounds of PBKDF2 for a new check: some 50 ms, once at each start.
pub(super) const ROUNDS: u32 = 100_000;
/// Most rounds that are believed of a record, so that none holds a start up for ever.
pub(super) const ROUNDS_MAX: u32 = 10_000_000;
pub(super) const SALT_BYTES: usize = 16;
const CHECK_BYTES: usize = 32;

/// Where a node has the token from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// It has none.
    #[default]
    Nowhere,
    /// The first line of a file.
    File(PathBuf),
    /// A variable of this process' environment.
    Variable(String),
}

/// Why there is no token, or why it is not the right one.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file that cannot be read.
    #[error("the cluster token cannot be read from {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A variable that is not there.
    #[error(
        "the environment of keelblock-control has no variable {0}, which is to be the cluster token"
    )]
    Variable(String),
    /// It cannot be one.
    #[error(
        "the cluster token from {0} has {1} bytes: it is one line of {TOKEN_MIN} to {TOKEN_MAX} (`openssl rand -hex 32` makes one)"
    )]
    Length(String, usize),
    /// The cluster has another one.
    #[error(
        "the token from {0} is not that of cluster {1}: give the one that its other nodes have, or the id of another cluster"
    )]
    Wrong(String, String),
    /// The cluster had it before.
    #[error(
        "the token from {0} was that of cluster {1}, and has been changed: a node that is no member yet needs the present one"
    )]
    Former(String, String),
    /// The cluster has one, and the node none.
    #[error(
        "cluster {0} has a token, and this node was started without one: give it with --cluster-token-file or --cluster-token-env"
    )]
    Missing(String),
    /// The record is none.
    #[error(
        "the KVDB's check of the cluster's token cannot be used: {0}; was it written by a later version?"
    )]
    Record(&'static str),
    /// No randomness.
    #[error("the system gives no random bytes")]
    Random,
}

/// The check of a token in the KVDB: key `token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// How it was made: `pbkdf2-hmac-sha256`.
    pub kind: String,
    /// Rounds.
    pub rounds: u32,
    /// 16 bytes, hexadecimal.
    pub salt: String,
    /// 32 bytes, hexadecimal.
    pub check: String,
    /// When it was made, ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// The cluster's first token, sealed under this one; absent: this is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gossip: Option<SealedToken>,
    /// Those before, the last first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<FormerToken>,
}

const KIND: &str = "pbkdf2-hmac-sha256";

impl TokenSource {
    /// What it is, for people.
    pub fn name(&self) -> String {
        match self {
            Self::Nowhere => "nowhere".into(),
            Self::File(path) => format!("file {}", path.display()),
            Self::Variable(name) => format!("environment variable {name}"),
        }
    }

    /// The token; `None`: this node has none.
    ///
    /// # Errors
    /// [`TokenError`] of what cannot be read, or cannot be a token.
    pub fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, TokenError> {
        let text = match self {
            Self::Nowhere => return Ok(None),
            Self::File(path) => {
                let read = std::fs::read(path);
                Zeroizing::new(read.map_err(|error| TokenError::File {
                    path: path.clone(),
                    error,
                })?)
            }
            Self::Variable(name) => {
                let found = std::env::var(name);
                let found = found.map_err(|_| TokenError::Variable(name.clone()))?;
                Zeroizing::new(found.into_bytes())
            }
        };
        let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.len() {
            TOKEN_MIN..=TOKEN_MAX => Ok(Some(Zeroizing::new(line.to_vec()))),
            n => Err(TokenError::Length(self.name(), n)),
        }
    }
}

impl TokenRecord {
    /// A check of this token, with a salt of its own.
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn new(token: &[u8], now_unix_ms: u64) -> Result<Self, TokenError> {
        let mut salt = [0; SALT_BYTES];
        let filled = SystemRandom::new().fill(&mut salt);
        filled.map_err(|_| TokenError::Random)?;
        let mut check = [0; CHECK_BYTES];
        let rounds = const { NonZeroU32::new(ROUNDS).expect("there are some") };
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, token, &mut check);
        Ok(Self {
            kind: KIND.into(),
            rounds: ROUNDS,
            salt: hex(&salt),
            check: hex(&check),
            created_unix_ms: now_unix_ms,
            gossip: None,
            former: Vec::new(),
        })
    }

    /// Whether it is of this token.
    ///
    /// # Errors
    /// [`TokenError::Record`].
    pub fn is_of(&self, token: &[u8]) -> Result<bool, TokenError> {
        if self.kind != KIND {
            return Err(TokenError::Record("it is of another kind"));
        }
        let rounds = NonZeroU32::new(self.rounds).filter(|n| n.get() <= ROUNDS_MAX);
        let rounds = rounds.ok_or(TokenError::Record("its rounds cannot be"))?;
        let salt = unhex::<SALT_BYTES>(self.salt.as_bytes())
            .ok_or(TokenError::Record("its salt is none"))?;
        let check = unhex::<CHECK_BYTES>(self.check.as_bytes());
        let check = check.ok_or(TokenError::Record("it has no check"))?;
        Ok(pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, token, &check).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_of_one_token_and_says_nothing_of_it() {
        let record = TokenRecord::new(b"correct horse", 3).unwrap();
        assert!(record.is_of(b"correct horse").unwrap());
        assert!(!record.is_of(b"correct horsf").unwrap());
        assert!(!serde_json::to_string(&record).unwrap().contains("horse"));
        let other = TokenRecord::new(b"correct horse", 3).unwrap();
        assert_ne!(record.check, other.check, "each has a salt of its own");
    }

    #[test]
    fn a_record_that_cannot_be_is_not_believed() {
        let good = TokenRecord::new(b"correct horse", 3).unwrap();
        let with = |change: fn(&mut TokenRecord)| {
            let mut record = good.clone();
            change(&mut record);
            record.is_of(b"correct horse")
        };
        assert!(with(|r| r.kind = "plain".into()).is_err());
        assert!(with(|r| r.rounds = 0).is_err());
        assert!(with(|r| r.rounds = u32::MAX).is_err());
        assert!(with(|r| r.salt.truncate(3)).is_err());
        assert!(with(|r| r.check = "zz".into()).is_err());
    }

    #[test]
    fn a_token_is_the_first_line_and_not_too_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let token = TokenSource::File(path.clone()).read();
            token.map(|t| String::from_utf8(t.unwrap().to_vec()).unwrap())
        };
        assert_eq!(read("12345678\r\nmore\n").unwrap(), "12345678");
        assert_eq!(read("12345678").unwrap(), "12345678");
        let error = read("1234567\n89").unwrap_err().to_string();
        assert!(
            error.contains("7 bytes") && !error.contains("1234567"),
            "{error}"
        );
        assert!(read("").is_err());
        let none = TokenSource::File(dir.path().join("none")).read();
        assert!(none.unwrap_err().to_string().contains("cannot be read"));
        assert!(
            TokenSource::Variable("KEELBLOCK_NO_SUCH".into())
                .read()
                .is_err()
        );
        assert!(TokenSource::Nowhere.read().unwrap().is_none());
    }
}
