//! All that may become of a record: K1 to K10 of `docs/replication.md` §3. Each makes a new record, one version on, or says what is in its way.
//!
//! Who may: K1 and K7 to K10 control; K2 to K6 nobody but the holder of the epoch, and it is compared in each of them.

use uuid::Uuid;

use super::record::{
    Epoch, Fault, Fields, Holder, MEMBERS_MAX, Phase, Replica, ReplicaState, ReplicationRecord,
    Token, write_quorum,
};

/// Who says that it coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// Its epoch.
    pub epoch: Epoch,
    /// Of its data-path process.
    pub incarnation: Token,
    /// Of the swap that gave it the epoch.
    pub attempt: Token,
}

/// Why a transition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another epoch: the coordinator has ended.
    #[error("epoch {asked} has ended: epoch {current} was given to another")]
    Epoch {
        /// The coordinator's.
        asked: Epoch,
        /// The record's.
        current: Epoch,
    },
    /// The epoch belongs to another process, to another attempt, or to nobody any more.
    #[error("epoch {0} is not this process'")]
    Holder(Epoch),
    /// It serves already, or not yet.
    #[error("{what} is possible while it is {needed}, and it is {found}")]
    Phase {
        /// What was asked for.
        what: &'static str,
        /// In which phase that can be.
        needed: &'static str,
        /// In which it is.
        found: &'static str,
    },
    /// No more epochs in this generation.
    #[error(
        "epoch {0} is the last of its generation: raise the cluster's generation, as after a restore of the KVDB"
    )]
    LastEpoch(Epoch),
    /// The cluster's record is older than this one.
    #[error(
        "the cluster is of generation {cluster}, and the volume's record of {record}: was only a part of the KVDB restored?"
    )]
    Cluster {
        /// The cluster's generation.
        cluster: u8,
        /// The highest that is in the record.
        record: u8,
    },
    /// The attempt is that of the epoch that there is: it is to be another for each.
    #[error("attempt {0} was used before")]
    Attempt(Token),
    /// The set means nothing until a takeover or a person has verified it (rule 10).
    #[error("the set is not verified since the KVDB was restored")]
    Unverified,
    /// There is nothing for a person to decide.
    #[error("the set is right as far as is known, and epoch {0} serves with it")]
    Verified(Epoch),
    /// None of the old set is in the new one.
    #[error("none of the members named was in the set")]
    NoneOfTheSet,
    /// It is no member.
    #[error("replica {0} is not in the set")]
    NotMember(Uuid),
    /// It is a member.
    #[error("replica {0} is in the set")]
    IsMember(Uuid),
    /// It is no replica.
    #[error("there is no replica {0}")]
    NoReplica(Uuid),
    /// The replica is something else.
    #[error("replica {replica} is {found}")]
    State {
        /// Which.
        replica: Uuid,
        /// What it is.
        found: ReplicaState,
    },
    /// Nothing would change.
    #[error("nothing would change")]
    Same,
    /// No more versions.
    #[error("version {0} is the last one")]
    LastVersion(u64),
    /// What would come of it cannot be.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// K1: an epoch for this holder. The set is as it was, and means nothing more than before.
///
/// # Errors
/// [`Refusal`]: no epoch is left, the cluster's record is older, the attempt is not new.
pub fn take(
    record: &ReplicationRecord,
    cluster_generation: u8,
    holder: Holder,
) -> Result<ReplicationRecord, Refusal> {
    not_later(record, cluster_generation)?;
    let epoch = next(record.epoch, cluster_generation)?;
    let last = record.holder.as_ref().map(|h| h.attempt);
    if last == Some(holder.attempt) {
        return Err(Refusal::Attempt(holder.attempt));
    }
    change(record, |f| {
        f.epoch = epoch;
        f.holder = Some(holder);
        f.phase = Phase::Taking;
        Ok(())
    })
}

/// The cluster's record must not be older than the volume's.
fn not_later(record: &ReplicationRecord, cluster: u8) -> Result<(), Refusal> {
    match record.generation.max(record.epoch.generation()) {
        record if record > cluster => Err(Refusal::Cluster { cluster, record }),
        _ => Ok(()),
    }
}

fn next(epoch: Epoch, cluster: u8) -> Result<Epoch, Refusal> {
    let counter = match epoch.generation() == cluster {
        true => epoch.counter() + 1,
        false => 1,
    };
    Epoch::new(cluster, counter).ok_or(Refusal::LastEpoch(epoch))
}

/// K2: the takeover is done, and these took part. `found`, of an unverified record only: replicas that it does not know, and that a takeover heard.
///
/// # Errors
/// [`Refusal`]: not the holder, not taking, nobody of the set is among them, fewer than the minimum, one that is leaving.
pub fn serve(
    record: &ReplicationRecord,
    by: Coordinator,
    members: &[Uuid],
    found: &[Replica],
) -> Result<ReplicationRecord, Refusal> {
    holds(record, by)?;
    if record.phase != Phase::Taking {
        return Err(phase("K2", Phase::Taking));
    }
    let unverified = record.unverified(by.epoch.generation());
    if let Some(unknown) = found.first()
        && !unverified
    {
        return Err(Refusal::NoReplica(unknown.replica_id));
    }
    let known = |m: &Uuid| record.members.contains(m);
    if !unverified && !members.iter().any(known) {
        return Err(Refusal::NoneOfTheSet);
    }
    change(record, |f| {
        let new = found.iter().cloned().map(|r| Replica {
            state: ReplicaState::Empty,
            ..r
        });
        f.replicas.extend(new);
        set(f, members)?;
        f.generation = f.epoch.generation();
        f.phase = Phase::Serving;
        Ok(())
    })
}

/// K3: these leave the set. Whether the rest is level is the coordinator's to know.
///
/// # Errors
/// [`Refusal`]: not the holder, not serving, not members, or too few would be left.
pub fn exclude(
    record: &ReplicationRecord,
    by: Coordinator,
    those: &[Uuid],
) -> Result<ReplicationRecord, Refusal> {
    serving(record, by, "K3")?;
    if those.is_empty() {
        return Err(Refusal::Same);
    }
    if let Some(other) = those.iter().find(|id| !record.members.contains(id)) {
        return Err(Refusal::NotMember(*other));
    }
    change(record, |f| {
        let stay = f.members.iter().filter(|m| !those.contains(m));
        let stay: Vec<_> = stay.copied().collect();
        set(f, &stay)
    })
}

/// K4: this one joins the set. Whether it is level is the coordinator's to know.
///
/// # Errors
/// [`Refusal`]: not the holder, not serving, a member already, leaving, or there would be too many.
pub fn admit(
    record: &ReplicationRecord,
    by: Coordinator,
    one: Uuid,
) -> Result<ReplicationRecord, Refusal> {
    serving(record, by, "K4")?;
    if record.members.contains(&one) {
        return Err(Refusal::IsMember(one));
    }
    change(record, |f| {
        let mut members = f.members.clone();
        members.push(one);
        set(f, &members)
    })
}

/// K5: another replica exists; it is empty.
///
/// # Errors
/// [`Refusal`]: not the holder, not serving, there is one of that id, or there would be too many.
pub fn add(
    record: &ReplicationRecord,
    by: Coordinator,
    replica_id: Uuid,
    node_id: &str,
    pool_id: Uuid,
) -> Result<ReplicationRecord, Refusal> {
    serving(record, by, "K5")?;
    change(record, |f| {
        f.replicas.push(Replica {
            replica_id,
            node_id: node_id.to_owned(),
            pool_id,
            state: ReplicaState::Empty,
        });
        Ok(())
    })
}

/// K5: this replica is to be deleted. A member leaves the set by it, as by K3.
///
/// # Errors
/// [`Refusal`]: not the holder, not serving, no such replica, leaving already, or too few members would be left.
pub fn leave(
    record: &ReplicationRecord,
    by: Coordinator,
    one: Uuid,
) -> Result<ReplicationRecord, Refusal> {
    serving(record, by, "K5")?;
    change(record, |f| {
        let stay: Vec<_> = f.members.iter().copied().filter(|m| *m != one).collect();
        if stay.len() < f.members.len() {
            set(f, &stay)?;
        }
        let replica = outside(f, one)?;
        if replica.state == ReplicaState::Leaving {
            return Err(Refusal::Same);
        }
        replica.state = ReplicaState::Leaving;
        Ok(())
    })
}

/// K5: this replica, which was leaving, is deleted.
///
/// # Errors
/// [`Refusal`]: not the holder, not serving, no such replica, or it was not leaving.
pub fn remove(
    record: &ReplicationRecord,
    by: Coordinator,
    one: Uuid,
) -> Result<ReplicationRecord, Refusal> {
    serving(record, by, "K5")?;
    change(record, |f| {
        let found = outside(f, one)?.state;
        if found != ReplicaState::Leaving {
            let replica = one;
            return Err(Refusal::State { replica, found });
        }
        f.replicas.retain(|r| r.replica_id != one);
        Ok(())
    })
}

/// K6: another minimum.
///
/// # Errors
/// [`Refusal`]: not the holder, not serving, above what the set has or what is wanted, 0, or as it is.
pub fn set_minimum(
    record: &ReplicationRecord,
    by: Coordinator,
    minimum: u8,
) -> Result<ReplicationRecord, Refusal> {
    serving(record, by, "K6")?;
    if minimum == record.minimum {
        return Err(Refusal::Same);
    }
    change(record, |f| {
        f.minimum = minimum;
        Ok(())
    })
}

/// K7: a person says which replicas count. Nobody holds the epoch after it: who took over with the old set has ended, and the next K1 finds this one.
///
/// # Errors
/// [`Refusal`]: verified and served, the cluster's record is older, not replicas or leaving ones, fewer than the minimum (which may be lowered).
pub fn decide(
    record: &ReplicationRecord,
    cluster_generation: u8,
    members: &[Uuid],
    minimum: u8,
) -> Result<ReplicationRecord, Refusal> {
    not_later(record, cluster_generation)?;
    let unverified = record.unverified(cluster_generation);
    if !unverified && record.phase == Phase::Serving {
        return Err(Refusal::Verified(record.epoch));
    }
    change(record, |f| {
        f.minimum = minimum;
        set(f, members)?;
        f.generation = cluster_generation;
        f.holder = None;
        f.phase = Phase::Taking;
        Ok(())
    })
}

/// A record of a backup that is put back: nobody of then holds an epoch any more. Its set is unverified, as the cluster's generation is above its own.
///
/// # Errors
/// [`Refusal::LastVersion`].
pub fn release(record: &ReplicationRecord) -> Result<ReplicationRecord, Refusal> {
    change(record, |f| {
        f.holder = None;
        f.phase = Phase::Taking;
        Ok(())
    })
}

/// K9: a volume that is attached nowhere is set back to a snapshot. Each replica that stays is another from now on: those that were members, and whose nodes are
/// `here`, are the members, made of the snapshot; others are empty. Nobody holds the epoch after it.
///
/// # Errors
/// [`Refusal`]: the set is not verified, fewer than the minimum are here.
pub fn set_back(
    record: &ReplicationRecord,
    cluster_generation: u8,
    here: &[Uuid],
) -> Result<ReplicationRecord, Refusal> {
    not_later(record, cluster_generation)?;
    if record.unverified(cluster_generation) {
        return Err(Refusal::Unverified);
    }
    change(record, |f| {
        let mut members = Vec::new();
        for replica in &mut f.replicas {
            let old = replica.replica_id;
            if replica.state == ReplicaState::Leaving {
                continue;
            }
            replica.replica_id = Uuid::new_v4();
            let member = replica.state == ReplicaState::Member && here.contains(&old);
            replica.state = match member {
                true => ReplicaState::Member,
                false => ReplicaState::Empty,
            };
            if member {
                members.push(replica.replica_id);
            }
        }
        f.members = members;
        f.holder = None;
        f.phase = Phase::Taking;
        Ok(())
    })
}

/// K10: a volume that is attached nowhere is deleted but for its snapshots: they are on its members.
///
/// # Errors
/// [`Refusal`]: the set is not verified, so others may have the snapshots.
pub fn members_only(
    record: &ReplicationRecord,
    cluster_generation: u8,
) -> Result<ReplicationRecord, Refusal> {
    not_later(record, cluster_generation)?;
    if record.unverified(cluster_generation) {
        return Err(Refusal::Unverified);
    }
    change(record, |f| {
        f.replicas.retain(|r| r.state == ReplicaState::Member);
        f.holder = None;
        f.phase = Phase::Taking;
        Ok(())
    })
}

/// K8: how many replicas there should be. The set is as it was: tasks bring it there.
///
/// # Errors
/// [`Refusal`]: below the minimum, too many, or as it is.
pub fn want(record: &ReplicationRecord, wanted: u8) -> Result<ReplicationRecord, Refusal> {
    if wanted == record.wanted {
        return Err(Refusal::Same);
    }
    change(record, |f| {
        f.wanted = wanted;
        Ok(())
    })
}

/// The record is this coordinator's.
///
/// # Errors
/// [`Refusal::Epoch`], [`Refusal::Holder`]: it has ended.
pub fn holds(record: &ReplicationRecord, by: Coordinator) -> Result<(), Refusal> {
    if record.epoch != by.epoch {
        return Err(Refusal::Epoch {
            asked: by.epoch,
            current: record.epoch,
        });
    }
    let same = |h: &Holder| (h.incarnation, h.attempt) == (by.incarnation, by.attempt);
    match record.holder.as_ref().is_some_and(same) {
        true => Ok(()),
        false => Err(Refusal::Holder(by.epoch)),
    }
}

fn serving(record: &ReplicationRecord, by: Coordinator, what: &'static str) -> Result<(), Refusal> {
    holds(record, by)?;
    if record.phase != Phase::Serving {
        return Err(phase(what, Phase::Serving));
    }
    match record.unverified(by.epoch.generation()) {
        true => Err(Refusal::Unverified),
        false => Ok(()),
    }
}

fn phase(what: &'static str, needed: Phase) -> Refusal {
    let name = |p| match p {
        Phase::Taking => "taken over",
        Phase::Serving => "served",
    };
    let other = match needed {
        Phase::Taking => Phase::Serving,
        Phase::Serving => Phase::Taking,
    };
    Refusal::Phase {
        what,
        needed: name(needed),
        found: name(other),
    }
}

/// A replica that is not in the set.
fn outside(f: &mut Fields, id: Uuid) -> Result<&mut Replica, Refusal> {
    if f.members.contains(&id) {
        return Err(Refusal::IsMember(id));
    }
    let mut all = f.replicas.iter_mut();
    let found = all.find(|r| r.replica_id == id);
    found.ok_or(Refusal::NoReplica(id))
}

/// Makes these the set: who was in it and is not any more is behind.
fn set(f: &mut Fields, members: &[Uuid]) -> Result<(), Refusal> {
    if members.len() > MEMBERS_MAX {
        return Err(Fault::Members(members.len()).into());
    }
    for id in members {
        match f.replica(*id) {
            None => return Err(Refusal::NoReplica(*id)),
            Some(r) if r.state == ReplicaState::Leaving => {
                return Err(Refusal::State {
                    replica: *id,
                    found: r.state,
                });
            }
            Some(_) => {}
        }
    }
    f.members = members.to_vec();
    for replica in &mut f.replicas {
        let member = members.contains(&replica.replica_id);
        replica.state = match (member, replica.state) {
            (true, _) => ReplicaState::Member,
            (false, ReplicaState::Member) => ReplicaState::Behind,
            (false, other) => other,
        };
    }
    Ok(())
}

/// The next version, if it is a record.
fn change(
    record: &ReplicationRecord,
    with: impl FnOnce(&mut Fields) -> Result<(), Refusal>,
) -> Result<ReplicationRecord, Refusal> {
    let mut f = Fields::from(record.clone());
    let next = f.version.checked_add(1);
    f.version = next.ok_or(Refusal::LastVersion(f.version))?;
    with(&mut f)?;
    f.write_quorum = write_quorum(f.members.len(), f.minimum);
    Ok(ReplicationRecord::try_from(f)?)
}
