//! A disk loses its power, and what it kept is drawn.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use super::super::World;
use super::super::media::{Blocks, Cut, Versions};
use super::Action;

/// A disk whose power has gone, and of which is not decided yet what it kept.
#[derive(Debug, Clone)]
pub struct Undecided {
    now: Blocks,
    cached: BTreeMap<u64, Versions>,
}

impl World {
    /// The power fails: of each write since the last flush all, nothing or some sectors stay, also of those under way.
    pub(in super::super) fn disk_power_cut(&self, name: &Path) {
        if let Some(undecided) = self.disk_power_off(name) {
            self.disk_power_left(name, &undecided, self.random());
        }
    }

    /// The power fails; what stays is decided later, perhaps several times.
    pub(in super::super) fn disk_power_off(&self, name: &Path) -> Option<Undecided> {
        let shelf = self.disks.borrow().get(name).cloned()?;
        let under_way = self.take_ops(|op| Rc::ptr_eq(&op.disk, &shelf.state));
        let mut disk = shelf.state.borrow_mut();
        for op in under_way {
            match (&op.action, &op.buffer) {
                (Action::Write { len, .. }, Some(buffer)) => {
                    disk.store(op.offset, *len as u64, Some(&buffer[..*len]), false);
                }
                (Action::Zero { len }, _) => disk.store(op.offset, *len, None, false),
                _ => {}
            }
        }
        let (now, cached) = (disk.now.clone(), std::mem::take(&mut disk.cached));
        Some(Undecided { now, cached })
    }

    /// Decides what stayed; disks for which the same number is said hold the same.
    pub(in super::super) fn disk_power_left(
        &self,
        name: &Path,
        undecided: &Undecided,
        seed: u64,
    ) -> u64 {
        let Some(shelf) = self.disks.borrow().get(name).cloned() else {
            return 0;
        };
        let mut disk = shelf.state.borrow_mut();
        disk.now = undecided.now.clone();
        disk.cached.clear();
        let cut = Cut::new(seed);
        let mut all = 0u64;
        for (block, versions) in &undecided.cached {
            let (left, of) = cut.leaves(*block, versions);
            disk.now.set(*block, left);
            all = (all.rotate_left(17) ^ of).wrapping_mul(0x2127_599b_f432_5c37);
        }
        all
    }
}
