//! The last words of this process' log, kept for `keelctl service diags`. Everything goes to standard error as before.
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// Bytes that are kept.
const KEPT_BYTES: usize = 512 << 10;

/// One for the process, as its log is.
static KEPT: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// A writer to standard error, that keeps the end of what it writes.
#[derive(Debug, Default)]
pub struct Kept;

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        keep(&mut kept, bytes);
        drop(kept);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn keep(kept: &mut VecDeque<u8>, bytes: &[u8]) {
    let bytes = &bytes[bytes.len().saturating_sub(KEPT_BYTES)..];
    let over = (kept.len() + bytes.len()).saturating_sub(KEPT_BYTES);
    kept.drain(..over);
    kept.extend(bytes);
}

/// What is kept: at most 512 KiB.
pub fn last_words() -> Vec<u8> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let mut kept = VecDeque::new();
        keep(&mut kept, b"first ");
        keep(&mut kept, &vec![b'x'; KEPT_BYTES - 3]);
        assert_eq!(kept.len(), KEPT_BYTES);
        assert_eq!(kept.iter().take(3).copied().collect::<Vec<_>>(), b"st ");
        keep(&mut kept, &vec![b'y'; 2 * KEPT_BYTES]);
        assert!(kept.len() == KEPT_BYTES && kept.iter().all(|b| *b == b'y'));
    }
}
