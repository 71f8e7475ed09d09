//! Properties of a controller (NVMe Base 2.1, 3.1.4), and the states that writes to CC take it through.
//!
//! ```text
//! Disabled --EN=1--> Ready --EN=0--> Resetting --I/O queues gone--> Disabled
//!                      |  SHN: I/O queues end, then (normal) a flush, then SHST = complete; EN=0 leads on as from Ready
//! ```

use crate::nvmf::seam::MQES;
use keelblock_nvme::property::offset::{CAP, CC, CRTO, CSTS, VS};

/// NVMe Base 2.1.
pub const VERSION: u32 = 0x0002_0100;
/// CAP.TO and CRTO.CRWMT: ready within this many half seconds.
const READY_HALF_SECONDS: u64 = 30;
/// CAP.MPSMAX: host pages up to 64 KiB.
const MPSMAX: u32 = 4;

const CC_EN: u32 = 1;
const CC_RESERVED: u32 = 0b1110 | 0xff << 24;
/// CAP.CSS: the NVM command set, and (bit 6) I/O command sets by CC.CSS 110b.
const CSS_IO: u64 = 0x41;
/// CAP.CSS of a discovery controller.
const CSS_DISCOVERY: u64 = 0x01;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Disabled,
    Ready,
    /// Waits for the I/O queues to end.
    Resetting,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shutdown {
    No,
    /// Waits for the I/O queues to end.
    Ending {
        normal: bool,
    },
    /// Waits for the flush.
    Flushing,
    Complete,
}

/// What a write to a property, or the end of the last I/O queue, asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing more.
    None,
    /// The I/O queues must end; everything goes back to its default.
    Reset,
    /// The I/O queues must end.
    EndQueues,
    /// The volumes must be flushed.
    Flush,
}

/// The property does not exist, has another size, or does not take this value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadProperty;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    discovery: bool,
    cc: u32,
    phase: Phase,
    shutdown: Shutdown,
    fatal: bool,
}

impl Properties {
    /// As they are after a Connect.
    pub fn new(discovery: bool) -> Self {
        Properties {
            discovery,
            cc: 0,
            phase: Phase::Disabled,
            shutdown: Shutdown::No,
            fatal: false,
        }
    }

    /// Property Get of `bytes` (4 or 8).
    pub fn get(&self, offset: u32, bytes: u8) -> Result<u64, BadProperty> {
        Ok(match (offset, bytes) {
            (CAP, 8) => self.cap(),
            (VS, 4) => u64::from(VERSION),
            (CC, 4) => u64::from(self.cc),
            (CSTS, 4) => u64::from(self.csts()),
            (CRTO, 4) => READY_HALF_SECONDS,
            _ => return Err(BadProperty),
        })
    }

    /// Property Set of `bytes` (4 or 8). `io_queues`: whether the controller has any.
    pub fn set(
        &mut self,
        offset: u32,
        bytes: u8,
        value: u64,
        io_queues: bool,
    ) -> Result<Action, BadProperty> {
        if (offset, bytes) != (CC, 4) {
            return Err(BadProperty);
        }
        let new = value as u32;
        let was = self.cc;
        let enabling = new & CC_EN != 0 && was & CC_EN == 0;
        if new & CC_RESERVED != 0 || (enabling && !self.valid_to_enable(new)) {
            return Err(BadProperty);
        }
        self.cc = new;
        if enabling {
            self.shutdown = Shutdown::No;
            if self.phase == Phase::Disabled {
                self.phase = Phase::Ready;
            }
            return Ok(Action::None);
        }
        if new & CC_EN == 0 && was & CC_EN != 0 {
            self.shutdown = Shutdown::No;
            self.phase = if io_queues {
                Phase::Resetting
            } else {
                Phase::Disabled
            };
            return Ok(Action::Reset);
        }
        Ok(self.shut_down(shn(was), shn(new), io_queues))
    }

    /// The last I/O queue has ended.
    pub fn io_queues_gone(&mut self) -> Action {
        if self.phase == Phase::Resetting {
            self.phase = if self.cc & CC_EN != 0 {
                Phase::Ready
            } else {
                Phase::Disabled
            };
        }
        match self.shutdown {
            Shutdown::Ending { normal } => self.queues_ended(normal),
            _ => Action::None,
        }
    }

    /// The flush that was asked for is done.
    pub fn flushed(&mut self) {
        if self.shutdown == Shutdown::Flushing {
            self.shutdown = Shutdown::Complete;
        }
    }

    /// Admin commands are served.
    pub fn ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// I/O queues may be connected.
    pub fn takes_io_queues(&self) -> bool {
        self.ready() && self.shutdown == Shutdown::No && !self.fatal
    }

    /// Sets CSTS.CFS (keep-alive expiry).
    pub fn fail(&mut self) {
        self.fatal = true;
    }

    fn cap(&self) -> u64 {
        let css = if self.discovery {
            CSS_DISCOVERY
        } else {
            CSS_IO
        };
        let contiguous = 1 << 16;
        let ready_with_media = 1 << 59;
        u64::from(MQES)
            | contiguous
            | READY_HALF_SECONDS << 24
            | css << 37
            | u64::from(MPSMAX) << 52
            | ready_with_media
    }

    fn csts(&self) -> u32 {
        let ready = u32::from(self.phase != Phase::Disabled);
        let shst = match self.shutdown {
            Shutdown::No => 0,
            Shutdown::Ending { .. } | Shutdown::Flushing => 1,
            Shutdown::Complete => 2,
        };
        ready | u32::from(self.fatal) << 1 | shst << 2
    }

    fn valid_to_enable(&self, cc: u32) -> bool {
        let (css, mps, ams) = (cc >> 4 & 7, cc >> 7 & 15, cc >> 11 & 7);
        let (sqes, cqes) = (cc >> 16 & 15, cc >> 20 & 15);
        let entries = self.discovery || (sqes, cqes) == (6, 4);
        let set = css == 0 || (css == 6 && !self.discovery);
        set && mps <= MPSMAX && ams == 0 && entries && shn(cc) == 0
    }

    fn shut_down(&mut self, was: u32, new: u32, io_queues: bool) -> Action {
        if was != 0 || !matches!(new, 1 | 2) {
            return Action::None;
        }
        let normal = new == 1;
        if self.phase != Phase::Ready {
            self.shutdown = Shutdown::Complete;
            return Action::None;
        }
        if io_queues {
            self.shutdown = Shutdown::Ending { normal };
            return Action::EndQueues;
        }
        self.queues_ended(normal)
    }

    fn queues_ended(&mut self, normal: bool) -> Action {
        if normal && !self.discovery {
            self.shutdown = Shutdown::Flushing;
            return Action::Flush;
        }
        self.shutdown = Shutdown::Complete;
        Action::None
    }
}

fn shn(cc: u32) -> u32 {
    cc >> 14 & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: u64 = 6 << 16 | 4 << 20 | 1;

    fn enabled() -> Properties {
        let mut p = Properties::new(false);
        assert_eq!(p.set(CC, 4, ON, false), Ok(Action::None));
        p
    }

    fn csts(p: &Properties) -> u64 {
        p.get(CSTS, 4).unwrap()
    }

    #[test]
    fn capabilities() {
        let cap = Properties::new(false).get(CAP, 8).unwrap();
        assert_eq!(cap & 0xffff, 1023);
        assert_eq!(
            (cap >> 16 & 1, cap >> 24 & 255, cap >> 37 & 255),
            (1, 30, 0x41)
        );
        assert_eq!((cap >> 48 & 15, cap >> 52 & 15, cap >> 59 & 3), (0, 4, 1));
        assert_eq!(Properties::new(false).get(CRTO, 4), Ok(30));
        assert_eq!(Properties::new(false).get(VS, 4), Ok(0x20100));
    }

    #[test]
    fn only_what_exists_in_its_size() {
        let mut p = enabled();
        for (offset, bytes) in [
            (CAP, 4),
            (VS, 8),
            (CC, 8),
            (0x20, 4),
            (0x24, 4),
            (9, 4),
            (0x1000, 4),
            (0xffff_fff8, 8),
        ] {
            assert_eq!(p.get(offset, bytes), Err(BadProperty), "{offset:#x}");
        }
        for (offset, bytes) in [(CAP, 8), (VS, 4), (CSTS, 4), (CC, 8), (0x1000, 4)] {
            assert_eq!(
                p.set(offset, bytes, 1, false),
                Err(BadProperty),
                "{offset:#x}"
            );
        }
    }

    #[test]
    fn enable_wants_values_that_are_supported() {
        for bad in [
            1,
            5 << 16 | 4 << 20 | 1,
            ON | 1 << 4,
            ON | 7 << 4,
            ON | 5 << 7,
            ON | 1 << 11,
            ON | 1 << 14,
            ON | 1 << 24,
            ON | 2,
        ] {
            let mut p = Properties::new(false);
            assert_eq!(p.set(CC, 4, bad, false), Err(BadProperty), "{bad:#x}");
            assert_eq!((p.get(CC, 4), csts(&p)), (Ok(0), 0));
        }
        assert_eq!(
            Properties::new(false).set(CC, 4, ON | 6 << 4, false),
            Ok(Action::None)
        );
        assert_eq!(Properties::new(true).set(CC, 4, 1, false), Ok(Action::None));
        let p = enabled();
        assert_eq!(
            (p.get(CC, 4), csts(&p), p.takes_io_queues()),
            (Ok(ON), 1, true)
        );
    }

    #[test]
    fn reset_is_over_when_the_io_queues_are_gone() {
        let mut p = enabled();
        assert_eq!(p.set(CC, 4, ON & !1, true), Ok(Action::Reset));
        assert_eq!((csts(&p), p.ready()), (1, false));
        assert_eq!(p.io_queues_gone(), Action::None);
        assert_eq!(csts(&p), 0);
        assert_eq!(p.set(CC, 4, ON, false), Ok(Action::None));
        assert_eq!(p.set(CC, 4, ON & !1, false), Ok(Action::Reset));
        assert_eq!(csts(&p), 0, "at once without I/O queues");
    }

    #[test]
    fn enabled_again_during_the_reset() {
        let mut p = enabled();
        p.set(CC, 4, ON & !1, true).unwrap();
        p.set(CC, 4, ON, true).unwrap();
        assert!(!p.takes_io_queues());
        p.io_queues_gone();
        assert!(p.takes_io_queues());
    }

    #[test]
    fn normal_shutdown_ends_queues_flushes_completes() {
        let mut p = enabled();
        assert_eq!(p.set(CC, 4, ON | 1 << 14, true), Ok(Action::EndQueues));
        assert_eq!(
            (csts(&p), p.takes_io_queues(), p.ready()),
            (1 | 1 << 2, false, true)
        );
        assert_eq!(p.io_queues_gone(), Action::Flush);
        assert_eq!(csts(&p), 1 | 1 << 2);
        p.flushed();
        assert_eq!(csts(&p), 1 | 2 << 2);
        assert_eq!(p.set(CC, 4, ON & !1, false), Ok(Action::Reset));
        assert_eq!(csts(&p), 0);
    }

    #[test]
    fn abrupt_shutdown_does_not_flush_and_disabled_has_nothing_to_do() {
        let mut p = enabled();
        assert_eq!(p.set(CC, 4, ON | 2 << 14, false), Ok(Action::None));
        assert_eq!(csts(&p), 1 | 2 << 2);
        let mut p = Properties::new(false);
        assert_eq!(p.set(CC, 4, 1 << 14, false), Ok(Action::None));
        assert_eq!(csts(&p), 2 << 2);
    }
}
