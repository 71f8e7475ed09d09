//! Records that were found, one behind the other as they lie in the journal: a list of objects would take several times the memory.

use super::decode::{RecordError, RecordRef, record_bytes};

/// Where a record lies in the bytes, and the journal block that it ended in, counted from the first.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u32,
    block: u32,
}

/// Records in an order, each with the sequence of the journal block that it ends in.
#[derive(Clone, Debug, Default)]
pub struct Records {
    first: u64,
    bytes: Vec<u8>,
    places: Vec<Place>,
}

impl Records {
    /// None yet, of journal blocks from `first` on.
    pub fn new(first: u64) -> Self {
        Self {
            first,
            ..Self::default()
        }
    }

    /// Adds a record that ends in block `sequence`, if it is one.
    ///
    /// # Panics
    /// If the block is before the first.
    pub fn push(&mut self, sequence: u64, record: &[u8]) -> Result<(), RecordError> {
        RecordRef::decode(record)?;
        assert!(sequence >= self.first, "a block of the journal");
        self.places.push(Place {
            at: u32::try_from(self.bytes.len()).expect("a journal has 132 MB of records at most"),
            block: (sequence - self.first) as u32,
        });
        self.bytes.extend_from_slice(record);
        Ok(())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The journal block that record `n` ends in, and the record.
    pub(super) fn get(&self, n: usize) -> (u64, RecordRef<'_>) {
        let place = self.places[n];
        let bytes = &self.bytes[place.at as usize..];
        let record = record_bytes(bytes).and_then(|len| RecordRef::decode(&bytes[..len]));
        let record = record.expect("it was decoded when it was added");
        (self.first + u64::from(place.block), record)
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> {
        self.iter_with_blocks().map(|(_, record)| record)
    }

    /// All of them, with the sequence of the block that each ends in.
    pub fn iter_with_blocks(&self) -> impl ExactSizeIterator<Item = (u64, RecordRef<'_>)> {
        (0..self.len()).map(|n| self.get(n))
    }

    /// Copies of these of them, in this order.
    pub(super) fn copies(&self, chosen: &[u32]) -> Self {
        let mut copies = Self::new(self.first);
        for &n in chosen {
            let Place { at, block } = self.places[n as usize];
            let bytes = &self.bytes[at as usize..];
            let len = record_bytes(bytes).expect("it was decoded when it was added");
            copies.places.push(Place {
                at: copies.bytes.len() as u32,
                block,
            });
            copies.bytes.extend_from_slice(&bytes[..len]);
        }
        copies
    }

    /// These of them, in this order.
    pub(super) fn choose(&mut self, chosen: &[u32]) {
        self.places = chosen.iter().map(|&n| self.places[n as usize]).collect();
    }
}
