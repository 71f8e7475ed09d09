//! Snapshots that are taken without being asked: `policy` says when, `record` what was done of it, `runner` does what is due. `calendar` is the time.
//!
//! One node does it, the one that has the key `leaders/schedules` under a lease. If another believes to have it too, nothing happens twice: a snapshot's name
//! follows from the volume and the time at which it was due, and the same again is the same snapshot.

pub mod calendar;
mod changes;
pub mod policy;
pub mod record;
mod runner;

pub use policy::{Interval, PolicyRecord, When};
pub use record::ScheduleRecord;
pub use runner::{SCHEDULE_LABEL, keep_schedules};
