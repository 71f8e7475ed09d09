//! What each transition does, what it refuses, and what holds whatever comes in whatever order.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::strategy::ValueTree;
use uuid::Uuid;

use super::{fresh, holder, id, owner, served};
use crate::replication::record::{
    Epoch, Fault, Fields, Phase, Replica, ReplicaState, ReplicationRecord, Token, write_quorum,
};
use crate::replication::transition::{self, Coordinator, Refusal};

fn state(record: &ReplicationRecord, n: u128) -> ReplicaState {
    record.replica(id(n)).expect("it is there").state
}

#[test]
fn an_attach_raises_the_epoch_and_leaves_the_set() {
    let record = fresh(3, 2);
    let taken = transition::take(&record, 1, holder(2, 1)).unwrap();
    assert_eq!(taken.epoch, Epoch::new(1, 1).unwrap());
    assert_eq!((taken.version, taken.phase), (2, Phase::Taking));
    assert_eq!(taken.holder, Some(holder(2, 1)));
    assert_eq!(taken.members, record.members);
    let again = transition::take(&taken, 1, holder(2, 1));
    assert_eq!(again, Err(Refusal::Attempt(Token([1; 16]))));
    let again = transition::take(&taken, 1, holder(2, 2)).unwrap();
    assert_eq!(again.epoch, Epoch::new(1, 2).unwrap());
}

#[test]
fn epochs_end_with_their_generation() {
    let mut fields = Fields::from(fresh(1, 1));
    let last = Epoch::new(1, Epoch::COUNTER_MAX).unwrap();
    fields.epoch = last;
    let record = ReplicationRecord::try_from(fields).unwrap();
    let refused = transition::take(&record, 1, holder(1, 1));
    assert_eq!(refused, Err(Refusal::LastEpoch(last)));
    let raised = transition::take(&record, 2, holder(1, 1)).unwrap();
    assert_eq!(raised.epoch, Epoch::new(2, 1).unwrap());
    let older = transition::take(&raised, 1, holder(1, 2));
    assert_eq!(
        older,
        Err(Refusal::Cluster {
            cluster: 1,
            record: 2
        })
    );
}

#[test]
fn a_takeover_names_who_took_part() {
    let taken = transition::take(&fresh(3, 2), 1, holder(1, 1)).unwrap();
    let by = owner(&taken);
    let serve = |members: &[Uuid]| transition::serve(&taken, by, members, &[]);
    let served = serve(&[id(1), id(3)]).unwrap();
    assert_eq!((served.phase, served.write_quorum), (Phase::Serving, 2));
    assert_eq!(state(&served, 2), ReplicaState::Behind);
    assert_eq!(
        serve(&[id(1)]),
        Err(Fault::BelowMinimum {
            members: 1,
            minimum: 2
        }
        .into())
    );
    assert_eq!(serve(&[id(1), id(9)]), Err(Refusal::NoReplica(id(9))));
    assert_eq!(
        serve(&[id(1), id(1)]),
        Err(Fault::MemberTwice(id(1)).into())
    );
    let refused = transition::serve(&served, by, &[id(1), id(3)], &[]);
    assert!(matches!(refused, Err(Refusal::Phase { .. })), "{refused:?}");
}

#[test]
fn a_takeover_has_someone_of_the_set() {
    // 2 and 3 are behind: what they have was left, and may be old.
    let (record, by) = served(3, 1);
    let record = transition::exclude(&record, by, &[id(2), id(3)]).unwrap();
    let taken = transition::take(&record, 1, holder(2, 2)).unwrap();
    let by = owner(&taken);
    let refused = transition::serve(&taken, by, &[id(2), id(3)], &[]);
    assert_eq!(refused, Err(Refusal::NoneOfTheSet));
    // With 1, a spare that was resynced is named.
    let served = transition::serve(&taken, by, &[id(1), id(3)], &[]).unwrap();
    assert_eq!(state(&served, 3), ReplicaState::Member);
}

#[test]
fn only_the_holder_changes_the_set() {
    let (record, by) = served(3, 1);
    let later = transition::take(&record, 1, holder(2, 2)).unwrap();
    let ended = transition::exclude(&later, by, &[id(2)]);
    let (asked, current) = (by.epoch, later.epoch);
    assert_eq!(ended, Err(Refusal::Epoch { asked, current }));
    for other in [
        Coordinator {
            incarnation: Token([9; 16]),
            ..by
        },
        Coordinator {
            attempt: Token([9; 16]),
            ..by
        },
    ] {
        let refused = transition::exclude(&record, other, &[id(2)]);
        assert_eq!(refused, Err(Refusal::Holder(by.epoch)));
    }
}

#[test]
fn members_leave_and_join() {
    let (record, by) = served(3, 2);
    let two = transition::exclude(&record, by, &[id(2)]).unwrap();
    assert_eq!(two.members, [id(1), id(3)]);
    assert_eq!(state(&two, 2), ReplicaState::Behind);
    let below = transition::exclude(&two, by, &[id(1)]);
    assert_eq!(
        below,
        Err(Fault::BelowMinimum {
            members: 1,
            minimum: 2
        }
        .into())
    );
    let none = transition::exclude(&two, by, &[]);
    assert_eq!(none, Err(Refusal::Same));
    let no = transition::exclude(&two, by, &[id(2)]);
    assert_eq!(no, Err(Refusal::NotMember(id(2))));
    let no = transition::admit(&two, by, id(1));
    assert_eq!(no, Err(Refusal::IsMember(id(1))));
    let three = transition::admit(&two, by, id(2)).unwrap();
    assert_eq!(three.members, [id(1), id(3), id(2)]);
    let no = transition::admit(&three, by, id(7));
    assert_eq!(no, Err(Refusal::NoReplica(id(7))));
}

#[test]
fn replicas_come_empty_and_go_by_way_of_leaving() {
    let (record, by) = served(2, 1);
    let more = transition::add(&record, by, id(3), "n3", id(100)).unwrap();
    assert_eq!(state(&more, 3), ReplicaState::Empty);
    let twice = transition::add(&more, by, id(3), "n4", id(100));
    assert_eq!(twice, Err(Fault::ReplicaTwice(id(3)).into()));
    let no = transition::remove(&more, by, id(3));
    assert_eq!(
        no,
        Err(Refusal::State {
            replica: id(3),
            found: ReplicaState::Empty
        })
    );
    let less = transition::leave(&more, by, id(2)).unwrap();
    assert!(
        !less.members.contains(&id(2)),
        "a member leaves the set by it"
    );
    assert_eq!(less.replica(id(2)).unwrap().state, ReplicaState::Leaving);
    let leaving = transition::leave(&more, by, id(3)).unwrap();
    assert_eq!(transition::leave(&leaving, by, id(3)), Err(Refusal::Same));
    let no = transition::admit(&leaving, by, id(3));
    assert_eq!(
        no,
        Err(Refusal::State {
            replica: id(3),
            found: ReplicaState::Leaving
        })
    );
    let gone = transition::remove(&leaving, by, id(3)).unwrap();
    assert_eq!(gone.replica(id(3)), None);
    let mut full = record;
    for n in 3..=5 {
        full = transition::add(&full, by, id(n), "n3", id(100)).unwrap();
    }
    let no = transition::add(&full, by, id(6), "n3", id(100));
    assert_eq!(no, Err(Fault::Staying(6).into()), "one has to leave first");
    for n in 3..=5 {
        full = transition::leave(&full, by, id(n)).unwrap();
        full = transition::add(&full, by, id(n + 3), "n3", id(100)).unwrap();
    }
    let no = transition::add(&full, by, id(9), "n3", id(100));
    assert_eq!(no, Err(Fault::Replicas(9).into()));
    for n in 6..=8 {
        full = transition::admit(&full, by, id(n)).unwrap();
    }
    assert_eq!(full.members.len(), 5);
}

#[test]
fn the_minimum_is_raised_to_what_there_is() {
    let (record, by) = served(3, 1);
    let three = transition::set_minimum(&record, by, 3).unwrap();
    assert_eq!(three.write_quorum, 3);
    assert_eq!(transition::set_minimum(&three, by, 3), Err(Refusal::Same));
    let two = transition::exclude(&record, by, &[id(3)]).unwrap();
    let no = transition::set_minimum(&two, by, 3);
    assert_eq!(
        no,
        Err(Fault::BelowMinimum {
            members: 2,
            minimum: 3
        }
        .into())
    );
    let no = transition::set_minimum(&record, by, 0);
    let fault = Fault::Minimum {
        minimum: 0,
        wanted: 3,
    };
    assert_eq!(no, Err(fault.into()));
    let no = transition::want(&three, 2);
    let fault = Fault::Minimum {
        minimum: 3,
        wanted: 2,
    };
    assert_eq!(no, Err(fault.into()));
    assert_eq!(transition::want(&three, 3), Err(Refusal::Same));
    assert_eq!(transition::want(&three, 5).unwrap().wanted, 5);
}

#[test]
fn a_restored_set_is_unverified_until_a_takeover_or_a_person_says() {
    let (record, by) = served(2, 1);
    assert!(!record.unverified(1) && record.unverified(2));
    let taken = transition::take(&record, 2, holder(1, 2)).unwrap();
    assert_eq!(taken.epoch, Epoch::new(2, 1).unwrap());
    assert!(taken.unverified(2), "an epoch does not say who is in sync");
    // Replica 7 joined after the backup was made: it alone has everything.
    let seven = Replica {
        replica_id: id(7),
        node_id: "n7".into(),
        pool_id: id(100),
        state: ReplicaState::Member,
    };
    let found = std::slice::from_ref(&seven);
    let served = transition::serve(&taken, owner(&taken), &[id(7)], found).unwrap();
    assert!(!served.unverified(2));
    assert_eq!(served.members, [id(7)]);
    assert_eq!(state(&served, 1), ReplicaState::Behind);
    // Of a verified one nothing is found.
    let taken = transition::take(&record, 1, holder(1, 2)).unwrap();
    let no = transition::serve(&taken, owner(&taken), &[id(1), id(7)], found);
    assert_eq!(no, Err(Refusal::NoReplica(id(7))));
    // A person: nobody has it then.
    let decided = transition::decide(&record, 2, &[id(2)], 1).unwrap();
    assert_eq!((decided.holder.clone(), decided.generation), (None, 2));
    assert_eq!(decided.epoch, record.epoch);
    let ended = transition::exclude(&decided, by, &[id(2)]);
    assert_eq!(ended, Err(Refusal::Holder(by.epoch)));
    let taken = transition::take(&decided, 2, holder(2, 3)).unwrap();
    assert_eq!(taken.epoch, Epoch::new(2, 1).unwrap());
    let no = transition::decide(&decided, 1, &[id(2)], 1);
    assert_eq!(
        no,
        Err(Refusal::Cluster {
            cluster: 1,
            record: 2
        })
    );
    // What is right and serves is not for persons to decide.
    let no = transition::decide(&record, 1, &[id(2)], 1);
    assert_eq!(no, Err(Refusal::Verified(record.epoch)));
}

/// What somebody tries.
#[derive(Debug, Clone)]
enum Try {
    Take(u8, u8),
    Serve(Vec<u8>),
    Exclude(Vec<u8>),
    Admit(u8),
    Add(u8),
    Leave(u8),
    Remove(u8),
    Minimum(u8),
    Decide(Vec<u8>, u8),
    Want(u8),
    Restore,
}

fn tries() -> impl Strategy<Value = (Try, bool)> {
    let some = |least, most| subsequence((1..=4).collect::<Vec<u8>>(), least..=most);
    let one = prop_oneof![
        2 => (0_u8..3, any::<u8>()).prop_map(|(n, a)| Try::Take(n, a)),
        8 => some(0, 4).prop_map(Try::Serve),
        4 => some(0, 2).prop_map(Try::Exclude),
        4 => (1_u8..6).prop_map(Try::Admit),
        4 => (1_u8..10).prop_map(Try::Add),
        6 => (1_u8..10).prop_map(Try::Leave),
        6 => (1_u8..10).prop_map(Try::Remove),
        2 => (0_u8..5).prop_map(Try::Minimum),
        2 => (some(0, 4), 0_u8..5).prop_map(|(m, n)| Try::Decide(m, n)),
        1 => (0_u8..7).prop_map(Try::Want),
        1 => Just(Try::Restore),
    ];
    // Mostly by the holder.
    (one, proptest::bool::weighted(0.8))
}

fn ids(numbers: &[u8]) -> Vec<Uuid> {
    numbers.iter().map(|&n| id(n.into())).collect()
}

/// Tries it; the name of the transition, and what became of it.
fn apply(
    record: &ReplicationRecord,
    cluster: u8,
    by: Coordinator,
    what: &Try,
) -> (&'static str, Result<ReplicationRecord, Refusal>) {
    let one = |n: &u8| id((*n).into());
    match what {
        Try::Take(node, attempt) => (
            "K1",
            transition::take(record, cluster, holder((*node).into(), *attempt)),
        ),
        Try::Serve(m) => ("K2", transition::serve(record, by, &ids(m), &[])),
        Try::Exclude(m) => ("K3", transition::exclude(record, by, &ids(m))),
        Try::Admit(n) => ("K4", transition::admit(record, by, one(n))),
        Try::Add(n) => ("K5", transition::add(record, by, one(n), "n", id(100))),
        Try::Leave(n) => ("K5 leave", transition::leave(record, by, one(n))),
        Try::Remove(n) => ("K5 out", transition::remove(record, by, one(n))),
        Try::Minimum(n) => ("K6", transition::set_minimum(record, by, *n)),
        Try::Decide(m, n) => ("K7", transition::decide(record, cluster, &ids(m), *n)),
        Try::Want(n) => ("K8", transition::want(record, *n)),
        Try::Restore => ("restore", Err(Refusal::Same)),
    }
}

/// What holds of every change.
fn check(
    name: &str,
    before: &ReplicationRecord,
    after: &ReplicationRecord,
    rightly: bool,
) -> Result<(), TestCaseError> {
    let of_control = ["K1", "K7", "K8"].contains(&name);
    prop_assert!(of_control || rightly, "{name} by somebody else");
    prop_assert_eq!(after.version, before.version + 1);
    let raised = after.epoch > before.epoch;
    prop_assert_eq!(raised, name == "K1");
    prop_assert!(raised || after.epoch == before.epoch);
    let set_of = ["K2", "K3", "K4", "K5 leave", "K7"].contains(&name);
    prop_assert!(set_of || after.members == before.members, "{name}");
    prop_assert!(after.members.len() >= usize::from(after.minimum));
    let quorum = write_quorum(after.members.len(), after.minimum);
    prop_assert_eq!(after.write_quorum, quorum);
    // Whoever was in the set and is not any more is known to be behind, and who is in it was known before.
    for replica in &before.replicas {
        let id = replica.replica_id;
        let now = after.replica(id).map(|r| r.state);
        if before.members.contains(&id) && !after.members.contains(&id) {
            let gone = match name {
                "K5 leave" => ReplicaState::Leaving,
                _ => ReplicaState::Behind,
            };
            prop_assert_eq!(now, Some(gone));
        }
        prop_assert!(now.is_some() || replica.state == ReplicaState::Leaving);
    }
    // A set that a takeover of the next epoch reads has somebody of this one.
    if name != "K7" && before.generation == after.generation {
        let common = |m| before.members.contains(m);
        prop_assert!(after.members.iter().any(common), "{name}");
    }
    let json = serde_json::to_vec(after).expect("JSON");
    let read: ReplicationRecord = serde_json::from_slice(&json).expect("what was written");
    prop_assert_eq!(&read, after);
    Ok(())
}

/// Tries all of them in turn; how often each was done.
fn run(
    record: ReplicationRecord,
    tries: &[(Try, bool)],
    done: &mut BTreeMap<&'static str, u32>,
) -> Result<(), TestCaseError> {
    let (mut record, mut cluster) = (record, 1_u8);
    for (what, rightly) in tries {
        if matches!(what, Try::Restore) {
            cluster += u8::from(cluster < 3);
        }
        let nobody = Coordinator {
            epoch: record.epoch,
            incarnation: Token([77; 16]),
            attempt: Token([77; 16]),
        };
        let rightly = *rightly && record.holder.is_some();
        let by = if rightly { owner(&record) } else { nobody };
        let (name, result) = apply(&record, cluster, by, what);
        if let Ok(after) = result {
            check(name, &record, &after, rightly)?;
            *done.entry(name).or_default() += 1;
            record = after;
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn whatever_comes_in_whatever_order(
        replicas in 1_u128..=5,
        minimum in 1_u8..=5,
        all in vec(tries(), 0..120),
    ) {
        prop_assume!(u128::from(minimum) <= replicas);
        run(fresh(replicas, minimum), &all, &mut BTreeMap::new())?;
    }
}

#[test]
fn what_is_tried_at_random_does_happen() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut done = BTreeMap::new();
    for _ in 0..100 {
        let all = vec(tries(), 120).new_tree(&mut runner).expect("tries");
        run(fresh(3, 1), &all.current(), &mut done).expect("nothing breaks");
    }
    let names: Vec<_> = done.keys().copied().collect();
    let expected = [
        "K1", "K2", "K3", "K4", "K5", "K5 leave", "K5 out", "K6", "K7", "K8",
    ];
    assert_eq!(names, expected, "{done:?}");
    assert!(done.values().all(|&n| n >= 10), "{done:?}");
}

#[test]
fn a_volume_that_is_set_back_has_other_replicas_and_only_those_that_are_there_are_in_sync() {
    let (record, by) = served(3, 2);
    let all = [id(1), id(2), id(3)];
    let back = transition::set_back(&record, 1, &[id(1), id(3)]).unwrap();
    assert_eq!(
        (back.version, back.epoch),
        (record.version + 1, record.epoch)
    );
    assert_eq!((back.phase, &back.holder), (Phase::Taking, &None));
    assert!(back.replicas.iter().all(|r| !all.contains(&r.replica_id)));
    let shown = |r: &Replica| (r.node_id.clone(), r.state);
    let states: Vec<_> = back.replicas.iter().map(shown).collect();
    let expected = [
        ("n1".to_owned(), ReplicaState::Member),
        ("n2".to_owned(), ReplicaState::Empty),
        ("n3".to_owned(), ReplicaState::Member),
    ];
    assert_eq!(states, expected);
    // Whoever had the epoch has ended; too few are refused, and so is a set that nobody has verified.
    assert!(transition::exclude(&back, by, &[back.members[0]]).is_err());
    let few = transition::set_back(&record, 1, &[id(2)]);
    assert!(matches!(
        few,
        Err(Refusal::Fault(Fault::BelowMinimum { .. }))
    ));
    let restored = transition::set_back(&record, 2, &all);
    assert_eq!(restored, Err(Refusal::Unverified));
    // Again, by what is left of them.
    let again = transition::set_back(&back, 1, &back.members).unwrap();
    assert!(again.members.iter().all(|m| !back.members.contains(m)));
    assert_eq!(again.members.len(), 2);
}

#[test]
fn what_is_kept_for_snapshots_is_the_members() {
    let (record, by) = served(3, 2);
    let less = transition::exclude(&record, by, &[id(2)]).unwrap();
    let unverified = transition::members_only(&less, 2);
    assert_eq!(unverified, Err(Refusal::Unverified));
    let kept = transition::members_only(&less, 1).unwrap();
    let ids: Vec<Uuid> = kept.replicas.iter().map(|r| r.replica_id).collect();
    assert_eq!(ids, [id(1), id(3)]);
    assert_eq!((kept.members.clone(), &kept.holder), (ids, &None));
}
