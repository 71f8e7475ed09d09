//! The messages of the handshake (`docs/replication.md` §4): fixed lengths, so that nothing is allocated for a stranger.

use keelblock_nvme::digest::digest;

use super::WireError;
use super::bytes::Cursor;

/// Bytes of a Hello and of an Answer.
pub const HELLO_BYTES: usize = 320;
/// Bytes of a Proof and of a Ready.
pub const PROOF_BYTES: usize = 80;
/// The only version so far.
pub const VERSION: u16 = 1;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// What all four messages begin with.
pub const MAGIC: [u8; 8] = *b"KEELREPL";
/// Where a message says its kind, and that of a Ready: so an initiator knows how long what it hears is.
pub const READY_KIND: (usize, u8) = (12, 4);
/// The checksum stands at 8 and covers what comes behind it.
const CHECKED_FROM: usize = 12;
const NAME_BYTES: usize = 64;

/// Which side says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connects.
    Initiator,
    /// Who accepts.
    Acceptor,
}

/// A cluster's or node's id: 1 to 64 letters, digits, '.', '_' and '-'.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    length: u8,
    bytes: [u8; NAME_BYTES],
}

impl PeerId {
    /// If it is one.
    pub fn new(name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let fits = (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed);
        let source = name.as_bytes();
        fits.then(|| Self {
            length: source.len() as u8,
            bytes: std::array::from_fn(|i| source.get(i).copied().unwrap_or(0)),
        })
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let bytes = &self.bytes[..usize::from(self.length)];
        std::str::from_utf8(bytes).expect("letters, digits, and some signs: ASCII")
    }

    fn put(&self, out: &mut [u8]) {
        out[0] = self.length;
        out[1..].copy_from_slice(&self.bytes);
    }

    fn take(what: &'static str, c: &mut Cursor<'_>) -> Result<Self, WireError> {
        let length = usize::from(c.u8()?);
        let bytes = c.array::<NAME_BYTES>()?;
        let name = bytes
            .get(..length)
            .and_then(|b| std::str::from_utf8(b).ok());
        let name = name.and_then(Self::new).ok_or(WireError::Name { what })?;
        match bytes[length..].iter().all(|&b| b == 0) {
            true => Ok(name),
            false => Err(WireError::Name { what }),
        }
    }
}

impl std::fmt::Debug for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A Hello, or the Answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who says it.
    pub side: Side,
    /// Lowest and highest version that it speaks; in an Answer both are the chosen one.
    pub versions: (u16, u16),
    /// Asked for, or serving.
    pub reactor: u16,
    /// Bits; none are defined.
    pub features: u32,
    /// The cluster.
    pub cluster: PeerId,
    /// Who it is.
    pub from: PeerId,
    /// Whom it means.
    pub to: PeerId,
    /// Of its data-path process.
    pub incarnation: [u8; 16],
    /// Rises with each session of this process, reactor and peer.
    pub session: u64,
    /// For messages to people.
    pub unix_ms: u64,
    /// Random.
    pub nonce: [u8; 32],
}

impl Hello {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[12] = match self.side {
            Side::Initiator => 1,
            Side::Acceptor => 2,
        };
        out[14..16].copy_from_slice(&self.versions.0.to_le_bytes());
        out[16..18].copy_from_slice(&self.versions.1.to_le_bytes());
        out[18..20].copy_from_slice(&self.reactor.to_le_bytes());
        out[20..24].copy_from_slice(&self.features.to_le_bytes());
        self.cluster.put(&mut out[24..89]);
        self.from.put(&mut out[89..154]);
        self.to.put(&mut out[154..219]);
        out[224..240].copy_from_slice(&self.incarnation);
        out[240..248].copy_from_slice(&self.session.to_le_bytes());
        out[248..256].copy_from_slice(&self.unix_ms.to_le_bytes());
        out[256..288].copy_from_slice(&self.nonce);
        seal(&mut out);
        out
    }

    /// Reads one of this side.
    ///
    /// # Errors
    /// What no such message is. Whether its version, cluster and node are right is not looked at here.
    pub fn decode(bytes: &[u8; HELLO_BYTES], side: Side) -> Result<Self, WireError> {
        let mut c = open("hello", bytes)?;
        let kind = c.u8()?;
        let expected = match side {
            Side::Initiator => 1,
            Side::Acceptor => 2,
        };
        if kind != expected {
            return Err(unexpected(kind));
        }
        c.zero(1)?;
        let versions = (c.u16()?, c.u16()?);
        if versions.0 > versions.1 {
            return Err(WireError::Value {
                what: "lowest version",
                value: u64::from(versions.0),
            });
        }
        let reactor = c.u16()?;
        let features = c.u32()?;
        let cluster = PeerId::take("cluster id", &mut c)?;
        let from = PeerId::take("node id of the sender", &mut c)?;
        let to = PeerId::take("node id of the receiver", &mut c)?;
        c.zero(5)?;
        let hello = Self {
            side,
            versions,
            reactor,
            features,
            cluster,
            from,
            to,
            incarnation: c.array()?,
            session: c.u64()?,
            unix_ms: c.u64()?,
            nonce: c.array()?,
        };
        c.zero(32)?;
        Ok(hello)
    }

    /// The highest version that both speak.
    pub fn common_version(&self, other: (u16, u16)) -> Option<u16> {
        let low = self.versions.0.max(other.0);
        let high = self.versions.1.min(other.1);
        (low <= high).then_some(high)
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Why a session is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Refusal { $($(#[$doc])* $name = $number,)* }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn of(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

refusals! {
    /// No version is common.
    Version = 1,
    /// Another cluster.
    Cluster = 2,
    /// Another node is meant, or the sender is not known.
    Node = 3,
    /// The signature is not that node's.
    Signature = 4,
    /// A newer session is there, or too many handshakes are.
    Busy = 5,
    /// The list of nodes is not there yet.
    NotYet = 6,
}

/// The last two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The initiator's signature.
    Initiator([u8; SIGNATURE_BYTES]),
    /// The acceptor's, or why not.
    Ready(Result<[u8; SIGNATURE_BYTES], Refusal>),
}

impl Proof {
    /// Its bytes.
    pub fn encode(&self) -> [u8; PROOF_BYTES] {
        let mut out = [0; PROOF_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        let (kind, refusal, signature) = match self {
            Self::Initiator(s) => (3, 0, Some(s)),
            Self::Ready(Ok(s)) => (4, 0, Some(s)),
            Self::Ready(Err(r)) => (4, *r as u8, None),
        };
        out[12] = kind;
        out[13] = refusal;
        if let Some(s) = signature {
            out[16..].copy_from_slice(s);
        }
        seal(&mut out);
        out
    }

    /// Reads one of this side.
    ///
    /// # Errors
    /// What no such message is. The signature is not looked at here.
    pub fn decode(bytes: &[u8; PROOF_BYTES], side: Side) -> Result<Self, WireError> {
        let mut c = open("proof", bytes)?;
        let kind = c.u8()?;
        match (side, kind) {
            (Side::Initiator, 3) => {
                c.zero(3)?;
                Ok(Self::Initiator(c.array()?))
            }
            (Side::Acceptor, 4) => {
                let refusal = c.u8()?;
                c.zero(2)?;
                if refusal == 0 {
                    return Ok(Self::Ready(Ok(c.array()?)));
                }
                let known = Refusal::of(refusal).ok_or(WireError::Value {
                    what: "refusal",
                    value: u64::from(refusal),
                })?;
                c.zero(SIGNATURE_BYTES)?;
                Ok(Self::Ready(Err(known)))
            }
            _ => Err(unexpected(kind)),
        }
    }
}

fn unexpected(kind: u8) -> WireError {
    WireError::Value {
        what: "kind of a message of the handshake",
        value: u64::from(kind),
    }
}

fn seal(out: &mut [u8]) {
    let checksum = digest(&out[CHECKED_FROM..]);
    out[8..12].copy_from_slice(&checksum.to_le_bytes());
}

/// Behind magic and checksum, if they match.
fn open<'a>(what: &'static str, bytes: &'a [u8]) -> Result<Cursor<'a>, WireError> {
    let mut c = Cursor::new(what, bytes);
    if c.array()? != MAGIC {
        return Err(WireError::Magic { what });
    }
    let expected = c.u32()?;
    let actual = digest(&bytes[CHECKED_FROM..]);
    if expected != actual {
        return Err(WireError::Checksum {
            what,
            expected,
            actual,
        });
    }
    Ok(c)
}
