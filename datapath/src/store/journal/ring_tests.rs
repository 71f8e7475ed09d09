//! What is durable, and what may be overwritten, and when.

use super::super::types::MountGeneration;
use super::super::types::{BLOCK_BYTES, CatalogueHandle, CheckpointNumber, DriveId, Generation};
use super::{BlockHeader, Packer, Put, RECORDS_BYTES, RUN_BLOCKS_MAX, Ring, SealedRun};

struct World {
    ring: Ring,
    packer: Packer,
    into: Vec<u8>,
}

impl World {
    fn new(blocks: u32, first: u64, volatile: bool) -> Self {
        Self {
            ring: Ring::new(
                DriveId([1; 16]),
                MountGeneration(1),
                blocks,
                first,
                volatile,
            ),
            packer: Packer::new(),
            into: vec![0; RUN_BLOCKS_MAX as usize * BLOCK_BYTES],
        }
    }

    fn append(&mut self) -> u64 {
        self.packer.append_put(&Put {
            handle: CatalogueHandle(1),
            checkpoint: CheckpointNumber(0),
            next_handle: CatalogueHandle(1),
            next_generation: Generation(1),
            record: [0; 96],
        });
        self.ring.ends_in(&self.packer)
    }

    fn seal(&mut self) -> Option<SealedRun> {
        self.ring.seal(&mut self.packer, &mut self.into, |_, _| ())
    }

    fn write(&mut self) -> SealedRun {
        let run = self.seal().expect("there is room");
        self.ring.written(&run);
        run
    }

    fn header(&self) -> BlockHeader {
        BlockHeader::decode(&self.into[..BLOCK_BYTES]).unwrap()
    }

    fn flush(&mut self) {
        let candidate = self.ring.durable_candidate();
        self.ring.flushed(candidate);
    }
}

#[test]
fn a_flush_covers_what_was_complete_when_it_was_issued() {
    let mut w = World::new(16, 0, true);
    let first = w.append();
    w.ring.data_begun(first);
    w.ring.data_begun(first);
    w.write();
    let second = w.append();
    w.ring.data_begun(second);
    assert_eq!((first, second), (1, 2));
    w.write();
    w.ring.data_done(second);
    // The first one's data is under way.
    assert_eq!(w.ring.durable_candidate(), 0);
    w.ring.data_done(first);
    assert_eq!(w.ring.durable_candidate(), 0);
    let issued = w.ring.durable_candidate();
    w.ring.data_done(first);
    w.ring.flushed(issued);
    assert_eq!(w.ring.watermark(), 0);
    assert!(w.ring.has_unflushed());
    w.flush();
    assert_eq!(w.ring.watermark(), 2);
    assert!(!w.ring.has_unflushed());
}

#[test]
fn a_record_counts_where_it_ends_even_before_it_is_sealed() {
    let mut w = World::new(16, 1, true);
    let mut ends = 0;
    while w.packer.pending_bytes() <= RECORDS_BYTES {
        ends = w.append();
    }
    assert_eq!(ends, 2);
    w.ring.data_begun(ends);
    w.write();
    assert_eq!(w.ring.durable_candidate(), 1);
    w.ring.data_done(2);
    assert_eq!(w.ring.durable_candidate(), 2);
}

#[test]
fn a_watermark_is_told_once() {
    let mut w = World::new(16, 1, true);
    assert!(!w.ring.needs_watermark_block());
    w.append();
    w.write();
    assert!(!w.ring.needs_watermark_block());
    w.flush();
    assert!(w.ring.needs_watermark_block());
    let run = w.write();
    assert!(run.empty);
    assert_eq!(w.header().watermark, 1);
    assert!(!w.ring.needs_watermark_block());
    assert!(!w.ring.has_unflushed());
    w.flush();
    assert!(!w.ring.needs_watermark_block());
}

#[test]
fn without_a_volatile_cache_what_is_complete_is_durable() {
    let mut w = World::new(16, 1, false);
    let block = w.append();
    w.ring.data_begun(block);
    w.write();
    assert_eq!(w.ring.watermark(), 0);
    w.ring.data_done(block);
    assert_eq!(w.ring.watermark(), 1);
}

#[test]
fn a_run_ends_at_the_end_of_the_ring_and_before_the_tail() {
    let mut w = World::new(8, 6, true);
    while w.packer.pending_blocks() < 12 {
        w.append();
    }
    let run = w.write();
    assert_eq!((run.first, run.blocks), (6, 2));
    let run = w.write();
    assert_eq!((run.first, run.blocks), (8, 6));
    assert_eq!(w.ring.room(), 0);
    assert!(w.seal().is_none());
    assert!(w.ring.wants_checkpoint());
    w.ring.checkpointed(9);
    assert_eq!(w.ring.room(), 3);
    let run = w.write();
    assert_eq!((run.first, run.blocks), (14, 2));
    let run = w.write();
    assert_eq!((run.first, run.blocks), (16, 1));
    assert_eq!(w.header().tail, 9);
}

#[test]
fn a_tail_that_only_headers_say_is_reusable_when_one_of_them_is_durable() {
    let mut w = World::new(8, 1, true);
    for _ in 0..5 {
        w.append();
        w.write();
    }
    w.flush();
    w.ring.logged_again(4);
    assert_eq!((w.ring.tail(), w.ring.room()), (4, 3));
    // This flush comes before a block says so.
    w.flush();
    assert_eq!(w.ring.room(), 3);
    w.append();
    w.write();
    assert_eq!(w.header().tail, 4);
    assert!(w.ring.tail_wants_flush());
    assert_eq!(w.ring.room(), 2);
    w.flush();
    assert_eq!(w.ring.room(), 5);
    assert!(!w.ring.tail_wants_flush());
}

#[test]
fn what_opening_found_is_kept_until_a_checkpoint() {
    let mut w = World::new(8, 3, true);
    w.ring.resume(9);
    assert_eq!((w.ring.room(), w.ring.next_sequence()), (2, 9));
    w.ring.checkpointed(9);
    assert_eq!(w.ring.room(), 8);
    w.append();
    let run = w.write();
    assert_eq!(run.first, 9);
    assert_eq!((w.header().watermark, w.header().tail), (8, 9));
}
