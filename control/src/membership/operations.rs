//! What people ask of nodes: cordon, label, maintenance, drain, decommission, remove. What is wanted is written down; [`super::leader`] does the rest.

use super::record::{DrainState, MemberRecord, MemberState};
use super::transition::{self, Refused};
use super::weigh::{against_decommission, against_maintenance};
use super::world::World;
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Write};
use crate::node::Node;
use crate::records::{AlertKind, Severity, Versioned, encode, unix_ms};
use uuid::Uuid;

/// Attempts at a change that others keep getting ahead of.
const ATTEMPTS: usize = 8;

/// What is wanted of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// These labels are set; an empty value takes one away.
    Labels(Vec<(String, String)>),
    /// It gets nothing new, or may again.
    Cordon(bool),
    /// Its machine may be taken away; in spite of volumes that miss it.
    Maintenance {
        /// Even if volumes cannot do without it.
        force: bool,
    },
    /// It is back.
    EndMaintenance,
    /// Attachments leave it; who asked.
    Drain(String),
    /// They need not any more.
    EndDrain,
    /// It is emptied, and leaves.
    Decommission,
    /// It stays.
    EndDecommission,
    /// It is away, has nothing, and is forgotten.
    Remove,
}

fn refuse(node: &str, what: &str, against: &[String], way: &str) -> Result<(), OpError> {
    match against.is_empty() {
        true => Ok(()),
        false => Err(OpError::State(format!(
            "node {node} cannot {what}: {}{way}",
            against.join("; ")
        ))),
    }
}

/// Of a node that joined before there were member records.
fn unknown(world: &World, node: &str) -> Result<Versioned<MemberRecord>, OpError> {
    match world.nodes.contains_key(node) {
        true => Err(OpError::State(format!(
            "node {node} has not been started since members have records: start its control process once"
        ))),
        false => Err(OpError::NotFound {
            kind: "node",
            name: node.into(),
        }),
    }
}

impl Node {
    /// Changes what is wanted of a node; its record then.
    ///
    /// # Errors
    /// [`OpError::NotFound`]; [`OpError::State`] with every volume that stands against it, and what to do.
    pub(crate) async fn change_member(
        &self,
        node: &str,
        wish: &Wish,
    ) -> Result<MemberRecord, OpError> {
        for _ in 0..ATTEMPTS {
            let world = World::look(&self.registry).await?;
            let found = match world.members.get(node) {
                Some(found) => found.clone(),
                None => unknown(&world, node)?,
            };
            if *wish == Wish::Remove {
                match self.remove(&world, &found).await? {
                    Some(gone) => return Ok(gone),
                    None => continue,
                }
            }
            let mut record = found.record.clone();
            apply(&world, &mut record, wish, unix_ms())?;
            if record == found.record {
                return Ok(record);
            }
            record.changed_unix_ms = unix_ms();
            if self.want_of_member(&found, &record).await? {
                tracing::info!(node, wish = ?wish, state = record.state.name(), "member changed");
                self.coordination.members_changed();
                return Ok(record);
            }
        }
        Err(OpError::Contended {
            what: format!("node {node}"),
        })
    }

    /// Writes a member record in the place of the one that was read; false: somebody was faster.
    pub(super) async fn swap_member(
        &self,
        found: &Versioned<MemberRecord>,
        record: &MemberRecord,
    ) -> Result<bool, OpError> {
        let key = self.registry.keys().member(&record.node_id);
        let kv = self.registry.kv();
        let swapped = kv.compare_and_swap(&key, found.revision, encode(record));
        Ok(swapped.await? != Committed::No)
    }

    /// The same where something else is wanted of the node: no replica is placed by what was seen before (`docs/placement.md` §5).
    async fn want_of_member(
        &self,
        found: &Versioned<MemberRecord>,
        record: &MemberRecord,
    ) -> Result<bool, OpError> {
        let keys = self.registry.keys();
        let key = keys.member(&record.node_id);
        let guards = vec![Guard::at(&key, found.revision)];
        let writes = vec![
            Write::put(&key, encode(record)),
            Write::put(keys.placements(), Uuid::new_v4().to_string()),
        ];
        Ok(self.registry.kv().commit(guards, writes).await? != Committed::No)
    }

    /// M9: of a node that is away and has nothing.
    async fn remove(
        &self,
        world: &World,
        found: &Versioned<MemberRecord>,
    ) -> Result<Option<MemberRecord>, OpError> {
        let node = &found.record.node_id;
        if found.record.state == MemberState::Decommissioned {
            return Ok(Some(found.record.clone()));
        }
        if world.alive.contains_key(node) {
            return Err(OpError::State(format!(
                "node {node} lives: `keelctl node decommission {node}` empties it first, or stop it if it has nothing"
            )));
        }
        let mut emptied = found.record.clone();
        emptied.state = MemberState::Decommissioning;
        let plan = super::steps::plan(world, &emptied, unix_ms());
        if !plan.empty {
            return Err(OpError::State(format!(
                "node {node} is not empty, `keelctl node decommission {node}` moves what it has: {}",
                plan.waits.join("; ")
            )));
        }
        self.close_and_forget(found).await
    }

    /// M9 in two steps: at first the node gets nothing more, then, if it still has nothing and is away, it is no member any more. `None`: it is to be tried again.
    pub(super) async fn close_and_forget(
        &self,
        found: &Versioned<MemberRecord>,
    ) -> Result<Option<MemberRecord>, OpError> {
        let node = &found.record.node_id;
        let mut closed = found.record.clone();
        transition::decommission(&mut closed)?;
        if closed != found.record && !self.want_of_member(found, &closed).await? {
            return Ok(None);
        }
        let world = World::look(&self.registry).await?;
        let Some(now) = world.members.get(node).filter(|m| m.record == closed) else {
            return Ok(None);
        };
        if world.alive.contains_key(node) || !super::steps::plan(&world, &closed, unix_ms()).empty {
            // It came back, or got something at the last moment.
            if closed != found.record {
                self.swap_member(now, &found.record).await?;
            }
            return Ok(None);
        }
        self.forget_node(&world, now).await
    }

    /// M8 and M9: the node is no member any more, and nothing of it is left in the KVDB but that. `None`: somebody changed something meanwhile.
    ///
    /// Nothing can have come to it since `world` was read: it is being decommissioned, so nothing is placed there, and whoever attaches to it or makes a volume there compares its record.
    pub(super) async fn forget_node(
        &self,
        world: &World,
        found: &Versioned<MemberRecord>,
    ) -> Result<Option<MemberRecord>, OpError> {
        let node = &found.record.node_id;
        let keys = self.registry.keys();
        let mut record = found.record.clone();
        transition::gone(&mut record, unix_ms());
        let guards = vec![Guard::at(keys.member(node), found.revision)];
        let mut writes = vec![
            Write::put(keys.member(node), encode(&record)),
            Write::delete(keys.node(node)),
        ];
        let pools = world.pools.iter().filter(|p| p.node_id == *node);
        writes.extend(pools.map(|p| Write::delete(keys.pool(p.pool_id))));
        let kv = self.registry.kv();
        if kv.commit(guards, writes).await? == Committed::No {
            return Ok(None);
        }
        // What it said of replicas that were leaving while it was away: nobody waits for it from now on. Volumes that are being deleted follow these keys.
        for ((volume, replica), r) in &world.replicas {
            if r.node_id == *node {
                kv.delete(keys.replica(*volume, *replica)).await?;
            }
        }
        tracing::info!(node, "node is no member any more");
        let message = format!("node {node} was decommissioned");
        self.raise_alert(AlertKind::NodeLeft, node, "", Severity::Notify, message)
            .await?;
        Ok(Some(record))
    }
}

/// Changes a record as is wished, if nothing stands against it.
fn apply(
    world: &World,
    record: &mut MemberRecord,
    wish: &Wish,
    now_unix_ms: u64,
) -> Result<(), OpError> {
    let node = record.node_id.clone();
    match wish {
        Wish::Labels(labels) => transition::set_labels(record, labels.iter().cloned())?,
        Wish::Cordon(cordoned) => transition::cordon(record, *cordoned, now_unix_ms)?,
        Wish::Maintenance { force } => {
            if !*force && record.state == MemberState::Active {
                let against = against_maintenance(world, &node);
                let way = "; wait for replicas, or enter in spite of that with --force";
                refuse(&node, "be taken away", &against, way)?;
            }
            transition::enter_maintenance(record)?;
        }
        Wish::EndMaintenance => transition::exit_maintenance(record)?,
        Wish::Drain(issuer) => transition::drain(record, issuer, now_unix_ms)?,
        Wish::EndDrain => transition::end_drain(record, DrainState::Cancelled, now_unix_ms),
        Wish::Decommission => {
            if record.state != MemberState::Decommissioning {
                refuse(
                    &node,
                    "be decommissioned",
                    &against_decommission(world, &node),
                    "",
                )?;
            }
            transition::decommission(record)?;
        }
        Wish::EndDecommission => transition::recommission(record)?,
        Wish::Remove => return Err(Refused::Gone(node).into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::world;
    use super::*;

    fn wished(w: &World, wish: &Wish) -> Result<MemberRecord, OpError> {
        let mut record = w.members["n1"].record.clone();
        apply(w, &mut record, wish, 7).map(|()| record)
    }

    #[test]
    fn what_stands_against_it_is_named_unless_it_is_forced() {
        let mut w = world(3);
        w.replicated(1, "db", &[1, 2, 3], 3);
        let gently = Wish::Maintenance { force: false };
        let error = wished(&w, &gently).unwrap_err().to_string();
        assert!(
            error.contains("volume db") && error.contains("--force"),
            "{error}"
        );
        let forced = wished(&w, &Wish::Maintenance { force: true }).unwrap();
        assert_eq!(forced.state, MemberState::Maintenance);
        let error = wished(&w, &Wish::Decommission).unwrap_err().to_string();
        assert!(error.contains("volume db: no other node"), "{error}");
        // What has begun goes on, whatever stands against it by now.
        w.member_mut("n1").state = MemberState::Decommissioning;
        assert!(wished(&w, &Wish::Decommission).is_ok());
    }
}
