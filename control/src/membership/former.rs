//! Changing the cluster's token (`docs/membership.md`, Another token): former ones, and what of the first one goes on in gossip.

use std::num::NonZeroU32;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::token::{ROUNDS, ROUNDS_MAX, SALT_BYTES, TOKEN_MAX, TOKEN_MIN, TokenError, TokenRecord};
use crate::error::OpError;
use crate::kvdb::client::Committed;
use crate::node::Node;
use crate::records::{encode, unix_ms};
use crate::secrets::{hex, unhex};

/// Former tokens that are remembered.
pub(crate) const FORMER_MAX: usize = 8;
/// Longest time for which nodes may still join with a former one: 30 days.
const GRACE_MINUTES_MAX: u64 = 30 * 24 * 60;
/// Bytes of a token that is made.
const MADE_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const SEALED_FOR: &[u8] = b"keel-token-1";

/// A token that was the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerToken {
    /// Its check.
    pub of: TokenRecord,
    /// Until when nodes may join with it, ms since the Unix epoch.
    pub until_unix_ms: u64,
}

/// The first token, sealed under a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedToken {
    /// 16 bytes, hexadecimal.
    salt: String,
    /// It, and a tag of 16 bytes; hexadecimal.
    sealed: String,
}

/// Which of the cluster's tokens one is.
#[derive(Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// The present one.
    Present,
    /// One before.
    Former(&'a FormerToken),
    /// None that is known.
    None,
}

/// The cluster's token, as far as it is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TokenShown {
    /// Since when it is this one, ms since the Unix epoch; `None`: there is none.
    pub since_unix_ms: Option<u64>,
    /// Of each before, the last first: since when it was, and until when nodes may join with it.
    pub former: Vec<(u64, u64)>,
}

fn key(token: &[u8], salt: &[u8], rounds: u32) -> Result<LessSafeKey, TokenError> {
    let rounds = NonZeroU32::new(rounds).filter(|n| n.get() <= ROUNDS_MAX);
    let rounds = rounds.ok_or(TokenError::Record("its rounds cannot be"))?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, token, &mut *bytes);
    let key = UnboundKey::new(&AES_256_GCM, &*bytes);
    let key = key.map_err(|_| TokenError::Record("there is no such key"))?;
    Ok(LessSafeKey::new(key))
}

/// A key seals once, as its salt is random.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

impl SealedToken {
    fn new(token: &[u8], first: &[u8]) -> Result<Self, TokenError> {
        let mut salt = [0; SALT_BYTES];
        let filled = SystemRandom::new().fill(&mut salt);
        filled.map_err(|_| TokenError::Random)?;
        let mut bytes = first.to_vec();
        let key = key(token, &salt, ROUNDS)?;
        let sealed = key.seal_in_place_append_tag(nonce(), Aad::from(SEALED_FOR), &mut bytes);
        sealed.map_err(|_| TokenError::Record("it cannot be sealed"))?;
        Ok(Self {
            salt: hex(&salt),
            sealed: hex(&bytes),
        })
    }

    fn open(&self, token: &[u8], rounds: u32) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        let wrong = || TokenError::Record("the first token in it cannot be opened");
        let salt = unhex::<SALT_BYTES>(self.salt.as_bytes()).ok_or_else(wrong)?;
        let (pairs, rest) = self.sealed.as_bytes().as_chunks::<2>();
        if !rest.is_empty() || pairs.len() > TOKEN_MAX + AES_256_GCM.tag_len() {
            return Err(wrong());
        }
        let bytes = pairs.iter().map(|pair| unhex::<1>(pair).map(|[b]| b));
        let bytes: Option<Vec<u8>> = bytes.collect();
        let mut bytes = Zeroizing::new(bytes.ok_or_else(wrong)?);
        let key = key(token, &salt, rounds)?;
        let opened = key.open_in_place(nonce(), Aad::from(SEALED_FOR), &mut bytes);
        let first = opened.map_err(|_| wrong())?.to_vec();
        Ok(Zeroizing::new(first))
    }
}

impl TokenRecord {
    /// Which one it is. Costs a check of each that is known.
    ///
    /// # Errors
    /// [`TokenError::Record`].
    pub fn which(&self, token: &[u8]) -> Result<Which<'_>, TokenError> {
        if self.is_of(token)? {
            return Ok(Which::Present);
        }
        for former in self.former.iter().take(FORMER_MAX) {
            if former.of.is_of(token)? {
                return Ok(Which::Former(former));
            }
        }
        Ok(Which::None)
    }

    /// The cluster's first token, by one that this is the check of.
    ///
    /// # Errors
    /// [`TokenError::Record`].
    pub fn first(&self, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        match &self.gossip {
            Some(sealed) => sealed.open(token, self.rounds),
            None => Ok(Zeroizing::new(token.to_vec())),
        }
    }

    /// With another token from now on, and this one among the former.
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn changed(
        self,
        token: &[u8],
        first: &[u8],
        until_unix_ms: u64,
        now_unix_ms: u64,
    ) -> Result<Self, TokenError> {
        let mut before = self;
        let mut former = std::mem::take(&mut before.former);
        former.insert(
            0,
            FormerToken {
                of: before,
                until_unix_ms,
            },
        );
        former.truncate(FORMER_MAX);
        Ok(Self {
            gossip: Some(SealedToken::new(token, first)?),
            former,
            ..Self::new(token, now_unix_ms)?
        })
    }
}

/// What takes some 50 ms for each token is done beside what answers.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
) -> Result<T, OpError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        let fault = format!("the change of the token ended with a fault of this program: {error}");
        Err(OpError::Internal(fault))
    })
}

fn made() -> Result<Zeroizing<String>, TokenError> {
    let mut bytes = Zeroizing::new([0; MADE_BYTES]);
    let filled = SystemRandom::new().fill(&mut *bytes);
    filled.map_err(|_| TokenError::Random)?;
    Ok(Zeroizing::new(hex(&*bytes)))
}

fn has_none() -> OpError {
    OpError::State(
        "the cluster has no token: the first node that is started with one (--cluster-token-file) sets it".into(),
    )
}

impl Node {
    /// Since when the cluster has its token, and which were before.
    ///
    /// # Errors
    /// The KVDB.
    pub async fn cluster_token(&self) -> Result<TokenShown, OpError> {
        let key = self.registry.keys().token();
        let found = self.registry.get::<TokenRecord>(&key).await?;
        Ok(found.map(|f| f.record.shown()).unwrap_or_default())
    }

    /// Gives the cluster another token: `said`, or one that is made, which is told then. Nodes may join with the present one for so many minutes.
    ///
    /// # Errors
    /// [`OpError::Invalid`] of what cannot be a token, or was one; [`OpError::State`] if the cluster has none, or this node does not have it;
    /// [`OpError::Contended`] if somebody else changed it at this moment.
    pub async fn rotate_token(
        &self,
        said: Option<Zeroizing<String>>,
        grace_minutes: u64,
    ) -> Result<(TokenShown, Option<Zeroizing<String>>), OpError> {
        if grace_minutes > GRACE_MINUTES_MAX {
            let why = format!("at most {GRACE_MINUTES_MAX} (30 days), not {grace_minutes}");
            return Err(OpError::invalid("grace_minutes", why));
        }
        if let Some(token) = &said
            && (!(TOKEN_MIN..=TOKEN_MAX).contains(&token.len()) || token.contains(['\n', '\r']))
        {
            let why = format!("a token is one line of {TOKEN_MIN} to {TOKEN_MAX} bytes");
            return Err(OpError::invalid("token", why));
        }
        let path = self.registry.keys().token();
        let found = self.registry.get::<TokenRecord>(&path).await?;
        let found = found.ok_or_else(has_none)?;
        let first = self.first_token().filter(|t| !t.is_empty()).cloned();
        let first = first.ok_or_else(|| {
            OpError::State(
                "this node was started without the cluster's token, so it cannot change it: ask one that was started with it".into(),
            )
        })?;
        let now = unix_ms();
        let until = match grace_minutes {
            0 => 0,
            minutes => now.saturating_add(minutes * 60_000),
        };
        let revision = found.revision;
        let work = move || {
            let made = match said.is_none() {
                true => Some(made()?),
                false => None,
            };
            if let Some(token) = &said {
                match found.record.which(token.as_bytes())? {
                    Which::Present => return Ok(None),
                    Which::Former(_) => {
                        let why = "it was the cluster's, and was given up: take another one";
                        return Err(OpError::invalid("token", why));
                    }
                    Which::None => {}
                }
            }
            let token = said.or_else(|| made.clone()).unwrap_or_default();
            let record = found.record.changed(token.as_bytes(), &first, until, now)?;
            Ok(Some((record, made)))
        };
        let Some((record, made)) = aside(work).await? else {
            return Ok((self.cluster_token().await?, None));
        };
        let text = encode(&record);
        let swapped = self.registry.kv().compare_and_swap(&path, revision, text);
        if swapped.await? == Committed::No {
            let what = "the cluster's token".into();
            return Err(OpError::Contended { what });
        }
        tracing::info!(
            cluster = self.cluster_id(),
            grace_minutes,
            "the cluster has another token from now on"
        );
        Ok((record.shown(), made))
    }
}

impl TokenRecord {
    fn shown(&self) -> TokenShown {
        let former = self.former.iter();
        let former = former.map(|f| (f.of.created_unix_ms, f.until_unix_ms));
        TokenShown {
            since_unix_ms: Some(self.created_unix_ms),
            former: former.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_tokens_are_known_as_such_and_all_lead_to_the_first() {
        let mut record = TokenRecord::new(b"token-0-", 1).unwrap();
        for n in 1..=FORMER_MAX as u64 + 1 {
            let first = record.first(format!("token-{}-", n - 1).as_bytes());
            assert_eq!(&**first.as_ref().unwrap(), b"token-0-");
            let token = format!("token-{n}-");
            record = record
                .changed(token.as_bytes(), &first.unwrap(), 1000 + n, 10 + n)
                .unwrap();
        }
        let text = serde_json::to_string(&record).unwrap();
        let record: TokenRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(record.former.len(), FORMER_MAX);
        assert_eq!(record.which(b"token-9-").unwrap(), Which::Present);
        assert_eq!(record.which(b"token-0-").unwrap(), Which::None, "too old");
        let Which::Former(last) = record.which(b"token-8-").unwrap() else {
            panic!("it is the last one");
        };
        assert_eq!((last.until_unix_ms, last.of.created_unix_ms), (1009, 18));
        assert_eq!(&**last.of.first(b"token-8-").unwrap(), b"token-0-");
        assert!(last.of.first(b"token-7-").is_err(), "of another token");
        assert_eq!(record.shown().former[0], (18, 1009));
        // What was not changed is what it was, for nodes of older versions.
        let plain = TokenRecord::new(b"token-0-", 1).unwrap();
        let plain = serde_json::to_string(&plain).unwrap();
        assert!(!plain.contains("former") && !plain.contains("gossip"));
    }

    #[test]
    fn what_is_sealed_is_opened_whole_or_not_at_all() {
        let sealed = SealedToken::new(b"present!", b"the first").unwrap();
        assert_eq!(&**sealed.open(b"present!", ROUNDS).unwrap(), b"the first");
        let with = |change: fn(&mut SealedToken)| {
            let mut other = sealed.clone();
            change(&mut other);
            other.open(b"present!", ROUNDS)
        };
        assert!(with(|s| s.sealed.truncate(6)).is_err());
        assert!(with(|s| s.sealed.insert(0, '0')).is_err());
        assert!(with(|s| s.sealed.replace_range(0..2, "zz")).is_err());
        assert!(with(|s| s.salt.truncate(2)).is_err());
        assert!(with(|s| s.sealed = "00".repeat(2000)).is_err());
        assert!(sealed.open(b"present!", 0).is_err());
        assert!(sealed.open(b"former!!", ROUNDS).is_err());
    }
}
