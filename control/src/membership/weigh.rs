//! What would be missing without a node: what stands against maintenance, and against decommissioning. Pure; every line names the volume and says what to do.

use uuid::Uuid;

use super::record::MemberState;
use super::world::World;
use crate::records::Phase;
use crate::replication::record::ReplicationRecord;

/// At most so many are named; the others are counted.
const NAMED_MAX: usize = 8;

/// What stands against taking a node's machine away for a while; empty: nothing.
pub fn against_maintenance(world: &World, node: &str) -> Vec<String> {
    let mut all = own(world, node, "cannot be used meanwhile");
    let at_rest = |n: &str| {
        let state = world.member(n).map(|m| m.state);
        state == Some(MemberState::Maintenance)
    };
    for (id, set) in sets(world) {
        let is_here = |r: &&crate::replication::record::Replica| r.node_id == node;
        let here = set.replicas.iter().filter(is_here);
        if !here.clone().any(|r| world.is_good(id, r)) {
            // Nothing is missing that is not missing already.
            continue;
        }
        let elsewhere = world.good_elsewhere(id, set, node);
        let left = elsewhere.filter(|r| !at_rest(&r.node_id)).count();
        if left < usize::from(set.minimum) {
            all.push(format!(
                "volume {} would have {left} replicas in sync, and is served by no fewer than {}",
                world.name(id),
                set.minimum
            ));
        }
    }
    shortened(all)
}

/// What stands against taking a node away for good; empty: nothing.
pub fn against_decommission(world: &World, node: &str) -> Vec<String> {
    let lives = world.works(node);
    let mut all = own(
        world,
        node,
        "has its only copy there: delete it, or copy it on a host to one with replicas",
    );
    for (id, set) in sets(world) {
        let mut here = World::staying(set).filter(|r| r.node_id == node);
        if here.next().is_none() {
            continue;
        }
        let name = world.name(id);
        let volume = world.volumes.get(&id).map(|v| &v.record);
        let phase = volume.map_or(Phase::Deleting, |v| v.phase);
        match phase {
            // It goes by itself where its nodes live.
            Phase::Deleting if lives => continue,
            Phase::Deleting => {}
            Phase::Kept => {
                all.push(format!(
                    "deleted volume {name} is kept there for its snapshots: delete those first"
                ));
                continue;
            }
            Phase::Creating => {
                all.push(format!("volume {name} is being made: try again when it is"));
                continue;
            }
            Phase::Ready => {}
        }
        if volume.is_some_and(|v| v.restoring.is_some()) {
            all.push(format!(
                "volume {name} is being set back: try again when it is"
            ));
            continue;
        }
        if phase == Phase::Ready && set.generation < world.generation {
            all.push(format!(
                "volume {name} is unverified since a restore of the KVDB: `keelctl volume decide-replicas {name}` first"
            ));
            continue;
        }
        if let Some(trashed) = volume.and_then(|v| v.in_trash()) {
            all.push(format!(
                "deleted volume {} is in the trashcan, with a replica there: take it back, or delete it for good",
                trashed.name
            ));
            continue;
        }
        let good = world.good_elsewhere(id, set, node).count();
        let minimum = usize::from(set.minimum);
        if phase == Phase::Ready && !lives && good == 0 {
            all.push(format!(
                "volume {name} has its last good copy there, and the node is away: bring it back, or delete the volume"
            ));
            continue;
        }
        if phase == Phase::Ready && !lives && good < minimum {
            all.push(format!(
                "volume {name} is served by no fewer than {minimum} replicas, and elsewhere {good} are in sync: bring a node back, or lower that with \
                 `keelctl volume ha-update --minimum {good} {name}`"
            ));
            continue;
        }
        if phase == Phase::Ready
            && let Some(why) = nowhere(world, id, set, node)
        {
            all.push(format!(
                "volume {name}: no other node can have its replica ({why}): add a node, or lower its level with `keelctl volume ha-update --repl`"
            ));
        }
    }
    shortened(all)
}

/// Sets of volumes whose records are there.
fn sets(world: &World) -> impl Iterator<Item = (Uuid, &ReplicationRecord)> {
    world.sets.iter().map(|(id, set)| (*id, set))
}

/// What lies in the node's own pool.
fn own(world: &World, node: &str, says: &str) -> Vec<String> {
    let volumes = world.volumes.values().map(|v| &v.record);
    let volumes = volumes.filter(|v| v.replicated.is_none() && v.node_id == node);
    let mut all: Vec<String> = volumes
        .map(|v| format!("volume {} {says}", v.name))
        .collect();
    let snapshots = world.snapshots.iter();
    let snapshots = snapshots.filter(|s| s.epoch.is_none() && s.node_id == node);
    all.extend(snapshots.map(|s| format!("snapshot {} {says}", s.name)));
    all
}

/// Why no other node can have one more replica of a volume; `None`: one can.
pub fn nowhere(world: &World, id: Uuid, set: &ReplicationRecord, node: &str) -> Option<String> {
    let mut why = Vec::new();
    for other in world.nodes.values().filter(|n| n.node_id != node) {
        let has = set.replicas.iter().any(|r| r.node_id == other.node_id);
        let coming = || world.tasks.get(&id).into_iter().flat_map(|t| t.coming());
        match world.cannot_have(other) {
            None if !has => return None,
            None if coming().any(|r| r.node_id == other.node_id) => return None,
            None => why.push(format!("{}: it has one", other.node_id)),
            Some(reason) => why.push(format!("{}: {reason}", other.node_id)),
        }
    }
    match why.is_empty() {
        true => Some("there is none".into()),
        false => Some(why.join("; ")),
    }
}

fn shortened(mut all: Vec<String>) -> Vec<String> {
    let more = all.len().saturating_sub(NAMED_MAX);
    all.truncate(NAMED_MAX);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::{id, volume_record, world};
    use super::*;
    use crate::records::Versioned;

    #[test]
    fn maintenance_is_refused_where_a_volume_would_fall_below_its_minimum() {
        let mut w = world(4);
        w.replicated(1, "three", &[1, 2, 3], 2);
        w.replicated(2, "two", &[1, 2], 1);
        assert!(against_maintenance(&w, "n1").is_empty());
        w.member_mut("n2").state = MemberState::Maintenance;
        let against = against_maintenance(&w, "n1");
        assert_eq!(against.len(), 2, "{against:?}");
        assert!(
            against[0].contains("three") && against[1].contains("two"),
            "{against:?}"
        );
        // Nothing of them is on the fourth.
        assert!(against_maintenance(&w, "n4").is_empty());
        w.member_mut("n2").state = MemberState::Active;
        w.alive.remove("n3");
        assert_eq!(against_maintenance(&w, "n1").len(), 1);
        // Of one that is away, nothing more is taken away.
        assert!(against_maintenance(&w, "n3").is_empty());
    }

    #[test]
    fn what_lies_in_a_pool_alone_is_named() {
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
        for against in [
            against_maintenance(&w, "n1"),
            against_decommission(&w, "n1"),
        ] {
            assert!(
                against.len() == 1 && against[0].contains("local"),
                "{against:?}"
            );
        }
        assert!(against_decommission(&w, "n2").is_empty());
    }

    #[test]
    fn decommissioning_wants_a_place_for_every_replica() {
        let mut w = world(3);
        w.replicated(1, "db", &[1, 2, 3], 2);
        let against = against_decommission(&w, "n1");
        assert!(
            against.len() == 1 && against[0].contains("n2: it has one"),
            "{against:?}"
        );
        let mut more = world(4);
        more.replicated(1, "db", &[1, 2, 3], 2);
        assert!(against_decommission(&more, "n1").is_empty());
        more.member_mut("n4").cordoned = true;
        let against = against_decommission(&more, "n1");
        assert!(against[0].contains("n4: it is cordoned"), "{against:?}");
    }

    #[test]
    fn the_last_good_copy_of_a_node_that_is_away_is_kept() {
        let mut w = world(4);
        w.replicated(1, "db", &[1, 2], 1);
        w.replicated(2, "log", &[1, 2, 3], 2);
        w.alive.remove("n1");
        assert!(against_decommission(&w, "n1").is_empty());
        w.replicas.get_mut(&(id(1), id(1002))).unwrap().lost = true;
        let against = against_decommission(&w, "n1");
        assert!(
            against.len() == 1 && against[0].contains("last good copy"),
            "{against:?}"
        );
        w.alive.remove("n3");
        let against = against_decommission(&w, "n1");
        assert!(
            against.len() == 2 && against[1].contains("no fewer than 2"),
            "{against:?}"
        );
        // While it lives, its own copy is one to copy from.
        let says = w.alive["n2"].clone();
        w.alive.insert("n1".into(), says);
        assert!(against_decommission(&w, "n1").is_empty());
    }

    #[test]
    fn unverified_and_kept_volumes_are_a_persons_business() {
        let mut w = world(4);
        w.replicated(1, "db", &[1, 2], 1);
        w.generation = 1;
        assert!(against_decommission(&w, "n1")[0].contains("decide-replicas"));
        w.volumes.get_mut(&id(1)).unwrap().record.phase = Phase::Kept;
        assert!(against_decommission(&w, "n1")[0].contains("snapshots"));
    }

    #[test]
    fn long_lists_are_counted() {
        let mut w = world(1);
        for n in 0..20 {
            let mut record = volume_record(n, &format!("v{n}"));
            (record.replicated, record.node_id) = (None, "n1".into());
            w.volumes.insert(
                id(n),
                Versioned {
                    record,
                    revision: 1,
                },
            );
        }
        let against = against_decommission(&w, "n1");
        assert_eq!(against.last().unwrap(), "and 12 more");
    }
}
