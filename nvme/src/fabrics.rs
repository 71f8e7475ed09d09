//! Connect, properties and Disconnect (NVMe Base 2.1, 6).

use crate::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::nqn::{NQN_FIELD_LEN, NqnError, nqn_field, put_nqn};
use crate::{Sqe, opcode};

/// Length of the data of a Connect command.
pub const CONNECT_DATA_LEN: usize = 1024;
/// CNTLID that asks for a dynamic controller.
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// CATTR: the host disables SQ flow control.
pub const CATTR_DISABLE_SQ_FLOW: u8 = 1 << 2;

/// Offsets in the entry and the data of a Connect; also the IPO of what is invalid.
pub mod at {
    /// RECFMT in the entry.
    pub const RECFMT: usize = 40;
    /// QID in the entry.
    pub const QID: usize = 42;
    /// SQSIZE in the entry.
    pub const SQSIZE: usize = 44;
    /// CATTR in the entry.
    pub const CATTR: usize = 46;
    /// KATO in the entry.
    pub const KATO: usize = 48;
    /// HOSTID in the data.
    pub const HOSTID: usize = 0;
    /// CNTLID in the data.
    pub const CNTLID: usize = 16;
    /// SUBNQN in the data.
    pub const SUBNQN: usize = 256;
    /// HOSTNQN in the data.
    pub const HOSTNQN: usize = 512;
}
const _: () = assert!(
    at::HOSTNQN + NQN_FIELD_LEN <= CONNECT_DATA_LEN && at::SUBNQN + NQN_FIELD_LEN == at::HOSTNQN
);

/// The entry of a Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectCommand {
    /// Record format: 0.
    pub recfmt: u16,
    /// Queue: 0 = admin.
    pub qid: u16,
    /// Submission queue size, 0's based.
    pub sqsize: u16,
    /// Attributes.
    pub cattr: u8,
    /// Keep-alive timeout, milliseconds; admin queue only.
    pub kato_ms: u32,
}

impl ConnectCommand {
    /// Reads the fields.
    pub fn parse(sqe: &Sqe) -> Self {
        Self {
            recfmt: u16_at(&sqe.0, at::RECFMT),
            qid: u16_at(&sqe.0, at::QID),
            sqsize: u16_at(&sqe.0, at::SQSIZE),
            cattr: sqe.0[at::CATTR],
            kato_ms: u32_at(&sqe.0, at::KATO),
        }
    }

    /// The entry, without SGL and command identifier.
    pub fn encode(&self) -> Sqe {
        let mut s = Sqe::fabrics(opcode::fabrics::CONNECT);
        put_u16(&mut s.0, at::RECFMT, self.recfmt);
        put_u16(&mut s.0, at::QID, self.qid);
        put_u16(&mut s.0, at::SQSIZE, self.sqsize);
        s.0[at::CATTR] = self.cattr;
        put_u32(&mut s.0, at::KATO, self.kato_ms);
        s
    }
}

/// The data of a Connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller identifier, or [`CNTLID_DYNAMIC`].
    pub cntlid: u16,
    /// The subsystem.
    pub subnqn: String,
    /// The host.
    pub hostnqn: String,
}

/// A Connect's data is not well formed: the field at `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Connect data at offset {offset}: {why}")]
pub struct ConnectDataError {
    /// Offset of the field, for IPO.
    pub offset: u16,
    /// What is wrong.
    pub why: NqnError,
}

impl ConnectData {
    /// Parses the data; names must be terminated, not empty, and UTF-8.
    pub fn parse(b: &[u8; CONNECT_DATA_LEN]) -> Result<Self, ConnectDataError> {
        let name = |offset: usize| {
            nqn_field(&b[offset..offset + NQN_FIELD_LEN])
                .map(str::to_owned)
                .map_err(|why| ConnectDataError {
                    offset: offset as u16,
                    why,
                })
        };
        let mut hostid = [0; 16];
        hostid.copy_from_slice(&b[at::HOSTID..at::HOSTID + 16]);
        Ok(Self {
            hostid,
            cntlid: u16_at(b, at::CNTLID),
            subnqn: name(at::SUBNQN)?,
            hostnqn: name(at::HOSTNQN)?,
        })
    }

    /// The data; a name that is too long is an error.
    pub fn encode(&self) -> Result<[u8; CONNECT_DATA_LEN], NqnError> {
        let mut b = [0; CONNECT_DATA_LEN];
        b[at::HOSTID..at::HOSTID + 16].copy_from_slice(&self.hostid);
        put_u16(&mut b, at::CNTLID, self.cntlid);
        put_nqn(&mut b[at::SUBNQN..at::SUBNQN + NQN_FIELD_LEN], &self.subnqn)?;
        put_nqn(
            &mut b[at::HOSTNQN..at::HOSTNQN + NQN_FIELD_LEN],
            &self.hostnqn,
        )?;
        Ok(b)
    }
}

/// A Property Get or Property Set: ATTRIB, OFST and, for Set, VALUE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyCommand {
    /// Size of the property: `true` for 8 bytes, `false` for 4; `None` for a reserved value.
    pub wide: Option<bool>,
    /// Offset of the property.
    pub offset: u32,
    /// The value (Set).
    pub value: u64,
}

impl PropertyCommand {
    const ATTRIB: usize = 40;
    const OFST: usize = 44;
    const VALUE: usize = 48;

    /// Reads the fields.
    pub fn parse(sqe: &Sqe) -> Self {
        let wide = match sqe.0[Self::ATTRIB] & 7 {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        Self {
            wide,
            offset: u32_at(&sqe.0, Self::OFST),
            value: u64_at(&sqe.0, Self::VALUE),
        }
    }

    /// A Property Get of 4 or 8 bytes.
    pub fn get(offset: u32, wide: bool) -> Sqe {
        Self::entry(opcode::fabrics::PROPERTY_GET, offset, wide)
    }

    /// A Property Set of 4 or 8 bytes.
    pub fn set(offset: u32, wide: bool, value: u64) -> Sqe {
        let mut s = Self::entry(opcode::fabrics::PROPERTY_SET, offset, wide);
        put_u64(&mut s.0, Self::VALUE, value);
        s
    }

    fn entry(fctype: u8, offset: u32, wide: bool) -> Sqe {
        let mut s = Sqe::fabrics(fctype);
        s.0[Self::ATTRIB] = wide as u8;
        put_u32(&mut s.0, Self::OFST, offset);
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_round_trip_and_bad_names() {
        let cmd = ConnectCommand {
            recfmt: 0,
            qid: 3,
            sqsize: 127,
            cattr: CATTR_DISABLE_SQ_FLOW,
            kato_ms: 15000,
        };
        assert_eq!(ConnectCommand::parse(&cmd.encode()), cmd);
        let data = ConnectData {
            hostid: [7; 16],
            cntlid: CNTLID_DYNAMIC,
            subnqn: "nqn.2026-01.io.keelblock:c:v".into(),
            hostnqn: "nqn.2014-08.org.nvmexpress:uuid:x".into(),
        };
        let mut b = data.encode().unwrap();
        assert_eq!(ConnectData::parse(&b), Ok(data));
        b[at::SUBNQN..at::SUBNQN + NQN_FIELD_LEN].fill(b'a');
        assert_eq!(ConnectData::parse(&b).unwrap_err().offset, 256);
        b[at::SUBNQN] = 0;
        assert_eq!(ConnectData::parse(&b).unwrap_err().why, NqnError::Empty);
    }

    #[test]
    fn property_round_trip() {
        let p = PropertyCommand::parse(&PropertyCommand::set(0x14, false, 0x46_0001));
        assert_eq!(
            p,
            PropertyCommand {
                wide: Some(false),
                offset: 0x14,
                value: 0x46_0001
            }
        );
        assert_eq!(
            PropertyCommand::parse(&PropertyCommand::get(0, true)).wide,
            Some(true)
        );
    }
}
