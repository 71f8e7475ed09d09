//! What passes between nodes: a proxy in front of a node's replication port, which keeps every byte in both directions.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Bytes of one direction of a connection.
type Heard = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct Shared {
    upstream: Mutex<Option<SocketAddr>>,
    heard: Mutex<Vec<Heard>>,
}

/// See the module's text. Its threads end with the connections.
pub struct Recorder {
    /// Where peers connect instead.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Listens; what comes before it knows whom to ask is hung up on.
    ///
    /// # Panics
    /// If there is no port.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it has one");
        let shared = Arc::new(Shared::default());
        let of = shared.clone();
        std::thread::spawn(move || {
            for peer in listener.incoming() {
                let upstream = *of.upstream.lock().expect("no panic");
                let Some((peer, upstream)) = peer.ok().zip(upstream) else {
                    continue;
                };
                if let Ok(there) = TcpStream::connect(upstream) {
                    of.pass(&peer, &there);
                    of.pass(&there, &peer);
                }
            }
        });
        Self { address, shared }
    }

    /// The node listens here from now on.
    ///
    /// # Panics
    /// Never.
    pub fn set_upstream(&self, address: SocketAddr) {
        *self.shared.upstream.lock().expect("no panic") = Some(address);
    }

    /// Looks at everything that passed, each direction of each connection by itself.
    ///
    /// # Panics
    /// Never.
    pub fn any(&self, is: impl Fn(&[u8]) -> bool) -> bool {
        let heard = self.shared.heard.lock().expect("no panic").clone();
        heard.iter().any(|h| is(&h.lock().expect("no panic")))
    }

    /// Bytes that passed.
    ///
    /// # Panics
    /// Never.
    pub fn bytes(&self) -> usize {
        let heard = self.shared.heard.lock().expect("no panic").clone();
        heard
            .iter()
            .map(|h| h.lock().expect("no panic").len())
            .sum()
    }
}

impl Shared {
    fn pass(&self, from: &TcpStream, to: &TcpStream) {
        let heard = Heard::default();
        self.heard.lock().expect("no panic").push(heard.clone());
        let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        // As the data paths do.
        let _ = to.set_nodelay(true);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                heard.lock().expect("no panic").extend(&buffer[..n]);
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
}

/// Whether bytes hold others anywhere.
pub fn holds(bytes: &[u8], what: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|b| *b == what[0]) {
        at += found;
        if bytes[at..].starts_with(what) {
            return true;
        }
        at += 1;
    }
    false
}

/// Whether a file holds bytes anywhere; zeroes, of which files of drives are full, are passed quickly.
///
/// # Errors
/// Those of reading.
pub fn file_holds(path: &std::path::Path, what: &[u8]) -> std::io::Result<bool> {
    const PIECE: usize = 64 << 10;
    let mut file = std::fs::File::open(path)?;
    let zeroes = vec![0; PIECE];
    // The end of the piece before, and a piece.
    let mut buffer = vec![0; what.len() + PIECE];
    loop {
        let n = file.read(&mut buffer[what.len()..])?;
        if n == 0 {
            return Ok(false);
        }
        let end = what.len() + n;
        let empty = buffer[what.len()..end] == zeroes[..n];
        if !empty && holds(&buffer[..end], what) {
            return Ok(true);
        }
        buffer.copy_within(n..end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_wherever_they_are() {
        let what = [7, 7, 8, 9];
        assert!(holds(&[0, 7, 7, 7, 8, 9], &what) && !holds(&[7, 7, 8], &what));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for at in [0, 1, 65_534, 65_536, 131_071, 200_000] {
            let mut bytes = vec![0; 200_004];
            std::fs::write(&path, &bytes).unwrap();
            assert!(!file_holds(&path, &what).unwrap());
            bytes[at..at + 4].copy_from_slice(&what);
            std::fs::write(&path, &bytes).unwrap();
            assert!(file_holds(&path, &what).unwrap(), "{at}");
        }
    }
}
