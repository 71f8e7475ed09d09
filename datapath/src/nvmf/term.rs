//! Telling a host that its connection ends because of what it sent.

use std::io::IoSlice;
use std::rc::Rc;

use keelblock_nvme::pdu::{PduError, PduType, Sender, TERM_DATA_MAX, TermReq};

use super::conn::Connection;
use super::limits::TERM_TIMEOUT;
use crate::reactor::{Handle, Socket};

/// Ends a connection that serves a queue: sends a C2HTermReq behind what is in the outbox, and closes.
pub async fn terminate(conn: &Rc<Connection>, error: PduError, offender: &[u8]) {
    // what the socket has not taken can not be followed by anything in time: the host does not read
    let sent = conn.flush().unwrap_or(false);
    conn.mute();
    if sent {
        say(&conn.node.handle, &conn.socket, error, offender).await;
    }
    conn.socket.shutdown();
}

/// Sends a C2HTermReq and gives the host a moment to read it: closing with unread bytes would reset the connection and take it back.
pub async fn say(handle: &Handle, socket: &Socket, error: PduError, offender: &[u8]) {
    let mut pdu = [0; PduType::C2HTermReq.header_len() + TERM_DATA_MAX];
    let len = TermReq::encode(Sender::Controller, &error, offender, &mut pdu);
    if socket.try_send(&[IoSlice::new(&pdu[..len])]).is_err() {
        return;
    }
    let _ = handle
        .timeout(TERM_TIMEOUT, async {
            let mut rest = vec![0; 4096];
            while matches!(socket.recv(&mut rest).await, Ok(n) if n > 0) {}
        })
        .await;
}
