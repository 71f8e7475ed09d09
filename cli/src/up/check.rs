//! Does it work? Real data, written and read back through NVMe/TCP as a host would, on volumes that are new; on those that were
//! there before, nothing is written, and the mark of an earlier run tells whether data survived.
use super::mark::{Found, inspect, mark};
use crate::failure::{Failure, Result};
use crate::size::show_size;
use std::net::SocketAddr;

/// Bytes at the end of a volume that are written and verified.
const CHECKED: u64 = 256 << 10;
/// Bytes of one command.
const PIECE: usize = 64 << 10;

/// What shall be done with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// New and ours to try out: write, verify, leave the mark.
    Mark,
    /// New and asked for: write, verify, and make it all zeroes again.
    WriteAndClear,
    /// There before, with the mark of an earlier run: verify the mark.
    VerifyMark,
    /// There before: only read.
    Read,
}

/// A volume to check.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Where its node listens.
    pub address: SocketAddr,
    /// Its subsystem.
    pub nqn: String,
    /// Its namespace there.
    pub nsid: u32,
    /// Its cluster.
    pub cluster_id: String,
    /// Its id.
    pub id: String,
    /// Its name, for messages.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
}

/// A volume, as bytes. Offsets and lengths are multiples of its block size.
pub trait Bytes {
    /// Why something failed.
    type Error: std::fmt::Display;
    /// Fills `into` from `offset` on.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> std::result::Result<(), Self::Error>;
    /// Writes `from` at `offset`.
    fn write(&mut self, offset: u64, from: &[u8]) -> std::result::Result<(), Self::Error>;
    /// Makes what was written stable.
    fn flush(&mut self) -> std::result::Result<(), Self::Error>;
}

/// Carries a plan out and says what was found.
pub fn check<B: Bytes>(subject: &Subject, plan: Plan, disk: &mut B) -> Result<String> {
    let len = CHECKED.min(subject.size_bytes);
    let area = Area {
        start: subject.size_bytes - len,
        len: len as usize,
        name: &subject.name,
    };
    let written = mark(&subject.cluster_id, &subject.id, area.len);
    let size = show_size(len);
    match plan {
        Plan::Mark | Plan::WriteAndClear => {
            area.write(disk, &written)?;
            area.expect(disk, &written, "what was written")?;
            if plan == Plan::WriteAndClear {
                let zeroes = vec![0; area.len];
                area.write(disk, &zeroes)?;
                area.expect(disk, &zeroes, "zeroes")?;
            }
            Ok(format!("{size} written and verified"))
        }
        Plan::VerifyMark => match inspect(&area.read(disk)?, &written) {
            Found::Intact => Ok(format!("{size} of an earlier run verified")),
            Found::Overwritten => Ok(format!(
                "{size} read; written by its user since the last check"
            )),
            Found::Damaged(sector) => Err(area.damaged(
                sector as u64 * super::mark::SECTOR as u64,
                "what an earlier run wrote",
            )),
        },
        Plan::Read => area.read(disk).map(|_| format!("{size} read")),
    }
}

/// The bytes of a volume that are checked.
struct Area<'a> {
    start: u64,
    len: usize,
    name: &'a str,
}

impl Area<'_> {
    fn pieces(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let len = self.len;
        (0..len)
            .step_by(PIECE)
            .map(move |at| at..(at + PIECE).min(len))
    }

    fn write<B: Bytes>(&self, disk: &mut B, bytes: &[u8]) -> Result<()> {
        for piece in self.pieces() {
            let offset = self.start + piece.start as u64;
            disk.write(offset, &bytes[piece])
                .map_err(|e| self.failed("write", offset, &e))?;
        }
        disk.flush()
            .map_err(|e| self.failed("flush after writing", self.start, &e))
    }

    fn read<B: Bytes>(&self, disk: &mut B) -> Result<Vec<u8>> {
        let mut bytes = vec![0xa5; self.len];
        for piece in self.pieces() {
            let offset = self.start + piece.start as u64;
            disk.read(offset, &mut bytes[piece])
                .map_err(|e| self.failed("read", offset, &e))?;
        }
        Ok(bytes)
    }

    fn expect<B: Bytes>(&self, disk: &mut B, expected: &[u8], what: &str) -> Result<()> {
        let found = self.read(disk)?;
        match found.iter().zip(expected).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(self.damaged(at as u64, what)),
        }
    }

    fn failed(&self, action: &str, offset: u64, why: &dyn std::fmt::Display) -> Failure {
        Failure::local(
            format!("check of volume {}", self.name),
            format!("{action} at byte {offset} failed: {why}"),
        )
    }

    fn damaged(&self, at: u64, what: &str) -> Failure {
        let why = format!(
            "byte {} does not read back as {what}: this is a fault of Keelblock, please report it",
            self.start + at
        );
        Failure::local(format!("check of volume {}", self.name), why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl Bytes for Memory {
        type Error = String;
        fn read(&mut self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
            into.copy_from_slice(&self.0[offset as usize..][..into.len()]);
            Ok(())
        }
        fn write(&mut self, offset: u64, from: &[u8]) -> std::result::Result<(), String> {
            self.0[offset as usize..][..from.len()].copy_from_slice(from);
            Ok(())
        }
        fn flush(&mut self) -> std::result::Result<(), String> {
            Ok(())
        }
    }

    fn subject(size_bytes: u64) -> Subject {
        Subject {
            address: ([127, 0, 0, 1], 4420).into(),
            nqn: "nqn".into(),
            nsid: 1,
            cluster_id: "c".into(),
            id: "v".into(),
            name: "demo".into(),
            size_bytes,
        }
    }

    #[test]
    fn a_mark_is_found_again_until_its_user_writes_there() {
        let (s, mut disk) = (subject(1 << 20), Memory(vec![0; 1 << 20]));
        check(&s, Plan::Mark, &mut disk).unwrap();
        assert!(
            check(&s, Plan::VerifyMark, &mut disk)
                .unwrap()
                .contains("verified")
        );
        disk.0[(1 << 20) - 512..].fill(7);
        assert!(
            check(&s, Plan::VerifyMark, &mut disk)
                .unwrap()
                .contains("by its user")
        );
        disk.0[(1 << 20) - 1024 + 100] ^= 1;
        let failure = check(&s, Plan::VerifyMark, &mut disk)
            .unwrap_err()
            .to_string();
        assert!(
            failure.contains("demo") && failure.contains(&((1 << 20) - 1024).to_string()),
            "{failure}"
        );
    }

    #[test]
    fn an_asked_for_volume_is_left_as_it_was() {
        let mut disk = Memory(vec![0; 8192]);
        check(&subject(8192), Plan::WriteAndClear, &mut disk).unwrap();
        assert!(disk.0.iter().all(|b| *b == 0));
    }

    struct Forgetful(Memory);

    impl Bytes for Forgetful {
        type Error = String;
        fn read(&mut self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
            self.0.read(offset, into)
        }
        fn write(&mut self, _: u64, _: &[u8]) -> std::result::Result<(), String> {
            Ok(())
        }
        fn flush(&mut self) -> std::result::Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_does_not_keep_data_is_found_out() {
        let mut disk = Forgetful(Memory(vec![0; 8192]));
        assert!(check(&subject(8192), Plan::Mark, &mut disk).is_err());
        assert!(check(&subject(8192), Plan::WriteAndClear, &mut disk).is_err());
    }
}
