//! Paths of the SDK's REST gateway and the methods behind them. `{field}` in a path is a field of the request; of the others, GET
//! and DELETE have them in the query, POST and PUT in the body.

/// HTTP methods that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Reads.
    Get,
    /// Makes, or reads with a body.
    Post,
    /// Changes.
    Put,
    /// Deletes.
    Delete,
}

impl Verb {
    /// As HTTP writes it.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Post => "POST",
            Verb::Put => "PUT",
            Verb::Delete => "DELETE",
        }
    }
}

/// A method with its path.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// HTTP method.
    pub verb: Verb,
    /// Path.
    pub path: &'static str,
    /// Service, without `openstorage.api.OpenStorage`.
    pub service: &'static str,
    /// Method of the service.
    pub method: &'static str,
}

const fn route(
    verb: Verb,
    path: &'static str,
    service: &'static str,
    method: &'static str,
) -> Route {
    Route {
        verb,
        path,
        service,
        method,
    }
}

use Verb::{Delete, Get, Post, Put};

/// All routes, those included whose methods are not there yet.
pub const ROUTES: [Route; 96] = [
    route(
        Get,
        "/v1/identities/capabilities",
        "Identity",
        "Capabilities",
    ),
    route(Get, "/v1/identities/version", "Identity", "Version"),
    route(
        Get,
        "/v1/clusters/inspectcurrent",
        "Cluster",
        "InspectCurrent",
    ),
    route(Get, "/v1/nodes", "Node", "Enumerate"),
    route(Get, "/v1/nodes/filters", "Node", "EnumerateWithFilters"),
    route(Get, "/v1/nodes/inspect/{node_id}", "Node", "Inspect"),
    route(Get, "/v1/nodes/inspectcurrent", "Node", "InspectCurrent"),
    route(
        Get,
        "/v1/nodes/usage/{node_id}",
        "Node",
        "VolumeUsageByNode",
    ),
    route(Post, "/v1/nodes/bytesused", "Node", "VolumeBytesUsedByNode"),
    route(
        Put,
        "/v1/nodes/attachments/drain/{node_id}",
        "Node",
        "DrainAttachments",
    ),
    route(
        Put,
        "/v1/nodes/attachments/disable/{node_id}",
        "Node",
        "CordonAttachments",
    ),
    route(
        Put,
        "/v1/nodes/attachments/enable/{node_id}",
        "Node",
        "UncordonAttachments",
    ),
    route(Post, "/v1/volumes", "Volume", "Create"),
    route(Get, "/v1/volumes", "Volume", "Enumerate"),
    route(Post, "/v1/volumes/clone", "Volume", "Clone"),
    route(
        Post,
        "/v1/volumes/filters",
        "Volume",
        "EnumerateWithFilters",
    ),
    route(Get, "/v1/volumes/inspect/{volume_id}", "Volume", "Inspect"),
    route(
        Post,
        "/v1/volumes/inspectwithfilters",
        "Volume",
        "InspectWithFilters",
    ),
    route(Put, "/v1/volumes/{volume_id}", "Volume", "Update"),
    route(Delete, "/v1/volumes/{volume_id}", "Volume", "Delete"),
    route(Get, "/v1/volumes/stats/{volume_id}", "Volume", "Stats"),
    route(
        Get,
        "/v1/volumes/usage/{volume_id}",
        "Volume",
        "CapacityUsage",
    ),
    route(Post, "/v1/volumes/snapshots", "Volume", "SnapshotCreate"),
    route(Get, "/v1/volumes/snapshots", "Volume", "SnapshotEnumerate"),
    route(
        Post,
        "/v1/volumes/snapshots/restore",
        "Volume",
        "SnapshotRestore",
    ),
    route(
        Post,
        "/v1/volumes/snapshots/filters/{volume_id}",
        "Volume",
        "SnapshotEnumerateWithFilters",
    ),
    route(
        Post,
        "/v1/volumes/snapshot/schedules/{volume_id}",
        "Volume",
        "SnapshotScheduleUpdate",
    ),
    route(Post, "/v1/volume/catalog", "Volume", "VolumeCatalog"),
    route(Post, "/v1/mountattach/attach", "MountAttach", "Attach"),
    route(Post, "/v1/mountattach/detach", "MountAttach", "Detach"),
    route(Post, "/v1/mountattach/mount", "MountAttach", "Mount"),
    route(Post, "/v1/mountattach/unmount", "MountAttach", "Unmount"),
    route(Put, "/v1/storagepools/resize/{uuid}", "Pool", "Resize"),
    route(Put, "/v1/storagepools/rebalance", "Pool", "Rebalance"),
    route(
        Put,
        "/v1/storagepools/rebalance/job/{id}",
        "Pool",
        "UpdateRebalanceJobState",
    ),
    route(
        Get,
        "/v1/storagepools/rebalance/job/{id}",
        "Pool",
        "GetRebalanceJobStatus",
    ),
    route(
        Get,
        "/v1/storagepools/rebalance/job",
        "Pool",
        "EnumerateRebalanceJobs",
    ),
    route(
        Post,
        "/v1/storagepools/rebalance/schedule",
        "Pool",
        "CreateRebalanceSchedule",
    ),
    route(
        Get,
        "/v1/storagepools/rebalance/schedule",
        "Pool",
        "GetRebalanceSchedule",
    ),
    route(
        Delete,
        "/v1/storagepools/rebalance/schedule",
        "Pool",
        "DeleteRebalanceSchedule",
    ),
    route(Post, "/v1/schedulepolicies", "SchedulePolicy", "Create"),
    route(Put, "/v1/schedulepolicies", "SchedulePolicy", "Update"),
    route(Get, "/v1/schedulepolicies", "SchedulePolicy", "Enumerate"),
    route(
        Get,
        "/v1/schedulepolicies/inspect/{name}",
        "SchedulePolicy",
        "Inspect",
    ),
    route(
        Delete,
        "/v1/schedulepolicies/{name}",
        "SchedulePolicy",
        "Delete",
    ),
    route(Get, "/v1/jobs", "Job", "Enumerate"),
    route(Get, "/v1/jobs/{id}", "Job", "GetStatus"),
    route(Put, "/v1/jobs/{id}", "Job", "Update"),
    route(Post, "/v1/alerts/filters", "Alerts", "EnumerateWithFilters"),
    route(Post, "/v1/alerts", "Alerts", "Delete"),
    route(Post, "/v1/watch", "Watch", "Watch"),
    // Of `keelblock.admin.v1.Admin`: what the SDK has no words for.
    route(Get, "/v1/keelblock/node", "Admin", "NodeStatus"),
    route(Get, "/v1/keelblock/members", "Admin", "ListMembers"),
    route(
        Put,
        "/v1/keelblock/members/{node_id}",
        "Admin",
        "UpdateMember",
    ),
    route(
        Get,
        "/v1/keelblock/volumes/{volume}/status",
        "Admin",
        "VolumeStatus",
    ),
    route(Post, "/v1/roles", "Role", "Create"),
    route(Get, "/v1/roles", "Role", "Enumerate"),
    route(Put, "/v1/roles", "Role", "Update"),
    route(Get, "/v1/roles/inspect/{name}", "Role", "Inspect"),
    route(Delete, "/v1/roles/{name}", "Role", "Delete"),
    route(
        Get,
        "/v1/keelblock/volumes/{volume}/connection",
        "Admin",
        "ConnectionInfo",
    ),
    route(
        Get,
        "/v1/keelblock/volumes/{volume}/replicas",
        "Admin",
        "LocateVolume",
    ),
    route(
        Put,
        "/v1/keelblock/volumes/{volume}/replicas",
        "Admin",
        "UpdateReplicas",
    ),
    route(
        Post,
        "/v1/keelblock/volumes/{volume}/replicas/cancel",
        "Admin",
        "CancelUpdateReplicas",
    ),
    route(
        Put,
        "/v1/keelblock/volumes/{volume}/hosts",
        "Admin",
        "SetAllowedHosts",
    ),
    route(
        Put,
        "/v1/keelblock/volumes/{volume}/replicas/decide",
        "Admin",
        "DecideReplicas",
    ),
    route(
        Post,
        "/v1/keelblock/placement/explain",
        "Admin",
        "ExplainPlacement",
    ),
    route(
        Get,
        "/v1/keelblock/placement/limits",
        "Admin",
        "PlacementLimits",
    ),
    route(
        Put,
        "/v1/keelblock/placement/limits",
        "Admin",
        "PlacementLimits",
    ),
    route(
        Get,
        "/v1/keelblock/placement/pools",
        "Admin",
        "ProvisionStatus",
    ),
    route(
        Post,
        "/v1/keelblock/placement/rebalance",
        "Admin",
        "PlanRebalance",
    ),
    route(Post, "/v1/keelblock/rebalances", "Admin", "StartRebalance"),
    route(Get, "/v1/keelblock/rebalances", "Admin", "RebalanceStatus"),
    route(Get, "/v1/keelblock/trashcan", "Admin", "ListTrash"),
    route(
        Post,
        "/v1/keelblock/trashcan/restore",
        "Admin",
        "RestoreTrash",
    ),
    route(
        Delete,
        "/v1/keelblock/trashcan/{volume}",
        "Admin",
        "PurgeTrash",
    ),
    route(
        Get,
        "/v1/keelblock/trashcan-options",
        "Admin",
        "TrashOptions",
    ),
    route(
        Put,
        "/v1/keelblock/trashcan-options",
        "Admin",
        "TrashOptions",
    ),
    route(
        Get,
        "/v1/keelblock/cluster/options",
        "Admin",
        "ClusterOptions",
    ),
    route(
        Put,
        "/v1/keelblock/cluster/options",
        "Admin",
        "SetClusterOptions",
    ),
    route(Get, "/v1/keelblock/cluster/token", "Admin", "ClusterToken"),
    route(
        Post,
        "/v1/keelblock/cluster/token/rotate",
        "Admin",
        "RotateToken",
    ),
    route(Get, "/v1/keelblock/kvdb", "Admin", "KvdbStatus"),
    route(Post, "/v1/keelblock/snapshots", "Admin", "CreateSnapshots"),
    route(Post, "/v1/keelblock/diff", "Admin", "DiffVolume"),
    route(Post, "/v1/keelblock/drives/add", "Admin", "AddDrive"),
    route(Post, "/v1/keelblock/drives/grow", "Admin", "GrowDrive"),
    route(
        Post,
        "/v1/keelblock/drives/evacuate",
        "Admin",
        "EvacuateDrive",
    ),
    route(Post, "/v1/keelblock/drives/remove", "Admin", "RemoveDrive"),
    route(
        Post,
        "/v1/keelblock/drives/replace",
        "Admin",
        "ReplaceDrive",
    ),
    route(Post, "/v1/keelblock/scans/start", "Admin", "StartScan"),
    route(Post, "/v1/keelblock/scans/pause", "Admin", "PauseScan"),
    route(Post, "/v1/keelblock/scans/resume", "Admin", "ResumeScan"),
    route(Post, "/v1/keelblock/scans/cancel", "Admin", "CancelScan"),
    route(Get, "/v1/keelblock/scans", "Admin", "GetScan"),
    route(Put, "/v1/keelblock/scans/schedule", "Admin", "ScheduleScan"),
];

impl Route {
    /// The full name of its service.
    pub fn service_name(&self) -> String {
        match self.service {
            "Admin" => "keelblock.admin.v1.Admin".into(),
            service => format!("openstorage.api.OpenStorage{service}"),
        }
    }

    /// The fields in its path.
    pub fn path_fields(&self) -> impl Iterator<Item = &'static str> {
        self.path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}
