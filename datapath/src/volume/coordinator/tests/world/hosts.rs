//! What hosts do, and what they are told.
use super::*;
use crate::volume::coordinator::reserve::Part as Reserved;

impl World {
    pub(super) fn host_write(&mut self, c: usize) {
        self.next += 1;
        let token = self.next;
        let lane = self.rng.random_range(0..LANES as u8);
        let first = self.rng.random_range(0..BLOCKS);
        let blocks = self.rng.random_range(1..=(BLOCKS - first).min(3));
        let fua = self.rng.random_bool(0.1);
        let erases = self.rng.random_bool(0.2);
        let (what, values) = if erases {
            let values = (first..first + blocks).map(|b| (b, 0)).collect();
            (erase(first, blocks), values)
        } else {
            let values: Vec<_> = (first..first + blocks)
                .map(|b| (b, token << 8 | b))
                .collect();
            let Some(what) = write(&self.pool, first, &values) else {
                return;
            };
            (what, values)
        };
        let mut given = None;
        if self.rng.random_bool(0.3) {
            // It came by another node.
            let now = self.clock(self.coordinators[c].rate);
            let until = now + Duration::from_millis(self.rng.random_range(1..3000));
            let part = Reserved {
                lane,
                blocks: first..first + blocks,
                stamps: blocks,
            };
            let machine = &mut self.coordinators[c].machine;
            given = machine
                .reserve(token, vec![part], until)
                .is_ok()
                .then_some(token);
        }
        if given.is_some() && self.rng.random_bool(0.7) {
            let later = (token, lane, what, values, fua);
            return self.coordinators[c].reserved.push(later);
        }
        self.host_sends(c, (token, lane, what, values, fua), given);
    }

    /// Something that has its stamps is confirmed, or never will be.
    pub(super) fn host_confirms(&mut self, c: usize) {
        let count = self.coordinators[c].reserved.len();
        if count == 0 {
            return;
        }
        let n = self.rng.random_range(0..count);
        let later = self.coordinators[c].reserved.swap_remove(n);
        if self.rng.random_bool(0.1) {
            return self.unreserve(c, later.0);
        }
        let given = Some(later.0);
        self.host_sends(c, later, given);
    }

    pub(super) fn unreserve(&mut self, c: usize, command: u64) {
        let now = self.clock(self.coordinators[c].rate);
        let actions = self.coordinators[c].machine.unreserve(command, now);
        self.act(c, actions);
    }

    fn host_sends(
        &mut self,
        c: usize,
        (token, lane, what, values, fua): Later,
        given: Option<u64>,
    ) {
        self.coordinators[c].writes.insert(
            token,
            HostWrite {
                lane,
                values,
                fua,
                stamp: None,
            },
        );
        self.event(
            c,
            Event::Write {
                token,
                lane,
                what,
                fua,
                given,
            },
        );
    }

    pub(super) fn host_flush(&mut self, c: usize) {
        self.next += 1;
        let token = self.next;
        let flush = self.history.flush();
        self.coordinators[c].flushes.insert(token, flush);
        self.event(c, Event::Flush(token));
    }

    pub(super) fn host_read(&mut self, c: usize, lane: u8, blocks: Range<u64>) {
        let began = self.clock(self.coordinators[c].rate);
        let reading = self.coordinators[c]
            .machine
            .begin_read(lane, blocks.clone());
        if let Some(reading) = reading {
            let floors = blocks
                .clone()
                .map(|b| self.history.floor((lane, b)))
                .collect();
            self.coordinators[c].reads.push(HostRead {
                reading,
                lane,
                blocks,
                floors,
                found: None,
                began,
            });
        }
    }

    /// One of the reads goes on, if it can.
    pub(super) fn step_read(&mut self, c: usize, which: usize) {
        let now = self.clock(self.coordinators[c].rate);
        let read = &self.coordinators[c].reads[which];
        if now.since(read.began) > Duration::from_secs(8) {
            let read = self.coordinators[c].reads.swap_remove(which);
            return self.coordinators[c].machine.end_read(read.reading);
        }
        let (lane, blocks) = (read.lane, read.blocks.clone());
        if read.reading.needs_replica && read.found.is_none() {
            let readable: Vec<_> = self.coordinators[c].machine.readable().iter().collect();
            let Some(&place) = readable.choose(&mut self.rng) else {
                return;
            };
            let id = self.coordinators[c].machine.replica(place);
            let r = self.replicas.iter().position(|r| Some(r.id) == id).unwrap();
            let connected = self.coordinators[c].sessions.contains_key(&r);
            if connected && self.replicas[r].reads(self.coordinators[c].who) {
                let found = self.replicas[r].read(lane, blocks);
                self.coordinators[c].reads[which].found = Some(found);
            }
            return;
        }
        let coordinator = &self.coordinators[c];
        let read = &coordinator.reads[which];
        let entries = read.found.as_ref().map(|f| f.0.as_slice());
        let parts = match coordinator.machine.assemble(&read.reading, entries) {
            Ready::Wait => return,
            Ready::Elsewhere => {
                self.coordinators[c].reads[which].found = None;
                self.coordinators[c].reads[which].reading.needs_replica = true;
                return;
            }
            Ready::Parts(parts) => parts,
        };
        if !coordinator.machine.may_answer(&read.reading, now) {
            return;
        }
        let values: Vec<u64> = parts
            .iter()
            .enumerate()
            .map(|(n, part)| match part {
                Part::Zero => 0,
                Part::Replica => read.found.as_ref().unwrap().1[n],
                Part::Record { held, index } => value_of(held, held.blocks().start + *index as u64),
                Part::Damaged => panic!("nothing is damaged here"),
            })
            .collect();
        let read = self.coordinators[c].reads.swap_remove(which);
        for ((block, floor), value) in read.blocks.zip(read.floors).zip(values) {
            self.history.read((lane, block), floor, value);
        }
        self.history.reads += 1;
        self.coordinators[c].machine.end_read(read.reading);
    }

    pub(super) fn read_something(&mut self, c: usize) {
        let n = self.coordinators[c].reads.len();
        if n > 0 && self.rng.random_bool(0.6) {
            let which = self.rng.random_range(0..n);
            return self.step_read(c, which);
        }
        if n < 8 {
            let lane = self.rng.random_range(0..LANES as u8);
            let first = self.rng.random_range(0..BLOCKS);
            let end = self.rng.random_range(first + 1..=BLOCKS);
            self.host_read(c, lane, first..end);
        }
    }

    pub(super) fn done(&mut self, c: usize, token: u64, result: Result<(), Failed>) {
        let Some(write) = self.coordinators[c].writes.remove(&token) else {
            let flush = self.coordinators[c].flushes.remove(&token);
            if result.is_ok() {
                let epoch = self.coordinators[c].who.epoch;
                self.history.flushed(flush.expect("a flush"), epoch);
            }
            return;
        };
        // If it had reserved some: its stamps are given back.
        self.unreserve(c, token);
        if result.is_err() {
            return;
        }
        self.history.acked += 1;
        let epoch = self.coordinators[c].who.epoch;
        let start = write.values[0].0;
        for (block, value) in write.values {
            let at: At = (write.lane, block);
            let first = write.stamp.expect("what is acknowledged has a stamp");
            let seq = first.seq + if value == 0 { 0 } else { block - start };
            let stamp = Stamp { seq, ..first };
            assert_eq!(stamp.epoch, epoch, "an epoch gives its own stamps");
            self.history.acknowledged(at, stamp, write.fua);
            if self.history.fragile && !write.fua {
                continue;
            }
            // Invariant 2: whoever serves a higher epoch has it.
            for higher in &self.coordinators[c + 1..] {
                if !higher.served || !matches!(higher.machine.standing(), Standing::Serving) {
                    continue;
                }
                for place in higher.machine.sets().now().members.iter() {
                    let id = higher.machine.replica(place);
                    let mut all = self.there().into_iter().map(|r| &self.replicas[r]);
                    // Who was deleted meanwhile is no member by the record.
                    let Some(r) = all.find(|r| Some(r.id) == id) else {
                        continue;
                    };
                    let here = r.blocks()[usize::from(write.lane)].get(&block);
                    assert!(
                        here.is_some_and(|b| b.stamp >= stamp),
                        "invariant 2: epoch {epoch} acknowledges {stamp:?}, a member of {:?} has {here:?}",
                        higher.who.epoch
                    );
                }
            }
        }
    }
}
