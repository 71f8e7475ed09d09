//! Rules 1, 2 and 13 at a replica that is served: what is on its way when a promise is asked for, leases, drives that fail.

use std::rc::Rc;
use std::time::Duration;

use super::rig::{Node, Peer, Sent, stamp, write};
use crate::reactor::sim::Sim;
use crate::replication::held::Held;
use crate::replication::replica::memory::Disk;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::heart::{Beat, Heard, encode_heartbeat};
use crate::replication::wire::list::{ListAsk, Listed};
use crate::replication::wire::promise::Promised;
use crate::replication::wire::refused::{Reason, Refused};
use crate::store::types::Stamp;

const LONG: Duration = Duration::from_secs(100);
const ZERO: Stamp = Stamp { epoch: 0, seq: 0 };

fn beat(number: u64, release: bool) -> Vec<u8> {
    let mut body = Vec::new();
    let beat = Beat {
        number,
        sent_ns: 7,
        version: 1,
        release,
    };
    encode_heartbeat(&mut body, &beat, &[]);
    body
}

/// A channel that promised, opened and is fed from the beginning.
async fn following(node: &Node, epoch: u32, process: u8) -> Peer {
    let peer = node.promise(epoch, process);
    peer.wait(Kind::Promised).await;
    let body = super::rig::open_body(process, node.rules.disk.borrow().lanes(), false);
    peer.frame(Kind::Open, &body).unwrap();
    peer.wait(Kind::Opened).await;
    let lanes = vec![(0, ZERO); usize::from(node.rules.disk.borrow().lanes())];
    peer.feed(&lanes).unwrap();
    peer
}

/// Stamps on a lane's list.
async fn listed(peer: &Peer, lane: u8) -> Vec<Stamp> {
    let mut all = Vec::new();
    loop {
        let after = all.last().copied().unwrap_or(ZERO);
        let mut body = Vec::new();
        let ask = ListAsk {
            lane,
            after,
            leaf: 0,
        };
        ask.put(&mut body);
        peer.frame(Kind::List, &body).unwrap();
        let sent = peer.wait(Kind::Listed).await;
        let part = Listed::decode(&sent.body).unwrap();
        all.extend(part.records().map(|r| r.head.stamp));
        if part.last {
            return all;
        }
    }
}

fn refusal(sent: &[Sent]) -> Option<Refused> {
    let last = sent.iter().find(|s| s.kind == Kind::Refused)?;
    Some(Refused::decode(&last.body).unwrap())
}

/// A write of the old epoch is with a drive while the promise is asked for: it is let run out, it is on the list, and nobody is told that it is written.
#[test]
fn what_is_on_its_way_is_listed_and_not_acknowledged() {
    let sim = Sim::new(1);
    let (_, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let disk = Disk::new(1, 1000);
    let done = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &disk, true, Duration::from_millis(50));
        let old = following(&node, 1, 1).await;
        old.take();
        let one = write(&handle, 0, stamp(1, 0, 1), 0, 2);
        let two = write(&handle, 0, stamp(1, 0, 3), 1, 2);
        old.batch(&[], &[(&one, 1, 0), (&two, 2, 0)]).unwrap();
        // The second waits for the first: it overlaps. The first is with the store.
        let new = node.promise(2, 1);
        new.wait(Kind::Promised).await;
        assert_eq!(disk.borrow().lane(0).records.len(), 1);
        assert_eq!(listed(&new, 0).await, [stamp(1, 0, 1)]);
        let sent = old.take();
        let kinds: Vec<_> = sent.iter().map(|s| s.kind).collect();
        assert_eq!(kinds, [Kind::Refused], "no Ack");
        let refused = refusal(&sent).unwrap();
        assert_eq!((refused.reason, refused.epoch), (Reason::Epoch, 2));
        assert_eq!(old.admitted(), 0, "all of it was let go");
    });
    done.expect("it ends");
}

/// How long a promise of another process takes from the time at which it is asked for.
fn promise_takes(seed: u64, before: impl AsyncFn(&Node, &Peer) + 'static, process: u8) -> Duration {
    let sim = Sim::new(seed);
    let (_, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let disk = Disk::new(1, 1000);
    let took = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &disk, true, Duration::from_micros(10));
        let old = following(&node, 1, 1).await;
        before(&node, &old).await;
        let asked = handle.now();
        node.promise(2, process).wait(Kind::Promised).await;
        handle.now().since(asked)
    });
    took.expect("it ends")
}

#[test]
fn leases_are_waited_for() {
    let heard = async |peer: &Peer, release: bool| {
        peer.frame(Kind::Heartbeat, &beat(1, release)).unwrap();
        let sent = peer.wait(Kind::Heard).await;
        Heard::decode(&sent.body).unwrap().lease
    };
    // T of the channel is one second.
    let given = async move |_: &Node, old: &Peer| assert!(heard(old, false).await);
    let waited = promise_takes(2, given, 2);
    assert!(waited > Duration::from_millis(990), "{waited:?}");
    let own = promise_takes(3, given, 1);
    assert!(own < Duration::from_millis(10), "{own:?}");
    let back = async move |_: &Node, old: &Peer| {
        assert!(heard(old, false).await);
        assert!(!heard(old, true).await);
    };
    let released = promise_takes(4, back, 2);
    assert!(released < Duration::from_millis(10), "{released:?}");
    let none = promise_takes(5, async |_: &Node, _: &Peer| {}, 2);
    assert!(none < Duration::from_millis(10), "{none:?}");
}

#[test]
fn once_asked_a_lease_is_given_back_but_not_renewed() {
    let sim = Sim::new(6);
    let (_, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let disk = Disk::new(1, 1000);
    let done = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &disk, true, Duration::from_micros(10));
        let old = following(&node, 1, 1).await;
        old.frame(Kind::Heartbeat, &beat(1, false)).unwrap();
        old.wait(Kind::Heard).await;
        let asked = handle.now();
        let new = node.promise(2, 2);
        handle.sleep(Duration::from_millis(100)).await;
        old.frame(Kind::Heartbeat, &beat(2, false)).unwrap();
        let heard = old.wait(Kind::Heard).await;
        assert!(!Heard::decode(&heard.body).unwrap().lease);
        // Its writes are dropped unanswered: it is not refused before the promise is kept.
        let late = write(&handle, 0, stamp(1, 0, 1), 0, 1);
        old.batch(&[], &[(&late, 1, 0)]).unwrap();
        old.frame(Kind::Heartbeat, &beat(3, true)).unwrap();
        new.wait(Kind::Promised).await;
        assert!(handle.now().since(asked) < Duration::from_millis(200));
        assert!(listed(&new, 0).await.is_empty());
        assert!(refusal(&old.take()).is_some());
    });
    done.expect("it ends");
}

#[test]
fn a_restarted_replica_is_what_it_promised_and_waits() {
    let sim = Sim::new(7);
    let (node_id, handles) = sim.start_node(1);
    let disk = Disk::new(1, 1000);
    let (handle, on) = (handles[0].clone(), disk.clone());
    let done = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &on, true, Duration::from_micros(10));
        following(&node, 5, 1).await;
    });
    done.expect("it ends");
    sim.power_cut(node_id, &[]);
    let mut coin = 0;
    disk.borrow_mut().power_cut(|| {
        coin += 1;
        coin
    });
    let handles = sim.restart_node(node_id, 1);
    let handle = handles[0].clone();
    let done = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &disk, true, Duration::from_micros(10));
        for (epoch, process, reason) in [(4, 1, Reason::Epoch), (5, 2, Reason::Incarnation)] {
            let refused = node.promise(epoch, process).wait(Kind::Refused).await;
            let refused = Refused::decode(&refused.body).unwrap();
            assert_eq!((refused.reason, refused.epoch), (reason, 5));
        }
        let open = node.open(6, 1, false).wait(Kind::Refused).await;
        assert_eq!(Refused::decode(&open.body).unwrap().reason, Reason::Epoch);
        // Its own process is answered at once, with a list that is made now.
        let again = node.promise(5, 1).wait(Kind::Promised).await;
        let promised = Promised::decode(&again.body).unwrap();
        assert_eq!(promised.head.former, (5, [1; 16]));
        let asked = handle.now();
        node.promise(6, 2).wait(Kind::Promised).await;
        let waited = handle.now().since(asked);
        assert!(
            waited > Duration::from_secs(4),
            "the longest lease: {waited:?}"
        );
    });
    done.expect("it ends");
}

/// A drive that fails amid a promise: it is not said, the fence stays, and it is said when the drive does it after all.
#[test]
fn a_promise_that_cannot_be_kept_is_not_said() {
    let sim = Sim::new(8);
    let (_, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let disk = Disk::new(1, 1000);
    let done = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &disk, true, Duration::from_micros(10));
        let old = following(&node, 1, 1).await;
        disk.borrow_mut().broken = true;
        let refused = node.promise(2, 1).wait(Kind::Refused).await;
        let refused = Refused::decode(&refused.body).unwrap();
        assert_eq!(refused.reason, Reason::Failed);
        let late = write(&handle, 0, stamp(1, 0, 1), 0, 1);
        old.batch(&[], &[(&late, 1, 0)]).unwrap();
        disk.borrow_mut().broken = false;
        let new = node.promise(2, 1);
        new.wait(Kind::Promised).await;
        assert!(listed(&new, 0).await.is_empty());
    });
    done.expect("it ends");
}

/// The takeover's own records: listed ones are confirmed if they are here, and nothing else is taken for one.
#[test]
fn listed_records_are_confirmed_if_they_are_here() {
    let sim = Sim::new(9);
    let (_, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let disk = Disk::new(1, 1000);
    let done = sim.run(&handles[0], LONG, async move {
        use crate::replication::wire::record::flag;
        let node = Node::start(&handle, &disk, false, Duration::from_micros(10));
        let old = following(&node, 1, 1).await;
        let one = write(&handle, 0, stamp(1, 0, 1), 0, 1);
        old.batch(&[], &[(&one, 1, 0)]).unwrap();
        wait_written(&old, 1).await;
        let rolled = flag::ROLLED | flag::LISTED;
        for (held, good) in [
            (&one, true),
            (&write(&handle, 0, stamp(1, 0, 9), 4, 1), false),
        ] {
            let new = following(&node, if good { 2 } else { 3 }, 1).await;
            new.batch(&[], &[(held as &Held, 1, rolled)]).unwrap();
            if good {
                wait_written(&new, 1).await;
            } else {
                let refused = new.wait(Kind::Refused).await;
                let refused = Refused::decode(&refused.body).unwrap();
                assert_eq!(refused.reason, Reason::Failed);
            }
        }
    });
    done.expect("it ends");
}

/// Waits until a lane is acknowledged as written up to here.
async fn wait_written(peer: &Peer, position: u64) {
    use crate::replication::wire::ack::Ack;
    loop {
        let sent = peer.wait(Kind::Ack).await;
        let ack = Ack::decode(&sent.body).unwrap();
        if ack.lanes().any(|l| l.written >= position) {
            return;
        }
    }
}

#[test]
fn the_channels_of_lower_epochs_end_with_the_promise() {
    let sim = Sim::new(10);
    let (_, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let disk = Disk::new(2, 1000);
    let done = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &disk, true, Duration::from_micros(10));
        let all = Rc::new([
            following(&node, 1, 1).await,
            node.open(1, 1, false),
            node.open(1, 1, false),
        ]);
        node.promise(2, 1).wait(Kind::Promised).await;
        for peer in all.iter() {
            assert!(refusal(&peer.take()).is_some());
        }
    });
    done.expect("it ends");
}
