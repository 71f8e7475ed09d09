//! Who is alive: leases and their deadlines. Deadlines are only in memory; after a restart every lease gets its whole time
//! again, as nobody could renew it meanwhile. That a lease exists, and which keys it has, is in the file.
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time to live, in seconds (etcd's).
pub const TTL_MAX_S: i64 = 9_000_000_000;
/// How often expired leases are looked for.
pub const SWEEP: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Lease {
    ttl_s: i64,
    deadline: Instant,
    /// Its end is being written: it cannot be renewed any more.
    ending: bool,
}

/// The leases that exist.
#[derive(Debug, Default)]
pub struct Leases {
    all: Mutex<HashMap<i64, Lease>>,
}

fn after(now: Instant, ttl_s: i64) -> Instant {
    // A time beyond what the clock can say is as good as never.
    now.checked_add(Duration::from_secs(ttl_s.max(0) as u64))
        .unwrap_or_else(|| now + Duration::from_secs(u32::MAX.into()))
}

impl Leases {
    /// The leases of a file that was opened now.
    pub fn new(found: Vec<(i64, i64)>, now: Instant) -> Self {
        let leases = Self::default();
        for (id, ttl_s) in found {
            leases.granted(id, ttl_s, now);
        }
        leases
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Lease>> {
        // Each update of the map is one assignment, so a panic elsewhere cannot have left it half done.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease is in the file now.
    pub fn granted(&self, id: i64, ttl_s: i64, now: Instant) {
        self.lock().insert(
            id,
            Lease {
                ttl_s,
                deadline: after(now, ttl_s),
                ending: false,
            },
        );
    }

    /// A lease is no longer in the file.
    pub fn ended(&self, id: i64) {
        self.lock().remove(&id);
    }

    /// Renews a lease: its seconds to live; `None` if there is no such lease, or its time is over.
    pub fn keep_alive(&self, id: i64, now: Instant) -> Option<i64> {
        let mut all = self.lock();
        let lease = all.get_mut(&id).filter(|l| !l.ending && l.deadline > now)?;
        lease.deadline = after(now, lease.ttl_s);
        Some(lease.ttl_s)
    }

    /// Seconds left (rounded up) and seconds granted.
    pub fn remaining(&self, id: i64, now: Instant) -> Option<(i64, i64)> {
        let all = self.lock();
        let lease = all.get(&id)?;
        let left = lease.deadline.saturating_duration_since(now);
        Some((
            left.as_millis().div_ceil(1000).min(i64::MAX as u128) as i64,
            lease.ttl_s,
        ))
    }

    /// Every lease, in order.
    pub fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.lock().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Leases whose time is over.
    pub fn expired(&self, now: Instant) -> Vec<i64> {
        self.lock()
            .iter()
            .filter(|(_, l)| !l.ending && l.deadline <= now)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Decides that an expired lease ends; false if it was renewed since it was seen to be over.
    pub fn begin_end(&self, id: i64, now: Instant) -> bool {
        match self.lock().get_mut(&id) {
            Some(lease) if lease.deadline <= now => {
                lease.ending = true;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_as_long_as_it_is_renewed() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let leases = Leases::new(vec![(7, 10)], start);
        assert_eq!(leases.remaining(7, at(4)), Some((6, 10)));
        assert_eq!(leases.keep_alive(7, at(9)), Some(10));
        assert!(leases.expired(at(18)).is_empty());
        assert_eq!(leases.expired(at(19)), [7]);
        assert_eq!(leases.keep_alive(7, at(19)), None, "its time is over");
    }

    #[test]
    fn an_end_that_has_begun_cannot_be_renewed_and_a_renewed_lease_does_not_end() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let leases = Leases::new(vec![(1, 5), (2, 5)], start);
        assert!(leases.begin_end(1, at(5)));
        assert_eq!(leases.keep_alive(1, at(4)), None);
        leases.keep_alive(2, at(4));
        assert!(!leases.begin_end(2, at(5)));
        leases.ended(1);
        assert_eq!(leases.ids(), [2]);
        assert_eq!(leases.remaining(1, at(0)), None);
    }

    #[test]
    fn the_longest_lease_does_not_overflow() {
        let now = Instant::now();
        let leases = Leases::new(vec![(1, i64::MAX)], now);
        assert!(leases.expired(now + Duration::from_secs(1)).is_empty());
    }
}
