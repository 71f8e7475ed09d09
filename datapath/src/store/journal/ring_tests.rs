//! What is durable, and what may be overwritten, and when.

use super::super::group::Run;
use super::super::types::{
    BLOCK_BYTES, CatalogueHandle, CheckpointNumber, Crc, DriveId, Generation, LaneBlock,
    LaneSequence, MountGeneration, PhysicalBlock, Stamp,
};
use super::{
    BlockHeader, Packer, Put, RECORDS_BYTES, RUN_BLOCKS_MAX, RUNS_IN_FLIGHT_MAX, Ring, SealedRun,
    WriteFields,
};

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

    fn append_write(&mut self, n: u64) {
        self.packer.append_write(&WriteFields {
            handle: CatalogueHandle(1),
            lane_sequence: LaneSequence(n + 1),
            generation: Generation(1),
            stamp: Stamp { epoch: 1, seq: n },
            first: LaneBlock(n),
            runs: &[Run {
                first: PhysicalBlock(1000 + n),
                blocks: 1,
            }],
            crcs: &[Crc(5)],
            tags: None,
        });
    }

    fn seal(&mut self) -> Option<SealedRun> {
        self.ring.seal(&mut self.packer, &mut self.into)
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

/// S7: a record counts when every block before it is there, since replay ends at the first that is not.
#[test]
fn a_write_that_is_done_early_counts_with_those_before_it() {
    let mut w = World::new(16, 1, false);
    let runs: Vec<SealedRun> = (0..RUNS_IN_FLIGHT_MAX as u64)
        .map(|n| {
            w.append();
            let run = w.seal().expect("there is room");
            assert_eq!(run.first, n + 1);
            run
        })
        .collect();
    assert_eq!(w.ring.runs_in_flight(), RUNS_IN_FLIGHT_MAX);
    w.ring.written(&runs[1]);
    w.ring.written(&runs[3]);
    assert_eq!((w.ring.records_done(), w.ring.last_written()), (0, 0));
    assert_eq!(w.ring.watermark(), 0);
    w.ring.written(&runs[0]);
    assert_eq!((w.ring.records_done(), w.ring.last_written()), (2, 2));
    assert_eq!(w.ring.watermark(), 2);
    w.ring.written(&runs[2]);
    assert_eq!((w.ring.records_done(), w.ring.last_written()), (4, 4));
    assert_eq!(w.ring.runs_in_flight(), 0);
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
fn writes_at_depth_1_do_not_fill_a_ring_that_logs_again() {
    for volatile in [true, false] {
        let mut w = World::new(64, 1, volatile);
        let mut flushes = 0;
        for n in 0..2000 {
            w.append_write(n);
            w.write();
            // Much fewer flushes than writes, and one where it helps.
            if n % 50 == 0 || w.ring.wants_flush() {
                w.flush();
                flushes += 1;
            }
            assert!(!w.ring.wants_checkpoint(), "after {n} writes");
            assert!(w.ring.room() > 4, "after {n} writes");
            // Each record once, and those whose copies are not durable twice.
            assert!(w.ring.live_bytes() <= 2 * 52 * (n as usize + 1));
        }
        assert!(!volatile || flushes < 500, "{flushes} flushes");
    }
}

#[test]
fn a_tail_that_only_headers_say_is_reusable_when_one_of_them_is_durable() {
    let mut w = World::new(16, 1, true);
    for n in 0..9 {
        w.append_write(n);
        w.write();
    }
    w.flush();
    assert_eq!((w.ring.tail(), w.ring.room()), (1, 7));
    // This block takes the nine before along.
    w.append_write(9);
    w.write();
    assert_eq!((w.header().bytes, w.header().tail), (520, 1));
    assert!(w.ring.wants_flush());
    assert_eq!(w.ring.tail(), 1);
    w.flush();
    assert_eq!((w.ring.tail(), w.ring.room()), (9, 6));
    // No block says so yet.
    w.flush();
    assert_eq!(w.ring.room(), 6);
    w.append_write(10);
    w.write();
    assert_eq!((w.header().bytes, w.header().tail), (52, 9));
    assert_eq!(w.ring.room(), 5);
    assert!(w.ring.wants_flush());
    w.flush();
    assert_eq!(w.ring.room(), 13);
    assert!(!w.ring.wants_flush());
}

#[test]
fn only_a_checkpoint_moves_the_tail_over_a_put() {
    let mut w = World::new(16, 1, true);
    w.append_write(1);
    w.write();
    w.append();
    w.write();
    for n in 0..10 {
        w.append_write(n);
        w.write();
        w.flush();
    }
    assert_eq!(w.ring.tail(), 1);
    assert!(!w.ring.wants_checkpoint());
    w.append_write(11);
    w.write();
    w.append_write(12);
    w.write();
    assert!(w.ring.wants_checkpoint());
    w.ring.checkpointed(w.ring.next_sequence());
    assert_eq!((w.ring.room(), w.ring.live_bytes()), (16, 0));
}

#[test]
fn what_opening_found_is_kept_until_a_checkpoint() {
    let mut w = World::new(8, 3, true);
    w.ring.resume(w.ring.tail(), 9);
    assert_eq!((w.ring.room(), w.ring.next_sequence()), (2, 9));
    w.ring.checkpointed(9);
    assert_eq!(w.ring.room(), 8);
    w.append();
    let run = w.write();
    assert_eq!(run.first, 9);
    assert_eq!((w.header().watermark, w.header().tail), (8, 9));
}
