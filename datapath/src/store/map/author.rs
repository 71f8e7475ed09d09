//! Writing new pages of a tree: nothing is ever changed in place.

use std::rc::Rc;

use super::super::types::{CatalogueHandle, Crc, Generation};
use super::interior::{Beneath, ChildEntry};
use super::page::{Page, PageHeader, PageId};
use super::{MapError, Pages};

/// Who writes pages, and at which generation.
#[derive(Debug)]
pub(super) struct Author<'a, P> {
    pub pages: &'a P,
    pub handle: CatalogueHandle,
    pub generation: Generation,
}

impl<P: Pages> Author<'_, P> {
    /// Writes a page with this body to a new block; the answer is what its parent says of it.
    pub async fn write(
        &self,
        what: PageId,
        mut page: Rc<Page>,
        beneath: Beneath,
    ) -> Result<ChildEntry, MapError> {
        let stamp = self.pages.stamp();
        let header = PageHeader {
            kind: what.kind,
            level: what.level,
            entries: beneath.entries,
            index: what.index,
            handle: self.handle,
            generation: self.generation,
            checkpoint: stamp.checkpoint,
            drive: stamp.drive,
        };
        header.encode(Rc::make_mut(&mut page));
        let entry = ChildEntry {
            block: self.pages.allocate().await?,
            crc: Crc::of(&page[..]),
            generation: self.generation,
            used: beneath.used,
            highest: beneath.highest,
            summary: beneath.summary,
        };
        self.pages.write(entry.block, page).await?;
        Ok(entry)
    }
}
