//! Every search there is, by name.
use crate::checker::{Outcome, check};
use crate::protocol::{Protocol, rules};
use crate::{erase, forward, group, snapshot};

/// A search: the world's name, what is left out, and how to run it, up to so many states.
pub struct Search {
    /// Of the world.
    pub world: &'static str,
    /// What is left out.
    pub bug: Option<String>,
    run: Box<dyn Fn(usize) -> Outcome>,
}

impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} without {:?}", self.world, self.bug)
    }
}

impl Search {
    fn new(
        world: &'static str,
        bug: Option<String>,
        run: impl Fn(usize) -> Outcome + 'static,
    ) -> Self {
        let run = Box::new(run);
        Self { world, bug, run }
    }

    /// Searches, up to so many states.
    pub fn run(&self, bound: usize) -> Outcome {
        (self.run)(bound)
    }
}

/// Nothing left out: every state of these must be right.
pub fn whole(long: bool) -> Vec<Search> {
    let mut all: Vec<_> = rules::worlds(long)
        .into_iter()
        .map(|world| {
            let model = Protocol { world, bug: None };
            Search::new(world.name, None, move |n| check(&model, n))
        })
        .collect();
    all.push(Search::new("forwarding", None, |n| {
        check(&forward::Forward(None), n)
    }));
    all.push(Search::new("erasing", None, |n| {
        check(&erase(false, None), n)
    }));
    all.push(Search::new("erasing, resync", None, |n| {
        check(&erase(true, None), n)
    }));
    all.push(Search::new("snapshot", None, |n| {
        check(&snapshot::Snapshot(None), n)
    }));
    all.push(Search::new("snapshots of two volumes", None, |n| {
        check(&group::Group(None), n)
    }));
    all
}

fn erase(resync: bool, bug: Option<erase::Bug>) -> erase::Erase {
    erase::Erase { resync, bug }
}

/// One rule left out: each must be found.
pub fn planted() -> Vec<Search> {
    use erase::Bug as E;
    use forward::Bug as F;
    use group::Bug as G;
    use snapshot::Bug as S;
    let mut all: Vec<_> = rules::planted()
        .into_iter()
        .map(|(bug, world)| {
            let model = Protocol {
                world,
                bug: Some(bug),
            };
            Search::new(world.name, Some(format!("{bug:?}")), move |n| {
                check(&model, n)
            })
        })
        .collect();
    for bug in [E::ReclaimedEarly, E::NotListed] {
        let model = erase(false, Some(bug));
        all.push(Search::new("erasing", Some(format!("{bug:?}")), move |n| {
            check(&model, n)
        }));
    }
    let model = erase(true, Some(E::ReclaimedInResync));
    let name = Some("ReclaimedInResync".to_owned());
    all.push(Search::new("erasing, resync", name, move |n| {
        check(&model, n)
    }));
    for bug in [
        F::NotReserved,
        F::NotConfirmed,
        F::GoesToTheNext,
        F::SettledPasses,
    ] {
        let model = forward::Forward(Some(bug));
        all.push(Search::new(
            "forwarding",
            Some(format!("{bug:?}")),
            move |n| check(&model, n),
        ));
    }
    for bug in [
        S::NoBarrier,
        S::Overtakes,
        S::LaterSlipsIn,
        S::NotFlushed,
        S::NamedEarly,
        S::NamedByLane,
    ] {
        let model = snapshot::Snapshot(Some(bug));
        all.push(Search::new(
            "snapshot",
            Some(format!("{bug:?}")),
            move |n| check(&model, n),
        ));
    }
    for bug in [
        G::NotHeld,
        G::ReleasedEarly,
        G::ExpiredCounts,
        G::HeldAgain,
        G::EpochIgnored,
    ] {
        let model = group::Group(Some(bug));
        let name = Some(format!("{bug:?}"));
        all.push(Search::new("snapshots of two volumes", name, move |n| {
            check(&model, n)
        }));
    }
    all
}
