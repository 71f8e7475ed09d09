//! What `up` prints: lines that stay, and on a terminal one line at the bottom that is rewritten.
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard};

/// Standard output, shared by all who have something to say.
#[derive(Clone, Debug)]
pub struct Screen {
    /// The line at the bottom as it stands; `None` inside when nothing shall be printed at all.
    bottom: Arc<Mutex<Bottom>>,
    terminal: bool,
}

#[derive(Debug)]
struct Bottom {
    line: String,
    silent: bool,
}

impl Screen {
    /// The real one.
    pub fn new() -> Screen {
        let bottom = Arc::new(Mutex::new(Bottom {
            line: String::new(),
            silent: false,
        }));
        Screen {
            bottom,
            terminal: std::io::stdout().is_terminal(),
        }
    }

    /// One that shows nothing, for tests.
    #[cfg(test)]
    pub fn silent() -> Screen {
        Screen {
            bottom: Arc::new(Mutex::new(Bottom {
                line: String::new(),
                silent: true,
            })),
            terminal: false,
        }
    }

    /// Whether a line can be rewritten.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints a line that stays.
    pub fn note(&self, line: &str) {
        let bottom = self.lock();
        if bottom.silent {
            return;
        }
        // Nobody reads any more: nothing to be done about it.
        let _ = if self.terminal {
            write!(std::io::stdout().lock(), "\r\x1b[K{line}\n{}", bottom.line)
        } else {
            writeln!(std::io::stdout().lock(), "{line}")
        };
        let _ = std::io::stdout().flush();
    }

    /// On a terminal: rewrites the line at the bottom. Elsewhere: prints a line.
    pub fn status(&self, line: &str) {
        if !self.terminal {
            return self.note(line);
        }
        let mut bottom = self.lock();
        // A line longer than the terminal is wide would wrap and could not be rewritten.
        let width = comfy_table::Table::new()
            .width()
            .map_or(120, |columns| usize::from(columns).max(20) - 1);
        bottom.line = line.chars().take(width).collect();
        let _ = write!(std::io::stdout().lock(), "\r\x1b[K{}", bottom.line);
        let _ = std::io::stdout().flush();
    }

    /// Ends the line at the bottom, before the last words.
    pub fn end_status(&self) {
        let mut bottom = self.lock();
        if self.terminal && !bottom.line.is_empty() {
            let _ = write!(std::io::stdout().lock(), "\r\x1b[K");
            bottom.line.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bottom> {
        self.bottom
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
