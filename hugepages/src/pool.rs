//! The buffer pool of one reactor.
//!
//! The pool belongs to the thread that made it. Its buffers go anywhere and come back by themselves: dropped on the pool's own thread,
//! at once and without atomics; dropped elsewhere, over a lock-free list that the owner empties when it runs short or at
//! [`BufferPool::reap`]. The core (mapping and book-keeping) lives until the pool and the last of its buffers are gone.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicUsize, Ordering, fence};
use std::task::{Context, Poll, Waker};

use keelblock_ffi::thread::token as thread_token;

use crate::buffer::Buffer;
use crate::carve::{CHUNK_BYTES, Carver, Place, class_bytes, class_of};
use crate::region::{NoMemory, PageKind, Region};

/// Smallest buffer.
pub const BUFFER_BYTES_MIN: usize = 4096;
/// Largest buffer.
pub const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Room for this many waiting tasks is made at start-up; more (never seen) would allocate.
const WAITERS_AT_START: usize = 1024;

/// What a pool holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// The budget.
    pub total: usize,
    /// In buffers that someone owns (size class, not length asked for); returned ones count until the owner has reaped them.
    pub used: usize,
    /// Tasks waiting in [`BufferPool::take`].
    pub waiting: usize,
    /// How often a taker had to wait, so far.
    pub waits: u64,
}

/// A waiting taker; the oldest is served first, whatever its size, so that large requests are not starved by small ones.
struct Waiter {
    ticket: u64,
    waker: Waker,
}

/// What only the owner's thread touches.
struct Local {
    carver: Carver,
    waiters: VecDeque<Waiter>,
    next_ticket: u64,
    used: usize,
    outstanding: i64,
    waits: u64,
}

/// A node of the list of buffers that came back from elsewhere. It lies in the first bytes of the free buffer itself.
struct Returned {
    next: *mut Returned,
    class: u8,
    place: Place,
}

/// Shared by the pool and its buffers.
pub(crate) struct Core {
    region: Region,
    /// Token of the owner's thread; 0 once the pool is gone.
    owner: AtomicUsize,
    local: UnsafeCell<Local>,
    /// Buffers returned by other threads.
    returned: AtomicPtr<Returned>,
    /// Set while tasks wait, so that a return rings the owner.
    starving: AtomicBool,
    ring_owner: Box<dyn Fn() + Send + Sync>,
    /// Minus the finished returns by other threads; when the pool goes it adds all buffers that did not come back on its own thread.
    /// Whoever brings it to 0 after that is the last one and frees the core.
    balance: AtomicI64,
}

impl Core {
    /// Takes a buffer back. Called exactly once per buffer that was handed out, from any thread.
    ///
    /// # Safety
    /// `core` must be the live core that the buffer at `place` of `class` came from, and nothing may touch the buffer afterwards.
    pub(crate) unsafe fn give(core: NonNull<Core>, class: u8, place: Place) {
        // SAFETY: the caller's buffer keeps the core alive.
        let this = unsafe { core.as_ref() };
        if this.owner.load(Ordering::Relaxed) != thread_token() {
            // SAFETY: the caller's promise.
            return unsafe { Core::give_remote(core, class, place) };
        }
        // SAFETY: on the owner's thread, and no borrow of `local` spans code of others.
        let local = unsafe { &mut *this.local.get() };
        local.outstanding -= 1;
        local.took_back(class, place);
        local.wake_first();
    }

    /// # Safety
    /// As [`Core::give`].
    #[cold]
    unsafe fn give_remote(core: NonNull<Core>, class: u8, place: Place) {
        // SAFETY: the buffer being returned counts in `balance` until the last line, which keeps the core alive.
        let this = unsafe { core.as_ref() };
        let node = this.address(class, place).as_ptr().cast::<Returned>();
        let mut head = this.returned.load(Ordering::Relaxed);
        loop {
            // SAFETY: the node lies in the buffer, which is at least a page, aligned, and ours until it is on the list.
            unsafe {
                node.write(Returned {
                    next: head,
                    class,
                    place,
                })
            };
            match this.returned.compare_exchange_weak(
                head,
                node,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        // Either we see that the owner starves, or it sees our buffer when it looks again after having said so.
        fence(Ordering::SeqCst);
        if this.starving.load(Ordering::Relaxed) {
            (this.ring_owner)();
        }
        if this.balance.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: the pool is gone and this was the last buffer: nobody refers to the core any more.
            drop(unsafe { Box::from_raw(core.as_ptr()) });
        }
    }

    pub(crate) fn address(&self, class: u8, place: Place) -> NonNull<u8> {
        let offset = place.chunk as usize * CHUNK_BYTES + place.unit as usize * class_bytes(class);
        debug_assert!(offset + class_bytes(class) <= self.region.len());
        // SAFETY: chunks and units of the carver lie inside the region.
        unsafe { self.region.base().add(offset) }
    }
}

impl Local {
    fn took_back(&mut self, class: u8, place: Place) {
        self.carver.give(class, place);
        self.used -= class_bytes(class);
    }

    fn wake_first(&self) {
        if let Some(first) = self.waiters.front() {
            first.waker.wake_by_ref();
        }
    }
}

/// One reactor's buffers. Stays on the thread that made it; its buffers go anywhere.
pub struct BufferPool {
    core: NonNull<Core>,
    /// `!Send`: the owner's thread is the one that made it.
    _here: PhantomData<*const ()>,
}

impl BufferPool {
    /// Makes a pool of `budget` bytes (rounded up to 2 MiB) for this thread. `ring_owner` is called on another thread when a buffer comes
    /// back from there while a task waits; it must make the owner call [`BufferPool::reap`] soon.
    ///
    /// # Errors
    /// If there is no address space for the budget.
    pub fn new(
        budget: usize,
        ring_owner: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, NoMemory> {
        let region = Region::new(budget)?;
        let local = Local {
            carver: Carver::new(region.len() / CHUNK_BYTES),
            waiters: VecDeque::with_capacity(WAITERS_AT_START),
            next_ticket: 0,
            used: 0,
            outstanding: 0,
            waits: 0,
        };
        let core = Box::new(Core {
            region,
            owner: AtomicUsize::new(thread_token()),
            local: UnsafeCell::new(local),
            returned: AtomicPtr::new(std::ptr::null_mut()),
            starving: AtomicBool::new(false),
            ring_owner: Box::new(ring_owner),
            balance: AtomicI64::new(0),
        });
        Ok(BufferPool {
            core: NonNull::from(Box::leak(core)),
            _here: PhantomData,
        })
    }

    /// Takes a buffer of at least `len` bytes if there is one now and nobody waits for one.
    pub fn try_take(&self, len: usize) -> Option<Buffer> {
        if !self.local(|l| l.waiters.is_empty()) {
            return None;
        }
        self.take_now(len)
    }

    /// Takes a buffer of at least `len` bytes (at most [`BUFFER_BYTES_MAX`], else this panics), after all who asked before.
    pub fn take(&self, len: usize) -> Take<'_> {
        assert!(len <= BUFFER_BYTES_MAX, "no buffer is larger than 1 MiB");
        Take {
            pool: self,
            len,
            ticket: None,
        }
    }

    /// Takes in what other threads returned, and wakes the first waiter if that was something. Cheap if nothing came back.
    pub fn reap(&self) {
        if self.core().returned.load(Ordering::Relaxed).is_null() {
            return;
        }
        self.drain();
        self.local(|l| l.wake_first());
    }

    /// What the pool is made of.
    pub fn kind(&self) -> PageKind {
        self.core().region.kind()
    }

    /// Where all buffers lie: first byte and size, for registering them with a device.
    pub fn span(&self) -> (NonNull<u8>, usize) {
        (self.core().region.base(), self.core().region.len())
    }

    /// How full it is.
    pub fn stats(&self) -> PoolStats {
        let total = self.core().region.len();
        self.local(|l| PoolStats {
            total,
            used: l.used,
            waiting: l.waiters.len(),
            waits: l.waits,
        })
    }

    fn core(&self) -> &Core {
        // SAFETY: the core lives at least as long as the pool.
        unsafe { self.core.as_ref() }
    }

    /// Borrows the owner's state. `f` must not run code of others (wakers only queue).
    fn local<R>(&self, f: impl FnOnce(&mut Local) -> R) -> R {
        // SAFETY: only the owner's thread gets here (the pool is !Send), and no borrow spans another.
        f(unsafe { &mut *self.core().local.get() })
    }

    fn take_now(&self, len: usize) -> Option<Buffer> {
        let class = class_of(len)?;
        let place = match self.local(|l| l.carver.take(class)) {
            Some(place) => place,
            None => {
                self.drain();
                self.local(|l| l.carver.take(class))?
            }
        };
        self.local(|l| {
            l.used += class_bytes(class);
            l.outstanding += 1;
        });
        let address = self.core().address(class, place);
        // SAFETY: the place was just handed to us alone; the core lives until the buffer came back.
        Some(unsafe { Buffer::new(self.core, address, class, place) })
    }

    /// Moves everything from the list of returned buffers into the carver.
    fn drain(&self) {
        let mut node = self
            .core()
            .returned
            .swap(std::ptr::null_mut(), Ordering::Acquire);
        while !node.is_null() {
            // SAFETY: nodes on the list were written by the returner before the release that we acquired, and are ours now.
            let Returned { next, class, place } = unsafe { node.read() };
            self.local(|l| l.took_back(class, place));
            node = next;
        }
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        self.core().owner.store(0, Ordering::Release);
        // Wakers may hold references to whatever owns us.
        self.local(|l| l.waiters.clear());
        let outstanding = self.local(|l| l.outstanding);
        if self.core().balance.fetch_add(outstanding, Ordering::AcqRel) + outstanding == 0 {
            // SAFETY: every buffer has come back, and its returner is through: nobody else refers to the core.
            drop(unsafe { Box::from_raw(self.core.as_ptr()) });
        }
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool")
            .field("kind", &self.kind())
            .field("stats", &self.stats())
            .finish()
    }
}

/// Future of [`BufferPool::take`].
#[derive(Debug)]
pub struct Take<'a> {
    pool: &'a BufferPool,
    len: usize,
    /// Our place in the queue, once we had to wait.
    ticket: Option<u64>,
}

impl Future for Take<'_> {
    type Output = Buffer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Buffer> {
        let pool = self.pool;
        if self.may_take()
            && let Some(buffer) = pool.take_now(self.len)
        {
            self.leave();
            return Poll::Ready(buffer);
        }
        self.wait(cx.waker());
        // From here on a return elsewhere rings us; one that came before is on the list, so look again.
        pool.core().starving.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !pool.core().returned.load(Ordering::Relaxed).is_null() && self.may_take() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Take<'_> {
    /// Whether it is our turn.
    fn may_take(&self) -> bool {
        self.pool.local(|l| {
            l.waiters
                .front()
                .is_none_or(|first| Some(first.ticket) == self.ticket)
        })
    }

    /// Enters the queue, or renews our waker in it.
    fn wait(&mut self, waker: &Waker) {
        let known = self.ticket;
        let ticket = self.pool.local(|l| {
            if let Some(mine) = known.and_then(|t| l.waiters.iter_mut().find(|w| w.ticket == t)) {
                mine.waker.clone_from(waker);
                return mine.ticket;
            }
            let ticket = l.next_ticket;
            l.next_ticket += 1;
            l.waits += 1;
            l.waiters.push_back(Waiter {
                ticket,
                waker: waker.clone(),
            });
            ticket
        });
        self.ticket = Some(ticket);
    }

    /// Leaves the queue, and lets the next one look: what we took or left may not have been all there is.
    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let empty = self.pool.local(|l| {
            l.waiters.retain(|w| w.ticket != ticket);
            l.wake_first();
            l.waiters.is_empty()
        });
        if empty {
            self.pool.core().starving.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Take<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll<F: Future>(f: Pin<&mut F>, count: &Arc<Count>) -> Poll<F::Output> {
        f.poll(&mut Context::from_waker(&Waker::from(count.clone())))
    }

    fn pool(bytes: usize) -> BufferPool {
        BufferPool::new(bytes, || {}).unwrap()
    }

    #[test]
    fn buffers_are_aligned_of_their_class_and_their_own() {
        let pool = pool(4 << 20);
        let mut held: Vec<_> = [1, 4096, 5000, 65_536, 200_000]
            .iter()
            .map(|&len| pool.try_take(len).unwrap())
            .collect();
        assert_eq!(
            held.iter().map(|b| b.len()).collect::<Vec<_>>(),
            [4096, 4096, 8192, 65_536, 262_144]
        );
        for (i, buffer) in held.iter_mut().enumerate() {
            assert!(buffer.as_ptr().addr().is_multiple_of(4096));
            buffer.fill(i as u8);
        }
        for (i, buffer) in held.iter().enumerate() {
            assert!(buffer.iter().all(|&b| b == i as u8));
        }
        assert!(pool.try_take((1 << 20) + 1).is_none());
        assert_eq!(pool.stats().used, 4096 + 4096 + 8192 + 65_536 + 262_144);
        held.clear();
        assert_eq!(pool.stats().used, 0);
    }

    #[test]
    fn an_exhausted_pool_makes_takers_wait_in_order() {
        let pool = pool(2 << 20);
        let first = pool.try_take(1 << 20).unwrap();
        let second = pool.try_take(1 << 20).unwrap();
        let counts: Vec<_> = (0..2)
            .map(|_| Arc::new(Count(AtomicUsize::new(0))))
            .collect();
        let mut large = Box::pin(pool.take(1 << 20));
        let mut small = Box::pin(pool.take(4096));
        assert!(poll(large.as_mut(), &counts[0]).is_pending());
        assert!(poll(small.as_mut(), &counts[1]).is_pending());
        drop(first);
        assert!(
            pool.try_take(4096).is_none(),
            "nobody passes those who wait"
        );
        assert!(
            poll(small.as_mut(), &counts[1]).is_pending(),
            "not its turn"
        );
        assert_eq!(counts[0].0.load(Ordering::SeqCst), 1);
        let got = poll(large.as_mut(), &counts[0]);
        assert!(got.is_ready());
        drop(got);
        assert!(counts[1].0.load(Ordering::SeqCst) >= 1);
        assert!(poll(small.as_mut(), &counts[1]).is_ready());
        drop(second);
        assert_eq!(
            pool.stats(),
            PoolStats {
                total: 2 << 20,
                used: 0,
                waiting: 0,
                waits: 2
            }
        );
    }

    #[test]
    fn a_taker_that_gives_up_lets_the_next_one_in() {
        let pool = pool(2 << 20);
        let held = [
            pool.try_take(1 << 20).unwrap(),
            pool.try_take(1 << 20).unwrap(),
        ];
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let mut quitter = Box::pin(pool.take(4096));
        let mut next = Box::pin(pool.take(4096));
        assert!(poll(quitter.as_mut(), &count).is_pending());
        assert!(poll(next.as_mut(), &count).is_pending());
        drop(held);
        drop(quitter);
        assert!(poll(next.as_mut(), &count).is_ready());
    }

    #[test]
    fn buffers_come_back_from_other_threads_and_ring_the_starving_owner() {
        let rings = Arc::new(AtomicUsize::new(0));
        let seen = rings.clone();
        let pool = BufferPool::new(2 << 20, move || {
            seen.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        let buffers: Vec<_> = std::iter::from_fn(|| pool.try_take(1 << 18)).collect();
        assert_eq!(buffers.len(), 8);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let mut waiter = Box::pin(pool.take(1 << 20));
        assert!(poll(waiter.as_mut(), &count).is_pending());
        std::thread::spawn(move || drop(buffers)).join().unwrap();
        assert!(rings.load(Ordering::SeqCst) >= 1);
        pool.reap();
        assert!(count.0.load(Ordering::SeqCst) >= 1);
        assert!(poll(waiter.as_mut(), &count).is_ready());
    }

    #[test]
    fn buffers_outlive_their_pool() {
        let pool = pool(2 << 20);
        let mut here = pool.try_take(4096).unwrap();
        let (there, early) = (pool.try_take(4096).unwrap(), pool.try_take(4096).unwrap());
        std::thread::spawn(move || drop(early)).join().unwrap();
        drop(pool);
        here.fill(1);
        std::thread::spawn(move || assert_eq!(there.len(), 4096))
            .join()
            .unwrap();
        assert!(here.iter().all(|&b| b == 1));
    }

    #[test]
    fn many_threads_returning_at_once_lose_nothing() {
        let pool = pool(4 << 20);
        for round in 0..50 {
            let mut parts: Vec<Vec<Buffer>> = (0..4).map(|_| Vec::new()).collect();
            let mut n = 0;
            while let Some(mut buffer) = pool.try_take(4096 << (n % 3)) {
                buffer[0] = round;
                parts[n % 4].push(buffer);
                n += 1;
            }
            assert!(n > 0, "round {round}");
            std::thread::scope(|scope| {
                for part in parts {
                    scope.spawn(move || drop(part));
                }
            });
        }
        pool.reap();
        assert_eq!(pool.stats().used, 0);
    }
}
