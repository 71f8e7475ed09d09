//! Errors that end a connection, and how the host is told: C2HTermReq (NVMe/TCP 3.6.2.5).

/// Fatal error status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Fes {
    /// Invalid PDU header field.
    Header = 1,
    /// PDU sequence error.
    Sequence = 2,
    /// Header digest error.
    HeaderDigest = 3,
    /// Data transfer out of range.
    TransferRange = 4,
    /// Data transfer limit exceeded.
    TransferLimit = 5,
    /// Unsupported parameter.
    Unsupported = 6,
}

/// A fatal transport error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fatal transport error {fes:?}, information {fei:#x}")]
pub struct Fatal {
    /// What is wrong.
    pub fes: Fes,
    /// The offset of the bad field, or the digest received.
    pub fei: u32,
}

/// Header bytes of the offending PDU that go back with the request.
const COPY_MAX: usize = 128;
const HLEN: usize = 24;

impl Fatal {
    /// An error of a kind, with the byte offset of the field.
    pub const fn new(fes: Fes, fei: u32) -> Self {
        Self { fes, fei }
    }

    /// A header digest that does not match; `received` is what the PDU had.
    pub const fn digest(received: u32) -> Self {
        Self {
            fes: Fes::HeaderDigest,
            fei: received,
        }
    }

    /// The C2HTermReq PDU; `offender` is the PDU that caused it, as far as it is there.
    pub fn term_req(&self, offender: &[u8]) -> Vec<u8> {
        let copy = &offender[..offender.len().min(COPY_MAX)];
        let mut pdu = vec![0; HLEN];
        pdu[0] = super::pdu::kind::C2H_TERM;
        pdu[2] = HLEN as u8;
        pdu[4..8].copy_from_slice(&((HLEN + copy.len()) as u32).to_le_bytes());
        pdu[8..10].copy_from_slice(&(self.fes as u16).to_le_bytes());
        pdu[10..14].copy_from_slice(&self.fei.to_le_bytes());
        pdu.extend_from_slice(copy);
        pdu
    }
}
