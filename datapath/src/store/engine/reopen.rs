//! Blocks that only the journal refers to, and what an opening finds in it of replicas' lanes (`docs/store-format.md` §11 and 16): what is settled, and
//! whole records above it.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::group::HoldError;
use super::super::journal::{Given, Record, RecordRef, Records, settled};
use super::super::types::{CatalogueHandle, PhysicalBlock, Stamp};
use super::lane::LaneState;
use super::open::corrupt;
use super::unsettled::Listed;
use super::{Inner, OpenError};

const NO_STAMP: Stamp = Stamp { epoch: 0, seq: 0 };

impl Inner {
    /// What is settled of each lane, by its record and the journal.
    pub(super) fn settled_by(&self, records: &Records) -> BTreeMap<CatalogueHandle, Stamp> {
        let mut all = settled(records);
        for (handle, lane) in self.lanes.borrow().iter() {
            if let Some(replica) = &lane.replica {
                let stamp = all.entry(*handle).or_insert(replica.settled());
                *stamp = replica.settled().max(*stamp);
            }
        }
        all
    }

    /// A record of a replica that the journal has is on its lane's list, if it is not settled: then its blocks may be others' by now.
    pub(super) fn list_again(
        &self,
        record: RecordRef<'_>,
        settled: &BTreeMap<CatalogueHandle, Stamp>,
    ) {
        let lane = self.lanes.borrow().get(&record.handle()).cloned();
        let Some(lane) = lane else { return };
        let Some(replica) = &lane.replica else { return };
        let record = record.to_record();
        let is_given = match &record {
            Record::Write(w) => w.given != Given::No,
            Record::Tombstone(t) => t.given != Given::No,
            _ => false,
        };
        if !is_given {
            return;
        }
        let listed = Rc::new(Listed::new(record));
        let settled = settled.get(&lane.handle).copied().unwrap_or(NO_STAMP);
        if listed.last > settled {
            self.list(replica, &listed);
        }
    }

    /// Blocks of what is listed that neither map nor delta refer to are held and parked.
    pub(super) async fn keep_listed(
        &self,
        settled: &BTreeMap<CatalogueHandle, Stamp>,
    ) -> Result<(), OpenError> {
        let lanes: Vec<Rc<LaneState>> = self.lanes.borrow().values().cloned().collect();
        for lane in lanes {
            let Some(replica) = &lane.replica else {
                continue;
            };
            if lane.void.get() {
                self.forget_unsettled(std::slice::from_ref(&lane));
                continue;
            }
            if let Some(stamp) = settled.get(&lane.handle) {
                replica.raise_settled(*stamp);
            }
            for listed in replica.above_settled() {
                for block in listed.places() {
                    if self.hold_if_free(block).await? {
                        self.kept.parked(block);
                    }
                }
            }
        }
        Ok(())
    }

    /// Holds a block unless it is in use; whether it did.
    async fn hold_if_free(&self, at: PhysicalBlock) -> Result<bool, OpenError> {
        self.load_group_of(at).await?;
        match self.space.borrow_mut().hold(at) {
            Ok(()) => Ok(true),
            // Of a group whose bitmap is damaged nothing is given back, either.
            Err(HoldError::InUse { .. } | HoldError::Lost { .. }) => Ok(false),
            Err(e) => Err(corrupt(format!("journal: {e}"))),
        }
    }

    /// Marks the blocks of what is left of the journal's records. Those of records that newer ones superseded may have been used again
    /// since, for data or for pages.
    pub(super) async fn hold_delta(&self) -> Result<(), OpenError> {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::ReplayDoesNotMark) {
            return Ok(());
        }
        let mut blocks = Vec::new();
        for lane in self.lanes.borrow().values() {
            lane.each_layer(|layer| blocks.extend(layer.blocks()));
        }
        blocks.sort_unstable();
        for block in blocks {
            self.hold(block).await?;
        }
        Ok(())
    }

    /// Marks a block that a record refers to.
    async fn hold(&self, at: PhysicalBlock) -> Result<(), OpenError> {
        self.load_group_of(at).await?;
        let held = self.space.borrow_mut().hold(at);
        held.map_err(|e| corrupt(format!("journal: {e}")))
    }

    async fn load_group_of(&self, at: PhysicalBlock) -> Result<(), OpenError> {
        let place = self.superblock.borrow().layout.place(at);
        let Some((group, _)) = place else {
            return Err(corrupt(format!(
                "a record refers to {at:?}, outside of the groups"
            )));
        };
        if !self.space.borrow().is_loaded(group) {
            let loaded = self.load_group(group).await;
            loaded.map_err(|e| corrupt(format!("bitmap of group {}: {e}", group.0)))?;
        }
        Ok(())
    }
}
