//! The single-threaded executor: boxed long-lived tasks, and a fixed slab of slots in which I/O operations live without allocating.
//!
//! A slot's number names it everywhere: operations come first (below [`OPS_MAX`]), tasks after them.

use std::cell::{Cell, UnsafeCell};
use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use keelblock_ffi::clock::{TickRate, ticks};

use super::error::SlabFull;
use super::stats::ReactorStats;
use super::wake::Wakes;

/// Most I/O operations in flight on a reactor (RULES S10).
pub const OPS_MAX: usize = 4096;
/// Largest state of an I/O operation, in bytes.
pub const OP_BYTES: usize = 2048;
/// A task that holds the core longer than this is reported.
pub const STALL_NS: u64 = 10_000_000;

/// Number of a long-lived task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TaskId(u32);

/// Told of a task that held the core too long: its name, and for how long.
pub(crate) type StallReport = Box<dyn Fn(&'static str, Duration)>;

#[repr(align(64))]
struct OpBytes(UnsafeCell<MaybeUninit<[u8; OP_BYTES]>>);

/// What is in an operation's slot: how to poll and drop it.
#[derive(Clone, Copy)]
struct OpKind {
    name: &'static str,
    poll: unsafe fn(*mut u8, &mut Context<'_>) -> Poll<()>,
    drop: unsafe fn(*mut u8),
}

struct Task {
    name: &'static str,
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// Book-keeping that no task's code ever sees borrowed.
struct Slots {
    ops: Vec<Option<OpKind>>,
    ops_free: Vec<u32>,
    tasks: Vec<Option<Task>>,
    tasks_free: Vec<u32>,
}

pub(crate) struct Executor {
    wakes: Wakes,
    op_bytes: Vec<OpBytes>,
    slots: UnsafeCell<Slots>,
    rate: TickRate,
    stall_ticks: Cell<u64>,
    /// When the task that runs now began.
    began: Cell<u64>,
    /// None: no watchdog, and no clock is read.
    report: Option<StallReport>,
}

impl Executor {
    pub(crate) fn new(wakes: Wakes, report: Option<StallReport>) -> Self {
        let mut op_bytes = Vec::with_capacity(OPS_MAX);
        // Untouched, the slab costs address space only; the slots used last are used first, so few become resident.
        op_bytes.resize_with(OPS_MAX, || OpBytes(UnsafeCell::new(MaybeUninit::uninit())));
        wakes.reserve(OPS_MAX + 256);
        Executor {
            wakes,
            op_bytes,
            slots: UnsafeCell::new(Slots {
                ops: vec![None; OPS_MAX],
                ops_free: (0..OPS_MAX as u32).rev().collect(),
                tasks: Vec::with_capacity(256),
                tasks_free: Vec::with_capacity(256),
            }),
            rate: TickRate::begin(),
            stall_ticks: Cell::new(u64::MAX),
            began: Cell::new(0),
            report,
        }
    }

    pub(crate) fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// Adds a long-lived task; it runs in this pass or the next.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        future: Pin<Box<dyn Future<Output = ()>>>,
        stats: &ReactorStats,
    ) -> TaskId {
        let task = Task {
            name,
            future: Some(future),
        };
        let index = self.slots(|s| match s.tasks_free.pop() {
            Some(index) => {
                s.tasks[index as usize] = Some(task);
                index
            }
            None => {
                s.tasks.push(Some(task));
                (s.tasks.len() - 1) as u32
            }
        });
        let slot = OPS_MAX as u32 + index;
        self.wakes.reserve(slot as usize + 1);
        self.wakes.ready(slot);
        stats.tasks.add(1);
        TaskId(slot)
    }

    /// Puts an operation into a slot and polls it there.
    pub(crate) fn start<F: Future<Output = ()> + 'static>(
        &self,
        name: &'static str,
        op: F,
        stats: &ReactorStats,
    ) -> Result<(), SlabFull> {
        const {
            assert!(
                size_of::<F>() <= OP_BYTES,
                "the operation's state is too large for its slot: box what is large and rare"
            );
            assert!(
                align_of::<F>() <= 64,
                "the operation's state is aligned too strictly"
            );
        }
        unsafe fn poll<F: Future<Output = ()>>(at: *mut u8, cx: &mut Context<'_>) -> Poll<()> {
            // SAFETY: the caller says that an F lies there, that never moves and is borrowed by nobody else.
            unsafe { Pin::new_unchecked(&mut *at.cast::<F>()) }.poll(cx)
        }
        unsafe fn drop<F>(at: *mut u8) {
            // SAFETY: the caller says that an F lies there, and forgets it.
            unsafe { at.cast::<F>().drop_in_place() }
        }
        let kind = OpKind {
            name,
            poll: poll::<F>,
            drop: drop::<F>,
        };
        let slot = self.slots(|s| {
            let slot = s.ops_free.pop()?;
            s.ops[slot as usize] = Some(kind);
            Some(slot)
        });
        let slot = slot.ok_or(SlabFull)?;
        // SAFETY: the slot was free, so nothing lies there; size and alignment were checked above.
        unsafe { self.op_at(slot).cast::<F>().write(op) };
        stats.ops_started.add(1);
        stats.ops_in_flight.add(1);
        self.poll_op(slot, stats);
        self.watch(name, stats);
        Ok(())
    }

    /// Runs what is ready now, in order, but not what becomes ready meanwhile. Returns how many tasks ran.
    pub(crate) fn run(&self, stats: &ReactorStats) -> usize {
        let count = self.wakes.ready_len();
        if count == 0 {
            return 0;
        }
        if self.report.is_some() {
            self.calibrate();
            self.began.set(ticks());
        }
        for _ in 0..count {
            let Some(slot) = self.wakes.pop_ready() else {
                break;
            };
            let name = if (slot as usize) < OPS_MAX {
                self.poll_op(slot, stats)
            } else {
                self.poll_task(slot, stats)
            };
            self.watch(name, stats);
        }
        count
    }

    /// Drops everything, in order of slots; what that wakes or starts goes too.
    pub(crate) fn clear(&self, stats: &ReactorStats) {
        for index in 0.. {
            let Some(task) = self.slots(|s| s.tasks.get_mut(index).map(Option::take)) else {
                break;
            };
            drop(task);
        }
        for slot in 0..OPS_MAX as u32 {
            self.drop_op(slot, stats);
        }
    }

    fn poll_op(&self, slot: u32, stats: &ReactorStats) -> &'static str {
        let Some(kind) = self.slots(|s| s.ops[slot as usize]) else {
            return "";
        };
        stats.polls.add(1);
        let waker = self.wakes.borrowed(slot);
        // SAFETY: the kind says what lies in the slot; an operation is polled by `run` or by its own `start`, never within itself.
        let done = unsafe { (kind.poll)(self.op_at(slot), &mut Context::from_waker(&waker)) };
        if done.is_ready() {
            self.drop_op(slot, stats);
        }
        kind.name
    }

    fn drop_op(&self, slot: u32, stats: &ReactorStats) {
        let Some(kind) = self.slots(|s| s.ops[slot as usize].take()) else {
            return;
        };
        // SAFETY: the kind says what lies in the slot; taking it made sure that nobody polls or drops it again.
        unsafe { (kind.drop)(self.op_at(slot)) };
        self.slots(|s| s.ops_free.push(slot));
        stats.ops_in_flight.set(stats.ops_in_flight.get() - 1);
    }

    fn poll_task(&self, slot: u32, stats: &ReactorStats) -> &'static str {
        let index = slot as usize - OPS_MAX;
        // Out of its slot while it runs, so that it may spawn.
        let taken = self.slots(|s| {
            s.tasks
                .get_mut(index)?
                .as_mut()
                .and_then(|t| Some((t.name, t.future.take()?)))
        });
        let Some((name, mut future)) = taken else {
            return "";
        };
        stats.polls.add(1);
        let waker = self.wakes.borrowed(slot);
        if future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            self.slots(|s| {
                if let Some(task) = &mut s.tasks[index] {
                    task.future = Some(future);
                }
            });
            return name;
        }
        drop(future);
        self.slots(|s| {
            s.tasks[index] = None;
            s.tasks_free.push(index as u32);
        });
        stats.tasks.set(stats.tasks.get() - 1);
        name
    }

    /// Reports the task that ran until now if it took too long, and begins to count for the next.
    fn watch(&self, name: &'static str, stats: &ReactorStats) {
        if self.report.is_none() {
            return;
        }
        let now = ticks();
        let held = now.wrapping_sub(self.began.replace(now));
        if held > self.stall_ticks.get() && held < u64::MAX / 2 {
            self.stalled(name, held, stats);
        }
    }

    #[cold]
    fn stalled(&self, name: &'static str, held: u64, stats: &ReactorStats) {
        let ns =
            u128::from(held) * u128::from(STALL_NS) / u128::from(self.stall_ticks.get().max(1));
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        stats.stalls.add(1);
        stats.stall_ns_max.set(stats.stall_ns_max.get().max(ns));
        tracing::warn!(
            task = name,
            held_ms = ns / 1_000_000,
            "a task held the core for too long"
        );
        if let Some(report) = &self.report {
            report(name, Duration::from_nanos(ns));
        }
    }

    /// Learns how many ticks the watchdog's limit is, once enough time has passed to know.
    fn calibrate(&self) {
        if self.stall_ticks.get() == u64::MAX
            && let Some(limit) = self.rate.ticks_in(STALL_NS)
        {
            self.stall_ticks.set(limit);
        }
    }

    fn op_at(&self, slot: u32) -> *mut u8 {
        self.op_bytes[slot as usize].0.get().cast()
    }

    fn slots<R>(&self, f: impl FnOnce(&mut Slots) -> R) -> R {
        // SAFETY: the executor is !Sync, and `f` runs no code of tasks (futures are moved, not dropped, inside), so borrows never overlap.
        f(unsafe { &mut *self.slots.get() })
    }
}
