//! Ranges of keys as etcd writes them: `key` and `range_end`.
use super::error::StoreError;
use std::ops::Bound;

/// A range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    start: Vec<u8>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Only,
    Before(Vec<u8>),
    Unbounded,
}

/// Bounds in the table of versions, whose keys are (key, revision).
pub type VersionBounds<'a> = (Bound<(&'a [u8], u64)>, Bound<(&'a [u8], u64)>);

impl Span {
    /// From a request's fields: no end = one key, a zero byte = no end.
    pub fn new(key: &[u8], range_end: &[u8]) -> Result<Self, StoreError> {
        if key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
        let end = match range_end {
            [] => End::Only,
            [0] => End::Unbounded,
            end => End::Before(end.to_vec()),
        };
        Ok(Self {
            start: key.to_vec(),
            end,
        })
    }

    /// Exactly one key.
    pub fn key(key: &[u8]) -> Self {
        Self {
            start: key.to_vec(),
            end: End::Only,
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Only => key == self.start,
            End::Before(end) => key >= self.start.as_slice() && key < end.as_slice(),
            End::Unbounded => key >= self.start.as_slice(),
        }
    }

    /// Bounds in a table whose keys are the store's.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = match &self.end {
            End::Only => Bound::Included(self.start.as_slice()),
            End::Before(end) => Bound::Excluded(end.as_slice()),
            End::Unbounded => Bound::Unbounded,
        };
        (Bound::Included(self.start.as_slice()), end)
    }

    /// Bounds in the table of versions.
    pub fn version_bounds(&self) -> VersionBounds<'_> {
        let end = match &self.end {
            End::Only => Bound::Included((self.start.as_slice(), u64::MAX)),
            End::Before(end) => Bound::Excluded((end.as_slice(), 0)),
            End::Unbounded => Bound::Unbounded,
        };
        (Bound::Included((self.start.as_slice(), 0)), end)
    }
}

/// The `range_end` that makes a range of all keys beginning with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // All 0xff, or no prefix at all: there is no key after them.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_prefix_range_holds_exactly_what_begins_with_it(prefix in proptest::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 1..4), key in proptest::collection::vec(prop_oneof![Just(0xffu8), Just(0u8), any::<u8>()], 0..6)) {
            let span = Span::new(&prefix, &prefix_end(&prefix)).unwrap();
            let all_ff = prefix.iter().all(|b| *b == 0xff);
            // What follows an all-0xff prefix is only more 0xff, or longer.
            let expected = if all_ff { key >= prefix } else { key.starts_with(&prefix) };
            prop_assert_eq!(span.contains(&key), expected);
            prop_assert!(!span.is_empty());
        }
    }

    #[test]
    fn backward_ranges_are_empty() {
        assert!(Span::new(b"b", b"a").unwrap().is_empty());
        assert!(Span::new(b"b", b"b").unwrap().is_empty());
        assert!(!Span::new(b"b", b"c").unwrap().is_empty());
        assert!(Span::new(b"", b"c").is_err());
    }
}
