//! Whether a node is to take a volume from the one that it is attached to. Pure: times come in.
//!
//! | what is seen of the volume's node | waited for | then |
//! | --- | --- | --- |
//! | its key `alive/` is gone | nothing: the lease of the key was the wait | own replica is asked: a coordinator that it hears is left alone, as only its control process is away |
//! | it says that its data path is away | [`AWAY`] | taken |
//! | it has another data path than the epoch's, or has not taken an epoch since the volume was attached there | [`IDLE`] | taken |
//! | it takes over, and does not get to the end | [`STUCK`] | taken |
//! | it serves, and own replica, a member, hears nothing of it | [`UNHEARD`] | taken |
//!
//! Who takes it: the first node with a member, in the order of the record, whose data path can be used; each further one waits [`STAGGER`] longer,
//! so that one is enough. Two that take it at once compare the revision of the attachment, and K1 decides in any case.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Life, Now, incarnation};
use crate::replication::record::{Phase, ReplicaState, ReplicationRecord};

/// A data path that was restarted is there again sooner, and its volumes stay where they are.
pub const AWAY: Duration = Duration::from_millis(1500);
/// K1 takes a few ms: who has not done it by then has a reason that this node may not have.
pub const IDLE: Duration = Duration::from_secs(8);
/// A takeover waits for leases of 3 s, and for replicas that restarted 5 s.
pub const STUCK: Duration = Duration::from_secs(20);
/// Longer than the limit by which a coordinator excludes a member that it does not reach (2 s).
pub const UNHEARD: Duration = Duration::from_secs(6);
/// For each candidate that comes before.
pub const STAGGER: Duration = Duration::from_secs(1);
/// A coordinator beats five times in its lease of 3 s: two beats are missing.
pub const HEARD: Duration = Duration::from_millis(1500);
/// How soon it is looked again at a node whose coordinator is heard.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// Look again after this.
    Look(Duration),
    /// Take it.
    Take(&'static str),
}

/// What is looked at.
pub struct View<'a> {
    /// The volume.
    pub now: &'a Now,
    /// Nodes that live.
    pub alive: &'a BTreeMap<String, Life>,
    /// A node that is to get nothing new: it comes last, rather than nowhere.
    pub last: &'a dyn Fn(&str) -> bool,
    /// Since when the volume's node does not, if so.
    pub gone: Option<Instant>,
    /// How long ago this node's replica heard the coordinator; `None`: not known.
    pub heard: Option<Duration>,
    /// This node.
    pub me: &'a str,
    /// The time.
    pub at: Instant,
}

impl View<'_> {
    /// What this node is to do.
    pub fn verdict(&self) -> Verdict {
        let (Some(set), Some(attached)) = (&self.now.set, &self.now.attachment) else {
            return Verdict::Fine;
        };
        let holder = attached.record.node_id.as_str();
        let Some(rank) = self.rank(&set.record, holder) else {
            return Verdict::Fine;
        };
        let Some((since, patience, why)) = self.bad(&set.record, holder) else {
            return Verdict::Fine;
        };
        let due = since + patience + STAGGER * rank;
        if self.at < due {
            return Verdict::Look(due - self.at);
        }
        let lives = self.alive.contains_key(holder);
        if !lives && self.heard.is_some_and(|h| h < HEARD) {
            return Verdict::Look(AGAIN);
        }
        Verdict::Take(why)
    }

    /// How many come before this node; `None`: it is no candidate.
    fn rank(&self, set: &ReplicationRecord, holder: &str) -> Option<u32> {
        let usable = |node: &str| {
            let life = self.alive.get(node);
            life.is_some_and(|l| !l.says.incarnation.is_empty())
        };
        let members = set
            .replicas
            .iter()
            .filter(|r| r.state == ReplicaState::Member);
        let mut nodes: Vec<&str> = members.map(|r| r.node_id.as_str()).collect();
        nodes.retain(|n| *n != holder && usable(n));
        // Stable: otherwise in the order of the record.
        nodes.sort_by_key(|n| (self.last)(n));
        let at = nodes.iter().position(|n| *n == self.me)?;
        u32::try_from(at).ok()
    }

    /// Since when something is wrong, how long that may be, and what it is.
    fn bad(
        &self,
        set: &ReplicationRecord,
        node: &str,
    ) -> Option<(Instant, Duration, &'static str)> {
        let changed = self.now.set_since.max(self.now.attached_since)?;
        let Some(life) = self.alive.get(node) else {
            let gone = self.gone.unwrap_or(self.at).max(self.now.attached_since?);
            return Some((gone, Duration::ZERO, "its node does not live"));
        };
        if life.says.incarnation.is_empty() {
            let since = life.since.max(self.now.attached_since?);
            return Some((since, AWAY, "the data path of its node is away"));
        }
        let process = incarnation(&life.says.incarnation).ok();
        let holds = set
            .holder
            .as_ref()
            .is_some_and(|h| h.node_id == node && Some(h.incarnation) == process);
        if !holds {
            return Some((
                life.since.max(changed),
                IDLE,
                "its node does not take it over",
            ));
        }
        match set.phase {
            Phase::Taking => Some((changed, STUCK, "its node does not get to serve it")),
            Phase::Serving => {
                let heard = self.at.checked_sub(self.heard?)?;
                let since = heard.max(changed);
                (self.at - since > HEARD).then_some((
                    since,
                    UNHEARD,
                    "its coordinator is not heard",
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{AliveRecord, AttachmentRecord, PathState, Versioned};
    use crate::replication::record::{Holder, Token};
    use crate::replication::transition::{self, Coordinator};
    use std::sync::Arc;
    use uuid::Uuid;

    const ID: Uuid = Uuid::from_u128(9);

    fn process(node: u8) -> Token {
        Token([node; 16])
    }

    /// Three replicas on n1 to n3, served by n1.
    fn served() -> ReplicationRecord {
        let replica = |n: u8| (Uuid::from_u128(n.into()), format!("n{n}"), ID);
        let new = ReplicationRecord::new(0, [1, 2, 3].map(replica), 2, 3).unwrap();
        let holder = Holder {
            node_id: "n1".into(),
            incarnation: process(1),
            attempt: Token([9; 16]),
        };
        let taken = transition::take(&new, 0, holder).unwrap();
        let by = Coordinator {
            epoch: taken.epoch,
            incarnation: process(1),
            attempt: Token([9; 16]),
        };
        transition::serve(&taken, by, &taken.members.clone(), &[]).unwrap()
    }

    struct World {
        set: ReplicationRecord,
        alive: BTreeMap<String, Life>,
        start: Instant,
        gone: Option<Instant>,
        heard: Option<Duration>,
        /// It is cordoned.
        last: Option<&'static str>,
    }

    impl World {
        fn new() -> Self {
            let start = Instant::now();
            let life = |n: u8| {
                let says = AliveRecord {
                    pid: 1,
                    incarnation: Uuid::from_bytes(process(n).0).to_string(),
                    pools: Vec::new(),
                };
                (format!("n{n}"), Life { says, since: start })
            };
            let set = served();
            let alive = [1, 2, 3].map(life).into();
            Self {
                set,
                alive,
                start,
                gone: None,
                heard: None,
                last: None,
            }
        }

        /// What a node is to do some time after the start.
        fn verdict(&self, me: &str, after_ms: u64) -> Verdict {
            let attachment = AttachmentRecord {
                volume_id: ID,
                node_id: "n1".into(),
                subsystem_of: ID,
                nsid: 1,
                path_state: PathState::Optimized,
                attached_unix_ms: 1,
                moved_from: None,
                errand: false,
            };
            let at = |record| Versioned {
                record,
                revision: 1,
            };
            let now = Now {
                id: ID,
                volume: None,
                set: Some(Arc::new(Versioned {
                    record: self.set.clone(),
                    revision: 1,
                })),
                set_since: Some(self.start),
                attachment: Some(Arc::new(at(attachment))),
                attached_since: Some(self.start),
                replicas: BTreeMap::new(),
                task: None,
                snapshots: Vec::new(),
            };
            View {
                now: &now,
                alive: &self.alive,
                last: &|node| self.last == Some(node),
                gone: self.gone,
                heard: self.heard,
                me,
                at: self.start + Duration::from_millis(after_ms),
            }
            .verdict()
        }
    }

    fn takes(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Take(_))
    }

    #[tokio::test]
    async fn what_is_served_stays() {
        let mut w = World::new();
        for heard in [None, Some(Duration::ZERO), Some(HEARD)] {
            w.heard = heard;
            assert_eq!(w.verdict("n2", 3_600_000), Verdict::Fine);
        }
    }

    #[tokio::test]
    async fn a_dead_node_is_followed_by_the_first_with_a_member_and_the_next_a_moment_later() {
        let mut w = World::new();
        w.alive.remove("n1");
        w.gone = Some(w.start + Duration::from_secs(9));
        assert!(takes(w.verdict("n2", 9_000)));
        assert_eq!(w.verdict("n3", 9_000), Verdict::Look(STAGGER));
        assert!(takes(w.verdict("n3", 10_000)));
        assert_eq!(w.verdict("n1", 99_000), Verdict::Fine, "it is its own");
        assert_eq!(w.verdict("n4", 99_000), Verdict::Fine, "it has no member");
        // One that is to get nothing new comes last, but comes.
        w.last = Some("n2");
        assert!(takes(w.verdict("n3", 9_000)));
        assert_eq!(w.verdict("n2", 9_000), Verdict::Look(STAGGER));
        assert!(takes(w.verdict("n2", 10_000)));
        w.last = None;
        // The first one is dead, too, or has no data path.
        w.alive.get_mut("n2").unwrap().says.incarnation.clear();
        assert!(takes(w.verdict("n3", 9_000)));
        assert_eq!(w.verdict("n2", 99_000), Verdict::Fine);
    }

    #[tokio::test]
    async fn a_coordinator_that_is_heard_goes_on_without_its_control_process() {
        let mut w = World::new();
        w.alive.remove("n1");
        w.gone = Some(w.start);
        w.heard = Some(Duration::from_millis(600));
        assert_eq!(w.verdict("n2", 60_000), Verdict::Look(AGAIN));
        w.heard = Some(HEARD);
        assert!(takes(w.verdict("n2", 60_000)));
    }

    #[tokio::test]
    async fn a_data_path_that_is_away_gets_a_moment_and_one_that_was_restarted_keeps_its_volumes() {
        let mut w = World::new();
        let life = w.alive.get_mut("n1").unwrap();
        life.says.incarnation.clear();
        life.since = w.start + Duration::from_secs(1);
        assert_eq!(w.verdict("n2", 1_000), Verdict::Look(AWAY));
        assert!(takes(w.verdict("n2", 2_500)));
        let life = w.alive.get_mut("n1").unwrap();
        life.says.incarnation = Uuid::from_u128(77).to_string();
        life.since = w.start + Duration::from_secs(2);
        assert_eq!(w.verdict("n2", 2_000), Verdict::Look(IDLE));
        assert!(takes(w.verdict("n2", 10_000)));
    }

    #[tokio::test]
    async fn a_coordinator_that_is_not_heard_or_does_not_get_there_is_followed() {
        let mut w = World::new();
        w.heard = Some(Duration::from_secs(2));
        assert_eq!(
            w.verdict("n2", 60_000),
            Verdict::Look(UNHEARD - Duration::from_secs(2))
        );
        w.heard = Some(UNHEARD);
        assert!(takes(w.verdict("n2", 60_000)));
        assert!(
            !takes(w.verdict("n2", 5_000)),
            "it serves since a moment only"
        );
        let holder = Holder {
            node_id: "n1".into(),
            incarnation: process(1),
            attempt: Token([8; 16]),
        };
        w.set = transition::take(&w.set, 0, holder).unwrap();
        assert_eq!(w.verdict("n2", 0), Verdict::Look(STUCK));
        assert!(takes(w.verdict("n2", 20_000)));
    }
}
