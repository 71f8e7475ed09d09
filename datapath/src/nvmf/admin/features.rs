//! Features of a controller (NVMe Base 2.1, 5.1.25; NVM Command Set 1.1, 4.1.3). None can be saved. The ones with a scope beyond the
//! controller (reservation persistence) are handled by `admin/mod.rs`, the ones that belong to another part (events, keep alive, host
//! identifier) by that part; here are the identifiers, who has which, and the values that are only the controller's.

use crate::nvmf::controller::{Role, status};
use crate::nvmf::seam::{IO_QUEUES_MAX, StatusField};
use std::collections::BTreeMap;

/// Feature identifiers.
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENTS: u8 = 0x0b;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE: u8 = 0x0f;
    /// I/O Command Set Profile.
    pub const COMMAND_SET_PROFILE: u8 = 0x19;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation Notification Mask.
    pub const RESERVATION_MASK: u8 = 0x82;
    /// Reservation Persistence.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
}

/// What a feature is set for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The controller.
    Controller,
    /// A namespace.
    Namespace,
}

/// The scope of a feature that a controller of this role has, or `None`.
pub fn scope(role: Role, fid: u8, volatile_cache: bool) -> Option<Scope> {
    use fid::*;
    match (role, fid) {
        (_, ASYNC_EVENTS | KEEP_ALIVE) => Some(Scope::Controller),
        (Role::Discovery, _) => None,
        (_, VOLATILE_WRITE_CACHE) => volatile_cache.then_some(Scope::Controller),
        (_, ARBITRATION | POWER_MANAGEMENT | TEMPERATURE_THRESHOLD | NUMBER_OF_QUEUES) => {
            Some(Scope::Controller)
        }
        (_, WRITE_ATOMICITY | COMMAND_SET_PROFILE | HOST_IDENTIFIER) => Some(Scope::Controller),
        (_, ERROR_RECOVERY | RESERVATION_MASK | RESERVATION_PERSISTENCE) => Some(Scope::Namespace),
        _ => None,
    }
}

/// Log page 12h: support and effects of every feature.
pub fn effects_page(role: Role, volatile_cache: bool) -> Vec<u8> {
    const SUPPORTED: u32 = 1 << 0;
    const NAMESPACE: u32 = 1 << 20;
    const CONTROLLER: u32 = 1 << 21;
    let entry = |fid: u8| match scope(role, fid, volatile_cache) {
        Some(Scope::Namespace) => SUPPORTED | NAMESPACE,
        Some(Scope::Controller) => SUPPORTED | CONTROLLER,
        None => 0,
    };
    (0..=255).flat_map(|fid| entry(fid).to_le_bytes()).collect()
}

/// No composite temperature is above this until the host says so.
const TEMPERATURE_OVER_DEFAULT: u16 = 0xffff;
/// Every reservation notification of a namespace: registration preempted, reservation released, reservation preempted.
const NOTICE_BITS: u32 = 0b1110;

/// Values that only the controller knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    arbitration: u32,
    temperature_over: u16,
    temperature_under: u16,
    error_recovery: BTreeMap<u32, u32>,
    write_atomicity: u32,
    queues: u16,
    notice_masks: BTreeMap<u32, u32>,
}

impl Default for Features {
    fn default() -> Self {
        Features {
            // No limit on the burst; round robin has no weights.
            arbitration: 7,
            temperature_over: TEMPERATURE_OVER_DEFAULT,
            temperature_under: 0,
            error_recovery: BTreeMap::new(),
            write_atomicity: 0,
            queues: IO_QUEUES_MAX,
            notice_masks: BTreeMap::new(),
        }
    }
}

impl Features {
    /// Queue identifiers 1 to this may be connected.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// A notification of type `kind` (1 to 3) about `nsid` is not wanted.
    pub fn masks_notice(&self, nsid: u32, kind: u8) -> bool {
        self.notice_masks
            .get(&nsid)
            .is_some_and(|m| m >> kind & 1 != 0)
    }

    /// Get Features of what is kept here.
    pub fn get(&self, fid: u8, nsid: u32, dword11: u32) -> Result<u32, StatusField> {
        Ok(match fid {
            fid::ARBITRATION => self.arbitration,
            fid::POWER_MANAGEMENT | fid::COMMAND_SET_PROFILE => 0,
            fid::TEMPERATURE_THRESHOLD => u32::from(self.threshold(dword11)?),
            fid::ERROR_RECOVERY => self.error_recovery.get(&nsid).copied().unwrap_or(0),
            fid::VOLATILE_WRITE_CACHE => 1,
            fid::NUMBER_OF_QUEUES => u32::from(self.queues - 1) | u32::from(self.queues - 1) << 16,
            fid::WRITE_ATOMICITY => self.write_atomicity,
            fid::RESERVATION_MASK => self.notice_masks.get(&nsid).copied().unwrap_or(0),
            _ => return Err(status::INVALID_FIELD),
        })
    }

    /// Set Features of what is kept here; dword 0 of the completion. `namespaces`: the one the command names, or all of them.
    /// `io_queues`: whether there are I/O queues.
    pub fn set(
        &mut self,
        fid: u8,
        dword11: u32,
        namespaces: &[u32],
        io_queues: bool,
    ) -> Result<u32, StatusField> {
        match fid {
            fid::ARBITRATION => self.arbitration = dword11,
            // One power state, one combination of command sets.
            fid::POWER_MANAGEMENT if dword11 & 0x1f == 0 => {}
            fid::COMMAND_SET_PROFILE if dword11 & 0x1ff == 0 => {}
            fid::COMMAND_SET_PROFILE => return Err(status::COMMAND_SET_REJECTED),
            fid::TEMPERATURE_THRESHOLD => self.set_threshold(dword11)?,
            // DULBE (bit 16) is not supported: deallocated blocks read as zeroes.
            fid::ERROR_RECOVERY if dword11 >> 16 == 0 => self
                .error_recovery
                .extend(namespaces.iter().map(|n| (*n, dword11))),
            fid::VOLATILE_WRITE_CACHE if dword11 & 1 == 1 => {}
            fid::VOLATILE_WRITE_CACHE => return Err(status::FEATURE_NOT_CHANGEABLE),
            fid::NUMBER_OF_QUEUES => return self.set_queues(dword11, io_queues),
            fid::WRITE_ATOMICITY => self.write_atomicity = dword11 & 1,
            fid::RESERVATION_MASK => self
                .notice_masks
                .extend(namespaces.iter().map(|n| (*n, dword11 & NOTICE_BITS))),
            _ => return Err(status::INVALID_FIELD),
        }
        Ok(0)
    }

    fn set_queues(&mut self, dword11: u32, io_queues: bool) -> Result<u32, StatusField> {
        let (submission, completion) = (dword11 as u16, (dword11 >> 16) as u16);
        if submission == u16::MAX || completion == u16::MAX {
            return Err(status::INVALID_FIELD);
        }
        if io_queues {
            return Err(status::COMMAND_SEQUENCE);
        }
        // A fabric queue is a pair.
        self.queues = submission
            .min(completion)
            .saturating_add(1)
            .min(IO_QUEUES_MAX);
        self.get(fid::NUMBER_OF_QUEUES, 0, 0)
    }

    /// The composite temperature's thresholds; there are no other sensors.
    fn threshold(&self, dword11: u32) -> Result<u16, StatusField> {
        match (dword11 >> 16 & 15, dword11 >> 20 & 3) {
            (0, 0) => Ok(self.temperature_over),
            (0, 1) => Ok(self.temperature_under),
            _ => Err(status::INVALID_FIELD),
        }
    }

    fn set_threshold(&mut self, dword11: u32) -> Result<(), StatusField> {
        match (dword11 >> 16 & 15, dword11 >> 20 & 3) {
            (0 | 15, 0) => self.temperature_over = dword11 as u16,
            (0 | 15, 1) => self.temperature_under = dword11 as u16,
            _ => return Err(status::INVALID_FIELD),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_queues() {
        let mut f = Features::default();
        assert_eq!(f.get(fid::NUMBER_OF_QUEUES, 0, 0), Ok(127 | 127 << 16));
        assert_eq!(
            f.set(fid::NUMBER_OF_QUEUES, 3 | 5 << 16, &[], false),
            Ok(3 | 3 << 16)
        );
        assert_eq!(
            (f.queues(), f.get(fid::NUMBER_OF_QUEUES, 0, 0)),
            (4, Ok(3 | 3 << 16))
        );
        assert_eq!(
            f.set(fid::NUMBER_OF_QUEUES, 500 | 500 << 16, &[], false),
            Ok(127 | 127 << 16)
        );
        assert_eq!(
            f.set(fid::NUMBER_OF_QUEUES, 0xffff, &[], false),
            Err(status::INVALID_FIELD)
        );
        assert_eq!(
            f.set(fid::NUMBER_OF_QUEUES, 1 | 1 << 16, &[], true),
            Err(status::COMMAND_SEQUENCE)
        );
    }

    #[test]
    fn thresholds_are_two() {
        let mut f = Features::default();
        assert_eq!(f.set(fid::TEMPERATURE_THRESHOLD, 350, &[], false), Ok(0));
        assert_eq!(
            f.set(fid::TEMPERATURE_THRESHOLD, 270 | 1 << 20, &[], false),
            Ok(0)
        );
        assert_eq!(f.get(fid::TEMPERATURE_THRESHOLD, 0, 0), Ok(350));
        assert_eq!(f.get(fid::TEMPERATURE_THRESHOLD, 0, 1 << 20), Ok(270));
        assert_eq!(
            f.get(fid::TEMPERATURE_THRESHOLD, 0, 3 << 16),
            Err(status::INVALID_FIELD)
        );
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let mut f = Features::default();
        for (fid, value, status) in [
            (fid::POWER_MANAGEMENT, 1, status::INVALID_FIELD),
            (fid::VOLATILE_WRITE_CACHE, 0, status::FEATURE_NOT_CHANGEABLE),
            (fid::ERROR_RECOVERY, 1 << 16, status::INVALID_FIELD),
            (fid::COMMAND_SET_PROFILE, 1, status::COMMAND_SET_REJECTED),
            (0, 0, status::INVALID_FIELD),
            (0x08, 0, status::INVALID_FIELD),
        ] {
            assert_eq!(f.set(fid, value, &[1], false), Err(status), "{fid:#x}");
        }
        assert_eq!(f, Features::default());
    }

    #[test]
    fn notice_masks_are_per_namespace() {
        let mut f = Features::default();
        f.set(fid::RESERVATION_MASK, 0xffff_fff4, &[1, 2], false)
            .unwrap();
        assert_eq!(
            (
                f.get(fid::RESERVATION_MASK, 1, 0),
                f.get(fid::RESERVATION_MASK, 3, 0)
            ),
            (Ok(4), Ok(0))
        );
        assert_eq!(
            (
                f.masks_notice(2, 2),
                f.masks_notice(2, 1),
                f.masks_notice(3, 2)
            ),
            (true, false, false)
        );
    }

    #[test]
    fn effects() {
        let b = effects_page(Role::Io, false);
        assert_eq!(b.len(), 1024);
        assert_eq!(b[4 * 7..4 * 8], (1u32 | 1 << 21).to_le_bytes());
        assert_eq!(b[4 * 0x82..4 * 0x83], (1u32 | 1 << 20).to_le_bytes());
        assert_eq!(b[4 * 6], 0, "no cache, no feature");
        assert_eq!(effects_page(Role::Io, true)[4 * 6], 1);
        assert_eq!(
            effects_page(Role::Discovery, true)
                .chunks(4)
                .filter(|c| c[0] == 1)
                .count(),
            2
        );
    }
}
