//! After a queue pair is made, its I/O allocates nothing: buffers go in with commands and come back with completions.

// Not all of what the other tests need is needed here.
#[allow(dead_code)]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use keelblock_nvme::initiator::{Completion, Payload, QueuePair};
use keelblock_nvme::pdu::Digests;
use keelblock_nvme::{Sqe, opcode};
use support::{Config, HOST, NQN, Target};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks for.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Writes (in the capsule, by R2T in pieces) and reads of several sizes, as deep as the queue goes.
fn load(
    pair: &mut QueuePair,
    buffers: &mut Vec<Vec<u8>>,
    done: &mut Vec<Completion>,
    commands: u64,
) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut submitted, mut completed) = (0, 0);
    while completed < commands {
        while submitted < commands
            && let Some(buffer) = buffers.pop()
        {
            let blocks = (buffer.len() / support::BLOCK) as u32;
            let (op, payload) = match submitted % 2 {
                0 => (opcode::io::WRITE, Payload::Send(buffer)),
                _ => (opcode::io::READ, Payload::Receive(buffer)),
            };
            pair.submit(submitted, Sqe::io(op, 1, 0, blocks), payload)
                .unwrap();
            submitted += 1;
        }
        completed += pair.poll(done).unwrap() as u64;
        for completion in done.drain(..) {
            assert!(completion.status().is_success());
            buffers.push(completion.buffer);
        }
        assert!(
            Instant::now() < deadline,
            "{completed} of {commands} completed"
        );
    }
}

#[test]
fn io_allocates_nothing() {
    use keelblock_nvme::initiator::{ConnectOptions, Controller};
    // The target takes the data of one write at a time, so writes beyond the capsule go alone.
    for (digests, sizes) in [
        (false, vec![4096, 512, 2048]),
        (true, vec![512, 4096, 1024, 4096]),
        (true, vec![262_144]),
        (false, vec![262_144]),
    ] {
        let target = Target::start(Config {
            max_h2c: 8192,
            c2h_bytes: 40_000,
            success_flag: !digests,
            ..Config::default()
        });
        let options = ConnectOptions {
            digests: Digests {
                header: digests,
                data: digests,
            },
            ..ConnectOptions::default()
        };
        let mut controller = Controller::connect(target.addr, NQN, HOST, &options).unwrap();
        let mut pair = controller
            .io_queue(1, sizes.len() as u16)
            .unwrap()
            .into_pair();
        let mut buffers: Vec<_> = sizes.iter().map(|&bytes| vec![0x5a; bytes]).collect();
        let mut done = Vec::with_capacity(sizes.len());
        let before = ALLOCATIONS.get();
        load(&mut pair, &mut buffers, &mut done, 400);
        assert_eq!(
            ALLOCATIONS.get() - before,
            0,
            "{sizes:?}, digests {digests}"
        );
    }
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![1; 10]));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the counter counts");
}
