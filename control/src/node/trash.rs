//! The trashcan: a volume that is deleted while it is on stays for a time, without its name, and can be taken back (`docs/sdk.md`, trashcan). Its record says
//! until when; whoever does what is due for the cluster (`leaders/schedules`) deletes it for good then.
use super::Node;
use super::wishes::check_name;
use crate::error::OpError;
use crate::kvdb::client::{Guard, Write};
use crate::names;
use crate::records::{
    Phase, TrashOptions, TrashedRecord, Versioned, VolumeRecord, encode, unix_ms,
};
use keelblock_api::admin::PurgeTrashRequest;
use keelblock_api::admin::admin_client::AdminClient;
use uuid::Uuid;

/// Longest time: ten years.
const KEEP_MINUTES_MAX: u64 = 10 * 366 * 24 * 60;

/// The name of a volume in the trashcan: no other volume's, and not that of one that is made later.
fn name_in_trash(name: &str, id: Uuid) -> String {
    let tail = format!(".trash-{}", id.simple());
    let mut end = name.len().min(names::VOLUME_NAME_MAX - tail.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &name[..end])
}

impl Node {
    /// How long deleted volumes are kept.
    pub(crate) async fn trash_options(&self) -> Result<TrashOptions, OpError> {
        let key = self.registry.keys().trash_options();
        let found = self.registry.get::<TrashOptions>(&key).await?;
        Ok(found.map(|f| f.record).unwrap_or_default())
    }

    /// Sets it. What is in the trashcan stays as long as was said when it was deleted.
    pub(crate) async fn set_trash_options(&self, options: TrashOptions) -> Result<(), OpError> {
        if options.keep_minutes > KEEP_MINUTES_MAX {
            let why = format!("must be 0 (deleted at once) to {KEEP_MINUTES_MAX}");
            return Err(OpError::invalid("keep_minutes", why));
        }
        let key = self.registry.keys().trash_options();
        self.registry.put(&key, &options).await
    }

    /// Puts a detached volume into the trashcan, if that is on; false: it is not. One transaction, so it is deleted, or it is not.
    pub(super) async fn trash(&self, id: Uuid) -> Result<bool, OpError> {
        let keep_minutes = self.trash_options().await?.keep_minutes;
        let Some(found) = self.registry.volume_by_id(id).await? else {
            return Ok(true);
        };
        // One that is not whole, or was never made, is of no use to anybody.
        let usable = found.record.phase == Phase::Ready && found.record.restoring.is_none();
        if keep_minutes == 0 || !usable || found.record.trashed.is_some() {
            return Ok(false);
        }
        let now = unix_ms();
        let record = VolumeRecord {
            name: name_in_trash(&found.record.name, id),
            trashed: Some(TrashedRecord {
                name: found.record.name.clone(),
                deleted_unix_ms: now,
                until_unix_ms: now.saturating_add(keep_minutes.saturating_mul(60_000)),
            }),
            ..found.record.clone()
        };
        self.rename(&found, &record).await?;
        tracing::info!(volume = found.record.name, %id, keep_minutes, "volume put into the trashcan");
        Ok(true)
    }

    /// Writes a record under another name, as long as it is detached and nobody else has changed it.
    async fn rename(
        &self,
        found: &Versioned<VolumeRecord>,
        record: &VolumeRecord,
    ) -> Result<(), OpError> {
        let (keys, id) = (self.registry.keys(), record.volume_id);
        let name = keys.volume_name(&record.name);
        let guards = vec![
            Guard::at(keys.volume(id), found.revision),
            Guard::absent(keys.attachment(id)),
            Guard::absent(&name),
        ];
        let writes = vec![
            Write::put(keys.volume(id), encode(record)),
            Write::delete(keys.volume_name(&found.record.name)),
            Write::put(name, id.to_string()),
        ];
        self.commit(&format!("volume {}", found.record.name), guards, writes)
            .await
    }

    /// All volumes in the trashcan, the one that was deleted last at first.
    pub(crate) async fn trashed(&self) -> Result<Vec<Versioned<VolumeRecord>>, OpError> {
        let prefix = self.registry.keys().volumes();
        let mut all = self.registry.list::<VolumeRecord>(&prefix).await?;
        all.retain(|v| v.record.in_trash().is_some());
        all.sort_by_key(|v| {
            let when = v.record.trashed.as_ref().map_or(0, |t| t.deleted_unix_ms);
            (std::cmp::Reverse(when), v.record.volume_id)
        });
        Ok(all)
    }

    fn sees_trash(&self) -> bool {
        let seen = self.coordination.seen();
        seen.volume_records().any(|v| v.in_trash().is_some())
    }

    /// The one of that id, or that was called so. Of several of one name the id has to be given.
    pub(crate) async fn find_in_trash(
        &self,
        name: &str,
    ) -> Result<Versioned<VolumeRecord>, OpError> {
        let called = |v: &Versioned<VolumeRecord>| {
            let was = v.record.trashed.as_ref().is_some_and(|t| t.name == name);
            was || v.record.volume_id.to_string() == name || v.record.name == name
        };
        let mut found = self.trashed().await?;
        found.retain(called);
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (Some(_), false) => Err(OpError::State(format!(
                "several volumes in the trashcan were called {name}: give the id of one (`keelctl volume trashcan list`)"
            ))),
            (None, _) => Err(OpError::NotFound {
                kind: "volume in the trashcan",
                name: name.into(),
            }),
        }
    }

    /// Takes a volume out of the trashcan, under its name or another one; its id.
    pub(crate) async fn restore_from_trash(
        &self,
        volume: &str,
        new_name: &str,
    ) -> Result<Uuid, OpError> {
        let found = self.find_in_trash(volume).await?;
        let was = found.record.trashed.as_ref().map(|t| t.name.clone());
        let name = match new_name {
            "" => was.unwrap_or_default(),
            new => new.to_owned(),
        };
        check_name(&name)?;
        if self.registry.by_name(&name).await?.is_some() {
            return Err(OpError::Exists {
                name: format!("volume {name}"),
                what: "another id: give the restored one another name (`--name`)".into(),
            });
        }
        let record = VolumeRecord {
            name,
            trashed: None,
            asked_bytes: None,
            ..found.record.clone()
        };
        self.rename(&found, &record).await?;
        tracing::info!(volume = record.name, id = %record.volume_id, "volume taken out of the trashcan");
        Ok(record.volume_id)
    }

    /// Deletes a volume of the trashcan for good, by whichever node can.
    pub(crate) async fn purge(&self, volume: &str) -> Result<Uuid, OpError> {
        let found = self.find_in_trash(volume).await?;
        let (id, node) = (found.record.volume_id, &found.record.node_id);
        match self.elsewhere(node).await? {
            None => self.delete_for_good(&found.record).await?,
            Some(channel) => {
                let request = PurgeTrashRequest {
                    volume: id.to_string(),
                };
                let asked = AdminClient::new(channel).purge_trash(request).await;
                asked.map_err(|s| self.said(node, &s))?;
            }
        }
        tracing::info!(volume = found.record.name, %id, "volume of the trashcan deleted");
        Ok(id)
    }

    /// Deletes what has been in the trashcan for its time at this moment, in ms since the Unix epoch. What cannot be deleted now is tried again.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn trash_tick(&self, now_unix_ms: u64) -> Result<(), OpError> {
        self.no_restore().await?;
        if self.sees_now().await? && !self.sees_trash() {
            // So nearly always: then not all volumes are read for it.
            return Ok(());
        }
        for volume in self.trashed().await? {
            let Some(trashed) = &volume.record.trashed else {
                continue;
            };
            if trashed.until_unix_ms > now_unix_ms {
                continue;
            }
            if let Err(error) = self.purge(&volume.record.volume_id.to_string()).await {
                tracing::warn!(volume = trashed.name, %error, "a volume of the trashcan cannot be deleted yet");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_trashcan_are_names_and_all_different() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for name in ["db", &"ü".repeat(127), &"n".repeat(255)] {
            let new = name_in_trash(name, a);
            check_name(&new).unwrap();
            assert_ne!(new, name_in_trash(name, b));
        }
        assert!(name_in_trash("db", a).starts_with("db.trash-"));
    }
}
