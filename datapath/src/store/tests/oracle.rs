//! What a store may answer: for each block of a lane the writes that it has had, in the order in which they were issued, and of each write
//! when it was issued, acknowledged, and whether it is durable.
//!
//! A write X *replaces* a write W if X was issued after W was acknowledged. Between writes that overlap in time the store decides. So a value is
//! wrong if a write that must be there replaces it: for a read, one that was acknowledged before the read began; after a power cut, one that is
//! durable; after a kill, one that was acknowledged. And a write is there whole or not at all: where it shows in one block, no other of its blocks
//! may show what it replaces.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;

use super::super::bytes::is_zero;

/// Number of a write; 0 is "never written".
pub type Id = u32;

/// Something that changed blocks of a lane.
#[derive(Clone, Debug)]
pub struct Change {
    /// Volume and lane that it was issued to: its bytes say so.
    pub tag: u64,
    pub first: u64,
    pub blocks: u64,
    /// An erase.
    pub zero: bool,
    pub issued: u64,
    pub acked: Option<u64>,
    pub durable: bool,
    /// The store said that it did not happen.
    pub failed: bool,
}

/// The writes of a block, oldest first: most have one.
#[derive(Clone)]
pub enum Writes {
    One(Id),
    Many(Vec<Id>),
}

impl Writes {
    fn push(&mut self, id: Id) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, id]),
            Self::Many(all) => all.push(id),
        }
    }
}

impl Deref for Writes {
    type Target = [Id];

    fn deref(&self) -> &[Id] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(all) => all,
        }
    }
}

/// The writes of each block.
pub type History = BTreeMap<u64, Writes>;

/// All writes of a run.
#[derive(Clone)]
pub struct Changes {
    pub all: Vec<Change>,
    clock: u64,
    /// Acknowledged, and not known to be durable.
    pending: Vec<Id>,
    pub volatile: bool,
    /// Of writes that overlapped in time, who lost to whom in a block, as was seen when nothing was under way: it must stay so.
    beaten: Rc<BTreeMap<(u64, Id), Vec<Id>>>,
}

/// What must be there.
#[derive(Clone, Copy, Debug)]
pub enum Must {
    /// What was acknowledged until then.
    AckedBy(u64),
    /// What is durable, and was acknowledged until then.
    DurableBy(u64),
}

impl Changes {
    pub fn new(volatile: bool) -> Self {
        let never = Change {
            tag: 0,
            first: 0,
            blocks: u64::MAX,
            zero: true,
            issued: 0,
            acked: Some(0),
            durable: true,
            failed: false,
        };
        Self {
            all: vec![never],
            clock: 1,
            pending: Vec::new(),
            volatile,
            beaten: Rc::default(),
        }
    }

    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn issue(
        &mut self,
        tag: u64,
        first: u64,
        blocks: u64,
        zero: bool,
        history: &mut History,
    ) -> Id {
        let id = self.all.len() as Id;
        let issued = self.now();
        self.all.push(Change {
            tag,
            first,
            blocks,
            zero,
            issued,
            acked: None,
            durable: false,
            failed: false,
        });
        for (_, writes) in history.range_mut(first..first + blocks) {
            writes.push(id);
        }
        id
    }

    pub fn acked(&mut self, id: Id, durable: bool) {
        let now = self.now();
        let change = &mut self.all[id as usize];
        change.acked = Some(now);
        change.durable = durable || !self.volatile;
        if !change.durable {
            self.pending.push(id);
        }
    }

    /// A flush that began then is done.
    pub fn flushed(&mut self, began: u64) {
        let all = &mut self.all;
        self.pending.retain(|id| {
            let change = &mut all[*id as usize];
            change.durable |= change.acked.is_some_and(|a| a <= began);
            !change.durable
        });
    }

    /// The drive was opened after a crash, which makes durable what is there. Acknowledged writes survive a kill; after a power cut, a flush says
    /// nothing any more about those that none covered before: they may be lost, and what still knows them (a snapshot that was under way)
    /// must not be told that they are durable.
    pub fn crashed(&mut self, killed: bool) {
        for id in std::mem::take(&mut self.pending) {
            self.all[id as usize].durable |= killed;
        }
    }

    /// Bytes of a block of a write.
    pub fn fill(&self, id: Id, block: u64, into: &mut [u8]) {
        let tag = self.all[id as usize].tag;
        for sector in into.chunks_exact_mut(512) {
            sector.fill(id as u8 | 1);
            sector[..8].copy_from_slice(&u64::from(id).to_le_bytes());
            sector[8..16].copy_from_slice(&tag.to_le_bytes());
            sector[16..24].copy_from_slice(&block.to_le_bytes());
        }
    }

    /// The write that these bytes are of; 0 for zeroes.
    pub fn identify(&self, block: u64, bytes: &[u8]) -> Result<Id, String> {
        let id = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        if id == 0 {
            return match is_zero(bytes) {
                true => Ok(0),
                false => Err(format!("block {block}: bytes that nobody wrote")),
            };
        }
        if id >= self.all.len() as u64 || self.all[id as usize].zero {
            return Err(format!("block {block}: bytes that nobody wrote ({id:#x})"));
        }
        let tag = self.all[id as usize].tag;
        let is_it = |sector: &[u8]| {
            let (words, _) = sector.as_chunks::<8>();
            let (head, rest) = words.split_at(3);
            let byte = [id as u8 | 1; 8];
            let differ =
                |all, word: &[u8; 8]| all | (u64::from_ne_bytes(*word) ^ u64::from_ne_bytes(byte));
            let said = [id, tag, block].map(u64::to_le_bytes);
            *head == said && rest.iter().fold(0, differ) == 0
        };
        if !bytes.chunks_exact(512).all(is_it) {
            let at = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes"));
            return Err(format!(
                "block {block}: bytes of write {id}, block {at}, or a mixture"
            ));
        }
        Ok(id as Id)
    }

    /// The highest time of issue among what must be there: whatever was acknowledged before is replaced.
    fn replaced_until(&self, writes: &[Id], must: Must) -> u64 {
        let there = writes.iter().filter(|id| self.is_there(**id, must));
        let issued = there.map(|id| self.all[*id as usize].issued);
        issued.max().unwrap_or(0)
    }

    fn is_there(&self, id: Id, must: Must) -> bool {
        let x = &self.all[id as usize];
        match must {
            Must::AckedBy(t) => x.acked.is_some_and(|a| a <= t),
            Must::DurableBy(t) => x.durable && x.acked.is_some_and(|a| a <= t),
        }
    }

    /// Whether a write that must be there was seen to win over this one.
    fn is_beaten(&self, block: u64, id: Id, writes: &[Id], must: Must) -> bool {
        let winners = self.beaten.get(&(block, id)).into_iter().flatten();
        winners
            .into_iter()
            .any(|w| writes.contains(w) && self.is_there(*w, must))
    }

    /// A read that began then saw a block, and nothing was under way.
    pub fn observe(&mut self, block: u64, writes: &[Id], may: &[Id], began: u64) {
        let quiet = |id: &Id| {
            let w = &self.all[*id as usize];
            w.failed || w.acked.is_some_and(|a| a <= began)
        };
        let [seen] = may[..] else { return };
        if !writes.iter().all(quiet) {
            return;
        }
        let issued = self.all[seen as usize].issued;
        for id in writes {
            let w = &self.all[*id as usize];
            if *id != seen && w.acked.is_some_and(|a| a >= issued) {
                let beaten = Rc::make_mut(&mut self.beaten);
                let winners = beaten.entry((block, *id)).or_default();
                if !winners.contains(&seen) {
                    winners.push(seen);
                }
            }
        }
    }

    fn may_show(&self, id: Id, until: u64, issued_by: u64) -> bool {
        let w = &self.all[id as usize];
        !w.failed && w.issued <= issued_by && w.acked.is_none_or(|a| a >= until)
    }

    /// The writes that a value of a block may be of, newest first; or why none.
    pub fn candidates(
        &self,
        block: u64,
        writes: &[Id],
        shown: Id,
        must: Must,
        issued_by: u64,
    ) -> Result<Vec<Id>, String> {
        let until = self.replaced_until(writes, must);
        let same = |id: &&Id| {
            if shown == 0 {
                self.all[**id as usize].zero
            } else {
                **id == shown
            }
        };
        let found: Vec<Id> = writes.iter().rev().filter(same).copied().collect();
        let may: Vec<Id> = found
            .iter()
            .copied()
            .filter(|id| {
                self.may_show(*id, until, issued_by) && !self.is_beaten(block, *id, writes, must)
            })
            .collect();
        if may.is_empty() {
            let of = |id: &Id| {
                let c = &self.all[*id as usize];
                format!(
                    "{id}: {}{}+{} issued {} acked {:?}{}{}",
                    if c.zero { "erase " } else { "" },
                    c.first,
                    c.blocks,
                    c.issued,
                    c.acked,
                    if c.durable { " durable" } else { "" },
                    if c.failed { " FAILED" } else { "" }
                )
            };
            let all: Vec<String> = writes.iter().map(of).collect();
            return Err(format!(
                "block {block} shows write {shown} where {must:?}, issued by {issued_by}; its writes: {}",
                all.join("; ")
            ));
        }
        Ok(may)
    }

    /// Whether what a block shows is the one write that it ever had: nothing can replace that.
    fn is_only(&self, id: Id, shown: Id, issued_by: u64) -> bool {
        let w = &self.all[id as usize];
        let same = if shown == 0 { w.zero } else { shown == id };
        same && !w.failed && w.issued <= issued_by
    }

    /// Checks what a whole lane (or snapshot of one) shows.
    pub fn check(
        &self,
        history: &History,
        shown: &BTreeMap<u64, Id>,
        must: Must,
        issued_by: u64,
    ) -> Result<(), String> {
        let mut there: BTreeMap<Id, u64> = BTreeMap::new();
        for (block, writes) in history {
            if let Writes::One(only) = *writes
                && self.is_only(only, shown[block], issued_by)
            {
                if only != 0 {
                    there.insert(only, *block);
                }
                continue;
            }
            let may = self.candidates(*block, writes, shown[block], must, issued_by)?;
            if let [only] = may[..]
                && only != 0
            {
                there.insert(only, *block);
            }
        }
        for (id, at) in there {
            let w = &self.all[id as usize];
            for (block, writes) in history.range(w.first..w.first.saturating_add(w.blocks)) {
                if !writes.contains(&id) {
                    continue;
                }
                let v = shown[block];
                // Of zeroes, the newest that it may be.
                let newest = writes.iter().rev().find(|x| {
                    if v == 0 {
                        self.all[**x as usize].zero
                    } else {
                        **x == v
                    }
                });
                let newest = newest.map(|x| &self.all[*x as usize]);
                if newest.is_none_or(|n| n.acked.is_some_and(|a| a < w.issued)) {
                    return Err(format!(
                        "write {id} ({}+{}) shows in block {at}, and block {block} still shows {v}",
                        w.first, w.blocks
                    ));
                }
            }
        }
        Ok(())
    }

    /// From now on these are the only writes that there were.
    pub fn settle(&mut self, shown: &BTreeMap<u64, Id>) -> Rc<History> {
        for id in shown.values() {
            let change = &mut self.all[*id as usize];
            change.acked.get_or_insert(self.clock);
            change.durable = true;
        }
        let only = |(block, id): (&u64, &Id)| (*block, Writes::One(*id));
        Rc::new(shown.iter().map(only).collect())
    }
}
