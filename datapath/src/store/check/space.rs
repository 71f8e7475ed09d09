//! Group table and bitmaps against what was reached.

use super::super::group::{GroupEntry, decode_table_page, groups_of_page};
use super::super::superblock::{BITMAP_BLOCKS, GROUP_BLOCKS, GroupId};
use super::super::types::{BLOCK_BYTES, Crc, PhysicalBlock};
use super::Checker;

impl Checker<'_> {
    /// Checks the group table and all bitmaps.
    pub(super) fn space(&mut self) {
        if !self.complete {
            let what = "a page is damaged: what it leads to counts as not reached, and is no leak";
            self.report.note(what.to_owned());
        }
        let layout = self.superblock.layout;
        let mut free = 0;
        for page in 0..layout.table_pages() {
            let Some(entries) = self.table_page(page) else {
                continue;
            };
            for (group, entry) in groups_of_page(&layout, page).zip(entries) {
                free += self.group(GroupId(group), &entry);
            }
        }
        if free != self.superblock.free_blocks {
            let what = format!(
                "the groups have {free} free blocks, the superblock says {}",
                self.superblock.free_blocks
            );
            self.report.problem("table", what);
        }
    }

    /// Compares how many pages there are. Those beneath a lost one are counted still, and not reached.
    pub(super) fn pages(&mut self) {
        let (said, found) = (self.superblock.pages, self.report.pages);
        let whole = self.complete && self.superblock.lost_pages == 0;
        if found > said || whole && found != said {
            let what = format!("{found} pages were reached, the superblock says {said}");
            self.report.problem("superblock", what);
        }
    }

    fn table_page(&mut self, page: u32) -> Option<Vec<GroupEntry>> {
        let layout = self.superblock.layout;
        let entry = self.superblock.table[page as usize];
        if !entry.in_use {
            return Some(vec![
                GroupEntry::UNUSED;
                groups_of_page(&layout, page).len()
            ]);
        }
        let at = layout.table_page(page, entry.copy);
        let bytes = self.read(at, "group table")?;
        if Crc::of(&bytes[..]) != entry.crc {
            let what = format!("page {page}, block {}: the checksum does not match", at.0);
            self.report.problem("table", what);
            return None;
        }
        match decode_table_page(&bytes[..], page, self.superblock.drive_id, &layout) {
            Ok(entries) => Some(entries),
            Err(e) => {
                self.report.problem("table", e.to_string());
                None
            }
        }
    }

    /// Checks a group; the answer is its free blocks as the table has them.
    fn group(&mut self, group: GroupId, entry: &GroupEntry) -> u64 {
        let layout = self.superblock.layout;
        let usable = layout.group_blocks(group) - BITMAP_BLOCKS;
        let mut bits = [0u64; GROUP_BLOCKS as usize / 64];
        let mut free = u64::from(usable);
        if entry.in_use {
            free = entry.free.into();
            let at = PhysicalBlock(layout.group_start(group).0 + u64::from(entry.copy));
            let Some(bytes) = self.read(at, "bitmap") else {
                return free;
            };
            if Crc::of(&bytes[..]) != entry.crc {
                let what = format!("group {}: the checksum does not match", group.0);
                self.report.problem("bitmap", what);
                return free;
            }
            for (word, bytes) in bits.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().expect("8 of 4096 bytes"));
            }
            let clear: u32 = bits.iter().map(|w| w.count_zeros()).sum();
            if u64::from(clear) != free {
                let what = format!(
                    "group {}: {clear} bits are clear, the table says {free}",
                    group.0
                );
                self.report.problem("bitmap", what);
            }
        } else {
            // Never used: only what is never free counts as set.
            let end = layout.group_blocks(group);
            for bit in (0..BITMAP_BLOCKS).chain(end..GROUP_BLOCKS) {
                bits[bit as usize / 64] |= 1 << (bit % 64);
            }
        }
        self.report.used += u64::from(usable) - free.min(usable.into());
        let wanted = self.marks.bitmap(group);
        self.differences("unmarked", group, |word| wanted[word] & !bits[word]);
        if self.complete && self.superblock.lost_pages == 0 {
            self.differences("leak", group, |word| bits[word] & !wanted[word]);
        } else if self.complete {
            let cut_off = bits.iter().zip(&wanted).map(|(b, w)| (b & !w).count_ones());
            self.report.cut_off += u64::from(cut_off.sum::<u32>());
        }
        free
    }

    /// Reports runs of bits.
    fn differences(&mut self, kind: &'static str, group: GroupId, word: impl Fn(usize) -> u64) {
        let start = self.superblock.layout.group_start(group).0;
        let has = |bit: u32| word(bit as usize / 64) >> (bit % 64) & 1 == 1;
        let mut bit = 0;
        while bit < GROUP_BLOCKS {
            if bit % 64 == 0 && word(bit as usize / 64) == 0 {
                bit += 64;
                continue;
            }
            if !has(bit) {
                bit += 1;
                continue;
            }
            let first = bit;
            while bit < GROUP_BLOCKS && has(bit) {
                bit += 1;
            }
            let (from, to) = (start + u64::from(first), start + u64::from(bit) - 1);
            let what = match kind {
                "leak" => {
                    format!("blocks {from} to {to} are marked in use, and nothing refers to them")
                }
                _ => format!("blocks {from} to {to} are referred to, and not marked in use"),
            };
            self.report.problem(kind, what);
        }
    }
}

const _: () = assert!(GROUP_BLOCKS as usize / 8 == BLOCK_BYTES);
