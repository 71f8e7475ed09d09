//! Merging a layer of the delta into a map (`docs/store-format.md` §7 and 10), copy-on-write.
//!
//! Only pages on the paths to what changed are written again, each at most once. What is replaced is freed if it is the tree's *own*: written
//! or inserted at a generation above the one that its parent closed. Everything else is referred to by the parent too, and stays (S3).
//! A page that is damaged is replaced by one that says of what is beneath that it is lost (§15); what it led to is not freed.
//! Erased subtrees are walked for what is own in them, and dropped. A page that nothing is left of is dropped; so is an empty root.
//!
//! The work is done for one interior page of level 1 at a time: its leaves are read together, so memory holds at most 64 of them and the
//! path above. Where changes are far apart, whole subtrees are read before ([`Ahead`]).

use std::pin::Pin;
use std::rc::Rc;

use super::super::types::{CatalogueHandle, Crc, Generation, LaneBlock, PhysicalBlock};
use super::ahead::Ahead;
use super::author::Author;
use super::changes::Touch;
use super::interior::{
    self, ChildEntry, DEPTH_MAX, FANOUT, child, leaves_of_level, leaves_of_page, set_child,
};
use super::leaf::{LeafEntry, LeafShape};
use super::page::{Page, PageId, blank};
use super::{Changes, MapError, Pages, Root};

/// Leaves that are merged before others may run.
const LEAVES_AT_ONCE: u64 = 16;

/// A step of the recursion over a tree.
pub(super) type Step<'a, T> = Pin<Box<dyn Future<Output = Result<T, MapError>> + 'a>>;

/// For whom a merge is.
#[derive(Clone, Copy)]
pub struct MergeContext<'a> {
    /// Of the lane: goes to the headers of pages.
    pub handle: CatalogueHandle,
    /// Of the layer: goes to new pages.
    pub generation: Generation,
    /// What is above this generation is the tree's own; asked with the last leaf beneath a page, or the leaf of an entry. It does not fall
    /// as leaves rise: a parent that is being deleted has given up what is below its `walked`.
    pub own: &'a dyn Fn(u64) -> Generation,
}

impl std::fmt::Debug for MergeContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            handle, generation, ..
        } = self;
        write!(f, "MergeContext({handle:?}, {generation:?})")
    }
}

/// Brings changes into a map; the answer is its new root. Blocks of entries that the map has already, unchanged, are neither merged nor freed.
///
/// # Errors
/// [`MapError`]. Then some of the work is done, and the drive's space is not what its roots say: the checkpoint must be given up.
pub async fn merge<P: Pages, C: Changes>(
    pages: &P,
    root: &Root,
    changes: &C,
    context: &MergeContext<'_>,
) -> Result<Root, MapError> {
    let mut depth = root.depth;
    while changes.next_leaf(leaves_of_level(depth)).is_some() {
        depth += 1;
        assert!(depth <= DEPTH_MAX, "a leaf that no lane has");
    }
    let mut merge = Merge {
        author: Author {
            pages,
            handle: context.handle,
            generation: context.generation,
        },
        changes,
        own: context.own,
        root: *root,
        ahead: Ahead::default(),
        base: root.child,
        shape: root.shape(),
    };
    if depth > root.depth && !root.is_empty() {
        merge.base = merge.whole_entry().await?;
    }
    let old = if depth == root.depth {
        root.child
    } else {
        ChildEntry::NONE
    };
    let new = if depth == 0 {
        merge.only_leaf(old).await?
    } else {
        merge.child(depth, 0, old).await?
    };
    // An unchanged root keeps what only its own pages know.
    Ok(Root::new(new, depth, root.sealed))
}

/// The old content of a leaf.
enum Before {
    /// There is none, or it does not matter.
    Nothing,
    Page(Rc<Page>),
    /// There is one, and nobody knows what.
    Lost,
}

struct Merge<'a, P, C> {
    author: Author<'a, P>,
    changes: &'a C,
    own: &'a dyn Fn(u64) -> Generation,
    root: Root,
    ahead: Ahead,
    /// The old root as a child entry, if the tree gets deeper.
    base: ChildEntry,
    shape: LeafShape,
}

impl<P: Pages, C: Changes> Merge<'_, P, C> {
    fn pages(&self) -> &P {
        self.author.pages
    }

    /// Whether something of a generation, with this last leaf beneath it, is the tree's own.
    fn is_own(&self, generation: Generation, last_leaf: u64) -> bool {
        #[cfg(planted)]
        if super::super::planted::is(super::super::planted::Bug::FreeShared) {
            return true;
        }
        generation > (self.own)(last_leaf)
    }

    /// The old root with stamp and summary, which roots do not keep.
    async fn whole_entry(&self) -> Result<ChildEntry, MapError> {
        let page = self.read(self.root.depth, 0, &self.root.child).await?;
        let Some(page) = page else {
            self.retire(self.root.depth, 0, &self.root.child);
            return Ok(ChildEntry::LOST);
        };
        let beneath = if self.root.depth == 0 {
            self.shape.beneath(&page, 0)
        } else {
            interior::beneath(&page)
        };
        Ok(ChildEntry {
            highest: beneath.highest,
            summary: beneath.summary,
            ..self.root.child
        })
    }

    /// A page of the old tree; `None`: it is damaged or lost.
    async fn read(
        &self,
        level: u8,
        index: u64,
        entry: &ChildEntry,
    ) -> Result<Option<Rc<Page>>, MapError> {
        if let Some(page) = self.ahead.take(entry.block) {
            return Ok(Some(page));
        }
        let what = self.root.page(level, index);
        let read = self.pages().read(entry.block, entry.crc, what).await;
        self.or_lost(what, read)
    }

    /// Reads ahead what the merge of a subtree will read, if that is worth while; whether it did.
    async fn read_ahead(&self, level: u8, index: u64, old: &ChildEntry) -> bool {
        if level < 2 || old.is_none() || old.is_lost() {
            return false;
        }
        let (first, last) = leaves_of_page(level, index);
        let Some(leaves) = self.ahead.leaves(self.changes, first, last) else {
            return false;
        };
        let wanted = |leaf: u64, old: &ChildEntry| self.must_read(leaf, old);
        let top = (level, index, old);
        let fetch = self
            .ahead
            .fetch(self.pages(), &self.root, top, &leaves, wanted);
        fetch.await;
        true
    }

    fn or_lost(
        &self,
        what: PageId,
        read: Result<Rc<Page>, MapError>,
    ) -> Result<Option<Rc<Page>>, MapError> {
        match read {
            Ok(page) => Ok(Some(page)),
            Err(MapError::Lost) => Ok(None),
            Err(e) => self.pages().give_up_page(what, e).map(|()| None),
        }
    }

    /// A page that does not exist yet and has the old root beneath: the tree gets deeper.
    fn is_above_root(&self, level: u8, index: u64) -> bool {
        !self.root.is_empty() && level > self.root.depth && index == 0
    }

    fn touch(&self) -> Touch<'_, C> {
        Touch {
            changes: self.changes,
            shape: self.shape,
        }
    }

    /// See [`Touch::is_erased`].
    fn is_erased(&self, first: u64, last: u64) -> bool {
        self.touch().is_erased(first, last)
    }

    /// A subtree with its changes.
    async fn child(
        &self,
        level: u8,
        index: u64,
        mut old: ChildEntry,
    ) -> Result<ChildEntry, MapError> {
        if !self.is_above_root(level, index) {
            let (first, last) = leaves_of_page(level, index);
            if !old.is_none() && self.is_erased(first, last) {
                self.give_back(level, index, old).await?;
                old = ChildEntry::NONE;
            }
            let next = self.changes.next_leaf(first);
            if old.is_none() && next.is_none_or(|leaf| leaf > last) {
                return Ok(old);
            }
        }
        self.interior(level, index, old).await
    }

    /// An interior page with its changes.
    fn interior(&self, level: u8, index: u64, old: ChildEntry) -> Step<'_, ChildEntry> {
        Box::pin(async move {
            let ahead = self.read_ahead(level, index, &old).await;
            let mut touched = self.touch().touched(level, index);
            let mut page = blank();
            let mut changed = old.is_none();
            if !old.is_none() {
                let read = self.read(level, index, &old).await?;
                changed |= read.is_none() && !old.is_lost();
                page = read.unwrap_or_else(interior::all_lost);
            } else if self.is_above_root(level, index) {
                if level - 1 == self.root.depth {
                    set_child(Rc::make_mut(&mut page), 0, &self.base);
                } else {
                    touched |= 1;
                }
            }
            if level == 1 {
                changed |= self.leaves(index, &mut page, touched).await?;
            } else {
                for n in bits(touched) {
                    let before = child(&page, n);
                    let after = self.child(level - 1, index * FANOUT + n, before).await?;
                    if after != before {
                        set_child(Rc::make_mut(&mut page), n, &after);
                        changed = true;
                    }
                }
            }
            if ahead {
                self.ahead.end();
            }
            self.pages().breathe().await;
            if !changed {
                return Ok(old);
            }
            self.retire(level, index, &old);
            let beneath = interior::beneath(&page);
            if beneath.entries == 0 {
                return Ok(ChildEntry::NONE);
            }
            let what = self.root.page(level, index);
            self.author.write(what, page, beneath).await
        })
    }

    /// The touched leaves of a page of level 1; the answer is whether any changed.
    async fn leaves(
        &self,
        index: u64,
        page: &mut Rc<Page>,
        touched: u64,
    ) -> Result<bool, MapError> {
        let mut wanted: Vec<(PhysicalBlock, Crc, PageId)> = Vec::new();
        let mut here = Vec::new();
        for n in bits(touched) {
            let (leaf, old) = (index * FANOUT + n, child(page, n));
            if !self.must_read(leaf, &old) {
                continue;
            }
            let ahead = self.ahead.take(old.block);
            if ahead.is_none() {
                wanted.push((old.block, old.crc, self.root.page(0, leaf)));
            }
            here.push(ahead);
        }
        let mut read = self.pages().read_each(&wanted).await.into_iter();
        let mut here = here.into_iter();
        let mut changed = false;
        let mut since = 0;
        for n in bits(touched) {
            let (leaf, old) = (index * FANOUT + n, child(page, n));
            let before = match self.must_read(leaf, &old) {
                true => match here.next().expect("one for each") {
                    Some(page) => Some(Ok(page)),
                    None => Some(read.next().expect("one for each")),
                },
                false => None,
            };
            let before = self.before(leaf, before)?;
            let new = self.leaf(leaf, old, before).await?;
            if new != old {
                set_child(Rc::make_mut(page), n, &new);
                changed = true;
            }
            since += 1;
            if since % LEAVES_AT_ONCE == 0 {
                self.pages().breathe().await;
            }
        }
        Ok(changed)
    }

    /// A tree of one leaf.
    async fn only_leaf(&self, old: ChildEntry) -> Result<ChildEntry, MapError> {
        let before = if self.must_read(0, &old) {
            let what = self.root.page(0, 0);
            Some(self.pages().read(old.block, old.crc, what).await)
        } else {
            None
        };
        let before = self.before(0, before)?;
        self.leaf(0, old, before).await
    }

    /// Whether a leaf's old content matters: not if it was erased, and is the parent's.
    fn must_read(&self, leaf: u64, old: &ChildEntry) -> bool {
        !old.is_none() && (self.is_own(old.generation, leaf) || !self.is_erased(leaf, leaf))
    }

    /// The old content of a leaf, if it was read.
    fn before(
        &self,
        leaf: u64,
        read: Option<Result<Rc<Page>, MapError>>,
    ) -> Result<Before, MapError> {
        let Some(read) = read else {
            return Ok(Before::Nothing);
        };
        let page = self.or_lost(self.root.page(0, leaf), read)?;
        Ok(page.map_or(Before::Lost, Before::Page))
    }

    /// A leaf with its changes.
    async fn leaf(
        &self,
        leaf: u64,
        old: ChildEntry,
        before: Before,
    ) -> Result<ChildEntry, MapError> {
        // A page that is not in what comes out, though no entry of it changes.
        let dropped = match before {
            Before::Nothing => !old.is_none(),
            Before::Lost => !old.is_lost(),
            Before::Page(_) => false,
        };
        let before = match before {
            Before::Nothing => blank(),
            Before::Page(page) => page,
            Before::Lost => self.shape.all_lost(leaf),
        };
        let mut after = Rc::clone(&before);
        let changed = self.change(leaf, &before, Rc::make_mut(&mut after));
        if !changed && !dropped {
            return Ok(old);
        }
        self.retire(0, leaf, &old);
        let beneath = self.shape.beneath(&after, leaf);
        if beneath.entries == 0 {
            return Ok(ChildEntry::NONE);
        }
        self.author
            .write(self.root.page(0, leaf), after, beneath)
            .await
    }

    /// Changes a leaf's entries, and says so of blocks that come and go. Whether anything is different.
    fn change(&self, leaf: u64, before: &Page, after: &mut Page) -> bool {
        let blocks = self.shape.blocks(leaf, leaf);
        let mut touched = [0u64; 4];
        let mut at = blocks.start;
        while let Some(erased) = self.changes.next_erased(LaneBlock(at))
            && erased.start < blocks.end
        {
            for block in erased.start.max(at)..erased.end.min(blocks.end) {
                let slot = (block - blocks.start) as u8;
                self.shape.set_entry(after, slot, &LeafEntry::ABSENT);
                touched[usize::from(slot / 64)] |= 1 << (slot % 64);
            }
            at = erased.end;
        }
        self.changes.entries(leaf, &mut |slot, entry| {
            self.shape.set_entry(after, slot, entry);
            touched[usize::from(slot / 64)] |= 1 << (slot % 64);
        });
        let mut changed = false;
        let touched = [0u8, 64, 128, 192].into_iter().zip(touched);
        for slot in touched.flat_map(|(first, set)| bits(set).map(move |n| first + n as u8)) {
            if self.shape.same(before, after, slot) {
                continue;
            }
            changed = true;
            let was = self.shape.entry(before, slot);
            let is = self.shape.entry(after, slot).block();
            if is == was.block() {
                continue;
            }
            if let Some(block) = is {
                self.pages().merged(block);
            }
            self.retire_entry(leaf, &was);
        }
        changed
    }

    /// Gives back what is own of a whole subtree.
    fn give_back(&self, level: u8, index: u64, entry: ChildEntry) -> Step<'_, ()> {
        Box::pin(async move {
            let (first, _) = leaves_of_page(level, index);
            // Nothing beneath is newer than the page.
            let nothing = entry.is_none() || entry.is_lost();
            if nothing || !self.is_own(entry.generation, first) {
                return Ok(());
            }
            let Some(page) = self.read(level, index, &entry).await? else {
                self.retire(level, index, &entry);
                return Ok(());
            };
            if level == 0 {
                self.give_back_entries(first, &page);
            } else if level == 1 {
                let own = |n: &u64| {
                    let child = child(&page, *n);
                    let there = !child.is_none() && !child.is_lost();
                    there && self.is_own(child.generation, index * FANOUT + n)
                };
                let mut wanted = Vec::new();
                for n in (0..FANOUT).filter(own) {
                    let (child, what) = (child(&page, n), self.root.page(0, index * FANOUT + n));
                    wanted.push((child.block, child.crc, what));
                }
                let leaves = self.pages().read_each(&wanted).await;
                for ((block, _, what), leaf) in wanted.iter().zip(leaves) {
                    if let Some(leaf) = self.or_lost(*what, leaf)? {
                        self.give_back_entries(what.index, &leaf);
                    }
                    self.pages().free_page(*block);
                }
            } else {
                for n in 0..FANOUT {
                    self.give_back(level - 1, index * FANOUT + n, child(&page, n))
                        .await?;
                }
            }
            self.retire(level, index, &entry);
            self.pages().breathe().await;
            Ok(())
        })
    }

    fn give_back_entries(&self, leaf: u64, page: &Page) {
        for slot in 0..self.shape.slots(leaf) {
            self.retire_entry(leaf, &self.shape.entry(page, slot));
        }
    }

    /// An entry is not referred to any more.
    fn retire_entry(&self, leaf: u64, entry: &LeafEntry) {
        if let Some(block) = entry.block()
            && self.is_own(entry.generation, leaf)
        {
            self.pages().free(block);
        }
    }

    /// A page is not referred to any more.
    fn retire(&self, level: u8, index: u64, entry: &ChildEntry) {
        let (_, last) = leaves_of_page(level, index);
        let there = !entry.is_none() && !entry.is_lost();
        if there && self.is_own(entry.generation, last) {
            self.pages().free_page(entry.block);
        }
    }
}

/// The numbers of the bits that are set.
fn bits(mut set: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let n = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (n < 64).then_some(u64::from(n))
    })
}
