//! A replica on a simulated reactor, with channels whose other end is the test.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use keelblock_hugepages::Buffer;

use crate::reactor::{Handle, Notify};
use crate::replication::held::{Held, What};
use crate::replication::replica::channel::{Channel, layout};
use crate::replication::replica::memory::{Disk, Memory};
use crate::replication::replica::service::{Identity, Replica};
use crate::replication::replica::{Breach, LEASE_LONGEST, NotSent, Outgoing};
use crate::replication::seam::{Id, Standing};
use crate::replication::wire::batch::BatchWriter;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::open::{LaneFeed, Open, Target, encode_feed};
use crate::replication::wire::promise::Promise;
use crate::replication::wire::record::flag;
use crate::store::types::{BLOCK_BYTES, LaneBlock, SnapshotId, Stamp};

/// The volume, and the replica of it.
pub const VOLUME: Id = [1; 16];
pub const REPLICA: Id = [2; 16];
/// Records and bytes that may be here at once.
const WINDOW: (u64, u64) = (4096, 4 << 20);
/// Frames that the way out takes until somebody looks.
const ROOM: usize = 24;

/// A frame that the replica sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub kind: Kind,
    pub body: Vec<u8>,
    pub data: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct WireState {
    pub sent: RefCell<VecDeque<Sent>>,
    room: Notify,
    ended: Cell<bool>,
    came: Cell<(u64, u64)>,
    done: Cell<(u64, u64)>,
    /// What was admitted and has not completed.
    pub admitted: Rc<Cell<usize>>,
}

/// The way out of a channel; also a look at what nobody may see after a promise was asked for.
#[derive(Clone)]
pub struct Wire {
    pub state: Rc<WireState>,
    pub rules: Rc<Rules>,
}

/// What holds for all that is sent.
pub struct Rules {
    pub disk: Rc<RefCell<Disk>>,
    /// The highest epoch whose promise was asked for: nothing lower is confirmed any more.
    pub asked: Cell<u32>,
    pub acks: Cell<u64>,
}

pub struct Token(Rc<Cell<usize>>);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Outgoing for Wire {
    type Admitted = Token;

    fn send(
        &self,
        kind: Kind,
        epoch: u32,
        body: &[u8],
        data: &[(Rc<Buffer>, Range<usize>)],
    ) -> Result<(), NotSent> {
        if self.state.ended.get() {
            return Err(NotSent::Ended);
        }
        if self.state.sent.borrow().len() >= ROOM {
            return Err(NotSent::Full);
        }
        let silent = matches!(kind, Kind::Refused | Kind::Close | Kind::Heard);
        let asked = self.rules.asked.get();
        assert!(
            silent || epoch >= asked,
            "{kind:?} of epoch {epoch} behind the fence of {asked}"
        );
        if kind == Kind::Promised {
            let promise = self.rules.disk.borrow().promise();
            assert_eq!(promise.map(|p| p.epoch), Some(epoch), "it is durable");
        }
        if kind == Kind::Ack {
            self.rules.acks.set(self.rules.acks.get() + 1);
        }
        let bytes = data.iter().flat_map(|(b, part)| b[part.clone()].to_vec());
        self.state.sent.borrow_mut().push_back(Sent {
            kind,
            body: body.to_vec(),
            data: bytes.collect(),
        });
        Ok(())
    }

    async fn room(&self) {
        while !self.state.ended.get() && self.state.sent.borrow().len() >= ROOM {
            self.state.room.notified().await;
        }
    }

    fn came(&self, records: u64, bytes: u64) -> bool {
        let (r, b) = self.state.came.get();
        self.state.came.set((r + records, b + bytes));
        let (granted_r, granted_b) = self.granted();
        r + records <= granted_r && b + bytes <= granted_b
    }

    fn done(&self, records: u64, bytes: u64) {
        let (r, b) = self.state.done.get();
        self.state.done.set((r + records, b + bytes));
    }

    fn granted(&self) -> (u64, u64) {
        let (r, b) = self.state.done.get();
        (r + WINDOW.0, b + WINDOW.1)
    }
}

/// A replica that runs.
pub struct Node {
    pub handle: Handle,
    pub replica: Replica<Memory, Wire>,
    pub rules: Rc<Rules>,
}

impl Node {
    pub fn start(
        handle: &Handle,
        disk: &Rc<RefCell<Disk>>,
        volatile: bool,
        slow: Duration,
    ) -> Self {
        let store = Memory::open(handle, disk, volatile);
        store.set_slow(slow);
        let identity = Identity {
            volume: VOLUME,
            replica: REPLICA,
        };
        let replica = Replica::start(handle, store, identity, true, LEASE_LONGEST);
        let rules = Rc::new(Rules {
            disk: disk.clone(),
            asked: Cell::new(0),
            acks: Cell::new(0),
        });
        Self {
            handle: handle.clone(),
            replica,
            rules,
        }
    }

    /// Begins a channel with this frame.
    pub fn channel(&self, kind: Kind, epoch: u32, body: &[u8]) -> Result<Peer, Breach> {
        let wire = Wire {
            state: Rc::default(),
            rules: self.rules.clone(),
        };
        let channel = self.replica.open(wire.clone(), kind, epoch, body)?;
        let peer = Peer {
            handle: self.handle.clone(),
            wire,
            channel,
            epoch,
        };
        if peer.channel.is_some() {
            peer.frame(kind, body)?;
        }
        Ok(peer)
    }

    pub fn promise(&self, epoch: u32, process: u8) -> Peer {
        let mut body = Vec::new();
        let promise = Promise {
            volume: VOLUME,
            replica: REPLICA,
            incarnation: [process; 16],
            attempt: [process; 16],
            version: u64::from(epoch),
        };
        promise.put(&mut body);
        if epoch > self.replica.with_state(|s| s.epoch()) {
            self.rules.asked.set(epoch);
        }
        self.channel(Kind::Promise, epoch, &body).unwrap()
    }

    pub fn open(&self, epoch: u32, process: u8, subscribe: bool) -> Peer {
        let body = open_body(process, self.rules.disk.borrow().lanes(), subscribe);
        self.channel(Kind::Open, epoch, &body).unwrap()
    }
}

pub fn open_body(process: u8, lanes: u8, subscribe: bool) -> Vec<u8> {
    let mut body = Vec::new();
    let open = Open {
        volume: VOLUME,
        incarnation: [process; 16],
        to: Target::Replica {
            id: REPLICA,
            version: 1,
            lanes,
            lease_ms: 1000,
            subscribe,
        },
    };
    open.put(&mut body);
    body
}

/// The coordinator's end of a channel.
pub struct Peer {
    pub handle: Handle,
    pub wire: Wire,
    channel: Option<Channel<Memory, Wire>>,
    pub epoch: u32,
}

impl Peer {
    pub fn frame(&self, kind: Kind, body: &[u8]) -> Result<(), Breach> {
        self.frame_with(kind, body, Vec::new(), 0)
    }

    pub fn frame_with(
        &self,
        kind: Kind,
        body: &[u8],
        data: Vec<Buffer>,
        bytes: usize,
    ) -> Result<(), Breach> {
        let admitted = self.wire.state.admitted.clone();
        admitted.set(admitted.get() + 1);
        let channel = self.channel.as_ref().expect("it was not refused");
        channel.frame(kind, self.epoch, body, (data, bytes), Token(admitted))
    }

    pub fn feed(&self, lanes: &[(u64, Stamp)]) -> Result<(), Breach> {
        let feed = (0_u8..).zip(lanes).map(|(lane, (after, s0))| LaneFeed {
            lane,
            after: *after,
            s0: *s0,
        });
        let mut body = Vec::new();
        encode_feed(&mut body, &feed.collect::<Vec<_>>());
        self.frame(Kind::Feed, &body)
    }

    /// Sends records as one Batch; false: they do not fit into one.
    pub fn batch(
        &self,
        settled: &[(u8, Stamp)],
        records: &[(&Held, u64, u8)],
    ) -> Result<(), Breach> {
        let mut writer = BatchWriter::default();
        writer.begin(settled.iter().copied());
        for (held, position, flags) in records {
            assert!(writer.add(&held.record(*position, *flags)), "it fits");
        }
        let (body, bytes) = writer.finish();
        let body = body.to_vec();
        let own = records.iter().filter(|r| r.2 & flag::LISTED == 0);
        self.with_data(Kind::Batch, &body, bytes, own.map(|r| r.0))
    }

    /// A frame with the data of these records, each in a buffer of its own.
    pub fn with_data<'a>(
        &self,
        kind: Kind,
        body: &[u8],
        bytes: usize,
        records: impl Iterator<Item = &'a Held>,
    ) -> Result<(), Breach> {
        let mut pieces = Vec::new();
        layout(kind, body, bytes, &mut pieces)?;
        assert_eq!(pieces.iter().sum::<usize>(), bytes);
        let mut data = Vec::new();
        let mut records = records;
        for len in pieces {
            let held = records.find_map(|h| match &h.what {
                What::Write { data: Some(d), .. } => Some(d.clone()),
                _ => None,
            });
            let held = held.expect("data of a record");
            let mut own = self.handle.buffers().try_take(len).expect("a buffer");
            own[..len].copy_from_slice(&held[..len]);
            data.push(own);
        }
        self.frame_with(kind, body, data, bytes)
    }

    /// What came from the replica since.
    pub fn take(&self) -> Vec<Sent> {
        let all = self.wire.state.sent.take();
        self.wire.state.room.notify_all();
        all.into()
    }

    /// Waits for a frame of this kind; what comes before it is dropped.
    pub async fn wait(&self, kind: Kind) -> Sent {
        self.wait_any(&[kind]).await
    }

    pub async fn wait_any(&self, kinds: &[Kind]) -> Sent {
        let mut pause = Duration::from_micros(20);
        loop {
            let next = self.wire.state.sent.borrow_mut().pop_front();
            self.wire.state.room.notify_all();
            match next {
                Some(sent) if kinds.contains(&sent.kind) => return sent,
                Some(sent) if sent.kind == Kind::Refused => panic!("refused: {sent:?}"),
                Some(_) => {}
                None => {
                    self.handle.sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(5));
                }
            }
        }
    }

    /// The session is cut.
    pub fn cut(&self) {
        self.wire.state.ended.set(true);
        self.wire.state.room.notify_all();
        if let Some(channel) = &self.channel {
            channel.ended();
        }
    }

    pub fn admitted(&self) -> usize {
        self.wire.state.admitted.get()
    }
}

pub fn stamp(epoch: u32, lane: u8, counter: u64) -> Stamp {
    Stamp {
        epoch,
        seq: u64::from(lane) << 56 | counter,
    }
}

/// What a block of this stamp holds.
pub fn filling(stamp: Stamp) -> [u8; BLOCK_BYTES] {
    let word = (u64::from(stamp.epoch) << 40 ^ stamp.seq).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    std::array::from_fn(|i| (word >> (8 * (i % 8))) as u8)
}

/// A write of these blocks, each filled by its stamp.
pub fn write(handle: &Handle, lane: u8, stamp: Stamp, first: u64, blocks: u64) -> Held {
    let bytes = blocks as usize * BLOCK_BYTES;
    let mut data = handle.buffers().try_take(bytes).expect("a buffer");
    for n in 0..blocks {
        let seq = stamp.seq + n;
        let block = filling(Stamp { seq, ..stamp });
        data[n as usize * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&block);
    }
    Held::write(
        lane,
        stamp,
        LaneBlock(first),
        blocks as usize,
        Rc::new(data),
    )
}

pub fn tombstone(lane: u8, stamp: Stamp, first: u64, blocks: u64) -> Held {
    let first = LaneBlock(first);
    Held {
        lane,
        stamp,
        key: 0,
        what: What::Tombstone { first, blocks },
    }
}

pub fn snapshot(lane: u8, stamp: Stamp, id: u8) -> Held {
    Held {
        lane,
        stamp,
        key: 0,
        what: What::Snapshot(SnapshotId([id; 16])),
    }
}

/// What a replica is, as its disk says it.
pub fn standing(disk: &Rc<RefCell<Disk>>) -> Option<Standing> {
    disk.borrow().promise().map(|p| p.state)
}
