//! The Get Log Page command (NVMe Base 2.1, 5.1.12): the pages, the part that is asked for, and what reading one clears.

use super::effects;
use super::features;
use super::identify_controller::volatile_cache;
use super::page::Page;
use crate::nvmf::ana;
use crate::nvmf::controller::events::EventKind;
use crate::nvmf::controller::{Controller, Role, status};
use crate::nvmf::seam::{MAX_TRANSFER_BYTES, Nanos, StatusField};
use crate::nvmf::subsystem::Subsystem;
use keelblock_nvme::Sqe;

/// Log page identifiers.
mod lid {
    pub const SUPPORTED: u8 = 0x00;
    pub const ERRORS: u8 = 0x01;
    pub const HEALTH: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const COMMANDS: u8 = 0x05;
    pub const ANA: u8 = 0x0c;
    pub const FEATURES: u8 = 0x12;
    pub const MANAGEMENT_COMMANDS: u8 = 0x13;
    pub const DISCOVERY: u8 = 0x70;
    pub const RESERVATION: u8 = 0x80;
}

const PAGES_IO: [u8; 10] = [
    lid::SUPPORTED,
    lid::ERRORS,
    lid::HEALTH,
    lid::FIRMWARE,
    lid::CHANGED_NAMESPACES,
    lid::COMMANDS,
    lid::ANA,
    lid::FEATURES,
    lid::MANAGEMENT_COMMANDS,
    lid::RESERVATION,
];
const PAGES_DISCOVERY: [u8; 3] = [lid::SUPPORTED, lid::ERRORS, lid::DISCOVERY];

/// CDW10 bit 15: do not clear the event.
const RETAIN_EVENT: u32 = 1 << 15;
/// CDW14 bit 23: the offset counts entries, which no page of ours has.
const OFFSET_IS_INDEX: u32 = 1 << 23;
/// LSP bit 0 of the ANA page: groups only.
const ANA_GROUPS_ONLY: u32 = 1;
const NSID_ALL: u32 = u32::MAX;

impl Subsystem {
    /// The part of a page that `sqe` asks for; clears what reading clears.
    pub(super) fn get_log_page(
        &mut self,
        cntlid: u16,
        sqe: &Sqe,
        now: Nanos,
    ) -> Result<Vec<u8>, StatusField> {
        let (offset, bytes) = window(sqe)?;
        let page = self.log_page(&self.controllers[&cntlid], sqe, now)?;
        if offset > page.len() as u64 {
            return Err(status::INVALID_FIELD);
        }
        let mut part = page[offset as usize..].to_vec();
        part.resize(bytes, 0);
        if sqe.cdw(10) & RETAIN_EVENT == 0 {
            self.log_was_read(cntlid, sqe.cdw(10) as u8);
        }
        Ok(part)
    }

    fn log_page(&self, c: &Controller, sqe: &Sqe, now: Nanos) -> Result<Vec<u8>, StatusField> {
        let (lid, lsp) = (sqe.cdw(10) as u8, sqe.cdw(10) >> 8 & 0x7f);
        if !pages(c.role).contains(&lid) {
            return Err(status::INVALID_LOG_PAGE);
        }
        Ok(match lid {
            lid::SUPPORTED => supported(c.role),
            lid::ERRORS => c.errors.page(),
            // LPA says that there is no health log per namespace.
            lid::HEALTH if !matches!(sqe.nsid(), 0 | NSID_ALL) => {
                return Err(status::INVALID_FIELD);
            }
            lid::HEALTH => self.health(c, now),
            lid::FIRMWARE => self.firmware(),
            lid::CHANGED_NAMESPACES => c.changed.page(),
            lid::COMMANDS if sqe.cdw(14) >> 24 != 0 => return Err(status::INVALID_FIELD),
            lid::COMMANDS => effects::page(),
            lid::ANA => {
                let ids: Vec<u32> = self.config().namespaces.iter().map(|n| n.nsid).collect();
                ana::log_page(
                    self.config().ana_state,
                    self.ana_changes,
                    &ids,
                    lsp & ANA_GROUPS_ONLY != 0,
                )
            }
            lid::FEATURES => features::effects_page(c.role, volatile_cache(self.config())),
            // There is no management interface, so none of its commands.
            lid::MANAGEMENT_COMMANDS => vec![0; 4096],
            lid::DISCOVERY => self.discovery_log.page(&c.host_nqn, c.local),
            lid::RESERVATION => c.notices.page().to_vec(),
            _ => unreachable!("listed and not made"),
        })
    }

    fn log_was_read(&mut self, cntlid: u16, lid: u8) {
        let c = self.controller(cntlid);
        let kind = match lid {
            lid::CHANGED_NAMESPACES => EventKind::NamespaceAttributes,
            lid::ANA => EventKind::AnaChange,
            lid::DISCOVERY => EventKind::DiscoveryLog,
            lid::RESERVATION => EventKind::ReservationLog,
            _ => return,
        };
        c.events.log_read(kind);
        match kind {
            EventKind::NamespaceAttributes => c.changed.clear(),
            // Another page waits behind the one that was read: that is an event again.
            EventKind::ReservationLog if c.notices.advance() => self.raise(cntlid, kind),
            _ => {}
        }
    }

    /// Page 02h. There are no sensors (temperature 0 K), and nothing wears.
    fn health(&self, c: &Controller, now: Nanos) -> Vec<u8> {
        const NS_PER_HOUR: u128 = 3_600_000_000_000;
        let io = &self.counters;
        // A data unit is 1000 times 512 bytes, rounded up.
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000));
        let mut p = Page::new(512);
        p.u8(3, 100).u8(4, 10);
        p.u128(32, units(io.read_bytes))
            .u128(48, units(io.write_bytes));
        p.u128(64, io.reads.into()).u128(80, io.writes.into());
        p.u128(112, 1).u128(
            128,
            u128::from(now.saturating_sub(self.started)) / NS_PER_HOUR,
        );
        p.u128(160, io.media_errors.into())
            .u128(176, c.errors.count().into());
        p.done()
    }

    /// Page 03h: slot 1 is the one that runs.
    fn firmware(&self) -> Vec<u8> {
        let mut p = Page::new(512);
        p.u8(0, 1).ascii(8, 8, &self.node.firmware);
        p.done()
    }
}

fn pages(role: Role) -> &'static [u8] {
    match role {
        Role::Io => &PAGES_IO,
        Role::Discovery => &PAGES_DISCOVERY,
    }
}

/// Page 00h.
fn supported(role: Role) -> Vec<u8> {
    let mut p = Page::new(1024);
    for lid in pages(role) {
        p.u32(4 * usize::from(*lid), 1);
    }
    p.done()
}

/// Offset and length, in bytes.
fn window(sqe: &Sqe) -> Result<(u64, usize), StatusField> {
    let dwords = u64::from(sqe.cdw(10) >> 16) | u64::from(sqe.cdw(11) & 0xffff) << 16;
    let bytes = (dwords + 1) * 4;
    let offset = u64::from(sqe.cdw(12)) | u64::from(sqe.cdw(13)) << 32;
    if offset % 4 != 0 || sqe.cdw(14) & OFFSET_IS_INDEX != 0 {
        return Err(status::INVALID_FIELD);
    }
    if bytes > u64::from(sqe.sgl().length()) {
        return Err(status::SGL_LENGTH);
    }
    if bytes > MAX_TRANSFER_BYTES as u64 {
        return Err(status::INVALID_FIELD);
    }
    Ok((offset, bytes as usize))
}
