//! How far something is that goes on by itself: one line on standard error, written over where that is a terminal, so that standard
//! output has only the answer.
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Between looks.
pub const LOOK: Duration = Duration::from_millis(500);

/// The line.
pub struct Progress {
    terminal: bool,
    last: String,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            last: String::new(),
        }
    }

    /// Shows a state, if it is another than the last.
    pub fn show(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        self.last = text.to_owned();
        // Nobody looking is no error.
        let mut out = std::io::stderr().lock();
        let _ = match self.terminal {
            true => write!(out, "\r\x1b[K{text}").and_then(|()| out.flush()),
            false => writeln!(out, "{text}"),
        };
    }

    /// Leaves the line.
    pub fn end(self) {
        if self.terminal && !self.last.is_empty() {
            let _ = writeln!(std::io::stderr().lock());
        }
    }
}

/// Whole percent of `all`; nothing to do is done.
pub fn percent(done: u64, all: u64) -> u64 {
    if all == 0 {
        return 100;
    }
    // At most `all`: what there is to do may have shrunk since.
    (u128::from(done.min(all)) * 100 / u128::from(all)) as u64
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn percents_are_bounded() {
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(9, 3), 100);
    }
}
