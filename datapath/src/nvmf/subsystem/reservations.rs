//! Reservation commands of a subsystem's namespaces: from the I/O queue through the ledger, the commit and the views to the completion.

use super::Subsystem;
use super::view::Held;
use crate::nvmf::controller::events::EventKind;
use crate::nvmf::controller::status;
use crate::nvmf::reservation::{Ledger, Notice, Parsed, Request, Step, parse, report_extended};
use crate::nvmf::seam::{
    CommandRef, HostId, Nanos, Outcome, Reply, SqeBytes, StatusField, TargetEvent,
};
use keelblock_nvme::Sqe;
use std::collections::BTreeMap;

impl Subsystem {
    /// A reservation command of an I/O queue; see `seam`.
    pub fn reservation(
        &mut self,
        cmd: CommandRef,
        sqe: &SqeBytes,
        data: &[u8],
        now: Nanos,
    ) -> Outcome {
        let sqe = Sqe(*sqe);
        let Some(c) = self.controllers.get_mut(&cmd.cntlid).filter(|c| !c.closing) else {
            return Outcome::Done(Reply::status(status::ABORTED_SQ_DELETION));
        };
        c.keep_alive.touch(now);
        let host = c.host_id;
        self.reserve(cmd, host, &sqe, data, now)
            .unwrap_or_else(|refused| {
                self.controller(cmd.cntlid)
                    .errors
                    .push(cmd, refused, sqe.nsid(), 0);
                Outcome::Done(Reply::status(refused))
            })
    }

    fn reserve(
        &mut self,
        cmd: CommandRef,
        host: HostId,
        sqe: &Sqe,
        data: &[u8],
        now: Nanos,
    ) -> Result<Outcome, StatusField> {
        let ledger = self
            .ledgers
            .get(&sqe.nsid())
            .ok_or(status::INVALID_NAMESPACE)?;
        if let Some(refusal) = self.config.ana_state.refusal() {
            return Err(refusal);
        }
        match parse(sqe, data)? {
            Parsed::Report { bytes } => {
                let data = report_extended(ledger.state(), bytes, |h| self.controller_of(h));
                Ok(Outcome::Done(Reply {
                    data,
                    ..Reply::default()
                }))
            }
            Parsed::Change(op) => {
                self.change_reservation(sqe.nsid(), Request { cmd, host, op }, now);
                Ok(Outcome::Pending)
            }
        }
    }

    /// Gives a change to the namespace's ledger; its completion is an effect.
    pub(in crate::nvmf) fn change_reservation(&mut self, nsid: u32, request: Request, now: Nanos) {
        self.with_ledger(nsid, |l| l.submit(request, now));
    }

    /// Control has this generation of a namespace's state in the KVDB.
    pub fn commit_reservation(&mut self, nsid: u32, generation: u64, now: Nanos) {
        self.with_ledger(nsid, |l| l.committed(generation, now));
    }

    /// Control exports the namespace again with what the KVDB has.
    pub(super) fn reconcile_reservation(&mut self, nsid: u32, stored: &[u8], now: Nanos) {
        self.with_ledger(nsid, |l| l.reconcile(stored, now));
    }

    /// A change is in force on every reactor: its command completes, and those whom it concerns are told.
    pub(super) fn reservation_in_force(&mut self, nsid: u32, notices: &[Notice], now: Nanos) {
        self.with_ledger(nsid, |l| l.finish(now));
        for notice in notices {
            self.tell(nsid, notice);
        }
    }

    pub(super) fn expire_reservations(&mut self, now: Nanos) {
        let due: Vec<u32> = self
            .ledgers
            .iter()
            .filter(|(_, l)| l.deadline().is_some_and(|d| d <= now))
            .map(|(n, _)| *n)
            .collect();
        for nsid in due {
            self.with_ledger(nsid, |l| l.expire(now));
        }
    }

    /// Answers the commands that wait in the ledger of a namespace that is gone.
    pub(super) fn abandon(&mut self, nsid: u32, ledger: Ledger) {
        self.held
            .retain(|(_, h)| !matches!(h, Held::Reservation { nsid: n, .. } if *n == nsid));
        for cmd in ledger.into_commands() {
            self.complete(cmd, Reply::status(status::INVALID_NAMESPACE));
        }
    }

    fn with_ledger(&mut self, nsid: u32, run: impl FnOnce(&mut Ledger) -> Vec<Step>) {
        let Some(ledger) = self.ledgers.get_mut(&nsid) else {
            return;
        };
        for step in run(ledger) {
            self.take_step(nsid, step);
        }
    }

    fn take_step(&mut self, nsid: u32, step: Step) {
        match step {
            Step::Commit(generation, state) => {
                let nqn = self.config.nqn.clone();
                self.event(TargetEvent::ReservationChanged {
                    nqn,
                    nsid,
                    generation,
                    state,
                });
            }
            Step::Install(outcome) => {
                self.publish(BTreeMap::from([(nsid, outcome.drain)]));
                self.hold(Held::Reservation {
                    nsid,
                    notices: outcome.notices,
                });
            }
            Step::Complete(cmd, result) => {
                let status = match result {
                    Some(Ok(())) => StatusField::SUCCESS,
                    Some(Err(refusal)) => refusal.status(),
                    None => status::COMMAND_INTERRUPTED,
                };
                self.complete(cmd, Reply::status(status));
            }
        }
    }

    /// Every controller of the host gets the page and the event, unless the host masked it.
    fn tell(&mut self, nsid: u32, notice: &Notice) {
        let wanted = self
            .controllers
            .values_mut()
            .filter(|c| c.host_id == notice.host && !c.closing);
        let mut told = Vec::new();
        for c in wanted.filter(|c| !c.features.masks_notice(nsid, notice.kind as u8)) {
            c.notices.push(nsid, notice.kind);
            told.push(c.cntlid);
        }
        told.into_iter()
            .for_each(|id| self.raise(id, EventKind::ReservationLog));
    }

    fn controller_of(&self, host: &HostId) -> Option<u16> {
        self.controllers
            .values()
            .find(|c| c.host_id == *host && !c.closing)
            .map(|c| c.cntlid)
    }
}
