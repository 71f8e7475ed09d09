//! A connection breaks while the replica still writes what came over it; the next one brings newer records of the same blocks, and then the old write is done.
//! So a session begins only when everything that the one before admitted has completed.

use super::super::handshake::initiate;
use super::super::rig::{Event, Events, Rig, credentials, name};
use super::*;
use crate::replication::wire::hello::Refusal;

/// Two nodes, a link between them, and a channel whose acceptor keeps what it is given.
fn busy(seed: u64) -> (Rig, Acceptor, Rc<Takers>, Rc<Events>, Link, Channel) {
    let rig = Rig::new(seed, 2, 1);
    let service = Rc::new(Takers::default());
    service.hold.set(true);
    let acceptor = rig.accept(1, |_| service.clone()).remove(0);
    let events = Rc::new(Events::default());
    let link = rig.link((0, 0), 1, events.clone());
    rig.until(SECOND, "a session", || link.session().is_some());
    let channel = open(&link, &Rc::new(Taker::default()));
    let data = blocks(&rig.handle(0, 0), 1, 1);
    let sent = channel.send(Kind::Batch, 3, |out| out.push(1), [(data, 0..4096)]);
    assert_eq!(sent, Ok(()));
    rig.until(SECOND, "frames", || {
        service.all.borrow().len() == 1 && service.last().count() == 2
    });
    (rig, acceptor, service, events, link, channel)
}

#[test]
fn what_runs_keeps_the_next_session_out_until_it_is_done() {
    for seed in 0..6 {
        // Longer than one handshake, or shorter.
        let long = if seed % 2 == 0 {
            3 * SECOND
        } else {
            13 * SECOND
        };
        let (rig, acceptor, service, events, link, channel) = busy(seed);
        rig.sim.reset_connections(rig.nodes[0].id, rig.nodes[1].id);
        rig.sim.run_for(long);
        assert_eq!(events.ups(), 1, "seed {seed}");
        assert!(acceptor.sessions().is_empty() && link.session().is_none());
        assert!(channel.has_ended(), "seed {seed}");
        let old = service.last();
        assert!(matches!(*old.ended.borrow(), Some(Ended::Down(_))));
        let mut held = old.held.take();
        assert_eq!(held.len(), 2, "two frames were admitted");
        // The work on one goes on in another task, which has a clone.
        let clone = held[1].clone();
        held.clear();
        rig.sim.run_for(SECOND);
        assert_eq!(events.ups(), 1, "seed {seed}: one of them still runs");
        drop(clone);
        rig.until(6 * SECOND, "the next session", || events.ups() == 2);
        let Some(Event::Up(info)) = events.last() else {
            panic!("seed {seed}: {:?}", events.last())
        };
        assert!(info.number > 1, "seed {seed}");
        assert_eq!(old.count(), 2, "seed {seed}: nothing came afterwards");
        service.hold.set(false);
        self::open(&link, &Rc::new(Taker::default()));
        rig.until(SECOND, "a channel", || service.all.borrow().len() == 2);
    }
}

/// The same process asks again while its session is up: it must have lost it without us noticing. With `again`, its link asks once more.
fn asked_again(seed: u64, again: bool) -> Result<u64, NoSession> {
    let (rig, acceptor, service, events, link, _channel) = busy(seed);
    let (handle, identity) = (rig.handle(0, 0), rig.identity(0, 0));
    let made = Rc::new(RefCell::new(None));
    let put = made.clone();
    let on = handle.clone();
    handle.spawn("again", async move {
        let session = initiate(&on, &identity, name(1)).await;
        put.replace(Some(session.map(|(_, info)| info.number)));
    });
    rig.until(SECOND, "the older one's end", || events.all().len() == 2);
    assert_eq!(events.all()[1], Event::Down(Down::Closed));
    assert_eq!(acceptor.counts().sessions_ended("replaced"), 1);
    if !again {
        link.stop();
    }
    rig.sim.run_for(SECOND);
    assert!(link.session().is_none() && acceptor.sessions().is_empty());
    assert_eq!(
        made.borrow().is_some(),
        again,
        "the older one has not drained"
    );
    service.last().held.take();
    rig.until(SECOND, "a session", || acceptor.counts().sessions() == 2);
    rig.until(SECOND, "an outcome", || made.borrow().is_some());
    assert_eq!(link.session().map(|s| s.number), again.then_some(3));
    made.take().unwrap()
}

#[test]
fn a_newer_session_ends_the_older_and_waits_for_it() {
    assert_eq!(asked_again(21, false), Ok(2));
}

#[test]
fn who_waits_gives_way_to_who_comes_later() {
    let busy = NoSession::Refused(Refusal::Busy);
    assert_eq!(asked_again(21, true), Err(busy));
}

#[test]
fn a_number_that_is_not_higher_is_refused_and_disturbs_nobody() {
    let (rig, acceptor, service, events, link, channel) = busy(22);
    // The same process, as far as anybody can see, with a count that begins again.
    let twin = Identity::new(&credentials(0, 0), rig.handle(0, 0).id()).unwrap();
    twin.set_peers(
        [(
            name(1),
            super::super::rig::peer(1, super::super::rig::address(1)),
        )]
        .into(),
    );
    let handle = rig.handle(0, 0);
    let on = handle.clone();
    let refused = rig
        .sim
        .run(&handle, SECOND, async move {
            initiate(&on, &twin, name(1)).await.map(|(_, info)| info)
        })
        .expect("an answer");
    assert_eq!(refused, Err(NoSession::Refused(Refusal::Busy)));
    assert_eq!(acceptor.counts().handshakes_failed("busy"), 1);
    let sent = channel.send(Kind::Flush, 3, |out| out.push(1), []);
    assert_eq!(sent, Ok(()));
    rig.until(SECOND, "a frame of the session that is there", || {
        service.last().count() == 3
    });
    assert!(link.session().is_some() && events.ups() == 1);
}

/// Another process of the same node does not wait for the older one's work: the epoch fences that.
#[test]
fn another_incarnation_does_not_wait() {
    let (mut rig, acceptor, service, _, _, channel) = busy(23);
    drop(channel);
    rig.restart(0);
    let events = Rc::new(Events::default());
    let link = rig.link((0, 0), 1, events.clone());
    rig.until(SECOND, "a session", || link.session().is_some());
    assert_eq!(service.last().held.borrow().len(), 2);
    rig.until(SECOND, "the end of the older", || {
        acceptor.sessions().len() == 1
    });
}

/// Close waits for what runs on its channel, and for nothing else.
#[test]
fn a_closed_channel_ends_when_its_frames_have_completed() {
    let (rig, _, service, events, link, channel) = busy(24);
    let slow = service.last();
    service.hold.set(false);
    let quick = Rc::new(Taker::default());
    let other = open(&link, &quick);
    channel.close(3);
    other.close(3);
    rig.until(SECOND, "the end of the quick one", || {
        *quick.ended.borrow() == Some(Ended::Closed)
    });
    assert_eq!(*slow.ended.borrow(), None);
    let back = slow.channel.borrow().clone().unwrap();
    let sent = back.send(Kind::Ack, 3, |out| out.push(9), []);
    assert_eq!(sent, Ok(()), "what was admitted is answered");
    slow.held.take();
    rig.until(SECOND, "the end of the slow one", || {
        *slow.ended.borrow() == Some(Ended::Closed)
    });
    let sent = back.send(Kind::Ack, 3, |out| out.push(9), []);
    assert_eq!(sent, Err(NotSent::Ended));
    assert_eq!(events.all().len(), 1);
}
