//! What a coordinator says, as frames, and frames as what it hears (`docs/replication.md` §5). Both are one for one: nothing is kept here.

use std::ops::Range;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

use super::message::{LaneState, Message, Said, State};
use super::ring::Out;
use crate::replication::held::{Held, What};
use crate::replication::seam::{Id, KeptSet, Standing};
use crate::replication::wire::WireError;
use crate::replication::wire::ack::{Ack, LaneAck};
use crate::replication::wire::batch::{BatchWriter, Settled};
use crate::replication::wire::damaged::Damaged;
use crate::replication::wire::frame::Kind;
use crate::replication::wire::heart::{Beat, Flush, Heard, encode_heartbeat};
use crate::replication::wire::list::{Fetch, Fetched, Found, ListAsk, Listed};
use crate::replication::wire::open::{self, LaneFeed, Open, Opened, Target, encode_feed};
use crate::replication::wire::promise::{Kept, Promise, Promised, Purpose, encode_set};
use crate::replication::wire::refused::Refused;
use crate::replication::wire::snapshots::{Having, encode_snapshots};
use crate::store::types::{BLOCK_BYTES, SnapshotId, Stamp};

/// Whom a channel leads to, and from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The volume.
    pub volume: Id,
    /// The replica.
    pub replica: Id,
    /// Of this process.
    pub incarnation: Id,
    /// Lanes of the volume.
    pub lanes: u8,
}

/// A frame to be sent.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its body.
    pub body: Vec<u8>,
    /// Its data, by reference.
    pub data: Vec<(Rc<Buffer>, Range<usize>)>,
}

/// The frame of a message. `now`: of this node's clock, for heartbeats.
///
/// # Panics
/// If a batch is more than a frame has room for: rings bound what they give.
pub fn frame(ends: &Ends, message: &Message, now_ns: u64) -> Frame {
    let mut body = Vec::new();
    let mut data = Vec::new();
    let kind = match message {
        Message::Promise { version, attempt } => {
            let promise = Promise {
                volume: ends.volume,
                replica: ends.replica,
                incarnation: ends.incarnation,
                attempt: *attempt,
                version: *version,
            };
            promise.put(&mut body);
            Kind::Promise
        }
        Message::List { lane, after } => {
            let ask = ListAsk {
                lane: *lane,
                after: *after,
                leaf: 0,
            };
            ask.put(&mut body);
            Kind::List
        }
        Message::Fetch { lane, stamp } => {
            let fetch = Fetch {
                lane: *lane,
                stamp: *stamp,
            };
            fetch.put(&mut body);
            Kind::Fetch
        }
        Message::Open {
            version,
            subscribe,
            lease_ms,
        } => {
            let to = Target::Replica {
                id: ends.replica,
                version: *version,
                lanes: ends.lanes,
                lease_ms: *lease_ms,
                subscribe: *subscribe,
            };
            let open = Open {
                volume: ends.volume,
                incarnation: ends.incarnation,
                to,
            };
            open.put(&mut body);
            Kind::Open
        }
        Message::Feed { lanes } => {
            let feed = |&(lane, after, s0): &(u8, u64, Option<Stamp>)| LaneFeed {
                lane,
                after,
                s0: s0.unwrap_or(Stamp { epoch: 0, seq: 0 }),
            };
            let lanes: Vec<LaneFeed> = lanes.iter().map(feed).collect();
            encode_feed(&mut body, &lanes);
            Kind::Feed
        }
        Message::Batch { settled, records } => {
            batch(&mut body, &mut data, settled, records);
            Kind::Batch
        }
        Message::Heartbeat {
            number,
            version,
            release,
            settled,
        } => {
            let beat = Beat {
                number: *number,
                sent_ns: now_ns,
                version: *version,
                release: *release,
            };
            let settled = settled.iter().map(|&(lane, stamp)| Settled { lane, stamp });
            encode_heartbeat(&mut body, &beat, &settled.collect::<Vec<_>>());
            Kind::Heartbeat
        }
        Message::Flush { number } => {
            Flush { number: *number }.put(&mut body);
            Kind::Flush
        }
        Message::Set {
            version,
            members,
            level,
        } => {
            let purpose = match level {
                true => Purpose::Level,
                false => Purpose::Keep,
            };
            encode_set(&mut body, *version, purpose, members);
            Kind::Set
        }
        Message::Snapshots { number, whole, ids } => {
            let ids: Vec<Id> = ids.iter().map(|id| id.0).collect();
            encode_snapshots(&mut body, *number, *whole, &ids);
            Kind::Snapshots
        }
        Message::Close => Kind::Close,
    };
    Frame { kind, body, data }
}

fn batch(
    body: &mut Vec<u8>,
    data: &mut Vec<(Rc<Buffer>, Range<usize>)>,
    settled: &[(u8, Stamp)],
    records: &[Out],
) {
    let mut writer = BatchWriter::default();
    writer.begin(settled.iter().copied());
    for out in records {
        let record = out.held.record(out.position, out.flags);
        assert!(writer.add(&record), "a batch within a frame's bounds");
        if let What::Write {
            data: Some(bytes), ..
        } = &out.held.what
            && record.data_blocks() > 0
        {
            data.push((bytes.clone(), 0..record.data_blocks() * BLOCK_BYTES));
        }
    }
    body.extend_from_slice(writer.finish().0);
}

/// What a frame of a replica says. `data`: in pieces, of which only a fetched record's is used.
///
/// # Errors
/// [`WireError`]: it is no such frame, or none that a replica sends to a coordinator here. Its session is to end.
pub fn said(
    kind: Kind,
    body: &[u8],
    data: &mut Vec<Buffer>,
    bytes: usize,
) -> Result<Said, WireError> {
    Ok(match kind {
        Kind::Promised => {
            let promised = Promised::decode(body)?;
            Said::Promised(State {
                boot: promised.head.boot,
                lanes: promised.lanes.iter().map(lane).collect(),
                standing: promised.head.standing,
                level: promised.head.level,
                leaves: promised.head.degraded,
                kept: KeptSet {
                    epoch: promised.head.set.0,
                    version: promised.head.set.1,
                    members: promised.members.iter().collect(),
                },
            })
        }
        Kind::Opened => {
            let opened = Opened::decode(body)?;
            let resyncing = opened.lanes.iter().any(|l| l.resyncing);
            Said::Opened(State {
                boot: opened.boot,
                lanes: opened.lanes.iter().map(lane).collect(),
                standing: if resyncing {
                    Standing::Resyncing
                } else {
                    Standing::Promised
                },
                level: 0,
                leaves: false,
                kept: KeptSet::default(),
            })
        }
        Kind::Listed => {
            let listed = Listed::decode(body)?;
            let records = listed.records().map(|r| Rc::new(Held::of(&r, None)));
            Said::Listed {
                lane: listed.lane,
                records: records.collect(),
                last: listed.last,
            }
        }
        Kind::Fetched => {
            let fetched = Fetched::decode(body, bytes)?;
            let held = match fetched.found {
                Found::Record(record) => {
                    let piece = data.pop().map(Rc::new);
                    Some(Rc::new(Held::of(&record, piece)))
                }
                Found::Unknown | Found::Failed => None,
            };
            Said::Fetched {
                lane: fetched.asked.lane,
                stamp: fetched.asked.stamp,
                held,
            }
        }
        Kind::Ack => {
            let ack = Ack::decode(body)?;
            Said::Ack {
                head: ack.head,
                lanes: ack.lanes().collect(),
                early: ack.early().collect(),
            }
        }
        Kind::Heard => {
            let heard = Heard::decode(body)?;
            Said::Heard {
                number: heard.number,
                asked: !heard.lease,
            }
        }
        Kind::Having => {
            let having = Having::decode(body)?;
            Said::Having {
                number: having.number,
                ids: having.ids.iter().map(SnapshotId).collect(),
            }
        }
        Kind::Damaged => {
            let Damaged { lane, block } = Damaged::decode(body)?;
            let block = block.0;
            Said::Damaged { lane, block }
        }
        Kind::Kept => {
            let kept = Kept::decode(body)?;
            Said::Kept {
                version: kept.version,
                level: kept.purpose == Purpose::Level,
            }
        }
        Kind::Refused => {
            let Refused { reason, epoch } = Refused::decode(body)?;
            Said::Refused { reason, epoch }
        }
        other => {
            return Err(WireError::Value {
                what: "kind of a frame that a replica sent,",
                value: u64::from(other as u8),
            });
        }
    })
}

fn lane(l: open::LaneState) -> LaneState {
    LaneState {
        at: LaneAck {
            lane: l.lane,
            written: l.written,
            stable: l.stable,
        },
        settled: l.settled,
        lost: l.lost,
    }
}
