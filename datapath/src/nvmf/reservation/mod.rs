//! Reservations of a namespace (NVMe Base 2.1, 8.1.24; our choices and the stored bytes: `docs/reservations.md`).
//!
//! `state.rs` is the table and what each command does to it, as a function from state to state: nothing happens until the
//! caller installs the result, which is what lets a persistent change wait for its commit. `access.rs` is the part of it that decides
//! about reads and writes on every I/O. `command.rs` parses commands, `report.rs` lays out Reservation Report, `codec.rs`
//! the stored bytes, `notice.rs` the notifications of a controller (log page 80h). `commit.rs` orders changes of a namespace: one at
//! a time, through the commit, into the views, to the completion.

mod access;
mod codec;
mod command;
mod commit;
mod notice;
mod report;
mod state;

#[cfg(test)]
mod model_tests;

pub use access::{Access, Fence};
pub use codec::{DecodeError, decode, encode};
pub use command::{CommandError, ReservationCommand, parse};
pub use commit::{COMMIT_TIMEOUT, MAX_WAITING, Ledger, Step};
pub use notice::{MAX_NOTICES, NoticeLog, NoticeMask};
pub use report::{ReportEntry, report_bytes};
pub use state::{
    Held, HostId, Kind, MAX_REGISTRANTS, Notice, NoticeKind, Op, Outcome, PtplChange, Refusal, Registrant, State,
};
