//! Commands of an admin queue: fetch their data, give them to the subsystem, send what it answers.

use std::rc::Rc;

use keelblock_nvme::Sqe;
use keelblock_nvme::opcode::{FABRICS, Transfer as Direction, admin, transfer};
use keelblock_nvme::sgl::Sgl;

use super::conn::Connection;
use super::conn::reader::Capsule;
use super::conn::transfer::Transfer;
use super::home::Home;
use super::seam::{IoCounters, MAX_TRANSFER_BYTES, Outcome, StatusField};
use super::{status, uses_sgl};

/// The log page that wants counters.
const LOG_SMART: u32 = 0x02;

/// A capsule of an admin queue.
pub fn command(conn: &Rc<Connection>, home: &Rc<Home>, sqe: &Sqe, capsule: Capsule<'_>) {
    if let Err(refused) = check(sqe) {
        conn.put_status(sqe.cid(), refused);
        return;
    }
    conn.queue.borrow_mut().begin(sqe.cid());
    match (direction(sqe), sqe.sgl()) {
        (Direction::ToController, Sgl::Transport { length }) if length > 0 => {
            conn.fetch(sqe, length as usize)
        }
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
fn check(sqe: &Sqe) -> Result<(), StatusField> {
    if !uses_sgl(sqe) {
        return Err(status::INVALID_FIELD);
    }
    match direction(sqe) {
        Direction::None | Direction::Both => Ok(()),
        _ if sqe.sgl().length() as usize > MAX_TRANSFER_BYTES => Err(status::INVALID_FIELD),
        Direction::ToHost if matches!(sqe.sgl(), Sgl::InCapsule { length: 1.., .. }) => {
            Err(status::SGL_TYPE)
        }
        _ if matches!(sqe.sgl(), Sgl::Other { .. }) => Err(status::SGL_TYPE),
        _ => Ok(()),
    }
}

fn run(conn: &Rc<Connection>, home: &Rc<Home>, sqe: &Sqe, data: &[u8]) {
    let now = conn.node.handle.now().0;
    let counters = (sqe.opcode() == admin::GET_LOG_PAGE && sqe.cdw(10) & 0xff == LOG_SMART)
        .then(|| counters(conn, home));
    let cmd = conn.command_ref(sqe.cid());
    let outcome = home.run(|subsystem| {
        if let Some(counters) = counters {
            subsystem.set_counters(counters);
        }
        subsystem.admin(cmd, &sqe.0, data, now)
    });
    if let Outcome::Done(reply) = outcome {
        conn.complete_reply(Home::data_room(sqe), sqe.cid(), reply);
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

/// Which way the command's data goes, by its opcode or fabrics type.
fn direction(sqe: &Sqe) -> Direction {
    transfer(if sqe.opcode() == FABRICS {
        sqe.fctype()
    } else {
        sqe.opcode()
    })
}
