//! Whatever comes over the network: nothing panics, forged datagrams change nothing, and what is encoded is read back.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Codec, Header, Member, Message, State};
use proptest::prelude::*;
use uuid::Uuid;

use crate::gossip::engine::Engine;
use crate::gossip::peer::Peer;
use crate::gossip::seal::{MESSAGE_MAX, Seal};
use crate::gossip::stats::{NodeStats, PoolStats};
use crate::gossip::wire::Wire;

fn seal(secret: &[u8], session: u64) -> Seal {
    Seal::new(secret, "c", b"", session)
}

fn engine() -> Engine {
    let me = Peer::new("n1", 5, "10.0.0.1:9023".parse().unwrap());
    let mut engine = Engine::new(me, seal(b"secret", 1), 7);
    engine.know(vec![("n2".into(), "10.0.0.2:9023".parse().unwrap())]);
    engine
}

fn peers() -> impl Strategy<Value = Peer> {
    let address = prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
    ];
    let ids = prop_oneof!["n[1-4]", "[a-zäß]{1,30}"];
    (ids, any::<u64>(), address)
        .prop_map(|(id, generation, address)| Peer::new(&id, generation, address))
}

fn messages() -> impl Strategy<Value = Message<Peer>> {
    (0..11u8, any::<u8>(), peers()).prop_map(|(kind, probe_number, peer)| match kind {
        0 => Message::Ping(probe_number),
        1 => Message::Ack(probe_number),
        2 => Message::PingReq {
            target: peer,
            probe_number,
        },
        3 => Message::IndirectPing {
            origin: peer,
            probe_number,
        },
        4 => Message::IndirectAck {
            target: peer,
            probe_number,
        },
        5 => Message::ForwardedAck {
            origin: peer,
            probe_number,
        },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::Broadcast,
        _ => Message::TurnUndead,
    })
}

prop_compose! {
    fn headers()(src in peers(), dst in peers(), src_incarnation: u16, message in messages()) -> Header<Peer> {
        Header { src, src_incarnation, dst, message }
    }
}

prop_compose! {
    fn members()(id in peers(), incarnation: u16, state in 0..3u8) -> Member<Peer> {
        let state = [State::Alive, State::Suspect, State::Down][usize::from(state)];
        Member::new(id, incarnation, state)
    }
}

prop_compose! {
    fn stats()(node_id in "[a-zäß]{1,30}", version in "[0-9.]{0,32}", datapath_up: bool, load_permille: u16,
               numbers: [u64; 7], small: [u32; 4], cores: u16,
               pools in prop::collection::vec(any::<(u128, u64, u64)>(), 0..=16)) -> NodeStats {
        let [generation, sequence, memory_total, memory_free, memory_used, read_bytes, written_bytes] = numbers;
        let [cpu_permille, reads, writes, coordinated] = small;
        let pool = |(id, total_bytes, used_bytes)| PoolStats { pool_id: Uuid::from_u128(id), total_bytes, used_bytes };
        NodeStats {
            node_id, version, datapath_up, load_permille, generation, sequence, memory_total, memory_free, memory_used,
            read_bytes, written_bytes, cpu_permille, reads, writes, coordinated, cores, machine_permille: load_permille / 2,
            pools: pools.into_iter().map(pool).collect(),
        }
    }
}

proptest! {
    #[test]
    fn headers_and_members_are_read_back(header in headers(), member in members()) {
        let mut bytes = Vec::new();
        Wire.encode_header(&header, &mut bytes).unwrap();
        let length = bytes.len();
        Wire.encode_member(&member, &mut bytes).unwrap();
        let mut rest = &bytes[..];
        prop_assert_eq!(Wire.decode_header(&mut rest).unwrap(), header);
        prop_assert_eq!(rest.len(), bytes.len() - length);
        prop_assert_eq!(Wire.decode_member(&mut rest).unwrap(), member);
        prop_assert!(rest.is_empty());
        for end in 0..length {
            prop_assert!(Wire.decode_header(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn statistics_are_read_back_and_nothing_shorter_is(stats in stats()) {
        let bytes = stats.encode();
        prop_assert!(bytes.len() <= MESSAGE_MAX / 2 + 32);
        prop_assert_eq!(NodeStats::decode(&bytes), Ok(Some(stats)));
        for end in 0..bytes.len() {
            prop_assert!(NodeStats::decode(&bytes[..end]).is_err());
        }
        let mut later = bytes;
        later[0] = 2;
        prop_assert_eq!(NodeStats::decode(&later), Ok(None));
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        let mut engine = engine();
        engine.receive(Duration::ZERO, &bytes);
        prop_assert_eq!(engine.counts().received, 0);
        let _ = NodeStats::decode(&bytes);
    }

    #[test]
    fn who_has_not_the_secret_changes_nothing(header in headers(), known in prop::collection::vec(members(), 0..4), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut message = Vec::new();
        Wire.encode_header(&header, &mut message).unwrap();
        message.extend((known.len() as u16).to_be_bytes());
        for member in &known {
            Wire.encode_member(member, &mut message).unwrap();
        }
        let mut engine = engine();
        engine.receive(Duration::ZERO, &seal(b"another", 2).close(&message));
        let mut changed = seal(b"secret", 2).close(&message);
        let at = at.index(changed.len());
        changed[at] ^= 1 << bit;
        engine.receive(Duration::ZERO, &changed);
        prop_assert_eq!(engine.members().count(), 0);
        prop_assert_eq!(engine.counts().received, 0);
        prop_assert_eq!(engine.counts().refused.iter().sum::<u64>(), 2);
        prop_assert!(engine.take_out().is_empty());
    }

    /// Somebody who has the secret may send anything: this process goes on.
    #[test]
    fn whatever_is_signed_nothing_panics(
        said in prop::collection::vec((headers(), any::<bool>(), prop::collection::vec(members(), 0..4), prop::collection::vec(any::<u8>(), 0..64), 0..3u64), 1..24),
    ) {
        let mut engine = engine();
        let mut other = seal(b"secret", 2);
        let mut now = Duration::ZERO;
        for (mut header, to_me, known, rest, seconds) in said {
            if to_me {
                header.dst = engine.me().clone();
            }
            let mut message = Vec::new();
            Wire.encode_header(&header, &mut message).unwrap();
            message.extend((known.len() as u16).to_be_bytes());
            for member in &known {
                Wire.encode_member(member, &mut message).unwrap();
            }
            message.extend(rest);
            engine.receive(now, &other.close(&message));
            now += Duration::from_secs(seconds);
            engine.tick(now);
            for (_, datagram) in engine.take_out() {
                prop_assert!(datagram.len() <= 1400);
            }
        }
        prop_assert!(engine.next() > now);
    }
}
