//! What a replica's scrub found (`docs/replication.md` §§5 and 11): Damaged.

use super::WireError;
use super::bytes::{Cursor, put_zero};
use crate::store::types::{BLOCKS_MAX, LaneBlock};

/// A block of the live lane is damaged here, or was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The lane.
    pub lane: u8,
    /// The block.
    pub block: LaneBlock,
}

impl Damaged {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.lane);
        put_zero(out, 7);
        out.extend_from_slice(&self.block.0.to_le_bytes());
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Damaged of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("damaged", body);
        let lane = c.lane("lane of what is damaged")?;
        c.zero(7)?;
        let block = c.u64()?;
        c.end()?;
        if block >= BLOCKS_MAX {
            return Err(WireError::value("damaged block", block));
        }
        let block = LaneBlock(block);
        Ok(Self { lane, block })
    }
}
