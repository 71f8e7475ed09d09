//! Reservations of a namespace (NVMe Base 2.1, 8.1.24; our choices and the stored bytes: `docs/reservations.md`).
//!
//! `state.rs` is the table and what each command does to it (`outcome.rs`: and to whom), as a function from state to state: nothing happens until the
//! caller installs the result, which is what lets a persistent change wait for its commit. `command.rs` parses commands, `report.rs`
//! lays out Reservation Report, `codec.rs` the stored bytes, `notice.rs` keeps the notifications of a controller (log page 80h).
//! `ledger.rs` orders the changes of a namespace: one at a time, through the commit, into the views, to the completion. What decides
//! about reads and writes on every I/O is `seam::ReservationView`.

mod codec;
mod command;
mod ledger;
mod notice;
mod outcome;
mod report;
mod state;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod state_tests;

pub use command::{Parsed, parse};
#[cfg(test)]
pub use ledger::COMMIT_TIMEOUT_NS;
pub use ledger::{Ledger, Request, Step};
pub use notice::NoticeLog;
pub use report::report_extended;
pub use state::{Notice, Op};
