//! Time limits on what hosts owe: data for an R2T, room for what we send. One task per reactor, asleep while nobody owes anything.

use std::rc::Rc;
use std::time::Duration;

use super::conn::Connection;
use super::limits::{R2T_TIMEOUT, R2T_TIMEOUT_SCARCE, SEND_TIMEOUT};
use super::node::Node;
use crate::reactor::Nanos;

/// How often it looks: a limit is exceeded by at most this.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks while somebody owes something, for ever.
pub async fn watch(node: Rc<Node>) {
    loop {
        node.watched().await;
        loop {
            node.handle.sleep(INTERVAL).await;
            let now = node.handle.now();
            let mut owed = false;
            let limit = if node.buffers_are_scarce() {
                R2T_TIMEOUT_SCARCE
            } else {
                R2T_TIMEOUT
            };
            for conn in node.connections() {
                match overdue(&conn, now, limit) {
                    None => {
                        owed |=
                            conn.owing_since.get().is_some() || conn.blocked_since.get().is_some()
                    }
                    Some(what) => {
                        tracing::warn!(peer = %conn.socket.peer(), nqn = %conn.nqn, "connection closed: {what}");
                        conn.close();
                    }
                }
            }
            if !owed {
                break;
            }
        }
    }
}

fn overdue(conn: &Connection, now: Nanos, r2t_limit: Duration) -> Option<&'static str> {
    let beyond = |since: Option<Nanos>, limit| since.is_some_and(|since| now.since(since) > limit);
    if conn.is_closed() {
        None
    } else if beyond(conn.owing_since.get(), r2t_limit) {
        Some("the host does not send the data of an R2T")
    } else if beyond(conn.blocked_since.get(), SEND_TIMEOUT) {
        Some("the host does not read")
    } else {
        None
    }
}
