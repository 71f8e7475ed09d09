//! Reservation Report, extended form (NVMe Base 2.1, 7.7, figure 'Reservation Status Extended').

use super::state::State;
use crate::nvmf::seam::HostId;

const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 64;
const AT_TYPE: usize = 4;
const AT_COUNT: usize = 5;
const AT_PTPL: usize = 9;
const ENTRY_STATUS: usize = 2;
const ENTRY_KEY: usize = 8;
const ENTRY_HOST: usize = 16;
/// CNTLID of a registrant that has no controller now.
const NO_CONTROLLER: u16 = 0xffff;

/// The report, cut or zero-filled to `bytes`. `controller` names a controller of a host.
pub fn report_extended(
    state: &State,
    bytes: usize,
    controller: impl Fn(&HostId) -> Option<u16>,
) -> Vec<u8> {
    let whole = HEADER_BYTES + ENTRY_BYTES * state.registrants.len();
    let mut b = vec![0; whole];
    b[..4].copy_from_slice(&state.generation.to_le_bytes());
    b[AT_TYPE] = state.kind as u8;
    b[AT_COUNT..AT_COUNT + 2].copy_from_slice(&(state.registrants.len() as u16).to_le_bytes());
    b[AT_PTPL] = u8::from(state.ptpl);
    for (e, r) in b[HEADER_BYTES..]
        .chunks_exact_mut(ENTRY_BYTES)
        .zip(&state.registrants)
    {
        e[..2].copy_from_slice(&controller(&r.host).unwrap_or(NO_CONTROLLER).to_le_bytes());
        e[ENTRY_STATUS] = u8::from(state.holds(r.host));
        e[ENTRY_KEY..ENTRY_KEY + 8].copy_from_slice(&r.key.to_le_bytes());
        e[ENTRY_HOST..ENTRY_HOST + 16].copy_from_slice(&r.host);
    }
    b.resize(bytes, 0);
    b
}

#[cfg(test)]
mod tests {
    use super::super::state::Registrant;
    use super::*;
    use crate::nvmf::seam::ReservationType;

    #[test]
    fn layout() {
        let s = State {
            generation: 0x0506,
            ptpl: true,
            kind: ReservationType::WriteExclusive,
            holder: Some([2; 16]),
            registrants: vec![
                Registrant {
                    host: [1; 16],
                    key: 0x77,
                },
                Registrant {
                    host: [2; 16],
                    key: 0x88,
                },
            ],
        };
        let b = report_extended(&s, 256, |h| (*h == [2; 16]).then_some(0x0304));
        assert_eq!(b.len(), 256);
        assert_eq!(&b[..10], [6, 5, 0, 0, 1, 2, 0, 0, 0, 1]);
        assert!(b[10..64].iter().all(|x| *x == 0));
        assert_eq!(
            &b[64..80],
            [0xff, 0xff, 0, 0, 0, 0, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&b[80..96], [1; 16]);
        assert_eq!(&b[128..137], [4, 3, 1, 0, 0, 0, 0, 0, 0x88]);
        assert!(b[192..].iter().all(|x| *x == 0));
        assert_eq!(report_extended(&s, 8, |_| None).len(), 8);
    }
}
