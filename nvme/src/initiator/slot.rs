//! The commands of a queue pair: a fixed table, the command identifier is the index.

use crate::Cqe;
use crate::pdu::R2T;

/// What a command moves. The buffer belongs to the queue pair until the completion gives it back.
#[derive(Debug, Default)]
pub enum Payload {
    /// Nothing.
    #[default]
    None,
    /// These bytes to the controller.
    Send(Vec<u8>),
    /// As many bytes as the buffer is long from the controller.
    Receive(Vec<u8>),
}

impl Payload {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Send(b) | Self::Receive(b) => b.len(),
        }
    }

    /// Whether no bytes move.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer; an empty one for [`Payload::None`].
    pub fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Send(b) | Self::Receive(b) => b,
        }
    }
}

/// A command that ended.
#[derive(Debug)]
pub struct Completion {
    /// What the submitter called it.
    pub tag: u64,
    /// The completion queue entry; made up when the data came with the SUCCESS flag instead of one.
    pub cqe: Cqe,
    /// The payload's buffer.
    pub buffer: Vec<u8>,
    /// How many bytes of it came from the controller.
    pub received: usize,
}

/// A part of a command's data that the controller asked for, and that has not been queued yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) ttag: u16,
    pub(super) offset: usize,
    pub(super) remaining: usize,
}

/// One command.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) busy: bool,
    pub(super) tag: u64,
    pub(super) payload: Payload,
    /// Bytes that came, in order from the start.
    pub(super) received: usize,
    pub(super) transfer: Option<Transfer>,
    /// Position in the stream after the last byte queued for this command: until that has left, the buffer stays.
    pub(super) stream_end: u64,
    /// A completion that came before that.
    pub(super) ended: Option<Cqe>,
}

impl Slot {
    /// The bytes to send.
    pub(super) fn to_send(&self) -> &[u8] {
        match &self.payload {
            Payload::Send(b) => b,
            _ => &[],
        }
    }

    /// The bytes `from..from + len` of the buffer that the controller fills, if this command has them.
    pub(super) fn fill_range(&mut self, from: usize, len: usize) -> Option<&mut [u8]> {
        match &mut self.payload {
            Payload::Receive(b) => b.get_mut(from..from.checked_add(len)?),
            _ => None,
        }
    }

    /// Whether an R2T asks for bytes that this command has, after everything queued for it has left: we allow one at a time.
    pub(super) fn admits(&self, r2t: &R2T, sent: u64) -> bool {
        let end = u64::from(r2t.offset) + u64::from(r2t.length);
        self.transfer.is_none()
            && self.stream_end <= sent
            && r2t.length > 0
            && end <= self.to_send().len() as u64
    }

    /// Ends the command.
    pub(super) fn complete(&mut self, cqe: Cqe) -> Completion {
        let slot = std::mem::take(self);
        Completion {
            tag: slot.tag,
            cqe,
            received: slot.received,
            buffer: slot.payload.into_buffer(),
        }
    }
}

/// The table and its free entries.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) all: Vec<Slot>,
    free: Vec<u16>,
}

impl Slots {
    pub(super) fn new(depth: u16) -> Self {
        Self {
            all: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).rev().collect(),
        }
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free entry.
    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// The command `cid`, if it is in flight and has not been answered.
    pub(super) fn in_flight(&mut self, cid: u16) -> Option<&mut Slot> {
        self.all
            .get_mut(usize::from(cid))
            .filter(|s| s.busy && s.ended.is_none())
    }

    /// Ends command `cid`.
    pub(super) fn complete(&mut self, cid: u16, cqe: Cqe) -> Completion {
        let completion = self.all[usize::from(cid)].complete(cqe);
        self.free.push(cid);
        completion
    }
}
