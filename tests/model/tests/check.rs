//! The model check in its short version: every world whole, and every rule left out in its turn.
use keelblock_model::checker::check;
use keelblock_model::protocol::{Protocol, rules};

/// More states than any world of the short version has.
const BOUND: usize = 8_000_000;

#[test]
fn no_state_of_any_world_breaks_an_invariant() {
    for world in rules::worlds(false) {
        let outcome = check(&Protocol { world, bug: None }, BOUND);
        assert!(outcome.found.is_none(), "{}: {outcome:#?}", world.name);
        assert!(outcome.complete, "{}: more than {BOUND} states", world.name);
    }
}

#[test]
fn every_rule_that_is_left_out_is_found() {
    for (bug, world) in rules::planted() {
        let bug = Some(bug);
        let outcome = check(&Protocol { world, bug }, BOUND);
        assert!(outcome.found.is_some(), "{bug:?} in {}", world.name);
    }
}
