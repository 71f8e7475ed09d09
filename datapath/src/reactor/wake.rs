//! Wakers, the ready queue, and the bell of a sleeping reactor.
//!
//! Every slot of the executor has a [`Header`]; a waker is a pointer to it and one reference on the reactor's [`Shared`] part, which lives
//! until the reactor and all wakers are gone. A waker may outlive its task: it then wakes whoever has the slot, which the `Future` contract
//! allows.
//!
//! On the reactor's own thread waking pushes the slot's number to the ready queue. From elsewhere the header is pushed to a lock-free
//! stack, and the reactor's bell is rung if it sleeps (`asleep` says why no wake-up is lost).

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::task::{RawWaker, RawWakerVTable, Waker};

use keelblock_ffi::thread::token;

use super::asleep::Asleep;

/// Headers are made in blocks of this many, so that they never move.
const BLOCK: usize = 256;

/// What wakers of one slot point to.
pub(crate) struct Header {
    shared: NonNull<Shared>,
    slot: u32,
    /// In the ready queue. Touched by the owner only.
    ready: AtomicBool,
    /// On the stack of slots woken from elsewhere.
    stacked: AtomicBool,
    next: AtomicPtr<Header>,
}

/// The part of a reactor that other threads may touch.
pub(crate) struct Shared {
    /// The reactor, if it lives, and every waker.
    references: AtomicUsize,
    /// Token of the reactor's thread; 0 once it is gone.
    owner: AtomicUsize,
    woken: AtomicPtr<Header>,
    asleep: Asleep,
    stop: AtomicBool,
    /// Something else than a task wants a pass.
    poked: AtomicBool,
    bell: Option<OwnedFd>,
    local: UnsafeCell<Local>,
}

/// The part that only the owner's thread touches.
struct Local {
    ready: VecDeque<u32>,
    headers: Vec<Box<[Header]>>,
}

/// The reactor's reference to its shared part. `!Send`.
pub(crate) struct Wakes {
    shared: NonNull<Shared>,
}

impl Wakes {
    /// For the calling thread. `bell` is an eventfd that wakes it from its sleep; a simulation has none.
    pub(crate) fn new(bell: Option<OwnedFd>, slots: usize) -> Self {
        let local = Local {
            ready: VecDeque::with_capacity(slots * 2),
            headers: Vec::new(),
        };
        let shared = Box::new(Shared {
            references: AtomicUsize::new(1),
            owner: AtomicUsize::new(token()),
            woken: AtomicPtr::new(std::ptr::null_mut()),
            asleep: Asleep::new(),
            stop: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            bell,
            local: UnsafeCell::new(local),
        });
        let wakes = Wakes {
            shared: NonNull::from(Box::leak(shared)),
        };
        wakes.reserve(slots);
        wakes
    }

    /// Makes headers for slots below `slots`, and room for all of them in the ready queue.
    pub(crate) fn reserve(&self, slots: usize) {
        let shared = self.shared;
        self.local(|l| {
            while l.headers.len() * BLOCK < slots {
                let first = l.headers.len() * BLOCK;
                let header = |i| Header {
                    shared,
                    slot: (first + i) as u32,
                    ready: AtomicBool::new(false),
                    stacked: AtomicBool::new(false),
                    next: AtomicPtr::new(std::ptr::null_mut()),
                };
                l.headers.push((0..BLOCK).map(header).collect());
            }
            let room = l.headers.len() * BLOCK;
            if l.ready.capacity() < room {
                l.ready.reserve(room - l.ready.len());
            }
        });
    }

    /// A waker of `slot` that borrows the reactor's own reference: it must not be dropped, nor outlive the reactor.
    pub(crate) fn borrowed(&self, slot: u32) -> ManuallyDrop<Waker> {
        let header = self.local(|l| {
            std::ptr::from_ref(&l.headers[slot as usize / BLOCK][slot as usize % BLOCK])
        });
        // SAFETY: the header lives as long as the shared part; ManuallyDrop leaves the reference count alone.
        ManuallyDrop::new(unsafe { Waker::from_raw(RawWaker::new(header.cast(), &VTABLE)) })
    }

    /// Puts a slot on the ready queue, unless it is there.
    pub(crate) fn ready(&self, slot: u32) {
        self.local(|l| {
            let header = &l.headers[slot as usize / BLOCK][slot as usize % BLOCK];
            push_ready(header, &mut l.ready);
        });
    }

    /// Takes the first slot off the ready queue.
    pub(crate) fn pop_ready(&self) -> Option<u32> {
        self.local(|l| {
            let slot = l.ready.pop_front()?;
            l.headers[slot as usize / BLOCK][slot as usize % BLOCK]
                .ready
                .store(false, Ordering::Relaxed);
            Some(slot)
        })
    }

    /// Length of the ready queue.
    pub(crate) fn ready_len(&self) -> usize {
        self.local(|l| l.ready.len())
    }

    /// Moves what other threads woke to the ready queue; true if that was something.
    pub(crate) fn reap(&self) -> bool {
        if self.shared().woken.load(Ordering::Relaxed).is_null() {
            return false;
        }
        let mut node = self
            .shared()
            .woken
            .swap(std::ptr::null_mut(), Ordering::Acquire);
        // The stack is last in first out; tasks should run in the order of their waking.
        let mut first: *const Header = std::ptr::null();
        while let Some(header) = NonNull::new(node) {
            // SAFETY: headers live as long as the shared part.
            let header = unsafe { header.as_ref() };
            node = header.next.load(Ordering::Relaxed);
            header.next.store(first.cast_mut(), Ordering::Relaxed);
            first = header;
        }
        while !first.is_null() {
            // SAFETY: as above.
            let header = unsafe { &*first };
            first = header.next.load(Ordering::Relaxed);
            // After this the header may be stacked again; acquires what its wakers did before.
            header.stacked.swap(false, Ordering::AcqRel);
            self.local(|l| push_ready(header, &mut l.ready));
        }
        true
    }

    /// Publishes that this reactor is about to sleep; false if there is work after all, and it must not.
    pub(crate) fn fall_asleep(&self) -> bool {
        let shared = self.shared();
        shared.asleep.announce();
        let work = !shared.woken.load(Ordering::Relaxed).is_null()
            || shared.stop.load(Ordering::Relaxed)
            || shared.poked.swap(false, Ordering::Relaxed)
            || self.ready_len() > 0;
        if work {
            shared.asleep.end();
        }
        !work
    }

    /// Ends what [`Wakes::fall_asleep`] began.
    pub(crate) fn wake_up(&self) {
        self.shared().asleep.end();
    }

    /// Whether a [`Remote`] asked for the end.
    pub(crate) fn stopping(&self) -> bool {
        self.shared().stop.load(Ordering::Relaxed)
    }

    /// The bell's descriptor.
    pub(crate) fn bell(&self) -> Option<&OwnedFd> {
        self.shared().bell.as_ref()
    }

    /// A door for other threads.
    pub(crate) fn remote(&self) -> Remote {
        self.shared().references.fetch_add(1, Ordering::Relaxed);
        Remote {
            shared: self.shared,
        }
    }

    fn shared(&self) -> &Shared {
        // SAFETY: our reference keeps it alive.
        unsafe { self.shared.as_ref() }
    }

    fn local<R>(&self, f: impl FnOnce(&mut Local) -> R) -> R {
        // SAFETY: `Wakes` is !Send and on the owner's thread; `f` never runs code of others, so no two borrows overlap.
        f(unsafe { &mut *self.shared().local.get() })
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.shared().owner.store(0, Ordering::Release);
        // SAFETY: gives up our own reference, once.
        unsafe { release(self.shared) };
    }
}

/// Stops or rings a reactor from any thread.
pub(crate) struct Remote {
    shared: NonNull<Shared>,
}

// SAFETY: only the atomics of the shared part are touched.
unsafe impl Send for Remote {}
// SAFETY: as above.
unsafe impl Sync for Remote {}

impl Remote {
    /// Asks the reactor to end.
    pub(crate) fn stop(&self) {
        // SAFETY: our reference keeps it alive.
        let shared = unsafe { self.shared.as_ref() };
        shared.stop.store(true, Ordering::Relaxed);
        shared.ring();
    }

    /// Makes the reactor go through a pass soon.
    pub(crate) fn ring(&self) {
        // SAFETY: our reference keeps it alive.
        let shared = unsafe { self.shared.as_ref() };
        shared.poked.store(true, Ordering::Relaxed);
        shared.ring();
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // SAFETY: gives up our own reference, once.
        unsafe { release(self.shared) };
    }
}

impl Shared {
    /// Wakes the reactor if it sleeps. What it shall see must have been published before.
    fn ring(&self) {
        if self.asleep.must_ring()
            && let Some(bell) = &self.bell
        {
            // Fails only if the counter is full, and then the bell is ringing anyway.
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }
}

fn push_ready(header: &Header, queue: &mut VecDeque<u32>) {
    if !header.ready.load(Ordering::Relaxed) {
        header.ready.store(true, Ordering::Relaxed);
        queue.push_back(header.slot);
    }
}

/// # Safety
/// The caller owns one reference, and does not use it after this.
unsafe fn release(shared: NonNull<Shared>) {
    // SAFETY: the reference keeps it alive until the count is down.
    if unsafe { shared.as_ref() }
        .references
        .fetch_sub(1, Ordering::Release)
        == 1
    {
        fence(Ordering::Acquire);
        // SAFETY: that was the last reference, and it came from a leaked box.
        drop(unsafe { Box::from_raw(shared.as_ptr()) });
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_waker);

// SAFETY of the four: `data` is a header of a shared part on which the waker has a reference (or borrows the reactor's).

unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: see above.
    let header = unsafe { &*data.cast::<Header>() };
    // SAFETY: as above.
    unsafe { header.shared.as_ref() }
        .references
        .fetch_add(1, Ordering::Relaxed);
    RawWaker::new(data, &VTABLE)
}

unsafe fn wake(data: *const ()) {
    // SAFETY: the waker's reference is used, then given up.
    unsafe {
        wake_by_ref(data);
        drop_waker(data);
    }
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: see above.
    let header = unsafe { &*data.cast::<Header>() };
    // SAFETY: as above.
    let shared = unsafe { header.shared.as_ref() };
    if shared.owner.load(Ordering::Relaxed) == token() {
        // SAFETY: on the owner's thread, and the owner's borrows of `local` never run code of others.
        push_ready(header, unsafe { &mut (*shared.local.get()).ready });
        return;
    }
    if header.stacked.swap(true, Ordering::AcqRel) {
        return;
    }
    let node = std::ptr::from_ref(header).cast_mut();
    let mut head = shared.woken.load(Ordering::Relaxed);
    loop {
        header.next.store(head, Ordering::Relaxed);
        match shared
            .woken
            .compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed)
        {
            Ok(_) => break,
            Err(now) => head = now,
        }
    }
    shared.ring();
}

unsafe fn drop_waker(data: *const ()) {
    // SAFETY: see above; the waker's reference ends here.
    unsafe { release((*data.cast::<Header>()).shared) };
}
