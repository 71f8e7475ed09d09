//! Changes of the export: what an Export command says replaces what is there, and hosts learn what changed.

use super::view::Held;
use super::{MAX_CNTLID, MAX_NSID, Subsystem};
use crate::nvmf::reservation::Ledger;
use crate::nvmf::seam::{ExportConfig, ExportError, NamespaceConfig, Nanos};
use std::collections::BTreeMap;

impl Subsystem {
    /// Takes a new configuration. Hosts that are no longer allowed are disconnected; the others are told of namespaces that came, went
    /// or changed, and of a change of access, once every reactor serves by the new view.
    pub fn update(&mut self, config: ExportConfig, now: Nanos) -> Result<(), ExportError> {
        check(&config)?;
        // The ledger of a namespace that stays is newer than what the KVDB says.
        let (staying, coming): (Vec<_>, Vec<_>) =
            config.namespaces.iter().partition(|n| self.has(n));
        let stored: Vec<(u32, Vec<u8>)> = staying
            .iter()
            .map(|n| (n.nsid, n.reservation.clone()))
            .collect();
        let mut restored = BTreeMap::new();
        for n in coming {
            restored.insert(n.nsid, restore(n)?);
        }
        let gone: Vec<u32> = self.ledgers.keys().copied().collect();
        let gone = gone
            .into_iter()
            .filter(|id| stored.iter().all(|(n, _)| n != id));
        for nsid in gone {
            self.drop_ledger(nsid);
        }
        let before = std::mem::replace(&mut self.config, config);
        let changed = changed_namespaces(&before.namespaces, &self.config.namespaces);
        let access = before.ana_state != self.config.ana_state;
        self.ledgers.extend(restored);
        if access || !changed.is_empty() {
            self.ana_changes += 1;
            self.publish(BTreeMap::new());
            self.hold(Held::Changed {
                namespaces: changed,
                access,
            });
        }
        for (nsid, bytes) in stored {
            self.reconcile_reservation(nsid, &bytes, now);
        }
        self.disconnect_the_disallowed();
        Ok(())
    }

    fn disconnect_the_disallowed(&mut self) {
        let gone: Vec<u16> = self
            .controllers
            .values()
            .filter(|c| !self.allows(&c.host_nqn))
            .map(|c| c.cntlid)
            .collect();
        gone.into_iter().for_each(|id| self.close(id));
    }

    /// The same volume is exported by this namespace id now.
    fn has(&self, n: &NamespaceConfig) -> bool {
        self.namespace(n.nsid)
            .is_some_and(|now| now.volume == n.volume)
    }

    /// The ledger of a namespace that leaves; commands that wait in it are answered as for a namespace that is not there.
    fn drop_ledger(&mut self, nsid: u32) {
        let ledger = self.ledgers.remove(&nsid).expect("listed by the caller");
        self.abandon(nsid, ledger);
    }
}

/// The ledger of a namespace, from the bytes that the KVDB has.
pub(super) fn restore(n: &NamespaceConfig) -> Result<Ledger, ExportError> {
    Ledger::restore(&n.reservation).map_err(|e| ExportError::Reservation {
        nsid: n.nsid,
        reason: e.to_string(),
    })
}

/// What every configuration must be.
pub(super) fn check(config: &ExportConfig) -> Result<(), ExportError> {
    let (min, max) = (config.cntlid_min, config.cntlid_max);
    if min == 0 || min > max || max > MAX_CNTLID {
        return Err(ExportError::ControllerIds(min, max));
    }
    let mut last = 0;
    for n in &config.namespaces {
        if n.nsid <= last || n.nsid > MAX_NSID {
            return Err(ExportError::Namespace(n.nsid));
        }
        last = n.nsid;
    }
    Ok(())
}

/// Namespaces that are only in one list, or differ in what hosts see.
fn changed_namespaces(before: &[NamespaceConfig], after: &[NamespaceConfig]) -> Vec<u32> {
    let seen = |list: &[NamespaceConfig]| -> BTreeMap<u32, NamespaceConfig> {
        list.iter()
            .map(|n| {
                (
                    n.nsid,
                    NamespaceConfig {
                        reservation: Vec::new(),
                        ..n.clone()
                    },
                )
            })
            .collect()
    };
    let (before, after) = (seen(before), seen(after));
    let mut ids: Vec<u32> = before.keys().chain(after.keys()).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| before.get(id) != after.get(id));
    ids
}
