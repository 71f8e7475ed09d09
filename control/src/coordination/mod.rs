//! Replicated volumes, as this node has a part in them (`docs/replication.md`).
//!
//! `seen` is what the KVDB says, kept current by one watch; `told` is what the data path was told and reports. For each volume that changed one *actor* (`actor`)
//! compares the two and does what is missing: replicas of this node (`replicas`), the path that hosts have here, and, if the volume is attached to
//! this node, K1 and serving (`serve`). When the node of a volume is dead another takes it (`failover`, `takeover`). `changes` answers what coordinators ask for
//! (K2 to K6), `tasks` says what a change of the replicas needs next and `ha` does it, `sizes` follows its size, `snapshots` has them taken and deleted, `groups` those of several volumes at one moment, `clones` those that are for one, `restores` sets it back to one, `kept` keeps them when it is deleted, `errands` has it coordinated for that while it is attached nowhere, `connect` begins with a data path, `place` chooses nodes by what `provisioned` counts, `alive` says that this node lives, `watchers` are told when a volume may be shown otherwise. Nothing here waits for the changes of `node`, nor holds them up.

mod actor;
mod alive;
mod changes;
mod clones;
mod connect;
mod errands;
mod failover;
mod groups;
mod ha;
mod kept;
mod manager;
mod now;
pub(crate) mod place;
mod provisioned;
mod replicas;
mod restores;
mod seen;
mod serve;
mod sizes;
mod snapshots;
mod takeover;
pub(crate) mod tasks;
mod told;
mod wait;
mod watchers;

pub(crate) use alive::stay_alive;
pub(crate) use manager::{Pokes, coordinate};
pub(crate) use now::{Beside, Kept, Now};
pub(crate) use seen::{Life, Seen};
pub(crate) use told::Told;
pub(crate) use watchers::{Look, Watcher, Watchers, ending};

use crate::error::OpError;
use crate::replication::record::Token;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

/// State of a coordinator on its data path that a change is being made for: volume, epoch, version.
type Asked = (Uuid, u32, u64);

/// What this node knows and does about replicated volumes.
#[derive(Debug)]
pub struct Coordination {
    seen: Mutex<Seen>,
    told: Mutex<Told>,
    /// Changes of the record that are under way.
    asked: Mutex<HashSet<Asked>>,
    /// Why a volume is not as it is to be, as far as this node can tell.
    trouble: Mutex<HashMap<Uuid, String>>,
    /// Counts changes of what is seen or told, for those who wait.
    changed: watch::Sender<u64>,
    pokes: mpsc::UnboundedSender<Uuid>,
    /// The data path is to be told who the nodes are.
    nodes: Notify,
    /// Something is wanted of a member.
    members: Notify,
    /// Snapshots of several volumes at one moment: since when they are known.
    groups: Mutex<HashMap<Uuid, Instant>>,
    /// Replicas are looked at, made and deleted one at a time.
    looking: tokio::sync::Mutex<()>,
    /// Who wants to hear when volumes are shown otherwise.
    pub(crate) watchers: Arc<Watchers>,
}

impl Coordination {
    /// Nothing is known yet. The other half is [`coordinate`]'s.
    pub fn new() -> (Self, Pokes) {
        let (pokes, poked) = mpsc::unbounded_channel();
        let new = Self {
            seen: Mutex::default(),
            told: Mutex::default(),
            asked: Mutex::default(),
            trouble: Mutex::default(),
            changed: watch::Sender::new(0),
            pokes,
            nodes: Notify::new(),
            members: Notify::new(),
            groups: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            watchers: Arc::default(),
        };
        (new, Pokes(poked))
    }

    /// What the KVDB says. Not to be held over an await.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing that holds the lock can panic.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the data path was told. Not to be held over an await.
    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, HashSet<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<Uuid, Instant>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn troubles(&self) -> MutexGuard<'_, HashMap<Uuid, String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a volume looked at.
    pub(crate) fn poke(&self, volume: Uuid) {
        // Without a receiver the process is ending.
        let _ = self.pokes.send(volume);
    }

    /// Has all volumes looked at, those that only the data path knows too.
    pub(crate) fn poke_all(&self) {
        let all = self.volume_ids();
        all.into_iter().for_each(|id| self.poke(id));
    }

    /// All volumes, those that only the data path knows too.
    fn volume_ids(&self) -> Vec<Uuid> {
        let mut all: HashSet<Uuid> = self.seen().volume_ids().collect();
        all.extend(self.told().volume_ids());
        all.into_iter().collect()
    }

    /// Tells those who wait that something has changed.
    pub(crate) fn stir(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Nodes are others than before, or a connection has begun that may not know all.
    fn nodes_changed(&self) {
        self.nodes.notify_one();
    }

    async fn until_nodes_changed(&self) {
        self.nodes.notified().await;
    }

    /// Something is wanted of a member.
    pub(crate) fn members_changed(&self) {
        self.members.notify_one();
    }

    /// Waits until something is wanted of a member.
    pub(crate) async fn until_members_changed(&self) {
        self.members.notified().await;
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Why a volume is not as it is to be; `None`: it is, or nothing is known.
    pub(crate) fn trouble(&self, volume: Uuid) -> Option<String> {
        self.troubles().get(&volume).cloned()
    }

    fn set_trouble(&self, volume: Uuid, why: Option<String>) {
        let mut all = self.troubles();
        match why {
            Some(why) => drop(all.insert(volume, why)),
            None => drop(all.remove(&volume)),
        }
    }
}

/// The token of a data path's incarnation.
pub(crate) fn incarnation(text: &str) -> Result<Token, OpError> {
    let id = Uuid::try_parse(text);
    let id = id.map_err(|_| {
        OpError::Internal(format!(
            "the data path calls itself {text}, which is no incarnation"
        ))
    })?;
    Ok(Token(id.into_bytes()))
}
