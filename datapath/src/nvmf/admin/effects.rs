//! Commands Supported and Effects: log page 05h (NVMe Base 2.1, 5.1.12.1.6), for the NVM command set.

use super::identify_controller::ONCS;
use super::page::Page;
use keelblock_nvme::opcode::{FABRICS, admin, io};

/// The command is supported (CSUPP).
const SUPPORTED: u32 = 1 << 0;
/// It may change logical blocks (LBCC).
const CHANGES_BLOCKS: u32 = 1 << 1;
/// Scope: the controller.
const CONTROLLER: u32 = 1 << 21;

/// I/O commands do not report their scope: Linux 6.1 warns of effects that it does not know on those that it passes through.
const READS: u32 = SUPPORTED;
const WRITES: u32 = SUPPORTED | CHANGES_BLOCKS;
const AT_IO: usize = 1024;

/// I/O commands: opcode, entry, bit of ONCS that they need.
const IO_COMMANDS: [(u8, u32, Option<u8>); 11] = [
    (io::FLUSH, READS, None),
    (io::WRITE, WRITES, None),
    (io::READ, READS, None),
    (io::COMPARE, READS, Some(0)),
    (io::WRITE_ZEROES, WRITES, Some(3)),
    (io::DATASET_MANAGEMENT, WRITES, Some(2)),
    (io::VERIFY, READS, Some(7)),
    (io::RESERVATION_REGISTER, READS, Some(5)),
    (io::RESERVATION_REPORT, READS, Some(5)),
    (io::RESERVATION_ACQUIRE, READS, Some(5)),
    (io::RESERVATION_RELEASE, READS, Some(5)),
];
const ADMIN_COMMANDS: [(u8, u32); 8] = [
    (admin::GET_LOG_PAGE, SUPPORTED | CONTROLLER),
    (admin::IDENTIFY, SUPPORTED | CONTROLLER),
    (admin::ABORT, SUPPORTED | CONTROLLER),
    (admin::SET_FEATURES, SUPPORTED | CONTROLLER),
    (admin::GET_FEATURES, SUPPORTED | CONTROLLER),
    (admin::ASYNC_EVENT_REQUEST, SUPPORTED | CONTROLLER),
    (admin::KEEP_ALIVE, SUPPORTED | CONTROLLER),
    (FABRICS, SUPPORTED | CONTROLLER),
];

/// The page.
pub fn page() -> Vec<u8> {
    let mut p = Page::new(4096);
    for (opcode, entry) in ADMIN_COMMANDS {
        p.u32(4 * usize::from(opcode), entry);
    }
    for (opcode, entry, _) in IO_COMMANDS
        .iter()
        .filter(|c| c.2.is_none_or(|bit| ONCS >> bit & 1 != 0))
    {
        p.u32(AT_IO + 4 * usize::from(*opcode), *entry);
    }
    p.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_at_their_opcodes() {
        let b = page();
        let entry = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        assert_eq!(entry(4 * 0x18), 0x0020_0001);
        assert_eq!(entry(1024 + 4), 3, "write changes blocks");
        assert_eq!(entry(1024 + 4 * 0x19), 0, "no copy");
        assert_eq!((entry(4), entry(4 * 5)), (0, 0), "no queue creation");
    }
}
