//! Snapshots of several volumes at one moment (`docs/replication.md` §22): each node does its part for the volumes that it serves, from the records alone. All of a
//! group become *ready*, or *deleting*, in one transaction.

use std::time::Duration;

use keelblock_api::datapath::{HoldSnapshotRequest, ReleaseSnapshotRequest, TakeSnapshotRequest};
use tokio::time::Instant;
use uuid::Uuid;

use super::Kept;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{JointStep, Phase, SnapshotRecord, Versioned, encode};

/// How long what came behind a barrier waits for other volumes at most.
const HOLD: Duration = Duration::from_secs(1);
/// How long a data path may take to say that it holds, or that a snapshot exists: then other things have their turn.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// A group that is not ready by then never is. As long as whoever asked waits.
const LIMIT: Duration = Duration::from_secs(10);
/// How often it is written that all are ready, as a set has changed meanwhile.
const ATTEMPTS: usize = 16;

/// What is next for one of a group.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It is put in, and held.
    Hold,
    /// Nothing, until another one is further.
    Wait,
    /// What came behind it may be acknowledged.
    Release,
    /// All are ready.
    Ready,
    /// None of them is to be.
    Void(&'static str),
}

/// What whoever serves its volume in this epoch does next.
fn next(own: &SnapshotRecord, group: &[&SnapshotRecord], epoch: u32, age: Duration) -> Next {
    let Some(joint) = &own.joint else {
        return Next::Wait;
    };
    let steps = || {
        group
            .iter()
            .filter_map(|s| s.joint.as_ref())
            .map(|j| j.step)
    };
    let whole = group.len() == usize::from(joint.count)
        && steps().count() == group.len()
        && group.iter().all(|s| s.phase == Phase::Creating);
    match joint.step {
        _ if own.epoch != Some(epoch) => Next::Void("a takeover came between"),
        _ if !whole => Next::Void("another one of them is given up"),
        _ if age > LIMIT => Next::Void("it takes too long"),
        JointStep::Wanted => Next::Hold,
        JointStep::Held if steps().all(|s| s >= JointStep::Held) => Next::Release,
        JointStep::Taken if steps().all(|s| s == JointStep::Taken) => Next::Ready,
        JointStep::Held | JointStep::Taken => Next::Wait,
    }
}

impl Node {
    /// Does what is next for a snapshot of a volume that is served here in this epoch, and that is one of a group. When to look again.
    pub(super) async fn follow_joint(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
        epoch: u32,
    ) -> Result<Option<Duration>, OpError> {
        let own = &snapshot.record;
        let age = self.coordination.group_age(own.group);
        let group = self.coordination.seen().group(own.group);
        let records: Vec<&SnapshotRecord> = group.iter().map(|s| &s.record).collect();
        match next(own, &records, epoch, age) {
            // Another one may be away: then this one gives them up.
            Next::Wait => return Ok(Some(LIMIT / 10)),
            Next::Hold => match self.hold(own, epoch).await? {
                true => self.joint_is(snapshot, JointStep::Held).await?,
                false => self.void_group(own, "it is not held any more").await?,
            },
            Next::Release => match self.release_and_take(own, epoch).await? {
                true => self.joint_is(snapshot, JointStep::Taken).await?,
                false => self.void_group(own, "another one came too late").await?,
            },
            Next::Ready => self.group_ready(&group).await?,
            Next::Void(why) => self.void_group(own, why).await?,
        }
        Ok(None)
    }

    async fn hold(&self, own: &SnapshotRecord, epoch: u32) -> Result<bool, OpError> {
        let request = HoldSnapshotRequest {
            volume_id: own.volume_id.to_string(),
            snapshot_id: own.snapshot_id.to_string(),
            epoch,
            of_epoch: own.epoch.unwrap_or_default(),
            hold_ms: HOLD.as_millis() as u32,
        };
        let what = format!("put in snapshot {}", own.name);
        let held = self
            .link
            .call_within(CALL_LIMIT, &what, |mut c| async move {
                c.hold_snapshot(request).await
            });
        Ok(held.await?.held)
    }

    /// Whether it was held until now, and exists.
    async fn release_and_take(&self, own: &SnapshotRecord, epoch: u32) -> Result<bool, OpError> {
        let (volume_id, snapshot_id) = (own.volume_id.to_string(), own.snapshot_id.to_string());
        let request = ReleaseSnapshotRequest {
            volume_id: volume_id.clone(),
            snapshot_id: snapshot_id.clone(),
            epoch,
        };
        let what = format!("release snapshot {}", own.name);
        let released = self
            .link
            .call_within(CALL_LIMIT, &what, |mut c| async move {
                c.release_snapshot(request).await
            });
        if !released.await?.held {
            return Ok(false);
        }
        let request = TakeSnapshotRequest {
            volume_id,
            snapshot_id,
            epoch,
            of_epoch: own.epoch.unwrap_or_default(),
        };
        let what = format!("take snapshot {}", own.name);
        let taken = self
            .link
            .call_within(CALL_LIMIT, &what, |mut c| async move {
                c.take_snapshot(request).await
            });
        Ok(taken.await?.exists)
    }

    /// Writes how far one is. Who changed it meanwhile gave the group up.
    async fn joint_is(
        &self,
        snapshot: &Versioned<SnapshotRecord>,
        step: JointStep,
    ) -> Result<(), OpError> {
        let mut record = snapshot.record.clone();
        if let Some(joint) = &mut record.joint {
            joint.step = step;
        }
        let key = self.registry.keys().snapshot(record.snapshot_id);
        let kv = self.registry.kv();
        kv.compare_and_swap(&key, snapshot.revision, encode(&record))
            .await?;
        Ok(())
    }

    /// Writes that all are ready, as long as no volume has another epoch than that of its snapshot.
    async fn group_ready(&self, group: &[Kept<SnapshotRecord>]) -> Result<(), OpError> {
        let keys = self.registry.keys();
        for _ in 0..ATTEMPTS {
            let (mut guards, mut writes) = (Vec::new(), Vec::new());
            for snapshot in group {
                let record = &snapshot.record;
                let set = self.replication(record.volume_id).await?;
                let same = set.filter(|s| Some(s.record.epoch.number()) == record.epoch);
                let Some(set) = same else {
                    return self.void_group(record, "a takeover came between").await;
                };
                let key = keys.snapshot(record.snapshot_id);
                guards.push(Guard::at(keys.replication(record.volume_id), set.revision));
                guards.push(Guard::at(&key, snapshot.revision));
                let ready = SnapshotRecord {
                    phase: Phase::Ready,
                    joint: None,
                    ..record.clone()
                };
                writes.push(Write::put(&key, encode(&ready)));
            }
            if self.registry.kv().commit(guards, writes).await? != Committed::No {
                let first = group.first().map(|s| s.record.name.as_str());
                tracing::info!(
                    first,
                    count = group.len(),
                    "snapshots of several volumes taken"
                );
                return Ok(());
            }
            for snapshot in group {
                let key = keys.snapshot(snapshot.record.snapshot_id);
                let there = self.registry.get::<SnapshotRecord>(&key).await?;
                if there.is_none_or(|s| s.revision != snapshot.revision) {
                    // Another node was first, with this or the other.
                    return Ok(());
                }
            }
        }
        Err(OpError::Contended {
            what: "snapshots of several volumes".into(),
        })
    }

    /// None of a group is to be.
    async fn void_group(&self, own: &SnapshotRecord, why: &str) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let all = self
            .registry
            .list::<SnapshotRecord>(&keys.snapshots())
            .await?;
        let creating = |s: &&Versioned<SnapshotRecord>| {
            s.record.group == own.group && s.record.phase == Phase::Creating
        };
        let (mut guards, mut writes) = (Vec::new(), Vec::new());
        for snapshot in all.iter().filter(creating) {
            let key = keys.snapshot(snapshot.record.snapshot_id);
            guards.push(Guard::at(&key, snapshot.revision));
            let deleting = SnapshotRecord {
                phase: Phase::Deleting,
                ..snapshot.record.clone()
            };
            writes.push(Write::put(&key, encode(&deleting)));
        }
        if writes.is_empty() {
            return Ok(());
        }
        tracing::warn!(group = %own.group, snapshot = own.name, why, "snapshots of several volumes do not exist");
        // Who wrote something of it meanwhile is seen, and it is looked at again.
        self.registry.kv().commit(guards, writes).await?;
        Ok(())
    }
}

impl super::Coordination {
    /// Since when a group is known here.
    fn group_age(&self, group: Uuid) -> Duration {
        let now = Instant::now();
        let mut all = self.groups();
        // Those of long ago are decided.
        all.retain(|_, since| now - *since < LIMIT * 6);
        now - *all.entry(group).or_insert(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::JointRecord;
    use std::collections::BTreeMap;

    fn one(step: JointStep) -> SnapshotRecord {
        SnapshotRecord {
            snapshot_id: Uuid::from_u128(1),
            name: "s".into(),
            phase: Phase::Creating,
            volume_id: Uuid::from_u128(2),
            volume_name: "v".into(),
            group: Uuid::from_u128(3),
            node_id: String::new(),
            pool_id: Uuid::nil(),
            size_bytes: 4096,
            block_bytes: 4096,
            labels: BTreeMap::new(),
            created_unix_ms: 1,
            error: String::new(),
            epoch: Some(5),
            for_clone: None,
            ownership: None,
            joint: Some(JointRecord { count: 2, step }),
        }
    }

    fn of(own: JointStep, other: JointStep) -> Next {
        let (own, other) = (one(own), one(other));
        next(&own, &[&own, &other], 5, Duration::ZERO)
    }

    fn is_void(next: &Next) -> bool {
        matches!(next, Next::Void(_))
    }

    #[test]
    fn each_waits_for_the_others_before_it_is_released_and_ready() {
        use JointStep::{Held, Taken, Wanted};
        let all = [Wanted, Held, Taken].map(|own| [Wanted, Held, Taken].map(|o| of(own, o)));
        let expected = [
            [Next::Hold, Next::Hold, Next::Hold],
            [Next::Wait, Next::Release, Next::Release],
            [Next::Wait, Next::Wait, Next::Ready],
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn all_are_void_when_one_is_not_what_it_was() {
        let own = one(JointStep::Taken);
        let mut other = one(JointStep::Taken);
        let look = |group: &[&SnapshotRecord], epoch, age| next(&own, group, epoch, age);
        assert_eq!(look(&[&own, &other], 5, LIMIT), Next::Ready);
        let late = LIMIT + Duration::from_millis(1);
        assert!(is_void(&look(&[&own, &other], 5, late)));
        assert!(is_void(&look(&[&own, &other], 6, Duration::ZERO)));
        assert!(is_void(&look(&[&own], 5, Duration::ZERO)));
        other.phase = Phase::Deleting;
        assert!(is_void(&look(&[&own, &other], 5, Duration::ZERO)));
    }
}
