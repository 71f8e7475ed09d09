//! Messages between the reactors' parts, those to ourselves included.

use std::rc::Rc;

use crate::nvmf::message::{Mail, Message};
use crate::reactor::ReactorId;

use super::Node;
use super::home_of;

impl Node {
    /// Sends a message; one to ourselves is handled soon, never within this call.
    pub fn send(&self, to: ReactorId, message: Message) {
        self.outgoing.borrow_mut().push_back((to, message));
        self.to_send.notify();
    }

    /// Sends to every reactor, this one included.
    pub fn broadcast(&self, mut message: impl FnMut() -> Message) {
        for to in 0..self.handle.reactors() {
            self.send(ReactorId(to), message());
        }
    }

    /// Sends to the home of a subsystem.
    pub fn send_home(&self, nqn: &str, message: Message) {
        self.send(home_of(nqn, self.handle.reactors()), message);
    }

    pub(super) async fn deliver(self: Rc<Self>) {
        loop {
            let next = self.outgoing.borrow_mut().pop_front();
            match next {
                None => self.to_send.notified().await,
                Some((to, message)) if to == self.id => self.receive(to, message),
                Some((to, message)) => self.endpoint.send(to, Mail(message)).await,
            }
        }
    }

    pub(super) fn receive(self: &Rc<Self>, from: ReactorId, message: Message) {
        let now = self.handle.now().0;
        match message {
            Message::Connect(candidate) => self.connect(*candidate),
            Message::Serve(granted) => self.serve(*granted),
            Message::QueueGone {
                nqn,
                home,
                cntlid,
                qid,
            } => {
                if qid != 0 {
                    self.queue_ended(from);
                }
                self.at_this_home(&nqn, home, |home| {
                    home.run(|s| s.queue_gone(cntlid, qid, now))
                });
            }
            Message::CloseQueues { nqn, cntlid, scope } => self.close_queues(&nqn, cntlid, scope),
            Message::Publish { home, view } => self.take_view(home, view),
            Message::Published {
                nqn,
                home,
                generation,
            } => {
                self.at_this_home(&nqn, home, |home| home.acknowledge(generation));
            }
            Message::Forget { nqn } => {
                self.views.borrow_mut().remove(&nqn);
            }
            Message::Activity { nqn, cntlid } => {
                self.at_home(&nqn, |home| home.run(|s| s.activity(cntlid, now)));
            }
            Message::Reservation {
                nqn,
                cmd,
                sqe,
                data,
            } => self.reserve(from, &nqn, cmd, &sqe, &data),
            Message::Complete { cmd, reply } => {
                let conn = self.connections.borrow().get(&cmd.connection).cloned();
                if let Some(conn) = conn {
                    conn.complete_reply(usize::MAX, cmd.cid, reply);
                }
            }
            Message::Failed { nqn, report } => {
                self.at_home(&nqn, |home| home.run(|s| s.log_error(report, now)));
            }
            Message::Ask { id, request } => {
                let node = self.clone();
                self.handle.spawn("nvmf-ask", async move {
                    let answer = node.answer(request).await;
                    node.send(from, Message::Answer { id, answer });
                });
            }
            Message::Answer { id, answer } => {
                if let Some(main) = &self.main {
                    main.answered(id, answer);
                }
            }
            Message::Event(event) => {
                if let Some(main) = &self.main {
                    main.event(event);
                }
            }
        }
    }
}
