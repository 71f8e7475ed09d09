//! The KVDB's record, and changes of the set by the coordinator that serves (§3).
use super::rules::Bug;
use super::state::{Phase, State, Swap};
use super::{Each, Protocol};

impl Protocol {
    /// A change that was sent reaches the KVDB, some time.
    pub(super) fn apply_swap(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        if c.swap != Swap::Sent {
            return;
        }
        let mut t = *s;
        let current = c.revision == s.kvdb.revision;
        if current || self.is(Bug::BlindSwap) {
            t.kvdb.set = c.asked;
            t.kvdb.revision += 1;
            t.kvdb.unverified = false;
            t.coordinators[i].swap = Swap::Done;
            t.coordinators[i].revision = t.kvdb.revision;
        } else {
            t.coordinators[i].swap = Swap::Refused;
        }
        each(
            &|| format!("the KVDB sees the swap of coordinator {}", i + 1),
            t,
        );
    }

    /// The coordinator learns what came of it.
    pub(super) fn resolve(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        let mut t = *s;
        match c.swap {
            Swap::None | Swap::Sent => return,
            Swap::Refused => {
                let c = &mut t.coordinators[i];
                c.phase = Phase::Ended;
                c.leases = 0;
                each(&|| format!("coordinator {} is refused and ends", i + 1), t);
                return;
            }
            Swap::Done => {}
        }
        if self.world.restored && !self.keep_set(&mut t, i) {
            return;
        }
        // Who promised a higher epoch meanwhile gives no lease to this one.
        let follow = (0..self.replicas())
            .filter(|&r| self.follows(s, i, r))
            .fold(0, |a, r| a | 1 << r);
        let c = &mut t.coordinators[i];
        let arrived = c.asked & !c.set;
        c.leases = match c.phase {
            Phase::Serving => (c.leases | (arrived & follow)) & c.asked,
            _ => c.asked & follow,
        };
        c.set = c.asked;
        c.asked = 0;
        c.swap = Swap::None;
        c.phase = Phase::Serving;
        let n = c.set.count_ones();
        if n < u32::from(self.world.minimum) {
            t.broken = 5;
        }
        for r in (0..self.replicas()).filter(|r| arrived >> r & 1 == 1) {
            let p = &mut t.replicas[r];
            if p.sync == 0 {
                continue;
            }
            (p.sync, p.s0, p.copied, p.staged) = (0, 0, 0, 0);
            let have = p.have;
            for k in Self::own(s, i) {
                if have & s.bits(k) == s.bits(k) {
                    t.coordinators[i].confirmed[k] |= 1 << r;
                }
            }
        }
        each(
            &|| format!("coordinator {} learns that its swap was done", i + 1),
            t,
        );
    }

    /// The new set is durable on a write quorum of it before it is used.
    fn keep_set(&self, t: &mut State, i: usize) -> bool {
        let (set, version) = (t.coordinators[i].asked, t.coordinators[i].revision);
        let mut told = 0;
        for r in 0..self.replicas() {
            if set >> r & 1 == 1 && usize::from(t.replicas[r].promised) == i + 1 {
                t.replicas[r].kept_set = set;
                // A restore gives epochs of a higher generation: later sets are higher, whatever the revision.
                t.replicas[r].kept_version = (i as u8) << 5 | version;
                told += 1;
            }
        }
        told >= self.write_quorum(set)
    }

    /// K3.
    pub(super) fn change_set(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        if !self.world.excludes || c.swap != Swap::None {
            return;
        }
        for r in (0..self.replicas()).filter(|r| c.set >> r & 1 == 1) {
            let rest = c.set & !(1 << r);
            let n = rest.count_ones();
            let enough = n >= u32::from(self.world.minimum) || self.is(Bug::BelowMinimum);
            let acked = |k: &usize| s.records[*k].acked;
            let level = Self::own(s, i)
                .filter(acked)
                .all(|k| self.stable_on(s, k, rest & c.confirmed[k]) == rest);
            if n == 0 || !enough || !(level || self.is(Bug::NotLevelled)) {
                continue;
            }
            let mut t = *s;
            t.coordinators[i].asked = rest;
            t.coordinators[i].swap = Swap::Sent;
            t.coordinators[i].leases &= rest;
            each(
                &|| format!("coordinator {} sends K3 without replica {r}", i + 1),
                t,
            );
        }
    }

    /// Of these replicas those with the record on stable media.
    pub(super) fn stable_on(&self, s: &State, record: usize, of: u8) -> u8 {
        let bits = s.bits(record);
        let stable = |r: &usize| of >> r & 1 == 1 && s.replicas[*r].stable & bits == bits;
        (0..self.replicas())
            .filter(stable)
            .fold(0, |a, r| a | 1 << r)
    }
}
