//! Dataset Management, deallocate: every range is checked before the first is given back.

use super::forwarded::{Held, deallocate_range};
use super::{Data, Run, failed, other_done, start, status};
use crate::nvmf::conn::reader::Taken;
use crate::nvmf::io::check::range;
use crate::nvmf::seam::StatusField;
use crate::nvmf::view::{Namespace, NamespaceRef};

/// A range definition: context attributes, length in LBAs, starting LBA (NVM Command Set 1.1, figure 'Range Definition').
const RANGE_BYTES: usize = 16;

fn ranges(data: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    data.as_chunks::<RANGE_BYTES>().0.iter().map(|r| {
        let blocks = u32::from_le_bytes([r[4], r[5], r[6], r[7]]);
        let slba = u64::from_le_bytes([r[8], r[9], r[10], r[11], r[12], r[13], r[14], r[15]]);
        (slba, u64::from(blocks))
    })
}

/// Runs the command on `bytes` bytes of ranges; `act`: the host asked for deallocation.
pub(super) fn run(run: Run<'_>, ns: &Namespace, bytes: usize, act: bool, data: Data<'_>) -> Taken {
    if data.bytes().len() < bytes {
        run.fail(status::SGL_LENGTH);
        return Taken::Yes;
    }
    for (slba, blocks) in ranges(&data.bytes()[..bytes]) {
        let checked = if blocks == 0 {
            Ok(())
        } else {
            range(ns, slba, blocks).map(|_| ())
        };
        if let Err(refused) = checked {
            run.fail(refused);
            return Taken::Yes;
        }
    }
    if !act {
        run.answer(StatusField::SUCCESS);
        return Taken::Yes;
    }
    let buffer = match data.into_buffer(run.conn) {
        Ok(buffer) => buffer,
        Err(taken) => return taken,
    };
    let held = ns.forwards.then(|| Held::now(run.conn));
    let (ns, operation) = (NamespaceRef::new(run.view, ns), run.operation());
    start(run.conn, "nvmf-deallocate", async move {
        let mut total = 0;
        for (slba, blocks) in ranges(&buffer[..bytes]).filter(|(_, blocks)| *blocks > 0) {
            let at = match range(&ns, slba, blocks) {
                Ok(at) => at,
                Err(refused) => return operation.complete(refused),
            };
            if let Some(held) = &held {
                if let Err(refused) = deallocate_range(held, &ns, at).await {
                    return operation.complete(other_done(&ns, refused));
                }
            } else if let Err(e) = ns.volume.deallocate(at).await {
                return operation.complete(failed(&ns, e));
            }
            total += at.len();
        }
        if let Some(stats) = &ns.stats {
            stats.discard_done(total, operation.elapsed_ns());
        }
        operation.complete(StatusField::SUCCESS);
    });
    Taken::Yes
}
