//! Volumes: made, changed, deleted.
use super::placing::{self, PLACING_LIMIT};
use super::wishes::*;
use super::{HaWish, Node};
use crate::auth::OwnershipWish;
use crate::datapath::create_request;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::names;
use crate::placement::Verdict;
use crate::records::{AlertKind, Found, Phase, Severity, Versioned, VolumeRecord, encode, unix_ms};
use keelblock_api::datapath::{DeleteVolumeRequest, ResizeVolumeRequest};
use tokio::time::Instant;
use uuid::Uuid;

impl Node {
    /// Makes a volume; its id. The same wish again gives the same id.
    pub async fn create_volume(&self, wish: VolumeWish) -> Result<Uuid, OpError> {
        check_name(&wish.name)?;
        check_labels(&wish.labels)?;
        let size_bytes = rounded(wish.size_bytes)?;
        if !wish.is_local() {
            return self.create_replicated(wish, size_bytes).await;
        }
        let end = Instant::now() + PLACING_LIMIT;
        loop {
            match self.create_local(wish.clone(), size_bytes).await {
                // Others are placed at the same time, or the name is taken by now.
                Err(OpError::Contended { .. }) if Instant::now() < end => {
                    tokio::time::sleep(placing::pause()).await;
                }
                made => return made,
            }
        }
    }

    async fn create_local(&self, wish: VolumeWish, size_bytes: u64) -> Result<Uuid, OpError> {
        let _changing = self.exclusive().await?;
        if let Some(found) = self.existing(&wish.name).await? {
            return self.adopt(found.record, size_bytes, wish.block_bytes).await;
        }
        self.link.up()?;
        self.standing().await?.must_be_fit(self.node_id())?;
        let policies = wish.policies.clone();
        let record = self.new_record(wish, size_bytes)?;
        self.make_volume(&record, &policies).await?;
        tracing::info!(volume = record.name, id = %record.volume_id, bytes = record.size_bytes, "volume created");
        Ok(record.volume_id)
    }

    /// Where the replicas of a volume would be, with a word on every node, and why it could not be made; `None`: it is a part of this node's pool.
    pub(crate) async fn explain_volume(
        &self,
        wish: &VolumeWish,
    ) -> Result<Option<(Vec<Verdict>, Option<OpError>)>, OpError> {
        check_labels(&wish.labels)?;
        let size_bytes = rounded(wish.size_bytes)?;
        match wish.is_local() {
            true => Ok(None),
            false => self.explain(&wish.ask(size_bytes)).await.map(Some),
        }
    }

    /// Writes a new volume's records, with its schedule policies, and makes it.
    pub(super) async fn make_volume(
        &self,
        record: &VolumeRecord,
        policies: &[String],
    ) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let made = vec![
            (keys.volume(record.volume_id), encode(record)),
            (
                keys.volume_name(&record.name),
                record.volume_id.to_string().into_bytes(),
            ),
        ];
        let what = format!("volume {}", record.name);
        let room = self.room_here(&what, record.pool_id, record.size_bytes);
        let room = room.await?;
        let schedule = self.schedule_with(record.volume_id, policies, unix_ms());
        let (exist, scheduled) = schedule.await?;
        // A clone of what is here may be made whatever is wanted of this node, but not when it is no member any more.
        let mut guards = self.standing().await?.guards(keys, [self.node_id()]);
        guards.extend(made.iter().map(|(key, _)| Guard::absent(key)));
        guards.extend(room.guards.clone());
        guards.extend(exist);
        let writes = made.into_iter().map(|(key, value)| Write::put(key, value));
        let writes = writes.chain(scheduled);
        let writes = writes.chain(room.writes.clone()).collect();
        self.commit(&what, guards, writes).await?;
        drop(room);
        self.finish_create(record).await
    }

    /// The volume of that name, after what is on its way out has gone. A snapshot of that name is an error.
    pub(super) async fn existing(
        &self,
        name: &str,
    ) -> Result<Option<Versioned<VolumeRecord>>, OpError> {
        match self.registry.by_name(name).await? {
            Some(Found::Volume(old)) if old.record.phase == Phase::Deleting => {
                self.link.up()?;
                self.finish_delete(&old.record).await?;
                Ok(None)
            }
            Some(Found::Volume(found)) => Ok(Some(found)),
            Some(Found::Snapshot(old))
                if old.record.phase == Phase::Deleting && old.record.epoch.is_none() =>
            {
                self.link.up()?;
                self.finish_delete_snapshot(&old.record).await?;
                Ok(None)
            }
            Some(Found::Snapshot(found)) => Err(OpError::Exists {
                name: name.to_owned(),
                what: format!("as a snapshot of volume {}", found.record.volume_name),
            }),
            None => Ok(None),
        }
    }

    async fn adopt(
        &self,
        record: VolumeRecord,
        size_bytes: u64,
        block_bytes: u32,
    ) -> Result<Uuid, OpError> {
        self.same_volume(&record, size_bytes, block_bytes)?;
        let level = self.ha_level(&record).await?;
        if level != 1 {
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: format!("with {level} replicas, not 1"),
            });
        }
        if record.encrypted {
            return Err(OpError::Exists {
                name: format!("volume {}", record.name),
                what: "encrypted".into(),
            });
        }
        if record.phase == Phase::Creating {
            self.link.up()?;
            self.finish_create(&record).await?;
        }
        Ok(record.volume_id)
    }

    /// A volume that was asked for again is the one that is there.
    pub(super) fn same_volume(
        &self,
        record: &VolumeRecord,
        size_bytes: u64,
        block_bytes: u32,
    ) -> Result<(), OpError> {
        let differs = |what: String| OpError::Exists {
            name: format!("volume {}", record.name),
            what,
        };
        if record.size_bytes != size_bytes {
            return Err(differs(format!(
                "with a size of {} bytes, not {size_bytes}",
                record.size_bytes
            )));
        }
        if record.block_bytes != block_bytes {
            return Err(differs(format!(
                "with blocks of {} bytes, not {block_bytes}",
                record.block_bytes
            )));
        }
        Ok(())
    }

    fn new_record(&self, wish: VolumeWish, size_bytes: u64) -> Result<VolumeRecord, OpError> {
        let no_pool = || {
            OpError::State(format!(
                "node {} has no pool: start its control process with --drive",
                self.node_id()
            ))
        };
        Ok(VolumeRecord {
            volume_id: Uuid::new_v4(),
            name: wish.name,
            phase: Phase::Creating,
            node_id: self.node_id().into(),
            pool_id: self.pool.as_ref().ok_or_else(no_pool)?.record.pool_id,
            size_bytes,
            replicated: None,
            block_bytes: wish.block_bytes,
            encrypted: false,
            sticky: wish.sticky,
            labels: wish.labels,
            any_host: true,
            allowed_hosts: Vec::new(),
            created_unix_ms: unix_ms(),
            detached_unix_ms: 0,
            error: String::new(),
            source: None,
            restoring: None,
            placement: None,
            trashed: None,
            asked_bytes: None,
            ownership: wish.ownership,
        })
    }

    /// Makes a volume whose record is there. If it is refused, the record goes; if that is unknown, it stays, and
    /// this is done again when the data path is back, or when the same volume is asked for again.
    pub(crate) async fn finish_create(&self, record: &VolumeRecord) -> Result<(), OpError> {
        let made = match &record.source {
            Some(source) => self.fill_clone(record, source).await,
            None => {
                let request = create_request(record);
                let what = format!("create volume {}", record.name);
                let made = self
                    .link
                    .call(&what, |mut c| async move { c.create_volume(request).await });
                made.await.map(drop)
            }
        };
        match made {
            Ok(()) => {}
            Err(error) if error.is_uncertain() => return Err(error),
            Err(refused) => {
                self.forget(record).await?;
                return Err(refused);
            }
        }
        self.change_volume(record.volume_id, |r| {
            r.phase = Phase::Ready;
            Ok(true)
        })
        .await
        .map(drop)
    }

    /// Deletes a volume or snapshot. What does not exist is deleted already. Snapshots of a volume outlive it.
    pub async fn delete_volume(&self, name: &str) -> Result<(), OpError> {
        let _changing = self.exclusive().await?;
        let record = match self.registry.find("volume_id", name).await? {
            Some(Found::Volume(found)) => found.record,
            Some(Found::Snapshot(found)) => return self.delete_snapshot(&found.record).await,
            None => return Ok(()),
        };
        if record.replicated.is_none() {
            self.own(&record)?;
        }
        if record.sticky {
            return Err(OpError::State(format!(
                "volume {} is sticky: update it with sticky = false first",
                record.name
            )));
        }
        if let Some(attached) = self.registry.attachment(record.volume_id).await? {
            let node = attached.record.node_id;
            return Err(OpError::State(format!(
                "volume {} is attached on node {node}: detach it first",
                record.name
            )));
        }
        if record.replicated.is_some() {
            self.end_coordinating(&record).await?;
        }
        match self.trash(record.volume_id).await? {
            true => Ok(()),
            false => self.delete_at_once(&record).await,
        }
    }

    /// Deletes a volume of the trashcan.
    pub(super) async fn delete_for_good(&self, record: &VolumeRecord) -> Result<(), OpError> {
        let _changing = self.exclusive().await?;
        if record.replicated.is_none() {
            self.own(record)?;
        }
        self.delete_at_once(record).await
    }

    async fn delete_at_once(&self, record: &VolumeRecord) -> Result<(), OpError> {
        if record.replicated.is_some() {
            return self.delete_replicated(record).await;
        }
        self.link.up()?;
        let deleting = self.change_volume(record.volume_id, |r| {
            r.phase = Phase::Deleting;
            Ok(true)
        });
        self.finish_delete(&deleting.await?).await?;
        tracing::info!(volume = record.name, id = %record.volume_id, "volume deleted");
        Ok(())
    }

    /// Gives back the space of a volume on its way out, then forgets it.
    pub(crate) async fn finish_delete(&self, record: &VolumeRecord) -> Result<(), OpError> {
        // A detach whose answer was lost may have left it exported.
        self.unexport(names::subsystem_nqn(self.cluster_id(), record.volume_id))
            .await?;
        let request = DeleteVolumeRequest {
            volume_id: record.volume_id.to_string(),
        };
        let what = format!("delete volume {}", record.name);
        self.link
            .call(&what, |mut c| async move { c.delete_volume(request).await })
            .await?;
        self.forget(record).await
    }

    /// Removes every record of a volume.
    async fn forget(&self, record: &VolumeRecord) -> Result<(), OpError> {
        let (keys, id) = (self.registry.keys(), record.volume_id);
        let gone = [
            keys.volume(id),
            keys.volume_name(&record.name),
            keys.attachment(id),
            keys.cntlids(id),
            keys.reservation(id),
        ];
        self.registry
            .kv()
            .commit(vec![], gone.iter().map(Write::delete).collect())
            .await?;
        Ok(())
    }

    /// Changes a volume's size, labels, stickiness; of a snapshot, the labels.
    pub async fn update_volume(&self, name: &str, change: VolumeChange) -> Result<(), OpError> {
        check_labels(&change.labels)?;
        self.may_be_given(name, change.ownership.as_ref()).await?;
        self.grow_if_replicated(name, &change).await?;
        let _changing = self.exclusive().await?;
        if let Some(Found::Snapshot(snapshot)) = self.registry.find("volume_id", name).await?
            && change.size_bytes.is_none()
            && change.sticky.is_none()
            && change.policies.is_none()
        {
            let (labels, ownership) = (change.labels, change.ownership);
            return self
                .label_snapshot(&snapshot.record, labels, ownership)
                .await;
        }
        let record = self.registry.volume(name).await?.record;
        match (change.replicas, &record.replicated) {
            (Some(1), None) if change.node.is_none() => {}
            (Some(replicas), _) => {
                let wish = HaWish::Replicas(replicas, change.node.clone());
                self.change_ha(name, wish).await?;
            }
            (None, _) => {}
        }
        if let Some(size) = change.size_bytes.filter(|_| record.replicated.is_none()) {
            self.grow(&record, rounded(size)?).await?;
        }
        if let Some(policies) = change.policies {
            self.set_schedule(&record.volume_id.to_string(), policies, unix_ms())
                .await?;
        }
        if change.sticky.is_none() && change.labels.is_empty() && change.ownership.is_none() {
            return Ok(());
        }
        let apply = |r: &mut VolumeRecord| {
            r.sticky = change.sticky.unwrap_or(r.sticky);
            if let Some(wish) = &change.ownership {
                r.ownership = Some(wish.of(r.ownership.as_ref())?);
            }
            merge_labels(&mut r.labels, &change.labels).map(|()| true)
        };
        self.change_volume(record.volume_id, apply).await.map(drop)
    }

    /// That whose a volume or snapshot is can be changed so, before anything else of it is.
    async fn may_be_given(&self, name: &str, wish: Option<&OwnershipWish>) -> Result<(), OpError> {
        let Some(wish) = wish else { return Ok(()) };
        match self.registry.find("volume_id", name).await? {
            Some(Found::Volume(v)) => wish.of(v.record.ownership.as_ref()).map(drop),
            Some(Found::Snapshot(s)) => wish.of(s.record.ownership.as_ref()).map(drop),
            None => Err(OpError::no_volume(name)),
        }
    }

    /// Whoever serves it is waited for, and nothing else waits meanwhile.
    async fn grow_if_replicated(&self, name: &str, change: &VolumeChange) -> Result<(), OpError> {
        let (Some(size), Some(Found::Volume(found))) = (
            change.size_bytes,
            self.registry.find("volume_id", name).await?,
        ) else {
            return Ok(());
        };
        if found.record.replicated.is_none() {
            return Ok(());
        }
        self.grow_replicated(found.record.volume_id, rounded(size)?)
            .await
    }

    /// The data path first: it knows whether there is room. A record that was not written then follows at the next
    /// reconciliation.
    async fn grow(&self, record: &VolumeRecord, size_bytes: u64) -> Result<(), OpError> {
        self.own(record)?;
        if size_bytes < record.size_bytes {
            return Err(cannot_shrink(record, size_bytes));
        }
        if size_bytes == record.size_bytes {
            return Ok(());
        }
        self.link.up()?;
        self.usable(record)?;
        self.ask_room(record.volume_id, size_bytes, "grown").await?;
        let request = ResizeVolumeRequest {
            volume_id: record.volume_id.to_string(),
            size_bytes,
        };
        let what = format!("resize volume {}", record.name);
        let resized = self
            .link
            .call(&what, |mut c| async move { c.resize_volume(request).await })
            .await;
        if let Err(error) = resized {
            // Else it may have the size, and stays counted with it until that is known.
            if !error.is_uncertain() {
                self.asks_no_more(record.volume_id).await?;
            }
            return Err(error);
        }
        self.record_size(record.volume_id, size_bytes).await?;
        tracing::info!(volume = record.name, bytes = size_bytes, "volume resized");
        Ok(())
    }

    /// Writes down that a pool is asked for more by a volume with a single copy, if there is room: from then on it is counted so. `how` it gets that size is for messages.
    pub(super) async fn ask_room(
        &self,
        id: Uuid,
        size_bytes: u64,
        how: &str,
    ) -> Result<(), OpError> {
        let key = self.registry.keys().volume(id);
        let end = Instant::now() + PLACING_LIMIT;
        loop {
            let found = self.registry.volume_by_id(id).await?;
            let found = found.ok_or_else(|| OpError::no_volume(id))?;
            let record = found.record;
            let more = size_bytes.saturating_sub(record.counted_bytes());
            let what = format!("volume {}, {how} to {size_bytes} bytes,", record.name);
            let room = self.room_here(&what, record.pool_id, more).await?;
            let asked = VolumeRecord {
                asked_bytes: Some(size_bytes.max(record.counted_bytes())),
                ..record
            };
            let mut guards = room.guards.clone();
            guards.push(Guard::at(&key, found.revision));
            let mut writes = room.writes.clone();
            writes.push(Write::put(&key, encode(&asked)));
            match self.commit(&what, guards, writes).await {
                Err(OpError::Contended { .. }) if Instant::now() < end => {
                    drop(room);
                    tokio::time::sleep(placing::pause()).await;
                }
                asked => return asked,
            }
        }
    }

    /// It has the size that its record says, and no other.
    pub(crate) async fn asks_no_more(&self, id: Uuid) -> Result<(), OpError> {
        let end = |r: &mut VolumeRecord| Ok(r.asked_bytes.take().is_some());
        self.change_volume(id, end).await.map(drop)
    }

    /// Writes down a size that the data path has.
    pub(crate) async fn record_size(&self, id: Uuid, size_bytes: u64) -> Result<(), OpError> {
        let grow = |r: &mut VolumeRecord| {
            let asked = r.asked_bytes.take().is_some();
            let grows = size_bytes > r.size_bytes;
            r.size_bytes = r.size_bytes.max(size_bytes);
            Ok(grows || asked)
        };
        self.change_volume(id, grow).await.map(drop)
    }

    /// Writes down what is wrong with a volume; empty: nothing.
    pub(crate) async fn set_volume_error(
        &self,
        record: &VolumeRecord,
        error: &str,
    ) -> Result<(), OpError> {
        let set = |r: &mut VolumeRecord| {
            let changes = r.error != error;
            r.error = error.to_owned();
            Ok(changes)
        };
        self.change_volume(record.volume_id, set).await?;
        let id = record.volume_id.to_string();
        if error.is_empty() {
            self.clear_alert(AlertKind::VolumeError, &id).await
        } else if record.error != error {
            let message = format!("volume {}: {error}", record.name);
            self.raise_alert(AlertKind::VolumeError, &id, "", Severity::Alarm, message)
                .await
        } else {
            Ok(())
        }
    }

    pub(crate) async fn change_volume(
        &self,
        id: Uuid,
        change: impl FnMut(&mut VolumeRecord) -> Result<bool, OpError>,
    ) -> Result<VolumeRecord, OpError> {
        self.registry
            .change(
                &self.registry.keys().volume(id),
                || OpError::no_volume(id),
                change,
            )
            .await
    }

    /// Changes are made by the node that holds the volume.
    pub(crate) fn own(&self, record: &VolumeRecord) -> Result<(), OpError> {
        self.not_replicated(record, "take a snapshot of it together with others")?;
        if record.node_id == self.node_id() {
            return Ok(());
        }
        Err(OpError::State(format!(
            "volume {} is on node {}: ask that node",
            record.name, record.node_id
        )))
    }

    /// A volume that is whole.
    pub(crate) fn usable(&self, record: &VolumeRecord) -> Result<(), OpError> {
        if record.restoring.is_some() {
            return Err(OpError::State(format!(
                "volume {} was not wholly set back to a snapshot: restore it again, to the same or another one",
                record.name
            )));
        }
        match (record.phase, record.error.as_str()) {
            (Phase::Ready, "") => Ok(()),
            (Phase::Ready, error) => Err(OpError::State(format!(
                "volume {} is in error: {error}",
                record.name
            ))),
            _ => Err(OpError::State(format!(
                "volume {} is still being created: try again",
                record.name
            ))),
        }
    }

    /// Commits changes of several records; somebody else's change in between is an error to retry on.
    pub(crate) async fn commit(
        &self,
        what: &str,
        guards: Vec<Guard>,
        writes: Vec<Write>,
    ) -> Result<(), OpError> {
        match self.registry.kv().commit(guards, writes).await? {
            Committed::Yes(_) => Ok(()),
            Committed::No => Err(OpError::Contended {
                what: what.to_owned(),
            }),
        }
    }
}
