//! Emptying a drive while it is used (`docs/store-format.md` §13): family by family to the drive with the most room, until nothing is left. The
//! drive itself remembers that it is being emptied; a task here does it, and begins again when the pool is opened.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use keelblock_api::datapath as proto;

use super::Commander;
use super::error::CommandError;
use crate::reactor::Handle;
use crate::store::engine::{MovedRecord, NextFamily, StoreError};
use crate::store::mover::{AtDrive, Conduct, MoveError, move_family};
use crate::store::pool::{DriveState, PoolDrive, PoolError, PoolView};
use crate::store::types::BLOCK_BYTES;
use crate::store::{Name, VolumeId};
use crate::volume::DriveHome;

/// How long I/O may take to end when lanes change their drive; then they are let go, and it is tried again.
const HOLD_TIMEOUT: Duration = Duration::from_secs(5);
/// After what did not work.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked at whether a deletion, or an evacuation, has ended.
const LOOK: Duration = Duration::from_millis(50);
/// What is said while volumes are written about as fast as they are copied.
const LAGGING: &str = "volumes on the drive are written about as fast as they are copied";

/// An evacuation since the pool was opened, or the last one.
pub(super) struct Evacuation {
    pool: Name,
    drive: Name,
    number: u32,
    cancelled: Cell<bool>,
    running: Cell<bool>,
    total_bytes: Cell<u64>,
    moved_bytes: Cell<u64>,
    error: RefCell<String>,
}

/// By drive.
pub(super) type Evacuations = RefCell<BTreeMap<Name, Rc<Evacuation>>>;

/// What came of a step.
enum Step {
    More,
    /// Something else must end first.
    Wait,
    Done,
}

/// A move of one family, under the commander's locks.
struct Under<'a> {
    commander: &'a Commander,
    evacuation: &'a Evacuation,
    to: u32,
}

impl Conduct for Under<'_> {
    fn handle(&self) -> &Handle {
        &self.commander.handle
    }

    fn cancelled(&self) -> bool {
        self.evacuation.cancelled.get()
    }

    fn copied(&self, bytes: u64) {
        let e = self.evacuation;
        e.moved_bytes.set(e.moved_bytes.get() + bytes);
        e.total_bytes
            .set(e.total_bytes.get().max(e.moved_bytes.get()));
    }

    fn lagging(&self) {
        self.evacuation.error.replace(LAGGING.to_owned());
    }

    async fn alone<T>(&self, work: impl Future<Output = T>) -> T {
        let _pools = self.commander.pools.lock().await;
        work.await
    }

    async fn held<T>(&self, lanes: &[(VolumeId, u8)], work: impl Future<Output = T>) -> Option<T> {
        let registry = &self.commander.registry;
        registry.hold_lanes(lanes, HOLD_TIMEOUT, work).await
    }

    async fn switch(&self, lanes: &[(VolumeId, u8)]) {
        self.commander.registry.move_lanes(lanes, self.to).await;
    }
}

impl Evacuation {
    fn show(&self, drive: &mut proto::Drive) {
        drive.evacuation_bytes = self.total_bytes.get();
        drive.evacuated_bytes = self.moved_bytes.get();
        drive.evacuation_error = self.error.borrow().clone();
    }
}

impl Commander {
    /// Begins to move everything off a drive.
    pub async fn evacuate_drive(
        self: Rc<Self>,
        pool: Name,
        drive: Name,
    ) -> Result<proto::Drive, CommandError> {
        let pools = self.pools.lock().await;
        let names = pools.get(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let view = self.look(&pool, names).await;
        let (found, number) = working(&view, &drive)?;
        if found.state == DriveState::InUse {
            if names.len() == 1 {
                return Err(CommandError::LastDrive(drive));
            }
            let needed = found.facts.as_ref().map_or(0, |f| f.space.used) * BLOCK_BYTES as u64;
            let others = takers(&view, found);
            let free = others.map(PoolDrive::free_bytes).sum();
            if free < needed || takers(&view, found).next().is_none() {
                return Err(PoolError::NoRoom {
                    drive,
                    needed,
                    free,
                }
                .into());
            }
            self.on_store(&drive, number, |store| async move {
                store.set_state(DriveState::Evacuating).await
            })
            .await?;
            tracing::info!(%pool, %drive, bytes = needed, "evacuating a drive");
        }
        let view = self.look(&pool, names).await;
        self.go_on_evacuating(&view);
        let (found, _) = working(&view, &drive)?;
        Ok(self.drive_to(found))
    }

    /// Ends an evacuation, and uses the drive again.
    pub async fn cancel_evacuation(
        &self,
        pool: Name,
        drive: Name,
    ) -> Result<proto::Drive, CommandError> {
        // Not under the lock, which its last step may wait for.
        self.stop_evacuating(&drive).await;
        let pools = self.pools.lock().await;
        let names = pools.get(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let view = self.look(&pool, names).await;
        let (_, number) = working(&view, &drive)?;
        self.on_store(&drive, number, |store| async move {
            store.set_state(DriveState::InUse).await
        })
        .await?;
        self.evacuations.borrow_mut().remove(&drive);
        tracing::info!(%pool, %drive, "a drive is used again");
        let view = self.look(&pool, names).await;
        let (found, _) = working(&view, &drive)?;
        Ok(self.drive_to(found))
    }

    async fn stop_evacuating(&self, drive: &Name) {
        let running = self.evacuations.borrow().get(drive).cloned();
        if let Some(evacuation) = running {
            evacuation.cancelled.set(true);
            while evacuation.running.get() {
                self.handle.sleep(LOOK).await;
            }
        }
    }

    /// Goes on with the evacuations that a pool's drives remember.
    pub(super) fn go_on_evacuating(self: &Rc<Self>, view: &PoolView) {
        for drive in &view.drives {
            let (Some(number), Some(facts)) = (drive.number, &drive.facts) else {
                continue;
            };
            let there = self.evacuations.borrow().get(&drive.id).cloned();
            let there = there.is_some_and(|e| e.running.get() && e.number == number);
            if drive.state != DriveState::Evacuating || there {
                continue;
            }
            let evacuation = Rc::new(Evacuation {
                pool: view.id.clone(),
                drive: drive.id.clone(),
                number,
                cancelled: Cell::new(false),
                running: Cell::new(true),
                total_bytes: Cell::new(facts.space.used * BLOCK_BYTES as u64),
                moved_bytes: Cell::new(0),
                error: RefCell::default(),
            });
            let mut all = self.evacuations.borrow_mut();
            all.insert(drive.id.clone(), evacuation.clone());
            let this = self.clone();
            self.handle.spawn("evacuation", async move {
                this.evacuate(&evacuation).await;
                evacuation.running.set(false);
            });
        }
    }

    /// What is known of a drive's evacuation.
    pub(super) fn show_evacuation(&self, id: &Name, drive: &mut proto::Drive) {
        if let Some(evacuation) = self.evacuations.borrow().get(id) {
            evacuation.show(drive);
        }
    }

    async fn evacuate(&self, evacuation: &Evacuation) {
        while !evacuation.cancelled.get() {
            let wait = match self.evacuate_some(evacuation).await {
                Ok(Step::Done) => return,
                Ok(Step::More) => {
                    evacuation.error.take();
                    Duration::ZERO
                }
                Ok(Step::Wait) => LOOK,
                Err(CommandError::Store {
                    source: StoreError::Closed,
                    ..
                }) => return,
                Err(e) => {
                    tracing::warn!(drive = %evacuation.drive, "an evacuation waits: {e}");
                    evacuation.error.replace(e.to_string());
                    RETRY_AFTER
                }
            };
            let mut slept = Duration::ZERO;
            while slept < wait && !evacuation.cancelled.get() {
                self.handle.sleep(LOOK).await;
                slept += LOOK;
            }
        }
    }

    /// Moves a family, if there is one.
    async fn evacuate_some(&self, evacuation: &Evacuation) -> Result<Step, CommandError> {
        let (drive, number) = (&evacuation.drive, evacuation.number);
        let next = self.on_store(
            drive,
            number,
            |store| async move { Ok(store.next_family()) },
        );
        match next.await? {
            NextFamily::Family(family) => self.move_away(evacuation, family).await,
            NextFamily::Deleting => Ok(Step::Wait),
            NextFamily::Undecided => Err(CommandError::Undecided(drive.clone())),
            NextFamily::Nothing => self.evacuated(evacuation).await,
        }
    }

    /// Moves a family to the drive that has most room.
    async fn move_away(
        &self,
        evacuation: &Evacuation,
        family: Vec<MovedRecord>,
    ) -> Result<Step, CommandError> {
        let (drive, number) = (&evacuation.drive, evacuation.number);
        let to = self.taker(evacuation, &family).await;
        let (to, to_number) = match to {
            Ok(to) => to,
            Err(e) => {
                self.on_store(drive, number, |store| async move {
                    store.unpin();
                    Ok(())
                })
                .await?;
                return Err(e);
            }
        };
        let under = Under {
            commander: self,
            evacuation,
            to: to_number,
        };
        let home = |number| -> DriveHome { self.registry.home(number) };
        match move_family(&home(number), &home(to_number), &under, family).await {
            Ok(()) | Err(MoveError::Cancelled) => Ok(Step::More),
            Err(MoveError::Source(source) | MoveError::NotForgotten(source)) => {
                let drive = drive.clone();
                Err(CommandError::Store { drive, source })
            }
            // That drive may have been taken out; another may do.
            Err(MoveError::Destination(StoreError::Closed)) => Ok(Step::Wait),
            Err(MoveError::Destination(source)) => Err(CommandError::Store { drive: to, source }),
            Err(MoveError::Undecided(_)) => Err(CommandError::Undecided(drive.clone())),
        }
    }

    /// The drive that a family goes to.
    async fn taker(
        &self,
        evacuation: &Evacuation,
        family: &[MovedRecord],
    ) -> Result<(Name, u32), CommandError> {
        let pools = self.pools.lock().await;
        let names = pools.get(&evacuation.pool);
        let names = names.ok_or_else(|| CommandError::NoPool(evacuation.pool.to_string()))?;
        let view = self.look(&evacuation.pool, names).await;
        let (source, _) = working(&view, &evacuation.drive)?;
        // At least so much: what its records do not share is seen when it is copied.
        let most = family.iter().map(|r| r.used_blocks).max();
        let needed = most.unwrap_or(0) * BLOCK_BYTES as u64;
        let best = takers(&view, source).max_by_key(|d| d.free_bytes());
        let free = best.map_or(0, PoolDrive::free_bytes);
        let number = best.and_then(|d| Some((d.id.clone(), d.number?)));
        number.filter(|_| free >= needed).ok_or_else(|| {
            PoolError::NoRoom {
                drive: evacuation.drive.clone(),
                needed,
                free,
            }
            .into()
        })
    }

    /// Nothing is left on the drive, unless something has come meanwhile.
    async fn evacuated(&self, evacuation: &Evacuation) -> Result<Step, CommandError> {
        let pools = self.pools.lock().await;
        let home = self.registry.home(evacuation.number);
        let emptied = home.run(|store| async move {
            if store.next_family() != NextFamily::Nothing {
                store.unpin();
                return Ok(false);
            }
            store.set_state(DriveState::Evacuated).await?;
            Ok(true)
        });
        let emptied = emptied.await.map_err(|source| CommandError::Store {
            drive: evacuation.drive.clone(),
            source,
        })?;
        if !emptied {
            return Ok(Step::More);
        }
        evacuation.total_bytes.set(evacuation.moved_bytes.get());
        evacuation.error.take();
        tracing::info!(drive = %evacuation.drive, bytes = evacuation.moved_bytes.get(), "a drive is empty");
        if let Some(names) = pools.get(&evacuation.pool) {
            self.look(&evacuation.pool, names).await;
        }
        self.events
            .drive_evacuated(&evacuation.pool, &evacuation.drive);
        Ok(Step::Done)
    }

    /// Puts right what a crash in a move left on the drives of a pool. True: something was.
    pub(super) async fn put_right(&self, view: &PoolView) -> bool {
        let mut done = false;
        for (place, volume, lane) in view.staying() {
            let drive = &view.drives[place];
            if let Some(number) = drive.number {
                done = true;
                let stays = self.on_store(&drive.id, number, move |store| async move {
                    store.stay(volume, lane).await
                });
                match stays.await {
                    // Where the volume is open, the lane is on the drive that was to take it.
                    Ok(()) => self.registry.move_lanes(&[(volume, lane)], number).await,
                    Err(e) => {
                        tracing::error!(%volume, lane, "a lane that was to leave its drive: {e}");
                    }
                }
            }
        }
        for (place, copies) in view.stale() {
            let drive = &view.drives[place];
            if let Some(number) = drive.number.filter(|_| !drive.failed) {
                done = true;
                let count = copies.len();
                let dropped = self.on_store(&drive.id, number, move |store| async move {
                    store.drop_copies(&copies).await
                });
                match dropped.await {
                    Ok(()) => {
                        tracing::info!(drive = %drive.id, count, "copies that a move left behind are deleted")
                    }
                    Err(e) => tracing::error!("copies that a move left behind: {e}"),
                }
            }
        }
        done
    }
}

/// A drive of the pool that is open and works.
fn working<'a>(view: &'a PoolView, drive: &Name) -> Result<(&'a PoolDrive, u32), CommandError> {
    let found = view.drives.iter().find(|d| d.id == *drive);
    let found = found.ok_or_else(|| CommandError::NoDrive(drive.to_string()))?;
    match found.number {
        Some(number) if !found.failed && found.facts.is_some() => Ok((found, number)),
        _ => Err(CommandError::DriveMissing(drive.clone())),
    }
}

/// Drives that can take what is on another: in use, and with no volatile cache unless that has one too, for hosts were told whether to flush.
fn takers<'a>(
    view: &'a PoolView,
    source: &'a PoolDrive,
) -> impl Iterator<Item = &'a PoolDrive> + 'a {
    let volatile = |d: &PoolDrive| d.facts.as_ref().is_some_and(|f| f.volatile_cache);
    let may = volatile(source);
    view.drives.iter().filter(move |d| {
        d.id != source.id
            && d.facts.is_some()
            && !d.failed
            && d.state == DriveState::InUse
            && (may || !volatile(d))
    })
}
