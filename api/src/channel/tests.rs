use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use keelblock_hugepages::SharedRegion;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::ring::{self, Direction, Receiver, Sender, region_bytes};
use super::stream::Parts;
use super::*;
use crate::stats::StatsPage;

const SMALL: usize = 4096;

fn stats() -> StatsPage {
    StatsPage::create(2, 4, [9; 16], 0).unwrap()
}

fn bell() -> OwnedFd {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    rustix::event::eventfd(0, flags).unwrap()
}

fn copy(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

/// Two ends over small rings, with what a wrong peer has in hands: the region and a copy of the client's socket.
struct Pair {
    server: ChannelStream,
    client: ChannelStream,
    region: Arc<SharedRegion>,
    clients_socket: OwnedFd,
}

fn pair() -> Pair {
    let region = Arc::new(SharedRegion::create("keelblock-test", region_bytes(SMALL)).unwrap());
    let theirs = SharedRegion::from_fd(copy(&*region)).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let clients_socket = copy(&b);
    let (server_bell, client_bell) = (bell(), bell());
    let parts = |region, bell: &OwnedFd, peers_bell: &OwnedFd, life| Parts {
        region,
        ring_bytes: SMALL,
        bell: copy(bell),
        peers_bell: copy(peers_bell),
        life,
        peer: PeerInfo { pid: 0, uid: 0 },
        permit: None,
    };
    let server = parts(region.clone(), &server_bell, &client_bell, a);
    let client = parts(Arc::new(theirs), &client_bell, &server_bell, b);
    Pair {
        server: ChannelStream::new(server, Direction::ToServer).unwrap(),
        client: ChannelStream::new(client, Direction::ToClient).unwrap(),
        region,
        clients_socket,
    }
}

/// The peer's process is gone: its socket ends, its rings say nothing.
fn kill_client(pair: &Pair) {
    rustix::net::shutdown(&pair.clients_socket, rustix::net::Shutdown::Both).unwrap();
}

/// A wake-up that is lost leaves a test waiting: it then fails instead.
async fn bounded<T>(test: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(std::time::Duration::from_secs(60), test).await;
    done.expect("somebody sleeps who should have been woken")
}

/// Small deterministic generator: tests print its seed when they fail.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

fn seed() -> u64 {
    let seed = std::env::var("KEELBLOCK_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| {
            std::time::UNIX_EPOCH
                .elapsed()
                .map_or(1, |d| d.as_nanos() as u64)
        });
    println!("KEELBLOCK_SEED={seed}");
    seed
}

/// Sends `total` bytes in pieces of random sizes, with the halves of both ends on tasks of their own, and checks each byte that comes back.
async fn echo(pair: Pair, total: usize, seed: u64) {
    let byte = |at: usize| {
        (at as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes()[7]
    };
    let (mut server_in, mut server_out) = tokio::io::split(pair.server);
    let server = tokio::spawn(async move {
        let mut random = Random(seed ^ 1);
        let mut piece = vec![0; 3 * SMALL];
        loop {
            let limit = 1 + random.below(3 * SMALL - 1);
            let n = server_in.read(&mut piece[..limit]).await.unwrap();
            if n == 0 {
                break server_out.shutdown().await.unwrap();
            }
            server_out.write_all(&piece[..n]).await.unwrap();
        }
    });
    let (mut client_in, mut client_out) = tokio::io::split(pair.client);
    let client = tokio::spawn(async move {
        let mut random = Random(seed ^ 2);
        let mut sent = 0;
        while sent < total {
            let n = (1 + random.below(2 * SMALL)).min(total - sent);
            let piece: Vec<u8> = (sent..sent + n).map(byte).collect();
            client_out.write_all(&piece).await.unwrap();
            sent += n;
            if random.below(8) == 0 {
                tokio::task::yield_now().await;
            }
        }
        client_out.shutdown().await.unwrap();
    });
    let mut random = Random(seed ^ 3);
    let mut piece = vec![0; 3 * SMALL];
    let mut seen = 0;
    loop {
        let limit = 1 + random.below(3 * SMALL - 1);
        let n = client_in.read(&mut piece[..limit]).await.unwrap();
        if n == 0 {
            break;
        }
        assert!(
            piece[..n]
                .iter()
                .enumerate()
                .all(|(i, b)| *b == byte(seen + i)),
            "after {seen} bytes"
        );
        seen += n;
    }
    assert_eq!(seen, total);
    client.await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn bytes_come_back_on_one_thread() {
    bounded(echo(pair(), 3 << 20, seed())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bytes_come_back_between_threads() {
    let seed = seed();
    for round in 0..4 {
        bounded(echo(pair(), 2 << 20, seed.wrapping_add(round))).await;
    }
}

/// One byte there and back, so that each side sleeps each time: a ring that is lost leaves the test hanging.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair();
    let answers = tokio::spawn(async move {
        while let Ok(byte) = server.read_u8().await {
            server.write_u8(byte.wrapping_add(1)).await.unwrap();
        }
    });
    bounded(async {
        for i in 0..20_000u32 {
            client.write_u8(i as u8).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), (i as u8).wrapping_add(1));
        }
    })
    .await;
    drop(client);
    answers.await.unwrap();
}

#[tokio::test]
async fn an_orderly_end_comes_after_the_last_byte() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair();
    client.write_all(b"last words").await.unwrap();
    drop(client);
    let mut all = Vec::new();
    bounded(server.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"last words");
    assert_eq!(
        server.write(b"x").await.map_err(|e| e.kind()),
        Ok(1),
        "death is noticed when waiting"
    );
}

#[tokio::test]
async fn a_killed_peer_ends_reading_after_what_it_sent() {
    let mut pair = pair();
    pair.client.write_all(b"last words").await.unwrap();
    kill_client(&pair);
    let mut all = Vec::new();
    let end = pair.server.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert_eq!(all, b"last words");
    assert_eq!(
        pair.server.write(b"x").await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
}

#[tokio::test]
async fn a_killed_peer_wakes_a_reader_and_a_writer_that_sleep() {
    let mut pair = pair();
    pair.server.write_all(&[0; SMALL]).await.unwrap();
    let Pair {
        server,
        client,
        clients_socket,
        ..
    } = pair;
    let (mut from, mut to) = tokio::io::split(server);
    let reader = tokio::spawn(async move { from.read_u8().await.unwrap_err().kind() });
    let writer = tokio::spawn(async move { to.write_all(b"no room").await.unwrap_err().kind() });
    tokio::task::yield_now().await;
    rustix::net::shutdown(&clients_socket, rustix::net::Shutdown::Both).unwrap();
    assert_eq!(bounded(reader).await.unwrap(), ErrorKind::ConnectionReset);
    assert_eq!(bounded(writer).await.unwrap(), ErrorKind::BrokenPipe);
    drop(client);
}

#[tokio::test]
async fn a_byte_on_the_socket_is_a_breach() {
    let mut pair = pair();
    rustix::io::write(&pair.clients_socket, b"?").unwrap();
    assert_eq!(
        pair.server.read_u8().await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn impossible_indices_end_the_connection() {
    for head in [SMALL as u64 + 1, u64::MAX, 1 << 63] {
        let mut pair = pair();
        ring::scribble(&pair.region, Direction::ToServer, ring::HEAD, head);
        let error = pair.server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "head {head}");
    }
    for tail in [1, u64::MAX / 2, u64::MAX - SMALL as u64] {
        let mut pair = pair();
        ring::scribble(&pair.region, Direction::ToClient, ring::TAIL, tail);
        let error = pair.server.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "tail {tail}");
    }
}

/// A reader that sleeps is not left asleep by an impossible index, if the peer rings.
#[tokio::test]
async fn an_impossible_index_wakes_a_sleeper() {
    let Pair {
        mut server,
        region,
        client,
        ..
    } = pair();
    let reader = tokio::spawn(async move { server.read_u8().await.unwrap_err().kind() });
    tokio::task::yield_now().await;
    ring::scribble(&region, Direction::ToServer, ring::HEAD, 1 << 40);
    let (_, mut to) = tokio::io::split(client);
    to.shutdown().await.unwrap();
    assert_eq!(bounded(reader).await.unwrap(), ErrorKind::InvalidData);
}

/// A peer that writes anything anywhere in the region, at any time: calls end with bytes or an error, never with a panic or a hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scribbles_all_over_the_region_hurt_nobody() {
    let seed = seed();
    for round in 0..300 {
        let Pair {
            server,
            client,
            region,
            clients_socket,
        } = pair();
        let mut random = Random(seed.wrapping_add(round));
        let (mut from, mut to) = tokio::io::split(server);
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 777];
            while let Ok(1..) = from.read(&mut bytes).await {}
        });
        let writer = tokio::spawn(async move { while to.write(&[7; 999]).await.is_ok() {} });
        for _ in 0..2000 {
            let word = random.below(128) * 8;
            let value = match random.below(3) {
                0 => random.below(2 * SMALL) as u64,
                1 => u64::MAX - random.below(SMALL) as u64,
                _ => random.0,
            };
            region
                .word64(word)
                .unwrap()
                .store(value, std::sync::atomic::Ordering::Relaxed);
            if random.below(64) == 0 {
                tokio::task::yield_now().await;
            }
        }
        rustix::net::shutdown(&clients_socket, rustix::net::Shutdown::Both).unwrap();
        drop(client);
        // The region may now say that there is always room or always data: what ends the halves is an impossible index, or death.
        for word in [ring::HEAD, ring::TAIL] {
            ring::scribble(&region, Direction::ToServer, word, 1 << 50);
            ring::scribble(&region, Direction::ToClient, word, 1 << 50);
        }
        bounded(reader).await.unwrap();
        bounded(writer).await.unwrap();
    }
}

proptest! {
    #[test]
    fn rings_keep_order_and_content(steps in prop::collection::vec((any::<bool>(), 0usize..2 * SMALL), 1..60)) {
        let region = Arc::new(SharedRegion::create("keelblock-test", region_bytes(SMALL)).unwrap());
        let mut sender = Sender::new(region.clone(), SMALL, Direction::ToClient).unwrap();
        let mut receiver = Receiver::new(region, SMALL, Direction::ToClient).unwrap();
        let (mut put, mut taken) = (0usize, 0usize);
        for (produce, len) in steps {
            if produce {
                let bytes: Vec<u8> = (put..put + len).map(|i| i as u8).collect();
                let n = sender.put(&bytes).unwrap();
                prop_assert_eq!(n, len.min(SMALL - (put - taken)));
                put += n;
                // Nobody sleeps, so nobody is woken.
                prop_assert!(!sender.publish());
            } else {
                let mut bytes = vec![0; len];
                let n = receiver.take(&mut bytes).unwrap();
                prop_assert_eq!(n, len.min(put - taken));
                prop_assert!(bytes[..n].iter().enumerate().all(|(i, b)| *b == (taken + i) as u8));
                taken += n;
                prop_assert!(!receiver.publish());
            }
        }
    }
}

// Handshake and listener.

fn path(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("channel.sock")
}

#[tokio::test]
async fn a_connection_brings_the_rings_and_the_stats_page() {
    let dir = TempDir::new().unwrap();
    let page = stats();
    let mut listener = Listener::bind(&path(&dir), page.clone()).await.unwrap();
    let mode = std::fs::metadata(path(&dir)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let connecting = path(&dir);
    let client = tokio::spawn(async move { handshake(&connecting).await.unwrap() });
    let mut server = listener.accept().await;
    let (mut client, reader) = client.await.unwrap();
    assert_eq!(client.peer().pid, std::process::id());
    assert_eq!(server.peer().uid, rustix::process::geteuid().as_raw());
    page.reactor(1)
        .unwrap()
        .add(crate::stats::ReactorField::Commands, 3);
    assert_eq!(
        reader.reactors()[1].get(crate::stats::ReactorField::Commands),
        3
    );
    client.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
    drop(listener);
    assert!(!path(&dir).exists());
}

#[tokio::test]
async fn a_leftover_socket_is_replaced_and_a_living_one_is_not() {
    let dir = TempDir::new().unwrap();
    drop(std::os::unix::net::UnixListener::bind(path(&dir)).unwrap());
    assert!(path(&dir).exists());
    let _alive = Listener::bind(&path(&dir), stats()).await.unwrap();
    assert!(matches!(
        Listener::bind(&path(&dir), stats()).await,
        Err(ChannelError::InUse { .. })
    ));
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert!(matches!(
        Listener::bind(&file, stats()).await,
        Err(ChannelError::NoSocket { .. })
    ));
    assert!(file.exists());
    let missing = dir.path().join("no/such/folder/socket");
    assert!(matches!(
        Listener::bind(&missing, stats()).await,
        Err(ChannelError::Path { .. })
    ));
}

#[tokio::test]
async fn a_path_that_is_too_long_for_an_address_works() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let path = deep.join("channel.sock");
    let mut listener = Listener::bind(&path, stats()).await.unwrap();
    let (stream, client) = tokio::join!(listener.accept(), handshake(&path));
    client.unwrap();
    drop(stream);
    assert!(matches!(
        Listener::bind(&path, stats()).await,
        Err(ChannelError::InUse { .. })
    ));
}

#[tokio::test]
async fn one_connection_too_many_is_refused_and_a_place_that_is_free_again_is_used() {
    let dir = TempDir::new().unwrap();
    let mut listener = Listener::bind(&path(&dir), stats()).await.unwrap();
    let connecting = path(&dir);
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let (server, client) = tokio::join!(listener.accept(), handshake(&connecting));
        held.push((server, client.unwrap()));
    }
    let accepting = tokio::spawn(async move { listener.accept().await });
    assert!(matches!(
        handshake(&path(&dir)).await,
        Err(ChannelError::Refused)
    ));
    held.pop();
    handshake(&path(&dir)).await.unwrap();
    accepting.await.unwrap();
}

/// Servers that are not ours: they say nothing, hang up, or talk nonsense.
#[tokio::test]
async fn strange_greetings_are_errors() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(
        handshake(&path(&dir)).await,
        Err(ChannelError::Path { .. })
    ));
    let listener = UnixListener::bind(path(&dir)).unwrap();
    for (answer, expected) in [
        (&b""[..], "Refused"),
        (b"hello", "Greeting { what: \"it is too short\" }"),
        (
            &[b'x'; 40],
            "Greeting { what: \"no channel's magic number\" }",
        ),
        (
            b"KEELCHAN\x09\0\0\0________________________________",
            "Version { found: 9 }",
        ),
        (
            b"KEELCHAN\x01\0\0\0\x01\0\0\0________________________",
            "Greeting { what: \"an impossible size of the rings\" }",
        ),
        (
            b"KEELCHAN\x01\0\0\0\0\0\x04\0________________________",
            "Greeting { what: \"the wrong number of descriptors\" }",
        ),
    ] {
        let answering = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(answer).await.unwrap();
        };
        let ((), got) = tokio::join!(answering, handshake_of(&dir));
        assert_eq!(format!("{:?}", got.err().unwrap()), expected);
    }
    let silent = async {
        let accepted = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop(accepted);
    };
    let got = tokio::select! { () = silent => unreachable!(), got = handshake_of(&dir) => got };
    assert!(matches!(got, Err(ChannelError::Timeout)));
}

async fn handshake_of(dir: &TempDir) -> Result<(), ChannelError> {
    handshake(&path(dir)).await.map(drop)
}

#[test]
fn greetings_survive_encoding() {
    let hello = super::socket::Hello {
        ring_bytes: 1 << 16,
        incarnation: [3; 16],
        pid: 77,
    };
    assert_eq!(
        super::socket::Hello::decode(&hello.encode()).unwrap(),
        hello
    );
}
