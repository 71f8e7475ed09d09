//! A network in memory: what is sent may be lost, come twice, come late and in another order; links may be cut, nodes stop and start. All by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::State;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::gossip::engine::Engine;
use crate::gossip::peer::Peer;
use crate::gossip::seal::Seal;
use crate::gossip::stats::NodeStats;

/// What the network does to a datagram.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Percent that are lost.
    pub loss: u32,
    /// Percent that come twice.
    pub twice: u32,
    /// Longest way, in ms.
    pub late_ms: u64,
}

pub struct Net {
    pub seed: u64,
    pub now: Duration,
    pub weather: Weather,
    /// By node; `None`: it does not run.
    engines: Vec<Option<Engine>>,
    /// Since when an engine runs: its clock is its own.
    started: Vec<Duration>,
    generations: Vec<u64>,
    /// From whom to whom nothing comes.
    pub cut: BTreeSet<(usize, usize)>,
    /// By when they come, then as they were sent: from, to, what.
    under_way: BTreeMap<(Duration, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
    say_at: Duration,
    random: StdRng,
    /// All that was sent, for who wants to send it again.
    pub recorded: Vec<(usize, Vec<u8>)>,
    /// What changed in what was heard of whom.
    seen: BTreeMap<(usize, usize), String>,
    pub history: Vec<String>,
}

pub fn id(node: usize) -> String {
    format!("n{node}")
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 9023))
}

impl Net {
    pub fn new(seed: u64, nodes: usize, weather: Weather) -> Self {
        let mut net = Self {
            seed,
            now: Duration::ZERO,
            weather,
            engines: (0..nodes).map(|_| None).collect(),
            started: vec![Duration::ZERO; nodes],
            generations: vec![1000; nodes],
            cut: BTreeSet::new(),
            under_way: BTreeMap::new(),
            sent: 0,
            say_at: Duration::ZERO,
            random: StdRng::seed_from_u64(seed),
            recorded: Vec::new(),
            seen: BTreeMap::new(),
            history: Vec::new(),
        };
        (0..nodes).for_each(|n| net.start(n));
        net
    }

    pub fn nodes(&self) -> usize {
        self.engines.len()
    }

    /// A node starts, with a clock that says this more than at its last start.
    pub fn start_later(&mut self, node: usize, by: i64) {
        self.generations[node] = self.generations[node].checked_add_signed(by).unwrap();
        let seal = Seal::new(b"secret", "c", b"token", self.random.random());
        let me = Peer::new(&id(node), self.generations[node], address(node));
        let mut engine = Engine::new(me, seal, self.random.random());
        let others = (0..self.nodes()).filter(|n| *n != node);
        engine.know(others.map(|n| (id(n).into(), address(n))).collect());
        self.started[node] = self.now;
        self.engines[node] = Some(engine);
    }

    pub fn start(&mut self, node: usize) {
        self.start_later(node, 1);
    }

    pub fn stop(&mut self, node: usize) {
        self.engines[node] = None;
    }

    /// Nothing comes from these to the others, nor back.
    pub fn part(&mut self, these: &[usize]) {
        for a in 0..self.nodes() {
            for b in 0..self.nodes() {
                if these.contains(&a) != these.contains(&b) {
                    self.cut.insert((a, b));
                }
            }
        }
    }

    pub fn engine(&mut self, node: usize) -> &mut Engine {
        self.engines[node].as_mut().unwrap()
    }

    pub fn runs(&self, node: usize) -> bool {
        self.engines[node].is_some()
    }

    /// What a node hears of another one.
    pub fn hears(&self, node: usize, other: usize) -> Option<State> {
        let engine = self.engines[node].as_ref().unwrap();
        let mut all = engine.members();
        all.find(|(p, _)| *p.id == *id(other)).map(|(_, s)| s)
    }

    /// Every node that runs hears each other that runs, and no other.
    pub fn agrees(&self) -> bool {
        let all = 0..self.nodes();
        let running = || all.clone().filter(|n| self.runs(*n));
        running().all(|n| {
            let others = all.clone().filter(|o| *o != n);
            others.into_iter().all(|o| {
                let alive = self.hears(n, o) == Some(State::Alive);
                let down = matches!(self.hears(n, o), None | Some(State::Down));
                if self.runs(o) { alive } else { down }
            })
        })
    }

    /// Lets time pass, one event after the other; `stopped` does nothing meanwhile, and gets nothing.
    pub fn pass_without(
        &mut self,
        time: Duration,
        stopped: Option<usize>,
        mut look: impl FnMut(&Net),
    ) {
        let until = self.now + time;
        loop {
            let clocks = self.engines.iter().zip(&self.started).enumerate();
            let clocks = clocks.filter(|(n, _)| Some(*n) != stopped);
            let due = clocks
                .filter_map(|(_, (e, s))| Some(e.as_ref()?.next() + *s))
                .min();
            let comes = self.under_way.first_key_value().map(|((at, _), _)| *at);
            let next = [due, comes, Some(self.say_at)].into_iter().flatten().min();
            let next = next.filter(|n| *n <= until);
            self.now = next.unwrap_or(until).max(self.now);
            while let Some(first) = self
                .under_way
                .first_entry()
                .filter(|e| e.key().0 <= self.now)
            {
                let (from, to, datagram) = first.remove();
                let now = self.now - self.started[to];
                let hears = Some(to) != stopped && !self.cut.contains(&(from, to));
                if let Some(engine) = self.engines[to].as_mut().filter(|_| hears) {
                    engine.receive(now, &datagram);
                }
            }
            let say = self.say_at <= self.now;
            if say {
                self.say_at = self.now + Duration::from_secs(2);
            }
            for n in (0..self.nodes()).filter(|n| Some(*n) != stopped) {
                let now = self.now - self.started[n];
                let Some(engine) = self.engines[n].as_mut() else {
                    continue;
                };
                if say {
                    let load_permille = 10 * n as u16;
                    engine.say(
                        now,
                        NodeStats {
                            load_permille,
                            ..NodeStats::default()
                        },
                    );
                }
                engine.tick(now);
                for (to, datagram) in engine.take_out() {
                    self.send(n, to, datagram);
                }
            }
            self.note();
            look(self);
            if next.is_none() {
                return;
            }
        }
    }

    fn note(&mut self) {
        for (a, engine) in self.engines.iter().enumerate() {
            let Some(engine) = engine else { continue };
            for b in 0..self.engines.len() {
                let Some(member) = engine.member(&id(b)) else {
                    continue;
                };
                let (of, state) = (member.id().generation, member.state());
                let now = format!("{state:?} {of}.{}", member.incarnation());
                if self.seen.get(&(a, b)) != Some(&now) {
                    self.history
                        .push(format!("{:?}: {a} of {b}: {now}", self.now));
                    self.seen.insert((a, b), now);
                }
            }
        }
    }

    /// The last changes.
    pub fn lately(&self) -> String {
        let from = self.history.len().saturating_sub(40);
        self.history[from..].join("\n")
    }

    pub fn pass(&mut self, time: Duration) {
        self.pass_without(time, None, |_| ());
    }

    /// Until all agree; how long it took.
    pub fn until_agreed(&mut self, limit: Duration) -> Duration {
        let begun = self.now;
        while !self.agrees() {
            let took = self.now - begun;
            assert!(
                took < limit,
                "seed {}: no agreement after {took:?}",
                self.seed
            );
            self.pass(Duration::from_millis(100));
        }
        self.now - begun
    }

    fn send(&mut self, from: usize, to: SocketAddr, datagram: Vec<u8>) {
        let to = (0..self.nodes()).find(|n| address(*n) == to).unwrap();
        self.recorded.push((to, datagram.clone()));
        let mut chance = |percent| self.random.random_range(0..100) < percent;
        let (lost, twice) = (chance(self.weather.loss), chance(self.weather.twice));
        for _ in 0..u8::from(!lost) + u8::from(twice) {
            self.sent += 1;
            let ms = 1 + self.random.random_range(0..=self.weather.late_ms);
            let at = self.now + Duration::from_millis(ms);
            self.under_way
                .insert((at, self.sent), (from, to, datagram.clone()));
        }
    }
}
