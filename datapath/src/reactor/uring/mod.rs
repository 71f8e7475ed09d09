//! The driver of a real reactor: one io_uring for disks, readiness and the bell; plain system calls for the bytes of active sockets.
//!
//! With `DEFER_TASKRUN` completions appear only in an `enter`; `TASKRUN_FLAG` tells when one is due, so an empty pass costs no system
//! call (RULES S12).

mod crowd;
pub(crate) mod disk;
mod fixed;
pub(crate) mod kernel;
pub(crate) mod net;
mod pass;

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use io_uring::{IoUring, squeue};

pub(crate) use kernel::KernelOp;
use kernel::Table;
use net::Sockets;
pub(crate) use pass::run;

/// Submission queue entries; a full queue is submitted at once.
const SQ_ENTRIES: u32 = 1024;
/// Completion queue entries: room for every operation in flight and every armed socket of a busy moment; the kernel keeps what overflows.
const CQ_ENTRIES: u32 = 8192;

/// How a reactor behaves when it has nothing to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdleRule {
    /// Sleep at all.
    pub(crate) sleep: bool,
    /// Spin this long without work before sleeping; a socket quiet for this long is waited for instead of polled.
    pub(crate) after: Duration,
    /// Give the core away in each empty pass, because reactors of this process share cores. Else only while others want it.
    pub(crate) yield_core: bool,
}

/// State of the driver.
pub(crate) struct Uring {
    ring: RefCell<IoUring>,
    table: RefCell<Table>,
    sockets: RefCell<Sockets>,
    rule: IdleRule,
    crowd: crowd::Crowd,
    fixed: fixed::FixedBuffers,
    /// A read of the bell is with the kernel.
    bell_armed: Cell<bool>,
    /// Where that read puts the bell's count; lives as long as the ring.
    bell_count: Box<Cell<u64>>,
    latency: Cell<Latency>,
}

/// Mean latency of disk operations, and when the last one was submitted.
#[derive(Debug, Clone, Copy, Default)]
struct Latency {
    in_flight: u32,
    mean_ns: u64,
    submitted: u64,
}

impl Uring {
    pub(crate) fn new(rule: IdleRule) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(CQ_ENTRIES)
            .build(SQ_ENTRIES)?;
        Ok(Uring {
            ring: RefCell::new(ring),
            table: RefCell::new(Table::new()),
            sockets: RefCell::new(Sockets::default()),
            rule,
            crowd: crowd::Crowd::default(),
            fixed: fixed::FixedBuffers::default(),
            bell_armed: Cell::new(false),
            bell_count: Box::new(Cell::new(0)),
            latency: Cell::new(Latency::default()),
        })
    }

    /// Queues an entry; the next submit gives it to the kernel.
    ///
    /// # Safety
    /// What the entry points to must stay valid, and unaliased as the operation needs, until its completion has been reaped.
    unsafe fn push(&self, entry: &squeue::Entry) {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: the caller's promise.
        while unsafe { ring.submission().push(entry) }.is_err() {
            // Full. EBUSY means that completions must be reaped first, which happens in the next pass: go on trying until then is not
            // possible here, but with NODROP the kernel only refuses when it is out of memory.
            if let Err(e) = ring.submit() {
                assert!(
                    matches!(
                        e.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                    ),
                    "io_uring_enter: {e}"
                );
                std::thread::yield_now();
            }
        }
    }
}
