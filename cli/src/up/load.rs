//! A host that writes and does not give up: what it wrote last must be there at the end, whoever died meanwhile.
use super::check::{Bytes, Subject};
use super::host::connect;
use super::mark::split_mix;
use crate::failure::{Failure, Result};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of one write.
const BLOCK: usize = 4096;
/// Blocks that are written, at random.
const BLOCKS: usize = 1024;
/// A write that is not acknowledged for so long, whatever path is tried, is a failure.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Pause before a path is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// What the host and those who watch it share.
#[derive(Debug)]
pub struct Load {
    door: Mutex<SocketAddr>,
    stop: AtomicBool,
    writes: AtomicU64,
    longest_us: AtomicU64,
}

impl Load {
    /// A host that is to connect there.
    pub fn new(door: SocketAddr) -> Load {
        Load {
            door: Mutex::new(door),
            stop: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
        }
    }

    /// From now on a connection that is lost is made again there.
    pub fn go_to(&self, door: SocketAddr) {
        *self.door.lock().unwrap_or_else(|e| e.into_inner()) = door;
    }

    /// The host is to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Writes that were acknowledged.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// The longest time from a write to its acknowledgement, other paths included.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    /// Writes until it is stopped, then reads everything back. Each write is tried again until it is acknowledged.
    ///
    /// # Errors
    /// A write that nobody acknowledges, a block that is not as it was written: by volume and place.
    pub fn run(&self, mut subject: Subject) -> Result<()> {
        let mut held = vec![0_u64; BLOCKS];
        let mut random = 1;
        let mut path = None;
        let mut value = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let block = (split_mix(&mut random) % BLOCKS as u64) as usize;
            value += 1;
            let began = Instant::now();
            self.insist(&mut subject, &mut path, "write", &mut |disk| {
                disk.write((block * BLOCK) as u64, &pattern(block, value))
            })?;
            held[block] = value;
            let took = began.elapsed().as_micros() as u64;
            self.longest_us.fetch_max(took, Ordering::Relaxed);
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        for (block, value) in held.into_iter().enumerate() {
            let mut found = vec![0xa5; BLOCK];
            self.insist(&mut subject, &mut path, "read", &mut |disk| {
                disk.read((block * BLOCK) as u64, &mut found)
            })?;
            let expected = match value {
                0 => vec![0; BLOCK],
                value => pattern(block, value),
            };
            if found != expected {
                let why = format!(
                    "block {block} is not what was acknowledged last: this is a fault of Keelblock, please report it"
                );
                return Err(Failure::local(
                    format!("check of volume {}", subject.name),
                    why,
                ));
            }
        }
        if let Some((controller, _)) = path {
            // Everything was read: how the host leaves decides nothing.
            let _ = controller.shutdown();
        }
        Ok(())
    }

    /// Does it, by whatever path there is, until it is done.
    fn insist(
        &self,
        subject: &mut Subject,
        path: &mut Option<super::host::Path>,
        what: &str,
        act: &mut dyn FnMut(
            &mut super::host::Disk,
        ) -> std::result::Result<(), keelblock_nvme::initiator::Error>,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let done = match path {
                Some((_, disk)) => act(disk),
                None => {
                    subject.address = *self.door.lock().unwrap_or_else(|e| e.into_inner());
                    match connect(subject) {
                        Ok(made) => {
                            *path = Some(made);
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            let Err(error) = done else { return Ok(()) };
            *path = None;
            if began.elapsed() > STALL_LIMIT {
                let why = format!(
                    "no {what} succeeds for {} s: {error}",
                    STALL_LIMIT.as_secs()
                );
                return Err(Failure::local(
                    format!("check of volume {}", subject.name),
                    why,
                ));
            }
            std::thread::sleep(AGAIN);
        }
    }
}

/// What is written: block and value, over and over.
fn pattern(block: usize, value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        bytes.extend((block as u64).to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}
