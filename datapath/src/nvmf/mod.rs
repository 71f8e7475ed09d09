//! The NVMe/TCP target: what hosts connect to.
//!
//! Two halves meet at [`seam`]. The *transport* half (listener, connection, PDUs, queues, I/O commands) owns sockets and serves I/O on
//! every reactor. The *controller* half (subsystems, controllers, admin and fabrics commands, events, logs, discovery, reservations) is
//! a state machine without I/O that lives on the home reactor of its subsystem: the transport calls it and carries out the
//! [`seam::Effect`]s that it leaves.

mod admin;
mod ana;
mod controller;
mod discovery;
mod reservation;
pub mod seam;
pub mod subsystem;
