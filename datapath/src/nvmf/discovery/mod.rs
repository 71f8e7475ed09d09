//! The discovery log: log page 70h (NVMe Base 2.1, 5.1.12.3.1). What a host sees are the subsystems that let it in, and this discovery
//! subsystem itself, so that hosts know they may keep the connection and are told of changes.

use crate::nvmf::admin::page::Page;
use crate::nvmf::seam::{ADMIN_SQSIZE_MAX, DISCOVERY_NQN, DiscoveryEntry};
use std::net::{IpAddr, SocketAddr};

const HEADER_BYTES: usize = 1024;
const RECORD_BYTES: usize = 1024;
const TRTYPE_TCP: u8 = 3;
const SUBTYPE_NVM: u8 = 2;
const SUBTYPE_CURRENT_DISCOVERY: u8 = 3;
/// TREQ: nothing is said of secure channels (bits 1:0), SQ flow control may be disabled (bit 2).
const TREQ: u8 = 1 << 2;
const PORT_ID: u16 = 1;
const CNTLID_DYNAMIC: u16 = 0xffff;
/// EFLAGS of the record about ourselves: every port says the same (bit 0), persistent connections are supported (bit 1).
const EFLAGS_CURRENT: u16 = 0b11;

/// The log and its generation.
#[derive(Debug, Default)]
pub struct DiscoveryLog {
    entries: Vec<DiscoveryEntry>,
    generation: u64,
}

impl DiscoveryLog {
    /// Replaces the entries; whether that changed anything.
    pub fn set(&mut self, mut entries: Vec<DiscoveryEntry>) -> bool {
        entries.sort_by(|a, b| (&a.nqn, a.address).cmp(&(&b.nqn, b.address)));
        let changed = entries != self.entries;
        if changed {
            self.entries = entries;
            self.generation += 1;
        }
        changed
    }

    /// The page for `host`, who reached us at `local`.
    pub fn page(&self, host: &str, local: SocketAddr) -> Vec<u8> {
        let visible: Vec<&DiscoveryEntry> =
            self.entries.iter().filter(|e| e.visible_to(host)).collect();
        let mut p = Page::new(HEADER_BYTES + RECORD_BYTES * (visible.len() + 1));
        // RECFMT, at 16, is 0.
        p.u64(0, self.generation).u64(8, visible.len() as u64 + 1);
        record(
            &mut p,
            HEADER_BYTES,
            SUBTYPE_CURRENT_DISCOVERY,
            DISCOVERY_NQN,
            local,
        );
        p.u16(HEADER_BYTES + 10, EFLAGS_CURRENT);
        for (i, e) in visible.iter().enumerate() {
            record(
                &mut p,
                HEADER_BYTES + RECORD_BYTES * (i + 1),
                SUBTYPE_NVM,
                &e.nqn,
                reachable(e.address, local),
            );
        }
        p.done()
    }
}

impl DiscoveryEntry {
    fn visible_to(&self, host: &str) -> bool {
        self.allowed_hosts
            .as_ref()
            .is_none_or(|hosts| hosts.iter().any(|h| h == host))
    }
}

/// A listener on every address is reached where the host has reached us.
fn reachable(address: SocketAddr, local: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => SocketAddr::new(local.ip(), address.port()),
        false => address,
    }
}

fn record(p: &mut Page, at: usize, subtype: u8, nqn: &str, address: SocketAddr) {
    let ip = address.ip().to_canonical();
    let adrfam = if matches!(ip, IpAddr::V4(_)) { 1 } else { 2 };
    p.u8(at, TRTYPE_TCP)
        .u8(at + 1, adrfam)
        .u8(at + 2, subtype)
        .u8(at + 3, TREQ)
        .u16(at + 4, PORT_ID);
    p.u16(at + 6, CNTLID_DYNAMIC)
        .u16(at + 8, ADMIN_SQSIZE_MAX + 1);
    p.ascii(at + 32, 32, &address.port().to_string());
    p.bytes(at + 256, nqn.as_bytes());
    p.ascii(at + 512, 256, &ip.to_string());
    // TSAS at 768: SECTYPE 0, no security.
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(nqn: &str, address: &str, hosts: Option<&[&str]>) -> DiscoveryEntry {
        let allowed_hosts = hosts.map(|h| h.iter().map(|s| s.to_string()).collect());
        DiscoveryEntry {
            nqn: nqn.into(),
            address: address.parse().unwrap(),
            allowed_hosts,
        }
    }

    #[test]
    fn records() {
        let mut log = DiscoveryLog::default();
        let entries = vec![
            entry("nqn.b", "[::]:4420", None),
            entry("nqn.a", "10.0.0.9:4421", Some(&["nqn.h"])),
            entry("nqn.c", "1.2.3.4:1", Some(&[])),
        ];
        assert!(log.set(entries.clone()));
        assert!(!log.set(entries));
        let local = "[::ffff:127.0.0.1]:4420".parse().unwrap();
        let b = log.page("nqn.h", local);
        assert_eq!((b.len(), b[0], b[8], b[16]), (4096, 1, 3, 0));
        let own = &b[1024..2048];
        assert_eq!(own[..12], [3, 1, 3, 4, 1, 0, 0xff, 0xff, 128, 0, 3, 0]);
        assert!(own[256..].starts_with(DISCOVERY_NQN.as_bytes()));
        let a = &b[2048..3072];
        assert_eq!(a[..12], [3, 1, 2, 4, 1, 0, 0xff, 0xff, 128, 0, 0, 0]);
        assert_eq!(
            (&a[32..37], &a[256..262], &a[512..521]),
            (&b"4421 "[..], &b"nqn.a\0"[..], &b"10.0.0.9 "[..])
        );
        assert_eq!((a[768], a[767]), (0, b' '));
        assert_eq!(
            &b[3072 + 512..3072 + 522],
            b"127.0.0.1 ",
            "where the host reached us"
        );
        assert_eq!(
            log.page("nqn.other", local).len(),
            1024 * 3,
            "nqn.a is not for it"
        );
    }

    #[test]
    fn ipv6() {
        let mut log = DiscoveryLog::default();
        log.set(vec![entry("nqn.b", "[::1]:4420", None)]);
        let b = log.page("nqn.h", "[::1]:4420".parse().unwrap());
        assert_eq!((b[2049], &b[2048 + 512..2048 + 516]), (2, &b"::1 "[..]));
    }
}
