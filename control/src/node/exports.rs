//! Exports: attaching a volume makes it a namespace of a subsystem on this node. Its own subsystem, as namespace 1, unless the
//! attachment asks for a further namespace of another volume's.
use super::Node;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::names;
use crate::records::{
    AttachmentRecord, CntlidRecord, PathState, Versioned, VolumeRecord, encode, unix_ms,
};
use keelblock_api::datapath::{ExportRequest, Namespace, UnexportRequest};
use uuid::Uuid;

/// Hosts on a volume's allow-list.
const HOSTS_MAX: usize = 256;
/// Bytes of an NQN (NVMe Base 2.1, 4.7).
const NQN_MAX: usize = 223;
/// Namespaces of a subsystem.
const NAMESPACES_MAX: u32 = 128;
/// Attempts to grant controller ids while other nodes do.
const ATTEMPTS: usize = 8;

impl Node {
    /// Exports a volume on this node; in the subsystem of the volume `of`, if given. Done already is done. A replicated volume may be attached to
    /// any node, `to`.
    pub async fn attach(
        &self,
        name: &str,
        of: Option<&str>,
        to: Option<&str>,
    ) -> Result<AttachmentRecord, OpError> {
        let volume = self.registry.volume(name).await?;
        if volume.record.replicated.is_some() {
            if of.is_some() {
                self.not_replicated(&volume.record, "make it a further namespace")?;
            }
            self.usable(&volume.record)?;
            self.can_be_heard(&volume.record).await?;
            return self.attach_replicated(&volume, to).await;
        }
        if let Some(node) = to.filter(|node| *node != volume.record.node_id) {
            return Err(OpError::State(format!(
                "volume {} has one replica, on node {}: it cannot be attached to node {node}",
                volume.record.name, volume.record.node_id
            )));
        }
        let _changing = self.exclusive().await?;
        let volume = self.registry.volume(name).await?;
        self.own(&volume.record)?;
        self.usable(&volume.record)?;
        let subsystem_of = match of {
            Some(of) => {
                let owner = self.registry.volume(of).await?.record;
                self.not_replicated(&owner, "give its subsystem further namespaces")?;
                owner.volume_id
            }
            None => volume.record.volume_id,
        };
        if let Some(found) = self.registry.attachment(volume.record.volume_id).await? {
            let asked = of.map(|_| subsystem_of);
            self.same_attachment(&volume.record, &found.record, asked)?;
            self.link.up()?;
            self.apply_export(found.record.subsystem_of).await?;
            return Ok(found.record);
        }
        self.link.up()?;
        self.standing().await?.must_be_fit(self.node_id())?;
        let record = AttachmentRecord {
            volume_id: volume.record.volume_id,
            node_id: self.node_id().into(),
            subsystem_of,
            nsid: self.free_nsid(&volume.record, subsystem_of).await?,
            path_state: PathState::Optimized,
            attached_unix_ms: unix_ms(),
            moved_from: None,
            errand: false,
        };
        self.write_attachment(&volume, &record).await?;
        match self.apply_export(subsystem_of).await {
            Ok(()) => {}
            // It may be exported, or will be when the data path is back.
            Err(error) if error.is_uncertain() => return Err(error),
            Err(refused) => {
                self.registry
                    .kv()
                    .delete(self.registry.keys().attachment(record.volume_id))
                    .await?;
                return Err(refused);
            }
        }
        tracing::info!(
            volume = volume.record.name,
            nsid = record.nsid,
            "volume attached"
        );
        Ok(record)
    }

    fn same_attachment(
        &self,
        volume: &VolumeRecord,
        found: &AttachmentRecord,
        of: Option<Uuid>,
    ) -> Result<(), OpError> {
        if found.node_id != self.node_id() {
            return Err(OpError::State(format!(
                "volume {} is attached on node {}",
                volume.name, found.node_id
            )));
        }
        if of.is_some_and(|of| of != found.subsystem_of) {
            let error = format!(
                "volume {} is attached in the subsystem of volume {}: detach it first",
                volume.name, found.subsystem_of
            );
            return Err(OpError::State(error));
        }
        Ok(())
    }

    async fn free_nsid(&self, volume: &VolumeRecord, subsystem_of: Uuid) -> Result<u32, OpError> {
        if subsystem_of == volume.volume_id {
            return Ok(1);
        }
        let attachments = self.registry.attachments().await?;
        let owner = attachments.iter().find(|a| a.volume_id == subsystem_of);
        let owner = owner.filter(|a| !a.is_further() && a.node_id == self.node_id());
        if owner.is_none() {
            let error = format!(
                "volume {subsystem_of} has no subsystem on this node that others could be in: attach it first"
            );
            return Err(OpError::State(error));
        }
        let taken: Vec<u32> = attachments
            .iter()
            .filter(|a| a.subsystem_of == subsystem_of)
            .map(|a| a.nsid)
            .collect();
        let free = (2..=NAMESPACES_MAX).find(|nsid| !taken.contains(nsid));
        free.ok_or_else(|| {
            OpError::NoSpace(format!(
                "the subsystem of volume {subsystem_of} has {NAMESPACES_MAX} namespaces"
            ))
        })
    }

    async fn write_attachment(
        &self,
        volume: &Versioned<VolumeRecord>,
        record: &AttachmentRecord,
    ) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let key = keys.attachment(record.volume_id);
        // The volume must still be what was looked at: not on its way out.
        let mut guards = vec![
            Guard::absent(&key),
            Guard::at(keys.volume(record.volume_id), volume.revision),
        ];
        if record.is_further() {
            guards.push(Guard::exists(keys.attachment(record.subsystem_of)));
        }
        self.commit(
            &volume.record.name,
            guards,
            vec![Write::put(key, encode(record))],
        )
        .await
    }

    /// Ends a volume's export: its hosts are disconnected. Not attached is done already.
    pub async fn detach(&self, name: &str) -> Result<(), OpError> {
        let volume = self.registry.volume(name).await?;
        if volume.record.replicated.is_some() {
            return self.detach_replicated(&volume).await;
        }
        let _changing = self.exclusive().await?;
        let volume = self.registry.volume(name).await?;
        let id = volume.record.volume_id;
        let nqn = names::subsystem_nqn(self.cluster_id(), id);
        let Some(found) = self.registry.attachment(id).await? else {
            // Once more, in case the answer of an earlier one was lost.
            return if self.link.up().is_ok() {
                self.unexport(nqn).await
            } else {
                Ok(())
            };
        };
        let attachment = &found.record;
        if attachment.node_id != self.node_id() {
            let error = format!(
                "volume {} is attached on node {}: ask that node",
                volume.record.name, attachment.node_id
            );
            return Err(OpError::State(error));
        }
        let attachments = self.registry.attachments().await?;
        if let Some(other) = attachments
            .iter()
            .find(|a| a.subsystem_of == id && a.volume_id != id)
        {
            let error = format!(
                "volume {} is in the subsystem of volume {}: detach that first",
                other.volume_id, volume.record.name
            );
            return Err(OpError::State(error));
        }
        self.link.up()?;
        let keys = self.registry.keys();
        let detached = VolumeRecord {
            detached_unix_ms: unix_ms(),
            ..volume.record.clone()
        };
        let guards = vec![
            Guard::at(keys.attachment(id), found.revision),
            Guard::at(keys.volume(id), volume.revision),
        ];
        let writes = vec![
            Write::delete(keys.attachment(id)),
            Write::put(keys.volume(id), encode(&detached)),
        ];
        self.commit(&volume.record.name, guards, writes).await?;
        if attachment.is_further() {
            self.apply_export(attachment.subsystem_of).await?;
        } else {
            self.unexport(nqn).await?;
        }
        tracing::info!(volume = volume.record.name, "volume detached");
        Ok(())
    }

    /// Replaces a volume's allow-list.
    pub async fn set_allowed_hosts(
        &self,
        name: &str,
        mut hosts: Vec<String>,
        any: bool,
    ) -> Result<(), OpError> {
        if any && !hosts.is_empty() {
            return Err(OpError::invalid(
                "host_nqns",
                "must be empty when any host may connect",
            ));
        }
        let bad = |host: &&String| {
            !host.starts_with("nqn.")
                || host.len() > NQN_MAX
                || host.chars().any(char::is_whitespace)
        };
        if let Some(host) = hosts.iter().find(bad) {
            return Err(OpError::invalid(
                "host_nqns",
                format!("`{host}` is no NQN: it begins with `nqn.` and has up to {NQN_MAX} bytes"),
            ));
        }
        hosts.sort();
        hosts.dedup();
        if hosts.len() > HOSTS_MAX {
            return Err(OpError::invalid(
                "host_nqns",
                format!("at most {HOSTS_MAX} hosts"),
            ));
        }
        let _changing = self.exclusive().await?;
        let record = self.registry.volume(name).await?.record;
        let set = |r: &mut VolumeRecord| {
            r.any_host = any;
            r.allowed_hosts = hosts.clone();
            Ok(true)
        };
        if record.replicated.is_some() {
            // Each node exports it anew.
            return self.change_volume(record.volume_id, set).await.map(drop);
        }
        self.own(&record)?;
        let attachment = self
            .registry
            .attachment(record.volume_id)
            .await?
            .map(|a| a.record);
        self.own_subsystem(&record, attachment.as_ref())?;
        if attachment.is_some() {
            self.link.up()?;
        }
        self.change_volume(record.volume_id, set).await?;
        if attachment.is_some() {
            self.apply_export(record.volume_id).await
        } else {
            Ok(())
        }
    }

    /// Sets the state of this node's path to a volume.
    pub async fn set_path_state(&self, name: &str, state: PathState) -> Result<(), OpError> {
        let _changing = self.exclusive().await?;
        let record = self.registry.volume(name).await?.record;
        self.not_replicated(
            &record,
            "set the state of a path to it: the path at its coordinator is optimized",
        )?;
        let attachment = self
            .registry
            .attachment(record.volume_id)
            .await?
            .map(|a| a.record);
        let not_here = || {
            OpError::State(format!(
                "volume {} is not attached on this node",
                record.name
            ))
        };
        let attachment = attachment
            .filter(|a| a.node_id == self.node_id())
            .ok_or_else(not_here)?;
        self.own_subsystem(&record, Some(&attachment))?;
        self.link.up()?;
        let key = self.registry.keys().attachment(record.volume_id);
        let set = |a: &mut AttachmentRecord| {
            a.path_state = state;
            Ok(true)
        };
        self.registry.change(&key, not_here, set).await?;
        self.apply_export(record.volume_id).await
    }

    /// Hosts and path state are the subsystem's.
    fn own_subsystem(
        &self,
        volume: &VolumeRecord,
        attachment: Option<&AttachmentRecord>,
    ) -> Result<(), OpError> {
        match attachment.filter(|a| a.is_further()) {
            None => Ok(()),
            Some(a) => Err(OpError::State(format!(
                "volume {} is in the subsystem of volume {}, whose hosts and path state count: set them there",
                volume.name, a.subsystem_of
            ))),
        }
    }

    /// Exports a subsystem as the records have it.
    pub(crate) async fn apply_export(&self, subsystem_of: Uuid) -> Result<(), OpError> {
        let request = self.export_request(subsystem_of).await?;
        self.link
            .call("export", |mut c| async move { c.export(request).await })
            .await
            .map(drop)
    }

    async fn export_request(&self, subsystem_of: Uuid) -> Result<ExportRequest, OpError> {
        let owner = self
            .registry
            .volume_by_id(subsystem_of)
            .await?
            .ok_or_else(|| OpError::no_volume(subsystem_of))?
            .record;
        let mut path_state = PathState::Optimized;
        let mut namespaces = Vec::new();
        for attachment in self.registry.attachments().await? {
            if attachment.subsystem_of != subsystem_of || attachment.node_id != self.node_id() {
                continue;
            }
            let id = attachment.volume_id;
            let volume = self
                .registry
                .volume_by_id(id)
                .await?
                .ok_or_else(|| OpError::no_volume(id))?
                .record;
            self.usable(&volume)?;
            if !attachment.is_further() {
                path_state = attachment.path_state;
            }
            namespaces.push(Namespace {
                nsid: attachment.nsid,
                volume_id: id.to_string(),
                lba_bytes: volume.block_bytes,
                nguid: names::namespace_uuid(id),
                uuid: names::namespace_uuid(id),
                reservation: self.registry.reservation(id).await?,
            });
        }
        namespaces.sort_by_key(|n| n.nsid);
        let (cntlid_min, cntlid_max) = CntlidRecord::range(self.grant_cntlids(&owner).await?);
        Ok(ExportRequest {
            nqn: names::subsystem_nqn(self.cluster_id(), subsystem_of),
            serial: names::serial(subsystem_of),
            namespaces,
            allowed_hosts: owner.allowed_hosts,
            allow_any_host: owner.any_host,
            ana_state: path_state.ana().into(),
            cntlid_min,
            cntlid_max,
        })
    }

    /// The slot of controller ids that this node has for a volume's subsystem, taking one at the first export.
    pub(crate) async fn grant_cntlids(&self, volume: &VolumeRecord) -> Result<u32, OpError> {
        let key = self.registry.keys().cntlids(volume.volume_id);
        for _ in 0..ATTEMPTS {
            let found: Option<Versioned<CntlidRecord>> = self.registry.get(&key).await?;
            let (mut record, revision) =
                found.map_or_else(Default::default, |f| (f.record, f.revision));
            let before = record.clone();
            let slot = record.grant(self.node_id()).ok_or_else(|| {
                OpError::NoSpace(format!(
                    "volume {} is exported by {} nodes, which is the most",
                    volume.name,
                    CntlidRecord::SLOTS
                ))
            })?;
            if record == before
                || self
                    .registry
                    .kv()
                    .compare_and_swap(&key, revision, encode(&record))
                    .await?
                    != Committed::No
            {
                return Ok(slot);
            }
        }
        Err(OpError::Contended { what: key })
    }

    /// Ends a subsystem in the data path; there is none is done already.
    pub(crate) async fn unexport(&self, nqn: String) -> Result<(), OpError> {
        let request = UnexportRequest { nqn };
        self.link
            .call("unexport", |mut c| async move { c.unexport(request).await })
            .await
            .map(drop)
    }
}
