//! An encrypted volume: nothing of what a host writes, and nothing of a key, is on a drive, in a log or between nodes, whatever becomes of replicas. The same
//! look at a volume that is not encrypted finds it everywhere, so that it can be trusted.

use keelblock_api::datapath as proto;
use keelblock_tests::datapaths::{DataPaths, Extra};
use keelblock_tests::marked::{Marker, Token};
use keelblock_tests::recorder::{file_holds, holds};
use keelblock_tests::seed;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Writes, a replica that dies and comes back, another coordinator, scrubs. Where the token is then: drives, logs, between nodes; and where the key is.
fn life(keys: Option<proto::DataKeys>) -> ([bool; 3], bool) {
    let mut random = SmallRng::seed_from_u64(seed());
    let token: Token = random.random();
    let secret = keys.as_ref().map(|k| k.keys[0].secret.clone());
    let extra = Extra {
        keys,
        recorded: true,
    };
    let mut nodes = DataPaths::start_with(3, 64 << 20, extra, SmallRng::from_rng(&mut random));
    let mut host = Marker::connect(&nodes.attach(0), token);
    host.write(1);
    host.verify(1);
    nodes.kill(2);
    host.write(2);
    nodes.wait_for_members(&[0, 1]);
    host.write(3);
    nodes.begin(2);
    nodes.wait_for_members(&[0, 1, 2]);
    for node in 0..3 {
        assert_eq!(nodes.scrub(node).errors, 0);
    }
    nodes.kill(0);
    let mut host = Marker::connect(&nodes.attach(2), token);
    host.verify(3);
    assert_eq!(nodes.coordinator(2).unauthentic_blocks, 0);
    host.write(4);
    nodes.begin(0);
    nodes.wait_for_members(&[0, 1, 2]);
    host.verify(4);
    for recorder in &nodes.recorders {
        assert!(recorder.bytes() > 1 << 20, "{} bytes", recorder.bytes());
    }
    let everywhere = |what: &[u8]| {
        let file = |name: &str| (0..3).any(|n| file_holds(&nodes.path(n, name), what).unwrap());
        let passed = nodes.recorders.iter().any(|r| r.any(|b| holds(b, what)));
        [file("drive"), file("log"), passed]
    };
    let key = secret.is_some_and(|secret| {
        let text = format!("{secret:?}");
        everywhere(&secret).contains(&true) || everywhere(text.as_bytes()).contains(&true)
    });
    (everywhere(&token[..16]), key)
}

#[test]
fn what_is_encrypted_is_nowhere() {
    let mut random = SmallRng::seed_from_u64(seed());
    let key = proto::DataKey {
        index: 1,
        id: random.random::<[u8; 16]>().to_vec(),
        secret: random.random::<[u8; 32]>().to_vec(),
    };
    let keys = proto::DataKeys {
        current: 1,
        keys: vec![key],
    };
    assert_eq!(life(Some(keys)), ([false; 3], false));
}

#[test]
fn what_is_not_encrypted_is_found() {
    assert_eq!(life(None), ([true, false, true], false));
}
