//! The two kinds of KVDB that the suite runs on.
use keelblock_control::kvdb::{Client, Server};
use std::net::TcpListener as StdListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// A KVDB to test, and a prefix of its own in it.
pub struct Backend {
    /// Where it is: HOST:PORT.
    pub address: String,
    /// The client under test.
    pub client: Client,
    prefix: String,
    _running: Running,
}

#[allow(dead_code, reason = "held to be dropped")]
enum Running {
    Embedded(Server, TempDir),
    Etcd(EtcdProcess, TempDir),
    Elsewhere,
}

struct EtcdProcess(Child);

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
        Self::at(server.address().to_string(), Running::Embedded(server, dir))
    }

    /// A real etcd, if there is one.
    pub async fn etcd() -> Option<Self> {
        if let Ok(address) = std::env::var("KEELBLOCK_TEST_ETCD") {
            return Some(Self::at(address, Running::Elsewhere));
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (client, peer) = (free_port(), free_port());
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args([
                "--listen-client-urls",
                &format!("http://127.0.0.1:{client}"),
            ])
            .args([
                "--advertise-client-urls",
                &format!("http://127.0.0.1:{client}"),
            ])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .args([
                "--initial-advertise-peer-urls",
                &format!("http://127.0.0.1:{peer}"),
            ])
            .args([
                "--initial-cluster",
                &format!("default=http://127.0.0.1:{peer}"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let backend = Self::at(
            format!("127.0.0.1:{client}"),
            Running::Etcd(EtcdProcess(child), dir),
        );
        for _ in 0..300 {
            if backend.client.get("up?").await.is_ok() {
                return Some(backend);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("etcd was started and does not answer");
    }

    fn at(address: String, running: Running) -> Self {
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
            _running: running,
        }
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

fn free_port() -> u16 {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}
