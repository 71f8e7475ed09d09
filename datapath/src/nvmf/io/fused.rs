//! Fused Compare and Write: two adjacent commands of one queue that happen as one (NVMe Base 2.1, 3.4.1; NVM Command Set 1.1, 2.1.4).
//!
//! The first half waits for what comes next. If that is its second half and the two fit, the data of both is fetched and the pair runs as
//! one operation on the volume; anything else aborts the first half. A half that cannot run fails the other too.

use std::rc::Rc;

use keelblock_hugepages::Buffer;
use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Fuse, Sqe};

use super::check::{Work, check};
use super::forwarded::{self, Held};
use super::operation::{Operation, start};
use super::{Data, Run, plain, status};
use crate::nvmf::conn::Connection;
use crate::nvmf::conn::reader::{Capsule, Taken};
use crate::nvmf::conn::transfer::Transfer;
use crate::nvmf::seam::{MAX_TRANSFER_BYTES, StatusField};
use crate::nvmf::view::{NamespaceRef, View};
use crate::volume::VolumeError;
use crate::volume::forward::dispatch::Ticket;
use crate::volume::forward::{Command, Operation as What};

/// One half of a pair.
struct Half {
    sqe: Sqe,
    /// Its data, when it is there.
    data: Option<Buffer>,
    damaged: bool,
}

impl Half {
    fn cid(&self) -> u16 {
        self.sqe.cid()
    }

    /// What must be the same in both halves: namespace, first LBA, number of blocks.
    fn extent(&self) -> (u32, u64, u32) {
        (self.sqe.nsid(), self.sqe.slba(), self.sqe.blocks())
    }
}

struct Pair {
    compare: Half,
    write: Half,
    /// Of one that is forwarded.
    ticket: Option<Ticket>,
}

/// The fused commands of a queue that have not run yet.
#[derive(Default)]
pub struct Fused {
    first: Option<Half>,
    pairs: Vec<Pair>,
}

impl Fused {
    /// A first half waits for the next command.
    #[inline]
    pub fn half_pending(&self) -> bool {
        self.first.is_some()
    }
}

/// Aborts a first half whose second did not follow.
pub fn interrupt(conn: &Connection) {
    if let Some(first) = conn.fused.borrow_mut().first.take() {
        conn.complete(first.cid(), status::FUSED_MISSING);
    }
}

/// A fused command, or the command after a first half.
pub(super) fn command(run: Run<'_>, capsule: Capsule<'_>) -> Taken {
    match run.sqe.fuse() {
        Fuse::Second => second(run, capsule),
        other => {
            interrupt(run.conn);
            match other {
                Fuse::Normal => plain(run, capsule),
                Fuse::First if run.sqe.opcode() == opcode::COMPARE => first(run, capsule),
                _ => {
                    run.fail(status::INVALID_FIELD);
                    Taken::Yes
                }
            }
        }
    }
}

/// The data of a half that is in the capsule, in a buffer.
fn in_hand(run: Run<'_>, capsule: Capsule<'_>) -> Result<Option<Buffer>, Taken> {
    if capsule.data.is_empty() {
        return Ok(None);
    }
    Data::Capsule(capsule.data).into_buffer(run.conn).map(Some)
}

fn first(run: Run<'_>, capsule: Capsule<'_>) -> Taken {
    let data = match in_hand(run, capsule) {
        Ok(data) => data,
        Err(taken) => return taken,
    };
    run.conn.queue.borrow_mut().begin(run.sqe.cid());
    run.conn.fused.borrow_mut().first = Some(Half {
        sqe: *run.sqe,
        data,
        damaged: false,
    });
    Taken::Yes
}

fn second(run: Run<'_>, capsule: Capsule<'_>) -> Taken {
    if !run.conn.fused.borrow().half_pending() {
        run.fail(status::FUSED_MISSING);
        return Taken::Yes;
    }
    let data = match in_hand(run, capsule) {
        Ok(data) => data,
        Err(taken) => return taken,
    };
    let first = run.conn.fused.borrow_mut().first.take();
    let compare = first.expect("a first half is pending");
    run.conn.queue.borrow_mut().begin(run.sqe.cid());
    let pair = Pair {
        compare,
        write: Half {
            sqe: *run.sqe,
            data,
            damaged: false,
        },
        ticket: None,
    };
    if let Err((a, b)) = pair.check(run.view, run.conn) {
        pair.complete(run.conn, a, b);
        return Taken::Yes;
    }
    if run.view.forwards {
        pair.reserve(run);
        return Taken::Yes;
    }
    pair.fetch_or_run(run.conn, run.view);
    Taken::Yes
}

/// The data of a half has come.
pub(super) fn data_arrived(run: Run<'_>, transfer: Transfer) {
    let cid = run.sqe.cid();
    let mut fused = run.conn.fused.borrow_mut();
    let found = fused
        .pairs
        .iter()
        .position(|p| p.compare.cid() == cid || p.write.cid() == cid);
    let at = found.expect("fused data belongs to a pair");
    let pair = &mut fused.pairs[at];
    let half = if pair.compare.cid() == cid {
        &mut pair.compare
    } else {
        &mut pair.write
    };
    half.data = Some(transfer.buffer);
    half.damaged = transfer.damaged;
    if pair.compare.data.is_some() && pair.write.data.is_some() {
        let pair = fused.pairs.swap_remove(at);
        drop(fused);
        match pair.check(run.view, run.conn) {
            Ok(()) => pair.run(run.conn, run.view),
            Err((a, b)) => pair.complete(run.conn, a, b),
        }
    }
}

impl Pair {
    /// Whether the two may run, now.
    fn check(&self, view: &View, conn: &Connection) -> Result<(), (StatusField, StatusField)> {
        if self.write.sqe.opcode() != opcode::WRITE || self.compare.extent() != self.write.extent()
        {
            return Err((status::INVALID_FIELD, status::INVALID_FIELD));
        }
        let one = |half: &Half| match check(view, &conn.host, &half.sqe) {
            Err(refused) => Err(refused),
            Ok(_) if half.damaged => Err(status::TRANSPORT),
            Ok(_) if half.data.is_none() && !matches!(half.sqe.sgl(), Sgl::Transport { .. }) => {
                Err(status::SGL_LENGTH)
            }
            Ok(_) => Ok(()),
        };
        one(&self.compare).map_err(|e| (e, status::FUSED_FAILED))?;
        one(&self.write).map_err(|e| (status::FUSED_FAILED, e))
    }

    /// Fetches what data are not here, or runs.
    fn fetch_or_run(self, conn: &Rc<Connection>, view: &Rc<View>) {
        let halves = [&self.compare, &self.write];
        let missing = halves.map(|half| half.data.is_none().then_some(half.sqe));
        if missing == [None, None] {
            return self.run(conn, view);
        }
        conn.fused.borrow_mut().pairs.push(self);
        for half in missing.iter().flatten() {
            conn.fetch(half, half.sgl().length() as usize);
        }
    }

    /// Has its stamps reserved, on another node, before it goes on.
    fn reserve(mut self, run: Run<'_>) {
        let Ok(Work::Write(ns, at, fua)) = check(run.view, &run.conn.host, &self.write.sqe) else {
            unreachable!("checked just before");
        };
        if at.len() > MAX_TRANSFER_BYTES as u64 / 2 {
            return self.complete(run.conn, status::ATOMIC_UNIT, status::FUSED_FAILED);
        }
        let command = Command {
            fused: true,
            ..forwarded::command(run.conn, ns, What::Write, Some(at), fua)
        };
        let (held, all_here) = (
            Held::now(run.conn),
            self.compare.data.is_some() && self.write.data.is_some(),
        );
        let (view, ns) = (run.view.clone(), NamespaceRef::new(run.view, ns));
        let operation = Operation::new(run.conn, self.compare.cid(), Some(self.write.cid()));
        start(run.conn, "nvmf-reserve-pair", async move {
            let reserved = match ns.volume.reserve_elsewhere(command).await {
                // Of what needs no R2T it is not known otherwise.
                Ok(_) if all_here && !held.still() => Err(status::PATH_ERROR.0),
                other => other,
            };
            match reserved {
                Ok(ticket) => {
                    let conn = operation.leave();
                    if !conn.is_closed() {
                        self.ticket = Some(ticket);
                        self.fetch_or_run(&conn, &view);
                        conn.to_send.notify();
                    }
                }
                Err(refused) => operation.complete_pair(StatusField(refused), status::FUSED_FAILED),
            }
        });
    }

    fn complete(&self, conn: &Connection, compare: StatusField, write: StatusField) {
        conn.complete(self.compare.cid(), compare);
        conn.complete(self.write.cid(), write);
    }

    fn run(self, conn: &Rc<Connection>, view: &Rc<View>) {
        let Ok(Work::Write(ns, at, fua)) = check(view, &conn.host, &self.write.sqe) else {
            unreachable!("checked just before");
        };
        let ns = NamespaceRef::new(view, ns);
        let operation = Operation::new(conn, self.compare.cid(), Some(self.write.cid()));
        let (Some(expect), Some(new)) = (self.compare.data, self.write.data) else {
            unreachable!("a pair runs when it has its data");
        };
        let ticket = self.ticket;
        start(conn, "nvmf-compare-and-write", async move {
            let result = match (ticket, ns.forwards) {
                (Some(ticket), true) => {
                    forwarded::compare_and_write(&ns, ticket, at, (expect, new)).await
                }
                // Its data were asked for before it was to be forwarded.
                (None, true) => Err(VolumeError::Stalled),
                // It is served here by now, and has its stamps here.
                (_, false) => ns.volume.compare_and_write(at, expect, new, fua).await.1,
            };
            let (first, second) = match result {
                Ok(()) => (StatusField::SUCCESS, StatusField::SUCCESS),
                Err(VolumeError::Miscompare) => (status::COMPARE_FAILURE, status::FUSED_FAILED),
                Err(e) => (status::of_volume(e), status::FUSED_FAILED),
            };
            super::other_done(&ns, first);
            operation.complete_pair(first, second);
        });
    }
}
