//! Members: what is wanted of nodes, as the admin service and the SDK's Node service have it.
use super::Services;
use super::view::timestamp;
use crate::error::OpError;
use crate::gossip::{Heard, NodeStats};
use crate::membership::{DrainRecord, DrainState, MemberRecord, MemberWish, World};
use keelblock_api::admin as api;
use keelblock_api::admin::update_member_request::Change;
use keelblock_api::openstorage as sdk;
use std::time::Duration;

/// What can be asked for by a word.
const ACTIONS: [&str; 9] = [
    "cordon",
    "uncordon",
    "enter-maintenance",
    "exit-maintenance",
    "drain",
    "cancel-drain",
    "decommission",
    "cancel-decommission",
    "remove",
];

fn wish(change: Option<Change>, force: bool) -> Result<MemberWish, OpError> {
    let unknown = || OpError::invalid("action", format!("must be one of {}", ACTIONS.join(", ")));
    let wish = match change {
        None => {
            return Err(OpError::Missing {
                field: "change",
                hint: "labels, or an action",
            });
        }
        Some(Change::Labels(labels)) => {
            let mut labels: Vec<_> = labels.labels.into_iter().collect();
            labels.sort();
            MemberWish::Labels(labels)
        }
        Some(Change::Action(action)) => match action.as_str() {
            "cordon" => MemberWish::Cordon(true),
            "uncordon" => MemberWish::Cordon(false),
            "enter-maintenance" => MemberWish::Maintenance { force },
            "exit-maintenance" => MemberWish::EndMaintenance,
            "drain" => MemberWish::Drain(String::new()),
            "cancel-drain" => MemberWish::EndDrain,
            "decommission" => MemberWish::Decommission,
            "cancel-decommission" => MemberWish::EndDecommission,
            "remove" => MemberWish::Remove,
            _ => return Err(unknown()),
        },
    };
    match force && !matches!(wish, MemberWish::Maintenance { .. }) {
        true => Err(OpError::invalid(
            "force",
            "only enter-maintenance can be forced: what else is refused would lose data",
        )),
        false => Ok(wish),
    }
}

fn drain(record: &DrainRecord) -> api::MemberDrain {
    api::MemberDrain {
        job_id: record.job_id.to_string(),
        state: record.state.name().into(),
        moved: record.moved,
        left: record.left,
        created_unix_ms: record.created_unix_ms,
        updated_unix_ms: record.updated_unix_ms,
    }
}

/// A node as it is known.
fn member(
    world: &World,
    node_id: &str,
    record: Option<&MemberRecord>,
    heard: Option<&Heard>,
) -> api::Member {
    let node = world.nodes.get(node_id);
    let of = |pick: fn(&crate::records::NodeRecord) -> &String| {
        node.map(pick).cloned().unwrap_or_default()
    };
    api::Member {
        node_id: node_id.into(),
        state: record.map_or("active", |r| r.state.name()).into(),
        cordoned: record.is_some_and(|r| r.cordoned),
        labels: record
            .map(|r| r.labels.clone().into_iter().collect())
            .unwrap_or_default(),
        alive: world.alive.contains_key(node_id),
        datapath_up: world.works(node_id),
        storage: world.is_storage(node_id),
        waits: record.map(|r| r.waits.clone()).unwrap_or_default(),
        drain: record.and_then(|r| r.drain.as_ref()).map(drain),
        unfit: world.unfit(node_id).unwrap_or_default().into(),
        hostname: of(|n| &n.hostname),
        sdk_address: of(|n| &n.sdk_address),
        nvme_address: of(|n| &n.nvme_address),
        replication_address: of(|n| &n.replication_address),
        joined_unix_ms: record.map_or(0, |r| r.joined_unix_ms),
        changed_unix_ms: record.map_or(0, |r| r.changed_unix_ms),
        attached: world.attached(node_id),
        gossip_address: of(|n| &n.gossip_address),
        heard: heard.map_or("", |h| h.life.name()).into(),
        load: heard.and_then(|h| h.stats.as_ref()).map(load),
    }
}

/// How busy a node is.
fn load((stats, age): &(NodeStats, Duration)) -> api::MemberLoad {
    let pools = || stats.pools.iter();
    api::MemberLoad {
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        version: stats.version.clone(),
        datapath_up: stats.datapath_up,
        load_permille: stats.load_permille.into(),
        cpu_permille: stats.cpu_permille,
        machine_permille: stats.machine_permille.into(),
        cores: stats.cores.into(),
        memory_total_bytes: stats.memory_total,
        memory_free_bytes: stats.memory_free,
        memory_used_bytes: stats.memory_used,
        reads: stats.reads.into(),
        writes: stats.writes.into(),
        read_bytes: stats.read_bytes,
        written_bytes: stats.written_bytes,
        coordinated: stats.coordinated,
        pool_total_bytes: pools().map(|p| p.total_bytes).sum(),
        pool_used_bytes: pools().map(|p| p.used_bytes).sum(),
    }
}

/// A drain, as a job of the SDK.
pub(super) fn job(node_id: &str, record: &DrainRecord, waits: &str) -> sdk::Job {
    let state = match record.state {
        DrainState::Running => sdk::job::State::Running,
        DrainState::Done => sdk::job::State::Done,
        DrainState::Failed => sdk::job::State::Failed,
        DrainState::Cancelled => sdk::job::State::Cancelled,
    };
    let (created, updated) = (
        Some(timestamp(record.created_unix_ms)),
        Some(timestamp(record.updated_unix_ms)),
    );
    let why = match waits.is_empty() {
        true => String::new(),
        false => format!(": {waits}"),
    };
    let of_kind = sdk::NodeDrainAttachmentsJob {
        node_id: node_id.into(),
        status: format!("{} moved, {} left{why}", record.moved, record.left),
        issuer: record.issuer.clone(),
        parameters: Some(sdk::SdkNodeDrainAttachmentsRequest {
            node_id: node_id.into(),
            issuer: record.issuer.clone(),
            ..Default::default()
        }),
        create_time: created,
        last_update_time: updated,
    };
    sdk::Job {
        id: record.job_id.to_string(),
        state: state.into(),
        r#type: sdk::job::Type::DrainAttachments.into(),
        job: Some(sdk::job::Job::DrainAttachments(of_kind)),
        create_time: created,
        last_update_time: updated,
    }
}

impl Services {
    /// All members, those that were decommissioned included.
    pub(super) async fn members(&self) -> Result<api::ListMembersReply, OpError> {
        let world = World::look(&self.node().registry).await?;
        let known = world.members.keys();
        let mut ids: Vec<&String> = world.nodes.keys().chain(known).collect();
        ids.sort();
        ids.dedup();
        let gossip = self.node().gossip();
        let one = |id: &String| member(&world, id, world.member(id), gossip.of(id).as_ref());
        let (storage, alive) = world.quorum();
        Ok(api::ListMembersReply {
            members: ids.into_iter().map(one).collect(),
            storage_nodes: u32::try_from(storage).unwrap_or(u32::MAX),
            storage_nodes_alive: u32::try_from(alive).unwrap_or(u32::MAX),
        })
    }

    /// More than half of the storage nodes live; without any, there is nothing to miss.
    pub(super) async fn quorum(&self) -> Result<bool, OpError> {
        let registry = &self.node().registry;
        let pools = registry.pools().await?;
        let nodes = registry.nodes().await?;
        let is_storage = |id: &str| pools.iter().any(|p| p.node_id == id);
        let storage = nodes.iter().filter(|(n, _)| is_storage(&n.node_id));
        let lives = storage.clone().filter(|(_, lives)| *lives).count();
        let all = storage.count();
        Ok(all == 0 || 2 * lives > all)
    }

    pub(super) async fn update_member(
        &self,
        request: api::UpdateMemberRequest,
    ) -> Result<api::Member, OpError> {
        let wish = wish(request.change, request.force)?;
        let record = self.wish(request.node_id.clone(), wish).await?;
        let world = World::look(&self.node().registry).await?;
        let heard = self.node().gossip().of(&request.node_id);
        Ok(member(
            &world,
            &request.node_id,
            Some(&record),
            heard.as_ref(),
        ))
    }

    /// Changes what is wanted of a node; its record then.
    pub(super) async fn wish(
        &self,
        node_id: String,
        wish: MemberWish,
    ) -> Result<MemberRecord, OpError> {
        if node_id.is_empty() {
            return Err(OpError::Missing {
                field: "node_id",
                hint: "the id of a node",
            });
        }
        self.to_the_end(|node| async move { node.change_member(&node_id, &wish).await })
            .await
    }

    /// Begins to drain a node, or finds that it is being drained.
    pub(super) async fn drain(
        &self,
        request: sdk::SdkNodeDrainAttachmentsRequest,
    ) -> Result<sdk::Job, OpError> {
        let unsupported = [
            ("selector", !request.selector.is_empty()),
            ("only_sharedv4", request.only_sharedv4),
        ];
        if let Some((field, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(OpError::Unsupported {
                field: (*field).into(),
                why: ": all attachments leave the node",
            });
        }
        let node_id = request.node_id;
        let wish = MemberWish::Drain(request.issuer);
        let record = self.wish(node_id.clone(), wish).await?;
        let drain = record.drain.as_ref();
        let drain = drain.ok_or_else(|| OpError::Internal("a drain has no record".into()))?;
        Ok(job(&node_id, drain, &record.waits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_known_and_others_are_refused() {
        for action in ACTIONS {
            let made = wish(Some(Change::Action(action.into())), false);
            assert!(made.is_ok(), "{action}");
        }
        let error = wish(Some(Change::Action("explode".into())), false).unwrap_err();
        assert!(error.to_string().contains("decommission"), "{error}");
        assert!(wish(None, false).is_err());
        assert!(wish(Some(Change::Action("decommission".into())), true).is_err());
        let forced = wish(Some(Change::Action("enter-maintenance".into())), true);
        assert_eq!(forced.unwrap(), MemberWish::Maintenance { force: true });
    }
}
