//! The only door of code on a reactor to time, disks, network, randomness and other tasks.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keelblock_hugepages::BufferPool;

use super::disk::{Disk, DiskSpec};
use super::error::{DiskError, NetError, SlabFull};
use super::executor::{Executor, TaskId};
use super::sim::SimDriver;
use super::socket::{DetachedSocket, Listener, Socket};
use super::stats::ReactorStats;
use super::timer::{Sleep, Timeout, Timers};
use super::uring::Uring;
use super::{Nanos, ReactorId};

/// What moves bytes and time for a reactor.
#[allow(clippy::large_enum_variant)] // one per reactor, and an indirection on the hot path would cost more than the bytes
pub(crate) enum Driver {
    Uring(Uring),
    Sim(SimDriver),
}

/// A reactor's state. Only its own thread has it.
pub(crate) struct Core {
    pub(crate) id: ReactorId,
    pub(crate) reactors: u16,
    pub(crate) executor: Executor,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) now: Cell<Nanos>,
    pub(crate) random: Cell<u64>,
    pub(crate) buffers: BufferPool,
    pub(crate) stats: Arc<ReactorStats>,
    pub(crate) driver: Driver,
    /// Something useful happened in this pass.
    pub(crate) progress: Cell<bool>,
}

impl Core {
    pub(crate) fn uring(&self) -> &Uring {
        match &self.driver {
            Driver::Uring(uring) => uring,
            Driver::Sim(_) => unreachable!("a simulated reactor has no ring"),
        }
    }

    pub(crate) fn sim(&self) -> &SimDriver {
        match &self.driver {
            Driver::Sim(sim) => sim,
            Driver::Uring(_) => unreachable!("a real reactor is not simulated"),
        }
    }

    /// SplitMix64: one addition per step, then a mix. For spreading and jitter, not for secrets.
    pub(crate) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A handle of a reactor, for the code that runs on it. Cheap to clone; never leaves its thread.
#[derive(Clone)]
pub struct Handle {
    pub(crate) core: Rc<Core>,
}

impl Handle {
    /// This reactor's number.
    pub fn id(&self) -> ReactorId {
        self.core.id
    }

    /// How many reactors there are.
    pub fn reactors(&self) -> u16 {
        self.core.reactors
    }

    /// The monotonic clock as it was when this pass began.
    pub fn now(&self) -> Nanos {
        self.core.now.get()
    }

    /// The monotonic clock as it is at this moment: for measuring, while decisions take [`Handle::now`].
    pub fn clock(&self) -> Nanos {
        match &self.core.driver {
            Driver::Uring(_) => Nanos(keelblock_ffi::clock::monotonic_ns()),
            Driver::Sim(sim) => sim.now(),
        }
    }

    /// Waits for `d` from now.
    pub fn sleep(&self, d: Duration) -> Sleep {
        self.sleep_until(self.now() + d)
    }

    /// Waits until `deadline`.
    pub fn sleep_until(&self, deadline: Nanos) -> Sleep {
        Sleep::new(self.core.clone(), deadline)
    }

    /// Runs `inner` for at most `limit`; what is left of it then is dropped.
    pub fn timeout<F: Future>(&self, limit: Duration, inner: F) -> Timeout<F> {
        Timeout {
            inner,
            sleep: self.sleep(limit),
            limit,
        }
    }

    /// A random number, not for secrets.
    pub fn random(&self) -> u64 {
        self.core.random()
    }

    /// Adds a long-lived task. Allocates, so not for single I/O operations.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) -> TaskId {
        self.core
            .executor
            .spawn(name, Box::pin(task), &self.core.stats)
    }

    /// Starts an I/O operation: puts it into a slot of the slab, without allocating, and polls it at once.
    ///
    /// # Errors
    /// If [`super::OPS_MAX`] operations are in flight.
    pub fn start(
        &self,
        name: &'static str,
        op: impl Future<Output = ()> + 'static,
    ) -> Result<(), SlabFull> {
        self.core.executor.start(name, op, &self.core.stats)
    }

    /// Lets everything else that is ready run first.
    pub fn yield_now(&self) -> impl Future<Output = ()> + use<> {
        let mut yielded = false;
        std::future::poll_fn(move |cx| {
            if std::mem::replace(&mut yielded, true) {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
    }

    /// This reactor's DMA buffers.
    pub fn buffers(&self) -> &BufferPool {
        &self.core.buffers
    }

    /// Opens a file or a block device. Blocks for a moment: not for the I/O path.
    ///
    /// # Errors
    /// [`DiskError::Open`], [`DiskError::NotADisk`].
    pub fn open_disk(&self, spec: &DiskSpec) -> Result<Disk, DiskError> {
        Disk::open(&self.core, spec)
    }

    /// Listens for connections.
    ///
    /// # Errors
    /// [`NetError::InUse`], [`NetError::Listen`].
    pub fn listen(&self, at: SocketAddr) -> Result<Listener, NetError> {
        Listener::open(&self.core, at)
    }

    /// Connects to a peer; bound the wait with [`Handle::timeout`].
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub async fn connect(&self, to: SocketAddr) -> Result<Socket, NetError> {
        Socket::connect(&self.core, to).await
    }

    /// Takes over a connection that another reactor gave away.
    pub fn adopt(&self, socket: DetachedSocket) -> Socket {
        Socket::adopt(&self.core, socket)
    }

    /// This reactor's counters.
    pub fn stats(&self) -> &ReactorStats {
        &self.core.stats
    }

    /// Ends this reactor after the current pass.
    pub fn stop(&self) {
        self.core.executor.wakes().remote().stop();
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("id", &self.core.id).finish()
    }
}
