//! What peers are fed with (`docs/replication.md` §5 *Rings*, §8).
//!
//! There is one copy of each lane's stream, and every member or subscriber has a place in it: what it gets next, what it has written, what is stable
//! there. A record is let go when it is stable on everybody who is fed. So a ring costs a few numbers for each peer, whatever is in it.
//!
//! Nobody who is *gapped* keeps anything: it returns by resync only.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::members::{Members, PLACES_MAX, Place};
use super::order::{Entry, Stream};
use crate::replication::held::Held;
use crate::replication::planted::{self, Bug};
use crate::replication::wire::ack::LaneAck;
use crate::replication::wire::batch::RECORDS_MAX as BATCH_RECORDS_MAX;
use crate::replication::wire::frame::{BODY_BYTES_MAX, DATA_BYTES_MAX};
use crate::replication::wire::record::{LANES_MAX, flag};
use crate::store::types::BLOCK_BYTES;

/// Bytes of a batch's body that are not records.
const BATCH_HEAD_BYTES: usize = 8 + 16 * LANES_MAX as usize;

/// What a volume's records may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// Bytes of data.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records: 16_384,
            bytes: 64 << 20,
        }
    }
}

/// A record on its way to a peer.
#[derive(Clone, Debug)]
pub struct Out {
    /// The record.
    pub held: Rc<Held>,
    /// Its position.
    pub position: u64,
    /// Bits of [`flag`].
    pub flags: u8,
}

/// A peer speaks of positions that it was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {position} of lane {lane} was not sent")]
pub struct NeverSent {
    /// The lane.
    pub lane: u8,
    /// The position.
    pub position: u64,
}

/// A peer's place in a lane's stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct At {
    next: u64,
    /// Highest that was ever sent.
    sent: u64,
    written: u64,
    stable: u64,
}

#[derive(Debug)]
struct Feed {
    at: Box<[At]>,
    /// Records and bytes that are not known stable there.
    behind: Limits,
    /// The lane that is looked at first next time.
    turn: usize,
}

/// The streams of one orderer, and everybody's place in them.
#[derive(Debug)]
pub struct Ring {
    streams: Box<[Stream]>,
    feeds: [Option<Feed>; PLACES_MAX],
    limits: Limits,
    kept: Limits,
    /// Positions that reads hold, by lane: nothing beyond them is let go.
    pins: Box<[BTreeMap<u64, u32>]>,
}

impl Ring {
    /// Of so many lanes; nobody is fed.
    pub fn new(lanes: u8, limits: Limits) -> Self {
        Self {
            streams: (0..lanes).map(|_| Stream::default()).collect(),
            feeds: std::array::from_fn(|_| None),
            limits,
            kept: Limits {
                records: 0,
                bytes: 0,
            },
            pins: (0..lanes).map(|_| BTreeMap::new()).collect(),
        }
    }

    /// Lanes there are.
    pub fn lanes(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.streams.len() as u8
    }

    /// A lane's stream.
    pub fn stream(&self, lane: u8) -> &Stream {
        &self.streams[usize::from(lane)]
    }

    /// The record at a position.
    pub fn entry_mut(&mut self, lane: u8, position: u64) -> Option<&mut Entry> {
        self.streams[usize::from(lane)].get_mut(position)
    }

    /// Whether a record with so many bytes of data has room.
    pub fn room(&self, bytes: u64) -> bool {
        // One that is larger than all room is never asked for: records have 1 MiB at most.
        self.kept.records < self.limits.records && self.kept.bytes + bytes <= self.limits.bytes
    }

    /// Whether so many records without data have room.
    pub fn room_for(&self, records: usize) -> bool {
        self.kept.records + records <= self.limits.records
    }

    /// What is kept now.
    pub fn kept(&self) -> Limits {
        self.kept
    }

    /// Puts a record at the end of its lane's stream; its position.
    pub fn put(&mut self, entry: Entry) -> u64 {
        let bytes = entry.data_bytes();
        self.kept.records += 1;
        self.kept.bytes += bytes;
        for feed in self.feeds.iter_mut().flatten() {
            feed.behind.records += 1;
            feed.behind.bytes += bytes;
        }
        self.streams[usize::from(entry.held.lane)].put(entry)
    }

    /// Somebody is fed with all that comes from now on.
    pub fn subscribe(&mut self, place: Place) {
        let at = self.streams.iter().map(|s| At {
            next: s.end() + 1,
            sent: s.end(),
            written: s.end(),
            stable: s.end(),
        });
        self.feeds[place.index()] = Some(Feed {
            at: at.collect(),
            behind: Limits {
                records: 0,
                bytes: 0,
            },
            turn: 0,
        });
    }

    /// Nothing is kept for somebody any more.
    pub fn leave(&mut self, place: Place) {
        self.feeds[place.index()] = None;
    }

    /// Who is fed.
    pub fn fed(&self) -> Members {
        let fed = (0..PLACES_MAX).filter(|&n| self.feeds[n].is_some());
        fed.filter_map(Place::new).collect()
    }

    /// What is not known stable at somebody; `None` if it is not fed.
    pub fn behind(&self, place: Place) -> Option<Limits> {
        self.feeds[place.index()].as_ref().map(|f| f.behind)
    }

    /// Whether somebody is behind by half of all room.
    pub fn half_behind(&self, place: Place) -> bool {
        let half =
            |b: Limits| b.records * 2 >= self.limits.records || b.bytes * 2 >= self.limits.bytes;
        self.behind(place).is_some_and(half)
    }

    /// Whether there is no room for what somebody has not stable.
    pub fn full(&self, place: Place) -> bool {
        self.behind(place).is_some_and(|b| {
            b.records >= self.limits.records || b.bytes + DATA_BYTES_MAX as u64 > self.limits.bytes
        })
    }

    /// Whether a quarter of all room is taken.
    pub fn quarter(&self) -> bool {
        self.kept.records * 4 >= self.limits.records || self.kept.bytes * 4 >= self.limits.bytes
    }

    /// Blocks of data that somebody was not sent yet.
    pub fn unsent_blocks(&self, place: Place) -> u64 {
        let Some(feed) = &self.feeds[place.index()] else {
            return 0;
        };
        let lanes = feed.at.iter().zip(&self.streams);
        let unsent = lanes.flat_map(|(at, stream)| {
            let entries = stream.iter();
            entries.filter(move |(p, _)| *p >= at.next).map(|(_, e)| e)
        });
        unsent.map(Entry::data_bytes).sum::<u64>() / BLOCK_BYTES as u64
    }

    /// Whether somebody has been sent everything.
    pub fn drained(&self, place: Place) -> bool {
        self.feeds[place.index()].as_ref().is_none_or(|f| {
            let mut at = f.at.iter().zip(&self.streams);
            at.all(|(a, s)| a.next > s.end())
        })
    }

    /// The next records for somebody: one batch at most, within its credits.
    pub fn take(&mut self, place: Place, credit: Limits) -> Vec<Out> {
        let mut out = Vec::new();
        let Some(feed) = &mut self.feeds[place.index()] else {
            return out;
        };
        let records = credit.records.min(BATCH_RECORDS_MAX);
        let bytes = credit.bytes.min(DATA_BYTES_MAX as u64);
        let (mut body, mut data) = (BATCH_HEAD_BYTES, 0);
        let lanes = feed.at.len();
        for n in 0..lanes {
            let lane = (feed.turn + n) % lanes;
            let at = &mut feed.at[lane];
            while let Some(entry) = self.streams[lane].get(at.next) {
                let mut flags = 0;
                if at.next <= at.sent {
                    flags |= flag::REPLAYED;
                }
                if entry.rolled {
                    flags |= flag::ROLLED;
                }
                let listed = entry.listed.has(place);
                if listed {
                    flags |= flag::LISTED;
                } else if entry.damaged.has(place) {
                    flags |= flag::REPAIR;
                }
                let more = if listed { 0 } else { entry.data_bytes() };
                let room = entry.held.record(at.next, flags).bytes();
                let fits =
                    out.len() < records && data + more <= bytes && body + room <= BODY_BYTES_MAX;
                if !fits {
                    // Who comes last in a full batch comes first in the next.
                    feed.turn = lane;
                    return out;
                }
                (data, body) = (data + more, body + room);
                out.push(Out {
                    held: Rc::clone(&entry.held),
                    position: at.next,
                    flags,
                });
                at.sent = at.sent.max(at.next);
                at.next += 1;
            }
        }
        out
    }

    /// Notes how far a lane is at somebody; the positions that it has written beyond what it had.
    ///
    /// # Errors
    /// [`NeverSent`]: it is no honest peer, or not of this epoch.
    pub fn ack(&mut self, place: Place, ack: LaneAck) -> Result<std::ops::Range<u64>, NeverSent> {
        let lane = usize::from(ack.lane);
        let never = |position| NeverSent {
            lane: ack.lane,
            position,
        };
        let Some(feed) = &mut self.feeds[place.index()] else {
            return Ok(0..0);
        };
        let at = feed.at.get_mut(lane).ok_or(never(ack.written))?;
        // On this session: what it was sent before, it says when it opens.
        if ack.written >= at.next || ack.stable > ack.written {
            return Err(never(ack.written.max(ack.stable)));
        }
        let old = *at;
        at.written = old.written.max(ack.written);
        at.stable = old.stable.max(ack.stable);
        for position in old.stable + 1..=at.stable {
            // What everybody has was let go.
            if let Some(entry) = self.streams[lane].get(position) {
                feed.behind.records -= 1;
                feed.behind.bytes -= entry.data_bytes();
            }
        }
        // Where only stable counts, what became so counts from now on.
        let from = if at.stable > old.stable {
            old.stable
        } else {
            old.written
        };
        Ok(from + 1..at.written + 1)
    }

    /// Notes that somebody has written one record before others.
    ///
    /// # Errors
    /// [`NeverSent`].
    pub fn early(&mut self, place: Place, lane: u8, position: u64) -> Result<(), NeverSent> {
        let never = NeverSent { lane, position };
        let Some(feed) = &self.feeds[place.index()] else {
            return Ok(());
        };
        let at = feed.at.get(usize::from(lane)).ok_or(never)?;
        if position >= at.next {
            return Err(never);
        }
        if let Some(entry) = self.streams[usize::from(lane)].get_mut(position) {
            entry.early = entry.early.with(place);
        }
        Ok(())
    }

    /// Somebody has a new session, and says how far it is; `same` if nothing that it wrote can be gone. It is fed from there on.
    ///
    /// What it said was stable is, whatever happened: where it does not know its place, it is fed from there.
    ///
    /// # Errors
    /// [`NeverSent`].
    pub fn reopen(&mut self, place: Place, lanes: &[LaneAck], same: bool) -> Result<(), NeverSent> {
        let Some(feed) = &mut self.feeds[place.index()] else {
            return Ok(());
        };
        for said in lanes {
            let lane = usize::from(said.lane);
            let at = feed.at.get_mut(lane).ok_or(NeverSent {
                lane: said.lane,
                position: said.written,
            })?;
            if said.written > at.sent || said.stable > said.written {
                return Err(NeverSent {
                    lane: said.lane,
                    position: said.written.max(said.stable),
                });
            }
            let stream = &mut self.streams[lane];
            let released = stream.released();
            let from = if same { said.written } else { said.stable };
            at.next = from.max(at.stable) + 1;
            if !same {
                at.written = at.stable;
                for position in released + 1..=stream.end() {
                    if let Some(entry) = stream.get_mut(position) {
                        entry.early = entry.early.without(place);
                    }
                }
            }
        }
        for said in lanes {
            let stable = said.stable;
            let written = if same { said.written } else { stable };
            self.ack(
                place,
                LaneAck {
                    lane: said.lane,
                    written,
                    stable,
                },
            )?;
        }
        Ok(())
    }

    /// Who has confirmed a record.
    pub fn confirmed(&self, lane: u8, position: u64) -> Members {
        let lane_at = usize::from(lane);
        let entry = self.streams[lane_at].get(position);
        let stable_only = entry.is_some_and(|e| e.stable_only);
        let early = entry.map_or(Members::NONE, |e| e.early);
        let all = (0..PLACES_MAX).filter_map(Place::new);
        let confirmed = all.filter(|p| {
            self.feeds[p.index()].as_ref().is_some_and(|feed| {
                let at = feed.at[lane_at];
                match stable_only {
                    true => at.stable >= position,
                    false => at.written >= position || early.has(*p),
                }
            })
        });
        confirmed.collect()
    }

    /// The position behind which somebody is fed next.
    pub fn fed_to(&self, place: Place, lane: u8) -> u64 {
        let feed = self.feeds[place.index()].as_ref();
        feed.map_or(0, |f| f.at[usize::from(lane)].next - 1)
    }

    /// Up to which position a lane is written, and stable, at somebody.
    pub fn position(&self, place: Place, lane: u8) -> Option<(u64, u64)> {
        let feed = self.feeds[place.index()].as_ref()?;
        let at = feed.at[usize::from(lane)];
        Some((at.written, at.stable))
    }

    /// The sum of the positions that somebody confirmed, if there is anything that it has not stable: it rises while it gets on.
    pub fn waits_at(&self, place: Place) -> Option<u64> {
        let feed = self.feeds[place.index()].as_ref()?;
        let waits = feed.behind.records > 0;
        let at = feed.at.iter().map(|at| at.written + at.stable);
        waits.then(|| at.sum())
    }

    /// Up to which positions a lane is written, and stable, at all of these; `None` if one of them is not fed.
    pub fn at_all(&self, who: Members, lane: u8) -> Option<(u64, u64)> {
        let each = who.iter().map(|p| self.position(p, lane));
        let least = each.reduce(|a, b| {
            let (a, b) = (a?, b?);
            Some((a.0.min(b.0), a.1.min(b.1)))
        });
        least.flatten()
    }

    /// Up to which position a lane is stable at all of these; `None` if one of them is not fed.
    pub fn stable_at_all(&self, who: Members, lane: u8) -> Option<u64> {
        let written = planted::is(Bug::SettledNotStable);
        self.at_all(who, lane)
            .map(|at| if written { at.0 } else { at.1 })
    }

    /// Lets go of what is acknowledged, stable at everybody who is fed, and held by no read.
    pub fn release(&mut self, mut gone: impl FnMut(u8, u64, &Entry)) {
        let mut fed = self.fed();
        if planted::is(Bug::RingReleasedEarly) {
            fed = fed.iter().take(1).collect();
        }
        for lane in self.lanes() {
            let Some(to) = self.stable_at_all(fed, lane) else {
                continue;
            };
            let pinned = self.pins[usize::from(lane)].keys().next();
            let to = pinned.map_or(to, |&p| to.min(p));
            while let Some(entry) = self.streams[usize::from(lane)].release_one(to) {
                self.kept.records -= 1;
                self.kept.bytes -= entry.data_bytes();
                gone(lane, self.streams[usize::from(lane)].released(), &entry);
            }
        }
    }

    /// A read of a lane begins: nothing is let go that it may have to look at. What it is to be ended with.
    pub fn pin(&mut self, lane: u8) -> u64 {
        let position = self.stream(lane).released();
        *self.pins[usize::from(lane)].entry(position).or_default() += 1;
        position
    }

    /// The read has ended.
    ///
    /// # Panics
    /// If it never began.
    pub fn unpin(&mut self, lane: u8, position: u64) {
        let pins = &mut self.pins[usize::from(lane)];
        let count = pins.get_mut(&position).expect("a read that began");
        *count -= 1;
        if *count == 0 {
            pins.remove(&position);
        }
    }

    /// Asserts what a ring must keep.
    ///
    /// # Panics
    /// If a count is wrong, or somebody's place is impossible.
    #[cfg(test)]
    pub fn check(&self) {
        let entries = || self.streams.iter().flat_map(|s| s.iter());
        assert_eq!(self.kept.records, entries().count());
        assert_eq!(
            self.kept.bytes,
            entries().map(|(_, e)| e.data_bytes()).sum::<u64>()
        );
        for feed in self.feeds.iter().flatten() {
            let mut behind = Limits {
                records: 0,
                bytes: 0,
            };
            for (at, stream) in feed.at.iter().zip(&self.streams) {
                assert!(at.stable <= at.written && at.written <= at.sent);
                assert!(at.sent <= stream.end() && at.next <= stream.end() + 1);
                assert!(at.stable >= stream.released());
                assert!(at.next > stream.released());
                let rest = stream.iter().filter(|(p, _)| *p > at.stable);
                for (_, entry) in rest {
                    behind.records += 1;
                    behind.bytes += entry.data_bytes();
                }
            }
            assert_eq!(feed.behind, behind);
        }
    }
}
