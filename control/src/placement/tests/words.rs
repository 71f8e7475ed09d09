//! Every node has a word.
use super::*;

#[test]
fn losers_hear_by_what() {
    let nodes = vec![
        node("a", &[("zone", "z1"), ("rack", "r1")]),
        node("b", &[("zone", "z1"), ("rack", "r1")]),
        node("c", &[("zone", "z1"), ("rack", "r2")]),
        node("d", &[("zone", "z2")]),
        Node {
            load_percent: 30,
            ..node("e", &[("zone", "z2")])
        },
        node("f", &[("zone", "z2")]),
    ];
    let cluster = Cluster::new(nodes);
    let choice = cluster.choose(&request(2)).unwrap();
    let words = choice.explain();
    assert_eq!(said(&words, "a"), Outcome::Chosen(1));
    assert_eq!(said(&words, "d"), Outcome::Chosen(2));
    for (id, says) in [
        ("b", "to d: zone z1 has a"),
        ("e", "to d: score"),
        ("f", "later by its id"),
    ] {
        let Outcome::Lost(why) = said(&words, id) else {
            panic!("{id}: {words:?}");
        };
        assert!(why.contains(says), "{id}: {why}");
    }
    let mut more = request(1);
    more.held = vec!["a", "d", "e", "f"];
    let choice = cluster.choose(&more).unwrap();
    let words = choice.explain();
    assert_eq!(said(&words, "c"), Outcome::Chosen(1));
    assert_eq!(said(&words, "d"), Outcome::Held);
    assert_eq!(
        said(&words, "b"),
        Outcome::Lost("to c: rack r1 has a".into())
    );
}

#[test]
fn where_there_is_none_the_able_are_named_too() {
    let mut away = node("b", &[]);
    away.refused = Some("it is away".into());
    let cluster = Cluster::new(vec![node("a", &[]), away]);
    let wish = request(2);
    let none = cluster.choose(&wish).unwrap_err();
    assert!(!none.by_rules());
    let words = none.explain();
    assert_eq!(said(&words, "a"), Outcome::Able);
    assert_eq!(said(&words, "b"), Outcome::Refused("it is away".into()));
}
