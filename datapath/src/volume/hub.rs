//! One reactor's end of the volumes' mesh: its handles of volumes, the drives whose home it is, the requests that it forwards, and those
//! that it serves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use keelblock_api::stats::VolumeSlot;

use super::drive::HomeDrive;
use super::job::Tickets;
use super::lane::Lane;
use super::mail::{Body, Message, Pending, Request, Slot};
use super::op::{Buffers, Op};
use super::range::Hold;
use super::scratch::Scratch;
use super::{ByteRange, Volume, VolumeError, VolumeSpec};
use crate::reactor::mesh::CREDITS;
use crate::reactor::{Endpoint, Handle, ReactorId};
use crate::replication::node::Node;
use crate::store::VolumeId;
use crate::store::engine::{Store, StoreError};
use crate::store::types::LaneBlock;

/// How long a request waits for a slot for its operation when the reactor is full.
const SLAB_RETRY: Duration = Duration::from_micros(50);
/// Longer than what is left of any pass: what was read at once before a lane was quiesced has been sent by then.
const PASS_ENDS: Duration = Duration::from_micros(100);

pub(super) struct Shared {
    handle: Handle,
    endpoint: Endpoint<Message>,
    pending: Pending,
    /// Requests that have arrived, until their operation takes them.
    inbox: RefCell<Inbox>,
    scratch: Scratch,
    /// Those at home here, by number.
    drives: RefCell<BTreeMap<u32, HomeDrive>>,
    /// Writes were done at once, and their records are not written.
    uncommitted: Rc<Cell<bool>>,
    by_number: RefCell<Vec<Option<Volume>>>,
    by_id: RefCell<BTreeMap<VolumeId, Volume>>,
    /// All lanes here of some volumes, held by a barrier.
    barriers: RefCell<BTreeMap<u64, Vec<Hold>>>,
    pub(super) tickets: Tickets,
    /// Of a process that replicates.
    replication: RefCell<Option<Node>>,
}

#[derive(Default)]
struct Inbox {
    slots: Vec<Option<Request>>,
    free: Vec<u32>,
}

impl Inbox {
    fn put(&mut self, request: Request) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(request);
                slot
            }
            None => {
                self.slots.push(Some(request));
                (self.slots.len() - 1) as u32
            }
        }
    }

    fn take(&mut self, slot: u32) -> Request {
        self.free.push(slot);
        let request = self.slots[slot as usize].take();
        request.expect("an operation takes its request once")
    }
}

/// A reactor's volumes. Cheap to clone.
#[derive(Clone)]
pub struct Hub(pub(super) Rc<Shared>);

impl Hub {
    /// Makes this reactor's hub and starts serving what other reactors forward. `None` if its buffers are too few.
    pub fn start(handle: &Handle, endpoint: Endpoint<Message>) -> Option<Self> {
        let requests = CREDITS * usize::from(handle.reactors());
        let inbox = Inbox {
            slots: Vec::with_capacity(requests),
            free: Vec::with_capacity(requests),
        };
        let shared = Rc::new(Shared {
            endpoint,
            pending: Pending::new(handle.reactors()),
            inbox: RefCell::new(inbox),
            scratch: Scratch::new(handle.buffers())?,
            drives: RefCell::default(),
            uncommitted: Rc::default(),
            by_number: RefCell::default(),
            by_id: RefCell::default(),
            barriers: RefCell::default(),
            tickets: Tickets::default(),
            replication: RefCell::default(),
            handle: handle.clone(),
        });
        handle.spawn("volume messages", Rc::clone(&shared).receive());
        Some(Self(shared))
    }

    /// The reactor.
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// This reactor's replication, from now on.
    pub fn replicate(&self, node: Node) {
        self.0.replication.replace(Some(node));
    }

    /// This reactor's replication, if the process replicates.
    pub fn replication(&self) -> Option<Node> {
        self.0.replication.borrow().clone()
    }

    /// This reactor's handle of an open volume.
    pub fn volume(&self, id: VolumeId) -> Option<Volume> {
        self.0.by_id.borrow().get(&id).cloned()
    }

    /// The store of a drive whose home is here.
    pub fn store(&self, drive: u32) -> Option<Store> {
        self.0.store(drive)
    }

    /// The reactor that owns a drive's store.
    pub fn home_of(&self, drive: u32) -> ReactorId {
        self.0.home_of(drive)
    }

    /// Opens a volume here; one that is open stays as it is.
    pub(super) fn open(&self, spec: &VolumeSpec, slot: Option<VolumeSlot>) {
        let shared = &self.0;
        let stats = slot.and_then(|slot| slot.reactor(u32::from(shared.here().0)));
        let volume = Volume::new(spec, stats, shared);
        let mut by_number = shared.by_number.borrow_mut();
        let at = spec.number as usize;
        if by_number.len() <= at {
            by_number.resize(at + 1, None);
        }
        by_number[at] = Some(volume.clone());
        shared.by_id.borrow_mut().insert(spec.id, volume);
    }

    /// Finishes what is under way on a volume's lanes here, and forgets the volume.
    pub(super) async fn close(&self, number: u32) {
        let shared = &self.0;
        let Some(volume) = shared.numbered(number) else {
            return;
        };
        let mut holds = Vec::new();
        for entered in volume.enter_all_here(None) {
            holds.push(entered.await);
        }
        shared.handle.sleep(PASS_ENDS).await;
        volume.0.closed.set(true);
        shared.by_number.borrow_mut()[number as usize] = None;
        shared.by_id.borrow_mut().remove(&volume.id());
        // Those that waited see that it is closed.
        drop(holds);
    }

    /// Waits until nothing is under way on these lanes, as far as they are here, and lets nothing begin, until [`Hub::release`] is called with
    /// the same number. `None` as lane: all of the volume. False: it took too long, and nothing is held.
    pub async fn hold(
        &self,
        barrier: u64,
        lanes: &[(VolumeId, Option<u8>)],
        within: Duration,
    ) -> bool {
        let open = lanes
            .iter()
            .filter_map(|&(id, lane)| Some((self.volume(id)?, lane)));
        let entering: Vec<_> = open
            .flat_map(|(volume, lane)| volume.enter_all_here(lane))
            .collect();
        let all = async {
            let mut holds = Vec::with_capacity(entering.len());
            for entered in entering {
                holds.push(entered.await);
            }
            holds
        };
        match self.0.handle.timeout(within, all).await {
            Ok(holds) => {
                self.0.barriers.borrow_mut().insert(barrier, holds);
                true
            }
            Err(_) => false,
        }
    }

    /// These lanes are on another drive from now on. They are held; volumes that are not open here find them when they are opened.
    pub(super) fn move_lanes(&self, lanes: &[(VolumeId, u8)], drive: u32) {
        for &(id, lane) in lanes {
            let volume = self.volume(id);
            let lane = volume
                .as_ref()
                .and_then(|v| v.0.lanes.get(usize::from(lane)));
            if let (Some(volume), Some(lane)) = (volume, lane) {
                volume.move_lane(lane, drive, &self.0);
            }
        }
    }

    /// Writes the records of all [`Volume::write_now`] since the last call: then they may be acknowledged. To be called in the pass of the writes,
    /// right before their answers are sent.
    ///
    /// # Errors
    /// [`StoreError`]: none of them may be acknowledged. Which of them were on other drives is not told: it does not happen but by a mistake of ours.
    #[inline]
    pub fn commit_now(&self) -> Result<(), StoreError> {
        if !self.0.uncommitted.get() {
            return Ok(());
        }
        self.0.commit_now()
    }

    /// Ends a barrier.
    pub fn release(&self, barrier: u64) {
        self.0.barriers.borrow_mut().remove(&barrier);
    }
}

impl Shared {
    pub fn here(&self) -> ReactorId {
        self.handle.id()
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub fn uncommitted(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.uncommitted)
    }

    fn commit_now(&self) -> Result<(), StoreError> {
        self.uncommitted.set(false);
        let drives = self.drives.borrow();
        drives.values().try_for_each(|d| d.store.commit_now())
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub fn home_of(&self, drive: u32) -> ReactorId {
        ReactorId((drive % u32::from(self.handle.reactors())) as u16)
    }

    pub fn store(&self, drive: u32) -> Option<Store> {
        self.drives.borrow().get(&drive).map(|d| d.store.clone())
    }

    pub fn add_drive(&self, number: u32, drive: HomeDrive) {
        let before = self.drives.borrow_mut().insert(number, drive);
        assert!(before.is_none(), "drive {number} is opened once");
    }

    pub fn take_drive(&self, number: u32) -> Option<HomeDrive> {
        self.drives.borrow_mut().remove(&number)
    }

    /// Tells of an error that people should know of.
    pub fn report(
        &self,
        drive: u32,
        (volume, lane): (VolumeId, Lane),
        block: LaneBlock,
        error: StoreError,
    ) {
        let drives = self.drives.borrow();
        let Some(drive) = drives.get(&drive) else {
            return;
        };
        let lane = lane.index() as u8;
        if let Some(damage) = drive.store.damage((volume, lane), block, error) {
            (drive.faults)(&damage);
        }
    }

    async fn receive(self: Rc<Self>) {
        loop {
            let (from, Message(body)) = self.endpoint.recv().await;
            match body {
                Body::Request(request) => self.begin(request).await,
                Body::Reply {
                    slot,
                    buffers,
                    result,
                } => {
                    let known = self.pending.complete(slot, (buffers, result));
                    debug_assert!(known, "a reply to no request");
                }
                Body::Job { ticket, job } => {
                    let this = Rc::clone(&self);
                    self.handle.spawn("volume job", async move {
                        let answer = job.run(Hub(Rc::clone(&this))).await;
                        let done = Message(Body::JobDone { ticket, answer });
                        this.endpoint.send(from, done).await;
                    });
                }
                Body::JobDone { ticket, answer } => self.tickets.answer(ticket, answer),
            }
        }
    }

    pub async fn send(&self, to: ReactorId, message: Message) {
        self.endpoint.send(to, message).await;
    }

    /// Starts the operation that another reactor asks for. While there is no room for it, nothing more is received: that is the back-pressure.
    async fn begin(self: &Rc<Self>, request: Request) {
        let slot = self.inbox.borrow_mut().put(request);
        loop {
            let this = Rc::clone(self);
            let op = async move { this.serve_request(slot).await };
            if self.handle.start("forwarded", op).is_ok() {
                return;
            }
            self.handle.sleep(SLAB_RETRY).await;
        }
    }

    async fn serve_request(&self, slot: u32) {
        let request = self.inbox.borrow_mut().take(slot);
        let (buffers, result) = match self.numbered(request.volume) {
            Some(volume) => match request.op {
                Op::Flush { drive } => (request.buffers, volume.flush_here(self, drive).await),
                op => volume.on_lane(op, request.at, request.buffers).await,
            },
            None => (request.buffers, Err(VolumeError::Closed)),
        };
        let reply = Message(Body::Reply {
            slot: request.slot,
            buffers,
            result,
        });
        self.endpoint.reply(request.from, reply);
    }

    /// Has another reactor do a part.
    pub async fn forward(
        &self,
        to: ReactorId,
        volume: u32,
        op: Op,
        at: ByteRange,
        buffers: Buffers,
    ) -> (Buffers, Result<(), VolumeError>) {
        let slot = self.begin_request();
        let request = Request {
            from: self.here(),
            slot: slot.number(),
            volume,
            op,
            at,
            buffers,
        };
        self.request(to, request, slot).await.reply().await
    }

    pub fn begin_request(&self) -> Slot<'_> {
        self.pending.begin()
    }

    /// Sends a request; its reply comes to the slot.
    pub async fn request<'a>(&self, to: ReactorId, request: Request, slot: Slot<'a>) -> Slot<'a> {
        let request = Message(Body::Request(request));
        if let Err(request) = self.endpoint.try_request(to, request) {
            self.endpoint.request(to, request).await;
        }
        slot.sent()
    }

    fn numbered(&self, number: u32) -> Option<Volume> {
        let volumes = self.by_number.borrow();
        volumes.get(number as usize).cloned().flatten()
    }
}
