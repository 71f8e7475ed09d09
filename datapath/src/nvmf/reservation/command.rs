//! From the bytes of a reservation command to what it asks for (NVMe Base 2.1, 7.5 to 7.8).

use super::state::{Op, PtplChange, Refusal};
use crate::nvmf::controller::status;
use crate::nvmf::seam::{MAX_TRANSFER_BYTES, ReservationType, StatusField};
use keelblock_nvme::Sqe;
use keelblock_nvme::opcode::io::{
    RESERVATION_ACQUIRE, RESERVATION_REGISTER, RESERVATION_RELEASE, RESERVATION_REPORT,
};

/// CDW10 bit 3 of all but Report.
const IEKEY: u32 = 1 << 3;

/// A parsed command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// Changes the table.
    Change(Op),
    /// Reservation Report, extended form, of this many bytes.
    Report {
        /// NUMD as bytes.
        bytes: usize,
    },
}

impl Refusal {
    /// The status that says it.
    pub fn status(self) -> StatusField {
        match self {
            Refusal::Conflict => status::RESERVATION_CONFLICT,
            Refusal::InvalidField => status::INVALID_FIELD,
            Refusal::Full => status::INTERNAL_ERROR,
        }
    }
}

/// Parses `command`; `data` is what came with it.
pub fn parse(command: &Sqe, data: &[u8]) -> Result<Parsed, StatusField> {
    let cdw10 = command.cdw(10);
    match command.opcode() {
        RESERVATION_REGISTER => register(cdw10, data).map(Parsed::Change),
        RESERVATION_ACQUIRE => acquire(cdw10, data).map(Parsed::Change),
        RESERVATION_RELEASE => release(cdw10, data).map(Parsed::Change),
        RESERVATION_REPORT => parse_report(command),
        _ => Err(status::INVALID_OPCODE),
    }
}

fn register(cdw10: u32, data: &[u8]) -> Result<Op, StatusField> {
    let current = key(data, 0)?;
    let new_key = key(data, 8)?;
    let key = (cdw10 & IEKEY == 0).then_some(current);
    let ptpl = match cdw10 >> 30 {
        0 => PtplChange::Keep,
        2 => PtplChange::Clear,
        3 => PtplChange::Set,
        _ => return Err(status::INVALID_FIELD),
    };
    match cdw10 & 7 {
        0 => Ok(Op::Register { new_key, ptpl }),
        1 => Ok(Op::Unregister { key, ptpl }),
        2 => Ok(Op::Replace { key, new_key, ptpl }),
        _ => Err(status::INVALID_FIELD),
    }
}

fn acquire(cdw10: u32, data: &[u8]) -> Result<Op, StatusField> {
    let (current, victim) = (key(data, 0)?, key(data, 8)?);
    let kind =
        ReservationType::from_rtype((cdw10 >> 8) as u8).filter(|k| *k != ReservationType::None);
    let kind = kind.ok_or(status::INVALID_FIELD)?;
    if cdw10 & IEKEY != 0 {
        return Err(status::INVALID_FIELD);
    }
    match cdw10 & 7 {
        0 => Ok(Op::Acquire { key: current, kind }),
        a @ (1 | 2) => Ok(Op::Preempt {
            key: current,
            victim,
            kind,
            abort: a == 2,
        }),
        _ => Err(status::INVALID_FIELD),
    }
}

fn release(cdw10: u32, data: &[u8]) -> Result<Op, StatusField> {
    let key = key(data, 0)?;
    if cdw10 & IEKEY != 0 {
        return Err(status::INVALID_FIELD);
    }
    match cdw10 & 7 {
        0 => Ok(Op::Release {
            key,
            rtype: (cdw10 >> 8) as u8,
        }),
        1 => Ok(Op::Clear { key }),
        _ => Err(status::INVALID_FIELD),
    }
}

fn parse_report(command: &Sqe) -> Result<Parsed, StatusField> {
    // A fabric host's identifier has 128 bits, which the short form cannot show.
    if command.cdw(11) & 1 == 0 {
        return Err(status::HOST_ID_FORMAT);
    }
    let bytes = (u64::from(command.cdw(10)) + 1) * 4;
    if bytes > u64::from(command.sgl().length()) {
        return Err(status::SGL_LENGTH);
    }
    if bytes > MAX_TRANSFER_BYTES as u64 {
        return Err(status::INVALID_FIELD);
    }
    Ok(Parsed::Report {
        bytes: bytes as usize,
    })
}

fn key(data: &[u8], at: usize) -> Result<u64, StatusField> {
    let bytes = data.get(at..at + 8).and_then(|b| b.try_into().ok());
    bytes.map(u64::from_le_bytes).ok_or(status::SGL_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_nvme::sgl::Sgl;

    fn sqe(opcode: u8, cdw10: u32, cdw11: u32, length: u32) -> Sqe {
        let mut s = Sqe::new(opcode, 1).with_cdw(10, cdw10).with_cdw(11, cdw11);
        s.set_sgl(Sgl::Transport { length });
        s
    }

    fn parsed(opcode: u8, cdw10: u32, data: &[u8]) -> Result<Parsed, StatusField> {
        parse(&sqe(opcode, cdw10, 1, 4096), data)
    }

    #[test]
    fn commands_and_their_fields() {
        let mut d = [0; 16];
        d[0] = 0xa1;
        d[8] = 0xb2;
        let change = |opcode, cdw10| match parsed(opcode, cdw10, &d) {
            Ok(Parsed::Change(op)) => op,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            change(RESERVATION_REGISTER, 0),
            Op::Register {
                new_key: 0xb2,
                ptpl: PtplChange::Keep
            }
        );
        assert_eq!(
            change(RESERVATION_REGISTER, 1 | 2 << 30),
            Op::Unregister {
                key: Some(0xa1),
                ptpl: PtplChange::Clear
            }
        );
        assert_eq!(
            change(RESERVATION_REGISTER, 2 | 8 | 3 << 30),
            Op::Replace {
                key: None,
                new_key: 0xb2,
                ptpl: PtplChange::Set
            }
        );
        assert_eq!(
            change(RESERVATION_ACQUIRE, 3 << 8),
            Op::Acquire {
                key: 0xa1,
                kind: ReservationType::WriteExclusiveRegistrants
            }
        );
        let kind = ReservationType::WriteExclusive;
        assert_eq!(
            change(RESERVATION_ACQUIRE, 2 | 1 << 8),
            Op::Preempt {
                key: 0xa1,
                victim: 0xb2,
                kind,
                abort: true
            }
        );
        assert_eq!(
            change(RESERVATION_RELEASE, 6 << 8),
            Op::Release {
                key: 0xa1,
                rtype: 6
            }
        );
        assert_eq!(change(RESERVATION_RELEASE, 1), Op::Clear { key: 0xa1 });
    }

    #[test]
    fn what_is_reserved_is_refused() {
        let d = [1; 16];
        for (opcode, cdw10) in [
            (RESERVATION_REGISTER, 3),
            (RESERVATION_REGISTER, 1 << 30),
            (RESERVATION_ACQUIRE, 0),
            (RESERVATION_ACQUIRE, 7 << 8),
            (RESERVATION_ACQUIRE, 3 | 1 << 8),
            (RESERVATION_ACQUIRE, IEKEY | 1 << 8),
            (RESERVATION_RELEASE, 2),
            (RESERVATION_RELEASE, IEKEY),
        ] {
            assert_eq!(
                parsed(opcode, cdw10, &d),
                Err(status::INVALID_FIELD),
                "{opcode:#x} {cdw10:#x}"
            );
        }
        assert_eq!(
            parsed(RESERVATION_REGISTER, 0, &d[..15]),
            Err(status::SGL_LENGTH)
        );
        assert_eq!(
            parsed(RESERVATION_RELEASE, 0, &d[..7]),
            Err(status::SGL_LENGTH)
        );
    }

    #[test]
    fn report_wants_the_extended_form_and_room() {
        let report = |cdw10, cdw11, sgl| parse(&sqe(RESERVATION_REPORT, cdw10, cdw11, sgl), &[]);
        assert_eq!(report(1023, 1, 4096), Ok(Parsed::Report { bytes: 4096 }));
        assert_eq!(report(1023, 0, 4096), Err(status::HOST_ID_FORMAT));
        assert_eq!(report(1023, 1, 4092), Err(status::SGL_LENGTH));
        assert_eq!(
            report(1 << 18, 1, u32::MAX),
            Err(status::INVALID_FIELD),
            "beyond MDTS"
        );
        assert_eq!(report(u32::MAX, 1, u32::MAX), Err(status::SGL_LENGTH));
    }
}
