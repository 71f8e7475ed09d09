//! The keep-alive timer of one controller (NVMe Base 2.1, 3.9), traffic based: any command restarts it.
//!
//! It expires in two steps: when the time is over the silence is *noticed*, and it is believed if it goes on for a little longer. A
//! process that was held up (a paused virtual machine, a busy core) finds its timers due before it has looked at its sockets, where
//! the commands may be waiting that say the host is alive.

use crate::nvmf::seam::{ACTIVITY_INTERVAL_NS, Nanos};

/// Identify KAS: the timer's granularity in units of 100 ms.
pub const KAS: u16 = 10;
const GRANULARITY_MS: u32 = KAS as u32 * 100;
/// A discovery controller without a keep-alive timeout ends after this long without a command (3.9.1: 2 minutes).
const DISCOVERY_IDLE_NS: Nanos = 120_000_000_000;
/// A silence that was noticed is believed after this much more of it: many passes of a reactor.
const DOUBT_NS: Nanos = 200_000_000;
const NS_PER_MS: Nanos = 1_000_000;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    kato_ms: u32,
    discovery: bool,
    last: Nanos,
    noticed: Option<Nanos>,
}

impl KeepAlive {
    /// A timer that starts now. `kato_ms` of 0 means none (or 2 minutes for a discovery controller).
    pub fn new(kato_ms: u32, discovery: bool, now: Nanos) -> Self {
        let mut timer = KeepAlive {
            kato_ms: 0,
            discovery,
            last: now,
            noticed: None,
        };
        timer.set(kato_ms, now);
        timer
    }

    /// The timeout in force, milliseconds: what was asked for, rounded up to the granularity.
    pub fn kato_ms(&self) -> u32 {
        self.kato_ms
    }

    /// Changes the timeout and restarts the timer.
    pub fn set(&mut self, kato_ms: u32, now: Nanos) {
        self.kato_ms = kato_ms
            .checked_next_multiple_of(GRANULARITY_MS)
            .unwrap_or(u32::MAX);
        self.touch(now);
    }

    /// A command came.
    pub fn touch(&mut self, now: Nanos) {
        self.last = self.last.max(now);
        self.noticed = None;
    }

    /// Whether it has expired; a silence is noticed by the first call after its deadline.
    pub fn expired(&mut self, now: Nanos) -> bool {
        if self.deadline().is_none_or(|d| now < d) {
            return false;
        }
        if self.noticed.is_some() {
            return true;
        }
        self.noticed = Some(now);
        false
    }

    /// When to call `expired`, unless a command comes. Later than the timeout by what the reports of other reactors may lag.
    pub fn deadline(&self) -> Option<Nanos> {
        let idle = match (self.kato_ms, self.discovery) {
            (0, true) => DISCOVERY_IDLE_NS,
            (0, false) => return None,
            (ms, _) => Nanos::from(ms) * NS_PER_MS,
        };
        Some(match self.noticed {
            Some(at) => at + DOUBT_NS,
            None => self.last + idle + ACTIVITY_INTERVAL_NS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Nanos = 1_000_000_000;

    #[test]
    fn rounds_up_and_restarts() {
        let mut k = KeepAlive::new(1001, false, 0);
        assert_eq!(
            (k.kato_ms(), k.deadline()),
            (2000, Some(2 * S + ACTIVITY_INTERVAL_NS))
        );
        k.touch(5 * S);
        k.touch(4 * S);
        assert_eq!(
            k.deadline(),
            Some(7 * S + ACTIVITY_INTERVAL_NS),
            "a late report does not turn it back"
        );
        k.set(u32::MAX, 5 * S);
        assert_eq!(k.kato_ms(), u32::MAX);
    }

    #[test]
    fn a_silence_is_noticed_then_believed() {
        let due = S + ACTIVITY_INTERVAL_NS;
        let mut k = KeepAlive::new(1000, false, 0);
        assert!(!k.expired(due - 1));
        assert!(!k.expired(due + 5 * S), "noticed late");
        assert_eq!(k.deadline(), Some(due + 5 * S + DOUBT_NS));
        k.touch(due + 5 * S + 1);
        assert!(
            !k.expired(due + 5 * S + DOUBT_NS),
            "commands were waiting in the socket"
        );
        let again = k.deadline().unwrap();
        assert!(
            !k.expired(again) && !k.expired(again + DOUBT_NS - 1) && k.expired(again + DOUBT_NS)
        );
        assert!(!KeepAlive::new(0, false, 0).expired(u64::MAX));
    }

    #[test]
    fn zero_is_no_timer_but_on_discovery_two_minutes() {
        assert_eq!(KeepAlive::new(0, false, 0).deadline(), None);
        let k = KeepAlive::new(0, true, S);
        assert_eq!(
            (k.kato_ms(), k.deadline()),
            (0, Some(121 * S + ACTIVITY_INTERVAL_NS))
        );
    }
}
