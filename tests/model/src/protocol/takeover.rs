//! Raising the epoch, promises, completing, and the swap that ends it (§10).
use super::rules::Bug;
use super::state::{Coordinator, EPOCHS, Phase, State, Swap};
use super::{Each, Protocol, spread};

impl Protocol {
    /// K1. A reply that is lost is an epoch that nobody goes on with.
    pub(super) fn raise(&self, s: &State, each: &mut Each<'_>) {
        if s.epochs >= self.world.epochs.min(EPOCHS as u8) {
            return;
        }
        let mut t = *s;
        let i = usize::from(s.epochs);
        t.kvdb.revision += 1;
        t.epochs += 1;
        t.coordinators[i] = Coordinator {
            phase: Phase::Promising,
            set: s.kvdb.set,
            revision: t.kvdb.revision,
            unverified: s.kvdb.unverified && !self.is(Bug::RestoreBelieved),
            ..Coordinator::default()
        };
        each(&|| format!("K1: epoch {}", i + 1), t);
    }

    pub(super) fn take_over(&self, s: &State, i: usize, each: &mut Each<'_>) {
        match s.coordinators[i].phase {
            Phase::Promising => {
                self.promise(s, i, each);
                self.heard_enough(s, i, each);
            }
            Phase::Completing if s.coordinators[i].swap == Swap::None => self.copy(s, i, each),
            Phase::Serving if self.is(Bug::SameEpoch) => {
                let mut t = *s;
                let c = &mut t.coordinators[i];
                *c = Coordinator {
                    phase: Phase::Promising,
                    set: c.set,
                    revision: c.revision,
                    ..Coordinator::default()
                };
                each(
                    &|| format!("coordinator {} restarts in its epoch", i + 1),
                    t,
                );
            }
            _ => {}
        }
    }

    fn promise(&self, s: &State, i: usize, each: &mut Each<'_>) {
        for r in 0..self.replicas() {
            let (c, replica) = (&s.coordinators[i], &s.replicas[r]);
            let asked = c.unverified || c.set >> r & 1 == 1;
            if !asked || c.heard >> r & 1 == 1 || usize::from(replica.promised) > i + 1 {
                continue;
            }
            // Resyncing, or another replica than the one that is named: it is no member.
            if !c.unverified && (replica.sync == 1 || (replica.lost && !self.is(Bug::Amnesia))) {
                continue;
            }
            let leased = s.coordinators[..i].iter().any(|o| o.leases >> r & 1 == 1);
            let waits =
                !(self.is(Bug::LeaseIgnored) || self.is(Bug::LeaseForgotten) && replica.restarted);
            if leased && waits {
                continue;
            }
            let mut t = *s;
            let p = &mut t.replicas[r];
            p.promised = i as u8 + 1;
            p.staged = 0;
            if !self.is(Bug::NoBarrier) {
                p.admitted = 0;
            }
            if !self.is(Bug::PromiseUnflushed) {
                p.stable = p.have;
            }
            if p.sync == 2 {
                p.sync = 0;
                p.s0 = 0;
                p.copied = 0;
            }
            let list = p.have & !spread(p.settled);
            let good = list & !p.rot;
            let settled = p.settled;
            let c = &mut t.coordinators[i];
            if self.is(Bug::ListedByAll) && c.heard != 0 {
                c.known &= list;
            } else {
                c.known |= list;
            }
            c.good |= good;
            c.star |= settled;
            c.heard |= 1 << r;
            each(&|| format!("replica {r} promises epoch {}", i + 1), t);
        }
    }

    fn heard_enough(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        let mut t = *s;
        if c.unverified {
            // Everybody is heard, and the newest set that one of them was told of is the set.
            if c.heard.count_ones() < u32::from(self.world.replicas) {
                return;
            }
            let all = s.replicas[..self.replicas()].iter();
            let newest = all.max_by_key(|r| r.kept_version).map_or(0, |r| r.kept_set);
            let c = &mut t.coordinators[i];
            c.set = newest;
            c.unverified = false;
            c.heard &= newest;
            (c.known, c.good, c.star) = (0, 0, 0);
            for r in s
                .replicas
                .iter()
                .enumerate()
                .filter(|(n, _)| newest >> n & 1 == 1)
            {
                let list = r.1.have & !spread(r.1.settled);
                c.known |= list;
                c.good |= list & !r.1.rot;
                c.star |= r.1.settled;
            }
        }
        let c = &t.coordinators[i];
        let heard = c.heard.count_ones();
        if heard < self.read_quorum(c.set) {
            return;
        }
        if heard < u32::from(self.world.minimum) && !self.is(Bug::BelowMinimum) {
            return;
        }
        t.coordinators[i].phase = Phase::Completing;
        each(&|| format!("coordinator {} has heard enough", i + 1), t);
    }

    /// Each that takes part gets what it lacks of the union, lowest stamps first; then the swap is sent.
    fn copy(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        let union = c.known & !spread(c.star);
        let mut level = true;
        for r in (0..self.replicas()).filter(|&r| c.heard >> r & 1 == 1) {
            let p = &s.replicas[r];
            let lacks = |k: &usize| {
                let bits = s.bits(*k);
                union & bits != 0 && p.have & union & bits != union & bits
            };
            let first = (0..usize::from(s.count))
                .filter(lacks)
                .min_by_key(|&k| s.stamp(k as u8 + 1));
            let Some(k) = first else {
                continue;
            };
            level = false;
            if !self.follows(s, i, r) {
                continue;
            }
            let whole = s.bits(k) & union;
            let parts: &[u8] = if self.is(Bug::TornCopy) {
                &[0b01, 0b10]
            } else {
                &[0b11]
            };
            for part in parts {
                let bits = whole & (part << (2 * k)) & !p.have;
                if bits == 0 {
                    continue;
                }
                let mut t = *s;
                t.replicas[r].have |= bits;
                t.replicas[r].stable |= bits;
                // Damaged wherever it was listed: it arrives as that.
                t.replicas[r].rot |= bits & !c.good;
                each(
                    &|| format!("record {k} is completed on replica {r} in epoch {}", i + 1),
                    t,
                );
            }
        }
        if !level {
            return;
        }
        let mut t = *s;
        let c = &mut t.coordinators[i];
        if self.is(Bug::NoFinalSwap) {
            c.phase = Phase::Serving;
            c.set = c.heard;
            c.leases = c.heard;
            c.leases &= (0..self.replicas())
                .filter(|&r| self.follows(s, i, r))
                .fold(0, |a, r| a | 1 << r);
        } else {
            c.asked = c.heard;
            c.swap = Swap::Sent;
        }
        each(&|| format!("coordinator {} sends K2", i + 1), t);
    }
}
