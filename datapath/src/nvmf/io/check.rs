//! May this command run, and on what: namespace, access, fields, range, SGL - in that order, without touching data.
//!
//! The same check runs when a command arrives and again when its data is in hand, since namespaces, reservations and access states may
//! have changed while the host sent it (`RULES.md`, reservations "are checked when stamping and when data arrives").

use keelblock_nvme::Sqe;
use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::sgl::Sgl;

use crate::nvmf::seam::{HostId, MAX_TRANSFER_BYTES, StatusField};
use crate::nvmf::view::{Namespace, View};
use crate::nvmf::{status, uses_sgl};
use crate::volume::ByteRange;

/// All namespaces of the controller, for Flush.
pub const NSID_ALL: u32 = 0xffff_ffff;
const RANGE_BYTES: usize = 16;
/// DSM attribute: deallocate.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// What a command asks for, checked.
pub enum Work<'v> {
    /// Read.
    Read(&'v Namespace, ByteRange),
    /// Write, with FUA.
    Write(&'v Namespace, ByteRange, bool),
    /// Compare.
    Compare(&'v Namespace, ByteRange),
    /// Write Zeroes, with DEAC.
    WriteZeroes(&'v Namespace, ByteRange, bool),
    /// Verify.
    Verify(&'v Namespace, ByteRange),
    /// Dataset Management with this many bytes of ranges; false: no attribute that we act on.
    Deallocate(&'v Namespace, usize, bool),
    /// Flush of one namespace.
    Flush(&'v Namespace),
    /// Flush of all.
    FlushAll,
    /// A reservation command: for the home of the subsystem.
    Reservation,
}

impl Work<'_> {
    /// Bytes that the host must send before it can run.
    pub fn host_data(&self, sqe: &Sqe) -> usize {
        match self {
            Work::Write(_, at, _) | Work::Compare(_, at) => at.len() as usize,
            Work::Deallocate(..) => sqe.sgl().length() as usize,
            Work::Reservation if sqe.opcode() != opcode::RESERVATION_REPORT => {
                sqe.sgl().length() as usize
            }
            _ => 0,
        }
    }
}

/// Checks a command of an I/O queue.
///
/// # Errors
/// The status to complete it with.
#[inline]
pub fn check<'v>(view: &'v View, host: &HostId, sqe: &Sqe) -> Result<Work<'v>, StatusField> {
    if !uses_sgl(sqe) {
        return Err(status::INVALID_FIELD);
    }
    let op = sqe.opcode();
    match op {
        opcode::READ => {
            let ns = namespace(view, sqe.nsid())?;
            access(ns, host, false)?;
            let at = transfer(ns, sqe)?;
            match sqe.sgl() {
                Sgl::Transport { .. } => Ok(Work::Read(ns, at)),
                _ => Err(status::SGL_TYPE),
            }
        }
        opcode::WRITE => {
            let ns = namespace(view, sqe.nsid())?;
            access(ns, host, true)?;
            Ok(Work::Write(ns, transfer(ns, sqe)?, sqe.fua()))
        }
        _ => check_other(view, host, sqe),
    }
}

fn check_other<'v>(view: &'v View, host: &HostId, sqe: &Sqe) -> Result<Work<'v>, StatusField> {
    let op = sqe.opcode();
    let known = matches!(
        op,
        opcode::FLUSH
            | opcode::COMPARE
            | opcode::WRITE_ZEROES
            | opcode::DATASET_MANAGEMENT
            | opcode::VERIFY
            | opcode::RESERVATION_REGISTER
            | opcode::RESERVATION_REPORT
            | opcode::RESERVATION_ACQUIRE
            | opcode::RESERVATION_RELEASE
    );
    if !known {
        return Err(status::INVALID_OPCODE);
    }
    if op == opcode::FLUSH && sqe.nsid() == NSID_ALL {
        view.namespaces
            .iter()
            .try_for_each(|ns| access(ns, host, true))?;
        return Ok(Work::FlushAll);
    }
    let ns = namespace(view, sqe.nsid())?;
    match op {
        opcode::FLUSH => access(ns, host, true).map(|()| Work::Flush(ns)),
        opcode::COMPARE => {
            access(ns, host, false)?;
            Ok(Work::Compare(ns, transfer(ns, sqe)?))
        }
        opcode::WRITE_ZEROES => {
            access(ns, host, true)?;
            Ok(Work::WriteZeroes(
                ns,
                range(ns, sqe.slba(), u64::from(sqe.blocks()))?,
                sqe.deac(),
            ))
        }
        opcode::VERIFY => {
            access(ns, host, false)?;
            Ok(Work::Verify(
                ns,
                range(ns, sqe.slba(), u64::from(sqe.blocks()))?,
            ))
        }
        opcode::DATASET_MANAGEMENT => {
            let needed = ((sqe.cdw(10) & 0xff) as usize + 1) * RANGE_BYTES;
            access(ns, host, true)?;
            // hosts send the room of 256 ranges whatever their number
            if (sqe.sgl().length() as usize) < needed
                || sqe.sgl().length() as usize > MAX_TRANSFER_BYTES
            {
                return Err(sgl_error(sqe.sgl()));
            }
            Ok(Work::Deallocate(
                ns,
                needed,
                sqe.cdw(11) & ATTRIBUTE_DEALLOCATE != 0,
            ))
        }
        _ => {
            if let Some(refused) = status::of_ana(ns.ana) {
                return Err(refused);
            }
            let len = sqe.sgl().length() as usize;
            match sqe.sgl() {
                Sgl::Other { .. } => Err(status::SGL_TYPE),
                Sgl::InCapsule { .. } if op == opcode::RESERVATION_REPORT => Err(status::SGL_TYPE),
                _ if len > MAX_TRANSFER_BYTES => Err(status::INVALID_FIELD),
                _ => Ok(Work::Reservation),
            }
        }
    }
}

#[inline]
fn namespace(view: &View, nsid: u32) -> Result<&Namespace, StatusField> {
    view.namespace(nsid).ok_or(status::INVALID_NAMESPACE)
}

#[inline]
fn access(ns: &Namespace, host: &HostId, write: bool) -> Result<(), StatusField> {
    if let Some(refused) = status::of_ana(ns.ana) {
        return Err(refused);
    }
    // Of what is forwarded the coordinator knows who may.
    if ns.forwards || ns.reservation.allows(host, write) {
        Ok(())
    } else {
        Err(status::RESERVATION_CONFLICT)
    }
}

/// Range and SGL of a command that moves NLB blocks.
#[inline]
fn transfer(ns: &Namespace, sqe: &Sqe) -> Result<ByteRange, StatusField> {
    let bytes = u64::from(sqe.blocks()) << ns.lba_shift;
    if bytes > MAX_TRANSFER_BYTES as u64 {
        return Err(status::INVALID_FIELD);
    }
    let at = range(ns, sqe.slba(), u64::from(sqe.blocks()))?;
    if u64::from(sqe.sgl().length()) != bytes || matches!(sqe.sgl(), Sgl::Other { .. }) {
        return Err(sgl_error(sqe.sgl()));
    }
    Ok(at)
}

fn sgl_error(sgl: Sgl) -> StatusField {
    if matches!(sgl, Sgl::Other { .. }) {
        status::SGL_TYPE
    } else {
        status::SGL_LENGTH
    }
}

/// LBAs to bytes.
#[inline]
pub fn range(ns: &Namespace, slba: u64, blocks: u64) -> Result<ByteRange, StatusField> {
    match slba.checked_add(blocks) {
        Some(end) if end <= ns.blocks => {
            Ok(ByteRange::new(slba << ns.lba_shift, blocks << ns.lba_shift))
        }
        _ => Err(status::LBA_RANGE),
    }
}
