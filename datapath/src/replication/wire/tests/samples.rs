//! Frames of every kind, of any content that the document allows.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::batch::{BatchWriter, HERE, Settled};
use super::super::damaged::Damaged;
use super::super::forward::{Command, Done, Operation, Phase};
use super::super::frame::Kind;
use super::super::heart::{Beat, Flush, Heard, encode_heartbeat};
use super::super::list::{Fetch, Fetched, Found, LEAF_MAX, ListAsk, ListedWriter};
use super::super::open::{LaneFeed, LaneState, Open, Target, encode_feed, encode_opened};
use super::super::promise::{Kept, Promise, PromisedHead, Purpose, encode_promised, encode_set};
use super::super::read::{Read, encode_damaged, encode_done, encode_failed};
use super::super::record::flag;
use super::super::refused::{Reason, Refused};
use super::super::resync::{
    AskLeaf, AskSummaries, Copied, CopyWriter, LeafEntry, NotCopied, NotRead, encode_leaf,
    encode_summaries,
};
use super::super::snapshots::{encode_having, encode_snapshots};
use super::super::{
    ack,
    record::{LANES_MAX, WRITE_BLOCKS_MAX},
};
use super::{Owned, record, stamp, tree};
use crate::cipher::Seal;
use crate::replication::seam::{Entry, Id, Kind as BlockKind, Standing};
use crate::store::types::{BLOCKS_MAX, Crc, LaneBlock, Stamp};

/// A frame's kind and body, the data behind it, and where its reserved bytes are.
#[derive(Clone, Debug)]
pub struct Sample {
    pub kind: Kind,
    pub body: Vec<u8>,
    pub data: usize,
    /// As the document's tables have them: written down here a second time.
    pub reserved: Vec<usize>,
}

/// One of each kind that there is.
pub fn any_kind() -> impl Strategy<Value = Sample> {
    prop_oneof![
        opened(),
        batches(),
        hearts(),
        sets(),
        promised(),
        lists(),
        reads(),
        trees(),
        copies(),
        commands(),
        snapshots(),
        damaged(),
        small(),
    ]
}

fn sample(
    kind: Kind,
    reserved: impl IntoIterator<Item = usize>,
    put: impl FnOnce(&mut Vec<u8>),
) -> Sample {
    let mut body = Vec::new();
    put(&mut body);
    let reserved = reserved.into_iter().collect();
    Sample {
        kind,
        body,
        data: 0,
        reserved,
    }
}

/// Reserved bytes of items behind `from`.
fn each(from: usize, n: usize, bytes: usize, at: &[usize]) -> Vec<usize> {
    let items = (0..n).map(|i| from + i * bytes);
    items.flat_map(|b| at.iter().map(move |a| a + b)).collect()
}

fn lane_states() -> impl Strategy<Value = Vec<LaneState>> {
    let one = (stamp(), any::<(u64, u64, bool, bool)>());
    vec(one, 1..=16).prop_map(|all| {
        let one = |(lane, (settled, (a, b, lost, resyncing)))| LaneState {
            lane,
            settled,
            written: u64::max(a, b),
            stable: u64::min(a, b),
            lost,
            resyncing,
        };
        (0..).zip(all).map(one).collect()
    })
}

const LANE_STATE_ZERO: [usize; 10] = [12, 13, 14, 15, 34, 35, 36, 37, 38, 39];

fn opened() -> impl Strategy<Value = Sample> {
    let open = (
        any::<[Id; 3]>(),
        any::<u64>(),
        1_u8..=16,
        1_u32..=60_000,
        any::<[bool; 2]>(),
    );
    let open = open.prop_map(
        |([volume, id, incarnation], version, lanes, lease_ms, [forward, subscribe])| {
            let replica = Target::Replica {
                id,
                version,
                lanes,
                lease_ms,
                subscribe,
            };
            let open = Open {
                volume,
                incarnation,
                to: if forward {
                    Target::Coordinator
                } else {
                    replica
                },
            };
            let s = sample(Kind::Open, (58..64).chain(68..72), |o| open.put(o));
            assert_eq!(Open::decode(&s.body), Ok(open));
            s
        },
    );
    let opened = (any::<Id>(), lane_states()).prop_map(|(boot, lanes)| {
        let reserved = each(24, lanes.len(), 40, &LANE_STATE_ZERO);
        sample(Kind::Opened, (1..8).chain(reserved), |o| {
            encode_opened(o, boot, &lanes);
        })
    });
    let feed = vec((any::<u64>(), stamp()), 1..=16).prop_map(|lanes| {
        let one = |(lane, (after, s0))| LaneFeed { lane, after, s0 };
        let lanes: Vec<_> = (0..).zip(lanes).map(one).collect();
        let at = [1, 2, 3, 4, 5, 6, 7, 28, 29, 30, 31];
        let reserved = (1..8).chain(each(8, lanes.len(), 32, &at));
        sample(Kind::Feed, reserved, |o| encode_feed(o, &lanes))
    });
    prop_oneof![open, opened, feed]
}

fn settled() -> impl Strategy<Value = Vec<Settled>> {
    let one = (0_u8..16, any::<bool>(), stamp()).prop_map(|(lane, here, stamp)| {
        let lane = if here { lane | HERE } else { lane };
        Settled { lane, stamp }
    });
    vec(one, 0..=32)
}

fn batches() -> impl Strategy<Value = Sample> {
    let batch = (settled(), vec(record(4), 0..6)).prop_map(|(settled, records)| {
        let mut writer = BatchWriter::default();
        writer.begin(settled.iter().map(|s| (s.lane, s.stamp)));
        assert!(records.iter().all(|r| writer.add(&r.record())));
        let (body, data) = writer.finish();
        let entries = each(8, settled.len(), 16, &[1, 2, 3]);
        let records = reserved_of(8 + 16 * settled.len(), &records);
        Sample {
            kind: Kind::Batch,
            body: body.to_vec(),
            data,
            reserved: [vec![1, 4, 5, 6, 7], entries, records].concat(),
        }
    });
    let lanes = vec((0_u8..16, any::<[u64; 2]>()), 0..=16);
    let early = vec((0_u8..16, any::<u64>()), 0..=ack::EARLY_MAX);
    let acks = (lanes, early, any::<[u64; 4]>()).prop_map(|(lanes, early, n)| {
        let lane = |(lane, [a, b]): (u8, [u64; 2])| ack::LaneAck {
            lane,
            written: a.max(b),
            stable: a.min(b),
        };
        let lanes: Vec<_> = lanes.into_iter().map(lane).collect();
        let early = early.into_iter();
        let early: Vec<_> = early
            .map(|(lane, position)| ack::Early { lane, position })
            .collect();
        let [flushed, records, bytes, space] = n;
        let head = ack::AckHead {
            flushed,
            records,
            bytes,
            space,
        };
        let at = [1, 2, 3, 4, 5, 6, 7];
        let reserved = [
            vec![1, 4, 5, 6, 7],
            (40..48).collect(),
            each(48, lanes.len(), 24, &at),
            each(48 + 24 * lanes.len(), early.len(), 16, &at),
        ];
        sample(Kind::Ack, reserved.concat(), |o| {
            ack::encode(o, &head, &lanes, &early);
        })
    });
    prop_oneof![batch, acks]
}

fn reserved_of(mut from: usize, records: &[Owned]) -> Vec<usize> {
    let mut all = Vec::new();
    for r in records {
        all.extend([3, 28, 29, 30, 31].map(|at| from + at));
        from += r.record().bytes();
    }
    all
}

fn hearts() -> impl Strategy<Value = Sample> {
    let beat = (any::<[u64; 3]>(), any::<bool>(), settled()).prop_map(|(n, release, settled)| {
        let beat = Beat {
            number: n[0],
            sent_ns: n[1],
            version: n[2],
            release,
        };
        let reserved = (26..32).chain(each(32, settled.len(), 16, &[1, 2, 3]));
        sample(Kind::Heartbeat, reserved, |o| {
            encode_heartbeat(o, &beat, &settled);
        })
    });
    let heard = any::<(u64, u64, bool)>().prop_map(|(number, sent_ns, lease)| {
        let heard = Heard {
            number,
            sent_ns,
            lease,
        };
        let s = sample(Kind::Heard, 17..24, |o| heard.put(o));
        assert_eq!(Heard::decode(&s.body), Ok(heard));
        s
    });
    let flush = (1..=u64::MAX).prop_map(|number| {
        let flush = Flush { number };
        let s = sample(Kind::Flush, [], |o| flush.put(o));
        assert_eq!(Flush::decode(&s.body), Ok(flush));
        s
    });
    prop_oneof![beat, heard, flush]
}

fn members(least: usize) -> impl Strategy<Value = Vec<Id>> {
    let different = proptest::collection::hash_set(any::<Id>(), least..=5);
    different.prop_map(|all| all.into_iter().collect())
}

fn purpose() -> impl Strategy<Value = Purpose> {
    select(vec![Purpose::Keep, Purpose::Level])
}

fn sets() -> impl Strategy<Value = Sample> {
    let set = (any::<u64>(), purpose(), members(1)).prop_map(|(version, purpose, members)| {
        sample(Kind::Set, 10..16, |o| {
            encode_set(o, version, purpose, &members);
        })
    });
    let kept = (any::<u64>(), purpose()).prop_map(|(version, purpose)| {
        let kept = Kept { version, purpose };
        let s = sample(Kind::Kept, 9..16, |o| kept.put(o));
        assert_eq!(Kept::decode(&s.body), Ok(kept));
        s
    });
    let promise = (any::<[Id; 4]>(), any::<u64>()).prop_map(|(ids, version)| {
        let promise = Promise {
            volume: ids[0],
            replica: ids[1],
            incarnation: ids[2],
            attempt: ids[3],
            version,
        };
        let s = sample(Kind::Promise, 72..80, |o| promise.put(o));
        assert_eq!(Promise::decode(&s.body), Ok(promise));
        s
    });
    prop_oneof![set, kept, promise]
}

fn promised() -> impl Strategy<Value = Sample> {
    let standing = vec![Standing::Promised, Standing::Resyncing, Standing::Level];
    let numbers = any::<(u32, u32, u64, u64, bool)>();
    let parts = (
        select(standing),
        numbers,
        any::<[Id; 2]>(),
        members(0),
        lane_states(),
    );
    parts.prop_map(|(standing, n, ids, members, lanes)| {
        let head = PromisedHead {
            standing,
            level: if standing == Standing::Level { n.2 } else { 0 },
            degraded: n.4,
            former: (n.0, ids[0]),
            boot: ids[1],
            set: if members.is_empty() {
                (0, 0)
            } else {
                (n.1, n.3)
            },
        };
        let at = 64 + 16 * members.len();
        let reserved = (52..56).chain(each(at, lanes.len(), 40, &LANE_STATE_ZERO));
        sample(Kind::Promised, reserved, |o| {
            encode_promised(o, &head, &members, &lanes);
        })
    })
}

fn listed(records: &mut [Owned]) {
    for (i, r) in records.iter_mut().enumerate() {
        r.head.lane = 5;
        r.head.flags |= flag::LISTED;
        r.head.position = 0;
        r.head.stamp = Stamp {
            epoch: 9 + i as u32,
            ..r.head.stamp
        };
    }
}

fn lists() -> impl Strategy<Value = Sample> {
    let list = (0_u8..16, stamp(), 0..LEAF_MAX).prop_map(|(lane, after, leaf)| {
        let ask = ListAsk { lane, after, leaf };
        let s = sample(Kind::List, 1..4, |o| ask.put(o));
        assert_eq!(ListAsk::decode(&s.body), Ok(ask));
        s
    });
    let records = (vec(record(4), 1..6), any::<bool>()).prop_map(|(mut records, last)| {
        listed(&mut records);
        let mut writer = ListedWriter::default();
        writer.records(5);
        assert!(records.iter().all(|r| writer.add(&r.record())));
        let reserved = (4..8).chain(reserved_of(8, &records));
        sample(Kind::Listed, reserved, |o| o.extend(writer.finish(last)))
    });
    let leaves = proptest::collection::btree_set(0..LEAF_MAX, 0..20);
    let leaves = (0_u8..16, leaves).prop_map(|(lane, leaves)| {
        let mut writer = ListedWriter::default();
        writer.leaves(lane);
        assert!(leaves.iter().all(|&l| writer.add_leaf(l)));
        sample(Kind::Listed, 4..8, |o| o.extend(writer.finish(true)))
    });
    let fetch = (0_u8..16, stamp()).prop_map(|(lane, stamp)| {
        let fetch = Fetch { stamp, lane };
        let s = sample(Kind::Fetch, 13..16, |o| fetch.put(o));
        assert_eq!(Fetch::decode(&s.body), Ok(fetch));
        s
    });
    let fetched = (record(8), 0..3).prop_map(|(mut record, result)| {
        record.head.position = 0;
        record.head.flags &= !flag::LISTED;
        let asked = Fetch {
            stamp: record.head.stamp,
            lane: record.head.lane,
        };
        let found = match result {
            0 => Found::Record(record.record()),
            1 => Found::Unknown,
            _ => Found::Failed,
        };
        let fetched = Fetched { asked, found };
        let mut reserved = vec![14, 15];
        if result == 0 {
            reserved.extend(reserved_of(16, &[record.clone()]));
        }
        let mut data = 0;
        let mut s = sample(Kind::Fetched, reserved, |o| data = fetched.put(o));
        s.data = data;
        assert_eq!(Fetched::decode(&s.body, data), Ok(fetched));
        s
    });
    prop_oneof![list, records, leaves, fetch, fetched]
}

fn entry() -> impl Strategy<Value = Entry> {
    let kinds = [
        BlockKind::Absent,
        BlockKind::Data,
        BlockKind::Erased,
        BlockKind::Poison,
    ];
    (select(kinds.to_vec()), stamp(), any::<u32>()).prop_map(|(kind, stamp, crc)| match kind {
        BlockKind::Absent => Entry {
            kind,
            ..Entry::ABSENT
        },
        BlockKind::Erased => Entry {
            kind,
            stamp,
            ..Entry::ABSENT
        },
        _ => Entry {
            kind,
            stamp,
            crc: Crc(crc),
            seal: Seal::NONE,
        },
    })
}

fn damaged() -> impl Strategy<Value = Sample> {
    let all = (0..LANES_MAX, (0..BLOCKS_MAX).prop_map(LaneBlock));
    all.prop_map(|(lane, block)| sample(Kind::Damaged, 1..8, |o| Damaged { lane, block }.put(o)))
}

fn snapshots() -> impl Strategy<Value = Sample> {
    let ids = vec(any::<Id>(), 0..20);
    let all = (1..=u64::MAX, any::<bool>(), any::<bool>(), ids);
    all.prop_map(|(number, asks, whole, ids)| match asks {
        true => sample(Kind::Snapshots, 11..16, |o| {
            encode_snapshots(o, number, whole, &ids);
        }),
        false => sample(Kind::Having, 10..16, |o| encode_having(o, number, &ids)),
    })
}

fn reads() -> impl Strategy<Value = Sample> {
    let ask = (
        any::<u64>(),
        tree(),
        1..=WRITE_BLOCKS_MAX as u32,
        0..BLOCKS_MAX - 255,
    );
    let read = ask.prop_map(|(request, tree, blocks, first)| {
        let read = Read {
            request,
            tree,
            first: LaneBlock(first),
            blocks,
        };
        let s = sample(Kind::Read, 9..12, |o| read.put(o));
        assert_eq!(Read::decode(&s.body), Ok(read));
        s
    });
    let entry = (entry(), 0_u32..=63, any::<[u8; 16]>()).prop_map(|(entry, key, tag)| {
        let sealed = matches!(entry.kind, BlockKind::Data | BlockKind::Poison) && key > 9;
        let seal = match sealed {
            true => Seal { key, tag },
            false => Seal::NONE,
        };
        Entry { seal, ..entry }
    });
    let done = (any::<u64>(), vec(entry, 1..=20)).prop_map(|(request, entries)| {
        let reserved = (9..12).chain(each(24, entries.len(), 40, &[1, 2, 3]));
        let mut data = 0;
        let mut s = sample(Kind::ReadDone, reserved, |o| {
            data = encode_done(o, request, &entries);
        });
        s.data = data;
        s
    });
    let not = (any::<u64>(), 0..BLOCKS_MAX, any::<bool>());
    let not = not.prop_map(|(request, block, damaged)| {
        sample(Kind::ReadDone, 9..12, |o| {
            if damaged {
                encode_damaged(o, request, LaneBlock(block));
            } else {
                encode_failed(o, request);
            }
        })
    });
    prop_oneof![read, done, not]
}

fn not_read() -> impl Strategy<Value = Option<NotRead>> {
    select(vec![None, Some(NotRead::Unknown), Some(NotRead::Failed)])
}

fn trees() -> impl Strategy<Value = Sample> {
    let summaries = (
        tree(),
        0_u8..=6,
        0..LEAF_MAX - 8,
        vec(any::<u32>(), 1..=8),
        not_read(),
        any::<bool>(),
    );
    let summaries = summaries.prop_map(|(tree, level, first, all, not, ask)| {
        let asked = AskSummaries {
            tree,
            level,
            first,
            count: all.len() as u32,
        };
        if ask {
            let s = sample(Kind::AskSummaries, 2..4, |o| asked.put(o));
            assert_eq!(AskSummaries::decode(&s.body), Ok(asked));
            return s;
        }
        sample(Kind::Summaries, [3], |o| {
            encode_summaries(o, &asked, not.map_or(Ok(&all), Err));
        })
    });
    let entries = proptest::collection::btree_map(0_u8..152, entry(), 0..40);
    let leaf = (tree(), 0..LEAF_MAX, entries, not_read(), any::<bool>());
    let leaf = leaf.prop_map(|(tree, leaf, entries, not, ask)| {
        let asked = AskLeaf { tree, leaf };
        if ask {
            let s = sample(Kind::AskLeaf, 1..8, |o| asked.put(o));
            assert_eq!(AskLeaf::decode(&s.body), Ok(asked));
            return s;
        }
        let entries = entries.into_iter();
        let entries = entries.filter(|(_, e)| e.kind != BlockKind::Absent);
        let entries: Vec<_> = entries
            .map(|(index, entry)| LeafEntry { index, entry })
            .collect();
        let n = if not.is_none() { entries.len() } else { 0 };
        let reserved = (3..8).chain(each(32, n, 20, &[2, 3]));
        sample(Kind::Leaf, reserved, |o| {
            encode_leaf(o, &asked, not.map_or(Ok(&entries), Err));
        })
    });
    prop_oneof![summaries, leaf]
}

fn copies() -> impl Strategy<Value = Sample> {
    let copy = (any::<u64>(), vec(record(4), 1..6)).prop_map(|(request, mut records)| {
        let mut writer = CopyWriter::default();
        writer.begin(request);
        for r in &mut records {
            r.head.flags &= flag::REPAIR;
            if r.head.flags == flag::REPAIR {
                r.head.position = 0;
                r.kind = 1;
            }
            let record = r.record();
            assert!(writer.add(&record), "room for a few");
        }
        let (body, data) = writer.finish();
        let front = [9, 12, 13, 14, 15];
        Sample {
            kind: Kind::Copy,
            body: body.to_vec(),
            data,
            reserved: [front.to_vec(), reserved_of(16, &records)].concat(),
        }
    });
    let results = [Ok(()), Err(NotCopied::Full), Err(NotCopied::Failed)];
    let copied = (any::<u64>(), select(results.to_vec())).prop_map(|(request, result)| {
        let copied = Copied { request, result };
        let s = sample(Kind::Copied, 9..16, |o| copied.put(o));
        assert_eq!(Copied::decode(&s.body), Ok(copied));
        s
    });
    prop_oneof![copy, copied]
}

fn commands() -> impl Strategy<Value = Sample> {
    let numbers = any::<(Id, u64, u32, [bool; 2])>();
    let range = (1_u64..=1024, 0_u64..1 << 40, 1_u32..=60_000);
    let parts = (numbers, range, select(Operation::ALL), stamp(), 0_usize..3);
    let command = parts.prop_map(|(n, (units, first, age_ms), operation, stamp, phase)| {
        let stamp = Stamp {
            seq: stamp.seq | 1,
            ..stamp
        };
        let phases = [Phase::Reserve, Phase::Confirm(stamp), Phase::Void(stamp)];
        let flush = operation == Operation::Flush;
        let command = Command {
            host: n.0,
            request: n.1,
            phase: if operation.modifies() {
                phases[phase]
            } else {
                Phase::Read
            },
            operation,
            fused: n.3[0] && operation == Operation::Write,
            fua: n.3[1],
            nsid: n.2,
            first: if flush { 0 } else { first * 512 },
            bytes: if flush { 0 } else { units * 512 },
            age_ms,
        };
        let mut s = sample(Kind::Command, 64..96, |o| command.put(o));
        s.data = command.data() as usize;
        assert_eq!(Command::decode(&s.body, s.data), Ok(command));
        s
    });
    let done = (any::<u64>(), 0_u16..0x8000, stamp(), 0_usize..=256, 0..3);
    let done = done.prop_map(|(request, status, stamp, blocks, what)| {
        let done = Done {
            request,
            status: if what == 0 { status } else { 0 },
            stamp: (what == 1).then_some(Stamp {
                seq: stamp.seq | 1,
                ..stamp
            }),
        };
        let reserved = [10, 11].into_iter().chain(24..32);
        let mut s = sample(Kind::Done, reserved, |o| done.put(o));
        s.data = if what == 2 { blocks * 4096 } else { 0 };
        assert_eq!(Done::decode(&s.body, s.data), Ok(done));
        s
    });
    prop_oneof![command, done]
}

fn small() -> impl Strategy<Value = Sample> {
    let refused = (select(Reason::ALL), any::<u32>()).prop_map(|(reason, epoch)| {
        let refused = Refused { reason, epoch };
        let s = sample(Kind::Refused, 1..4, |o| refused.put(o));
        assert_eq!(Refused::decode(&s.body), Ok(refused));
        s
    });
    prop_oneof![refused, Just(sample(Kind::Close, [], |_| {}))]
}
