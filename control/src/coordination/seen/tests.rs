//! What is seen, and what it is taken for.
use super::*;
use crate::records::encode;

fn kv(key: String, value: Vec<u8>) -> KeyValue {
    KeyValue {
        key: key.into_bytes(),
        value,
        mod_revision: 7,
        ..Default::default()
    }
}

fn event(kv: KeyValue, kind: EventType) -> Event {
    Event {
        r#type: kind.into(),
        kv: Some(kv),
        prev_kv: None,
    }
}

fn alive(incarnation: &str, free_bytes: u64) -> Vec<u8> {
    encode(&AliveRecord {
        pid: 1,
        incarnation: incarnation.into(),
        pools: vec![crate::records::PoolSpace {
            pool_id: Uuid::from_u128(1),
            memory: false,
            total_bytes: 9,
            free_bytes,
        }],
    })
}

#[tokio::test]
async fn a_node_is_as_old_as_its_data_path_and_reading_again_makes_it_no_younger() {
    let keys = Keys::new("c");
    let key = keys.alive("n1");
    let mut seen = Seen::read(
        &keys,
        &[kv(key.clone(), alive("a", 1))],
        &mut Seen::default(),
    );
    let first = seen.alive()["n1"].since;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let room = event(kv(key.clone(), alive("a", 2)), EventType::Put);
    assert_eq!(seen.apply(&keys, &[room]), Touched::default());
    let again = [kv(key.clone(), alive("a", 3))];
    seen = Seen::read(&keys, &again, &mut seen);
    assert_eq!(seen.alive()["n1"].since, first);
    let restarted = event(kv(key.clone(), alive("b", 3)), EventType::Put);
    assert!(seen.apply(&keys, &[restarted]).alive);
    assert!(seen.alive()["n1"].since > first);
    let gone = event(kv(key, Vec::new()), EventType::Delete);
    assert!(seen.apply(&keys, &[gone]).alive);
    assert!(seen.alive().is_empty());
}

#[test]
fn only_replicated_volumes_are_kept_and_what_cannot_be_read_is_none() {
    let keys = Keys::new("c");
    let id = Uuid::from_u128(5);
    let mut seen = Seen::default();
    let put = |key: String, value: &[u8]| event(kv(key, value.to_vec()), EventType::Put);
    let touched = seen.apply(&keys, &[put(keys.volume(id), b"{}")]);
    assert_eq!(touched, Touched::default());
    let replica = ReplicaRecord {
        node_id: "n1".into(),
        made: true,
        error: String::new(),
        lost: false,
    };
    let key = keys.replica(id, Uuid::from_u128(6));
    let touched = seen.apply(&keys, &[put(key.clone(), &encode(&replica))]);
    assert_eq!(touched.volumes, HashSet::from([id]));
    assert!(seen.volume(id).is_none(), "it has no record");
    let set = ReplicationRecord::new(0, [(Uuid::from_u128(6), "n1".into(), id)], 1, 1);
    seen.apply(&keys, &[put(keys.replication(id), &encode(&set.unwrap()))]);
    assert_eq!(seen.volume(id).unwrap().replicas.len(), 1);
    seen.apply(&keys, &[event(kv(key, Vec::new()), EventType::Delete)]);
    assert!(seen.volume(id).unwrap().replicas.is_empty());
}
