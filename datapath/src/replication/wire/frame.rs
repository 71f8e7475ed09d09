//! The header of a frame (`docs/replication.md` §5): what follows, from which epoch, on which channel.

use keelblock_nvme::digest::digest_parts;

use super::WireError;
use super::bytes::Cursor;
use super::hello::Side;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;
/// Most bytes of a body.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Most bytes of data.
pub const DATA_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"KRF1";
/// The checksum covers the header from here on, and the body.
const CHECKED_FROM: usize = 8;
/// Data are whole blocks.
const DATA_UNIT: u32 = 4096;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn of(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// A channel for a volume is asked for.
    Open = 1,
    /// Its answer.
    Opened = 2,
    /// Records of streams.
    Batch = 3,
    /// What of them is written and stable.
    Ack = 4,
    /// A lease is asked for.
    Heartbeat = 5,
    /// Its answer.
    Heard = 6,
    /// What was written shall be stable.
    Flush = 7,
    /// The set, to be kept.
    Set = 8,
    /// It is kept.
    Kept = 9,
    /// A promise of an epoch is asked for.
    Promise = 10,
    /// Its answer.
    Promised = 11,
    /// The unsettled are asked for.
    List = 12,
    /// Its answer.
    Listed = 13,
    /// A whole record is asked for.
    Fetch = 14,
    /// Its answer.
    Fetched = 15,
    /// Blocks are asked for.
    Read = 16,
    /// Its answer.
    ReadDone = 17,
    /// Summaries of the map are asked for.
    AskSummaries = 18,
    /// Its answer.
    Summaries = 19,
    /// Entries of a leaf are asked for.
    AskLeaf = 20,
    /// Its answer.
    Leaf = 21,
    /// Blocks of a resync, or of a repair.
    Copy = 22,
    /// They are applied.
    Copied = 23,
    /// The channel is refused, and ends.
    Refused = 24,
    /// Where streams go on.
    Feed = 25,
    /// A forwarded command.
    Command = 26,
    /// Its completion.
    Done = 27,
    /// The channel ends.
    Close = 28,
    /// Which snapshots exist: others are to be deleted.
    Snapshots = 29,
    /// Those of them that are here.
    Having = 30,
    /// A block is damaged here: it is to be repaired.
    Damaged = 31,
}

impl Kind {
    /// Whether that side of a session may send it. Whoever opened the session is the coordinator of what is replicated over it, or forwards.
    pub fn may_come_from(self, side: Side) -> bool {
        match self {
            Self::Open
            | Self::Batch
            | Self::Heartbeat
            | Self::Flush
            | Self::Set
            | Self::Promise
            | Self::List
            | Self::Fetch
            | Self::Read
            | Self::AskSummaries
            | Self::AskLeaf
            | Self::Copy
            | Self::Feed
            | Self::Snapshots
            | Self::Command => side == Side::Initiator,
            Self::Opened
            | Self::Ack
            | Self::Heard
            | Self::Kept
            | Self::Promised
            | Self::Listed
            | Self::Fetched
            | Self::ReadDone
            | Self::Summaries
            | Self::Leaf
            | Self::Copied
            | Self::Refused
            | Self::Having
            | Self::Damaged
            | Self::Done => side == Side::Acceptor,
            Self::Close => true,
        }
    }

    /// Whether data may follow its body.
    pub fn may_have_data(self) -> bool {
        matches!(
            self,
            Self::Batch | Self::Fetched | Self::ReadDone | Self::Copy | Self::Command | Self::Done
        )
    }
}

/// A header. Lengths are within their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Bytes of the body.
    pub body: u32,
    /// Bytes of data behind it, a multiple of 4096.
    pub data: u32,
    /// Of this frame in its direction, from 1 on.
    pub number: u32,
    /// The volume's number within the session.
    pub channel: u32,
    /// Of the sender: compared in every frame (rule 1).
    pub epoch: u32,
    /// As the frame says it.
    checksum: u32,
}

impl Header {
    /// Writes the header of a frame with this body, and `data` bytes behind it.
    ///
    /// # Panics
    /// If body or data are longer than a frame may be.
    pub fn encode(
        kind: Kind,
        (channel, epoch): (u32, u32),
        number: u32,
        body: &[u8],
        data: usize,
    ) -> [u8; HEADER_BYTES] {
        assert!(body.len() <= BODY_BYTES_MAX, "a body within its bound");
        assert!(data <= DATA_BYTES_MAX, "data within their bound");
        assert!(data.is_multiple_of(DATA_UNIT as usize), "whole blocks");
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        out[12..16].copy_from_slice(&(data as u32).to_le_bytes());
        out[16] = kind as u8;
        out[20..24].copy_from_slice(&number.to_le_bytes());
        out[24..28].copy_from_slice(&channel.to_le_bytes());
        out[28..32].copy_from_slice(&epoch.to_le_bytes());
        let checksum = digest_parts(&[&out[CHECKED_FROM..], body]);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads a header. Its fields are within bounds, and not to be believed before [`Header::check`] has seen the body.
    ///
    /// # Errors
    /// Another magic, an unknown kind, a length beyond its bound, reserved bytes.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let mut c = Cursor::new("frame header", bytes);
        if c.array()? != MAGIC {
            return Err(WireError::Magic { what: "frame" });
        }
        let checksum = c.u32()?;
        let body = c.u32()?;
        let data = c.u32()?;
        let kind = c.u8()?;
        c.zero(3)?;
        let value = |what, value: u32| WireError::Value {
            what,
            value: u64::from(value),
        };
        if body as usize > BODY_BYTES_MAX {
            return Err(value("length of a body", body));
        }
        if data as usize > DATA_BYTES_MAX || !data.is_multiple_of(DATA_UNIT) {
            return Err(value("length of data", data));
        }
        Ok(Self {
            kind: Kind::of(kind).ok_or(value("kind of a frame", u32::from(kind)))?,
            body,
            data,
            number: c.u32()?,
            channel: c.u32()?,
            epoch: c.u32()?,
            checksum,
        })
    }

    /// Looks whether such a frame may come from that side, before anything is read by its lengths.
    ///
    /// # Errors
    /// Its kind is for the other side to send, or has no data.
    pub fn admit(&self, from: Side) -> Result<(), WireError> {
        if !self.kind.may_come_from(from) {
            return Err(WireError::value(
                "kind of a frame from this side",
                self.kind as u8,
            ));
        }
        if self.data != 0 && !self.kind.may_have_data() {
            return Err(WireError::value(
                "length of data, of a kind without,",
                self.data,
            ));
        }
        Ok(())
    }

    /// Compares the checksum of a header and its body.
    ///
    /// # Errors
    /// They are not what was sent.
    pub fn check(&self, header: &[u8; HEADER_BYTES], body: &[u8]) -> Result<(), WireError> {
        let actual = digest_parts(&[&header[CHECKED_FROM..], body]);
        if actual == self.checksum && body.len() == self.body as usize {
            return Ok(());
        }
        Err(WireError::Checksum {
            what: "frame",
            expected: self.checksum,
            actual,
        })
    }
}
