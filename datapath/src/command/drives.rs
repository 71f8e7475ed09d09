//! Drives of a pool that come and go.

use keelblock_api::datapath as proto;

use super::Commander;
use super::error::CommandError;
use super::prepare::PreparedDrive;
use crate::store::Name;

impl Commander {
    /// Adds a drive to an open pool.
    pub async fn add_drive(
        &self,
        pool: Name,
        drive: PreparedDrive,
    ) -> Result<proto::Pool, CommandError> {
        let mut pools = self.pools.lock().await;
        let names = pools.get_mut(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        self.join(&pool, names, drive).await?;
        let view = self.look(&pool, names).await;
        self.open_volumes(&view).await;
        Ok(self.pool_to(&view))
    }

    async fn join(
        &self,
        pool: &Name,
        names: &mut Vec<Name>,
        drive: PreparedDrive,
    ) -> Result<(), CommandError> {
        let name = drive.id.clone();
        self.open_drive(pool, drive, true).await?;
        if !names.contains(&name) {
            names.push(name.clone());
        }
        let view = self.look(pool, names).await;
        self.tell_members(&view, view.members(), &[name]).await
    }

    /// Takes an empty drive out of its pool. One that is not there is out already.
    pub async fn remove_drive(&self, pool: Name, drive: Name) -> Result<proto::Pool, CommandError> {
        let mut pools = self.pools.lock().await;
        let names = pools.get_mut(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let view = self.look(&pool, names).await;
        if let Some(found) = view.drives.iter().find(|d| d.id == drive) {
            let Some(facts) = &found.facts else {
                return Err(CommandError::DriveMissing(drive));
            };
            if !facts.lanes.is_empty() || !facts.snapshots.is_empty() {
                return Err(CommandError::DriveInUse {
                    drive,
                    lanes: facts.lanes.len(),
                    snapshots: facts.snapshots.len(),
                });
            }
            if names.len() == 1 {
                return Err(CommandError::LastDrive(drive));
            }
            // The others know first: a crash in between leaves a drive that nobody asks for.
            let members = view.members() - 1;
            names.retain(|name| *name != drive);
            let view = self.look(&pool, names).await;
            self.tell_members(&view, members, &[]).await?;
            self.evacuations.borrow_mut().remove(&drive);
            self.close_drives(&[drive]).await;
        }
        let view = self.look(&pool, names).await;
        Ok(self.pool_to(&view))
    }

    /// Forgets a drive that failed or is missing, and adds another in its place.
    pub async fn replace_drive(
        &self,
        pool: Name,
        drive: Name,
        replacement: Option<PreparedDrive>,
    ) -> Result<proto::ReplaceDriveReply, CommandError> {
        let mut pools = self.pools.lock().await;
        let names = pools.get_mut(&pool);
        let names = names.ok_or_else(|| CommandError::NoPool(pool.to_string()))?;
        let view = self.look(&pool, names).await;
        let mut lost = Vec::new();
        if let Some(found) = view.drives.iter().find(|d| d.id == drive) {
            if !found.failed {
                return Err(CommandError::DriveWorks(drive));
            }
            let before = view.volumes();
            for volume in before.values() {
                // What is open is closed, since lanes of it go; what is exported goes on with those that are left until it is unexported.
                let on_it = |place: &usize| view.drives[*place].id == drive;
                if volume.lanes.iter().flatten().any(on_it) {
                    lost.push(volume.id);
                    if self.export_of(volume.id).is_none() {
                        self.registry.close(volume.id).await;
                    }
                }
            }
            let members = view.members() - 1;
            names.retain(|name| *name != drive);
            self.evacuations.borrow_mut().remove(&drive);
            self.close_drives(std::slice::from_ref(&drive)).await;
            let view = self.look(&pool, names).await;
            self.tell_members(&view, members, &[]).await?;
            for volume in view.volumes().values() {
                if volume.places().is_err() && !lost.contains(&volume.id) {
                    lost.push(volume.id);
                }
            }
        }
        if let Some(replacement) = replacement {
            self.join(&pool, names, replacement).await?;
        }
        let mut view = self.look(&pool, names).await;
        if self.put_right(&view).await {
            view = self.look(&pool, names).await;
        }
        // What the drive was just taking in an evacuation is where it was.
        lost.retain(|id| view.volume(*id).is_none_or(|v| v.places().is_err()));
        self.open_volumes(&view).await;
        Ok(proto::ReplaceDriveReply {
            pool: Some(self.pool_to(&view)),
            lost_volume_ids: lost.iter().map(ToString::to_string).collect(),
        })
    }
}
