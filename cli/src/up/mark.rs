//! A mark: bytes at the end of a volume that only `up` can have written, so that a later `up` can tell whether the volume's
//! data survived. Every 512-byte sector of it tells by itself whether it is as written, damaged, or somebody else's by now
//! (hosts write whole sectors): the volume is its user's, who may overwrite the mark at any time.

/// Unit of a mark, and the smallest that hosts write.
pub const SECTOR: usize = 512;
/// First bytes of each sector of a mark.
const MAGIC: &[u8; 8] = b"KEELMARK";

/// What was found where a mark was written.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Every byte.
    Intact,
    /// Sectors were written, or discarded, by the volume's user; the others are as they were.
    Overwritten,
    /// The sector with this index carries our magic and wrong bytes.
    Damaged(usize),
}

/// The mark of a volume. Sector: magic, index of the sector (8 bytes, little-endian), then a stream that both ids and the
/// index decide.
pub fn mark(cluster_id: &str, volume_id: &str, len: usize) -> Vec<u8> {
    // FNV-1a: fixed for ever, unlike the standard library's hashers.
    let seed = cluster_id.bytes().chain(volume_id.bytes());
    let seed = seed.fold(0xcbf2_9ce4_8422_2325, |h: u64, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = vec![0; len];
    for (index, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        let (words, _) = sector.as_chunks_mut::<8>();
        let mut state = seed.wrapping_add(index as u64);
        for word in words.iter_mut() {
            *word = split_mix(&mut state).to_le_bytes();
        }
        words[0] = *MAGIC;
        words[1] = (index as u64).to_le_bytes();
    }
    bytes
}

/// Compares what was read with the mark that was written.
pub fn inspect(found: &[u8], written: &[u8]) -> Found {
    let mut outcome = Found::Intact;
    for (index, (found, written)) in found.chunks(SECTOR).zip(written.chunks(SECTOR)).enumerate() {
        if found == written {
            continue;
        }
        if found.starts_with(MAGIC) {
            return Found::Damaged(index);
        }
        outcome = Found::Overwritten;
    }
    outcome
}

/// SplitMix64.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_change_is_told() {
        let written = mark("c", "v", 4 * SECTOR);
        assert_eq!(inspect(&written, &written), Found::Intact);
        let mut discarded = written.clone();
        discarded[SECTOR..2 * SECTOR].fill(0);
        assert_eq!(inspect(&discarded, &written), Found::Overwritten);
        let mut damaged = discarded;
        damaged[4 * SECTOR - 1] ^= 1;
        assert_eq!(inspect(&damaged, &written), Found::Damaged(3));
        let mut misplaced = written.clone();
        misplaced.copy_within(0..SECTOR, SECTOR);
        assert_eq!(inspect(&misplaced, &written), Found::Damaged(1));
    }

    #[test]
    fn marks_of_volumes_differ() {
        assert_ne!(mark("c", "v", SECTOR), mark("c", "w", SECTOR));
        assert!(
            mark("c", "v", 2 * SECTOR)
                .chunks(8)
                .skip(2)
                .filter(|w| w.iter().all(|b| *b == 0))
                .count()
                < 2
        );
    }
}
