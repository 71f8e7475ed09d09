//! What lies between a client and its KVDB: it can be cut, and it can hold everything up.
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It arrives.
    Through,
    /// Connections are taken, and nothing arrives.
    Held,
    /// Connections end, and none comes to be.
    Cut,
}

/// A way to a server.
pub struct Relay {
    /// Where it begins: HOST:PORT.
    pub address: String,
    state: Arc<watch::Sender<State>>,
    running: JoinHandle<()>,
}

impl Relay {
    /// To the server at `to`.
    pub async fn to(to: &str) -> Self {
        let to: SocketAddr = to.parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let state = Arc::new(watch::Sender::new(State::Through));
        let running = tokio::spawn(relay(listener, to, state.subscribe()));
        Self {
            address,
            state,
            running,
        }
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn hold(&self) {
        self.state.send_replace(State::Held);
    }

    pub fn heal(&self) {
        self.state.send_replace(State::Through);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
        self.running.abort();
    }
}

async fn relay(listener: TcpListener, to: SocketAddr, state: watch::Receiver<State>) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            continue;
        };
        let state = state.clone();
        tokio::spawn(async move {
            let mut until = state.clone();
            let joined = async {
                let far = TcpStream::connect(to).await?;
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::try_join!(
                    copy(near_in, far_out, state.clone()),
                    copy(far_in, near_out, state)
                )
            };
            tokio::select! {
                _ = joined => {}
                _ = until.wait_for(|s| *s == State::Cut) => {}
            }
        });
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        if state.wait_for(|s| *s != State::Held).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
    }
}
