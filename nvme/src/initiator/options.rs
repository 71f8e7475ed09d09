//! How to connect.

use std::time::Duration;

use crate::pdu::Digests;

/// Options of an association; the defaults suit a local target.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Host identifier. Two associations of one host NQN share it.
    pub hostid: [u8; 16],
    /// Keep-alive timeout; zero asks for none.
    pub keep_alive: Duration,
    /// Digests to ask for.
    pub digests: Digests,
    /// Submission queue flow control stays on, as Linux has it. Without it controllers may leave out response capsules of reads.
    pub sq_flow_control: bool,
    /// Bound of every wait: connecting, each blocking command, becoming ready.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            hostid: *b"keelblock-nvme-1",
            keep_alive: Duration::from_secs(15),
            digests: Digests::default(),
            sq_flow_control: true,
            timeout: Duration::from_secs(10),
        }
    }
}

/// How long to keep trying: waits double from `first` to `longest`, and end after `attempts`.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// How often to try, the first time included.
    pub attempts: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            longest: Duration::from_secs(1),
            attempts: 20,
        }
    }
}

impl Backoff {
    /// The wait after failure number `failures` (from 1); `None` when that was the last attempt.
    pub fn after(&self, failures: u32) -> Option<Duration> {
        let doublings = failures.saturating_sub(1).min(31);
        (failures < self.attempts)
            .then(|| self.first.saturating_mul(1 << doublings).min(self.longest))
    }

    /// Tries `what` until it succeeds, fails for a reason that trying again does not change, or the attempts are used up.
    pub fn retry<T>(&self, mut what: impl FnMut() -> super::Result<T>) -> super::Result<T> {
        let mut failures = 0;
        loop {
            let error = match what() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failures += 1;
            let again = error.is_transport() || error.status().is_some_and(|s| !s.is_dnr());
            match self.after(failures) {
                Some(wait) if again => std::thread::sleep(wait),
                _ => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;
    use crate::initiator::Error;

    fn quick() -> Backoff {
        Backoff {
            first: Duration::from_nanos(1),
            longest: Duration::from_nanos(5),
            attempts: 5,
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        let waits: Vec<_> = (1..=5)
            .map(|n| quick().after(n).map(|d| d.as_nanos()))
            .collect();
        assert_eq!(waits, [Some(1), Some(2), Some(4), Some(5), None]);
    }

    #[test]
    fn gives_up_at_once_where_trying_again_is_useless() {
        let tries = |error: fn() -> Error| {
            let mut n = 0;
            let result: Result<(), _> = quick().retry(|| {
                n += 1;
                Err(error())
            });
            assert!(result.is_err());
            n
        };
        assert_eq!(tries(|| Error::Closed), 5);
        assert_eq!(tries(|| Error::AuthenticationRequired), 1);
        assert_eq!(
            tries(|| Error::Refused {
                what: "",
                status: Status::CONNECT_INVALID_HOST.dnr(),
                dw0: 0
            }),
            1
        );
        assert_eq!(
            tries(|| Error::Refused {
                what: "",
                status: Status::CONNECT_CONTROLLER_BUSY,
                dw0: 0
            }),
            5
        );
    }
}
