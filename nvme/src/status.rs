//! Status codes (NVMe Base 2.1, 4.2.3; NVM Command Set 1.1, 3.1; fabrics 6.x).

/// A completion's status field without the phase tag: SC in bits 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

const DNR: u16 = 1 << 14;

impl Status {
    /// A status of a code type and a code.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self((sct as u16 & 7) << 8 | sc as u16)
    }
    /// The same with Do Not Retry.
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }
    /// Whether Do Not Retry is set.
    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }
    /// Code type and code, without the other bits.
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }
    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }
    /// Whether code type and code are those of `other`.
    pub const fn is(self, other: Status) -> bool {
        self.code() == other.code()
    }
}

macro_rules! statuses {
    ($($name:ident = $sct:literal / $sc:literal, $text:literal;)*) => {
        impl Status {
            $(#[doc = $text] pub const $name: Self = Self::new($sct, $sc);)*

            /// What the code means; empty for one that is not known.
            pub const fn text(self) -> &'static str {
                $(if self.code() == Self::$name.code() { return $text; })*
                ""
            }
        }
    };
}

statuses! {
    SUCCESS = 0 / 0x00, "Successful Completion";
    INVALID_OPCODE = 0 / 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0 / 0x02, "Invalid Field in Command";
    CID_CONFLICT = 0 / 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0 / 0x04, "Data Transfer Error";
    INTERNAL_ERROR = 0 / 0x06, "Internal Error";
    ABORT_REQUESTED = 0 / 0x07, "Command Abort Requested";
    ABORT_SQ_DELETION = 0 / 0x08, "Command Aborted due to SQ Deletion";
    ABORT_FAILED_FUSED = 0 / 0x09, "Command Aborted due to Failed Fused Command";
    ABORT_MISSING_FUSED = 0 / 0x0a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0 / 0x0b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE = 0 / 0x0c, "Command Sequence Error";
    INVALID_SGL_SEGMENT = 0 / 0x0d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0 / 0x0e, "Invalid Number of SGL Descriptors";
    INVALID_SGL_LENGTH = 0 / 0x0f, "Data SGL Length Invalid";
    INVALID_SGL_TYPE = 0 / 0x11, "SGL Descriptor Type Invalid";
    INVALID_SGL_OFFSET = 0 / 0x16, "SGL Offset Invalid";
    HOST_ID_INCONSISTENT = 0 / 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0 / 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_INVALID = 0 / 0x1a, "Keep Alive Timeout Invalid";
    ABORT_PREEMPT = 0 / 0x1b, "Command Aborted due to Preempt and Abort";
    TRANSIENT_TRANSPORT = 0 / 0x22, "Transient Transport Error";
    PROHIBITED = 0 / 0x23, "Command Prohibited by Command and Feature Lockdown";
    ADMIN_MEDIA_NOT_READY = 0 / 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0 / 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0 / 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0 / 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0 / 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0 / 0x84, "Format In Progress";
    COMPLETION_QUEUE_INVALID = 1 / 0x00, "Completion Queue Invalid";
    INVALID_QUEUE_ID = 1 / 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 1 / 0x02, "Invalid Queue Size";
    ABORT_LIMIT = 1 / 0x03, "Abort Command Limit Exceeded";
    AER_LIMIT = 1 / 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_LOG_PAGE = 1 / 0x09, "Invalid Log Page";
    FEATURE_NOT_SAVEABLE = 1 / 0x0d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 1 / 0x0e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE = 1 / 0x0f, "Feature Not Namespace Specific";
    CONNECT_INCOMPATIBLE_FORMAT = 1 / 0x80, "Connect Incompatible Format";
    CONNECT_CONTROLLER_BUSY = 1 / 0x81, "Connect Controller Busy";
    CONNECT_INVALID_PARAMETERS = 1 / 0x82, "Connect Invalid Parameters";
    CONNECT_RESTART_DISCOVERY = 1 / 0x83, "Connect Restart Discovery";
    CONNECT_INVALID_HOST = 1 / 0x84, "Connect Invalid Host";
    DISCOVERY_RESTART = 1 / 0x90, "Discover Restart";
    AUTHENTICATION_REQUIRED = 1 / 0x91, "Authentication Required";
    WRITE_FAULT = 2 / 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 2 / 0x81, "Unrecovered Read Error";
    GUARD_CHECK = 2 / 0x82, "End-to-end Guard Check Error";
    COMPARE_FAILURE = 2 / 0x85, "Compare Failure";
    ACCESS_DENIED = 2 / 0x86, "Access Denied";
    DEALLOCATED = 2 / 0x87, "Deallocated or Unwritten Logical Block";
    INTERNAL_PATH_ERROR = 3 / 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 3 / 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 3 / 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 3 / 0x03, "Asymmetric Access Transition";
    HOST_PATH_ERROR = 3 / 0x70, "Host Pathing Error";
    HOST_ABORTED = 3 / 0x71, "Command Aborted By Host";
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({:x}h/{:02x}h)",
            self.text(),
            self.0 >> 8 & 7,
            self.0 & 0xff
        )?;
        if self.is_dnr() {
            f.write_str(", do not retry")
        } else {
            Ok(())
        }
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_text() {
        assert_eq!(Status::ANA_INACCESSIBLE.0, 0x302);
        assert_eq!(Status::CONNECT_INVALID_PARAMETERS.dnr().0, 0x4182);
        assert!(Status::INVALID_FIELD.dnr().is(Status::INVALID_FIELD));
        assert_eq!(
            Status::LBA_OUT_OF_RANGE.dnr().to_string(),
            "LBA Out of Range (0h/80h), do not retry"
        );
        assert_eq!(Status::new(7, 0xee).text(), "");
    }
}
