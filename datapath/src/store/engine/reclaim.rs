//! When a block that nothing refers to any more may be used again: after a FLUSH that was issued later (S1), and after every reader of before.
//!
//! Readers look a block up and read it later. They hold a [`Reader`] meanwhile; what is given back while one is held waits for it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::super::types::PhysicalBlock;

#[derive(Debug, Default)]
struct Readers {
    /// Readers that began in an epoch, the oldest first; the last is the present epoch.
    active: VecDeque<(u64, u32)>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Reclaim {
    epoch: Cell<u64>,
    readers: RefCell<Readers>,
    /// Flushes that were issued so far.
    flushes: Cell<u64>,
    /// Blocks that wait for the flush after this number, in order.
    unflushed: RefCell<VecDeque<(u64, Vec<PhysicalBlock>)>>,
    /// Blocks that wait for the readers of this epoch and before.
    read: RefCell<VecDeque<(u64, Vec<PhysicalBlock>)>>,
    waiting: Cell<usize>,
}

/// Held by who reads blocks that it looked up.
#[derive(Debug)]
pub struct Reader {
    of: Rc<Reclaim>,
    epoch: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut readers = self.of.readers.borrow_mut();
        let entry = readers.active.iter_mut().find(|(e, _)| *e == self.epoch);
        let (_, count) = entry.expect("a reader is counted");
        *count -= 1;
    }
}

impl Reclaim {
    /// Nothing waits.
    pub fn new() -> Self {
        let readers = Readers {
            active: VecDeque::from([(0, 0)]),
        };
        Self {
            epoch: Cell::new(0),
            readers: RefCell::new(readers),
            flushes: Cell::new(0),
            unflushed: RefCell::default(),
            read: RefCell::default(),
            waiting: Cell::new(0),
        }
    }

    /// Begins to read.
    pub fn read(self: &Rc<Self>) -> Reader {
        let mut readers = self.readers.borrow_mut();
        let (epoch, count) = readers.active.back_mut().expect("the present epoch");
        *count += 1;
        Reader {
            of: self.clone(),
            epoch: *epoch,
        }
    }

    /// Blocks that wait, for a flush or for readers.
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// A newer entry took these blocks' place: whoever was first is reusable after a flush that is issued from now on.
    pub fn superseded(&self, blocks: &mut Vec<PhysicalBlock>) {
        if blocks.is_empty() {
            return;
        }
        self.waiting.set(self.waiting.get() + blocks.len());
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::ReuseBeforeFlush) {
            self.after_readers(std::mem::take(blocks));
            return;
        }
        let mut queue = self.unflushed.borrow_mut();
        let tag = self.flushes.get();
        match queue.back_mut() {
            Some((at, list)) if *at == tag => list.append(blocks),
            _ => queue.push_back((tag, std::mem::take(blocks))),
        }
    }

    /// What is freed is on stable media already: only readers are waited for.
    pub fn committed(&self, blocks: Vec<PhysicalBlock>) {
        if blocks.is_empty() {
            return;
        }
        self.waiting.set(self.waiting.get() + blocks.len());
        self.after_readers(blocks);
    }

    fn after_readers(&self, blocks: Vec<PhysicalBlock>) {
        let epoch = self.epoch.get();
        self.read.borrow_mut().push_back((epoch, blocks));
        self.epoch.set(epoch + 1);
        self.readers.borrow_mut().active.push_back((epoch + 1, 0));
    }

    /// A flush is issued. The number is for [`Reclaim::flush_done`].
    pub fn flush_issued(&self) -> u64 {
        let number = self.flushes.get() + 1;
        self.flushes.set(number);
        number
    }

    /// It was done: what was superseded before it was issued waits for readers only.
    pub fn flush_done(&self, number: u64) {
        let mut queue = self.unflushed.borrow_mut();
        let mut done = Vec::new();
        while queue.front().is_some_and(|(tag, _)| *tag < number) {
            let (_, mut blocks) = queue.pop_front().expect("looked at");
            done.append(&mut blocks);
        }
        drop(queue);
        if !done.is_empty() {
            self.after_readers(done);
        }
    }

    /// Blocks that may be used again now.
    pub fn take_ready(&self, mut each: impl FnMut(PhysicalBlock)) {
        let oldest = {
            let mut readers = self.readers.borrow_mut();
            while readers.active.len() > 1 && readers.active[0].1 == 0 {
                readers.active.pop_front();
            }
            readers.active[0].0
        };
        let mut queue = self.read.borrow_mut();
        while queue.front().is_some_and(|(epoch, _)| {
            #[cfg(planted)]
            if super::super::planted::is(super::super::planted::Bug::ReadersNotWaitedFor) {
                return true;
            }
            *epoch < oldest
        }) {
            let (_, blocks) = queue.pop_front().expect("looked at");
            self.waiting.set(self.waiting.get() - blocks.len());
            blocks.into_iter().for_each(&mut each);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(r: &Reclaim) -> Vec<u64> {
        let mut got = Vec::new();
        r.take_ready(|b| got.push(b.0));
        got
    }

    #[test]
    fn a_flush_that_was_issued_before_does_not_count() {
        let r = Rc::new(Reclaim::new());
        let early = r.flush_issued();
        r.superseded(&mut vec![PhysicalBlock(7)]);
        r.flush_done(early);
        assert!(ready(&r).is_empty());
        let late = r.flush_issued();
        r.superseded(&mut vec![PhysicalBlock(8)]);
        r.flush_done(late);
        assert_eq!(ready(&r), [7]);
        assert_eq!(r.waiting(), 1);
    }

    #[test]
    fn readers_of_before_are_waited_for_and_later_ones_are_not() {
        let r = Rc::new(Reclaim::new());
        let before = r.read();
        r.committed(vec![PhysicalBlock(1)]);
        let after = r.read();
        assert!(ready(&r).is_empty());
        drop(before);
        assert_eq!(ready(&r), [1]);
        r.committed(vec![PhysicalBlock(2)]);
        assert!(ready(&r).is_empty());
        drop(after);
        assert_eq!(ready(&r), [2]);
        assert_eq!(r.waiting(), 0);
    }
}
