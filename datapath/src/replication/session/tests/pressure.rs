//! A peer that does not take what it is sent, and a pool without buffers, hold up whoever sends, for as long as they last and no longer; memory stays bounded.

use super::super::limits::{QUEUE_BYTES, QUEUE_FRAMES};
use super::super::rig::{Event, Events, Rig};
use super::*;

/// A session with a channel.
fn scene(seed: u64) -> (Rig, Rc<Takers>, Rc<Events>, Link, Channel) {
    let rig = Rig::new(seed, 2, 1);
    let service = Rc::new(Takers::default());
    rig.accept(1, |_| service.clone());
    let events = Rc::new(Events::default());
    let link = rig.link((0, 0), 1, events.clone());
    rig.until(SECOND, "a session", || link.session().is_some());
    let channel = open(&link, &Rc::new(Taker::default()));
    rig.until(SECOND, "a channel", || service.all.borrow().len() == 1);
    (rig, service, events, link, channel)
}

/// What both halves of the queue and the simulated socket hold, in the smallest frames.
const MOST: usize = 2 * QUEUE_FRAMES + (256 << 10) / 32;

/// Sends until it is full; returns how many frames were taken. All refer to one buffer.
fn fill(rig: &Rig, channel: &Channel, blocks: usize) -> usize {
    let data = (blocks > 0).then(|| super::blocks(&rig.handle(0, 0), blocks, 9));
    for taken in 0.. {
        let data = data.clone().map(|b| (b, 0..blocks * 4096));
        let body = |out: &mut Vec<u8>| out.push(blocks.max(1) as u8);
        let sent = match data {
            Some(_) => channel.send(Kind::Batch, 3, body, data),
            None => channel.send(Kind::Flush, 3, body, []),
        };
        match sent {
            Ok(()) => assert!(taken <= MOST, "no bound"),
            Err(why) => {
                assert_eq!(why, NotSent::Full);
                return taken;
            }
        }
        // What the socket takes leaves the queue meanwhile.
        if taken % 64 == 0 {
            rig.sim.run_for(Duration::from_micros(100));
        }
    }
    unreachable!("a bound was found")
}

#[test]
fn a_full_queue_says_so_and_empties_when_the_network_is_back() {
    for (seed, blocks) in [(1, 0), (2, 1), (3, 200)] {
        let (rig, service, _, link, channel) = scene(seed);
        let taker = service.last();
        let (a, b) = (rig.nodes[0].id, rig.nodes[1].id);
        rig.sim.network(|n| n.partition(a, b));
        let sent = fill(&rig, &channel, blocks);
        let one = blocks * 4096 + 64;
        assert!(channel.unsent() <= 2 * (QUEUE_BYTES + one), "seed {seed}");
        let (on, waits) = (rig.handle(0, 0), Rc::new(Cell::new(true)));
        let (waiting, channel) = (waits.clone(), channel.clone());
        on.spawn("waits", async move {
            channel.room().await;
            waiting.set(false);
        });
        rig.sim.run_for(SECOND);
        assert!(waits.get(), "seed {seed}: no room without network");
        rig.sim.network(crate::reactor::sim::NetFaults::heal);
        rig.until(2 * SECOND, "room", || !waits.get());
        rig.until(20 * SECOND, &format!("all frames, seed {seed}"), || {
            taker.count() == 1 + sent
        });
        assert!(link.session().is_some(), "seed {seed}");
        assert_eq!(rig.handle(0, 0).buffers().stats().used, 0, "seed {seed}");
    }
}

#[test]
fn who_waits_for_room_is_told_of_the_end() {
    let (rig, _, events, link, channel) = scene(4);
    let (a, b) = (rig.nodes[0].id, rig.nodes[1].id);
    rig.sim.network(|n| n.partition(a, b));
    fill(&rig, &channel, 200);
    let outcome = Rc::new(Cell::new(None));
    let (put, waiting) = (outcome.clone(), channel.clone());
    rig.handle(0, 0).spawn("waits", async move {
        waiting.room().await;
        put.set(Some(waiting.send(Kind::Flush, 3, |out| out.push(1), [])));
    });
    rig.until(10 * SECOND, "the end", || outcome.get().is_some());
    assert_eq!(outcome.get(), Some(Err(NotSent::Ended)));
    let silent = Down::Silent { beats: 8 };
    assert_eq!(events.all()[1], Event::Down(silent));
    assert_eq!(channel.unsent(), 0);
    assert_eq!(rig.handle(0, 0).buffers().stats().used, 0);
    link.stop();
}

#[test]
fn a_pool_without_buffers_holds_the_sender_up() {
    let (rig, service, events, link, channel) = scene(5);
    let taker = service.last();
    let replica = rig.handle(1, 0);
    let mut all = Vec::new();
    while let Some(buffer) = replica.buffers().try_take(4096) {
        all.push(buffer);
    }
    let sent = fill(&rig, &channel, 60);
    rig.sim.run_for(3 * SECOND);
    assert_eq!(taker.count(), 1, "nothing without buffers");
    all.clear();
    rig.until(20 * SECOND, "all frames", || taker.count() == 1 + sent);
    assert_eq!(events.ups(), 1);
    // And for too long.
    while let Some(buffer) = replica.buffers().try_take(4096) {
        all.push(buffer);
    }
    let data = (super::blocks(&rig.handle(0, 0), 2, 1), 0..8192);
    channel
        .send(Kind::Batch, 3, |out| out.push(2), [data])
        .unwrap();
    rig.until(10 * SECOND, "an end", || link.session().is_none());
    rig.until(SECOND, "a reason", || {
        let ended = Some(Ended::Down(Down::Buffers { beats: 8 }));
        *taker.ended.borrow() == ended
    });
    assert_eq!(taker.count(), 1 + sent);
    rig.until(3 * SECOND, "another session", || events.ups() == 2);
}

#[test]
fn credits_bound_what_is_on_its_way_over_all_channels() {
    let (rig, service, _, link, channel) = scene(6);
    let other = open(&link, &Rc::new(Taker::default()));
    rig.until(SECOND, "a channel", || service.all.borrow().len() == 2);
    let theirs = service.last().channel.borrow().clone().unwrap();
    assert!(!channel.credit().take(Amount::new(1, 0)), "none at first");
    channel.credit().granted(theirs.grants().granted());
    assert!(other.credit().take(Amount::new(4000, 0)));
    assert!(!channel.credit().take(Amount::new(97, 0)), "shared");
    assert_eq!(theirs.grants().come(Amount::new(4000, 1 << 24)), Ok(()));
    let over = theirs.grants().come(Amount::new(0, 1));
    assert_eq!(over, Err(OverCredit));
    theirs.grants().done(Amount::new(1000, 4096));
    let waiting = channel.clone();
    let told = Rc::new(Cell::new(false));
    let tell = told.clone();
    rig.handle(0, 0).spawn("credit", async move {
        waiting.credit().changed().await;
        tell.set(waiting.credit().take(Amount::new(97, 4096)));
    });
    rig.sim.run_for(SECOND);
    channel.credit().granted(theirs.grants().granted());
    rig.until(SECOND, "credit", || told.get());
}
