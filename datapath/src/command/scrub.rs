//! Scrubs: one for each pool at a time, step by step on the drives' homes, at a bounded rate.
//!
//! What is damaged of a replica is told to whoever coordinates its volume, which has it from another replica (`docs/replication.md` §11); before a scrub ends it
//! is looked at again, and counted if it is sound.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use keelblock_api::datapath as proto;
use keelblock_api::datapath::ScrubState;

use super::error::CommandError;
use super::{Commander, unix_ms};
use crate::device::IoError;
use crate::store::Name;
use crate::store::VolumeId;
use crate::store::engine::{ScrubPlace, ScrubStep, StoreError};
use crate::store::types::{BLOCK_BYTES, LaneBlock};

/// Leaves that are looked at with one message to a drive's home: up to 5 MB of data.
const LEAVES_AT_ONCE: usize = 8;
/// How often one that is paused looks whether it may go on.
const PAUSE_STEP: Duration = Duration::from_millis(100);
/// Damaged blocks of a drive that are looked after; what is beyond is found by the next scrub.
const REPAIRS_MAX: usize = 4096;
/// How many are told at once: a coordinator keeps no more in mind.
const REPAIRS_AT_ONCE: usize = 32;
/// Between looks at them.
const REPAIR_LOOK: Duration = Duration::from_millis(200);
/// So many looks without one more that is sound, and they are given up.
const REPAIR_LOOKS: usize = 25;

/// A damaged block of a replica.
type Damaged = (VolumeId, u8, LaneBlock);

/// The last scrub of a pool.
pub(super) struct Scrub {
    id: String,
    pool: Name,
    rate_bytes_per_s: u64,
    started_unix_ms: u64,
    state: Cell<ScrubState>,
    total_bytes: Cell<u64>,
    scanned_bytes: Cell<u64>,
    errors: Cell<u64>,
    repaired: Cell<u64>,
    finished_unix_ms: Cell<u64>,
    /// Drives that are not done.
    left: Cell<usize>,
}

impl Scrub {
    fn status(&self) -> proto::ScrubStatus {
        proto::ScrubStatus {
            pool_id: self.pool.to_string(),
            scrub_id: self.id.clone(),
            state: self.state.get().into(),
            rate_bytes_per_s: self.rate_bytes_per_s,
            total_bytes: self.total_bytes.get(),
            scanned_bytes: self.scanned_bytes.get(),
            errors: self.errors.get(),
            repaired: self.repaired.get(),
            started_unix_ms: self.started_unix_ms,
            finished_unix_ms: self.finished_unix_ms.get(),
        }
    }

    fn under_way(&self) -> bool {
        matches!(
            self.state.get(),
            ScrubState::ScrubRunning | ScrubState::ScrubPaused
        )
    }

    fn end(&self, state: ScrubState) {
        self.state.set(state);
        self.finished_unix_ms.set(unix_ms());
    }
}

/// The last scrub of each pool.
pub(super) type Scrubs = RefCell<std::collections::BTreeMap<Name, Rc<Scrub>>>;

impl Commander {
    /// Starts a scrub of a pool; the same again is the one that was started.
    pub async fn start_scrub(
        self: Rc<Self>,
        pool: Name,
        id: String,
        rate_bytes_per_s: u64,
    ) -> Result<proto::ScrubStatus, CommandError> {
        self.look_at_all().await;
        let view = self.seen.borrow().get(&pool).cloned();
        let view = view.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let last = self.scrubs.borrow().get(&pool).cloned();
        if let Some(last) = last.filter(|s| s.id == id || s.under_way()) {
            return match last.id == id {
                true => Ok(last.status()),
                false => Err(CommandError::Scrubbing {
                    pool,
                    scrub: last.id.clone(),
                }),
            };
        }
        let scrub = Rc::new(Scrub {
            id,
            pool: pool.clone(),
            rate_bytes_per_s,
            started_unix_ms: unix_ms(),
            state: Cell::new(ScrubState::ScrubRunning),
            total_bytes: Cell::new(view.space().used),
            scanned_bytes: Cell::new(0),
            errors: Cell::new(0),
            repaired: Cell::new(0),
            finished_unix_ms: Cell::new(0),
            left: Cell::new(0),
        });
        self.scrubs.borrow_mut().insert(pool, scrub.clone());
        for drive in view
            .drives
            .iter()
            .filter_map(|d| Some((d.id.clone(), d.number?)))
        {
            scrub.left.set(scrub.left.get() + 1);
            let (this, scrub) = (self.clone(), scrub.clone());
            self.handle.spawn("scrub", async move {
                this.scrub_drive(&scrub, drive.0, drive.1).await;
                scrub.left.set(scrub.left.get() - 1);
                if scrub.left.get() == 0 && scrub.under_way() {
                    scrub.end(ScrubState::ScrubDone);
                    this.events.scrub_done(scrub.status());
                }
            });
        }
        if scrub.left.get() == 0 {
            scrub.end(ScrubState::ScrubDone);
        }
        Ok(scrub.status())
    }

    async fn scrub_drive(&self, scrub: &Scrub, drive: Name, number: u32) {
        // A scrub reads what maps refer to: what was written before it began shall be in them.
        let merged = self.on_store(
            &drive,
            number,
            |store| async move { store.checkpoint().await },
        );
        if let Err(e) = merged.await {
            tracing::warn!(%drive, "a scrub does not see what was written last: {e}");
            scrub.errors.set(scrub.errors.get() + 1);
        }
        let mut place = Some(ScrubPlace::default());
        let mut damaged: Vec<Damaged> = Vec::new();
        while let Some(from) = place {
            self.while_paused(scrub).await;
            if scrub.state.get() != ScrubState::ScrubRunning {
                return;
            }
            let steps = self.on_store(&drive, number, move |store| async move {
                let mut sum = ScrubStep::default();
                let mut next = Some(from);
                for _ in 0..LEAVES_AT_ONCE {
                    let Some(from) = next else { break };
                    let step = store.scrub_step(from).await?;
                    sum.scanned_blocks += step.scanned_blocks;
                    sum.errors.extend(step.errors);
                    next = step.next;
                }
                sum.next = next;
                Ok(sum)
            });
            let step = match steps.await {
                Ok(step) => step,
                Err(e) => {
                    tracing::warn!(%drive, "a scrub ended early: {e}");
                    scrub.errors.set(scrub.errors.get() + 1);
                    return;
                }
            };
            for found in &step.errors {
                tracing::error!(%drive, volume = %found.volume, lane = found.lane, "scrub: {}", found.error);
                if let Some(damage) = &found.damage {
                    self.events.damage(drive.as_str(), damage);
                }
                let whole_block = matches!(
                    found.error,
                    StoreError::Checksum { .. } | StoreError::Io(IoError::Unreadable)
                );
                if whole_block
                    && found.live
                    && self.replicates(found.volume)
                    && damaged.len() < REPAIRS_MAX
                {
                    damaged.push((found.volume, found.lane, found.block));
                }
            }
            let bytes = step.scanned_blocks * BLOCK_BYTES as u64;
            scrub
                .errors
                .set(scrub.errors.get() + step.errors.len() as u64);
            scrub.scanned_bytes.set(scrub.scanned_bytes.get() + bytes);
            place = step.next;
            if let Some(micros) = bytes
                .checked_mul(1_000_000)
                .and_then(|b| b.checked_div(scrub.rate_bytes_per_s))
            {
                self.handle.sleep(Duration::from_micros(micros)).await;
            }
        }
        self.see_repaired(scrub, (&drive, number), damaged).await;
    }

    async fn while_paused(&self, scrub: &Scrub) {
        while scrub.state.get() == ScrubState::ScrubPaused {
            self.handle.sleep(PAUSE_STEP).await;
        }
    }

    /// Has damaged blocks repaired, some at a time, and counts those that are sound again.
    async fn see_repaired(
        &self,
        scrub: &Scrub,
        (drive, number): (&Name, u32),
        mut damaged: Vec<Damaged>,
    ) {
        let mut looks = 0;
        while !damaged.is_empty() && looks < REPAIR_LOOKS && scrub.under_way() {
            self.while_paused(scrub).await;
            let some = damaged[..damaged.len().min(REPAIRS_AT_ONCE)].to_vec();
            self.tell_damaged(&some);
            self.handle.sleep(REPAIR_LOOK).await;
            looks += 1;
            let looked = self.on_store(drive, number, move |store| async move {
                let mut sound = Vec::new();
                for (volume, lane, block) in some {
                    sound.push(store.is_sound(volume, lane, block).await);
                }
                Ok(sound)
            });
            let Ok(sound) = looked.await else { return };
            let repaired = sound.iter().filter(|s| **s).count();
            if repaired > 0 {
                looks = 0;
                scrub.repaired.set(scrub.repaired.get() + repaired as u64);
            }
            // Those that are not come again after the others.
            let left = sound.len();
            let mut sound = sound.into_iter();
            let head: Vec<Damaged> = damaged
                .drain(..left)
                .filter(|_| !sound.next().unwrap_or(false))
                .collect();
            damaged.extend(head);
        }
        if !damaged.is_empty() {
            tracing::error!(%drive, blocks = damaged.len(), "what a scrub found was not repaired: no other replica gave it");
        }
    }

    fn scrub(&self, pool: &Name, id: &str) -> Result<Rc<Scrub>, CommandError> {
        let scrubs = self.scrubs.borrow();
        let scrub = scrubs.get(pool).filter(|s| s.id == id);
        scrub
            .cloned()
            .ok_or_else(|| CommandError::NoScrub(id.to_owned()))
    }

    /// Pauses a scrub, lets it go on, or ends it; what ended stays as it is.
    pub fn steer_scrub(
        &self,
        pool: &Name,
        id: &str,
        to: ScrubState,
    ) -> Result<proto::ScrubStatus, CommandError> {
        let scrub = self.scrub(pool, id)?;
        if scrub.under_way() {
            match to {
                ScrubState::ScrubCancelled => {
                    scrub.end(to);
                    self.events.scrub_done(scrub.status());
                }
                to => scrub.state.set(to),
            }
        }
        Ok(scrub.status())
    }

    /// The last scrub of each pool.
    pub fn list_scrubs(&self) -> Vec<proto::ScrubStatus> {
        let scrubs = self.scrubs.borrow();
        scrubs.values().map(|s| s.status()).collect()
    }
}
