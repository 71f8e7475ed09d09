//! One reactor's end of the volumes' mesh: its handles of volumes and drives, the requests that it forwards, those that it serves, and the
//! orders of the registry that it carries out.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use keelblock_api::stats::VolumeSlot;

use super::forward::{Body, Message, Pending, Request};
use super::op::{Buffers, Op};
use super::range::{Hold, Mode};
use super::scratch::Scratch;
use super::{ByteRange, LaneTable, Lanes, Volume, VolumeError, VolumeSpec};
use crate::device::{Device, DeviceSource, Latch};
use crate::reactor::mesh::CREDITS;
use crate::reactor::{Endpoint, Handle, Notify, ReactorId};
use crate::store::VolumeId;

/// How long a request waits for a slot for its operation when the reactor is full.
const SLAB_RETRY: Duration = Duration::from_micros(50);
/// Longer than what is left of any pass: what was read at once before a lane was quiesced has been sent by then.
const PASS_ENDS: Duration = Duration::from_micros(100);

/// What the registry tells a reactor to do.
#[derive(Clone, Debug)]
pub(super) enum Control {
    /// Opens a handle of the next drive.
    Drive {
        number: u32,
        source: DeviceSource,
        latch: Latch,
    },
    /// Forgets the last drive again: another reactor could not open it.
    ForgetDrive { number: u32 },
    /// Opens a volume.
    Open {
        spec: VolumeSpec,
        owners: LaneTable,
        slot: Option<VolumeSlot>,
    },
    /// Takes a larger map over.
    Resize { spec: VolumeSpec },
    /// Finishes what is under way and forgets the volume.
    Close { number: u32 },
    /// Gives the operations that this reactor's hosts had on a volume since this was last asked.
    Operations { number: u32 },
    /// To the owner: finishes what is under way on these lanes, and lets nothing begin until `Own`.
    Quiesce { number: u32, lanes: LaneSet },
    /// These lanes have this owner.
    Own {
        number: u32,
        lanes: LaneSet,
        owner: ReactorId,
    },
}

/// What became of it: a number for orders that ask for one, else 0; the error is for people.
pub(super) type ControlResult = Result<u64, String>;

/// A set of lanes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneSet(pub u16);

impl LaneSet {
    pub fn contains(self, lane: super::Lane) -> bool {
        self.0 & 1 << lane.index() != 0
    }

    pub fn of(self, lanes: Lanes) -> impl Iterator<Item = super::Lane> {
        lanes.all().filter(move |&lane| self.contains(lane))
    }
}

/// What reactors ask of the registry on reactor 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// The first host of a volume is served by this reactor: its lanes should be there.
    Place { volume: u32, reactor: ReactorId },
    /// Many operations of a volume are forwarded: its lanes should be looked at.
    Balance { volume: u32 },
}

pub(super) struct Shared {
    handle: Handle,
    endpoint: Endpoint<Message>,
    pending: Pending,
    /// Requests that have arrived, until their operation takes them.
    inbox: RefCell<Inbox>,
    scratch: Scratch,
    drives: RefCell<Vec<Device>>,
    by_number: RefCell<Vec<Option<Volume>>>,
    by_id: RefCell<BTreeMap<VolumeId, Volume>>,
    /// Lanes that are quiesced here.
    held: RefCell<BTreeMap<(u32, super::Lane), Hold>>,
    /// Answers to the registry's orders (reactor 0).
    answers: RefCell<BTreeMap<u64, ControlResult>>,
    pub(super) answered: Notify,
    next_ticket: Cell<u64>,
    asked: RefCell<VecDeque<Ask>>,
    pub(super) asked_something: Notify,
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
            by_number: RefCell::default(),
            by_id: RefCell::default(),
            held: RefCell::default(),
            answers: RefCell::default(),
            answered: Notify::new(),
            next_ticket: Cell::new(0),
            asked: RefCell::default(),
            asked_something: Notify::new(),
            handle: handle.clone(),
        });
        handle.spawn("volume messages", Rc::clone(&shared).receive());
        Some(Self(shared))
    }

    /// This reactor's handle of an open volume.
    pub fn volume(&self, id: VolumeId) -> Option<Volume> {
        self.0.by_id.borrow().get(&id).cloned()
    }
}

impl Shared {
    pub fn here(&self) -> ReactorId {
        self.handle.id()
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The device of a drive.
    pub fn drive(&self, number: u32) -> Option<Device> {
        self.drives.borrow().get(number as usize).cloned()
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
                Body::Control { ticket, what } => {
                    let this = Rc::clone(&self);
                    self.handle.spawn("volume order", async move {
                        let result = this.carry_out(what).await;
                        let done = Message(Body::ControlDone { ticket, result });
                        this.endpoint.send(from, done).await;
                    });
                }
                Body::ControlDone { ticket, result } => self.answer(ticket, result),
                Body::Ask(ask) => self.queue(ask),
            }
        }
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
            Some(volume) => {
                volume
                    .on_lane(request.op, request.at, request.buffers)
                    .await
            }
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
        let slot = self.pending.begin();
        let request = Message(Body::Request(Request {
            from: self.here(),
            slot: slot.number(),
            volume,
            op,
            at,
            buffers,
        }));
        if let Err(request) = self.endpoint.try_request(to, request) {
            self.endpoint.request(to, request).await;
        }
        slot.reply().await
    }

    fn numbered(&self, number: u32) -> Option<Volume> {
        let volumes = self.by_number.borrow();
        volumes.get(number as usize).cloned().flatten()
    }

    pub fn ask_to_place(self: &Rc<Self>, volume: u32, reactor: ReactorId) {
        let ask = Ask::Place { volume, reactor };
        if self.here() == ReactorId(0) {
            return self.queue(ask);
        }
        let this = Rc::clone(self);
        self.handle.spawn("place volume", async move {
            let ask = Message(Body::Ask(ask));
            this.endpoint.send(ReactorId(0), ask).await;
        });
    }

    /// Does nothing if the ring is full: it will be asked for again.
    pub fn ask_to_balance(&self, volume: u32) {
        let ask = Ask::Balance { volume };
        if self.here() == ReactorId(0) {
            return self.queue(ask);
        }
        let _ = self
            .endpoint
            .try_send(ReactorId(0), Message(Body::Ask(ask)));
    }

    /// Once each: so there are never more than volumes times reactors.
    fn queue(&self, ask: Ask) {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&ask) {
            asked.push_back(ask);
            self.asked_something.notify();
        }
    }

    pub fn next_asked(&self) -> Option<Ask> {
        self.asked.borrow_mut().pop_front()
    }

    /// Gives an order to a reactor (reactor 0 only). The answer comes under the ticket.
    pub async fn order(self: &Rc<Self>, to: ReactorId, what: Control) -> u64 {
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        if to == self.here() {
            let this = Rc::clone(self);
            self.handle.spawn("volume order", async move {
                let result = this.carry_out(what).await;
                this.answer(ticket, result);
            });
        } else {
            let order = Message(Body::Control { ticket, what });
            self.endpoint.send(to, order).await;
        }
        ticket
    }

    fn answer(&self, ticket: u64, result: ControlResult) {
        self.answers.borrow_mut().insert(ticket, result);
        self.answered.notify();
    }

    pub fn take_answer(&self, ticket: u64) -> Option<ControlResult> {
        self.answers.borrow_mut().remove(&ticket)
    }

    async fn carry_out(self: &Rc<Self>, what: Control) -> ControlResult {
        match what {
            Control::Drive {
                number,
                source,
                latch,
            } => self.open_drive(number, &source, &latch),
            Control::ForgetDrive { number } => {
                self.drives.borrow_mut().truncate(number as usize);
                Ok(0)
            }
            Control::Open { spec, owners, slot } => {
                self.open(&spec, &owners, slot);
                Ok(0)
            }
            Control::Resize { spec } => {
                if let Some(volume) = self.numbered(spec.number) {
                    let map = super::map::Map::new(&spec, &self.drives.borrow());
                    *volume.0.map.borrow_mut() = Rc::new(map);
                }
                Ok(0)
            }
            Control::Close { number } => {
                self.close(number).await;
                Ok(0)
            }
            Control::Operations { number } => {
                let volume = self.numbered(number);
                Ok(volume.map_or(0, |v| v.0.operations.take()))
            }
            Control::Quiesce { number, lanes } => {
                self.quiesce(number, lanes).await;
                Ok(0)
            }
            Control::Own {
                number,
                lanes,
                owner,
            } => {
                self.own(number, lanes, owner);
                Ok(0)
            }
        }
    }

    fn open_drive(&self, number: u32, source: &DeviceSource, latch: &Latch) -> ControlResult {
        let device = Device::open(&self.handle, source, latch).map_err(|e| e.to_string())?;
        let mut drives = self.drives.borrow_mut();
        assert_eq!(drives.len(), number as usize, "drives are opened in order");
        drives.push(device);
        Ok(0)
    }

    fn open(self: &Rc<Self>, spec: &VolumeSpec, owners: &LaneTable, slot: Option<VolumeSlot>) {
        let stats = slot.and_then(|slot| slot.reactor(u32::from(self.here().0)));
        let volume = Volume::new(spec, owners, &self.drives.borrow(), stats, self);
        let mut by_number = self.by_number.borrow_mut();
        let at = spec.number as usize;
        if by_number.len() <= at {
            by_number.resize(at + 1, None);
        }
        by_number[at] = Some(volume.clone());
        self.by_id.borrow_mut().insert(spec.id, volume);
    }

    async fn close(&self, number: u32) {
        let Some(volume) = self.numbered(number) else {
            return;
        };
        self.quiesce(number, LaneSet(u16::MAX)).await;
        volume.0.closed.set(true);
        self.by_number.borrow_mut()[number as usize] = None;
        self.by_id.borrow_mut().remove(&volume.id());
        // Those that waited see that it is closed.
        self.held.borrow_mut().retain(|&(n, _), _| n != number);
    }

    async fn quiesce(&self, number: u32, lanes: LaneSet) {
        let Some(volume) = self.numbered(number) else {
            return;
        };
        for lane in lanes.of(volume.0.lanes) {
            let state = &volume.0.table[lane.index()];
            if state.owner.get() != self.here() || self.held.borrow().contains_key(&(number, lane))
            {
                continue;
            }
            // The table has room: operations are bounded below it.
            let entered = state.ranges.enter(0..u64::MAX, Mode::Exclusive);
            let hold = entered.expect("room for the registry's one range").await;
            self.held.borrow_mut().insert((number, lane), hold);
        }
        self.handle.sleep(PASS_ENDS).await;
    }

    fn own(&self, number: u32, lanes: LaneSet, owner: ReactorId) {
        let Some(volume) = self.numbered(number) else {
            return;
        };
        for lane in lanes.of(volume.0.lanes) {
            volume.0.table[lane.index()].owner.set(owner);
            // Those that waited for the lane go where it is now.
            self.held.borrow_mut().remove(&(number, lane));
        }
    }
}
