//! Commands of hosts on other nodes that are done here, where their volume is coordinated: a reservation that fences a host waits for its commands, whichever way
//! they came (`docs/replication.md` §14).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::seam::HostId;
use crate::reactor::Notify;

#[derive(Default)]
struct Inner {
    running: RefCell<BTreeMap<(Arc<str>, HostId), usize>>,
    ended: Notify,
}

/// Those of a reactor. Cheap to clone.
#[derive(Clone, Default)]
pub struct Foreign(Rc<Inner>);

/// One that runs.
pub struct Running {
    of: Foreign,
    key: (Arc<str>, HostId),
}

impl Foreign {
    /// One begins.
    pub fn begin(&self, nqn: &Arc<str>, host: HostId) -> Running {
        let key = (nqn.clone(), host);
        let mut running = self.0.running.borrow_mut();
        *running.entry(key.clone()).or_default() += 1;
        Running {
            of: self.clone(),
            key,
        }
    }

    /// Waits until none of these hosts runs.
    pub async fn drained(&self, nqn: &str, hosts: &[HostId]) {
        let runs = || {
            let running = self.0.running.borrow();
            running
                .keys()
                .any(|(n, h)| **n == *nqn && hosts.contains(h))
        };
        while runs() {
            self.0.ended.notified().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.of.0.running.borrow_mut();
        if let Some(count) = running.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.key);
            }
        }
        self.of.0.ended.notify_all();
    }
}
