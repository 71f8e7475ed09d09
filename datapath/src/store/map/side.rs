//! Two trees walked side by side, page by page at the same level and index. Trees may differ in depth: the lower one's root is then beneath
//! pages that do not exist, always as child 0.

use std::rc::Rc;

use super::interior::{ChildEntry, child};
use super::page::Page;
use super::{MapError, Pages, Root};

/// What one of the trees has at a place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// Nothing, and nothing beneath.
    Nothing,
    /// No page, but its root beneath.
    AboveRoot,
    /// A page.
    Page(ChildEntry),
}

impl Side {
    /// What a tree has as page 0 of a level.
    pub async fn top<P: Pages>(
        pages: &P,
        root: Option<&Root>,
        level: u8,
    ) -> Result<Self, MapError> {
        let Some(root) = root.filter(|r| !r.is_empty()) else {
            return Ok(Self::Nothing);
        };
        if root.depth < level {
            return Ok(Self::AboveRoot);
        }
        let mut side = Self::Page(root.child);
        for above in (level + 1..=root.depth).rev() {
            let page = side.read(pages, Some(root), above, 0).await?;
            side = side.below(Some(root), page.as_ref(), above, 0);
        }
        Ok(side)
    }

    /// The page, if there is one.
    pub async fn read<P: Pages>(
        &self,
        pages: &P,
        root: Option<&Root>,
        level: u8,
        index: u64,
    ) -> Result<Option<Rc<Page>>, MapError> {
        match (self, root) {
            (Self::Page(entry), Some(root)) => {
                let what = root.page(level, index);
                Ok(Some(pages.read(entry.block, entry.crc, what).await?))
            }
            _ => Ok(None),
        }
    }

    /// Child `n` of what is here at `level`; `page` is as [`Side::read`] gave it.
    pub fn below(&self, root: Option<&Root>, page: Option<&Rc<Page>>, level: u8, n: u64) -> Self {
        match (self, root, page) {
            (Self::AboveRoot, Some(root), _) if n == 0 => {
                if level - 1 == root.depth {
                    Self::Page(root.child)
                } else {
                    Self::AboveRoot
                }
            }
            (Self::Page(_), _, Some(page)) => {
                let below = child(page, n).present();
                below.map_or(Self::Nothing, Self::Page)
            }
            _ => Self::Nothing,
        }
    }

    /// The entry, if there is a page.
    pub fn entry(&self) -> Option<&ChildEntry> {
        match self {
            Self::Page(entry) => Some(entry),
            _ => None,
        }
    }

    /// Whether both have the same page: then everything beneath is shared. What is lost is the same as nothing else.
    pub fn is_shared(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Page(a), Self::Page(b)) => a.block == b.block && !a.is_lost(),
            (Self::Nothing, Self::Nothing) => true,
            _ => false,
        }
    }
}
