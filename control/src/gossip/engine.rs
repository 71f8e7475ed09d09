//! Gossip without I/O: datagrams and the time go in, datagrams come out. Everything that is random follows from the seed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use foca::{Config, Foca, Notification, PeriodicParams, Runtime, State, Timer};
use rand_small::SeedableRng;
use rand_small::rngs::SmallRng;
use rand_small::seq::SliceRandom;

use super::peer::Peer;
use super::seal::{MESSAGE_MAX, Refused, Seal};
use super::stats::{Book, NodeStats};
use super::wire::Wire;

/// How often another node is probed.
pub const PROBE: Duration = Duration::from_secs(1);
/// How long an answer may take before others are asked to probe.
const ANSWER: Duration = Duration::from_millis(500);
/// How long a suspect node has to say that it lives.
pub const REFUTE: Duration = Duration::from_secs(4);
/// How often what is new is sent on.
const SPREAD: Duration = Duration::from_millis(500);
/// Nodes that it is sent to, and that are asked to probe.
const FAN: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// How often each node sends an item on, at most.
const TIMES: NonZeroU8 = NonZeroU8::new(10).unwrap();
/// How often nodes that are not heard are announced to.
pub const ANNOUNCE: Duration = Duration::from_secs(2);
/// How often one that is heard is: so that views that differ by bad luck become one.
const COMPARE: Duration = Duration::from_secs(30);
/// How long it is known that a node was taken for dead.
const FORGET: Duration = Duration::from_secs(3600);
/// A timer that is later than this shows that the process was stopped.
const LATE: Duration = Duration::from_millis(1500);

/// Datagrams that went, came and were refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent.
    pub sent: u64,
    /// Received and taken.
    pub received: u64,
    /// By reason, as [`Refused`] has them.
    pub refused: [u64; 5],
}

impl Counts {
    fn refuse(&mut self, why: Refused) {
        self.refused[why as usize] += 1;
    }
}

/// See the module's text.
pub struct Engine {
    foca: Foca<Peer, Wire, SmallRng, Book>,
    seal: Seal,
    book: Book,
    random: SmallRng,
    /// By when they are due, then as they were set.
    timers: BTreeMap<(Duration, u64), Timer<Peer>>,
    set: u64,
    announce_at: Duration,
    connected: bool,
    /// Other nodes of the records.
    known: Vec<(Arc<str>, SocketAddr)>,
    out: Vec<(SocketAddr, Vec<u8>)>,
    sequence: u64,
    counts: Counts,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({:?})", self.foca.identity())
    }
}

/// What foca asks for in a call.
#[derive(Default)]
struct Asked {
    send: Vec<(Peer, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Peer>)>,
    /// Somebody knows this node by its generation of now, or nobody does any more.
    connected: Option<bool>,
}

impl Runtime<Peer> for Asked {
    fn notify(&mut self, what: Notification<'_, Peer>) {
        match what {
            Notification::MemberUp(peer) => {
                tracing::info!(node = &*peer.id, address = %peer.address, "gossip: a node is heard");
            }
            Notification::MemberDown(peer) => {
                tracing::warn!(node = &*peer.id, address = %peer.address, "gossip: a node is not heard");
            }
            Notification::Active => self.connected = Some(true),
            Notification::Idle | Notification::Defunct => self.connected = Some(false),
            Notification::Rejoin(me) => {
                self.connected = Some(false);
                tracing::info!(
                    generation = me.generation,
                    "gossip: others took this node for dead"
                );
            }
            _ => {}
        }
    }

    fn send_to(&mut self, to: Peer, data: &[u8]) {
        self.send.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<Peer>, after: Duration) {
        self.timers.push((after, timer));
    }
}

fn config() -> Config {
    Config {
        probe_period: PROBE,
        probe_rtt: ANSWER,
        num_indirect_probes: FAN,
        max_transmissions: TIMES,
        suspect_to_down_after: REFUTE,
        remove_down_after: Some(FORGET),
        max_packet_size: const { NonZeroUsize::new(MESSAGE_MAX).unwrap() },
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams {
            frequency: COMPARE,
            num_members: NonZeroUsize::MIN,
        }),
        // Those of the records are announced to here.
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: SPREAD,
            num_members: FAN,
        }),
    }
}

impl Engine {
    /// A node that begins at time 0.
    pub fn new(me: Peer, seal: Seal, seed: u64) -> Self {
        let book = Book::default();
        let random = SmallRng::seed_from_u64(seed);
        Self {
            foca: Foca::with_custom_broadcast(me, config(), random, Wire, book.clone()),
            seal,
            book,
            random: SmallRng::seed_from_u64(!seed),
            timers: BTreeMap::new(),
            set: 0,
            announce_at: Duration::ZERO,
            connected: false,
            known: Vec::new(),
            out: Vec::new(),
            sequence: 0,
            counts: Counts::default(),
        }
    }

    /// The other nodes of the records, and where they gossip.
    pub fn know(&mut self, others: Vec<(Arc<str>, SocketAddr)>) {
        self.known = others;
    }

    /// The cluster has another secret.
    pub fn renew_seal(&mut self, secret: &[u8], cluster_id: &str, token: &[u8]) {
        self.seal.renew(secret, cluster_id, token);
    }

    /// How busy this node is; its id, generation and number are set here.
    pub fn say(&mut self, now: Duration, mut stats: NodeStats) {
        self.book.set_now(now);
        self.sequence += 1;
        stats.node_id = self.foca.identity().id.to_string();
        stats.generation = self.foca.identity().generation;
        stats.sequence = self.sequence;
        if let Err(error) = self.foca.add_broadcast(&stats.encode()) {
            tracing::debug!(%error, "statistics cannot be told");
        }
    }

    /// A datagram came. What cannot be used of it is counted.
    pub fn receive(&mut self, now: Duration, datagram: &[u8]) {
        self.book.set_now(now);
        let message = match self.seal.open(datagram) {
            Ok(message) => message,
            Err(why) => return self.counts.refuse(why),
        };
        let mut asked = Asked::default();
        let taken = self.foca.handle_data(message, &mut asked);
        match taken {
            // Of an answer that came too late, or to what this node was.
            Ok(()) | Err(foca::Error::IndirectForOurselves) => self.counts.received += 1,
            Err(error) => {
                tracing::debug!(%error, "a signed datagram is no message");
                self.counts.refuse(Refused::Malformed);
            }
        }
        self.heed(now, asked);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration) {
        self.book.set_now(now);
        self.make_up(now);
        while let Some(first) = self.timers.first_entry() {
            if first.key().0 > now {
                break;
            }
            let timer = first.remove();
            let doomed = match &timer {
                Timer::ChangeSuspectToDown { member_id, .. } => Some(member_id.clone()),
                _ => None,
            };
            let mut asked = Asked::default();
            if let Err(error) = self.foca.handle_timer(timer, &mut asked) {
                tracing::debug!(%error, "gossip");
            }
            // foca 2.0.0 tells a node that it is dead also if it said in time that it lives.
            if doomed.is_some_and(|peer| !self.is_down(&peer)) {
                asked.send.clear();
            }
            self.heed(now, asked);
        }
        if self.announce_at <= now {
            self.announce_at = now + ANNOUNCE;
            self.announce(now);
        }
    }

    fn is_down(&self, peer: &Peer) -> bool {
        let mut all = self.foca.iter_membership_state();
        all.any(|m| m.id() == peer && m.state() == State::Down)
    }

    /// Nobody is taken for dead because this process was stopped: what was due moves by what it missed.
    fn make_up(&mut self, now: Duration) {
        let due = self.timers.first_key_value().map(|((at, _), _)| *at);
        let late = due.map(|at| now.saturating_sub(at)).unwrap_or_default();
        if late > LATE {
            let moved = std::mem::take(&mut self.timers).into_iter();
            let moved = moved.map(|((at, n), timer)| ((at + late, n), timer));
            self.timers = moved.collect();
        }
    }

    fn announce(&mut self, now: Duration) {
        // Who has raised its generation is known to nobody until somebody answers.
        let heard: Vec<Arc<str>> = self
            .foca
            .iter_members()
            .filter(|_| self.connected)
            .map(|m| m.id().id.clone())
            .collect();
        let mut silent: Vec<_> = self
            .known
            .iter()
            .filter(|(id, _)| !heard.contains(id))
            .cloned()
            .collect();
        silent.shuffle(&mut self.random);
        for (id, address) in silent.into_iter().take(FAN.get()) {
            let mut asked = Asked::default();
            // It is asked for whatever generation it has.
            let peer = Peer::new(&id, 0, address);
            if let Err(error) = self.foca.announce(peer, &mut asked) {
                tracing::debug!(%error, node = &*id, "cannot be announced to");
            }
            self.heed(now, asked);
        }
    }

    fn heed(&mut self, now: Duration, asked: Asked) {
        self.connected = asked.connected.unwrap_or(self.connected);
        for (after, timer) in asked.timers {
            self.set += 1;
            self.timers.insert((now + after, self.set), timer);
        }
        for (to, message) in asked.send {
            self.counts.sent += 1;
            let datagram = self.seal.close(&message);
            self.out.push((to.address, datagram));
        }
    }

    /// When something is due.
    pub fn next(&self) -> Duration {
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        timer.map_or(self.announce_at, |at| at.min(self.announce_at))
    }

    /// Datagrams that are to be sent.
    pub fn take_out(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.out)
    }

    /// What is heard of other nodes.
    pub fn members(&self) -> impl Iterator<Item = (&Peer, State)> {
        let all = self.foca.iter_membership_state();
        all.map(|m| (m.id(), m.state()))
    }

    /// Everything of another node, for messages of tests.
    #[cfg(test)]
    pub fn member(&self, id: &str) -> Option<&foca::Member<Peer>> {
        self.foca
            .iter_membership_state()
            .find(|m| *m.id().id == *id)
    }

    /// This node, as it is known.
    #[cfg(test)]
    pub fn me(&self) -> &Peer {
        self.foca.identity()
    }

    /// The newest statistics of a node, and how old they are.
    pub fn stats_of(&self, node_id: &str) -> Option<(NodeStats, Duration)> {
        self.book.of(node_id)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
