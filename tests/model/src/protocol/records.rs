//! What hosts ask for: writes and their way to replicas, acknowledgements, settled, reads (§8, §9).
use super::rules::Bug;
use super::state::{BLOCKS, Record, State, Swap};
use super::{Each, Protocol, spread};

impl Protocol {
    pub(super) fn write(&self, s: &State, i: usize, each: &mut Each<'_>) {
        if s.count >= self.world.records || s.coordinators[i].next > 2 {
            return;
        }
        for &mask in self.world.writes {
            let mut t = *s;
            let c = &mut t.coordinators[i];
            c.next += 1;
            let new = Record {
                owner: i as u8,
                seq: c.next,
                mask,
                acked: false,
            };
            let stamp = |r: &Record| (r.owner, r.seq);
            if s.records[..usize::from(s.count)]
                .iter()
                .any(|r| stamp(r) == stamp(&new))
            {
                t.broken = 3;
            }
            t.records[usize::from(s.count)] = new;
            t.count += 1;
            let k = s.count;
            each(
                &|| {
                    format!(
                        "coordinator {} stamps record {k} of blocks {mask:02b}",
                        i + 1
                    )
                },
                t,
            );
        }
    }

    /// The streams go on: in order, to members and to whoever resyncs.
    pub(super) fn feed(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        for r in 0..self.replicas() {
            let p = &s.replicas[r];
            let member = (c.set | c.asked) >> r & 1 == 1;
            if !(member || p.sync != 0)
                || !self.follows(s, i, r)
                || p.lost && !self.is(Bug::Amnesia) && p.sync == 0
            {
                continue;
            }
            let there = |k: usize| {
                p.have & s.bits(k) == s.bits(k)
                    || p.admitted >> k & 1 == 1
                    || (p.sync != 0 && p.s0 >> k & 1 == 1)
            };
            // What is settled is in no ring any more.
            let next = Self::own(s, i).find(|&k| !there(k) && c.settled >> k & 1 == 0);
            let Some(k) = next else {
                continue;
            };
            let mut t = *s;
            t.replicas[r].promised = i as u8 + 1;
            t.replicas[r].admitted |= 1 << k;
            if self.world.slow_drives {
                each(&|| format!("replica {r} admits record {k}"), t);
            } else {
                self.completed(&mut t, r, k);
                each(&|| format!("replica {r} writes and confirms record {k}"), t);
            }
        }
    }

    /// A drive is done with a record, and the replica confirms it.
    pub(super) fn complete(&self, s: &State, each: &mut Each<'_>) {
        for r in 0..self.replicas() {
            for k in (0..usize::from(s.count)).filter(|k| s.replicas[r].admitted >> k & 1 == 1) {
                let mut t = *s;
                self.completed(&mut t, r, k);
                each(&|| format!("replica {r} confirms record {k}"), t);
            }
        }
    }

    fn completed(&self, t: &mut State, r: usize, k: usize) {
        let bits = t.bits(k);
        let p = &mut t.replicas[r];
        p.admitted &= !(1 << k);
        p.have |= bits;
        if !self.world.volatile {
            p.stable |= bits;
        }
        let owner = usize::from(t.records[k].owner);
        t.coordinators[owner].confirmed[k] |= 1 << r;
    }

    pub(super) fn acknowledge(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        for k in Self::own(s, i).filter(|&k| !s.records[k].acked) {
            // With volatile caches this is the Flush: only it says that a write stays.
            let who = if self.world.volatile && !self.is(Bug::FlushWritten) {
                self.stable_on(s, k, c.confirmed[k])
            } else {
                c.confirmed[k]
            };
            if !self.quorum(c, who) {
                continue;
            }
            let mut t = *s;
            t.records[k].acked = true;
            t.raise_floor(k as u8 + 1);
            let higher = s.coordinators[i + 1..].iter();
            let bits = s.bits(k);
            for h in higher.filter(|h| Self::serving(h)) {
                if (h.known | spread(h.star)) & bits != bits {
                    t.broken = 2;
                }
            }
            each(
                &|| format!("coordinator {} acknowledges record {k}", i + 1),
                t,
            );
        }
    }

    pub(super) fn settle(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        if self.world.volatile {
            for r in (0..self.replicas()).filter(|&r| s.replicas[r].have != s.replicas[r].stable) {
                let mut t = *s;
                t.replicas[r].stable = t.replicas[r].have;
                each(&|| format!("replica {r} flushes"), t);
            }
        }
        if !self.world.settles {
            return;
        }
        let all = c.set | c.asked;
        if let Some(k) = Self::own(s, i).find(|&k| c.settled >> k & 1 == 0) {
            let on = if self.is(Bug::SettledWritten) {
                c.confirmed[k] & all
            } else {
                self.stable_on(s, k, all & c.confirmed[k])
            };
            let enough = on == all || (self.is(Bug::SettledPassesGapped) && self.quorum(c, on));
            if enough {
                let mut t = *s;
                t.coordinators[i].settled |= 1 << k;
                each(&|| format!("record {k} is settled"), t);
            }
        }
        for r in (0..self.replicas()).filter(|&r| all >> r & 1 == 1 && self.follows(s, i, r)) {
            if s.replicas[r].settled | c.settled != s.replicas[r].settled {
                let mut t = *s;
                t.replicas[r].settled |= c.settled;
                each(&|| format!("replica {r} learns what is settled"), t);
            }
        }
    }

    /// Leases end, and blocks are read from a member that has their newest record of this epoch.
    pub(super) fn read(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        for r in (0..self.replicas()).filter(|&r| c.leases >> r & 1 == 1) {
            // Nobody notices as long as nobody else can want the promise.
            if usize::from(s.epochs) == i + 1 {
                continue;
            }
            let mut t = *s;
            t.coordinators[i].leases &= !(1 << r);
            each(
                &|| {
                    format!(
                        "coordinator {} stops counting the lease of replica {r}",
                        i + 1
                    )
                },
                t,
            );
        }
        let leased = self.quorum(c, c.leases);
        if c.reading != 0 {
            if leased || self.is(Bug::LeaseBefore) {
                let mut t = *s;
                let d = &mut t.coordinators[i];
                let (value, least) = (d.value, d.least);
                (d.reading, d.value, d.least) = (0, 0, 0);
                if s.stamp(value) < s.stamp(least) {
                    t.broken = 1;
                }
                t.raise_floor(value);
                each(
                    &|| format!("coordinator {} answers the read with {value}", i + 1),
                    t,
                );
            }
            return;
        }
        // Without a lease the outcome would not be told.
        if !leased && !self.is(Bug::LeaseBefore) || c.swap == Swap::Refused {
            return;
        }
        for b in 0..BLOCKS {
            for r in (0..self.replicas()).filter(|&r| self.counted(c) >> r & 1 == 1) {
                self.read_block(s, i, (b, r), leased, each);
            }
        }
    }

    fn read_block(
        &self,
        s: &State,
        i: usize,
        (b, r): (u8, usize),
        leased: bool,
        each: &mut Each<'_>,
    ) {
        let (c, p) = (&s.coordinators[i], &s.replicas[r]);
        let newest = Self::own(s, i)
            .filter(|&k| s.records[k].mask >> b & 1 == 1)
            .last();
        let behind = newest.is_some_and(|k| c.confirmed[k] >> r & 1 == 0);
        if behind || !self.follows(s, i, r) {
            return;
        }
        if p.lost && !self.is(Bug::Amnesia) {
            return;
        }
        let value = s.top(p.have, b);
        if value != 0 {
            let k = usize::from(value) - 1;
            if p.rot >> (2 * k) & s.records[k].mask != 0 {
                return;
            }
            let inherited = (c.known | spread(c.star)) >> (2 * k + usize::from(b)) & 1 == 1;
            // What older epochs left is taken for complete.
            let mine = usize::from(s.records[k].owner) == i;
            if mine && !(inherited || s.records[k].acked || self.is(Bug::ReadsUnacked)) {
                return;
            }
        }
        let mut t = *s;
        let least = s.floor[usize::from(b)];
        if self.world.slow_reads {
            let d = &mut t.coordinators[i];
            (d.reading, d.value, d.least) = (b + 1, value, least);
            each(
                &|| format!("coordinator {} reads block {b} at replica {r}", i + 1),
                t,
            );
            return;
        }
        if !leased {
            return;
        }
        if s.stamp(value) < s.stamp(least) {
            // Of a record that nobody was told is done something was seen before.
            let unacked = least != 0 && !s.records[usize::from(least) - 1].acked;
            t.broken = if unacked { 4 } else { 1 };
        }
        if !self.world.volatile {
            t.raise_floor(value);
        }
        if t != *s {
            each(
                &|| {
                    format!(
                        "coordinator {} reads {value} of block {b} at replica {r}",
                        i + 1
                    )
                },
                t,
            );
        }
    }
}
