//! The NVMe/TCP target: what hosts connect to.
//!
//! Two halves meet at [`seam`]. The *transport* half (listener, connection, PDUs, queues, I/O commands) owns sockets and serves I/O on
//! every reactor. The *controller* half (subsystems, controllers, admin and fabrics commands, events, logs, discovery, reservations) is
//! a state machine without I/O that lives on the home reactor of its subsystem: the transport calls it and carries out the
//! [`seam::Effect`]s that it leaves.

mod admin;
mod admin_queue;
mod ana;
mod conn;
mod connect;
mod controller;
mod discovery;
mod foreign;
mod handshake;
mod home;
mod io;
pub mod limits;
mod message;
mod node;
mod reservation;
pub mod seam;
pub mod status;
mod subsystem;
mod target;
mod term;
mod view;
mod watch;

pub use message::Mail as Message;
pub use target::{ExportState, Target};
pub use view::Volumes;

/// Whether a command says that its data is described by an SGL (PSDT 01b or 10b): over fabrics nothing else is (NVMe Base 2.1, 4.3).
#[inline]
fn uses_sgl(sqe: &keelblock_nvme::Sqe) -> bool {
    matches!(sqe.psdt(), 1 | 2)
}
