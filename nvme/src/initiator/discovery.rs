//! Asking a discovery subsystem what can be connected to (NVMe Base 2.1, 5.1.12.3.1).

use std::net::SocketAddr;

use super::controller::Controller;
use super::error::{Error, Result};
use super::options::ConnectOptions;
use crate::nqn::{DISCOVERY_NQN, nqn_field};

const LOG_DISCOVERY: u8 = 0x70;
const HEADER_LEN: usize = 1024;
const ENTRY_LEN: usize = 1024;
const GENCTR: usize = 0;
const NUMREC: usize = 8;
const TRTYPE: usize = 0;
const ADRFAM: usize = 1;
const SUBTYPE: usize = 2;
const PORTID: usize = 4;
const CNTLID: usize = 6;
const TRSVCID: std::ops::Range<usize> = 32..64;
const SUBNQN: std::ops::Range<usize> = 256..512;
const TRADDR: std::ops::Range<usize> = 512..768;
/// More records than any target of ours has; a bound for what a controller can make us read.
const RECORDS_MAX: u64 = 65_536;
/// Entries of one Get Log Page.
const ENTRIES_PER_READ: usize = 16;
/// How often to start over when the log changes while it is read.
const TRIES: u32 = 5;

/// An entry of the discovery log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// Transport type; 3 is TCP.
    pub trtype: u8,
    /// Address family; 1 is IPv4, 2 IPv6.
    pub adrfam: u8,
    /// 1 referral, 2 NVM subsystem, 3 the discovery subsystem itself.
    pub subtype: u8,
    /// The subsystem's port.
    pub portid: u16,
    /// Controller identifier to ask for.
    pub cntlid: u16,
    /// Address.
    pub traddr: String,
    /// Service: the TCP port.
    pub trsvcid: String,
    /// The subsystem.
    pub subnqn: String,
}

impl DiscoveryEntry {
    fn parse(b: &[u8]) -> Result<Self> {
        let text = |r: std::ops::Range<usize>| {
            String::from_utf8_lossy(&b[r])
                .trim_end_matches([' ', '\0'])
                .to_owned()
        };
        let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Ok(Self {
            trtype: b[TRTYPE],
            adrfam: b[ADRFAM],
            subtype: b[SUBTYPE],
            portid: u16_at(PORTID),
            cntlid: u16_at(CNTLID),
            traddr: text(TRADDR),
            trsvcid: text(TRSVCID),
            subnqn: nqn_field(&b[SUBNQN])?.to_owned(),
        })
    }

    /// Address and port, if both are numeric.
    pub fn addr(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(
            self.traddr.parse().ok()?,
            self.trsvcid.parse().ok()?,
        ))
    }
}

/// Reads the discovery log at `addr` as `hostnqn`.
pub fn discover(
    addr: SocketAddr,
    hostnqn: &str,
    options: &ConnectOptions,
) -> Result<Vec<DiscoveryEntry>> {
    let mut controller = Controller::connect(addr, DISCOVERY_NQN, hostnqn, options)?;
    let entries = controller.discovery_log()?;
    controller.shutdown()?;
    Ok(entries)
}

impl Controller {
    /// The discovery log, read whole from one generation of it.
    pub fn discovery_log(&mut self) -> Result<Vec<DiscoveryEntry>> {
        for _ in 0..TRIES {
            let (generation, records) = self.discovery_header()?;
            let mut entries = Vec::new();
            while entries.len() < records {
                let n = ENTRIES_PER_READ.min(records - entries.len());
                let from = (HEADER_LEN + entries.len() * ENTRY_LEN) as u64;
                let page = self.log_page(LOG_DISCOVERY, 0, from, n * ENTRY_LEN)?;
                for entry in page.chunks_exact(ENTRY_LEN) {
                    entries.push(DiscoveryEntry::parse(entry)?);
                }
            }
            if self.discovery_header()?.0 == generation {
                return Ok(entries);
            }
        }
        Err(Error::Unsuitable(
            "the discovery log changed each time while it was read",
        ))
    }

    fn discovery_header(&mut self) -> Result<(u64, usize)> {
        let header = self.log_page(LOG_DISCOVERY, 0, 0, HEADER_LEN)?;
        let u64_at =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let records = u64_at(NUMREC);
        if records > RECORDS_MAX {
            return Err(Error::Unsuitable(
                "the discovery log has more than 65536 records",
            ));
        }
        Ok((u64_at(GENCTR), records as usize))
    }
}
