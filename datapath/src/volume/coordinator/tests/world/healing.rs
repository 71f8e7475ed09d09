//! Replicas that come back, and the end of a run.
use super::*;

impl World {
    /// Nothing fails any more; whatever is under way comes to its end.
    pub(super) fn calm(&mut self, c: usize, rounds: usize) {
        self.faults.kvdb = false;
        for _ in 0..rounds {
            for r in self.there() {
                self.connect(c, r);
                let now = self.clock(self.rates[r]);
                while self.replicas[r].admitted() > 0 {
                    let out = self.replicas[r].complete(0);
                    self.answers(out);
                }
                let mut out = self.replicas[r].flush();
                out.extend(self.replicas[r].promise(now));
                self.answers(out);
            }
            self.pump(c);
            let open: Vec<usize> = self.coordinators[c].sessions.values().copied().collect();
            for s in open {
                while self.sessions[s].up && !self.sessions[s].pipe.there.is_empty() {
                    self.deliver_there(s, c);
                }
                while self.sessions[s].up && !self.sessions[s].pipe.back.is_empty() {
                    self.deliver_back(s, c);
                }
            }
            while !self.swaps.is_empty() {
                self.swap(0);
            }
            for which in (0..self.coordinators[c].reads.len()).rev() {
                self.step_read(c, which);
            }
            self.time += 20_000_000;
        }
    }

    /// A last coordinator reads everything; then all members are alike.
    pub fn end(&mut self) {
        for c in 0..self.coordinators.len() {
            if self.coordinators[c].alive {
                self.kill(c);
            }
        }
        for _ in 0..4 {
            self.attach();
            let c = self.coordinators.len() - 1;
            self.calm(c, 400);
            if matches!(self.coordinators[c].machine.standing(), Standing::Serving) {
                break;
            }
            self.kill(c);
        }
        let c = self.coordinators.len() - 1;
        let standing = self.coordinators[c].machine.standing();
        assert_eq!(standing, Standing::Serving, "everybody is there");
        for _ in 0..200 {
            if self.faults.changes {
                self.nodes_follow();
                if let Some(id) = self.leaving() {
                    self.event(c, Event::Change(Wish::Remove(id)));
                    self.calm(c, 8);
                }
            }
            if self.all_joined() {
                break;
            }
            self.step_resync(c);
            self.calm(c, 8);
        }
        assert!(self.all_joined(), "all join: {:?}", self.kv);
        let before = self.history.reads;
        for lane in 0..LANES as u8 {
            self.host_read(c, lane, 0..BLOCKS);
        }
        self.host_write(c);
        self.host_flush(c);
        self.calm(c, 100);
        assert_eq!(self.history.reads - before, LANES, "all reads are answered");
        assert!(self.coordinators[c].writes.is_empty() && self.coordinators[c].flushes.is_empty());
        // Invariant 5.
        let there = self.there();
        let first = self.replicas[there[0]].blocks();
        for r in &there[1..] {
            assert_eq!(self.replicas[*r].blocks(), first, "idle members differ");
        }
    }

    fn all_joined(&self) -> bool {
        self.kv.members().count() == self.kv.replicas.len()
            && self.kv.replicas.len() == self.there().len()
    }

    /// A replica that is no member comes back.
    pub(super) fn step_resync(&mut self, c: usize) {
        let machine = &self.coordinators[c].machine;
        if !matches!(machine.standing(), Standing::Serving) {
            return;
        }
        let out: Vec<usize> = (0..self.replicas.len())
            .filter(|&r| {
                let id = self.replicas[r].id;
                let stays = machine.record().replicas.iter();
                let mut stays = stays.filter(|r| r.1 != ReplicaState::Leaving);
                let place = machine.place(&id).filter(|_| stays.any(|r| r.0 == id));
                place.is_some_and(|p| !machine.sets().everyone().has(p)) && !self.gone.contains(&r)
            })
            .collect();
        let Some(&r) = out.choose(&mut self.rng) else {
            return;
        };
        let place = machine.place(&self.replicas[r].id).unwrap();
        let who = self.coordinators[c].who;
        let subscribed = self.replicas[r].promised == who
            && self.replicas[r].follows.is_some()
            && self.replicas[r].asked.is_none();
        let s0 = machine.s0(place).map(<[_]>::to_vec);
        let Some(s0) = s0.filter(|_| subscribed) else {
            return self.event(c, Event::Subscribe(place));
        };
        let settled = s0
            .iter()
            .enumerate()
            .all(|(lane, s0)| machine.settled().of(lane as u8) >= *s0);
        if !settled {
            return;
        }
        // Everything up to s0 is on every member: any of them that follows is a source.
        let members: Vec<_> = machine.sets().counted().iter().collect();
        let sources: Vec<usize> = members
            .iter()
            .filter_map(|p| {
                let id = machine.replica(*p);
                let n = self.replicas.iter().position(|r| Some(r.id) == id)?;
                self.replicas[n].reads(who).then_some(n)
            })
            .collect();
        let Some(&source) = sources.choose(&mut self.rng) else {
            return;
        };
        let source = self.replicas[source].clone();
        self.replicas[r].copy_from(&source, &s0);
        let out = self.replicas[r].flush();
        self.answers(out);
        self.event(c, Event::Change(Wish::Join(place)));
    }
}
