//! Status codes that the transport half completes commands with (NVMe Base 2.1, 4.2.3), and what storage errors become.

use super::seam::{AnaState, StatusField};
use crate::volume::VolumeError;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $sct:literal, $sc:literal $(, $dnr:ident)?;)*) => {
        $($(#[$doc])* pub const $name: StatusField = StatusField::new($sct, $sc)$(.$dnr())?;)*
    };
}

statuses! {
    /// Invalid Command Opcode.
    INVALID_OPCODE = 0, 0x01, dnr;
    /// Invalid Field in Command.
    INVALID_FIELD = 0, 0x02, dnr;
    /// Command ID Conflict.
    CID_CONFLICT = 0, 0x03, dnr;
    /// Command Aborted due to Failed Fused Command.
    FUSED_FAILED = 0, 0x09, dnr;
    /// Command Aborted due to Missing Fused Command.
    FUSED_MISSING = 0, 0x0a, dnr;
    /// Invalid Namespace or Format.
    INVALID_NAMESPACE = 0, 0x0b, dnr;
    /// Command Sequence Error.
    SEQUENCE = 0, 0x0c, dnr;
    /// Data SGL Length Invalid.
    SGL_LENGTH = 0, 0x0f, dnr;
    /// SGL Descriptor Type Invalid.
    SGL_TYPE = 0, 0x11, dnr;
    /// Atomic Write Unit Exceeded.
    ATOMIC_UNIT = 0, 0x14, dnr;
    /// SGL Offset Invalid.
    SGL_OFFSET = 0, 0x16, dnr;
    /// Command Interrupted: the host shall retry.
    INTERRUPTED = 0, 0x21;
    /// Transient Transport Error: the data arrived damaged.
    TRANSPORT = 0, 0x22;
    /// LBA Out of Range.
    LBA_RANGE = 0, 0x80, dnr;
    /// Capacity Exceeded.
    CAPACITY = 0, 0x81, dnr;
    /// Reservation Conflict.
    RESERVATION_CONFLICT = 0, 0x83, dnr;
    /// Connect Incompatible Format.
    CONNECT_FORMAT = 1, 0x80, dnr;
    /// Connect Invalid Parameters.
    CONNECT_PARAMETERS = 1, 0x82, dnr;
    /// Write Fault.
    WRITE_FAULT = 2, 0x80;
    /// Unrecovered Read Error.
    READ_ERROR = 2, 0x81;
    /// Compare Failure.
    COMPARE_FAILURE = 2, 0x85, dnr;
    /// Internal Path Error: another path may serve.
    PATH_ERROR = 3, 0x00;
    /// Asymmetric Access Persistent Loss.
    ANA_PERSISTENT_LOSS = 3, 0x01;
    /// Asymmetric Access Inaccessible.
    ANA_INACCESSIBLE = 3, 0x02;
    /// Asymmetric Access Transition.
    ANA_TRANSITION = 3, 0x03;
}

/// What a command gets in a state of its namespace; `None`: it is served.
pub fn of_ana(state: AnaState) -> Option<StatusField> {
    match state {
        AnaState::Optimized | AnaState::NonOptimized => None,
        AnaState::Inaccessible => Some(ANA_INACCESSIBLE),
        AnaState::PersistentLoss => Some(ANA_PERSISTENT_LOSS),
        AnaState::Change => Some(ANA_TRANSITION),
    }
}

/// What a command gets when storage failed it.
pub fn of_volume(error: VolumeError) -> StatusField {
    match error {
        VolumeError::OutOfRange => LBA_RANGE,
        VolumeError::Miscompare => COMPARE_FAILURE,
        VolumeError::Unreadable | VolumeError::Damaged | VolumeError::NotOpened => READ_ERROR,
        VolumeError::DriveFailed => WRITE_FAULT,
        VolumeError::CapacityExceeded => CAPACITY,
        VolumeError::NotAtomic => ATOMIC_UNIT,
        VolumeError::Closed | VolumeError::Stalled => PATH_ERROR,
        VolumeError::Elsewhere => ANA_INACCESSIBLE,
        VolumeError::Busy => INTERRUPTED,
        VolumeError::Told(status) => StatusField(status),
    }
}
