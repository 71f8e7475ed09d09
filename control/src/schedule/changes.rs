//! What people do with policies and schedules.
use super::policy::{PolicyRecord, check_policy_name};
use super::record::ScheduleRecord;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{Versioned, encode};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most policies of one volume.
const POLICIES_MAX: usize = 16;
/// Attempts at a record that its runner changes too.
const ATTEMPTS: usize = 8;

fn no_policy(name: &str) -> OpError {
    OpError::NotFound {
        kind: "schedule policy",
        name: name.into(),
    }
}

impl Node {
    /// Makes a policy. The same again succeeds.
    ///
    /// # Errors
    /// [`OpError::Exists`] of another one of that name; what cannot be a policy.
    pub async fn create_policy(&self, policy: PolicyRecord) -> Result<(), OpError> {
        policy.check()?;
        let key = self.registry.keys().policy(&policy.name);
        if self
            .registry
            .make(vec![(key.clone(), encode(&policy))])
            .await?
        {
            return Ok(());
        }
        match self.registry.get::<PolicyRecord>(&key).await? {
            Some(found) if found.record.schedules == policy.schedules => Ok(()),
            Some(_) => Err(OpError::Exists {
                name: format!("schedule policy {}", policy.name),
                what: "other times: update it instead".into(),
            }),
            None => Err(OpError::Contended { what: key }),
        }
    }

    /// Makes a policy another one; volumes that have it follow.
    ///
    /// # Errors
    /// [`OpError::NotFound`]; what cannot be a policy.
    pub async fn update_policy(&self, policy: PolicyRecord) -> Result<(), OpError> {
        policy.check()?;
        let key = self.registry.keys().policy(&policy.name);
        let missing = || no_policy(&policy.name);
        let change = |found: &mut PolicyRecord| {
            if found.schedules == policy.schedules {
                return Ok(false);
            }
            *found = policy.clone();
            Ok(true)
        };
        self.registry.change(&key, missing, change).await.map(drop)
    }

    /// All policies, by name.
    ///
    /// # Errors
    /// Those of the KVDB.
    pub async fn policies(&self) -> Result<Vec<PolicyRecord>, OpError> {
        let all = self.registry.list(&self.registry.keys().policies()).await?;
        Ok(all.into_iter().map(|p| p.record).collect())
    }

    /// The policy of that name.
    ///
    /// # Errors
    /// [`OpError::NotFound`].
    pub async fn policy(&self, name: &str) -> Result<PolicyRecord, OpError> {
        check_policy_name(name)?;
        let key = self.registry.keys().policy(name);
        let found = self.registry.get::<PolicyRecord>(&key).await?;
        found.map(|f| f.record).ok_or_else(|| no_policy(name))
    }

    /// Deletes a policy; one that is not there, too.
    ///
    /// # Errors
    /// [`OpError::State`]: volumes have it.
    pub async fn delete_policy(&self, name: &str) -> Result<(), OpError> {
        check_policy_name(name)?;
        for schedule in self.schedules().await? {
            let (record, volume) = (&schedule.record, schedule.record.volume_id);
            if !record.policies.contains_key(name) {
                continue;
            }
            if let Some(volume) = self.registry.volume_by_id(volume).await? {
                return Err(OpError::State(format!(
                    "volume {} has schedule policy {name}: take it away there first, with `keelctl volume snap-schedule`",
                    volume.record.name
                )));
            }
        }
        let key = self.registry.keys().policy(name);
        Ok(self.registry.kv().delete(key).await.map(drop)?)
    }

    /// The schedules of all volumes.
    pub(crate) async fn schedules(&self) -> Result<Vec<Versioned<ScheduleRecord>>, OpError> {
        self.registry.list(&self.registry.keys().schedules()).await
    }

    /// The policies that a volume has.
    ///
    /// # Errors
    /// Those of the KVDB.
    pub async fn schedule_of(&self, volume: Uuid) -> Result<Option<ScheduleRecord>, OpError> {
        let key = self.registry.keys().schedule(volume);
        Ok(self.registry.get(&key).await?.map(|f| f.record))
    }

    /// The policies of a volume that is made, as they are compared and written with it. If it is not made after all, they go as those of any volume that is no more.
    ///
    /// # Errors
    /// [`OpError::NotFound`]: no such policy.
    pub(crate) async fn schedule_with(
        &self,
        volume_id: Uuid,
        policies: &[String],
        now_unix_ms: u64,
    ) -> Result<(Vec<Guard>, Vec<Write>), OpError> {
        let wanted = distinct(policies.to_vec())?;
        if wanted.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let keys = self.registry.keys();
        let mut guards = Vec::new();
        for name in &wanted {
            self.policy(name).await?;
            // It is not deleted meanwhile.
            guards.push(Guard::exists(keys.policy(name)));
        }
        let record = next(None, volume_id, &wanted, now_unix_ms);
        let write = Write::put(keys.schedule(volume_id), encode(&record));
        Ok((guards, vec![write]))
    }

    /// Gives a volume these policies, instead of those that it has; none ends it. Snapshots that were taken stay.
    ///
    /// # Errors
    /// [`OpError::NotFound`]: no such volume or policy.
    pub async fn set_schedule(
        &self,
        volume: &str,
        policies: Vec<String>,
        now_unix_ms: u64,
    ) -> Result<(), OpError> {
        let wanted = distinct(policies)?;
        let volume_id = self.registry.volume(volume).await?.record.volume_id;
        let keys = self.registry.keys();
        let key = keys.schedule(volume_id);
        for _ in 0..ATTEMPTS {
            // Policies that are deleted meanwhile, and a volume that is, make it begin again.
            let volume = self.registry.volume(volume).await?;
            let mut guards = vec![Guard::at(keys.volume(volume_id), volume.revision)];
            for name in &wanted {
                let key = keys.policy(name);
                self.policy(name).await?;
                guards.push(Guard::exists(key));
            }
            let found: Option<Versioned<ScheduleRecord>> = self.registry.get(&key).await?;
            guards.push(Guard::at(&key, found.as_ref().map_or(0, |f| f.revision)));
            let write = match wanted.is_empty() {
                true => Write::delete(&key),
                false => Write::put(&key, encode(&next(found, volume_id, &wanted, now_unix_ms))),
            };
            if self.registry.kv().commit(guards, vec![write]).await? != Committed::No {
                return Ok(());
            }
        }
        Err(OpError::Contended { what: key })
    }
}

/// Each policy once.
fn distinct(policies: Vec<String>) -> Result<Vec<String>, OpError> {
    let mut wanted: Vec<String> = Vec::new();
    for name in policies {
        check_policy_name(&name)?;
        if !wanted.contains(&name) {
            wanted.push(name);
        }
    }
    if wanted.len() > POLICIES_MAX {
        let why = format!("at most {POLICIES_MAX} policies");
        return Err(OpError::invalid("snapshot_schedule_names", why));
    }
    Ok(wanted)
}

/// What was done for policies that stay is still done.
fn next(
    found: Option<Versioned<ScheduleRecord>>,
    volume_id: Uuid,
    policies: &[String],
    now_unix_ms: u64,
) -> ScheduleRecord {
    let before = found.map(|f| f.record);
    let since = |name: &String| {
        let before = before.as_ref().and_then(|b| b.policies.get(name));
        (name.clone(), before.copied().unwrap_or(now_unix_ms))
    };
    ScheduleRecord {
        volume_id,
        policies: policies.iter().map(since).collect(),
        done: before
            .as_ref()
            .map_or_else(BTreeMap::new, |b| b.done.clone()),
        error: String::new(),
    }
}
