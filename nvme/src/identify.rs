//! Identify data that an initiator reads (NVMe Base 2.1, 5.1.13; NVM Command Set 1.1, 4.1.5).

use crate::bytes::{u16_at, u32_at, u64_at};

/// Length of any Identify data structure.
pub const IDENTIFY_LEN: usize = 4096;

/// Values of CNS.
pub mod cns {
    /// Identify Namespace, NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active Namespace ID list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace Identification Descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// I/O Command Set specific Identify Namespace.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// I/O Command Set specific Identify Controller.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// I/O Command Set specific Active Namespace ID list.
    pub const CSI_ACTIVE_NAMESPACES: u8 = 0x07;
    /// I/O Command Set independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// I/O Command Set data structure.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// Identify Controller, as 4096 bytes and its fields.
#[derive(Clone)]
pub struct ControllerData(pub Box<[u8; IDENTIFY_LEN]>);

impl ControllerData {
    fn text(&self, at: std::ops::Range<usize>) -> String {
        String::from_utf8_lossy(&self.0[at])
            .trim_end_matches([' ', '\0'])
            .to_owned()
    }
    /// Serial number.
    pub fn serial(&self) -> String {
        self.text(4..24)
    }
    /// Model number.
    pub fn model(&self) -> String {
        self.text(24..64)
    }
    /// Firmware revision.
    pub fn firmware(&self) -> String {
        self.text(64..72)
    }
    /// Largest data transfer in bytes; `None` when there is no limit.
    pub fn max_transfer_bytes(&self) -> Option<usize> {
        match self.0[77] {
            0 => None,
            n => 4096usize.checked_shl(n as u32),
        }
    }
    /// Controller identifier.
    pub fn cntlid(&self) -> u16 {
        u16_at(&self.0[..], 78)
    }
    /// Version, as the VS property.
    pub fn version(&self) -> u32 {
        u32_at(&self.0[..], 80)
    }
    /// Keep-alive granularity, units of 100 ms; 0: no keep-alive.
    pub fn kas(&self) -> u16 {
        u16_at(&self.0[..], 320)
    }
    /// Number of namespaces.
    pub fn nn(&self) -> u32 {
        u32_at(&self.0[..], 516)
    }
    /// Optional NVM commands supported.
    pub fn oncs(&self) -> u16 {
        u16_at(&self.0[..], 520)
    }
    /// Volatile write cache present.
    pub fn volatile_cache(&self) -> bool {
        self.0[525] & 1 != 0
    }
    /// Bytes of in-capsule data that an I/O queue takes (IOCCSZ).
    pub fn in_capsule_bytes(&self) -> usize {
        (u32_at(&self.0[..], 1792) as usize * 16).saturating_sub(64)
    }
    /// Subsystem NQN.
    pub fn subnqn(&self) -> String {
        self.text(768..1024)
    }
}

/// Identify Namespace, as 4096 bytes and its fields.
#[derive(Clone)]
pub struct NamespaceData(pub Box<[u8; IDENTIFY_LEN]>);

impl NamespaceData {
    /// Size in blocks; 0 for an inactive namespace.
    pub fn blocks(&self) -> u64 {
        u64_at(&self.0[..], 0)
    }
    /// Block size in bytes (LBADS of the format in use).
    pub fn block_bytes(&self) -> u32 {
        let flbas = self.0[26];
        let format = (flbas & 0xf | flbas >> 1 & 0x30) as usize;
        1u32.checked_shl(self.0[128 + format * 4 + 2] as u32)
            .unwrap_or(0)
    }
    /// NGUID.
    pub fn nguid(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[104..120]);
        id
    }
}
