//! Anything in any order: hosts that send what they like, a control process and reactors that answer when they like.

use super::rig::{HOST_A, HOST_B, Rig, export, namespace};
use super::*;
use crate::nvmf::seam::{AnaState, HostId, MAX_TRANSFER_BYTES, Outcome};
use keelblock_nvme::Sqe;
use keelblock_nvme::sgl::Sgl;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Act {
    Connect(bool),
    Io {
        nth: usize,
        qid: u16,
    },
    Admin {
        nth: usize,
        sqe: Sqe,
    },
    Reserve {
        nth: usize,
        sqe: Sqe,
        data: [u8; 16],
    },
    Gone {
        nth: usize,
        qid: u16,
    },
    Update {
        blocks: u64,
        second: bool,
        ana: bool,
        only_a: bool,
    },
    Publish,
    Commit,
    Expire(u64),
}

/// A command with the opcodes and fields that lead somewhere, mostly.
fn commands(opcodes: &'static [u8]) -> impl Strategy<Value = Sqe> {
    let opcode = prop_oneof![9 => proptest::sample::select(opcodes), 1 => any::<u8>()];
    let small = || prop_oneof![4 => 0..4_u32, 2 => (0..16_u32).prop_map(|b| 1 << (2 * b)), 1 => any::<u32>()];
    let id = prop_oneof![(0..0x20_u32), (0x70..0x84_u32), any::<u32>()];
    (
        opcode,
        0..3_u32,
        id,
        small(),
        small(),
        small(),
        prop_oneof![Just(0), Just(4096), any::<u32>()],
        0..40_u8,
    )
        .prop_map(|(opcode, nsid, cdw10, cdw11, cdw12, cdw13, length, odd)| {
            let mut s = Sqe::new(opcode, nsid)
                .with_cdw(10, cdw10)
                .with_cdw(11, cdw11)
                .with_cdw(12, cdw12)
                .with_cdw(13, cdw13);
            s.set_sgl(Sgl::Transport { length });
            if odd == 0 {
                s.set_cdw(0, s.cdw(0) | cdw11 << 8);
            }
            s
        })
}

/// What takes a controller through its states.
fn configurations() -> impl Strategy<Value = Sqe> {
    let cc = proptest::sample::select(&[0, 0x46_0001, 0x46_0000, 0x46_4001, 0x46_8001, 1][..]);
    cc.prop_map(|cc| Sqe::fabrics(0).with_cdw(11, 0x14).with_cdw(12, cc))
}

fn acts() -> impl Strategy<Value = Act> {
    let admin = commands(&[2, 6, 8, 9, 10, 12, 12, 24, 0x7f]);
    let reserve = commands(&[0x0d, 0x0e, 0x11, 0x15]);
    let keys = proptest::collection::vec(0..3_u8, 2)
        .prop_map(|k| std::array::from_fn(|i| if i % 8 == 0 { k[i / 8] } else { 0 }));
    prop_oneof![
        2 => any::<bool>().prop_map(Act::Connect),
        2 => (0..4_usize, 0..4_u16).prop_map(|(nth, qid)| Act::Io { nth, qid }),
        8 => (0..4_usize, admin).prop_map(|(nth, sqe)| Act::Admin { nth, sqe }),
        3 => (0..4_usize, configurations()).prop_map(|(nth, sqe)| Act::Admin { nth, sqe }),
        8 => (0..4_usize, reserve, keys).prop_map(|(nth, sqe, data)| Act::Reserve { nth, sqe, data }),
        2 => (0..4_usize, 0..4_u16).prop_map(|(nth, qid)| Act::Gone { nth, qid }),
        2 => (1..4_u64, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(blocks, second, ana, only_a)| Act::Update { blocks, second, ana, only_a }),
        4 => Just(Act::Publish),
        4 => Just(Act::Commit),
        1 => (0..7_000_000_000_u64).prop_map(Act::Expire),
    ]
}

/// The rig, and what must be true of it.
struct World {
    rig: Rig,
    ids: Vec<u16>,
    pending: BTreeSet<(u64, u16)>,
    published: u64,
    committed: usize,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::new();
        (rig.publish, rig.commit) = (false, false);
        World {
            rig,
            ids: Vec::new(),
            pending: BTreeSet::new(),
            published: 1,
            committed: 0,
        }
    }

    fn id(&self, nth: usize) -> u16 {
        self.ids
            .get(nth % self.ids.len().max(1))
            .copied()
            .unwrap_or(10)
    }

    fn host_of(&self, id: u16) -> HostId {
        self.rig
            .sub
            .controllers
            .get(&id)
            .map_or(HOST_A, |c| c.host_id)
    }

    fn act(&mut self, act: Act) {
        let now = self.rig.now;
        match act {
            Act::Connect(a) => {
                let mut req = self.rig.request(if a { HOST_A } else { HOST_B }, 0xffff, 0);
                req.kato_ms = 1000;
                if let Ok(grant) = self.rig.sub.connect_admin(&req, now) {
                    self.ids.retain(|id| *id != grant.cntlid);
                    self.ids.push(grant.cntlid);
                }
            }
            Act::Io { nth, qid } => {
                let id = self.id(nth);
                let req = self.rig.request(self.host_of(id), id, qid);
                let _ = self.rig.sub.connect_io(&req, now);
            }
            Act::Admin { nth, sqe } => {
                let cmd = self.rig.next_command(self.id(nth), 0);
                let outcome = self.rig.sub.admin(cmd, &sqe.0, &[], now);
                self.outcome(cmd, &sqe, outcome);
            }
            Act::Reserve { nth, sqe, data } => {
                let cmd = self.rig.next_command(self.id(nth), 1);
                let outcome = self.rig.sub.reservation(cmd, &sqe.0, &data, now);
                self.outcome(cmd, &sqe, outcome);
            }
            Act::Gone { nth, qid } => self.rig.sub.queue_gone(self.id(nth), qid, now),
            Act::Update {
                blocks,
                second,
                ana,
                only_a,
            } => {
                let mut config = export();
                config.namespaces[0].blocks = blocks;
                config.namespaces.extend(second.then(|| namespace(2, 9)));
                config.ana_state = if ana {
                    AnaState::Optimized
                } else {
                    AnaState::Change
                };
                config.allowed_hosts = only_a.then(|| vec!["nqn.host.aa".into()]);
                self.rig.sub.update(config, now).expect("a good export");
            }
            Act::Publish => self.publish_next(),
            Act::Commit => self.commit_next(),
            Act::Expire(later) => {
                self.rig.now += later;
                self.rig.sub.expire(self.rig.now);
                assert!(
                    self.rig.sub.deadline().is_none_or(|d| d > self.rig.now),
                    "all that was due is done"
                );
            }
        }
        self.settle();
    }

    fn publish_next(&mut self) {
        if self.published < self.rig.sub.view().generation {
            self.published += 1;
            self.rig.sub.published(self.published, self.rig.now);
        }
    }

    fn commit_next(&mut self) {
        if let Some((nsid, generation, _)) = self.rig.commits.get(self.committed).cloned() {
            self.committed += 1;
            self.rig
                .sub
                .commit_reservation(nsid, generation, self.rig.now);
        }
    }

    fn outcome(&mut self, cmd: CommandRef, sqe: &Sqe, outcome: Outcome) {
        match outcome {
            Outcome::Done(reply) => {
                assert!(
                    reply.data.len() <= sqe.sgl().length() as usize
                        && reply.data.len() <= MAX_TRANSFER_BYTES
                );
                assert!(reply.status.is_success() || reply.data.is_empty());
            }
            Outcome::Pending => assert!(self.pending.insert((cmd.connection, cmd.cid))),
        }
    }

    /// Completions answer what is pending, once.
    fn settle(&mut self) {
        self.rig.drain();
        for (cmd, _) in std::mem::take(&mut self.rig.done) {
            assert!(
                self.pending.remove(&(cmd.connection, cmd.cid)),
                "{cmd:?} completed and not pending"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn anything_in_any_order(script in proptest::collection::vec(acts(), 1..120)) {
        let mut world = World::new();
        script.into_iter().for_each(|act| world.act(act));
        // Everybody answers at last: no reservation command is left, and no controller once its queues are gone.
        for _ in 0..1000 {
            world.publish_next();
            world.commit_next();
            world.settle();
        }
        world.act(Act::Expire(6_000_000_000));
        for _ in 0..1000 {
            world.publish_next();
            world.settle();
        }
        let waiting: usize = world.rig.sub.ledgers.values().filter(|l| l.deadline().is_some()).count();
        prop_assert_eq!(waiting, 0);
        for id in world.ids.clone() {
            (0..4).for_each(|qid| world.rig.sub.queue_gone(id, qid, 0));
            world.settle();
        }
        prop_assert!(world.rig.sub.controllers.is_empty());
        prop_assert_eq!(world.rig.sub.deadline(), None);
        // Only Asynchronous Event Requests and what was sent to ended controllers may lack an answer: their queues are gone.
        prop_assert!(world.rig.sub.held.is_empty());
    }
}
