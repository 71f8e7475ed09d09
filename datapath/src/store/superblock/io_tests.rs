//! Copies that are torn, rotten, or another's.

use std::future::Future;

use super::tests::sample;
use super::*;
use crate::device::{Device, Memory, memory};
use crate::reactor::{Config, Handle, run};

fn on_reactor<Fut: Future<Output = ()> + 'static>(
    test: impl Fn(Handle) -> Fut + Clone + Send + 'static,
) {
    let config = Config {
        buffer_bytes: 4 << 20,
        ..Config::default()
    };
    let reactors = run(&config, vec![()], move |handle: Handle, ()| {
        let test = test.clone();
        async move {
            test(handle.clone()).await;
            handle.stop();
        }
    });
    reactors.unwrap().join().unwrap();
}

fn drive() -> Memory {
    Memory::new(memory::map(2 << 20).unwrap(), 2 << 20)
}

async fn found(memory: &Memory, handle: &Handle) -> Found {
    let device = Device::Memory(memory.clone());
    find(&device, handle.buffers()).await.unwrap()
}

async fn sequence_found(memory: &Memory, handle: &Handle) -> u64 {
    match found(memory, handle).await {
        Found::Present(p) => p.superblock.sequence,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_commit_writes_the_pair_that_is_not_present() {
    on_reactor(|handle| async move {
        let memory = drive();
        let device = Device::Memory(memory.clone());
        let mut s = sample();
        s.sequence = 0;
        assert_eq!(found(&memory, &handle).await, Found::Blank);
        for sequence in 1..5 {
            let present = Superblock::pair(s.sequence).map(|c| c * COPY_BYTES);
            let mut before = [0; 4096];
            assert!(memory.load(present[0] as u64, &mut before));
            let buffer = handle.buffers().take(COPY_BYTES).await;
            commit(&device, &mut s, buffer).await.1.unwrap();
            let mut after = [0; 4096];
            assert!(memory.load(present[0] as u64, &mut after));
            assert_eq!(before, after);
            assert_eq!(s.sequence, sequence);
            assert_eq!(sequence_found(&memory, &handle).await, sequence);
        }
    });
}

#[test]
fn each_copy_stands_for_its_twin_and_each_pair_for_the_other() {
    on_reactor(|handle| async move {
        let memory = drive();
        let device = Device::Memory(memory.clone());
        let mut s = sample();
        for _ in 0..2 {
            let buffer = handle.buffers().take(COPY_BYTES).await;
            commit(&device, &mut s, buffer).await.1.unwrap();
        }
        let newest = s.sequence;
        let rot = |copy: usize| assert!(memory.store((copy * COPY_BYTES + 5000) as u64, &[1]));
        let [a, b] = Superblock::pair(newest);
        rot(a);
        assert_eq!(sequence_found(&memory, &handle).await, newest);
        rot(b);
        assert_eq!(sequence_found(&memory, &handle).await, newest - 1);
        let [c, d] = Superblock::pair(newest - 1);
        rot(c);
        rot(d);
        let corrupt = Found::Corrupt(CopyError::Checksum { part: "body" });
        assert_eq!(found(&memory, &handle).await, corrupt);
    });
}

async fn present(memory: &Memory, handle: &Handle) -> Present {
    match found(memory, handle).await {
        Found::Present(present) => *present,
        other => panic!("{other:?}"),
    }
}

/// A commit of a promise writes both pairs; a crash in any of its four writes leaves it to be found or not, and never a replica that is incomplete.
#[test]
fn a_promise_is_kept_with_any_two_copies_and_not_with_one() {
    on_reactor(|handle| async move {
        let memory = drive();
        let device = Device::Memory(memory.clone());
        let mut s = sample();
        (s.sequence, s.replicas_version) = (0, 0);
        s.replicas.clear();
        let buffer = handle.buffers().take(COPY_BYTES).await;
        let (mut buffer, done) = commit(&device, &mut s, buffer).await;
        done.unwrap();
        let rot = |copy: usize| assert!(memory.store((copy * COPY_BYTES + 5000) as u64, &[1]));
        for version in 1..4 {
            s.replicas_version = version;
            s.replicas = vec![ReplicaEntry {
                state: ReplicaState::Promised,
                epoch: version as u32,
                ..ReplicaEntry::fresh(crate::store::VolumeId([1; 16]), [2; 16])
            }];
            for first in [true, false] {
                let done;
                (buffer, done) = commit(&device, &mut s, buffer).await;
                done.unwrap();
                // As if the second copy of this pair were torn.
                let torn = Superblock::pair(s.sequence)[1];
                rot(torn);
                let there = present(&memory, &handle).await;
                assert_eq!(
                    (there.superblock.replicas_version, there.torn),
                    (version, Some(torn))
                );
                // The very first commit found no other whole pair of the version before: there was nothing to lose then.
                assert!(there.promises_whole || version == 1, "{version} {first}");
                let done;
                (buffer, done) = heal(&device, &there, buffer).await;
                done.unwrap();
                let there = present(&memory, &handle).await;
                assert_eq!((there.promises_whole, there.torn), (true, None));
            }
        }
        let [a, b] = Superblock::pair(s.sequence);
        let [c, d] = Superblock::pair(s.sequence - 1);
        rot(a);
        rot(c);
        let there = present(&memory, &handle).await;
        assert!(there.promises_whole, "two agree");
        rot(b);
        let mut there = present(&memory, &handle).await;
        assert!(!there.promises_whole, "copy {d} is alone");
        there.superblock.lose_promises();
        assert_eq!(there.superblock.replicas[0].state, ReplicaState::Lost);
    });
}

#[test]
fn a_drive_of_the_linear_map_is_not_blank() {
    on_reactor(|handle| async move {
        let memory = drive();
        assert!(memory.store(0, b"some other thing"));
        assert_eq!(found(&memory, &handle).await, Found::Blank);
        assert!(memory.store(COPY_BYTES as u64, b"KEELDRV1"));
        let linear = Found::Corrupt(CopyError::Linear);
        assert_eq!(found(&memory, &handle).await, linear);
    });
}

#[test]
fn a_drive_too_small_for_copies_is_blank() {
    on_reactor(|handle| async move {
        let memory = Memory::new(memory::map(8192).unwrap(), 8192);
        assert_eq!(found(&memory, &handle).await, Found::Blank);
    });
}
