//! The outbox: what a connection has to send, in order.
//!
//! Headers (and whatever small follows or precedes them) are copied into one byte run, data stays where it is and is referred to.
//! One gathered send takes it all. What a send leaves behind of a *view* - memory that is only good in this pass - is copied then and
//! there, so after [`Outbox::flush`] nothing refers to a view any more.
//!
//! Invariants: `segments[head..]` are unsent, `skip` bytes of the first of them are sent; `unsent` is the sum of what is left; an empty
//! outbox holds no memory but its vectors.

use std::io::IoSlice;
use std::ops::{Deref, Range};

/// Pieces of one gathered send; the kernel takes 1024 at most.
const GATHER: usize = 512;

/// A piece of what is sent.
#[derive(Debug)]
enum Segment<V, B> {
    /// Bytes of `Outbox::bytes`.
    Bytes(Range<usize>),
    /// Memory that is good until the end of the pass.
    View(V),
    /// Bytes of a buffer that we own.
    Buffer(B, Range<usize>),
    /// Bytes on the heap: copies of views, replies of the admin half.
    Heap(Vec<u8>),
}

/// Replies that wait to be sent.
#[derive(Debug)]
pub struct Outbox<V, B> {
    bytes: Vec<u8>,
    segments: Vec<Segment<V, B>>,
    head: usize,
    skip: usize,
    unsent: usize,
    views: bool,
}

impl<V, B> Default for Outbox<V, B> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            segments: Vec::new(),
            head: 0,
            skip: 0,
            unsent: 0,
            views: false,
        }
    }
}

impl<V: Deref<Target = [u8]>, B: Deref<Target = [u8]>> Outbox<V, B> {
    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.unsent == 0
    }

    /// Bytes that wait.
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Appends bytes, by copy.
    pub fn put(&mut self, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.unsent += bytes.len();
        let end = self.bytes.len();
        match self.segments[self.head..].last_mut() {
            Some(Segment::Bytes(run)) => run.end = end,
            _ => self.segments.push(Segment::Bytes(start..end)),
        }
    }

    /// Appends memory that is good until the end of this pass. The caller flushes before it yields.
    pub fn put_view(&mut self, view: V) {
        self.unsent += view.len();
        self.views = true;
        self.segments.push(Segment::View(view));
    }

    /// Appends a part of a buffer; the buffer is given back when it has been sent.
    pub fn put_buffer(&mut self, buffer: B, part: Range<usize>) {
        self.unsent += part.len();
        self.segments.push(Segment::Buffer(buffer, part));
    }

    /// Appends bytes, by move.
    pub fn put_heap(&mut self, bytes: Vec<u8>) {
        self.unsent += bytes.len();
        self.segments.push(Segment::Heap(bytes));
    }

    fn segment(&self, at: usize) -> &[u8] {
        match &self.segments[at] {
            Segment::Bytes(run) => &self.bytes[run.clone()],
            Segment::View(view) => view,
            Segment::Buffer(buffer, part) => &buffer[part.clone()],
            Segment::Heap(bytes) => bytes,
        }
    }

    /// Sends until all is sent or `send` takes no more (0). Returns whether all was sent. Whatever the outcome, an error included, no
    /// view is held afterwards.
    pub fn flush<E>(
        &mut self,
        mut send: impl FnMut(&[IoSlice<'_>]) -> Result<usize, E>,
    ) -> Result<bool, E> {
        while self.unsent > 0 {
            let sent = if self.segments.len() - self.head <= 4 {
                self.send_some::<4, E>(&mut send)
            } else {
                self.send_some::<GATHER, E>(&mut send)
            };
            match sent {
                Ok(0) => {
                    self.keep_views();
                    return Ok(false);
                }
                Ok(sent) => self.advance(sent),
                Err(e) => {
                    self.clear();
                    return Err(e);
                }
            }
        }
        self.clear();
        Ok(true)
    }

    fn send_some<const N: usize, E>(
        &mut self,
        send: &mut impl FnMut(&[IoSlice<'_>]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let mut parts = [IoSlice::new(&[]); N];
        let count = (self.segments.len() - self.head).min(N);
        for (i, part) in parts[..count].iter_mut().enumerate() {
            let from = if i == 0 { self.skip } else { 0 };
            *part = IoSlice::new(&self.segment(self.head + i)[from..]);
        }
        send(&parts[..count])
    }

    fn advance(&mut self, sent: usize) {
        assert!(sent <= self.unsent, "sent {sent} bytes of {}", self.unsent);
        self.unsent -= sent;
        let mut left = sent + self.skip;
        while self.head < self.segments.len() {
            let len = self.segment(self.head).len();
            if left < len {
                break;
            }
            left -= len;
            // drops the buffer now, not when the whole batch has gone
            self.segments[self.head] = Segment::Bytes(0..0);
            self.head += 1;
        }
        self.skip = left;
    }

    /// Turns what is left of views into copies.
    fn keep_views(&mut self) {
        if !std::mem::take(&mut self.views) {
            return;
        }
        for at in self.head..self.segments.len() {
            let from = if at == self.head { self.skip } else { 0 };
            if let Segment::View(view) = &self.segments[at] {
                let copy = view[from..].to_vec();
                self.segments[at] = Segment::Heap(copy);
                if at == self.head {
                    self.skip = 0;
                }
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.bytes.clear();
        (self.head, self.skip, self.unsent, self.views) = (0, 0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Plain = Outbox<Vec<u8>, Vec<u8>>;

    #[test]
    fn consecutive_bytes_are_one_piece() {
        let mut out = Plain::default();
        out.put(b"ab");
        out.put(b"cd");
        out.put_view(b"view".to_vec());
        out.put(b"ef");
        let mut seen = Vec::new();
        let done = out.flush(|parts| {
            seen = parts.iter().map(|p| p.to_vec()).collect();
            Ok::<_, ()>(parts.iter().map(|p| p.len()).sum())
        });
        assert_eq!(done, Ok(true));
        assert_eq!(seen, [b"abcd".to_vec(), b"view".to_vec(), b"ef".to_vec()]);
        assert!(out.is_empty());
    }

    #[test]
    fn a_refused_send_leaves_no_view() {
        let mut out = Plain::default();
        out.put(b"h");
        out.put_view(b"0123456789".to_vec());
        let mut budget = 4;
        assert_eq!(
            out.flush(|_| Ok::<_, ()>(std::mem::take(&mut budget))),
            Ok(false)
        );
        assert!(!out.segments.iter().any(|s| matches!(s, Segment::View(_))));
        let mut rest = Vec::new();
        out.flush(|parts| {
            parts.iter().for_each(|p| rest.extend_from_slice(p));
            Ok::<_, ()>(parts.iter().map(|p| p.len()).sum())
        })
        .unwrap();
        assert_eq!(rest, b"3456789");
    }

    proptest! {
        /// Whatever is put and however the socket takes it, the bytes come out once and in order.
        #[test]
        fn nothing_is_lost_or_repeated(
            puts in proptest::collection::vec((0..4u8, 0..50usize), 1..600),
            takes in proptest::collection::vec(0..2000usize, 1..50),
        ) {
            let (mut out, mut model, mut got) = (Plain::default(), Vec::new(), Vec::new());
            let mut takes = takes.into_iter().cycle();
            let mut stalled = 0;
            let mut puts = puts.into_iter().enumerate().peekable();
            while puts.peek().is_some() || !out.is_empty() {
                for (i, (kind, len)) in puts.by_ref().take(7) {
                    let data = vec![i as u8; len];
                    model.extend_from_slice(&data);
                    match kind {
                        0 => out.put(&data),
                        1 => out.put_view(data),
                        2 => {
                            let padded = [b"xx".as_slice(), &data, b"yy"].concat();
                            out.put_buffer(padded, 2..2 + len);
                        }
                        _ => out.put_heap(data),
                    }
                }
                prop_assert_eq!(out.unsent(), model.len() - got.len());
                out.flush(|parts| {
                    let mut room = takes.next().unwrap();
                    stalled = if room == 0 { stalled + 1 } else { 0 };
                    if stalled > 60 { room = 1 }
                    let all: Vec<u8> = parts.iter().flat_map(|p| p.to_vec()).collect();
                    let n = room.min(all.len());
                    got.extend_from_slice(&all[..n]);
                    Ok::<_, ()>(n)
                }).unwrap();
            }
            prop_assert_eq!(got, model);
        }
    }
}
