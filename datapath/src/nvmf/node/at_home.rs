//! What the home of a subsystem does: exports, Connects, reservations.

use std::rc::Rc;
use std::sync::Arc;

use keelblock_nvme::Sqe;

use crate::nvmf::conn::Role;
use crate::nvmf::connect;
use crate::nvmf::handshake;
use crate::nvmf::home::Home;
use crate::nvmf::message::{Answer, Candidate, Granted, Message, Request};
use crate::nvmf::seam::{CATTR_DISABLE_SQ_FLOW, CommandRef, ConnectError, ExportConfig, Outcome};
use crate::nvmf::status;
use crate::nvmf::subsystem::Subsystem;
use crate::reactor::ReactorId;

use super::Node;
use super::home_of;

impl Node {
    pub(super) fn at_home(&self, nqn: &str, then: impl FnOnce(&Rc<Home>)) {
        let home = self.homes.borrow().get(nqn).cloned();
        if let Some(home) = home {
            then(&home);
        }
    }

    /// The same, unless another of that name took its place meanwhile.
    pub(super) fn at_this_home(&self, nqn: &str, number: u64, then: impl FnOnce(&Rc<Home>)) {
        self.at_home(nqn, |home| {
            if home.number == number {
                then(home);
            }
        });
    }

    /// Takes in a subsystem whose home this is.
    pub(in crate::nvmf) fn add_home(
        self: &Rc<Self>,
        nqn: Arc<str>,
        subsystem: Subsystem,
    ) -> Rc<Home> {
        let home = Home::new(self, nqn.clone(), self.next_connection(), subsystem);
        self.homes.borrow_mut().insert(nqn, home.clone());
        home
    }

    pub(super) async fn answer(self: &Rc<Self>, request: Request) -> Answer {
        let now = self.handle.now().0;
        let find = |nqn: &str| self.homes.borrow().get(nqn).cloned();
        match request {
            Request::Export(config) => {
                let home = match find(&config.nqn) {
                    Some(home) => match home.run(|s| s.update(*config, now)) {
                        Ok(()) => home,
                        Err(refused) => return Answer::Refused(refused),
                    },
                    None => {
                        let nqn = config.nqn.clone();
                        match Subsystem::new(*config, &self.identity, now) {
                            Ok(subsystem) => self.add_home(nqn, subsystem),
                            Err(refused) => return Answer::Refused(refused),
                        }
                    }
                };
                home.publish(home.look(|s| s.view()));
                home.run(|_| ());
                home.settle().await;
                Answer::Done
            }
            Request::Unexport { nqn } => {
                let home = self.homes.borrow_mut().remove(&nqn);
                if let Some(home) = home {
                    home.run(|s| s.remove(now));
                    home.remove();
                    self.broadcast(|| Message::Forget { nqn: nqn.clone() });
                }
                Answer::Done
            }
            Request::Inspect { nqn } => Answer::Export(
                find(&nqn)
                    .map(|home| Box::new(home.look(|s| (s.config().clone(), s.controllers())))),
            ),
            Request::CommitReservation {
                nqn,
                nsid,
                generation,
            } => {
                if let Some(home) = find(&nqn) {
                    home.run(|s| s.commit_reservation(nsid, generation, now));
                }
                Answer::Done
            }
        }
    }

    /// A connection asks for a queue: to the home of its subsystem with it.
    pub fn admit(&self, candidate: Candidate) {
        let home = home_of(&candidate.request.subnqn, self.handle.reactors());
        self.send(home, Message::Connect(Box::new(candidate)));
    }

    pub(super) fn connect(self: &Rc<Self>, candidate: Candidate) {
        let home = self
            .homes
            .borrow()
            .get(candidate.request.subnqn.as_str())
            .cloned();
        let request = &candidate.request;
        let now = self.handle.now().0;
        let unknown = ConnectError {
            status: status::CONNECT_PARAMETERS,
            ipo: 256,
            in_data: true,
        };
        let granted = home.as_ref().ok_or(unknown).and_then(|home| {
            home.run(|s| {
                if request.qid == 0 {
                    s.connect_admin(request, now)
                } else {
                    s.connect_io(request, now)
                }
            })
        });
        let (home, grant) = match (home, granted) {
            (Some(home), Ok(grant)) => (home, grant),
            (_, Err(refused)) => {
                let node = self.clone();
                self.handle.spawn("nvmf-handshake", async move {
                    handshake::again(node, candidate, connect::refusal(refused)).await;
                });
                return;
            }
            (None, Ok(_)) => unreachable!("a grant comes from a home"),
        };
        debug_assert_eq!(
            grant.sq_flow_control,
            request.cattr & CATTR_DISABLE_SQ_FLOW == 0
        );
        let Candidate {
            socket,
            params,
            rest,
            request,
            cid,
            ..
        } = candidate;
        let (nqn, host, qid) = (home.nqn.clone(), request.hostid, request.qid);
        let granted = Granted {
            socket,
            params,
            rest,
            nqn,
            host,
            qid,
            cid,
            grant,
            home: home.number,
        };
        if qid == 0 {
            self.run_connection(granted, Role::Admin(home));
        } else {
            let owner = home.look(|s| self.only_owner(s.config()));
            let to = self.reactor_for_queue(owner);
            self.send(to, Message::Serve(Box::new(granted)));
        }
    }

    /// The reactor that owns all lanes of all namespaces, if one does.
    fn only_owner(&self, config: &ExportConfig) -> Option<ReactorId> {
        let mut owners = config.namespaces.iter().map(|ns| {
            let volume = self.volumes.open(&ns.volume);
            volume.and_then(|v| v.only_owner())
        });
        let first = owners.next()??;
        owners.all(|owner| owner == Some(first)).then_some(first)
    }

    /// Where an I/O queue goes: to the owner of what it will use, which saves each operation two messages, unless that reactor has far more
    /// queues than another; else round robin.
    fn reactor_for_queue(&self, owner: Option<ReactorId>) -> ReactorId {
        let mut queues = self.queues.borrow_mut();
        let least = (0..queues.len())
            .min_by_key(|&r| queues[r])
            .expect("there are reactors");
        let to = match owner.map(|owner| usize::from(owner.0)) {
            Some(owner) if queues[owner] <= 2 * queues[least] => owner,
            Some(_) => least,
            None => {
                let next = self.next_reactor.get();
                self.next_reactor.set((next + 1) % self.handle.reactors());
                usize::from(next)
            }
        };
        queues[to] += 1;
        ReactorId(to as u16)
    }

    /// A queue that was handed to a reactor has ended.
    pub(super) fn queue_ended(&self, reactor: ReactorId) {
        let mut queues = self.queues.borrow_mut();
        let count = &mut queues[usize::from(reactor.0)];
        *count = count.saturating_sub(1);
    }

    pub(super) fn reserve(
        &self,
        from: ReactorId,
        nqn: &str,
        cmd: CommandRef,
        sqe: &Sqe,
        data: &[u8],
    ) {
        let now = self.handle.now().0;
        let home = self.homes.borrow().get(nqn).cloned();
        let outcome = match home {
            Some(home) => home.run(|s| s.reservation(cmd, &sqe.0, data, now)),
            None => Outcome::Done(crate::nvmf::seam::Reply::status(status::INVALID_NAMESPACE)),
        };
        if let Outcome::Done(mut reply) = outcome {
            reply.data.truncate(Home::data_room(sqe));
            self.send(from, Message::Complete { cmd, reply });
        }
    }
}
