//! Faults: restarts, power cuts, rot, swapped drives, a restored KVDB.
use super::rules::Bug;
use super::state::{Replica, State};
use super::{Each, Protocol};

impl Protocol {
    pub(super) fn faults(&self, s: &State, each: &mut Each<'_>) {
        if s.faults >= self.world.faults {
            return;
        }
        let w = &self.world;
        let mut base = *s;
        base.faults += 1;
        if w.restored && !s.kvdb.unverified {
            let mut t = base;
            t.kvdb.set = (1 << w.replicas) - 1;
            // The cluster's generation makes every swap that was under way fail.
            t.kvdb.revision += 8;
            t.kvdb.unverified = true;
            each(&|| "the KVDB is set back to its first record".to_owned(), t);
        }
        for r in 0..self.replicas() {
            if w.restarts {
                let mut t = base;
                t.replicas[r].admitted = 0;
                t.replicas[r].restarted = true;
                if self.is(Bug::PromiseForgotten) {
                    t.replicas[r].promised = 0;
                }
                each(&|| format!("replica {r} restarts"), t);
            }
            if w.power {
                let mut t = base;
                let p = &mut t.replicas[r];
                p.admitted = 0;
                p.have = p.stable;
                let have = p.have;
                // Its boot id is another one: what it only had written is not confirmed any more.
                for c in &mut t.coordinators {
                    for k in 0..usize::from(s.count) {
                        if have & s.bits(k) != s.bits(k) {
                            c.confirmed[k] &= !(1 << r);
                        }
                    }
                }
                each(&|| format!("replica {r} loses power"), t);
            }
            if w.rots {
                self.rot(s, &base, r, each);
            }
            if w.swapped {
                let mut t = base;
                t.replicas[r] = Replica {
                    lost: true,
                    ..Replica::default()
                };
                each(
                    &|| format!("the drive of replica {r} is swapped for an empty one"),
                    t,
                );
            }
        }
    }

    /// The newest acknowledged record of a replica is damaged.
    fn rot(&self, s: &State, base: &State, r: usize, each: &mut Each<'_>) {
        let have = s.replicas[r].have;
        let acked =
            (0..usize::from(s.count)).filter(|&k| s.records[k].acked && have & s.bits(k) != 0);
        let Some(k) = acked.max_by_key(|&k| s.stamp(k as u8 + 1)) else {
            return;
        };
        let mut t = *base;
        let bits = s.bits(k);
        if self.is(Bug::RotIsAbsent) {
            t.replicas[r].have &= !bits;
        } else {
            t.replicas[r].rot |= bits;
        }
        each(&|| format!("record {k} rots on replica {r}"), t);
    }
}
