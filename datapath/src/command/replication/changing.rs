//! Changes of a coordinator's replicas, as control wants them: one comes, one goes, one has gone, one is compared anew, and by how few the volume is served (K3, K5, K6).

use keelblock_api::datapath as proto;
use proto::change_replicas_request::Change as Asked;

use super::super::{CommandError, Commander};
use super::words::{peer_of, uuid_bytes};
use crate::replication::seam::Id;
use crate::store::VolumeId;
use crate::volume::coordinator::links::Route;
use crate::volume::coordinator::message::Wish;
use crate::volume::coordinator::set::{NotNow, ReplicaState, VolumeRecord};

#[derive(Clone, Debug)]
enum What {
    Change(Wish),
    /// K3 for this replica, which has a place only with its coordinator.
    Exclude(Id),
}

/// A change that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    volume: VolumeId,
    epoch: u32,
    what: What,
    /// Of a replica that is added.
    new: Option<proto::NewReplica>,
}

impl Wanted {
    /// What a request says.
    pub fn new(
        volume: VolumeId,
        request: proto::ChangeReplicasRequest,
    ) -> Result<Self, CommandError> {
        let change = request.change;
        let change = change.ok_or_else(|| CommandError::field("change", "it is not given"))?;
        let mut new = None;
        let what = What::Change(match change {
            Asked::Exclude(id) => {
                let what = What::Exclude(uuid_bytes("exclude", &id)?);
                return Ok(Self {
                    volume,
                    epoch: request.epoch,
                    what,
                    new: None,
                });
            }
            Asked::Add(replica) => {
                let id = uuid_bytes("add.replica_id", &replica.replica_id)?;
                uuid_bytes("add.pool_id", &replica.pool_id)?;
                new = Some(replica);
                Wish::Add(id)
            }
            Asked::Leave(id) => Wish::Leave(uuid_bytes("leave", &id)?),
            Asked::Remove(id) => Wish::Remove(uuid_bytes("remove", &id)?),
            Asked::Minimum(minimum) => {
                let minimum = u8::try_from(minimum).ok().filter(|m| *m > 0);
                let why = || CommandError::field("minimum", "it is 1 to 255");
                Wish::Minimum(minimum.ok_or_else(why)?)
            }
        });
        Ok(Self {
            volume,
            epoch: request.epoch,
            what,
            new,
        })
    }

    /// Whether a record is as it is wanted.
    fn is_met(&self, record: &VolumeRecord) -> bool {
        let state = |id: &Id| record.replicas.iter().find(|r| r.0 == *id).map(|r| r.1);
        let wish = match &self.what {
            What::Exclude(id) => return state(id) != Some(ReplicaState::Member),
            What::Change(wish) => wish,
        };
        match wish {
            Wish::Add(id) => state(id).is_some(),
            Wish::Leave(id) => matches!(state(id), None | Some(ReplicaState::Leaving)),
            Wish::Remove(id) => state(id).is_none(),
            Wish::Minimum(minimum) => record.minimum == *minimum,
            Wish::Join(_) | Wish::Exclude(_) => false,
        }
    }
}

impl Commander {
    /// Has a coordinator begin with a change of its replicas.
    pub fn change_replicas(&self, wanted: Wanted) -> Result<proto::Coordinator, CommandError> {
        let replication = self.replication()?;
        let volume = wanted.volume;
        let serving = replication.coordinators.borrow().get(&volume).cloned();
        let served = serving.filter(|s| !s.ended() && s.by.driver.epoch() == wanted.epoch);
        let serving = served.ok_or(CommandError::NotServed {
            volume,
            epoch: wanted.epoch,
        })?;
        let driver = &serving.by.driver;
        if wanted.is_met(&driver.record()) {
            return Ok(self.coordinator_to(&serving));
        }
        let not_now = |why| CommandError::NotNow { volume, why };
        let wish = match wanted.what {
            What::Change(wish) => wish,
            What::Exclude(id) => {
                let place = driver.place(&id);
                Wish::Exclude(place.ok_or_else(|| not_now(NotNow::State))?)
            }
        };
        if let (Wish::Add(replica), Some(new)) = (&wish, wanted.new) {
            let node = peer_of("add.node_id", &new.node_id)?;
            let trunk = replication.node.trunk(node);
            let route = Route {
                replica: *replica,
                trunk: trunk.ok_or(CommandError::NoReplication)?,
                near: replication.node.id() == Some(node),
            };
            // Not while another is: where that one is would be forgotten.
            driver.may(&wish).map_err(not_now)?;
            serving.offer(new, *replica, node, route);
        }
        driver.change(wish).map_err(not_now)?;
        Ok(self.coordinator_to(&serving))
    }
}
