//! The Identify command: which structure a CNS asks for, and whether the command may (NVMe Base 2.1, 5.1.13).

use super::{identify_controller as controller, identify_namespace as namespace};
use crate::nvmf::controller::{Controller, Role, status};
use crate::nvmf::seam::{NamespaceConfig, StatusField};
use crate::nvmf::subsystem::{MAX_NSID, Subsystem};
use keelblock_nvme::Sqe;

/// Every structure is this long.
const IDENTIFY_BYTES: usize = 4096;
/// CNTID that means this controller.
const THIS_CONTROLLER: u16 = 0xffff;
/// The first NSID that is not one.
const NSID_LIMIT: u32 = 0xffff_fffe;
const CSI_NVM: u8 = 0;

impl Subsystem {
    /// The data that `sqe` asks for.
    pub(super) fn identify(&self, c: &Controller, sqe: &Sqe) -> Result<Vec<u8>, StatusField> {
        let (cns, cntid, csi) = (
            sqe.cdw(10) as u8,
            (sqe.cdw(10) >> 16) as u16,
            (sqe.cdw(11) >> 24) as u8,
        );
        if c.role == Role::Discovery && cns != 0x01 {
            return Err(status::INVALID_FIELD);
        }
        if (sqe.sgl().length() as usize) < IDENTIFY_BYTES {
            return Err(status::SGL_LENGTH);
        }
        let nsid = sqe.nsid();
        match cns {
            0x00 | 0x11 => self.identify_namespace(nsid, namespace::namespace),
            0x01 => Ok(controller::controller(c, self.config(), &self.node)),
            0x02 | 0x10 => self.namespace_list(nsid),
            0x03 => Ok(namespace::descriptors(self.active(nsid)?)),
            0x05..=0x07 if csi != CSI_NVM => Err(status::INVALID_FIELD),
            0x05 => self.identify_namespace(nsid, |_| namespace::nvm_namespace()),
            0x06 => Ok(controller::nvm_limits(self.config())),
            0x07 => self.namespace_list(nsid),
            0x08 => {
                let cache = controller::volatile_cache(self.config());
                self.identify_namespace(nsid, |n| namespace::independent(n, cache))
            }
            0x12 => self.active(nsid).map(|_| self.controller_list(cntid)),
            0x13 => Ok(self.controller_list(cntid)),
            0x1c => self.command_sets(c, cntid),
            _ => Err(status::INVALID_FIELD),
        }
    }

    /// The namespace, which must be there.
    pub(super) fn active(&self, nsid: u32) -> Result<&NamespaceConfig, StatusField> {
        self.namespace(nsid).ok_or(status::INVALID_NAMESPACE)
    }

    /// A structure of a namespace; zeroes for one that could be there and is not.
    fn identify_namespace(
        &self,
        nsid: u32,
        structure: impl Fn(&NamespaceConfig) -> Vec<u8>,
    ) -> Result<Vec<u8>, StatusField> {
        match self.namespace(nsid) {
            Some(n) => Ok(structure(n)),
            None if (1..=MAX_NSID).contains(&nsid) => Ok(vec![0; IDENTIFY_BYTES]),
            None => Err(status::INVALID_NAMESPACE),
        }
    }

    /// Active namespaces above `after`.
    fn namespace_list(&self, after: u32) -> Result<Vec<u8>, StatusField> {
        if after >= NSID_LIMIT {
            return Err(status::INVALID_NAMESPACE);
        }
        let ids = self
            .config()
            .namespaces
            .iter()
            .map(|n| n.nsid)
            .filter(|n| *n > after);
        let mut b: Vec<u8> = ids
            .take(IDENTIFY_BYTES / 4)
            .flat_map(u32::to_le_bytes)
            .collect();
        b.resize(IDENTIFY_BYTES, 0);
        Ok(b)
    }

    /// Controllers from `first` on: a count, then that many identifiers.
    fn controller_list(&self, first: u16) -> Vec<u8> {
        let ids: Vec<u16> = self
            .controllers
            .range(first..)
            .map(|(id, _)| *id)
            .take(IDENTIFY_BYTES / 2 - 1)
            .collect();
        let mut b: Vec<u8> = std::iter::once(ids.len() as u16)
            .chain(ids)
            .flat_map(u16::to_le_bytes)
            .collect();
        b.resize(IDENTIFY_BYTES, 0);
        b
    }

    /// Combination 0: the NVM command set alone.
    fn command_sets(&self, c: &Controller, cntid: u16) -> Result<Vec<u8>, StatusField> {
        if cntid != THIS_CONTROLLER && cntid != c.cntlid && !self.controllers.contains_key(&cntid) {
            return Err(status::INVALID_FIELD);
        }
        let mut b = vec![0; IDENTIFY_BYTES];
        b[0] = 1 << CSI_NVM;
        Ok(b)
    }
}
