//! How reactors talk: one bounded ring per ordered pair, and a waker per endpoint.
//!
//! There are three kinds of messages. A *request* takes one of [`CREDITS`] credits of its pair, and gets it back with the *reply*. A plain
//! message (`send`) has no answer. Requests and plain messages leave [`CREDITS`] entries of a ring free, and at most that many replies
//! can be under way to one reactor, so a reply always has room: rings cannot deadlock, however long a receiver waits to send its own requests,
//! as long as it answers without waiting for them.
//!
//! A receiver that finds nothing, and a sender that finds no room, waits as a reactor sleeps (`asleep`), and is woken by the other side.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::ReactorId;
use super::asleep::Asleep;
use super::notify::Notify;
use super::ring::{Consumer, Producer, ring};
use super::wakecell::WakeCell;

/// Requests of one reactor to one other that may be unanswered.
pub const CREDITS: usize = 256;
/// Entries of a ring: requests and plain messages, and room for replies.
const RING: usize = 2 * CREDITS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Request,
    Reply,
}

/// What another reactor sent.
#[derive(Debug)]
pub enum Received<M> {
    /// No answer is expected.
    Plain(M),
    /// The sender holds a credit until [`Endpoint::reply`].
    Request(M),
    /// The answer to a request of ours.
    Reply(M),
}

impl<M> Received<M> {
    /// The message, whatever its kind.
    pub fn into_message(self) -> M {
        match self {
            Received::Plain(m) | Received::Request(m) | Received::Reply(m) => m,
        }
    }
}

/// A task that waits, and whether it does.
struct Waiting {
    asleep: Asleep,
    cell: WakeCell,
}

impl Waiting {
    fn new() -> Self {
        Waiting {
            asleep: Asleep::new(),
            cell: WakeCell::new(),
        }
    }

    /// The waiting side: look again after this.
    fn announce(&self, cx: &Context<'_>) {
        self.cell.register(cx.waker());
        self.asleep.announce();
    }

    /// The other side, after publishing.
    fn wake_if_waiting(&self) {
        if self.asleep.must_ring() {
            self.cell.wake();
        }
    }
}

/// Our end of the rings to and from one reactor.
struct Peer<M> {
    to: RefCell<Producer<(Kind, M)>>,
    from: RefCell<Consumer<(Kind, M)>>,
    /// The peer's task that receives.
    inbox: Arc<Waiting>,
    /// Our sender that waits for room in `to`.
    room: Arc<Waiting>,
    /// The peer's sender that waits for room in `from`.
    their_room: Arc<Waiting>,
    /// Requests of ours without an answer.
    unanswered: Cell<usize>,
    credit_back: Notify,
    /// Other senders of ours that wait behind the first.
    queue: Notify,
    sending: Cell<bool>,
}

/// One reactor's end of the mesh. Made before the reactors start; used by one of them afterwards.
pub struct Endpoint<M> {
    id: ReactorId,
    peers: Vec<Peer<M>>,
    inbox: Arc<Waiting>,
    /// Where the next look for messages begins, so that nobody is starved.
    next: Cell<usize>,
}

/// Makes the rings between `n` reactors, each to itself included; element i is for reactor i.
pub fn mesh<M: Send>(n: usize) -> Vec<Endpoint<M>> {
    let inboxes: Vec<_> = (0..n).map(|_| Arc::new(Waiting::new())).collect();
    let rooms: Vec<Vec<_>> = (0..n)
        .map(|_| (0..n).map(|_| Arc::new(Waiting::new())).collect())
        .collect();
    let mut producers: Vec<Vec<_>> = (0..n).map(|_| Vec::with_capacity(n)).collect();
    let mut consumers: Vec<Vec<_>> = (0..n).map(|_| Vec::with_capacity(n)).collect();
    // In this order both `producers[a][b]` and `consumers[b][a]` become the ends of the ring from a to b.
    for from in &mut producers {
        for to in &mut consumers {
            let (producer, consumer) = ring(RING);
            from.push(producer);
            to.push(consumer);
        }
    }
    let mut endpoints = Vec::with_capacity(n);
    for (me, (to, from)) in producers.into_iter().zip(consumers).enumerate() {
        let peers = to.into_iter().zip(from).enumerate();
        let peers = peers.map(|(other, (to, from))| Peer {
            to: RefCell::new(to),
            from: RefCell::new(from),
            inbox: inboxes[other].clone(),
            room: rooms[me][other].clone(),
            their_room: rooms[other][me].clone(),
            unanswered: Cell::new(0),
            credit_back: Notify::new(),
            queue: Notify::new(),
            sending: Cell::new(false),
        });
        endpoints.push(Endpoint {
            id: ReactorId(me as u16),
            peers: peers.collect(),
            inbox: inboxes[me].clone(),
            next: Cell::new(0),
        });
    }
    endpoints
}

impl<M> Endpoint<M> {
    /// The reactor that this end belongs to.
    pub fn id(&self) -> ReactorId {
        self.id
    }

    /// How many reactors there are.
    pub fn reactors(&self) -> usize {
        self.peers.len()
    }

    /// Sends a message that has no answer.
    ///
    /// # Errors
    /// Gives the message back if there is no room now.
    pub fn try_send(&self, to: ReactorId, m: M) -> Result<(), M> {
        if self.peer(to).sending.get() {
            // Others wait for room already: nobody passes them.
            return Err(m);
        }
        self.push(to, Kind::Plain, m)
    }

    /// Sends a message that has no answer, when there is room.
    pub async fn send(&self, to: ReactorId, m: M) {
        self.push_waiting(to, Kind::Plain, m).await;
    }

    /// Sends a request, which takes a credit until its answer is received.
    ///
    /// # Errors
    /// Gives the message back if there is no credit or no room now.
    pub fn try_request(&self, to: ReactorId, m: M) -> Result<(), M> {
        let peer = self.peer(to);
        if peer.unanswered.get() >= CREDITS || peer.sending.get() {
            return Err(m);
        }
        self.push(to, Kind::Request, m)?;
        peer.unanswered.set(peer.unanswered.get() + 1);
        Ok(())
    }

    /// Sends a request when there is a credit and room.
    pub async fn request(&self, to: ReactorId, m: M) {
        let peer = self.peer(to);
        while peer.unanswered.get() >= CREDITS {
            peer.credit_back.notified().await;
        }
        peer.unanswered.set(peer.unanswered.get() + 1);
        let credit = Credit(peer);
        self.push_waiting(to, Kind::Request, m).await;
        // The answer gives it back.
        std::mem::forget(credit);
    }

    /// Answers a request: there is always room. Answering what was not asked is a mistake, and panics when the room is used up.
    pub fn reply(&self, to: ReactorId, m: M) {
        let pushed = self.push(to, Kind::Reply, m);
        assert!(pushed.is_ok(), "more replies than requests");
    }

    /// Waits for the next message, whatever its kind.
    pub async fn recv(&self) -> (ReactorId, M) {
        let (from, received) = self.receive().await;
        (from, received.into_message())
    }

    /// Waits for the next message.
    pub async fn receive(&self) -> (ReactorId, Received<M>) {
        poll_fn(|cx| {
            if let Some(got) = self.try_receive() {
                return Poll::Ready(got);
            }
            self.inbox.announce(cx);
            match self.try_receive() {
                Some(got) => Poll::Ready(got),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The next message, if there is one.
    pub fn try_receive(&self) -> Option<(ReactorId, Received<M>)> {
        for i in 0..self.peers.len() {
            let at = (self.next.get() + i) % self.peers.len();
            let peer = &self.peers[at];
            let popped = peer.from.borrow_mut().pop();
            let Some((kind, m)) = popped else { continue };
            self.next.set(at + 1);
            peer.their_room.wake_if_waiting();
            let received = match kind {
                Kind::Plain => Received::Plain(m),
                Kind::Request => Received::Request(m),
                Kind::Reply => {
                    peer.unanswered.set(peer.unanswered.get() - 1);
                    peer.credit_back.notify();
                    Received::Reply(m)
                }
            };
            return Some((ReactorId(at as u16), received));
        }
        None
    }

    fn peer(&self, to: ReactorId) -> &Peer<M> {
        &self.peers[usize::from(to.0)]
    }

    fn push(&self, to: ReactorId, kind: Kind, m: M) -> Result<(), M> {
        let peer = self.peer(to);
        let reserve = if kind == Kind::Reply { 0 } else { CREDITS };
        {
            let mut ring = peer.to.borrow_mut();
            if ring.free(reserve + 1) <= reserve {
                return Err(m);
            }
            ring.push((kind, m)).map_err(|(_, m)| m)?;
        }
        peer.inbox.wake_if_waiting();
        Ok(())
    }

    /// Pushes when there is room; tasks of this reactor wait one behind the other.
    async fn push_waiting(&self, to: ReactorId, kind: Kind, m: M) {
        let peer = self.peer(to);
        while peer.sending.get() {
            peer.queue.notified().await;
        }
        let mut m = match self.push(to, kind, m) {
            Ok(()) => return,
            Err(back) => Some(back),
        };
        peer.sending.set(true);
        let _turn = Turn(peer);
        poll_fn(|cx| {
            for announced in [false, true] {
                if announced {
                    peer.room.announce(cx);
                }
                let Some(waiting) = m.take() else {
                    return Poll::Ready(());
                };
                match self.push(to, kind, waiting) {
                    Ok(()) => return Poll::Ready(()),
                    Err(back) => m = Some(back),
                }
            }
            Poll::Pending
        })
        .await;
    }
}

/// A credit of a request that was not sent yet; dropping it gives it back.
struct Credit<'a, M>(&'a Peer<M>);

impl<M> Drop for Credit<'_, M> {
    fn drop(&mut self) {
        self.0.unanswered.set(self.0.unanswered.get() - 1);
        self.0.credit_back.notify();
    }
}

/// The right to wait for room; dropping it lets the next sender have it, also when the future that has it is dropped.
struct Turn<'a, M>(&'a Peer<M>);

impl<M> Drop for Turn<'_, M> {
    fn drop(&mut self) {
        self.0.sending.set(false);
        self.0.queue.notify();
    }
}

impl<M> std::fmt::Debug for Endpoint<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", &self.id)
            .field("reactors", &self.peers.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Waker;

    const PEER: ReactorId = ReactorId(1);

    fn pending(f: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        f.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[test]
    fn replies_have_room_when_nothing_else_has() {
        let ends = mesh::<u32>(2);
        for i in 0..CREDITS as u32 {
            ends[0].try_request(PEER, i).unwrap();
        }
        assert_eq!(ends[0].try_request(PEER, 0), Err(0), "no credit");
        assert_eq!(ends[0].try_send(PEER, 1), Err(1), "no room");
        // The other side fills the reverse ring, and can still answer everything.
        while ends[1].try_send(ReactorId(0), 7).is_ok() {}
        for i in 0..CREDITS as u32 {
            let Some((from, Received::Request(m))) = ends[1].try_receive() else {
                panic!("request {i} is missing")
            };
            assert_eq!(m, i);
            ends[1].reply(from, m);
        }
        let mut replies = 0;
        while let Some((_, received)) = ends[0].try_receive() {
            replies += usize::from(matches!(received, Received::Reply(_)));
        }
        assert_eq!(replies, CREDITS);
        ends[0].try_request(PEER, 0).unwrap();
    }

    #[test]
    fn nobody_passes_a_sender_that_waits_and_giving_up_returns_the_credit() {
        let ends = mesh::<u32>(2);
        while ends[0].try_send(PEER, 0).is_ok() {}
        {
            let mut waiting = pin!(ends[0].request(PEER, 1));
            assert!(pending(waiting.as_mut()));
            ends[1].try_receive().unwrap();
            assert_eq!(
                ends[0].try_send(PEER, 2),
                Err(2),
                "room, but somebody waits for it"
            );
        }
        for _ in 0..CREDITS {
            assert_eq!(ends[0].try_request(PEER, 3), Ok(()));
            ends[1].try_receive().unwrap();
        }
        assert_eq!(ends[0].try_request(PEER, 3), Err(3));
    }
}
