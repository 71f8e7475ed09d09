//! The reservation of one namespace, and the order of its changes.
//!
//! One change is under way at a time; it goes through `Committing` if it persists, then its result is installed and published, and it
//! ends when every reactor has the view (`finish`). Others wait in order. The commit rules and crash cases: `docs/reservations.md`.

use super::codec;
use super::state::{Op, Outcome, Refusal, State};
use crate::nvmf::seam::{CommandRef, HostId, Nanos};
use std::collections::VecDeque;

/// How long a command waits for its commit.
pub const COMMIT_TIMEOUT_NS: Nanos = 5_000_000_000;
/// Commands that wait behind the one under way; one more is interrupted at once.
pub const MAX_WAITING: usize = 16;

/// A change that a host asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The command to complete.
    pub cmd: CommandRef,
    /// Who.
    pub host: HostId,
    /// What.
    pub op: Op,
}

/// What the owner of the ledger must do, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Hand these bytes to control as this generation.
    Commit(u64, Vec<u8>),
    /// The table has changed: publish it, draining these hosts, and call `finish` when it is in force everywhere.
    Install(Outcome),
    /// Complete the command: accepted, refused, or interrupted (`None`: send again).
    Complete(CommandRef, Option<Result<(), Refusal>>),
}

#[derive(Debug)]
enum Stage {
    Idle,
    Committing {
        request: Request,
        outcome: Outcome,
        generation: u64,
        deadline: Nanos,
    },
    Publishing {
        request: Request,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    state: State,
    /// The newest commit generation that was handed out, or is in the KVDB.
    commit: u64,
    /// The newest that is known to be in the KVDB.
    confirmed: u64,
    stage: Stage,
    waiting: VecDeque<Request>,
}

impl Ledger {
    /// The ledger that the stored bytes describe.
    pub fn restore(bytes: &[u8]) -> Result<Self, codec::DecodeError> {
        let (state, commit) = codec::decode(bytes)?;
        Ok(Ledger {
            state,
            commit,
            confirmed: commit,
            stage: Stage::Idle,
            waiting: VecDeque::new(),
        })
    }

    /// The table in force.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A host asks for a change.
    pub fn submit(&mut self, request: Request, now: Nanos) -> Vec<Step> {
        if self.waiting.len() == MAX_WAITING {
            return vec![Step::Complete(request.cmd, None)];
        }
        self.waiting.push_back(request);
        self.advance(now)
    }

    /// Control has `generation` in the KVDB.
    pub fn committed(&mut self, generation: u64, now: Nanos) -> Vec<Step> {
        self.confirmed = self.confirmed.max(generation.min(self.commit));
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Committing {
                request,
                outcome,
                generation: g,
                ..
            } if g == generation => {
                let mut steps = self.install(request, outcome);
                steps.extend(self.advance(now));
                steps
            }
            // A late or repeated confirmation: the command has had its answer.
            other => {
                self.stage = other;
                Vec::new()
            }
        }
    }

    /// Control exports the namespace again and says what the KVDB has: what went astray between the two is made good.
    pub fn reconcile(&mut self, stored: &[u8], now: Nanos) -> Vec<Step> {
        let generation = codec::decode(stored).map_or(0, |(_, generation)| generation);
        if generation == self.commit {
            return self.committed(generation, now);
        }
        if generation == self.confirmed || matches!(self.stage, Stage::Committing { .. }) {
            return Vec::new();
        }
        self.commit = self.commit.max(generation);
        vec![self.next_commit(&self.state.persistent())]
    }

    /// What the last `Install` brought is in force on every reactor.
    pub fn finish(&mut self, now: Nanos) -> Vec<Step> {
        let Stage::Publishing { request } = self.stage else {
            unreachable!("a publication that nobody started");
        };
        self.stage = Stage::Idle;
        let mut steps = vec![Step::Complete(request.cmd, Some(Ok(())))];
        steps.extend(self.advance(now));
        steps
    }

    /// When `expire` is due.
    pub fn deadline(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Committing { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// Gives up on a commit that took too long, and hands out the state before it, lest the KVDB keep what no host was told.
    pub fn expire(&mut self, now: Nanos) -> Vec<Step> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Committing {
                request, deadline, ..
            } if deadline <= now => {
                let mut steps = vec![Step::Complete(request.cmd, None)];
                steps.push(self.next_commit(&self.state.persistent()));
                steps.extend(self.advance(now));
                steps
            }
            other => {
                self.stage = other;
                Vec::new()
            }
        }
    }

    /// The commands that wait, of a namespace that is gone.
    pub fn into_commands(self) -> impl Iterator<Item = CommandRef> {
        let current = match self.stage {
            Stage::Idle => None,
            Stage::Committing { request, .. } | Stage::Publishing { request } => Some(request),
        };
        current.into_iter().chain(self.waiting).map(|r| r.cmd)
    }

    /// Starts what waits, until one has to wait for somebody.
    fn advance(&mut self, now: Nanos) -> Vec<Step> {
        let mut steps = Vec::new();
        while matches!(self.stage, Stage::Idle) {
            let Some(request) = self.waiting.pop_front() else {
                break;
            };
            match self.state.apply(request.host, request.op) {
                Err(refusal) => steps.push(Step::Complete(request.cmd, Some(Err(refusal)))),
                Ok(outcome) if outcome.next == self.state => {
                    steps.push(Step::Complete(request.cmd, Some(Ok(()))))
                }
                Ok(outcome) if outcome.next.ptpl || self.state.ptpl => {
                    steps.push(self.next_commit(&outcome.next.persistent()));
                    let deadline = now + COMMIT_TIMEOUT_NS;
                    self.stage = Stage::Committing {
                        request,
                        outcome,
                        generation: self.commit,
                        deadline,
                    };
                }
                Ok(outcome) => steps.extend(self.install(request, outcome)),
            }
        }
        steps
    }

    fn next_commit(&mut self, state: &State) -> Step {
        self.commit += 1;
        Step::Commit(self.commit, codec::encode(state, self.commit))
    }

    fn install(&mut self, request: Request, outcome: Outcome) -> Vec<Step> {
        let concerns_io = outcome.next.view() != self.state.view() || !outcome.drain.is_empty();
        self.state = outcome.next.clone();
        if concerns_io || !outcome.notices.is_empty() {
            self.stage = Stage::Publishing { request };
            return vec![Step::Install(outcome)];
        }
        vec![Step::Complete(request.cmd, Some(Ok(())))]
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::PtplChange;
    use super::*;
    use crate::nvmf::seam::ReservationType;

    const A: HostId = [1; 16];

    fn request(cid: u16, op: Op) -> Request {
        Request {
            cmd: CommandRef {
                reactor: 0,
                connection: 1,
                cntlid: 1,
                qid: 1,
                cid,
            },
            host: A,
            op,
        }
    }

    fn register(cid: u16, ptpl: PtplChange) -> Request {
        request(cid, Op::Register { new_key: 5, ptpl })
    }

    fn acquire(cid: u16) -> Request {
        request(
            cid,
            Op::Acquire {
                key: 5,
                kind: ReservationType::WriteExclusive,
            },
        )
    }

    fn completed(steps: &[Step]) -> Vec<(u16, Option<Result<(), Refusal>>)> {
        let done = |s: &Step| match s {
            Step::Complete(c, r) => Some((c.cid, *r)),
            _ => None,
        };
        steps.iter().filter_map(done).collect()
    }

    #[test]
    fn without_ptpl_nothing_is_committed() {
        let mut l = Ledger::restore(&[]).unwrap();
        assert_eq!(
            l.submit(register(1, PtplChange::Keep), 0),
            [Step::Complete(
                request(1, Op::Persist(false)).cmd,
                Some(Ok(()))
            )]
        );
        let steps = l.submit(acquire(2), 0);
        assert!(
            matches!(&steps[..], [Step::Install(o)] if o.next.holder == Some(A)),
            "{steps:?}"
        );
        assert_eq!(completed(&l.finish(0)), [(2, Some(Ok(())))]);
        assert_eq!(l.deadline(), None);
    }

    #[test]
    fn a_persistent_change_waits_for_its_commit() {
        let mut l = Ledger::restore(&[]).unwrap();
        let steps = l.submit(register(1, PtplChange::Set), 100);
        let [Step::Commit(1, bytes)] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert!(l.state().registrants.is_empty(), "not before the commit");
        let restored = Ledger::restore(bytes).unwrap();
        assert_eq!(
            (restored.state().registrants.len(), restored.commit),
            (1, 1)
        );
        assert_eq!(l.submit(acquire(2), 101), [], "waits its turn");
        assert_eq!(l.committed(7, 102), [], "not ours");
        let steps = l.committed(1, 103);
        assert_eq!(completed(&steps), [(1, Some(Ok(())))]);
        assert!(matches!(steps[1], Step::Commit(2, _)));
        assert!(matches!(l.committed(2, 104)[..], [Step::Install(_)]));
        assert_eq!(completed(&l.finish(105)), [(2, Some(Ok(())))]);
    }

    #[test]
    fn a_commit_that_never_comes_is_taken_back() {
        let mut l = Ledger::restore(&[]).unwrap();
        l.submit(register(1, PtplChange::Set), 0);
        assert_eq!(l.deadline(), Some(COMMIT_TIMEOUT_NS));
        assert_eq!(l.expire(COMMIT_TIMEOUT_NS - 1), []);
        let steps = l.expire(COMMIT_TIMEOUT_NS);
        assert_eq!(completed(&steps), [(1, None)]);
        let Step::Commit(2, bytes) = &steps[1] else {
            panic!("{steps:?}")
        };
        assert_eq!(codec::decode(bytes), Ok((State::default(), 2)));
        assert_eq!(l.committed(1, 0), [], "late");
        assert!(l.state().registrants.is_empty());
    }

    #[test]
    fn clearing_ptpl_stores_an_empty_table() {
        let mut l = Ledger::restore(&[]).unwrap();
        l.submit(register(1, PtplChange::Set), 0);
        l.committed(1, 0);
        let steps = l.submit(request(2, Op::Persist(false)), 0);
        let [Step::Commit(2, bytes)] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!(codec::decode(bytes), Ok((State::default(), 2)));
        assert_eq!(completed(&l.committed(2, 0)), [(2, Some(Ok(())))]);
        assert_eq!((l.state().registrants.len(), l.state().ptpl), (1, false));
    }

    #[test]
    fn a_confirmation_that_was_lost_comes_with_the_next_export() {
        let mut l = Ledger::restore(&[]).unwrap();
        let steps = l.submit(register(1, PtplChange::Set), 0);
        let [Step::Commit(1, bytes)] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!(l.reconcile(&[], 0), [], "not there yet");
        assert_eq!(completed(&l.reconcile(bytes, 0)), [(1, Some(Ok(())))]);
        assert_eq!(l.reconcile(bytes, 0), []);
    }

    #[test]
    fn what_the_kvdb_has_and_nobody_was_told_is_taken_back() {
        let mut l = Ledger::restore(&[]).unwrap();
        let steps = l.submit(register(1, PtplChange::Set), 0);
        let [Step::Commit(1, bytes)] = &steps[..] else {
            panic!("{steps:?}")
        };
        // The state before goes out as generation 2, and is lost.
        l.expire(COMMIT_TIMEOUT_NS);
        let steps = l.reconcile(bytes, 0);
        let [Step::Commit(3, bytes)] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!(codec::decode(bytes), Ok((State::default(), 3)));
        assert_eq!(l.reconcile(bytes, 0), []);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut l = Ledger::restore(&[]).unwrap();
        l.submit(register(0, PtplChange::Set), 0);
        for cid in 1..=MAX_WAITING as u16 {
            assert_eq!(l.submit(acquire(cid), 0), []);
        }
        assert_eq!(completed(&l.submit(acquire(99), 0)), [(99, None)]);
    }
}
