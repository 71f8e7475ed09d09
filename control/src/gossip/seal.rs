//! What a datagram is in: whose cluster it is of, its number, and a signature over all of it (`docs/gossip.md`, A datagram). Nothing that fails here is looked at any further.

use std::collections::HashMap;

use ring::{digest, hmac};

/// Longest datagram, in bytes: none is fragmented.
pub const DATAGRAM_MAX: usize = 1400;
/// Longest message in one.
pub const MESSAGE_MAX: usize = DATAGRAM_MAX - HEAD - TAG;

const MAGIC: [u8; 8] = *b"KGS1\0\0\0\0";
const CLUSTER: usize = 8;
const SESSION: usize = 16;
const NUMBER: usize = 24;
const HEAD: usize = 32;
const TAG: usize = 32;

/// Numbers that may come in another order than they were sent.
const WINDOW: u64 = 64;
/// Sessions that are remembered; then the one that was silent for longest is not.
const SESSIONS_MAX: usize = 1024;

/// Why a datagram is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is too short, too long, or has no magic.
    #[error("it is no datagram of gossip")]
    Short,
    /// It is of another cluster.
    #[error("it is of another cluster")]
    Cluster,
    /// Its sender has another secret or token.
    #[error("it is not signed with this cluster's secret and token")]
    Seal,
    /// It came before.
    #[error("it came before")]
    Replayed,
    /// It is signed, and no message.
    #[error("it is signed, and no message")]
    Malformed,
}

/// Signs datagrams and looks at signatures.
pub struct Seal {
    key: hmac::Key,
    cluster: [u8; 8],
    session: u64,
    number: u64,
    came: HashMap<u64, Came>,
    /// Datagrams that came.
    clock: u64,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key.
        write!(f, "Seal({:x}, {})", self.session, self.number)
    }
}

/// What came of a session.
#[derive(Debug, Default)]
struct Came {
    highest: u64,
    /// Bit n: `highest - n` came.
    bits: u64,
    /// When something came last.
    at: u64,
}

impl Came {
    /// Whether a number is new; it is not, from then on.
    fn take(&mut self, number: u64) -> bool {
        if number > self.highest {
            let by = number - self.highest;
            self.bits = match by < WINDOW {
                true => self.bits << by | 1,
                false => 1,
            };
            self.highest = number;
            return true;
        }
        let back = self.highest - number;
        let bit = 1u64.checked_shl(u32::try_from(back).unwrap_or(u32::MAX));
        match bit.filter(|bit| self.bits & bit == 0) {
            Some(bit) => {
                self.bits |= bit;
                true
            }
            None => false,
        }
    }
}

/// The key of a cluster.
fn key_of(secret: &[u8], cluster_id: &str, token: &[u8]) -> hmac::Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(format!("keel-gossip-1\0{cluster_id}\0").as_bytes());
    context.update(token);
    hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref())
}

impl Seal {
    /// Of a process of a cluster, with the secret of that and its token, if it has one. `session` is random.
    pub fn new(secret: &[u8], cluster_id: &str, token: &[u8], session: u64) -> Self {
        let named = digest::digest(
            &digest::SHA256,
            format!("keel-gossip-cluster\0{cluster_id}").as_bytes(),
        );
        let mut cluster = [0; 8];
        cluster.copy_from_slice(&named.as_ref()[..8]);
        Self {
            key: key_of(secret, cluster_id, token),
            cluster,
            session,
            number: 0,
            came: HashMap::new(),
            clock: 0,
        }
    }

    /// The cluster has another secret.
    pub fn renew(&mut self, secret: &[u8], cluster_id: &str, token: &[u8]) {
        self.key = key_of(secret, cluster_id, token);
    }

    /// A datagram of a message of at most [`MESSAGE_MAX`] bytes.
    pub fn close(&mut self, message: &[u8]) -> Vec<u8> {
        self.number += 1;
        let mut bytes = Vec::with_capacity(HEAD + message.len() + TAG);
        bytes.extend(MAGIC);
        bytes.extend(self.cluster);
        bytes.extend(self.session.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(message);
        let tag = hmac::sign(&self.key, &bytes);
        bytes.extend(tag.as_ref());
        bytes
    }

    /// The message of a datagram.
    ///
    /// # Errors
    /// [`Refused`], but for `Malformed`.
    pub fn open<'a>(&mut self, datagram: &'a [u8]) -> Result<&'a [u8], Refused> {
        if !(HEAD + TAG..=DATAGRAM_MAX).contains(&datagram.len()) || datagram[..CLUSTER] != MAGIC {
            return Err(Refused::Short);
        }
        if datagram[CLUSTER..SESSION] != self.cluster {
            return Err(Refused::Cluster);
        }
        let (signed, tag) = datagram.split_at(datagram.len() - TAG);
        hmac::verify(&self.key, signed, tag).map_err(|_| Refused::Seal)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&signed[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        match self.is_new(number(SESSION), number(NUMBER)) {
            true => Ok(&signed[HEAD..]),
            false => Err(Refused::Replayed),
        }
    }

    fn is_new(&mut self, session: u64, number: u64) -> bool {
        self.clock += 1;
        if !self.came.contains_key(&session) && self.came.len() >= SESSIONS_MAX {
            let oldest = self.came.iter().min_by_key(|(_, c)| c.at).map(|(s, _)| *s);
            oldest.and_then(|s| self.came.remove(&s));
        }
        let came = self.came.entry(session).or_default();
        came.at = self.clock;
        // Numbers begin at 1.
        number > 0 && came.take(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(secret: &[u8], cluster: &str, token: &str, session: u64) -> Seal {
        Seal::new(secret, cluster, token.as_bytes(), session)
    }

    #[test]
    fn only_who_has_secret_and_token_is_heard_and_each_datagram_once() {
        let mut here = seal(b"secret", "c", "token", 1);
        let mut there = seal(b"secret", "c", "token", 2);
        let datagram = there.close(b"hello");
        assert_eq!(here.open(&datagram), Ok(&b"hello"[..]));
        assert_eq!(here.open(&datagram), Err(Refused::Replayed));
        let strangers = [
            (seal(b"other", "c", "token", 3), Refused::Seal),
            (seal(b"secret", "c", "", 3), Refused::Seal),
            (seal(b"secret", "d", "token", 3), Refused::Cluster),
        ];
        for (mut stranger, why) in strangers {
            assert_eq!(here.open(&stranger.close(b"hello")), Err(why));
        }
        let mut other = seal(b"new", "c", "token", 4);
        assert_eq!(here.open(&other.close(b"x")), Err(Refused::Seal));
        here.renew(b"new", "c", b"token");
        assert_eq!(here.open(&other.close(b"x")), Ok(&b"x"[..]));
        let long = vec![0; MESSAGE_MAX + 1];
        assert_eq!(here.open(&other.close(&long)), Err(Refused::Short));
    }

    #[test]
    fn no_byte_can_be_changed() {
        let mut here = seal(b"secret", "c", "", 1);
        let datagram = seal(b"secret", "c", "", 2).close(b"hello");
        for at in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[at] ^= 1;
            assert!(here.open(&changed).is_err(), "byte {at}");
            assert!(here.open(&datagram[..at]).is_err(), "{at} bytes");
        }
        assert_eq!(here.open(&datagram), Ok(&b"hello"[..]));
    }

    #[test]
    fn numbers_may_come_in_another_order_within_the_window() {
        let mut came = Came::default();
        assert!(came.take(3) && came.take(1) && came.take(2));
        assert!(!came.take(1) && !came.take(2) && !came.take(3));
        assert!(came.take(66) && !came.take(3) && came.take(4) && !came.take(4));
        assert!(!came.take(2), "64 below the highest");
        assert!(came.take(1000) && !came.take(900) && came.take(999));
        assert!(came.take(u64::MAX) && !came.take(u64::MAX) && !came.take(1));
    }

    #[test]
    fn sessions_are_bounded() {
        let mut here = seal(b"secret", "c", "", 1);
        let mut first = seal(b"secret", "c", "", 2);
        assert!(here.open(&first.close(b"")).is_ok());
        for session in 0..2 * SESSIONS_MAX as u64 {
            let mut other = seal(b"secret", "c", "", 100 + session);
            assert!(here.open(&other.close(b"")).is_ok());
            // Who goes on is not forgotten.
            let again = first.close(b"");
            assert!(here.open(&again).is_ok() && here.open(&again).is_err());
        }
        assert_eq!(here.came.len(), SESSIONS_MAX);
    }
}
