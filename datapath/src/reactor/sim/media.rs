//! What a simulated disk holds: blocks that are shared when they are copied, so an image of a whole disk costs next to nothing.

use std::rc::Rc;

use super::disk::SECTOR;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks that are looked up together.
const CHUNK_BLOCKS: usize = 512;

/// A block's bytes.
pub type Block = [u8; BLOCK];

pub static ZEROES: Block = [0; BLOCK];

type Chunk = [Option<Rc<Block>>; CHUNK_BLOCKS];

/// Blocks by number; those that were never stored are zeroes.
#[derive(Clone, Default)]
pub(super) struct Blocks {
    chunks: Vec<Option<Rc<Chunk>>>,
}

impl Blocks {
    /// A block, if it was stored.
    #[inline]
    pub fn get(&self, block: u64) -> Option<&Rc<Block>> {
        let (chunk, at) = place(block);
        self.chunks.get(chunk)?.as_ref()?[at].as_ref()
    }

    /// A block's bytes.
    #[inline]
    pub fn bytes(&self, block: u64) -> &Block {
        self.get(block).map_or(&ZEROES, |b| b)
    }

    /// Stores a block.
    pub fn set(&mut self, block: u64, to: Option<Rc<Block>>) {
        let (chunk, at) = place(block);
        if chunk >= self.chunks.len() {
            if to.is_none() {
                return;
            }
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk =
            self.chunks[chunk].get_or_insert_with(|| Rc::new([const { None }; CHUNK_BLOCKS]));
        Rc::make_mut(chunk)[at] = to;
    }
}

fn place(block: u64) -> (usize, usize) {
    let chunk = CHUNK_BLOCKS as u64;
    ((block / chunk) as usize, (block % chunk) as usize)
}

/// The versions that a block has had since it was flushed last.
#[derive(Clone)]
pub(super) struct Versions {
    /// What is on media.
    pub media: Option<Rc<Block>>,
    /// Oldest first, each with the number of its write.
    pub later: Vec<(u64, Option<Rc<Block>>)>,
}

/// What becomes of a write whose sectors were not flushed when the power went.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Lost,
    Torn,
}

/// A power cut: decides for each write, and for each sector of a torn one.
pub(super) struct Cut {
    seed: u64,
    /// Out of 256.
    kept: u64,
    torn: u64,
}

impl Cut {
    /// Some cuts lose nearly all, some nearly nothing, most something; few tear much.
    pub fn new(seed: u64) -> Self {
        let r = mix(seed);
        Self {
            seed,
            kept: [0, 24, 80, 128, 128, 176, 232, 250][(r % 8) as usize],
            torn: [0, 8, 40, 256][(r >> 8) as usize % 4].min([256, 64][(r >> 16) as usize % 2]),
        }
    }

    fn fate(&self, write: u64) -> Fate {
        let r = mix(self.seed ^ write.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if r % 256 < self.torn {
            Fate::Torn
        } else if (r >> 8) % 256 < self.kept {
            Fate::Kept
        } else {
            Fate::Lost
        }
    }

    /// Whether a sector of a torn write was kept.
    fn sector(&self, write: u64, sector: u64) -> bool {
        mix(self.seed ^ mix(write) ^ sector.wrapping_mul(0x2545_f491_4f6c_dd1d)) & 1 == 1
    }

    /// What is on media afterwards, and a number that says of which writes that is: equal ones are equal bytes.
    pub fn leaves(&self, block: u64, versions: &Versions) -> (Option<Rc<Block>>, u64) {
        let mut result = versions.media.clone();
        let mut of = mix(block);
        for (write, version) in &versions.later {
            match self.fate(*write) {
                Fate::Lost => {}
                Fate::Kept => {
                    result = version.clone();
                    of = mix(block) ^ mix(*write);
                }
                Fate::Torn => {
                    let mut bytes = result.as_deref().map_or(ZEROES, |b| *b);
                    let new = version.as_deref().unwrap_or(&ZEROES);
                    let sectors = BLOCK as u64 / SECTOR;
                    for n in 0..sectors {
                        if self.sector(*write, block * sectors + n) {
                            of = mix(of ^ mix(write * sectors + n));
                            let at = (n * SECTOR) as usize..((n + 1) * SECTOR) as usize;
                            bytes[at.clone()].copy_from_slice(&new[at]);
                        }
                    }
                    result = Some(Rc::new(bytes));
                }
            }
        }
        (result, of)
    }
}

fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks")
            .field("chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let writes: Vec<u64> = self.later.iter().map(|v| v.0).collect();
        f.debug_tuple("Versions").field(&writes).finish()
    }
}
