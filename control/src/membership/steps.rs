//! What is next for a node that is drained, in maintenance or decommissioned (`docs/membership.md` has the table). Pure: it follows from the records alone, so any node may
//! do it, and begin anew at any time.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::record::{MemberRecord, MemberState};
use super::weigh::nowhere;
use super::world::World;
use crate::records::{AttachmentRecord, Phase, TaskRecord, TaskState, Versioned};
use crate::replication::record::{ReplicaState, ReplicationRecord};

/// Attachments that are on their way at a time.
const ATTACHMENTS_MAX: usize = 4;
/// Replicas that are copied away at a time.
const MOVES_MAX: usize = 2;
/// How soon what failed is tried again.
const AGAIN_MS: u64 = 30_000;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The volume is attached to that node instead.
    Reattach(Uuid, String),
    /// Its replica, of that id, goes elsewhere.
    Move(Uuid, Uuid),
    /// It is coordinated by that node for a while.
    Errand(Uuid, String),
}

/// What is to do, and what is left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What is in the way, or under way, in words.
    pub waits: Vec<String>,
    /// Attachments for hosts that are there, or leave.
    pub attached: u32,
    /// Of those, the ones that cannot be moved.
    pub stuck: u32,
    /// Nothing names the node.
    pub empty: bool,
}

/// What is next for a node.
pub fn plan(world: &World, member: &MemberRecord, now_unix_ms: u64) -> Plan {
    let mut plan = Plan::default();
    let node = member.node_id.as_str();
    let named = attachments(world, node, member, &mut plan);
    let emptied = member.state == MemberState::Decommissioning;
    let replicas = match emptied {
        true => replicas(world, node, now_unix_ms, &mut plan),
        false => 1,
    };
    plan.empty = named == 0 && replicas == 0;
    plan
}

/// How many attachments name the node.
fn attachments(world: &World, node: &str, member: &MemberRecord, plan: &mut Plan) -> usize {
    let all = world.attachments.values();
    let leave = |a: &&Versioned<AttachmentRecord>| a.record.moved_from.as_deref() == Some(node);
    let leaving = all.clone().filter(leave).count();
    plan.attached = u32::try_from(leaving).unwrap_or(u32::MAX);
    let mut room = ATTACHMENTS_MAX.saturating_sub(leaving);
    let mut load: BTreeMap<&str, usize> = BTreeMap::new();
    for at in all.clone() {
        *load.entry(&at.record.node_id).or_default() += 1;
    }
    let mut here = 0;
    for at in all.filter(|a| a.record.node_id == node) {
        let id = at.record.volume_id;
        here += 1;
        if at.record.errand {
            plan.waits.push(format!(
                "volume {} is coordinated there for its snapshots or replicas",
                world.name(id)
            ));
            continue;
        }
        plan.attached = plan.attached.saturating_add(1);
        if !member.sheds_attachments() {
            continue;
        }
        let Some(set) = world.sets.get(&id) else {
            plan.stuck += 1;
            plan.waits.push(format!(
                "volume {} has one replica, a part of that node's pool, and stays attached there: detach it",
                world.name(id)
            ));
            continue;
        };
        match best(world, id, set, node, &load) {
            Some(to) if room > 0 => {
                room -= 1;
                *load.entry(to).or_default() += 1;
                plan.steps.push(Step::Reattach(id, to.to_owned()));
            }
            Some(_) => {}
            None => plan.waits.push(format!(
                "volume {} is attached there, and no other node can coordinate it",
                world.name(id)
            )),
        }
    }
    here + leaving
}

/// The node that is to coordinate a volume instead: with a member if any such may, then with fewest attachments.
fn best<'a>(
    world: &'a World,
    id: Uuid,
    set: &ReplicationRecord,
    node: &str,
    load: &BTreeMap<&str, usize>,
) -> Option<&'a str> {
    let may = world
        .nodes
        .values()
        .filter(|n| n.node_id != node && world.may_coordinate(n));
    let with_member = |n: &str| {
        let mut all = set.replicas.iter();
        all.any(|r| r.node_id == n && world.is_good(id, r))
    };
    let rank = |n: &&'a str| (!with_member(n), load.get(n).copied().unwrap_or(0), *n);
    may.map(|n| n.node_id.as_str()).min_by_key(rank)
}

fn runs(task: &TaskRecord) -> bool {
    !task.state.is_over()
}

/// How many replicas name the node, in a way that something is to be done or waited for.
fn replicas(world: &World, node: &str, now_unix_ms: u64, plan: &mut Plan) -> usize {
    let lives = world.alive.contains_key(node);
    let running = world.tasks.values().filter(|t| {
        let old = t.old.as_ref();
        runs(t) && old.is_some_and(|r| r.node_id == node)
    });
    let mut room = MOVES_MAX.saturating_sub(running.count());
    let mut here = 0;
    for (id, set) in &world.sets {
        let (id, mut of_it) = (*id, set.replicas.iter());
        let Some(replica) = of_it.find(|r| r.node_id == node) else {
            continue;
        };
        let name = world.name(id);
        let phase = world.volumes.get(&id).map(|v| v.record.phase);
        let known = world.replicas.contains_key(&(id, replica.replica_id));
        if replica.state == ReplicaState::Leaving || matches!(phase, None | Some(Phase::Deleting)) {
            // Of a node that is away nobody waits for it, nor for what it has said to have deleted.
            if lives && known {
                here += 1;
                plan.waits
                    .push(format!("the node is deleting its replica of volume {name}"));
            }
            continue;
        }
        here += 1;
        let task = world.tasks.get(&id);
        if let Some(task) = task.filter(|t| runs(t)) {
            plan.waits.push(under_way(&name, task));
            coordinated(world, id, set, node, plan);
            continue;
        }
        if phase != Some(Phase::Ready) {
            plan.waits.push(format!(
                "volume {name} is being made, or kept for its snapshots"
            ));
            continue;
        }
        if let Some(why) = nowhere(world, id, set, node) {
            plan.waits.push(format!(
                "volume {name}: no other node can have its replica ({why})"
            ));
            continue;
        }
        let failed = task.filter(|t| {
            let soon = now_unix_ms.saturating_sub(t.updated_unix_ms) < AGAIN_MS;
            t.state != TaskState::Done && soon
        });
        if let Some(task) = failed {
            plan.waits.push(format!(
                "volume {name}: {} ({}); tried again",
                task.state.name(),
                task.error
            ));
            continue;
        }
        plan.waits
            .push(format!("volume {name} has a replica there"));
        if room > 0 {
            room -= 1;
            plan.steps.push(Step::Move(id, replica.replica_id));
        }
    }
    let new = |t: &&TaskRecord| t.coming().any(|r| r.node_id == node);
    let coming = world.tasks.values().filter(|t| runs(t)).filter(new).count();
    let own = world
        .volumes
        .values()
        .filter(|v| v.record.node_id == node)
        .count();
    let snapshots = world.snapshots.iter();
    let snapshots = snapshots
        .filter(|s| s.epoch.is_none() && s.node_id == node)
        .count();
    if own + snapshots > 0 {
        plan.waits.push(format!(
            "{} volumes and snapshots are in the node's own pool: delete them",
            own + snapshots
        ));
    }
    // What a node says of replicas that no set names any more.
    let strays = world
        .replicas
        .iter()
        .filter(|(_, r)| lives && r.node_id == node);
    let strays = strays.filter(|((v, r), _)| {
        let set = world.sets.get(v);
        set.is_none_or(|s| s.replica(*r).is_none())
    });
    here + coming + own + snapshots + strays.count()
}

fn under_way(name: &str, task: &TaskRecord) -> String {
    let why = match task.error.is_empty() {
        true => String::new(),
        false => format!(": {}", task.error),
    };
    let done = match task.total_bytes {
        0 => String::new(),
        total => format!(" {} %", task.done_bytes.saturating_mul(100) / total),
    };
    format!(
        "volume {name}: {} of replicas, {}{done}{why}",
        task.kind.name(),
        task.step.name()
    )
}

/// A volume that is attached nowhere is coordinated while its replicas are changed.
fn coordinated(world: &World, id: Uuid, set: &ReplicationRecord, node: &str, plan: &mut Plan) {
    if world.attachments.contains_key(&id) {
        return;
    }
    let nobody = BTreeMap::new();
    match best(world, id, set, node, &nobody) {
        Some(on) => plan.steps.push(Step::Errand(id, on.to_owned())),
        None => plan.waits.push(format!(
            "volume {} is attached nowhere, and no other node can coordinate it",
            world.name(id)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::DrainState;
    use super::super::transition;
    use super::super::world::tests::{id, volume_record, world};
    use super::*;
    use crate::records::{TaskKind, TaskReplica, TaskStep};
    use crate::replication::record::{Holder, Token};
    use crate::replication::transition::{Coordinator, leave, serve, take};

    const NOW: u64 = 1_000_000;

    fn planned(w: &World, node: &str) -> Plan {
        plan(w, &w.members[node].record.clone(), NOW)
    }

    fn task(n: u128, old: u8, new: u8) -> TaskRecord {
        let replica = |node: u8| TaskReplica {
            replica_id: id(1000 * n + u128::from(node)),
            node_id: format!("n{node}"),
            pool_id: id(0),
        };
        TaskRecord {
            task_id: id(1),
            volume_id: id(n),
            kind: TaskKind::Move,
            state: TaskState::Running,
            step: TaskStep::Resync,
            wanted_before: 2,
            wanted: 2,
            new: Some(replica(new)),
            old: Some(replica(old)),
            old_first: false,
            automatic: false,
            more: Vec::new(),
            done_bytes: 1,
            total_bytes: 4,
            copied_bytes: 0,
            error: String::new(),
            created_unix_ms: NOW,
            updated_unix_ms: NOW,
        }
    }

    /// The same set with a replica that leaves.
    fn leaving(set: &ReplicationRecord, replica: Uuid) -> ReplicationRecord {
        let holder = Holder {
            node_id: "n2".into(),
            incarnation: Token([2; 16]),
            attempt: Token([9; 16]),
        };
        let taken = take(set, 0, holder).unwrap();
        let by = Coordinator {
            epoch: taken.epoch,
            incarnation: Token([2; 16]),
            attempt: Token([9; 16]),
        };
        let served = serve(&taken, by, &taken.members.clone(), &[]).unwrap();
        leave(&served, by, replica).unwrap()
    }

    #[test]
    fn attachments_go_to_members_that_may_and_are_spread() {
        let mut w = world(4);
        for n in 1..=3 {
            w.replicated(n, &format!("v{n}"), &[1, 2, 3], 2);
            w.attach(n, "n1");
        }
        transition::drain(w.member_mut("n1"), "", NOW).unwrap();
        let p = planned(&w, "n1");
        let to = |n: u128, node: &str| Step::Reattach(id(n), node.into());
        assert_eq!(p.steps, [to(1, "n2"), to(2, "n3"), to(3, "n2")]);
        assert_eq!((p.attached, p.stuck), (3, 0));
        w.member_mut("n2").cordoned = true;
        w.alive.remove("n3");
        let p = planned(&w, "n1");
        assert_eq!(
            p.steps,
            [to(1, "n4"), to(2, "n4"), to(3, "n4")],
            "rather without a member"
        );
        w.member_mut("n4").cordoned = true;
        let p = planned(&w, "n1");
        assert!(p.steps.is_empty() && p.waits.len() == 3, "{p:?}");
    }

    #[test]
    fn few_are_on_their_way_at_a_time() {
        let mut w = world(3);
        for n in 1..=9 {
            w.replicated(n, &format!("v{n}"), &[1, 2], 1);
            w.attach(n, "n1");
        }
        let moved = &mut w.attachments.get_mut(&id(9)).unwrap().record;
        (moved.node_id, moved.moved_from) = ("n2".into(), Some("n1".into()));
        transition::enter_maintenance(w.member_mut("n1")).unwrap();
        let p = planned(&w, "n1");
        assert_eq!((p.steps.len(), p.attached), (ATTACHMENTS_MAX - 1, 9));
        assert!(!p.empty, "maintenance empties nothing");
    }

    #[test]
    fn one_replica_in_the_pool_cannot_be_moved() {
        let mut w = world(2);
        let mut record = volume_record(5, "local");
        (record.replicated, record.node_id) = (None, "n1".into());
        w.volumes.insert(
            id(5),
            Versioned {
                record,
                revision: 1,
            },
        );
        w.attach(5, "n1");
        transition::drain(w.member_mut("n1"), "", NOW).unwrap();
        let p = planned(&w, "n1");
        assert_eq!((p.attached, p.stuck, p.steps.len()), (1, 1, 0));
        assert!(p.waits[0].contains("local"), "{p:?}");
    }

    #[test]
    fn a_node_is_emptied_by_moves_and_gone_when_nothing_names_it() {
        let mut w = world(4);
        for n in 1..=3 {
            w.replicated(n, &format!("v{n}"), &[1, 2], 1);
        }
        transition::decommission(w.member_mut("n1")).unwrap();
        let p = planned(&w, "n1");
        let moves = [Step::Move(id(1), id(1001)), Step::Move(id(2), id(2001))];
        assert_eq!(p.steps, moves, "two at a time");
        // They were begun; nobody coordinates the volumes.
        w.tasks.insert(id(1), task(1, 1, 3));
        w.tasks.insert(id(2), task(2, 1, 3));
        w.attach(2, "n2");
        let p = planned(&w, "n1");
        assert_eq!(p.steps, [Step::Errand(id(1), "n2".into())]);
        assert!(p.waits[0].contains("25 %"), "{p:?}");
        // All are done, and the last one is still being deleted.
        for n in 1..=3 {
            w.tasks.insert(
                id(n),
                TaskRecord {
                    state: TaskState::Done,
                    ..task(n, 1, 3)
                },
            );
            w.replicated(n, &format!("v{n}"), &[3, 2], 1);
            w.replicas.remove(&(id(n), id(1000 * n + 1)));
        }
        let mut stray = w.replicas[&(id(3), id(3002))].clone();
        stray.node_id = "n1".into();
        w.replicas.insert((id(3), id(3001)), stray);
        assert!(!planned(&w, "n1").empty);
        w.replicas.remove(&(id(3), id(3001)));
        assert!(planned(&w, "n1").empty);
        assert!(!planned(&w, "n2").empty, "nobody wants that one empty");
    }

    #[test]
    fn what_comes_to_the_node_or_is_attached_there_is_waited_for() {
        let mut w = world(4);
        transition::decommission(w.member_mut("n1")).unwrap();
        assert!(planned(&w, "n1").empty);
        w.replicated(1, "v", &[2, 3], 1);
        w.tasks.insert(id(1), task(1, 2, 1));
        assert!(
            !planned(&w, "n1").empty,
            "a task that was begun before adds one"
        );
        w.tasks.clear();
        w.attach(1, "n1");
        w.attachments.get_mut(&id(1)).unwrap().record.errand = true;
        let p = planned(&w, "n1");
        assert!(!p.empty && p.attached == 0 && p.steps.is_empty(), "{p:?}");
    }

    #[test]
    fn a_failed_move_is_tried_again_later_and_a_node_that_is_away_is_not_waited_for() {
        let mut w = world(4);
        w.replicated(1, "v", &[1, 2], 1);
        transition::decommission(w.member_mut("n1")).unwrap();
        let mut failed = task(1, 1, 3);
        (failed.state, failed.error) = (TaskState::Failed, "the pool is full".into());
        w.tasks.insert(id(1), failed.clone());
        let p = planned(&w, "n1");
        assert!(p.steps.is_empty() && p.waits[0].contains("full"), "{p:?}");
        failed.updated_unix_ms = NOW - AGAIN_MS;
        w.tasks.insert(id(1), failed);
        assert_eq!(planned(&w, "n1").steps.len(), 1);
        w.tasks.clear();
        let leaves = leaving(&w.sets[&id(1)], id(1001));
        w.sets.insert(id(1), leaves);
        let p = planned(&w, "n1");
        assert!(!p.empty && p.waits[0].contains("deleting"), "{p:?}");
        w.alive.remove("n1");
        assert!(planned(&w, "n1").empty);
    }

    #[test]
    fn a_drain_that_was_ended_moves_nothing() {
        let mut w = world(3);
        w.replicated(1, "v", &[1, 2], 1);
        w.attach(1, "n1");
        let member = w.member_mut("n1");
        transition::drain(member, "", NOW).unwrap();
        transition::end_drain(member, DrainState::Cancelled, NOW);
        let p = planned(&w, "n1");
        assert!(p.steps.is_empty() && p.attached == 1, "{p:?}");
    }
}
