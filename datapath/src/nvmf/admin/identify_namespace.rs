//! Identify of namespaces: CNS 00h (NVM Command Set 1.1, 4.1.5.1), 03h (NVMe Base 2.1, 5.1.13.2.3), 05h and 08h.

use super::page::Page;
use crate::nvmf::ana;
use crate::nvmf::seam::NamespaceConfig;

/// NSFEAT: NAWUN and its like are given (bit 1), identifiers are never reused (bit 3), NPWG and its like are given (bits 5:4).
const NSFEAT: u8 = 1 << 1 | 1 << 3 | 1 << 4;
/// NMIC: shared by several controllers.
const NMIC: u8 = 1;
/// RESCAP: persist through power loss, every type, IEKEY as of NVMe 1.3.
const RESCAP: u8 = 0xff;
/// DLFEAT: deallocated blocks read as zeroes (001b), Write Zeroes can deallocate (bit 3).
const DLFEAT: u8 = 1 | 1 << 3;
/// Volumes are laid out in slices of this many bytes; I/O that stays inside one is faster (NOIOB), and a write can be atomic (NABSN).
const SLICE_BYTES: u64 = 16 << 20;
/// The volume's blocks that a write, wherever it begins and ends, may touch and be atomic (NAWUN).
const ATOMIC_BYTES: u64 = 1 << 20;
/// log2 of the block that volumes are made of; writes of parts of it are read-modify-write.
const BLOCK_SHIFT: u8 = 12;

/// Independent NSFEAT: identifiers are never reused (bit 3), no volatile write cache (bit 5).
const INDEPENDENT_UID: u8 = 1 << 3;
const INDEPENDENT_NO_CACHE: u8 = 1 << 5;
/// NSTAT: ready.
const NRDY: u8 = 1;

/// Descriptor types of CNS 03h.
const NIDT_NGUID: u8 = 2;
const NIDT_UUID: u8 = 3;
const NIDT_CSI: u8 = 4;

/// CNS 00h (and 11h) of an active namespace.
pub fn namespace(n: &NamespaceConfig) -> Vec<u8> {
    let mut p = Page::new(4096);
    p.u64(0, n.blocks).u64(8, n.blocks).u64(16, n.blocks);
    // NLBAF, at 25, is 0: one format; FLBAS, at 26, names it.
    p.u8(24, NSFEAT).u8(30, NMIC).u8(31, RESCAP).u8(33, DLFEAT);
    // What begins inside of a block touches one more: LBAs of 512 bytes leave room for that.
    let atomic = (ATOMIC_BYTES - (1 << BLOCK_SHIFT)) >> n.lba_shift;
    let slice = SLICE_BYTES >> n.lba_shift;
    // NAWUN, NAWUPF, NABSN, NABSPF, 0's based; NACWU at 38 and NABO at 42 are 0.
    p.u16(34, atomic as u16).u16(36, atomic as u16);
    p.u16(40, (slice - 1) as u16).u16(44, (slice - 1) as u16);
    p.u16(46, slice as u16)
        .u128(48, u128::from(n.blocks) << n.lba_shift);
    let whole_block = (1u16 << BLOCK_SHIFT.saturating_sub(n.lba_shift)) - 1;
    for at in [64, 66, 68, 70, 72] {
        // NPWG, NPWA, NPDG, NPDA, NOWS, 0's based
        p.u16(at, whole_block);
    }
    p.u32(92, ana::GROUP)
        .bytes(104, &n.nguid)
        .u8(128 + 2, n.lba_shift);
    p.done()
}

/// CNS 03h.
pub fn descriptors(n: &NamespaceConfig) -> Vec<u8> {
    let mut b = Vec::with_capacity(4096);
    for (kind, id) in [
        (NIDT_NGUID, &n.nguid[..]),
        (NIDT_UUID, &n.uuid[..]),
        (NIDT_CSI, &[0]),
    ] {
        b.extend_from_slice(&[kind, id.len() as u8, 0, 0]);
        b.extend_from_slice(id);
    }
    b.resize(4096, 0);
    b
}

/// CNS 08h: what does not depend on the I/O command set. `cache`: the controller says that there is a volatile write cache.
pub fn independent(n: &NamespaceConfig, cache: bool) -> Vec<u8> {
    let no_cache = if cache && !n.volatile_cache {
        INDEPENDENT_NO_CACHE
    } else {
        0
    };
    let mut p = Page::new(4096);
    p.u8(0, INDEPENDENT_UID | no_cache)
        .u8(1, NMIC)
        .u8(2, RESCAP)
        .u32(4, ana::GROUP)
        .u8(14, NRDY);
    p.done()
}

/// CNS 05h, CSI 0: no protection information, no formats beyond those of CNS 00h.
pub fn nvm_namespace() -> Vec<u8> {
    vec![0; 4096]
}
