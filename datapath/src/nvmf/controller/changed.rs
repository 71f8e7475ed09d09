//! Which namespaces changed since the host last asked: log page 04h (NVMe Base 2.1, 5.1.12.1.5).

use std::collections::BTreeSet;

/// Identifiers on the page; with more changes the page says FFFFFFFFh alone.
const MAX_LISTED: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct ChangedNamespaces(BTreeSet<u32>);

impl ChangedNamespaces {
    /// `nsid` came, went or changed.
    pub fn add(&mut self, nsid: u32) {
        if self.0.len() <= MAX_LISTED {
            self.0.insert(nsid);
        }
    }

    /// The page.
    pub fn page(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(4 * MAX_LISTED);
        if self.0.len() > MAX_LISTED {
            b.extend_from_slice(&u32::MAX.to_le_bytes());
        } else {
            b.extend(self.0.iter().flat_map(|nsid| nsid.to_le_bytes()));
        }
        b.resize(4 * MAX_LISTED, 0);
        b
    }

    /// The host has read it.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_once_each_and_overflow() {
        let mut c = ChangedNamespaces::default();
        [7, 3, 7].into_iter().for_each(|n| c.add(n));
        let b = c.page();
        assert_eq!(
            (&b[..12], b.len()),
            (&[3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0][..], 4096)
        );
        (0..2000).for_each(|n| c.add(n));
        assert_eq!(c.page()[..8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        c.clear();
        assert_eq!(c.page(), vec![0; 4096]);
    }
}
