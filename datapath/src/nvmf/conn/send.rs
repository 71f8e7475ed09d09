//! What a connection sends: completions, data, R2Ts - and the writer task.

use std::io;
use std::rc::Rc;

use keelblock_hugepages::Buffer;
use keelblock_nvme::Sqe;
use keelblock_nvme::digest::digest;

use super::pdu;
use super::transfer::Transfer;
use super::{Connection, Waiting};
use crate::device::View;
use crate::nvmf::limits::{MAX_C2H_DATA, TRANSFER_BYTES};
use crate::nvmf::seam::{MAX_TRANSFER_BYTES, Reply, StatusField};
use crate::reactor::NetError;

/// Bytes of a memory drive in the outbox.
#[derive(Debug)]
pub struct PassView(View);

impl std::ops::Deref for PassView {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: views enter the outbox only in a step of the reader, which flushes it before it yields, and a flush leaves none: so it
        // is still the same pass. The slice lives for one send or copy, during which no command is served.
        unsafe { self.0.bytes() }
    }
}

impl Connection {
    /// Puts a completion into the outbox; the reader or the writer sends it.
    #[inline]
    pub fn put_completion(&self, cid: u16, dw0: u32, dw1: u32, status: StatusField) {
        if self.is_closed() {
            return;
        }
        let queue = self.queue.borrow();
        let head = pdu::response(cid, queue.sqhd(), status, dw0, dw1, self.params);
        self.out.borrow_mut().put(head.as_slice());
    }

    /// Puts the completion of a command that has a status and nothing else.
    #[inline]
    pub fn put_status(&self, cid: u16, status: StatusField) {
        self.put_completion(cid, 0, 0, status);
    }

    /// Puts the data of a read, in pieces, and its completion. The views must be good until the end of this pass, and the caller flushes before.
    #[inline]
    pub fn put_views(&self, cid: u16, views: &[View]) {
        if self.is_closed() {
            return;
        }
        let len: usize = views.iter().map(View::len).sum();
        let success = !self.queue.borrow().grant.sq_flow_control;
        let head = pdu::c2h_data(cid, 0, len as u32, true, success, self.params);
        let mut out = self.out.borrow_mut();
        out.put(head.as_slice());
        if self.params.digests.data {
            // a command served later in this pass may change what the views show: the digest is of a copy, and the copy is sent
            let mut copy = Vec::with_capacity(len);
            for &view in views {
                copy.extend_from_slice(&PassView(view));
            }
            let crc = digest(&copy);
            out.put_heap(copy);
            out.put(&crc.to_le_bytes());
        } else {
            for &view in views {
                view.prefetch();
                out.put_view(PassView(view));
            }
        }
        drop(out);
        if !success {
            self.put_status(cid, StatusField::SUCCESS);
        }
    }

    /// Puts the first `len` bytes of a buffer as the data of a read, and its completion.
    pub fn put_buffer(&self, cid: u16, buffer: Buffer, len: usize) {
        if self.is_closed() {
            return;
        }
        let success = !self.queue.borrow().grant.sq_flow_control;
        let head = pdu::c2h_data(cid, 0, len as u32, true, success, self.params);
        let mut out = self.out.borrow_mut();
        out.put(head.as_slice());
        let crc = self.params.digests.data.then(|| digest(&buffer[..len]));
        out.put_buffer(buffer, 0..len);
        if let Some(crc) = crc {
            out.put(&crc.to_le_bytes());
        }
        drop(out);
        if !success {
            self.put_status(cid, StatusField::SUCCESS);
        }
    }

    /// Puts a reply of the controller half: data if the command asked for some and succeeded, cut to what it asked for, then the
    /// completion.
    pub fn put_reply(&self, sqe_data_len: usize, cid: u16, mut reply: Reply) {
        if self.is_closed() {
            return;
        }
        reply.data.truncate(sqe_data_len);
        if reply.status.is_success() && !reply.data.is_empty() {
            let total = reply.data.len();
            let mut out = self.out.borrow_mut();
            for (i, part) in reply.data.chunks(MAX_C2H_DATA).enumerate() {
                let at = i * MAX_C2H_DATA;
                let last = at + part.len() == total;
                out.put(
                    pdu::c2h_data(cid, at as u32, part.len() as u32, last, false, self.params)
                        .as_slice(),
                );
                out.put_heap(part.to_vec());
                if self.params.digests.data {
                    out.put(&digest(part).to_le_bytes());
                }
            }
        }
        self.put_completion(cid, reply.dw0, reply.dw1, reply.status);
    }

    /// A command that was begun completes with a status.
    pub fn complete(&self, cid: u16, status: StatusField) {
        if self.queue.borrow_mut().finish(cid) {
            self.put_status(cid, status);
            self.to_send.notify();
        }
    }

    /// A read that was begun completes with data.
    pub fn complete_read(&self, cid: u16, buffer: Buffer, len: usize) {
        if self.queue.borrow_mut().finish(cid) {
            self.put_buffer(cid, buffer, len);
            self.to_send.notify();
        }
    }

    /// A command that the controller half had pending completes.
    pub fn complete_reply(&self, data_len: usize, cid: u16, reply: Reply) {
        if self.queue.borrow_mut().finish(cid) {
            self.put_reply(data_len, cid, reply);
            self.to_send.notify();
        }
    }

    /// Fetches the data of a command that was begun: with a buffer in hand an R2T goes out, else the command waits for one in order.
    pub fn fetch(self: &Rc<Self>, sqe: &Sqe, len: usize) {
        debug_assert!(len > 0 && len <= MAX_TRANSFER_BYTES);
        let first = self.waiting.borrow().is_empty();
        if first
            && self.may_transfer(len)
            && let Some(buffer) = self.node.handle.buffers().try_take(len)
        {
            self.put_r2t(sqe, buffer, len);
            return;
        }
        self.waiting
            .borrow_mut()
            .push_back(Waiting { sqe: *sqe, len });
        if first {
            let conn = self.clone();
            self.node
                .handle
                .spawn("nvmf-r2t", async move { conn.grant_waiting().await });
        }
    }

    /// One transfer is always allowed, more while connection and reactor have less than their shares of the pool.
    fn may_transfer(&self, len: usize) -> bool {
        let bytes = self.transfers.borrow().bytes();
        bytes == 0 || bytes + len <= TRANSFER_BYTES && self.node.may_transfer(len)
    }

    fn put_r2t(&self, sqe: &Sqe, buffer: Buffer, len: usize) {
        if self.is_closed() {
            return;
        }
        let transfer = Transfer {
            sqe: *sqe,
            buffer,
            len,
            got: 0,
            damaged: false,
        };
        let ttag = self.transfers.borrow_mut().begin(transfer);
        self.node.transfer_began(len);
        if self.owing_since.get().is_none() {
            self.owing_since.set(Some(self.node.handle.now()));
            self.node.watch();
        }
        let head = pdu::r2t(sqe.cid(), ttag, len as u32, self.params);
        self.out.borrow_mut().put(head.as_slice());
    }

    /// Serves the commands that wait for buffers, in order, until none is left.
    async fn grant_waiting(self: Rc<Self>) {
        loop {
            let Some(len) = self.waiting.borrow().front().map(|w| w.len) else {
                return;
            };
            while !self.may_transfer(len) && !self.is_closed() {
                self.node.transfers_moved.notified().await;
            }
            if self.is_closed() {
                self.waiting.borrow_mut().clear();
                return;
            }
            let buffer = self.node.take_buffer(len).await;
            let Some(next) = self.waiting.borrow_mut().pop_front() else {
                return;
            };
            self.put_r2t(&next.sqe, buffer, next.len);
            self.to_send.notify();
        }
    }

    /// Sends what there is, once the writes in it are fit to be acknowledged. `Ok(false)`: the socket is full, the writer goes on. Views are gone
    /// from the outbox afterwards.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&self) -> Result<bool, NetError> {
        let committed = self.node.volumes.commit();
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            return Ok(true);
        }
        if !committed {
            out.clear();
            let source = io::Error::other("a drive does not take its journal");
            return Err(NetError::Broken { source });
        }
        let done = out.flush(|parts| self.socket.try_send(parts))?;
        if done {
            self.blocked_since.set(None);
        } else if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(self.node.handle.now()));
            self.node.watch();
        }
        Ok(done)
    }

    /// The writer task: sends what operations put into the outbox, and what the socket did not take.
    pub async fn write(self: Rc<Self>) {
        while !self.is_closed() {
            match self.flush() {
                Ok(true) => {
                    self.resume.notify();
                    self.to_send.notified().await;
                }
                Ok(false) => {
                    if self.socket.writable().await.is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        self.close();
    }
}
