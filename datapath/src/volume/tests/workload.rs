//! Random operations against a model.

use std::collections::BTreeMap;

use super::*;

/// A workload of one reactor on ranges of its own, against a model of sectors that were written.
pub(super) struct Workload {
    here: Here,
    random: StdRng,
    model: BTreeMap<u64, u8>,
    /// First bytes of the windows that are this reactor's.
    windows: Vec<u64>,
}

const WINDOW: u64 = 256 * 1024;

impl Workload {
    /// For one of two reactors: windows over the borders of every other slice, and inside of one.
    pub fn new(here: Here, size: u64, seed: u64) -> Self {
        let id = u64::from(here.handle.id().0);
        let borders = (1..size / SLICE_BYTES).filter(|n| n % 2 == id).take(6);
        let mut windows: Vec<u64> = borders.map(|n| n * SLICE_BYTES - WINDOW / 2).collect();
        windows.push((3 + 6 * id) * MIB - WINDOW / 2);
        Self {
            here,
            random: StdRng::seed_from_u64(seed + id),
            model: BTreeMap::new(),
            windows,
        }
    }

    /// The same with other handles of the same volume.
    pub fn go_on(self, here: Here) -> Self {
        Self { here, ..self }
    }

    /// Where it runs.
    pub fn handle(&self) -> Handle {
        self.here.handle.clone()
    }

    /// Checks every window whole.
    pub async fn check_all(&mut self) {
        for window in self.windows.clone() {
            self.check(range(window, WINDOW)).await;
        }
    }

    fn pick(&mut self) -> ByteRange {
        let window = self.windows[self.random.random_range(0..self.windows.len())];
        let units = WINDOW / SECTOR;
        let first = self.random.random_range(0..units);
        let count = self.random.random_range(1..=units - first);
        range(window + first * SECTOR, count * SECTOR)
    }

    fn expected(&self, sector: u64) -> u8 {
        self.model.get(&sector).copied().unwrap_or(0)
    }

    fn remember(&mut self, at: ByteRange, fill: impl Fn(u64) -> u8) {
        for (n, sector) in (at.start / SECTOR..at.end / SECTOR).enumerate() {
            self.model.insert(sector, fill(n as u64));
        }
    }

    pub async fn step(&mut self) {
        let at = self.pick();
        let salt: u8 = self.random.random();
        let fill = move |n: u64| (n as u8).wrapping_mul(31).wrapping_add(salt);
        let volume = self.here.volume.clone();
        match self.random.random_range(0..8) {
            0..=2 => {
                let data = filled(&self.here, at.len(), fill).await;
                let fua = self.random.random();
                let now = volume.write_now(at, &data[..at.len() as usize], fua);
                match now {
                    Some(written) => {
                        written.unwrap();
                        self.here.hub.commit_now().unwrap();
                    }
                    None => volume.write(at, data, fua).await.1.unwrap(),
                }
                self.remember(at, fill);
            }
            3 => {
                volume.write_zeroes(at, self.random.random()).await.unwrap();
                self.remember(at, |_| 0);
            }
            4 => {
                let first = at.start / SECTOR;
                let same = filled(&self.here, at.len(), |n| self.expected(first + n)).await;
                let (mut same, result) = volume.compare(at, same).await;
                result.unwrap();
                let last = at.len() as usize - 1;
                same[last] ^= 1;
                assert_eq!(
                    volume.compare(at, same).await.1,
                    Err(VolumeError::Miscompare)
                );
            }
            5 => self.swap(at, fill).await,
            _ => self.check(at).await,
        }
    }

    async fn swap(&mut self, at: ByteRange, fill: impl Fn(u64) -> u8) {
        let volume = self.here.volume.clone();
        let first = at.start / SECTOR;
        let expect = filled(&self.here, at.len(), |n| self.expected(first + n)).await;
        let new = filled(&self.here, at.len(), &fill).await;
        let ((mut expect, new), result) = volume.compare_and_write(at, expect, new, false).await;
        if !volume.0.lanes.single(&at.range()) {
            assert_eq!(result, Err(VolumeError::NotAtomic));
            return;
        }
        result.unwrap();
        self.remember(at, fill);
        // Once more: now it holds something else, unless the fill is what was there.
        expect[0] = new[0] ^ 1;
        let (_, result) = volume.compare_and_write(at, expect, new, true).await;
        assert_eq!(result, Err(VolumeError::Miscompare));
    }

    async fn check(&mut self, at: ByteRange) {
        let volume = &self.here.volume;
        let mut seen = Vec::new();
        // SAFETY: in the pass in which it was taken, nothing is written before it is copied.
        let now = volume.read_now(at, |view| seen.extend_from_slice(unsafe { view.bytes() }));
        let got = match now {
            Some(read) => {
                read.unwrap();
                seen
            }
            None => {
                let into = self.here.handle.buffers().take(at.len() as usize).await;
                let (buffer, result) = volume.read(at, into).await;
                result.unwrap();
                buffer[..at.len() as usize].to_vec()
            }
        };
        for (n, bytes) in got.chunks(SECTOR as usize).enumerate() {
            let sector = at.start / SECTOR + n as u64;
            let expected = self.expected(sector);
            assert!(bytes.iter().all(|&b| b == expected), "sector {sector}");
        }
    }
}
