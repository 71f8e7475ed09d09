//! The state of a queue pair as the controller sees it: SQ head, commands in flight.
//!
//! Over fabrics there is no doorbell: a command capsule is a submission, and the entry is free as soon as the capsule has been taken in.
//! So SQHD is the count of capsules modulo the queue's size, whatever order they complete in (NVMe over Fabrics, 'Submission Queue Flow
//! Control'). Commands that complete in the pass that took them in never enter the table of command identifiers.

use crate::nvmf::seam::Grant;

/// Why a capsule cannot be a command of this queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// The identifier is that of a command in flight: Command ID Conflict.
    CidConflict,
    /// More commands than the queue has entries: the host ignores flow control, and the connection ends.
    Overrun,
}

/// One queue pair.
#[derive(Debug)]
pub struct Queue {
    /// Controller, queue size, flow control.
    pub grant: Grant,
    /// 0 = admin.
    pub qid: u16,
    head: u32,
    in_flight: Vec<u16>,
}

impl Queue {
    /// A queue that has taken in its Connect command.
    pub fn new(grant: Grant, qid: u16) -> Self {
        let mut queue = Self {
            grant,
            qid,
            head: 0,
            in_flight: Vec::new(),
        };
        queue.take();
        queue
    }

    /// SQHD for a completion sent now.
    #[inline]
    pub fn sqhd(&self) -> u16 {
        if self.grant.sq_flow_control {
            self.head as u16
        } else {
            0
        }
    }

    #[inline]
    fn take(&mut self) {
        self.head += 1;
        if self.head == self.grant.sq_entries {
            self.head = 0;
        }
    }

    /// Takes in a capsule. It counts as submitted even when this refuses it, since it will be answered.
    #[inline]
    pub fn submit(&mut self, cid: u16) -> Result<(), SubmitError> {
        self.take();
        if !self.in_flight.is_empty() {
            if self.in_flight.contains(&cid) {
                return Err(SubmitError::CidConflict);
            }
            if self.in_flight.len() >= self.grant.sq_entries as usize {
                return Err(SubmitError::Overrun);
            }
        }
        Ok(())
    }

    /// The command will complete later: its identifier is in use until [`Queue::finish`].
    pub fn begin(&mut self, cid: u16) {
        debug_assert!(!self.in_flight.contains(&cid));
        self.in_flight.push(cid);
    }

    /// A command that was begun completes. Returns false for one that was not (a completion that comes twice).
    pub fn finish(&mut self, cid: u16) -> bool {
        match self.in_flight.iter().position(|c| *c == cid) {
            Some(at) => {
                self.in_flight.swap_remove(at);
                true
            }
            None => false,
        }
    }

    /// Commands in flight.
    #[cfg(test)]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(entries: u32, flow: bool) -> Queue {
        Queue::new(
            Grant {
                cntlid: 1,
                sq_entries: entries,
                sq_flow_control: flow,
            },
            1,
        )
    }

    #[test]
    fn sqhd_counts_capsules_modulo_the_size() {
        let mut q = queue(4, true);
        let mut seen = vec![q.sqhd()];
        for cid in 0..6 {
            q.submit(cid).unwrap();
            seen.push(q.sqhd());
        }
        assert_eq!(seen, [1, 2, 3, 0, 1, 2, 3]);
        let mut q = queue(4, false);
        q.submit(0).unwrap();
        assert_eq!(q.sqhd(), 0, "reserved without flow control");
    }

    #[test]
    fn conflicts_and_overrun() {
        let mut q = queue(2, true);
        q.submit(7).unwrap();
        q.begin(7);
        assert_eq!(q.submit(7), Err(SubmitError::CidConflict));
        q.submit(8).unwrap();
        q.begin(8);
        assert_eq!(q.submit(9), Err(SubmitError::Overrun));
        assert!(q.finish(7));
        assert!(!q.finish(7));
        q.submit(7).unwrap();
        assert_eq!(q.in_flight(), 1);
    }
}
