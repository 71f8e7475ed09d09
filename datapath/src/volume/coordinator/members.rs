//! Replicas by their place in a coordinator's table, and sets of them.

/// Most replicas that a coordinator knows at a time: 5 members, and those that come or go.
pub const PLACES_MAX: usize = 16;

/// A replica's place in the coordinator's table; it never gets another replica in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u8);

impl Place {
    /// Place number `n`, if there can be one.
    pub fn new(n: usize) -> Option<Self> {
        (n < PLACES_MAX).then_some(Self(n as u8))
    }

    /// Its number.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Members(u16);

impl Members {
    /// Nobody.
    pub const NONE: Self = Self(0);

    /// One of them.
    pub fn one(place: Place) -> Self {
        Self(1 << place.0)
    }

    /// Whether it is one of them.
    pub fn has(self, place: Place) -> bool {
        self.0 >> place.0 & 1 == 1
    }

    /// With one more.
    #[must_use]
    pub fn with(self, place: Place) -> Self {
        Self(self.0 | 1 << place.0)
    }

    /// Without one.
    #[must_use]
    pub fn without(self, place: Place) -> Self {
        Self(self.0 & !(1 << place.0))
    }

    /// Who is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Who is in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Who is here and not there.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is nobody.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of them are among `other`.
    pub fn within(self, other: Self) -> bool {
        self.minus(other).is_empty()
    }

    /// Each, in order of places.
    pub fn iter(self) -> impl Iterator<Item = Place> {
        (0..PLACES_MAX as u8)
            .map(Place)
            .filter(move |&p| self.has(p))
    }
}

impl FromIterator<Place> for Members {
    fn from_iter<I: IntoIterator<Item = Place>>(places: I) -> Self {
        places.into_iter().fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_sets() {
        let all: Vec<Place> = (0..PLACES_MAX).filter_map(Place::new).collect();
        assert_eq!((all.len(), Place::new(PLACES_MAX)), (PLACES_MAX, None));
        let odd: Members = all.iter().copied().filter(|p| p.index() % 2 == 1).collect();
        assert_eq!(odd.count(), 8);
        assert!(odd.has(all[3]) && !odd.has(all[2]));
        assert_eq!(odd.without(all[3]).with(all[3]), odd);
        assert!(odd.minus(Members::one(all[15])).within(odd));
        assert!(odd.and(Members::one(all[0])).is_empty());
        assert_eq!(odd.or(Members::one(all[0])).iter().next(), Some(all[0]));
    }
}
