//! The simulator itself: that it repeats, and that its faults do what they say.

use super::super::*;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

const SECOND: Duration = Duration::from_secs(1);

async fn write(
    handle: &Handle,
    disk: &Disk,
    offset: u64,
    byte: u8,
    fua: bool,
) -> Result<(), DiskError> {
    let mut buffer = handle.buffers().take(4096).await;
    buffer.fill(byte);
    disk.write(offset, buffer, 4096, fua).await.1
}

async fn read(handle: &Handle, disk: &Disk, offset: u64) -> Result<Vec<u8>, DiskError> {
    let buffer = handle.buffers().take(4096).await;
    let (buffer, result) = disk.read(offset, buffer, 4096).await;
    result.map(|()| buffer[..4096].to_vec())
}

/// Two nodes, one sends random bytes, the other writes them to its disk and answers; returns the trace.
fn busy_run(seed: u64) -> u64 {
    let sim = Sim::new(seed);
    sim.add_disk("d", 1 << 20);
    let (_, server) = sim.start_node(2);
    let (_, client) = sim.start_node(1);
    let at = SocketAddr::from(([10, 0, 0, 1], 4420));
    let ends = mesh::<DetachedSocket>(2);
    for (handle, end) in server.iter().cloned().zip(ends) {
        handle.clone().spawn("server", async move {
            if handle.id() == ReactorId(0) {
                let listener = handle.listen(at).unwrap();
                while let Ok(socket) = listener.accept().await {
                    end.send(ReactorId(1), socket.detach()).await;
                }
            }
            loop {
                let (_, socket) = end.recv().await;
                let (socket, handle) = (handle.adopt(socket), handle.clone());
                handle.clone().spawn("connection", async move {
                    let disk = handle.open_disk(&DiskSpec::new("d")).unwrap();
                    let mut buf = [0; 100];
                    while let Ok(n) = socket.recv(&mut buf).await
                        && n > 0
                    {
                        for byte in &buf[..n] {
                            write(&handle, &disk, u64::from(*byte) * 4096, *byte, false)
                                .await
                                .unwrap();
                        }
                        socket.send_all(&buf[..n]).await.unwrap();
                    }
                });
            }
        });
    }
    let on = client[0].clone();
    let done = sim.run(&client[0], 10 * SECOND, async move {
        on.sleep(Duration::from_millis(1)).await;
        let socket = on.connect(at).await.unwrap();
        for _ in 0..50 {
            let sent = [on.random() as u8; 7];
            socket.send_all(&sent).await.unwrap();
            let mut got: Vec<u8> = Vec::new();
            while got.len() < 7 {
                let mut buf = [0; 7];
                let n = socket.recv(&mut buf).await.unwrap();
                got.extend(&buf[..n]);
            }
            assert_eq!(got, sent);
        }
    });
    assert!(done.is_some(), "the run with seed {seed} did not end");
    sim.trace_hash()
}

#[test]
fn a_seed_repeats_to_the_last_event_and_another_one_differs() {
    for seed in 0..5 {
        assert_eq!(busy_run(seed), busy_run(seed), "seed {seed}");
    }
    assert_ne!(busy_run(1), busy_run(2));
}

#[test]
fn a_clock_runs_at_its_own_rate_and_no_timer_fires_early() {
    for drift in [-1000, 0, 1000] {
        let sim = Sim::new(3);
        let (node, handles) = sim.start_node(1);
        sim.drift(node, drift);
        let (handle, began) = (handles[0].clone(), sim.now());
        let slept = sim.run(&handles[0], 60 * SECOND, async move {
            let before = handle.clock();
            handle.sleep(10 * SECOND).await;
            handle.clock().since(before)
        });
        assert!(slept.unwrap() >= 10 * SECOND, "by its own clock");
        let ms = sim.now().since(began).as_millis() as i32;
        let expected = 10_000 - 10 * drift / 1000;
        assert!((expected..expected + 2).contains(&ms), "{drift}: {ms} ms");
    }
}

#[test]
fn flushed_writes_survive_a_power_cut_and_others_whole_torn_or_not() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..40 {
        let sim = Sim::new(seed);
        sim.add_disk("d", 1 << 20);
        let (node, handles) = sim.start_node(1);
        let handle = handles[0].clone();
        sim.run(&handles[0], SECOND, async move {
            let disk = handle.open_disk(&DiskSpec::new("d")).unwrap();
            write(&handle, &disk, 0, 1, false).await.unwrap();
            disk.flush().await.unwrap();
            write(&handle, &disk, 4096, 2, true).await.unwrap();
            write(&handle, &disk, 8192, 3, false).await.unwrap();
            assert_eq!(read(&handle, &disk, 8192).await.unwrap(), [3; 4096]);
        })
        .unwrap();
        drop(handles);
        sim.power_cut(node, &["d"]);
        let mut seen = vec![0; 3 * 4096];
        sim.disk("d", |d| d.peek(0, &mut seen));
        assert!(seen[..4096].iter().all(|&b| b == 1), "seed {seed}: flushed");
        assert!(seen[4096..8192].iter().all(|&b| b == 2), "seed {seed}: FUA");
        let sectors: Vec<_> = seen[8192..].chunks(512).collect();
        assert!(
            sectors
                .iter()
                .all(|s| s.iter().all(|b| b == &s[0]) && [0, 3].contains(&s[0])),
            "seed {seed}: whole sectors"
        );
        match sectors.iter().filter(|s| s[0] == 3).count() {
            0 => lost += 1,
            8 => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(
        torn.min(kept).min(lost) > 3 && kept + lost + torn == 40,
        "{kept} {lost} {torn}"
    );
}

/// What a drive kept can be decided again and again from one moment: the number of each says which are the same, and which are not.
#[test]
fn what_a_power_cut_keeps_is_decided_again() {
    let sim = Sim::new(11);
    sim.add_disk("d", 1 << 20);
    let (node, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let written = sim.run(&handles[0], SECOND, async move {
        let disk = handle.open_disk(&DiskSpec::new("d")).unwrap();
        write(&handle, &disk, 0, 1, true).await.unwrap();
        for (at, byte) in [(0, 2), (4096, 3), (0, 4)] {
            write(&handle, &disk, at, byte, false).await.unwrap();
        }
    });
    written.unwrap();
    drop(handles);
    let undecided = sim.power_off(node, "d");
    let decide = |seed| {
        let number = sim.power_left("d", &undecided, seed);
        let mut bytes = vec![0; 8192];
        sim.disk("d", |d| d.peek(0, &mut bytes));
        (number, bytes)
    };
    let mut all = BTreeMap::new();
    for seed in 0..200 {
        let (number, bytes) = decide(seed);
        assert_eq!(decide(seed), (number, bytes.clone()), "a seed decides all");
        assert!(matches!(bytes[0], 1 | 2 | 4) && matches!(bytes[4096], 0 | 3));
        assert_eq!(*all.entry(number).or_insert(bytes.clone()), bytes);
    }
    let whole = |bytes: &&Vec<u8>| bytes.chunks(4096).all(|b| b.iter().all(|x| *x == b[0]));
    let whole = all.values().filter(whole).collect::<BTreeSet<_>>();
    assert_eq!(whole.len(), 6, "of two blocks, three and two versions");
    assert!(all.len() > 20, "and torn ones");
}

/// The third operation of four is the last that begins: what a test finds afterwards is what a crash there leaves.
#[test]
fn a_disk_stops_the_world_between_two_operations() {
    let sim = Sim::new(3);
    sim.add_disk("d", 1 << 20);
    let (node, handles) = sim.start_node(1);
    let blank = sim.disk("d", |d| d.image());
    let seen = |from: u64| {
        let mut byte = [0];
        sim.disk("d", |d| d.peek(from * 4096, &mut byte));
        byte[0]
    };
    sim.disk("d", |d| d.halt_after(5));
    let handle = handles[0].clone();
    let cut = sim.run(&handles[0], SECOND, async move {
        let disk = handle.open_disk(&DiskSpec::new("d")).unwrap();
        for n in 0..4 {
            write(&handle, &disk, n * 4096, 7, true).await.unwrap();
        }
    });
    assert!(cut.is_none() && sim.disk("d", |d| d.halted() && d.events == 5));
    assert_eq!((seen(0), seen(1), seen(2)), (7, 7, 0));
    drop(handles);
    sim.kill(node);
    assert_eq!((seen(1), seen(3)), (7, 0), "the third may have been done");
    sim.disk("d", |d| d.restore(&blank));
    assert_eq!(seen(0), 0);
    let handle = sim.restart_node(node, 1).remove(0);
    let on = handle.clone();
    let done = sim.run(&on, SECOND, async move {
        let disk = handle.open_disk(&DiskSpec::new("d")).unwrap();
        write(&handle, &disk, 0, 8, false).await
    });
    assert!(matches!(done, Some(Ok(()))));
}

#[test]
fn disks_fail_as_told() {
    let sim = Sim::new(7);
    sim.add_disk("d", 1 << 20);
    let (_, handles) = sim.start_node(1);
    let step = |faults: DiskFaults| {
        sim.disk("d", |d| d.faults = faults);
        let handle = handles[0].clone();
        sim.run(&handles[0], SECOND, async move {
            let disk = handle.open_disk(&DiskSpec::new("d")).unwrap();
            let written = write(&handle, &disk, 4096, 9, false).await;
            (written, read(&handle, &disk, 4096).await)
        })
        .unwrap()
    };
    assert!(matches!(
        step(DiskFaults {
            full: true,
            ..Default::default()
        }),
        (Err(DiskError::Full { .. }), Ok(_))
    ));
    assert!(matches!(
        step(DiskFaults {
            fail_writes: true,
            ..Default::default()
        }),
        (Err(DiskError::Failed { .. }), Ok(_))
    ));
    let (written, seen) = step(DiskFaults {
        drop_writes: 1,
        ..Default::default()
    });
    assert!(written.is_ok() && seen.unwrap() == [0; 4096]);
    let unreadable = DiskFaults {
        unreadable: vec![8191..8192, 0..1],
        ..Default::default()
    };
    assert!(matches!(
        step(unreadable),
        (Ok(()), Err(DiskError::Failed { .. }))
    ));
    let (_, seen) = step(DiskFaults::default());
    assert_eq!(seen.unwrap(), [9; 4096]);
    sim.disk("d", |d| d.rot(4100, 3));
    let mut block = [0; 4096];
    sim.disk("d", |d| d.peek(4096, &mut block));
    assert_eq!((block[3], block[4], block[5]), (9, 9 ^ 8, 9));
    let (written, _) = step(DiskFaults {
        misdirect: 1,
        ..DiskFaults::default()
    });
    assert!(written.is_ok(), "a misdirected write says that all is well");
    let nines = sim.disk("d", |d| {
        let mut all = vec![0; 1 << 20];
        d.peek(0, &mut all);
        all.chunks(4096)
            .filter(|b| b.iter().all(|&x| x == 9))
            .count()
    });
    assert!(nines <= 2, "one old place, one wrong one");
}

/// A connection between two nodes: the handles of both, and both ends.
fn pair(sim: &Sim) -> (NodeId, NodeId, Handle, Handle, Rc<Socket>, Rc<Socket>) {
    let (a, server) = sim.start_node(1);
    let (b, client) = sim.start_node(1);
    let at = SocketAddr::from(([10, 0, 0, 1], 1));
    let listening = server[0].clone();
    let accepted = Rc::new(RefCell::new(None));
    let put = accepted.clone();
    server[0].spawn("accept", async move {
        let listener = listening.listen(at).unwrap();
        *put.borrow_mut() = Some(listener.accept().await.unwrap());
    });
    sim.run_for(Duration::from_micros(10));
    let on = client[0].clone();
    let ours = sim
        .run(
            &client[0],
            SECOND,
            async move { on.connect(at).await.unwrap() },
        )
        .unwrap();
    let theirs = accepted.take().unwrap();
    (
        a,
        b,
        server[0].clone(),
        client[0].clone(),
        Rc::new(theirs),
        Rc::new(ours),
    )
}

#[test]
fn a_partition_holds_everything_back_and_healing_delivers_it_in_order() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (a, b, server, _client, theirs, ours) = pair(&sim);
        sim.network(|n| n.partition(a, b));
        for i in 0..10u8 {
            assert_eq!(ours.try_send(&[std::io::IoSlice::new(&[i; 3])]).unwrap(), 3);
            sim.run_for(Duration::from_micros(7));
        }
        sim.run_for(SECOND);
        let mut buf = [0; 64];
        let nothing = theirs.try_recv(&mut [std::io::IoSliceMut::new(&mut buf)]);
        assert!(matches!(nothing, Ok(None)), "seed {seed}");
        sim.network(NetFaults::heal);
        let got = sim.run(&server, SECOND, async move {
            let mut got: Vec<u8> = Vec::new();
            while got.len() < 30 {
                let mut buf = [0; 64];
                let n = theirs.recv(&mut buf).await.unwrap();
                got.extend(&buf[..n]);
            }
            got
        });
        let want: Vec<u8> = (0..10).flat_map(|i| [i; 3]).collect();
        match got {
            Some(got) => assert_eq!(got, want, "seed {seed}"),
            None => panic!("seed {seed}: held bytes did not arrive"),
        }
    }
}

#[test]
fn a_killed_process_closes_and_a_dead_machine_says_nothing() {
    let sim = Sim::new(3);
    let (a, _, _, client, theirs, ours) = pair(&sim);
    drop(theirs);
    sim.run_for(Duration::from_millis(10));
    let waiting = ours.clone();
    assert!(matches!(
        sim.run(
            &client,
            SECOND,
            async move { waiting.recv(&mut [0; 8]).await }
        ),
        Some(Ok(0))
    ));
    sim.kill(a);

    let sim = Sim::new(4);
    let (a, _, server, client, theirs, ours) = pair(&sim);
    sim.power_cut(a, &[]);
    drop((server, theirs));
    let waiting = ours.clone();
    assert!(
        sim.run(
            &client,
            SECOND,
            async move { waiting.recv(&mut [0; 8]).await }
        )
        .is_none(),
        "half open"
    );
    // Up again, the machine knows nothing of the connection.
    sim.restart_node(a, 1);
    ours.try_send(&[std::io::IoSlice::new(b"hello?")]).unwrap();
    let asked = sim.run(&client, SECOND, async move { ours.recv(&mut [0; 8]).await });
    assert!(matches!(asked, Some(Err(NetError::Broken { .. }))));
}

#[test]
fn nobody_listening_refuses_and_a_full_window_waits() {
    let sim = Sim::new(5);
    let (_, _, server, client, theirs, ours) = pair(&sim);
    let on = client.clone();
    let refused = sim.run(&client, SECOND, async move {
        on.connect(SocketAddr::from(([10, 0, 0, 9], 9))).await.err()
    });
    assert!(matches!(refused, Some(Some(NetError::Connect { .. }))));
    let sender = ours.clone();
    client.spawn("send", async move {
        sender.send_all(&vec![5; 3 << 20]).await.unwrap()
    });
    sim.run_for(SECOND);
    assert_eq!(
        ours.try_send(&[std::io::IoSlice::new(b"x")]).unwrap(),
        0,
        "full"
    );
    let got = sim.run(&server, SECOND, async move {
        let (mut got, mut buf) = (0, vec![0; 65_536]);
        while got < 3 << 20 {
            got += theirs.recv(&mut buf).await.unwrap();
        }
        got
    });
    assert_eq!(got, Some(3 << 20));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn without_a_power_cut_a_disk_is_a_disk(seed in any::<u64>(), writes in prop::collection::vec((0u64..16, any::<u8>(), any::<bool>()), 1..40)) {
        let sim = Sim::new(seed);
        sim.add_disk("d", 16 * 4096);
        let (_, handles) = sim.start_node(1);
        let handle = handles[0].clone();
        let ok = sim.run(&handles[0], 10 * SECOND, async move {
            let disk = handle.open_disk(&DiskSpec::new("d")).unwrap();
            let mut model = [0u8; 16];
            for (block, byte, fua) in writes {
                write(&handle, &disk, block * 4096, byte, fua).await.unwrap();
                model[block as usize] = byte;
                if byte % 7 == 0 {
                    disk.flush().await.unwrap();
                }
            }
            for (block, byte) in model.iter().enumerate() {
                assert_eq!(read(&handle, &disk, block as u64 * 4096).await.unwrap(), [*byte; 4096]);
            }
        });
        prop_assert!(ok.is_some());
    }
}
