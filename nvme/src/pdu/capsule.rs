//! Command and response capsules (NVMe/TCP 1.1, 3.6.2.6 and 3.6.2.7).

use super::{COMMON_HEADER_LEN, CommonHeader, DataLayout, Digests, PduType};
use crate::{Cqe, Sqe};

const SQE: usize = COMMON_HEADER_LEN;
const CQE: usize = COMMON_HEADER_LEN;
const _: () = assert!(SQE + Sqe::LEN == CapsuleCmd::LEN && CQE + Cqe::LEN == CapsuleResp::LEN);

/// Command capsule: a submission queue entry, and data if its SGL says that it lies in the capsule.
pub struct CapsuleCmd;

impl CapsuleCmd {
    /// Header length.
    pub const LEN: usize = PduType::CapsuleCmd.header_len();

    /// The SQE of a header.
    pub fn sqe(b: &[u8; Self::LEN]) -> Sqe {
        let mut sqe = [0; Sqe::LEN];
        sqe.copy_from_slice(&b[SQE..]);
        Sqe(sqe)
    }

    /// The header of a capsule with `data_len` bytes of in-capsule data (0: none), aligned to `align` bytes.
    pub fn encode(sqe: &Sqe, data_len: u32, digests: Digests, align: usize) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        let (pdo, plen) = if data_len == 0 {
            (
                0,
                (Self::LEN + if digests.header { super::DIGEST_LEN } else { 0 }) as u32,
            )
        } else {
            let l = DataLayout::new(PduType::CapsuleCmd, data_len, digests, align);
            (l.pdo, l.plen)
        };
        CommonHeader::put(
            &mut b,
            PduType::CapsuleCmd,
            digests.flags(data_len > 0),
            pdo,
            plen,
        );
        b[SQE..].copy_from_slice(&sqe.0);
        b
    }
}

/// Response capsule: a completion queue entry.
pub struct CapsuleResp;

impl CapsuleResp {
    /// Header length.
    pub const LEN: usize = PduType::CapsuleResp.header_len();

    /// The CQE of a header.
    pub fn cqe(b: &[u8; Self::LEN]) -> Cqe {
        let mut cqe = [0; Cqe::LEN];
        cqe.copy_from_slice(&b[CQE..]);
        Cqe(cqe)
    }

    /// The header.
    pub fn encode(cqe: &Cqe, digests: Digests) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        let plen = Self::LEN + if digests.header { super::DIGEST_LEN } else { 0 };
        CommonHeader::put(
            &mut b,
            PduType::CapsuleResp,
            digests.flags(false),
            0,
            plen as u32,
        );
        b[CQE..].copy_from_slice(&cqe.0);
        b
    }
}
