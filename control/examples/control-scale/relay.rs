//! A relay in front of the KVDB that counts what one control process sends and gets: bytes, and requests (each opens a stream of HTTP/2 by a HEADERS frame).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What a client of HTTP/2 says first.
const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const PIECE: usize = 64 << 10;

/// What has passed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed {
    /// Requests: a watch is one, however much comes from it.
    pub requests: u64,
    /// Bytes to the KVDB.
    pub sent: u64,
    /// Bytes from it.
    pub got: u64,
}

impl std::ops::Sub for Passed {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            sent: self.sent - before.sent,
            got: self.got - before.got,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    sent: AtomicU64,
    got: AtomicU64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Relay {
    /// Where clients connect.
    pub address: SocketAddr,
    counters: Arc<Counters>,
}

impl Relay {
    /// Relays to `upstream`.
    pub async fn start(upstream: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let relay = Self {
            address: listener.local_addr()?,
            counters: Arc::default(),
        };
        let counters = relay.counters.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(upstream).await else {
                    continue;
                };
                // As both ends have it.
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(requests(from_client, to_server, counters.clone()));
                tokio::spawn(answers(from_server, to_client, counters.clone()));
            }
        });
        Ok(relay)
    }

    /// What has passed so far.
    pub fn passed(&self) -> Passed {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Passed {
            requests: of(&self.counters.requests),
            sent: of(&self.counters.sent),
            got: of(&self.counters.got),
        }
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counters: Arc<Counters>) {
    let mut piece = vec![0; PIECE];
    let mut frames = Frames::new();
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        counters.sent.fetch_add(n as u64, Ordering::Relaxed);
        let begun = frames.headers(&piece[..n]);
        counters.requests.fetch_add(begun, Ordering::Relaxed);
        if to.write_all(&piece[..n]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counters: Arc<Counters>) {
    let mut piece = vec![0; PIECE];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        counters.got.fetch_add(n as u64, Ordering::Relaxed);
        if to.write_all(&piece[..n]).await.is_err() {
            return;
        }
    }
}

/// Finds frames in what passes.
struct Frames {
    /// Bytes until the next frame's header.
    skip: usize,
    header: Vec<u8>,
}

impl Frames {
    fn new() -> Self {
        Self {
            skip: PREFACE_BYTES,
            header: Vec::new(),
        }
    }

    /// How many HEADERS frames begin in these bytes.
    fn headers(&mut self, mut bytes: &[u8]) -> u64 {
        let mut found = 0;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            bytes = &bytes[skipped..];
            self.skip -= skipped;
            let wanted = (FRAME_HEADER_BYTES - self.header.len()).min(bytes.len());
            self.header.extend(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if let [a, b, c, kind, _, _, _, _, _] = self.header[..] {
                found += u64::from(kind == HEADERS);
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.header.clear();
            }
        }
        found
    }
}
