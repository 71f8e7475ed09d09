//! Random histories of puts, deletions and compactions, compared with the simplest store that could be right: a list of
//! whole maps, one per revision.
use crate::backend::Backend;
use keelblock_api::etcd::etcdserverpb::RangeRequest;
use keelblock_control::kvdb::KvError;
use keelblock_control::kvdb::client::{Committed, Guard, Write};
use keelblock_control::kvdb::span::prefix_end;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const STEPS: usize = 150;
const KEYS: u32 = 6;

/// value, create revision, mod revision, version
type Entry = (Vec<u8>, i64, i64, i64);
type Map = BTreeMap<Vec<u8>, Entry>;

#[derive(Default)]
struct Model {
    /// The map as it was from this revision on.
    history: BTreeMap<i64, Map>,
    now: Map,
    compacted: i64,
}

impl Model {
    fn apply(&mut self, revision: i64, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Put(key, value, _) => {
                    let before = self.now.get(key).map_or((revision, 0), |e| (e.1, e.3));
                    self.now.insert(
                        key.clone(),
                        (value.clone(), before.0, revision, before.1 + 1),
                    );
                }
                Write::Delete(key) => drop(self.now.remove(key)),
            }
        }
        self.history.insert(revision, self.now.clone());
    }

    fn at(&self, revision: i64) -> &Map {
        self.history
            .range(..=revision)
            .next_back()
            .expect("a revision of this test")
            .1
    }
}

fn writes(random: &mut StdRng, b: &Backend) -> Vec<Write> {
    let mut keys: Vec<u32> = (0..KEYS).filter(|_| random.random_ratio(1, 4)).collect();
    if keys.is_empty() {
        keys.push(random.random_range(0..KEYS));
    }
    let write = |key: u32, random: &mut StdRng| {
        let name = b.key(&format!("{key}"));
        if random.random_ratio(1, 3) {
            Write::delete(name)
        } else {
            Write::put(name, format!("{}", random.random::<u16>()))
        }
    };
    keys.into_iter().map(|k| write(k, random)).collect()
}

async fn compare(b: &Backend, model: &Model, revision: i64) {
    let key = b.key("").into_bytes();
    let request = RangeRequest {
        range_end: prefix_end(&key),
        key,
        revision,
        ..Default::default()
    };
    let result = b.client.range(request).await;
    if revision < model.compacted {
        assert!(
            matches!(result, Err(KvError::Compacted)),
            "revision {revision} is compacted: {result:?}"
        );
        return;
    }
    let found = result.unwrap_or_else(|e| panic!("revision {revision}: {e}"));
    let found: Map = found
        .kvs
        .into_iter()
        .map(|kv| {
            (
                kv.key,
                (kv.value, kv.create_revision, kv.mod_revision, kv.version),
            )
        })
        .collect();
    assert_eq!(&found, model.at(revision), "revision {revision}");
}

pub async fn random_histories_match_a_model(b: &Backend) {
    let seed = StdRng::from_os_rng().random::<u64>();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let first = b.client.put(b.key("start"), "").await.unwrap();
    model.apply(first, &[Write::put(b.key("start"), "")]);
    for _ in 0..STEPS {
        let revisions: Vec<i64> = model.history.keys().copied().collect();
        let some_revision = revisions[random.random_range(0..revisions.len())];
        match random.random_range(0..10) {
            0 if some_revision > model.compacted => {
                b.client.compact(some_revision).await.unwrap();
                model.compacted = some_revision;
            }
            1..=3 => compare(b, &model, some_revision).await,
            4 => {
                // A swap from what the key is, or from what it was once.
                let key = b
                    .key(&format!("{}", random.random_range(0..KEYS)))
                    .into_bytes();
                let is = model.now.get(&key).map_or(0, |e| e.2);
                let read_at = if random.random() {
                    is
                } else {
                    model.at(some_revision).get(&key).map_or(0, |e| e.2)
                };
                let write = vec![Write::put(&key, "swapped")];
                match b
                    .client
                    .commit(vec![Guard::at(&key, read_at)], write.clone())
                    .await
                    .unwrap()
                {
                    Committed::Yes(revision) => {
                        assert_eq!(read_at, is);
                        model.apply(revision, &write);
                    }
                    Committed::No => assert_ne!(read_at, is),
                }
            }
            _ => {
                let writes = writes(&mut random, b);
                match b.client.commit(vec![], writes.clone()).await.unwrap() {
                    Committed::Yes(revision) => model.apply(revision, &writes),
                    Committed::No => panic!("a transaction without comparisons was not done"),
                }
            }
        }
    }
    for revision in model.history.keys() {
        compare(b, &model, *revision).await;
    }
}
