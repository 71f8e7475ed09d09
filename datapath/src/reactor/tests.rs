//! The real reactor, driven from outside: what its pieces do together.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::*;

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn small() -> Config {
    Config {
        buffer_bytes: 4 << 20,
        ..Config::default()
    }
}

/// Runs `test` on one reactor and stops it; panics of the test become panics here.
fn on_one<Fut: Future<Output = ()> + 'static>(
    test: impl Fn(Handle) -> Fut + Clone + Send + 'static,
) {
    let reactors = run(&small(), vec![()], move |handle, ()| {
        let test = test.clone();
        async move {
            test(handle.clone()).await;
            handle.stop();
        }
    });
    reactors.unwrap().join().unwrap();
}

#[test]
fn sleeps_last_as_long_as_they_should() {
    on_one(|handle| async move {
        let begin = handle.now();
        handle.sleep(Duration::from_millis(3)).await;
        assert!(handle.now().since(begin) >= Duration::from_millis(3));
        let forever = std::future::pending::<()>();
        let limit = Duration::from_millis(2);
        assert_eq!(handle.timeout(limit, forever).await, Err(Elapsed { limit }));
        assert_eq!(handle.timeout(limit, std::future::ready(7)).await, Ok(7));
    });
}

#[test]
fn operations_fill_their_slab_and_no_more() {
    on_one(|handle| async move {
        let gate = Rc::new(Notify::new());
        let done = Rc::new(std::cell::Cell::new(0));
        let op = |gate: Rc<Notify>, done: Rc<std::cell::Cell<usize>>| async move {
            gate.notified().await;
            done.set(done.get() + 1);
        };
        for _ in 0..OPS_MAX {
            handle
                .start("wait", op(gate.clone(), done.clone()))
                .unwrap();
        }
        assert_eq!(handle.start("one too many", async {}), Err(SlabFull));
        assert_eq!(handle.stats().ops_in_flight.get(), OPS_MAX as u64);
        gate.notify_all();
        while done.get() < OPS_MAX {
            handle.yield_now().await;
        }
        handle.start("room again", async {}).unwrap();
        assert_eq!(handle.stats().ops_in_flight.get(), 0);
    });
}

#[test]
fn a_file_keeps_what_was_written_and_refuses_what_is_outside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    on_one(move |handle| {
        let path = path.clone();
        async move {
            let disk = handle.open_disk(&DiskSpec::new(&path)).unwrap();
            assert_eq!(
                (disk.size_bytes(), disk.block_bytes(), disk.volatile_cache()),
                (1 << 20, 4096, true)
            );
            let mut buffer = handle.buffers().take(8192).await;
            buffer[..8192].fill(0x5a);
            let (mut buffer, result) = disk.write(4096, buffer, 8192, true).await;
            result.unwrap();
            disk.flush().await.unwrap();
            buffer.fill(0);
            let (buffer, result) = disk.read(4096, buffer, 8192).await;
            result.unwrap();
            assert!(buffer[..8192].iter().all(|&b| b == 0x5a));
            disk.write_zeroes(4096, 4096).await.unwrap();
            disk.discard(8192, 4096).await.unwrap();
            let (buffer, result) = disk.read(4096, buffer, 8192).await;
            result.unwrap();
            assert!(buffer[..8192].iter().all(|&b| b == 0));
            let (buffer, result) = disk.read((1 << 20) - 4096, buffer, 8192).await;
            assert!(matches!(
                result,
                Err(DiskError::OutOfRange {
                    offset: 1_044_480,
                    len: 8192,
                    size: 1_048_576
                })
            ));
            disk.grow(2 << 20).await.unwrap();
            let (_, result) = disk.read((1 << 20) - 4096, buffer, 8192).await;
            result.unwrap();
            let missing = handle.open_disk(&DiskSpec::new(path.with_extension("missing")));
            assert!(matches!(missing, Err(DiskError::Open { .. })));
            let dir = handle.open_disk(&DiskSpec {
                path: path.parent().unwrap().into(),
                read_only: true,
            });
            assert!(matches!(
                dir,
                Err(DiskError::NotADisk { .. } | DiskError::Open { .. })
            ));
        }
    });
}

#[test]
fn a_disk_operation_dropped_early_keeps_its_buffer_until_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    on_one(move |handle| {
        let path = path.clone();
        async move {
            let disk = handle.open_disk(&DiskSpec::new(&path)).unwrap();
            for _ in 0..100 {
                let buffer = handle.buffers().take(1 << 16).await;
                let mut read = Box::pin(disk.read(0, buffer, 1 << 16));
                let polled = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(read.as_mut().poll(cx).is_pending())
                })
                .await;
                assert!(polled);
                drop(read);
                assert!(handle.buffers().stats().used >= 1 << 16);
            }
            while handle.buffers().stats().used > 0 {
                handle.yield_now().await;
            }
        }
    });
}

/// Accepts connections for ever and sends back what comes.
async fn echo(handle: Handle, listener: Listener) {
    while let Ok(socket) = listener.accept().await {
        handle.spawn("echo", async move {
            let mut buf = vec![0; 1 << 16];
            while let Ok(n) = socket.recv(&mut buf).await {
                if n == 0 || socket.send_all(&buf[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Starts an echo server on one reactor.
fn echo_server(config: &Config) -> (Reactors, SocketAddr) {
    let (tell, told) = std::sync::mpsc::channel();
    let reactors = run(config, vec![tell], |handle, tell| async move {
        let listener = handle.listen(loopback()).unwrap();
        tell.send(listener.local_addr()).unwrap();
        echo(handle, listener).await;
    });
    (reactors.unwrap(), told.recv().unwrap())
}

#[test]
fn bytes_come_back_from_an_active_and_from_a_sleeping_reactor() {
    let (reactors, at) = echo_server(&small());
    let mut client = TcpStream::connect(at).unwrap();
    client.set_nodelay(true).unwrap();
    for round in 0..200u32 {
        if round % 20 == 0 {
            // Long enough for the reactor to sleep; it is no error if it does not.
            std::thread::sleep(Duration::from_millis(1));
        }
        client.write_all(&round.to_le_bytes()).unwrap();
        let mut back = [0; 4];
        client.read_exact(&mut back).unwrap();
        assert_eq!(u32::from_le_bytes(back), round);
    }
    assert!(reactors.stats()[0].sleeps.get() > 0);
    drop(reactors);
    assert_eq!(
        client.read(&mut [0; 1]).unwrap_or(0),
        0,
        "the connection ended with the reactor"
    );
}

#[test]
fn a_peer_that_reads_late_stops_nobody_and_loses_nothing() {
    let (_reactors, at) = echo_server(&small());
    let mut slow = TcpStream::connect(at).unwrap();
    let mut quick = TcpStream::connect(at).unwrap();
    let mut writer = slow.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for i in 0..32u8 {
            writer.write_all(&vec![i; 1 << 18]).unwrap();
        }
    });
    for i in 0..100u8 {
        quick.write_all(&[i]).unwrap();
        let mut back = [0];
        quick.read_exact(&mut back).unwrap();
        assert_eq!(back[0], i);
    }
    let mut back = vec![0; 1 << 18];
    for i in 0..32u8 {
        slow.read_exact(&mut back).unwrap();
        assert!(back.iter().all(|&b| b == i));
    }
    sender.join().unwrap();
}

#[test]
fn many_quiet_connections_leave_nothing_to_poll() {
    let (reactors, at) = echo_server(&small());
    let mut clients: Vec<_> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    let stats = &reactors.stats()[0];
    while stats.sockets_active.get() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stats.sockets.get(), 200);
    for client in &mut clients {
        client.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    drop(clients);
    while stats.sockets.get() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_idle_reactor_does_nothing() {
    let (reactors, _) = echo_server(&small());
    let stats = &reactors.stats()[0];
    while stats.sleeps.get() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
    let before = stats.passes.get();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(stats.passes.get(), before, "no tick wakes it");
}

#[test]
fn a_busy_port_is_named() {
    on_one(|handle| async move {
        let first = handle.listen(loopback()).unwrap();
        let at = first.local_addr();
        assert!(matches!(handle.listen(at), Err(NetError::InUse { at: named }) if named == at));
        let refused = {
            let gone = handle.listen(loopback()).unwrap().local_addr();
            handle.connect(gone).await
        };
        assert!(matches!(refused, Err(NetError::Connect { .. })));
    });
}

#[test]
fn a_connection_moves_to_another_reactor() {
    let (tell, told) = std::sync::mpsc::channel();
    let seeds: Vec<_> = mesh::<DetachedSocket>(2)
        .into_iter()
        .map(|e| (e, tell.clone()))
        .collect();
    let _reactors = run(&small(), seeds, |handle, (endpoint, tell)| async move {
        if handle.id() == ReactorId(0) {
            let listener = handle.listen(loopback()).unwrap();
            tell.send(listener.local_addr()).unwrap();
            while let Ok(socket) = listener.accept().await {
                let mut first = [0; 1];
                assert_eq!(socket.recv(&mut first).await.unwrap(), 1);
                endpoint.send(ReactorId(1), socket.detach()).await;
            }
        }
        loop {
            let (from, socket) = endpoint.recv().await;
            assert_eq!(from, ReactorId(0));
            let socket = handle.adopt(socket);
            let mut buf = [0; 16];
            let n = socket.recv(&mut buf).await.unwrap();
            assert_eq!(
                socket
                    .try_send(&[IoSlice::new(b"1:"), IoSlice::new(&buf[..n])])
                    .unwrap(),
                2 + n
            );
        }
    })
    .unwrap();
    let at = told.recv().unwrap();
    for _ in 0..10 {
        let mut client = TcpStream::connect(at).unwrap();
        client.write_all(b"h").unwrap();
        std::thread::sleep(Duration::from_millis(1));
        client.write_all(b"ello").unwrap();
        let mut back = String::new();
        client.read_to_string(&mut back).unwrap();
        assert_eq!(back, "1:ello");
    }
}

#[test]
fn requests_and_replies_cross_in_both_directions_without_a_deadlock() {
    let done = Arc::new(AtomicU64::new(0));
    let seeds: Vec<_> = mesh::<u64>(3)
        .into_iter()
        .map(|e| (e, done.clone()))
        .collect();
    const EACH: u64 = 5_000;
    let reactors = run(&small(), seeds, |handle, (endpoint, done)| async move {
        let endpoint = Rc::new(endpoint);
        let asking = endpoint.clone();
        let n = handle.reactors();
        handle.spawn("ask", async move {
            for i in 0..EACH {
                for to in 0..n {
                    asking.request(ReactorId(to), i).await;
                }
            }
        });
        let (mut answers, mut sum) = (0, 0);
        while answers < EACH * u64::from(n) {
            match endpoint.receive().await {
                (from, mesh::Received::Request(i)) => endpoint.reply(from, i * 2),
                (_, mesh::Received::Reply(i)) => {
                    answers += 1;
                    sum += i;
                }
                (_, mesh::Received::Plain(_)) => unreachable!("nobody sends these"),
            }
        }
        assert_eq!(sum, EACH * (EACH - 1) * u64::from(n));
        done.fetch_add(1, Ordering::SeqCst);
        // Others may still want answers.
        loop {
            if let (from, mesh::Received::Request(i)) = endpoint.receive().await {
                endpoint.reply(from, i * 2);
            }
        }
    })
    .unwrap();
    while done.load(Ordering::SeqCst) < 3 {
        assert!(!reactors.ended(), "a reactor panicked");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn plain_messages_wait_for_room_and_arrive_in_order() {
    let seeds: Vec<_> = mesh::<u32>(2).into_iter().collect();
    let reactors = run(&small(), seeds, |handle, endpoint| async move {
        if handle.id() == ReactorId(0) {
            for i in 0..20_000 {
                endpoint.send(ReactorId(1), i).await;
            }
            endpoint.recv().await;
        } else {
            for i in 0..20_000 {
                assert_eq!(endpoint.recv().await.1, i);
            }
            endpoint.send(ReactorId(0), 0).await;
        }
        handle.stop();
    });
    reactors.unwrap().join().unwrap();
}

#[test]
fn other_threads_wake_a_sleeping_reactor() {
    let (send, receive) = tokio::sync::mpsc::unbounded_channel::<u32>();
    let seen = Arc::new(AtomicU64::new(0));
    let reactors = run(
        &small(),
        vec![(Some(receive), seen.clone())],
        |handle, (receive, seen)| {
            let mut receive = receive.unwrap();
            async move {
                while let Some(n) = receive.recv().await {
                    seen.fetch_add(u64::from(n), Ordering::SeqCst);
                }
                handle.stop();
            }
        },
    );
    for i in 1..=100 {
        send.send(i).unwrap();
        if i % 10 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drop(send);
    reactors.unwrap().join().unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 5050);
}

#[test]
fn a_task_that_holds_the_core_is_reported_by_name() {
    let seen = Arc::new(AtomicBool::new(false));
    let told = seen.clone();
    let on_stall: run::OnStall = Arc::new(move |id, name, held| {
        assert_eq!((id, name), (ReactorId(0), "hog"));
        assert!(held >= Duration::from_millis(10));
        told.store(true, Ordering::SeqCst);
    });
    let config = Config {
        on_stall: Some(on_stall),
        ..small()
    };
    let reactors = run(&config, vec![()], |handle, ()| async move {
        handle.sleep(Duration::from_millis(1)).await;
        handle.spawn("hog", async {
            std::thread::sleep(Duration::from_millis(15))
        });
        while handle.stats().stalls.get() == 0 {
            handle.yield_now().await;
        }
        handle.stop();
    });
    reactors.unwrap().join().unwrap();
    assert!(seen.load(Ordering::SeqCst));
}

#[test]
fn impossible_configurations_are_refused_with_their_reason() {
    let start = |config: &Config, n: usize| {
        run(config, vec![(); n], |_, ()| async {})
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    assert!(start(&small(), 0).contains("0 reactors"));
    assert!(
        start(
            &Config {
                poll: run::Poll::Always,
                cpus: vec![0],
                ..small()
            },
            2
        )
        .contains("poll = always")
    );
    assert!(
        start(
            &Config {
                cpus: vec![9999],
                ..small()
            },
            1
        )
        .contains("core 9999")
    );
    assert!(
        start(
            &Config {
                buffer_bytes: 1 << 60,
                ..small()
            },
            2
        )
        .contains("no address space")
    );
}

#[test]
fn a_panic_ends_all_reactors_and_is_reported() {
    let reactors = run(&small(), vec![(), ()], |handle, ()| async move {
        if handle.id() == ReactorId(1) {
            panic!("on purpose");
        }
    });
    let panicked = reactors.unwrap().join().unwrap_err();
    assert_eq!(
        (panicked.reactor, panicked.message.as_str()),
        (ReactorId(1), "on purpose")
    );
}

#[test]
fn a_buffer_of_another_reactor_is_written_and_goes_home() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let seeds: Vec<_> = mesh::<Option<Buffer>>(2)
        .into_iter()
        .map(|e| (e, path.clone()))
        .collect();
    let reactors = run(&small(), seeds, |handle, (endpoint, path)| async move {
        if handle.id() == ReactorId(0) {
            for _ in 0..100 {
                let mut buffer = handle.buffers().take(1 << 18).await;
                buffer.fill(0xc3);
                endpoint.send(ReactorId(1), Some(buffer)).await;
            }
            endpoint.recv().await;
            handle.buffers().reap();
            assert_eq!(handle.buffers().stats().used, 0);
        } else {
            let disk = handle.open_disk(&DiskSpec::new(&path)).unwrap();
            for _ in 0..100 {
                let Some(buffer) = endpoint.recv().await.1 else {
                    panic!("a buffer is missing")
                };
                let (buffer, result) = disk.write(4096, buffer, 1 << 18, false).await;
                result.unwrap();
                let (_, result) = disk.read(4096, buffer, 1 << 18).await;
                result.unwrap();
            }
            endpoint.send(ReactorId(0), None).await;
            // Not stopped before the message is there.
            handle.sleep(Duration::from_millis(1)).await;
        }
        handle.stop();
    });
    reactors.unwrap().join().unwrap();
    let written = std::fs::read(&path).unwrap();
    assert!(written[4096..4096 + (1 << 18)].iter().all(|&b| b == 0xc3));
}
