//! The cheapest clock there is, for measuring how long a task ran.

/// Ticks of the processor's time-stamp counter, or nanoseconds where there is none. Comparable on one core only; see
/// [`TickRate`] for their length.
#[inline]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has RDTSC, and user space may use it unless a process forbids it to itself (PR_SET_TSC).
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        monotonic_ns()
    }
}

/// The monotonic clock, in nanoseconds.
#[inline]
pub fn monotonic_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// How long a tick is, measured as time goes by: the longer since the beginning, the better it is known.
#[derive(Debug, Clone, Copy)]
pub struct TickRate {
    ticks: u64,
    ns: u64,
}

impl TickRate {
    /// Begins to measure.
    pub fn begin() -> Self {
        TickRate {
            ticks: ticks(),
            ns: monotonic_ns(),
        }
    }

    /// Ticks in `ns` nanoseconds, by what has been seen until now; `None` in the first 100 microseconds.
    pub fn ticks_in(&self, ns: u64) -> Option<u64> {
        let passed_ns = monotonic_ns().saturating_sub(self.ns);
        let passed = ticks().saturating_sub(self.ticks);
        if passed_ns < 100_000 {
            return None;
        }
        u64::try_from(u128::from(ns) * u128::from(passed) / u128::from(passed_ns)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_advance_and_their_rate_is_found() {
        let rate = TickRate::begin();
        let begin = monotonic_ns();
        while monotonic_ns() < begin + 200_000 {
            std::hint::spin_loop();
        }
        let in_a_millisecond = rate.ticks_in(1_000_000).unwrap();
        assert!(
            (1_000..100_000_000).contains(&in_a_millisecond),
            "{in_a_millisecond}"
        );
    }
}
