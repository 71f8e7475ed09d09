//! Beats: how a session that is half-open is noticed.
//!
//! A peer that is taken off the list of nodes is noticed here too. They are Heartbeats of channel 0, from the initiator, answered with Heard by the session itself; they hold no lease.

use std::rc::Rc;

use super::down::Down;
use super::limits::{BEAT, BEATS_MISSED_MAX};
use super::state::Session;
use crate::replication::wire::WireError;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::hello::Side;

/// Body of a Heartbeat without settled entries: number, when it was sent, and zeroes.
const BEAT_BYTES: usize = 32;
/// Body of a Heard: number and time again, and zeroes.
const ECHO_BYTES: usize = 24;

/// Sends beats, and ends a session in which nothing comes.
pub(super) async fn beat(session: Rc<Session>) {
    let (mut number, mut heard, mut missed) = (0_u64, session.heard.get(), 0);
    loop {
        let slept = session.unless_ended(session.handle.sleep(BEAT)).await;
        if slept.is_none() {
            return;
        }
        if !session.is_listed() {
            return session.end(Down::Unlisted);
        }
        if session.side == Side::Initiator {
            number += 1;
            let sent = session.handle.now().0;
            let fill = |body: &mut Vec<u8>| {
                body.extend_from_slice(&number.to_le_bytes());
                body.extend_from_slice(&sent.to_le_bytes());
                body.resize(BEAT_BYTES, 0);
            };
            session.push_own(Kind::Heartbeat, (0, 0), fill);
        }
        let now = session.heard.get();
        if now != heard {
            (heard, missed) = (now, 0);
            continue;
        }
        missed += 1;
        if missed >= BEATS_MISSED_MAX {
            let beats = missed;
            return session.end(match session.starved.get() {
                true => Down::Buffers { beats },
                false => Down::Silent { beats },
            });
        }
    }
}

/// A frame of channel 0.
pub(super) fn came(session: &Session, kind: Kind, body: &[u8]) -> Result<(), Down> {
    let (expected, what) = match kind {
        Kind::Heartbeat => (BEAT_BYTES, "beat"),
        _ => (ECHO_BYTES, "echo of a beat"),
    };
    if body.len() < expected {
        let (need, have) = (expected, body.len());
        return Err(WireError::Short { what, need, have }.into());
    }
    if body.len() > expected {
        let extra = body.len() - expected;
        return Err(WireError::Trailing { what, extra }.into());
    }
    if let Some(at) = body[16..].iter().position(|&b| b != 0) {
        return Err(WireError::Reserved { what, at: at + 16 }.into());
    }
    if kind == Kind::Heartbeat {
        let fill = |out: &mut Vec<u8>| {
            out.extend_from_slice(&body[..16]);
            out.resize(ECHO_BYTES, 0);
        };
        session.push_own(Kind::Heard, (0, 0), fill);
    }
    Ok(())
}
