//! A place in bytes that came from a peer.

use super::WireError;
use super::record::LANES_MAX;
use crate::store::types::Stamp;

/// Reads one field after the other.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`, which are a `what`.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..n) else {
            return Err(WireError::Short {
                what: self.what,
                need: self.at.saturating_add(n),
                have: self.bytes.len(),
            });
        };
        self.at += n;
        Ok(taken)
    }

    /// The next bytes, as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let taken = self.take(N)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn stamp(&mut self) -> Result<Stamp, WireError> {
        Ok(Stamp {
            epoch: self.u32()?,
            seq: self.u64()?,
        })
    }

    /// A lane's number, of a `what`.
    pub fn lane(&mut self, what: &'static str) -> Result<u8, WireError> {
        match self.u8()? {
            lane if lane < LANES_MAX => Ok(lane),
            other => Err(WireError::value(what, other)),
        }
    }

    /// A byte of flags, of which only these are defined.
    pub fn flags(&mut self, what: &'static str, defined: u8) -> Result<u8, WireError> {
        match self.u8()? {
            flags if flags & !defined == 0 => Ok(flags),
            other => Err(WireError::value(what, other)),
        }
    }

    /// What is left of it.
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Reserved bytes.
    pub fn zero(&mut self, n: usize) -> Result<(), WireError> {
        let at = self.at;
        match self.take(n)?.iter().position(|&b| b != 0) {
            None => Ok(()),
            Some(first) => Err(WireError::Reserved {
                what: self.what,
                at: at + first,
            }),
        }
    }

    /// Nothing is left.
    pub fn end(&self) -> Result<(), WireError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            extra => Err(WireError::Trailing {
                what: self.what,
                extra,
            }),
        }
    }
}

/// Appends a stamp.
pub fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.extend_from_slice(&stamp.epoch.to_le_bytes());
    out.extend_from_slice(&stamp.seq.to_le_bytes());
}

/// Appends `n` reserved bytes.
pub fn put_zero(out: &mut Vec<u8>, n: usize) {
    out.resize(out.len() + n, 0);
}
