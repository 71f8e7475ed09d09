//! The four messages (`docs/replication.md` §4): who is there, when a session begins.
//!
//! [`initiate`] is one side. The other is in three parts, as the second and third run on the reactor that was asked for: [`hear`], [`look`] and [`prove`]. What is
//! refused is told in a Ready without a signature.

use crate::reactor::{Handle, NetError, Socket};
use crate::replication::wire::WireError;
use crate::replication::wire::hello::{
    HELLO_BYTES, Hello, MAGIC, PROOF_BYTES, PeerId, Proof, READY_KIND, Refusal, Side,
};

use super::down::NoSession;
use super::identity::{Identity, PUBLIC_KEY_BYTES, verify};
use super::limits::HANDSHAKE_TIME;
use super::state::Info;

/// What the signatures begin with, so that neither is good for anything else.
const INITIATOR: &[u8] = b"keel-repl-1 initiator";
const ACCEPTOR: &[u8] = b"keel-repl-1 acceptor";

/// Receives all of `buf`.
async fn fill(socket: &Socket, buf: &mut [u8]) -> Result<(), NoSession> {
    let mut got = 0;
    while got < buf.len() {
        match socket.recv(&mut buf[got..]).await? {
            0 => return Err(NoSession::Closed),
            n => got += n,
        }
    }
    Ok(())
}

fn hello(identity: &Identity, handle: &Handle, peer: PeerId) -> Hello {
    Hello {
        side: Side::Initiator,
        versions: identity.versions,
        reactor: handle.id().0,
        features: 0,
        cluster: identity.cluster,
        from: identity.node,
        to: peer,
        incarnation: identity.incarnation,
        session: identity.next_session(peer),
        unix_ms: identity.unix_ms(handle.now()),
        nonce: identity.nonce(),
    }
}

/// Connects to a node and makes a session with it. Takes [`HANDSHAKE_TIME`] at most.
pub(super) async fn initiate(
    handle: &Handle,
    identity: &Identity,
    node: PeerId,
) -> Result<(Socket, Info), NoSession> {
    let peer = identity.peer(&node).ok_or(NoSession::Unknown)?;
    let hello = hello(identity, handle, node);
    let all = async {
        let socket = handle.connect(peer.address).await?;
        let (incarnation, version) = converse(&socket, identity, &hello, &peer.key).await?;
        let info = Info {
            peer: node,
            incarnation,
            address: peer.address,
            reactor: hello.reactor,
            number: hello.session,
            version,
            key: peer.key,
        };
        Ok((socket, info))
    };
    match handle.timeout(HANDSHAKE_TIME, all).await {
        Ok(result) => result,
        Err(_) => Err(NoSession::Late),
    }
}

/// The initiator's side; returns the acceptor's incarnation and the version.
async fn converse(
    socket: &Socket,
    identity: &Identity,
    hello: &Hello,
    key: &[u8; PUBLIC_KEY_BYTES],
) -> Result<([u8; 16], u16), NoSession> {
    let said = hello.encode();
    socket.send_all(&said).await?;
    // A refusal is shorter than an Answer: its length first.
    let mut heard = [0; HELLO_BYTES];
    fill(socket, &mut heard[..PROOF_BYTES]).await?;
    if heard[READY_KIND.0] == READY_KIND.1 {
        let mut ready = [0; PROOF_BYTES];
        ready.copy_from_slice(&heard[..PROOF_BYTES]);
        return Err(match Proof::decode(&ready, Side::Acceptor)? {
            Proof::Ready(Err(refusal)) => NoSession::Refused(refusal),
            _ => NoSession::Answer("kind"),
        });
    }
    fill(socket, &mut heard[PROOF_BYTES..]).await?;
    let answer = Hello::decode(&heard, Side::Acceptor)?;
    check_answer(hello, &answer).map_err(NoSession::Answer)?;
    let signed = [INITIATOR, &said, &heard].concat();
    let proof = Proof::Initiator(identity.sign(&signed)).encode();
    socket.send_all(&proof).await?;
    let mut ready = [0; PROOF_BYTES];
    fill(socket, &mut ready).await?;
    match Proof::decode(&ready, Side::Acceptor)? {
        Proof::Ready(Ok(signature)) => {
            let signed = [ACCEPTOR, &said, &heard, &proof].concat();
            match verify(key, &signed, &signature) {
                true => Ok((answer.incarnation, answer.versions.0)),
                false => Err(NoSession::Signature),
            }
        }
        Proof::Ready(Err(refusal)) => Err(NoSession::Refused(refusal)),
        Proof::Initiator(_) => Err(NoSession::Answer("kind")),
    }
}

/// Whether it is an answer to what we said.
fn check_answer(hello: &Hello, answer: &Hello) -> Result<(), &'static str> {
    let (low, high) = answer.versions;
    let all = [
        (
            "version",
            low == high && hello.versions.0 <= low && low <= hello.versions.1,
        ),
        ("set of features", answer.features & !hello.features == 0),
        ("cluster", answer.cluster == hello.cluster),
        ("sender", answer.from == hello.to),
        ("receiver", answer.to == hello.from),
        ("session", answer.session == hello.session),
    ];
    match all.iter().find(|(_, right)| !right) {
        Some((what, _)) => Err(what),
        None => Ok(()),
    }
}

/// Receives a Hello. Nothing is allocated before its magic and its checksum are known to be right.
pub(super) async fn hear(socket: &Socket) -> Result<[u8; HELLO_BYTES], NoSession> {
    let mut heard = [0; HELLO_BYTES];
    // Whoever speaks another protocol need not be listened to any longer.
    fill(socket, &mut heard[..MAGIC.len()]).await?;
    if heard[..MAGIC.len()] != MAGIC {
        return Err(WireError::Magic { what: "hello" }.into());
    }
    fill(socket, &mut heard[MAGIC.len()..]).await?;
    Hello::decode(&heard, Side::Initiator)?;
    Ok(heard)
}

/// Whether this Hello is one that we answer, and in which version.
pub(super) fn look(identity: &Identity, hello: &Hello) -> Result<u16, Refusal> {
    let version = hello.common_version(identity.versions);
    let version = version.ok_or(Refusal::Version)?;
    if hello.cluster != identity.cluster {
        return Err(Refusal::Cluster);
    }
    if hello.to != identity.node {
        return Err(Refusal::Node);
    }
    if !identity.has_peers() {
        return Err(Refusal::NotYet);
    }
    match identity.peer(&hello.from) {
        Some(_) => Ok(version),
        None => Err(Refusal::Node),
    }
}

/// Who has proved to be there, and the Ready that will say so.
pub(super) struct Proven {
    pub(super) hello: Hello,
    pub(super) version: u16,
    pub(super) key: [u8; PUBLIC_KEY_BYTES],
    pub(super) ready: [u8; PROOF_BYTES],
}

/// Answers a Hello, and lets its sender prove who it is.
pub(super) async fn prove(
    handle: &Handle,
    identity: &Identity,
    socket: &Socket,
    heard: &[u8; HELLO_BYTES],
) -> Result<Proven, NoSession> {
    let hello = Hello::decode(heard, Side::Initiator)?;
    let version = look(identity, &hello).map_err(NoSession::Refusing)?;
    let answer = Hello {
        side: Side::Acceptor,
        versions: (version, version),
        reactor: handle.id().0,
        features: 0,
        cluster: identity.cluster,
        from: identity.node,
        to: hello.from,
        incarnation: identity.incarnation,
        session: hello.session,
        unix_ms: identity.unix_ms(handle.now()),
        nonce: identity.nonce(),
    };
    let said = answer.encode();
    socket.send_all(&said).await?;
    let mut proof = [0; PROOF_BYTES];
    fill(socket, &mut proof).await?;
    let Proof::Initiator(signature) = Proof::decode(&proof, Side::Initiator)? else {
        return Err(NoSession::Answer("kind"));
    };
    // Its key may have changed since: the one of now counts.
    let known = identity.peer(&hello.from);
    let signed = [INITIATOR, heard.as_slice(), &said].concat();
    let right = known.filter(|peer| verify(&peer.key, &signed, &signature));
    let key = right.ok_or(NoSession::Refusing(Refusal::Signature))?.key;
    let signed = [ACCEPTOR, heard.as_slice(), &said, &proof].concat();
    let ready = Proof::Ready(Ok(identity.sign(&signed))).encode();
    Ok(Proven {
        hello,
        version,
        key,
        ready,
    })
}

/// Says no, if it is a refusal that is told.
pub(super) fn refuse(socket: &Socket, why: &NoSession) {
    if let NoSession::Refusing(refusal) = why {
        let ready = Proof::Ready(Err(*refusal)).encode();
        // 80 bytes find room, or nobody listens.
        let _: Result<usize, NetError> = socket.try_send(&[std::io::IoSlice::new(&ready)]);
    }
}
