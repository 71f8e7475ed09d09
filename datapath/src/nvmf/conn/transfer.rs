//! Write data on its way: R2Ts that wait for H2CData.
//!
//! A transfer has its buffer in hand before its R2T goes out, and one R2T asks for the whole of it, so MAXR2T (a limit per command) is
//! kept whatever the host said. H2CData must name a live tag and its command, continue where the last PDU ended, and end exactly at the
//! end with LAST_PDU; anything else is fatal (NVMe/TCP 3.4.5). Tags carry a generation, so that a late PDU of a finished transfer is
//! not taken for data of the next.

use keelblock_hugepages::Buffer;

use keelblock_nvme::Sqe;
use keelblock_nvme::pdu::{H2CData, PduError, at};

/// Tags in use at once: the largest queue.
pub const TRANSFERS_MAX: usize = 1024;
const SLOT_BITS: u32 = 10;
const _: () = assert!(1 << SLOT_BITS == TRANSFERS_MAX);

/// Data that a command waits for.
pub struct Transfer {
    /// The command.
    pub sqe: Sqe,
    /// Where the data goes.
    pub buffer: Buffer,
    /// Bytes to come in all.
    pub len: usize,
    /// Bytes that came.
    pub got: usize,
    /// A data digest did not match: the command fails when all has come.
    pub damaged: bool,
}

impl Transfer {
    /// The command identifier.
    pub fn cid(&self) -> u16 {
        self.sqe.cid()
    }
}

#[derive(Default)]
struct Slot {
    generation: u16,
    transfer: Option<Transfer>,
}

/// The transfers of a connection.
#[derive(Default)]
pub struct Transfers {
    slots: Vec<Slot>,
    free: Vec<u16>,
    live: usize,
    bytes: usize,
}

impl Transfers {
    /// Bytes that transfers have buffers for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Transfers that wait for data.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Begins a transfer; the tag goes into the R2T. The queue's bound keeps the number below [`TRANSFERS_MAX`].
    pub fn begin(&mut self, transfer: Transfer) -> u16 {
        self.live += 1;
        self.bytes += transfer.len;
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(
                self.slots.len() < TRANSFERS_MAX,
                "more transfers than commands in the queue"
            );
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u16
        });
        let entry = &mut self.slots[slot as usize];
        entry.transfer = Some(transfer);
        slot | entry.generation << SLOT_BITS
    }

    /// The transfer that an H2CData PDU continues.
    ///
    /// # Errors
    /// The PDU does not fit to any: fatal.
    pub fn accept(&mut self, header: H2CData) -> Result<(u16, &mut Transfer), PduError> {
        let slot = header.ttag & (TRANSFERS_MAX as u16 - 1);
        let transfer = self
            .slots
            .get_mut(slot as usize)
            .filter(|s| s.generation == header.ttag >> SLOT_BITS)
            .and_then(|s| s.transfer.as_mut())
            .ok_or(PduError::field(
                H2CData::AT_TTAG,
                "H2CData that no R2T asked for",
            ))?;
        if transfer.cid() != header.cccid {
            return Err(PduError::field(
                H2CData::AT_CCCID,
                "H2CData of another command than its R2T's",
            ));
        }
        if header.offset as usize != transfer.got {
            return Err(PduError::out_of_range("H2CData out of order"));
        }
        let end = transfer.got + header.length as usize;
        if end > transfer.len {
            return Err(PduError::out_of_range("H2CData beyond the end of its R2T"));
        }
        if header.last != (end == transfer.len) {
            return Err(PduError::field(
                at::FLAGS,
                "LAST_PDU is not on the last H2CData of an R2T, or on another",
            ));
        }
        Ok((slot, transfer))
    }

    /// A transfer that is being received, by slot.
    pub fn get(&mut self, slot: u16) -> &mut Transfer {
        self.slots[slot as usize]
            .transfer
            .as_mut()
            .expect("a transfer that is being received")
    }

    /// Ends a transfer: its tag is stale from now on.
    pub fn end(&mut self, slot: u16) -> Transfer {
        let entry = &mut self.slots[slot as usize];
        let transfer = entry
            .transfer
            .take()
            .expect("a transfer that is being received");
        entry.generation = (entry.generation + 1) & (u16::MAX >> SLOT_BITS);
        self.free.push(slot);
        self.live -= 1;
        self.bytes -= transfer.len;
        transfer
    }
}
