//! The table against a model that is written from the other end: per host its key and whether it holds, no shared code.

use super::codec::{decode, encode};
use super::state::{Op, PtplChange, Refusal, State};
use crate::nvmf::seam::{HostId, ReservationType};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Key of each registrant; the reservation as (RTYPE, holder), with no holder for types 5 and 6.
#[derive(Default, Clone, Debug, PartialEq)]
struct Model {
    keys: BTreeMap<u8, u64>,
    held: Option<(u8, Option<u8>)>,
    ptpl: bool,
    generation: u32,
}

impl Model {
    fn holder(&self, h: u8) -> bool {
        match self.held {
            Some((_, Some(x))) => x == h,
            Some((_, None)) => self.keys.contains_key(&h),
            None => false,
        }
    }

    fn drop_hosts(&mut self, gone: impl Fn(u8, u64) -> bool) -> bool {
        let before = self.keys.len();
        self.keys.retain(|h, k| !gone(*h, *k));
        let orphan = match self.held {
            Some((_, Some(x))) => !self.keys.contains_key(&x),
            Some((_, None)) => self.keys.is_empty(),
            None => false,
        };
        if orphan {
            self.held = None;
        }
        before != self.keys.len()
    }

    fn hold(&mut self, t: u8, h: u8) {
        self.held = Some((t, (t < 5).then_some(h)));
    }

    fn run(&mut self, h: u8, op: Op) -> Result<(), Refusal> {
        let mine = self.keys.get(&h).copied();
        let known = |key: u64| {
            if mine == Some(key) {
                Ok(())
            } else {
                Err(Refusal::Conflict)
            }
        };
        let set = |m: &mut Model, p: PtplChange| match p {
            PtplChange::Keep => {}
            p => m.ptpl = p == PtplChange::Set,
        };
        match op {
            Op::Register { new_key: 0, .. } => return Err(Refusal::InvalidField),
            Op::Register { new_key, ptpl } => {
                if mine.is_some_and(|k| k != new_key) {
                    return Err(Refusal::Conflict);
                }
                self.keys.insert(h, new_key);
                set(self, ptpl);
                self.generation += 1;
            }
            Op::Replace { key, new_key, ptpl } => {
                if let Some(key) = key {
                    known(key)?;
                }
                if new_key == 0 {
                    return Err(Refusal::InvalidField);
                }
                self.keys.insert(h, new_key);
                set(self, ptpl);
                self.generation += 1;
            }
            Op::Unregister { key, ptpl } => {
                known(key.or(mine).ok_or(Refusal::Conflict)?)?;
                self.drop_hosts(|x, _| x == h);
                set(self, ptpl);
                self.generation += 1;
            }
            Op::Acquire { key, kind } => {
                known(key)?;
                match self.held {
                    None => self.hold(kind as u8, h),
                    Some((t, _)) if self.holder(h) && t == kind as u8 => {}
                    _ => return Err(Refusal::Conflict),
                }
            }
            Op::Preempt {
                key, victim, kind, ..
            } => {
                known(key)?;
                match self.held {
                    Some((t, None)) if victim == 0 => {
                        assert!(t >= 5);
                        self.drop_hosts(|x, _| x != h);
                        self.hold(kind as u8, h);
                    }
                    _ if victim == 0 => return Err(Refusal::InvalidField),
                    Some((_, Some(x))) if self.keys[&x] == victim => {
                        self.drop_hosts(|x, k| x != h && k == victim);
                        self.hold(kind as u8, h);
                    }
                    _ => {
                        if !self.drop_hosts(|_, k| k == victim) {
                            return Err(Refusal::Conflict);
                        }
                    }
                }
                self.generation += 1;
            }
            Op::Release { key, rtype } => {
                known(key)?;
                if self.holder(h) {
                    if self.held.is_some_and(|(t, _)| t != rtype) {
                        return Err(Refusal::InvalidField);
                    }
                    self.held = None;
                }
            }
            Op::Clear { key } => {
                known(key)?;
                self.keys.clear();
                self.held = None;
                self.generation += 1;
            }
            Op::Persist(on) => self.ptpl = on,
        }
        Ok(())
    }
}

fn model_of(s: &State) -> Model {
    Model {
        keys: s.registrants.iter().map(|r| (r.host[0], r.key)).collect(),
        held: (s.kind != ReservationType::None).then_some((s.kind as u8, s.holder.map(|h| h[0]))),
        ptpl: s.ptpl,
        generation: s.generation,
    }
}

fn ops() -> impl Strategy<Value = Op> {
    let key = || 0..4_u64;
    let maybe = || proptest::option::weighted(0.8, 0..4_u64);
    let kind = || (1..7_u8).prop_map(|t| ReservationType::from_rtype(t).expect("a type"));
    let ptpl = || {
        prop_oneof![
            Just(PtplChange::Keep),
            Just(PtplChange::Clear),
            Just(PtplChange::Set)
        ]
    };
    prop_oneof![
        4 => (key(), ptpl()).prop_map(|(new_key, ptpl)| Op::Register { new_key, ptpl }),
        1 => (maybe(), ptpl()).prop_map(|(key, ptpl)| Op::Unregister { key, ptpl }),
        2 => (maybe(), key(), ptpl()).prop_map(|(key, new_key, ptpl)| Op::Replace { key, new_key, ptpl }),
        4 => (key(), kind()).prop_map(|(key, kind)| Op::Acquire { key, kind }),
        3 => (key(), key(), kind(), any::<bool>())
            .prop_map(|(key, victim, kind, abort)| Op::Preempt { key, victim, kind, abort }),
        2 => (key(), 0..7_u8).prop_map(|(key, rtype)| Op::Release { key, rtype }),
        1 => key().prop_map(|key| Op::Clear { key }),
        1 => any::<bool>().prop_map(Op::Persist),
    ]
}

proptest! {
    #[test]
    fn the_table_does_what_the_model_does(script in proptest::collection::vec((0..4_u8, ops()), 1..60)) {
        let (mut state, mut model) = (State::default(), Model::default());
        for (host, op) in script {
            let id: HostId = [host; 16];
            let expected = model.clone().run(host, op);
            match state.apply(id, op) {
                Ok(out) => {
                    prop_assert_eq!(expected, Ok(()), "{:?} by {}", op, host);
                    model.run(host, op).expect("as before");
                    prop_assert!(out.notices.iter().all(|n| n.host != id), "nobody is told of what it did");
                    prop_assert!(out.drain.iter().all(|h| out.next.registrant(*h).is_none() && *h != id));
                    state = out.next;
                }
                Err(refusal) => prop_assert_eq!(expected, Err(refusal), "{:?} by {}", op, host),
            }
            prop_assert_eq!(&model_of(&state), &model);
            prop_assert_eq!(decode(&encode(&state, 7)), Ok((state.clone(), 7)));
        }
    }

    #[test]
    fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }
}
