//! A replica that is no member comes back (§11).
use super::rules::Bug;
use super::state::{BLOCKS, State, Swap};
use super::{Each, Protocol, spread};

impl Protocol {
    pub(super) fn resync(&self, s: &State, i: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        if !self.world.resyncs || c.swap != Swap::None {
            return;
        }
        for x in (0..self.replicas()).filter(|x| c.set >> x & 1 == 0) {
            let p = &s.replicas[x];
            if usize::from(p.promised) > i + 1 {
                continue;
            }
            if p.sync != 1 || usize::from(p.promised) != i + 1 {
                self.subscribe(s, i, x, each);
            } else if p.staged != 0 {
                self.copied(s, x, each);
            } else {
                self.copy_blocks(s, i, x, each);
                self.join(s, i, x, each);
            }
        }
    }

    /// It adopts the epoch, and gets what is stamped from here on.
    fn subscribe(&self, s: &State, i: usize, x: usize, each: &mut Each<'_>) {
        if s.coordinators[..i].iter().any(|o| o.leases >> x & 1 == 1) {
            return;
        }
        let mut t = *s;
        let p = &mut t.replicas[x];
        p.promised = i as u8 + 1;
        p.sync = 1;
        p.s0 = (1 << s.count) - 1;
        // Older coordinators that live on may still stamp; that is below s0 too.
        p.copied = 0;
        p.staged = 0;
        p.admitted = 0;
        each(&|| format!("replica {x} subscribes in epoch {}", i + 1), t);
    }

    fn copy_blocks(&self, s: &State, i: usize, x: usize, each: &mut Each<'_>) {
        let c = &s.coordinators[i];
        let p = &s.replicas[x];
        for b in (0..BLOCKS).filter(|b| p.copied >> b & 1 == 0) {
            for r in (0..self.replicas()).filter(|r| c.set >> r & 1 == 1) {
                let source = &s.replicas[r];
                let mine = Self::own(s, i).filter(|&k| p.s0 >> k & 1 == 1);
                let whole = mine.into_iter().all(|k| c.confirmed[k] >> r & 1 == 1);
                if !(whole || self.is(Bug::SourceBehind))
                    || source.rot != 0
                    || !self.follows(s, i, r)
                {
                    continue;
                }
                let mut t = *s;
                t.replicas[x].staged = b + 1;
                t.replicas[x].staged_have = source.have & (0x55 << b);
                each(
                    &|| format!("block {b} is read at replica {r} for replica {x}"),
                    t,
                );
            }
        }
    }

    fn copied(&self, s: &State, x: usize, each: &mut Each<'_>) {
        let mut t = *s;
        let p = &mut t.replicas[x];
        let b = p.staged - 1;
        let block = 0x55_u8 << b;
        let mine = p.have & block;
        let live = mine & !spread(p.s0);
        let new = if self.is(Bug::HigherStampWins) {
            mine | p.staged_have
        } else if self.is(Bug::CopyReplacesLive) {
            p.staged_have
        } else {
            live | p.staged_have
        };
        p.have = p.have & !block | new;
        p.stable = p.have;
        p.rot &= p.have & !block;
        p.copied |= 1 << b;
        p.staged = 0;
        p.staged_have = 0;
        each(&|| format!("block {b} is copied to replica {x}"), t);
    }

    /// K4: everything is copied, and the stream is there to its end.
    fn join(&self, s: &State, i: usize, x: usize, each: &mut Each<'_>) {
        let p = &s.replicas[x];
        let live = Self::own(s, i).filter(|&k| p.s0 >> k & 1 == 0);
        let level = live
            .into_iter()
            .all(|k| s.coordinators[i].confirmed[k] >> x & 1 == 1);
        if p.copied != 0b11 || !(level || self.is(Bug::JoinsBehind)) {
            return;
        }
        let mut t = *s;
        t.replicas[x].sync = 2;
        t.replicas[x].lost = false;
        t.coordinators[i].asked = s.coordinators[i].set | 1 << x;
        t.coordinators[i].swap = Swap::Sent;
        each(
            &|| format!("coordinator {} sends K4 with replica {x}", i + 1),
            t,
        );
    }
}
