//! A peer that breaks a bound loses its session, with a reason that is counted, and costs nobody else theirs. What came before the breach is delivered,
//! nothing of it or behind it is.

use proptest::prelude::*;

use super::super::handshake::initiate;
use super::super::rig::{Events, Rig, name};
use super::*;
use crate::reactor::Socket;
use crate::replication::wire::frame::{HEADER_BYTES, Header};

/// A frame as it is sent.
fn frame(kind: Kind, channel: u32, number: u32, body: &[u8], data: usize) -> Vec<u8> {
    let header = Header::encode(kind, (channel, 3), number, body, data);
    [&header, body, &vec![number as u8; data][..]].concat()
}

/// With its checksum made right again.
fn sealed(mut frame: Vec<u8>, body: usize) -> Vec<u8> {
    let crc = keelblock_nvme::digest::digest(&frame[8..HEADER_BYTES + body]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// Node 1 accepts; node 0 has a link and a channel; node 2 speaks for itself.
struct Scene {
    rig: Rig,
    acceptor: Acceptor,
    service: Rc<Takers>,
    link: Link,
    channel: Channel,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let rig = Rig::new(seed, 3, 1);
        let service = Rc::new(Takers::default());
        let acceptor = rig.accept(1, |_| service.clone()).remove(0);
        let link = rig.link((0, 0), 1, Rc::new(Events::default()));
        rig.until(SECOND, "a session", || link.session().is_some());
        let channel = open(&link, &Rc::new(Taker::default()));
        rig.until(SECOND, "a channel", || service.all.borrow().len() == 1);
        Self {
            rig,
            acceptor,
            service,
            link,
            channel,
        }
    }

    /// Makes a session and says this in it; whether to close then. Returns what is said back until the end, or for a second.
    fn say(&self, bytes: Vec<u8>, close: bool) -> Vec<u8> {
        let (on, identity) = (self.rig.handle(2, 0), self.rig.identity(2, 0));
        let handle = on.clone();
        let saying = async move {
            let (socket, _) = initiate(&on, &identity, name(1)).await.unwrap();
            // Too late to be sent is as good as sent.
            let _ = socket.send_all(&bytes).await;
            let mut heard = Vec::new();
            if close {
                on.sleep(Duration::from_millis(20)).await;
                socket.shutdown();
            }
            let _ = on.timeout(SECOND, listen(&socket, &mut heard)).await;
            heard
        };
        let heard = self.rig.sim.run(&handle, 60 * SECOND, saying);
        self.rig.sim.run_for(Duration::from_millis(20));
        heard.expect("an end")
    }

    /// The one with the link is as it was, and works.
    fn check(&self, what: &str) {
        assert!(self.link.session().is_some(), "{what}");
        let first = self.service.all.borrow()[0].clone();
        let before = first.count();
        let sent = self.channel.send(Kind::Flush, 3, |out| out.push(1), []);
        assert_eq!(sent, Ok(()), "{what}");
        self.rig.until(SECOND, what, || first.count() == before + 1);
    }

    /// Frames that the last channel of the one that speaks for itself got; `None` if it has opened none.
    fn delivered(&self) -> Option<usize> {
        let all = self.service.all.borrow();
        all.get(1).map(|t| t.count())
    }
}

async fn listen(socket: &Socket, heard: &mut Vec<u8>) {
    let mut buf = [0; 4096];
    while let Ok(n) = socket.recv(&mut buf).await
        && n > 0
    {
        heard.extend_from_slice(&buf[..n]);
    }
}

#[test]
fn each_breach_ends_its_session_and_no_other() {
    use Kind::*;
    let f = frame;
    let zeroes = [0; 32];
    let open = || f(Open, 1, 1, b"v", 0);
    let spoilt = |at: usize, byte: u8| {
        let mut bytes = f(Flush, 1, 2, b"x", 0);
        bytes[at] = byte;
        sealed(bytes, 1)
    };
    let mut reserved = zeroes;
    reserved[20] = 1;
    let all: Vec<(&str, &str, Vec<u8>)> = vec![
        ("another magic", "wire", spoilt(0, b'X')),
        ("a body of 16 MiB", "wire", spoilt(11, 1)),
        (
            "data of 4097 bytes",
            "wire",
            [spoilt(12, 1), vec![]].concat(),
        ),
        ("data of 2 MiB", "wire", spoilt(14, 0x20)),
        ("a kind that is none", "wire", spoilt(16, 0xee)),
        ("reserved bytes", "wire", spoilt(17, 1)),
        ("a wrong checksum", "wire", {
            let mut bytes = f(Flush, 1, 2, b"x", 0);
            bytes[HEADER_BYTES] ^= 1;
            bytes
        }),
        ("a frame left out", "number", f(Flush, 1, 3, b"x", 0)),
        ("a frame twice", "number", f(Flush, 1, 1, b"x", 0)),
        (
            "what only acceptors say",
            "direction",
            f(Ack, 1, 2, b"x", 0),
        ),
        (
            "Refused from an initiator",
            "direction",
            f(Refused, 1, 2, b"x", 0),
        ),
        ("data of a Flush", "data", f(Flush, 1, 2, b"x", 4096)),
        ("a Batch before Open", "channel", f(Batch, 2, 2, b"x", 0)),
        ("a Flush of the session", "channel", f(Flush, 0, 2, b"x", 0)),
        ("what follows a Close", "channel", {
            // A held frame keeps the channel from being gone.
            [f(Close, 1, 2, b"", 0), f(Flush, 1, 3, b"x", 0)].concat()
        }),
        ("a Close with a body", "frame", f(Close, 1, 2, b"x", 0)),
        ("what the handler refuses", "frame", f(Flush, 1, 2, b"", 0)),
        (
            "what the service refuses",
            "frame",
            f(Open, 2, 2, b"bad", 0),
        ),
        (
            "data that are not the body's",
            "frame",
            f(Batch, 1, 2, &[1, 2], 4096),
        ),
        ("pieces of nothing", "frame", f(Batch, 1, 2, &[1, 0], 4096)),
        ("a short beat", "wire", f(Heartbeat, 0, 2, &zeroes[..31], 0)),
        ("a long beat", "wire", f(Heartbeat, 0, 2, &[0; 33], 0)),
        (
            "reserved bytes of a beat",
            "wire",
            f(Heartbeat, 0, 2, &reserved, 0),
        ),
    ];
    for (seed, (what, reason, bytes)) in (0..).zip(all) {
        let scene = Scene::new(seed);
        scene.service.hold.set(true);
        let behind = f(Flush, 1, 3, b"x", 0);
        scene.say([open(), bytes, behind].concat(), false);
        assert_eq!(
            scene.acceptor.counts().sessions_ended(reason),
            1,
            "{what}: {:?}",
            scene.acceptor.counts()
        );
        assert_eq!(scene.delivered(), Some(1), "{what}");
        scene.check(what);
    }
}

#[test]
fn a_refused_channel_takes_what_was_on_its_way_and_no_more_notice() {
    let scene = Scene::new(50);
    let mine = Rc::new(Taker::default());
    let channel = scene.link.open_channel(mine.clone()).unwrap();
    channel.send(Kind::Promise, 4, |_| {}, []).unwrap();
    let handle = scene.rig.handle(0, 0);
    for _ in 0..3 {
        let data = (blocks(&handle, 40, 1), 0..40 * 4096);
        channel
            .send(Kind::Batch, 4, |out| out.push(40), [data])
            .unwrap();
    }
    scene.rig.until(SECOND, "the refusal", || {
        *mine.ended.borrow() == Some(Ended::Refused)
    });
    let got = mine.got.borrow()[0].clone();
    assert_eq!(
        (got.kind, got.epoch, got.body),
        (Kind::Refused, 4, vec![1; 8])
    );
    let sent = channel.send(Kind::Flush, 4, |out| out.push(1), []);
    assert_eq!(sent, Err(NotSent::Ended));
    scene.check("the channel beside it");
    assert_eq!(scene.service.all.borrow().len(), 1);
    // The next number is another channel.
    open(&scene.link, &Rc::new(Taker::default()));
    scene
        .rig
        .until(SECOND, "another", || scene.service.all.borrow().len() == 2);
}

#[test]
fn beats_that_nobody_listens_to_are_not_kept_for_ever() {
    let scene = Scene::new(51);
    let (on, identity) = (scene.rig.handle(2, 0), scene.rig.identity(2, 0));
    on.clone().spawn("deaf", async move {
        let (socket, _) = initiate(&on, &identity, name(1)).await.unwrap();
        for number in 1.. {
            let beat = frame(Kind::Heartbeat, 0, number, &[0; 32], 0);
            if socket.send_all(&beat).await.is_err() {
                return;
            }
        }
    });
    scene.rig.until(8 * SECOND, "an end", || {
        scene.acceptor.counts().sessions_ended("unread") == 1
    });
    scene.check("unread");
}

/// Frames that are in the receive buffer already when a handler ends the session stay there.
#[test]
fn nothing_is_delivered_after_a_handler_ended_the_session() {
    let scene = Scene::new(52);
    let frames = [
        frame(Kind::Open, 1, 1, b"volume", 0),
        frame(Kind::Flush, 1, 2, b"end", 0),
        frame(Kind::Flush, 1, 3, b"x", 0),
    ];
    scene.say(frames.concat(), false);
    assert_eq!(scene.acceptor.counts().sessions_ended("stopped"), 1);
    assert_eq!(scene.delivered(), Some(2));
    scene.check("an end of our own");
}

/// Six frames, with bodies and data, and where each begins.
fn stream() -> (Vec<u8>, Vec<usize>) {
    let frames = [
        frame(Kind::Open, 1, 1, b"volume", 0),
        frame(Kind::Flush, 1, 2, b"12345678", 0),
        frame(Kind::Batch, 1, 3, &[1, 2, 1], 4 * 4096),
        frame(Kind::Heartbeat, 0, 4, &[0; 32], 0),
        frame(Kind::Copy, 1, 5, &[1], 4096),
        frame(Kind::Flush, 1, 6, b"x", 0),
    ];
    let mut starts = Vec::new();
    let mut all = Vec::new();
    for f in frames {
        starts.push(all.len());
        all.extend(f);
    }
    (all, starts)
}

/// How many of the first n frames a handler gets: all but the beat.
fn to_handlers(n: usize) -> Option<usize> {
    match n {
        0 => None,
        1..=3 => Some(n),
        _ => Some(n - 1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whichever bit of a header or body is another: the frames before it are delivered, and nothing else.
    #[test]
    fn a_flipped_bit_is_found(seed in any::<u64>(), which in 0usize..6, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut bytes, starts) = stream();
        let bodies = [6, 8, 3, 32, 1, 1];
        let at = starts[which] + at.index(HEADER_BYTES + bodies[which]);
        bytes[at] ^= 1 << bit;
        let scene = Scene::new(seed);
        scene.say(bytes, true);
        prop_assert_eq!(scene.delivered(), to_handlers(which), "seed {}, byte {}", seed, at);
        prop_assert_eq!(scene.acceptor.sessions().len(), 1, "seed {}", seed);
        scene.check("a flipped bit");
    }

    /// Wherever a connection ends: whole frames are delivered, a part of one is not, and its buffers come back.
    #[test]
    fn a_cut_stream_ends_with_a_whole_frame(seed in any::<u64>(), at in any::<prop::sample::Index>()) {
        let (mut bytes, starts) = stream();
        let at = at.index(bytes.len() + 1);
        bytes.truncate(at);
        let whole = starts[1..].iter().chain([&stream().0.len()]).filter(|&&end| end <= at).count();
        let scene = Scene::new(seed);
        scene.say(bytes, true);
        prop_assert_eq!(scene.delivered(), to_handlers(whole), "seed {}, byte {}", seed, at);
        prop_assert_eq!(scene.rig.handle(1, 0).buffers().stats().used, 0);
        prop_assert_eq!(scene.acceptor.counts().sessions_ended("closed"), 1);
        scene.check("a cut stream");
    }

    /// Nothing that a node of the cluster sends ends more than its session.
    #[test]
    fn noise_ends_its_session_only(seed in any::<u64>(), noise in prop::collection::vec(any::<u8>(), 32..5000)) {
        let scene = Scene::new(seed);
        scene.say([frame(Kind::Open, 1, 1, b"volume", 0), noise].concat(), true);
        prop_assert_eq!(scene.delivered(), Some(1));
        scene.check("noise");
    }
}
