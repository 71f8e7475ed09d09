//! How the map reaches the drive: the engine's side of it.

use std::rc::Rc;

use super::super::types::{Crc, PhysicalBlock};
use super::MapError;
use super::page::{Page, PageId, PageStamp};

/// A drive's pages.
#[allow(async_fn_in_trait)]
pub trait Pages {
    /// A page, its CRC and header verified; from the cache if it is there. [`MapError::Lost`] for [`super::interior::LOST_BLOCK`].
    async fn read(&self, at: PhysicalBlock, crc: Crc, what: PageId) -> Result<Rc<Page>, MapError>;

    /// Only from the cache; for readers that must not wait.
    fn cached(&self, at: PhysicalBlock) -> Option<Rc<Page>>;

    /// Many at once, concurrently; in the order in which they were asked for, each as [`Pages::read`] answers.
    async fn read_each(
        &self,
        wanted: &[(PhysicalBlock, Crc, PageId)],
    ) -> Vec<Result<Rc<Page>, MapError>>;

    /// The same, all or none.
    async fn read_many(
        &self,
        wanted: &[(PhysicalBlock, Crc, PageId)],
    ) -> Result<Vec<Rc<Page>>, MapError> {
        self.read_each(wanted).await.into_iter().collect()
    }

    /// A damaged page is given up by who changes or deletes a map: what it led to is lost (`docs/store-format.md` §15).
    ///
    /// # Errors
    /// The same error, if it is no damage, or the last of too many.
    fn give_up_page(&self, what: PageId, error: MapError) -> Result<(), MapError>;

    /// Space for a new page.
    ///
    /// # Errors
    /// [`MapError::NoSpace`].
    async fn allocate(&self) -> Result<PhysicalBlock, MapError>;

    /// Writes a new page (waits for room only); the tree does not wait for it to be on the drive.
    async fn write(&self, at: PhysicalBlock, page: Rc<Page>) -> Result<(), MapError>;

    /// A data block that an entry now refers to: it was held by the delta.
    fn merged(&self, block: PhysicalBlock);

    /// A data block that the new state no longer refers to.
    fn free(&self, block: PhysicalBlock);

    /// The same of a page.
    fn free_page(&self, block: PhysicalBlock);

    /// Lets others run; called at least every 100 µs or so of work.
    async fn breathe(&self);

    /// What headers of new pages get.
    fn stamp(&self) -> PageStamp;
}
