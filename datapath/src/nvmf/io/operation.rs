//! A command that runs as an operation of the reactor.

use std::future::Future;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use crate::nvmf::conn::Connection;
use crate::nvmf::seam::StatusField;
use crate::nvmf::status;
use crate::reactor::Nanos;

/// Held by the operation's future. Dropped without an answer - the slab was full - it asks the host to retry.
pub struct Operation {
    conn: Rc<Connection>,
    cid: u16,
    /// The second command of a fused pair.
    second: Option<u16>,
    begun_at: Nanos,
    answered: bool,
}

impl Operation {
    /// Of a command whose identifier is in the table of commands in flight.
    pub fn new(conn: &Rc<Connection>, cid: u16, second: Option<u16>) -> Self {
        conn.operation_begins();
        Self {
            conn: conn.clone(),
            cid,
            second,
            begun_at: conn.node.handle.now(),
            answered: false,
        }
    }

    /// The connection.
    pub fn conn(&self) -> &Rc<Connection> {
        &self.conn
    }

    /// Nanoseconds since it began.
    pub fn elapsed_ns(&self) -> u64 {
        self.conn.node.handle.now().since(self.begun_at).as_nanos() as u64
    }

    /// The command goes on by other ways.
    pub fn leave(mut self) -> Rc<Connection> {
        self.answered = true;
        self.conn.clone()
    }

    /// Completes the command.
    pub fn complete(mut self, status: StatusField) {
        self.answered = true;
        self.conn.complete(self.cid, status);
    }

    /// Completes both commands of a pair.
    pub fn complete_pair(mut self, first: StatusField, second: StatusField) {
        self.answered = true;
        self.conn.complete(self.cid, first);
        if let Some(cid) = self.second {
            self.conn.complete(cid, second);
        }
    }

    /// Completes a read.
    pub fn complete_read(mut self, buffer: Buffer, len: usize) {
        self.answered = true;
        self.conn.complete_read(self.cid, buffer, len);
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !self.answered {
            self.conn.complete(self.cid, status::INTERRUPTED);
            if let Some(cid) = self.second {
                self.conn.complete(cid, status::INTERRUPTED);
            }
        }
        self.conn.operation_ended();
    }
}

/// Starts an operation. If there is no slot for it, the [`Operation`] in it answers.
pub fn start(conn: &Connection, name: &'static str, operation: impl Future<Output = ()> + 'static) {
    let _ = conn.node.handle.start(name, operation);
}
