//! Data that is recognised wherever it turns up: a host that writes blocks full of a token.

use keelblock_nvme::initiator::{ConnectOptions, Controller, IoQueue, Namespace};

use crate::workload::{Target, queue_of};

/// Blocks that are written.
pub const BLOCKS: u64 = 400;
/// Blocks of a command.
const AT_ONCE: u64 = 8;
/// What blocks are full of.
pub type Token = [u8; 32];

/// A host with one queue.
pub struct Marker {
    queue: IoQueue,
    ns: Namespace,
    token: Token,
    _controller: Controller,
}

/// A run of blocks, each full of the token but for its number at its end.
fn content(token: &Token, first: u64, round: u64) -> Vec<u8> {
    let mut data = Vec::new();
    for block in first..first + AT_ONCE {
        data.extend(token.repeat(4096 / token.len() - 1));
        let end = [block, round, block, round].map(u64::to_le_bytes);
        data.extend(end.as_flattened());
    }
    data
}

impl Marker {
    /// Connects.
    ///
    /// # Panics
    /// If that is refused.
    pub fn connect(target: &Target, token: Token) -> Self {
        let host = "nqn.2014-08.org.nvmexpress:uuid:0cc1d0b8-0000-4000-8000-000000000002";
        let options = ConnectOptions::default();
        let controller = Controller::connect(target.address, &target.nqn, host, &options);
        let controller = controller.expect("it connects");
        let opened = queue_of(controller, target.nsid, 31);
        let (controller, queue, ns) = opened.expect("a namespace and a queue");
        Self {
            queue,
            ns,
            token,
            _controller: controller,
        }
    }

    /// Writes all blocks, and flushes.
    ///
    /// # Panics
    /// If a command fails.
    pub fn write(&mut self, round: u64) {
        for first in (0..BLOCKS).step_by(AT_ONCE as usize) {
            let data = content(&self.token, first, round);
            let written = self.queue.write(&self.ns, first, &data);
            written.expect("a write");
        }
        self.queue.flush(&self.ns).expect("a flush");
    }

    /// Writes all blocks once, in order, and says after each command whether to go on.
    ///
    /// # Panics
    /// If a command fails.
    pub fn write_while(&mut self, round: u64, go_on: impl Fn() -> bool) {
        for first in (0..BLOCKS).step_by(AT_ONCE as usize) {
            let data = content(&self.token, first, round);
            let written = self.queue.write(&self.ns, first, &data);
            written.expect("a write");
            if !go_on() {
                return;
            }
        }
    }

    /// Reads all blocks: in which round each run of them was written.
    ///
    /// # Panics
    /// If one is of two rounds, or of something else.
    pub fn rounds(&mut self) -> Vec<u64> {
        let runs = (0..BLOCKS).step_by(AT_ONCE as usize);
        let round_of = |first: u64| {
            let data = self.queue.read(&self.ns, first, AT_ONCE as usize);
            let data = data.expect("a read");
            let at = 4096 - 24;
            let round = u64::from_le_bytes(std::array::from_fn(|n| data[at + n]));
            assert!(
                data == content(&self.token, first, round),
                "blocks from {first} on"
            );
            round
        };
        runs.map(round_of).collect()
    }

    /// Reads all blocks.
    ///
    /// # Panics
    /// If one is not what was written in that round.
    pub fn verify(&mut self, round: u64) {
        for first in (0..BLOCKS).step_by(AT_ONCE as usize) {
            let data = self.queue.read(&self.ns, first, AT_ONCE as usize);
            let same = data.expect("a read") == content(&self.token, first, round);
            assert!(same, "blocks from {first} on");
        }
    }
}
