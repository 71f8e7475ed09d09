//! The ring and what reads show of it, against models that remember everything.
use std::rc::Rc;

use keelblock_hugepages::BufferPool;
use proptest::prelude::*;

use super::super::members::{Members, Place};
use super::super::order::Entry;
use super::super::quorum::{Set, Sets};
use super::super::read::{Overlay, Part, Ready};
use super::super::ring::{Limits, NeverSent, Ring};
use super::super::settled::Settled;
use super::replica::value_of;
use super::{erase, write};
use crate::reactor::Nanos;
use crate::replication::held::{Held, What};
use crate::replication::seam::{Entry as Block, Kind};
use crate::replication::wire::ack::LaneAck;
use crate::replication::wire::record::flag;
use crate::store::types::Stamp;

const PLENTY: Limits = Limits {
    records: usize::MAX,
    bytes: u64::MAX,
};

fn place(n: usize) -> Place {
    Place::new(n).unwrap()
}

fn stamp(seq: u64) -> Stamp {
    Stamp { epoch: 1, seq }
}

fn entry(lane: u8, seq: u64, what: What) -> Entry {
    let held = Held {
        lane,
        stamp: stamp(seq),
        key: 0,
        what,
    };
    let mut entry = Entry::new(Rc::new(held), Nanos(0), false);
    entry.acked = true;
    entry
}

fn erased(lane: u8, seq: u64) -> Entry {
    entry(lane, seq, erase(seq, 1))
}

fn at(lane: u8, written: u64, stable: u64) -> LaneAck {
    LaneAck {
        lane,
        written,
        stable,
    }
}

fn two() -> Ring {
    let mut ring = Ring::new(1, Limits::default());
    ring.subscribe(place(0));
    ring.subscribe(place(1));
    for n in 1..=4 {
        ring.put(erased(0, n));
    }
    ring
}

fn positions(ring: &mut Ring, n: usize) -> Vec<u64> {
    let taken = ring.take(place(n), PLENTY);
    taken.iter().map(|o| o.position).collect()
}

#[test]
fn a_record_goes_when_it_is_stable_on_everybody() {
    let mut ring = two();
    assert_eq!(positions(&mut ring, 0), [1, 2, 3, 4]);
    assert_eq!(positions(&mut ring, 1), [1, 2, 3, 4]);
    ring.ack(place(0), at(0, 4, 3)).unwrap();
    ring.ack(place(1), at(0, 4, 0)).unwrap();
    ring.release(|_, _, _| panic!("nothing is stable on both"));
    ring.ack(place(1), at(0, 4, 2)).unwrap();
    let mut gone = Vec::new();
    ring.release(|_, p, _| gone.push(p));
    assert_eq!(gone, [1, 2]);
    // What is not acknowledged stays, wherever it is.
    ring.entry_mut(0, 3).unwrap().acked = false;
    ring.leave(place(1));
    ring.release(|_, _, _| panic!("it is not acknowledged"));
    ring.entry_mut(0, 3).unwrap().acked = true;
    // Who is gapped holds up nothing.
    ring.release(|_, p, _| gone.push(p));
    assert_eq!(gone, [1, 2, 3]);
    ring.check();
}

#[test]
fn a_read_holds_what_it_may_look_at() {
    let mut ring = two();
    positions(&mut ring, 0);
    ring.leave(place(1));
    let pin = ring.pin(0);
    ring.ack(place(0), at(0, 4, 4)).unwrap();
    ring.release(|_, _, _| panic!("a read holds it"));
    ring.unpin(0, pin);
    ring.release(|_, _, _| {});
    assert_eq!(ring.kept().records, 0);
}

#[test]
fn a_session_that_comes_back_is_fed_from_where_it_is() {
    let mut ring = two();
    positions(&mut ring, 0);
    ring.ack(place(0), at(0, 3, 1)).unwrap();
    // The same process: what it wrote is there.
    ring.reopen(place(0), &[at(0, 2, 1)], true).unwrap();
    let again = ring.take(place(0), PLENTY);
    assert_eq!(again[0].position, 3);
    assert_eq!(again[0].flags, flag::REPLAYED);
    // Another: only what was stable.
    ring.early(place(0), 0, 4).unwrap();
    assert!(ring.confirmed(0, 3).has(place(0)) && ring.confirmed(0, 4).has(place(0)));
    ring.reopen(place(0), &[at(0, 0, 0)], false).unwrap();
    assert!(!ring.confirmed(0, 3).has(place(0)) && !ring.confirmed(0, 4).has(place(0)));
    assert!(ring.confirmed(0, 1).has(place(0)));
    assert_eq!(positions(&mut ring, 0), [2, 3, 4]);
    ring.check();
}

#[test]
fn positions_that_were_never_sent_are_an_error() {
    let mut ring = two();
    let never = NeverSent {
        lane: 0,
        position: 1,
    };
    assert_eq!(ring.ack(place(0), at(0, 1, 0)), Err(never));
    assert_eq!(ring.early(place(0), 0, 1), Err(never));
    assert_eq!(ring.reopen(place(0), &[at(0, 1, 0)], true), Err(never));
    positions(&mut ring, 0);
    assert!(
        ring.ack(place(0), at(0, 2, 3)).is_err(),
        "stable beyond written"
    );
    assert!(ring.ack(place(0), at(3, 0, 0)).is_err(), "no such lane");
}

#[test]
fn who_listed_a_record_gets_it_without_data_and_who_has_it_damaged_a_repair() {
    let pool = BufferPool::new(4 << 20, || {}).unwrap();
    let mut ring = Ring::new(1, Limits::default());
    for n in 0..3 {
        ring.subscribe(place(n));
    }
    let mut put = entry(0, 1, write(&pool, 0, &[(0, 1)]).unwrap());
    put.listed = Members::one(place(0));
    put.damaged = Members::one(place(1));
    put.rolled = true;
    ring.put(put);
    let flags: Vec<u8> = (0..3)
        .map(|n| ring.take(place(n), PLENTY)[0].flags)
        .collect();
    let rolled = flag::ROLLED;
    assert_eq!(
        flags,
        [rolled | flag::LISTED, rolled | flag::REPAIR, rolled]
    );
}

#[test]
fn batches_keep_their_bounds_and_lanes_take_turns() {
    let pool = BufferPool::new(16 << 20, || {}).unwrap();
    let mut ring = Ring::new(2, Limits::default());
    ring.subscribe(place(0));
    let large: Vec<_> = (0..200).map(|b| (b, b)).collect();
    for n in 0..3 {
        ring.put(entry(0, 1 + n * 200, write(&pool, 0, &large).unwrap()));
    }
    ring.put(erased(1, 1));
    let first = ring.take(place(0), PLENTY);
    assert_eq!(first.len(), 1, "1 MiB has room for one of 800 KiB");
    let second = ring.take(place(0), PLENTY);
    assert_eq!(second[0].position, 2);
    let none = Limits {
        records: 9,
        bytes: 4096,
    };
    assert!(ring.take(place(0), none).is_empty(), "credit for 4 KiB");
    let third = ring.take(place(0), PLENTY);
    assert_eq!(third.len(), 2, "the last of lane 0, and lane 1");
    assert!(ring.drained(place(0)));
}

#[test]
fn settled_waits_for_everybody_and_not_for_nobody() {
    let mut ring = two();
    let mut settled = Settled::new(&[Stamp { epoch: 0, seq: 9 }]);
    let both: Members = [place(0), place(1)].into_iter().collect();
    let set = Set {
        members: both,
        minimum: 1,
    };
    let mut sets = Sets::new(set);
    positions(&mut ring, 0);
    positions(&mut ring, 1);
    ring.ack(place(0), at(0, 4, 4)).unwrap();
    assert!(!settled.raise(&ring, Some(sets.everyone()), |_| None));
    ring.ack(place(1), at(0, 4, 2)).unwrap();
    assert!(settled.raise(&ring, Some(sets.everyone()), |_| None));
    assert_eq!(settled.of(0), stamp(2));
    // Somebody arrives: from the sending on it is waited for.
    ring.subscribe(place(2));
    let asked = Set {
        members: both.with(place(2)),
        minimum: 1,
    };
    sets.ask(asked);
    ring.put(erased(0, 5));
    for n in 0..2 {
        positions(&mut ring, n);
        ring.ack(place(n), at(0, 5, 5)).unwrap();
    }
    settled.raise(&ring, Some(sets.everyone()), |_| None);
    assert_eq!(settled.of(0), stamp(4), "all but the new one's first");
    // A gapped member is in the set.
    assert!(!settled.raise(&ring, None, |_| None));
}

#[test]
fn what_was_let_go_is_settled_when_the_one_that_was_gapped_is_gone() {
    let mut ring = two();
    let mut settled = Settled::new(&[stamp(0)]);
    positions(&mut ring, 0);
    ring.leave(place(1));
    ring.ack(place(0), at(0, 4, 4)).unwrap();
    ring.release(|_, _, _| {});
    assert!(settled.raise(&ring, Some(Members::one(place(0))), |_| None));
    assert_eq!(settled.of(0), stamp(4));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Take(usize, usize),
    Ack(usize, u8, u64, u64),
    Reopen(usize, bool),
    Release,
    Join(usize),
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..2).prop_map(Step::Put),
        3 => (0usize..3, 1usize..6).prop_map(|(p, n)| Step::Take(p, n)),
        4 => (0usize..3, 0u8..2, 0u64..9, 0u64..9).prop_map(|(p, l, w, s)| Step::Ack(p, l, w, s)),
        1 => (0usize..3, any::<bool>()).prop_map(|(p, s)| Step::Reopen(p, s)),
        2 => Just(Step::Release),
        1 => (0usize..3).prop_map(Step::Join),
        1 => (0usize..3).prop_map(Step::Leave),
    ]
}

/// A version of a block, newest last: (position, stamp, value, acknowledged, failed).
type Version = (u64, Stamp, u64, bool, bool);

proptest! {
    /// Counts are right, places possible, and everybody gets each record in order: first the next one, after a new session from where it is.
    #[test]
    fn a_ring_keeps_its_counts(steps in prop::collection::vec(step(), 1..120)) {
        let mut ring = Ring::new(2, Limits::default());
        let mut seq = 0;
        let mut next = [[1u64; 2]; 3];
        for step in steps {
            match step {
                Step::Put(lane) => {
                    seq += 1;
                    ring.put(erased(lane, seq));
                }
                Step::Take(p, n) => {
                    for o in ring.take(place(p), Limits { records: n, ..PLENTY }) {
                        let next = &mut next[p][usize::from(o.held.lane)];
                        prop_assert_eq!(o.position, *next);
                        *next += 1;
                    }
                }
                Step::Ack(p, lane, written, stable) => {
                    let Some((_, before)) = ring.position(place(p), lane) else { continue };
                    let written = before + written;
                    let ack = at(lane, written, written.min(before + stable));
                    let sent = written <= ring.fed_to(place(p), lane);
                    prop_assert_eq!(ring.ack(place(p), ack).is_ok(), sent);
                }
                Step::Reopen(p, same) => {
                    let lanes: Vec<_> = (0..2).filter_map(|l| {
                        let (w, s) = ring.position(place(p), l)?;
                        Some(if same { at(l, w, s) } else { at(l, 0, 0) })
                    }).collect();
                    ring.reopen(place(p), &lanes, same).unwrap();
                    for lane in 0..2 {
                        next[p][usize::from(lane)] = ring.fed_to(place(p), lane) + 1;
                    }
                }
                Step::Release => {
                    let fed = ring.fed();
                    let least: Vec<_> = (0..2).map(|l| ring.stable_at_all(fed, l)).collect();
                    ring.release(|lane, p, _| assert!(p <= least[usize::from(lane)].unwrap()));
                }
                Step::Join(p) => {
                    if !ring.fed().has(place(p)) {
                        ring.subscribe(place(p));
                        for lane in 0..2 {
                            next[p][usize::from(lane)] = ring.stream(lane).end() + 1;
                        }
                    }
                }
                Step::Leave(p) => ring.leave(place(p)),
            }
            ring.check();
        }
    }

    /// Rule 7: a block shows its newest acknowledged version; one that is not acknowledged never shows, and where a command failed nothing does until it is
    /// decided. The replica that is asked has applied any number of records more.
    #[test]
    fn reads_show_what_stays(
        records in prop::collection::vec((0u64..6, 1u64..4, any::<bool>(), any::<bool>(), any::<bool>()), 0..14),
        applied in 0usize..15, released in 0usize..15,
    ) {
        let pool = BufferPool::new(4 << 20, || {}).unwrap();
        let mut ring = Ring::new(1, Limits::default());
        ring.subscribe(place(0));
        let mut overlay = Overlay::new(1);
        let mut versions: Vec<Vec<Version>> = vec![Vec::new(); 10];
        // What was let go is acknowledged, and the replica has it.
        let released = released.min(applied).min(records.len());
        let mut seq = 1;
        for (n, (first, blocks, erases, acked, failed)) in records.iter().enumerate() {
            let values: Vec<_> = (*first..first + blocks).map(|b| (b, (seq + b) << 8 | 1)).collect();
            let what = if *erases { erase(*first, *blocks) } else { write(&pool, *first, &values).unwrap() };
            let mut e = entry(0, seq, what);
            e.acked = *acked || n < released;
            e.failed = *failed && !e.acked;
            let (acked, failed) = (e.acked, e.failed);
            for b in e.held.blocks() {
                let value = value_of(&e.held, b);
                versions[b as usize].push((n as u64 + 1, e.held.stamp_of(b), value, acked, failed));
            }
            let held = Rc::clone(&e.held);
            let position = ring.put(e);
            overlay.put(position, &held);
            seq += if *erases { 1 } else { *blocks };
        }
        ring.take(place(0), PLENTY);
        let all = records.len() as u64;
        ring.ack(place(0), at(0, all, released as u64)).unwrap();
        ring.release(|_, p, e| overlay.gone(p, &e.held));
        // The replica's blocks.
        let there: Vec<(Block, u64)> = versions.iter().map(|v| {
            match v.iter().rfind(|v| v.0 <= applied as u64) {
                Some((_, stamp, value, ..)) => {
                    let kind = if *value == 0 { Kind::Erased } else { Kind::Data };
                    (Block { kind, stamp: *stamp, ..Block::ABSENT }, *value)
                }
                None => (Block::ABSENT, 0),
            }
        }).collect();
        for block in 0..10u64 {
            let of = &versions[block as usize];
            let newest = of.iter().rfind(|v| v.3);
            let undecided = of.iter().any(|v| v.4 && newest.is_none_or(|n| n.0 < v.0));
            let entries = [there[block as usize].0];
            let ready = overlay.assemble(&ring, 0, block..block + 1, Some(&entries));
            let in_memory = newest.is_some_and(|n| n.0 > released as u64);
            if !overlay.needs_replica(&ring, 0, block..block + 1) {
                prop_assert!(in_memory || undecided);
            }
            let hidden = !in_memory && of.iter().any(|v| v.0 <= applied as u64 && !v.3);
            match ready {
                Ready::Wait => prop_assert!(undecided || hidden),
                Ready::Elsewhere => prop_assert!(false, "all records have data"),
                Ready::Parts(parts) => {
                    prop_assert!(!undecided);
                    let value = match &parts[0] {
                        Part::Zero => 0,
                        Part::Replica => there[block as usize].1,
                        Part::Record { held, index } => value_of(held, held.blocks().start + *index as u64),
                        Part::Damaged => panic!("nothing is damaged"),
                    };
                    prop_assert_eq!(value, newest.map_or(0, |n| n.2));
                }
            }
        }
    }
}
