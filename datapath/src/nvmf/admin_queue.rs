//! Commands of an admin queue: fetch their data, give them to the subsystem, send what it answers.

use std::rc::Rc;

use super::conn::Connection;
use super::conn::reader::Capsule;
use super::conn::transfer::Transfer;
use super::home::Home;
use super::seam::{IoCounters, MAX_TRANSFER_BYTES, Outcome, SqeBytes, StatusField};
use super::sqe::{Direction, Sgl, Sqe};
use super::status;

/// Get Log Page, and the page that wants counters.
const GET_LOG_PAGE: u8 = 0x02;
const LOG_SMART: u32 = 0x02;

/// A capsule of an admin queue.
pub fn command(conn: &Rc<Connection>, home: &Rc<Home>, sqe: &SqeBytes, capsule: Capsule<'_>) {
    let s = Sqe(sqe);
    if let Err(refused) = check(s) {
        conn.put_status(s.cid(), refused);
        return;
    }
    conn.queue.borrow_mut().begin(s.cid());
    match (s.direction(), s.sgl()) {
        (Direction::FromHost, Sgl::Transport { len }) if len > 0 => conn.fetch(sqe, len as usize),
        _ => run(conn, home, sqe, capsule.data),
    }
}

/// All data of a transfer has come.
pub fn data_arrived(conn: &Rc<Connection>, home: &Rc<Home>, transfer: Transfer) {
    if transfer.damaged {
        conn.complete(transfer.cid(), status::TRANSPORT);
        return;
    }
    run(conn, home, &transfer.sqe, &transfer.buffer[..transfer.len]);
}

/// What the transport itself asks of an admin command's SGL.
fn check(sqe: Sqe<'_>) -> Result<(), StatusField> {
    if !sqe.uses_sgl() {
        return Err(status::INVALID_FIELD);
    }
    match sqe.direction() {
        Direction::None | Direction::Both => Ok(()),
        _ if sqe.sgl().len() as usize > MAX_TRANSFER_BYTES => Err(status::INVALID_FIELD),
        Direction::ToHost if matches!(sqe.sgl(), Sgl::Capsule { len: 1.., .. }) => {
            Err(status::SGL_TYPE)
        }
        _ if sqe.sgl() == Sgl::Other && !sqe.empty_sgl() => Err(status::SGL_TYPE),
        _ => Ok(()),
    }
}

fn run(conn: &Rc<Connection>, home: &Rc<Home>, sqe: &SqeBytes, data: &[u8]) {
    let s = Sqe(sqe);
    let now = conn.node.handle.now().0;
    let counters =
        (s.opcode() == GET_LOG_PAGE && s.cdw(10) & 0xff == LOG_SMART).then(|| counters(conn, home));
    let cmd = conn.command_ref(s.cid());
    let outcome = home.run(|subsystem| {
        if let Some(counters) = counters {
            subsystem.set_counters(counters);
        }
        subsystem.admin(cmd, sqe, data, now)
    });
    if let Outcome::Done(reply) = outcome {
        conn.complete_reply(Home::data_room(sqe), s.cid(), reply);
    }
}

/// What the subsystem's volumes did since start.
fn counters(conn: &Connection, home: &Home) -> IoCounters {
    let view = home.look(|s| s.view());
    let mut sum = IoCounters::default();
    for ns in &view.namespaces {
        let one = conn.node.volumes.counters(&ns.volume);
        sum.reads += one.reads;
        sum.writes += one.writes;
        sum.read_bytes += one.read_bytes;
        sum.write_bytes += one.write_bytes;
        sum.media_errors += one.media_errors;
    }
    sum
}
