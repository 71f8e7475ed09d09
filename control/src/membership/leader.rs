//! Whoever has `leaders/membership` does what is next for nodes that are drained, in maintenance or decommissioned. The lease is only taken while there is something to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::record::{DrainState, MemberRecord, MemberState};
use super::steps::{Plan, Step, plan};
use super::transition;
use super::world::World;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::{HaWish, Node};
use crate::records::{AttachmentRecord, PathState, Versioned, encode, unix_ms};

/// How often it is looked at what is next.
const LOOK: Duration = Duration::from_secs(2);
/// A storageless node that is away so long, and has nothing, is forgotten.
const FORGET: Duration = Duration::from_secs(20 * 60);

/// Looks after members until told to stop. An error: this node is none any more.
pub async fn lead_membership(node: Arc<Node>, mut stop: watch::Receiver<bool>) -> Option<OpError> {
    let mut looked = HashMap::new();
    let work = async {
        loop {
            if let Some(error) = node.left() {
                return error;
            }
            if node.members_want_something(&looked) {
                match node.lead(&node.registry.keys().member_leader()).await {
                    Ok(Some(mut lease)) => {
                        let id = lease.id();
                        tokio::select! {
                            () = run(&node, &mut looked) => {
                                // Else the next one waits until it has run out.
                                drop(lease);
                                if let Err(error) = node.registry.kv().lease_revoke(id).await {
                                    tracing::debug!(%error, "the lease of who looks after members runs out by itself");
                                }
                            }
                            () = lease.lost() => {
                                tracing::warn!("another node may look after members now: the lease is gone");
                            }
                        }
                    }
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "cannot see who looks after members"),
                }
            }
            tokio::select! {
                () = node.coordination.until_members_changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    };
    tokio::select! {
        error = work => Some(error),
        // An error means that the process is ending, which is the same.
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

/// As long as there is something to do.
async fn run(node: &Arc<Node>, looked: &mut HashMap<String, Instant>) {
    while node.left().is_none() && node.members_want_something(looked) {
        if let Err(error) = node.member_tick(looked).await {
            tracing::warn!(%error, "cannot see what is next for members");
        }
        tokio::select! {
            () = node.coordination.until_members_changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Something is to be done for a node.
fn wants(member: &MemberRecord) -> bool {
    match member.state {
        MemberState::Decommissioned => false,
        MemberState::Decommissioning => true,
        MemberState::Active | MemberState::Maintenance => member.sheds_attachments(),
    }
}

impl Node {
    /// This node was decommissioned.
    fn left(&self) -> Option<OpError> {
        let seen = self.coordination.seen();
        let mine = seen.member(self.node_id())?;
        let gone = mine.state == MemberState::Decommissioned && mine.identity == self.identity();
        let refused = transition::Refused::Gone(self.node_id().into());
        gone.then(|| refused.into())
    }

    /// As far as was seen.
    fn members_want_something(&self, looked: &HashMap<String, Instant>) -> bool {
        let seen = self.coordination.seen();
        let forget = |id: &str| {
            let gone = seen.gone_since(id).is_some_and(|at| at.elapsed() >= FORGET);
            gone && looked.get(id).is_none_or(|at| at.elapsed() >= FORGET)
        };
        let mut members = seen.members();
        members.any(|m| wants(m) || m.state == MemberState::Active && forget(&m.node_id))
    }

    /// Does what is next for every member.
    async fn member_tick(&self, looked: &mut HashMap<String, Instant>) -> Result<(), OpError> {
        self.no_restore().await?;
        let world = World::look(&self.registry).await?;
        for found in world.members.values() {
            if wants(&found.record) {
                self.follow_member(&world, found).await?;
            } else if self.is_forgotten(&world, &found.record) {
                looked.insert(found.record.node_id.clone(), Instant::now());
                self.forget_storageless(&world, found).await?;
            }
        }
        Ok(())
    }

    fn is_forgotten(&self, world: &World, member: &MemberRecord) -> bool {
        let id = &member.node_id;
        let away = self.coordination.seen().gone_since(id);
        member.state == MemberState::Active
            && !world.alive.contains_key(id)
            && away.is_some_and(|at| at.elapsed() >= FORGET)
    }

    /// A node without a pool that is away for long and has nothing is no member any more. One with something stays, and is looked at again later.
    async fn forget_storageless(
        &self,
        world: &World,
        found: &Versioned<MemberRecord>,
    ) -> Result<(), OpError> {
        let mut emptied = found.record.clone();
        emptied.state = MemberState::Decommissioning;
        let storage = world.is_storage(&found.record.node_id);
        if storage || !plan(world, &emptied, unix_ms()).empty {
            return Ok(());
        }
        self.close_and_forget(found).await.map(drop)
    }

    async fn follow_member(
        &self,
        world: &World,
        found: &Versioned<MemberRecord>,
    ) -> Result<(), OpError> {
        let plan = plan(world, &found.record, unix_ms());
        if found.record.state == MemberState::Decommissioning && plan.empty {
            return self.forget_node(world, found).await.map(drop);
        }
        let (mut moved, mut waits) = (0, plan.waits.clone());
        for step in &plan.steps {
            match self.do_step(world, step).await {
                Ok(true) if matches!(step, Step::Reattach(..)) => moved += 1,
                Ok(_) => {}
                // The KVDB is away: there is no use in going on.
                Err(error) if error.is_uncertain() => return Err(error),
                Err(error) => waits.push(error.to_string()),
            }
        }
        self.tell_member(found, &plan, moved, &waits).await
    }

    /// Writes down what is left. Somebody who was faster is seen at the next look.
    async fn tell_member(
        &self,
        found: &Versioned<MemberRecord>,
        plan: &Plan,
        moved: u32,
        waits: &[String],
    ) -> Result<(), OpError> {
        let now = unix_ms();
        let mut record = found.record.clone();
        record.waits = told(waits);
        let drains = record.drain.as_mut();
        if let Some(drain) = drains.filter(|d| d.state == DrainState::Running) {
            drain.moved += moved;
            drain.left = plan.attached;
            if moved > 0 {
                drain.updated_unix_ms = now;
            }
        }
        let idle = plan.steps.is_empty();
        if plan.attached == 0 {
            transition::end_drain(&mut record, DrainState::Done, now);
        } else if idle && plan.stuck == plan.attached {
            transition::end_drain(&mut record, DrainState::Failed, now);
        }
        if record == found.record {
            return Ok(());
        }
        self.swap_member(found, &record).await.map(drop)
    }

    /// One step; false: somebody changed something meanwhile.
    async fn do_step(&self, world: &World, step: &Step) -> Result<bool, OpError> {
        match step {
            Step::Move(volume, replica) => {
                let wish = HaWish::Move(replica.to_string(), None);
                self.change_ha(&volume.to_string(), wish).await?;
                Ok(true)
            }
            Step::Reattach(volume, to) => self.attach_elsewhere(world, *volume, to, false).await,
            Step::Errand(volume, on) => self.attach_elsewhere(world, *volume, on, true).await,
        }
    }

    /// Writes that a volume is attached to another node, or coordinated by it for a while.
    async fn attach_elsewhere(
        &self,
        world: &World,
        id: Uuid,
        to: &str,
        errand: bool,
    ) -> Result<bool, OpError> {
        let keys = self.registry.keys();
        let before = world.attachments.get(&id);
        let Some(volume) = world.volumes.get(&id) else {
            return Ok(false);
        };
        let record = AttachmentRecord {
            volume_id: id,
            node_id: to.into(),
            subsystem_of: id,
            nsid: 1,
            path_state: match errand {
                true => PathState::Inaccessible,
                false => PathState::Optimized,
            },
            attached_unix_ms: unix_ms(),
            moved_from: before.map(|b| b.record.node_id.clone()),
            errand,
        };
        let revision = world.members.get(to).map_or(0, |m| m.revision);
        let guards = vec![
            Guard::at(keys.attachment(id), before.map_or(0, |b| b.revision)),
            Guard::at(keys.volume(id), volume.revision),
            Guard::at(keys.member(to), revision),
        ];
        let write = Write::put(keys.attachment(id), encode(&record));
        let done = self.registry.kv().commit(guards, vec![write]).await? != Committed::No;
        if done {
            let from = record.moved_from.as_deref().unwrap_or_default();
            tracing::info!(
                volume = volume.record.name,
                from,
                to,
                errand,
                "a volume is to be coordinated elsewhere"
            );
        }
        Ok(done)
    }
}

/// Longest text of what is left, in bytes.
const TOLD_MAX: usize = 2000;

fn told(waits: &[String]) -> String {
    let mut text = String::new();
    for (n, one) in waits.iter().enumerate() {
        if text.len() + one.len() > TOLD_MAX && n > 0 {
            return format!("{text}; and {} more", waits.len() - n);
        }
        if n > 0 {
            text += "; ";
        }
        text += one;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_in_a_bounded_text() {
        assert_eq!(told(&[]), "");
        assert_eq!(told(&["a".into(), "b".into()]), "a; b");
        let many: Vec<String> = (0..100)
            .map(|n| format!("{n} {}", "x".repeat(90)))
            .collect();
        let text = told(&many);
        assert!(
            text.len() < TOLD_MAX + 200 && text.ends_with("more"),
            "{text}"
        );
    }
}
