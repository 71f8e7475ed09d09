//! A process is killed with SIGKILL while bytes flow through the channel: the other one gets what was sent before, then an error, and
//! serves or finds the next. The victim is this program again, with an argument; hence no test harness.

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keelblock_api::channel::{ChannelStream, Listener, handshake};
use keelblock_api::stats::StatsPage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Victims per kind; each is killed at another point of its work.
const VICTIMS: u64 = 12;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["victim-server", path] => runtime.block_on(victim_server(Path::new(path))),
        ["victim-client", path] => runtime.block_on(victim_client(Path::new(path))),
        // `cargo test -- --list` and the like of other harnesses.
        ["--list", ..] => {}
        _ => {
            runtime.block_on(a_client_sees_its_server_die());
            runtime.block_on(a_server_sees_its_clients_die());
            println!(
                "channel_kill: {} processes killed, all noticed",
                2 * VICTIMS
            );
        }
    }
}

fn stats() -> StatsPage {
    StatsPage::create(1, 1, [5; 16], 0).unwrap()
}

async fn victim_server(path: &Path) {
    let mut listener = Listener::bind(path, stats()).await.unwrap();
    println!("ready");
    pump(listener.accept().await).await;
}

async fn victim_client(path: &Path) {
    let (stream, _) = handshake(path).await.unwrap();
    println!("ready");
    pump(stream).await;
}

/// Sends a pattern without end, takes what comes.
async fn pump(stream: ChannelStream) {
    let (mut from, mut to) = tokio::io::split(stream);
    let reading = async {
        let mut bytes = [0; 5000];
        while let Ok(1..) = from.read(&mut bytes).await {}
    };
    let writing = async {
        let pattern: Vec<u8> = (0..251).collect();
        while to.write_all(&pattern).await.is_ok() {}
    };
    tokio::join!(reading, writing);
}

/// Starts this program as a victim, and waits until it says that it is ready.
fn victim(kind: &str, path: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .arg(kind)
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    child
}

/// Reads the pattern, answers some of it, kills the victim in the middle; then expects the rest of the pattern and an error.
async fn survive(mut stream: ChannelStream, mut victim: Child, round: u64) {
    assert_eq!(stream.peer().pid, victim.id());
    let mut bytes = vec![0; 3000];
    let (mut seen, mut after) = (0usize, 0usize);
    let kill_at = 10_000 * (round as usize + 1);
    let mut killed = false;
    let end = loop {
        let n = match tokio::time::timeout(Duration::from_secs(30), stream.read(&mut bytes)).await {
            Err(_) => panic!("round {round}: death was not noticed"),
            Ok(Err(error)) => break error,
            Ok(Ok(n)) => n,
        };
        assert!(n > 0, "a killed process does not end in order");
        assert!(
            bytes[..n]
                .iter()
                .enumerate()
                .all(|(i, b)| *b as usize == (seen + i) % 251)
        );
        seen += n;
        if killed {
            after += n;
            continue;
        }
        // It may be dead by accident only after we killed it.
        stream.write_all(&bytes[..100]).await.unwrap();
        if seen > kill_at {
            victim.kill().unwrap();
            victim.wait().unwrap();
            killed = true;
        }
    };
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "round {round}");
    assert_eq!(
        stream.write(b"x").await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    println!("round {round}: {seen} bytes, {after} of them after the death");
}

async fn a_client_sees_its_server_die() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("channel.sock");
    for round in 0..VICTIMS {
        // The socket of the former victim is still there: it had no time to remove it.
        assert_eq!(path.exists(), round > 0);
        let server = victim("victim-server", &path);
        let (stream, page) = handshake(&path).await.unwrap();
        assert_eq!(page.pid(), server.id());
        survive(stream, server, round).await;
        assert_eq!(
            page.incarnation(),
            [5; 16],
            "the page of the dead stays readable"
        );
    }
}

async fn a_server_sees_its_clients_die() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("channel.sock");
    let mut listener = Listener::bind(&path, stats()).await.unwrap();
    for round in 0..VICTIMS {
        let starting = path.clone();
        let client = tokio::task::spawn_blocking(move || victim("victim-client", &starting));
        let stream = listener.accept().await;
        survive(stream, client.await.unwrap(), round).await;
    }
}
