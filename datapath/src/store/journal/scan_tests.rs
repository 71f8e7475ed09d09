//! A crash leaves any part of what was not flushed, torn at sectors, over whatever was in the ring before: what is found is the whole records
//! before the first hole, and no others.

use proptest::prelude::*;

use super::super::types::{BLOCK_BYTES, DriveId, MountGeneration};
use super::record_tests::record;
use super::{
    BlockHeader, FIRST_SEQUENCE, HEADER_BYTES, Packer, RUN_BLOCKS_MAX, Record, Ring, Scan,
    ScanError, Scanner, Seal, Tombstone,
};

const DRIVE: DriveId = DriveId([3; 16]);
const GENERATION: MountGeneration = MountGeneration(9);

/// A ring on a drive.
struct Image {
    blocks: u32,
    bytes: Vec<u8>,
}

impl Image {
    fn new(blocks: u32) -> Self {
        let bytes = vec![0; blocks as usize * BLOCK_BYTES];
        Self { blocks, bytes }
    }

    fn block(&mut self, sequence: u64) -> &mut [u8] {
        let at = (sequence % u64::from(self.blocks)) as usize * BLOCK_BYTES;
        &mut self.bytes[at..at + BLOCK_BYTES]
    }

    /// A journal of another drive or mount that filled the ring before.
    fn fill(&mut self, drive: DriveId, generation: MountGeneration, first: u64) {
        for sequence in first..first + u64::from(self.blocks) {
            let header = BlockHeader {
                drive,
                generation,
                sequence,
                watermark: sequence - 1,
                tail: first,
                bytes: 0,
                continued: 0,
            };
            header.encode(self.block(sequence));
        }
    }

    fn scan(&self, first: u64, most: u32) -> Result<Scan, ScanError> {
        let mut scanner = Scanner::new(self.blocks, DRIVE, GENERATION, first);
        while let Some(places) = scanner.next_read(most) {
            let (from, to) = (places.start as usize, places.end as usize);
            scanner.feed(places, &self.bytes[from * BLOCK_BYTES..to * BLOCK_BYTES])?;
        }
        Ok(scanner.finish())
    }
}

fn found(scan: &Scan) -> Vec<(u64, Record)> {
    let records = scan.records.iter_with_blocks();
    records.map(|(block, r)| (block, r.to_record())).collect()
}

/// A block of the journal as it went to the drive.
struct Sent {
    sequence: u64,
    watermark: u64,
    tail: u64,
    before: Vec<u8>,
    bytes: Vec<u8>,
}

/// What a crash does to a block that was not flushed.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Lost,
    /// Sectors that were written.
    Torn(u8),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Kept),
        1 => Just(Fate::Lost),
        1 => any::<u8>().prop_map(Fate::Torn),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Record>),
    Seal,
    Flush,
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec(record(), 1..8).prop_map(Step::Append),
        6 => Just(Step::Seal),
        2 => Just(Step::Flush),
        1 => Just(Step::Checkpoint),
    ]
}

struct World {
    image: Image,
    ring: Ring,
    packer: Packer,
    /// Records of sealed blocks.
    records: Vec<(u64, Record)>,
    sent: Vec<Sent>,
    superblock_first: u64,
    /// Records that the superblock's checkpoint covers.
    covered: usize,
}

impl World {
    fn new(blocks: u32, first: u64) -> Self {
        Self {
            image: Image::new(blocks),
            ring: Ring::new(DRIVE, GENERATION, blocks, first, true),
            packer: Packer::new(),
            records: Vec::new(),
            sent: Vec::new(),
            superblock_first: first,
            covered: 0,
        }
    }

    fn seal(&mut self) {
        let mut into = vec![0xee; RUN_BLOCKS_MAX as usize * BLOCK_BYTES];
        let (watermark, tail) = (self.ring.watermark(), self.ring.tail());
        let records = &mut self.records;
        let run = self
            .ring
            .seal_each(&mut self.packer, &mut into, |block, bytes| {
                records.push((block, Record::decode(bytes).unwrap()));
            });
        let Some(run) = run else { return };
        for n in 0..run.blocks {
            let bytes = into[n as usize * BLOCK_BYTES..][..BLOCK_BYTES].to_vec();
            let block = self.image.block(run.first + n);
            let before = block.to_vec();
            block.copy_from_slice(&bytes);
            self.sent.push(Sent {
                sequence: run.first + n,
                watermark,
                tail,
                before,
                bytes,
            });
        }
        self.ring.written(&run);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(records) => {
                for record in records {
                    let mut bytes = Vec::new();
                    record.encode(&mut bytes);
                    self.packer.append_encoded(&bytes);
                }
            }
            Step::Seal => self.seal(),
            Step::Flush => {
                let candidate = self.ring.durable_candidate();
                self.ring.flushed(candidate);
            }
            Step::Checkpoint => {
                let cut = self.ring.next_sequence();
                let candidate = self.ring.durable_candidate();
                self.ring.flushed(candidate);
                self.ring.checkpointed(cut);
                self.superblock_first = cut;
                self.covered = self.packer.records() as usize;
            }
        }
    }

    /// Whether a block begins with a part of a record that began before it, and, unless that ends there, is nothing else.
    fn goes_on(&self, sequence: u64) -> bool {
        let sent = self.sent.iter().find(|s| s.sequence == sequence);
        BlockHeader::decode(&sent.unwrap().bytes).unwrap().continued > 0
    }

    /// Every record that was durable and is in no checkpoint is there, or a copy of it.
    fn check_nothing_is_lost(&self, found: &[(u64, Record)]) {
        let original = |r: &Record| match r.clone() {
            Record::Write(w) => Record::Write(super::Write { again: false, ..w }),
            Record::Tombstone(t) => Record::Tombstone(Tombstone { again: false, ..t }),
            Record::Settled(s) => Record::Settled(super::Settled { again: false, ..s }),
            r @ (Record::Snapshot(_) | Record::Put(_)) => r,
        };
        let found: Vec<Record> = found.iter().map(|(_, r)| original(r)).collect();
        for (block, record) in self.records.iter().skip(self.covered) {
            let durable = *block <= self.ring.watermark();
            assert!(
                !durable || found.contains(&original(record)),
                "{block}: {record:?}"
            );
        }
    }

    /// The power goes: blocks above the watermark have one of these fates. The answer is what replay should find.
    fn crash(&mut self, fates: &[Fate]) -> (u64, u64, Vec<(u64, Record)>) {
        let durable = self.ring.watermark();
        let mut fates = fates.iter().cycle();
        for sent in self.sent.iter().filter(|s| s.sequence > durable) {
            let fate = fates.next().copied().unwrap_or(Fate::Kept);
            let block = self.image.block(sent.sequence);
            for (n, sector) in block.chunks_exact_mut(512).enumerate() {
                let keep = match fate {
                    Fate::Kept => true,
                    Fate::Lost => false,
                    Fate::Torn(sectors) => sectors & (1 << n) != 0,
                };
                let from = if keep { &sent.bytes } else { &sent.before };
                sector.copy_from_slice(&from[n * 512..(n + 1) * 512]);
            }
        }
        let mut whole = Vec::new();
        for sent in &self.sent {
            if *self.image.block(sent.sequence) == *sent.bytes {
                whole.push(sent);
            }
        }
        let first = whole.iter().map(|s| s.tail).max().unwrap_or(0);
        let first = first.max(self.superblock_first).max(FIRST_SEQUENCE);
        let watermark = whole.iter().map(|s| s.watermark).max().unwrap_or(0);
        let mut end = first;
        while whole.iter().any(|s| s.sequence == end) {
            end += 1;
        }
        let mut expected: Vec<(u64, Record)> = self.records.clone();
        expected.retain(|(block, _)| (first..end).contains(block));
        // The first of them may have begun in a block that is not needed.
        if let Some((block, _)) = expected.first()
            && (first..=*block).all(|b| self.goes_on(b))
        {
            expected.remove(0);
        }
        (end, watermark, expected)
    }
}

fn packed(records: &[Record], first: u64, blocks_max: u64) -> (Image, u64) {
    let mut image = Image::new(16);
    let mut packer = Packer::new();
    for record in records {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        packer.append_encoded(&bytes);
    }
    let mut sequence = first;
    while packer.pending_bytes() > 0 {
        let mut into = vec![0; RUN_BLOCKS_MAX as usize * BLOCK_BYTES];
        let seal = Seal {
            drive: DRIVE,
            generation: GENERATION,
            first: sequence,
            blocks_max,
            watermark: 0,
            tail: FIRST_SEQUENCE,
        };
        let run = packer.seal(&seal, &mut into, |_, _| ());
        for n in 0..run.blocks {
            let bytes = &into[n as usize * BLOCK_BYTES..][..BLOCK_BYTES];
            image.block(sequence + n).copy_from_slice(bytes);
        }
        sequence += run.blocks;
    }
    (image, sequence)
}

#[test]
fn an_empty_ring_has_nothing() {
    let scan = Image::new(8).scan(0, 3).unwrap();
    assert_eq!((scan.first, scan.end, scan.watermark), (1, 1, 0));
    assert!(scan.records.is_empty());
}

#[test]
fn other_drives_and_mounts_never_count() {
    let mut image = Image::new(8);
    image.fill(DRIVE, MountGeneration(8), 40);
    assert_eq!(image.scan(40, 8).unwrap().end, 40);
    image.fill(DriveId([4; 16]), GENERATION, 40);
    assert_eq!(image.scan(40, 8).unwrap().end, 40);
    image.fill(DRIVE, GENERATION, 40);
    assert_eq!(image.scan(40, 8).unwrap().end, 48);
}

#[test]
fn a_block_in_another_place_never_counts() {
    let mut image = Image::new(8);
    image.fill(DRIVE, GENERATION, 40);
    let moved = image.block(44).to_vec();
    image.block(43).copy_from_slice(&moved);
    image.block(44).fill(0);
    // The blocks behind say that it was flushed.
    let error = image.scan(40, 8).unwrap_err();
    assert!(matches!(error, ScanError::FlushedBlocksMissing { .. }));
}

#[test]
fn a_missing_block_that_was_flushed_is_no_torn_tail() {
    let mut world = World::new(16, 5);
    for _ in 0..4 {
        world.step(Step::Append(vec![a_put()]));
        world.step(Step::Seal);
        world.step(Step::Flush);
    }
    world.image.block(6).fill(0);
    let missing = ScanError::FlushedBlocksMissing {
        at: 6,
        watermark: 7,
    };
    assert_eq!(world.image.scan(5, 4).unwrap_err(), missing);
    // The last one was flushed too, but nobody wrote so: it is torn for all that anybody knows.
    let mut world = World::new(16, 5);
    for _ in 0..4 {
        world.step(Step::Append(vec![a_put()]));
        world.step(Step::Seal);
        world.step(Step::Flush);
    }
    world.image.block(8).fill(0);
    let scan = world.image.scan(5, 4).unwrap();
    assert_eq!((scan.end, scan.watermark), (8, 6));
}

fn a_put() -> Record {
    use super::super::types::{CatalogueHandle, CheckpointNumber, Generation};
    Record::Put(super::Put {
        handle: CatalogueHandle(4),
        checkpoint: CheckpointNumber(1),
        next_handle: CatalogueHandle(5),
        next_generation: Generation(2),
        record: [1; 96],
    })
}

#[test]
fn a_malformed_record_in_a_whole_block_is_an_error() {
    let (mut image, _) = packed(&[a_put(), a_put()], 3, 64);
    let mut header = BlockHeader::decode(image.block(3)).unwrap();
    image.block(3)[HEADER_BYTES + 144] = 77;
    header.encode(image.block(3));
    let error = image.scan(3, 16).unwrap_err();
    assert!(matches!(error, ScanError::BadRecord { sequence: 3, .. }));
    header.continued = 7;
    header.encode(image.block(3));
    // The first block may go on with a record that is not needed, but not with a part of nothing.
    assert!(image.scan(3, 16).is_err());
}

proptest! {
    #[test]
    fn replay_finds_the_whole_records_before_the_first_hole(
        blocks in 4u32..24,
        first in 1u64..60,
        steps in proptest::collection::vec(step(), 1..60),
        fates in proptest::collection::vec(fate(), 1..30),
        stale in 0u8..4,
        most in 1u32..30,
        kept in prop_oneof![Just(1 << 20), 0usize..20_000],
    ) {
        let mut world = World::new(blocks, first);
        world.ring = world.ring.keep_at_most(kept);
        match stale {
            0 => {}
            1 => world.image.fill(DRIVE, MountGeneration(8), first),
            2 => world.image.fill(DriveId([4; 16]), GENERATION, first),
            _ => world.image.bytes.fill(0xa5),
        }
        for step in steps {
            world.step(step);
        }
        let (end, watermark, expected) = world.crash(&fates);
        let scan = world.image.scan(world.superblock_first, most).unwrap();
        prop_assert_eq!(scan.end, end);
        prop_assert_eq!(scan.watermark, watermark);
        prop_assert_eq!(found(&scan), expected.clone());
        world.check_nothing_is_lost(&expected);
    }

    #[test]
    fn no_ring_panics(
        records in proptest::collection::vec(record(), 1..20),
        damage in proptest::collection::vec((0usize..16 * BLOCK_BYTES, any::<u8>(), any::<bool>()), 1..8),
        blocks_max in 1u64..5,
        most in 1u32..17,
    ) {
        let (mut image, _) = packed(&records, 3, blocks_max);
        for (at, to, resealed) in damage {
            image.bytes[at] = to;
            let block = &mut image.bytes[at / BLOCK_BYTES * BLOCK_BYTES..][..BLOCK_BYTES];
            if resealed {
                block[4..8].fill(0);
                let crc = super::super::types::Crc::of(block);
                block[4..8].copy_from_slice(&crc.0.to_le_bytes());
            }
        }
        let _ = image.scan(3, most);
    }
}
