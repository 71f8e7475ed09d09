//! Forwarded commands (`docs/replication.md` §14): Command, Done.

use super::WireError;
use super::bytes::{Cursor, put_stamp, put_zero};
use super::frame::DATA_BYTES_MAX;
use crate::replication::seam::Id;
use crate::store::types::{BLOCK_BYTES, Stamp};

/// Longest age of a command, milliseconds.
pub const AGE_MS_MAX: u32 = 60_000;

const FUSED: u16 = 1;
const FUA: u16 = 2;
/// Smallest logical block of a namespace.
const BYTES_UNIT: u64 = 512;
const STATUS_MAX: u16 = 0x7fff;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a command does, by its NVMe opcode.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Operation { $($(#[$doc])* $name = $number,)* }

        impl Operation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn of(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

operations! {
    /// Flush.
    Flush = 0,
    /// Write; fused: compare and write.
    Write = 1,
    /// Read.
    Read = 2,
    /// Compare.
    Compare = 5,
    /// Write Zeroes.
    WriteZeroes = 8,
    /// Dataset Management, one range to be deallocated.
    Deallocate = 9,
}

impl Operation {
    /// Whether it needs a stamp.
    pub fn modifies(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes | Self::Deallocate)
    }
}

/// How far a command is (rule 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A stamp is asked for.
    Reserve,
    /// The host still holds the command: it is applied under that stamp.
    Confirm(Stamp),
    /// The host does not.
    Void(Stamp),
    /// It modifies nothing, and needs no stamp.
    Read,
}

/// A host's command that came to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The host's identifier, for reservations.
    pub host: Id,
    /// The forwarder's number for it: the same in all its phases.
    pub request: u64,
    /// How far it is.
    pub phase: Phase,
    /// What it does.
    pub operation: Operation,
    /// A compare goes first, of the same blocks: its data are in front of those of the write.
    pub fused: bool,
    /// It is done when it is stable.
    pub fua: bool,
    /// The namespace.
    pub nsid: u32,
    /// Where it begins, a multiple of 512.
    pub first: u64,
    /// How long it is, a multiple of 512; 0 for a flush.
    pub bytes: u64,
    /// It is void when it is older than this, counted from its receiving.
    pub age_ms: u32,
}

impl Command {
    /// Bytes of data behind its body: what is written or compared, filled up with zeroes to whole blocks.
    pub fn data(&self) -> u64 {
        let once = match (self.phase, self.operation) {
            (Phase::Confirm(_), Operation::Write) | (Phase::Read, Operation::Compare) => self.bytes,
            _ => 0,
        };
        let all = if self.fused {
            once.saturating_mul(2)
        } else {
            once
        };
        all.saturating_add(BLOCK_BYTES as u64 - 1) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
    }

    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        let (phase, stamp) = match self.phase {
            Phase::Reserve => (1, None),
            Phase::Confirm(s) => (2, Some(s)),
            Phase::Void(s) => (3, Some(s)),
            Phase::Read => (4, None),
        };
        out.extend_from_slice(&self.host);
        out.extend_from_slice(&self.request.to_le_bytes());
        put_stamp(out, stamp.unwrap_or(NO_STAMP));
        out.extend_from_slice(&[self.operation as u8, phase]);
        let fused = if self.fused { FUSED } else { 0 };
        let fua = if self.fua { FUA } else { 0 };
        out.extend_from_slice(&(fused | fua).to_le_bytes());
        out.extend_from_slice(&self.nsid.to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.age_ms.to_le_bytes());
        put_zero(out, 32);
    }

    /// Reads the body of a frame with `data` bytes behind it.
    ///
    /// # Errors
    /// What no Command of this version is.
    pub fn decode(body: &[u8], data: usize) -> Result<Self, WireError> {
        let mut c = Cursor::new("command", body);
        let host = c.array()?;
        let request = c.u64()?;
        let stamp = c.stamp()?;
        let opcode = c.u8()?;
        let operation = Operation::of(opcode);
        let operation = operation.ok_or(WireError::value("opcode of a command", opcode))?;
        let number = c.u8()?;
        let phase = phase(number, stamp)?;
        if operation.modifies() == (phase == Phase::Read) {
            return Err(WireError::value("phase of a command", number));
        }
        let flags = c.u16()?;
        let command = Self {
            host,
            request,
            phase,
            operation,
            fused: flags & FUSED != 0,
            fua: flags & FUA != 0,
            nsid: c.u32()?,
            first: c.u64()?,
            bytes: c.u64()?,
            age_ms: c.u32()?,
        };
        c.zero(32)?;
        c.end()?;
        if flags & !(FUSED | FUA) != 0 || command.fused && operation != Operation::Write {
            return Err(WireError::value("flags of a command", flags));
        }
        command.check_range()?;
        if command.data() != data as u64 {
            return Err(WireError::value("length of a command's data", data as u64));
        }
        Ok(command)
    }

    fn check_range(&self) -> Result<(), WireError> {
        if !(1..=AGE_MS_MAX).contains(&self.age_ms) {
            return Err(WireError::value("age of a command", self.age_ms));
        }
        let flush = self.operation == Operation::Flush;
        let most = match self.operation {
            Operation::Flush => 0,
            Operation::Write if self.fused => DATA_BYTES_MAX as u64 / 2,
            Operation::Write | Operation::Read | Operation::Compare => DATA_BYTES_MAX as u64,
            Operation::WriteZeroes | Operation::Deallocate => u64::MAX,
        };
        let whole = self.bytes.is_multiple_of(BYTES_UNIT);
        if self.bytes > most || (self.bytes == 0) != flush || !whole {
            return Err(WireError::value("bytes of a command", self.bytes));
        }
        let fits = self.first.checked_add(self.bytes).is_some();
        if !fits || !self.first.is_multiple_of(BYTES_UNIT) || flush && self.first != 0 {
            return Err(WireError::value("first byte of a command", self.first));
        }
        Ok(())
    }
}

/// Where there is none. Counters of stamps begin at 1.
const NO_STAMP: Stamp = Stamp { epoch: 0, seq: 0 };

fn phase(number: u8, stamp: Stamp) -> Result<Phase, WireError> {
    match (number, stamp == NO_STAMP) {
        (1, true) => Ok(Phase::Reserve),
        (2, false) => Ok(Phase::Confirm(stamp)),
        (3, false) => Ok(Phase::Void(stamp)),
        (4, true) => Ok(Phase::Read),
        (1..=4, _) => Err(WireError::value("seq of a command's stamp", stamp.seq)),
        _ => Err(WireError::value("phase of a command", number)),
    }
}

/// A phase of a command is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Of the Command.
    pub request: u64,
    /// NVMe status: bits 0 to 7 code, 8 to 10 type, 14 do not retry; 0: success. As the status field of a completion, without the phase bit.
    pub status: u16,
    /// The reserved one, of a Reserve that succeeded.
    pub stamp: Option<Stamp>,
}

impl Done {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request.to_le_bytes());
        out.extend_from_slice(&self.status.to_le_bytes());
        put_zero(out, 2);
        put_stamp(out, self.stamp.unwrap_or(NO_STAMP));
        put_zero(out, 8);
    }

    /// Reads the body of a frame with `data` bytes behind it: what a Read read, filled up to whole blocks.
    ///
    /// # Errors
    /// What no Done of this version is. Whether it answers its Command in length and stamp is for who sent that to see.
    pub fn decode(body: &[u8], data: usize) -> Result<Self, WireError> {
        let mut c = Cursor::new("done", body);
        let request = c.u64()?;
        let status = c.u16()?;
        c.zero(2)?;
        let stamp = c.stamp()?;
        c.zero(8)?;
        c.end()?;
        let stamp = (stamp != NO_STAMP).then_some(stamp);
        if status > STATUS_MAX {
            return Err(WireError::value("status of a command", status));
        }
        let failed = status != 0;
        if stamp.is_some() && (failed || data != 0) {
            return Err(WireError::value("status with a stamp", status));
        }
        if failed && data != 0 {
            return Err(WireError::value("length of a done's data", data as u64));
        }
        Ok(Self {
            request,
            status,
            stamp,
        })
    }
}
