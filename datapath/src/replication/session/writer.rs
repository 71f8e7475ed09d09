//! What goes out: frames queued in order, one gathered send a pass.
//!
//! There are two outboxes: one is filled, the other is being sent. They change places when the latter is empty, so neither grows beyond its bound while the
//! socket never rests.

use std::future::{Future, poll_fn};
use std::ops::{Deref, Range};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use keelblock_hugepages::Buffer;

use super::limits::{QUEUE_BYTES, QUEUE_FRAMES};
use super::state::Session;
use crate::reactor::NetError;
use crate::reactor::outbox::Outbox;
use crate::replication::wire::frame::{Header, Kind};

/// A buffer that others refer to as well.
#[derive(Debug)]
struct Shared(Rc<Buffer>);

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// No views here: what is sent outlives the pass.
type Frames = Outbox<&'static [u8], Shared>;

/// What a frame is put together in; kept for its memory.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) body: Vec<u8>,
    data: Vec<(Shared, Range<usize>)>,
}

impl Scratch {
    pub(super) fn add_data(&mut self, data: impl IntoIterator<Item = (Rc<Buffer>, Range<usize>)>) {
        let parts = data.into_iter().filter(|(_, part)| !part.is_empty());
        self.data.extend(parts.map(|(b, part)| (Shared(b), part)));
    }
}

/// Frames that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    filling: Frames,
    /// Frames in `filling`.
    frames: usize,
    sending: Frames,
    /// Of the last frame.
    number: u32,
    scratch: Scratch,
}

impl Outgoing {
    /// Puts bytes in front of all frames: the last message of a handshake.
    pub(super) fn preface(&mut self, bytes: &[u8]) {
        assert_eq!(self.number, 0, "before the first frame");
        self.filling.put(bytes);
    }

    pub(super) fn is_full(&self) -> bool {
        self.filling.unsent() >= QUEUE_BYTES || self.frames >= QUEUE_FRAMES
    }

    /// Far beyond full: by frames that do not wait for room.
    pub(super) fn is_flooded(&self) -> bool {
        self.frames >= 2 * QUEUE_FRAMES
    }

    pub(super) fn unsent(&self) -> usize {
        self.filling.unsent() + self.sending.unsent()
    }

    pub(super) fn take_scratch(&mut self) -> Scratch {
        std::mem::take(&mut self.scratch)
    }

    pub(super) fn push(&mut self, kind: Kind, channel_and_epoch: (u32, u32), mut scratch: Scratch) {
        let Scratch { body, data } = &mut scratch;
        let bytes = data.iter().map(|(_, part)| part.len()).sum();
        self.number = self.number.wrapping_add(1);
        let header = Header::encode(kind, channel_and_epoch, self.number, body, bytes);
        self.filling.put(&header);
        if !body.is_empty() {
            self.filling.put(body);
        }
        for (buffer, part) in data.drain(..) {
            self.filling.put_buffer(buffer, part);
        }
        self.frames += 1;
        body.clear();
        self.scratch = scratch;
    }

    /// Sends what there is; `Ok(false)`: the socket takes no more. `swapped` is called when there is room in the queue again.
    pub(super) fn flush(
        &mut self,
        mut send: impl FnMut(&[std::io::IoSlice<'_>]) -> Result<usize, NetError>,
        mut swapped: impl FnMut(),
    ) -> Result<bool, NetError> {
        loop {
            if self.sending.is_empty() {
                if self.filling.is_empty() {
                    return Ok(true);
                }
                std::mem::swap(&mut self.filling, &mut self.sending);
                self.frames = 0;
                swapped();
            }
            if !self.sending.flush(&mut send)? {
                return Ok(false);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.filling.clear();
        self.sending.clear();
        self.frames = 0;
    }
}

/// The writer's task: sends at the end of a pass what was queued in it, and what the socket did not take before.
pub(super) async fn write(session: Rc<Session>) {
    while !session.is_ended() {
        session.end_channels();
        match session.flush() {
            Ok(true) => session.to_send.notified().await,
            Ok(false) => {
                // Channels end while the socket takes nothing, too.
                let mut room = pin!(session.socket.writable());
                let mut more = pin!(session.to_send.notified());
                let broken = poll_fn(|cx| match room.as_mut().poll(cx) {
                    Poll::Ready(done) => Poll::Ready(done.err()),
                    Poll::Pending => more.as_mut().poll(cx).map(|()| None),
                });
                if let Some(error) = broken.await {
                    session.end(error.into());
                }
            }
            Err(why) => session.end(why),
        }
    }
}
