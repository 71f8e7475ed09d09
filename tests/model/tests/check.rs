//! The model check in its short version: every world whole, and every rule left out in its turn.
use keelblock_model::list;

/// More states than any world of the short version has.
const BOUND: usize = 8_000_000;

#[test]
fn no_state_of_any_world_breaks_an_invariant() {
    for search in list::whole(false) {
        let outcome = search.run(BOUND);
        assert!(outcome.found.is_none(), "{search:?}: {outcome:#?}");
        assert!(outcome.complete, "{search:?}: more than {BOUND} states");
    }
}

#[test]
fn every_rule_that_is_left_out_is_found() {
    for search in list::planted() {
        let outcome = search.run(BOUND);
        assert!(outcome.found.is_some(), "{search:?}");
    }
}
