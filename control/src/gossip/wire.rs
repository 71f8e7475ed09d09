//! Bytes of identities, members and messages (`docs/gossip.md`, A datagram).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};

use super::peer::{ID_MAX, Peer};

/// Why bytes are no message, or do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They end too early.
    #[error("it ends in the middle of {0}")]
    Ends(&'static str),
    /// A value that there is none of.
    #[error("it has {0} {1}")]
    Value(&'static str, u64),
    /// An id that is none.
    #[error("it has a node id that is empty, too long or no text")]
    Id,
    /// No room for it.
    #[error("there is no room for it")]
    Full,
}

/// The codec. It has no state.
#[derive(Debug, Clone, Copy)]
pub struct Wire;

fn need(buf: &impl Buf, bytes: usize, what: &'static str) -> Result<(), WireError> {
    match buf.remaining() >= bytes {
        true => Ok(()),
        false => Err(WireError::Ends(what)),
    }
}

fn room(buf: &impl BufMut, bytes: usize) -> Result<(), WireError> {
    match buf.remaining_mut() >= bytes {
        true => Ok(()),
        false => Err(WireError::Full),
    }
}

/// Bytes of an identity without its id.
const PEER_FIXED: usize = 8 + 1 + 16 + 2 + 1;

fn peer_len(peer: &Peer) -> usize {
    PEER_FIXED + peer.id.len()
}

fn put_peer(peer: &Peer, buf: &mut impl BufMut) -> Result<(), WireError> {
    let length = u8::try_from(peer.id.len())
        .ok()
        .filter(|n| (1..=ID_MAX).contains(&usize::from(*n)));
    let length = length.ok_or(WireError::Id)?;
    room(buf, peer_len(peer))?;
    buf.put_u64_le(peer.generation);
    let mut at = [0; 16];
    match peer.address.ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(4);
            at[..4].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6);
            at = ip.octets();
        }
    }
    buf.put_slice(&at);
    buf.put_u16_le(peer.address.port());
    buf.put_u8(length);
    buf.put_slice(peer.id.as_bytes());
    Ok(())
}

fn get_peer(buf: &mut impl Buf) -> Result<Peer, WireError> {
    need(buf, PEER_FIXED, "an identity")?;
    let generation = buf.get_u64_le();
    let family = buf.get_u8();
    let mut at = [0; 16];
    buf.copy_to_slice(&mut at);
    let port = buf.get_u16_le();
    let length = usize::from(buf.get_u8());
    let ip = match family {
        4 => IpAddr::V4(Ipv4Addr::new(at[0], at[1], at[2], at[3])),
        6 => IpAddr::V6(Ipv6Addr::from(at)),
        other => return Err(WireError::Value("an address of family", other.into())),
    };
    if length == 0 || length > ID_MAX {
        return Err(WireError::Id);
    }
    need(buf, length, "a node id")?;
    let mut id = [0; ID_MAX];
    let id = &mut id[..length];
    buf.copy_to_slice(id);
    let id = std::str::from_utf8(id).map_err(|_| WireError::Id)?;
    Ok(Peer::new(id, generation, SocketAddr::new(ip, port)))
}

/// Kind, number of the probe, and whom it is about.
type Parts<'a> = (u8, Option<u8>, Option<&'a Peer>);

fn parts(message: &Message<Peer>) -> Parts<'_> {
    match message {
        Message::Ping(number) => (0, Some(*number), None),
        Message::Ack(number) => (1, Some(*number), None),
        Message::PingReq {
            target,
            probe_number,
        } => (2, Some(*probe_number), Some(target)),
        Message::IndirectPing {
            origin,
            probe_number,
        } => (3, Some(*probe_number), Some(origin)),
        Message::IndirectAck {
            target,
            probe_number,
        } => (4, Some(*probe_number), Some(target)),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => (5, Some(*probe_number), Some(origin)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    }
}

fn get_message(buf: &mut impl Buf) -> Result<Message<Peer>, WireError> {
    need(buf, 1, "a header")?;
    let kind = buf.get_u8();
    if kind >= 6 {
        return match kind {
            6 => Ok(Message::Announce),
            7 => Ok(Message::Feed),
            8 => Ok(Message::Gossip),
            9 => Ok(Message::Broadcast),
            10 => Ok(Message::TurnUndead),
            other => Err(WireError::Value("a message of kind", other.into())),
        };
    }
    need(buf, 1, "a header")?;
    let probe_number = buf.get_u8();
    Ok(match kind {
        0 => Message::Ping(probe_number),
        1 => Message::Ack(probe_number),
        2 => Message::PingReq {
            target: get_peer(buf)?,
            probe_number,
        },
        3 => Message::IndirectPing {
            origin: get_peer(buf)?,
            probe_number,
        },
        4 => Message::IndirectAck {
            target: get_peer(buf)?,
            probe_number,
        },
        _ => Message::ForwardedAck {
            origin: get_peer(buf)?,
            probe_number,
        },
    })
}

impl Codec<Peer> for Wire {
    type Error = WireError;

    fn encode_header(
        &mut self,
        header: &Header<Peer>,
        mut buf: impl BufMut,
    ) -> Result<(), WireError> {
        put_peer(&header.src, &mut buf)?;
        room(&buf, 2)?;
        buf.put_u16_le(header.src_incarnation);
        put_peer(&header.dst, &mut buf)?;
        let (kind, number, about) = parts(&header.message);
        room(&buf, 2)?;
        buf.put_u8(kind);
        if let Some(number) = number {
            buf.put_u8(number);
        }
        about.map_or(Ok(()), |peer| put_peer(peer, &mut buf))
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Peer>, WireError> {
        let src = get_peer(&mut buf)?;
        need(&buf, 2, "a header")?;
        Ok(Header {
            src,
            src_incarnation: buf.get_u16_le(),
            dst: get_peer(&mut buf)?,
            message: get_message(&mut buf)?,
        })
    }

    fn encode_member(
        &mut self,
        member: &Member<Peer>,
        mut buf: impl BufMut,
    ) -> Result<(), WireError> {
        // All or nothing.
        room(&buf, peer_len(member.id()) + 3)?;
        put_peer(member.id(), &mut buf)?;
        buf.put_u16_le(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Peer>, WireError> {
        let peer = get_peer(&mut buf)?;
        need(&buf, 3, "a member")?;
        let incarnation = buf.get_u16_le();
        let state = match buf.get_u8() {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            other => return Err(WireError::Value("a member of state", other.into())),
        };
        Ok(Member::new(peer, incarnation, state))
    }
}
