//! A host that knows several ways to its volume: coordinators, and nodes that forward. What it has no answer to it sends again by another.

use std::time::Duration;

use keelblock_hugepages::Buffer;

use super::cluster::{Coordinator, LANES};
use super::forward::{Path, What};
use super::history::{Did, Seen};
use super::run::{BLOCKS, BLOCKS_AT_ONCE, Hosts, PATIENCE, done, pattern, saw};
use crate::reactor::Handle;
use crate::store::types::{BLOCK_BYTES, LaneBlock};
use crate::volume::coordinator::state::Standing;

/// How often a host sends a write before it takes it for lost.
const ATTEMPTS: usize = 5;

/// Where a host's command goes.
enum Way {
    Door(Coordinator),
    Path(Path),
}

impl Hosts {
    /// Some way, mostly a good one; `None`: there is none.
    fn way(&self, handle: &Handle) -> Option<Way> {
        let random = handle.random();
        let (doors, paths) = (self.doors.borrow(), self.paths.borrow());
        let of = |n: usize| (random >> 8) as usize % n.max(1);
        let path = || paths.get(of(paths.len())).cloned().map(Way::Path);
        let newest = || doors.last().cloned().map(Way::Door);
        match random % 8 {
            0..=3 => path().or_else(newest),
            4..=6 => newest().or_else(path),
            _ => doors.get(of(doors.len())).cloned().map(Way::Door),
        }
    }
}

/// One operation of such a host.
pub async fn anywhere(handle: &Handle, hosts: &Hosts) {
    let random = handle.random();
    let lane = (random % u64::from(LANES)) as u8;
    let first = (random >> 8) % BLOCKS;
    let blocks = 1 + (random >> 16) % BLOCKS_AT_ONCE.min(BLOCKS - first);
    let range = first..first + blocks;
    let what = match (random >> 24) % 20 {
        0..=8 => {
            hosts.values.set(hosts.values.get() + 1);
            let value = hosts.values.get();
            let fua = random >> 32 & 7 == 0;
            What::Write { value, fua }
        }
        9 => What::Erase,
        10 => What::Flush,
        _ => What::Read,
    };
    let mut froms = Vec::new();
    let modifies = matches!(what, What::Write { .. } | What::Erase);
    let mut answer = None;
    for attempt in 0..ATTEMPTS {
        let Some(way) = hosts.way(handle) else {
            handle.sleep(Duration::from_millis(20)).await;
            continue;
        };
        let random = handle.random();
        let most = [30, 300, 3_000][(random % 3) as usize];
        let patience = Duration::from_millis(1 + (random >> 8) % most);
        if attempt > 0 && modifies {
            hosts.counts.borrow_mut().retried += 1;
        }
        let by_path = matches!(way, Way::Path(_));
        froms.push(hosts.moment());
        answer = match way {
            Way::Path(path) => {
                let answer = path.ask(handle, what, (lane, &range), patience).await;
                answer.and_then(Result::ok)
            }
            Way::Door(door) => by_door(handle, &door, what, (lane, &range), patience).await,
        };
        hosts.counts.borrow_mut().forwarded += u64::from(by_path && answer.is_some());
        if answer.is_some() || !modifies {
            break;
        }
        // Mostly so soon that the first one may still be on its way.
        let random = handle.random();
        let most = [2_000, 2_000, 300_000][(random % 3) as usize];
        let pause = (random >> 8) % most;
        handle.sleep(Duration::from_micros(pause)).await;
    }
    let Some(last) = froms.pop() else { return };
    let value = match (what, answer) {
        (What::Write { value, .. }, answer) => (value, answer.is_some()),
        (What::Erase, answer) => (0, answer.is_some()),
        (What::Flush, answer) => {
            hosts.counts.borrow_mut().flushes += u64::from(answer.is_some());
            return;
        }
        (What::Read, Some(Some(buffer))) => return saw(hosts, lane, range, last, &buffer),
        (What::Read, _) => return,
    };
    let (value, acknowledged) = value;
    let now = hosts.moment();
    // Those that were sent before may each have happened too: not later than this answer, if there is one.
    for from in froms {
        let (did, to) = match acknowledged {
            true => (Did::Tried(value), Some(now)),
            false => (Did::Wrote(value), None),
        };
        let seen = Seen { did, from, to };
        range
            .clone()
            .for_each(|block| hosts.note(lane, block, seen));
    }
    done(hosts, lane, range, value, last, acknowledged);
}

async fn by_door(
    handle: &Handle,
    door: &Coordinator,
    what: What,
    (lane, range): (u8, &std::ops::Range<u64>),
    patience: Duration,
) -> Option<Option<Buffer>> {
    let blocks = (range.end - range.start) as usize;
    let took = match what {
        What::Write { .. } | What::Read => {
            let take = handle.buffers().take(blocks * BLOCK_BYTES);
            Some(handle.timeout(PATIENCE, take).await.ok()?)
        }
        What::Erase | What::Flush => None,
    };
    // The target lets nothing in before.
    let serves = matches!(
        door.standing(),
        Standing::Serving | Standing::InDoubt | Standing::Stalled
    );
    if !serves {
        return None;
    }
    let asked = async {
        match (what, took) {
            (What::Write { value, fua }, Some(mut buffer)) => {
                pattern(value, &mut buffer[..blocks * BLOCK_BYTES]);
                let first = LaneBlock(range.start);
                let written = door.write(lane, first, buffer, blocks, fua).await;
                written.map(|()| None)
            }
            (What::Read, Some(buffer)) => {
                let (buffer, read) = door.read(lane, range.clone(), buffer).await;
                read.map(|()| Some(buffer))
            }
            (What::Erase, _) => door.erase(lane, range.clone()).await.map(|()| None),
            _ => door.flush().await.map(|()| None),
        }
    };
    handle.timeout(patience, asked).await.ok()?.ok()
}
