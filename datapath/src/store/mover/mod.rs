//! Moving a family of lanes from one drive to another while they are used (`docs/store-format.md` §13).
//!
//! The order of the steps is here; what they do is in `engine::leave` and `engine::arrive`, on the homes of the two drives ([`AtDrive`]). Who
//! may change what drives hold, and who uses lanes, is known by the [`Conduct`].

#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use super::VolumeId;
use super::engine::{Arrival, MovedKind, MovedRecord, Part, Settled, Store, StoreError};
use super::types::{BLOCK_BYTES, CatalogueHandle, LaneBlock};
use crate::reactor::Handle;

/// A snapshot that differed by no more blocks is followed by the hold.
const LITTLE_BLOCKS: u64 = 1024;
/// How long lanes are held while the last differences are copied; then they go on, and it is tried again.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// The longest pause after a part.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// After a hold that came to nothing.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// From so many rounds on it is told that volumes are written too fast.
const ROUNDS_USUAL: u32 = 16;

/// The home of a drive's store.
pub trait AtDrive {
    /// Runs something there.
    fn run<T, F, Fut>(&self, work: F) -> impl Future<Output = Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + 'static;
}

/// What a move is done under.
pub trait Conduct {
    /// Time.
    fn handle(&self) -> &Handle;
    /// Whether it shall end.
    fn cancelled(&self) -> bool;
    /// So many bytes of data have been copied.
    fn copied(&self, bytes: u64);
    /// It goes on, but its volumes are written about as fast as they are copied.
    fn lagging(&self);
    /// Runs `work` while nothing else changes what drives hold.
    fn alone<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T>;
    /// Runs `work` while no operation is under way on these lanes; `None`: they did not come to rest, and nothing was done.
    fn held<T>(
        &self,
        lanes: &[(VolumeId, u8)],
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Option<T>>;
    /// These lanes are on the destination from now on. They are held.
    fn switch(&self, lanes: &[(VolumeId, u8)]) -> impl Future<Output = ()>;
}

/// Why a move did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// As was asked for. All is as before.
    #[error("it was ended")]
    Cancelled,
    /// The drive that is moved from. All is as before.
    #[error("{0}")]
    Source(StoreError),
    /// The drive that is moved to. All is as before.
    #[error("the drive that takes its lanes: {0}")]
    Destination(StoreError),
    /// The destination failed when the move was decided: the lanes are its, and what it holds is known when the pool is opened again.
    #[error("the drive that takes its lanes failed when it took them: {0}")]
    Undecided(StoreError),
    /// The lanes have moved; the old copies could not be given up, and are when the pool is opened again.
    #[error("lanes have moved, but the drive cannot forget them: {0}")]
    NotForgotten(StoreError),
}

/// What came of trying to finish.
enum Finish {
    Done,
    /// Something changed, or there was too much left.
    Again,
}

struct Mover<'a, S, D, C> {
    source: &'a S,
    destination: &'a D,
    conduct: &'a C,
    /// What has a copy, or part of one, on the destination.
    copies: BTreeMap<CatalogueHandle, CatalogueHandle>,
    /// Snapshots that differed by little.
    small: Vec<CatalogueHandle>,
    /// Everything that was seen of the family.
    known: Vec<CatalogueHandle>,
    /// The destination was told to take over: there is nothing to give up there.
    decided: bool,
}

/// Moves a family, which the source has pinned, to another drive.
///
/// # Errors
/// [`MoveError`]; each says what is left.
pub async fn move_family<S: AtDrive, D: AtDrive, C: Conduct>(
    source: &S,
    destination: &D,
    conduct: &C,
    family: Vec<MovedRecord>,
) -> Result<(), MoveError> {
    let mut mover = Mover {
        source,
        destination,
        conduct,
        copies: BTreeMap::new(),
        small: Vec::new(),
        known: Vec::new(),
        decided: false,
    };
    let moved = mover.run(family).await;
    if !mover.decided {
        let copies: Vec<CatalogueHandle> = mover.copies.values().copied().collect();
        mover.forget(&copies).await;
    }
    // A drive that cannot be reached any more has forgotten its pins.
    let unpin = mover.source.run(|s| async move {
        s.unpin();
        Ok(())
    });
    let _ = unpin.await;
    moved
}

impl<S: AtDrive, D: AtDrive, C: Conduct> Mover<'_, S, D, C> {
    async fn run(&mut self, family: Vec<MovedRecord>) -> Result<(), MoveError> {
        let mut records = family;
        let mut rounds = 0;
        while !records.is_empty() {
            rounds += 1;
            if rounds > ROUNDS_USUAL {
                self.conduct.lagging();
            }
            self.remember(&records);
            self.copy_snapshots(&records).await?;
            if self.is_close(&records) {
                match self.finish().await? {
                    Finish::Done => return Ok(()),
                    Finish::Again => self.conduct.handle().sleep(AGAIN_AFTER).await,
                }
            }
            let live = records.iter().filter(|r| r.kind == MovedKind::Live);
            let live: Vec<CatalogueHandle> = live.map(|r| r.handle).collect();
            let follow = self
                .source
                .run(move |s| async move { s.snapshot_to_move(&live).await });
            follow.await.map_err(MoveError::Source)?;
            records = self.family().await?;
        }
        Ok(())
    }

    fn remember(&mut self, records: &[MovedRecord]) {
        for record in records {
            if !self.known.contains(&record.handle) {
                self.known.push(record.handle);
            }
        }
    }

    async fn family(&self) -> Result<Vec<MovedRecord>, MoveError> {
        let known = self.known.clone();
        let family = self
            .source
            .run(move |s| async move { Ok(s.family(&known)) });
        family.await.map_err(MoveError::Source)
    }

    /// Whether every snapshot has a copy, and live lanes are little ahead of theirs.
    fn is_close(&self, records: &[MovedRecord]) -> bool {
        records.iter().all(|r| match r.kind {
            MovedKind::Live => r.parent.is_some_and(|p| self.small.contains(&p)),
            MovedKind::Snapshot | MovedKind::Hidden => self.copies.contains_key(&r.handle),
        })
    }

    async fn copy_snapshots(&mut self, records: &[MovedRecord]) -> Result<(), MoveError> {
        for record in records {
            if record.kind == MovedKind::Live || self.copies.contains_key(&record.handle) {
                continue;
            }
            let copy = self.begin(record).await?;
            let blocks = self.copy(record, copy, None).await?;
            let end = self
                .destination
                .run(move |d| async move { d.end_arrival(copy).await });
            end.await.map_err(MoveError::Destination)?;
            if blocks.is_some_and(|blocks| blocks <= LITTLE_BLOCKS) {
                self.small.push(record.handle);
            }
        }
        Ok(())
    }

    async fn begin(&mut self, record: &MovedRecord) -> Result<CatalogueHandle, MoveError> {
        let parent = record.parent.map(|p| self.copies[&p]);
        let arrival = Arrival::of(record, parent);
        let begun = self
            .destination
            .run(move |d| async move { d.begin_arrival(arrival) });
        let copy = begun.await.map_err(MoveError::Destination)?;
        self.copies.insert(record.handle, copy);
        Ok(copy)
    }

    /// Copies what a record differs by from its parent: so many blocks. `None`: not all of it by the time that it was given.
    async fn copy(
        &self,
        record: &MovedRecord,
        copy: CatalogueHandle,
        within: Option<Duration>,
    ) -> Result<Option<u64>, MoveError> {
        let (of, from) = (record.handle, record.parent);
        let clock = self.conduct.handle();
        let start = clock.now();
        let mut blocks = 0;
        let mut next = Some(LaneBlock(0));
        while let Some(at) = next {
            if self.conduct.cancelled() {
                return Err(MoveError::Cancelled);
            }
            let began = clock.now();
            let part = self
                .source
                .run(move |s| async move { s.differences(of, from, at).await });
            let part = part.await.map_err(MoveError::Source)?;
            next = part.next;
            let erased: u64 = part.erased.iter().map(|r| r.end - r.start).sum();
            let bytes = (part.blocks.len() * BLOCK_BYTES) as u64;
            let differ = part.blocks.len() as u64 + part.poisoned.len() as u64 + erased;
            blocks += differ;
            if differ > 0 {
                self.arrive(copy, part).await?;
            }
            self.conduct.copied(bytes);
            match within {
                Some(within) if clock.now().since(start) > within => return Ok(None),
                Some(_) => {}
                None => {
                    let pause = clock.now().since(began).min(PAUSE_MAX);
                    clock.sleep(pause).await;
                }
            }
        }
        Ok(Some(blocks))
    }

    async fn arrive(&self, copy: CatalogueHandle, part: Part) -> Result<(), MoveError> {
        let arrived = self
            .destination
            .run(move |d| async move { d.arrive(copy, &part).await });
        arrived.await.map_err(MoveError::Destination)
    }

    /// Holds the live lanes, and has the destination take over.
    async fn finish(&mut self) -> Result<Finish, MoveError> {
        let conduct = self.conduct;
        conduct
            .alone(async {
                let records = self.family().await?;
                if records.is_empty() || !self.is_close(&records) {
                    return Ok(Finish::Again);
                }
                let lanes = live(&records);
                let held = conduct.held(&lanes, self.hand_over(&records, &lanes));
                held.await.unwrap_or(Ok(Finish::Again))
            })
            .await
    }

    async fn hand_over(
        &mut self,
        records: &[MovedRecord],
        lanes: &[(VolumeId, u8)],
    ) -> Result<Finish, MoveError> {
        let began = self.conduct.handle().now();
        let mut rest = Vec::new();
        for record in records.iter().filter(|r| r.kind == MovedKind::Live) {
            let copy = self.begin(record).await?;
            rest.push((record.handle, copy));
            let left = HOLD_MAX.saturating_sub(self.conduct.handle().now().since(began));
            if self.copy(record, copy, Some(left)).await?.is_none() {
                let copies: Vec<CatalogueHandle> = rest.iter().map(|(_, c)| *c).collect();
                self.forget(&copies).await;
                for (record, _) in rest {
                    self.copies.remove(&record);
                }
                return Ok(Finish::Again);
            }
        }
        let leaving: Vec<CatalogueHandle> = rest.iter().map(|(record, _)| *record).collect();
        let leave = self
            .source
            .run(move |s| async move { s.leave(&leaving).await });
        leave.await.map_err(MoveError::Source)?;
        let all: Vec<CatalogueHandle> = records.iter().map(|r| r.handle).collect();
        #[cfg(planted)]
        if super::planted::is(super::planted::Bug::MoveLeftFirst) {
            let all = all.clone();
            let left = self.source.run(move |s| async move { s.left(&all).await });
            left.await.map_err(MoveError::NotForgotten)?;
        }
        self.decide(records, lanes).await?;
        let left = self.source.run(move |s| async move { s.left(&all).await });
        let left = left.await.map_err(MoveError::NotForgotten);
        self.conduct.switch(lanes).await;
        left.map(|()| Finish::Done)
    }

    /// The destination takes over, all at once.
    async fn decide(
        &mut self,
        records: &[MovedRecord],
        lanes: &[(VolumeId, u8)],
    ) -> Result<(), MoveError> {
        let highest = records.iter().map(|r| r.incarnation).max().unwrap_or(0);
        let settled = records.iter().map(|r| Settled {
            handle: self.copies[&r.handle],
            kind: r.kind,
            snapshot: r.snapshot,
            size_bytes: r.size_bytes,
            incarnation: highest.saturating_add(1),
        });
        let settled: Vec<Settled> = settled.collect();
        let done = self
            .destination
            .run(move |d| async move { d.settle_family(&settled).await });
        match done.await {
            Ok(()) => {
                self.decided = true;
                Ok(())
            }
            // It was not even begun.
            Err(e @ (StoreError::Exists | StoreError::Unknown)) => {
                for &(volume, lane) in lanes {
                    let stay = self
                        .source
                        .run(move |s| async move { s.stay(volume, lane).await });
                    stay.await.map_err(MoveError::Source)?;
                }
                Err(MoveError::Destination(e))
            }
            Err(e) => {
                self.decided = true;
                self.conduct.switch(lanes).await;
                Err(MoveError::Undecided(e))
            }
        }
    }

    async fn forget(&self, copies: &[CatalogueHandle]) {
        let copies = copies.to_vec();
        let forgotten = self.destination.run(|d| async move {
            d.forget_arrivals(&copies);
            Ok(())
        });
        if let Err(e) = forgotten.await {
            tracing::warn!("parts of a move are left until the drive is opened again: {e}");
        }
    }
}

fn live(records: &[MovedRecord]) -> Vec<(VolumeId, u8)> {
    let live = records.iter().filter(|r| r.kind == MovedKind::Live);
    live.map(|r| (r.volume, r.lane)).collect()
}
