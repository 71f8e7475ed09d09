//! A subsystem at home: the controller half's state machine, and the carrying out of its effects.
//!
//! Every call goes through [`Home::run`], which afterwards drains the effects in order. Nothing here is called back while the state
//! machine is borrowed: answers of other parts come as messages or from tasks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use keelblock_nvme::Sqe;

use super::message::Message;
use super::node::Node;
use super::seam::{Effect, ViewSpec};
use super::subsystem::Subsystem;
use super::view::NamespaceRef;
use crate::reactor::{Notify, ReactorId};
use crate::volume::forward::{Command, Operation, Phase};

/// A subsystem on its home reactor.
pub struct Home {
    /// The subsystem.
    pub nqn: Arc<str>,
    /// Tells it from a former one of the same name, whose messages may still be on their way.
    pub number: u64,
    node: Rc<Node>,
    subsystem: RefCell<Subsystem>,
    /// Acknowledgements that a publication still lacks, by generation.
    unacknowledged: RefCell<BTreeMap<u64, u16>>,
    published: Notify,
    /// The newest generation that all reactors have.
    settled: Cell<u64>,
    timer: Notify,
    removed: Cell<bool>,
}

impl Home {
    /// Takes a subsystem in, and starts its timer.
    pub fn new(node: &Rc<Node>, nqn: Arc<str>, number: u64, subsystem: Subsystem) -> Rc<Self> {
        let home = Rc::new(Self {
            nqn,
            number,
            node: node.clone(),
            subsystem: RefCell::new(subsystem),
            unacknowledged: RefCell::default(),
            published: Notify::new(),
            settled: Cell::new(0),
            timer: Notify::new(),
            removed: Cell::new(false),
        });
        let timer = home.clone();
        node.handle.spawn(
            "nvmf-home-timer",
            async move { timer.watch_deadlines().await },
        );
        home
    }

    /// Calls the state machine, then does what it wants.
    pub fn run<R>(self: &Rc<Self>, call: impl FnOnce(&mut Subsystem) -> R) -> R {
        let result = call(&mut self.subsystem.borrow_mut());
        self.effects();
        self.timer.notify();
        result
    }

    /// Reads the state machine.
    pub fn look<R>(&self, look: impl FnOnce(&Subsystem) -> R) -> R {
        look(&self.subsystem.borrow())
    }

    /// The subsystem is gone: nothing refers to it any more but what runs out.
    pub fn remove(&self) {
        self.removed.set(true);
        self.timer.notify();
        self.published.notify_all();
    }

    fn effects(self: &Rc<Self>) {
        loop {
            let effect = self.subsystem.borrow_mut().next_effect();
            match effect {
                None => return,
                Some(Effect::Complete(cmd, reply)) => {
                    self.node
                        .send(ReactorId(cmd.reactor), Message::Complete { cmd, reply });
                }
                Some(Effect::CloseQueues { cntlid, scope }) => {
                    let nqn = &self.nqn;
                    self.node.broadcast(|| Message::CloseQueues {
                        nqn: nqn.clone(),
                        cntlid,
                        scope,
                    });
                }
                Some(Effect::Publish(view)) => self.publish(view),
                Some(Effect::Flush { cntlid }) => self.flush(cntlid),
                Some(Effect::Event(event)) => self.node.send(ReactorId(0), Message::Event(event)),
            }
        }
    }

    /// Sends a view to every reactor. One that is sent again, while it is still on its way, lacks the acknowledgements of both: two of
    /// one reactor do not stand for that of another.
    pub fn publish(&self, view: Arc<ViewSpec>) {
        let reactors = self.node.handle.reactors();
        *self
            .unacknowledged
            .borrow_mut()
            .entry(view.generation)
            .or_insert(0) += reactors;
        self.node.broadcast(|| Message::Publish {
            home: self.number,
            view: view.clone(),
        });
    }

    /// A reactor has a view in force.
    pub fn acknowledge(self: &Rc<Self>, generation: u64) {
        let mut waiting = self.unacknowledged.borrow_mut();
        let Some(left) = waiting.get_mut(&generation) else {
            return;
        };
        *left -= 1;
        if *left == 0 {
            waiting.remove(&generation);
            drop(waiting);
            self.settled.set(self.settled.get().max(generation));
            self.published.notify_all();
            let now = self.node.handle.now();
            self.run(|s| s.published(generation, now.0));
        }
    }

    /// Waits until the present view is in force everywhere.
    pub async fn settle(&self) {
        let generation = self.look(|s| s.view().generation);
        while self.settled.get() < generation && !self.removed.get() {
            self.published.notified().await;
        }
    }

    /// Flushes every namespace, then says so.
    fn flush(self: &Rc<Self>, cntlid: u16) {
        let home = self.clone();
        let view = self.node.view_cell(&self.nqn).get();
        self.node.handle.spawn("nvmf-shutdown-flush", async move {
            for ns in &view.namespaces {
                let ns = NamespaceRef::new(&view, ns);
                let flushed = match ns.forwards {
                    true => elsewhere(&ns).await,
                    false => ns.volume.flush().await.map_err(|e| e.to_string()),
                };
                if let Err(error) = flushed {
                    tracing::error!(nqn = %home.nqn, nsid = ns.nsid, %error, "flush at controller shutdown failed");
                }
            }
            let now = home.node.handle.now();
            home.run(|s| s.flushed(cntlid, now.0));
        });
    }

    /// The length that a command's SGL allows for data to the host.
    pub fn data_room(sqe: &Sqe) -> usize {
        sqe.sgl().length() as usize
    }

    async fn watch_deadlines(self: Rc<Self>) {
        while !self.removed.get() {
            let deadline = self.look(Subsystem::deadline);
            match deadline {
                None => self.timer.notified().await,
                Some(at) => {
                    let now = self.node.handle.now().0;
                    if at <= now {
                        self.run(|s| s.expire(now));
                        self.node.handle.yield_now().await;
                        continue;
                    }
                    let wait = std::time::Duration::from_nanos(at - now);
                    let _ = self.node.handle.timeout(wait, self.timer.notified()).await;
                }
            }
        }
    }
}

/// Flushes a volume that is coordinated on another node.
async fn elsewhere(ns: &NamespaceRef) -> Result<(), String> {
    let flush = Command {
        host: [0; 16],
        request: 0,
        phase: Phase::Read,
        operation: Operation::Flush,
        fused: false,
        fua: false,
        nsid: ns.nsid,
        first: 0,
        bytes: 0,
        age_ms: 1,
    };
    let done = ns.volume.ask_elsewhere(flush, None).await;
    let status = |s| format!("the node that coordinates the volume answered with status {s:#06x}");
    done.map(drop).map_err(status)
}
