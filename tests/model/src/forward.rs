//! Forwarded writes (rule 8, §14): a host writes 1 through a forwarder, may lose that path and retry at the coordinator, then overwrites with 2. The 1 that is still
//! on its way must never show again.
use crate::checker::{Each, Model};

/// What is left out of rule 8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The stamp is given when the data arrive.
    NotReserved,
    /// The forwarder does not ask whether the host still holds the command.
    NotConfirmed,
    /// A command goes on to the next coordinator.
    GoesToTheNext,
    /// Settled passes a reservation that stays valid.
    SettledPasses,
}

/// The world, and what is left out.
#[derive(Clone, Copy, Debug)]
pub struct Forward(pub Option<Bug>);

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
enum Command {
    #[default]
    AtForwarder,
    /// Epoch and counter.
    Reserved(u8, u8),
    /// The data are on their way, under this stamp.
    Confirmed(u8, u8),
    Applied,
    Failed,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Debug)]
enum Host {
    #[default]
    Waits,
    GaveUp,
    Wrote,
    Overwrote,
}

/// A state.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct State {
    command: Command,
    host: Host,
    epoch: u8,
    next: u8,
    /// Stamp and value of the block.
    block: (u8, u8, u8),
    settled: (u8, u8),
    below_settled: bool,
}

impl State {
    fn stamp(&mut self) -> (u8, u8) {
        self.next += 1;
        (self.epoch, self.next)
    }

    fn put(&mut self, stamp: (u8, u8), value: u8) {
        if stamp > (self.block.0, self.block.1) {
            self.block = (stamp.0, stamp.1, value);
        }
    }
}

impl Model for Forward {
    type State = State;

    fn initial(&self) -> State {
        State {
            epoch: 1,
            ..State::default()
        }
    }

    fn successors(&self, s: &State, each: &mut Each<'_, State>) {
        let is = |bug| self.0 == Some(bug);
        let mut say = |name: &'static str, t: State| each(&|| name.to_owned(), t);
        let holds = s.host == Host::Waits || is(Bug::NotConfirmed);
        let mut t = *s;
        match s.command {
            Command::AtForwarder if is(Bug::NotReserved) && holds => {
                t.command = Command::Confirmed(s.epoch, 0);
                say("the host gives the data", t);
            }
            Command::AtForwarder => {
                let (epoch, n) = t.stamp();
                t.command = Command::Reserved(epoch, n);
                say("a stamp is reserved", t);
            }
            Command::Reserved(epoch, n) if holds => {
                t.command = Command::Confirmed(epoch, n);
                say("the host gives the data", t);
            }
            Command::Confirmed(epoch, n) => {
                if epoch != s.epoch && !is(Bug::GoesToTheNext) {
                    t.command = Command::Failed;
                    say("another coordinator: path error", t);
                } else {
                    let fresh = n == 0 || epoch != s.epoch;
                    let stamp = if fresh { t.stamp() } else { (epoch, n) };
                    t.below_settled = stamp <= s.settled;
                    t.put(stamp, 1);
                    t.command = Command::Applied;
                    say("the forwarded write is applied", t);
                }
            }
            _ => {}
        }
        let mut t = *s;
        match s.host {
            Host::Waits => {
                t.host = Host::GaveUp;
                say("the host loses the path", t);
                if s.command == Command::Applied {
                    t.host = Host::Wrote;
                    say("the host hears that it is done", t);
                }
            }
            Host::GaveUp | Host::Wrote if s.next < 4 => {
                let retry = s.host == Host::GaveUp;
                let stamp = t.stamp();
                t.put(stamp, if retry { 1 } else { 2 });
                t.host = if retry { Host::Wrote } else { Host::Overwrote };
                say(
                    if retry {
                        "the host retries"
                    } else {
                        "the host overwrites"
                    },
                    t,
                );
            }
            _ => {}
        }
        if s.settled < (s.epoch, s.next) {
            let mut t = *s;
            t.settled = (s.epoch, s.next);
            // A confirm on its way of a void reservation fails when it comes.
            if let Command::Reserved(e, n) | Command::Confirmed(e, n) = s.command
                && n != 0
                && (e, n) <= t.settled
                && !is(Bug::SettledPasses)
            {
                t.command = Command::Failed;
            }
            say("settled rises, and voids reservations", t);
        }
        if s.epoch == 1 {
            let mut t = *s;
            t.epoch = 2;
            t.next = 0;
            say("another coordinator takes over", t);
        }
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        if s.host == Host::Overwrote && s.block.2 == 1 {
            return Some("1: what was overwritten shows again");
        }
        s.below_settled
            .then_some("1: a record appears at or below settled")
    }
}
