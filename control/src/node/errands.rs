//! Has a volume that is attached nowhere coordinated by this node for a while, for its snapshots (`coordination/errands`).
use super::Node;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::records::{
    AttachmentRecord, PathState, Phase, SnapshotRecord, Versioned, VolumeRecord, encode, unix_ms,
};
use std::time::Duration;
use uuid::Uuid;

/// How long it may take until it is coordinated, as an attach.
const SERVE_LIMIT: Duration = Duration::from_secs(12);

/// That a volume is coordinated by a node, and attached nowhere for hosts.
fn errand(volume_id: Uuid, node_id: &str) -> AttachmentRecord {
    AttachmentRecord {
        volume_id,
        node_id: node_id.into(),
        subsystem_of: volume_id,
        nsid: 1,
        path_state: PathState::Inaccessible,
        attached_unix_ms: unix_ms(),
        moved_from: None,
        errand: true,
    }
}

impl Node {
    /// Has a volume that is attached nowhere coordinated by a node for its replicas (`docs/replication.md` §21); `false`: it is attached, or was changed, meanwhile, or
    /// the node gets nothing new.
    pub(crate) async fn begin_errand(
        &self,
        volume: &Versioned<VolumeRecord>,
        node_id: &str,
    ) -> Result<bool, OpError> {
        let (keys, id) = (self.registry.keys(), volume.record.volume_id);
        let standing = self.standing().await?;
        if standing.unfit(node_id).is_some() {
            return Ok(false);
        }
        let key = keys.attachment(id);
        let mut guards = vec![
            Guard::absent(&key),
            Guard::at(keys.volume(id), volume.revision),
        ];
        // One that is decommissioned meanwhile gets nothing any more (M8).
        guards.extend(standing.guards(keys, [node_id]));
        let write = Write::put(&key, encode(&errand(id, node_id)));
        let written = self.registry.kv().commit(guards, vec![write]).await?;
        Ok(written != Committed::No)
    }

    /// The attachment of a volume for whoever wants its snapshots: the one that there is, or one that is made for that.
    pub(super) async fn coordinated(
        &self,
        volume: &Versioned<VolumeRecord>,
    ) -> Result<Versioned<AttachmentRecord>, OpError> {
        let (id, name) = (volume.record.volume_id, &volume.record.name);
        if let Some(found) = self.registry.any_attachment(id).await? {
            return Ok(found);
        }
        self.can_coordinate(self.node_id()).await?;
        self.data_keys(&volume.record).await?;
        let before = self.replication(id).await?.map_or(0, |s| s.record.version);
        let record = errand(id, self.node_id());
        let (keys, standing) = (self.registry.keys(), self.standing().await?);
        standing.must_be_fit(self.node_id())?;
        let key = keys.attachment(id);
        let mut guards = vec![
            Guard::absent(&key),
            Guard::at(keys.volume(id), volume.revision),
        ];
        guards.extend(standing.guards(keys, [self.node_id()]));
        self.commit(name, guards, vec![Write::put(&key, encode(&record))])
            .await?;
        let served = self.coordination.until(SERVE_LIMIT, |c| {
            let seen = c.seen();
            let again = seen.set(id)?.version > before;
            (again && seen.served_by(id)? == self.node_id()).then_some(())
        });
        if served.await.is_none() {
            let why = self.coordination.trouble(id);
            let why = why.unwrap_or_else(|| "too few of its replicas are reached".into());
            return Err(OpError::Unavailable(format!(
                "volume {name} is attached nowhere, and cannot be coordinated for its snapshots or replicas now: {why}"
            )));
        }
        let found = self.registry.any_attachment(id).await?;
        found.ok_or_else(|| OpError::Contended {
            what: format!("where volume {name} is attached"),
        })
    }

    /// Ends what a volume was coordinated for but hosts, before something that wants it detached.
    pub(super) async fn end_coordinating(&self, volume: &VolumeRecord) -> Result<(), OpError> {
        let (keys, id) = (self.registry.keys(), volume.volume_id);
        let found = self.registry.any_attachment(id).await?;
        let Some(errand) = found.filter(|a| a.record.errand) else {
            return Ok(());
        };
        let all = self
            .registry
            .list::<SnapshotRecord>(&keys.snapshots())
            .await?;
        let mut of_it = all.iter().map(|s| &s.record).filter(|s| s.volume_id == id);
        if of_it.any(|s| s.phase != Phase::Ready || s.for_clone.is_some()) {
            return Err(OpError::Busy(format!(
                "snapshots of volume {} are being taken or deleted: try again",
                volume.name
            )));
        }
        self.commit(
            &volume.name,
            vec![Guard::at(keys.attachment(id), errand.revision)],
            vec![Write::delete(keys.attachment(id))],
        )
        .await
    }
}
