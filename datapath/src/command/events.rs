//! Events on their way to the control process: from reactors and drives into one bounded queue, from there to whoever watches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keelblock_api::datapath::event::What;
use keelblock_api::datapath::pool_space_low::Level;
use keelblock_api::datapath::{self as proto, Event};
use tokio::sync::{Mutex, mpsc, watch};
use tonic::Status;

use crate::nvmf::seam::TargetEvent;
use crate::reactor::ReactorId;
use crate::store::engine::{Damage, DamageKind};
use crate::store::pool::PoolSpace;
use crate::store::{Name, VolumeId};

/// Events that wait for a watcher. Those of the target wait on reactor 0 beyond that; drive and task reports beyond it are only logged.
const EVENTS_MAX: usize = 1024;

/// Between reports of damage in one volume on one drive; the drive's counters have all.
const DAMAGE_INTERVAL: Duration = Duration::from_millis(250);
/// Volumes of which it is remembered when damage was reported last.
const DAMAGE_VOLUMES: usize = 1024;

type Told = BTreeMap<(String, Option<VolumeId>), Instant>;

/// Where events go in. Can be used on any thread.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: mpsc::Sender<Event>,
    /// When damage was reported last, by drive and volume.
    damage: Arc<std::sync::Mutex<Told>>,
}

/// Where events come out: one watcher at a time.
#[derive(Clone, Debug)]
pub struct Events {
    queue: Arc<Mutex<mpsc::Receiver<Event>>>,
    /// Number of the watcher that is served; a newer one ends it.
    turn: watch::Sender<u64>,
}

/// Makes the queue.
pub fn channel() -> (EventSink, Events) {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let events = Events {
        queue: Arc::new(Mutex::new(receiver)),
        turn: watch::Sender::new(0),
    };
    let sink = EventSink {
        queue: sender,
        damage: Arc::default(),
    };
    (sink, events)
}

impl EventSink {
    /// A drive takes no more writes.
    pub fn drive_failed(&self, drive_id: &str, error: &str) {
        self.report(What::DriveFailed(proto::DriveFailed {
            drive_id: drive_id.to_owned(),
            error: error.to_owned(),
        }));
    }

    /// Something on a drive is not what was written there, or cannot be read. Of a volume, one in a while is told of.
    pub fn damage(&self, drive_id: &str, damage: &Damage) {
        if !self.tells_of(drive_id, damage.volume) {
            return;
        }
        let (drive_id, lane) = (drive_id.to_owned(), u32::from(damage.lane));
        let volume_id = damage.volume.map_or_else(String::new, |v| v.to_string());
        let block = damage.block;
        let physical_block = damage.at.map_or(0, |at| at.0);
        let metadata = matches!(damage.kind, DamageKind::Page { .. });
        self.report(match damage.kind {
            DamageKind::Data { expected, actual } | DamageKind::Page { expected, actual } => {
                What::ChecksumError(proto::ChecksumError {
                    drive_id,
                    volume_id,
                    lane,
                    block,
                    expected: expected.0,
                    actual: actual.0,
                    physical_block,
                    metadata,
                })
            }
            DamageKind::Unreadable => What::ReadError(proto::ReadError {
                drive_id,
                volume_id,
                lane,
                block,
            }),
        });
    }

    fn tells_of(&self, drive_id: &str, volume: Option<VolumeId>) -> bool {
        let now = Instant::now();
        let recent = |last: &Instant| now.duration_since(*last) < DAMAGE_INTERVAL;
        let mut told = match self.damage.lock() {
            Ok(told) => told,
            Err(poisoned) => poisoned.into_inner(),
        };
        let key = (drive_id.to_owned(), volume);
        if told.get(&key).is_some_and(recent) {
            return false;
        }
        if told.len() >= DAMAGE_VOLUMES {
            told.retain(|_, last| recent(last));
        }
        told.insert(key, now);
        true
    }

    /// Nothing is left on a drive.
    pub fn drive_evacuated(&self, pool: &Name, drive: &Name) {
        self.report(What::DriveEvacuated(proto::DriveEvacuated {
            pool_id: pool.to_string(),
            drive_id: drive.to_string(),
        }));
    }

    /// A scrub has ended.
    pub fn scrub_done(&self, status: proto::ScrubStatus) {
        self.report(What::ScrubDone(status));
    }

    /// A pool has become short of space, or is not any more.
    pub fn pool_space(&self, pool: &Name, level: Level, space: PoolSpace) {
        self.report(What::PoolSpaceLow(proto::PoolSpaceLow {
            pool_id: pool.to_string(),
            level: level.into(),
            total_bytes: space.total,
            free_bytes: space.free,
        }));
    }

    /// A coordinator asks for a change of its record; lost, it is asked for again.
    pub fn set_change(&self, change: Option<proto::SetChange>) {
        match change {
            Some(change) => self.report(What::SetChange(change)),
            None => tracing::error!("a coordinator adds a replica that nobody asked it to add"),
        }
    }

    /// Where a coordinator is.
    pub fn coordinator(&self, status: proto::Coordinator) {
        self.report(What::Coordinator(status));
    }

    /// A task held its core for too long.
    pub fn task_stalled(&self, reactor: ReactorId, task: &str, held: Duration) {
        self.report(What::TaskStalled(proto::TaskStalled {
            reactor: u32::from(reactor.0),
            task: task.to_owned(),
            held_us: u64::try_from(held.as_micros()).unwrap_or(u64::MAX),
        }));
    }

    /// An event of the target; waits for room.
    pub async fn target(&self, event: TargetEvent) {
        // No receiver: the process is ending.
        let _ = self.queue.send(stamped(of_target(event))).await;
    }

    fn report(&self, what: What) {
        if self.queue.try_send(stamped(what)).is_err() {
            tracing::warn!(
                "an event was not kept for the control process: {EVENTS_MAX} are waiting"
            );
        }
    }
}

impl Events {
    /// Serves a new watcher; the one before it is told that it was replaced. The stream also ends when the watcher goes away.
    pub fn watch(&self) -> mpsc::Receiver<Result<Event, Status>> {
        // One event on its way: what a watcher that dies leaves behind is at most that.
        let (to_watcher, stream) = mpsc::channel(1);
        let mut mine = 0;
        self.turn.send_modify(|turn| {
            *turn += 1;
            mine = *turn;
        });
        let (queue, mut turn) = (Arc::clone(&self.queue), self.turn.subscribe());
        tokio::spawn(async move {
            let replaced = async {
                // An error means that the process is ending.
                let _ = turn.wait_for(|&now| now != mine).await;
            };
            tokio::select! {
                biased;
                () = replaced => {
                    let _ = to_watcher.try_send(Err(Status::aborted("another Watch has begun")));
                }
                () = pump(&queue, &to_watcher) => {}
            }
        });
        stream
    }
}

/// Moves events until the watcher is gone. An event is taken only when there is room for it, so none is lost by being replaced.
async fn pump(
    queue: &Mutex<mpsc::Receiver<Event>>,
    to_watcher: &mpsc::Sender<Result<Event, Status>>,
) {
    let mut queue = queue.lock().await;
    while let Ok(room) = to_watcher.reserve().await {
        let event = tokio::select! {
            () = to_watcher.closed() => return,
            event = queue.recv() => event,
        };
        match event {
            Some(event) => room.send(Ok(event)),
            None => return,
        }
    }
}

fn stamped(what: What) -> Event {
    Event {
        unix_ms: unix_ms(),
        what: Some(what),
    }
}

/// Milliseconds since 1970, for people.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn of_target(event: TargetEvent) -> What {
    let host = |nqn: Arc<str>, host_nqn, peer: std::net::SocketAddr| proto::HostEvent {
        nqn: nqn.to_string(),
        host_nqn,
        peer: peer.to_string(),
    };
    match event {
        TargetEvent::ReservationChanged {
            nqn,
            nsid,
            generation,
            state,
        } => What::Reservation(proto::ReservationChanged {
            nqn: nqn.to_string(),
            nsid,
            generation,
            state,
        }),
        TargetEvent::HostConnected {
            nqn,
            host_nqn,
            peer,
        } => What::HostConnected(host(nqn, host_nqn, peer)),
        TargetEvent::HostDisconnected {
            nqn,
            host_nqn,
            peer,
        } => What::HostDisconnected(host(nqn, host_nqn, peer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::types::{Crc, PhysicalBlock};

    fn drive_of(event: Option<Result<Event, Status>>) -> String {
        match event.unwrap().unwrap().what.unwrap() {
            What::DriveFailed(f) => f.drive_id,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_new_watcher_ends_the_former_and_gets_what_waits() {
        let (sink, events) = channel();
        let mut first = events.watch();
        sink.drive_failed("a", "");
        assert_eq!(drive_of(first.recv().await), "a");
        let mut second = events.watch();
        let end = first.recv().await.unwrap();
        assert_eq!(end.unwrap_err().code(), tonic::Code::Aborted);
        sink.drive_failed("b", "");
        assert_eq!(drive_of(second.recv().await), "b");
        drop(second);
        sink.drive_failed("c", "");
        assert_eq!(drive_of(events.watch().recv().await), "c");
    }

    #[tokio::test]
    async fn damage_is_told_of_once_in_a_while_for_each_volume() {
        let (sink, events) = channel();
        let (expected, actual) = (Crc(1), Crc(2));
        let damage = |volume: u8, block| Damage {
            volume: Some(VolumeId([volume; 16])),
            lane: 3,
            block,
            at: Some(PhysicalBlock(77)),
            kind: DamageKind::Page { expected, actual },
        };
        for block in 0..1000 {
            sink.damage("d", &damage(1, block));
        }
        let unreadable = Damage {
            kind: DamageKind::Unreadable,
            ..damage(2, 5)
        };
        sink.damage("d", &unreadable);
        sink.damage("e", &damage(1, 9));
        sink.drive_failed("end", "");
        let mut watcher = events.watch();
        let mut told = Vec::new();
        loop {
            match watcher.recv().await.unwrap().unwrap().what.unwrap() {
                What::ChecksumError(e) => {
                    assert!(e.metadata);
                    assert_eq!((e.lane, e.expected, e.actual), (3, 1, 2));
                    assert_eq!(e.physical_block, 77);
                    told.push((e.drive_id, e.volume_id, e.block));
                }
                What::ReadError(e) => told.push((e.drive_id, e.volume_id, e.block)),
                _ => break,
            }
        }
        let id = |volume| VolumeId([volume; 16]).to_string();
        let expected = [("d", id(1), 0), ("d", id(2), 5), ("e", id(1), 9)];
        assert_eq!(told, expected.map(|(d, v, b)| (d.to_owned(), v, b)));
        let later = Instant::now() + 2 * DAMAGE_INTERVAL;
        while Instant::now() < later {
            tokio::time::sleep(DAMAGE_INTERVAL).await;
        }
        sink.damage("d", &damage(1, 8));
        let again = watcher.recv().await.unwrap().unwrap().what;
        assert!(matches!(again, Some(What::ChecksumError(e)) if e.block == 8));
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_keeps_the_oldest() {
        let (sink, events) = channel();
        for n in 0..EVENTS_MAX + 10 {
            sink.drive_failed(&n.to_string(), "");
        }
        let mut watcher = events.watch();
        for n in 0..EVENTS_MAX {
            assert_eq!(drive_of(watcher.recv().await), n.to_string());
        }
    }
}
