//! Identify Controller, CNS 01h (NVMe Base 2.1, 5.1.13.2.1), and CNS 06h for the NVM command set (NVM Command Set 1.1, 4.1.5.4).

use super::page::Page;
use crate::nvmf::ana;
use crate::nvmf::controller::{Controller, Role, errors, events, keep_alive, properties};
use crate::nvmf::seam::{ExportConfig, IN_CAPSULE_BYTES, MDTS, MQES, NodeIdentity};
use crate::nvmf::subsystem::MAX_NSID;
use crate::volume::forward::age;

/// Abort commands at a time, 0's based (ACL).
const ACL: u8 = 3;
/// Firmware: one slot (bits 3:1), read-only (bit 0).
const FRMW: u8 = 1 << 1 | 1;
/// LPA: command effects (bit 1), offsets (bit 2), pages 00h, 12h and 13h with scopes (bit 5).
const LPA: u8 = 1 << 1 | 1 << 2 | 1 << 5;
/// LPA of a discovery controller: offsets.
const LPA_DISCOVERY: u8 = 1 << 2;
/// CMIC: several ports (bit 0), several controllers (bit 1), ANA (bit 3).
const CMIC: u8 = 1 | 1 << 1 | 1 << 3;
/// CTRATT: 128-bit host identifiers (bit 0), traffic based keep alive (bit 6).
const CTRATT: u32 = 1 | 1 << 6;
/// RTD3E: a shutdown is over in this, microseconds.
const SHUTDOWN_US: u32 = 10_000_000;
/// CQT, milliseconds (NVMe Base 2.1, 3.9.4.1).
const CQT_MS: u16 = age::CQT.as_millis() as u16;
/// SGLS: SGLs (bit 0), offsets in the address field (bit 20), transport descriptors (bit 21).
const SGLS: u32 = 1 | 1 << 20 | 1 << 21;
/// IOCCSZ, in units of 16 bytes.
const IOCCSZ: u32 = (64 + IN_CAPSULE_BYTES as u32) / 16;
/// VWC bits 2:1: a Flush of NSID FFFFFFFFh flushes every namespace.
const VWC_FLUSH_ALL: u8 = 3 << 1;
const VWC_PRESENT: u8 = 1;

/// ONCS: compare, dataset management, write zeroes, reservations, verify.
pub const ONCS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 7;
/// FUSES: compare and write.
const FUSES: u16 = 1;
/// DCTYPE: direct discovery controller.
const DCTYPE_DIRECT: u8 = 1;

/// WZSL: 2 to this pages of 4 KiB per Write Zeroes: what NLB can say with 512-byte blocks.
const WZSL: u8 = 13;
/// DMRL: ranges per Dataset Management; the field cannot hold the 256 that a command can, so 0, no limit.
const DMRL: u8 = 0;
/// DMRSL: one range of a Dataset Management, bytes.
const DMRSL_BYTES: u64 = 1 << 30;

/// CNS 01h.
pub fn controller(c: &Controller, config: &ExportConfig, node: &NodeIdentity) -> Vec<u8> {
    let mut p = Page::new(4096);
    p.ascii(4, 20, &config.serial)
        .ascii(24, 40, &node.model)
        .ascii(64, 8, &node.firmware);
    p.u8(77, MDTS)
        .u16(78, c.cntlid)
        .u32(80, properties::VERSION)
        .u32(88, SHUTDOWN_US);
    p.u32(92, c.role.events()).u32(96, CTRATT);
    p.u8(258, ACL)
        .u8(259, events::MAX_REQUESTS as u8 - 1)
        .u8(260, FRMW)
        .u8(262, errors::MAX_ENTRIES as u8 - 1);
    p.u16(320, keep_alive::KAS).u16(386, CQT_MS);
    p.u8(512, 0x66).u8(513, 0x44).u16(514, MQES + 1);
    p.u32(536, SGLS).bytes(768, config.nqn.as_bytes());
    p.u32(1792, IOCCSZ).u32(1796, 1).u8(1803, 1);
    match c.role {
        Role::Io => io_controller(&mut p, config),
        Role::Discovery => {
            p.u8(111, 2).u8(261, LPA_DISCOVERY).u8(1806, DCTYPE_DIRECT);
        }
    }
    p.done()
}

fn io_controller(p: &mut Page, config: &ExportConfig) {
    let cache = if volatile_cache(config) {
        VWC_PRESENT
    } else {
        0
    };
    p.u8(76, CMIC).u8(111, 1).u8(261, LPA);
    p.u8(342, ana::TRANSITION_SECONDS)
        .u8(343, ana::CAPABILITIES)
        .u32(344, ana::GROUP)
        .u32(348, ana::GROUP);
    p.u32(516, MAX_NSID)
        .u16(520, ONCS)
        .u16(522, FUSES)
        .u8(525, cache | VWC_FLUSH_ALL);
    // AWUN, AWUPF and ACWU, at 526, 528 and 532, are 0: one block.
    p.u32(540, MAX_NSID);
}

/// Whether any namespace has a volatile write cache.
pub fn volatile_cache(config: &ExportConfig) -> bool {
    config.namespaces.iter().any(|n| n.volatile_cache)
}

/// CNS 06h, CSI 0: limits of commands that MDTS does not bound.
pub fn nvm_limits(config: &ExportConfig) -> Vec<u8> {
    let shift = config
        .namespaces
        .iter()
        .map(|n| n.lba_shift)
        .max()
        .unwrap_or(12);
    let mut p = Page::new(4096);
    // VSL and WUSL, at 0 and 2, are 0: no limit to Verify, no Write Uncorrectable.
    p.u8(1, WZSL)
        .u8(3, DMRL)
        .u32(4, (DMRSL_BYTES >> shift) as u32);
    p.done()
}
