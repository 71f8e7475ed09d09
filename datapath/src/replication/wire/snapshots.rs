//! Which snapshots there are (`docs/replication.md` §§5 and 12): Snapshots, Having.

use super::WireError;
use super::bytes::{Cursor, put_zero};
use super::items::{List, put_all};
use crate::replication::seam::Id;

/// Most snapshots of a volume.
pub const SNAPSHOTS_MAX: usize = 1024;

const WHOLE: u8 = 1;

/// These snapshots of the volume exist, or are being taken: all others are to be deleted.
#[derive(Clone, Copy, Debug)]
pub struct Snapshots<'a> {
    /// Names it in the answer; from 1 on in its channel.
    pub number: u64,
    /// To a replica that is copied to: those of them that some of its lanes lack are to be deleted, too.
    pub whole: bool,
    /// Their ids.
    pub ids: List<'a, Id>,
}

/// Those of the snapshots that were named last that are in all lanes of a replica; others are deleted there.
#[derive(Clone, Copy, Debug)]
pub struct Having<'a> {
    /// Of the question.
    pub number: u64,
    /// Their ids.
    pub ids: List<'a, Id>,
}

fn put(out: &mut Vec<u8>, number: u64, flags: u8, ids: &[Id]) {
    assert!(ids.len() <= SNAPSHOTS_MAX, "as many as a volume has");
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(ids.len() as u16).to_le_bytes());
    out.push(flags);
    put_zero(out, 5);
    put_all(out, ids);
}

fn take<'a>(
    what: &'static str,
    body: &'a [u8],
    flags: u8,
) -> Result<(u64, u8, List<'a, Id>), WireError> {
    let mut c = Cursor::new(what, body);
    let number = c.u64()?;
    let n = c.u16()?;
    let flags = c.flags("flags of snapshots", flags)?;
    c.zero(5)?;
    if usize::from(n) > SNAPSHOTS_MAX {
        return Err(WireError::value("snapshots", n));
    }
    if number == 0 {
        return Err(WireError::value("number of snapshots", number));
    }
    let ids = List::take(&mut c, usize::from(n))?;
    c.end()?;
    Ok((number, flags, ids))
}

/// Appends the body of Snapshots.
///
/// # Panics
/// If they are more than a volume may have.
pub fn encode_snapshots(out: &mut Vec<u8>, number: u64, whole: bool, ids: &[Id]) {
    put(out, number, if whole { WHOLE } else { 0 }, ids);
}

/// Appends the body of Having.
///
/// # Panics
/// If they are more than a volume may have.
pub fn encode_having(out: &mut Vec<u8>, number: u64, ids: &[Id]) {
    put(out, number, 0, ids);
}

impl<'a> Snapshots<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Snapshots of this version are.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let (number, flags, ids) = take("snapshots", body, WHOLE)?;
        let whole = flags & WHOLE != 0;
        Ok(Self { number, whole, ids })
    }
}

impl<'a> Having<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What no Having of this version is.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let (number, _, ids) = take("having", body, 0)?;
        Ok(Self { number, ids })
    }
}
