//! The socket and the timers.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::board::Life;
use super::engine::Engine;
use super::observe::Watcher;
use super::peer::Peer;
use super::seal::{DATAGRAM_MAX, Seal};
use crate::error::OpError;
use crate::node::Node;
use crate::records::{NodeRecord, unix_ms};

/// How often this node looks how busy it is, and which others there are.
const LOOK: Duration = Duration::from_secs(2);
/// How often what is heard is shown anew.
const SHOW: Duration = Duration::from_millis(250);
/// Datagrams that are taken before timers have their turn.
const TAKE_MAX: usize = 256;
/// How long a node has to say something for the first time.
const UNHEARD: Duration = Duration::from_secs(15);
/// After an error of the socket.
const AGAIN: Duration = Duration::from_millis(100);

/// The socket; where it is.
///
/// # Errors
/// What the system said.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, SocketAddr)> {
    let socket = UdpSocket::bind(address).await?;
    let at = socket.local_addr()?;
    Ok((socket, at))
}

/// Takes part, until told to stop. Without the secret of the KVDB nothing is said.
pub(crate) async fn gossip(
    node: Arc<Node>,
    socket: UdpSocket,
    mut stop: watch::Receiver<bool>,
) -> Option<OpError> {
    let part = async {
        let (session, seed) = match random() {
            Some(both) => both,
            None => {
                tracing::error!("the system gives no random bytes: this node does not gossip");
                return std::future::pending().await;
            }
        };
        let (token, secret) = until_secret(&node).await;
        let me = Peer::new(node.node_id(), unix_ms(), node.gossip_address());
        let seal = Seal::new(&*secret, node.cluster_id(), &token, session);
        let engine = Engine::new(me, seal, seed);
        let run = Run {
            node: &node,
            socket,
            engine,
            start: Instant::now(),
            watcher: Watcher::default(),
            secret: secret.to_vec().into(),
            token,
            known: HashMap::new(),
        };
        run.go().await;
    };
    tokio::select! {
        () = part => None,
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

fn random() -> Option<(u64, u64)> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    let both = u128::from_le_bytes(bytes);
    Some((both as u64, (both >> 64) as u64))
}

type Token = Zeroizing<Vec<u8>>;

/// The cluster's first token, and the secret as soon as it is seen.
async fn until_secret(node: &Node) -> (Token, Zeroizing<[u8; 32]>) {
    let mut changes = node.coordination.changes();
    loop {
        changes.mark_unchanged();
        let seen = node.coordination.seen().gossip_secret();
        // It is kept since the node joined.
        if let (Some(secret), Some(token)) = (seen, node.first_token()) {
            return (token.clone(), secret);
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

struct Run<'a> {
    node: &'a Node,
    socket: UdpSocket,
    engine: Engine,
    start: Instant,
    watcher: Watcher,
    secret: Zeroizing<Vec<u8>>,
    token: Token,
    /// Since when other nodes are known to gossip.
    known: HashMap<String, Instant>,
}

impl Run<'_> {
    async fn go(mut self) {
        let mut look_at = self.start;
        let mut shown_at = self.start;
        loop {
            if look_at <= Instant::now() {
                look_at = Instant::now() + LOOK;
                self.look();
            }
            self.engine.tick(self.start.elapsed());
            self.send();
            if shown_at <= Instant::now() {
                shown_at = Instant::now() + SHOW;
                self.show();
            }
            let due = (self.start + self.engine.next()).min(look_at);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                ready = self.socket.readable() => {
                    if let Err(error) = ready {
                        tracing::debug!(%error, "gossip's socket");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
            // Before timers: what says that a node lives may wait already.
            self.take();
        }
    }

    fn look(&mut self) {
        let now = self.start.elapsed();
        let stats = self.watcher.look(self.node);
        self.engine.say(now, stats);
        let (others, secret) = {
            let seen = self.node.coordination.seen();
            let others = seen.nodes().filter(|n| n.node_id != self.node.node_id());
            let at = |n: &NodeRecord| {
                let address = n.gossip_address.parse().ok()?;
                Some((Arc::from(n.node_id.as_str()), address))
            };
            (others.filter_map(at).collect(), seen.gossip_secret())
        };
        self.know(others);
        if let Some(new) = secret.filter(|s| s[..] != self.secret[..]) {
            tracing::info!("the cluster has another gossip secret");
            self.engine
                .renew_seal(&*new, self.node.cluster_id(), &self.token);
            self.secret = new.to_vec().into();
        }
    }

    fn know(&mut self, others: Vec<(Arc<str>, SocketAddr)>) {
        self.known
            .retain(|id, _| others.iter().any(|(o, _)| **o == **id));
        for (id, _) in &others {
            let new = self.known.entry(id.to_string());
            new.or_insert_with(Instant::now);
        }
        self.engine.know(others);
    }

    fn take(&mut self) {
        let mut bytes = [0; DATAGRAM_MAX + 1];
        for _ in 0..TAKE_MAX {
            // There is none, or the socket says that somebody was not there: both are nothing to wait for.
            let Ok((length, _)) = self.socket.try_recv_from(&mut bytes) else {
                return;
            };
            self.engine.receive(self.start.elapsed(), &bytes[..length]);
        }
    }

    fn send(&mut self) {
        for (to, datagram) in self.engine.take_out() {
            // What cannot be sent now is lost, as on the way.
            if let Err(error) = self.socket.try_send_to(&datagram, to) {
                tracing::debug!(%error, %to, "a datagram is not sent");
            }
        }
    }

    fn show(&self) {
        let mut nodes = BTreeMap::new();
        let now = Instant::now();
        let mut put = |id: &str, life| {
            let stats = self.engine.stats_of(id);
            let stats =
                stats.map(|(stats, age)| (stats, now.checked_sub(age).unwrap_or(self.start)));
            nodes.insert(id.to_owned(), (life, stats));
        };
        // Who is known for a while, and was never heard, is not heard.
        for (id, since) in &self.known {
            if since.elapsed() > UNHEARD {
                put(id, Life::Down);
            }
        }
        put(self.node.node_id(), Life::Alive);
        for (peer, state) in self.engine.members() {
            put(&peer.id, state.into());
        }
        self.node.gossip().put(nodes, self.engine.counts());
    }
}

impl From<foca::State> for Life {
    fn from(state: foca::State) -> Self {
        match state {
            foca::State::Alive => Self::Alive,
            foca::State::Suspect => Self::Suspect,
            foca::State::Down => Self::Down,
        }
    }
}
