//! Passes, sleeping and ending of a real reactor.

use std::sync::atomic::Ordering;
use std::time::Duration;

use io_uring::{cqueue, opcode, types};
use keelblock_ffi::{clock, thread};
use std::os::fd::AsRawFd;

use super::super::Nanos;
use super::super::handle::Core;
use super::Uring;
use super::kernel::{
    KIND_BELL, KIND_NONE, KIND_OP, KIND_READABLE, KIND_WRITABLE, split, user_data,
};

/// `IORING_ENTER_GETEVENTS`: run deferred work, so that completions appear.
const GETEVENTS: u32 = 1;
/// Completions taken out of the ring at a time.
const BATCH: usize = 64;
/// The thread's processor time, which costs a system call, is read at most this often while awake.
const CPU_EVERY_NS: u64 = 100_000_000;
/// A sleep is never longer than this, so that a clock that jumps cannot stop a reactor.
const SLEEP_NS_MAX: u64 = 3_600_000_000_000;
/// Operations that the kernel does not give back for this long at the end are leaked with their ring.
const DRAIN_NS_MAX: u64 = 5_000_000_000;

/// Runs passes until the reactor is stopped.
pub(crate) fn run(core: &Core) {
    let uring = core.uring();
    let mut pass_began = core.now.get().0;
    let mut last_work = pass_began;
    let mut cpu_read = 0;
    while !core.executor.wakes().stopping() {
        core.progress.set(false);
        let now = clock::monotonic_ns();
        core.now.set(Nanos(now));
        uring.reap(core);
        let fired = core.timers.borrow_mut().fire(Nanos(now));
        if core.executor.wakes().reap() {
            core.stats.remote_wakes.add(1);
            core.progress.set(true);
        }
        core.buffers.reap();
        core.executor.run(&core.stats);
        // What polling a socket makes ready is no work yet: it may find nothing.
        let work = core.progress.get() || fired > 0 || core.executor.wakes().ready_len() > 0;
        uring.poll_sockets(core);
        uring.submit(core);

        let spent = now - pass_began;
        pass_began = now;
        core.stats.passes.add(1);
        if work {
            last_work = now;
            core.stats.busy_ns.add(spent);
        } else {
            core.stats.idle_ns.add(spent);
            core.stats.empty_passes.add(1);
            if uring.may_sleep(core, now, last_work) {
                uring.gauges(core);
                uring.sleep(core);
                let woke = clock::monotonic_ns();
                core.stats.asleep_ns.add(woke - now);
                core.stats.cpu_ns.set(thread::cpu_ns());
                (pass_began, last_work, cpu_read) = (woke, woke, woke);
            } else if uring.rule.yield_core || uring.crowd.shared(now) {
                std::thread::yield_now();
            }
        }
        if now.saturating_sub(cpu_read) > CPU_EVERY_NS {
            cpu_read = now;
            core.stats.cpu_ns.set(thread::cpu_ns());
            uring.gauges(core);
        }
    }
}

impl Uring {
    /// Takes completions out of the ring and wakes who waits for them.
    fn reap(&self, core: &Core) {
        let due = {
            let mut ring = self.ring.borrow_mut();
            let sq = ring.submission();
            sq.taskrun() || sq.cq_overflow()
        };
        if due {
            self.enter(core, 0);
        }
        while !self.ring.borrow_mut().completion().is_empty() {
            let mut batch: [Option<cqueue::Entry>; BATCH] = [const { None }; BATCH];
            let mut count = 0;
            {
                let mut ring = self.ring.borrow_mut();
                for entry in ring.completion().take(BATCH) {
                    batch[count] = Some(entry);
                    count += 1;
                }
            }
            for entry in batch.into_iter().take(count).flatten() {
                self.completed(core, &entry);
            }
        }
    }

    /// Counters that are states, not events.
    fn gauges(&self, core: &Core) {
        core.stats
            .ring_depth
            .set(u64::from(self.latency.get().in_flight));
        core.stats
            .buffer_bytes_used
            .set(core.buffers.stats().used as u64);
    }

    fn completed(&self, core: &Core, entry: &cqueue::Entry) {
        let (kind, generation, index) = split(entry.user_data());
        core.progress.set(true);
        match kind {
            KIND_OP => {
                let (submitted, buffer) = self.table.borrow_mut().complete(index, entry.result());
                drop(buffer);
                if submitted != 0 {
                    let mut latency = self.latency.get();
                    latency.in_flight -= 1;
                    let took = core.now.get().0.saturating_sub(submitted);
                    latency.mean_ns = latency.mean_ns - latency.mean_ns / 8 + took / 8;
                    self.latency.set(latency);
                }
            }
            KIND_READABLE => self
                .sockets
                .borrow_mut()
                .readable(index, generation, core.now.get()),
            KIND_WRITABLE => self.sockets.borrow_mut().writable(index, generation),
            KIND_BELL => self.bell_armed.set(false),
            _ => {}
        }
    }

    /// Gives queued entries to the kernel.
    fn submit(&self, core: &Core) {
        if !self.ring.borrow_mut().submission().is_empty() {
            self.enter(core, 0);
        }
    }

    /// One `io_uring_enter` that submits what is queued, runs deferred work and waits for `want` completions.
    fn enter(&self, core: &Core, want: u32) {
        core.stats.enters.add(1);
        let mut ring = self.ring.borrow_mut();
        let queued = ring.submission().len() as u32;
        // SAFETY: no argument is passed, and the entries' memory was promised when they were pushed.
        let done = unsafe { ring.submitter().enter::<()>(queued, want, GETEVENTS, None) };
        if let Err(e) = done {
            assert!(
                matches!(
                    e.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ),
                "io_uring_enter failed: {e}"
            );
        }
    }

    /// Whether nothing has happened for so long that sleeping is right.
    fn may_sleep(&self, core: &Core, now: u64, last_work: u64) -> bool {
        if !self.rule.sleep || now - last_work < self.rule.after.as_nanos() as u64 {
            return false;
        }
        let latency = self.latency.get();
        if latency.in_flight > 0 && now - latency.submitted < 2 * latency.mean_ns {
            return false;
        }
        core.timers.borrow().next().is_none_or(|next| next.0 > now)
    }

    /// Sleeps until a completion, the bell or the next timer.
    fn sleep(&self, core: &Core) {
        self.arm_all_sockets(core);
        self.arm_bell(core);
        if core.executor.wakes().fall_asleep() {
            core.stats.sleeps.add(1);
            core.stats.enters.add(1);
            let now = clock::monotonic_ns();
            let next = core
                .timers
                .borrow()
                .next()
                .map_or(u64::MAX, |n| n.0.saturating_sub(now));
            let limit = types::Timespec::from(Duration::from_nanos(next.min(SLEEP_NS_MAX)));
            let args = types::SubmitArgs::new().timespec(&limit);
            if let Err(e) = self
                .ring
                .borrow_mut()
                .submitter()
                .submit_with_args(1, &args)
            {
                assert!(
                    matches!(
                        e.raw_os_error(),
                        Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                    ),
                    "io_uring_enter failed: {e}"
                );
            }
            core.executor.wakes().wake_up();
        }
    }

    fn arm_bell(&self, core: &Core) {
        let Some(bell) = core.executor.wakes().bell() else {
            return;
        };
        if self.bell_armed.replace(true) {
            return;
        }
        let entry = opcode::Read::new(
            types::Fd(bell.as_raw_fd()),
            self.bell_count.as_ptr().cast(),
            8,
        )
        .build()
        .user_data(user_data(KIND_BELL, 0, 0));
        // SAFETY: the count is boxed and lives as long as the ring; nobody else touches it.
        unsafe { self.push(&entry) };
    }

    /// Cancels what the kernel has and waits until it has given everything back.
    pub(crate) fn drain(&self, core: &Core) {
        let all = opcode::AsyncCancel2::new(types::CancelBuilder::any().all())
            .build()
            .user_data(user_data(KIND_NONE, 0, 0));
        // SAFETY: a cancellation points to nothing.
        unsafe { self.push(&all) };
        let limit = clock::monotonic_ns() + DRAIN_NS_MAX;
        self.enter(core, 0);
        self.reap(core);
        while self.table.borrow().with_kernel() > 0 || self.bell_armed.get() {
            if clock::monotonic_ns() > limit {
                tracing::error!(
                    "the kernel does not complete its operations; leaving their buffers to it"
                );
                std::mem::forget(std::mem::replace(
                    &mut *self.table.borrow_mut(),
                    super::kernel::Table::new(),
                ));
                return;
            }
            let step = types::Timespec::from(Duration::from_millis(10));
            let args = types::SubmitArgs::new().timespec(&step);
            let _ = self
                .ring
                .borrow_mut()
                .submitter()
                .submit_with_args(1, &args);
            self.reap(core);
        }
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}
