//! One look after the other: nodes that are away, replicas that are to be replaced, volumes that somebody is to serve for a while.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::decide::{Bad, Verdict, View, Why};
use super::errands::{AT_ONCE as ERRANDS, Begun};
use crate::coordination::Now;
use crate::error::OpError;
use crate::node::Node;
use crate::records::{AlertKind, AlertRecord, ClusterRecord, Severity, unix_ms};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(5);
/// Tasks that are begun by themselves, in the cluster at a time, and at one look: each takes room that the next look sees.
const AT_ONCE: usize = 8;
const AT_A_LOOK: usize = 2;

/// What whoever does it knows beside the records: nothing that another would miss.
#[derive(Debug, Default)]
pub struct Mending {
    errands: Begun,
}

/// What is said of replicas: by volume and replica.
type Said = BTreeMap<(Uuid, Uuid), (Severity, String)>;

/// Does it while this node is the one, until told to stop.
pub async fn keep_mending(node: Arc<Node>, mut stop: watch::Receiver<bool>) -> Option<OpError> {
    let key = node.registry.keys().replica_leader();
    let work = node.while_leading(&key, "replicas that are lost", || run(&node));
    tokio::select! {
        () = work => None,
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

async fn run(node: &Node) {
    let mut mending = Mending::default();
    loop {
        if let Err(error) = node.mend(&mut mending, unix_ms()).await {
            tracing::warn!(%error, "cannot see which replicas are lost");
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Node {
    /// One look, at this moment, given in ms since the Unix epoch.
    ///
    /// # Errors
    /// The records cannot be read. What is wrong with one volume is said as its alert.
    pub async fn mend(&self, mending: &mut Mending, now_unix_ms: u64) -> Result<(), OpError> {
        self.no_restore().await?;
        if !self.coordination.seen().complete {
            return Ok(());
        }
        let nodes = self.places().await?;
        let away = self.count_away(&nodes, now_unix_ms).await?;
        let after_s = self.options().await?.replace_after_s;
        let key = self.registry.keys().cluster();
        let cluster = self.registry.get::<ClusterRecord>(&key).await?;
        let generation = cluster.map_or(0, |c| c.record.generation);
        let volumes = self.coordination.seen().all();
        let standing = self.standing().await?;
        let unfit = |node: &str| standing.unfit(node).is_some();
        let view = |now| View {
            now,
            away: &away,
            unfit: &unfit,
            after_ms: (after_s > 0).then_some(after_s * 1000),
            generation,
            at_unix_ms: now_unix_ms,
        };
        let mut said = Said::new();
        let runs = |now: &&Now| {
            let task = now.task.as_ref().map(|t| &t.record);
            task.is_some_and(|t| t.automatic && !t.state.is_over())
        };
        let mut room = AT_ONCE.saturating_sub(volumes.iter().filter(runs).count());
        room = room.min(AT_A_LOOK);
        for now in &volumes {
            let view = view(now);
            let doing = match view.verdict() {
                Verdict::Well => continue,
                Verdict::Runs => Ok("another one is made".to_owned()),
                Verdict::Wait(why) => Err(why),
                Verdict::GiveUp(why) => {
                    self.give_up_replacing(now.id, &why).await?;
                    Err(why)
                }
                Verdict::Begin(_) if room == 0 => Ok("another one is made when others are".into()),
                Verdict::Begin(bad) => match self.replace(now, &bad).await {
                    Ok(on) => {
                        room -= 1;
                        Ok(format!("another one is made on node {on}"))
                    }
                    Err(error) => Err(error.to_string()),
                },
            };
            for bad in view.bad() {
                let id = (now.id, bad.replica.replica_id);
                said.insert(id, says(now, &bad, after_s, &doing));
            }
        }
        self.say_lost(&said).await?;
        self.begin_errands(mending, volumes.iter().map(view), now_unix_ms)
            .await
    }

    async fn replace(&self, now: &Now, bad: &Bad) -> Result<String, OpError> {
        let lost = matches!(bad.why, Why::Lost(_));
        let old = bad.replica.replica_id;
        let task = self.replace_replica(now.id, old, lost).await?;
        let on = task.new.map(|new| new.node_id).unwrap_or_default();
        tracing::warn!(
            volume = %now.id, replica = %old, node = bad.replica.node_id, why = ?bad.why, on,
            "a replica is replaced by itself"
        );
        Ok(on)
    }

    /// Alerts are as what is said now, and no count rises by looking.
    async fn say_lost(&self, said: &Said) -> Result<(), OpError> {
        let kind = AlertKind::ReplicaLost;
        let there = self.registry.alerts().await?;
        let there: Vec<&AlertRecord> = there
            .iter()
            .filter(|a| a.kind == kind && !a.cleared)
            .collect();
        for ((volume, replica), (severity, message)) in said {
            let (id, tag) = (volume.to_string(), replica.to_string());
            let same = |a: &&&AlertRecord| a.resource_id == id && a.tag == tag;
            if there.iter().find(same).map(|a| &a.message) != Some(message) {
                tracing::warn!(volume = id, message, "a replica is missing");
                self.raise_alert(kind, &id, &tag, *severity, message.clone())
                    .await?;
            }
        }
        // Of each replica by itself: another one of the volume may be missing still.
        let still = |a: &AlertRecord| {
            let mut all = said.keys();
            all.any(|(volume, replica)| {
                a.resource_id == volume.to_string() && a.tag == replica.to_string()
            })
        };
        if there.iter().all(|a| still(a)) {
            return Ok(());
        }
        self.clear_alerts(|a| a.kind == kind && !still(a)).await
    }

    async fn begin_errands<'a>(
        &self,
        mending: &mut Mending,
        views: impl Iterator<Item = View<'a>>,
        now_unix_ms: u64,
    ) -> Result<(), OpError> {
        let mut errands: HashMap<String, usize> = HashMap::new();
        let views: Vec<View> = views.collect();
        for now in views.iter().map(|v| v.now) {
            let errand = now.attachment.as_ref().filter(|a| a.record.errand);
            if let Some(errand) = errand {
                *errands.entry(errand.record.node_id.clone()).or_default() += 1;
            }
        }
        let mut room = ERRANDS.saturating_sub(errands.values().sum());
        let mut want = HashSet::new();
        for view in &views {
            let now = view.now;
            let served = now.attachment.is_some() && now.has_replica_work(|_| true);
            let wants = view.wants_errand();
            if wants || served {
                want.insert(now.id);
            }
            if !wants || room == 0 || !mending.errands.may(now.id, now_unix_ms) {
                continue;
            }
            let (Some(volume), Some(on)) = (&now.volume, view.errand_node(&errands)) else {
                continue;
            };
            mending.errands.begin(now.id, now_unix_ms);
            // Whoever attached it meanwhile, or deleted it, was first.
            if self.begin_errand(volume, &on).await? {
                tracing::info!(
                    volume = volume.record.name,
                    on,
                    "coordinated for its replicas"
                );
                *errands.entry(on).or_default() += 1;
                room -= 1;
            }
        }
        mending.errands.keep(|id| want.contains(id));
        Ok(())
    }
}

/// What operators are told.
fn says(now: &Now, bad: &Bad, after_s: u64, doing: &Result<String, String>) -> (Severity, String) {
    let name = now.volume.as_ref().map(|v| v.record.name.as_str());
    let node = &bad.replica.node_id;
    let what = match &bad.why {
        Why::Lost(error) => format!("is lost ({error})"),
        Why::Unusable(error) => format!("cannot be used ({error})"),
        Why::Away => format!("is on a node that has been away for {after_s} s"),
    };
    let (severity, doing) = match doing {
        Ok(doing) => (Severity::Warning, doing.clone()),
        Err(why) => (Severity::Alarm, format!("no other one is made now: {why}")),
    };
    let name = name.unwrap_or_default();
    let message = format!("volume {name}: the replica on node {node} {what}; {doing}");
    (severity, message)
}
