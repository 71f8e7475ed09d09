//! Read-repair (§11): a member that has a block damaged gets it from another one, over exactly the stamp and the checksum that it has.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::copy::{read, tags};
use super::{Inner, NotRead, Peers, SetStore};
use crate::replication::held::{Held, What};
use crate::replication::seam::Kind;
use crate::replication::wire::resync::Tree;
use crate::store::types::{BLOCK_BYTES, LaneBlock};
use crate::volume::coordinator::driver::Copying;
use crate::volume::coordinator::members::Place;

/// Reads that found damage and wait; what is beyond is found again by the next read.
const WAITING_MAX: usize = 64;

/// Repairs that are due.
#[derive(Debug, Default)]
pub struct Repairs {
    waiting: RefCell<VecDeque<(Place, u8, Range<u64>)>>,
    running: Cell<bool>,
}

/// A member has some of these blocks damaged.
pub(in crate::volume::coordinator) fn damaged<P: Peers, K: SetStore>(
    of: &Rc<Inner<P, K>>,
    place: Place,
    lane: u8,
    blocks: Range<u64>,
) {
    let repairs = &of.repairs;
    let found = (place, lane, blocks);
    let mut waiting = repairs.waiting.borrow_mut();
    if waiting.len() >= WAITING_MAX || waiting.contains(&found) {
        return;
    }
    waiting.push_back(found);
    if repairs.running.replace(true) {
        return;
    }
    let of = of.clone();
    of.handle.clone().spawn("coordinator: repair", async move {
        loop {
            let next = of.repairs.waiting.borrow_mut().pop_front();
            let Some((place, lane, blocks)) = next.filter(|_| !of.ended.get()) else {
                break;
            };
            for block in blocks {
                repair(&of, place, lane, block).await;
            }
        }
        of.repairs.running.set(false);
    });
}

async fn repair<P: Peers, K: SetStore>(of: &Rc<Inner<P, K>>, place: Place, lane: u8, block: u64) {
    let there = read(of, place, Tree::live(lane), block..block + 1).await;
    if !matches!(there, Err(NotRead::Damaged)) {
        return;
    }
    let others = of.machine.borrow().readable().without(place);
    for other in others.iter() {
        let Ok((buffer, entries)) = read(of, other, Tree::live(lane), block..block + 1).await
        else {
            continue;
        };
        let entry = entries[0];
        if entry.kind != Kind::Data {
            continue;
        }
        let what = What::Write {
            first: LaneBlock(block),
            crcs: entry.crc.0.to_le_bytes().into(),
            tags: tags(&entries),
            data: None,
        };
        let copy = Copying {
            record: Held {
                lane,
                stamp: entry.stamp,
                key: entry.seal.key,
                what,
            },
            data: Some((Rc::new(buffer), 0..BLOCK_BYTES)),
            s0: None,
        };
        let done = of.peers.copy(place, &[copy]).await;
        tracing::warn!(?place, lane, block, ?done, "a damaged block was repaired");
        if done.is_ok() {
            return;
        }
    }
}
