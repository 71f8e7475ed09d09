//! A commit of the superblock that was torn in both copies, and one after it that is torn, too, and leaves the first one whole in one copy
//! (`docs/store-format.md` §2).

use super::super::check::{CheckOptions, check};
use super::super::superblock::{COPY_BYTES, Superblock};
use super::super::types::CheckpointNumber;
use super::life::{LONG, Peek, open};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;

const DRIVE: &str = "d";

/// The valid copies, by number.
fn copies(sim: &Sim) -> Vec<(usize, Superblock)> {
    let read = |copy: usize| {
        let mut bytes = vec![0; COPY_BYTES];
        sim.disk(DRIVE, |d| d.peek((copy * COPY_BYTES) as u64, &mut bytes));
        Some((copy, Superblock::decode(&bytes).ok()?))
    };
    (0..4).filter_map(read).collect()
}

fn put(sim: &Sim, copy: usize, superblock: &Superblock, torn: bool) {
    let mut bytes = vec![0; COPY_BYTES];
    superblock.encode(&mut bytes);
    if torn {
        bytes[COPY_BYTES - 100] ^= 1;
    }
    sim.disk(DRIVE, |d| d.poke((copy * COPY_BYTES) as u64, &bytes));
}

#[test]
fn two_copies_of_one_sequence_never_differ() {
    let sim = Sim::new(1);
    sim.add_disk(DRIVE, 16 << 20);
    let mount = |handle: &Handle, format: bool| {
        let opened = sim.run(handle, LONG, open(handle.clone(), format));
        opened.expect("it ends").expect("the drive opens")
    };
    let (node, handles) = sim.start_node(1);
    let store = mount(&handles[0], true);
    let closed = sim.run(&handles[0], LONG, async move { store.close().await });
    closed.expect("it ends").expect("it is closed");
    sim.kill(node);
    let all = copies(&sim);
    let (_, present) = all.iter().max_by_key(|(_, s)| s.sequence).expect("a copy");
    let mut unfinished = present.clone();
    unfinished.sequence += 1;
    unfinished.checkpoint = CheckpointNumber(present.checkpoint.0 + 1);
    let pair = Superblock::pair(unfinished.sequence);
    for copy in pair {
        put(&sim, copy, &unfinished, true);
    }
    // It ends as soon as it is open, with nothing written but this one commit.
    let handle = sim.restart_node(node, 1)[0].clone();
    drop(mount(&handle, false));
    sim.kill(node);
    put(&sim, pair[0], &unfinished, false);
    let report = check(&Peek(&sim), CheckOptions { data: true });
    assert!(report.is_clean(), "{}", report.text());
    let all = copies(&sim);
    let in_pair = all.iter().filter(|(copy, _)| pair.contains(copy));
    let sequences: Vec<u64> = in_pair.map(|(_, s)| s.sequence).collect();
    assert_eq!(
        sequences,
        [unfinished.sequence, unfinished.sequence + 2],
        "the first is whole again, the second has a number of its own"
    );
    let handle = sim.restart_node(node, 1)[0].clone();
    let store = mount(&handle, false);
    let closed = sim.run(&handle, LONG, async move { store.close().await });
    closed.expect("it ends").expect("it is closed");
}
