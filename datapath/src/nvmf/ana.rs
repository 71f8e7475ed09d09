//! Asymmetric Namespace Access (NVMe Base 2.1, 8.1.1): every namespace is in group 1, on every node; only the group's state differs from
//! node to node, so that hosts see one namespace on several paths.

use crate::nvmf::admin::page::Page;
use crate::nvmf::controller::status;
use crate::nvmf::seam::{AnaState, StatusField};
use crate::nvmf::subsystem::MAX_NSID;

/// ANAGRPID of every namespace; also ANAGRPMAX and NANAGRPID.
pub const GROUP: u32 = 1;
/// ANACAP: the five states are reported (bits 4:0), a namespace's group does not change (bit 6).
pub const CAPABILITIES: u8 = 0x1f | 1 << 6;
/// ANATT: seconds that a change may take.
pub const TRANSITION_SECONDS: u8 = 10;

const HEADER_BYTES: usize = 16;
const DESCRIPTOR_BYTES: usize = 32;
const PAGE_BYTES: usize = HEADER_BYTES + DESCRIPTOR_BYTES + 4 * MAX_NSID as usize;

/// Log page 0Ch. `changes` counts changes of state or members; RGO leaves the namespaces out. It is as long as it can get, zeroes at
/// its end: nvme-cli reads that much, in pieces, and an offset beyond the page would be refused.
pub fn log_page(state: AnaState, changes: u64, namespaces: &[u32], groups_only: bool) -> Vec<u8> {
    let listed = if groups_only { &[] } else { namespaces };
    let mut p = Page::new(PAGE_BYTES);
    p.u64(0, changes).u16(8, 1);
    let group = HEADER_BYTES;
    p.u32(group, GROUP)
        .u32(group + 4, listed.len() as u32)
        .u64(group + 8, changes)
        .u8(group + 16, state as u8);
    for (i, nsid) in listed.iter().enumerate() {
        p.u32(group + DESCRIPTOR_BYTES + 4 * i, *nsid);
    }
    p.done()
}

impl AnaState {
    /// What commands that need access to media complete with, where it is not given.
    pub fn refusal(self) -> Option<StatusField> {
        match self {
            AnaState::Optimized | AnaState::NonOptimized => None,
            AnaState::Inaccessible => Some(status::ANA_INACCESSIBLE),
            AnaState::PersistentLoss => Some(status::ANA_PERSISTENT_LOSS),
            AnaState::Change => Some(status::ANA_TRANSITION),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let b = log_page(AnaState::Inaccessible, 0x0102, &[1, 7], false);
        assert_eq!(b.len(), 16 + 32 + 4 * 1024);
        assert_eq!(&b[..16], [2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            &b[16..33],
            [1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 3]
        );
        assert_eq!(&b[48..60], [1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        let b = log_page(AnaState::Optimized, 1, &[1, 7], true);
        assert_eq!((b[20], b[32], b[48]), (0, 1, 0));
    }
}
