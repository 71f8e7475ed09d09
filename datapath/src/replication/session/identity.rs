//! Who we are, and whom we know.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;

use ring::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::reactor::{Nanos, ReactorId};
use crate::replication::wire::hello::{PeerId, SIGNATURE_BYTES, VERSION};

/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What its signatures are checked with: Ed25519.
    pub key: [u8; PUBLIC_KEY_BYTES],
    /// Where it listens for replication.
    pub address: SocketAddr,
}

/// A node's private key, as it is kept.
#[derive(Clone)]
pub enum PrivateKey {
    /// The 32 bytes that it is made of (RFC 8032).
    Seed([u8; 32]),
    /// PKCS#8, version 1 or 2.
    Pkcs8(Vec<u8>),
}

/// It is no Ed25519 key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the private key of this node is no Ed25519 key in PKCS#8")]
pub struct BadKey;

/// What a process is started with; each reactor makes its own [`Identity`] of it.
#[derive(Clone)]
pub struct Credentials {
    /// The cluster.
    pub cluster: PeerId,
    /// This node.
    pub node: PeerId,
    /// Of this process: random at its start.
    pub incarnation: [u8; 16],
    /// This node's key.
    pub key: PrivateKey,
    /// Random at this process's start, told to nobody: nonces are made of it.
    pub secret: [u8; 32],
    /// Milliseconds since 1970 at a moment of the reactors' clock. For messages to people.
    pub wall: (u64, Nanos),
    /// Lowest and highest version to speak.
    pub versions: (u16, u16),
}

impl Credentials {
    /// Of this build's versions, without a wall clock.
    pub fn new(
        (cluster, node): (PeerId, PeerId),
        incarnation: [u8; 16],
        key: PrivateKey,
        secret: [u8; 32],
    ) -> Self {
        Self {
            cluster,
            node,
            incarnation,
            key,
            secret,
            wall: (0, Nanos(0)),
            versions: (VERSION, VERSION),
        }
    }
}

/// Who we are on one reactor, and whom we know there.
pub struct Identity {
    /// The cluster.
    pub cluster: PeerId,
    /// This node.
    pub node: PeerId,
    /// This process.
    pub incarnation: [u8; 16],
    /// Lowest and highest version that we speak.
    pub versions: (u16, u16),
    reactor: ReactorId,
    key: Ed25519KeyPair,
    wall: (u64, Nanos),
    nonces: (hmac::Key, Cell<u64>),
    /// `None`: the list of nodes has not come yet.
    peers: RefCell<Option<BTreeMap<PeerId, Peer>>>,
    /// The last number of a session to each.
    sessions: RefCell<BTreeMap<PeerId, u64>>,
}

impl Identity {
    /// On a reactor.
    ///
    /// # Errors
    /// The key is none.
    pub fn new(credentials: &Credentials, reactor: ReactorId) -> Result<Self, BadKey> {
        let key = match &credentials.key {
            PrivateKey::Seed(seed) => Ed25519KeyPair::from_seed_unchecked(seed),
            PrivateKey::Pkcs8(bytes) => Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes),
        };
        Ok(Self {
            cluster: credentials.cluster,
            node: credentials.node,
            incarnation: credentials.incarnation,
            versions: credentials.versions,
            reactor,
            key: key.map_err(|_| BadKey)?,
            wall: credentials.wall,
            nonces: (
                hmac::Key::new(hmac::HMAC_SHA256, &credentials.secret),
                Cell::new(0),
            ),
            peers: RefCell::default(),
            sessions: RefCell::default(),
        })
    }

    /// What others check our signatures with.
    pub fn public_key(&self) -> [u8; PUBLIC_KEY_BYTES] {
        let bytes = self.key.public_key().as_ref();
        bytes.try_into().expect("an Ed25519 key has 32 bytes")
    }

    /// Replaces the list of nodes.
    pub fn set_peers(&self, peers: BTreeMap<PeerId, Peer>) {
        self.peers.replace(Some(peers));
    }

    /// Whether the list of nodes has come.
    pub fn has_peers(&self) -> bool {
        self.peers.borrow().is_some()
    }

    /// A node of the list.
    pub fn peer(&self, node: &PeerId) -> Option<Peer> {
        self.peers.borrow().as_ref()?.get(node).copied()
    }

    /// The next number for a session to a peer: they rise, whoever asks.
    pub(super) fn next_session(&self, peer: PeerId) -> u64 {
        let mut sessions = self.sessions.borrow_mut();
        let last = sessions.entry(peer).or_default();
        *last += 1;
        *last
    }

    /// 32 bytes that nobody can foresee, and that never come again in the life of this process: a keyed hash of a count. So a simulated process, whose
    /// secret comes of its seed, says the same in each run.
    pub(super) fn nonce(&self) -> [u8; 32] {
        let (key, count) = &self.nonces;
        let n = count.get();
        count.set(n + 1);
        let mut input = [0; 10];
        input[..2].copy_from_slice(&self.reactor.0.to_le_bytes());
        input[2..].copy_from_slice(&n.to_le_bytes());
        let tag = hmac::sign(key, &input);
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Milliseconds since 1970; 0 if it was never said what time it is.
    pub(super) fn unix_ms(&self, now: Nanos) -> u64 {
        let (ms, at) = self.wall;
        match ms {
            0 => 0,
            ms => ms + now.since(at).as_millis() as u64,
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature = self.key.sign(message);
        let bytes = signature.as_ref().try_into();
        bytes.expect("an Ed25519 signature has 64 bytes")
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .finish()
    }
}

/// Whether a signature is of this key.
pub(super) fn verify(key: &[u8; PUBLIC_KEY_BYTES], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key)
        .verify(message, signature)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(key: PrivateKey) -> Credentials {
        let id = |s| PeerId::new(s).unwrap();
        Credentials::new((id("cluster"), id("a")), [1; 16], key, [9; 32])
    }

    #[test]
    fn keys_of_both_forms_sign_and_others_are_refused() {
        // RFC 8032, 7.1, test 1.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let bytes = |hex: &str| -> Vec<u8> {
            let pairs = (0..hex.len()).step_by(2);
            pairs
                .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
                .collect()
        };
        let seed: [u8; 32] = bytes(seed).try_into().unwrap();
        let identity = Identity::new(&credentials(PrivateKey::Seed(seed)), ReactorId(0)).unwrap();
        assert_eq!(identity.public_key().to_vec(), bytes(public));
        let signature = identity.sign(b"");
        assert!(verify(&identity.public_key(), b"", &signature));
        assert!(!verify(&identity.public_key(), b"x", &signature));

        let mut pkcs8 = bytes("302e020100300506032b657004220420");
        pkcs8.extend_from_slice(&seed);
        let again =
            Identity::new(&credentials(PrivateKey::Pkcs8(pkcs8.clone())), ReactorId(0)).unwrap();
        assert_eq!(again.public_key(), identity.public_key());
        pkcs8.pop();
        let bad = Identity::new(&credentials(PrivateKey::Pkcs8(pkcs8)), ReactorId(0));
        assert!(matches!(bad, Err(BadKey)));
    }

    #[test]
    fn nonces_differ_by_count_and_by_reactor() {
        let all = [0, 1].map(|r| {
            let key = PrivateKey::Seed([3; 32]);
            let identity = Identity::new(&credentials(key), ReactorId(r)).unwrap();
            [identity.nonce(), identity.nonce()]
        });
        let distinct: std::collections::BTreeSet<_> = all.iter().flatten().collect();
        assert_eq!(distinct.len(), 4);
    }
}
