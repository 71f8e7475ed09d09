//! Any frame (`docs/replication.md` §5): header and body to what they say.

use super::WireError;
use super::ack::Ack;
use super::batch::Batch;
use super::bytes::Cursor;
use super::damaged::Damaged;
use super::forward::{Command, Done};
use super::frame::{Header, Kind};
use super::heart::{Flush, Heard, Heartbeat};
use super::hello::Side;
use super::list::{Fetch, Fetched, ListAsk, Listed};
use super::open::{Feed, Open, Opened};
use super::promise::{Kept, Promise, Promised, Set};
use super::read::{Read, ReadDone};
use super::refused::Refused;
use super::resync::{AskLeaf, AskSummaries, Copied, Copy, Leaf, Summaries};
use super::snapshots::{Having, Snapshots};

macro_rules! messages {
    ($($name:ident($of:ty),)*) => {
        /// What a frame says.
        #[derive(Clone, Copy, Debug)]
        pub enum Message<'a> {
            $(#[doc = concat!("Frame `", stringify!($name), "`.")] $name($of),)*
            /// The channel ends.
            Close,
        }

        impl Message<'_> {
            /// Of which kind its frame is.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$name(_) => Kind::$name,)*
                    Self::Close => Kind::Close,
                }
            }
        }
    };
}

messages! {
    Open(Open),
    Opened(Opened<'a>),
    Batch(Batch<'a>),
    Ack(Ack<'a>),
    Heartbeat(Heartbeat<'a>),
    Heard(Heard),
    Flush(Flush),
    Set(Set<'a>),
    Kept(Kept),
    Promise(Promise),
    Promised(Promised<'a>),
    List(ListAsk),
    Listed(Listed<'a>),
    Fetch(Fetch),
    Fetched(Fetched<'a>),
    Read(Read),
    ReadDone(ReadDone<'a>),
    AskSummaries(AskSummaries),
    Summaries(Summaries<'a>),
    AskLeaf(AskLeaf),
    Leaf(Leaf<'a>),
    Copy(Copy<'a>),
    Copied(Copied),
    Refused(Refused),
    Feed(Feed<'a>),
    Command(Command),
    Done(Done),
    Snapshots(Snapshots<'a>),
    Having(Having<'a>),
    Damaged(Damaged),
}

impl<'a> Message<'a> {
    /// Reads what a frame from that side says. Its checksum is looked at by [`Header::check`], before.
    ///
    /// # Errors
    /// What no such frame of this version is.
    pub fn decode(header: &Header, body: &'a [u8], from: Side) -> Result<Self, WireError> {
        header.admit(from)?;
        let data = header.data as usize;
        Ok(match header.kind {
            Kind::Open => Self::Open(Open::decode(body)?),
            Kind::Opened => Self::Opened(Opened::decode(body)?),
            Kind::Batch => Self::Batch(Batch::decode(body, data)?),
            Kind::Ack => Self::Ack(Ack::decode(body)?),
            Kind::Heartbeat => Self::Heartbeat(Heartbeat::decode(body)?),
            Kind::Heard => Self::Heard(Heard::decode(body)?),
            Kind::Flush => Self::Flush(Flush::decode(body)?),
            Kind::Set => Self::Set(Set::decode(body)?),
            Kind::Kept => Self::Kept(Kept::decode(body)?),
            Kind::Promise => Self::Promise(Promise::decode(body)?),
            Kind::Promised => Self::Promised(Promised::decode(body)?),
            Kind::List => Self::List(ListAsk::decode(body)?),
            Kind::Listed => Self::Listed(Listed::decode(body)?),
            Kind::Fetch => Self::Fetch(Fetch::decode(body)?),
            Kind::Fetched => Self::Fetched(Fetched::decode(body, data)?),
            Kind::Read => Self::Read(Read::decode(body)?),
            Kind::ReadDone => Self::ReadDone(ReadDone::decode(body, data)?),
            Kind::AskSummaries => Self::AskSummaries(AskSummaries::decode(body)?),
            Kind::Summaries => Self::Summaries(Summaries::decode(body)?),
            Kind::AskLeaf => Self::AskLeaf(AskLeaf::decode(body)?),
            Kind::Leaf => Self::Leaf(Leaf::decode(body)?),
            Kind::Copy => Self::Copy(Copy::decode(body, data)?),
            Kind::Copied => Self::Copied(Copied::decode(body)?),
            Kind::Refused => Self::Refused(Refused::decode(body)?),
            Kind::Feed => Self::Feed(Feed::decode(body)?),
            Kind::Command => Self::Command(Command::decode(body, data)?),
            Kind::Done => Self::Done(Done::decode(body, data)?),
            Kind::Snapshots => Self::Snapshots(Snapshots::decode(body)?),
            Kind::Having => Self::Having(Having::decode(body)?),
            Kind::Damaged => Self::Damaged(Damaged::decode(body)?),
            Kind::Close => {
                Cursor::new("close", body).end()?;
                Self::Close
            }
        })
    }
}
