//! Who is not who they say, speaks something else, or says nothing, gets no session, costs nobody else theirs, and is told why if it can be told.

use std::net::SocketAddr;

use super::super::handshake::{hear, initiate};
use super::super::identity::PUBLIC_KEY_BYTES;
use super::super::limits::HANDSHAKES_MAX;
use super::super::rig::{Events, Rig, address, credentials, name, peer};
use super::super::state::Info;
use super::*;
use crate::reactor::{Handle as Reactor, Socket};
use crate::replication::wire::hello::{
    HELLO_BYTES, Hello, PROOF_BYTES, PeerId, Proof, Refusal, Side, VERSION,
};

/// Node 1 accepts, node 0 has a link to it, node 2 is there for others.
fn with_acceptor(seed: u64) -> (Rig, Acceptor, Link) {
    let rig = Rig::new(seed, 3, 1);
    let acceptor = rig.accept(1, |_| Rc::new(Takers::default())).remove(0);
    let link = rig.link((0, 0), 1, Rc::new(Events::default()));
    rig.until(SECOND, "a session", || link.session().is_some());
    (rig, acceptor, link)
}

/// An attempt of node 2, with credentials and a list of nodes that may be wrong.
fn attempt(rig: &Rig, credentials: &Credentials, to: (PeerId, Peer)) -> Result<Info, NoSession> {
    let handle = rig.handle(2, 0);
    let identity = Identity::new(credentials, handle.id()).unwrap();
    identity.set_peers([to].into());
    let on = handle.clone();
    let outcome = async move { initiate(&on, &identity, to.0).await.map(|(_, info)| info) };
    rig.sim
        .run(&handle, 10 * SECOND, outcome)
        .expect("an end within 10 s")
}

/// How many did not get in for this reason.
fn check(acceptor: &Acceptor, link: &Link, why: &str) {
    assert_eq!(acceptor.counts().handshakes_failed(why), 1, "{why}");
    assert!(link.session().is_some(), "{why}: another session ended");
    assert_eq!(acceptor.handshakes(), 0);
}

#[test]
fn each_refusal_is_told_and_counted() {
    let right = (name(1), peer(1, address(1)));
    let id = |s| PeerId::new(s).unwrap();
    type Spoil = fn(&mut Credentials);
    let spoilt: [(Spoil, Refusal, &str); 5] = [
        (
            |c| c.cluster = PeerId::new("other").unwrap(),
            Refusal::Cluster,
            "cluster",
        ),
        (
            |c| c.versions = (VERSION + 1, VERSION + 2),
            Refusal::Version,
            "version",
        ),
        (
            |c| c.node = PeerId::new("stranger").unwrap(),
            Refusal::Node,
            "node",
        ),
        (
            |c| c.key = PrivateKey::Seed([99; 32]),
            Refusal::Signature,
            "signature",
        ),
        // Says it is node 0, whose key it has not.
        (
            |c| c.node = PeerId::new("n0").unwrap(),
            Refusal::Signature,
            "signature",
        ),
    ];
    for (seed, (spoil, refusal, why)) in (0..).zip(spoilt) {
        let (rig, acceptor, link) = with_acceptor(seed);
        let mut credentials = credentials(2, 0);
        assert!(attempt(&rig, &credentials, right).is_ok(), "seed {seed}");
        spoil(&mut credentials);
        let outcome = attempt(&rig, &credentials, right);
        assert_eq!(outcome, Err(NoSession::Refused(refusal)), "seed {seed}");
        check(&acceptor, &link, why);
    }
    // Another node is meant than the one that listens there.
    let (rig, acceptor, link) = with_acceptor(10);
    let outcome = attempt(&rig, &credentials(2, 0), (id("n7"), right.1));
    assert_eq!(outcome, Err(NoSession::Refused(Refusal::Node)));
    check(&acceptor, &link, "node");
}

#[test]
fn an_acceptor_without_a_list_of_nodes_says_not_yet() {
    let rig = Rig::new(11, 3, 1);
    let handle = rig.handle(1, 0);
    let identity = Rc::new(Identity::new(&credentials(1, 0), handle.id()).unwrap());
    let end = crate::reactor::mesh(1).remove(0);
    let service = Rc::new(Takers::default());
    let acceptor = Acceptor::start(&handle, identity.clone(), end, address(1), service).unwrap();
    let right = (name(1), peer(1, address(1)));
    let outcome = attempt(&rig, &credentials(2, 0), right);
    assert_eq!(outcome, Err(NoSession::Refused(Refusal::NotYet)));
    assert_eq!(acceptor.counts().handshakes_failed("not yet"), 1);
    identity.set_peers([(name(2), peer(2, address(2)))].into());
    assert!(attempt(&rig, &credentials(2, 0), right).is_ok());
}

#[test]
fn an_initiator_believes_only_the_node_that_it_called() {
    let (rig, acceptor, _) = with_acceptor(12);
    let mut other = peer(1, address(1));
    other.key = [7; PUBLIC_KEY_BYTES];
    let outcome = attempt(&rig, &credentials(2, 0), (name(1), other));
    assert_eq!(outcome, Err(NoSession::Signature));
    // It was accepted there, and is closed from here before a frame was sent.
    rig.sim.run_for(SECOND);
    assert_eq!(acceptor.sessions().len(), 1);
    let unknown = attempt(&rig, &credentials(2, 0), (name(2), peer(2, address(2))));
    assert!(matches!(unknown, Err(NoSession::Net(_))), "{unknown:?}");
}

/// What the acceptor says to these bytes, until it closes or 10 s have passed.
async fn say(on: &Reactor, bytes: &[u8], then: Option<Duration>) -> Vec<u8> {
    let socket = on.connect(address(1)).await.unwrap();
    let _ = socket.send_all(bytes).await;
    if let Some(wait) = then {
        on.sleep(wait).await;
        return Vec::new();
    }
    let mut heard = Vec::new();
    let mut buf = [0; 512];
    let listen = async {
        while let Ok(n) = socket.recv(&mut buf).await
            && n > 0
        {
            heard.extend_from_slice(&buf[..n]);
        }
    };
    on.timeout(10 * SECOND, listen).await.expect("it hangs up");
    heard
}

#[test]
fn a_recorded_proof_is_worth_nothing() {
    let (rig, acceptor, link) = with_acceptor(13);
    // Somebody between the two writes down all that node 0 says, and says it again.
    let between = SocketAddr::from(([10, 0, 0, 99], 9022));
    let (server, client) = (rig.handle(2, 0), rig.handle(2, 0));
    let said = Rc::new(RefCell::new(Vec::new()));
    let heard = said.clone();
    server.clone().spawn("between", async move {
        let listener = server.listen(between).unwrap();
        let from = listener.accept().await.unwrap();
        let to = server.connect(address(1)).await.unwrap();
        for (source, sink, n) in [
            (&from, &to, HELLO_BYTES),
            (&to, &from, HELLO_BYTES),
            (&from, &to, PROOF_BYTES),
            (&to, &from, PROOF_BYTES),
        ] {
            let bytes = exactly(source, n).await;
            sink.send_all(&bytes).await.unwrap();
            if std::ptr::eq(source, &from) {
                heard.borrow_mut().push(bytes);
            }
        }
    });
    let identity = Identity::new(&credentials(0, 1), rig.handle(0, 0).id()).unwrap();
    identity.set_peers([(name(1), peer(1, between))].into());
    let on = rig.handle(0, 0);
    let made = async move {
        initiate(&on, &identity, name(1))
            .await
            .map(|(_, i)| i.number)
    };
    assert_eq!(rig.sim.run(&rig.handle(0, 0), SECOND, made), Some(Ok(1)));
    let said = said.take();
    let [hello, proof] = &said[..] else {
        panic!("two messages")
    };
    let bytes = [&hello[..], &proof[..]].concat();
    let on = client.clone();
    let answer = rig
        .sim
        .run(
            &client,
            20 * SECOND,
            async move { say(&on, &bytes, None).await },
        )
        .unwrap();
    assert_eq!(answer.len(), HELLO_BYTES + PROOF_BYTES);
    let ready = answer[HELLO_BYTES..].try_into().unwrap();
    let ready = Proof::decode(&ready, Side::Acceptor);
    assert_eq!(ready, Ok(Proof::Ready(Err(Refusal::Signature))));
    check(&acceptor, &link, "signature");
}

/// A node that is taken off the list, or gets another key, loses its session within a beat; one that comes back gets one.
#[test]
fn a_node_that_is_no_longer_listed_is_let_go() {
    for seed in [60, 61] {
        let (rig, acceptor, link) = with_acceptor(seed);
        let mut known = peer(0, address(0));
        known.key = [8; PUBLIC_KEY_BYTES];
        let (list, why): (Vec<_>, _) = match seed {
            60 => (vec![(name(2), peer(2, address(2)))], Refusal::Node),
            _ => (vec![(name(0), known)], Refusal::Signature),
        };
        let identity = rig.identity(1, 0);
        identity.set_peers(list.into_iter().collect());
        rig.sim.run_for(Duration::from_millis(1100));
        assert_eq!(acceptor.counts().sessions_ended("unlisted"), 1);
        rig.sim.run_for(SECOND);
        assert!(link.session().is_none(), "seed {seed}");
        let refused = NoSession::Refused(why).name();
        assert!(link.counts().handshakes_failed(refused) > 0);
        identity.set_peers([(name(0), peer(0, address(0)))].into());
        rig.until(3 * SECOND, "a session", || link.session().is_some());
    }
}

async fn exactly(socket: &Socket, n: usize) -> Vec<u8> {
    let (mut got, mut bytes) = (0, vec![0; n]);
    while got < n {
        match socket.recv(&mut bytes[got..]).await.unwrap() {
            0 => panic!("closed after {got} of {n} bytes"),
            more => got += more,
        }
    }
    bytes
}

fn hello(session: u64) -> Hello {
    let c = credentials(2, 0);
    Hello {
        side: Side::Initiator,
        versions: c.versions,
        reactor: 0,
        features: 0,
        cluster: c.cluster,
        from: c.node,
        to: name(1),
        incarnation: c.incarnation,
        session,
        unix_ms: 0,
        nonce: [5; 32],
    }
}

#[test]
fn junk_is_hung_up_on() {
    let (rig, acceptor, link) = with_acceptor(14);
    let handle = rig.handle(2, 0);
    let good = hello(1).encode();
    let mut all: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xff; 12],
        // An Answer, and a Proof, where a Hello is due.
        Hello {
            side: Side::Acceptor,
            ..hello(1)
        }
        .encode()
        .to_vec(),
        [&Proof::Initiator([1; 64]).encode()[..], &[0; HELLO_BYTES]].concat(),
    ];
    for at in [3, 8, 12, 13, 14, 24, 100, 221, 300, 319] {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x81;
        all.push(bytes);
    }
    let n = all.len() as u64;
    let on = handle.clone();
    let said = rig.sim.run(&handle, 60 * SECOND, async move {
        for junk in &all {
            let said = say(&on, junk, None).await;
            assert!(said.is_empty(), "nothing is said to a stranger");
        }
    });
    assert_eq!(said, Some(()));
    assert_eq!(acceptor.counts().handshakes_failed("wire"), n);
    assert!(link.session().is_some() && acceptor.handshakes() == 0);
}

#[test]
fn strangers_who_say_nothing_keep_nobody_out() {
    let good = hello(1).encode();
    // Nothing; a part of a Hello; a whole one, and then no Proof.
    for (seed, said) in (15..).zip([&good[..0], &good[..100], &good[..]]) {
        let (rig, acceptor, link) = with_acceptor(seed);
        let handle = rig.handle(2, 0);
        let count = HANDSHAKES_MAX + 16;
        for _ in 0..count {
            let (on, said) = (handle.clone(), said.to_vec());
            handle.spawn("stranger", async move {
                say(&on, &said, Some(20 * SECOND)).await;
            });
        }
        rig.sim.run_for(SECOND / 10);
        assert_eq!(acceptor.handshakes(), HANDSHAKES_MAX, "seed {seed}");
        assert_eq!(acceptor.counts().handshakes_failed("displaced"), 16);
        link.reset(Down::Stopped);
        rig.until(SECOND, "a session beside them", || link.session().is_some());
        rig.sim.run_for(5 * SECOND);
        assert_eq!(acceptor.handshakes(), 0, "seed {seed}: 5 s are over");
        let late = acceptor.counts().handshakes_failed("late");
        assert!(late as usize >= HANDSHAKES_MAX - 4, "seed {seed}: {late}");
    }
}

/// An initiator does not wait for ever either.
#[test]
fn an_acceptor_that_says_nothing_is_given_up() {
    let rig = Rig::new(18, 2, 1);
    let handle = rig.handle(1, 0);
    handle.clone().spawn("mute", async move {
        let listener = handle.listen(address(1)).unwrap();
        let mut all = Vec::new();
        while let Ok(socket) = listener.accept().await {
            let heard = hear(&socket).await.map(|_| ());
            all.push((socket, heard));
        }
    });
    let events = Rc::new(Events::default());
    let link = rig.link((0, 0), 1, events.clone());
    rig.sim.run_for(4 * SECOND);
    assert!(events.all().is_empty());
    rig.sim.run_for(2 * SECOND);
    assert_eq!(link.counts().handshakes_failed("late"), 1);
    link.stop();
    rig.sim.run_for(20 * SECOND);
    assert_eq!(events.all().len(), 1, "stopped");
}

#[test]
fn connections_go_to_the_reactor_that_they_ask_for() {
    for seed in 0..4 {
        let rig = Rig::new(seed, 2, 3);
        let acceptors = rig.accept(1, |_| Rc::new(Takers::default()));
        let links: Vec<_> = (0..3)
            .map(|r| rig.link((0, r), 1, Rc::new(Events::default())))
            .collect();
        rig.until(SECOND, &format!("three sessions, seed {seed}"), || {
            links.iter().all(|l| l.session().is_some())
        });
        for (r, acceptor) in acceptors.iter().enumerate() {
            let reactors: Vec<_> = acceptor.sessions().iter().map(|s| s.reactor).collect();
            assert_eq!(reactors, [r as u16], "seed {seed}");
        }
        acceptors[0].stop();
        acceptors[2].stop();
        rig.sim.run_for(SECOND);
        let up: Vec<_> = links.iter().map(|l| l.session().is_some()).collect();
        assert_eq!(up, [false, true, false], "seed {seed}");
    }
}
