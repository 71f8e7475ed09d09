//! A replica that follows: what is written and acknowledged, what is refused, sets, and being copied to.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::rig::{
    Node, Peer, REPLICA, filling, open_body, snapshot, stamp, standing, tombstone, write,
};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;
use crate::replication::held::Held;
use crate::replication::replica::Breach;
use crate::replication::replica::memory::Disk;
use crate::replication::seam::{Kind as BlockKind, Standing};
use crate::replication::wire::ack::{Ack, AckHead};
use crate::replication::wire::frame::Kind;
use crate::replication::wire::heart::{Beat, Flush, encode_heartbeat};
use crate::replication::wire::list::{Fetch, Fetched, Found};
use crate::replication::wire::promise::{Purpose, encode_set};
use crate::replication::wire::read::{Read, ReadDone, ReadResult};
use crate::replication::wire::record::{Content, flag};
use crate::replication::wire::refused::{Reason, Refused};
use crate::replication::wire::resync::{Copied, CopyWriter, Tree};
use crate::store::types::{LaneBlock, Stamp};

const LONG: Duration = Duration::from_secs(100);
const ZERO: Stamp = Stamp { epoch: 0, seq: 0 };

/// Runs a test with a replica of one lane that follows epoch 3, fed from the beginning.
fn with<F: Future<Output = ()> + 'static>(
    seed: u64,
    volatile: bool,
    test: impl FnOnce(Handle, Node, Peer, Rc<RefCell<Disk>>) -> F + 'static,
) {
    let sim = Sim::new(seed);
    let (_, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let disk = Disk::new(1, 100);
    let done = sim.run(&handles[0], LONG, async move {
        let node = Node::start(&handle, &disk, volatile, Duration::from_micros(30));
        let peer = node.promise(3, 1);
        peer.wait(Kind::Promised).await;
        peer.frame(Kind::Open, &open_body(1, 1, false)).unwrap();
        peer.wait(Kind::Opened).await;
        peer.feed(&[(0, ZERO)]).unwrap();
        test(handle, node, peer, disk).await;
    });
    done.expect("it ends");
}

/// Waits for an Ack that satisfies this; returns the head and (written, stable).
async fn ack(peer: &Peer, until: impl Fn(&AckHead, u64, u64) -> bool) -> AckHead {
    let (mut written, mut stable) = (0, 0);
    loop {
        let sent = peer.wait(Kind::Ack).await;
        let ack = Ack::decode(&sent.body).unwrap();
        for lane in ack.lanes() {
            (written, stable) = (lane.written, lane.stable);
        }
        if until(&ack.head, written, stable) {
            return ack.head;
        }
    }
}

async fn refused(peer: &Peer) -> Reason {
    let sent = peer.wait(Kind::Refused).await;
    Refused::decode(&sent.body).unwrap().reason
}

#[test]
fn written_then_stable() {
    with(1, true, |handle, _node, peer, _| async move {
        let one = write(&handle, 0, stamp(3, 0, 1), 0, 2);
        let two = tombstone(0, stamp(3, 0, 3), 1, 9);
        peer.batch(&[], &[(&one, 1, 0), (&two, 2, 0)]).unwrap();
        let mut body = Vec::new();
        Flush { number: 7 }.put(&mut body);
        peer.frame(Kind::Flush, &body).unwrap();
        // The flush waits for what came before it.
        let head = ack(&peer, |h, _, _| h.flushed == 7).await;
        assert_eq!(head.space, 2 + 98, "what was taken, and what is left");
        // Without being asked, too.
        let three = write(&handle, 0, stamp(3, 0, 4), 0, 1);
        let began = handle.now();
        peer.batch(&[], &[(&three, 3, 0)]).unwrap();
        ack(&peer, |_, written, stable| (written, stable) == (3, 3)).await;
        let took = handle.now().since(began);
        assert!(took < 2 * super::super::FLUSH_AFTER, "{took:?}");
        assert!(peer.frame(Kind::Flush, &body).is_err(), "an old number");
    });
}

/// A coordinator counts the blocks that it has sent: what is granted must rise with them, or a session ends when a drive's worth was written. And it must be
/// said without a record that is acknowledged: there is none while everything is refused for want of space.
#[test]
fn space_that_comes_back_is_granted() {
    with(4, true, |handle, _node, peer, disk| async move {
        for n in 0..30_u64 {
            let record = write(&handle, 0, stamp(3, 0, 1 + 10 * n), 0, 10);
            peer.batch(&[], &[(&record, n + 1, 0)]).unwrap();
            ack(&peer, |_, written, _| written == n + 1).await;
            // A checkpoint gave back what was superseded.
            disk.borrow_mut().space = 90;
            handle.sleep(Duration::from_millis(1)).await;
            peer.take();
            let beat = Beat {
                number: n + 1,
                sent_ns: 0,
                version: 1,
                release: false,
            };
            let mut body = Vec::new();
            encode_heartbeat(&mut body, &beat, &[]);
            peer.frame(Kind::Heartbeat, &body).unwrap();
            let head = ack(&peer, |_, _, _| true).await;
            assert_eq!(head.space, 10 * (n + 1) + 90);
        }
    });
}

#[test]
fn a_write_through_store_is_stable_at_once_and_one_ack_says_all() {
    with(2, false, |handle, node, peer, _| async move {
        node.handle.sleep(Duration::from_millis(1)).await;
        peer.take();
        let before = node.rules.acks.get();
        let all: Vec<_> = (0..50)
            .map(|n| write(&handle, 0, stamp(3, 0, 1 + n), n, 1))
            .collect();
        let records: Vec<_> = all.iter().zip(1..).map(|(h, p)| (h, p, 0)).collect();
        peer.batch(&[], &records).unwrap();
        ack(&peer, |_, written, stable| (written, stable) == (50, 50)).await;
        let acks = node.rules.acks.get() - before;
        assert!(acks <= 50, "{acks} Acks for 50 records");
        assert_eq!(peer.admitted(), 0);
    });
}

/// Nothing of a frame is applied if anything of it is wrong, and the session ends.
#[test]
fn what_makes_no_sense_is_not_applied() {
    with(3, true, |handle, _node, peer, disk| async move {
        let good = write(&handle, 0, stamp(3, 0, 1), 0, 1);
        let wrong = |h: &Held, position: u64, flags: u8| {
            let done = peer.batch(&[], &[(&good, 1, 0), (h, position, flags)]);
            assert!(done.is_err(), "{h:?} at {position} with {flags}");
        };
        wrong(&write(&handle, 0, stamp(2, 0, 9), 4, 1), 2, 0);
        wrong(&write(&handle, 0, stamp(3, 0, 9), 4, 1), 2, flag::ROLLED);
        wrong(&write(&handle, 0, stamp(3, 1, 9), 4, 1), 2, 0);
        wrong(&write(&handle, 1, stamp(3, 1, 9), 4, 1), 2, 0);
        wrong(&write(&handle, 0, stamp(3, 0, 9), 4, 1), 0, 0);
        wrong(&write(&handle, 0, stamp(3, 0, 9), 4, 1), 2, flag::LISTED);
        wrong(&write(&handle, 0, stamp(3, 0, 9), 4, 1), 2, flag::REPAIR);
        // Data that are not what their checksums say.
        let mut data = handle.buffers().try_take(4096).unwrap();
        data[..4096].copy_from_slice(&filling(stamp(3, 0, 9)));
        let mut writer = crate::replication::wire::batch::BatchWriter::default();
        writer.begin([]);
        let other = write(&handle, 0, stamp(3, 0, 8), 4, 1);
        assert!(writer.add(&other.record(1, 0)));
        let (body, bytes) = writer.finish();
        let damaged = peer.frame_with(Kind::Batch, body, vec![data], bytes);
        assert!(matches!(damaged, Err(Breach::Wire(_))), "{damaged:?}");
        handle.sleep(Duration::from_millis(1)).await;
        assert!(disk.borrow().lane(0).blocks.is_empty());
        // A gap: what was in front of it is a stream by itself.
        let gap = peer.batch(&[], &[(&good, 1, 0), (&other, 3, 0)]);
        assert!(matches!(gap, Err(Breach::Sequence(_))), "{gap:?}");
    });
}

#[test]
fn more_than_was_granted_ends_the_session() {
    with(4, true, |handle, _node, peer, _| async move {
        let mut result = Ok(());
        let mut position = 1;
        // Nothing is awaited, so nothing is done with.
        while result.is_ok() && position < 3000 {
            let all: Vec<_> = (0..64)
                .map(|n| tombstone(0, stamp(3, 0, position + n), 0, 1))
                .collect();
            let records = all.iter().zip(position..).map(|(h, p)| (h, p, 0));
            result = peer.batch(&[], &records.collect::<Vec<_>>());
            position += 64;
            if position > 4096 {
                break;
            }
        }
        assert!(result.is_ok(), "4096 are granted");
        let mut over = 0;
        while result.is_ok() && over < 4096 {
            let all: Vec<_> = (0..64)
                .map(|n| tombstone(0, stamp(3, 0, position + n), 0, 1))
                .collect();
            let records = all.iter().zip(position..).map(|(h, p)| (h, p, 0));
            result = peer.batch(&[], &records.collect::<Vec<_>>());
            position += 64;
            over += 64;
        }
        assert_eq!(result, Err(Breach::Sequence("more than was granted")));
        handle.sleep(Duration::from_millis(1)).await;
    });
}

/// A full pool in spite of its grants: the lane is sent again from what is written, by another channel.
#[test]
fn a_lane_goes_on_where_a_record_failed() {
    with(5, true, |handle, node, peer, disk| async move {
        disk.borrow_mut().space = 1;
        let one = write(&handle, 0, stamp(3, 0, 1), 0, 1);
        let two = write(&handle, 0, stamp(3, 0, 2), 0, 1);
        let three = tombstone(0, stamp(3, 0, 3), 8, 1);
        let all = [(&one, 1, 0), (&two, 2, 0), (&three, 3, 0)];
        peer.batch(&[], &all).unwrap();
        assert_eq!(refused(&peer).await, Reason::Full);
        disk.borrow_mut().space = 10;
        let again = node.open(3, 1, false);
        let opened = again.wait(Kind::Opened).await;
        let opened = crate::replication::wire::open::Opened::decode(&opened.body).unwrap();
        assert_eq!(opened.lanes.iter().next().unwrap().written, 1);
        again.feed(&[(1, ZERO)]).unwrap();
        again.batch(&[], &all[1..]).unwrap();
        ack(&again, |_, written, _| written == 3).await;
    });
}

/// Rule 6: what is settled was here, and may have been erased since.
#[test]
fn what_is_settled_is_not_written_again() {
    with(6, true, |handle, node, peer, disk| async move {
        let one = write(&handle, 0, stamp(3, 0, 1), 0, 1);
        let two = tombstone(0, stamp(3, 0, 2), 0, 1);
        peer.batch(&[], &[(&one, 1, 0), (&two, 2, 0)]).unwrap();
        ack(&peer, |_, _, stable| stable == 2).await;
        peer.batch(&[(0, stamp(3, 0, 2))], &[]).unwrap();
        assert!(disk.borrow().lane(0).blocks.is_empty());
        peer.cut();
        // It is restarted, and its coordinator feeds it from further back than it has to.
        node.replica.stop().await;
        let node = Node::start(&handle, &disk, true, Duration::from_micros(30));
        let peer = node.open(3, 1, false);
        peer.wait(Kind::Opened).await;
        peer.feed(&[(0, ZERO)]).unwrap();
        peer.batch(&[], &[(&one, 1, 0)]).unwrap();
        ack(&peer, |_, written, _| written == 1).await;
        assert!(disk.borrow().lane(0).blocks.is_empty());
    });
}

/// A snapshot has all that came before it, flushed, and nothing that came after.
#[test]
fn a_snapshot_is_between_what_was_before_and_after() {
    with(7, true, |handle, _node, peer, disk| async move {
        let one = write(&handle, 0, stamp(3, 0, 1), 0, 2);
        let snap = snapshot(0, stamp(3, 0, 3), 9);
        let two = write(&handle, 0, stamp(3, 0, 4), 1, 2);
        peer.batch(&[], &[(&one, 1, 0), (&snap, 2, 0), (&two, 3, 0)])
            .unwrap();
        ack(&peer, |_, written, _| written == 3).await;
        let disk = disk.borrow();
        let (_, has) = disk.lane(0).snapshots.iter().next().unwrap();
        let expected = [(0, stamp(3, 0, 1)), (1, stamp(3, 0, 2))];
        assert!(has.iter().map(|(b, v)| (*b, v.entry.stamp)).eq(expected));
    });
}

#[test]
fn blocks_are_read_and_records_fetched() {
    with(8, true, |handle, _node, peer, disk| async move {
        let one = write(&handle, 0, stamp(3, 0, 1), 1, 2);
        let two = tombstone(0, stamp(3, 0, 3), 2, 1);
        let three = write(&handle, 0, stamp(3, 0, 4), 3, 1);
        let all = [(&one, 1, 0), (&two, 2, 0), (&three, 3, 0)];
        peer.batch(&[], &all).unwrap();
        ack(&peer, |_, written, _| written == 3).await;
        let read = async |request| {
            let mut body = Vec::new();
            let ask = Read {
                request,
                tree: Tree::live(0),
                first: LaneBlock(0),
                blocks: 4,
            };
            ask.put(&mut body);
            peer.frame(Kind::Read, &body).unwrap();
            peer.wait(Kind::ReadDone).await
        };
        let sent = read(5).await;
        let done = ReadDone::decode(&sent.body, sent.data.len()).unwrap();
        let ReadResult::Done(entries) = done.result else {
            panic!("{done:?}");
        };
        let kinds: Vec<_> = entries.iter().map(|e| e.kind).collect();
        use BlockKind::{Absent, Data, Erased};
        assert_eq!(kinds, [Absent, Data, Erased, Data]);
        assert_eq!(sent.data[..4096], filling(stamp(3, 0, 1)));
        assert_eq!(sent.data[4096..], filling(stamp(3, 0, 4)));
        disk.borrow_mut().damaged.insert((0, 3));
        let sent = read(6).await;
        let done = ReadDone::decode(&sent.body, 0).unwrap();
        assert!(matches!(done.result, ReadResult::Damaged(LaneBlock(3))));
        for (counter, data) in [(1, Some(8192)), (2, None), (4, Some(0))] {
            let mut body = Vec::new();
            let ask = Fetch {
                stamp: stamp(3, 0, counter),
                lane: 0,
            };
            ask.put(&mut body);
            peer.frame(Kind::Fetch, &body).unwrap();
            let sent = peer.wait(Kind::Fetched).await;
            let fetched = Fetched::decode(&sent.body, sent.data.len()).unwrap();
            match (fetched.found, data) {
                (Found::Unknown, None) => {}
                (Found::Record(r), Some(bytes)) => {
                    assert_eq!(sent.data.len(), bytes);
                    let poison = matches!(r.content, Content::Poison(_));
                    assert_eq!(poison, bytes == 0, "damaged is poison");
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

fn set(peer: &Peer, version: u64, purpose: Purpose, members: &[[u8; 16]]) {
    let mut body = Vec::new();
    encode_set(&mut body, version, purpose, members);
    peer.frame(Kind::Set, &body).unwrap();
}

fn copy(peer: &Peer, request: u64, records: &[(&Held, u64, u8)]) -> Result<(), Breach> {
    let mut writer = CopyWriter::default();
    writer.begin(request);
    for (held, position, flags) in records {
        assert!(writer.add(&held.record(*position, *flags)));
    }
    let (body, bytes) = writer.finish();
    let body = body.to_vec();
    peer.with_data(Kind::Copy, &body, bytes, records.iter().map(|r| r.0))
}

/// §11: a replica with a block of an abandoned epoch is copied to while its stream goes on, becomes level, and is named.
#[test]
fn a_replica_is_copied_to() {
    with(9, true, |handle, node, peer, disk| async move {
        let abandoned = write(&handle, 0, stamp(3, 0, 77), 0, 1);
        peer.batch(&[], &[(&abandoned, 1, 0)]).unwrap();
        ack(&peer, |_, written, _| written == 1).await;
        assert!(
            copy(&peer, 1, &[(&abandoned, 5, 0)]).is_err(),
            "no member is"
        );
        // Epoch 4 went on without it; now it comes back.
        let peer = node.promise(4, 1);
        peer.wait(Kind::Promised).await;
        set(&peer, 8, Purpose::Keep, &[[9; 16]]);
        peer.wait(Kind::Kept).await;
        assert_eq!(standing(&disk), Some(Standing::Resyncing));
        peer.frame(Kind::Open, &open_body(1, 1, true)).unwrap();
        peer.wait(Kind::Opened).await;
        let s0 = stamp(4, 0, 5);
        peer.feed(&[(40, s0)]).unwrap();
        let live = write(&handle, 0, stamp(4, 0, 6), 1, 1);
        peer.batch(&[(0, stamp(4, 0, 4))], &[(&live, 41, 0)])
            .unwrap();
        ack(&peer, |_, written, _| written == 41).await;
        // A lower stamp replaces what was abandoned, and nothing replaces what came by the stream.
        let old = write(&handle, 0, stamp(2, 0, 1), 0, 2);
        copy(&peer, 2, &[(&old, s0.seq, 0)]).unwrap();
        let done = peer.wait(Kind::Copied).await;
        assert_eq!(Copied::decode(&done.body).unwrap().result, Ok(()));
        let stamps = |disk: &Rc<RefCell<Disk>>| {
            let disk = disk.borrow();
            let blocks = disk.lane(0).blocks.values();
            blocks.map(|v| v.entry.stamp).collect::<Vec<_>>()
        };
        assert_eq!(stamps(&disk), [stamp(2, 0, 1), stamp(4, 0, 6)]);
        // Not everything up to s0 is settled: it is not level.
        set(&peer, 9, Purpose::Level, &[[9; 16], REPLICA]);
        assert_eq!(refused(&peer).await, Reason::Busy);
        let peer = node.open(4, 1, true);
        peer.wait(Kind::Opened).await;
        peer.feed(&[(41, s0)]).unwrap();
        peer.batch(&[(0, s0)], &[]).unwrap();
        set(&peer, 9, Purpose::Level, &[[9; 16], REPLICA]);
        peer.wait(Kind::Kept).await;
        assert_eq!(standing(&disk), Some(Standing::Level));
        // What it had from before is on no list any more, not after a power cut either.
        let keep = || 1;
        disk.borrow_mut().power_cut(keep);
        assert_eq!(disk.borrow().lane(0).settled, Some(s0));
        assert!(disk.borrow().lane(0).records.keys().all(|s| *s > s0));
        set(&peer, 9, Purpose::Keep, &[[9; 16], REPLICA]);
        peer.wait(Kind::Kept).await;
        assert_eq!(standing(&disk), Some(Standing::Promised));
    });
}

/// A repair is done over exactly the stamp and checksum that it has.
#[test]
fn a_repair_replaces_only_itself() {
    with(10, true, |handle, _node, peer, disk| async move {
        let one = write(&handle, 0, stamp(3, 0, 1), 0, 1);
        let two = write(&handle, 0, stamp(3, 0, 2), 1, 1);
        peer.batch(&[], &[(&one, 1, 0), (&two, 2, 0)]).unwrap();
        ack(&peer, |_, written, _| written == 2).await;
        disk.borrow_mut().damaged.insert((0, 0));
        let other = write(&handle, 0, stamp(3, 0, 9), 1, 1);
        let both = [(&one, 0, flag::REPAIR), (&other, 0, flag::REPAIR)];
        copy(&peer, 4, &both).unwrap();
        peer.wait(Kind::Copied).await;
        let disk = disk.borrow();
        assert!(disk.damaged.is_empty());
        let stamps = disk.lane(0).blocks.values().map(|v| v.entry.stamp);
        assert!(stamps.eq([stamp(3, 0, 1), stamp(3, 0, 2)]));
    });
}

#[test]
fn sets_are_kept_in_their_order_and_a_channel_closes_when_all_is_answered() {
    with(11, true, |handle, _node, peer, disk| async move {
        set(&peer, 5, Purpose::Keep, &[[9; 16], REPLICA]);
        set(&peer, 5, Purpose::Keep, &[REPLICA, [9; 16]]);
        set(&peer, 6, Purpose::Keep, &[REPLICA]);
        let one = write(&handle, 0, stamp(3, 0, 1), 0, 1);
        peer.batch(&[], &[(&one, 1, 0)]).unwrap();
        peer.frame(Kind::Close, &[]).unwrap();
        assert!(peer.frame(Kind::Set, &[]).is_err(), "behind Close");
        let sent = loop {
            let sent: Vec<_> = peer
                .wire
                .state
                .sent
                .borrow()
                .iter()
                .map(|s| s.kind)
                .collect();
            if sent.last() == Some(&Kind::Close) {
                break sent;
            }
            handle.sleep(Duration::from_micros(50)).await;
        };
        let kept = sent.iter().filter(|k| **k == Kind::Kept);
        assert_eq!(kept.count(), 3);
        assert_eq!(peer.admitted(), 0);
        assert_eq!(standing(&disk), Some(Standing::Promised));
    });
}
