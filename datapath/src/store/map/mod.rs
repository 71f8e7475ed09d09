//! The map (`docs/store-format.md` §6 and 7): pages of a lane's radix tree, and the catalogue of lanes and snapshots.
//!
//! - [`page`]: the header of every page, and [`check_page`]; [`mod@leaf`], [`interior`], [`catalogue`]: what is in pages.
//! - [`Pages`]: how all this reaches the drive. [`Root`] with [`leaf()`] and [`leaf_cached`]: looking up.
//! - [`merge()`]: [`Changes`] into a root, copy-on-write, freeing what the [`MergeContext`] says is its own.
//! - [`give_up`]: a step of a deletion; [`count_unique`]: what nothing else refers to; [`next_entries`]: leaf by leaf, for scrub.
//! - [`used_with`]: data blocks of a map with layers of the delta over it.
//! - [`diff()`]: ranges in which two roots differ.
//! - [`write_catalogue`], [`read_catalogue`]: the catalogue's own tree.

mod ahead;
mod author;
mod bytes;
pub mod catalogue;
mod catalogue_tree;
mod changes;
#[cfg(test)]
mod damage_tests;
mod diff;
mod error;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod family_tests;
pub mod interior;
pub mod leaf;
mod merge;
#[cfg(test)]
mod merge_tests;
pub mod page;
mod pages;
mod side;
mod tree;
mod used;
#[cfg(test)]
mod used_tests;
mod walk;

pub use catalogue::{CATALOGUE_LEAF_RECORDS, CatalogueRecord, PUT_BYTES, RecordError, RecordKind};
pub use catalogue_tree::{CatalogueLeaf, read_catalogue, write_catalogue};
pub use changes::Changes;
pub use diff::{DiffRange, diff};
pub use error::MapError;
pub use interior::{ChildEntry, LOST_BLOCK};
pub use leaf::{EntryKind, LeafEntry, LeafShape, block_of, leaf_of};
pub use merge::{MergeContext, merge};
pub use page::{Page, PageError, PageHeader, PageId, PageKind, PageStamp, check_page};
pub use pages::Pages;
pub use tree::{Root, leaf, leaf_cached, summary};
pub use used::used_with;
pub use walk::{GivenUp, Unique, count_unique, give_up, next_entries};
