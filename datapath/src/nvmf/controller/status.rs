//! Statuses of admin, fabrics and reservation commands, with the decision that belongs to each: what a host cannot mend by sending the
//! same again carries Do Not Retry, else Linux sends it again several times.

use crate::nvmf::seam::StatusField;
use keelblock_nvme::Status;

const fn done(s: Status) -> StatusField {
    StatusField(s.dnr().0)
}
const fn retry(s: Status) -> StatusField {
    StatusField(s.0)
}

/// The opcode is not one of this queue and controller.
pub const INVALID_OPCODE: StatusField = done(Status::INVALID_OPCODE);
/// A field holds what is reserved or not supported.
pub const INVALID_FIELD: StatusField = done(Status::INVALID_FIELD);
/// No such property. Without Do Not Retry: nvme-cli takes the other for a failure of the whole register dump.
pub const NO_PROPERTY: StatusField = retry(Status::INVALID_FIELD);
/// Our own failure, or a resource that is used up.
pub const INTERNAL_ERROR: StatusField = done(Status::INTERNAL_ERROR);
/// Ended by an Abort command.
pub const ABORT_REQUESTED: StatusField = done(Status::ABORT_REQUESTED);
/// Ended because its queue, or what it waited for, did.
pub const ABORTED_SQ_DELETION: StatusField = retry(Status::ABORT_SQ_DELETION);
/// The namespace is not there.
pub const INVALID_NAMESPACE: StatusField = done(Status::INVALID_NAMESPACE);
/// Not now: the order of commands is wrong.
pub const COMMAND_SEQUENCE: StatusField = done(Status::COMMAND_SEQUENCE);
/// The data buffer is shorter than what the command moves.
pub const SGL_LENGTH: StatusField = done(Status::INVALID_SGL_LENGTH);
/// 64-bit host identifiers are asked for where 128-bit ones are in use.
pub const HOST_ID_FORMAT: StatusField = done(Status::HOST_ID_INCONSISTENT);
/// Command Interrupted: a condition that passes, send it again.
pub const COMMAND_INTERRUPTED: StatusField = retry(Status::new(0, 0x21));
/// A reservation forbids it.
pub const RESERVATION_CONFLICT: StatusField = done(Status::RESERVATION_CONFLICT);
/// More Asynchronous Event Requests than AERL says.
pub const AER_LIMIT: StatusField = done(Status::AER_LIMIT);
/// No such log page.
pub const INVALID_LOG_PAGE: StatusField = done(Status::INVALID_LOG_PAGE);
/// No feature is saveable.
pub const FEATURE_NOT_SAVEABLE: StatusField = done(Status::FEATURE_NOT_SAVEABLE);
/// The feature is what it is.
pub const FEATURE_NOT_CHANGEABLE: StatusField = done(Status::FEATURE_NOT_CHANGEABLE);
/// A feature of the controller was set for one namespace.
pub const FEATURE_NOT_NAMESPACE: StatusField = done(Status::FEATURE_NOT_NAMESPACE);
/// I/O Command Set Combination Rejected.
pub const COMMAND_SET_REJECTED: StatusField = done(Status::new(1, 0x2b));
/// Every controller id is taken.
pub const CONNECT_BUSY: StatusField = retry(Status::CONNECT_CONTROLLER_BUSY);
/// A parameter of Connect, named by IPO and IATTR.
pub const CONNECT_INVALID_PARAMETERS: StatusField = done(Status::CONNECT_INVALID_PARAMETERS);
/// This host may not connect to this subsystem.
pub const CONNECT_INVALID_HOST: StatusField = done(Status::CONNECT_INVALID_HOST);
/// The namespace's access is lost for good through this controller.
pub const ANA_PERSISTENT_LOSS: StatusField = retry(Status::ANA_PERSISTENT_LOSS);
/// Inaccessible through this controller.
pub const ANA_INACCESSIBLE: StatusField = retry(Status::ANA_INACCESSIBLE);
/// Changing between states.
pub const ANA_TRANSITION: StatusField = retry(Status::ANA_TRANSITION);
