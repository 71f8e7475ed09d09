//! The driver on a simulated reactor, with replicas whose messages take a moment.
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::super::driver::{Copying, Driver, NotCopied, NotRead, Peers, SetStore};
use super::super::members::Place;
use super::super::message::{Event, Failed, Message, Said};
use super::super::ring::Limits;
use super::super::set::{Outcome, ReplicaState, Request, VolumeRecord};
use super::super::state::{Config, Standing};
use super::LANES;
use super::replica::{Replica, Who};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;
use crate::replication::seam::{Entry, Id};
use crate::replication::session::Burden;
use crate::replication::wire::resync::{AskLeaf, AskSummaries, Tree};
use crate::store::types::{LaneBlock, SnapshotId};

const MOMENT: Duration = Duration::from_micros(200);
const LONG: Duration = Duration::from_secs(100);
const WHO: Who = Who {
    epoch: 1,
    incarnation: [7; 16],
};

/// What is on its way, and who is there.
struct Net {
    handle: Handle,
    replicas: RefCell<Vec<Replica>>,
    there: RefCell<VecDeque<(Place, Message)>>,
    back: RefCell<VecDeque<(usize, Said)>>,
    down: Cell<[bool; 3]>,
    /// Whom reads were asked of.
    asked: RefCell<Vec<usize>>,
    near: Option<Place>,
    burdens: Cell<[Burden; 5]>,
    /// Leases that were given back.
    released: Cell<usize>,
    kvdb: RefCell<VecDeque<Request>>,
    kvdb_down: Cell<bool>,
}

struct Ways(Rc<Net>);
struct Kvdb(Rc<Net>);

impl Peers for Ways {
    fn send(&self, to: Place, replica: Id, message: Message) {
        assert_eq!(replica, self.0.replicas.borrow()[to.index()].id);
        if let Message::Heartbeat { release: true, .. } = message {
            self.0.released.set(self.0.released.get() + 1);
        }
        self.0.there.borrow_mut().push_back((to, message));
    }

    fn credit(&self, _: Place) -> Limits {
        Limits {
            records: 100,
            bytes: 1 << 20,
        }
    }

    fn cut(&self, to: Place) {
        panic!("{to:?} is cut: a replica that is in order broke the protocol");
    }

    fn added(&self, at: Place, _: Id) {
        panic!("a replica is added at {at:?}");
    }

    fn gone(&self, at: Place) {
        panic!("a replica has gone from {at:?}");
    }

    fn near(&self) -> Option<Place> {
        self.0.near
    }

    fn burden(&self, of: Place) -> Burden {
        self.0.burdens.get()[of.index()]
    }

    async fn read(
        &self,
        from: Place,
        tree: Tree,
        blocks: Range<u64>,
        mut into: Buffer,
    ) -> (Buffer, Result<Vec<Entry>, NotRead>) {
        self.0.handle.sleep(MOMENT).await;
        self.0.asked.borrow_mut().push(from.index());
        let replicas = self.0.replicas.borrow();
        let replica = &replicas[from.index()];
        if self.0.down.get()[from.index()] || !replica.reads(WHO) {
            return (into, Err(NotRead::Away));
        }
        let (entries, values) = replica.read(tree.lane, blocks);
        for (n, value) in values.iter().enumerate() {
            into[n * 4096..n * 4096 + 8].copy_from_slice(&value.to_le_bytes());
        }
        (into, Ok(entries))
    }

    async fn summaries(&self, _: Place, _: AskSummaries) -> Result<Vec<u32>, NotRead> {
        Err(NotRead::Away)
    }

    async fn leaf(&self, _: Place, _: AskLeaf) -> Result<Vec<Entry>, NotRead> {
        Err(NotRead::Away)
    }

    async fn copy(&self, _: Place, _: &[Copying]) -> Result<(), NotCopied> {
        Err(NotCopied::Away)
    }

    fn moved(&self, _: Place) -> u64 {
        0
    }
}

impl SetStore for Kvdb {
    fn submit(&self, request: Request) {
        self.0.kvdb.borrow_mut().push_back(request);
    }
}

type Under = Driver<Ways, Kvdb>;

/// Everything that is on its way arrives, drives write and flush.
async fn turn(net: Weak<Net>, driver: Under) {
    while let Some(net) = net.upgrade() {
        net.handle.sleep(MOMENT).await;
        let now = net.handle.now();
        let there: Vec<_> = net.there.borrow_mut().drain(..).collect();
        let mut out = Vec::new();
        for (to, message) in there {
            let n = to.index();
            if !net.down.get()[n] {
                let mut replicas = net.replicas.borrow_mut();
                out.extend(replicas[n].take(n, WHO, message, now));
            }
        }
        for (n, replica) in net.replicas.borrow_mut().iter_mut().enumerate() {
            if net.down.get()[n] {
                continue;
            }
            while replica.admitted() > 0 {
                out.extend(replica.complete(0));
            }
            out.extend(replica.flush());
            out.extend(replica.promise(now));
        }
        net.back.borrow_mut().extend(out);
        let back: Vec<_> = net.back.borrow_mut().drain(..).collect();
        for (n, said) in back {
            if !net.down.get()[n] {
                driver.event(Event::Said(Place::new(n).unwrap(), said));
            }
        }
        while !net.kvdb_down.get() && !net.kvdb.borrow().is_empty() {
            net.kvdb.borrow_mut().pop_front();
            driver.event(Event::Outcome(Outcome::Done));
        }
        if matches!(driver.standing(), Standing::Ended(_)) {
            return;
        }
    }
}

struct Bench {
    sim: Sim,
    handle: Handle,
    net: Rc<Net>,
    driver: Under,
}

fn bench(replicas: usize, minimum: u8, near: Option<usize>) -> Bench {
    bench_with(Config::new(LANES as u8), replicas, minimum, near)
}

fn bench_with(config: Config, replicas: usize, minimum: u8, near: Option<usize>) -> Bench {
    let sim = Sim::new(9);
    let (_, mut handles) = sim.start_node(1);
    let handle = handles.pop().unwrap();
    let all: Vec<_> = (0..replicas)
        .map(|r| Replica::new([r as u8 + 1; 16], true, config.lease))
        .collect();
    let record = VolumeRecord {
        version: 2,
        epoch: WHO.epoch,
        incarnation: WHO.incarnation,
        attempt: [8; 16],
        serving: false,
        minimum,
        replicas: all.iter().map(|r| (r.id, ReplicaState::Member)).collect(),
    };
    let net = Rc::new(Net {
        handle: handle.clone(),
        replicas: RefCell::new(all),
        there: RefCell::default(),
        back: RefCell::default(),
        down: Cell::new([false; 3]),
        asked: RefCell::default(),
        near: near.and_then(Place::new),
        burdens: Cell::default(),
        released: Cell::new(0),
        kvdb: RefCell::default(),
        kvdb_down: Cell::new(false),
    });
    let ways = Ways(Rc::clone(&net));
    let driver = Driver::start(&handle, config, record, ways, Kvdb(Rc::clone(&net)));
    handle.spawn("net", turn(Rc::downgrade(&net), driver.clone()));
    for n in 0..replicas {
        driver.event(Event::Connected(Place::new(n).unwrap()));
    }
    Bench {
        sim,
        handle,
        net,
        driver,
    }
}

impl Bench {
    fn run<T: 'static>(&self, work: impl AsyncFnOnce(Under, Handle) -> T + 'static) -> T {
        let (driver, handle) = (self.driver.clone(), self.handle.clone());
        let done = self.sim.run(&self.handle, LONG, async move {
            driver.serving().await.unwrap();
            work(driver, handle).await
        });
        done.expect("it ends")
    }

    fn down(&self, n: usize) {
        let mut down = self.net.down.get();
        down[n] = true;
        self.net.down.set(down);
        self.driver.event(Event::Lost(Place::new(n).unwrap()));
    }
}

/// Writes a block that begins with this value.
async fn put(driver: &Under, handle: &Handle, block: u64, value: u64) -> Result<(), Failed> {
    let mut buffer = handle.buffers().take(4096).await;
    buffer.fill(0);
    buffer[..8].copy_from_slice(&value.to_le_bytes());
    let first = LaneBlock(block);
    driver.write(0, first, buffer, 1, false).await
}

async fn get(driver: &Under, handle: &Handle, blocks: Range<u64>) -> Result<Vec<u64>, Failed> {
    let n = (blocks.end - blocks.start) as usize;
    let mut buffer = handle.buffers().take(n * 4096).await;
    buffer.fill(0xee);
    let (buffer, done) = driver.read(0, blocks, buffer).await;
    let each = buffer.chunks_exact(4096).take(n);
    done.map(|()| {
        each.map(|b| u64::from_le_bytes(b[..8].try_into().unwrap()))
            .collect()
    })
}

#[test]
fn what_is_written_is_read_and_what_is_erased_is_zeroes() {
    let bench = bench(3, 2, None);
    bench.run(async |driver, handle| {
        for n in 0..40 {
            put(&driver, &handle, n, 1000 + n).await.unwrap();
        }
        driver.erase(0, 10..12).await.unwrap();
        let read = get(&driver, &handle, 8..14).await.unwrap();
        assert_eq!(read, [1008, 1009, 0, 0, 1012, 1013]);
        driver.flush().await.unwrap();
        // Once all have it stable it comes from replicas.
        handle.sleep(Duration::from_secs(1)).await;
        let read = get(&driver, &handle, 8..14).await.unwrap();
        assert_eq!(read, [1008, 1009, 0, 0, 1012, 1013]);
        assert_eq!(get(&driver, &handle, 50..51).await.unwrap(), [0]);
    });
    assert!(!bench.net.asked.borrow().is_empty());
    let replicas = bench.net.replicas.borrow();
    assert_eq!(replicas[0].blocks(), replicas[1].blocks());
    assert_eq!(replicas[0].blocks(), replicas[2].blocks());
}

#[test]
fn the_replica_on_this_node_is_asked_first() {
    let bench = bench(3, 2, Some(1));
    bench.run(async |driver, handle| {
        put(&driver, &handle, 3, 5).await.unwrap();
        handle.sleep(Duration::from_secs(1)).await;
        for _ in 0..5 {
            assert_eq!(get(&driver, &handle, 3..4).await.unwrap(), [5]);
        }
    });
    assert_eq!(*bench.net.asked.borrow(), [1; 5]);
}

/// Where none is on this node: who may be away is not asked, and who is busy less than others.
#[test]
fn of_two_replicas_the_better_one_is_asked() {
    let bench = bench(3, 2, None);
    let burden = |doubtful, load_percent| Burden {
        doubtful,
        load_percent,
    };
    let of = [burden(false, 90), burden(false, 10), burden(true, 0)];
    let mut burdens = [Burden::default(); 5];
    burdens[..3].copy_from_slice(&of);
    bench.net.burdens.set(burdens);
    bench.run(async |driver, handle| {
        put(&driver, &handle, 3, 5).await.unwrap();
        handle.sleep(Duration::from_secs(1)).await;
        for _ in 0..60 {
            assert_eq!(get(&driver, &handle, 3..4).await.unwrap(), [5]);
        }
    });
    let asked = bench.net.asked.borrow();
    let times = |n| asked.iter().filter(|a| **a == n).count();
    assert_eq!(times(2), 0, "it may be away");
    // Of three pairs two have the best one.
    assert!(times(1) > times(0) && times(0) > 0, "{asked:?}");
}

/// Two replicas: a write needs both. One dies; it is excluded as soon as a write waits for it.
#[test]
fn a_write_goes_on_without_a_replica_that_died() {
    let bench = bench(2, 1, None);
    bench.run(async |driver, handle| put(&driver, &handle, 0, 1).await.unwrap());
    bench.down(1);
    let took = bench.run(async |driver, handle| {
        let began = handle.now();
        put(&driver, &handle, 0, 2).await.unwrap();
        let took = handle.now().since(began);
        assert_eq!(get(&driver, &handle, 0..1).await.unwrap(), [2]);
        took
    });
    assert!(took <= Duration::from_millis(100), "it took {took:?}");
}

/// Below the minimum nothing is served: writes fail after the volume's limit, and reads when leases are over.
#[test]
fn below_the_minimum_commands_wait_and_then_fail() {
    let bench = bench(3, 2, None);
    bench.run(async |driver, handle| put(&driver, &handle, 0, 1).await.unwrap());
    bench.net.kvdb_down.set(true);
    bench.down(1);
    bench.down(2);
    let took = bench.run(async |driver, handle| {
        let began = handle.now();
        assert_eq!(put(&driver, &handle, 0, 2).await, Err(Failed::Stalled));
        let took = handle.now().since(began);
        assert_eq!(driver.standing(), Standing::Stalled);
        assert_eq!(get(&driver, &handle, 0..1).await, Err(Failed::Stalled));
        // What was acknowledged is stable on a quorum, whether it is reachable or not.
        assert_eq!(driver.flush().await, Ok(()));
        took
    });
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(11));
}

/// Rule 16: a member that is away fills the ring, and the KVDB is away too. It is gapped, and writes go on; what it lacks is not settled before it has left.
#[test]
fn with_a_member_and_the_kvdb_away_writes_go_on() {
    let mut config = Config::new(LANES as u8);
    config.limits.records = 8;
    let bench = bench_with(config, 3, 2, None);
    bench.run(async |driver, handle| put(&driver, &handle, 0, 1).await.unwrap());
    bench.net.kvdb_down.set(true);
    bench.down(2);
    let before = bench.run(async |driver, handle| {
        for n in 0..50 {
            put(&driver, &handle, n % 10, 100 + n).await.unwrap();
        }
        assert_eq!(driver.standing(), Standing::InDoubt);
        handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(driver.kept().records, 0, "nothing is kept for it");
        assert_eq!(get(&driver, &handle, 9..10).await.unwrap(), [149]);
        driver.settled(0)
    });
    bench.net.kvdb_down.set(false);
    let after = bench.run(async |driver, handle| {
        handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(driver.standing(), Standing::Serving);
        driver.settled(0)
    });
    assert!(before.seq < 10 && after.seq >= 50, "{before:?} {after:?}");
}

/// A failed command's write is decided some time; until then nothing of its block is shown, and then the new value.
#[test]
fn a_failed_write_is_not_shown_before_it_is_decided() {
    let bench = bench(3, 2, None);
    bench.run(async |driver, handle| put(&driver, &handle, 0, 1).await.unwrap());
    bench.net.kvdb_down.set(true);
    bench.down(1);
    bench.down(2);
    bench.run(async |driver, handle| {
        assert_eq!(put(&driver, &handle, 0, 2).await, Err(Failed::Stalled));
    });
    bench.net.down.set([false; 3]);
    for n in [1, 2] {
        bench.net.replicas.borrow_mut()[n].lost(n);
        bench.driver.event(Event::Connected(Place::new(n).unwrap()));
    }
    bench.run(async |driver, handle| {
        assert_eq!(get(&driver, &handle, 0..1).await.unwrap(), [2]);
    });
}

#[test]
fn a_higher_epoch_ends_it_and_everything_that_waits() {
    let bench = bench(2, 1, None);
    bench.run(async |driver, handle| put(&driver, &handle, 0, 1).await.unwrap());
    bench.net.replicas.borrow_mut()[0].promised.epoch = 2;
    bench.run(async |driver, handle| {
        assert_eq!(put(&driver, &handle, 0, 2).await, Err(Failed::Ended));
        assert_eq!(get(&driver, &handle, 0..1).await, Err(Failed::Ended));
        assert_eq!(driver.flush().await, Err(Failed::Ended));
        assert!(matches!(driver.standing(), Standing::Ended(_)));
    });
}

#[test]
fn a_hand_over_gives_leases_back() {
    let bench = bench(2, 1, None);
    let took = bench.run(async |driver, handle| {
        put(&driver, &handle, 0, 1).await.unwrap();
        let began = handle.now();
        driver.detach().await;
        assert_eq!(put(&driver, &handle, 0, 2).await, Err(Failed::Ended));
        handle.now().since(began)
    });
    assert!(took <= Duration::from_millis(110), "it took {took:?}");
    assert_eq!(bench.net.released.get(), 2);
}

/// Whoever gives up leaves nothing behind: the write is done all the same, and a read holds the stream no longer.
#[test]
fn a_command_that_is_dropped_holds_nothing_up() {
    let bench = bench(3, 2, None);
    bench.run(async |driver, handle| {
        let short = Duration::from_micros(10);
        let write = put(&driver, &handle, 0, 1);
        assert!(handle.timeout(short, write).await.is_err());
        let read = get(&driver, &handle, 1..2);
        assert!(handle.timeout(short, read).await.is_err());
        handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(get(&driver, &handle, 0..1).await.unwrap(), [1]);
        put(&driver, &handle, 0, 2).await.unwrap();
        handle.sleep(Duration::from_secs(1)).await;
        driver.flush().await.unwrap();
    });
    assert_eq!(bench.driver.kept().records, 0, "everything was let go");
}

/// A write that is done some time.
fn begin_put(driver: &Under, handle: &Handle, value: u64) -> Rc<Cell<Option<Result<(), Failed>>>> {
    let done = Rc::new(Cell::new(None));
    let (to, driver, on) = (done.clone(), driver.clone(), handle.clone());
    handle.spawn("a write", async move {
        to.set(Some(put(&driver, &on, 0, value).await));
    });
    done
}

/// What is stamped behind a snapshot that is one of several volumes' waits until it is released, or its time is over: then it never counts as held.
#[test]
fn what_comes_behind_a_snapshot_that_is_held_waits_for_its_release() {
    let bench = bench(3, 2, None);
    bench.run(async |driver, handle| {
        let (one, two) = (SnapshotId([1; 16]), SnapshotId([2; 16]));
        let second = Duration::from_secs(1);
        put(&driver, &handle, 0, 1).await.unwrap();
        driver.hold_snapshot(one, second).await.unwrap();
        driver.hold_snapshot(one, second).await.unwrap();
        let behind = begin_put(&driver, &handle, 2);
        handle.sleep(Duration::from_millis(500)).await;
        assert_eq!(
            behind.get(),
            None,
            "it is acknowledged while others have no snapshot"
        );
        driver.release_snapshot(one).await.unwrap();
        driver.snapshot(one).await.unwrap();
        driver.release_snapshot(one).await.unwrap();
        handle.sleep(Duration::from_millis(5)).await;
        assert_eq!(behind.get(), Some(Ok(())));
        assert_eq!(get(&driver, &handle, 0..1).await.unwrap(), [2]);
        assert_eq!(driver.release_snapshot(two).await, Err(Failed::NotHeld));
        // Nobody releases the next one.
        driver
            .hold_snapshot(two, Duration::from_millis(100))
            .await
            .unwrap();
        let behind = begin_put(&driver, &handle, 3);
        handle.sleep(Duration::from_millis(90)).await;
        assert_eq!(behind.get(), None);
        handle.sleep(Duration::from_millis(30)).await;
        assert_eq!(behind.get(), Some(Ok(())));
        for _ in 0..2 {
            assert_eq!(driver.release_snapshot(two).await, Err(Failed::NotHeld));
            assert_eq!(
                driver.hold_snapshot(two, second).await,
                Err(Failed::NotHeld)
            );
        }
        driver.snapshot(two).await.unwrap();
        assert_eq!(driver.snapshots(), [one, two]);
    });
}
