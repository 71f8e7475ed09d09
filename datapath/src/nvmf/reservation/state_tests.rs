//! The table, command by command.

use super::state::*;
use crate::nvmf::seam::{HostId, ReservationType};
use ReservationType::{
    ExclusiveAccess, ExclusiveAccessAll, ExclusiveAccessRegistrants, WriteExclusive,
    WriteExclusiveAll, WriteExclusiveRegistrants,
};

const FREE: ReservationType = ReservationType::None;

const A: HostId = [0xa; 16];
const B: HostId = [0xb; 16];
const C: HostId = [0xc; 16];

fn after(ops: &[(HostId, Op)]) -> State {
    ops.iter().fold(State::default(), |s, (h, op)| {
        s.apply(*h, *op).expect("accepted").next
    })
}

fn reg(new_key: u64) -> Op {
    Op::Register {
        new_key,
        ptpl: PtplChange::Keep,
    }
}

fn told(out: &Outcome) -> Vec<(HostId, NoticeKind)> {
    out.notices.iter().map(|n| (n.host, n.kind)).collect()
}

#[test]
fn register_again_with_the_same_key_only() {
    let s = after(&[(A, reg(1))]);
    assert_eq!(s.apply(A, reg(2)), Err(Refusal::Conflict));
    assert_eq!(s.apply(A, reg(1)).unwrap().next.generation, 2);
    assert_eq!(s.apply(B, reg(0)), Err(Refusal::InvalidField));
}

#[test]
fn replace_registers_a_stranger_only_with_iekey() {
    let replace = |key| Op::Replace {
        key,
        new_key: 7,
        ptpl: PtplChange::Keep,
    };
    assert_eq!(
        State::default().apply(A, replace(Some(0))),
        Err(Refusal::Conflict)
    );
    let s = after(&[(A, replace(None))]);
    assert_eq!(s.registrants, [Registrant { host: A, key: 7 }]);
    assert_eq!(
        s.apply(
            A,
            Op::Replace {
                key: Some(8),
                new_key: 9,
                ptpl: PtplChange::Keep
            }
        ),
        Err(Refusal::Conflict)
    );
    let s = s
        .apply(
            A,
            Op::Replace {
                key: None,
                new_key: 9,
                ptpl: PtplChange::Set,
            },
        )
        .unwrap()
        .next;
    assert_eq!((s.registrants[0].key, s.ptpl), (9, true));
}

#[test]
fn the_holder_leaving_frees_and_tells_registrants() {
    let s = after(&[
        (A, reg(1)),
        (B, reg(2)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: WriteExclusiveRegistrants,
            },
        ),
    ]);
    let out = s
        .apply(
            A,
            Op::Unregister {
                key: Some(1),
                ptpl: PtplChange::Keep,
            },
        )
        .unwrap();
    assert_eq!((out.next.kind, out.next.holder), (FREE, None));
    assert_eq!(told(&out), [(B, NoticeKind::ReservationReleased)]);
    let s = after(&[
        (A, reg(1)),
        (B, reg(2)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: WriteExclusive,
            },
        ),
    ]);
    let out = s
        .apply(
            A,
            Op::Unregister {
                key: None,
                ptpl: PtplChange::Keep,
            },
        )
        .unwrap();
    assert_eq!(told(&out), [], "nobody else had rights by it");
}

#[test]
fn all_registrants_hold_until_the_last_leaves() {
    let s = after(&[
        (A, reg(1)),
        (B, reg(2)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: ExclusiveAccessAll,
            },
        ),
    ]);
    assert!(s.holds(B) && !s.holds(C));
    let s = s
        .apply(
            A,
            Op::Unregister {
                key: Some(1),
                ptpl: PtplChange::Keep,
            },
        )
        .unwrap()
        .next;
    assert_eq!(s.kind, ExclusiveAccessAll);
    let s = s
        .apply(
            B,
            Op::Unregister {
                key: Some(2),
                ptpl: PtplChange::Keep,
            },
        )
        .unwrap()
        .next;
    assert_eq!(s.kind, FREE);
}

#[test]
fn preempt_of_the_holder_takes_over() {
    let s = after(&[
        (A, reg(1)),
        (B, reg(2)),
        (C, reg(3)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: ExclusiveAccessRegistrants,
            },
        ),
    ]);
    let op = |victim, abort| Op::Preempt {
        key: 2,
        victim,
        kind: WriteExclusive,
        abort,
    };
    let out = s.apply(B, op(1, true)).unwrap();
    assert_eq!((out.next.kind, out.next.holder), (WriteExclusive, Some(B)));
    assert!(out.next.registrant(A).is_none() && out.next.registrant(C).is_some());
    assert_eq!(out.drain, [A]);
    assert_eq!(
        told(&out),
        [
            (A, NoticeKind::RegistrationPreempted),
            (A, NoticeKind::ReservationPreempted),
            (C, NoticeKind::ReservationReleased)
        ]
    );
    let out = s.apply(B, op(3, false)).unwrap();
    assert_eq!(
        (out.next.kind, out.next.holder),
        (ExclusiveAccessRegistrants, Some(A)),
        "only a registration went"
    );
    assert_eq!(told(&out), [(C, NoticeKind::RegistrationPreempted)]);
    assert_eq!(s.apply(B, op(99, false)), Err(Refusal::Conflict));
    assert_eq!(s.apply(B, op(0, false)), Err(Refusal::InvalidField));
}

#[test]
fn a_holder_preempts_itself_and_stays() {
    let s = after(&[
        (A, reg(1)),
        (B, reg(1)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: WriteExclusive,
            },
        ),
    ]);
    let out = s
        .apply(
            A,
            Op::Preempt {
                key: 1,
                victim: 1,
                kind: ExclusiveAccess,
                abort: false,
            },
        )
        .unwrap();
    assert_eq!((out.next.kind, out.next.holder), (ExclusiveAccess, Some(A)));
    assert_eq!(
        out.next.registrants,
        [Registrant { host: A, key: 1 }],
        "the other host with the key went"
    );
}

#[test]
fn preempt_zero_clears_an_all_registrants_reservation() {
    let s = after(&[
        (A, reg(1)),
        (B, reg(2)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: WriteExclusiveAll,
            },
        ),
    ]);
    let out = s
        .apply(
            B,
            Op::Preempt {
                key: 2,
                victim: 0,
                kind: ExclusiveAccess,
                abort: false,
            },
        )
        .unwrap();
    assert_eq!(
        (out.next.kind, out.next.holder, out.next.registrants.len()),
        (ExclusiveAccess, Some(B), 1)
    );
    let out = s
        .apply(
            B,
            Op::Preempt {
                key: 2,
                victim: 1,
                kind: ExclusiveAccess,
                abort: false,
            },
        )
        .unwrap();
    assert_eq!(
        (out.next.kind, out.next.registrants.len()),
        (WriteExclusiveAll, 1),
        "the reservation stays"
    );
}

#[test]
fn release_compares_the_type_for_the_holder_only() {
    let s = after(&[
        (A, reg(1)),
        (B, reg(2)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: WriteExclusive,
            },
        ),
    ]);
    assert_eq!(
        s.apply(B, Op::Release { key: 2, rtype: 2 }).unwrap().next,
        s
    );
    assert_eq!(
        s.apply(A, Op::Release { key: 1, rtype: 2 }),
        Err(Refusal::InvalidField)
    );
    assert_eq!(
        s.apply(A, Op::Release { key: 1, rtype: 1 })
            .unwrap()
            .next
            .kind,
        FREE
    );
}

#[test]
fn clear_empties_and_tells_the_others() {
    let s = after(&[
        (A, reg(1)),
        (B, reg(2)),
        (
            A,
            Op::Acquire {
                key: 1,
                kind: WriteExclusive,
            },
        ),
    ]);
    let out = s.apply(B, Op::Clear { key: 2 }).unwrap();
    assert_eq!(
        out.next,
        State {
            generation: s.generation + 1,
            ..State::default()
        }
    );
    assert_eq!(told(&out), [(A, NoticeKind::ReservationPreempted)]);
}

#[test]
fn the_table_is_bounded() {
    let mut s = State::default();
    for i in 0..MAX_REGISTRANTS {
        s = s.apply([i as u8; 16], reg(5)).unwrap().next;
    }
    assert_eq!(s.apply([0xff; 16], reg(5)), Err(Refusal::Full));
}
