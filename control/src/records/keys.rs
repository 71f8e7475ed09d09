//! The keys of the records (`docs/kvdb.md`).
use uuid::Uuid;

/// Keys of one cluster.
#[derive(Debug, Clone)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// Those of the cluster of that id.
    pub fn new(cluster_id: &str) -> Self {
        Self {
            root: format!("/{cluster_id}/"),
        }
    }

    /// Everything.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The cluster.
    pub fn cluster(&self) -> String {
        format!("{}cluster", self.root)
    }

    /// That a backup is being put back.
    pub fn restore(&self) -> String {
        format!("{}restore", self.root)
    }

    /// Who takes scheduled snapshots.
    pub fn schedule_leader(&self) -> String {
        format!("{}leaders/schedules", self.root)
    }

    /// Who has lost replicas made again.
    pub fn replica_leader(&self) -> String {
        format!("{}leaders/replicas", self.root)
    }

    /// Who has replicas moved for rebalances.
    pub fn rebalance_leader(&self) -> String {
        format!("{}leaders/rebalances", self.root)
    }

    /// All rebalances.
    pub fn rebalances(&self) -> String {
        format!("{}rebalances/", self.root)
    }

    /// A rebalance.
    pub fn rebalance(&self, job_id: Uuid) -> String {
        format!("{}{job_id}", self.rebalances())
    }

    /// The id of the rebalance that is not over.
    pub fn rebalance_active(&self) -> String {
        format!("{}rebalance-active", self.root)
    }

    /// When rebalances begin by themselves.
    pub fn rebalance_schedule(&self) -> String {
        format!("{}rebalance-schedule", self.root)
    }

    /// What was said for the whole cluster.
    pub fn options(&self) -> String {
        format!("{}options", self.root)
    }

    /// How long nodes are away.
    pub fn away_all(&self) -> String {
        format!("{}away/", self.root)
    }

    /// How long a node is away.
    pub fn away(&self, node_id: &str) -> String {
        format!("{}{node_id}", self.away_all())
    }

    /// All schedule policies.
    pub fn policies(&self) -> String {
        format!("{}sched-policies/", self.root)
    }

    /// A schedule policy.
    pub fn policy(&self, name: &str) -> String {
        format!("{}{name}", self.policies())
    }

    /// Schedules of all volumes.
    pub fn schedules(&self) -> String {
        format!("{}schedules/", self.root)
    }

    /// The schedules of a volume.
    pub fn schedule(&self, volume_id: Uuid) -> String {
        format!("{}{volume_id}", self.schedules())
    }

    /// All roles that people made.
    pub fn roles(&self) -> String {
        format!("{}roles/", self.root)
    }

    /// A role.
    pub fn role(&self, name: &str) -> String {
        format!("{}{name}", self.roles())
    }

    /// All nodes.
    pub fn nodes(&self) -> String {
        format!("{}nodes/", self.root)
    }

    /// A node.
    pub fn node(&self, node_id: &str) -> String {
        format!("{}{node_id}", self.nodes())
    }

    /// How long deleted volumes are kept.
    pub fn trash_options(&self) -> String {
        format!("{}trashcan", self.root)
    }

    /// What pools may be asked for.
    pub fn placement_limits(&self) -> String {
        format!("{}placement-limits", self.root)
    }

    /// Counts placements, so that no two are chosen from the same state.
    pub fn placements(&self) -> String {
        format!("{}placements", self.root)
    }

    /// What is wanted of all nodes.
    pub fn members(&self) -> String {
        format!("{}members/", self.root)
    }

    /// What is wanted of a node.
    pub fn member(&self, node_id: &str) -> String {
        format!("{}{node_id}", self.members())
    }

    /// The check of the cluster's token.
    pub fn token(&self) -> String {
        format!("{}token", self.root)
    }

    /// What datagrams between nodes are signed with.
    pub fn gossip(&self) -> String {
        format!("{}gossip/secret", self.root)
    }

    /// Who does what is wanted of nodes.
    pub fn member_leader(&self) -> String {
        format!("{}leaders/membership", self.root)
    }

    /// All nodes that live.
    pub fn alive_all(&self) -> String {
        format!("{}alive/", self.root)
    }

    /// That a node lives.
    pub fn alive(&self, node_id: &str) -> String {
        format!("{}{node_id}", self.alive_all())
    }

    /// What nodes said that they have since a restore of the KVDB.
    pub fn looked_all(&self) -> String {
        format!("{}looked/", self.root)
    }

    /// What a node has.
    pub fn looked(&self, node_id: &str) -> String {
        format!("{}{node_id}", self.looked_all())
    }

    /// A pool.
    pub fn pool(&self, pool_id: Uuid) -> String {
        format!("{}{pool_id}", self.pools())
    }

    /// All pools.
    pub fn pools(&self) -> String {
        format!("{}pools/", self.root)
    }

    /// All volumes.
    pub fn volumes(&self) -> String {
        format!("{}volumes/", self.root)
    }

    /// A volume.
    pub fn volume(&self, volume_id: Uuid) -> String {
        format!("{}{volume_id}", self.volumes())
    }

    /// All snapshots.
    pub fn snapshots(&self) -> String {
        format!("{}snapshots/", self.root)
    }

    /// A snapshot.
    pub fn snapshot(&self, snapshot_id: Uuid) -> String {
        format!("{}{snapshot_id}", self.snapshots())
    }

    /// Scans of a pool: the schedule, and what the last one found.
    pub fn scan(&self, pool_id: Uuid) -> String {
        format!("{}scans/{pool_id}", self.root)
    }

    /// All alerts.
    pub fn alerts(&self) -> String {
        format!("{}alerts/", self.root)
    }

    /// An alert.
    pub fn alert(&self, id: i64) -> String {
        format!("{}{id:016x}", self.alerts())
    }

    /// The id of the volume or snapshot of that name.
    pub fn volume_name(&self, name: &str) -> String {
        format!("{}volume-names/{name}", self.root)
    }

    /// All attachments.
    pub fn attachments(&self) -> String {
        format!("{}attachments/", self.root)
    }

    /// Where a volume is attached.
    pub fn attachment(&self, volume_id: Uuid) -> String {
        format!("{}{volume_id}", self.attachments())
    }

    /// Controller ids of a volume's subsystem.
    pub fn cntlids(&self, volume_id: Uuid) -> String {
        format!("{}cntlids/{volume_id}", self.root)
    }

    /// Who coordinates volumes.
    pub fn replications(&self) -> String {
        format!("{}replication/", self.root)
    }

    /// Replicas of a volume, and who coordinates them.
    pub fn replication(&self, volume_id: Uuid) -> String {
        format!("{}{volume_id}", self.replications())
    }

    /// What has become of the replicas of a volume.
    pub fn replicas(&self, volume_id: Uuid) -> String {
        format!("{}replicas/{volume_id}/", self.root)
    }

    /// What has become of a replica.
    pub fn replica(&self, volume_id: Uuid, replica_id: Uuid) -> String {
        format!("{}{replica_id}", self.replicas(volume_id))
    }

    /// Data keys of encrypted volumes.
    pub fn secrets(&self) -> String {
        format!("{}secrets/", self.root)
    }

    /// Data keys of a volume.
    pub fn secret(&self, volume_id: Uuid) -> String {
        format!("{}{volume_id}", self.secrets())
    }

    /// The task that changes the replicas of a volume, or the last one that did.
    pub fn task(&self, volume_id: Uuid) -> String {
        format!("{}tasks/{volume_id}", self.root)
    }

    /// Reservations of a volume.
    pub fn reservation(&self, volume_id: Uuid) -> String {
        format!("{}reservations/{volume_id}", self.root)
    }
}
