//! The stored bytes of a reservation table: the byte table is in `docs/reservations.md`.

use keelblock_nvme::digest::digest;

use super::state::{MAX_REGISTRANTS, Registrant, State};
use crate::nvmf::seam::ReservationType;

const MAGIC: [u8; 4] = *b"KBRS";
const VERSION: u16 = 1;
const FLAG_PTPL: u16 = 1 << 0;
const NO_HOLDER: u16 = 0xffff;

const AT_VERSION: usize = 4;
const AT_FLAGS: usize = 6;
const AT_COMMIT: usize = 8;
const AT_GENERATION: usize = 16;
const AT_KIND: usize = 20;
const AT_COUNT: usize = 22;
const AT_HOLDER: usize = 24;
const HEADER_BYTES: usize = 32;
const REGISTRANT_BYTES: usize = 32;
const AT_KEY: usize = 16;
const CRC_BYTES: usize = 4;

const _: () = assert!(AT_HOLDER + 2 <= HEADER_BYTES);
const _: () = assert!(AT_KEY + 8 <= REGISTRANT_BYTES);
const _: () = assert!(MAX_REGISTRANTS < NO_HOLDER as usize);

/// Why stored bytes are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the header, or not as long as the count says.
    #[error("{0} bytes do not hold a reservation table")]
    Length(usize),
    /// Not ours.
    #[error("the magic number is wrong")]
    Magic,
    /// Written by a later release.
    #[error("version {0} is not known")]
    Version(u16),
    /// The bytes changed since they were written.
    #[error("the checksum is wrong")]
    Checksum,
    /// The field at this offset contradicts the others.
    #[error("the field at byte {0} is not possible")]
    Field(usize),
}

/// The bytes of `state` as commit `commit`.
pub fn encode(state: &State, commit: u64) -> Vec<u8> {
    let holder = state
        .holder
        .and_then(|h| state.registrants.iter().position(|r| r.host == h));
    let mut b = vec![0; HEADER_BYTES + REGISTRANT_BYTES * state.registrants.len()];
    b[..4].copy_from_slice(&MAGIC);
    put(&mut b, AT_VERSION, VERSION.to_le_bytes());
    put(
        &mut b,
        AT_FLAGS,
        (if state.ptpl { FLAG_PTPL } else { 0 }).to_le_bytes(),
    );
    put(&mut b, AT_COMMIT, commit.to_le_bytes());
    put(&mut b, AT_GENERATION, state.generation.to_le_bytes());
    b[AT_KIND] = state.kind as u8;
    put(
        &mut b,
        AT_COUNT,
        (state.registrants.len() as u16).to_le_bytes(),
    );
    put(
        &mut b,
        AT_HOLDER,
        holder.map_or(NO_HOLDER, |i| i as u16).to_le_bytes(),
    );
    for (i, r) in state.registrants.iter().enumerate() {
        let at = HEADER_BYTES + REGISTRANT_BYTES * i;
        put(&mut b, at, r.host);
        put(&mut b, at + AT_KEY, r.key.to_le_bytes());
    }
    let crc = digest(&b);
    b.extend_from_slice(&crc.to_le_bytes());
    b
}

/// The table and commit generation in `b`; no bytes are an empty table of generation 0.
pub fn decode(b: &[u8]) -> Result<(State, u64), DecodeError> {
    if b.is_empty() {
        return Ok((State::default(), 0));
    }
    if b.len() < HEADER_BYTES + CRC_BYTES {
        return Err(DecodeError::Length(b.len()));
    }
    if b[..4] != MAGIC {
        return Err(DecodeError::Magic);
    }
    let version = u16::from_le_bytes(take(b, AT_VERSION));
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let count = usize::from(u16::from_le_bytes(take(b, AT_COUNT)));
    if count > MAX_REGISTRANTS || b.len() != HEADER_BYTES + REGISTRANT_BYTES * count + CRC_BYTES {
        return Err(DecodeError::Length(b.len()));
    }
    let (body, crc) = b.split_at(b.len() - CRC_BYTES);
    if digest(body).to_le_bytes() != crc {
        return Err(DecodeError::Checksum);
    }
    Ok((
        decode_body(body, count)?,
        u64::from_le_bytes(take(b, AT_COMMIT)),
    ))
}

fn decode_body(b: &[u8], count: usize) -> Result<State, DecodeError> {
    let flags = u16::from_le_bytes(take(b, AT_FLAGS));
    if flags & !FLAG_PTPL != 0 {
        return Err(DecodeError::Field(AT_FLAGS));
    }
    let kind = ReservationType::from_rtype(b[AT_KIND]).ok_or(DecodeError::Field(AT_KIND))?;
    let registrants: Vec<Registrant> = (0..count)
        .map(|i| HEADER_BYTES + REGISTRANT_BYTES * i)
        .map(|at| Registrant {
            host: take(b, at),
            key: u64::from_le_bytes(take(b, at + AT_KEY)),
        })
        .collect();
    if let Some(i) = (1..count).find(|&i| registrants[i - 1].host >= registrants[i].host) {
        return Err(DecodeError::Field(HEADER_BYTES + REGISTRANT_BYTES * i));
    }
    if let Some(i) = registrants.iter().position(|r| r.key == 0) {
        return Err(DecodeError::Field(
            HEADER_BYTES + REGISTRANT_BYTES * i + AT_KEY,
        ));
    }
    let holder = match u16::from_le_bytes(take(b, AT_HOLDER)) {
        NO_HOLDER => None,
        i => Some(
            registrants
                .get(usize::from(i))
                .ok_or(DecodeError::Field(AT_HOLDER))?
                .host,
        ),
    };
    let one_holder = kind != ReservationType::None && !kind.all_registrants();
    if one_holder != holder.is_some() || (kind != ReservationType::None && count == 0) {
        return Err(DecodeError::Field(AT_HOLDER));
    }
    let generation = u32::from_le_bytes(take(b, AT_GENERATION));
    Ok(State {
        generation,
        ptpl: flags & FLAG_PTPL != 0,
        kind,
        holder,
        registrants,
    })
}

fn put<const N: usize>(b: &mut [u8], at: usize, v: [u8; N]) {
    b[at..at + N].copy_from_slice(&v);
}

fn take<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut v = [0; N];
    v.copy_from_slice(&b[at..at + N]);
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        State {
            generation: 0x0102_0304,
            ptpl: true,
            kind: ReservationType::ExclusiveAccess,
            holder: Some([2; 16]),
            registrants: vec![
                Registrant {
                    host: [1; 16],
                    key: 0x11,
                },
                Registrant {
                    host: [2; 16],
                    key: 0x2222,
                },
            ],
        }
    }

    #[test]
    fn the_byte_table() {
        let b = encode(&sample(), 0x0a0b);
        assert_eq!(b.len(), 36 + 32 * 2);
        assert_eq!(&b[..8], [0x4b, 0x42, 0x52, 0x53, 1, 0, 1, 0]);
        assert_eq!(&b[8..16], [0x0b, 0x0a, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&b[16..32], [4, 3, 2, 1, 2, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&b[32..48], [1; 16]);
        assert_eq!(
            &b[48..64],
            [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&b[80..88], [0x22, 0x22, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode(&b), Ok((sample(), 0x0a0b)));
        assert_eq!(decode(&[]), Ok((State::default(), 0)));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = encode(&sample(), 9);
        for bit in 0..good.len() * 8 {
            let mut b = good.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&b).is_err(), "bit {bit}");
        }
        for len in 1..good.len() {
            assert!(decode(&good[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn contradictions_with_a_good_checksum_are_refused() {
        let broken = |change: &dyn Fn(&mut [u8])| {
            let mut b = encode(&sample(), 1);
            b.truncate(b.len() - CRC_BYTES);
            change(&mut b);
            let crc = digest(&b);
            b.extend_from_slice(&crc.to_le_bytes());
            decode(&b).unwrap_err()
        };
        assert_eq!(broken(&|b| b[AT_KIND] = 7), DecodeError::Field(AT_KIND));
        assert_eq!(broken(&|b| b[AT_KIND] = 6), DecodeError::Field(AT_HOLDER));
        assert_eq!(broken(&|b| b[AT_HOLDER] = 2), DecodeError::Field(AT_HOLDER));
        assert_eq!(broken(&|b| b[AT_FLAGS] = 2), DecodeError::Field(AT_FLAGS));
        assert_eq!(broken(&|b| b[64..80].fill(1)), DecodeError::Field(64));
        assert_eq!(broken(&|b| b[80..88].fill(0)), DecodeError::Field(80));
        assert_eq!(broken(&|b| b[AT_VERSION] = 2), DecodeError::Version(2));
    }
}
