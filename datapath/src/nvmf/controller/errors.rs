//! The error log of one controller: log page 01h (NVMe Base 2.1, 5.1.12.1.2).

use crate::nvmf::seam::{CommandRef, StatusField};
use std::collections::VecDeque;

/// Entries kept; Identify's ELPE is this less one.
pub const MAX_ENTRIES: usize = 64;
/// Size of an entry.
pub const ENTRY_BYTES: usize = 64;

const AT_SQID: usize = 8;
const AT_CID: usize = 10;
const AT_STATUS: usize = 12;
const AT_PARAMETER: usize = 14;
const AT_LBA: usize = 16;
const AT_NSID: usize = 24;
const AT_TRTYPE: usize = 29;
/// The error cannot be laid to one byte of the command.
const NO_PARAMETER: u16 = 0xffff;
const TRTYPE_TCP: u8 = 3;

/// Newest first on the page.
#[derive(Debug, Default)]
pub struct ErrorLog {
    entries: VecDeque<[u8; ENTRY_BYTES]>,
    count: u64,
}

impl ErrorLog {
    /// A command completed with an error.
    pub fn push(&mut self, cmd: CommandRef, status: StatusField, nsid: u32, lba: u64) {
        self.count += 1;
        let mut e = [0; ENTRY_BYTES];
        e[..8].copy_from_slice(&self.count.to_le_bytes());
        e[AT_SQID..AT_SQID + 2].copy_from_slice(&cmd.qid.to_le_bytes());
        e[AT_CID..AT_CID + 2].copy_from_slice(&cmd.cid.to_le_bytes());
        // As in a completion: bit 0 is the phase tag.
        e[AT_STATUS..AT_STATUS + 2].copy_from_slice(&(status.0 << 1).to_le_bytes());
        e[AT_PARAMETER..AT_PARAMETER + 2].copy_from_slice(&NO_PARAMETER.to_le_bytes());
        e[AT_LBA..AT_LBA + 8].copy_from_slice(&lba.to_le_bytes());
        e[AT_NSID..AT_NSID + 4].copy_from_slice(&nsid.to_le_bytes());
        e[AT_TRTYPE] = TRTYPE_TCP;
        self.entries.truncate(MAX_ENTRIES - 1);
        self.entries.push_front(e);
    }

    /// Errors since the controller was made.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The whole page.
    pub fn page(&self) -> Vec<u8> {
        let mut b: Vec<u8> = self.entries.iter().flatten().copied().collect();
        b.resize(MAX_ENTRIES * ENTRY_BYTES, 0);
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_newest_first_and_bounded() {
        let mut log = ErrorLog::default();
        for cid in 0..70 {
            let cmd = CommandRef {
                reactor: 0,
                connection: 0,
                cntlid: 1,
                qid: 3,
                cid,
            };
            log.push(cmd, StatusField::new(2, 0x85).dnr(), 0x0102, 0x0304);
        }
        let b = log.page();
        assert_eq!((b.len(), log.count()), (4096, 70));
        assert_eq!(
            &b[..16],
            [70, 0, 0, 0, 0, 0, 0, 0, 3, 0, 69, 0, 0x0a, 0x85, 0xff, 0xff]
        );
        assert_eq!(&b[16..32], [4, 3, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 3, 0, 0]);
        assert_eq!(b[63 * 64], 7, "the oldest that is kept");
    }
}
