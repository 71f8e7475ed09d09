//! Who may touch which blocks of a lane now: shared ranges (plain I/O) and exclusive ones (read-modify-write, compare-and-write, and
//! the hand-over of the whole lane).
//!
//! Grants are fair: a range waits for every earlier one, granted or waiting, that it overlaps if one of the two is exclusive. So nobody
//! starves, and two ranges of which one is exclusive are never granted together. Plain I/O among itself is not ordered.
//!
//! The table belongs to one reactor. Without an exclusive range in it, entering and leaving are a push and a pop.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Ranges that a table holds at most: every operation that a reactor can have in flight, and those that others forwarded.
pub const RANGES_MAX: usize = 8192;
/// Room that a table has from the start; it grows to the depth that a lane has really seen, and stays.
const RANGES_AT_START: usize = 64;

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Together with other shared ones.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Debug)]
enum State {
    Free,
    Waiting(Waker),
    Granted,
}

#[derive(Debug)]
struct Slot {
    blocks: Range<u64>,
    mode: Mode,
    /// Order of arrival.
    ticket: u64,
    state: State,
}

impl Slot {
    fn conflicts(&self, other: &Slot) -> bool {
        let exclusive = self.mode == Mode::Exclusive || other.mode == Mode::Exclusive;
        exclusive && self.blocks.start < other.blocks.end && other.blocks.start < self.blocks.end
    }
}

#[derive(Debug, Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
    next_ticket: u64,
    waiting: usize,
}

/// The table is full: more operations are in flight than a reactor admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {RANGES_MAX} operations on one lane")]
pub struct TableFull;

/// The ranges of one lane.
#[derive(Debug)]
pub struct RangeTable {
    slots: RefCell<Slots>,
    /// Exclusive ranges, waiting ones included.
    exclusive: Cell<usize>,
    granted: Cell<usize>,
}

impl Default for RangeTable {
    fn default() -> Self {
        Self::new()
    }
}

impl RangeTable {
    /// An empty table.
    pub fn new() -> Self {
        let slots = Slots {
            all: Vec::with_capacity(RANGES_AT_START),
            free: Vec::with_capacity(RANGES_AT_START),
            ..Slots::default()
        };
        Self {
            slots: RefCell::new(slots),
            exclusive: Cell::new(0),
            granted: Cell::new(0),
        }
    }

    /// True if plain I/O that completes at once may go ahead without entering.
    #[inline]
    pub fn open(&self) -> bool {
        self.exclusive.get() == 0
    }

    /// Ranges that are granted now.
    #[cfg(test)]
    pub fn granted(&self) -> usize {
        self.granted.get()
    }

    /// Enters a range; the future is ready when it is granted.
    ///
    /// # Errors
    /// [`TableFull`].
    pub fn enter(self: &Rc<Self>, blocks: Range<u64>, mode: Mode) -> Result<Entered, TableFull> {
        let mut slots = self.slots.borrow_mut();
        let slots = &mut *slots;
        let slot = Slot {
            blocks,
            mode,
            ticket: slots.next_ticket,
            state: State::Granted,
        };
        let clear = (mode == Mode::Shared && self.open()) || !blocked(&slots.all, &slot);
        let index = match slots.free.pop() {
            Some(index) => {
                slots.all[index as usize] = slot;
                index
            }
            None if slots.all.len() < RANGES_MAX => {
                slots.all.push(slot);
                (slots.all.len() - 1) as u32
            }
            None => return Err(TableFull),
        };
        slots.next_ticket += 1;
        if mode == Mode::Exclusive {
            self.exclusive.set(self.exclusive.get() + 1);
        }
        if clear {
            self.granted.set(self.granted.get() + 1);
        } else {
            slots.all[index as usize].state = State::Waiting(Waker::noop().clone());
            slots.waiting += 1;
        }
        Ok(Entered {
            hold: Some(Hold {
                table: Rc::clone(self),
                index,
            }),
        })
    }

    fn leave(&self, index: u32) {
        let mut slots = self.slots.borrow_mut();
        let slots = &mut *slots;
        let slot = &mut slots.all[index as usize];
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Granted => self.granted.set(self.granted.get() - 1),
            State::Waiting(_) => slots.waiting -= 1,
            State::Free => unreachable!("a range is left once"),
        }
        if slot.mode == Mode::Exclusive {
            self.exclusive.set(self.exclusive.get() - 1);
        }
        slots.free.push(index);
        if slots.waiting > 0 {
            self.grant_waiting(slots);
        }
    }

    fn grant_waiting(&self, slots: &mut Slots) {
        for index in 0..slots.all.len() {
            if !matches!(slots.all[index].state, State::Waiting(_))
                || blocked(&slots.all, &slots.all[index])
            {
                continue;
            }
            let state = std::mem::replace(&mut slots.all[index].state, State::Granted);
            slots.waiting -= 1;
            self.granted.set(self.granted.get() + 1);
            if let State::Waiting(waker) = state {
                waker.wake();
            }
        }
    }

    /// Asserts what a table must keep.
    #[cfg(test)]
    ///
    /// # Panics
    /// If two granted ranges conflict, a range waits for nothing, or a count is wrong.
    pub fn check(&self) {
        let slots = self.slots.borrow();
        let mut counts = (0, 0, 0);
        for (n, slot) in slots.all.iter().enumerate() {
            match slot.state {
                State::Free => continue,
                State::Granted => {
                    counts.0 += 1;
                    for other in &slots.all[n + 1..] {
                        let both = matches!(other.state, State::Granted);
                        assert!(!both || !slot.conflicts(other), "{slot:?} and {other:?}");
                    }
                }
                State::Waiting(_) => {
                    counts.1 += 1;
                    assert!(blocked(&slots.all, slot), "{slot:?} waits for nothing");
                }
            }
            counts.2 += usize::from(slot.mode == Mode::Exclusive);
        }
        let kept = (self.granted.get(), slots.waiting, self.exclusive.get());
        assert_eq!(counts, kept);
    }
}

/// Whether an earlier range is in the way of `slot`.
fn blocked(all: &[Slot], slot: &Slot) -> bool {
    all.iter().any(|earlier| {
        !matches!(earlier.state, State::Free)
            && earlier.ticket < slot.ticket
            && earlier.conflicts(slot)
    })
}

/// A granted range; dropping it leaves the table.
#[derive(Debug)]
pub struct Hold {
    table: Rc<RangeTable>,
    index: u32,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.table.leave(self.index);
    }
}

/// A range that has been entered; ready with its [`Hold`] when it is granted. Dropping it gives up the place in the queue.
#[derive(Debug)]
pub struct Entered {
    hold: Option<Hold>,
}

impl Future for Entered {
    type Output = Hold;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Hold> {
        let hold = self.hold.take().expect("not polled after it was ready");
        let mut slots = hold.table.slots.borrow_mut();
        if let State::Waiting(waker) = &mut slots.all[hold.index as usize].state {
            waker.clone_from(cx.waker());
            drop(slots);
            self.hold = Some(hold);
            return Poll::Pending;
        }
        drop(slots);
        Poll::Ready(hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn poll(entered: &mut Entered) -> Option<Hold> {
        match Pin::new(entered).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(hold) => Some(hold),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_waker_of_a_granted_range_is_called() {
        let table = Rc::new(RangeTable::new());
        let first = poll(&mut table.enter(0..8, Mode::Exclusive).unwrap()).unwrap();
        let mut second = table.enter(7..9, Mode::Shared).unwrap();
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let pending = Pin::new(&mut second).poll(&mut Context::from_waker(&waker));
        assert!(pending.is_pending());
        assert!(!table.open());
        drop(first);
        assert!(flag.0.load(Ordering::Relaxed));
        assert!(table.open());
        assert!(poll(&mut second).is_some());
    }

    #[test]
    fn later_shared_ranges_do_not_pass_a_waiting_exclusive_one() {
        let table = Rc::new(RangeTable::new());
        let reader = poll(&mut table.enter(0..4, Mode::Shared).unwrap()).unwrap();
        let mut writer = table.enter(0..4, Mode::Exclusive).unwrap();
        let mut late = table.enter(3..4, Mode::Shared).unwrap();
        let beside = poll(&mut table.enter(4..5, Mode::Shared).unwrap());
        assert!(beside.is_some(), "what does not overlap does not wait");
        assert!(poll(&mut writer).is_none() && poll(&mut late).is_none());
        drop(reader);
        assert!(poll(&mut late).is_none());
        drop(poll(&mut writer).unwrap());
        assert!(poll(&mut late).is_some());
    }

    #[test]
    fn giving_up_lets_those_behind_go_on() {
        let table = Rc::new(RangeTable::new());
        let reader = poll(&mut table.enter(0..4, Mode::Shared).unwrap()).unwrap();
        let writer = table.enter(0..4, Mode::Exclusive).unwrap();
        let mut late = table.enter(0..4, Mode::Shared).unwrap();
        assert!(poll(&mut late).is_none());
        drop(writer);
        assert!(poll(&mut late).is_some());
        drop(reader);
        assert_eq!(table.granted(), 0);
    }

    #[test]
    fn the_table_is_bounded() {
        let table = Rc::new(RangeTable::new());
        let held: Vec<_> = (0..RANGES_MAX as u64)
            .map(|n| table.enter(n..n + 1, Mode::Shared).unwrap())
            .collect();
        assert_eq!(table.enter(0..1, Mode::Shared).err(), Some(TableFull));
        drop(held);
        assert!(table.enter(0..1, Mode::Shared).is_ok());
        table.check();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u64, u64, bool),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..32, 1u64..10, any::<bool>()).prop_map(|(a, n, x)| Step::Enter(a, n, x)),
            any::<usize>().prop_map(Step::Leave),
        ]
    }

    proptest! {
        /// The model is the queue in order of arrival: granted are exactly those that nothing before them conflicts with.
        #[test]
        fn grants_are_those_of_the_queue(steps in prop::collection::vec(step(), 1..80)) {
            let table = Rc::new(RangeTable::new());
            type Queued = (Range<u64>, bool, Option<Entered>, Option<Hold>);
            let mut queue: Vec<Queued> = Vec::new();
            for step in steps {
                match step {
                    Step::Enter(at, len, exclusive) => {
                        let mode = if exclusive { Mode::Exclusive } else { Mode::Shared };
                        let entered = table.enter(at..at + len, mode).unwrap();
                        queue.push((at..at + len, exclusive, Some(entered), None));
                    }
                    Step::Leave(n) if !queue.is_empty() => drop(queue.remove(n % queue.len())),
                    Step::Leave(_) => {}
                }
                table.check();
                for n in 0..queue.len() {
                    let (blocks, exclusive) = (queue[n].0.clone(), queue[n].1);
                    let wait = queue[..n].iter().any(|(b, x, ..)| {
                        (*x || exclusive) && b.start < blocks.end && blocks.start < b.end
                    });
                    if queue[n].3.is_none() {
                        let hold = poll(queue[n].2.as_mut().unwrap());
                        queue[n].3 = hold;
                    }
                    prop_assert_eq!(queue[n].3.is_some(), !wait, "range {}", n);
                }
            }
            drop(queue);
            prop_assert_eq!(table.granted(), 0);
            prop_assert!(table.open());
        }
    }
}
