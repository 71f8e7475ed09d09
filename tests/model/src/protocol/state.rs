//! A state of the whole system: records, replicas, coordinators, the KVDB.
//!
//! Sets of replicas are masks of three bits. Sets of records are masks of [`RECORDS`] bits. What of a record a replica holds is two bits of [`Bits`], one
//! for each block: so a torn record can be said.

/// Blocks of the volume.
pub const BLOCKS: u8 = 2;
/// Most records in a run.
pub const RECORDS: usize = 4;
/// Most replicas.
pub const REPLICAS: usize = 3;
/// Most epochs: coordinators.
pub const EPOCHS: usize = 3;

/// Two bits for each record: which of its blocks.
pub type Bits = u8;

/// A record, with a stamp of (owner, seq). Its number is its value.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Record {
    /// The coordinator that gave the stamp.
    pub owner: u8,
    /// Its counter.
    pub seq: u8,
    /// Blocks that it writes.
    pub mask: u8,
    /// A host was told that it is done.
    pub acked: bool,
}

/// A replica.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Replica {
    /// The highest epoch that it promised (durable).
    pub promised: u8,
    /// What it has written.
    pub have: Bits,
    /// Of that: what is damaged, with its stamp known.
    pub rot: Bits,
    /// Of that: what is on stable media.
    pub stable: Bits,
    /// Records that are on their way to its drive.
    pub admitted: u8,
    /// Records that it knows to be settled.
    pub settled: u8,
    /// 0 no, 1 resyncing, 2 level.
    pub sync: u8,
    /// Records at or below s0 of its resync.
    pub s0: u8,
    /// Blocks that were copied.
    pub copied: u8,
    /// 1 + block of the copy that is on its way.
    pub staged: u8,
    /// What that copy says.
    pub staged_have: Bits,
    /// It lost its data: it is another replica than the one that sets name.
    pub lost: bool,
    /// It restarted: it does not know which lease it gave.
    pub restarted: bool,
    /// The set that it was told of last, and that set's version.
    pub kept_set: u8,
    /// See above.
    pub kept_version: u8,
}

/// Where a coordinator is.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Not there yet.
    #[default]
    None,
    /// Collects promises.
    Promising,
    /// Brings those who take part to the same state.
    Completing,
    /// Serves hosts; in doubt if it has two sets.
    Serving,
    /// Ended.
    Ended,
}

/// A change of the KVDB's record that was sent.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Swap {
    /// None.
    #[default]
    None,
    /// Sent; it may be applied whenever, also after its sender's end.
    Sent,
    /// Applied; the sender does not know yet.
    Done,
    /// Refused; the sender does not know yet.
    Refused,
}

/// A coordinator: number n is the one of epoch n + 1.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Coordinator {
    /// Where it is.
    pub phase: Phase,
    /// Its set, as it last knew it.
    pub set: u8,
    /// The set that it asked for, while in doubt; else 0.
    pub asked: u8,
    /// Revision of the record as it knows it.
    pub revision: u8,
    /// It begins with an unverified record: everybody must be heard.
    pub unverified: bool,
    /// Who promised, and takes part.
    pub heard: u8,
    /// Union of their lists.
    pub known: Bits,
    /// Of these what is damaged wherever it was listed: the good ones.
    pub good: Bits,
    /// Records that one of them knows to be settled.
    pub star: u8,
    /// Who confirmed each record.
    pub confirmed: [u8; RECORDS],
    /// Whose lease it counts on.
    pub leases: u8,
    /// Its change of the record.
    pub swap: Swap,
    /// Next counter.
    pub next: u8,
    /// What it knows to be settled of its own.
    pub settled: u8,
    /// A read that waits for its data: 1 + block.
    pub reading: u8,
    /// What it will return: 1 + record, 0 for nothing written.
    pub value: u8,
    /// What it must not be older than.
    pub least: u8,
}

/// The KVDB's record.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Kvdb {
    /// In-sync set.
    pub set: u8,
    /// Revision.
    pub revision: u8,
    /// It was restored, and nobody looked yet.
    pub unverified: bool,
}

/// Everything.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct State {
    /// Records, in the order in which they came.
    pub records: [Record; RECORDS],
    /// How many.
    pub count: u8,
    /// Replicas.
    pub replicas: [Replica; REPLICAS],
    /// Coordinators.
    pub coordinators: [Coordinator; EPOCHS],
    /// How many.
    pub epochs: u8,
    /// The record.
    pub kvdb: Kvdb,
    /// For each block: 1 + the record that no later read may be older than; 0: none.
    pub floor: [u8; BLOCKS as usize],
    /// Faults that were spent.
    pub faults: u8,
    /// Invariant that was broken, 0: none.
    pub broken: u8,
}

impl State {
    /// Bits of a whole record.
    pub fn bits(&self, record: usize) -> Bits {
        self.records[record].mask << (2 * record)
    }

    /// Stamp of "1 + record", 0 below all.
    pub fn stamp(&self, value: u8) -> (u8, u8) {
        match value {
            0 => (0, 0),
            v => {
                let r = &self.records[usize::from(v) - 1];
                (r.owner + 1, r.seq)
            }
        }
    }

    /// 1 + the record with the highest stamp over a block, of those in `have`.
    pub fn top(&self, have: Bits, block: u8) -> u8 {
        let of_block = (0..self.count).filter(|r| have >> (2 * r + block) & 1 == 1);
        of_block
            .map(|r| r + 1)
            .max_by_key(|&v| self.stamp(v))
            .unwrap_or(0)
    }

    /// Later reads of a record's blocks must not be older than it.
    pub fn raise_floor(&mut self, value: u8) {
        if value == 0 {
            return;
        }
        let mask = self.records[usize::from(value) - 1].mask;
        for b in 0..BLOCKS {
            let old = self.floor[usize::from(b)];
            if mask >> b & 1 == 1 && self.stamp(value) > self.stamp(old) {
                self.floor[usize::from(b)] = value;
            }
        }
    }

    /// The same with replicas exchanged: `to[n]` is the new number of replica n.
    fn exchanged(&self, to: [usize; REPLICAS]) -> Self {
        let mask = |m: u8| (0..REPLICAS).fold(0, |a, n| a | (m >> n & 1) << to[n]);
        let mut s = *self;
        for (replica, &n) in self.replicas.iter().zip(&to) {
            s.replicas[n] = *replica;
        }
        for r in &mut s.replicas {
            r.kept_set = mask(r.kept_set);
        }
        for c in &mut s.coordinators {
            for m in [&mut c.set, &mut c.asked, &mut c.heard, &mut c.leases] {
                *m = mask(*m);
            }
            for m in &mut c.confirmed {
                *m = mask(*m);
            }
        }
        s.kvdb.set = mask(s.kvdb.set);
        s
    }

    /// Replicas have no names: of all states that differ in names only, one.
    pub fn canonical(&self, replicas: usize) -> Self {
        const ORDERS: [[usize; 3]; 6] = [
            [0, 1, 2],
            [1, 0, 2],
            [0, 2, 1],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        let orders = match replicas {
            1 => &ORDERS[..1],
            2 => &ORDERS[..2],
            _ => &ORDERS[..],
        };
        let all = orders.iter().map(|&to| self.exchanged(to));
        all.min().unwrap_or(*self)
    }
}
