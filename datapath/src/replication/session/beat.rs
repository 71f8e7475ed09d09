//! Beats: how a session that is half-open is noticed.
//!
//! A peer that is taken off the list of nodes is noticed here too. They are Heartbeats of channel 0, from the initiator, answered with Heard (result 1: no lease) by the session itself.

use std::rc::Rc;

use super::down::Down;
use super::limits::{BEAT, BEATS_MISSED_MAX};
use super::state::Session;
use crate::replication::wire::WireError;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::heart::{Beat, Heard, Heartbeat, encode_heartbeat};
use crate::replication::wire::hello::Side;

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
            let beat = Beat {
                number,
                sent_ns: sent,
                ..Beat::default()
            };
            session.push_own(Kind::Heartbeat, (0, 0), |out| {
                encode_heartbeat(out, &beat, &[]);
            });
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
    if kind != Kind::Heartbeat {
        // That something came is all that counts.
        Heard::decode(body)?;
        return Ok(());
    }
    let Heartbeat { beat, settled } = Heartbeat::decode(body)?;
    // A session has no set, no lease and no lanes.
    let Beat {
        number, sent_ns, ..
    } = beat;
    let plain = Beat {
        number,
        sent_ns,
        ..Beat::default()
    };
    if beat != plain || settled.iter().next().is_some() {
        let (what, value) = ("a beat that speaks of a volume: its number", number);
        return Err(WireError::Value { what, value }.into());
    }
    let heard = Heard {
        number,
        sent_ns,
        lease: false,
    };
    session.push_own(Kind::Heard, (0, 0), |out| heard.put(out));
    Ok(())
}
