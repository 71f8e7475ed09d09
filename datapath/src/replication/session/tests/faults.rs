//! Connections are reset amid frames, directions are cut and healed, links are made anew: whatever happens, of each session a beginning of what was sent is
//! applied, in order, nothing of an older session after something of a newer, and nobody hears of a session that is down.

use std::collections::BTreeMap;

use super::super::rig::{Event, Events, Rig};
use super::*;
use crate::reactor::Handle as Reactor;
use crate::reactor::sim::NetFaults;

/// What a replica did, in the order in which it was done: session, and number of the frame in it.
#[derive(Default)]
struct Log {
    applied: RefCell<Vec<(u64, u64)>>,
    /// Frames whose data began to come.
    begun: Cell<u64>,
    finished: Cell<u64>,
}

/// How many blocks of data frame `number` has, if it has some.
fn blocks_of(number: u64) -> usize {
    2 + (number % 3) as usize * 4
}

/// Applies frames after a while.
struct Applier {
    on: Reactor,
    log: Rc<Log>,
    channel: RefCell<Option<Channel>>,
    expected: Cell<u64>,
}

impl Handler for Applier {
    fn layout(
        &self,
        _: Kind,
        _: &[u8],
        data: usize,
        pieces: &mut Vec<usize>,
    ) -> Result<(), Broken> {
        self.log.begun.set(self.log.begun.get() + 1);
        pieces.extend([4096, data - 4096]);
        Ok(())
    }

    fn frame(&self, frame: Frame<'_>, admitted: Admitted) -> Result<(), Broken> {
        let channel = self.channel.borrow().clone().expect("before the end");
        if frame.kind == Kind::Open {
            return Ok(());
        }
        let at = |i: usize| u64::from_le_bytes(frame.body[i..i + 8].try_into().unwrap());
        let (session, number) = (at(0), at(8));
        assert_eq!(session, channel.info().number);
        self.expected.set(self.expected.get() + 1);
        assert_eq!(number, self.expected.get(), "all, in order");
        if !frame.data.is_empty() {
            self.log.finished.set(self.log.finished.get() + 1);
            let rest = blocks_of(number) * 4096 - 4096;
            let (first, second) = (&frame.data[0][..4096], &frame.data[1][..rest]);
            let all = first.iter().chain(second).step_by(97);
            assert!(all.copied().all(|byte| byte == number as u8));
        }
        let (on, log) = (self.on.clone(), self.log.clone());
        let random = on.random();
        let wait = match random % 50 {
            0 => Duration::from_millis(300),
            n => Duration::from_micros(n * 20),
        };
        self.on.spawn("apply", async move {
            on.sleep(wait).await;
            log.applied.borrow_mut().push((session, number));
            // Its session may have ended: then nobody hears it.
            let _ = channel.send(Kind::Ack, 3, |out| out.extend(number.to_le_bytes()), []);
            drop(admitted);
        });
        Ok(())
    }

    fn ended(&self, _: &Ended) {
        self.channel.take();
    }
}

struct Applying {
    on: Reactor,
    log: Rc<Log>,
}

impl Service for Applying {
    fn open(
        &self,
        channel: &Channel,
        _: Kind,
        _: u32,
        _: &[u8],
    ) -> Result<Option<Rc<dyn Handler>>, Broken> {
        Ok(Some(Rc::new(Applier {
            on: self.on.clone(),
            log: self.log.clone(),
            channel: RefCell::new(Some(channel.clone())),
            expected: Cell::new(0),
        })))
    }
}

/// A coordinator: sends as long as it can, in each session from 1 on.
#[derive(Default)]
struct Sends {
    link: RefCell<Option<Link>>,
    on: RefCell<Option<Reactor>>,
    acks: Cell<u64>,
    /// The session that is up.
    up: Rc<Cell<u64>>,
    downs: RefCell<Vec<Down>>,
}

/// The coordinator's end of a channel.
struct Acks {
    session: u64,
    up: Rc<Cell<u64>>,
    of: Rc<Sends>,
}

impl Handler for Acks {
    fn frame(&self, _: Frame<'_>, _: Admitted) -> Result<(), Broken> {
        assert_eq!(self.up.get(), self.session, "a frame of a dead session");
        self.of.acks.set(self.of.acks.get() + 1);
        Ok(())
    }

    fn ended(&self, _: &Ended) {
        assert_eq!(
            self.up.get(),
            self.session,
            "the last word comes before down"
        );
    }
}

struct Owning(Rc<Sends>);

impl Owner for Owning {
    fn up(&self, info: &Info) {
        let sends = self.0.clone();
        assert_eq!(sends.up.replace(info.number), 0, "one at a time");
        let handler = Rc::new(Acks {
            session: info.number,
            up: sends.up.clone(),
            of: sends.clone(),
        });
        let link = sends.link.borrow();
        let channel = link
            .as_ref()
            .unwrap()
            .open_channel(handler)
            .expect("it is up");
        let on = sends.on.borrow().clone().unwrap();
        let session = info.number;
        let opened = channel.send(Kind::Open, 3, |out| out.push(1), []);
        assert_eq!(opened, Ok(()));
        on.clone().spawn("send", async move {
            for number in 1_u64.. {
                let fill = |out: &mut Vec<u8>| {
                    out.extend(session.to_le_bytes());
                    out.extend(number.to_le_bytes());
                };
                let blocks = blocks_of(number);
                let data = (number % 4 == 0)
                    .then(|| on.buffers().try_take(blocks * 4096))
                    .flatten();
                let data = data.map(|mut buffer| {
                    buffer.fill(number as u8);
                    (Rc::new(buffer), 0..blocks * 4096)
                });
                channel.room().await;
                if channel.send(Kind::Batch, 3, fill, data) == Err(NotSent::Ended) {
                    return;
                }
                on.sleep(Duration::from_micros(on.random() % 1500)).await;
            }
        });
    }

    fn down(&self, why: &Down) {
        assert_ne!(self.0.up.replace(0), 0);
        self.0.downs.borrow_mut().push(why.clone());
    }
}

/// One thing that happens to the network or the link.
fn strike(rig: &Rig, link: &Link, n: u64) {
    let (a, b) = (rig.nodes[0].id, rig.nodes[1].id);
    match n % 9 {
        0 | 1 => rig.sim.reset_connections(a, b),
        2 => link.reset(Down::Stopped),
        3 => rig.sim.network(|n| n.partition(a, b)),
        4 => rig.sim.network(|n| {
            n.cut.insert((a, b));
        }),
        5 => rig.sim.network(|n| {
            n.cut.insert((b, a));
        }),
        6 => rig
            .sim
            .network(|n| n.latency = (Duration::from_micros(20), Duration::from_millis(3))),
        _ => rig.sim.network(|n| {
            n.heal();
            n.latency = NetFaults::default().latency;
        }),
    }
}

/// What came of a run.
struct Outcome {
    /// Frames that were cut amid their data.
    torn: u64,
    sessions: u64,
    /// Why they went down.
    reasons: Vec<&'static str>,
    trace: u64,
}

/// Strikes for a while, then heals, and looks at what was applied.
fn run(seed: u64, strikes: usize) -> Outcome {
    let rig = Rig::new(seed, 2, 1);
    let log = Rc::new(Log::default());
    let acceptor = rig
        .accept(1, |on| {
            Rc::new(Applying {
                on: on.clone(),
                log: log.clone(),
            })
        })
        .remove(0);
    let sends = Rc::new(Sends::default());
    sends.on.replace(Some(rig.handle(0, 0)));
    let link = rig.link((0, 0), 1, Rc::new(Owning(sends.clone())));
    sends.link.replace(Some(link.clone()));
    for _ in 0..strikes {
        rig.sim
            .run_for(Duration::from_millis(rig.sim.random() % 150));
        strike(&rig, &link, rig.sim.random());
    }
    // Long enough for both sides to notice.
    strike(&rig, &link, 3);
    rig.sim.run_for(12 * SECOND);
    assert_eq!(sends.up.get(), 0, "seed {seed}: nobody is there");
    assert!(acceptor.sessions().is_empty(), "seed {seed}");
    strike(&rig, &link, 8);
    let before = sends.acks.get();
    rig.until(8 * SECOND, &format!("acks again, seed {seed}"), || {
        sends.acks.get() > before + 20
    });
    link.stop();
    rig.sim.run_for(SECOND);
    let mut newest = 0;
    let mut of: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for &(session, number) in log.applied.borrow().iter() {
        assert!(session >= newest, "seed {seed}: {session} after {newest}");
        newest = session;
        of.entry(session).or_default().push(number);
    }
    for (session, mut numbers) in of {
        numbers.sort_unstable();
        let all: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, all, "seed {seed}: session {session}");
    }
    sends.link.take();
    Outcome {
        torn: log.begun.get() - log.finished.get(),
        sessions: acceptor.counts().sessions(),
        reasons: sends.downs.borrow().iter().map(Down::name).collect(),
        trace: rig.sim.trace_hash(),
    }
}

#[test]
fn nothing_of_an_older_session_is_applied_after_a_newer_one() {
    let all: Vec<_> = (0..14).map(|seed| run(seed, 60)).collect();
    let torn: u64 = all.iter().map(|o| o.torn).sum();
    assert!(torn > 5, "connections break amid frames: {torn}");
    let sessions: u64 = all.iter().map(|o| o.sessions).sum();
    assert!(sessions > 50, "{sessions} sessions");
    for reason in ["broken", "silent", "stopped"] {
        let seen = all.iter().any(|o| o.reasons.contains(&reason));
        assert!(seen, "no session went down for {reason}");
    }
}

/// Nonces, keys and waits come of the seed, so what a seed finds it finds again.
#[test]
fn a_seed_repeats() {
    assert_eq!(run(3, 8).trace, run(3, 8).trace);
    assert_ne!(run(3, 8).trace, run(4, 8).trace);
}

#[test]
fn a_half_open_session_is_noticed_on_both_sides() {
    for seed in 0..4 {
        for direction in 0..3 {
            let rig = Rig::new(seed, 2, 1);
            let acceptor = rig.accept(1, |_| Rc::new(Takers::default())).remove(0);
            let events = Rc::new(Events::default());
            let link = rig.link((0, 0), 1, events.clone());
            rig.sim.run_for(30 * SECOND);
            assert_eq!(events.all().len(), 1, "seed {seed}: beats keep it up");
            strike(&rig, &link, 3 + direction);
            rig.sim.run_for(7 * SECOND);
            assert!(link.session().is_some(), "seed {seed}");
            rig.sim.run_for(4 * SECOND);
            // Who notices first closes; the other is told, if that arrives.
            let noticed = match &events.all()[1] {
                Event::Down(Down::Silent { beats: 8 }) => true,
                Event::Down(Down::Closed) => {
                    assert_eq!(acceptor.counts().sessions_ended("silent"), 1);
                    direction == 1
                }
                _ => false,
            };
            assert!(noticed, "seed {seed}, {direction}: {:?}", events.all());
            assert!(acceptor.sessions().is_empty(), "seed {seed}, {direction}");
            strike(&rig, &link, 8);
            rig.until(8 * SECOND, "a session", || events.ups() == 2);
        }
    }
}

/// The machine of the acceptor loses power, and comes back as another process.
#[test]
fn a_link_finds_a_restarted_peer() {
    let mut rig = Rig::new(5, 2, 1);
    rig.accept(1, |_| Rc::new(Takers::default()));
    let events = Rc::new(Events::default());
    let link = rig.link((0, 0), 1, events.clone());
    rig.until(SECOND, "a session", || link.session().is_some());
    let first = link.session().unwrap().incarnation;
    rig.restart(1);
    rig.sim.run_for(20 * SECOND);
    assert!(link.session().is_none());
    // Attempts are spaced: 50 ms, doubled up to 2 s.
    let failed = events.all().len() - 2;
    assert!((10..30).contains(&failed), "{failed} attempts in 20 s");
    rig.accept(1, |_| Rc::new(Takers::default()));
    rig.until(3 * SECOND, "a session", || link.session().is_some());
    assert_ne!(link.session().unwrap().incarnation, first);
}
