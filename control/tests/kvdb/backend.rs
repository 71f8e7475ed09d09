//! The two kinds of KVDB that the suite runs on.
use keelblock_control::kvdb::{Client, Server};
use std::net::TcpListener as StdListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint};

/// A KVDB to test, and a prefix of its own in it.
pub struct Backend {
    /// Where it is: HOST:PORT.
    pub address: String,
    /// The client under test.
    pub client: Client,
    prefix: String,
    running: Running,
    /// What it keeps; that of a server elsewhere is not here.
    dir: Option<TempDir>,
}

/// What serves.
enum Running {
    Embedded(Server),
    #[allow(dead_code, reason = "held to be dropped")]
    Etcd(EtcdProcess),
    Elsewhere,
    /// The embedded one, ended.
    NoServer,
    /// etcd with these ports, ended.
    NoEtcd(u16, u16),
}

/// A process of etcd; it ends when this is dropped, as if by a power cut.
pub struct EtcdProcess {
    child: Child,
    ports: (u16, u16),
}

impl EtcdProcess {
    /// On these ports (clients, peers); `None`: it is not installed.
    pub fn start(
        data: &Path,
        scheme: &str,
        (client, peer): (u16, u16),
        more: &[String],
    ) -> Option<Self> {
        let clients = format!("{scheme}://127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let ports = (client, peer);
        Some(Self { child, ports })
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it is installed.
pub fn has_etcd() -> bool {
    let mut version = Command::new("etcd");
    version.arg("--version").stdout(Stdio::null());
    version.status().is_ok_and(|s| s.success())
}

/// Waits for a server that was started.
pub async fn until_it_answers(client: &Client) {
    for _ in 0..300 {
        if client.get("up?").await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("etcd was started and does not answer");
}

/// What etcd's HTTP gateway says to a request.
pub async fn post(address: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let sent = stream.write_all(request.as_bytes()).await;
    sent.expect("it is sent");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer).await;
    read.expect("an answer");
    answer
}

/// The embedded server on a file, on any free port.
pub async fn start_embedded(file: &Path) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    Server::start(file, listener).expect("the embedded KVDB starts")
}

impl Backend {
    /// A fresh embedded server.
    pub async fn embedded() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = start_embedded(&dir.path().join("kvdb.redb")).await;
        let address = server.address().to_string();
        Self::at(address, Running::Embedded(server), Some(dir))
    }

    /// A real etcd, if there is one.
    pub async fn etcd() -> Option<Self> {
        if let Ok(address) = std::env::var("KEELBLOCK_TEST_ETCD") {
            return Some(Self::at(address, Running::Elsewhere, None));
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports = (free_port(), free_port());
        let process = EtcdProcess::start(dir.path(), "http", ports, &[])?;
        let address = format!("127.0.0.1:{}", ports.0);
        let backend = Self::at(address, Running::Etcd(process), Some(dir));
        until_it_answers(&backend.client).await;
        Some(backend)
    }

    fn at(address: String, running: Running, dir: Option<TempDir>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let client = Client::new(&address).expect("an address");
        let prefix = format!(
            "/test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self {
            address,
            client,
            prefix,
            running,
            dir,
        }
    }

    /// Ends the server; false if it is not this test's.
    pub async fn end(&mut self) -> bool {
        self.running = match std::mem::replace(&mut self.running, Running::NoServer) {
            Running::Embedded(server) => {
                server.stop().await;
                Running::NoServer
            }
            Running::Etcd(process) => {
                let (client, peer) = process.ports;
                drop(process);
                Running::NoEtcd(client, peer)
            }
            other => other,
        };
        !matches!(self.running, Running::Elsewhere)
    }

    /// Begins it again, where it was and with what it had.
    pub async fn begin(&mut self) {
        let dir = self.dir.as_ref().expect("it is this test's").path();
        self.running = match self.running {
            Running::NoEtcd(client, peer) => {
                let process = EtcdProcess::start(dir, "http", (client, peer), &[]);
                Running::Etcd(process.expect("it was started once"))
            }
            Running::NoServer => {
                let listener = TcpListener::bind(&self.address).await;
                let listener = listener.expect("the same port");
                let server = Server::start(&dir.join("kvdb.redb"), listener);
                Running::Embedded(server.expect("the embedded KVDB starts again"))
            }
            _ => panic!("it runs"),
        };
    }

    /// A key of this test.
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// A channel for calls that the client under test does not make.
    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address))
            .expect("an address")
            .connect_lazy()
    }
}

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}
