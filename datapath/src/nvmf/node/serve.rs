//! What a reactor does that connections are handed to: serving, ending, views.

use std::rc::Rc;
use std::sync::Arc;

use crate::nvmf::conn::{Connection, Parts, Role, reader};
use crate::nvmf::connect;
use crate::nvmf::limits::DRAIN_WARNING;
use crate::nvmf::message::{Granted, Message};
use crate::nvmf::seam::{HostId, QueueScope, ViewSpec};
use crate::nvmf::view::{View, ViewCell};

use super::Node;

impl Node {
    pub(super) fn serve(self: &Rc<Self>, granted: Granted) {
        let cell = self.view_cell(&granted.nqn);
        self.run_connection(granted, Role::Io(cell));
    }

    pub(super) fn run_connection(self: &Rc<Self>, granted: Granted, role: Role) {
        let Granted {
            socket,
            params,
            rest,
            nqn,
            host,
            qid,
            cid,
            grant,
            home,
        } = granted;
        let socket = self.handle.adopt(socket);
        let conn = Connection::new(
            self,
            Parts {
                socket,
                params,
                role,
                nqn,
                host,
                home,
                grant,
                qid,
            },
        );
        self.connections.borrow_mut().insert(conn.id, conn.clone());
        self.keep_steady();
        self.sockets.set(self.sockets.get() + 1);
        let reply = connect::granted(grant.cntlid);
        conn.put_completion(cid, reply.dw0, reply.dw1, reply.status);
        let (node, writer) = (self.clone(), conn.clone());
        self.handle
            .spawn("nvmf-writer", async move { writer.write().await });
        self.handle.spawn("nvmf-reader", async move {
            if let Role::Io(cell) = &conn.role {
                cell.queue(true);
            }
            reader::read(conn.clone(), rest).await;
            node.end_connection(conn).await;
        });
    }

    /// Waits for the commands in flight, forgets the connection, and tells home.
    pub(super) async fn end_connection(&self, conn: Rc<Connection>) {
        conn.release();
        while conn.operations.get() > 0 {
            if self
                .handle
                .timeout(DRAIN_WARNING, conn.drained.notified())
                .await
                .is_err()
            {
                tracing::warn!(nqn = %conn.nqn, peer = %conn.socket.peer(), commands = conn.operations.get(),
                    "a closed connection still has commands in flight");
            }
        }
        if let Role::Io(cell) = &conn.role {
            cell.queue(false);
        }
        self.connections.borrow_mut().remove(&conn.id);
        self.keep_steady();
        self.sockets.set(self.sockets.get() - 1);
        let (cntlid, qid) = {
            let queue = conn.queue.borrow();
            (queue.grant.cntlid, queue.qid)
        };
        self.send_home(
            &conn.nqn,
            Message::QueueGone {
                nqn: conn.nqn.clone(),
                home: conn.home,
                cntlid,
                qid,
            },
        );
    }

    pub(super) fn close_queues(&self, nqn: &str, cntlid: u16, scope: QueueScope) {
        let ours = |conn: &&Rc<Connection>| {
            let queue = conn.queue.borrow();
            *conn.nqn == *nqn
                && queue.grant.cntlid == cntlid
                && (scope == QueueScope::All || queue.qid != 0)
        };
        let all: Vec<Rc<Connection>> = self
            .connections
            .borrow()
            .values()
            .filter(ours)
            .cloned()
            .collect();
        all.iter().for_each(|conn| conn.close());
    }

    /// The cell of a subsystem's view here.
    pub fn view_cell(&self, nqn: &Arc<str>) -> Rc<ViewCell> {
        self.views
            .borrow_mut()
            .entry(nqn.clone())
            .or_insert_with(|| Rc::new(ViewCell::new()))
            .clone()
    }

    /// See [`Target::allows`](crate::nvmf::target::Target::allows).
    pub fn allows(
        &self,
        volume: &[u8; 16],
        host: &HostId,
        write: bool,
    ) -> Option<(Arc<str>, bool)> {
        let views = self.views.borrow();
        views.iter().find_map(|(nqn, cell)| {
            let view = cell.get();
            let mut all = view.namespaces.iter();
            let ns = all.find(|ns| ns.volume.id().0 == *volume)?;
            Some((nqn.clone(), ns.reservation.allows(host, write)))
        })
    }

    /// Puts a view in force, and acknowledges when no command that it fences off is in flight.
    pub(super) fn take_view(self: &Rc<Self>, home: u64, spec: Arc<ViewSpec>) {
        let cell = self.view_cell(&spec.nqn);
        if spec.generation >= cell.get().generation {
            let view = View::new(&spec, &*self.volumes);
            if view.namespaces.iter().any(|ns| ns.volume.replicated()) {
                // Looks at the clock from now on, while there are hosts.
                self.steady();
                self.keep_steady();
            }
            cell.set(view);
        }
        let done = Message::Published {
            nqn: spec.nqn.clone(),
            home,
            generation: spec.generation,
        };
        let fenced: Vec<HostId> = spec
            .namespaces
            .iter()
            .flat_map(|ns| ns.drain.iter().copied())
            .collect();
        if fenced.is_empty() {
            self.send_home(&spec.nqn, done);
            return;
        }
        let node = self.clone();
        self.handle.spawn("nvmf-fence", async move {
            node.drain(&spec.nqn, &fenced).await;
            node.send_home(&spec.nqn, done);
        });
    }

    /// Waits until no operation of these hosts on a subsystem is in flight here.
    pub(super) async fn drain(&self, nqn: &str, hosts: &[HostId]) {
        loop {
            let busy = |conn: &&Rc<Connection>| {
                *conn.nqn == *nqn && hosts.contains(&conn.host) && conn.operations.get() > 0
            };
            let next = self.connections.borrow().values().find(busy).cloned();
            match next {
                None => break,
                Some(conn) => conn.drained.notified().await,
            }
        }
        self.foreign.drained(nqn, hosts).await;
    }
}
