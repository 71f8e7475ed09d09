//! What a record is, and what is none.

use uuid::Uuid;

use crate::replication::record::{
    Epoch, Fault, Fields, Holder, MEMBERS_MAX, Phase, ReplicaState, ReplicationRecord, Token,
    write_quorum,
};

fn epoch(generation: u8, counter: u32) -> Epoch {
    Epoch::new(generation, counter).expect("a small counter")
}

fn two() -> ReplicationRecord {
    let replica = |n: u128| (Uuid::from_u128(n), format!("n{n}"), Uuid::from_u128(9));
    ReplicationRecord::new(1, [replica(1), replica(2)], 1, 2).unwrap()
}

fn someone() -> Option<Holder> {
    Some(Holder {
        node_id: "n1".into(),
        incarnation: Token([0xab; 16]),
        attempt: Token([1; 16]),
    })
}

#[test]
fn write_quorums_are_those_of_the_document() {
    let table = [
        (1, 1, 1),
        (2, 1, 2),
        (2, 2, 2),
        (3, 1, 2),
        (3, 3, 3),
        (4, 2, 3),
        (5, 1, 3),
        (5, 4, 4),
    ];
    for (members, minimum, expected) in table {
        assert_eq!(write_quorum(members, minimum), expected, "{members}");
    }
    // Any two write quorums have a member in common, and so have a write and a read quorum.
    for members in 1..=MEMBERS_MAX {
        for minimum in 1..=members as u8 {
            let w = usize::from(write_quorum(members, minimum));
            assert!(w <= members && 2 * w > members, "{members} {minimum}");
        }
    }
}

#[test]
fn epochs_are_generation_and_counter() {
    let epoch = epoch(3, 7);
    assert_eq!((epoch.generation(), epoch.counter()), (3, 7));
    assert_eq!(
        (epoch.number(), epoch.to_string()),
        (0x0300_0007, "3.7".into())
    );
    assert!(Epoch::new(3, Epoch::COUNTER_MAX).is_some());
    assert!(Epoch::new(3, Epoch::COUNTER_MAX + 1).is_none());
    assert!(Epoch::new(4, 0) > Epoch::new(3, Epoch::COUNTER_MAX));
}

#[test]
fn it_is_json_as_the_document_has_it() {
    let mut fields = Fields::from(two());
    fields.epoch = epoch(1, 1);
    fields.holder = someone();
    let record = ReplicationRecord::try_from(fields).unwrap();
    let json = serde_json::to_value(&record).unwrap();
    assert_eq!(json["epoch"], 0x0100_0001);
    assert_eq!(json["phase"], "taking");
    assert_eq!(json["holder"]["incarnation"], "ab".repeat(16));
    assert_eq!(json["replicas"][1]["state"], "member");
    assert_eq!(json["members"][0], "00000000-0000-0000-0000-000000000001");
    let back: ReplicationRecord = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(back, record);
    for (at, name) in [("", "more"), ("/holder", "more"), ("/replicas/0", "more")] {
        let mut later = json.clone();
        let place = later.pointer_mut(at).unwrap().as_object_mut().unwrap();
        place.insert(name.into(), 1.into());
        assert!(
            serde_json::from_value::<ReplicationRecord>(later).is_err(),
            "{at}"
        );
    }
    for bad in ["ab", &"x".repeat(32), &"+".repeat(32), &"é".repeat(16)] {
        let mut other = json.clone();
        other["holder"]["attempt"] = bad.into();
        assert!(
            serde_json::from_value::<ReplicationRecord>(other).is_err(),
            "{bad}"
        );
    }
}

/// What makes a good record a bad one, and what is said of it.
type Spoil = fn(&mut Fields);

#[test]
fn what_breaks_a_rule_is_no_record() {
    let id = Uuid::from_u128;
    let faults: [(Spoil, Fault); 17] = [
        (|f| f.members.clear(), Fault::Members(0)),
        (|f| f.members = vec![Uuid::nil(); 6], Fault::Members(6)),
        (|f| f.members[1] = f.members[0], Fault::MemberTwice(id(1))),
        (|f| f.members[1] = Uuid::nil(), Fault::NoReplica(id(0))),
        (
            |f| f.replicas = vec![f.replicas[0].clone(); 9],
            Fault::Replicas(9),
        ),
        (
            |f| f.replicas.push(f.replicas[0].clone()),
            Fault::ReplicaTwice(id(1)),
        ),
        (
            |f| f.replicas[0].state = ReplicaState::Leaving,
            Fault::State {
                replica: id(1),
                state: ReplicaState::Leaving,
                member: true,
            },
        ),
        (
            |f| f.members.truncate(1),
            Fault::State {
                replica: id(2),
                state: ReplicaState::Member,
                member: false,
            },
        ),
        (|f| f.wanted = 6, Fault::Wanted(6)),
        (
            |f| f.minimum = 0,
            Fault::Minimum {
                minimum: 0,
                wanted: 2,
            },
        ),
        (
            |f| (f.minimum, f.wanted) = (3, 3),
            Fault::BelowMinimum {
                members: 2,
                minimum: 3,
            },
        ),
        (
            |f| f.write_quorum = 1,
            Fault::WriteQuorum {
                found: 1,
                expected: 2,
            },
        ),
        (
            |f| (f.generation, f.epoch, f.holder) = (2, epoch(1, 5), someone()),
            Fault::Generation {
                epoch: epoch(1, 5),
                generation: 2,
            },
        ),
        (
            |f| {
                (f.epoch, f.holder) = (epoch(2, 5), someone());
                f.phase = Phase::Serving;
            },
            Fault::Generation {
                epoch: epoch(2, 5),
                generation: 1,
            },
        ),
        (|f| f.holder = someone(), Fault::Holder(epoch(1, 0))),
        (|f| f.phase = Phase::Serving, Fault::NoHolder),
        (|f| f.version = 0, Fault::Version),
    ];
    for (spoil, expected) in faults {
        let mut fields = Fields::from(two());
        spoil(&mut fields);
        let json = serde_json::to_value(&fields).unwrap();
        assert_eq!(ReplicationRecord::try_from(fields), Err(expected.clone()));
        // Nor is it one when it is read.
        let read = serde_json::from_value::<ReplicationRecord>(json).unwrap_err();
        assert_eq!(read.to_string(), expected.to_string());
    }
}
