//! How far something is that goes on by itself, on standard error, so that standard output has only the answer: a bar where that is a terminal, else a
//! line for each new percent.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Between looks.
pub const LOOK: Duration = Duration::from_millis(500);

/// With an amount: rate and the rest of the time are of the last seconds.
const BAR: &str =
    "{msg} [{bar:30}] {percent} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
/// Without one.
const STATE: &str = "{spinner} {msg}";

/// Bytes that are done, and all of them.
pub type Amount = (u64, u64);

/// What is shown.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    last: String,
    measured: bool,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = match terminal {
            true => ProgressDrawTarget::stderr_with_hz(4),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target).with_style(style(STATE));
        Self {
            bar,
            terminal,
            last: String::new(),
            measured: false,
        }
    }

    /// Shows a state, and how much of it is done if that is known.
    pub fn show(&mut self, text: &str, amount: Option<Amount>) {
        if !self.terminal {
            return self.line(&with_percent(text, amount));
        }
        if self.measured != amount.is_some() {
            self.measured = amount.is_some();
            let template = if self.measured { BAR } else { STATE };
            self.bar.set_style(style(template));
            // The rate is that of this state, not of what came before it.
            self.bar.reset();
        }
        self.bar.set_message(text.to_owned());
        match amount {
            // What there is to do may have shrunk since.
            Some((done, all)) => {
                self.bar.set_length(all);
                self.bar.set_position(done.min(all));
            }
            None => self.bar.tick(),
        }
    }

    fn line(&mut self, text: &str) {
        if self.last != text {
            text.clone_into(&mut self.last);
            // Nobody looking is no error.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// Leaves the line as it is now.
    pub fn end(self) {
        self.bar.abandon();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("a template of ours");
    style.progress_chars("=> ")
}

/// A state in words: `copying, 25 %`.
pub fn with_percent(text: &str, amount: Option<Amount>) -> String {
    match amount {
        Some((done, all)) => format!("{text}, {} %", percent(done, all)),
        None => text.to_owned(),
    }
}

/// Whole percent of `all`; nothing to do is done.
fn percent(done: u64, all: u64) -> u64 {
    if all == 0 {
        return 100;
    }
    // At most `all`: what there is to do may have shrunk since.
    (u128::from(done.min(all)) * 100 / u128::from(all)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_bounded() {
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(9, 3), 100);
        assert_eq!(with_percent("copying", Some((1, 4))), "copying, 25 %");
        assert_eq!(with_percent("copying", None), "copying");
    }

    #[test]
    fn a_terminal_sees_a_bar_with_the_amount() {
        for (template, amount) in [(BAR, Some((1 << 20, 4 << 20))), (STATE, None)] {
            let screen = indicatif::InMemoryTerm::new(5, 120);
            let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
            let mut progress = Progress {
                bar: ProgressBar::with_draw_target(None, target).with_style(style(STATE)),
                terminal: true,
                last: String::new(),
                measured: false,
            };
            progress.show("copying", amount);
            progress.end();
            let seen = screen.contents();
            assert!(seen.contains("copying"), "{template}: {seen}");
            let measured = seen.contains("25 %") && seen.contains("1.00 MiB of 4.00 MiB");
            assert_eq!(measured, amount.is_some(), "{template}: {seen}");
        }
    }
}
