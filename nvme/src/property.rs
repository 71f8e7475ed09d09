//! Controller properties (NVMe Base 2.1, 3.1.4).

/// Offsets of the properties that fabrics controllers have.
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version, 4 bytes.
    pub const VS: u32 = 0x08;
    /// Controller Configuration, 4 bytes.
    pub const CC: u32 = 0x14;
    /// Controller Status, 4 bytes.
    pub const CSTS: u32 = 0x1c;
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: u32 = 0x20;
    /// Controller Ready Timeouts, 4 bytes.
    pub const CRTO: u32 = 0x68;
}

/// Controller Configuration.
pub mod cc {
    /// Enable.
    pub const EN: u32 = 1 << 0;
    /// Shutdown notification, bits 15:14.
    pub const SHN_MASK: u32 = 3 << 14;
    /// Normal shutdown.
    pub const SHN_NORMAL: u32 = 1 << 14;
    /// Abrupt shutdown.
    pub const SHN_ABRUPT: u32 = 2 << 14;
    /// IOSQES (2^6) and IOCQES (2^4), as a host sets them.
    pub const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
    /// CSS, bits 6:4: all supported I/O command sets.
    pub const CSS_ALL: u32 = 6 << 4;
}

/// Controller Status.
pub mod csts {
    /// Ready.
    pub const RDY: u32 = 1 << 0;
    /// Fatal status.
    pub const CFS: u32 = 1 << 1;
    /// Shutdown status, bits 3:2.
    pub const SHST_MASK: u32 = 3 << 2;
    /// Shutdown processing occurs.
    pub const SHST_OCCURRING: u32 = 1 << 2;
    /// Shutdown processing is complete.
    pub const SHST_COMPLETE: u32 = 2 << 2;
}

/// Fields of Controller Capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// Maximum Queue Entries Supported, 0's based.
    pub const fn mqes(self) -> u16 {
        self.0 as u16
    }
    /// Timeout for CSTS.RDY, milliseconds (units of 500 on the wire).
    pub const fn ready_timeout_ms(self) -> u32 {
        (self.0 >> 24 & 0xff) as u32 * 500
    }
    /// Command Sets Supported, bit 6: the I/O Command Sets of Identify 1Ch.
    pub const fn io_command_sets(self) -> bool {
        self.0 >> 43 & 1 != 0
    }
}
