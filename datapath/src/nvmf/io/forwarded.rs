//! Commands of namespaces whose volume is coordinated on another node: they are forwarded (`docs/replication.md` §14, rule 8).
//!
//! What modifies has its stamps reserved first, and is confirmed when it is known that the host still holds it: it answered an R2T that went out after that; or
//! its connection is open and it cannot have waited for long. The coordinator's answer is the host's.

use std::rc::Rc;

use keelblock_hugepages::Buffer;
use keelblock_nvme::Sqe;

use super::check::Work;
use super::operation::{Operation, start};
use super::{Data, Reading, Run, deallocate, other_done};
use crate::nvmf::conn::Connection;
use crate::nvmf::conn::reader::Taken;
use crate::nvmf::seam::{MAX_TRANSFER_BYTES, StatusField};
use crate::nvmf::status;
use crate::nvmf::view::{Namespace, NamespaceRef};
use crate::reactor::Nanos;
use crate::volume::forward::dispatch::Ticket;
use crate::volume::forward::{Command, Operation as What, Phase};
use crate::volume::{ByteRange, VolumeError};

/// What is known of when a command came.
#[derive(Clone)]
pub struct Held {
    conn: Rc<Connection>,
    /// Not before this.
    came: Nanos,
    read: Nanos,
}

impl Held {
    /// Of the command that is looked at now.
    pub fn now(conn: &Rc<Connection>) -> Self {
        Self {
            conn: conn.clone(),
            came: conn.came.get(),
            read: conn.node.handle.now(),
        }
    }

    /// Whether the host holds it still, as far as can be known without asking.
    pub fn still(&self) -> bool {
        let node = &self.conn.node;
        let steady = node.steady();
        !self.conn.is_closed() && steady.fresh(self.came, self.read, node.handle.now())
    }
}

/// A command of a host, as it is forwarded.
pub fn command(
    conn: &Connection,
    ns: &Namespace,
    operation: What,
    at: Option<ByteRange>,
    fua: bool,
) -> Command {
    Command {
        host: conn.host,
        request: 0,
        phase: Phase::Read,
        operation,
        fused: false,
        fua,
        nsid: ns.nsid,
        first: at.map_or(0, |at| at.start),
        bytes: at.map_or(0, ByteRange::len),
        age_ms: 1,
    }
}

/// A write whose data the host is asked for once it has its stamps.
pub(super) fn reserve_and_fetch(run: Run<'_>, ns: &Namespace, at: ByteRange, fua: bool) {
    run.begin();
    let command = command(run.conn, ns, What::Write, Some(at), fua);
    let (ns, sqe): (_, Sqe) = (NamespaceRef::new(run.view, ns), *run.sqe);
    let operation = Operation::new(run.conn, sqe.cid(), None);
    start(run.conn, "nvmf-reserve", async move {
        match ns.volume.reserve_elsewhere(command).await {
            Ok(ticket) => {
                let conn = operation.leave();
                if !conn.is_closed() {
                    conn.tickets.borrow_mut().insert(sqe.cid(), ticket);
                    conn.fetch(&sqe, at.len() as usize);
                    conn.to_send.notify();
                }
            }
            Err(refused) => operation.complete(other_done(&ns, StatusField(refused))),
        }
    });
}

/// Runs a command that has its data.
pub(super) fn go(run: Run<'_>, work: Work<'_>, data: Data<'_>) -> Taken {
    match work {
        Work::Read(ns, at) => read(run, ns, at),
        Work::Write(ns, at, fua) => return write(run, ns, (at, fua), data),
        Work::Compare(ns, at) => {
            let buffer = match data.into_buffer(run.conn) {
                Ok(buffer) => buffer,
                Err(taken) => return taken,
            };
            let command = command(run.conn, ns, What::Compare, Some(at), false);
            ask(run, ns, command, Some(buffer));
        }
        Work::Deallocate(ns, bytes, act) => return deallocate::run(run, ns, bytes, act, data),
        Work::WriteZeroes(ns, at, _) => write_zeroes(run, ns, at),
        Work::Verify(ns, at) => verify(run, ns, at),
        Work::Flush(ns) => {
            let command = command(run.conn, ns, What::Flush, None, false);
            ask(run, ns, command, None);
        }
        Work::FlushAll => flush_all(run),
        // They are taken where they are kept.
        Work::Reservation => run.fail(status::PATH_ERROR),
    }
    Taken::Yes
}

fn ask(run: Run<'_>, ns: &Namespace, command: Command, data: Option<Buffer>) {
    let (ns, operation) = (NamespaceRef::new(run.view, ns), run.operation());
    start(run.conn, "nvmf-forward", async move {
        let done = ns.volume.ask_elsewhere(command, data).await;
        let status = StatusField(done.err().unwrap_or(0));
        operation.complete(other_done(&ns, status));
    });
}

fn read(run: Run<'_>, ns: &Namespace, at: ByteRange) {
    let command = command(run.conn, ns, What::Read, Some(at), false);
    let (ns, operation) = (NamespaceRef::new(run.view, ns), run.operation());
    let len = at.len() as usize;
    let reading = Reading::new(run.conn, len);
    start(run.conn, "nvmf-forward-read", async move {
        let done = ns.volume.ask_elsewhere(command, None).await;
        drop(reading);
        match done {
            Ok(Some(buffer)) => {
                if let Some(stats) = &ns.stats {
                    stats.read_done(len as u64, operation.elapsed_ns());
                }
                operation.complete_read(buffer, len);
            }
            Ok(None) => operation.complete(other_done(&ns, status::PATH_ERROR)),
            Err(refused) => operation.complete(other_done(&ns, StatusField(refused))),
        }
    });
}

fn write(run: Run<'_>, ns: &Namespace, (at, fua): (ByteRange, bool), data: Data<'_>) -> Taken {
    let (buffer, ticket) = match data {
        Data::Buffer(buffer, _, Some(ticket)) => (buffer, Some(ticket)),
        Data::Buffer(..) => {
            // Its R2T went out before it was to be forwarded.
            run.fail(status::PATH_ERROR);
            return Taken::Yes;
        }
        in_capsule => match in_capsule.into_buffer(run.conn) {
            Ok(buffer) => (buffer, None),
            Err(taken) => return taken,
        },
    };
    let held = Held::now(run.conn);
    let command = command(run.conn, ns, What::Write, Some(at), fua);
    let (ns, operation) = (NamespaceRef::new(run.view, ns), run.operation());
    start(run.conn, "nvmf-forward-write", async move {
        let done = match ticket {
            Some(ticket) => {
                let data = (Some(buffer), None);
                ns.volume.confirm_elsewhere(ticket, at.len(), data).await
            }
            None => modify(&ns, command, Some(buffer), &held).await,
        };
        match (done, &ns.stats) {
            (Ok(()), Some(stats)) => stats.write_done(at.len(), operation.elapsed_ns()),
            (Err(refused), _) => {
                return operation.complete(other_done(&ns, StatusField(refused)));
            }
            (Ok(()), None) => {}
        }
        operation.complete(StatusField::SUCCESS);
    });
    Taken::Yes
}

/// Reserves, and confirms what the host still holds.
async fn modify(
    ns: &Namespace,
    command: Command,
    data: Option<Buffer>,
    held: &Held,
) -> Result<(), u16> {
    let ticket = ns.volume.reserve_elsewhere(command).await?;
    if !held.still() {
        return Err(status::PATH_ERROR.0);
    }
    let confirmed = ns
        .volume
        .confirm_elsewhere(ticket, command.bytes, (data, None));
    confirmed.await
}

/// Erases a range for a Dataset Management.
pub(super) async fn deallocate_range(
    held: &Held,
    ns: &Namespace,
    at: ByteRange,
) -> Result<(), StatusField> {
    let command = command(&held.conn, ns, What::Deallocate, Some(at), false);
    modify(ns, command, None, held).await.map_err(StatusField)
}

fn write_zeroes(run: Run<'_>, ns: &Namespace, at: ByteRange) {
    let held = Held::now(run.conn);
    let command = command(run.conn, ns, What::WriteZeroes, Some(at), false);
    let flush = Command {
        operation: What::Flush,
        first: 0,
        bytes: 0,
        ..command
    };
    let fua = run.sqe.fua();
    let (ns, operation) = (NamespaceRef::new(run.view, ns), run.operation());
    start(run.conn, "nvmf-forward-write-zeroes", async move {
        let mut done = modify(&ns, command, None, &held).await;
        if fua && done.is_ok() {
            done = ns.volume.ask_elsewhere(flush, None).await.map(drop);
        }
        match (done, &ns.stats) {
            (Ok(()), Some(stats)) => stats.discard_done(at.len(), operation.elapsed_ns()),
            (Ok(()), None) => {}
            (Err(refused), _) => {
                return operation.complete(other_done(&ns, StatusField(refused)));
            }
        }
        operation.complete(StatusField::SUCCESS);
    });
}

/// What it would read is read, and not sent on.
fn verify(run: Run<'_>, ns: &Namespace, at: ByteRange) {
    let command = command(run.conn, ns, What::Read, Some(at), false);
    let (ns, operation) = (NamespaceRef::new(run.view, ns), run.operation());
    start(run.conn, "nvmf-forward-verify", async move {
        let mut first = at.start;
        while first < at.end {
            let bytes = (at.end - first).min(MAX_TRANSFER_BYTES as u64);
            let part = Command {
                first,
                bytes,
                ..command
            };
            if let Err(refused) = ns.volume.ask_elsewhere(part, None).await {
                return operation.complete(other_done(&ns, StatusField(refused)));
            }
            first += bytes;
        }
        operation.complete(other_done(&ns, StatusField::SUCCESS));
    });
}

fn flush_all(run: Run<'_>) {
    let (view, operation) = (run.view.clone(), run.operation());
    start(run.conn, "nvmf-forward-flush", async move {
        let mut status = StatusField::SUCCESS;
        for ns in &view.namespaces {
            let done = match ns.forwards {
                true => {
                    let command = command(operation.conn(), ns, What::Flush, None, false);
                    let done = ns.volume.ask_elsewhere(command, None).await;
                    StatusField(done.err().unwrap_or(0))
                }
                false => super::of(ns.volume.flush().await),
            };
            if !other_done(ns, done).is_success() {
                status = done;
            }
        }
        operation.complete(status);
    });
}

/// A fused pair that has its stamps and its data.
pub(super) async fn compare_and_write(
    ns: &Namespace,
    ticket: Ticket,
    at: ByteRange,
    (expect, new): (Buffer, Buffer),
) -> Result<(), VolumeError> {
    let data = (Some(expect), Some(new));
    let done = ns.volume.confirm_elsewhere(ticket, at.len(), data).await;
    done.map_err(|refused| match StatusField(refused) {
        status::COMPARE_FAILURE => VolumeError::Miscompare,
        _ => VolumeError::Told(refused),
    })
}
