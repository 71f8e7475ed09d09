//! How a member record may change (`docs/membership.md`, M1 to M10). Pure: what is not allowed is refused in words, and nothing else changes a record.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::record::{DrainRecord, DrainState, MemberRecord, MemberState};

/// Longest key and value of a label, in bytes.
pub const LABEL_MAX: usize = 253;
/// Most labels of a node.
pub const LABELS_MAX: usize = 64;

/// Why it was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The id is somebody else's.
    #[error(
        "node id {0} is taken by another machine, or by a data directory that was lost: start with an id of its own; if the other one is never to come back, \
         `keelctl node decommission {0}` (asked of a node that lives) frees the id"
    )]
    Taken(String),
    /// It was decommissioned.
    #[error(
        "node {0} was decommissioned, and its data directory never joins again: to join as a new node, give another directory with --data"
    )]
    Gone(String),
    /// The state does not allow it.
    #[error("node {node} is {state}: {way}")]
    State {
        /// The node.
        node: String,
        /// Its state.
        state: &'static str,
        /// What to do.
        way: &'static str,
    },
    /// A label that cannot be.
    #[error("label {0:?}: {1}")]
    Label(String, String),
}

fn state(record: &MemberRecord, way: &'static str) -> Refused {
    Refused::State {
        node: record.node_id.clone(),
        state: record.state.name(),
        way,
    }
}

fn there(record: &MemberRecord) -> Result<(), Refused> {
    match record.state {
        MemberState::Decommissioned => Err(state(record, "it is no member any more")),
        _ => Ok(()),
    }
}

/// M1 and M2: a node starts.
///
/// # Errors
/// [`Refused::Taken`], [`Refused::Gone`], [`Refused::Label`].
pub fn join(
    before: Option<&MemberRecord>,
    node_id: &str,
    identity: Uuid,
    labels: &BTreeMap<String, String>,
    now_unix_ms: u64,
) -> Result<MemberRecord, Refused> {
    let mut record = match before {
        Some(known) if known.identity == identity => {
            if known.state == MemberState::Decommissioned {
                return Err(Refused::Gone(node_id.into()));
            }
            known.clone()
        }
        Some(known) if known.state != MemberState::Decommissioned => {
            return Err(Refused::Taken(node_id.into()));
        }
        _ => MemberRecord::new(node_id, identity, now_unix_ms),
    };
    let given = labels.iter().map(|(k, v)| (k.clone(), v.clone()));
    set_labels(&mut record, given)?;
    Ok(record)
}

/// M3: labels are merged into those that are there; an empty value takes one away.
///
/// # Errors
/// [`Refused::Label`], [`Refused::State`].
pub fn set_labels(
    record: &mut MemberRecord,
    labels: impl IntoIterator<Item = (String, String)>,
) -> Result<(), Refused> {
    there(record)?;
    let mut new = record.labels.clone();
    for (key, value) in labels {
        let wrong = |why: String| Err(Refused::Label(key.clone(), why));
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if key.is_empty() || key.len() > LABEL_MAX || !key.chars().all(allowed) {
            return wrong(format!(
                "a key has 1 to {LABEL_MAX} letters, digits, `.`, `_`, `-` or `/`"
            ));
        }
        if value.len() > LABEL_MAX || value.chars().any(char::is_control) {
            return wrong(format!(
                "a value has at most {LABEL_MAX} bytes, and no control characters"
            ));
        }
        match value.is_empty() {
            true => drop(new.remove(&key)),
            false => drop(new.insert(key, value)),
        }
    }
    if new.len() > LABELS_MAX {
        let why = format!("a node has at most {LABELS_MAX} labels");
        return Err(Refused::Label(
            new.into_keys().next_back().unwrap_or_default(),
            why,
        ));
    }
    record.labels = new;
    Ok(())
}

/// M3: whether it gets something new. A drain that runs ends when it may again.
///
/// # Errors
/// [`Refused::State`].
pub fn cordon(record: &mut MemberRecord, cordoned: bool, now_unix_ms: u64) -> Result<(), Refused> {
    there(record)?;
    record.cordoned = cordoned;
    if !cordoned {
        end_drain(record, DrainState::Cancelled, now_unix_ms);
    }
    Ok(())
}

/// M4.
///
/// # Errors
/// [`Refused::State`].
pub fn enter_maintenance(record: &mut MemberRecord) -> Result<(), Refused> {
    match record.state {
        MemberState::Active | MemberState::Maintenance => record.state = MemberState::Maintenance,
        _ => return Err(state(record, "it is not to come back from that")),
    }
    Ok(())
}

/// M5. Leaving what one is not in is done already.
///
/// # Errors
/// [`Refused::State`].
pub fn exit_maintenance(record: &mut MemberRecord) -> Result<(), Refused> {
    match record.state {
        MemberState::Active => {}
        MemberState::Maintenance => {
            record.state = MemberState::Active;
            record.waits.clear();
        }
        _ => return Err(state(record, "it is not in maintenance")),
    }
    Ok(())
}

/// M6.
///
/// # Errors
/// [`Refused::State`].
pub fn decommission(record: &mut MemberRecord) -> Result<(), Refused> {
    there(record)?;
    record.state = MemberState::Decommissioning;
    Ok(())
}

/// M7.
///
/// # Errors
/// [`Refused::State`].
pub fn recommission(record: &mut MemberRecord) -> Result<(), Refused> {
    match record.state {
        MemberState::Active => {}
        MemberState::Decommissioning => {
            record.state = MemberState::Active;
            record.waits.clear();
        }
        _ => return Err(state(record, "it is not being decommissioned")),
    }
    Ok(())
}

/// M8 and M9: nothing is left on it, as whoever calls this has seen.
pub fn gone(record: &mut MemberRecord, now_unix_ms: u64) {
    end_drain(record, DrainState::Done, now_unix_ms);
    record.state = MemberState::Decommissioned;
    record.waits.clear();
    record.changed_unix_ms = now_unix_ms;
}

/// M10: attachments are to leave, and none is to come. One that runs already goes on.
///
/// # Errors
/// [`Refused::State`].
pub fn drain(record: &mut MemberRecord, issuer: &str, now_unix_ms: u64) -> Result<(), Refused> {
    there(record)?;
    record.cordoned = true;
    let runs = record.drain.as_ref();
    if runs.is_some_and(|d| d.state == DrainState::Running) {
        return Ok(());
    }
    record.drain = Some(DrainRecord {
        job_id: Uuid::new_v4(),
        state: DrainState::Running,
        issuer: issuer.into(),
        moved: 0,
        left: 0,
        created_unix_ms: now_unix_ms,
        updated_unix_ms: now_unix_ms,
    });
    Ok(())
}

/// The end of a drain that runs.
pub fn end_drain(record: &mut MemberRecord, end: DrainState, now_unix_ms: u64) {
    let drain = record.drain.as_mut();
    if let Some(drain) = drain.filter(|d| d.state == DrainState::Running) {
        drain.state = end;
        drain.updated_unix_ms = now_unix_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        let one = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        of.iter().map(one).collect()
    }

    fn joined() -> MemberRecord {
        join(None, "n1", A, &BTreeMap::new(), 5).unwrap()
    }

    #[test]
    fn an_id_belongs_to_one_identity_until_it_is_decommissioned() {
        let first = joined();
        assert_eq!(
            (first.state, first.joined_unix_ms),
            (MemberState::Active, 5)
        );
        let mut again = first.clone();
        again.cordoned = true;
        let zone = labels(&[("zone", "a")]);
        let again = join(Some(&again), "n1", A, &zone, 9).unwrap();
        assert!(again.cordoned && again.labels["zone"] == "a");
        assert_eq!(again.joined_unix_ms, 5);
        let other = join(Some(&first), "n1", B, &zone, 9);
        assert_eq!(other, Err(Refused::Taken("n1".into())));
        let mut left = first;
        gone(&mut left, 7);
        assert_eq!(
            join(Some(&left), "n1", A, &zone, 9),
            Err(Refused::Gone("n1".into()))
        );
        assert_eq!(join(Some(&left), "n1", B, &zone, 9).unwrap().identity, B);
    }

    #[test]
    fn states_follow_one_another_as_the_table_says() {
        let mut r = joined();
        enter_maintenance(&mut r).unwrap();
        enter_maintenance(&mut r).unwrap();
        assert!(r.sheds_attachments());
        assert!(recommission(&mut r).is_err());
        exit_maintenance(&mut r).unwrap();
        exit_maintenance(&mut r).unwrap();
        assert!(!r.sheds_attachments());
        enter_maintenance(&mut r).unwrap();
        decommission(&mut r).unwrap();
        assert!(enter_maintenance(&mut r).is_err());
        let said = exit_maintenance(&mut r).unwrap_err().to_string();
        assert!(said.contains("n1 is decommissioning"), "{said}");
        recommission(&mut r).unwrap();
        assert_eq!(r.state, MemberState::Active);
        gone(&mut r, 8);
        assert!(decommission(&mut r).is_err() && cordon(&mut r, true, 8).is_err());
        assert!(drain(&mut r, "me", 8).is_err() && set_labels(&mut r, []).is_err());
    }

    #[test]
    fn a_drain_cordons_and_ends_when_the_node_may_have_something_again() {
        let mut r = joined();
        drain(&mut r, "me", 5).unwrap();
        let job = r.drain.clone().unwrap();
        drain(&mut r, "you", 6).unwrap();
        assert_eq!(r.drain.as_ref(), Some(&job), "it goes on");
        assert!(r.cordoned && r.sheds_attachments());
        cordon(&mut r, false, 7).unwrap();
        assert_eq!(r.drain.as_ref().unwrap().state, DrainState::Cancelled);
        assert!(!r.sheds_attachments());
        drain(&mut r, "me", 8).unwrap();
        assert_ne!(r.drain.as_ref().unwrap().job_id, job.job_id);
    }

    #[test]
    fn labels_are_merged_and_bad_ones_refused() {
        let mut r = joined();
        set_labels(&mut r, labels(&[("zone", "a"), ("rack", "7")])).unwrap();
        set_labels(&mut r, labels(&[("zone", ""), ("topology.io/x", "ä b")])).unwrap();
        assert_eq!(r.labels, labels(&[("rack", "7"), ("topology.io/x", "ä b")]));
        let long = "x".repeat(LABEL_MAX + 1);
        for (key, value) in [
            ("", "a"),
            ("a b", "c"),
            ("a", "b\n"),
            (&long, "a"),
            ("a", &long),
        ] {
            assert!(
                set_labels(&mut r, labels(&[(key, value)])).is_err(),
                "{key}"
            );
        }
        let many = (0..LABELS_MAX).map(|n| (format!("k{n}"), "v".to_owned()));
        assert!(set_labels(&mut r, many).is_err());
        assert_eq!(r.labels.len(), 2, "nothing of it was set");
    }
}
