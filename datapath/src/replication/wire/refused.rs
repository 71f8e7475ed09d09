//! A channel is refused (`docs/replication.md` §5).

use super::WireError;
use super::bytes::{Cursor, put_zero};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Why a channel is refused, or ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn of(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// The epoch is not the promised one.
    Epoch = 1,
    /// The epoch is promised to another process, or to another attempt of it.
    Incarnation = 2,
    /// No such volume is here, or not this replica of it.
    Unknown = 3,
    /// The replica is not complete: it is never that replica again.
    Lost = 4,
    /// A drive failed: what was not acknowledged as stable may be gone.
    Failed = 5,
    /// No space, though it was granted.
    Full = 6,
    /// Too many channels, or too much under way; later it may do.
    Busy = 7,
    /// Nobody coordinates the volume here, in this epoch.
    NotServed = 8,
    /// The volume has another number of lanes here.
    Lanes = 9,
    /// A longer lease was asked for than this node gives.
    Lease = 10,
}

/// The channel ends, and what was sent on it is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// That the replica has promised; of a coordinator: that it serves. 0: none.
    pub epoch: u32,
}

impl Refused {
    /// Appends the body.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.reason as u8);
        put_zero(out, 3);
        out.extend_from_slice(&self.epoch.to_le_bytes());
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What no Refused of this version is.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut c = Cursor::new("refused", body);
        let number = c.u8()?;
        let reason = Reason::of(number);
        let reason = reason.ok_or(WireError::value("reason of a refusal", number))?;
        c.zero(3)?;
        let epoch = c.u32()?;
        c.end()?;
        Ok(Self { reason, epoch })
    }
}
