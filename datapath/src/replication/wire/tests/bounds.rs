//! Each bound of each field, one beyond it: bytes that would come back as they are, and still are no message.

use super::super::batch::{BatchWriter, HERE, Settled};
use super::super::damaged::Damaged;
use super::super::forward::{Command, Done, Operation, Phase};
use super::super::frame::Kind;
use super::super::heart::{Beat, Flush, Heard, encode_heartbeat};
use super::super::list::{Fetch, Fetched, Found, LEAF_MAX, ListAsk, ListedWriter};
use super::super::open::{LaneFeed, Open, Target, encode_feed};
use super::super::promise::{Kept, PromisedHead, Purpose, encode_promised, encode_set};
use super::super::read::{Read, encode_damaged, encode_done};
use super::super::record::{Blocks, Content, Head, Record, flag};
use super::super::refused::{Reason, Refused};
use super::super::resync::{
    AskLeaf, AskSummaries, Copied, CopyWriter, LeafEntry, Tree, encode_leaf, encode_summaries,
};
use super::super::snapshots::{encode_having, encode_snapshots};
use super::frames::{decode, lane};
use crate::cipher::Seal;
use crate::replication::seam::{Entry, Kind as BlockKind};
use crate::store::types::{BLOCKS_MAX, Crc, LaneBlock, Stamp};

/// A good body with bytes put over it from an offset on is refused.
struct Good {
    kind: Kind,
    body: Vec<u8>,
    data: usize,
}

fn good(kind: Kind, data: usize, put: impl FnOnce(&mut Vec<u8>)) -> Good {
    let mut body = Vec::new();
    put(&mut body);
    assert!(decode(kind, &body, data).is_ok(), "{kind:?}");
    Good { kind, body, data }
}

impl Good {
    fn no(&self, at: usize, bytes: &[u8], why: &str) -> &Self {
        let mut bad = self.body.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        assert_ne!(bad, self.body, "{why}");
        let taken = decode(self.kind, &bad, self.data);
        assert!(taken.is_err(), "{:?}: {why}: {taken:?}", self.kind);
        self
    }

    /// The same with another length.
    fn no_body(&self, bad: &[u8], why: &str) -> &Self {
        let taken = decode(self.kind, bad, self.data);
        assert!(taken.is_err(), "{:?}: {why}: {taken:?}", self.kind);
        self
    }
}

const STAMP: Stamp = Stamp { epoch: 7, seq: 9 };

#[test]
fn of_open_and_feed() {
    let replica = Target::Replica {
        id: [2; 16],
        version: 3,
        lanes: 16,
        lease_ms: 60_000,
        subscribe: true,
    };
    let open = |to| Open {
        volume: [1; 16],
        incarnation: [3; 16],
        to,
    };
    good(Kind::Open, 0, |o| open(replica).put(o))
        .no(56, &[0], "no lanes")
        .no(56, &[17], "too many lanes")
        .no(57, &[4], "no such flag")
        .no(57, &[3], "subscribe and forward")
        .no(57, &[2], "forward, and a replica")
        .no(64, &[0; 4], "no lease")
        .no(64, &60_001_u32.to_le_bytes(), "a lease too long");
    good(Kind::Open, 0, |o| open(Target::Coordinator).put(o))
        .no(16, &[1], "a replica")
        .no(48, &[1], "a version")
        .no(56, &[1], "lanes")
        .no(64, &[1], "a lease");
    let feed = LaneFeed {
        lane: 0,
        after: 4,
        s0: STAMP,
    };
    good(Kind::Feed, 0, |o| encode_feed(o, &[feed]))
        .no(8, &[1], "lane 1 is the first")
        .no_body(&[0; 8], "no lanes");
    let many = [&[17, 0, 0, 0, 0, 0, 0, 0][..], &[0; 17 * 32]].concat();
    assert!(decode(Kind::Feed, &many, 0).is_err(), "17 lanes");
}

#[test]
fn of_promised_set_and_kept() {
    let head = PromisedHead {
        set: (4, 5),
        ..PromisedHead::default()
    };
    good(Kind::Promised, 0, |o| {
        encode_promised(o, &head, &[[1; 16], [2; 16]], &[lane(0)]);
    })
    .no(0, &[3], "no such standing")
    .no(1, &[2], "no such flag")
    .no(40, &[1], "level, and not so")
    .no(64, &[2; 16], "a member twice");
    let none = PromisedHead::default();
    good(Kind::Promised, 0, |o| {
        encode_promised(o, &none, &[], &[lane(0)]);
    })
    .no(48, &[1], "epoch of no set")
    .no(56, &[1], "version of no set")
    .no_body(&[0; 64], "no lanes");
    let members: Vec<_> = (0..5).map(|n| [n; 16]).collect();
    let set = good(Kind::Set, 0, |o| encode_set(o, 1, Purpose::Level, &members));
    let mut six = set.body.clone();
    six[8] = 6;
    six.extend([6; 16]);
    let mut none = set.body[..16].to_vec();
    none[8] = 0;
    set.no(9, &[2], "no such flag")
        .no_body(&six, "six members")
        .no_body(&none, "no members");
    let kept = Kept {
        version: 1,
        purpose: Purpose::Keep,
    };
    good(Kind::Kept, 0, |o| kept.put(o)).no(8, &[2], "no such flag");
}

#[test]
fn of_heartbeats_and_flushes() {
    let beat = Beat::default();
    let settled = Settled {
        lane: 15,
        stamp: STAMP,
    };
    let here = Settled {
        lane: HERE | 15,
        ..settled
    };
    let heartbeat = good(Kind::Heartbeat, 0, |o| {
        encode_heartbeat(o, &beat, &[[settled; 16], [here; 16]].concat());
    });
    let mut more = heartbeat.body.clone();
    more[25] = 33;
    more.extend_from_within(32..48);
    heartbeat
        .no(24, &[2], "no such flag")
        .no(32, &[16], "no such lane")
        .no(32, &[HERE | 16], "no such lane that is here")
        .no(32, &[0x40], "no such bit")
        .no_body(&more, "more than two for each lane");
    let heard = Heard {
        number: 1,
        sent_ns: 2,
        lease: true,
    };
    good(Kind::Heard, 0, |o| heard.put(o)).no(16, &[2], "no such result");
    good(Kind::Flush, 0, |o| Flush { number: 1 }.put(o)).no(0, &[0], "number 0");
}

fn write(crcs: &[u8], flags: u8, seq: u64) -> Record<'_> {
    Record {
        head: Head {
            flags,
            lane: 3,
            stamp: Stamp { epoch: 7, seq },
            position: 0,
            key: 0,
        },
        content: Content::Write(Blocks::new(LaneBlock(5), crcs, &[]).expect("fits")),
    }
}

#[test]
fn of_lists() {
    let leaf = LEAF_MAX - 1;
    let ask = ListAsk {
        lane: 15,
        after: STAMP,
        leaf,
    };
    good(Kind::List, 0, |o| ask.put(o))
        .no(0, &[16], "no such lane")
        .no(16, &LEAF_MAX.to_le_bytes(), "no such leaf");
    let mut writer = ListedWriter::default();
    writer.records(3);
    assert!(writer.add(&write(&[0; 4], flag::LISTED, 1)));
    assert!(writer.add(&write(&[0; 4], flag::LISTED, 2)));
    const SECOND: usize = 8 + 52;
    good(Kind::Listed, 0, |o| o.extend(writer.finish(false)))
        .no(0, &[4], "records of another lane")
        .no(1, &[4], "no such flag")
        .no(2, &[1], "more than it says")
        .no(SECOND + 1, &[0], "not listed")
        .no(SECOND + 8, &[1], "a stamp twice")
        .no(SECOND + 8, &[0], "stamps that fall")
        .no(SECOND + 16, &[1], "a position")
        .no_body(&[3, 0, 0, 0, 0, 0, 0, 0], "nothing, and not the last");
    writer.leaves(3);
    assert!(writer.add_leaf(1) && writer.add_leaf(leaf));
    good(Kind::Listed, 0, |o| o.extend(writer.finish(false)))
        .no(8, &leaf.to_le_bytes(), "a leaf twice")
        .no(16, &0_u64.to_le_bytes(), "leaves that fall")
        .no(16, &LEAF_MAX.to_le_bytes(), "no such leaf");
    let mut many = vec![3, 3, 1, 16, 0, 0, 0, 0];
    (0..4097_u64).for_each(|n| many.extend(n.to_le_bytes()));
    assert!(decode(Kind::Listed, &many, 0).is_err(), "4,097 leaves");
}

#[test]
fn of_fetches() {
    let asked = Fetch {
        stamp: STAMP,
        lane: 3,
    };
    good(Kind::Fetch, 0, |o| asked.put(o)).no(12, &[16], "no such lane");
    let found = Found::Record(write(&[0; 4], 0, 9));
    let fetched = Fetched { asked, found };
    good(Kind::Fetched, 4096, |o| drop_len(fetched.put(o)))
        .no(4, &[8], "another stamp")
        .no(12, &[4], "another lane")
        .no(13, &[1], "unknown, and a record")
        .no(13, &[3], "no such result")
        .no(16 + 16, &[1], "a position");
    let listed = good(Kind::Fetched, 4096, |o| drop_len(fetched.put(o)));
    let mut bad = listed.body.clone();
    bad[17] = flag::LISTED;
    assert!(decode(Kind::Fetched, &bad, 0).is_err(), "without its data");
}

/// The length of the data is known.
fn drop_len(_: usize) {}

fn entry(kind: BlockKind) -> Entry {
    Entry {
        kind,
        stamp: STAMP,
        crc: Crc(if kind == BlockKind::Data { 5 } else { 0 }),
        seal: Seal::NONE,
    }
}

#[test]
fn of_reads() {
    let read = Read {
        request: 1,
        tree: Tree::live(15),
        first: LaneBlock(BLOCKS_MAX - 256),
        blocks: 256,
    };
    good(Kind::Read, 0, |o| read.put(o))
        .no(8, &[16], "no such lane")
        .no(12, &0_u32.to_le_bytes(), "no blocks")
        .no(12, &257_u32.to_le_bytes(), "too many blocks")
        .no(16, &(BLOCKS_MAX - 255).to_le_bytes(), "beyond the last")
        .no(16, &u64::MAX.to_le_bytes(), "far beyond the last");
    let one = |kind, key| Entry {
        seal: Seal { key, tag: [0; 16] },
        ..entry(kind)
    };
    let entries = [one(BlockKind::Data, 1), one(BlockKind::Erased, 0)];
    const FIRST: usize = 24;
    const SECOND: usize = FIRST + 40;
    good(Kind::ReadDone, 4096, |o| {
        drop_len(encode_done(o, 1, &entries))
    })
    .no(8, &[3], "no such result")
    .no(8, &[1], "damaged, and entries")
    .no(12, &[0], "no entries")
    .no(16, &[1], "a damaged block, and done")
    .no(FIRST, &[4], "no such kind")
    .no(FIRST, &[3], "poison, and data")
    .no(SECOND, &[0], "absent, and a stamp")
    .no(SECOND + 4, &[1], "erased, and a checksum")
    .no(FIRST + 20, &[64], "no such key")
    .no(SECOND + 20, &[1], "erased, and a key")
    .no(SECOND + 24, &[1], "a tag without a key");
    let block = LaneBlock(BLOCKS_MAX - 1);
    good(Kind::ReadDone, 0, |o| encode_damaged(o, 1, block))
        .no(8, &[2], "failed, and a block")
        .no(16, &BLOCKS_MAX.to_le_bytes(), "no such block");
    let many = vec![one(BlockKind::Erased, 0); 256];
    let all = good(Kind::ReadDone, 0, |o| drop_len(encode_done(o, 1, &many)));
    let mut bad = all.body.clone();
    bad[12..16].copy_from_slice(&257_u32.to_le_bytes());
    bad.extend_from_within(FIRST..SECOND);
    all.no_body(&bad, "257 blocks");
}

#[test]
fn of_summaries_and_leaves() {
    let tree = Tree {
        lane: 15,
        snapshot: None,
    };
    let asked = AskSummaries {
        tree,
        level: 6,
        first: LEAF_MAX - 2,
        count: 2,
    };
    good(Kind::AskSummaries, 0, |o| asked.put(o))
        .no(0, &[16], "no such lane")
        .no(1, &[7], "no such level")
        .no(2, &[1], "a result in a question")
        .no(4, &0_u32.to_le_bytes(), "none")
        .no(4, &8193_u32.to_le_bytes(), "too many")
        .no(4, &[3], "beyond the last")
        .no(8, &LEAF_MAX.to_le_bytes(), "no such node");
    good(Kind::Summaries, 0, |o| {
        encode_summaries(o, &asked, Ok(&[1, 2]));
    })
    .no(2, &[3], "no such result")
    .no(2, &[1], "unknown, and summaries");
    let asked = AskLeaf {
        tree,
        leaf: LEAF_MAX - 1,
    };
    good(Kind::AskLeaf, 0, |o| asked.put(o))
        .no(1, &[1], "a result in a question")
        .no(2, &[1], "entries in a question")
        .no(8, &LEAF_MAX.to_le_bytes(), "no such leaf");
    let one = |index, kind| LeafEntry {
        index,
        entry: entry(kind),
    };
    let entries = [one(7, BlockKind::Data), one(151, BlockKind::Erased)];
    const SECOND: usize = 32 + 20;
    let leaf = good(Kind::Leaf, 0, |o| encode_leaf(o, &asked, Ok(&entries)));
    leaf.no(1, &[1], "unknown, and entries")
        .no(SECOND, &[152], "no such block in a leaf")
        .no(SECOND, &[7], "a block twice")
        .no(SECOND, &[6], "blocks that fall")
        .no(SECOND + 1, &[0], "absent")
        .no(SECOND + 4, &[1], "erased, and a checksum");
    let failed = [&leaf.body[..1], &[2], &leaf.body[2..]].concat();
    leaf.no_body(&failed[..32], "failed, and entries said");
}

#[test]
fn of_copies() {
    let copy = |flags, position| {
        let mut record = write(&[0; 4], flags, 9);
        record.head.position = position;
        let mut writer = CopyWriter::default();
        writer.begin(1);
        assert!(writer.add(&record));
        writer.finish().0.to_vec()
    };
    const RECORD: usize = 16;
    good(Kind::Copy, 4096, |o| o.extend(copy(0, 4)))
        .no(RECORD + 1, &[flag::REPLAYED], "sent before")
        .no(RECORD + 1, &[flag::ROLLED], "rolled forward")
        .no(RECORD + 1, &[flag::REPAIR], "a repair with s0");
    let listed = {
        let mut body = copy(0, 4);
        body[RECORD + 1] = flag::LISTED;
        body
    };
    assert!(decode(Kind::Copy, &listed, 0).is_err(), "listed");
    good(Kind::Copy, 4096, |o| o.extend(copy(flag::REPAIR, 0))).no(
        RECORD + 16,
        &[1],
        "a repair with s0",
    );
    let mut poison = copy(flag::REPAIR, 0);
    poison[RECORD] = 4;
    assert!(decode(Kind::Copy, &poison, 0).is_err(), "repair by poison");
    // A batch with something else in it.
    let mut writer = BatchWriter::default();
    writer.begin([(1, STAMP)]);
    assert!(writer.add(&write(&[0; 4], 0, 9)));
    let settled = [&[0; 8][..], writer.finish().0].concat();
    assert!(decode(Kind::Copy, &settled, 4096).is_err(), "settled");
    writer.begin([]);
    let empty = [&[0; 8][..], writer.finish().0].concat();
    assert!(decode(Kind::Copy, &empty, 0).is_err(), "nothing");
    let mut snapshot = write(&[0; 4], 0, 9);
    snapshot.content = Content::Snapshot(crate::store::types::SnapshotId([1; 16]));
    writer.begin([]);
    assert!(writer.add(&snapshot));
    let mut snapshot = [&[0; 8][..], writer.finish().0].concat();
    assert!(decode(Kind::Copy, &snapshot, 0).is_ok(), "a snapshot");
    snapshot[RECORD + 1] = flag::REPAIR;
    assert!(decode(Kind::Copy, &snapshot, 0).is_err(), "a repair");
    good(Kind::Snapshots, 0, |o| {
        encode_snapshots(o, 1, true, &[[1; 16]])
    })
    .no(0, &[0], "number 0")
    .no(10, &[2], "no such flag")
    .no(8, &[2], "fewer than it says");
    let many = good(Kind::Having, 0, |o| encode_having(o, 1, &[[1; 16]; 1024]));
    let mut bad = many.body.clone();
    bad[8..10].copy_from_slice(&1025_u16.to_le_bytes());
    bad.extend([1; 16]);
    many.no_body(&bad, "1,025 snapshots");
    many.no(10, &[1], "no such flag");
    let damaged = Damaged {
        lane: 15,
        block: LaneBlock(BLOCKS_MAX - 1),
    };
    good(Kind::Damaged, 0, |o| damaged.put(o))
        .no(0, &[16], "no such lane")
        .no(8, &BLOCKS_MAX.to_le_bytes(), "no such block");
    let copied = Copied {
        request: 1,
        result: Ok(()),
    };
    good(Kind::Copied, 0, |o| copied.put(o)).no(8, &[3], "no such result");
    let refused = Refused {
        reason: Reason::Epoch,
        epoch: 1,
    };
    good(Kind::Refused, 0, |o| refused.put(o))
        .no(0, &[0], "no reason")
        .no(0, &[99], "no such reason");
}

#[test]
fn of_commands() {
    let command = |operation, phase| Command {
        host: [1; 16],
        request: 2,
        phase,
        operation,
        fused: false,
        fua: true,
        nsid: 5,
        first: 512,
        bytes: 1024,
        age_ms: 60_000,
    };
    let reserve = command(Operation::Write, Phase::Reserve);
    good(Kind::Command, 0, |o| reserve.put(o))
        .no(24, &[1], "a stamp to be reserved")
        .no(36, &[3], "no such opcode")
        .no(36, &[2], "a read reserves nothing")
        .no(37, &[0], "no such phase")
        .no(37, &[5], "no such phase")
        .no(37, &[2], "confirms without a stamp")
        .no(37, &[4], "a write is no read")
        .no(38, &[4], "no such flag")
        .no(39, &[1], "no such flag")
        .no(44, &[1], "not at a block")
        .no(44, &(u64::MAX - 511).to_le_bytes(), "beyond all bytes")
        .no(52, &0_u64.to_le_bytes(), "nothing")
        .no(52, &[1], "no whole blocks")
        .no(52, &((1_u64 << 20) + 512).to_le_bytes(), "more than 1 MiB")
        .no(60, &[0; 4], "no age")
        .no(60, &60_001_u32.to_le_bytes(), "an age too long");
    let fused = Command {
        fused: true,
        bytes: 1 << 19,
        ..reserve
    };
    let more = (1_u64 << 19) + 512;
    good(Kind::Command, 0, |o| fused.put(o))
        .no(36, &[8], "zeroes that compare")
        .no(52, &more.to_le_bytes(), "more than 512 KiB twice");
    let zeroes = Command {
        bytes: 1 << 40,
        ..command(Operation::WriteZeroes, Phase::Void(STAMP))
    };
    good(Kind::Command, 0, |o| zeroes.put(o)).no(37, &[1], "reserves with a stamp");
    let flush = Command {
        first: 0,
        bytes: 0,
        ..command(Operation::Flush, Phase::Read)
    };
    good(Kind::Command, 0, |o| flush.put(o))
        .no(36, &[2], "a read of nothing")
        .no(44, &512_u64.to_le_bytes(), "a place")
        .no(52, &512_u64.to_le_bytes(), "a length")
        .no(38, &[1], "fused");
    let done = Done {
        request: 1,
        status: 0,
        stamp: Some(STAMP),
    };
    let reserved = good(Kind::Done, 0, |o| done.put(o));
    reserved
        .no(9, &[0x80], "a status of 16 bits")
        .no(8, &[1], "failed, and reserved");
    let taken = decode(Kind::Done, &reserved.body, 4096);
    assert!(taken.is_err(), "reserved, and data");
    let failed = Done {
        status: 1,
        stamp: None,
        ..done
    };
    let failed = good(Kind::Done, 0, |o| failed.put(o));
    let taken = decode(Kind::Done, &failed.body, 4096);
    assert!(taken.is_err(), "failed, and data");
}
