//! A bounded ring with one producer and one consumer, on two threads, without locks.
//!
//! `tail` counts what was pushed, `head` what was popped; both only grow (wrapping), slot = count modulo capacity. The producer writes a
//! slot before it publishes `tail` (release), the consumer reads `tail` (acquire) before the slot; the same with `head` the other way
//! round for slots that are used again. Each side keeps its own copy of the other's count, and reads the shared one only when its copy
//! says that the ring is full or empty.

use std::mem::MaybeUninit;

#[cfg(not(loom))]
use std::{
    cell::UnsafeCell,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

/// On its own cache line pair, so that producer and consumer do not disturb each other.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    head: Apart<AtomicUsize>,
    tail: Apart<AtomicUsize>,
}

// SAFETY: a slot is touched by the producer or by the consumer, never by both at a time; see the module's description.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

/// The pushing end.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    /// `head` as last seen.
    head: usize,
}

/// The popping end.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// `tail` as last seen.
    tail: usize,
}

/// Makes a ring of `capacity` (a power of two) entries.
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(
        capacity.is_power_of_two(),
        "a ring's capacity is a power of two"
    );
    let shared = Arc::new(Shared {
        slots: (0..capacity)
            .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
            .collect(),
        head: Apart(AtomicUsize::new(0)),
        tail: Apart(AtomicUsize::new(0)),
    });
    (
        Producer {
            shared: shared.clone(),
            tail: 0,
            head: 0,
        },
        Consumer {
            shared,
            head: 0,
            tail: 0,
        },
    )
}

impl<T> Producer<T> {
    /// Free entries, as far as known without looking at the other side; looks if they are fewer than `wanted`.
    pub fn free(&mut self, wanted: usize) -> usize {
        let capacity = self.shared.slots.len();
        if capacity - self.tail.wrapping_sub(self.head) < wanted {
            self.head = self.shared.head.0.load(Ordering::Acquire);
        }
        capacity - self.tail.wrapping_sub(self.head)
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// Gives the entry back if the ring is full.
    pub fn push(&mut self, entry: T) -> Result<(), T> {
        if self.free(1) == 0 {
            return Err(entry);
        }
        let slot = &self.shared.slots[self.tail & (self.shared.slots.len() - 1)];
        with_mut(slot, |slot| {
            // SAFETY: the slot is free (popped before the `head` that we acquired, or never used) and the consumer does not touch it before
            // `tail` is published.
            unsafe { (*slot).write(entry) };
        });
        self.tail = self.tail.wrapping_add(1);
        self.shared.tail.0.store(self.tail, Ordering::Release);
        Ok(())
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest entry.
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let slot = &self.shared.slots[self.head & (self.shared.slots.len() - 1)];
        let entry = with_mut(slot, |slot| {
            // SAFETY: the slot was written before the `tail` that we acquired, and the producer does not touch it before `head` is published.
            unsafe { (*slot).assume_init_read() }
        });
        self.head = self.head.wrapping_add(1);
        self.shared.head.0.store(self.head, Ordering::Release);
        Some(entry)
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&mut self) -> bool {
        if self.head == self.tail {
            self.tail = self.shared.tail.0.load(Ordering::Acquire);
        }
        self.head == self.tail
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (mut head, tail) = (
            self.head.0.load(Ordering::Relaxed),
            self.tail.0.load(Ordering::Relaxed),
        );
        while head != tail {
            with_mut(&self.slots[head & (self.slots.len() - 1)], |slot| {
                // SAFETY: both ends are gone; what lies between the counts was pushed and not popped.
                unsafe { (*slot).assume_init_drop() };
            });
            head = head.wrapping_add(1);
        }
    }
}

#[cfg(not(loom))]
fn with_mut<T, R>(slot: &UnsafeCell<T>, f: impl FnOnce(*mut T) -> R) -> R {
    f(slot.get())
}

#[cfg(loom)]
fn with_mut<T, R>(slot: &UnsafeCell<T>, f: impl FnOnce(*mut T) -> R) -> R {
    slot.with_mut(f)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_like_a_bounded_queue(steps in prop::collection::vec(any::<bool>(), 0..200), shift in 0u32..4) {
            let capacity = 1 << shift;
            let (mut producer, mut consumer) = ring(capacity);
            let mut model = VecDeque::new();
            for (i, push) in steps.into_iter().enumerate() {
                if push {
                    let pushed = producer.push(Box::new(i)).is_ok();
                    prop_assert_eq!(pushed, model.len() < capacity);
                    if pushed {
                        model.push_back(i);
                    }
                } else {
                    prop_assert_eq!(consumer.pop().map(|b| *b), model.pop_front());
                }
                prop_assert_eq!(producer.free(capacity), capacity - model.len());
                prop_assert_eq!(consumer.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn what_was_not_taken_is_dropped() {
        let counted = Arc::new(());
        let (mut producer, mut consumer) = ring(4);
        for _ in 0..3 {
            producer.push(counted.clone()).unwrap();
        }
        drop(consumer.pop());
        assert_eq!(Arc::strong_count(&counted), 3);
        drop((producer, consumer));
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn two_threads_pass_everything_in_order() {
        let (mut producer, mut consumer) = ring(8);
        let pusher = std::thread::spawn(move || {
            for mut i in 0..100_000u64 {
                while let Err(back) = producer.push(i) {
                    i = back;
                    std::thread::yield_now();
                }
            }
        });
        for want in 0..100_000u64 {
            let got = loop {
                match consumer.pop() {
                    Some(got) => break got,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(got, want);
        }
        pusher.join().unwrap();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn entries_arrive_whole_once_and_in_order() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2);
            let pusher = loom::thread::spawn(move || {
                let mut refused = 0;
                for i in 0..3u32 {
                    // Boxed, so that an entry read twice or unwritten is a memory error.
                    if producer.push(Box::new(i)).is_err() {
                        refused += 1;
                    }
                }
                refused
            });
            let mut got = Vec::new();
            for _ in 0..2 {
                if let Some(entry) = consumer.pop() {
                    got.push(*entry);
                }
            }
            let refused = pusher.join().unwrap();
            while let Some(entry) = consumer.pop() {
                got.push(*entry);
            }
            assert_eq!(got.len() + refused, 3);
            assert!(got.windows(2).all(|w| w[0] < w[1]), "{got:?}");
        });
    }

    #[test]
    fn a_slot_is_not_used_again_before_it_was_read() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(1);
            let popper = loom::thread::spawn(move || [consumer.pop(), consumer.pop()]);
            let first = producer.push(Box::new(1)).is_ok();
            let second = producer.push(Box::new(2)).is_ok();
            let got = popper.join().unwrap();
            assert!(first);
            let seen: Vec<u32> = got.into_iter().flatten().map(|b| *b).collect();
            assert!(seen.len() <= 1 + usize::from(second));
            assert!(seen.is_empty() || seen[0] == 1);
        });
    }
}
