//! The same on the real reactor: io_uring, TCP over loopback, more reactors than one.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use super::super::rig::{Events, credentials, name, peer};
use super::*;
use crate::reactor::{Config, Endpoint, Handle, mesh, run};

fn identity(node: usize, handle: &Handle, at: Option<SocketAddr>) -> Rc<Identity> {
    let identity = Identity::new(&credentials(node, 0), handle.id()).unwrap();
    let at = at.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9)));
    identity.set_peers((0..2).map(|n| (name(n), peer(n, at))).collect());
    Rc::new(identity)
}

async fn until(handle: &Handle, what: &str, is: impl Fn() -> bool) {
    let deadline = handle.now() + 20 * SECOND;
    while !is() {
        assert!(handle.now() < deadline, "not in time: {what}");
        handle.sleep(Duration::from_millis(1)).await;
    }
}

/// 200 frames there, half of them with a MiB of data at most, and an answer to each.
async fn exchange(handle: &Handle, link: &Link) {
    until(handle, "a session", || link.session().is_some()).await;
    let mine = Rc::new(Taker::default());
    let channel = open(link, &mine);
    until(handle, "an answer", || mine.count() == 1).await;
    for i in 0..200_usize {
        let n = 1 + i % 64;
        let (pieces, each) = if i % 3 == 0 { (4, n) } else { (1, n) };
        let send = || match i % 2 {
            0 => channel.send(Kind::Flush, 3, |out| out.push(i as u8), []),
            _ => {
                let data = (0..pieces).map(|p| (blocks(handle, each, p), 0..each * 4096));
                let body = vec![each as u8; usize::from(pieces)];
                channel.send(Kind::Batch, 3, |out| out.extend(body), data)
            }
        };
        channel.room().await;
        let sent = send();
        assert_eq!(sent, Ok(()), "frame {i}: {:?}", mine.ended.borrow());
        until(handle, "the frame's answer", || mine.count() >= i / 2).await;
    }
    // A MiB in more pieces than one receive takes.
    let data = (0..=255).map(|p| (blocks(handle, 1, p), 0..4096));
    let body = [1_u8; 256];
    let sent = channel.send(Kind::Batch, 3, |out| out.extend(body), data);
    assert_eq!(sent, Ok(()));
    until(handle, "all answers", || mine.count() == 202).await;
    channel.close(3);
    until(handle, "the end", || mine.ended.borrow().is_some()).await;
}

/// Answers each frame with an Ack of its bytes.
struct Answers(RefCell<Option<Channel>>);

impl Handler for Answers {
    fn layout(
        &self,
        _: Kind,
        body: &[u8],
        _: usize,
        pieces: &mut Vec<usize>,
    ) -> Result<(), Broken> {
        pieces.extend(body.iter().map(|&blocks| usize::from(blocks) * 4096));
        Ok(())
    }

    fn frame(&self, frame: Frame<'_>, _: Admitted) -> Result<(), Broken> {
        for (i, (&n, piece)) in frame.body.iter().zip(frame.data.iter()).enumerate() {
            for (b, block) in piece[..usize::from(n) * 4096].chunks(4096).enumerate() {
                let byte = (i as u8).wrapping_add(b as u8);
                assert!(block.iter().all(|&x| x == byte), "piece {i}, block {b}");
            }
        }
        let channel = self.0.borrow();
        let channel = channel.as_ref().expect("a channel until its end");
        let sent = channel.send(Kind::Ack, frame.epoch, |out| out.push(1), []);
        assert_eq!(sent, Ok(()));
        Ok(())
    }

    fn ended(&self, _: &Ended) {
        self.0.take();
    }
}

struct Answering;

impl Service for Answering {
    fn open(
        &self,
        channel: &Channel,
        _: Kind,
        _: u32,
        _: &[u8],
    ) -> Result<Option<Rc<dyn Handler>>, Broken> {
        Ok(Some(Rc::new(Answers(RefCell::new(Some(channel.clone()))))))
    }
}

async fn node(handle: Handle, end: Endpoint<Mail>, listens: Arc<OnceLock<SocketAddr>>) {
    let last = handle.id().0 + 1 == handle.reactors();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let acceptor = Acceptor::start(
        &handle,
        identity(1, &handle, None),
        end,
        any,
        Rc::new(Answering),
    )
    .unwrap();
    if handle.id().0 == 0 {
        listens.set(acceptor.address()).unwrap();
    }
    // The last reactor connects to the node that it is of, and asks for itself.
    if !last {
        return;
    }
    until(&handle, "an address", || listens.get().is_some()).await;
    let events = Rc::new(Events::default());
    let known = identity(0, &handle, listens.get().copied());
    let link = Link::start(&handle, known, name(1), events.clone());
    exchange(&handle, &link).await;
    assert_eq!(acceptor.sessions().len(), 1, "it is served where it asked");
    // And again, after the connection broke.
    link.reset(Down::Stopped);
    until(&handle, "another session", || events.ups() == 2).await;
    exchange(&handle, &link).await;
    let numbers: Vec<u64> = acceptor.sessions().iter().map(|s| s.number).collect();
    assert_eq!(numbers, [2]);
    link.stop();
    acceptor.stop();
    until(&handle, "the end", || acceptor.sessions().is_empty()).await;
    handle.stop();
}

fn on(reactors: usize) {
    // Both ends are on one reactor: what waits to be sent (8 MiB and a frame) must leave room for what comes.
    let config = Config {
        buffer_bytes: 64 << 20,
        ..Config::default()
    };
    let listens = Arc::new(OnceLock::new());
    let seeds = mesh(reactors).into_iter();
    let seeds = seeds.map(|end| (end, listens.clone())).collect();
    let reactors = run(&config, seeds, |handle, (end, listens)| {
        node(handle, end, listens)
    })
    .unwrap();
    while !reactors.ended() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let stopper = reactors.stopper();
    stopper.stop();
    reactors.join().unwrap();
}

#[test]
fn on_one_reactor() {
    on(1);
}

#[test]
fn over_the_mesh_to_the_reactor_that_was_asked_for() {
    on(3);
}
