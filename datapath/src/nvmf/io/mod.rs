//! I/O commands: from a checked capsule to the volume and back.
//!
//! A command is checked ([`check`]), gets its data (in the capsule, or by R2T and then checked again), and runs: at once where the volume
//! can, and is then answered in the batch that brought it; else as an operation in the reactor's slab that owns its buffer until it
//! completes. Reservation commands go to the subsystem's home.

pub mod check;
mod deallocate;
pub mod forwarded;
pub mod fused;
mod operation;

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;
use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Fuse, Sqe};

use self::check::{Work, check};
use self::operation::{Operation, start};
use super::conn::Connection;
use super::conn::reader::{Capsule, Taken};
use super::conn::transfer::Transfer;
use super::seam::{ErrorReport, StatusField};
use super::status;
use super::view::{Namespace, NamespaceRef, View, ViewCell};
use crate::volume::forward::dispatch::Ticket;
use crate::volume::{ByteRange, VolumeError};

/// A command on its way through.
#[derive(Clone, Copy)]
struct Run<'a> {
    conn: &'a Rc<Connection>,
    view: &'a Rc<View>,
    sqe: &'a Sqe,
    /// Its identifier is in the table of commands in flight.
    begun: bool,
}

/// Data that came with a command.
enum Data<'a> {
    Capsule(&'a [u8]),
    /// With the stamps that the command has on another node, if it is forwarded.
    Buffer(Buffer, usize, Option<Ticket>),
}

impl Data<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Capsule(bytes) => bytes,
            Data::Buffer(buffer, len, _) => &buffer[..*len],
        }
    }

    /// The data in a buffer of its own; `Err`: none is free.
    fn into_buffer(self, conn: &Connection) -> Result<Buffer, Taken> {
        match self {
            Data::Buffer(buffer, ..) => Ok(buffer),
            Data::Capsule(bytes) => {
                let mut buffer = spare(conn, bytes.len())?;
                buffer[..bytes.len()].copy_from_slice(bytes);
                Ok(buffer)
            }
        }
    }
}

/// A buffer for the capsule that the reader is at: the one it waited for, or a free one.
fn spare(conn: &Connection, len: usize) -> Result<Buffer, Taken> {
    let waited_for = conn.spare.take().filter(|buffer| buffer.len() >= len);
    waited_for
        .or_else(|| conn.node.handle.buffers().try_take(len))
        .ok_or(Taken::NeedsBuffer(len))
}

/// A capsule of an I/O queue.
#[inline]
pub fn command(conn: &Rc<Connection>, cell: &ViewCell, sqe: &Sqe, capsule: Capsule<'_>) -> Taken {
    let view = cell.get();
    let run = Run {
        conn,
        view: &view,
        sqe,
        begun: false,
    };
    if run.sqe.fuse() != Fuse::Normal || conn.fused.borrow().half_pending() {
        return fused::command(run, capsule);
    }
    plain(run, capsule)
}

/// A capsule that will be served soon: begins to fetch what it will look at. Nothing of it was checked, and nothing comes of it.
#[inline]
pub fn expect(cell: &ViewCell, sqe: &Sqe) {
    let reads = sqe.opcode() == opcode::READ;
    if reads || sqe.opcode() == opcode::WRITE {
        let view = cell.get();
        if let Some(ns) = view.namespace(sqe.nsid())
            && sqe.slba() < ns.blocks
        {
            ns.volume.prefetch(sqe.slba() << ns.lba_shift, reads);
        }
    }
}

/// A command that is not fused.
#[inline]
fn plain(run: Run<'_>, capsule: Capsule<'_>) -> Taken {
    let work = match check(run.view, &run.conn.host, run.sqe) {
        Ok(work) => work,
        Err(refused) => {
            run.fail(refused);
            return Taken::Yes;
        }
    };
    let needed = work.host_data(run.sqe);
    if needed > 0 && matches!(run.sqe.sgl(), Sgl::Transport { .. }) {
        if let Work::Write(ns, at, fua) = work
            && ns.forwards
        {
            forwarded::reserve_and_fetch(run, ns, at, fua);
            return Taken::Yes;
        }
        run.conn.queue.borrow_mut().begin(run.sqe.cid());
        run.conn.fetch(run.sqe, needed);
        return Taken::Yes;
    }
    run.go(work, Data::Capsule(capsule.data))
}

/// All data of a transfer has come.
pub fn data_arrived(conn: &Rc<Connection>, cell: &ViewCell, transfer: Transfer) {
    let view = cell.get();
    let sqe = transfer.sqe;
    // Whatever becomes of the command: another one may have its identifier next.
    let ticket = conn.tickets.borrow_mut().remove(&sqe.cid());
    let run = Run {
        conn,
        view: &view,
        sqe: &sqe,
        begun: true,
    };
    if run.sqe.fuse() != Fuse::Normal {
        return fused::data_arrived(run, transfer);
    }
    if transfer.damaged {
        return run.fail(status::TRANSPORT);
    }
    match check(&view, &conn.host, run.sqe) {
        Err(refused) => run.fail(refused),
        Ok(work) => {
            let taken = run.go(work, Data::Buffer(transfer.buffer, transfer.len, ticket));
            debug_assert_eq!(taken, Taken::Yes, "a transfer has its buffer");
        }
    }
}

impl<'a> Run<'a> {
    #[inline]
    fn go(self, work: Work<'_>, data: Data<'_>) -> Taken {
        if self.view.forwards {
            return forwarded::go(self, work, data);
        }
        match work {
            Work::Read(ns, at) => self.read(ns, at),
            Work::Write(ns, at, fua) => return self.write(ns, at, fua, data),
            Work::Compare(ns, at) => return self.compare(ns, at, data),
            Work::Deallocate(ns, bytes, act) => return deallocate::run(self, ns, bytes, act, data),
            Work::WriteZeroes(ns, at, deallocate) => self.write_zeroes(ns, at, deallocate),
            Work::Verify(ns, at) => {
                let (ns, operation) = (NamespaceRef::new(self.view, ns), self.operation());
                start(self.conn, "nvmf-verify", async move {
                    let status = of(ns.volume.verify(at).await);
                    operation.complete(other_done(&ns, status));
                });
            }
            Work::Flush(ns) => self.flush(ns.index..ns.index + 1),
            Work::FlushAll => self.flush(0..self.view.namespaces.len()),
            Work::Reservation => {
                self.begin();
                self.conn
                    .node
                    .forward_reservation(self.conn, self.sqe, data.bytes().to_vec());
            }
        }
        Taken::Yes
    }

    fn begin(&self) {
        if !self.begun {
            self.conn.queue.borrow_mut().begin(self.sqe.cid());
        }
    }

    /// Answers within the batch.
    #[inline]
    fn answer(&self, status: StatusField) {
        let cid = self.sqe.cid();
        if self.begun {
            self.conn.queue.borrow_mut().finish(cid);
        }
        self.conn.put_status(cid, status);
    }

    /// Answers with an error.
    #[cold]
    fn fail(&self, status: StatusField) {
        if let Some(stats) = self
            .view
            .namespace(self.sqe.nsid())
            .and_then(|ns| ns.stats.as_ref())
        {
            stats.failed();
        }
        let report = ErrorReport {
            cmd: self.conn.command_ref(self.sqe.cid()),
            status,
            nsid: self.sqe.nsid(),
            lba: self.sqe.slba(),
        };
        self.conn.node.report_error(self.conn, report);
        self.answer(status);
    }

    /// The batch counts one namespace at a time.
    #[inline]
    fn count_for(&self, ns: &Namespace) {
        if self.conn.batch.is_of_another(ns) {
            self.conn.batch.record(&self.conn.node.handle, self.view);
        }
    }

    #[inline]
    fn read(self, ns: &Namespace, at: ByteRange) {
        let cid = self.sqe.cid();
        let mut views = self.conn.node.views_of_read.borrow_mut();
        views.clear();
        match ns.volume.read_now(at, |view| views.push(view)) {
            Some(Ok(())) => {
                self.count_for(ns);
                self.conn.batch.read(ns, at.len());
                self.conn.put_views(cid, &views);
            }
            Some(Err(e)) => self.fail(status::of_volume(e)),
            None => self.read_later(ns, at),
        }
    }

    fn read_later(self, ns: &Namespace, at: ByteRange) {
        let (ns, operation) = (NamespaceRef::new(self.view, ns), self.operation());
        let len = at.len() as usize;
        let reading = Reading::new(self.conn, len);
        start(self.conn, "nvmf-read", async move {
            let buffer = operation.conn().node.take_buffer(len).await;
            let (buffer, result) = ns.volume.read(at, buffer).await;
            drop(reading);
            match result {
                Ok(()) => {
                    if let Some(stats) = &ns.stats {
                        stats.read_done(len as u64, operation.elapsed_ns());
                    }
                    operation.complete_read(buffer, len);
                }
                Err(e) => operation.complete(failed(&ns, e)),
            }
        });
    }

    #[inline]
    fn write(self, ns: &Namespace, at: ByteRange, fua: bool, data: Data<'_>) -> Taken {
        match ns.volume.write_now(at, data.bytes(), fua) {
            Some(Ok(())) => {
                self.count_for(ns);
                self.conn.batch.write(ns, at.len());
                self.answer(StatusField::SUCCESS);
                Taken::Yes
            }
            Some(Err(e)) => {
                self.fail(status::of_volume(e));
                Taken::Yes
            }
            None => self.write_later(ns, at, fua, data),
        }
    }

    fn write_later(self, ns: &Namespace, at: ByteRange, fua: bool, data: Data<'_>) -> Taken {
        let buffer = match data.into_buffer(self.conn) {
            Ok(buffer) => buffer,
            Err(taken) => return taken,
        };
        let (ns, operation) = (NamespaceRef::new(self.view, ns), self.operation());
        start(self.conn, "nvmf-write", async move {
            let (_buffer, result) = ns.volume.write(at, buffer, fua).await;
            match (result, &ns.stats) {
                (Ok(()), Some(stats)) => stats.write_done(at.len(), operation.elapsed_ns()),
                (Err(e), _) => return operation.complete(failed(&ns, e)),
                (Ok(()), None) => {}
            }
            operation.complete(StatusField::SUCCESS);
        });
        Taken::Yes
    }

    fn compare(self, ns: &Namespace, at: ByteRange, data: Data<'_>) -> Taken {
        let buffer = match data.into_buffer(self.conn) {
            Ok(buffer) => buffer,
            Err(taken) => return taken,
        };
        let (ns, operation) = (NamespaceRef::new(self.view, ns), self.operation());
        start(self.conn, "nvmf-compare", async move {
            let (_buffer, result) = ns.volume.compare(at, buffer).await;
            operation.complete(other_done(&ns, of(result)));
        });
        Taken::Yes
    }

    fn write_zeroes(self, ns: &Namespace, at: ByteRange, deallocate: bool) {
        let fua = self.sqe.fua();
        let (ns, operation) = (NamespaceRef::new(self.view, ns), self.operation());
        start(self.conn, "nvmf-write-zeroes", async move {
            let mut done = ns.volume.write_zeroes(at, deallocate).await;
            if fua && done.is_ok() {
                done = ns.volume.flush().await;
            }
            let status = of(done);
            match &ns.stats {
                Some(stats) if status.is_success() => {
                    stats.discard_done(at.len(), operation.elapsed_ns())
                }
                _ => {
                    other_done(&ns, status);
                }
            }
            operation.complete(status);
        });
    }

    fn flush(self, which: Range<usize>) {
        let (view, operation) = (self.view.clone(), self.operation());
        start(self.conn, "nvmf-flush", async move {
            let mut status = StatusField::SUCCESS;
            for ns in &view.namespaces[which] {
                let one = other_done(ns, of(ns.volume.flush().await));
                if !one.is_success() {
                    status = one;
                }
            }
            operation.complete(status);
        });
    }

    /// The command becomes an operation.
    fn operation(&self) -> Operation {
        self.begin();
        Operation::new(self.conn, self.sqe.cid(), None)
    }
}

/// Bytes that a read on its way will add to the outbox.
struct Reading {
    conn: Rc<Connection>,
    bytes: usize,
}

impl Reading {
    fn new(conn: &Rc<Connection>, bytes: usize) -> Self {
        conn.reading.set(conn.reading.get() + bytes);
        Self {
            conn: conn.clone(),
            bytes,
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.conn.reading.set(self.conn.reading.get() - self.bytes);
    }
}

fn of(result: Result<(), VolumeError>) -> StatusField {
    result.map_or_else(status::of_volume, |()| StatusField::SUCCESS)
}

/// Counts a failed read or write.
fn failed(ns: &Namespace, e: VolumeError) -> StatusField {
    if let Some(stats) = &ns.stats {
        stats.failed();
    }
    status::of_volume(e)
}

/// Counts a command that is neither read nor write.
fn other_done(ns: &Namespace, status: StatusField) -> StatusField {
    if let Some(stats) = &ns.stats {
        if status.is_success() {
            stats.other_done()
        } else {
            stats.failed()
        }
    }
    status
}
