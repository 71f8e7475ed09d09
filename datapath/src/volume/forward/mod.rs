//! Commands of hosts that come to a node which does not coordinate their volume (`docs/replication.md` §14, rule 8).
//!
//! [`send`] is the forwarder: it reserves stamps, asks its caller whether the host still holds the command, and confirms. [`serve`] is the coordinator's side: it
//! takes commands from other nodes' channels and has a [`Hosted`] do them. [`age`] says what is too old. The stamps are those of `coordinator/reserve`.
//! `dispatch` is the way of a target's reactor to the forwarder of its volume, `here` does commands of other nodes on a volume of this one.

pub mod age;
pub mod dispatch;
pub mod here;
pub mod send;
pub mod serve;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use keelblock_hugepages::Buffer;

pub use crate::replication::wire::forward::{Command, Operation, Phase};
use crate::store::types::Stamp;

/// A completion's status field without its phase bit, as it goes over the wire; 0 is success.
pub type Status = u16;

/// Internal Path Error: another path, or a later try, may serve.
pub const PATH_ERROR: Status = 0x300;
/// Command Interrupted: too much is under way, the host shall try again.
pub const INTERRUPTED: Status = 0x21;

/// Bytes of data that a forwarder has under way to a coordinator: what is more is refused as interrupted. So what waits at a coordinator for its replicas never takes
/// all buffers of its reactor.
pub const WINDOW_BYTES: u64 = 4 << 20;
/// Commands that one has under way, reservations included.
pub const WINDOW_COMMANDS: usize = 1024;

/// What a command read.
pub type Data = Option<Rc<Buffer>>;
/// A command's end.
pub type Ended = Pin<Box<dyn Future<Output = (Status, Data)>>>;

/// Does commands where the volume is coordinated.
pub trait Hosted {
    /// Gives a command its stamps; the first of them. `key` names it in this process, whatever channel it came by.
    ///
    /// # Errors
    /// What it completes with.
    fn reserve(&self, key: u64, command: &Command) -> Result<Stamp, Status>;

    /// A command that stamps were reserved for is over.
    fn unreserve(&self, key: u64);

    /// Does a command: one that is confirmed, under the stamps of `key`; or one that needs none. `data`: what came with it.
    fn run(&self, key: u64, command: Command, data: Option<Buffer>) -> Ended;
}

/// All data of a frame are one piece.
fn one_piece(data: usize, pieces: &mut Vec<usize>) {
    pieces.extend((data > 0).then_some(data));
}

/// Bytes of data on the wire for so many of a command's: whole blocks.
pub fn padded(bytes: u64) -> usize {
    (bytes as usize).next_multiple_of(crate::store::types::BLOCK_BYTES)
}

/// Fills up with zeroes what is sent beyond a command's bytes.
pub fn pad(buffer: &mut Buffer, bytes: u64) {
    let (from, to) = (bytes as usize, padded(bytes));
    buffer[from..to].fill(0);
}
